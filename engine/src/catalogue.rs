//! The buckets of a store: their names and ids. They stand in the log like any other keys, in bucket 0.
//!
//! Key `b` and a name holds the bucket's id, key `n` the first id never used, both as 8 bytes, little-endian. An id is
//! never used twice: records of a dropped bucket mean nothing to anybody.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::commit::{Commits, Write};
use crate::error::{Error, Result};
use crate::log::record::{Kind, Record};
use crate::options::{BUCKET_NAME_BYTES_MAX, Durability};

/// The bucket that the catalogue itself is kept in.
pub(crate) const CATALOGUE: u64 = 0;
const NEXT_ID: &[u8] = b"n";

/// A bucket, shared by all handles to it.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) id: u64,
    pub(crate) name: Box<str>,
    dropped: AtomicBool,
}

impl Entry {
    pub(crate) fn check(&self) -> Result<()> {
        if self.dropped.load(Ordering::Acquire) { Err(Error::invalid("the bucket was dropped")) } else { Ok(()) }
    }
}

/// All buckets by name.
#[derive(Debug)]
pub(crate) struct Catalogue(Mutex<State>);

#[derive(Debug)]
struct State {
    buckets: BTreeMap<Box<str>, Arc<Entry>>,
    next_id: u64,
}

/// The catalogue as the log tells it, record by record.
#[derive(Debug)]
pub(crate) struct Replay {
    state: State,
    /// Ids that records were seen of.
    seen: BTreeSet<u64>,
    last_seen: u64,
}

fn key_of(name: &str) -> Vec<u8> {
    [b"b", name.as_bytes()].concat()
}

impl Replay {
    pub(crate) fn new() -> Replay {
        Replay {
            state: State { buckets: BTreeMap::new(), next_id: CATALOGUE + 1 },
            seen: BTreeSet::new(),
            last_seen: CATALOGUE,
        }
    }

    /// Takes up a record of bucket [`CATALOGUE`]; `None` if it is not one that we write.
    pub(crate) fn take(&mut self, record: &Record<'_>) -> Option<()> {
        if record.key == NEXT_ID {
            self.state.next_id = u64::from_le_bytes(record.value.try_into().ok()?);
            return Some(());
        }
        let name = std::str::from_utf8(record.key.strip_prefix(b"b")?).ok()?;
        if record.kind == Kind::Delete {
            self.state.buckets.remove(name);
            return Some(());
        }
        let id = u64::from_le_bytes(record.value.try_into().ok()?);
        self.state.buckets.insert(name.into(), Arc::new(Entry { id, name: name.into(), dropped: false.into() }));
        Some(())
    }

    /// Takes up that there is a record of this bucket.
    #[inline]
    pub(crate) fn note(&mut self, id: u64) {
        if id != self.last_seen {
            self.last_seen = id;
            self.seen.insert(id);
        }
    }

    /// Whether records were seen of a bucket that is not there (any more).
    pub(crate) fn has_unknown(&self) -> bool {
        let known: BTreeSet<u64> = self.state.buckets.values().map(|entry| entry.id).chain([CATALOGUE]).collect();
        !self.seen.is_subset(&known)
    }

    /// Whether a bucket has this id.
    pub(crate) fn has(&self, id: u64) -> bool {
        id == CATALOGUE || self.state.buckets.values().any(|entry| entry.id == id)
    }

    pub(crate) fn finish(self) -> Catalogue {
        Catalogue(Mutex::new(self.state))
    }
}

impl Catalogue {
    pub(crate) fn get(&self, name: &str) -> Option<Arc<Entry>> {
        self.0.lock().buckets.get(name).cloned()
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.0.lock().buckets.keys().map(|name| name.to_string()).collect()
    }

    /// Whether a bucket has this id now; the catalogue's own counts.
    pub(crate) fn is_live(&self, id: u64) -> bool {
        id == CATALOGUE || self.0.lock().buckets.values().any(|entry| entry.id == id)
    }

    /// The ids in use, and the first that never was.
    pub(crate) fn ids(&self) -> (BTreeSet<u64>, u64) {
        let state = self.0.lock();
        (state.buckets.values().map(|entry| entry.id).chain([CATALOGUE]).collect(), state.next_id)
    }

    /// The bucket of that name, made if there is none.
    pub(crate) fn get_or_create(&self, name: &str, commits: &Commits, durability: Durability) -> Result<Arc<Entry>> {
        let mut state = self.0.lock();
        if let Some(entry) = state.buckets.get(name) {
            return Ok(entry.clone());
        }
        if name.len() > BUCKET_NAME_BYTES_MAX {
            let message =
                format!("the bucket name has {} bytes, at most {BUCKET_NAME_BYTES_MAX} are allowed", name.len());
            return Err(Error::invalid(message));
        }
        let id = state.next_id;
        let writes = [
            Write { bucket: CATALOGUE, key: &key_of(name), value: Some(&id.to_le_bytes()) },
            Write { bucket: CATALOGUE, key: NEXT_ID, value: Some(&(id + 1).to_le_bytes()) },
        ];
        let told = commits.write_batch(&writes, durability)?;
        // Known from here on even if the wait fails: the id is used.
        state.next_id = id + 1;
        commits.wait(told.after)?;
        let entry = Arc::new(Entry { id, name: name.into(), dropped: false.into() });
        state.buckets.insert(name.into(), entry.clone());
        Ok(entry)
    }

    /// Takes the bucket out of the catalogue, durably as asked; its keys are still there.
    pub(crate) fn remove(&self, name: &str, commits: &Commits, durability: Durability) -> Result<Option<Arc<Entry>>> {
        let mut state = self.0.lock();
        let Some(entry) = state.buckets.get(name).cloned() else {
            return Ok(None);
        };
        let told = commits.write_batch(&[Write { bucket: CATALOGUE, key: &key_of(name), value: None }], durability)?;
        commits.wait(told.after)?;
        entry.dropped.store(true, Ordering::Release);
        state.buckets.remove(name);
        Ok(Some(entry))
    }
}
