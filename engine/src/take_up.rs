//! Fills the directory and the catalogue when a store is opened: from a checkpoint, and the log since.
//! Flow: `recovery` -> here -> `directory`, `catalogue`.

use std::collections::BTreeSet;
use std::sync::Arc;

use crossbeam_epoch::{self as epoch, Guard};

use crate::catalogue::{CATALOGUE, Replay};
use crate::checkpoint;
use crate::commit::Commits;
use crate::directory::{Place, ShardGuard};
use crate::error::Result;
use crate::log::Found;
use crate::log::record::{Defect, Kind, Record};
use crate::log::replay::{self, Notes, Parsed};
use crate::seeded::{Bug, seeded};
use crate::segment::{PAGE_BYTES, Segment};

/// Records between the one replayed and the one whose directory line is fetched: what a miss takes.
const AHEAD: usize = 20;
/// Records replayed under one epoch guard: memory that the directory grows out of is given back in between.
const PINNED: usize = 1 << 12;
/// Records looked at to tell how many are of new keys.
const SAMPLED: usize = 1 << 10;

/// What is to be replayed of one segment.
pub(crate) struct Tail {
    pub(crate) segment: Arc<Segment>,
    /// Offset of the first record.
    pub(crate) from: u64,
    /// All records from there on, if they were taken down when they were checked.
    pub(crate) notes: Option<Notes>,
}

/// Records from which on a second thread helps.
const SHARED_FROM: u64 = if cfg!(feature = "testing") { 64 } else { 1 << 15 };

/// Replays the log; `buckets` is what a checkpoint says of them, if there is one. The number of records replayed.
pub(crate) fn take_up(commits: &Commits, tails: Vec<Tail>, buckets: Option<&checkpoint::Buckets>) -> Result<u64> {
    if buckets.is_some() {
        make_ready(commits, &tails);
    }
    let mut catalogue = Replay::new(buckets);
    let mut noted = Vec::new();
    let mut replayed = 0;
    for Tail { segment, from, notes } in tails {
        match notes {
            Some(notes) => {
                count(&segment, &notes, &mut catalogue)?;
                noted.push((segment, notes));
            }
            None => {
                // In the order of the log.
                replayed += replay_noted(commits, std::mem::take(&mut noted))?;
                replayed += replay_read(commits, &segment, from, &mut catalogue)?;
            }
        }
    }
    replayed += replay_noted(commits, noted)?;
    commits.directory.expect(1.0);
    commits.catalogue.take_up(catalogue);
    Ok(replayed)
}

/// Makes what a checkpoint has mapped of the directory ready, if the log since has records for every page of it.
fn make_ready(commits: &Commits, tails: &[Tail]) {
    let (guard, directory) = (&epoch::pin(), &commits.directory);
    let noted: Vec<&Notes> = tails.iter().filter_map(|tail| tail.notes.as_ref()).collect();
    let records: usize = noted.iter().map(|notes| notes.len()).sum();
    let all_noted = noted.len() == tails.len();
    if all_noted && (records as u64) < directory.bytes(guard) / PAGE_BYTES {
        return;
    }
    let step = (records / SAMPLED).max(1);
    let is_new = |parsed: &&Parsed| matches!(directory.find(parsed.hash, guard, |_| Ok(true)), Ok(None));
    let sampled = noted.iter().flat_map(|notes| &notes.halves).flatten().step_by(step);
    let new = step * sampled.filter(is_new).count();
    directory.expect(1.0 + new as f64 / directory.keys(guard).max(1) as f64);
    let (half, all) = (directory.shards() / 2, directory.shards());
    let ready = |shards| directory.make_ready(shards, &epoch::pin());
    if all_noted && (records as u64) < SHARED_FROM {
        ready(0..all);
    } else {
        crate::io::both(|| ready(0..half), |_| ready(half..all));
    }
}

fn take_entry(segment: &Segment, offset: u64, record: &Record<'_>, catalogue: &mut Replay) -> Result<()> {
    if record.bucket == CATALOGUE && catalogue.take(record).is_none() {
        return Err(segment.corrupt(offset, "an entry of the bucket catalogue makes no sense"));
    }
    Ok(())
}

/// Counts the records of a segment, and takes up what they say of buckets.
fn count(segment: &Segment, notes: &Notes, catalogue: &mut Replay) -> Result<()> {
    let guard = &mut epoch::pin();
    for parsed in &notes.others {
        // Long passes must not keep memory from being given back.
        guard.repin();
        // It was checked a moment ago: whatever keeps it from being read now, it is not to be passed over.
        let (record, bytes) = segment
            .record_as_it_is(parsed.offset(), guard)
            .map_err(|defect| segment.no_record(parsed.offset(), defect))?;
        segment.count(record.kind, bytes);
        take_entry(segment, parsed.offset(), &record, catalogue)?;
    }
    segment.count(Kind::Set, notes.plain_bytes);
    notes.buckets.iter().for_each(|id| catalogue.note(*id));
    Ok(())
}

