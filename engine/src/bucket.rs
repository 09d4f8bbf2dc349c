//! A bucket: get, set, delete, exists. Listing is in `list`, arithmetic in `atomics`, many keys at once in `batch`.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_epoch as epoch;

use crate::catalogue::Entry;
use crate::commit::{Decision, Outcome, Told, check_key, check_value};
use crate::error::{Error, ErrorKind, Result};
use crate::io::{Stopwatch, pause, unix_ms};
use crate::log::record::Record;
use crate::log::{Found, RING, SPACE, WAKE};
use crate::options::Durability;
use crate::pending::Commit;
use crate::store::Store;
use crate::tally::BucketStats;
use crate::value::{Value, Version};

/// A named set of keys of a store. Cheap to clone, usable from any thread; all handles of one bucket see each other's
/// writes at once.
///
/// Writes return when they are as durable as the store's [`Durability`] says (or this handle's, see
/// [`Bucket::with_durability`]); the `start_` variants return a [`Commit`] to wait for, or to await. All calls on one key
/// are linearizable.
#[derive(Clone)]
pub struct Bucket {
    pub(crate) store: Store,
    pub(crate) entry: Arc<Entry>,
    pub(crate) durability: Durability,
}

impl Bucket {
    pub(crate) fn new(store: Store, entry: Arc<Entry>) -> Bucket {
        let durability = store.0.durability;
        Bucket { store, entry, durability }
    }

    /// The bucket's name.
    pub fn name(&self) -> &str {
        &self.entry.name
    }

    /// The store that the bucket is in.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The same bucket, with another durability for writes through this handle. A `Sync` write makes every earlier
    /// commit of the store durable too. `Interval` and `Ephemeral` are settings of the store: as a handle's they mean `Os`.
    #[must_use]
    pub fn with_durability(&self, durability: Durability) -> Bucket {
        Bucket { durability, ..self.clone() }
    }

    /// The value of a key, `None` if it has none. Copies nothing; never waits for a writer.
    ///
    /// # Errors
    /// `Invalid` if the bucket was dropped; `Corrupt` if the record is damaged.
    #[inline]
    pub fn get(&self, key: &[u8]) -> Result<Option<Value>> {
        self.entry.check()?;
        let (commits, mut found) = (&self.store.0.commits, None);
        let hash = commits.hash(self.entry.id, key);
        commits.directory.approach(hash);
        let guard = &epoch::pin();
        commits.look_up(hash, self.entry.id, key, guard, &mut found)?;
        Ok(found.as_ref().map(|found| Value::new(found, guard)))
    }

    /// Copies the value of a key into `into`, in place of what it held; `None`, and nothing in it, if there is none.
    ///
    /// # Errors
    /// As [`Bucket::get`].
    #[inline]
    pub fn get_into(&self, key: &[u8], into: &mut Vec<u8>) -> Result<Option<Version>> {
        self.entry.check()?;
        into.clear();
        let guard = &epoch::pin();
        let found = self.store.0.commits.get(self.entry.id, key, guard)?;
        Ok(found.map(|found| {
            into.extend_from_slice(found.record.value);
            Version(found.version())
        }))
    }

    /// Whether a key has a value.
    ///
    /// # Errors
    /// As [`Bucket::get`].
    #[inline]
    pub fn exists(&self, key: &[u8]) -> Result<bool> {
        self.entry.check()?;
        let commits = &self.store.0.commits;
        let hash = commits.hash(self.entry.id, key);
        commits.directory.approach(hash);
        let guard = &epoch::pin();
        Ok(commits.get_hashed(hash, self.entry.id, key, guard)?.is_some())
    }

    /// Sets a key; the version of this write.
    ///
    /// # Errors
    /// `Invalid` over a limit (key 64 KiB - 1, value 1 GiB) or on a dropped bucket; `ReadOnly`; `NoSpace` on a
    /// full disk; nothing is changed then. `Indeterminate` if the disk fails under it, `Poisoned` after that.
    #[inline]
    pub fn set(&self, key: &[u8], value: &[u8]) -> Result<Version> {
        self.finish(self.begin_set(key, value, None)?)
    }

