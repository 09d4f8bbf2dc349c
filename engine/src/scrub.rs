//! Checks the records that the open did not read, segment by segment. Flow: `worker` -> here -> `segment`.
//!
//! Until then each read checks the record that it finds. Damage found here stops nothing: the segment keeps being checked
//! at each read, which says so where it meets the damage, and background work keeps off it.

use std::sync::{Arc, Weak};

use crossbeam_epoch as epoch;

use crate::commit::Commits;
use crate::segment::{HEADER_BYTES, Segment};

/// Bytes checked in one step.
const STEP_BYTES: u64 = 2 << 20;

/// The scrub's place between two steps.
#[derive(Default)]
pub(crate) struct Scrubber {
    /// A segment that is given up meanwhile is not kept.
    at: Option<(Weak<Segment>, u64)>,
    done: bool,
}

impl Scrubber {
    /// One step; whether there is more to do.
    pub(crate) fn step(&mut self, commits: &Commits) -> bool {
        if self.done {
            return false;
        }
        let at = self.at.take().and_then(|(segment, from)| Some((segment.upgrade()?, from)));
        let Some((segment, from)) = at.or_else(|| next(commits)) else {
            // What is logged from now on is not in question.
            self.done = true;
            return false;
        };
        let end = segment.unchecked();
        match segment.check(from, end.min(from + STEP_BYTES)) {
            Err(_) => segment.mark_damaged(),
            Ok(at) if at >= end => segment.unchecked_before(0),
            Ok(at) => self.at = Some((Arc::downgrade(&segment), at)),
        }
        true
    }
}

/// The oldest segment with records that nobody has checked.
fn next(commits: &Commits) -> Option<(Arc<Segment>, u64)> {
    let segments = commits.log.segments(&epoch::pin());
    let segment = segments.into_iter().find(|s| s.unchecked() > 0 && !s.is_damaged())?;
    Some((segment, HEADER_BYTES))
}
