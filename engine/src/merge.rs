//! Merging: several sources of entries read as one; which runs to merge; and merging them into one, step by step.
//! Flow: `worker` -> [`Merger`] -> `run`; `seal` -> [`Merging`]; `list`, `index` -> [`Merge`].
//!
//! Of several entries of one key the one with the highest stamp counts, and only that one is kept. Where the oldest run
//! is among those merged, nothing older is left that a tombstone could hide, so tombstones vanish; with them the entries
//! of dropped buckets and those that have expired and that the directory has let go of.
//!
//! What a merge drops must not be needed after a crash either. Runs are made of segments that are on the disk, so newer
//! entries and tombstones in them are; the drop of a bucket counts once it is (see `index::Buckets`); an expired entry
//! is hidden whatever became of its key since.
//!
//! Crash: the new file is on the disk, and its name, before the one manifest edit that puts it in the place of the runs
//! it was made of; their files go after that.

use std::cmp::Ordering;
use std::ops::Range;
use std::sync::Arc;

use crossbeam_epoch as epoch;

use crate::commit::Commits;
use crate::error::{Error, ErrorKind, Result};
use crate::io::unknown_state;
use crate::run::format::{self, DELETED, Entry, Header, KIND, SET_WITH_EXPIRY};
use crate::run::{Cursor, Damaged, Run, Writer};
use crate::seeded::{Bug, seeded};
use crate::stretch::StretchCursor;
use crate::tail::TailCursor;

/// Bytes of runs read in one step: how long other background work may have to wait.
const STEP_BYTES: u64 = 256 << 10;
/// Runs of one size class that are merged into one of the next.
const FAN: usize = 4;
/// Size of the smallest class, as a power of two.
const CLASS_BITS_MIN: u32 = 16;

/// While nobody writes, all runs are merged if that drops more than so small a part of their entries.
const STALE_PART: u64 = 8;

/// Which runs to merge, of runs of these sizes, oldest first; `None` if there are few enough. Adjacent ones only.
///
/// When all others, two or more, together have reached the size of the oldest, everything is merged into that; so it is rewritten
/// about as often as the store doubles. Before that, four of a class (sizes within a factor of four), with whatever
/// smaller ones stand between them, become one. So each entry is rewritten a logarithmic number of times, and a listing
/// looks into a logarithmic number of runs.
pub(crate) fn pick(sizes: &[u64]) -> Option<Range<usize>> {
    let (oldest, others) = sizes.split_first()?;
    if others.len() >= 2 && others.iter().sum::<u64>() >= *oldest {
        return Some(0..sizes.len());
    }
    let class = |size: u64| size.max(1).ilog2().max(CLASS_BITS_MIN).div_ceil(2);
    let mut classes: Vec<u32> = others.iter().map(|size| class(*size)).collect();
    classes.sort_unstable();
    classes.dedup();
    for at_most in classes {
        let mut start = 0;
        for end in 0..=others.len() {
            if end < others.len() && class(others[end]) <= at_most {
                continue;
            }
            if others[start..end].iter().filter(|size| class(**size) == at_most).count() >= FAN {
                return Some(start + 1..end + 1);
            }
            start = end + 1;
        }
    }
    None
}

/// Byte order. Keys that stand next to each other are alike and short: eight bytes at a time beats the call of `memcmp`.
#[inline]
pub(crate) fn compare(a: &[u8], b: &[u8]) -> Ordering {
    let (mut a, mut b) = (a, b);
    while let (Some((x, rest_of_a)), Some((y, rest_of_b))) = (a.split_first_chunk::<8>(), b.split_first_chunk::<8>()) {
        if x != y {
            return u64::from_le_bytes(*x).swap_bytes().cmp(&u64::from_le_bytes(*y).swap_bytes());
        }
        (a, b) = (rest_of_a, rest_of_b);
    }
    a.cmp(b)
}

/// How many bytes two keys begin with in common, at most `most`.
#[inline]
pub(crate) fn common_bytes(a: &[u8], b: &[u8], most: usize) -> usize {
    let most = most.min(a.len()).min(b.len());
    let (a, b) = (&a[..most], &b[..most]);
    let mut same = 0;
    for (x, y) in a.as_chunks::<8>().0.iter().zip(b.as_chunks::<8>().0) {
        let differs = u64::from_le_bytes(*x) ^ u64::from_le_bytes(*y);
        if differs != 0 {
            return same + differs.trailing_zeros() as usize / 8;
        }
        same += 8;
    }
    same + a[same..].iter().zip(&b[same..]).take_while(|(x, y)| x == y).count()
}

/// One of the things merged.
pub(crate) enum Source<'t> {
    Run(Cursor),
    Tail(TailCursor<'t>),
    Log(StretchCursor),
}

