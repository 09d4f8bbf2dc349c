//! Quotas: how many bytes and keys a bucket may hold, or a tenant over all its buckets.
//!
//! Flow: configuration or embedder -> [`Account`]s -> [`Metered`], a bucket over the bucket, that all grants of it share -> the back end.
//! A write of a key: its stripe is locked; what the key holds is looked at; what the write adds is reserved in every
//! account, or the call ends with `quota`; the back end writes; what the write took away is given back. A write that fails
//! gives back what it reserved; one whose outcome is unknown keeps it.
//! Invariants: 1. No sum of what is held ever exceeds an account, not for an instant, however many write; except where it
//! did when the account was made, and then nothing grows. 2. A write that holds no more than before is never refused. 3. What is counted is what is
//! held: keys and their values, in bytes. Source of the counts: the back end's own, or a pass over the bucket, when it is wrapped; then every
//! write.
//! Lock order: stripes by number, then an account. An account is held for an addition.
//!
//! A write that is started holds nothing while its disk syncs: the engine has it in its place already, so its stripe is free and
//! the next write of the key looks at what this one leaves. A back end that gives no such promise is waited for.
//!
//! Only writes through here are counted: a process that also writes to the bucket itself must wrap it first. A key that
//! expires stays counted. Where the back end keeps count, that is mended before a write is refused; elsewhere when the bucket is wrapped
//! anew.

use crate::backend::{Guard, Key, Later, LocalBucket, Observed, Page, PageBounds, Pair, Reply, SetOptions, Swap};
use crate::{Code, Error};
use bytes::Bytes;
use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::BuildHasher;
use std::ops::{Add, Sub};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Writers of different keys rarely wait for each other with so many; a batch takes those of its keys, in order.
const STRIPES: usize = 64;

/// Between two recounts at least: a guest at its bound may try again and again.
const RECOUNT_PAUSE: Duration = Duration::from_millis(10);

/// What is held: bytes of keys and values, and keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of keys and their values.
    pub bytes: u64,
    /// Keys.
    pub keys: u64,
}

impl Usage {
    /// No bound: for an account that only counts, or bounds the other of the two.
    pub const UNBOUNDED: Usage = Usage { bytes: u64::MAX, keys: u64::MAX };

    fn of(key: &str, value: Option<usize>) -> Usage {
        value.map_or(Usage::default(), |value| Usage { bytes: key.len() as u64 + value as u64, keys: 1 })
    }

    /// What `self` has over `other`, bytes and keys each for itself.
    fn beyond(self, other: Usage) -> Usage {
        Usage { bytes: self.bytes.saturating_sub(other.bytes), keys: self.keys.saturating_sub(other.keys) }
    }
}

impl Add for Usage {
    type Output = Usage;
    fn add(self, more: Usage) -> Usage {
        Usage { bytes: self.bytes.saturating_add(more.bytes), keys: self.keys.saturating_add(more.keys) }
    }
}

impl Sub for Usage {
    type Output = Usage;
    fn sub(self, less: Usage) -> Usage {
        self.beyond(less)
    }
}

/// A bound on what is held, and what is. Cheap to clone: clones are one account.
#[derive(Clone)]
pub struct Account(Arc<Balance>);

struct Balance {
    max: Usage,
    used: Mutex<Usage>,
}

impl fmt::Debug for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Account").field("max", &self.0.max).field("used", &self.used()).finish()
    }
}

impl Account {
    /// An account that holds nothing yet, and may hold `max`.
    pub fn new(max: Usage) -> Account {
        Account(Arc::new(Balance { max, used: Mutex::default() }))
    }

    /// What may be held.
    pub fn max(&self) -> Usage {
        self.0.max
    }

    /// What is held, with what writes under way have reserved.
    pub fn used(&self) -> Usage {
        *self.lock()
    }

    fn lock(&self) -> MutexGuard<'_, Usage> {
        // Every change is one assignment: a panic leaves a sum behind that was whole.
        self.0.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A dimension that does not grow is not asked about: an account that is over its bound lets go all the same.
    fn reserve(&self, growth: Usage) -> bool {
        let mut used = self.lock();
        let then = *used + growth;
        let fits =
            (growth.bytes == 0 || then.bytes <= self.0.max.bytes) && (growth.keys == 0 || then.keys <= self.0.max.keys);
        if fits {
            *used = then;
        }
        fits
    }

    fn count(&self, held: Usage) {
        let mut used = self.lock();
        *used = *used + held;
    }

    fn give_back(&self, less: Usage) {
        let mut used = self.lock();
        *used = *used - less;
    }
}

