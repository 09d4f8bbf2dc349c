//! Cleaning: which segment frees most for least, moving what lives out of it, giving it up.
//! Flow: `worker` -> here -> `commit`, `log`. One cleaner a store.
//!
//! What lives is what the directory points at. It is written again at the end of the log, under the key's shard lock and
//! with the version it had, so that replaying the log from its start gives the same keys, values and versions. The
//! segment is given up when all that was moved out of it is durable.
//!
//! A *tombstone* says that older records of its key do not count. It is needed for as long as there is an older segment
//! (any may hold such a record) and the key has no newer one: then it is moved too. So is a tombstone put in the place
//! of a record that has expired. And it is needed for as long as no key run knows of it: an older run may hold its key. So
//! a segment that no run covers yet is cleaned as if there were an older one. What it held never gets into a run then, but
//! for what lived: with random overwrites, a third of all records.
//!
//! In a *starved* store (`log::reserve`) the segment with most to gain is taken, if what it takes to move what lives there was counted,
//! and is to be had: a record that is moved says its version, and is some bytes longer than it was.
//!
//! Source: segment choice by cost and benefit after Rosenblum and Ousterhout 1992.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crossbeam_epoch::{self as epoch, Guard};

use crate::catalogue::CATALOGUE;
use crate::commit::Commits;
use crate::error::{Error, ErrorKind, Result};
use crate::log::record::{Defect, Kind, Purpose, Record};
use crate::log::{Appended, SLOTS_MAX, slots_of};
use crate::seeded::{Bug, seeded};
use crate::segment::{HEADER_BYTES, Segment};

/// Bytes of a segment looked at in one step: how long other background work may have to wait.
const STEP_BYTES: u64 = 256 << 10;
/// A dead record of at least so many bytes is not read.
const SKIPPED_BYTES_MIN: u64 = 2 << 10;
/// Records whose lines are asked for at a time.
const AHEAD: usize = 32;
/// Where the disk is full, a segment is worth cleaning if that frees this part of it ...
const STARVED_GAIN_SHARE: u64 = 32;
/// ... and is counted again when this part of it has died since.
const STARVED_COUNT_SHARE: u64 = 64;
/// Less than this is not worth a segment's worth of work.
const DEAD_BYTES_MIN: u64 = 1 << 20;

/// Longest pause asked of a writer for every 256 KiB it logs.
const PAUSE_MAX: Duration = Duration::from_millis(4);
/// The pause up to which it grows slowly: at least as fast as most disks write.
const PAUSE_GENTLE: Duration = Duration::from_micros(500);

/// What writers are to pause for every 256 KiB logged, while so much of the log is dead: nothing up to half a GiB, or two bytes
/// for each that lives, where a segment that is cleaned is nearly empty, so that cleaning is outrun only if the disk or the
/// processors are; from there a little, [`PAUSE_GENTLE`] at four bytes, and [`PAUSE_MAX`] at six.
pub(crate) fn brake(log_bytes: u64, live_bytes: u64) -> Duration {
    let dead = log_bytes.saturating_sub(live_bytes);
    if dead < BRAKE_DEAD_BYTES_MIN {
        return Duration::ZERO;
    }
    // Nothing that is less than the budget of a small store is worth a pause.
    let debt = dead as f64 / live_bytes.max(BRAKE_DEAD_BYTES_MIN / 2) as f64;
    let gentle = PAUSE_GENTLE.mul_f64(((debt - 2.0) / 2.0).clamp(0.0, 1.0));
    gentle + (PAUSE_MAX - PAUSE_GENTLE).mul_f64(((debt - 4.0) / 2.0).clamp(0.0, 1.0))
}

/// Under this much dead data nobody is asked to wait: a disk that writes 140 MB/s needs some seconds for it, and a burst of
/// writes is over by then.
const BRAKE_DEAD_BYTES_MIN: u64 = 512 << 20;

