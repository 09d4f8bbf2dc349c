//! surrealkv.

use super::{Class, Engine, Gives, Key, Kind, Session, Stripes, number};
use kvasi_bench::Result;
use std::path::Path;
use surrealkv::{Durability, Error, LSMIterator, Mode, Transaction, Tree, TreeBuilder};
use tokio::runtime::Runtime;

pub(crate) const KIND: Kind = Kind {
    name: "surrealkv",
    gives: Gives::ProcessDeath,
    syncs: true,
    settings: "Durability::Eventual, for the sync rows Immediate; block cache 1 GiB, no compression; a transaction per \
               call, repeated on conflict, awaited on a runtime with one thread; increments under striped locks of ours",
    open,
};

struct Surreal {
    runtime: Runtime,
    tree: Tree,
    durability: Durability,
    stripes: Stripes,
}

fn open(dir: &Path, class: Class) -> Result<Box<dyn Engine>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let durability = match class {
        Class::Process => Durability::Eventual,
        Class::Sync => Durability::Immediate,
    };
    let tree = {
        let _inside = runtime.enter();
        TreeBuilder::new()
            .with_path(dir.to_path_buf())
            .with_block_cache_capacity(1 << 30)
            .without_compression()
            .build()?
    };
    Ok(Box::new(Surreal { runtime, tree, durability, stripes: Stripes::default() }))
}

impl Surreal {
    /// Runs `change` in a transaction of its own, again if another one wrote the same key meanwhile, as its documentation
    /// asks for; `None` from `change` gives up.
    fn write<R>(&self, mode: Mode, change: impl Fn(&mut Transaction) -> Result<Option<R>>) -> Result<Option<R>> {
        loop {
            let mut txn = self.tree.begin_with_mode(mode)?;
            txn.set_durability(self.durability);
            let changed = change(&mut txn)?;
            if changed.is_none() {
                return Ok(None);
            }
            match self.runtime.block_on(txn.commit()) {
                Ok(()) => return Ok(changed),
                Err(Error::TransactionWriteConflict) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Engine for Surreal {
    fn session(&self) -> Result<Box<dyn Session + '_>> {
        Ok(Box::new(self))
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(self.runtime.block_on(self.tree.close())?)
    }
}

impl Session for &Surreal {
    fn get(&mut self, key: &Key, into: &mut Vec<u8>) -> Result<bool> {
        into.clear();
        let found = self.tree.begin_with_mode(Mode::ReadOnly)?.get(key)?;
        into.extend_from_slice(found.as_deref().unwrap_or_default());
        Ok(found.is_some())
    }

    fn exists(&mut self, key: &Key) -> Result<bool> {
        Ok(self.tree.begin_with_mode(Mode::ReadOnly)?.get(key)?.is_some())
    }

    fn set(&mut self, key: &Key, value: &[u8]) -> Result<()> {
        self.write(Mode::WriteOnly, |txn| Ok(Some(txn.set(key, value)?))).map(drop)
    }

    fn delete(&mut self, key: &Key) -> Result<()> {
        self.write(Mode::WriteOnly, |txn| Ok(Some(txn.delete(key)?))).map(drop)
    }

    fn increment(&mut self, key: &Key, delta: i64) -> Result<i64> {
        let _guard = self.stripes.lock(key);
        let sum = self.write(Mode::ReadWrite, |txn| {
            let sum = txn.get(key)?.map_or(Ok(0), |value| number(&value))? + delta;
            txn.set(key, sum.to_string().as_bytes())?;
            Ok(Some(sum))
        })?;
        Ok(sum.unwrap_or_default())
    }

    fn compare_and_swap(&mut self, key: &Key, expected: Option<&[u8]>, value: &[u8]) -> Result<bool> {
        let _guard = self.stripes.lock(key);
        let swapped = self.write(Mode::ReadWrite, |txn| {
            if txn.get(key)?.as_deref() != expected {
                return Ok(None);
            }
            Ok(Some(txn.set(key, value)?))
        })?;
        Ok(swapped.is_some())
    }

    fn get_many(&mut self, keys: &[Key], into: &mut Vec<u8>) -> Result<usize> {
        let txn = self.tree.begin_with_mode(Mode::ReadOnly)?;
        let mut found = 0;
        for key in keys {
            if let Some(value) = txn.get(key)? {
                into.extend_from_slice(&value);
                found += 1;
            }
        }
        Ok(found)
    }

    fn set_many(&mut self, pairs: &[(Key, &[u8])]) -> Result<()> {
        let set = |txn: &mut Transaction| {
            for (key, value) in pairs {
                txn.set(key, *value)?;
            }
            Ok(Some(()))
        };
        self.write(Mode::WriteOnly, set).map(drop)
    }

    fn delete_many(&mut self, keys: &[Key]) -> Result<()> {
        let delete = |txn: &mut Transaction| {
            for key in keys {
                txn.delete(key)?;
            }
            Ok(Some(()))
        };
        self.write(Mode::WriteOnly, delete).map(drop)
    }

    fn list(&mut self, after: Option<&Key>, keys_max: usize, into: &mut Vec<u8>) -> Result<usize> {
        let txn = self.tree.begin_with_mode(Mode::ReadOnly)?;
        // The first key after another one is that one with a zero byte.
        let mut from = after.map(|key| key.to_vec()).unwrap_or_default();
        if after.is_some() {
            from.push(0);
        }
        let mut keys = txn.range(from.as_slice(), &[0xff][..])?;
        let mut listed = 0;
        let mut valid = keys.seek_first()?;
        while valid && listed < keys_max {
            into.extend_from_slice(keys.key().user_key());
            listed += 1;
            valid = keys.next()?;
        }
        Ok(listed)
    }
}
