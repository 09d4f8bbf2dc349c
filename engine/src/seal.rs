//! Sealed segments become key runs. Flow: `worker` -> here -> `run`, `index`; one segment after another, oldest first.
//!
//! A step sorts the keys of a stretch of the segment; when all stretches are, they are merged into one file. Sorting behind the
//! writers costs a fraction of what as many skiplist inserts would, and none of it in a call.
//!
//! The run covers the positions from where the one before ended to the end of the segment's space. Segments wait for it as long as
//! others write and there are few of them: what is cleaned before need not be sorted, and a run that is made late is large, and
//! merged less often.

use std::sync::Arc;

use crossbeam_epoch as epoch;

use crate::commit::Commits;
use crate::error::{Error, ErrorKind, Result};
use crate::index;
use crate::io::simulated;
use crate::log::record::Purpose;
use crate::merge::{Failed, Merging, Source};
use crate::run::Cursor;
use crate::seeded::{Bug, seeded};
use crate::segment::{HEADER_BYTES, Segment};
use crate::stretch::Stretch;

/// Log read in one step: some ten milliseconds, and few enough stretches to be merged in one go.
const STEP_BYTES: u64 = 4 << 20;

/// Log that goes into one run, unless it is one segment that is longer.
const RUN_BYTES_MAX: u64 = 128 << 20;
/// Log that may be without a run while others write: as much of it that lives, which a first listing has to sort, some hundred
/// milliseconds ...
const LIVE_LAG_BYTES_MAX: u64 = 256 << 20;
/// ... and as much in all. Where most of it is dead, cleaning gets there first, and what is cleaned never needs to be sorted.
const LAG_BYTES_MAX: u64 = 512 << 20;

/// Log in an active segment that is worth a segment of its own while nobody writes; less than half of what it is to take never is.
const ACTIVE_BYTES_MIN: u64 = 4 << 20;

/// Makes runs of sealed segments.
#[derive(Default)]
pub(crate) struct Sealer {
    at: Option<Sealing>,
}

/// Segments under way.
struct Sealing {
    /// It was begun since nobody wrote; whoever writes again goes first.
    at_rest: bool,
    /// All of them.
    of: Vec<Arc<Segment>>,
    /// Those not yet read to their end, the next one last.
    segments: Vec<Arc<Segment>>,
    from: u64,
    to: u64,
    /// How far the next one was read, and what came of all.
    read: u64,
    sorted: Vec<Source<'static>>,
    merging: Option<Merging>,
}

impl Sealer {
    /// Whether a run is under way.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn is_at_work(&self) -> bool {
        self.at.is_some()
    }

    /// Forgets what is under way.
    pub(crate) fn give_up(&mut self, commits: &Commits) {
        if let Some(merging) = self.at.take().and_then(|at| at.merging) {
            merging.give_up(commits);
        }
    }

    /// One step; whether there was something to do. While others write, segments are put off until there are enough of them, and so is
    /// what is under way since nobody did.
    pub(crate) fn step(&mut self, commits: &Commits, quiet: bool) -> Result<bool, Failed> {
        let waits = |at: &&Sealing| !quiet && at.at_rest && !is_due(&without_run(commits, commits.index.covered()));
        if let Some(at) = self.at.as_ref().filter(waits) {
            let segments = commits.log.segments(&epoch::pin());
            let is_gone = |segment| !segments.iter().any(|s| Arc::ptr_eq(s, segment));
            if at.of.iter().any(is_gone) {
                // Cleaned meanwhile: this would keep its file.
                self.give_up(commits);
            }
            return Ok(false);
        }
        let Some(mut at) = self.at.take().or_else(|| next(commits, quiet)) else { return Ok(false) };
        if let Some(segment) = at.segments.last() {
            let end = segment.region.published();
            if at.read < end {
                let store = commits.log.store();
                // Reading that fails is no reason to take no more writes; runs are given up as if the log were damaged.
                let unread = |e: Error| match e.kind() {
                    ErrorKind::Io => e.with_kind(ErrorKind::Corrupt, "no key run of what cannot be read"),
                    _ => e,
                };
                let (source, read) = sort(segment, at.read, end.min(at.read + STEP_BYTES), store).map_err(unread)?;
                at.sorted.extend(source);
                at.read = read;
            }
            if at.read >= end {
                at.segments.pop();
                at.read = HEADER_BYTES;
            }
        } else if let Some(merging) = &mut at.merging {
            if merging.step(commits)? {
                commits.counters.run_written_bytes.add(commits.index.install(&commits.log, &merging.header)?);
                return Ok(true);
            }
        } else {
            at.merging = Some(Merging::new(commits, std::mem::take(&mut at.sorted), at.from, at.to)?);
        }
        self.at = Some(at);
        Ok(true)
    }

    /// While nobody writes: has the active segment end if it holds much that a first listing would have to sort; whether it has.
    pub(crate) fn end_active(&self, commits: &Commits) -> Result<bool> {
        if commits.log.disk().read_only() || !holds_much(commits.log.active(&epoch::pin())) {
            return Ok(false);
        }
        match commits.log.end_active(Purpose::Growth, holds_much) {
            // Nobody needs it.
            Err(e) if e.kind() == ErrorKind::NoSpace => Ok(false),
            ended => ended,
        }
    }

    /// Whether segments are put off until nobody writes.
    pub(crate) fn puts_off(&self, commits: &Commits) -> bool {
        self.at.is_some() || next(commits, true).is_some() || holds_much(commits.log.active(&epoch::pin()))
    }
}