/// Room for one write in all accounts of its bucket. Dropped, it is given back: [`Reservation::settle`] says otherwise.
struct Reservation<'a> {
    accounts: &'a [Account],
    growth: Usage,
}

impl<'a> Reservation<'a> {
    fn new(accounts: &'a [Account], growth: Usage) -> Result<Self, Error> {
        for (at, account) in accounts.iter().enumerate() {
            if !account.reserve(growth) {
                drop(Reservation { accounts: &accounts[..at], growth });
                return Err(Error::new(Code::Quota));
            }
        }
        Ok(Reservation { accounts, growth })
    }

    /// The write is done, and `less` is held no more.
    fn settle(mut self, less: Usage) {
        self.growth = less;
    }

    /// Nobody knows whether the write is done: what it may hold stays reserved.
    fn keep(mut self) {
        self.growth = Usage::default();
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if self.growth != Usage::default() {
            self.accounts.iter().for_each(|account| account.give_back(self.growth));
        }
    }
}

/// A bucket that holds no more than its accounts allow. One for each bucket: grants share it.
pub struct Metered {
    inner: Arc<dyn LocalBucket>,
    /// The first counts this bucket alone, and has no bound.
    accounts: Box<[Account]>,
    stripes: [Mutex<()>; STRIPES],
    hasher: RandomState,
    recounted: Mutex<Option<Instant>>,
    /// Started writes that stand and were not seen durable: the back end's count may be without them.
    unseen: Arc<AtomicUsize>,
}

impl fmt::Debug for Metered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metered").field("accounts", &&self.accounts[1..]).finish_non_exhaustive()
    }
}

/// A write that has room: what its keys hold before and after it, and what is reserved for it.
struct Room<'a> {
    before: Usage,
    after: Usage,
    reservation: Reservation<'a>,
}

impl Room<'_> {
    fn settle<R>(self, answer: &Result<R, Error>, wrote: impl FnOnce(&R) -> bool) {
        match answer {
            Ok(answer) if wrote(answer) => self.reservation.settle(self.before.beyond(self.after)),
            Err(error) if error.code() == Code::Indeterminate => self.reservation.keep(),
            Ok(_) | Err(_) => drop(self.reservation),
        }
    }

    /// The keys hold `now`, whatever the write will be told.
    fn settle_at(self, now: Usage) {
        let counted = self.before + self.after.beyond(self.before);
        self.reservation.settle(counted.beyond(now));
    }
}

impl Metered {
    /// Counts what `bucket` holds, adds it to the accounts, and watches over it from here on. Asks the back end for its count, or reads
    /// the whole bucket once.
    ///
    /// # Errors
    /// The back end's.
    pub fn new(bucket: Arc<dyn LocalBucket>, accounts: impl Into<Box<[Account]>>) -> Result<Metered, Error> {
        let held = match bucket.usage()? {
            Some(held) => held,
            None => count(&*bucket)?,
        };
        let (own, given): (Account, Box<[Account]>) = (Account::new(Usage::UNBOUNDED), accounts.into());
        let accounts: Box<[Account]> = [own].into_iter().chain(given).collect();
        accounts.iter().for_each(|account| account.count(held));
        let stripes = std::array::from_fn(|_| Mutex::new(()));
        let (hasher, recounted, unseen) = (RandomState::new(), Mutex::default(), Arc::default());
        Ok(Metered { inner: bucket, accounts, stripes, hasher, recounted, unseen })
    }

    fn stripe(&self, key: &str) -> usize {
        self.hasher.hash_one(key) as usize % STRIPES
    }

    fn lock(&self, stripe: usize) -> MutexGuard<'_, ()> {
        // It guards no data of its own.
        self.stripes[stripe].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the next write of `key` finds, and what `after` makes of it.
    fn around(&self, key: &str, after: impl Fn(Option<&[u8]>) -> Option<usize>) -> Result<(Usage, Usage), Error> {
        let mut around = Default::default();
        self.inner.look_newest(key, &mut |old| {
            around = (Usage::of(key, old.map(<[u8]>::len)), Usage::of(key, after(old)));
        })?;
        Ok(around)
    }

    /// Room for a write between `before` and `after` it, which are asked for again after a recount. What locks the write's keys
    /// comes with it.
    fn room<H>(
        &self,
        lock: impl Fn() -> H,
        around: impl Fn() -> Result<(Usage, Usage), Error>,
    ) -> Result<(H, Room<'_>), Error> {
        let mut recounted = false;
        loop {
            let held = lock();
            let (before, after) = around()?;
            match Reservation::new(&self.accounts, after.beyond(before)) {
                Ok(reservation) => return Ok((held, Room { before, after, reservation })),
                Err(full) if recounted => return Err(full),
                Err(full) => {
                    drop(held);
                    recounted = self.recount();
                    if !recounted {
                        return Err(full);
                    }
                }
            }
        }
    }

