//! A disk that the store fills by itself, and that deletes have to empty again: scattered ones, so that no segment is dead as a whole.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Random;
use super::counts::Counts;
use crate::io::sim::{self, Image, SimDisk};
use crate::worker::{Jobs, Next};
use crate::{Bucket, Durability, ErrorKind, Options, Result, Store};

/// Bytes of a segment.
const SEGMENT_BYTES: u64 = 4096;
/// Rounds of background work in which there must be space again.
const ROUNDS: u32 = 3000;
/// Rounds in which there is nothing to do, after which there will not be.
const IDLE_ROUNDS: u32 = 6;

struct Full {
    disk: SimDisk,
    options: Options,
    store: Store,
    jobs: Jobs,
    random: Random,
    value_bytes: u64,
    /// What the store holds.
    holds: BTreeMap<u32, Vec<u8>>,
    next: u32,
}

fn told(e: &crate::Error) -> String {
    format!("{e:?}")
}

fn open(disk: &SimDisk, options: &Options) -> std::result::Result<Store, String> {
    Store::without_worker(Arc::new(disk.clone()), options.clone()).map_err(|e| format!("cannot open: {e:?}"))
}

impl Full {
    fn new(seed: u64) -> std::result::Result<Full, String> {
        sim::set_clock(1_000_000);
        let mut random = Random::new(seed);
        let disk = SimDisk::new(Image::new(), seed);
        disk.keep_promises();
        disk.set_quota(Some((28 + random.below(24)) * SEGMENT_BYTES));
        let durability = [Durability::Sync, Durability::Os, Durability::INTERVAL][random.below(3) as usize];
        let options = Options { segment_bytes_max: SEGMENT_BYTES, ..Options::new().durability(durability) };
        let value_bytes = [40, 100, 300, 900][random.below(4) as usize];
        let store = open(&disk, &options)?;
        let (jobs, holds) = (Jobs::default(), BTreeMap::new());
        Ok(Full { disk, options, store, jobs, random, value_bytes, holds, next: 0 })
    }

    fn bucket(&self) -> std::result::Result<Bucket, String> {
        self.store.bucket("b").map_err(|e| told(&e))
    }

    fn work(&mut self, rounds: u32) -> std::result::Result<(), String> {
        let commits = &self.store.0.commits;
        let (mut idle, mut moved) = (0, 0);
        for _ in 0..rounds {
            let next = self.jobs.round(commits, false).ok_or("background work has ended")?;
            // Key runs are begun again and again, and find no space.
            let moves = std::mem::replace(&mut moved, commits.counters.moved_bytes.load(Ordering::Relaxed)) != moved;
            idle = if moves { 0 } else { idle + u32::from(next != Next::AtOnce) };
            if idle > IDLE_ROUNDS {
                break;
            }
        }
        Ok(())
    }

    /// Whether there was space for a new key.
    fn set(&mut self, bucket: &Bucket) -> std::result::Result<bool, String> {
        let value = vec![self.next as u8; (self.value_bytes / 2 + self.random.below(self.value_bytes)) as usize];
        match bucket.set(&self.next.to_le_bytes(), &value) {
            Ok(_) => {
                self.holds.insert(self.next, value);
                self.next += 1;
                Ok(true)
            }
            Err(e) if e.kind() == ErrorKind::NoSpace => Ok(false),
            Err(e) => Err(told(&e)),
        }
    }

    /// New keys until there is no space for one, however long the background works.
    fn fill(&mut self) -> std::result::Result<u64, String> {
        let bucket = self.bucket()?;
        let mut set = 0;
        loop {
            if self.random.below(40) == 0 {
                self.work(2)?;
            }
            if !self.set(&bucket)? {
                self.work(ROUNDS)?;
                if !self.set(&bucket)? {
                    return Ok(set);
                }
            }
            set += 1;
        }
    }

    /// Deletes a share of all keys, here and there. None may find that there is no space, in the end.
    fn delete(&mut self, of_100: u64) -> std::result::Result<(), String> {
        let bucket = self.bucket()?;
        let keys: Vec<u32> = self.holds.keys().copied().filter(|_| self.random.below(100) < of_100).collect();
        for (i, key) in keys.iter().enumerate() {
            let delete = || -> Result<bool> { bucket.delete(&key.to_le_bytes()) };
            let mut rounds = 0;
            loop {
                match delete() {
                    Ok(true) => break,
                    Ok(false) => return Err(format!("{key} is gone")),
                    Err(e) if e.kind() == ErrorKind::NoSpace && rounds < ROUNDS => {
                        self.work(1)?;
                        rounds += 1;
                    }
                    Err(e) => return Err(format!("delete {i} of {} on a full disk: {e:?}", keys.len())),
                }
            }
            self.holds.remove(key);
        }
        Ok(())
    }

    fn check(&self) -> std::result::Result<(), String> {
        if let Some(violation) = self.disk.violation() {
            return Err(violation);
        }
        let bucket = self.bucket()?;
        for key in 0..self.next {
            let there = bucket.get(&key.to_le_bytes()).map_err(|e| told(&e))?;
            if there.as_deref() != self.holds.get(&key).map(|value| &value[..]) {
                return Err(format!("{key} holds something else"));
            }
        }
        Ok(())
    }

    /// The process dies, and the next one opens the store, on a disk as full as it is.
    fn kill(&mut self) -> std::result::Result<(), String> {
        let disk = self.disk.restart();
        self.store = open(&disk, &self.options)?;
        self.disk = disk;
        self.jobs = Jobs::default();
        self.check()
    }
}

/// Fills the disk and empties it again, with deaths of the process in between.
pub(crate) fn fill_and_empty(seed: u64, counts: &mut Counts) -> std::result::Result<(), String> {
    let mut full = Full::new(seed)?;
    let all = full.fill()?;
    for life in 0..2 {
        full.check()?;
        if full.random.below(2) == 0 {
            full.kill()?;
        }
        let held = full.holds.len() as u64;
        full.delete(50)?;
        full.check()?;
        if life == 1 {
            full.kill()?;
        }
        // At least a part of what was deleted can be written again, by itself.
        full.work(ROUNDS)?;
        let again = full.fill()?;
        if again < held / 5 {
            return Err(format!("of {held} keys half were deleted, and {again} found space then"));
        }
        counts.add("keys_after_deletes", again);
    }
    full.check()?;
    full.kill()?;
    let before = full.holds.len();
    full.delete(100)?;
    full.check()?;
    full.work(ROUNDS)?;
    let again = full.fill()?;
    if again < all / 4 {
        return Err(format!("all {before} keys were deleted, and {again} found space then"));
    }
    full.store.clone().close().map_err(|e| told(&e))?;
    full.kill()?;
    counts.add("stores_filled", 1);
    Ok(())
}
