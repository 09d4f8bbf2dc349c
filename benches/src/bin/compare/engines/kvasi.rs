//! kvasi.

use super::{Class, Engine, Gives, Key, Kind, Session};
use kvasi::{Bucket, Durability, ListOptions, Options, Store, Swap};
use kvasi_bench::Result;
use std::path::Path;

pub(crate) const KIND: Kind = Kind {
    name: "kvasi",
    gives: Gives::ProcessDeath,
    syncs: true,
    settings: "Durability::Os, for the sync rows Durability::Sync; all else default",
    open,
};

struct Kvasi {
    store: Store,
    bucket: Bucket,
}

fn open(dir: &Path, class: Class) -> Result<Box<dyn Engine>> {
    let durability = match class {
        Class::Process => Durability::Os,
        Class::Sync => Durability::Sync,
    };
    let store = Store::open(dir, Options::new().durability(durability))?;
    let bucket = store.bucket("bench")?;
    Ok(Box::new(Kvasi { store, bucket }))
}

impl Engine for Kvasi {
    fn session(&self) -> Result<Box<dyn Session + '_>> {
        Ok(Box::new(&self.bucket))
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(self.store.close()?)
    }
}

impl Session for &Bucket {
    fn get(&mut self, key: &Key, into: &mut Vec<u8>) -> Result<bool> {
        Ok(self.get_into(key, into)?.is_some())
    }

    fn exists(&mut self, key: &Key) -> Result<bool> {
        Ok(Bucket::exists(self, key)?)
    }

    fn set(&mut self, key: &Key, value: &[u8]) -> Result<()> {
        Bucket::set(self, key, value)?;
        Ok(())
    }

    fn delete(&mut self, key: &Key) -> Result<()> {
        Bucket::delete(self, key)?;
        Ok(())
    }

    fn increment(&mut self, key: &Key, delta: i64) -> Result<i64> {
        Ok(Bucket::increment(self, key, delta)?)
    }

    fn compare_and_swap(&mut self, key: &Key, expected: Option<&[u8]>, value: &[u8]) -> Result<bool> {
        let now = Bucket::get(self, key)?;
        if now.as_deref() != expected {
            return Ok(false);
        }
        let version = now.map(|value| value.version());
        Ok(matches!(Bucket::compare_and_swap(self, key, version, value)?, Swap::Done(_)))
    }

    fn swap_add(&mut self, key: &Key, delta: i64, buffer: &mut Vec<u8>) -> Result<()> {
        loop {
            let version = self.get_into(key, buffer)?;
            let sum = if version.is_some() { super::number(buffer)? } else { 0 } + delta;
            if let Swap::Done(_) = Bucket::compare_and_swap(self, key, version, sum.to_string().as_bytes())? {
                return Ok(());
            }
        }
    }

    fn get_many(&mut self, keys: &[Key], into: &mut Vec<u8>) -> Result<usize> {
        let mut found = 0;
        for value in Bucket::get_many(self, keys)?.into_iter().flatten() {
            into.extend_from_slice(&value);
            found += 1;
        }
        Ok(found)
    }

    fn set_many(&mut self, pairs: &[(Key, &[u8])]) -> Result<()> {
        Ok(Bucket::set_many(self, pairs)?)
    }

    fn delete_many(&mut self, keys: &[Key]) -> Result<()> {
        Ok(Bucket::delete_many(self, keys)?)
    }

    fn list(&mut self, after: Option<&Key>, keys_max: usize, into: &mut Vec<u8>) -> Result<usize> {
        let after = after.map(|key| key.as_slice());
        let page = self.list_keys(ListOptions { after, keys_max, ..ListOptions::default() })?;
        for key in page.iter() {
            into.extend_from_slice(key);
        }
        Ok(page.len())
    }
}
