//! The buckets of a store: their names and ids. They stand in the log like any other keys, in bucket 0.
//!
//! Key `b` and a name holds the bucket's id, key `n` the first id never used, both as 8 bytes, little-endian. An id is
//! never used twice: records of a dropped bucket mean nothing to anybody.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::checkpoint::Buckets;
use crate::commit::{Commits, Write};
use crate::error::{Error, Result};
use crate::log::record::{Kind, Record};
use crate::options::{BUCKET_NAME_BYTES_MAX, Durability};
use crate::seeded::{Bug, seeded};

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
    #[inline]
    pub(crate) fn check(&self) -> Result<()> {
        if self.dropped.load(Ordering::Acquire) { Err(Error::invalid("the bucket was dropped")) } else { Ok(()) }
    }
}

/// All buckets by name.
#[derive(Debug, Default)]
pub(crate) struct Catalogue(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    buckets: BTreeMap<Box<str>, Arc<Entry>>,
    /// The same, by id.
    ids: BTreeMap<u64, Arc<Entry>>,
    next_id: u64,
    /// Dropped, and their keys may still be in the directory.
    forgotten: BTreeSet<u64>,
    /// Of them, those found at open: the background takes their keys out.
    unswept: BTreeSet<u64>,
}

/// The catalogue as the log tells it, record by record.
#[derive(Debug)]
pub(crate) struct Replay {
    state: State,
    /// Ids that there may be keys of.
    seen: BTreeSet<u64>,
}

fn key_of(name: &str) -> Vec<u8> {
    [b"b", name.as_bytes()].concat()
}

impl Replay {
    /// From nothing, or from what a checkpoint says: that may be newer than what is replayed.
    pub(crate) fn new(from: Option<&Buckets>) -> Replay {
        let mut state = State { next_id: CATALOGUE + 1, ..State::default() };
        let mut seen = BTreeSet::new();
        if let Some(from) = from {
            state.next_id = state.next_id.max(from.next_id);
            let entries = from.named.iter().map(|(id, name)| entry(*id, name));
            state.buckets = entries.map(|entry| (entry.name.clone(), entry)).collect();
            seen.clone_from(&from.forgotten);
        }
        Replay { state, seen }
    }

    /// Takes up a record of bucket [`CATALOGUE`]; `None` if it is not one that we write.
    pub(crate) fn take(&mut self, record: &Record<'_>) -> Option<()> {
        let gone = match Told::by(record)? {
            Told::NextId(id) => {
                self.state.next_id = self.state.next_id.max(id);
                None
            }
            Told::Dropped(name) => self.state.buckets.remove(name),
            Told::Bucket(name, id) => self.state.buckets.insert(name.into(), entry(id, name)),
        };
        self.seen.extend(gone.map(|entry| entry.id));
        Some(())
    }

    /// Takes up that there are records of this bucket.
    pub(crate) fn note(&mut self, id: u64) {
        self.seen.insert(id);
    }
}

/// What a record of the catalogue says.
enum Told<'a> {
    NextId(u64),
    Bucket(&'a str, u64),
    Dropped(&'a str),
}

impl<'a> Told<'a> {
    fn by(record: &Record<'a>) -> Option<Told<'a>> {
        let id = || Some(u64::from_le_bytes(record.value.try_into().ok()?));
        if record.key == NEXT_ID {
            return id().map(Told::NextId);
        }
        let name = std::str::from_utf8(record.key.strip_prefix(b"b")?).ok()?;
        if record.kind == Kind::Delete { Some(Told::Dropped(name)) } else { Some(Told::Bucket(name, id()?)) }
    }
}

/// Whether a record of the catalogue is one that we write.
pub(crate) fn makes_sense(record: &Record<'_>) -> bool {
    Told::by(record).is_some()
}

/// The bucket that a record of the catalogue drops, if it does.
pub(crate) fn dropped_name<'a>(record: &Record<'a>) -> Option<&'a str> {
    match Told::by(record)? {
        Told::Dropped(name) => Some(name),
        _ => None,
    }
}

