//! LMDB, through heed.

use super::{Class, Engine, Gives, Key, Kind, Session, number};
use heed::types::{Bytes, DecodeIgnore};
use heed::{CommitOrAbort, Database, Env, EnvFlags, EnvOpenOptions};
use kvasi_bench::Result;
use std::ops::Bound;
use std::path::Path;

pub(crate) const KIND: Kind = Kind {
    name: "lmdb",
    gives: Gives::ProcessDeath,
    syncs: true,
    settings: "WRITEMAP and NOSYNC (the map is the page cache: writes survive the process); for the sync rows no flags, \
               each commit synced; map 64 GiB, NORDAHEAD off, a transaction per call",
    open,
};

/// The environment lives as long as the process: the database handle borrows it.
struct Lmdb {
    env: &'static Env,
    keys: Database<'static, Bytes, Bytes>,
}

fn open(dir: &Path, class: Class) -> Result<Box<dyn Engine>> {
    let mut options = EnvOpenOptions::new();
    options.map_size(64 << 30).max_readers(256);
    // SAFETY: the directory is the benchmark's own, on a local disk, and open once: nobody changes the file under the
    // map, and nobody writes through stray pointers into a writable one.
    let env = unsafe {
        if class == Class::Process {
            options.flags(EnvFlags::WRITE_MAP | EnvFlags::NO_SYNC);
        }
        options.open(dir)?
    };
    let env: &'static Env = Box::leak(Box::new(env));
    let opened = env.create_databases_and_commit(env.write_txn()?, |create, txn| {
        create.create_database(txn, None).map(CommitOrAbort::<_, ()>::Commit)
    })?;
    let keys = opened.commit().ok_or("the transaction that opens the database was not committed")?;
    Ok(Box::new(Lmdb { env, keys }))
}

impl Engine for Lmdb {
    fn session(&self) -> Result<Box<dyn Session + '_>> {
        Ok(Box::new(self))
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(self.env.force_sync()?)
    }
}

impl Session for &Lmdb {
    fn get(&mut self, key: &Key, into: &mut Vec<u8>) -> Result<bool> {
        into.clear();
        let txn = self.env.read_txn()?;
        let found = self.keys.get(&txn, key)?;
        into.extend_from_slice(found.unwrap_or_default());
        Ok(found.is_some())
    }

    fn exists(&mut self, key: &Key) -> Result<bool> {
        let txn = self.env.read_txn()?;
        Ok(self.keys.remap_data_type::<DecodeIgnore>().get(&txn, key)?.is_some())
    }

    fn set(&mut self, key: &Key, value: &[u8]) -> Result<()> {
        let mut txn = self.env.write_txn()?;
        self.keys.put(&mut txn, key, value)?;
        Ok(txn.commit()?)
    }

    fn delete(&mut self, key: &Key) -> Result<()> {
        let mut txn = self.env.write_txn()?;
        self.keys.delete(&mut txn, key)?;
        Ok(txn.commit()?)
    }

    fn increment(&mut self, key: &Key, delta: i64) -> Result<i64> {
        let mut txn = self.env.write_txn()?;
        let sum = self.keys.get(&txn, key)?.map_or(Ok(0), number)? + delta;
        self.keys.put(&mut txn, key, sum.to_string().as_bytes())?;
        txn.commit()?;
        Ok(sum)
    }

    fn compare_and_swap(&mut self, key: &Key, expected: Option<&[u8]>, value: &[u8]) -> Result<bool> {
        let mut txn = self.env.write_txn()?;
        if self.keys.get(&txn, key)? != expected {
            return Ok(false);
        }
        self.keys.put(&mut txn, key, value)?;
        txn.commit()?;
        Ok(true)
    }

    fn get_many(&mut self, keys: &[Key], into: &mut Vec<u8>) -> Result<usize> {
        let txn = self.env.read_txn()?;
        let mut found = 0;
        for key in keys {
            if let Some(value) = self.keys.get(&txn, key)? {
                into.extend_from_slice(value);
                found += 1;
            }
        }
        Ok(found)
    }

    fn set_many(&mut self, pairs: &[(Key, &[u8])]) -> Result<()> {
        let mut txn = self.env.write_txn()?;
        for (key, value) in pairs {
            self.keys.put(&mut txn, key, value)?;
        }
        Ok(txn.commit()?)
    }

    fn delete_many(&mut self, keys: &[Key]) -> Result<()> {
        let mut txn = self.env.write_txn()?;
        for key in keys {
            self.keys.delete(&mut txn, key)?;
        }
        Ok(txn.commit()?)
    }

    fn list(&mut self, after: Option<&Key>, keys_max: usize, into: &mut Vec<u8>) -> Result<usize> {
        let txn = self.env.read_txn()?;
        let from = after.map_or(Bound::Unbounded, |key| Bound::Excluded(key.as_slice()));
        let mut listed = 0;
        for entry in self.keys.remap_data_type::<DecodeIgnore>().range(&txn, &(from, Bound::Unbounded))?.take(keys_max)
        {
            into.extend_from_slice(entry?.0);
            listed += 1;
        }
        Ok(listed)
    }
}