    /// As [`Bucket::set`], without waiting for the disk.
    ///
    /// # Errors
    /// As [`Bucket::set`]; a failing disk shows in the [`Commit`].
    pub fn start_set(&self, key: &[u8], value: &[u8]) -> Result<Commit<Version>> {
        Ok(self.start(self.begin_set(key, value, None)?))
    }

    /// Sets a key that reads as absent from `expires_unix_ms` on (milliseconds since 1970, UTC). A time in the past makes
    /// it absent at once. A later plain [`Bucket::set`] of the key does not expire.
    ///
    /// # Errors
    /// As [`Bucket::set`].
    pub fn set_until(&self, key: &[u8], value: &[u8], expires_unix_ms: u64) -> Result<Version> {
        self.finish(self.begin_set(key, value, Some(expires_unix_ms))?)
    }

    /// As [`Bucket::set_until`], `ttl` from now on.
    ///
    /// # Errors
    /// As [`Bucket::set`].
    pub fn set_with_ttl(&self, key: &[u8], value: &[u8], ttl: std::time::Duration) -> Result<Version> {
        self.set_until(key, value, after(ttl))
    }

    /// As [`Bucket::set_with_ttl`], without waiting for the disk.
    ///
    /// # Errors
    /// As [`Bucket::start_set`].
    pub fn start_set_with_ttl(&self, key: &[u8], value: &[u8], ttl: std::time::Duration) -> Result<Commit<Version>> {
        Ok(self.start(self.begin_set(key, value, Some(after(ttl)))?))
    }

    #[inline]
    fn begin_set(&self, key: &[u8], value: &[u8], expires: Option<u64>) -> Result<Told<Version>> {
        self.entry.check()?;
        check_key(key)?;
        check_value(value)?;
        let record = Record { expires, ..Record::set(self.entry.id, key, value) };
        self.store.0.commits.set(record, self.durability).inspect_err(|e| self.store.see_to(e))
    }

    /// Deletes a key; `false` if it had no value, and then nothing is written. Where the disk is full it waits for the cleaner
    /// to make space, for some seconds at most.
    ///
    /// # Errors
    /// As [`Bucket::set`].
    #[inline]
    pub fn delete(&self, key: &[u8]) -> Result<bool> {
        self.finish(self.store.free(|| self.begin_delete(key))?)
    }

    /// As [`Bucket::delete`], without waiting for the disk, and without waiting for space.
    ///
    /// # Errors
    /// As [`Bucket::start_set`]; `NoSpace` also where the cleaner is at work on it: the same delete may be made a moment later.
    pub fn start_delete(&self, key: &[u8]) -> Result<Commit<bool>> {
        Ok(self.start(self.begin_delete(key)?))
    }

    fn begin_delete(&self, key: &[u8]) -> Result<Told<bool>> {
        let told = self.write(key, |found| match found {
            None => Ok(Decision::Keep(())),
            Some(_) => Ok(Decision::Write(Record::delete(self.entry.id, key))),
        })?;
        Ok(told.map(|outcome| matches!(outcome, Outcome::Written(_))))
    }

    /// Shows `look` the value that the next write of `key` will find: the newest one, where [`Bucket::get`] gives the newest that is durable.
    /// For a caller that accounts for what its writes replace; what is not durable yet is to be told to nobody. Holds up other
    /// writers while `look` runs, so `look` must not call the store.
    ///
    /// # Errors
    /// As [`Bucket::delete`].
    pub fn look_newest(&self, key: &[u8], look: impl FnOnce(Option<&[u8]>)) -> Result<()> {
        self.write(key, |found| {
            look(found.map(|found| found.record.value));
            Ok(Decision::Keep(()))
        })?;
        Ok(())
    }

    /// How much the bucket holds: exact, but for what is written meanwhile. The first call after an open, for whatever bucket,
    /// counts the keys of the whole store: it looks at each record once, and holds up a writer for as long as some thousand
    /// looks take. From then on all calls are quick, and writes keep count.
    ///
    /// # Errors
    /// `Invalid` if the bucket was dropped; `Io` if a record that is to be counted cannot be read.
    pub fn stats(&self) -> Result<BucketStats> {
        self.entry.check()?;
        self.store.0.commits.tally(self.entry.id)
    }

