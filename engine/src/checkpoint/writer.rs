//! Writes a directory checkpoint, some parts a step, while others read and write.
//! Flow: `worker`, `store` (at close) -> here -> a file -> `Log::add_checkpoint`.
//!
//! 1. The log is synced: step 4 would find all of that. Then `from` is where the log ends, but for what waits to be durable: what was
//!    written before it is in the directory, or its writer holds the lock of its shard, which step 2 waits for.
//! 2. Part after part is copied under its shard's lock, and written.
//! 3. The buckets, as they are now; the tables and the header. `end` is where the log ends now: all words point before it.
//! 4. The log is synced up to `end`, the file, its name; then the manifest names it, and the one before goes.
//!
//! When: a checkpoint costs what the directory takes, a replay what was logged since the last one. So the next is due when
//! the log has grown by a multiple of the directory; sooner when nobody writes; and at close unless little was logged.

use std::collections::BTreeSet;
use std::sync::Arc;

use crossbeam_epoch::{self as epoch, Guard};

use super::{Addressed, Contents, LINES_AT, file_name};
use crate::checksum::Seed;
use crate::clean::Progress;
use crate::commit::Commits;
use crate::directory::{At, Shape};
use crate::error::{Error, ErrorKind, Result};
use crate::io::{File, Stopwatch, unknown_state, write_full};
use crate::log::slots_of;
use crate::manifest::CheckpointEntry;
use crate::seeded::{Bug, seeded};

/// Least bytes of log between two checkpoints while others write: a quarter of a million small records, which replay in
/// some twenty milliseconds.
pub(crate) const BYTES_MIN: u64 = 32 << 20;
/// And at least so many times the bytes of the directory: of what is written, checkpoints are a quarter at most.
const DIRECTORY_TIMES_BUSY: u64 = 3;
/// Of records that are larger than this, as many times more bytes: they replay as fast as they are read. At most so many times.
const SMALL_RECORD_BYTES: u64 = 1 << 10;
const LARGE_TIMES_MAX: u64 = 24;
/// When nobody writes, an eighth of [`BYTES_MIN`] is worth it, or as much as the directory takes.
const IDLE_SHARE: u64 = 8;
/// At close, a 128th of [`BYTES_MIN`], or a sixteenth of the directory.
const CLOSE_SHARE: u64 = 128;
const DIRECTORY_SHARE_CLOSE: u64 = 16;
/// Bytes of lines copied in one step.
const STEP_BYTES: usize = 1 << 20;
/// Bytes after which the file is synced while it grows, so that the last sync does not find all of it.
const SYNC_BYTES: u64 = 16 << 20;

/// Makes checkpoints.
#[derive(Default)]
pub(crate) struct Checkpointer {
    at: Option<Writing>,
    /// After a want of space: not before the log has got here.
    not_before: u64,
}

/// A checkpoint under way.
struct Writing {
    file: Arc<dyn File>,
    contents: Contents,
    /// Buckets whose keys may be in the parts: those that there were when it was begun, dropped or not.
    buckets: BTreeSet<u64>,
    at: At,
    /// Bytes of the file so far, and of them those synced.
    written: u64,
    synced: u64,
    begun: Stopwatch,
}

impl Checkpointer {
    /// Whether a checkpoint is being written: until it is done no address slot may be freed.
    pub(crate) fn is_writing(&self) -> bool {
        self.at.is_some()
    }

    /// One step of the checkpoint under way, or of one that is due; `quiet`: nobody writes.
    pub(crate) fn step(&mut self, commits: &Commits, quiet: bool) -> Result<Progress> {
        let end = commits.log.end(&epoch::pin());
        if self.at.is_none() {
            if commits.log.disk().keeps_nothing() || commits.log.has_ghosts() {
                return Ok(Progress::None);
            }
            let guard = &epoch::pin();
            let directory = commits.directory.bytes(guard);
            let idle_min = due_when_idle(commits, directory);
            let from = commits.log.checkpoint().0.map_or(0, |checkpoint| checkpoint.from);
            let least = from.saturating_add(idle_min).max(self.not_before);
            let logged = commits.log.bytes_from(from, guard);
            if end < least || logged < idle_min {
                commits.log.wake_at(least.max(end + idle_min / 2));
                return Ok(Progress::None);
            }
            if !quiet && logged < due_when_busy(commits, directory, guard) {
                return Ok(Progress::Later);
            }
        }
        self.write(commits, end)
    }