impl Source<'_> {
    #[inline]
    fn entry(&self) -> Entry<'_> {
        match self {
            Source::Run(cursor) => cursor.entry(),
            Source::Tail(cursor) => cursor.entry(),
            Source::Log(cursor) => cursor.entry(),
        }
    }

    #[inline]
    fn key(&self) -> (u64, &[u8]) {
        match self {
            Source::Run(cursor) => (cursor.bucket(), cursor.key()),
            Source::Tail(cursor) => (cursor.entry().bucket, cursor.entry().key),
            Source::Log(cursor) => (cursor.bucket(), cursor.key()),
        }
    }

    #[inline]
    fn order_of_keys(&self, other: &Source<'_>) -> Ordering {
        let (a, b) = (self.key(), other.key());
        a.0.cmp(&b.0).then_with(|| compare(a.1, b.1))
    }

    #[inline]
    fn next(&mut self) -> Result<bool, Damaged> {
        match self {
            Source::Run(cursor) => cursor.next(),
            Source::Tail(cursor) => Ok(cursor.next()),
            Source::Log(cursor) => cursor.next(),
        }
    }

    /// By key, and the newest entry of a key first.
    #[inline]
    fn order(&self, other: &Source<'_>) -> Ordering {
        let newer_first = other.entry().stamp.cmp(&self.entry().stamp);
        self.order_of_keys(other).then(if seeded(Bug::MergeKeepsOlder) { newer_first.reverse() } else { newer_first })
    }
}

/// Sources read as one: the keys of all in order, each once, with its newest entry.
pub(crate) struct Merge<'t> {
    sources: Vec<Source<'t>>,
    /// The sources that have not ended, by the entry they stand at.
    order: Vec<u32>,
    /// The first two of them stand at the same key.
    tied: bool,
    /// Entries looked at so far.
    pub(crate) looked: usize,
}

impl<'t> Merge<'t> {
    pub(crate) fn new(sources: Vec<Source<'t>>) -> Merge<'t> {
        let mut order: Vec<u32> = (0..sources.len() as u32).collect();
        order.sort_by(|a, b| sources[*a as usize].order(&sources[*b as usize]));
        let mut merge = Merge { sources, order, tied: false, looked: 0 };
        merge.tied = merge.is_tied();
        merge
    }

    /// The newest entry of the key at hand; `None` when all have ended.
    #[inline]
    pub(crate) fn entry(&self) -> Option<Entry<'_>> {
        self.order.first().map(|i| self.sources[*i as usize].entry())
    }

    /// Moves to the next key.
    #[inline]
    pub(crate) fn next(&mut self) -> Result<(), Damaged> {
        while self.tied {
            self.advance(1)?;
            self.tied = self.is_tied();
        }
        // Neighbours in one source are often neighbours in all; and where there are two sources, one comparison tells all.
        let Some(&first) = self.order.first() else { return Ok(()) };
        self.looked += 1;
        if !self.sources[first as usize].next()? {
            self.order.remove(0);
        } else if let Some(&second) = self.order.get(1) {
            let (now, other) = (&self.sources[first as usize], &self.sources[second as usize]);
            if now.order_of_keys(other) == Ordering::Less {
                return Ok(());
            }
            self.sink(0);
        }
        self.tied = self.is_tied();
        Ok(())
    }

    /// Whether the second source stands at the same key as the first.
    #[inline]
    fn is_tied(&self) -> bool {
        matches!(self.order[..], [first, second, ..]
            if self.sources[first as usize].order_of_keys(&self.sources[second as usize]) == Ordering::Equal)
    }

    /// Moves the source at `rank` on, and to where it belongs then.
    fn advance(&mut self, rank: usize) -> Result<(), Damaged> {
        self.looked += 1;
        if self.sources[self.order[rank] as usize].next()? {
            self.sink(rank);
        } else {
            self.order.remove(rank);
        }
        Ok(())
    }

    /// Moves the source at `rank` behind those that come before it now.
    #[inline]
    fn sink(&mut self, rank: usize) {
        let now = &self.sources[self.order[rank] as usize];
        let comes_first = |i: &u32| self.sources[*i as usize].order(now) == Ordering::Less;
        let to = rank + self.order[rank + 1..].partition_point(comes_first);
        self.order[rank..=to].rotate_left(1);
    }
}

/// Why a step failed.
#[derive(Debug)]
pub(crate) enum Failed {
    /// A run among those read is not what was written.
    Damaged(Damaged),
    Error(Error),
}

impl From<Damaged> for Failed {
    fn from(damaged: Damaged) -> Failed {
        Failed::Damaged(damaged)
    }
}

impl From<Error> for Failed {
    fn from(error: Error) -> Failed {
        Failed::Error(error)
    }
}