/// What writers are to pause for every 256 KiB logged, while segments that are mostly dead take so many address slots: where
/// segments are small, a log runs out of these long before what is dead weighs anything.
fn brake_for_slots(dead_slots: usize) -> Duration {
    let over = dead_slots.saturating_sub(SLOTS_MAX / 16) as f64;
    PAUSE_MAX.mul_f64(over / (SLOTS_MAX / 8) as f64)
}

/// What is known of a segment that may be cleaned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) bytes: u64,
    /// Bytes of records that the directory points at.
    pub(crate) live: u64,
    /// Bytes of tombstones that may be dropped, where no segment is older. Others count as live.
    pub(crate) tombstones: u64,
    /// Bytes logged since it was written.
    pub(crate) age: u64,
}

/// How eagerly to clean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    /// Others are writing: clean when half of the log is dead. Where keys are overwritten at random, a quarter of a byte is
    /// moved then for each that is written; at a third it would be three quarters.
    Busy,
    /// Nobody is: bring the log down to a sixteenth dead.
    Idle,
    /// The disk is full: whatever gives space, until writers may go on.
    Starved,
}

/// The segment to clean next, oldest first in `candidates`; `None` if there is too little to gain. `log_bytes` counts all
/// segments, also those that cannot be cleaned yet; less dead than `dead_bytes_min` is not worth the work.
pub(crate) fn pick(candidates: &[Candidate], log_bytes: u64, dead_bytes_min: u64, mood: Mood) -> Option<usize> {
    let tombstones: u64 = candidates.iter().skip(1).map(|c| c.tombstones).sum();
    let dead: u64 = candidates.iter().enumerate().map(|(i, c)| gain(i, c)).sum();
    let share = match mood {
        Mood::Busy => 2,
        Mood::Idle | Mood::Starved => 16,
    };
    if tombstones > dead_bytes_min && tombstones > log_bytes / 4 {
        // What lies before them keeps them alive.
        return Some(0);
    }
    if dead < dead_bytes_min || dead < log_bytes / share {
        return None;
    }
    let best = (0..candidates.len()).max_by(|&a, &b| score(a, &candidates[a]).total_cmp(&score(b, &candidates[b])))?;
    (gain(best, &candidates[best]) > 0).then_some(best)
}

/// Bytes that cleaning frees for good.
fn gain(i: usize, candidate: &Candidate) -> u64 {
    let kept = candidate.live + if i == 0 { 0 } else { candidate.tombstones };
    candidate.bytes.saturating_sub(kept)
}

/// Benefit over cost: space freed, times how long it will probably stay free, over bytes read and written.
fn score(i: usize, candidate: &Candidate) -> f64 {
    let gain = gain(i, candidate) as f64;
    let moved = candidate.bytes as f64 - gain;
    gain * candidate.age as f64 / (candidate.bytes as f64 + moved)
}

/// The cleaner's place between two steps.
#[derive(Debug)]
pub(crate) struct Cleaner {
    dead_bytes_min: u64,
    at: Option<Cleaning>,
    /// Emptied segments, each with the log position up to which the log must be durable before it may go.
    emptied: Vec<(Arc<Segment>, u64)>,
    /// Of segments that were counted while the disk is full: what lived in each, what moving that takes, and whether its tombstones
    /// would stay behind.
    counted: HashMap<u64, (u64, u64, bool)>,
}

/// A segment being cleaned.
#[derive(Debug)]
struct Cleaning {
    segment: Arc<Segment>,
    /// How far.
    from: u64,
    /// There is no older one, and a run covers it.
    oldest: bool,
    /// Dead records are compared with their checksums too, however long they are.
    verify_all: bool,
    /// There is space for what lives in it.
    fits: bool,
}

/// What a step of cleaning came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Something was done; there may be more.
    Some,
    /// There will be something to do when nobody writes for a while, or when more of the log is durable.
    Later,
    None,
}

impl Default for Cleaner {
    fn default() -> Cleaner {
        Cleaner::cleaning_from(DEAD_BYTES_MIN)
    }
}

impl Cleaner {
    pub(crate) fn cleaning_from(dead_bytes_min: u64) -> Cleaner {
        Cleaner { dead_bytes_min, at: None, emptied: Vec::new(), counted: HashMap::new() }
    }