    /// A checkpoint at once, before the store is closed; nothing if it is not worth it.
    pub(crate) fn close(&mut self, commits: &Commits) -> Result<()> {
        let guard = &epoch::pin();
        let end = commits.log.end(guard);
        let from = commits.log.checkpoint().0.map_or(0, |checkpoint| checkpoint.from);
        let worth =
            (commits.checkpoint_bytes_min / CLOSE_SHARE).max(commits.directory.bytes(guard) / DIRECTORY_SHARE_CLOSE);
        if commits.log.disk().keeps_nothing()
            || commits.log.has_ghosts()
            || commits.log.bytes_from(from, guard) <= worth
        {
            // The background thread may have left one half done.
            let _ = commits.log.disk().remove(&file_name(commits.log.checkpoint().1));
            return Ok(());
        }
        loop {
            self.write(commits, end)?;
            if self.at.is_none() {
                return Ok(());
            }
        }
    }

    fn write(&mut self, commits: &Commits, end: u64) -> Result<Progress> {
        let stepped = match self.at.take() {
            Some(writing) => writing.step(commits),
            None => Writing::begin(commits).map(Some),
        };
        match stepped {
            Ok(writing) => {
                self.at = writing;
                Ok(Progress::Some)
            }
            Err(e) if e.kind() == ErrorKind::NoSpace => {
                // Nothing needs it. A file of that name goes, here or at the next open.
                let _ = commits.log.disk().remove(&file_name(commits.log.checkpoint().1));
                self.not_before = end.saturating_add(commits.checkpoint_bytes_min / IDLE_SHARE);
                Ok(Progress::None)
            }
            Err(e) => Err(e),
        }
    }
}

/// Bytes of log from which on a checkpoint is due while nobody writes, with so many bytes of directory.
fn due_when_idle(commits: &Commits, directory: u64) -> u64 {
    let min = commits.checkpoint_bytes_min;
    directory.min(min).max(min / IDLE_SHARE)
}

/// The same while others write.
fn due_when_busy(commits: &Commits, directory: u64, guard: &Guard) -> u64 {
    let live: u64 = commits.log.segments(guard).iter().map(|s| s.live_bytes()).sum();
    let record = live / commits.directory.keys(guard).max(1);
    let times = (record / SMALL_RECORD_BYTES).clamp(1, LARGE_TIMES_MAX);
    (DIRECTORY_TIMES_BUSY * directory).max(commits.checkpoint_bytes_min.saturating_mul(times))
}