    /// Takes the back end's count in place of ours, which has keys in it that have expired since. `false` if nothing was done: it keeps
    /// none, it may not have all in it, or it was asked a moment ago.
    fn recount(&self) -> bool {
        let mut recounted = self.recounted.lock().unwrap_or_else(PoisonError::into_inner);
        if recounted.is_some_and(|at| at.elapsed() < RECOUNT_PAUSE) {
            return false;
        }
        // With all stripes held no write is between its reservation and its end.
        let _held: Vec<_> = (0..STRIPES).map(|stripe| self.lock(stripe)).collect();
        if self.unseen.load(Ordering::Acquire) > 0 {
            return false;
        }
        *recounted = Some(Instant::now());
        let Ok(Some(held)) = self.inner.usage() else { return false };
        let counted = self.accounts[0].used();
        for account in &self.accounts {
            account.give_back(counted.beyond(held));
            account.count(held.beyond(counted));
        }
        true
    }

    /// One write of one key: `after` is what the key holds if `write` writes, as its answer tells.
    fn write<R>(
        &self,
        key: &str,
        after: impl Fn(Option<&[u8]>) -> Option<usize>,
        write: impl FnOnce() -> Result<R, Error>,
        wrote: impl FnOnce(&R) -> bool,
    ) -> Result<R, Error> {
        let (_held, room) = self.room(|| self.lock(self.stripe(key)), || self.around(key, &after))?;
        let answer = write();
        room.settle(&answer, wrote);
        answer
    }

    /// As `write`, without waiting where the back end lets us.
    fn start<R: 'static>(
        &self,
        key: &str,
        after: impl Fn(Option<&[u8]>) -> Option<usize>,
        start: impl FnOnce() -> Reply<R>,
        wrote: impl FnOnce(&R) -> bool,
    ) -> Reply<R> {
        let (_held, room) = match self.room(|| self.lock(self.stripe(key)), || self.around(key, &after)) {
            Ok(room) => room,
            Err(error) => return Reply::Now(Err(error)),
        };
        match start() {
            Reply::Now(answer) => {
                room.settle(&answer, wrote);
                Reply::Now(answer)
            }
            Reply::Later(answer) => {
                // It stands, or it has lost a race; the key tells which.
                match self.around(key, |_| None) {
                    Ok((now, _)) => room.settle_at(now),
                    Err(_) => room.reservation.keep(),
                }
                self.unseen_until(answer)
            }
        }
    }

    /// An answer that is on its way, for a write that stands. Dropped before its end it stays unseen.
    fn unseen_until<R: 'static>(&self, answer: Later<R>) -> Reply<R> {
        let unseen = self.unseen.clone();
        unseen.fetch_add(1, Ordering::AcqRel);
        Reply::later(async move {
            let answer = answer.await;
            if answer.is_ok() {
                unseen.fetch_sub(1, Ordering::AcqRel);
            }
            answer
        })
    }

    /// Room for many keys in one call, and their stripes; of equal keys the last counts.
    fn room_for_many<'k>(
        &self,
        writes: impl Iterator<Item = (&'k Key<'k>, Option<usize>)>,
    ) -> Result<(Vec<MutexGuard<'_, ()>>, Room<'_>), Error> {
        let last: HashMap<&str, Option<usize>> = writes.map(|(key, value)| (key.as_ref(), value)).collect();
        let mut stripes: Vec<usize> = last.keys().map(|key| self.stripe(key)).collect();
        stripes.sort_unstable();
        stripes.dedup();
        let after = last.iter().map(|(key, value)| Usage::of(key, *value)).fold(Usage::default(), Add::add);
        let before = || -> Result<Usage, Error> {
            if self.inner.stands_when_started() {
                return last.keys().try_fold(Usage::default(), |sum, key| Ok(sum + self.around(key, |_| None)?.0));
            }
            let keys: Vec<Key<'_>> = last.keys().map(|key| Key::from(*key)).collect();
            let found = self.inner.get_many(&keys)?;
            let held = |(key, value): &Pair| Usage::of(key, Some(value.len()));
            Ok(found.iter().flatten().map(held).fold(Usage::default(), Add::add))
        };
        self.room(|| stripes.iter().map(|stripe| self.lock(*stripe)).collect(), || Ok((before()?, after)))
    }

    fn write_many<'k>(
        &self,
        writes: impl Iterator<Item = (&'k Key<'k>, Option<usize>)>,
        write: impl FnOnce() -> Result<(), Error>,
    ) -> Result<(), Error> {
        let (_held, room) = self.room_for_many(writes)?;
        let answer = write();
        room.settle(&answer, |()| true);
        answer
    }

    fn start_many<'k>(
        &self,
        writes: impl Iterator<Item = (&'k Key<'k>, Option<usize>)>,
        start: impl FnOnce() -> Reply<()>,
    ) -> Reply<()> {
        let (_held, room) = match self.room_for_many(writes) {
            Ok(room) => room,
            Err(error) => return Reply::Now(Err(error)),
        };
        match start() {
            Reply::Now(answer) => {
                room.settle(&answer, |()| true);
                Reply::Now(answer)
            }
            Reply::Later(answer) => {
                room.settle(&Ok(()), |()| true);
                self.unseen_until(answer)
            }
        }
    }
}

