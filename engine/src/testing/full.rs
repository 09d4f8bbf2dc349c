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

/// What ends a store's story early.
enum End {
    /// A promise is broken.
    Broken(String),
    /// Nothing is lost, but there is no space where some should have come back.
    StaysFull(String),
}

impl From<String> for End {
    fn from(what: String) -> End {
        End::Broken(what)
    }
}

type Step<T = ()> = std::result::Result<T, End>;

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

fn open(disk: &SimDisk, options: &Options) -> Step<Store> {
    Store::without_worker(Arc::new(disk.clone()), options.clone()).map_err(|e| match e.kind() {
        ErrorKind::NoSpace => End::StaysFull(format!("cannot open: {e:?}")),
        _ => End::Broken(format!("cannot open: {e:?}")),
    })
}

impl Full {
    fn new(seed: u64) -> Step<Full> {
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
            if commits.log.is_starved() && !commits.log.is_hopeless() && self.jobs.makes_runs() {
                return Err("a half-made key run keeps what the cleaner gives".to_owned());
            }
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
    fn fill(&mut self) -> Step<u64> {
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
    fn delete(&mut self, of_100: u64) -> Step {
        let bucket = self.bucket()?;
        let keys: Vec<u32> = self.holds.keys().copied().filter(|_| self.random.below(100) < of_100).collect();
        for (i, key) in keys.iter().enumerate() {
            let delete = || -> Result<bool> { bucket.delete(&key.to_le_bytes()) };
            let mut rounds = 0;
            loop {
                match delete() {
                    Ok(true) => break,
                    Ok(false) => return Err(format!("{key} is gone").into()),
                    Err(e) if e.kind() == ErrorKind::NoSpace && rounds < ROUNDS => {
                        self.work(1)?;
                        rounds += 1;
                    }
                    Err(e) if e.kind() == ErrorKind::NoSpace => {
                        return Err(End::StaysFull(format!("delete {i} of {}: {e:?}", keys.len())));
                    }
                    Err(e) => return Err(told(&e).into()),
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
    fn kill(&mut self) -> Step {
        self.disk = self.disk.restart();
        self.store = open(&self.disk, &self.options)?;
        self.jobs = Jobs::default();
        Ok(self.check()?)
    }

    /// Fills the disk and empties it again, with deaths of the process in between.
    fn fill_and_empty(&mut self, counts: &mut Counts) -> Step {
        let all = self.fill()?;
        for life in 0..2 {
            self.check()?;
            if self.random.below(2) == 0 {
                self.kill()?;
            }
            let held = self.holds.len() as u64;
            self.delete(50)?;
            self.check()?;
            if life == 1 {
                self.kill()?;
            }
            // At least a part of what was deleted can be written again, by itself.
            self.work(ROUNDS)?;
            let again = self.fill()?;
            if again < held / 5 {
                return Err(End::StaysFull(format!("of {held} keys half were deleted, and {again} found space then")));
            }
            counts.add("keys_after_deletes", again);
        }
        self.check()?;
        self.kill()?;
        let before = self.holds.len();
        self.delete(100)?;
        self.check()?;
        self.work(ROUNDS)?;
        let again = self.fill()?;
        if again < all / 4 {
            return Err(End::StaysFull(format!("all {before} keys were deleted, and {again} found space then")));
        }
        self.store.clone().close().map_err(|e| told(&e))?;
        self.kill()
    }

    /// When there is space from elsewhere, what the store holds is there, and writes go on.
    fn has_space_again(&mut self) -> Step {
        self.disk.set_quota(None);
        self.kill()?;
        let bucket = self.bucket()?;
        if !self.set(&bucket)? {
            return Err("there is space, and none is found".to_owned().into());
        }
        Ok(self.check()?)
    }
}

/// Has a store fill its disk, and come back by itself; why not, if it stayed full.
///
/// # Errors
/// A broken promise.
pub(crate) fn fill_and_empty(seed: u64, counts: &mut Counts) -> std::result::Result<Option<String>, String> {
    let broken = |end: End| match end {
        End::Broken(what) | End::StaysFull(what) => what,
    };
    let mut full = Full::new(seed).map_err(broken)?;
    counts.add("stores_filled", 1);
    let why = match full.fill_and_empty(counts) {
        Ok(()) => return Ok(None),
        Err(End::Broken(what)) => return Err(what),
        Err(End::StaysFull(why)) => why,
    };
    counts.add("stores_that_stayed_full", 1);
    full.has_space_again().map_err(broken)?;
    Ok(Some(why))
}