/// Replays records that were taken down. Those of one shard are of one half, so each key's come in their order.
fn replay_noted(commits: &Commits, noted: Vec<(Arc<Segment>, Notes)>) -> Result<u64> {
    let records = noted.iter().map(|(_, notes)| notes.len() as u64).sum();
    let half = |which: usize| replay_half(commits, &noted, which);
    if records < SHARED_FROM {
        half(0).and(half(1))?;
    } else {
        let (first, second) = crate::io::both(|| half(0), |_| half(1));
        first.and(second)?;
    }
    Ok(records)
}

fn replay_half(commits: &Commits, noted: &[(Arc<Segment>, Notes)], which: usize) -> Result<()> {
    let mut guard = epoch::pin();
    let left = noted.iter().map(|(_, notes)| notes.halves[which].len() as u64).sum();
    let mut inserts = Inserts { left, seen: 0, new: 0 };
    for (segment, notes) in noted {
        let records = &notes.halves[which];
        for (i, parsed) in records.iter().enumerate() {
            if i % PINNED == 0 {
                guard.flush();
                guard.repin();
                // One of the halves tells as much as both.
                if which == 0 {
                    inserts.look(commits, &guard);
                }
            }
            if let Some(ahead) = records.get(i + AHEAD) {
                commits.directory.fetch(ahead.hash, &guard);
            }
            let is_new = if parsed.is_plain() {
                replay_plain(commits, segment, parsed, &guard)?
            } else {
                let (record, _) = segment
                    .record_as_it_is(parsed.offset(), &guard)
                    .map_err(|defect| segment.no_record(parsed.offset(), defect))?;
                replay_any(commits, segment, &record, parsed.offset(), &guard)?
            };
            inserts.seen += 1;
            inserts.new += u64::from(is_new);
        }
    }
    Ok(())
}

/// A record found at open.
struct Replayed {
    hash: u64,
    kind: Kind,
    offset: u64,
    bytes: u64,
    version: u64,
}

/// Takes up a record found at open, which its segment has counted: the directory says what the log said last. It may say
/// so already, or what the log says later. Whether its key was in no record before.
fn replay_any(commits: &Commits, segment: &Segment, record: &Record<'_>, offset: u64, guard: &Guard) -> Result<bool> {
    let hash = commits.hash(record.bucket, record.key);
    let mut shard = commits.directory.lock(hash);
    let mut found = None;
    let old =
        shard.find(hash, guard, |p| commits.is_key_to_replace(p, record.bucket, record.key, guard, &mut found))?;
    let moved = record.moved.filter(|_| !seeded(Bug::MovedWins));
    let version = moved.unwrap_or_else(|| segment.position(offset));
    let at = Replayed { hash, kind: record.kind, offset, bytes: record.bytes(), version };
    replay_at(commits, &mut shard, segment, &at, old, found.as_ref(), guard)
}

/// As [`replay_any`], of a set that is its own version. The record is looked at only if another may be of its key.
fn replay_plain(commits: &Commits, segment: &Segment, parsed: &Parsed, guard: &Guard) -> Result<bool> {
    let (hash, offset) = (parsed.hash, parsed.offset());
    let mut shard = commits.directory.lock(hash);
    let mut found = None;
    let old = shard.find(hash, guard, |place| match segment.record_as_it_is(offset, guard) {
        Ok((new, _)) => commits.is_key_to_replace(place, new.bucket, new.key, guard, &mut found),
        Err(defect @ Defect::Unreadable(_)) => Err(segment.no_record(offset, defect)),
        Err(_) => Ok(false),
    })?;
    let version = segment.position(offset);
    let at = Replayed { hash, kind: Kind::Set, offset, bytes: parsed.bytes(), version };
    replay_at(commits, &mut shard, segment, &at, old, found.as_ref(), guard)
}

#[inline]
fn replay_at(
    commits: &Commits,
    shard: &mut ShardGuard<'_>,
    segment: &Segment,
    new: &Replayed,
    old: Option<Place>,
    found: Option<&Found<'_>>,
    guard: &Guard,
) -> Result<bool> {
    let place = commits.log.place(segment, new.offset);
    if found.is_some_and(|found| found.version() > new.version) {
        // The directory is of a later time; or it is a copy that the cleaner made of what was already history.
        if new.kind == Kind::Set {
            segment.sub_live(new.bytes);
        }
        return Ok(false);
    }
    if old == Some(place) {
        return Ok(false);
    }
    // Nothing is tallied yet: its kind is all that matters.
    let record = Record { kind: new.kind, ..Record::delete(CATALOGUE, &[]) };
    commits.point(shard, new.hash, &record, old, place, found, guard)?;
    Ok(old.is_none())
}