/// The records of a segment from `from` on, at least up to `limit`, in order of their keys; and where the next record is.
fn sort(segment: &Arc<Segment>, from: u64, limit: u64, store: u64) -> Result<(Option<Source<'static>>, u64)> {
    if segment.region.is_mapped() {
        let (stretch, read) = Stretch::new(segment, from, limit)?;
        return Ok((stretch.first()?.map(Source::Log), read));
    }
    // Read in order once, and not by call for each key.
    let (run, read) = index::sort(segment, from, limit, store)?;
    let cursor = Cursor::first(&Arc::new(run)).map_err(index::in_memory)?;
    Ok((cursor.map(Source::Run), read))
}

/// Whether a segment that is still written to has so much to be sorted that it should be ended for that.
fn holds_much(active: &Segment) -> bool {
    let least = if simulated() { 0 } else { ACTIVE_BYTES_MIN };
    active.region.published() >= least.max(active.planned() / 2) && !active.is_damaged()
}

/// Segments that wait for their run, oldest first, as far as they are closed for good; runs end at `covered`.
fn without_run(commits: &Commits, covered: u64) -> Vec<Arc<Segment>> {
    let guard = &epoch::pin();
    let mut segments = commits.log.sealed(guard);
    let open = commits.log.segments(guard).into_iter().find(|s| !segments.iter().any(|sealed| Arc::ptr_eq(s, sealed)));
    segments.retain(|s| s.header.base >= covered && open.as_ref().is_none_or(|open| s.header.base < open.header.base));
    segments
}

/// Whether there are so many that they get their run while others write.
fn is_due(waiting: &[Arc<Segment>]) -> bool {
    let bytes: u64 = waiting.iter().map(|s| s.region.published()).sum();
    let live: u64 = waiting.iter().map(|s| s.live_bytes() + s.tombstone_bytes()).sum();
    live >= LIVE_LAG_BYTES_MAX || bytes >= LAG_BYTES_MAX
}

/// The oldest segments that wait for their run, if it is time for that: when nobody writes, or when there are many.
fn next(commits: &Commits, quiet: bool) -> Option<Sealing> {
    let from = commits.index.covered();
    let mut segments = without_run(commits, from);
    let at_rest = !is_due(&segments);
    if !quiet && at_rest {
        return None;
    }
    let mut bytes = 0;
    let fits = |s: &&Arc<Segment>| {
        bytes += s.region.published();
        bytes <= RUN_BYTES_MAX
    };
    let fitting = segments.iter().take_while(fits).count().max(1);
    segments.truncate(fitting);
    let last = segments.last()?;
    let mut to = last.header.base + last.header.capacity;
    if seeded(Bug::RunCoversTooMuch) {
        to += last.header.capacity;
    }
    let of = segments.clone();
    segments.reverse();
    Some(Sealing { at_rest, of, segments, from, to, read: HEADER_BYTES, sorted: Vec::new(), merging: None })
}
