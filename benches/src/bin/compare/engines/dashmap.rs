//! A concurrent hash map in memory: what there is to gain by storing nothing. Not a peer.

use super::{Class, Engine, Gives, Key, Kind, Session, number};
use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use kvasi_bench::Result;
use std::path::Path;

pub(crate) const KIND: Kind = Kind {
    name: "dashmap",
    gives: Gives::Nothing,
    syncs: false,
    settings: "in memory, unordered (listed by sorting a copy of the keys), nothing is stored, batches are not atomic",
    open: |_: &Path, _: Class| Ok(Box::new(Map(DashMap::new()))),
};

struct Map(DashMap<Key, Box<[u8]>>);

impl Engine for Map {
    fn session(&self) -> Result<Box<dyn Session + '_>> {
        Ok(Box::new(Reader { map: &self.0, sorted: Vec::new() }))
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

struct Reader<'a> {
    map: &'a DashMap<Key, Box<[u8]>>,
    /// The listing under way.
    sorted: Vec<Key>,
}

impl Session for Reader<'_> {
    fn get(&mut self, key: &Key, into: &mut Vec<u8>) -> Result<bool> {
        into.clear();
        let Some(found) = self.map.get(key) else { return Ok(false) };
        into.extend_from_slice(&found);
        Ok(true)
    }

    fn exists(&mut self, key: &Key) -> Result<bool> {
        Ok(self.map.contains_key(key))
    }

    fn set(&mut self, key: &Key, value: &[u8]) -> Result<()> {
        self.map.insert(*key, value.into());
        Ok(())
    }

    fn delete(&mut self, key: &Key) -> Result<()> {
        self.map.remove(key);
        Ok(())
    }

    fn increment(&mut self, key: &Key, delta: i64) -> Result<i64> {
        let mut value = self.map.entry(*key).or_insert_with(|| Box::from(&b"0"[..]));
        let sum = number(&value)? + delta;
        *value = sum.to_string().into_bytes().into();
        Ok(sum)
    }

    fn compare_and_swap(&mut self, key: &Key, expected: Option<&[u8]>, value: &[u8]) -> Result<bool> {
        match (self.map.entry(*key), expected) {
            (Entry::Occupied(mut now), Some(expected)) if **now.get() == *expected => {
                now.insert(value.into());
                Ok(true)
            }
            (Entry::Vacant(now), None) => {
                now.insert(value.into());
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    fn get_many(&mut self, keys: &[Key], into: &mut Vec<u8>) -> Result<usize> {
        let mut found = 0;
        for key in keys {
            if let Some(value) = self.map.get(key) {
                into.extend_from_slice(&value);
                found += 1;
            }
        }
        Ok(found)
    }

    fn set_many(&mut self, pairs: &[(Key, &[u8])]) -> Result<()> {
        for (key, value) in pairs {
            self.map.insert(*key, (*value).into());
        }
        Ok(())
    }

    fn delete_many(&mut self, keys: &[Key]) -> Result<()> {
        for key in keys {
            self.map.remove(key);
        }
        Ok(())
    }

    fn list(&mut self, after: Option<&Key>, keys_max: usize, into: &mut Vec<u8>) -> Result<usize> {
        if after.is_none() {
            self.sorted = self.map.iter().map(|entry| *entry.key()).collect();
            self.sorted.sort_unstable();
        }
        let start = after.map_or(0, |after| self.sorted.partition_point(|key| key <= after));
        let page = &self.sorted[start..self.sorted.len().min(start + keys_max)];
        for key in page {
            into.extend_from_slice(key);
        }
        Ok(page.len())
    }
}