/// What the bucket holds: a listing, and of each page the lengths of its values.
fn count(bucket: &dyn LocalBucket) -> Result<Usage, Error> {
    const PAGE: PageBounds = PageBounds { keys_max: 1_000, bytes_max: 1 << 20, entries_max: 50_000 };
    let mut held = Usage::default();
    let mut after: Option<Bytes> = None;
    loop {
        let page = bucket.list(after.as_deref(), PAGE)?;
        let keys: Vec<Key<'_>> = page.keys.iter().map(|key| Key::from(&**key)).collect();
        if !keys.is_empty() {
            let pairs = bucket.get_many(&keys)?;
            let lengths = pairs.iter().flatten().map(|(key, value)| Usage::of(key, Some(value.len())));
            held = lengths.fold(held, Add::add);
        }
        after = page.next;
        if after.is_none() {
            return Ok(held);
        }
    }
}

/// Bytes of the number that an increment will write; of one that will fail, those that are there.
fn sum_bytes(old: Option<&[u8]>, delta: i64) -> Option<usize> {
    let Some(old) = old else { return Some(delta.to_string().len()) };
    let number = std::str::from_utf8(old).ok().and_then(|text| text.parse::<i64>().ok());
    let sum = number.and_then(|number| number.checked_add(delta));
    Some(sum.map_or(old.len(), |sum| sum.to_string().len()))
}

impl LocalBucket for Metered {
    fn identity(&self) -> &str {
        self.inner.identity()
    }

    fn waits(&self) -> bool {
        self.inner.waits()
    }

    fn watchable(&self) -> Option<kvasi::Bucket> {
        self.inner.watchable()
    }

    #[cfg(feature = "remote")]
    fn watched(&self) -> Option<crate::backend::changes::Watched> {
        self.inner.watched()
    }

    fn usage(&self) -> Result<Option<Usage>, Error> {
        self.inner.usage()
    }

    fn stands_when_started(&self) -> bool {
        self.inner.stands_when_started()
    }

    fn look_newest(&self, key: &str, look: &mut dyn FnMut(Option<&[u8]>)) -> Result<(), Error> {
        self.inner.look_newest(key, look)
    }

    fn get(&self, key: &str) -> Result<Option<Bytes>, Error> {
        self.inner.get(key)
    }

    fn exists(&self, key: &str) -> Result<bool, Error> {
        self.inner.exists(key)
    }

    fn set(&self, key: &str, value: &[u8]) -> Result<(), Error> {
        self.write(key, |_| Some(value.len()), || self.inner.set(key, value), |()| true)
    }

    fn set_with(&self, key: &str, value: &[u8], options: SetOptions) -> Result<bool, Error> {
        self.write(key, |_| Some(value.len()), || self.inner.set_with(key, value, options), |written| *written)
    }

    fn delete(&self, key: &str) -> Result<(), Error> {
        self.write(key, |_| None, || self.inner.delete(key), |()| true)
    }

    fn list(&self, after: Option<&[u8]>, bounds: PageBounds) -> Result<Page, Error> {
        self.inner.list(after, bounds)
    }

    fn list_prefix(&self, prefix: &str, after: Option<&[u8]>, bounds: PageBounds) -> Result<Page, Error> {
        self.inner.list_prefix(prefix, after, bounds)
    }

    fn increment(&self, key: &str, delta: i64) -> Result<i64, Error> {
        self.write(key, |old| sum_bytes(old, delta), || self.inner.increment(key, delta), |_| true)
    }

