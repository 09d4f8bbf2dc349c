//! RocksDB, the system's library.

use super::{Class, Engine, Gives, Key, Kind, Session, Stripes, number};
use kvasi_bench::Result;
use rocksdb::{BlockBasedOptions, Cache, DB, Direction, IteratorMode, Options, ReadOptions, WriteBatch, WriteOptions};
use std::path::Path;

pub(crate) const KIND: Kind = Kind {
    name: "rocksdb",
    gives: Gives::ProcessDeath,
    syncs: true,
    settings: "write-ahead log to the system at each write, for the sync rows WriteOptions::sync; 10-bit bloom filters, \
               block cache 1 GiB, no compression, 2 background jobs; increments under striped locks of ours",
    open,
};

struct Rocks {
    database: DB,
    class: Class,
    stripes: Stripes,
}

fn open(dir: &Path, class: Class) -> Result<Box<dyn Engine>> {
    let mut blocks = BlockBasedOptions::default();
    blocks.set_bloom_filter(10.0, false);
    blocks.set_block_cache(&Cache::new_lru_cache(1 << 30));
    blocks.set_format_version(5);
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_block_based_table_factory(&blocks);
    options.set_compression_type(rocksdb::DBCompressionType::None);
    options.increase_parallelism(2);
    Ok(Box::new(Rocks { database: DB::open(&options, dir)?, class, stripes: Stripes::default() }))
}

impl Rocks {
    fn write_options(&self) -> WriteOptions {
        let mut options = WriteOptions::default();
        options.set_sync(self.class == Class::Sync);
        options
    }
}

impl Engine for Rocks {
    fn session(&self) -> Result<Box<dyn Session + '_>> {
        Ok(Box::new(self))
    }

    fn rest(&self) -> Result<()> {
        self.database.flush()?;
        // Returns when it is done. Waiting for automatic compactions came to the C interface with RocksDB 8; distributions
        // have 7.
        self.database.compact_range::<&[u8], &[u8]>(None, None);
        Ok(())
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(self.database.flush()?)
    }
}

impl Session for &Rocks {
    fn get(&mut self, key: &Key, into: &mut Vec<u8>) -> Result<bool> {
        into.clear();
        let found = self.database.get_pinned(key)?;
        into.extend_from_slice(found.as_deref().unwrap_or_default());
        Ok(found.is_some())
    }

    fn exists(&mut self, key: &Key) -> Result<bool> {
        Ok(self.database.get_pinned(key)?.is_some())
    }

    fn set(&mut self, key: &Key, value: &[u8]) -> Result<()> {
        Ok(self.database.put_opt(key, value, &self.write_options())?)
    }

    fn delete(&mut self, key: &Key) -> Result<()> {
        Ok(self.database.delete_opt(key, &self.write_options())?)
    }

    fn increment(&mut self, key: &Key, delta: i64) -> Result<i64> {
        let _guard = self.stripes.lock(key);
        let sum = self.database.get_pinned(key)?.map_or(Ok(0), |value| number(&value))? + delta;
        self.database.put_opt(key, sum.to_string().as_bytes(), &self.write_options())?;
        Ok(sum)
    }

    fn compare_and_swap(&mut self, key: &Key, expected: Option<&[u8]>, value: &[u8]) -> Result<bool> {
        let _guard = self.stripes.lock(key);
        if self.database.get_pinned(key)?.as_deref() != expected {
            return Ok(false);
        }
        self.database.put_opt(key, value, &self.write_options())?;
        Ok(true)
    }

    fn get_many(&mut self, keys: &[Key], into: &mut Vec<u8>) -> Result<usize> {
        let snapshot = self.database.snapshot();
        let mut options = ReadOptions::default();
        options.set_snapshot(&snapshot);
        let mut found = 0;
        for value in self.database.multi_get_opt(keys, &options) {
            if let Some(value) = value? {
                into.extend_from_slice(&value);
                found += 1;
            }
        }
        Ok(found)
    }

    fn set_many(&mut self, pairs: &[(Key, &[u8])]) -> Result<()> {
        let mut batch = WriteBatch::default();
        for (key, value) in pairs {
            batch.put(key, value);
        }
        Ok(self.database.write_opt(batch, &self.write_options())?)
    }

    fn delete_many(&mut self, keys: &[Key]) -> Result<()> {
        let mut batch = WriteBatch::default();
        for key in keys {
            batch.delete(key);
        }
        Ok(self.database.write_opt(batch, &self.write_options())?)
    }

    fn list(&mut self, after: Option<&Key>, keys_max: usize, into: &mut Vec<u8>) -> Result<usize> {
        let mode = after.map_or(IteratorMode::Start, |key| IteratorMode::From(key, Direction::Forward));
        let mut listed = 0;
        for entry in self.database.iterator(mode) {
            let (key, _) = entry?;
            if after.is_some_and(|after| *key == after[..]) {
                continue;
            }
            into.extend_from_slice(&key);
            listed += 1;
            if listed == keys_max {
                break;
            }
        }
        Ok(listed)
    }
}