/// A run being made of others.
pub(crate) struct Merging {
    merge: Merge<'static>,
    writer: Option<Writer>,
    pub(crate) header: Header,
    /// The oldest run is among them.
    oldest: bool,
}

impl Merging {
    /// Of `sources`, at their beginnings, into a new run file that covers the positions [from, to).
    pub(crate) fn new(commits: &Commits, sources: Vec<Source<'static>>, from: u64, to: u64) -> Result<Merging, Failed> {
        let (number, file) = loop {
            let number = commits.index.take_number();
            match commits.log.disk().create(&format::file_name(number)) {
                Ok(file) => break (number, file),
                // Left over, and could not be removed at open.
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(failed(number, e).into()),
            }
        };
        let header = Header { number, from, to, salt: commits.log.random()? };
        let writer = Some(Writer::new(header, commits.log.store(), Some(file)));
        Ok(Merging { merge: Merge::new(sources), writer, header, oldest: from == 0 })
    }

    /// Some entries more; `true` when the run is complete, in its file, and its name on the disk.
    pub(crate) fn step(&mut self, commits: &Commits) -> Result<bool, Failed> {
        let result = self.work(commits);
        if result.is_err() {
            self.remove(commits);
        }
        result
    }

    /// Leaves it at that.
    pub(crate) fn give_up(mut self, commits: &Commits) {
        self.remove(commits);
    }

    fn remove(&mut self, commits: &Commits) {
        self.writer = None;
        // The next open removes it where this cannot.
        let _ = commits.log.disk().remove(&format::file_name(self.header.number));
    }

    fn work(&mut self, commits: &Commits) -> Result<bool, Failed> {
        let Some(writer) = &mut self.writer else { return Ok(true) };
        let failed = |e| failed(self.header.number, e);
        let mut bytes = 0;
        while let Some(entry) = self.merge.entry() {
            if bytes >= STEP_BYTES {
                return Ok(false);
            }
            bytes += entry.key.len() as u64 + 8;
            if !((self.oldest || seeded(Bug::MergeDropsTombstone)) && is_over(commits, &entry)?) {
                writer.add(&entry).map_err(failed)?;
            }
            self.merge.next()?;
        }
        if let Some(writer) = self.writer.take() {
            writer.finish().map_err(failed)?;
            commits.log.disk().sync_dir().map_err(unknown_state).map_err(failed)?;
        }
        Ok(true)
    }
}

fn failed(number: u64, e: std::io::Error) -> Error {
    Error::io(format_args!("cannot write {}", format::file_name(number)), e)
}

/// Whether an entry of the oldest run means nothing any more; see the file header.
fn is_over(commits: &Commits, entry: &Entry<'_>) -> Result<bool> {
    if entry.stamp & KIND == DELETED || commits.index.buckets.is_gone(entry.bucket, commits.log.durable()) {
        return Ok(true);
    }
    if entry.stamp & KIND != SET_WITH_EXPIRY || entry.expires > crate::io::unix_ms() {
        return Ok(false);
    }
    let guard = &epoch::pin();
    let hash = commits.hash(entry.bucket, entry.key);
    let mut found = None;
    let is_key = |place| commits.is_key(place, entry.bucket, entry.key, guard, &mut found);
    match commits.directory.find(hash, guard, is_key) {
        // Nobody knows for now: the entry stays.
        Err(e) if e.kind() == ErrorKind::Io => return Ok(false),
        asked => asked?,
    };
    Ok(found.is_none_or(|found| found.version() > entry.stamp))
}

/// Keeps the runs few.
#[derive(Default)]
pub(crate) struct Merger {
    at: Option<Merging>,
}

impl Merger {
    /// Whether a run is under way.
    #[cfg(feature = "testing")]
    pub(crate) fn is_at_work(&self) -> bool {
        self.at.is_some()
    }

    /// Forgets what is under way.
    pub(crate) fn give_up(&mut self, commits: &Commits) {
        if let Some(merging) = self.at.take() {
            merging.give_up(commits);
        }
    }

    /// One step; whether there was something to do.
    pub(crate) fn step(&mut self, commits: &Commits, quiet: bool) -> Result<bool, Failed> {
        let mut merging = match self.at.take() {
            Some(merging) => merging,
            None => {
                let runs = commits.index.runs();
                let sizes: Vec<u64> = runs.iter().map(|run| run.footer.bytes).collect();
                let all = || (quiet && is_stale(commits, &runs)).then_some(0..runs.len());
                let Some(picked) = pick(&sizes).or_else(all) else { return Ok(false) };
                let inputs = &runs[picked];
                let (from, to) = (inputs[0].header.from, inputs[inputs.len() - 1].header.to);
                let mut sources = Vec::new();
                for run in inputs {
                    sources.extend(Cursor::first(run)?.map(Source::Run));
                }
                Merging::new(commits, sources, from, to)?
            }
        };
        if merging.step(commits)? {
            commits.counters.run_written_bytes.add(commits.index.install(&commits.log, &merging.header)?);
        } else {
            self.at = Some(merging);
        }
        Ok(true)
    }

