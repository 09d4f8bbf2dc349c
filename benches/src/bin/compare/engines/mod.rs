//! What every engine must do to be compared, and the list of engines.
//!
//! One file an engine: how it is opened at its best for a durability class, and the calls. A [`Session`] is what one
//! thread uses; engines whose handle is shared by threads give out a borrow of themselves.

#[cfg(feature = "dashmap")]
mod dashmap;
#[cfg(feature = "fjall")]
mod fjall;
mod kvasi;
#[cfg(feature = "lmdb")]
mod lmdb;
#[cfg(feature = "redb")]
mod redb;
#[cfg(feature = "rocksdb")]
mod rocksdb;
#[cfg(feature = "sled")]
mod sled;
#[cfg(feature = "sqlite")]
mod sqlite;
#[cfg(feature = "surrealkv")]
mod surrealkv;

use kvasi_bench::Result;
use kvasi_bench::keys::KEY_BYTES;
use std::path::Path;

/// A key of the benchmark.
pub(crate) type Key = [u8; KEY_BYTES];

/// What is asked of an acknowledged write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// Survives `kill -9`, without a sync per call: class A.
    Process,
    /// Survives a power cut.
    Sync,
}

/// What an engine really gives when asked for [`Class::Process`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(dead_code, reason = "which of them there are depends on the engines built in")]
pub(crate) enum Gives {
    /// Class A: compared with.
    ProcessDeath,
    /// More: every write is synced, there is no other mode.
    PowerCut,
    /// Less: acknowledged writes of the last moments are lost with the process. Shown, not compared with.
    Loses,
    /// Nothing is stored. The limit, not compared with.
    Nothing,
}

impl Gives {
    /// Whether kvasi's ratio may be taken against it.
    pub(crate) fn durable(self) -> bool {
        matches!(self, Gives::ProcessDeath | Gives::PowerCut)
    }

    pub(crate) fn text(self) -> &'static str {
        match self {
            Gives::ProcessDeath => "survives kill -9",
            Gives::PowerCut => "survives a power cut",
            Gives::Loses => "loses the last moments on kill -9",
            Gives::Nothing => "memory only",
        }
    }
}

/// An engine in the list.
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    pub(crate) gives: Gives,
    /// Whether it has the rows of [`Class::Sync`].
    pub(crate) syncs: bool,
    /// The settings that differ from its defaults, and why, in one line.
    pub(crate) settings: &'static str,
    /// Opens or makes a store in a directory that exists.
    pub(crate) open: fn(&Path, Class) -> Result<Box<dyn Engine>>,
}

/// An open store.
pub(crate) trait Engine: Send + Sync {
    /// What one thread uses.
    fn session(&self) -> Result<Box<dyn Session + '_>>;
    /// Finishes background work that the engine lets a caller wait for.
    fn rest(&self) -> Result<()> {
        Ok(())
    }
    /// Closes it so that the next open has least to do.
    fn close(self: Box<Self>) -> Result<()>;
}

/// The calls that are measured. Each is one operation and durable at return, as the class says.
pub(crate) trait Session {
    /// Copies the value once into `into`, in place of what it held; `false` if there is none.
    fn get(&mut self, key: &Key, into: &mut Vec<u8>) -> Result<bool>;
    fn exists(&mut self, key: &Key) -> Result<bool>;
    fn set(&mut self, key: &Key, value: &[u8]) -> Result<()>;
    fn delete(&mut self, key: &Key) -> Result<()>;
    /// Adds to a decimal number; absent is 0.
    fn increment(&mut self, key: &Key, delta: i64) -> Result<i64>;
    /// Sets `key` if it still holds `expected`.
    fn compare_and_swap(&mut self, key: &Key, expected: Option<&[u8]>, value: &[u8]) -> Result<bool>;
    /// The values of all keys, of one instant, one after the other in `into`; how many there are.
    fn get_many(&mut self, keys: &[Key], into: &mut Vec<u8>) -> Result<usize>;
    /// All or nothing.
    fn set_many(&mut self, pairs: &[(Key, &[u8])]) -> Result<()>;
    /// All or nothing.
    fn delete_many(&mut self, keys: &[Key]) -> Result<()>;
    /// The next keys after one, in byte order, copied into `into` one after the other.
    fn list(&mut self, after: Option<&Key>, keys_max: usize, into: &mut Vec<u8>) -> Result<usize>;

    /// Reads, adds and swaps, until it succeeds.
    fn swap_add(&mut self, key: &Key, delta: i64, buffer: &mut Vec<u8>) -> Result<()> {
        loop {
            let found = self.get(key, buffer)?;
            let sum = if found { number(buffer)? } else { 0 } + delta;
            if self.compare_and_swap(key, found.then_some(buffer.as_slice()), sum.to_string().as_bytes())? {
                return Ok(());
            }
        }
    }
}

/// Decimal digits as a number.
pub(crate) fn number(digits: &[u8]) -> Result<i64> {
    Ok(std::str::from_utf8(digits)?.parse()?)
}

/// Locks over keys, for engines without a read-modify-write of their own: the least that an application would put
/// around them.
#[cfg(any(feature = "fjall", feature = "rocksdb", feature = "surrealkv"))]
pub(crate) struct Stripes([std::sync::Mutex<()>; 64]);

#[cfg(any(feature = "fjall", feature = "rocksdb", feature = "surrealkv"))]
impl Default for Stripes {
    fn default() -> Self {
        Stripes(std::array::from_fn(|_| std::sync::Mutex::default()))
    }
}

#[cfg(any(feature = "fjall", feature = "rocksdb", feature = "surrealkv"))]
impl Stripes {
    pub(crate) fn lock(&self, key: &Key) -> std::sync::MutexGuard<'_, ()> {
        let mut tail = [0; 8];
        tail.copy_from_slice(&key[KEY_BYTES - 8..]);
        let stripe = &self.0[kvasi_bench::keys::scatter(u64::from_le_bytes(tail)) as usize % 64];
        stripe.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// All engines that this binary was built with.
pub(crate) fn all() -> Vec<Kind> {
    vec![
        kvasi::KIND,
        #[cfg(feature = "lmdb")]
        lmdb::KIND,
        #[cfg(feature = "fjall")]
        fjall::KIND,
        #[cfg(feature = "redb")]
        redb::KIND,
        #[cfg(feature = "rocksdb")]
        rocksdb::KIND,
        #[cfg(feature = "surrealkv")]
        surrealkv::KIND,
        #[cfg(feature = "sled")]
        sled::KIND,
        #[cfg(feature = "sqlite")]
        sqlite::TUNED,
        #[cfg(feature = "sqlite")]
        sqlite::SPIN,
        #[cfg(feature = "dashmap")]
        dashmap::KIND,
    ]
}