    /// One step: some records moved, or emptied segments given up.
    pub(crate) fn step(&mut self, commits: &Commits, mood: Mood) -> Result<Progress> {
        let guard = &epoch::pin();
        if commits.log.is_starved() {
            commits.log.relieve()?;
        }
        let starved = commits.log.is_starved();
        if starved && self.at.as_ref().is_some_and(|at| !at.fits) {
            self.at = None;
        }
        if !starved {
            self.counted.clear();
        }
        let worked = self.work(commits, if starved { Mood::Starved } else { mood }, guard);
        if self.at.is_none() {
            commits.log.set_to_move(0);
        }
        let progress = worked?;
        commits.log.set_hopeless(starved && progress == Progress::None);
        self.set_brake(commits, guard);
        Ok(progress)
    }

    fn set_brake(&self, commits: &Commits, guard: &Guard) {
        let (mut bytes, mut live, mut dead_slots) = (0, 0, 0);
        for segment in commits.log.segments(guard) {
            let (all, lives) = (segment.region.published(), segment.live_bytes() + segment.tombstone_bytes());
            bytes += all;
            live += lives;
            dead_slots += if lives < all / 2 { slots_of(segment.header.capacity) } else { 0 };
        }
        commits.log.set_brake(brake(bytes, live).max(brake_for_slots(dead_slots)));
    }

    fn work(&mut self, commits: &Commits, mood: Mood, guard: &Guard) -> Result<Progress> {
        self.give_up_emptied(commits, mood)?;
        if self.at.is_none() {
            self.at = match mood {
                Mood::Starved => self.choose_starved(commits, guard),
                mood => self.choose(commits, mood, guard),
            };
        }
        let Some(mut at) = self.at.take() else {
            if mood == Mood::Starved {
                return Ok(if self.emptied.is_empty() { Progress::None } else { Progress::Later });
            }
            let ends_active = self.gains_by_ending_active(commits, guard);
            if mood == Mood::Idle && ends_active && commits.log.end_active(Purpose::Cleaning, Segment::outgrew_plan)? {
                return Ok(Progress::Some);
            }
            let later = ends_active || !self.emptied.is_empty() || self.choose(commits, Mood::Idle, guard).is_some();
            return Ok(if later { Progress::Later } else { Progress::None });
        };
        if let Err(e) = move_some(commits, &mut at, guard) {
            if e.kind() != ErrorKind::Corrupt {
                return Err(e);
            }
            // Nothing is given up on the word of damaged bytes. Reads say so where they meet them.
            at.segment.mark_damaged();
            return Ok(Progress::Some);
        }
        if at.from < at.segment.region.published() {
            self.at = Some(at);
        } else if !at.verify_all && (at.segment.live_bytes() != 0 || at.segment.counts_are_approximate()) {
            // Something lives that was not found, or may: the length of a dead record that was not verified may have led
            // past it.
            self.at = Some(Cleaning { from: HEADER_BYTES, verify_all: true, ..at });
        } else {
            self.emptied.push((at.segment, commits.log.end(guard)));
        }
        Ok(Progress::Some)
    }

    fn choose(&self, commits: &Commits, mood: Mood, guard: &Guard) -> Option<Cleaning> {
        let (sealed, candidates): (Vec<_>, Vec<_>) = self.candidates(commits, guard).into_iter().unzip();
        let chosen = pick(&candidates, self.log_bytes(commits, guard), self.dead_bytes_min, mood)?;
        Some(begin(commits, sealed[chosen].clone(), false, guard))
    }

    /// Whether so much is dead in an active segment which took more than it was made for, since the next one was late, that nothing but its
    /// end keeps the log from being cleaned.
    fn gains_by_ending_active(&self, commits: &Commits, guard: &Guard) -> bool {
        let active = commits.log.active(guard);
        if !active.outgrew_plan() || active.is_damaged() {
            return false;
        }
        let mut candidates: Vec<_> =
            self.candidates(commits, guard).into_iter().map(|(_, candidate)| candidate).collect();
        candidates.push(candidate(commits, active, guard));
        pick(&candidates, self.log_bytes(commits, guard), self.dead_bytes_min, Mood::Idle).is_some()
    }

