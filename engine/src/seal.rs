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
use crate::error::Result;
use crate::index;
use crate::merge::{Failed, Merging};
use crate::run::Run;
use crate::segment::{HEADER_BYTES, Segment};

/// Log read in one step: some ten milliseconds, and few enough stretches to be merged in one go.
const STEP_BYTES: u64 = 4 << 20;

/// Makes runs of sealed segments.
#[derive(Default)]
pub(crate) struct Sealer {
    at: Option<Sealing>,
}

/// A segment under way.
struct Sealing {
    segment: Arc<Segment>,
    from: u64,
    /// How far it was read, and what came of it.
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

    /// One step; whether there was something to do.
    pub(crate) fn step(&mut self, commits: &Commits) -> Result<bool, Failed> {
        let Some(mut at) = self.at.take().or_else(|| next(commits)) else { return Ok(false) };
        let end = at.segment.region.published();
        let to = at.segment.header.base + at.segment.header.capacity;
        if at.read < end {
            let store = commits.log.store();
            let (run, read) = index::sort(&at.segment, at.read, end.min(at.read + STEP_BYTES), store)?;
            at.sorted.push(Arc::new(run));
            at.read = read;
        } else if let Some(merging) = &mut at.merging {
            if merging.step(commits)? {
                commits.index.install(&commits.log, &merging.header)?;
                return Ok(true);
            }
        } else {
            at.merging = Some(Merging::new(commits, &at.sorted, at.from, to)?);
        }
        self.at = Some(at);
        Ok(true)
    }
}

/// The oldest segment that no run covers, if it is sealed.
fn next(commits: &Commits) -> Option<Sealing> {
    let covered = commits.index.covered();
    let guard = &epoch::pin();
    let sealed = commits.log.sealed(guard).into_iter().find(|s| s.header.base >= covered)?;
    let oldest = commits.log.segments(guard).into_iter().find(|s| s.header.base >= covered)?;
    Arc::ptr_eq(&oldest, &sealed).then_some(Sealing {
        segment: sealed,
        from: covered,
        read: HEADER_BYTES,
        sorted: Vec::new(),
        merging: None,
    })
}
