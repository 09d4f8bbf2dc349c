//! Where the keys live: what a back end must do, whatever it is.
//!
//! Flow: `store`, `batch`, `atomics` (limits and rights already checked) -> [`LocalBucket`] -> the back end. One back end,
//! one file. A local one answers in the calling thread; a remote one, which makes the caller wait, is a `RemoteBucket`
//! (feature `remote`), and [`Capabilities`] says for both what their guests may rely on. A host that must not wait in its
//! threads starts a call and gets a [`Reply`].
//! Invariants: 1. A call that returns an error changed nothing, or says [`Code::Indeterminate`].
//! 2. Keys and values are kept byte for byte. 3. Every write of a key changes its [`Guard`], also one that restores old bytes.

#[cfg(feature = "remote")]
pub mod changes;
#[cfg(feature = "cosmosdb")]
pub mod cosmosdb;
#[cfg(feature = "dynamodb")]
pub mod dynamodb;
mod engine;
#[cfg(feature = "etcd")]
pub mod etcd;
#[cfg(feature = "firestore")]
pub mod firestore;
#[cfg(feature = "http")]
mod http;
#[cfg(feature = "memcached")]
pub mod memcached;
mod memory;
#[cfg(feature = "redis")]
pub mod redis;
#[cfg(feature = "remote")]
pub mod remote;
mod reply;
#[cfg(any(feature = "etcd", feature = "redis"))]
mod tls;

pub use memory::Memory;
pub use reply::{Later, Reply};

use crate::{Code, Error, Usage, Utf8Bytes};
use bytes::Bytes;
use std::borrow::Cow;
use std::sync::Arc;

/// What a back end does beyond storing and finding: what the documentation and the conformance suite hold it to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// `set-many` and `delete-many` are all or nothing, to readers and across a crash.
    pub atomic_batches: bool,
    /// `get-many` reads all keys at one instant.
    pub snapshot_reads: bool,
    /// `list-keys` yields byte order.
    pub ordered: bool,
    /// Committed changes can be followed, for `watch-service`.
    pub watchable: bool,
    /// Data is still there when the process has ended.
    pub durable: bool,
    /// A value can be given an end of its life.
    pub expiring: bool,
    /// Longest key, in bytes of UTF-8, where keys need no escape.
    pub key_bytes_max: usize,
    /// Longest value, in bytes.
    pub value_bytes_max: usize,
    /// Most keys of a `set-many` or `delete-many` that is one step, all or nothing; of larger ones each piece is. 1: each key by itself.
    pub batch_keys_max: usize,
    /// Most bytes of keys and values of one step; a single value may be larger.
    pub batch_bytes_max: usize,
}

impl Capabilities {
    /// What the kvasi engine does on files.
    pub const ENGINE: Capabilities = Capabilities {
        atomic_batches: true,
        snapshot_reads: true,
        ordered: true,
        watchable: true,
        durable: true,
        expiring: true,
        key_bytes_max: kvasi::KEY_BYTES_MAX,
        value_bytes_max: kvasi::VALUE_BYTES_MAX,
        batch_keys_max: usize::MAX,
        batch_bytes_max: kvasi::BATCH_BYTES_MAX,
    };
}

/// A set of buckets: a store, a server, a service.
pub trait Backend: Send + Sync + 'static {
    /// What guests of this back end may rely on.
    fn capabilities(&self) -> Capabilities;

    /// The bucket of that name, made if the back end needs it made. Called when a context is built, never by a guest;
    /// may wait.
    ///
    /// # Errors
    /// Whatever the back end meets; the detail is for the operator.
    fn bucket(&self, name: &str) -> Result<Arc<dyn LocalBucket>, Error>;
}

/// A key as a guest gave it: in the guest's own memory wherever its encoding is UTF-8.
#[derive(Clone, Debug)]
pub struct Key<'a>(pub(crate) Cow<'a, str>);

impl Key<'_> {
    /// A copy that outlives the guest's call.
    pub(crate) fn to_static(&self) -> Key<'static> {
        Key(Cow::Owned(self.0.clone().into_owned()))
    }
}

impl AsRef<str> for Key<'_> {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl AsRef<[u8]> for Key<'_> {
    fn as_ref(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl<'a> From<&'a str> for Key<'a> {
    fn from(key: &'a str) -> Self {
        Key(Cow::Borrowed(key))
    }
}

/// Which write of a key a compare-and-swap stands on.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Guard {
    /// The key was absent.
    Absent,
    /// A version of the kvasi engine.
    Version(kvasi::Version),
    /// Whatever identifies a write elsewhere: a revision, an etag, a unique number.
    Token(Bytes),
}

/// A key's state at one instant: its value, `None` if absent, and the guard that stands on it.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The value, sharing the back end's memory where it can.
    pub value: Option<Bytes>,
    /// Identifies the write that left it so.
    pub guard: Guard,
}