    fn is_emptied(&self, segment: &Arc<Segment>) -> bool {
        self.emptied.iter().any(|(emptied, _)| Arc::ptr_eq(emptied, segment))
    }

    /// Bytes of the log, without what is about to be given up.
    fn log_bytes(&self, commits: &Commits, guard: &Guard) -> u64 {
        let all = commits.log.segments(guard);
        all.iter().filter(|s| !self.is_emptied(s)).map(|s| s.region.published()).sum()
    }

    /// Of the segments that would give most, the first that is worth it and that there is space for.
    fn choose_starved(&mut self, commits: &Commits, guard: &Guard) -> Option<Cleaning> {
        let room = commits.log.room_to_clean(guard);
        let mut candidates = self.candidates(commits, guard);
        self.counted.retain(|number, _| candidates.iter().any(|(s, _)| s.header.number == *number));
        candidates.sort_by_key(|(_, c)| std::cmp::Reverse(c.bytes.saturating_sub(c.live)));
        for (segment, Candidate { bytes, live, .. }) in candidates {
            if bytes.saturating_sub(live) < bytes / STARVED_GAIN_SHARE {
                break;
            }
            let number = segment.header.number;
            let at = begin(commits, segment, true, guard);
            let holds = |(then, _, oldest): &&(u64, u64, bool)| {
                live + bytes / STARVED_COUNT_SHARE > *then && *oldest == at.oldest
            };
            let to_move = match self.counted.get(&number).filter(holds) {
                Some((_, to_move, _)) => *to_move,
                None => match bytes_to_move(commits, &at, guard) {
                    Ok(to_move) => {
                        self.counted.insert(number, (live, to_move, at.oldest));
                        to_move
                    }
                    Err(_) => {
                        at.segment.mark_damaged();
                        continue;
                    }
                },
            };
            if to_move + bytes / STARVED_GAIN_SHARE <= bytes && to_move <= room {
                commits.log.set_to_move(to_move);
                return Some(at);
            }
        }
        None
    }

    /// The segments that may be cleaned, oldest first.
    fn candidates(&self, commits: &Commits, guard: &Guard) -> Vec<(Arc<Segment>, Candidate)> {
        let may_be_cleaned = |s: &Arc<Segment>| !self.is_emptied(s) && !s.is_damaged();
        let sealed = commits.log.sealed(guard).into_iter().filter(may_be_cleaned);
        sealed.map(|segment| (segment.clone(), candidate(commits, &segment, guard))).collect()
    }

    fn give_up_emptied(&mut self, commits: &Commits, mood: Mood) -> Result<()> {
        if mood != Mood::Busy
            && let Some((_, end)) = self.emptied.last()
        {
            commits.wait(*end)?;
        }
        let durable = if seeded(Bug::CleanedBeforeSync) { u64::MAX } else { commits.log.durable() };
        while let Some((segment, _)) = self.emptied.first().filter(|(_, end)| *end <= durable) {
            commits.log.retire(segment)?;
            commits.counters.cleaned_bytes.add(segment.region.published());
            self.emptied.remove(0);
        }
        Ok(())
    }
}

fn candidate(commits: &Commits, segment: &Segment, guard: &Guard) -> Candidate {
    let (live, tombstones) = (segment.live_bytes(), segment.tombstone_bytes());
    // A tombstone that is dropped must stand in a run, or the index would never hear of it.
    let may_drop = segment.header.base < commits.index.covered();
    let (live, tombstones) = if may_drop { (live, tombstones) } else { (live + tombstones, 0) };
    let age = commits.log.end(guard).saturating_sub(segment.header.base);
    Candidate { bytes: segment.region.published(), live, tombstones, age }
}