/// Replays the records of a segment from offset `from` on, reading them again.
fn replay_read(commits: &Commits, segment: &Segment, from: u64, catalogue: &mut Replay) -> Result<u64> {
    let bytes = segment.read(segment.region.published())?;
    let mut seen = BTreeSet::new();
    let mut last = CATALOGUE;
    let mut replayed = 0;
    replay::records(&bytes, from, |offset, record, bytes| {
        replayed += 1;
        if record.bucket != last {
            last = record.bucket;
            seen.insert(last);
        }
        take_entry(segment, offset, record, catalogue)?;
        segment.count(record.kind, bytes);
        replay_any(commits, segment, record, offset, &epoch::pin()).map(drop)
    })?;
    seen.iter().for_each(|id| catalogue.note(*id));
    Ok(replayed)
}

/// How many of the records replayed last were of new keys: so the directory grows to what it will hold, and in one go.
struct Inserts {
    /// Records of this half to be replayed, at the last look.
    left: u64,
    /// Records replayed since, and how many of them were of new keys.
    seen: u64,
    new: u64,
}

impl Inserts {
    fn look(&mut self, commits: &Commits, guard: &Guard) {
        if self.seen > 0 {
            let new = self.new as f64 / self.seen as f64;
            self.left = self.left.saturating_sub(self.seen);
            // The other half has as many.
            let keys = commits.directory.keys(guard).max(1);
            commits.directory.expect(1.0 + new * 2.0 * self.left as f64 / keys as f64);
        }
        (self.seen, self.new) = (0, 0);
    }
}

/// Takes all keys of certain buckets out of the directory.
pub(crate) fn forget_keys(commits: &Commits, gone: impl Fn(u64) -> bool) {
    for shard in 0..commits.directory.shards() {
        // One a shard: what is read may stay in memory for as long as it is held.
        let guard = &epoch::pin();
        for place in commits.directory.places(shard, guard) {
            // Damage stays, for whoever reads it; what is gone is swept out.
            let Ok(found) = commits.log.record(place, guard) else { continue };
            if gone(found.record.bucket) {
                forget_key(commits, found.record.bucket, found.record.key, guard);
            }
        }
    }
}

/// Takes a key out of the directory, wherever its record stands by now: the cleaner may have moved it since it was looked at.
fn forget_key(commits: &Commits, bucket: u64, key: &[u8], guard: &Guard) {
    let hash = commits.hash(bucket, key);
    let mut shard = commits.directory.lock(hash);
    let mut now = None;
    let at = shard.find(hash, guard, |place| commits.is_key(place, bucket, key, guard, &mut now));
    if let (Ok(Some(place)), Some(found)) = (at, now) {
        if shard.is_tallied(hash, guard) {
            shard.held.tallies.take(&found.record);
        }
        shard.remove(hash, place, guard);
        found.segment.sub_live(found.bytes);
    }
}

#[cfg(all(test, feature = "testing"))]
mod tests {
    use super::*;
    use crate::worker::Jobs;
    use crate::{Durability, Options, Store};

    #[test]
    fn a_key_of_a_dropped_bucket_that_is_moved_meanwhile_goes_too() {
        let options = Options::new().durability(Durability::Ephemeral).segment_bytes_max(64 << 10);
        let store = Store::without_worker(Arc::new(crate::io::memory::MemoryDisk::default()), options).unwrap();
        let (kept, gone) = (store.bucket("kept").unwrap(), store.bucket("gone").unwrap());
        let commits = &store.0.commits;
        for i in 0..40u32 {
            gone.set(&i.to_le_bytes(), &[1; 100]).unwrap();
        }
        for i in 0..4000u32 {
            kept.set(&(i % 8).to_le_bytes(), &[2; 1000]).unwrap();
        }
        let id = gone.entry.id;
        let place = |key: u32| {
            let (hash, guard) = (commits.hash(id, &key.to_le_bytes()), &epoch::pin());
            commits.directory.find(hash, guard, |at| commits.is_key(at, id, &key.to_le_bytes(), guard, &mut None))
        };
        let before: Vec<_> = (0..40).map(|key| place(key).unwrap()).collect();
        assert!(before.iter().all(Option::is_some));
        let jobs = std::cell::RefCell::new(Jobs::cleaning_from(1));
        let moved = std::cell::Cell::new(false);
        forget_keys(commits, |bucket| {
            // Between the look at a record and the lock of its shard, the cleaner moves all of them.
            if bucket == id && !moved.replace(true) {
                for _ in 0..400 {
                    jobs.borrow_mut().round(commits, false).unwrap();
                }
            }
            bucket == id
        });
        assert!(moved.get());
        for key in 0..40 {
            assert_eq!(place(key).unwrap(), None, "key {key}");
        }
    }
}