    fn increment_unsigned(&self, key: &str, delta: i64) -> Result<i64, Error> {
        self.write(key, |old| sum_bytes(old, delta), || self.inner.increment_unsigned(key, delta), |_| true)
    }

    fn observe(&self, key: &str) -> Result<Observed, Error> {
        self.inner.observe(key)
    }

    fn swap(&self, key: &str, guard: &Guard, value: &[u8]) -> Result<Swap, Error> {
        let done = |swap: &Swap| matches!(swap, Swap::Done);
        self.write(key, |_| Some(value.len()), || self.inner.swap(key, guard, value), done)
    }

    fn get_many(&self, keys: &[Key<'_>]) -> Result<Vec<Option<Pair>>, Error> {
        self.inner.get_many(keys)
    }

    fn set_many(&self, pairs: &[(Key<'_>, &[u8])]) -> Result<(), Error> {
        let writes = pairs.iter().map(|(key, value)| (key, Some(value.len())));
        self.write_many(writes, || self.inner.set_many(pairs))
    }

    fn delete_many(&self, keys: &[Key<'_>]) -> Result<(), Error> {
        self.write_many(keys.iter().map(|key| (key, None)), || self.inner.delete_many(keys))
    }

    // Reads do not wait where the bucket does not; neither do writes that stand when they are started.

    fn start_get(&self, key: &str) -> Reply<Option<Bytes>> {
        self.inner.start_get(key)
    }

    fn start_exists(&self, key: &str) -> Reply<bool> {
        self.inner.start_exists(key)
    }

    fn start_set(&self, key: &str, value: &[u8]) -> Reply<()> {
        if !self.stands_when_started() {
            return Reply::Now(self.set(key, value));
        }
        self.start(key, |_| Some(value.len()), || self.inner.start_set(key, value), |()| true)
    }

    fn start_set_with(&self, key: &str, value: &[u8], options: SetOptions) -> Reply<bool> {
        if !self.stands_when_started() {
            return Reply::Now(self.set_with(key, value, options));
        }
        let start = || self.inner.start_set_with(key, value, options);
        self.start(key, |_| Some(value.len()), start, |written| *written)
    }

    fn start_delete(&self, key: &str) -> Reply<()> {
        if !self.stands_when_started() {
            return Reply::Now(self.delete(key));
        }
        self.start(key, |_| None, || self.inner.start_delete(key), |()| true)
    }

    fn start_increment(&self, key: &str, delta: i64) -> Reply<i64> {
        if !self.stands_when_started() {
            return Reply::Now(self.increment(key, delta));
        }
        self.start(key, |old| sum_bytes(old, delta), || self.inner.start_increment(key, delta), |_| true)
    }

    fn start_increment_unsigned(&self, key: &str, delta: i64) -> Reply<i64> {
        if !self.stands_when_started() {
            return Reply::Now(self.increment_unsigned(key, delta));
        }
        self.start(key, |old| sum_bytes(old, delta), || self.inner.start_increment_unsigned(key, delta), |_| true)
    }

    fn start_swap(&self, key: &str, guard: &Guard, value: &[u8]) -> Reply<Swap> {
        if !self.stands_when_started() {
            return Reply::Now(self.swap(key, guard, value));
        }
        let done = |swap: &Swap| matches!(swap, Swap::Done);
        self.start(key, |_| Some(value.len()), || self.inner.start_swap(key, guard, value), done)
    }

    fn start_set_many(&self, pairs: &[(Key<'_>, &[u8])]) -> Reply<()> {
        if !self.stands_when_started() {
            return Reply::Now(self.set_many(pairs));
        }
        let writes = pairs.iter().map(|(key, value)| (key, Some(value.len())));
        self.start_many(writes, || self.inner.start_set_many(pairs))
    }

    fn start_delete_many(&self, keys: &[Key<'_>]) -> Reply<()> {
        if !self.stands_when_started() {
            return Reply::Now(self.delete_many(keys));
        }
        self.start_many(keys.iter().map(|key| (key, None)), || self.inner.start_delete_many(keys))
    }

    fn start_list(&self, prefix: &str, after: Option<&[u8]>, bounds: PageBounds) -> Reply<Page> {
        self.inner.start_list(prefix, after, bounds)
    }

    fn start_observe(&self, key: &str) -> Reply<Observed> {
        self.inner.start_observe(key)
    }

    fn start_get_many(&self, keys: &[Key<'_>]) -> Reply<Vec<Option<Pair>>> {
        self.inner.start_get_many(keys)
    }
}

#[cfg(test)]
#[path = "quota/tests.rs"]
mod tests;
