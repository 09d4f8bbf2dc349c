//! Quotas: how many bytes and keys a bucket may hold, or a tenant over all its buckets.
//!
//! Flow: configuration or embedder -> [`Account`]s -> [`Metered`], a bucket over the bucket, that all grants of it share -> the back end.
//! A write of a key: its stripe is locked; what the key holds is looked at; what the write adds is reserved in every
//! account, or the call ends with `quota`; the back end writes; what the write took away is given back. A write that fails
//! gives back what it reserved; one whose outcome is unknown keeps it.
//! Invariants: 1. No sum of what is held ever exceeds an account, not for an instant, however many write; except where it
//! did when the account was made, and then nothing grows. 2. A write that holds no more than before is never refused. 3. What is counted is what is
//! held: keys and their values, in bytes. Source of the counts: a pass over the bucket when it is wrapped, then every write.
//! Lock order: stripes by number, then an account. An account is held for an addition.
//!
//! Only writes through here are counted: a process that also writes to the bucket itself must wrap it first. A key that
//! expires is counted until it is written again or the bucket is wrapped anew.

use crate::backend::{Guard, Key, LocalBucket, Observed, Page, PageBounds, Pair, Reply, SetOptions, Swap};
use crate::{Code, Error};
use bytes::Bytes;
use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::BuildHasher;
use std::ops::{Add, Sub};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Writers of different keys rarely wait for each other with so many; a batch takes those of its keys, in order.
const STRIPES: usize = 64;

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
    accounts: Box<[Account]>,
    stripes: [Mutex<()>; STRIPES],
    hasher: RandomState,
}

impl fmt::Debug for Metered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metered").field("accounts", &self.accounts).finish_non_exhaustive()
    }
}

impl Metered {
    /// Counts what `bucket` holds, adds it to the accounts, and watches over it from here on. Reads the whole bucket once.
    ///
    /// # Errors
    /// The back end's.
    pub fn new(bucket: Arc<dyn LocalBucket>, accounts: impl Into<Box<[Account]>>) -> Result<Metered, Error> {
        let held = count(&*bucket)?;
        let accounts = accounts.into();
        accounts.iter().for_each(|account| account.count(held));
        let stripes = std::array::from_fn(|_| Mutex::new(()));
        Ok(Metered { inner: bucket, accounts, stripes, hasher: RandomState::new() })
    }

    fn stripe(&self, key: &str) -> usize {
        self.hasher.hash_one(key) as usize % STRIPES
    }

    fn lock(&self, stripe: usize) -> MutexGuard<'_, ()> {
        // It guards no data of its own.
        self.stripes[stripe].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One write of one key: `after` is what the key holds if `write` writes, as its answer tells.
    fn write<R>(
        &self,
        key: &str,
        after: impl FnOnce(Option<&Bytes>) -> Option<usize>,
        write: impl FnOnce() -> Result<R, Error>,
        wrote: impl FnOnce(&R) -> bool,
    ) -> Result<R, Error> {
        let _held = self.lock(self.stripe(key));
        let old = self.inner.get(key)?;
        let before = Usage::of(key, old.as_ref().map(Bytes::len));
        let after = Usage::of(key, after(old.as_ref()));
        drop(old);
        self.settle(before, after, write, wrote)
    }

    fn settle<R>(
        &self,
        before: Usage,
        after: Usage,
        write: impl FnOnce() -> Result<R, Error>,
        wrote: impl FnOnce(&R) -> bool,
    ) -> Result<R, Error> {
        let reservation = Reservation::new(&self.accounts, after.beyond(before))?;
        let answer = write();
        match &answer {
            Ok(answer) if wrote(answer) => reservation.settle(before.beyond(after)),
            Err(error) if error.code() == Code::Indeterminate => reservation.keep(),
            Ok(_) | Err(_) => drop(reservation),
        }
        answer
    }

    /// As `write`, for many keys in one call; of equal keys the last counts.
    fn write_many<'k>(
        &self,
        writes: impl Iterator<Item = (&'k Key<'k>, Option<usize>)>,
        write: impl FnOnce() -> Result<(), Error>,
    ) -> Result<(), Error> {
        let last: HashMap<&str, Option<usize>> = writes.map(|(key, value)| (key.as_ref(), value)).collect();
        let mut stripes: Vec<usize> = last.keys().map(|key| self.stripe(key)).collect();
        stripes.sort_unstable();
        stripes.dedup();
        let _held: Vec<_> = stripes.into_iter().map(|stripe| self.lock(stripe)).collect();
        let keys: Vec<Key<'_>> = last.keys().map(|key| Key::from(*key)).collect();
        let found = self.inner.get_many(&keys)?;
        let held = |(key, value): &Pair| Usage::of(key, Some(value.len()));
        let before = found.iter().flatten().map(held).fold(Usage::default(), Add::add);
        drop(found);
        let after = last.iter().map(|(key, value)| Usage::of(key, *value)).fold(Usage::default(), Add::add);
        self.settle(before, after, write, |()| true)
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
fn sum_bytes(old: Option<&Bytes>, delta: i64) -> Option<usize> {
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

    // Reads do not wait where the bucket does not. Writes do, as the trait has it by default: they hold their key's stripe.

    fn start_get(&self, key: &str) -> Reply<Option<Bytes>> {
        self.inner.start_get(key)
    }

    fn start_exists(&self, key: &str) -> Reply<bool> {
        self.inner.start_exists(key)
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