fn begin(commits: &Commits, segment: Arc<Segment>, fits: bool, guard: &Guard) -> Cleaning {
    // Emptied segments older than this one count: until they are gone, a crash brings them back.
    let is_first = commits.log.segments(guard).first().is_some_and(|first| Arc::ptr_eq(first, &segment));
    // A tombstone that is dropped must stand in a run, or the index would never hear of it.
    let oldest = is_first && segment.header.base < commits.index.covered();
    // Where counts are approximate a second pass would be due anyway, and it would write tombstones twice.
    let verify_all = segment.counts_are_approximate();
    Cleaning { segment, from: HEADER_BYTES, oldest, verify_all, fits }
}

/// Bytes that moving what lives in a segment takes, at most: as if every tombstone that may be needed were.
fn bytes_to_move(commits: &Commits, at: &Cleaning, guard: &Guard) -> Result<u64> {
    let Cleaning { segment, oldest, .. } = at;
    let (mut offset, mut to_move, mut found_live) = (HEADER_BYTES, 0, 0);
    while offset < segment.region.published() {
        let (record, bytes) = segment.record(offset, false, guard).map_err(|defect| damage(segment, offset, defect))?;
        let version = record.moved.unwrap_or_else(|| segment.position(offset));
        let tombstone = Record { moved: Some(version), ..Record::delete(record.bucket, record.key) };
        let place = commits.log.place(segment, offset);
        let lives = || commits.directory.find(commits.hash(record.bucket, record.key), guard, |p| Ok(p == place));
        to_move += match record.kind {
            Kind::Set if lives()?.is_some() => {
                found_live += bytes;
                let expired = record.expires.is_some_and(|at| at <= crate::io::unix_ms());
                let moved = Record { moved: Some(version), member: false, mark: None, ..record };
                if expired { tombstone.bytes() } else { moved.bytes() }
            }
            Kind::Delete if !oldest || commits.is_for_checkpoint(&record, version) => tombstone.bytes(),
            _ => 0,
        };
        offset += bytes;
    }
    // What is pending is not found, and lives; where counts are approximate it may be nothing.
    let pending = if segment.counts_are_approximate() { 0 } else { segment.live_bytes().saturating_sub(found_live) };
    Ok(to_move + pending)
}

/// A record that is about to be looked at.
struct Ahead<'g> {
    offset: u64,
    hash: u64,
    record: Record<'g>,
    bytes: u64,
}

/// Moves what lives among the next records, for about [`STEP_BYTES`] of those that had to be read. The directory's lines of some
/// [`AHEAD`] of them are asked for before the first is looked up: most records are dead, and that is all they cost.
fn move_some(commits: &Commits, at: &mut Cleaning, guard: &Guard) -> Result<()> {
    let Cleaning { segment, from, oldest, verify_all, .. } = at;
    let end = segment.region.published();
    let mut read = 0;
    let mut ahead = Vec::with_capacity(AHEAD);
    while *from < end && read < STEP_BYTES {
        ahead.clear();
        let (mut next, mut defect) = (*from, None);
        while next < end && ahead.len() < AHEAD {
            // What is damaged is told when what comes before it was moved.
            let (record, bytes) = match segment.record(next, false, guard) {
                Ok(there) => there,
                Err(found) => {
                    defect = Some(found);
                    break;
                }
            };
            let hash = commits.hash(record.bucket, record.key);
            commits.directory.fetch(hash, guard);
            ahead.push(Ahead { offset: next, hash, record, bytes });
            next += bytes;
        }
        for record in &ahead {
            read += 64 + move_one(commits, segment, record, *oldest, *verify_all, guard)?;
            *from = record.offset + record.bytes;
        }
        if let Some(defect) = defect {
            return Err(damage(segment, *from, defect));
        }
    }
    Ok(())
}

