//! sled, the rewrite.

use super::{Class, Engine, Gives, Key, Kind, Session, number};
use kvasi_bench::Result;
use sled::{Batch, Config, Db};
use std::ops::Bound;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

pub(crate) const KIND: Kind = Kind {
    name: "sled",
    gives: Gives::Loses,
    syncs: true,
    settings: "default: a thread flushes every 200 ms, what is younger is lost with the process; for the sync rows a \
               flush per call; cache 1 GiB, zstd level 1 (it cannot be turned off)",
    open,
};

/// Its handle is for one thread and cheap to clone: each session has one.
struct Sled {
    database: Mutex<Db<1024>>,
    class: Class,
}

struct Handle {
    database: Db<1024>,
    class: Class,
}

fn open(dir: &Path, class: Class) -> Result<Box<dyn Engine>> {
    let config = Config::new().path(dir.join("sled")).cache_capacity_bytes(1 << 30).zstd_compression_level(1);
    Ok(Box::new(Sled { database: Mutex::new(config.open()?), class }))
}

impl Sled {
    fn handle(&self) -> Handle {
        let database = self.database.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Handle { database, class: self.class }
    }
}

impl Handle {
    fn persist(&self) -> Result<()> {
        if self.class == Class::Sync {
            self.database.flush()?;
        }
        Ok(())
    }
}

impl Engine for Sled {
    fn session(&self) -> Result<Box<dyn Session + '_>> {
        Ok(Box::new(self.handle()))
    }

    fn rest(&self) -> Result<()> {
        self.handle().database.flush()?;
        Ok(())
    }

    fn close(self: Box<Self>) -> Result<()> {
        self.rest()
    }
}

impl Session for Handle {
    fn get(&mut self, key: &Key, into: &mut Vec<u8>) -> Result<bool> {
        into.clear();
        let found = self.database.get(key)?;
        into.extend_from_slice(found.as_deref().unwrap_or_default());
        Ok(found.is_some())
    }

    fn exists(&mut self, key: &Key) -> Result<bool> {
        Ok(self.database.contains_key(key)?)
    }

    fn set(&mut self, key: &Key, value: &[u8]) -> Result<()> {
        self.database.insert(key, value)?;
        self.persist()
    }

    fn delete(&mut self, key: &Key) -> Result<()> {
        self.database.remove(key)?;
        self.persist()
    }

    fn increment(&mut self, key: &Key, delta: i64) -> Result<i64> {
        let add = |old: Option<&[u8]>| {
            let sum = old.and_then(|old| number(old).ok()).unwrap_or_default() + delta;
            Some(sum.to_string().into_bytes())
        };
        let sum = self.database.update_and_fetch(key, add)?;
        self.persist()?;
        number(sum.as_deref().unwrap_or_default())
    }

    fn compare_and_swap(&mut self, key: &Key, expected: Option<&[u8]>, value: &[u8]) -> Result<bool> {
        let swapped = self.database.compare_and_swap(key, expected, Some(value))?.is_ok();
        self.persist()?;
        Ok(swapped)
    }

    /// One by one: it has no snapshots.
    fn get_many(&mut self, keys: &[Key], into: &mut Vec<u8>) -> Result<usize> {
        let mut found = 0;
        for key in keys {
            if let Some(value) = self.database.get(key)? {
                into.extend_from_slice(&value);
                found += 1;
            }
        }
        Ok(found)
    }

    fn set_many(&mut self, pairs: &[(Key, &[u8])]) -> Result<()> {
        let mut batch = Batch::default();
        for (key, value) in pairs {
            batch.insert(key, *value);
        }
        self.database.apply_batch(batch)?;
        self.persist()
    }

    fn delete_many(&mut self, keys: &[Key]) -> Result<()> {
        let mut batch = Batch::default();
        for key in keys {
            batch.remove(key);
        }
        self.database.apply_batch(batch)?;
        self.persist()
    }

    fn list(&mut self, after: Option<&Key>, keys_max: usize, into: &mut Vec<u8>) -> Result<usize> {
        let from = after.map_or(Bound::Unbounded, |key| Bound::Excluded(key.as_slice()));
        let mut listed = 0;
        for entry in self.database.range::<&[u8], _>((from, Bound::Unbounded)).take(keys_max) {
            into.extend_from_slice(&entry?.0);
            listed += 1;
        }
        Ok(listed)
    }
}