/// What became of a swap.
#[derive(Clone, Debug)]
pub enum Swap {
    /// The value is written.
    Done,
    /// Somebody else wrote: what stands there now. Nothing was changed.
    Conflict(Observed),
}

/// Bounds of one page of keys.
#[derive(Clone, Copy, Debug)]
pub struct PageBounds {
    /// Most keys.
    pub keys_max: usize,
    /// Most bytes of keys; one key is given even if it is longer.
    pub bytes_max: usize,
    /// Most entries looked at, the deleted ones included.
    pub entries_max: usize,
}

/// One page of keys.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// The keys, each once, sharing the back end's buffer.
    pub keys: Vec<Utf8Bytes>,
    /// Where the next page begins; `None` if and only if no key is left.
    pub next: Option<Bytes>,
}

/// What a write asks beyond its value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SetOptions {
    /// How long the value lives; for ever for `None`.
    pub ttl: Option<std::time::Duration>,
    /// Write only if the key has no value.
    pub if_absent: bool,
}

/// A present key and its value, as `get-many` answers them.
pub type Pair = (Utf8Bytes, Bytes);

/// A bucket whose calls return in the calling thread: in memory, or on local files.
///
/// To implementers: any thread calls any method at any time; take `&self` and share. `key` and `value` may lie in guest
/// memory, so take no lock before the copy that other guests would wait for. Limits and rights are checked before.
///
/// The `start_` methods are for hosts whose threads must not wait. They do what the others do and keep nothing of what they are
/// given: a bucket that needs a key or value later copies it first. By default they are the others, which is right where
/// nothing waits.
///
/// # Errors
/// Every method fails with the back end's [`Error`]; absence is never one.
pub trait LocalBucket: Send + Sync + 'static {
    /// Names the bucket within its back end, the same after a restart: cursors are bound to it.
    fn identity(&self) -> &str;

    /// Whether a read may make its thread wait, as for a network: such reads count among a component's calls at once.
    fn waits(&self) -> bool {
        false
    }

    /// The bucket of the engine whose changes can be followed, for `watch-service`; by default none: not supported.
    fn watchable(&self) -> Option<kvasi::Bucket> {
        None
    }

    /// The same of a bucket behind a network, if its service tells of changes.
    #[cfg(feature = "remote")]
    fn watched(&self) -> Option<changes::Watched> {
        None
    }

    /// What the bucket holds, where the back end keeps count; by default it does not. Exact, but for what is written meanwhile or not
    /// yet visible; what has expired and is still stored is in it.
    fn usage(&self) -> Result<Option<Usage>, Error> {
        Ok(None)
    }

    /// Whether a write stands, in its place among all writes of its key, when its `start_` method returns a reply that is on its way: then
    /// what that reply waits for is the disk, and who drops it drops no write. By default not.
    fn stands_when_started(&self) -> bool {
        false
    }

    /// Shows `look` the value that the next write of `key` will find: with writes that stand and are not visible yet, if there are
    /// such. `look` must not call the bucket.
    fn look_newest(&self, key: &str, look: &mut dyn FnMut(Option<&[u8]>)) -> Result<(), Error> {
        look(self.get(key)?.as_deref());
        Ok(())
    }

    /// The value of `key`, without a copy where the back end can.
    fn get(&self, key: &str) -> Result<Option<Bytes>, Error>;

    /// Whether `get` would find a value.
    fn exists(&self, key: &str) -> Result<bool, Error>;

    /// Makes `value` the value of `key`.
    fn set(&self, key: &str, value: &[u8]) -> Result<(), Error>;

    /// Writes `value` with an expiry, or only where no value is; `false` if there was one and nothing was written.
    /// The default, for back ends without either: [`Code::Unsupported`] for whatever plain
    /// [`set`](LocalBucket::set) cannot do.
    fn set_with(&self, key: &str, value: &[u8], options: SetOptions) -> Result<bool, Error> {
        if options != SetOptions::default() {
            return Err(Error::new(Code::Unsupported));
        }
        self.set(key, value).map(|()| true)
    }

    /// Removes `key`; an absent one is fine.
    fn delete(&self, key: &str) -> Result<(), Error>;

    /// One page of keys greater than `after` in the back end's order, the first page for `None`. A key that is not UTF-8
    /// (no guest can name it) is left out.
    fn list(&self, after: Option<&[u8]>, bounds: PageBounds) -> Result<Page, Error>;

    /// As [`list`](LocalBucket::list), of the keys that begin with `prefix`; `after` comes from a page with that prefix. The
    /// default, for back ends that find no prefix: [`Code::Unsupported`] for any but the empty one.
    fn list_prefix(&self, prefix: &str, after: Option<&[u8]>, bounds: PageBounds) -> Result<Page, Error> {
        if prefix.is_empty() { self.list(after, bounds) } else { Err(Error::new(Code::Unsupported)) }
    }

    /// Adds `delta` to the ASCII decimal number at `key`, an absent one counting as 0, and gives the sum.
    fn increment(&self, key: &str, delta: i64) -> Result<i64, Error>;

    /// As [`increment`](LocalBucket::increment), for guests whose numbers have no sign: a sum below zero is
    /// [`Code::Overflow`], and nothing is changed. The default looks first and counts then; a rival that counts down in between
    /// is found in the sum, and what was added is taken back.
    fn increment_unsigned(&self, key: &str, delta: i64) -> Result<i64, Error> {
        refuse_below_zero(self.get(key)?.as_deref(), delta)?;
        let sum = self.increment(key, delta)?;
        if sum < 0 {
            self.increment(key, -delta)?;
            return Err(Error::new(Code::Overflow));
        }
        Ok(sum)
    }

    /// The present state of `key`, for a later [`swap`](LocalBucket::swap).
    fn observe(&self, key: &str) -> Result<Observed, Error>;

    /// Writes `value` if no write of `key` came after `guard`.
    fn swap(&self, key: &str, guard: &Guard, value: &[u8]) -> Result<Swap, Error>;

    /// One entry per key, in request order, `None` if absent.
    fn get_many(&self, keys: &[Key<'_>]) -> Result<Vec<Option<Pair>>, Error>;

    /// Sets all pairs; of equal keys the last wins.
    fn set_many(&self, pairs: &[(Key<'_>, &[u8])]) -> Result<(), Error>;

    /// Deletes all keys, skipping absent ones.
    fn delete_many(&self, keys: &[Key<'_>]) -> Result<(), Error>;

    /// As [`get`](LocalBucket::get), without waiting.
    fn start_get(&self, key: &str) -> Reply<Option<Bytes>> {
        Reply::Now(self.get(key))
    }

    /// As [`exists`](LocalBucket::exists), without waiting.
    fn start_exists(&self, key: &str) -> Reply<bool> {
        Reply::Now(self.exists(key))
    }

    /// As [`set`](LocalBucket::set), without waiting.
    fn start_set(&self, key: &str, value: &[u8]) -> Reply<()> {
        Reply::Now(self.set(key, value))
    }

    /// As [`set_with`](LocalBucket::set_with), without waiting.
    fn start_set_with(&self, key: &str, value: &[u8], options: SetOptions) -> Reply<bool> {
        Reply::Now(self.set_with(key, value, options))
    }

    /// As [`delete`](LocalBucket::delete), without waiting.
    fn start_delete(&self, key: &str) -> Reply<()> {
        Reply::Now(self.delete(key))
    }

    /// As [`list_prefix`](LocalBucket::list_prefix), without waiting.
    fn start_list(&self, prefix: &str, after: Option<&[u8]>, bounds: PageBounds) -> Reply<Page> {
        Reply::Now(self.list_prefix(prefix, after, bounds))
    }

    /// As [`increment`](LocalBucket::increment), without waiting.
    fn start_increment(&self, key: &str, delta: i64) -> Reply<i64> {
        Reply::Now(self.increment(key, delta))
    }

    /// As [`increment_unsigned`](LocalBucket::increment_unsigned), without waiting.
    fn start_increment_unsigned(&self, key: &str, delta: i64) -> Reply<i64> {
        Reply::Now(self.increment_unsigned(key, delta))
    }

    /// As [`observe`](LocalBucket::observe), without waiting.
    fn start_observe(&self, key: &str) -> Reply<Observed> {
        Reply::Now(self.observe(key))
    }

    /// As [`swap`](LocalBucket::swap), without waiting.
    fn start_swap(&self, key: &str, guard: &Guard, value: &[u8]) -> Reply<Swap> {
        Reply::Now(self.swap(key, guard, value))
    }

    /// As [`get_many`](LocalBucket::get_many), without waiting.
    fn start_get_many(&self, keys: &[Key<'_>]) -> Reply<Vec<Option<Pair>>> {
        Reply::Now(self.get_many(keys))
    }

    /// As [`set_many`](LocalBucket::set_many), without waiting.
    fn start_set_many(&self, pairs: &[(Key<'_>, &[u8])]) -> Reply<()> {
        Reply::Now(self.set_many(pairs))
    }

    /// As [`delete_many`](LocalBucket::delete_many), without waiting.
    fn start_delete_many(&self, keys: &[Key<'_>]) -> Reply<()> {
        Reply::Now(self.delete_many(keys))
    }
}

/// Whether `delta` on what stands there would be below zero. What is no number, the increment itself finds.
pub(crate) fn refuse_below_zero(value: Option<&[u8]>, delta: i64) -> Result<(), Error> {
    let number = value.and_then(|value| std::str::from_utf8(value).ok()?.parse::<i64>().ok());
    match number.and_then(|number| number.checked_add(delta)) {
        Some(sum) if sum < 0 => Err(Error::new(Code::Overflow)),
        _ => Ok(()),
    }
}