/// Moves a record if it lives; how many bytes had to be read.
fn move_one(
    commits: &Commits,
    segment: &Arc<Segment>,
    at: &Ahead<'_>,
    oldest: bool,
    verify_all: bool,
    guard: &Guard,
) -> Result<u64> {
    let Ahead { offset, hash, record, bytes } = at;
    if seeded(Bug::LiveDropped) && record.kind == Kind::Set && *bytes >= 512 {
        return Ok(0);
    }
    // Without the shard's lock. What is pending is not found either, but counts as live, so that all is looked at again.
    let is_dead = record.kind == Kind::Set && !verify_all && {
        let place = commits.log.place(segment, *offset);
        commits.directory.find(*hash, guard, |p| Ok(p == place))?.is_none()
    };
    if is_dead && *bytes >= SKIPPED_BYTES_MIN {
        return Ok(0);
    }
    segment.record(*offset, true, guard).map_err(|defect| damage(segment, *offset, defect))?;
    if !is_dead && record.kind != Kind::Batch {
        commits.move_record(segment, *offset, record, oldest, guard)?;
    }
    Ok(*bytes)
}

#[cold]
fn damage(segment: &Segment, offset: u64, defect: Defect) -> Error {
    segment.corrupt(offset, format_args!("no valid record ({defect:?}), found while cleaning"))
}

/// A record that cannot be read for now keeps its segment from being cleaned, and the store from nothing else.
fn put_off(e: Error) -> Error {
    match e.kind() {
        ErrorKind::Io => e.with_kind(ErrorKind::Corrupt, "not cleaned: a record cannot be read"),
        _ => e,
    }
}

impl Commits {
    fn append_moved(&self, record: &Record<'_>, guard: &Guard) -> Result<Appended> {
        let appended = self.append(record, guard)?;
        let bytes = appended.end - appended.position;
        self.counters.moved_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.log.moved(bytes);
        Ok(appended)
    }

    /// Whether the record drops a bucket that the checkpoint still knows, and knows by its name: no segment has to be there for that.
    fn is_for_checkpoint(&self, record: &Record<'_>, version: u64) -> bool {
        record.bucket == CATALOGUE
            && record.kind == Kind::Delete
            && self.log.checkpoint().0.is_some_and(|checkpoint| checkpoint.from <= version)
    }

