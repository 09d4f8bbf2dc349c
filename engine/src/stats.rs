//! Counters and sizes of a store, each with its unit.
//! Flow: whoever does the work -> [`Counters`] -> [`Stats`]. Nothing here is on the path of a read; a write counts itself under
//! the lock that it holds; the rest is counted by who waits, syncs or works in the background.

use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_epoch as epoch;

use crate::commit::Commits;
use crate::io::Stopwatch;

/// What a store holds at one moment, and what it did since it was opened; see [`Store::stats`](crate::Store::stats).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Keys with a value, over all buckets, expired ones that were not yet dropped included; the store's own entries too.
    pub keys: u64,
    /// Log segments.
    pub segments: u64,
    /// Bytes of log written.
    pub log_bytes: u64,
    /// Bytes of log that keys point at; the rest is history.
    pub live_bytes: u64,
    /// Bytes of memory that the hash directory takes.
    pub directory_bytes: u64,
    /// Key runs: files of sorted keys.
    pub runs: u64,
    /// Bytes of key runs.
    pub run_bytes: u64,
    /// Bytes logged that a power cut could still take.
    pub unsynced_bytes: u64,
    /// Since the open: commits, a batch being one.
    pub commits: u64,
    /// Since the open: commits that one sync made durable, where somebody waited for them.
    pub group_commits: Histogram,
    /// Since the open: microseconds that a sync of the log took.
    pub sync_us: Histogram,
    /// Since the open: microseconds that a writer waited for the disk.
    pub wait_us: Histogram,
    /// Since the open: microseconds that a writer was made to pause because cleaning lagged behind, and a delete on a full disk.
    pub pause_us: Histogram,
    /// Since the open: segments that cleaning has given up, by their bytes of log.
    pub cleaned_bytes: Histogram,
    /// Since the open: bytes that cleaning has written again.
    pub moved_bytes: u64,
    /// Since the open: key runs made of the log or merged of others, by their bytes.
    pub run_written_bytes: Histogram,
    /// Since the open: microseconds from the beginning of a directory checkpoint to its end.
    pub checkpoint_us: Histogram,
}

/// How often a number was how large, by powers of two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    /// `counts[0]`: how often it was 0; `counts[n]`: at least 2^(n-1) and less than 2^n; the last one: that or more.
    pub counts: [u64; BINS],
    /// The sum of all.
    pub sum: u64,
}

const BINS: usize = 32;

impl Histogram {
    /// How many numbers there were.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// A number that is not exceeded by `share` of them (between 0 and 1): the end of its power of two, so less than twice the
    /// smallest such number. 0 if there were none.
    pub fn at_most(&self, share: f64) -> u64 {
        let wanted = (self.count() as f64 * share.clamp(0.0, 1.0)).ceil() as u64;
        let mut seen = 0;
        for (bin, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted && seen > 0 {
                return (1u64 << bin) - 1;
            }
        }
        0
    }
}

/// A [`Histogram`] that any thread adds to.
#[derive(Default)]
pub(crate) struct Tracked {
    counts: [AtomicU64; BINS],
    sum: AtomicU64,
}

impl Tracked {
    pub(crate) fn add(&self, number: u64) {
        let bin = (u64::BITS - number.leading_zeros()).min(BINS as u32 - 1);
        self.counts[bin as usize].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(number, Ordering::Relaxed);
    }

    /// Adds the time since the watch was started.
    pub(crate) fn add_us(&self, since: &Stopwatch) {
        self.add(since.us());
    }

    fn get(&self) -> Histogram {
        let mut histogram = Histogram { sum: self.sum.load(Ordering::Relaxed), ..Histogram::default() };
        for (count, counted) in histogram.counts.iter_mut().zip(&self.counts) {
            *count = counted.load(Ordering::Relaxed);
        }
        histogram
    }
}

/// What an open store counts.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) group_commits: Tracked,
    pub(crate) sync_us: Tracked,
    pub(crate) wait_us: Tracked,
    pub(crate) pause_us: Tracked,
    pub(crate) cleaned_bytes: Tracked,
    pub(crate) moved_bytes: AtomicU64,
    pub(crate) run_written_bytes: Tracked,
    pub(crate) checkpoint_us: Tracked,
}

impl Stats {
    pub(crate) fn of(commits: &Commits) -> Stats {
        let guard = &epoch::pin();
        let segments = commits.log.segments(guard);
        let runs = commits.index.runs();
        let counters = &commits.counters;
        Stats {
            keys: commits.directory.keys(guard),
            segments: segments.len() as u64,
            log_bytes: segments.iter().map(|s| s.region.published()).sum(),
            live_bytes: segments.iter().map(|s| s.live_bytes()).sum(),
            directory_bytes: commits.directory.bytes(guard),
            runs: runs.len() as u64,
            run_bytes: runs.iter().map(|run| run.footer.bytes).sum(),
            unsynced_bytes: commits.log.end(guard).saturating_sub(commits.applied()),
            commits: commits.directory.commits(),
            group_commits: counters.group_commits.get(),
            sync_us: counters.sync_us.get(),
            wait_us: counters.wait_us.get(),
            pause_us: counters.pause_us.get(),
            cleaned_bytes: counters.cleaned_bytes.get(),
            moved_bytes: counters.moved_bytes.load(Ordering::Relaxed),
            run_written_bytes: counters.run_written_bytes.get(),
            checkpoint_us: counters.checkpoint_us.get(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_tells_how_large_most_were() {
        let tracked = Tracked::default();
        assert_eq!((tracked.get().count(), tracked.get().at_most(0.5)), (0, 0));
        for number in [0, 1, 2, 3, 4, 100, 1000, u64::from(u32::MAX), u64::MAX / 2] {
            tracked.add(number);
        }
        let histogram = tracked.get();
        assert_eq!(histogram.counts[..4], [1, 1, 2, 1]);
        assert_eq!((histogram.counts[7], histogram.counts[10], histogram.counts[BINS - 1]), (1, 1, 2));
        assert_eq!(histogram.count(), 9);
        assert_eq!((histogram.at_most(0.0), histogram.at_most(0.3), histogram.at_most(0.5)), (0, 3, 7));
        assert_eq!((histogram.at_most(0.75), histogram.at_most(1.0)), (1023, (1 << 31) - 1));
    }
}