impl Writing {
    fn begin(commits: &Commits) -> Result<Writing> {
        let log = &commits.log;
        let (_, number) = log.checkpoint();
        let name = file_name(number);
        let failed = |e| Error::io(format_args!("cannot make {name}"), e);
        let file = match log.disk().create(&name) {
            // Left by a crash, or by a want of space.
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                log.disk().remove(&name).map_err(failed)?;
                log.disk().create(&name).map_err(failed)?
            }
            other => other.map_err(failed)?,
        };
        // Nothing is pinned while the disk is waited for: what others give up meanwhile would stay in memory.
        let end = log.end(&epoch::pin());
        commits.wait(end)?;
        let guard = &epoch::pin();
        let from = commits.shown(guard);
        // The counts are of `from`: what is logged later is counted when it is replayed.
        let addressed = log.addressed(guard);
        let segments = addressed.iter().map(|s| Addressed {
            number: s.header.number,
            first_slot: s.first_slot,
            slots: slots_of(s.header.capacity) as u32,
            live: s.live_bytes(),
            tombstones: s.tombstone_bytes(),
            end: 0,
        });
        let contents = Contents {
            number,
            salt: log.random()?,
            from,
            end: from,
            parts: Vec::new(),
            segments: segments.collect(),
            buckets: super::Buckets::default(),
        };
        let buckets = commits.catalogue.snapshot();
        let buckets = buckets.named.iter().map(|(id, _)| *id).chain(buckets.forgotten).collect();
        let begun = Stopwatch::start();
        Ok(Writing { file, contents, buckets, at: At::default(), written: LINES_AT, synced: 0, begun })
    }

    /// One step; `None` if that was the last one.
    fn step(mut self, commits: &Commits) -> Result<Option<Writing>> {
        let guard = &epoch::pin();
        let mut lines = Vec::new();
        while lines.len() < STEP_BYTES {
            let start = lines.len();
            let Some(shape) = commits.directory.copy_part(&mut self.at, &mut lines, guard) else { break };
            self.add(shape, &lines[start..], start as u64);
        }
        let name = file_name(self.contents.number);
        let failed = |e| Error::io(format_args!("cannot write {name}"), e);
        if lines.is_empty() {
            self.finish(commits)?;
            return Ok(None);
        }
        write_full(&*self.file, self.written, &lines).map_err(failed)?;
        self.written += lines.len() as u64;
        if self.written - self.synced >= SYNC_BYTES {
            self.file.sync().map_err(unknown_state).map_err(failed)?;
            self.synced = self.written;
        }
        Ok(Some(self))
    }

    /// Takes down a part whose lines will stand `at` bytes behind what is written.
    fn add(&mut self, shape: Shape, lines: &[u8], at: u64) {
        let checksum = Seed::new(self.contents.salt, self.written + at).checksum(lines);
        self.contents.parts.push((shape, checksum));
    }

    fn finish(mut self, commits: &Commits) -> Result<()> {
        let (log, guard) = (&commits.log, epoch::pin());
        let name = file_name(self.contents.number);
        let failed = |e| Error::io(format_args!("cannot write {name}"), e);
        let no_sync = |e| Error::sync(format_args!("cannot sync {name}"), e);
        let mut buckets = commits.catalogue.snapshot();
        // What was dropped meanwhile is gone from the directory, and not from the parts that were copied before.
        let named: BTreeSet<u64> = buckets.named.iter().map(|(id, _)| *id).collect();
        buckets.forgotten.extend(&self.buckets - &named);
        self.contents.buckets = buckets;
        let end = log.end(&guard);
        self.contents.end = end;
        if seeded(Bug::CheckpointTooNew) {
            self.contents.from = end;
        }
        let counted = std::mem::take(&mut self.contents.segments);
        let now = log.addressed(&guard);
        drop(guard);
        self.contents.segments = now
            .iter()
            .map(|s| {
                let number = s.header.number;
                let (live, tombstones) =
                    counted.iter().find(|c| c.number == number).map_or((0, 0), |c| (c.live, c.tombstones));
                let end = (end.saturating_sub(s.header.base)).min(s.region.published());
                let slots = slots_of(s.header.capacity) as u32;
                Addressed { number, first_slot: s.first_slot, slots, live, tombstones, end }
            })
            .collect();
        let (header, tables) = self.contents.encode(log.store(), self.written);
        write_full(&*self.file, self.written, &tables).map_err(failed)?;
        write_full(&*self.file, 0, &header).map_err(failed)?;
        if !seeded(Bug::CheckpointBeforeLog) {
            commits.wait(end)?;
        }
        self.file.sync().and_then(|()| log.disk().sync_dir()).map_err(no_sync)?;
        let Contents { number, from, .. } = self.contents;
        let from = if seeded(Bug::CheckpointTooNew) { end } else { from };
        log.add_checkpoint(CheckpointEntry { number, from, end })?;
        commits.counters.checkpoint_us.add_us(&self.begun);
        Ok(())
    }
}
