//! Counters and sizes of a store, each with its unit.

use crossbeam_epoch as epoch;

use crate::commit::Commits;

/// What a store holds at one moment; see [`Store::stats`](crate::Store::stats).
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
}

impl Stats {
    pub(crate) fn of(commits: &Commits) -> Stats {
        let guard = &epoch::pin();
        let segments = commits.log.segments(guard);
        let runs = commits.index.runs();
        Stats {
            keys: commits.directory.keys(guard),
            segments: segments.len() as u64,
            log_bytes: segments.iter().map(|s| s.region.published()).sum(),
            live_bytes: segments.iter().map(|s| s.live_bytes()).sum(),
            directory_bytes: commits.directory.bytes(guard),
            runs: runs.len() as u64,
            run_bytes: runs.iter().map(|run| run.footer.bytes).sum(),
            unsynced_bytes: commits.log.end(guard).saturating_sub(commits.applied()),
        }
    }
}
