//! A stretch of a segment in byte order of its keys. Flow: `seal`, `index` -> here -> `merge`, `run::Writer`.
//!
//! Nothing is copied: the order is a list of offsets, and keys are read where they stand in the log. So a run of many
//! stretches is made in one pass over all of them.

use std::sync::Arc;

use crossbeam_epoch::{self as epoch, Guard};

use crate::error::{Error, Result};
use crate::log::record::{ALIGN, Kind, Record};
use crate::merge::{common_bytes, compare};
use crate::run::Damaged;
use crate::run::format::{Entry, stamp};
use crate::segment::Segment;

/// The records of a segment from `from` on, at least up to `limit`: of each key the newest, in order of bucket and key, with
/// their offsets; and where the next record is.
pub(crate) fn sorted<'g>(
    segment: &'g Segment,
    from: u64,
    limit: u64,
    guard: &'g Guard,
) -> Result<(Vec<(Entry<'g>, u64)>, u64)> {
    let mut entries = Vec::new();
    let mut at = from;
    while at < limit {
        let (record, bytes) = record(segment, at, guard)?;
        entries.extend(entry_of(segment, at, &record).map(|entry| (entry, at)));
        at += bytes;
    }
    Ok((in_order(&entries), at))
}

/// Keys of one store tend to begin alike, so what they are sorted by are the eight bytes after what all have in common.
fn in_order<'a>(entries: &[(Entry<'a>, u64)]) -> Vec<(Entry<'a>, u64)> {
    let Some((first, _)) = entries.first() else { return Vec::new() };
    let common = entries.iter().fold(first.key.len(), |common, (e, _)| common_bytes(first.key, e.key, common));
    let mut order: Vec<(u64, u64, u32)> = Vec::with_capacity(entries.len());
    order.extend(entries.iter().enumerate().map(|(i, (e, _))| (e.bucket, eight_bytes(&e.key[common..]), i as u32)));
    order.sort_unstable_by(|a, b| {
        (a.0, a.1).cmp(&(b.0, b.1)).then_with(|| {
            let (a, b) = (&entries[a.2 as usize].0, &entries[b.2 as usize].0);
            compare(&a.key[common..], &b.key[common..]).then_with(|| b.stamp.cmp(&a.stamp))
        })
    });
    let mut sorted: Vec<(Entry<'a>, u64)> = Vec::with_capacity(order.len());
    for (.., i) in order {
        let next = entries[i as usize];
        if sorted.last().is_none_or(|(last, _)| (last.bucket, last.key) != (next.0.bucket, next.0.key)) {
            sorted.push(next);
        }
    }
    sorted
}

/// The first eight bytes as a number that orders as they do; what is missing counts as zero.
fn eight_bytes(key: &[u8]) -> u64 {
    let mut bytes = [0; 8];
    let n = key.len().min(8);
    bytes[..n].copy_from_slice(&key[..n]);
    u64::from_le_bytes(bytes).swap_bytes()
}

/// The record at `at`, which stands there for sure.
pub(crate) fn record<'g>(segment: &'g Segment, at: u64, guard: &'g Guard) -> Result<(Record<'g>, u64)> {
    segment.record(at, false, guard).map_err(|defect| segment.no_record(at, defect))
}

/// What a record at `offset` says of its key.
pub(crate) fn entry_of<'a>(segment: &Segment, offset: u64, record: &Record<'a>) -> Option<Entry<'a>> {
    let deleted = match record.kind {
        Kind::Set => false,
        Kind::Delete => true,
        Kind::Batch => return None,
    };
    let version = record.moved.unwrap_or_else(|| segment.position(offset));
    Some(Entry {
        bucket: record.bucket,
        key: record.key,
        stamp: stamp(version, deleted, record.expires),
        expires: record.expires.unwrap_or(0),
    })
}

/// A stretch, of a segment that is mapped, to be read in order. Keeps its segment readable.
pub(crate) struct Stretch {
    segment: Arc<Segment>,
    /// Offsets of the records, in units of [`ALIGN`].
    order: Vec<u32>,
}