fn entry(id: u64, name: &str) -> Arc<Entry> {
    Arc::new(Entry { id, name: name.into(), dropped: false.into() })
}

impl Catalogue {
    /// Takes up what the log told. Keys of buckets that are not there (any more) are left to the background.
    pub(crate) fn take_up(&self, Replay { mut state, seen }: Replay) {
        let known: BTreeSet<u64> = state.buckets.values().map(|entry| entry.id).chain([CATALOGUE]).collect();
        state.ids = state.buckets.values().map(|entry| (entry.id, entry.clone())).collect();
        state.forgotten = &seen - &known;
        state.unswept.clone_from(&state.forgotten);
        *self.0.lock() = state;
    }

    /// For a checkpoint: the buckets as they are now.
    pub(crate) fn snapshot(&self) -> Buckets {
        let state = self.0.lock();
        Buckets {
            named: state.buckets.values().map(|entry| (entry.id, entry.name.to_string())).collect(),
            next_id: state.next_id,
            forgotten: state.forgotten.clone(),
        }
    }

    /// Background: buckets that were found dropped at open, and whose keys are to be taken out. Tells of them once.
    pub(crate) fn take_unswept(&self) -> BTreeSet<u64> {
        std::mem::take(&mut self.0.lock().unswept)
    }

    /// No key of these dropped buckets is in the directory any more.
    pub(crate) fn forgotten(&self, ids: &BTreeSet<u64>) {
        self.0.lock().forgotten.retain(|id| !ids.contains(id));
    }

    pub(crate) fn get(&self, name: &str) -> Option<Arc<Entry>> {
        self.0.lock().buckets.get(name).cloned()
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.0.lock().buckets.keys().map(|name| name.to_string()).collect()
    }

    /// Whether a bucket has this id now; the catalogue's own counts.
    pub(crate) fn is_live(&self, id: u64) -> bool {
        id == CATALOGUE || self.0.lock().ids.contains_key(&id)
    }

    /// The bucket of that id.
    pub(crate) fn by_id(&self, id: u64) -> Option<Arc<Entry>> {
        self.0.lock().ids.get(&id).cloned()
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
        let mut id = state.next_id;
        if seeded(Bug::BucketIdReused) {
            id = state.buckets.values().map(|entry| entry.id + 1).max().unwrap_or(CATALOGUE + 1);
        }
        let writes = [
            Write { bucket: CATALOGUE, key: &key_of(name), value: Some(&id.to_le_bytes()) },
            Write { bucket: CATALOGUE, key: NEXT_ID, value: Some(&(id + 1).to_le_bytes()) },
        ];
        let told = commits.write_batch(&writes, durability)?;
        // Known from here on even if the wait fails: the id is used.
        state.next_id = id + 1;
        commits.wait(told.after)?;
        let entry = entry(id, name);
        state.buckets.insert(name.into(), entry.clone());
        state.ids.insert(id, entry.clone());
        Ok(entry)
    }

    /// Takes the bucket out of the catalogue, durably as asked; its keys are still there.
    pub(crate) fn remove(&self, name: &str, commits: &Commits, durability: Durability) -> Result<Option<Arc<Entry>>> {
        let mut state = self.0.lock();
        let Some(entry) = state.buckets.get(name).cloned() else {
            return Ok(None);
        };
        if !seeded(Bug::DropNotLogged) {
            let gone = [Write { bucket: CATALOGUE, key: &key_of(name), value: None }];
            let told = commits.write_batch(&gone, durability)?;
            commits.wait(told.after)?;
        }
        entry.dropped.store(true, Ordering::Release);
        state.buckets.remove(name);
        state.ids.remove(&entry.id);
        state.forgotten.insert(entry.id);
        Ok(Some(entry))
    }
}
