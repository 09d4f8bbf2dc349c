//! After an open from a checkpoint: takes words out of the directory that mean nothing any more, some parts a step.
//! Flow: `worker` -> here -> `directory`, `log`.
//!
//! They are the words that point into segments that are gone (see `checkpoint`), whose address slots are free then; and the
//! keys of buckets that were dropped when the checkpoint was made, or since.

use std::collections::BTreeSet;

use crossbeam_epoch as epoch;

use crate::commit::Commits;
use crate::directory::At;

/// Parts looked at in one step.
const STEP_PARTS: usize = 16;

/// The sweep's place between two steps; `None` when there is nothing to do.
#[derive(Default)]
pub(crate) struct Sweeper {
    at: Option<At>,
    /// Buckets whose keys go.
    buckets: BTreeSet<u64>,
}

impl Sweeper {
    /// One step; whether there was something to do.
    pub(crate) fn step(&mut self, commits: &Commits) -> bool {
        if self.at.is_none() {
            self.buckets = commits.catalogue.take_unswept();
            if self.buckets.is_empty() && !commits.log.has_ghosts() {
                return false;
            }
        }
        let guard = &epoch::pin();
        let mut at = self.at.unwrap_or_default();
        for _ in 0..STEP_PARTS {
            let is_gone = |place| match commits.log.record(place, guard) {
                Ok(found) => {
                    let gone = self.buckets.contains(&found.record.bucket);
                    if gone {
                        found.segment.sub_live(found.bytes);
                    }
                    gone
                }
                // Damage stays, for whoever reads it.
                Err(_) => commits.log.is_ghost(place, guard),
            };
            let is_ghost = |place| commits.log.is_ghost(place, guard);
            let more = if self.buckets.is_empty() {
                commits.directory.sweep_part(&mut at, guard, is_ghost)
            } else {
                commits.directory.sweep_part(&mut at, guard, is_gone)
            };
            if !more {
                commits.log.lay_ghosts();
                commits.catalogue.forgotten(&self.buckets);
                self.buckets.iter().for_each(|id| commits.directory.forget_tally(*id));
                *self = Sweeper::default();
                return true;
            }
        }
        self.at = Some(at);
        true
    }
}
