//! The tail: the keys of the newest stretch of the log in byte order, in a skiplist, filled behind the writers.
//! Flow: `index` fills it from the log, `list` reads it. Point operations never come here.
//!
//! It takes entries in and never gives one up: it is replaced as a whole when a run covers what it holds. A key that was
//! written twice stands there twice, the newer entry first.
//!
//! Entries are never overwritten or removed: crossbeam-skiplist 0.1.3 loses sight of a key while it is overwritten (its
//! issue 1023).

use std::cmp::Ordering;
use std::ops::Bound;

use crossbeam_skiplist::SkipSet;
use crossbeam_skiplist::set;

use crate::run::format::Entry;

/// In order of bucket, key, and stamp from the highest down.
#[derive(Debug, PartialEq, Eq)]
struct TailEntry {
    bucket: u64,
    key: Box<[u8]>,
    stamp: u64,
    expires: u64,
}

impl Ord for TailEntry {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.bucket, &self.key).cmp(&(other.bucket, &other.key)).then(other.stamp.cmp(&self.stamp))
    }
}

impl PartialOrd for TailEntry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl TailEntry {
    fn new(entry: &Entry<'_>) -> TailEntry {
        TailEntry { bucket: entry.bucket, key: entry.key.into(), stamp: entry.stamp, expires: entry.expires }
    }
}

/// Entries of the log from one position on.
#[derive(Debug, Default)]
pub(crate) struct Tail(SkipSet<TailEntry>);

impl Tail {
    /// Takes an entry in. One caller at a time.
    pub(crate) fn add(&self, entry: &Entry<'_>) {
        let entry = TailEntry::new(entry);
        // A record that the cleaner moved may stand here already.
        if !self.0.contains(&entry) {
            self.0.insert(entry);
        }
    }

    /// At the first entry; `None` if there is none.
    pub(crate) fn first(&self) -> Option<TailCursor<'_>> {
        Some(TailCursor { at: self.0.front()? })
    }

    /// At the first entry of `bucket` whose key is `from` or comes after it; `None` if there is none.
    pub(crate) fn seek(&self, bucket: u64, from: &[u8]) -> Option<TailCursor<'_>> {
        let first = TailEntry { bucket, key: from.into(), stamp: u64::MAX, expires: 0 };
        let at = self.0.lower_bound(Bound::Included(&first))?;
        (at.value().bucket == bucket).then_some(TailCursor { at })
    }
}

/// A place in the tail, at the newest entry of a key.
pub(crate) struct TailCursor<'t> {
    at: set::Entry<'t, TailEntry>,
}

impl TailCursor<'_> {
    /// Moves to the next key; `false` if that was the last one.
    pub(crate) fn next(&mut self) -> bool {
        loop {
            let Some(next) = self.at.next() else { return false };
            let now = self.at.value();
            let older = next.value().bucket == now.bucket && next.value().key == now.key;
            self.at = next;
            if !older {
                return true;
            }
        }
    }

    pub(crate) fn entry(&self) -> Entry<'_> {
        let entry = self.at.value();
        Entry { bucket: entry.bucket, key: &entry.key, stamp: entry.stamp, expires: entry.expires }
    }
}
