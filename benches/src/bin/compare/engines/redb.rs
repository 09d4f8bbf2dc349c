//! redb.

use super::{Class, Engine, Gives, Key, Kind, Session, number};
use kvasi_bench::Result;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use std::ops::Bound;
use std::path::Path;

pub(crate) const KIND: Kind = Kind {
    name: "redb",
    gives: Gives::PowerCut,
    syncs: true,
    settings: "Durability::Immediate everywhere: the weaker one (None) loses acknowledged writes with the process; cache \
               1 GiB; a transaction per call",
    open,
};

const KEYS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("bench");

struct Redb(Database);

fn open(dir: &Path, _: Class) -> Result<Box<dyn Engine>> {
    let database = Database::builder().set_cache_size(1 << 30).create(dir.join("bench.redb"))?;
    let txn = database.begin_write()?;
    txn.open_table(KEYS)?;
    txn.commit()?;
    Ok(Box::new(Redb(database)))
}

impl Redb {
    /// Runs `change` in a transaction of its own.
    fn write<R>(
        &self,
        change: impl FnOnce(&mut redb::Table<'_, &'static [u8], &'static [u8]>) -> Result<R>,
    ) -> Result<R> {
        let txn = self.0.begin_write()?;
        let changed = {
            let mut table = txn.open_table(KEYS)?;
            change(&mut table)?
        };
        txn.commit()?;
        Ok(changed)
    }
}

impl Engine for Redb {
    fn session(&self) -> Result<Box<dyn Session + '_>> {
        Ok(Box::new(self))
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(self.0.close()?)
    }
}

impl Session for &Redb {
    fn get(&mut self, key: &Key, into: &mut Vec<u8>) -> Result<bool> {
        into.clear();
        let table = self.0.begin_read()?.open_table(KEYS)?;
        let found = table.get(key.as_slice())?;
        into.extend_from_slice(found.as_ref().map(|value| value.value()).unwrap_or_default());
        Ok(found.is_some())
    }

    fn exists(&mut self, key: &Key) -> Result<bool> {
        Ok(self.0.begin_read()?.open_table(KEYS)?.get(key.as_slice())?.is_some())
    }

    fn set(&mut self, key: &Key, value: &[u8]) -> Result<()> {
        self.write(|table| Ok(table.insert(key.as_slice(), value).map(drop)?))
    }

    fn delete(&mut self, key: &Key) -> Result<()> {
        self.write(|table| Ok(table.remove(key.as_slice()).map(drop)?))
    }

    fn increment(&mut self, key: &Key, delta: i64) -> Result<i64> {
        self.write(|table| {
            let sum = table.get(key.as_slice())?.map_or(Ok(0), |value| number(value.value()))? + delta;
            table.insert(key.as_slice(), sum.to_string().as_bytes())?;
            Ok(sum)
        })
    }

    fn compare_and_swap(&mut self, key: &Key, expected: Option<&[u8]>, value: &[u8]) -> Result<bool> {
        self.write(|table| {
            if table.get(key.as_slice())?.as_ref().map(|value| value.value()) != expected {
                return Ok(false);
            }
            table.insert(key.as_slice(), value)?;
            Ok(true)
        })
    }

    fn get_many(&mut self, keys: &[Key], into: &mut Vec<u8>) -> Result<usize> {
        let table = self.0.begin_read()?.open_table(KEYS)?;
        let mut found = 0;
        for key in keys {
            if let Some(value) = table.get(key.as_slice())? {
                into.extend_from_slice(value.value());
                found += 1;
            }
        }
        Ok(found)
    }

    fn set_many(&mut self, pairs: &[(Key, &[u8])]) -> Result<()> {
        self.write(|table| {
            for (key, value) in pairs {
                table.insert(key.as_slice(), *value)?;
            }
            Ok(())
        })
    }

    fn delete_many(&mut self, keys: &[Key]) -> Result<()> {
        self.write(|table| {
            for key in keys {
                table.remove(key.as_slice())?;
            }
            Ok(())
        })
    }

    fn list(&mut self, after: Option<&Key>, keys_max: usize, into: &mut Vec<u8>) -> Result<usize> {
        let table = self.0.begin_read()?.open_table(KEYS)?;
        let from = after.map_or(Bound::Unbounded, |key| Bound::Excluded(key.as_slice()));
        let mut listed = 0;
        for entry in table.range::<&[u8]>((from, Bound::Unbounded))?.take(keys_max) {
            into.extend_from_slice(entry?.0.value());
            listed += 1;
        }
        Ok(listed)
    }
}