    /// Writes the record at `offset` of `segment` again if it still counts.
    fn move_record(
        &self,
        segment: &Arc<Segment>,
        offset: u64,
        record: &Record<'_>,
        oldest: bool,
        guard: &Guard,
    ) -> Result<()> {
        let hash = self.hash(record.bucket, record.key);
        let place = self.log.place(segment, offset);
        let mut shard = loop {
            let shard = self.directory.lock(hash);
            // Behind a write that is not visible yet, the moved record would seem to be the later one.
            let pending = shard.held.pending.iter().filter(|p| p.hash == hash).map(|p| p.end).max();
            let Some(end) = pending.filter(|_| !seeded(Bug::MovedWins)) else {
                break shard;
            };
            drop(shard);
            self.wait(end)?;
        };
        let version = record.moved.unwrap_or_else(|| segment.position(offset));
        let kept = Some(version).filter(|_| !seeded(Bug::MoveLosesVersion));
        let moved = Record { moved: kept, member: false, mark: None, ..*record };
        let moved = if seeded(Bug::MoveLosesExpiry) { Record { expires: None, ..moved } } else { moved };
        let tombstone = Record { moved: Some(version), ..Record::delete(record.bucket, record.key) };
        match record.kind {
            Kind::Set => {
                if shard.find(hash, guard, |p| Ok(p == place))?.is_none() {
                    return Ok(());
                }
                if record.expires.is_some_and(|at| at <= crate::io::unix_ms()) {
                    if !oldest && !seeded(Bug::ExpiredDroppedWithoutTombstone) {
                        self.append_moved(&tombstone, guard)?;
                    }
                    if shard.is_tallied(hash, guard) {
                        shard.held.tallies.take(record);
                    }
                    shard.remove(hash, place, guard);
                } else {
                    let appended = self.append_moved(&moved, guard)?;
                    shard.set(hash, Some(place), appended.place, guard, &self.logged(guard))?;
                }
                segment.sub_live(record.bytes());
            }
            _ if oldest && !self.is_for_checkpoint(record, version) || seeded(Bug::TombstoneDropped) => {}
            _ => {
                let mut newer = None;
                shard
                    .find(hash, guard, |p| self.is_key(p, record.bucket, record.key, guard, &mut newer))
                    .map_err(put_off)?;
                if newer.is_none() {
                    self.append_moved(&tombstone, guard)?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn candidate(live: u64, tombstones: u64, age: u64) -> Candidate {
        Candidate { bytes: 64 * MIB, live: live * MIB, tombstones: tombstones * MIB, age: age * MIB }
    }

    #[test]
    fn nothing_is_cleaned_for_little_gain() {
        let log = |c: &[Candidate]| c.iter().map(|c| c.bytes).sum();
        let full = [candidate(61, 0, 300), candidate(61, 0, 200)];
        assert_eq!(pick(&full, log(&full), DEAD_BYTES_MIN, Mood::Busy), None);
        assert_eq!(pick(&full, log(&full), DEAD_BYTES_MIN, Mood::Idle), None);
        let quarter_dead = [candidate(48, 0, 300), candidate(40, 0, 200)];
        assert_eq!(pick(&quarter_dead, log(&quarter_dead), DEAD_BYTES_MIN, Mood::Busy), None);
        assert!(pick(&quarter_dead, log(&quarter_dead), DEAD_BYTES_MIN, Mood::Idle).is_some());
        assert_eq!(pick(&[], 0, DEAD_BYTES_MIN, Mood::Idle), None);
    }

    #[test]
    fn writers_are_slowed_in_proportion_to_what_is_dead() {
        assert_eq!(brake(3000 * MIB, 1000 * MIB), Duration::ZERO);
        assert_eq!(brake(400 * MIB, MIB), Duration::ZERO, "a small store is never slowed");
        assert!(!brake(1200 * MIB, 100 * MIB).is_zero());
        let pauses: Vec<_> = (100..=1000).map(|dead| brake((1000 + 10 * dead) * MIB, 1000 * MIB)).collect();
        assert!(pauses.is_sorted(), "the more is dead, the longer");
        let steps = pauses.windows(2).map(|two| two[1] - two[0]);
        assert!(steps.max() < Some(Duration::from_micros(20)), "nowhere a jump");
        let at = |dead: usize| pauses[dead - 100];
        assert!(at(200).is_zero() && !at(210).is_zero());
        assert_eq!((at(400), at(600), at(1000)), (PAUSE_GENTLE, PAUSE_MAX, PAUSE_MAX));
        assert!(brake_for_slots(SLOTS_MAX / 16).is_zero(), "32 GiB in segments of the usual size");
        assert!(brake_for_slots(SLOTS_MAX / 2) > 3 * PAUSE_MAX, "long before addresses run out");
    }

    #[test]
    fn the_emptier_and_the_older_segment_goes_first() {
        let log = 3 * 64 * MIB;
        assert_eq!(
            pick(
                &[candidate(32, 0, 200), candidate(1, 0, 200), candidate(32, 0, 200)],
                log,
                DEAD_BYTES_MIN,
                Mood::Busy
            ),
            Some(1)
        );
        assert_eq!(
            pick(
                &[candidate(32, 0, 900), candidate(30, 0, 100), candidate(30, 0, 90)],
                log,
                DEAD_BYTES_MIN,
                Mood::Busy
            ),
            Some(0)
        );
    }

    #[test]
    fn tombstones_are_no_gain_unless_nothing_is_older() {
        let log = 2 * 64 * MIB;
        let behind = [candidate(64, 0, 200), candidate(4, 60, 100)];
        assert_eq!(pick(&behind, log, DEAD_BYTES_MIN, Mood::Busy), Some(0), "what keeps them alive goes first");
        let few = [candidate(64, 0, 200), candidate(44, 20, 100)];
        assert_eq!(pick(&few, log, DEAD_BYTES_MIN, Mood::Idle), None);
        let oldest = [candidate(4, 60, 200), candidate(60, 0, 100)];
        assert_eq!(pick(&oldest, log, DEAD_BYTES_MIN, Mood::Busy), Some(0));
    }
}
