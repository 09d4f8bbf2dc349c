//! What each bucket holds: how many keys, and their bytes. Kept shard by shard, under the lock that a writer holds anyway.
//! Flow: `commit`, `clean`, `take_up` -> [`Tallies`], a field of what a shard's lock guards; `Bucket::stats` adds them up.
//!
//! After an open nothing is counted, so an open pays nothing and a writer one look at a flag. The first that asks has the
//! words of the directory counted, part by part under the shard's lock ([`Commits::tally`]); from then on each write keeps its
//! part's counts exact. A part that was not counted yet is left alone: its keys are counted as they are then.

use crossbeam_epoch as epoch;

use crate::commit::{Commits, PREFETCHED};
use crate::directory::{At, Place};
use crate::error::Result;
use crate::log::record::{Defect, Record};

/// What a bucket holds; see [`Bucket::stats`](crate::Bucket::stats).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BucketStats {
    /// Keys with a value, expired ones that were not yet dropped included.
    pub keys: u64,
    /// Bytes of those keys.
    pub key_bytes: u64,
    /// Bytes of their values.
    pub value_bytes: u64,
}

/// The tallies of one shard.
#[derive(Debug, Default)]
pub(crate) struct Tallies {
    /// By bucket id, rising; of buckets with keys here.
    of: Vec<(u64, BucketStats)>,
    /// Where the last one was found.
    last: usize,
}

impl Tallies {
    #[inline]
    fn at(&mut self, bucket: u64) -> &mut BucketStats {
        if self.of.get(self.last).is_none_or(|(id, _)| *id != bucket) {
            self.find(bucket);
        }
        &mut self.of[self.last].1
    }

    #[cold]
    fn find(&mut self, bucket: u64) {
        self.last = self.of.binary_search_by_key(&bucket, |(id, _)| *id).unwrap_or_else(|at| {
            self.of.insert(at, (bucket, BucketStats::default()));
            at
        });
    }

    /// A key has this value now; `replaced` is how many bytes it had before, if it had a value.
    #[inline]
    pub(crate) fn put(&mut self, record: &Record<'_>, replaced: Option<usize>) {
        let tally = self.at(record.bucket);
        if replaced.is_none() {
            tally.keys += 1;
            tally.key_bytes += record.key.len() as u64;
        }
        tally.value_bytes = (tally.value_bytes + record.value.len() as u64).wrapping_sub(replaced.unwrap_or(0) as u64);
    }

    /// A key with this value is gone.
    pub(crate) fn take(&mut self, record: &Record<'_>) {
        let tally = self.at(record.bucket);
        // Never below what was put: a word is counted once, with the record that it is taken out with.
        tally.keys = tally.keys.wrapping_sub(1);
        tally.key_bytes = tally.key_bytes.wrapping_sub(record.key.len() as u64);
        tally.value_bytes = tally.value_bytes.wrapping_sub(record.value.len() as u64);
        if tally.keys == 0 {
            self.of.remove(self.last);
        }
    }

    pub(crate) fn get(&self, bucket: u64) -> BucketStats {
        let found = self.of.binary_search_by_key(&bucket, |(id, _)| *id);
        found.map_or_else(|_| BucketStats::default(), |at| self.of[at].1)
    }

    /// The bucket was dropped.
    pub(crate) fn forget(&mut self, bucket: u64) {
        self.of.retain(|(id, _)| *id != bucket);
    }
}

impl Commits {
    /// What a bucket holds. Exact, if nobody writes to it meanwhile; else each shard's part of it at some moment of the call.
    ///
    /// # Errors
    /// `Io` if a record cannot be read for now: nothing of its part of the directory is counted then.
    pub(crate) fn tally(&self, bucket: u64) -> Result<BucketStats> {
        let mut at = At::default();
        loop {
            // Memory that the directory grows out of is given back in between.
            let guard = &epoch::pin();
            let record = |place: Place| {
                // Damage is not counted, and what is in a segment that is gone means nothing.
                let Ok((segment, offset)) = self.log.locate(place, guard) else { return Ok(None) };
                match segment.record_as_it_is(offset, guard) {
                    Ok((record, _)) => Ok(Some(record)),
                    Err(defect @ Defect::Unreadable(_)) => Err(segment.no_record(offset, defect)),
                    Err(_) => Ok(None),
                }
            };
            let ask = |places: &[Place]| places.iter().for_each(|place| self.log.prefetch(*place, guard));
            if !self.directory.count_part(&mut at, guard, PREFETCHED, ask, record)? {
                break;
            }
        }
        Ok(self.directory.tally(bucket))
    }
}