/// A place in a stretch, at a record.
pub(crate) struct StretchCursor {
    stretch: Stretch,
    /// Which one.
    at: usize,
    bucket: u64,
    /// Where the key stands in the segment.
    key: (u64, u64),
    stamp: u64,
    expires: u64,
}

impl Stretch {
    /// As [`sorted`].
    pub(crate) fn new(segment: &Arc<Segment>, from: u64, limit: u64) -> Result<(Stretch, u64)> {
        let guard = &epoch::pin();
        let (sorted, next) = sorted(segment, from, limit, guard)?;
        let order = sorted.iter().map(|(_, at)| (at / ALIGN) as u32).collect();
        Ok((Stretch { segment: segment.clone(), order }, next))
    }

    /// At the first record; `None` if there is none.
    pub(crate) fn first(self) -> Result<Option<StretchCursor>> {
        if self.order.is_empty() {
            return Ok(None);
        }
        let mut cursor = StretchCursor { stretch: self, at: 0, bucket: 0, key: (0, 0), stamp: 0, expires: 0 };
        cursor.look()?;
        Ok(Some(cursor))
    }
}

impl StretchCursor {
    /// Moves to the next record; `false` if that was the last one.
    #[inline]
    pub(crate) fn next(&mut self) -> Result<bool, Damaged> {
        if self.at + 1 >= self.stretch.order.len() {
            return Ok(false);
        }
        self.at += 1;
        self.look().map(|()| true).map_err(|_| Damaged::at(0, "a record that was read before"))
    }

    /// Reads the record at hand; asks for the one after the next, since others are read before its turn.
    #[inline]
    fn look(&mut self) -> Result<(), Error> {
        let Stretch { segment, order } = &self.stretch;
        if let Some(ahead) = order.get(self.at + 1) {
            segment.region.prefetch(u64::from(*ahead) * ALIGN);
        }
        let offset = u64::from(order[self.at]) * ALIGN;
        let guard = &epoch::pin();
        let (record, _) = record(segment, offset, guard)?;
        if let Some(entry) = entry_of(segment, offset, &record) {
            let start = offset + record.key_offset();
            (self.bucket, self.stamp, self.expires) = (entry.bucket, entry.stamp, entry.expires);
            self.key = (start, start + entry.key.len() as u64);
        }
        Ok(())
    }

    #[inline]
    pub(crate) fn bucket(&self) -> u64 {
        self.bucket
    }

    #[inline]
    pub(crate) fn key(&self) -> &[u8] {
        self.stretch.segment.region.slice(self.key.0..self.key.1).unwrap_or_default()
    }

    #[inline]
    pub(crate) fn entry(&self) -> Entry<'_> {
        Entry { bucket: self.bucket, key: self.key(), stamp: self.stamp, expires: self.expires }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_sorted_by_bucket_and_key_and_the_newest_of_a_key_stays() {
        let mut keys: Vec<Vec<u8>> = vec![vec![], vec![0], vec![0; 9], b"user".to_vec(), b"user\0".to_vec()];
        keys.extend((0..200u32).map(|i| format!("user:{:04x}", i.wrapping_mul(40_503) & 0xfff).into_bytes()));
        keys.extend((0..50u32).map(|i| [&[b'u'; 300][..], &i.wrapping_mul(7919).to_le_bytes()].concat()));
        for (from, buckets) in [(0, 1), (0, 3), (5, 1), (5, 2)] {
            let entries: Vec<_> = (0..3 * keys.len())
                .map(|i| {
                    let (key, bucket) = (&keys[from + i % (keys.len() - from)], (i as u64 * 31) % buckets);
                    (Entry { bucket, key, stamp: 4 * (i as u64 + 1), expires: 0 }, 4 * i as u64)
                })
                .collect();
            let mut expected = std::collections::BTreeMap::new();
            for (e, at) in &entries {
                expected.insert((e.bucket, e.key), (e.stamp, *at));
            }
            let sorted = in_order(&entries);
            assert!(sorted.iter().map(|(e, at)| ((e.bucket, e.key), (e.stamp, *at))).eq(expected));
        }
    }
}
