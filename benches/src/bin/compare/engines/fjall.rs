//! fjall.

use super::{Class, Engine, Gives, Key, Kind, Session, Stripes, number};
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode, Readable};
use kvasi_bench::Result;
use std::ops::Bound;
use std::path::Path;

pub(crate) const KIND: Kind = Kind {
    name: "fjall",
    gives: Gives::ProcessDeath,
    syncs: true,
    settings: "default: the journal goes to the system at each write; for the sync rows persist(SyncData); block cache \
               1 GiB, point reads expected to hit; increments under striped locks of ours",
    open,
};

struct Fjall {
    database: Database,
    keys: Keyspace,
    class: Class,
    stripes: Stripes,
}

fn open(dir: &Path, class: Class) -> Result<Box<dyn Engine>> {
    let database = Database::builder(dir).cache_size(1 << 30).open()?;
    let keys = database.keyspace("bench", || KeyspaceCreateOptions::default().expect_point_read_hits(true))?;
    Ok(Box::new(Fjall { database, keys, class, stripes: Stripes::default() }))
}

impl Fjall {
    fn persist(&self) -> Result<()> {
        match self.class {
            Class::Process => Ok(()),
            Class::Sync => Ok(self.database.persist(PersistMode::SyncData)?),
        }
    }

    fn mode(&self) -> Option<PersistMode> {
        Some(match self.class {
            Class::Process => PersistMode::Buffer,
            Class::Sync => PersistMode::SyncData,
        })
    }
}

impl Engine for Fjall {
    fn session(&self) -> Result<Box<dyn Session + '_>> {
        Ok(Box::new(self))
    }

    fn rest(&self) -> Result<()> {
        self.keys.rotate_memtable_and_wait()?;
        Ok(self.keys.major_compact()?)
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(self.database.persist(PersistMode::SyncAll)?)
    }
}

impl Session for &Fjall {
    fn get(&mut self, key: &Key, into: &mut Vec<u8>) -> Result<bool> {
        into.clear();
        let found = self.keys.get(key)?;
        into.extend_from_slice(found.as_deref().unwrap_or_default());
        Ok(found.is_some())
    }

    fn exists(&mut self, key: &Key) -> Result<bool> {
        Ok(self.keys.contains_key(key)?)
    }

    fn set(&mut self, key: &Key, value: &[u8]) -> Result<()> {
        self.keys.insert(key, value)?;
        self.persist()
    }

    fn delete(&mut self, key: &Key) -> Result<()> {
        self.keys.remove(key)?;
        self.persist()
    }

    fn increment(&mut self, key: &Key, delta: i64) -> Result<i64> {
        let guard = self.stripes.lock(key);
        let sum = self.keys.get(key)?.map_or(Ok(0), |value| number(&value))? + delta;
        self.keys.insert(key, sum.to_string().as_bytes())?;
        drop(guard);
        self.persist()?;
        Ok(sum)
    }

    fn compare_and_swap(&mut self, key: &Key, expected: Option<&[u8]>, value: &[u8]) -> Result<bool> {
        let guard = self.stripes.lock(key);
        if self.keys.get(key)?.as_deref() != expected {
            return Ok(false);
        }
        self.keys.insert(key, value)?;
        drop(guard);
        self.persist()?;
        Ok(true)
    }

    fn get_many(&mut self, keys: &[Key], into: &mut Vec<u8>) -> Result<usize> {
        let snapshot = self.database.snapshot();
        let mut found = 0;
        for key in keys {
            if let Some(value) = snapshot.get(&self.keys, key)? {
                into.extend_from_slice(&value);
                found += 1;
            }
        }
        Ok(found)
    }

    fn set_many(&mut self, pairs: &[(Key, &[u8])]) -> Result<()> {
        let mut batch = self.database.batch().durability(self.mode());
        for (key, value) in pairs {
            batch.insert(&self.keys, key, *value);
        }
        Ok(batch.commit()?)
    }

    fn delete_many(&mut self, keys: &[Key]) -> Result<()> {
        let mut batch = self.database.batch().durability(self.mode());
        for key in keys {
            batch.remove(&self.keys, key);
        }
        Ok(batch.commit()?)
    }

    fn list(&mut self, after: Option<&Key>, keys_max: usize, into: &mut Vec<u8>) -> Result<usize> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut listed = 0;
        for entry in self.keys.range::<&Key, _>((from, Bound::Unbounded)).take(keys_max) {
            into.extend_from_slice(&entry.key()?);
            listed += 1;
        }
        Ok(listed)
    }
}
