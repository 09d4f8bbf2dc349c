//! Sealed segments become key runs. Flow: `worker` -> here -> `run`, `index`; one segment after another, oldest first.
//!
//! A step sorts the keys of a stretch of the segment into a run in memory; when all of it is, those are merged into one
//! file. Sorting behind the writers costs a fraction of what as many skiplist inserts would, and none of it in a call.
//!
//! The run covers the positions from where the one before ended to the end of the segment's space. A segment that
//! has no run yet is not cleaned: its tombstones are known nowhere else (see `clean`).

use std::sync::Arc;

use crossbeam_epoch as epoch;

use crate::commit::Commits;
use crate::error::{ErrorKind, Result};
use crate::index;
use crate::merge::{Failed, Merging};
use crate::run::Run;
use crate::segment::{HEADER_BYTES, Segment};

/// Log read in one step: some ten milliseconds, and few enough stretches to be merged in one go.
const STEP_BYTES: u64 = 4 << 20;

/// Log that goes into one run, unless it is one segment that is longer.
const RUN_BYTES_MAX: u64 = 64 << 20;
/// While others write, so small a part of the log is enough for a run.
const LOG_PER_RUN: u64 = 6;

/// Makes runs of sealed segments.
#[derive(Default)]
pub(crate) struct Sealer {
    at: Option<Sealing>,
}

/// Segments under way.
struct Sealing {
    /// Those not yet read to their end, the next one last.
    segments: Vec<Arc<Segment>>,
    from: u64,
    to: u64,
    /// How far the next one was read, and what came of all.
    read: u64,
    sorted: Vec<Arc<Run>>,
    merging: Option<Merging>,
}

impl Sealer {
    /// Forgets what is under way.
    pub(crate) fn give_up(&mut self, commits: &Commits) {
        if let Some(merging) = self.at.take().and_then(|at| at.merging) {
            merging.give_up(commits);
        }
    }

    /// One step; whether there was something to do. While others write, segments are put off until there are enough of them.
    pub(crate) fn step(&mut self, commits: &Commits, quiet: bool) -> Result<bool, Failed> {
        let Some(mut at) = self.at.take().or_else(|| next(commits, quiet)) else { return Ok(false) };
        if let Some(segment) = at.segments.last() {
            let end = segment.region.published();
            if at.read < end {
                let store = commits.log.store();
                let sorted = index::sort(segment, at.read, end.min(at.read + STEP_BYTES), store);
                // Reading that fails is no reason to take no more writes; runs are given up as if the log were damaged.
                let (run, read) = sorted.map_err(|e| match e.kind() {
                    ErrorKind::Io => e.with_kind(ErrorKind::Corrupt, "no key run of what cannot be read"),
                    _ => e,
                })?;
                at.sorted.push(Arc::new(run));
                at.read = read;
            }
            if at.read >= end {
                at.segments.pop();
                at.read = HEADER_BYTES;
            }
        } else if let Some(merging) = &mut at.merging {
            if merging.step(commits)? {
                commits.index.install(&commits.log, &merging.header)?;
                return Ok(true);
            }
        } else {
            at.merging = Some(Merging::new(commits, &at.sorted, at.from, at.to)?);
        }
        self.at = Some(at);
        Ok(true)
    }

    /// Whether segments are put off until nobody writes.
    pub(crate) fn puts_off(&self, commits: &Commits) -> bool {
        self.at.is_none() && next(commits, true).is_some()
    }
}

/// The oldest segments that no run covers, as far as they are sealed, if they are enough for a run: a small one is soon
/// merged, which is written again.
fn next(commits: &Commits, quiet: bool) -> Option<Sealing> {
    let covered = commits.index.covered();
    let guard = &epoch::pin();
    let all = commits.log.segments(guard);
    let sealed = commits.log.sealed(guard);
    let log_bytes: u64 = all.iter().map(|s| s.region.published()).sum();
    let mut segments = Vec::new();
    let mut bytes = 0;
    for segment in all.into_iter().filter(|s| s.header.base >= covered) {
        let more = segment.region.published();
        let is_sealed = sealed.iter().any(|s| Arc::ptr_eq(s, &segment));
        if !is_sealed || !segments.is_empty() && bytes + more > RUN_BYTES_MAX {
            break;
        }
        bytes += more;
        segments.push(segment);
    }
    let last = segments.last()?;
    let to = last.header.base + last.header.capacity;
    segments.reverse();
    let enough = quiet || bytes >= log_bytes / LOG_PER_RUN || bytes > RUN_BYTES_MAX / 2;
    enough.then_some(Sealing { segments, from: covered, to, read: HEADER_BYTES, sorted: Vec::new(), merging: None })
}
