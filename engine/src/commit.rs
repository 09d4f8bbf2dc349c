//! The path of a write: stripe lock, log, directory, acknowledgement; and group commit.
//! Flow: `bucket`, `batch`, `atomics` -> here -> `log`, `directory`. Any thread.
//!
//! A commit becomes visible when its directory words are set. Without waiting for the disk that is right after it was
//! published in the log, so that whatever a reader has seen survives the death of the process. In `Durability::Sync` it
//! is when the log is on the disk: until then the write stands in its shard's pending list, where only writers look.
//!
//! Group commit has no hand-off: the first waiter leads, syncs for all that is published, applies in commit order what
//! became durable, and wakes the rest; whoever came meanwhile is led by the first of them. A leader first gives those a moment
//! who came to the last group, too: without it the first who is woken syncs for itself alone, and the others for one more.
//!
//! Lock order: shard locks (by number), then the group's, then the log's. The leader holds none while it syncs.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::Waker;

use crossbeam_epoch::{self as epoch, Guard};
use smallvec::SmallVec;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::catalogue::Catalogue;
use crate::directory::{Directory, Home, Keys, Looked, PendingWrite, Place, ShardGuard, ShardGuards};
use crate::error::{Error, ErrorKind, Result};
use crate::index::KeyIndex;
use crate::io::Stopwatch;
use crate::log::record::{Defect, Kind, Prepared, Purpose, Record};
use crate::log::{Appended, Found, Log, Space};
use crate::options::{BATCH_BYTES_MAX, Durability, KEY_BYTES_MAX, VALUE_BYTES_MAX};
use crate::seeded::{Bug, seeded};
use crate::stats::Counters;
use crate::value::Version;
use crate::watch::Watchers;

/// Keys whose memory is asked for at once: together some 16 KiB, half of a first-level cache.
pub(crate) const PREFETCHED: usize = 64;

/// Longest wait of a leader for others: who was just told of the last sync comes again within this, or not soon.
const GATHER_US_MAX: u64 = 500;

/// The part of an open store that reads and writes keys.
pub(crate) struct Commits {
    pub(crate) log: Log,
    pub(crate) directory: Directory,
    /// The keys in order, for listings.
    pub(crate) index: KeyIndex,
    pub(crate) catalogue: Catalogue,
    /// Who waits for what becomes visible.
    pub(crate) watchers: Watchers,
    pub(crate) counters: Counters,
    /// Bytes of log from which on a directory checkpoint is worth its while, at least.
    pub(crate) checkpoint_bytes_min: u64,
    hash_seed: u64,
    /// These two are the standard library's: all who wait are woken by one call of the system. `parking_lot` has each wake the next
    /// through the mutex.
    group: Mutex<Group>,
    synced: Condvar,
    /// Below this log position everything is durable and visible.
    applied: AtomicU64,
    /// Why the store takes no more writes.
    poison: OnceLock<Error>,
    read_only: bool,
}

#[derive(Default)]
struct Group {
    leading: bool,
    /// Commits that wait for the disk, in log order.
    queue: VecDeque<Queued>,
    /// Where the commit begins that the leader is making visible.
    applying: Option<u64>,
    wakers: Vec<Waker>,
    /// Commits that the last sync was for, and those that came while it went on.
    expected: usize,
    /// What the last sync took, in microseconds.
    sync_us: u64,
}

/// A commit that becomes visible when the log is durable up to `end`.
struct Queued {
    start: u64,
    end: u64,
    writes: Writes,
}

enum Writes {
    One(PendingWrite),
    Batch(Vec<PendingWrite>),
}

/// What a write decides when it has seen the key.
pub(crate) enum Decision<'a, T> {
    /// Nothing is written.
    Keep(T),
    /// This record is written.
    Write(Record<'a>),
}

/// What became of a write.
pub(crate) enum Outcome<T> {
    Kept(T),
    Written(u64),
}

/// Whether two writes of a batch may be to one key.
fn repeats(hashes: &[u64]) -> bool {
    let mut sorted = hashes.to_vec();
    sorted.sort_unstable();
    sorted.windows(2).any(|two| two[0] == two[1])
}

/// Of each write of a batch, whether a later one is to the same key.
#[cold]
fn superseded(writes: &[Write<'_>]) -> Vec<bool> {
    let mut later = HashSet::with_capacity(writes.len());
    let mut superseded: Vec<bool> = writes.iter().rev().map(|w| !later.insert((w.bucket, w.key))).collect();
    superseded.reverse();
    superseded
}

/// A result and the log position up to which the log must be durable before it may be told.
pub(crate) struct Told<T> {
    pub(crate) value: T,
    pub(crate) after: u64,
}

impl<T> Told<T> {
    pub(crate) fn map<U>(self, f: impl FnOnce(T) -> U) -> Told<U> {
        Told { value: f(self.value), after: self.after }
    }
}

/// One write of a batch.
#[derive(Clone, Copy)]
pub(crate) struct Write<'a> {
    pub(crate) bucket: u64,
    pub(crate) key: &'a [u8],
    /// `None` deletes.
    pub(crate) value: Option<&'a [u8]>,
}