    /// One write to this bucket; see `Commits::write`.
    #[inline]
    pub(crate) fn write<'v, T>(
        &self,
        key: &[u8],
        decide: impl FnOnce(Option<&Found<'_>>) -> Result<Decision<'v, T>>,
    ) -> Result<Told<Outcome<T>>> {
        self.entry.check()?;
        check_key(key)?;
        let written = self.store.0.commits.write(self.entry.id, key, self.durability, decide);
        written.inspect_err(|e| self.store.see_to(e))
    }

    /// Waits as this handle's durability asks.
    #[inline]
    pub(crate) fn finish<T>(&self, told: Told<T>) -> Result<T> {
        self.store.nudge(told.after == 0);
        self.store.0.commits.wait(told.after)?;
        Ok(told.value)
    }

    pub(crate) fn start<T>(&self, told: Told<T>) -> Commit<T> {
        self.store.nudge(told.after == 0);
        Commit::new(self.store.clone(), told)
    }
}

/// When a life of `ttl` from now on ends, in milliseconds since 1970.
pub(crate) fn after(ttl: std::time::Duration) -> u64 {
    unix_ms().saturating_add(u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX))
}

/// How long a delete waits for the cleaner where the disk is full, and how long between two looks.
const FREE_WAIT: Duration = Duration::from_secs(5);
const FREE_LOOK: Duration = Duration::from_millis(2);

impl Store {
    /// After a write that failed: where there was no space for it, the cleaner is asked for some.
    #[cold]
    pub(crate) fn see_to(&self, e: &Error) {
        if e.kind() == ErrorKind::NoSpace {
            self.0.commits.log.set_hopeless(false);
            self.0.bells.work.ring();
        }
    }

    /// Makes a write that frees space. Where the disk is full the calling thread waits, a while, until the cleaner has made some for it:
    /// not for calls that are only to be started.
    #[inline]
    pub(crate) fn free<T>(&self, attempt: impl Fn() -> Result<T>) -> Result<T> {
        match attempt() {
            Err(e) if e.kind() == ErrorKind::NoSpace => self.free_when_full(e, attempt),
            done => done,
        }
    }

    #[cold]
    fn free_when_full<T>(&self, mut full: Error, attempt: impl Fn() -> Result<T>) -> Result<T> {
        let begun = Stopwatch::start();
        // What the cleaner said first may be of a time before.
        let mut hopeless = 0;
        let done = loop {
            if !self.has_worker() || hopeless == 2 || Duration::from_micros(begun.us()) >= FREE_WAIT {
                break Err(full);
            }
            self.see_to(&full);
            pause(FREE_LOOK);
            hopeless += u32::from(self.0.commits.log.is_hopeless());
            match attempt() {
                Err(e) if e.kind() == ErrorKind::NoSpace => full = e,
                done => break done,
            }
        };
        self.0.commits.counters.pause_us.add_us(&begun);
        done
    }

    /// After a write, which is `visible` by now or will be behind a sync: wakes the background thread if there is work for it,
    /// and pauses if it is being outrun; wakes those who watch if they sleep.
    #[inline]
    pub(crate) fn nudge(&self, visible: bool) {
        let asked = self.0.commits.log.take_asked(visible);
        if asked != 0 {
            self.do_asked(asked);
        }
    }

    #[cold]
    fn do_asked(&self, asked: u8) {
        if asked & WAKE != 0 {
            self.0.commits.watchers.wake();
        }
        if asked & SPACE != 0 {
            self.0.bells.space.ring();
        }
        if asked & RING == 0 {
            return;
        }
        self.0.bells.work.ring();
        let time = self.0.commits.log.brake();
        if !time.is_zero() {
            let begun = Stopwatch::start();
            pause(time);
            self.0.commits.counters.pause_us.add_us(&begun);
        }
    }
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bucket")
            .field("name", &self.name())
            .field("durability", &self.durability)
            .finish_non_exhaustive()
    }
}
