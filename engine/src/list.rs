//! Listing: the keys of a bucket in byte order, a page at a time, without their values.

use bytes::Bytes;
use crossbeam_epoch as epoch;

use crate::bucket::Bucket;
use crate::error::Result;

/// What a page of [`Bucket::list_keys`] holds, and how much it may cost.
#[derive(Clone, Copy, Debug)]
pub struct ListOptions<'a> {
    /// Only keys that begin with this. Default: all.
    pub prefix: &'a [u8],
    /// Only keys after this one, in byte order: [`KeyPage::next`] of the page before. Default: from the first.
    pub after: Option<&'a [u8]>,
    /// Most keys in the page. Default: 1,000.
    pub keys_max: usize,
    /// Most bytes of keys in the page; a first key is returned however long it is. Default: 256 KiB.
    pub bytes_max: usize,
    /// Most entries looked at, those of deleted keys included; the page may stay empty and still have a next one.
    /// Default: 50,000.
    pub entries_max: usize,
}

impl Default for ListOptions<'_> {
    fn default() -> Self {
        ListOptions { prefix: b"", after: None, keys_max: 1000, bytes_max: 256 << 10, entries_max: 50_000 }
    }
}

/// Some keys of a bucket in byte order, in one buffer.
#[derive(Clone, Debug, Default)]
pub struct KeyPage {
    bytes: Bytes,
    /// Where each key ends in `bytes`.
    ends: Vec<u32>,
    next: Option<Bytes>,
}

impl KeyPage {
    /// Number of keys.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none. More may follow all the same: see [`KeyPage::next`].
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The `i`-th key, without a copy.
    ///
    /// # Panics
    /// If there are not that many.
    pub fn key_bytes(&self, i: usize) -> Bytes {
        let start = i.checked_sub(1).map_or(0, |before| self.ends[before]);
        self.bytes.slice(start as usize..self.ends[i] as usize)
    }

    /// The keys.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let mut start = 0;
        self.ends.iter().map(move |&end| {
            let key = &self.bytes[start..end as usize];
            start = end as usize;
            key
        })
    }

    /// What to pass as [`ListOptions::after`] for the next page; `None` if this was the last one. Any key is a valid
    /// position, today and after a restart, whether it still exists or not.
    pub fn next(&self) -> Option<&Bytes> {
        self.next.as_ref()
    }
}

impl Bucket {
    /// A page of the bucket's keys in byte order. Following [`KeyPage::next`] ends, and yields every key that existed
    /// throughout exactly once, whatever comes and goes meanwhile.
    ///
    /// # Errors
    /// As [`Bucket::get`].
    pub fn list_keys(&self, options: ListOptions<'_>) -> Result<KeyPage> {
        self.entry.check()?;
        let store = &self.store.0;
        let guard = &epoch::pin();
        store.index.catch_up(&store.commits.log, guard)?;

        let mut bytes = Vec::new();
        let mut ends = Vec::new();
        let mut looked = 0;
        let mut last = Vec::new();
        let mut more = false;
        let (from, inclusive) = match options.after {
            Some(after) if after >= options.prefix => (after, false),
            _ => (options.prefix, true),
        };
        store.index.visit(self.entry.id, from, inclusive, |key| {
            if !key.starts_with(options.prefix) {
                return Ok(false);
            }
            let full = ends.len() >= options.keys_max.max(1)
                || !ends.is_empty() && bytes.len() + key.len() > options.bytes_max;
            if full || looked >= options.entries_max.max(1) {
                more = true;
                return Ok(false);
            }
            looked += 1;
            last.clear();
            last.extend_from_slice(key);
            if store.commits.get(self.entry.id, key, guard)?.is_some() {
                bytes.extend_from_slice(key);
                ends.push(bytes.len() as u32);
            }
            Ok(true)
        })?;
        Ok(KeyPage { bytes: bytes.into(), ends, next: more.then(|| last.into()) })
    }
}