impl<'a> Write<'a> {
    fn record(&self) -> Record<'a> {
        let record = match self.value {
            Some(value) => Record::set(self.bucket, self.key, value),
            None => Record::delete(self.bucket, self.key),
        };
        Record { member: true, ..record }
    }
}

pub(crate) fn check_key(key: &[u8]) -> Result<()> {
    if key.len() <= KEY_BYTES_MAX { Ok(()) } else { Err(too_long("key", key.len(), KEY_BYTES_MAX)) }
}

pub(crate) fn check_value(value: &[u8]) -> Result<()> {
    if value.len() <= VALUE_BYTES_MAX { Ok(()) } else { Err(too_long("value", value.len(), VALUE_BYTES_MAX)) }
}

#[cold]
fn too_long(what: &str, bytes: usize, bytes_max: usize) -> Error {
    Error::invalid(format!("the {what} has {bytes} bytes, at most {bytes_max} are allowed"))
}

#[cold]
fn indeterminate(cause: &Error) -> Error {
    cause.with_kind(ErrorKind::Indeterminate, "the commit may or may not survive; reopen the store to know")
}

/// The hash of a key of a bucket, in the store with this seed.
#[inline]
pub(crate) fn hash_key(seed: u64, bucket: u64, key: &[u8]) -> u64 {
    xxh3_64_with_seed(key, seed ^ bucket.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// Passes by a record that is damaged: of a key that was written again since, it says nothing, and of one that was not,
/// `damage` is what is to be told.
#[inline]
fn pass_by(is_key: Result<bool>, damage: &mut Option<Error>) -> Result<bool> {
    match is_key {
        Err(e) if e.kind() == ErrorKind::Corrupt => {
            damage.get_or_insert(e);
            Ok(false)
        }
        is_key => is_key,
    }
}

/// The keys of records in the log, for a part of the directory that is split.
pub(crate) struct Logged<'a> {
    commits: &'a Commits,
    guard: &'a Guard,
}

impl Keys for Logged<'_> {
    fn hash_of(&self, place: Place) -> Result<Option<u64>> {
        match self.commits.log.record(place, self.guard) {
            Ok(found) => Ok(Some(self.commits.hash(found.record.bucket, found.record.key))),
            Err(_) if self.commits.log.is_ghost(place, self.guard) => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn fetch(&self, place: Place) {
        self.commits.log.prefetch(place, self.guard);
    }
}

impl Commits {
    pub(crate) fn new(
        log: Log,
        directory: Directory,
        index: KeyIndex,
        hash_seed: u64,
        read_only: bool,
        checkpoint_bytes_min: u64,
    ) -> Commits {
        let applied = AtomicU64::new(log.durable());
        Commits {
            log,
            directory,
            index,
            catalogue: Catalogue::default(),
            watchers: Watchers::default(),
            counters: Counters::default(),
            checkpoint_bytes_min,
            hash_seed,
            group: Mutex::default(),
            synced: Condvar::new(),
            applied,
            poison: OnceLock::new(),
            read_only,
        }
    }

    /// The hash of a key of a bucket. Seeded at random: nobody outside can choose keys that collide.
    #[inline]
    pub(crate) fn hash(&self, bucket: u64, key: &[u8]) -> u64 {
        hash_key(self.hash_seed, bucket, key)
    }

    /// The keys in the log.
    #[inline]
    pub(crate) fn logged<'a>(&'a self, guard: &'a Guard) -> Logged<'a> {
        Logged { commits: self, guard }
    }

    /// The record of a key, if it has a value now. Lock-free; two memory misses. In one piece with its caller: what was found is a
    /// dozen words, which would be copied from function to function.
    #[inline(always)]
    pub(crate) fn get<'g>(&'g self, bucket: u64, key: &[u8], guard: &'g Guard) -> Result<Option<Found<'g>>> {
        self.get_hashed(self.hash(bucket, key), bucket, key, guard)
    }

    #[inline(always)]
    pub(crate) fn get_hashed<'g>(
        &'g self,
        hash: u64,
        bucket: u64,
        key: &[u8],
        guard: &'g Guard,
    ) -> Result<Option<Found<'g>>> {
        let mut found = None;
        self.look_up(hash, bucket, key, guard, &mut found)?;
        Ok(found)
    }

    /// As [`Commits::get_hashed`], into `found`, which is `None`: what was found is a dozen words, which would be copied once more.
    #[inline(always)]
    pub(crate) fn look_up<'g>(
        &'g self,
        hash: u64,
        bucket: u64,
        key: &[u8],
        guard: &'g Guard,
        found: &mut Option<Found<'g>>,
    ) -> Result<()> {
        self.look_up_at(self.directory.home(hash, guard).look(), bucket, key, guard, found)
    }

    /// As [`Commits::look_up`], of a key whose line was looked at.
    #[inline(always)]
    pub(crate) fn look_up_at<'g>(
        &'g self,
        looked: Looked<'g>,
        bucket: u64,
        key: &[u8],
        guard: &'g Guard,
        found: &mut Option<Found<'g>>,
    ) -> Result<()> {
        let mut damage = None;
        looked.find(|place| pass_by(self.is_key(place, bucket, key, guard, found), &mut damage))?;
        if let Some(damage) = damage.filter(|_| found.is_none()) {
            return Err(damage);
        }
        if found.as_ref().is_some_and(Found::is_expired) {
            *found = None;
        }
        Ok(())
    }

    /// Asks for the memory that looking at these keys takes: of all of them at once, where one look after another would wait
    /// for each. For [`PREFETCHED`] keys at most, lest the first are gone from the cache when the last are asked for. Gives what was seen of
    /// their lines.
    #[inline]
    pub(crate) fn fetch<'g>(
        &'g self,
        hashes: impl Iterator<Item = u64>,
        guard: &'g Guard,
    ) -> SmallVec<[Looked<'g>; PREFETCHED]> {
        let homes: SmallVec<[Home<'g>; PREFETCHED]> = hashes.map(|hash| self.directory.home(hash, guard)).collect();
        homes.iter().for_each(Home::fetch);
        let looked: SmallVec<[Looked<'g>; PREFETCHED]> = homes.into_iter().map(Home::look).collect();
        looked.iter().flat_map(Looked::candidates).for_each(|place| self.log.prefetch(place, guard));
        looked
    }

    /// As [`Commits::fetch`] of one key, whose line is at hand already.
    #[inline]
    fn prefetch_records(&self, hash: u64, guard: &Guard) {
        self.directory.home(hash, guard).look().candidates().for_each(|place| self.log.prefetch(place, guard));
    }

    /// Whether the record at `place` is of this key; keeps it in `found` if so.
    #[inline(always)]
    pub(crate) fn is_key<'g>(
        &'g self,
        place: Place,
        bucket: u64,
        key: &[u8],
        guard: &'g Guard,
        found: &mut Option<Found<'g>>,
    ) -> Result<bool> {
        let (segment, offset) = self.log.locate(place, guard)?;
        let (record, bytes) = match self.log.plain_record(segment, offset) {
            Some(there) => there,
            None => match self.log.record_of(segment, offset, guard) {
                Ok(there) => there,
                Err(_) if segment.is_ghost() => return Ok(false),
                Err(e) => return Err(e),
            },
        };
        let same = record.bucket == bucket && record.key == key;
        if same {
            *found = Some(Found { segment, offset, bytes, record });
        }
        Ok(same)
    }

    /// As [`Commits::is_key`], where the record is about to be replaced: it need not be whole. What is damaged beyond being
    /// told stays, and an error to whoever reads it.
    #[inline]
    pub(crate) fn is_key_to_replace<'g>(
        &'g self,
        place: Place,
        bucket: u64,
        key: &[u8],
        guard: &'g Guard,
        found: &mut Option<Found<'g>>,
    ) -> Result<bool> {
        let (segment, offset) = self.log.locate(place, guard)?;
        let (record, bytes) = match segment.record_as_it_is(offset, guard) {
            Ok(there) => there,
            // It may be of this key, and be readable the next time.
            Err(defect @ Defect::Unreadable(_)) => return Err(segment.no_record(offset, defect)),
            Err(_) => return Ok(false),
        };
        let same = record.bucket == bucket && record.key == key;
        if same {
            *found = Some(Found { segment, offset, bytes, record });
        }
        Ok(same)
    }

    /// Writes one key: `decide` sees what it holds (not counting what has expired) and says what is written. Nobody else
    /// writes the key meanwhile.
    #[inline]
    pub(crate) fn write<'v, T>(
        &self,
        bucket: u64,
        key: &[u8],
        durability: Durability,
        decide: impl FnOnce(Option<&Found<'_>>) -> Result<Decision<'v, T>>,
    ) -> Result<Told<Outcome<T>>> {
        self.check_writable()?;
        let hash = self.hash(bucket, key);
        let guard = &epoch::pin();
        let mut shard = self.directory.lock(hash);
        let mut found = None;
        let mut damage = None;
        let old = shard
            .find(hash, guard, |place| pass_by(self.is_key(place, bucket, key, guard, &mut found), &mut damage))?;
        if let Some(damage) = damage.filter(|_| old.is_none()) {
            return Err(damage);
        }
        let mut pending = None;
        let overtakes = !shard.held.pending.is_empty() && !seeded(Bug::PendingOvertaken);
        if overtakes {
            let mut newer = None;
            pending = shard.newest_pending(hash, |place| self.is_key(place, bucket, key, guard, &mut newer))?;
            found = newer.or(found);
        }
        let seen = found.as_ref().filter(|f| f.record.kind == Kind::Set && !f.is_expired());
        let mut record = match decide(seen)? {
            // What was seen may be told once it is durable itself.
            Decision::Keep(kept) => {
                return Ok(Told { value: Outcome::Kept(kept), after: pending.map_or(0, |p| p.end) });
            }
            Decision::Write(record) => record,
        };
        record.mark = self.log.take_mark();
        shard.held.commits += 1;
        // Behind commits that are not visible yet, every write of the shard waits its turn.
        if durability.waits_for_disk() || overtakes {
            let appended = self.append_pending(hash, &record, &record.prepare(), guard, &mut shard)?;
            if seeded(Bug::VisibleBeforeDurable) {
                self.point(&mut shard, hash, &record, old, appended.place, found.as_ref(), guard)?;
            }
            return Ok(Told { value: Outcome::Written(appended.position), after: appended.end });
        }
        let appended = self.append(&record, guard)?;
        self.point(&mut shard, hash, &record, old, appended.place, found.as_ref(), guard)?;
        Ok(Told { value: Outcome::Written(appended.position), after: 0 })
    }

    /// Sets one key, whatever it holds; its version. The line of the directory and the record that is replaced are asked for
    /// before the new one is summed up and written, and arrive meanwhile.
    #[inline]
    pub(crate) fn set(&self, record: Record<'_>, durability: Durability) -> Result<Told<Version>> {
        self.check_writable()?;
        let hash = self.hash(record.bucket, record.key);
        let guard = &epoch::pin();
        self.directory.fetch(hash, guard);
        let record = Record { mark: self.log.take_mark(), ..record };
        let prepared = record.prepare();
        let mut shard = self.directory.lock(hash);
        // Behind commits that are not visible yet, every write of the shard waits its turn.
        shard.held.commits += 1;
        let overtakes = !shard.held.pending.is_empty() && !seeded(Bug::PendingOvertaken);
        if durability.waits_for_disk() || overtakes {
            let appended = self.append_pending(hash, &record, &prepared, guard, &mut shard)?;
            if seeded(Bug::VisibleBeforeDurable) {
                let mut found = None;
                let is_key = |place| self.is_key_to_replace(place, record.bucket, record.key, guard, &mut found);
                let old = shard.find(hash, guard, is_key)?;
                self.point(&mut shard, hash, &record, old, appended.place, found.as_ref(), guard)?;
            }
            return Ok(Told { value: Version(appended.position), after: appended.end });
        }
        self.prefetch_records(hash, guard);
        let appended = self.append_prepared(&record, &prepared, guard)?;
        let mut found = None;
        let old = shard
            .find(hash, guard, |place| self.is_key_to_replace(place, record.bucket, record.key, guard, &mut found))
            .map_err(|e| self.lost_track(&e))?;
        self.point(&mut shard, hash, &record, old, appended.place, found.as_ref(), guard)?;
        Ok(Told { value: Version(appended.position), after: 0 })
    }

    /// Space in the log. A failure to make some, other than for want of it on the disk, leaves the state of the disk unknown.
    #[inline]
    fn reserve<'g>(&'g self, bytes: u64, purpose: Purpose, guard: &'g Guard) -> Result<Space<'g>> {
        self.log.reserve(bytes, purpose, guard).inspect_err(|e| {
            if e.kind() != ErrorKind::NoSpace || seeded(Bug::FullDiskStops) {
                self.poison(e.clone());
            }
        })
    }

    /// Publishes records. Where that fails nobody knows whether the next open finds them.
    #[inline]
    fn publish(&self, space: Space<'_>) -> Result<()> {
        space.publish().map_err(|e| self.lost_track(&e))
    }

    /// A commit stands in the log, and could not be shown: the next open decides.
    #[cold]
    fn lost_track(&self, cause: &Error) -> Error {
        self.poison(cause.clone());
        indeterminate(cause)
    }

    #[inline]
    pub(crate) fn append(&self, record: &Record<'_>, guard: &Guard) -> Result<Appended> {
        self.append_prepared(record, &record.prepare(), guard)
    }

    #[inline]
    fn append_prepared(&self, record: &Record<'_>, prepared: &Prepared<'_>, guard: &Guard) -> Result<Appended> {
        let bytes = prepared.bytes();
        let mut space = self.reserve(bytes, record.purpose(), guard)?;
        let appended = space.appended(0, bytes);
        space.fill(0, prepared);
        space.segment.count(record.kind, bytes);
        self.publish(space)?;
        Ok(appended)
    }

    /// Appends a record that stays invisible until it is durable. It is queued before it is published, so that whoever
    /// syncs past it finds it in the queue.
    fn append_pending(
        &self,
        hash: u64,
        record: &Record<'_>,
        prepared: &Prepared<'_>,
        guard: &Guard,
        shard: &mut ShardGuard<'_>,
    ) -> Result<Appended> {
        let bytes = prepared.bytes();
        let mut group = self.lock_group();
        let mut space = self.reserve(bytes, record.purpose(), guard)?;
        let appended = space.appended(0, bytes);
        let write = PendingWrite { hash, place: appended.place, end: appended.end, superseded: false };
        let (start, end) = (appended.position, appended.end);
        group.queue.push_back(Queued { start, end, writes: Writes::One(write) });
        drop(group);
        shard.held.pending.push(write);
        space.fill(0, prepared);
        space.segment.count(record.kind, bytes);
        self.publish(space)?;
        Ok(appended)
    }

    /// Has the directory say what the record at `new` says; `gone` is the record at `old`, which dies.
    #[inline]
    #[allow(clippy::too_many_arguments, reason = "the state of one key, all of it at hand in both callers")]
    pub(crate) fn point(
        &self,
        shard: &mut ShardGuard<'_>,
        hash: u64,
        record: &Record<'_>,
        old: Option<Place>,
        new: Place,
        gone: Option<&Found<'_>>,
        guard: &Guard,
    ) -> Result<()> {
        if shard.is_tallied(hash, guard) {
            match (record.kind, gone) {
                (Kind::Set, gone) => shard.held.tallies.put(record, gone.map(|gone| gone.record.value.len())),
                (_, Some(gone)) => shard.held.tallies.take(&gone.record),
                (_, None) => {}
            }
        }
        match (record.kind, old) {
            (Kind::Set, _) => shard.set(hash, old, new, guard, &self.logged(guard))?,
            (_, Some(old)) => shard.remove(hash, old, guard),
            (_, None) => {}
        }
        if let Some(gone) = gone {
            gone.segment.sub_live(gone.bytes);
        }
        Ok(())
    }

    /// Points a key at the record at `place`, unless it already points at a later one.
    pub(crate) fn point_if_newer(
        &self,
        shard: &mut ShardGuard<'_>,
        hash: u64,
        place: Place,
        guard: &Guard,
    ) -> Result<()> {
        let new = self.log.record(place, guard)?;
        let mut found = None;
        let (bucket, key) = (new.record.bucket, new.record.key);
        let old = shard.find(hash, guard, |place| self.is_key_to_replace(place, bucket, key, guard, &mut found))?;
        if found.as_ref().is_some_and(|found| found.version() >= new.version()) {
            return Ok(());
        }
        self.point(shard, hash, &new.record, old, place, found.as_ref(), guard)
    }

    /// Applies several writes as one commit; of two to one key the later wins. What `after` says holds as for `write`.
    pub(crate) fn write_batch(&self, writes: &[Write<'_>], durability: Durability) -> Result<Told<u64>> {
        self.check_writable()?;
        let mut data = 0usize;
        for write in writes {
            check_key(write.key)?;
            check_value(write.value.unwrap_or_default())?;
            data = data.saturating_add(write.key.len() + write.value.map_or(0, <[u8]>::len));
        }
        if data > BATCH_BYTES_MAX {
            return Err(too_long("batch", data, BATCH_BYTES_MAX));
        }
        if writes.is_empty() {
            return Ok(Told { value: 0, after: 0 });
        }
        let mut hashes: Vec<u64> = writes.iter().map(|w| self.hash(w.bucket, w.key)).collect();
        let guard = &epoch::pin();
        let mut shards = self.directory.lock_all(&hashes);
        let mut counting = Vec::new();
        let mut writes = writes;
        let repeats = repeats(&hashes);
        if writes.iter().any(|write| write.value.is_none()) {
            let (void, after) = self.void_deletes(writes, &hashes, repeats, &mut shards, guard)?;
            if void.len() == writes.len() {
                return Ok(Told { value: 0, after });
            }
            if !void.is_empty() {
                let counts = |i: &usize| void.binary_search(i).is_err();
                counting.extend((0..writes.len()).filter(counts).map(|i| writes[i]));
                hashes = (0..writes.len()).filter(counts).map(|i| hashes[i]).collect();
                writes = &counting;
            }
        }
        let superseded = if repeats { superseded(writes) } else { Vec::new() };
        let members_bytes = writes.iter().map(|w| w.record().bytes()).sum();
        let header = Record { mark: self.log.take_mark(), ..Record::batch(writes.len() as u64, members_bytes) };
        let total = header.bytes() + members_bytes;

        shards.count_commit();
        let waits = durability.waits_for_disk() || shards.any_pending();
        let mut group = waits.then(|| self.lock_group());
        let frees = writes.iter().all(|write| write.value.is_none());
        let mut space = self.reserve(total, if frees { Purpose::Freeing } else { Purpose::Growth }, guard)?;
        let Appended { position: start, end, .. } = space.appended(0, total);
        let mut at = header.bytes();
        let places: Vec<PendingWrite> = writes
            .iter()
            .zip(&hashes)
            .enumerate()
            .map(|(i, (write, &hash))| {
                let bytes = write.record().bytes();
                let appended = space.appended(at, bytes);
                at += bytes;
                let superseded = superseded.get(i).is_some_and(|superseded| *superseded);
                PendingWrite { hash, place: appended.place, end, superseded }
            })
            .collect();
        if let Some(group) = &mut group {
            group.queue.push_back(Queued { start, end, writes: Writes::Batch(places.clone()) });
        }
        drop(group);
        let mut at = space.fill(0, &header.prepare());
        for write in writes {
            let record = write.record();
            let bytes = space.fill(at, &record.prepare());
            space.segment.count(record.kind, bytes);
            at += bytes;
        }
        self.publish(space)?;
        if waits {
            for write in &places {
                shards.of(write.hash).held.pending.push(*write);
            }
            return Ok(Told { value: end, after: end });
        }
        shards.begin();
        for (writes, places) in writes.chunks(PREFETCHED).zip(places.chunks(PREFETCHED)) {
            self.fetch(places.iter().map(|place| place.hash), guard);
            for (write, &PendingWrite { hash, place, superseded, .. }) in writes.iter().zip(places) {
                if superseded {
                    self.pass_over(place, guard)?;
                    continue;
                }
                let shard = shards.of(hash);
                let mut found = None;
                // Nothing newer can be found: the locks were taken before the space was.
                let old = shard
                    .find(hash, guard, |at| self.is_key_to_replace(at, write.bucket, write.key, guard, &mut found))
                    .map_err(|e| self.lost_track(&e))?;
                self.point(shard, hash, &write.record(), old, place, found.as_ref(), guard)?;
            }
        }
        Ok(Told { value: end, after: 0 })
    }

    /// A record that a later one of its own batch replaces is dead from the start: shown first and replaced then, it would be seen by
    /// readers of one key, who look at no instant but their own.
    #[cold]
    fn pass_over(&self, place: Place, guard: &Guard) -> Result<()> {
        let Found { segment, bytes, record, .. } = self.log.record(place, guard)?;
        if record.kind == Kind::Set {
            segment.sub_live(bytes);
        }
        Ok(())
    }

    /// Which writes of a batch delete a key that has no value when its turn comes, rising: nothing is written of them. And the
    /// log position up to which the log must be durable before that may be told.
    fn void_deletes(
        &self,
        writes: &[Write<'_>],
        hashes: &[u64],
        repeats: bool,
        shards: &mut ShardGuards<'_>,
        guard: &Guard,
    ) -> Result<(Vec<usize>, u64)> {
        // Whether a key has a value after the writes of the batch so far: where two of them may be to one key.
        let mut said = repeats.then(HashMap::new);
        let (mut void, mut after) = (Vec::new(), 0);
        for from in (0..writes.len()).step_by(PREFETCHED) {
            let to = (from + PREFETCHED).min(writes.len());
            self.fetch(hashes[from..to].iter().copied(), guard);
            for i in from..to {
                let Write { bucket, key, value } = writes[i];
                let earlier = said.as_mut().and_then(|said| said.insert((bucket, key), value.is_some()));
                if value.is_some() {
                    continue;
                }
                let there = match earlier {
                    Some(there) => there,
                    None => {
                        let (found, end) = self.find_newest(shards.of(hashes[i]), hashes[i], bucket, key, guard)?;
                        after = after.max(end);
                        found
                    }
                };
                if !there {
                    void.push(i);
                }
            }
        }
        Ok((void, after))
    }

    /// Whether a key has a value, counting writes that are not visible yet; and where the log ends behind the last of those.
    fn find_newest(
        &self,
        shard: &ShardGuard<'_>,
        hash: u64,
        bucket: u64,
        key: &[u8],
        guard: &Guard,
    ) -> Result<(bool, u64)> {
        let (mut found, mut newer) = (None, None);
        let pending = shard.newest_pending(hash, |place| self.is_key(place, bucket, key, guard, &mut newer))?;
        if newer.is_none() {
            shard.find(hash, guard, |place| self.is_key(place, bucket, key, guard, &mut found))?;
        }
        let newest = newer.or(found);
        let there = newest.is_some_and(|found| found.record.kind == Kind::Set && !found.is_expired());
        Ok((there, pending.map_or(0, |pending| pending.end)))
    }

    /// Waits until everything before log position `end` is durable and visible. 0 is at once.
    #[inline]
    pub(crate) fn wait(&self, end: u64) -> Result<()> {
        if end <= self.applied.load(Ordering::Acquire) || seeded(Bug::AckBeforeSync) {
            return Ok(());
        }
        self.wait_in_group(end)
    }

    #[cold]
    fn wait_in_group(&self, end: u64) -> Result<()> {
        let begun = Stopwatch::start();
        let waited = self.wait_or_lead(end);
        self.counters.wait_us.add_us(&begun);
        waited
    }

    fn wait_or_lead(&self, end: u64) -> Result<()> {
        loop {
            let mut group = self.lock_group();
            while group.leading && end > self.applied.load(Ordering::Acquire) && self.poison.get().is_none() {
                group = self.synced.wait(group).unwrap_or_else(PoisonError::into_inner);
            }
            if end <= self.applied.load(Ordering::Acquire) {
                return Ok(());
            }
            if let Some(cause) = self.poison.get() {
                if seeded(Bug::FailureTakenForSuccess) {
                    return Ok(());
                }
                return Err(indeterminate(cause));
            }
            group.leading = true;
            drop(group);
            self.lead(false);
        }
    }

    fn lock_group(&self) -> MutexGuard<'_, Group> {
        // Whoever panics with it has left it whole, and poisons the store if it was at work for it.
        self.group.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Syncs only the oldest closed segment, so that it can be sealed; `false` if a group is being led, which syncs it too.
    pub(crate) fn sync_closed(&self) -> Result<bool> {
        {
            let mut group = self.lock_group();
            if group.leading || self.poison.get().is_some() {
                return Ok(false);
            }
            group.leading = true;
        }
        self.lead(true);
        self.check_poison().map(|()| true)
    }

    /// Syncs the log, makes visible what became durable, wakes who waits for it. The caller has set `leading`.
    fn lead(&self, closed_only: bool) {
        if !closed_only {
            self.gather();
        }
        let begun = Stopwatch::start();
        let mut sync_us = 0;
        let result = self.log.sync(closed_only).and_then(|()| {
            self.counters.sync_us.add_us(&begun);
            sync_us = begun.us();
            self.apply()
        });
        let applied = result.unwrap_or_else(|cause| {
            self.poison(cause);
            0
        });
        let mut group = self.lock_group();
        group.leading = false;
        if !closed_only {
            (group.expected, group.sync_us) = (applied + group.queue.len(), sync_us);
        }
        let wakers = std::mem::take(&mut group.wakers);
        drop(group);
        self.synced.notify_all();
        if !seeded(Bug::WakersLost) {
            wakers.into_iter().for_each(Waker::wake);
        }
        self.watchers.wake();
    }

    /// Waits for as many commits as there were at the last sync, for half of the time that it took at most, and no longer where
    /// none comes.
    fn gather(&self) {
        let (expected, most) = {
            let group = self.lock_group();
            (group.expected, (group.sync_us / 2).min(GATHER_US_MAX))
        };
        if expected < 2 {
            return;
        }
        let begun = Stopwatch::start();
        let (mut came, mut last) = (0, 0);
        while came < expected {
            let (now, us) = (self.lock_group().queue.len(), begun.us());
            if now > came {
                (came, last) = (now, us);
            } else if us > most || us - last > most / 4 {
                break;
            }
            std::thread::yield_now();
        }
    }

    /// Makes queued commits visible, in log order, as far as the log is durable; how many.
    fn apply(&self) -> Result<usize> {
        let durable = self.log.durable();
        let guard = &epoch::pin();
        let mut applied = 0;
        loop {
            let next = {
                let mut group = self.lock_group();
                let next = group.queue.pop_front_if(|queued| queued.end <= durable);
                group.applying = next.as_ref().map(|queued| queued.start);
                next
            };
            applied += usize::from(next.is_some());
            match next.map(|queued| queued.writes) {
                Some(Writes::One(write)) => self.apply_one(&mut self.directory.lock(write.hash), &write, guard)?,
                Some(Writes::Batch(writes)) => {
                    let hashes: Vec<u64> = writes.iter().map(|w| w.hash).collect();
                    let mut shards = self.directory.lock_all(&hashes);
                    shards.begin();
                    for write in &writes {
                        self.apply_one(shards.of(write.hash), write, guard)?;
                    }
                }
                None => break,
            }
        }
        if applied > 0 {
            self.counters.group_commits.add(applied as u64);
        }
        self.applied.fetch_max(durable, Ordering::AcqRel);
        Ok(applied)
    }

    fn apply_one(&self, shard: &mut ShardGuard<'_>, write: &PendingWrite, guard: &Guard) -> Result<()> {
        if write.superseded {
            self.pass_over(write.place, guard)?;
        } else {
            self.point_if_newer(shard, write.hash, write.place, guard)?;
        }
        if let Some(at) = shard.held.pending.iter().position(|p| p.place == write.place) {
            shard.held.pending.remove(at);
        }
        Ok(())
    }

    /// Has `waker` woken after the next sync, unless `end` is durable already; whether it is.
    pub(crate) fn wake_when_durable(&self, end: u64, waker: &Waker) -> Result<bool> {
        let mut group = self.lock_group();
        if end <= self.applied.load(Ordering::Acquire) {
            return Ok(true);
        }
        self.check_poison()?;
        if !group.wakers.iter().any(|w| w.will_wake(waker)) {
            group.wakers.push(waker.clone());
        }
        Ok(false)
    }

    /// Whether a future waits for a sync that nobody leads.
    pub(crate) fn wants_sync(&self) -> bool {
        !self.lock_group().wakers.is_empty()
    }

    /// Below this log position everything is durable and visible.
    pub(crate) fn applied(&self) -> u64 {
        self.applied.load(Ordering::Acquire)
    }

    /// A log position between two commits: every commit before it is visible to readers, but for those whose writer still holds
    /// the lock of their shard; whatever was queued to wait for the disk lies behind it.
    pub(crate) fn shown(&self, guard: &Guard) -> u64 {
        // In this order: what is published by now was queued before, if it had to be.
        let end = self.log.end(guard);
        let group = self.lock_group();
        let waiting = group.queue.front().map(|queued| queued.start);
        [group.applying, waiting].into_iter().flatten().fold(end, u64::min)
    }

    /// A log position before which every write is visible, and the log said last of a key what readers see; `None` if
    /// writers are too busy to tell. `end` is a position up to which the log was published when it was read. What the
    /// sweep shows is argued in `list`.
    pub(crate) fn settled(&self, end: u64, guard: &Guard) -> Result<Option<u64>> {
        let mut settled = end;
        let all = self.directory.visit_pending(|pending| {
            let (segment, offset) = self.log.locate(pending.place, guard)?;
            settled = settled.min(segment.position(offset));
            Ok(())
        })?;
        Ok(all.then_some(settled))
    }

    /// Refuses all further writes: the state of the disk is unknown. Reads go on.
    pub(crate) fn poison(&self, cause: Error) {
        let _ = self.poison.set(cause);
        // Nothing more will come.
        self.watchers.wake();
    }

    /// Wakes whoever waits for a sync that will not come: the store is poisoned. Not under the group's lock.
    pub(crate) fn wake_waiting(&self) {
        let wakers = std::mem::take(&mut self.lock_group().wakers);
        self.synced.notify_all();
        wakers.into_iter().for_each(Waker::wake);
    }

    fn check_poison(&self) -> Result<()> {
        match self.poison.get() {
            None => Ok(()),
            Some(cause) => Err(cause.with_kind(
                ErrorKind::Poisoned,
                "an earlier write failed and the state of the disk is unknown; reopen the store",
            )),
        }
    }

    /// Whether writes are taken.
    #[inline]
    pub(crate) fn check_writable(&self) -> Result<()> {
        let is_poisoned = self.poison.get().is_some() && !seeded(Bug::WriteAfterPoison);
        if !is_poisoned && !self.read_only { Ok(()) } else { self.refuse() }
    }

    #[cold]
    fn refuse(&self) -> Result<()> {
        self.check_poison()?;
        Err(Error::new(ErrorKind::ReadOnly, "the store is open for reading only"))
    }
}
