//! Many keys at once: reads of one instant, writes as one commit.

use crossbeam_epoch as epoch;

use crate::bucket::Bucket;
use crate::commit::{PREFETCHED, Told, Write};
use crate::directory::Seen;
use crate::error::{Error, Result};
use crate::options::Durability;
use crate::pending::Commit;
use crate::store::Store;
use crate::value::Value;
use std::sync::Arc;

/// Writes to be applied together by [`Store::commit`], to any buckets of one store.
///
/// Keys and values are kept as copies until then; [`Bucket::set_many`] needs none.
#[derive(Debug, Default)]
pub struct Batch {
    writes: Vec<(Bucket, Vec<u8>, Option<Vec<u8>>)>,
}

impl Batch {
    /// An empty batch. Committing it does nothing.
    pub fn new() -> Batch {
        Batch::default()
    }

    /// Adds a set.
    pub fn set(&mut self, bucket: &Bucket, key: &[u8], value: &[u8]) {
        self.writes.push((bucket.clone(), key.to_vec(), Some(value.to_vec())));
    }

    /// Adds a delete.
    pub fn delete(&mut self, bucket: &Bucket, key: &[u8]) {
        self.writes.push((bucket.clone(), key.to_vec(), None));
    }

    /// Number of writes.
    pub fn len(&self) -> usize {
        self.writes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    /// Whether all of them delete.
    pub(crate) fn frees(&self) -> bool {
        self.writes.iter().all(|(.., value)| value.is_none())
    }
}

impl Store {
    /// As [`Store::commit`], without waiting for the disk, and without waiting for space.
    ///
    /// # Errors
    /// As [`Store::commit`]; a failing disk shows in the [`Commit`]. `NoSpace` as of [`Bucket::start_delete`].
    pub fn start_commit(&self, batch: &Batch) -> Result<Commit<()>> {
        let mut writes = Vec::with_capacity(batch.writes.len());
        for (bucket, key, value) in &batch.writes {
            if !Arc::ptr_eq(&bucket.store.0, &self.0) {
                return Err(Error::invalid("a batch writes to buckets of one store only"));
            }
            bucket.entry.check()?;
            writes.push(Write { bucket: bucket.entry.id, key, value: value.as_deref() });
        }
        let told = self.write_many(&writes, self.0.durability)?;
        self.nudge(told.after == 0);
        Ok(Commit::new(self.clone(), told.map(drop)))
    }

    fn write_many(&self, writes: &[Write<'_>], durability: Durability) -> Result<Told<u64>> {
        self.0.commits.write_batch(writes, durability).inspect_err(|e| self.see_to(e))
    }
}

impl Bucket {
    /// The values of many keys, all of one instant: a batch committed meanwhile shows whole or not at all. One entry per
    /// key, in request order, `None` where there is none; a key asked for twice is answered twice.
    ///
    /// # Errors
    /// As [`Bucket::get`].
    pub fn get_many<K: AsRef<[u8]>>(&self, keys: &[K]) -> Result<Vec<Option<Value>>> {
        self.get_many_with(keys, |_, value| value)
    }

    /// As [`Bucket::get_many`], each answer made into something else on the way: `make` gets the key's index. It may be
    /// asked again from the first key on, when a batch was committed meanwhile.
    ///
    /// # Errors
    /// As [`Bucket::get`].
    pub fn get_many_with<K: AsRef<[u8]>, R>(
        &self,
        keys: &[K],
        mut make: impl FnMut(usize, Option<Value>) -> R,
    ) -> Result<Vec<R>> {
        self.entry.check()?;
        let commits = &self.store.0.commits;
        let guard = &epoch::pin();
        let mut seen: Vec<Seen> = keys.iter().map(|key| Seen::new(commits.hash(self.entry.id, key.as_ref()))).collect();
        let mut answers = Vec::with_capacity(keys.len());
        commits.directory.snapshot(&mut seen, |seen| {
            answers.clear();
            for (keys, seen) in keys.chunks(PREFETCHED).zip(seen.chunks(PREFETCHED)) {
                let looked = commits.fetch(seen.iter().map(|seen| seen.hash), guard);
                for (key, looked) in keys.iter().zip(looked) {
                    let mut found = None;
                    commits.look_up_at(looked, self.entry.id, key.as_ref(), guard, &mut found)?;
                    answers.push(make(answers.len(), found.as_ref().map(|found| Value::new(found, guard))));
                }
            }
            Ok(())
        })?;
        Ok(answers)
    }

    /// Sets many keys as one commit: all or nothing, for readers and across a crash. Of equal keys the last wins. An empty
    /// list does nothing.
    ///
    /// # Errors
    /// As [`Bucket::set`], and `Invalid` for more than 1 GiB of keys and values.
    pub fn set_many<K: AsRef<[u8]>, V: AsRef<[u8]>>(&self, pairs: &[(K, V)]) -> Result<()> {
        self.finish(self.begin_set_many(pairs)?)
    }

    /// As [`Bucket::set_many`], without waiting for the disk.
    ///
    /// # Errors
    /// As [`Bucket::start_set`].
    pub fn start_set_many<K: AsRef<[u8]>, V: AsRef<[u8]>>(&self, pairs: &[(K, V)]) -> Result<Commit<()>> {
        Ok(self.start(self.begin_set_many(pairs)?))
    }

    fn begin_set_many<K: AsRef<[u8]>, V: AsRef<[u8]>>(&self, pairs: &[(K, V)]) -> Result<Told<()>> {
        let writes: Vec<Write<'_>> = pairs
            .iter()
            .map(|(key, value)| Write { bucket: self.entry.id, key: key.as_ref(), value: Some(value.as_ref()) })
            .collect();
        self.begin_many(&writes)
    }

    /// Deletes many keys as one commit. Absent ones are skipped, an empty list does nothing. On a full disk it waits as
    /// [`Bucket::delete`] does.
    ///
    /// # Errors
    /// As [`Bucket::set_many`].
    pub fn delete_many<K: AsRef<[u8]>>(&self, keys: &[K]) -> Result<()> {
        self.finish(self.store.free(|| self.begin_delete_many(keys))?)
    }

    /// As [`Bucket::delete_many`], without waiting for the disk, and without waiting for space.
    ///
    /// # Errors
    /// As [`Bucket::start_delete`].
    pub fn start_delete_many<K: AsRef<[u8]>>(&self, keys: &[K]) -> Result<Commit<()>> {
        Ok(self.start(self.begin_delete_many(keys)?))
    }

    fn begin_delete_many<K: AsRef<[u8]>>(&self, keys: &[K]) -> Result<Told<()>> {
        let writes: Vec<Write<'_>> =
            keys.iter().map(|key| Write { bucket: self.entry.id, key: key.as_ref(), value: None }).collect();
        self.begin_many(&writes)
    }

    fn begin_many(&self, writes: &[Write<'_>]) -> Result<Told<()>> {
        self.entry.check()?;
        Ok(self.store.write_many(writes, self.durability)?.map(drop))
    }
}