    /// Whether runs are merged once nobody writes.
    pub(crate) fn puts_off(&self, commits: &Commits) -> bool {
        self.at.is_none() && is_stale(commits, &commits.index.runs())
    }
}

/// Whether so many entries are of keys that have newer ones, or are gone, that writing all runs again saves space.
fn is_stale(commits: &Commits, runs: &[Arc<Run>]) -> bool {
    let [oldest, others @ ..] = runs else { return false };
    let entries = |runs: &[Arc<Run>]| runs.iter().map(|run| run.footer.entries).sum::<u64>();
    let newer = entries(others);
    let all = oldest.footer.entries + newer;
    // Merging cannot drop more than there are newer ones, and little is left to the next time.
    let spared = newer.min(all.saturating_sub(commits.directory.keys(&epoch::pin())));
    newer > 0 && spared > all / STALE_PART
}

/// Whether runs made anew from the log would be so much smaller than these: also without the entries of keys that are gone.
pub(crate) fn would_shrink(commits: &Commits, runs: &[Arc<Run>]) -> bool {
    let all: u64 = runs.iter().map(|run| run.footer.entries).sum();
    all.saturating_sub(commits.directory.keys(&epoch::pin())) > all / STALE_PART
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_compared_in_byte_order() {
        let bytes: Vec<u8> = (0..40u8).map(|i| i.wrapping_mul(37)).collect();
        let mut keys: Vec<Vec<u8>> = (0..40).map(|n| bytes[..n].to_vec()).collect();
        for at in 0..40 {
            for with in [0, 0x7f, 0x80, 0xff] {
                let mut key = bytes.clone();
                key[at] = with;
                keys.push(key);
            }
        }
        for a in &keys {
            for b in &keys {
                assert_eq!(compare(a, b), a.cmp(b), "{a:?} {b:?}");
                let common = a.iter().zip(b).take_while(|(a, b)| a == b).count();
                assert_eq!(common_bytes(a, b, usize::MAX), common, "{a:?} {b:?}");
                assert_eq!(common_bytes(a, b, 9), common.min(9), "{a:?} {b:?}");
            }
        }
    }

    #[test]
    fn everything_is_merged_when_the_others_reach_the_oldest() {
        assert_eq!(pick(&[]), None);
        assert_eq!(pick(&[100]), None);
        assert_eq!(pick(&[100, 100]), None, "a listing of two is no slower");
        assert_eq!(pick(&[0, 0, 0]), Some(0..3));
        assert_eq!(pick(&[100, 60, 40]), Some(0..3));
        assert_eq!(pick(&[100 << 20, 60 << 20, 39 << 20]), None);
    }

    #[test]
    fn four_of_a_class_are_merged_and_the_smallest_class_first() {
        const M: u64 = 1 << 20;
        assert_eq!(pick(&[1000 * M, 9 * M, 9 * M, 9 * M]), None);
        assert_eq!(pick(&[1000 * M, 9 * M, 9 * M, 9 * M, 9 * M]), Some(1..5));
        assert_eq!(pick(&[1000 * M, 100 * M, 9 * M, 9 * M, 9 * M, 9 * M]), Some(2..6));
        assert_eq!(pick(&[1000 * M, 100 * M, 9 * M, 9 * M, 2 * M, 9 * M, 9 * M]), Some(2..7));
        assert_eq!(pick(&[1000 * M, 9 * M, 9 * M, 9 * M, 9 * M, M, M, M, M]), Some(5..9));
        // A large one with small ones behind it is left alone.
        assert_eq!(pick(&[1000 * M, 100 * M, 1, 1, 1]), None);
    }

    #[test]
    fn a_growing_store_has_few_runs_and_writes_each_entry_a_few_times() {
        let (mut sizes, mut written, mut most) = (Vec::new(), 0, 0);
        let flushes = 4096u64;
        for _ in 0..flushes {
            sizes.push(9u64 << 20);
            while let Some(range) = pick(&sizes) {
                let merged = sizes[range.clone()].iter().sum();
                written += merged;
                sizes.splice(range, [merged]);
            }
            most = most.max(sizes.len());
        }
        assert!(most <= 3 * 6 + 1, "{most} runs");
        let times = written as f64 / (flushes * (9 << 20)) as f64;
        assert!(times <= 8.0, "each entry is written {times} times");
    }
}
