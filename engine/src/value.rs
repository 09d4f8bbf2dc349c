//! What a read returns: the bytes where they stand in the log, not a copy.

use std::fmt;
use std::ops::Deref;

use bytes::{Buf, Bytes};
use crossbeam_epoch::Guard;

use crate::log::Found;

/// Names one write of one key. Every write gets a new one, higher than all before it, also a write of the same bytes:
/// what compare-and-swap compares. It survives reopening.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub(crate) u64);

impl Version {
    /// The version as a number; only its order means anything.
    pub fn get(self) -> u64 {
        self.0
    }

    /// The version that [`Version::get`] gave, e.g. from a token that a client brought back.
    pub fn from_u64(version: u64) -> Version {
        Version(version)
    }
}

/// A value as stored, with its key and version.
///
/// A view: it copies nothing and keeps the memory behind it (a whole log segment) alive, so hold it for as long as it
/// takes to use it, and copy what is to be kept. Its bytes never change, whatever is written to the key meanwhile. (Where
/// files are not mapped, see [`Access`](crate::Access), it is a copy.)
#[derive(Clone)]
pub struct Value {
    /// Key and value, which stand next to each other in the log.
    bytes: Bytes,
    key_bytes: u32,
    version: Version,
}

impl Value {
    #[inline]
    pub(crate) fn new(found: &Found<'_>, guard: &Guard) -> Value {
        let (key, value) = (found.record.key, found.record.value);
        let bytes = match found.segment.view_from(key, key.len() + value.len(), guard) {
            Some(bytes) => bytes,
            None => view(found, guard),
        };
        Value { bytes, key_bytes: key.len() as u32, version: Version(found.version()) }
    }

    /// Names the write that this value came from.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The key as stored.
    pub fn key(&self) -> &[u8] {
        &self.bytes[..self.key_bytes as usize]
    }

    /// The value as a `Bytes` over the same memory; no copy, no allocation.
    #[inline]
    pub fn into_bytes(self) -> Bytes {
        let mut bytes = self.bytes;
        bytes.advance(self.key_bytes as usize);
        bytes
    }

    /// The key as a `Bytes` over the same memory; no copy, no allocation.
    pub fn key_bytes(&self) -> Bytes {
        self.bytes.slice(..self.key_bytes as usize)
    }
}

/// Key and value of a record that no view of its segment has yet, or that is a copy already.
#[cold]
fn view(found: &Found<'_>, guard: &Guard) -> Bytes {
    let (key, value) = (found.record.key, found.record.value);
    let start = found.key_offset();
    let view = found.segment.view(start..start + (key.len() + value.len()) as u64, guard);
    view.unwrap_or_else(|| [key, value].concat().into())
}

impl Deref for Value {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.key_bytes as usize..]
    }
}

impl AsRef<[u8]> for Value {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl PartialEq<[u8]> for Value {
    fn eq(&self, other: &[u8]) -> bool {
        self[..] == *other
    }
}

/// Names and sizes only: values may be secrets, and logs are read by many.
impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Value").field("bytes", &self.len()).field("version", &self.version).finish()
    }
}
