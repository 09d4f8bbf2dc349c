//! The campaign `full-disk`: a store fills a real file system (a small one: see `.ci/full-disk`) until a write finds no space, and comes
//! back by itself when keys are deleted, here and there; it is opened again where the disk is full, and holds what it was told.

use std::collections::BTreeMap;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use kvasi::testing::collect_garbage;
use kvasi::testing::counts::{Case, Counts, Violation};
use kvasi::{Access, Bucket, Durability, ErrorKind, Options, Store};

/// Longest time in which writes must go on when there is something to be had.
const COMES_BACK: Duration = Duration::from_secs(60);
/// A write without space, so long after the last one that had some, finds none any more.
const SETTLED: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(5);

fn options(seed: u64) -> Options {
    let durability = [Durability::Os, Durability::INTERVAL, Durability::Sync][(seed % 3) as usize];
    let access = if seed % 4 == 3 { Access::Unmapped } else { Access::Auto };
    Options::new().durability(durability).access(access)
}

fn mixed(a: u64, b: u64) -> u64 {
    let mut x = a.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ b.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^= x >> 29;
    x = x.wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 32
}

struct Full {
    seed: u64,
    value_bytes: u64,
    /// Whether each key that was ever set is there.
    holds: BTreeMap<u64, bool>,
    counts: Counts,
}

impl Full {
    fn key(n: u64) -> String {
        format!("user:{n:016x}")
    }

    fn value(&self, n: u64) -> Vec<u8> {
        let bytes = self.value_bytes / 2 + mixed(n, self.seed) % self.value_bytes;
        (0..bytes).map(|i| (mixed(n, i / 8) >> (8 * (i % 8))) as u8).collect()
    }

    /// Sets new keys until none has found space for a while; how many.
    fn fill(&mut self, bucket: &Bucket) -> Result<u64, String> {
        let (mut set, mut last) = (0, Instant::now());
        loop {
            let n = self.holds.len() as u64;
            match bucket.set(Full::key(n).as_bytes(), &self.value(n)) {
                Ok(_) => {
                    self.holds.insert(n, true);
                    (set, last) = (set + 1, Instant::now());
                }
                Err(e) if e.kind() == ErrorKind::NoSpace && last.elapsed() > SETTLED => return Ok(set),
                Err(e) if e.kind() == ErrorKind::NoSpace => sleep(PAUSE),
                Err(e) => return Err(format!("a write failed: {e:?}")),
            }
        }
    }

    /// Deletes so many of a hundred keys, evenly. Each is made at once, or when the cleaner has come to something.
    fn delete(&mut self, bucket: &Bucket, of_100: u64, salt: u64) -> Result<(), String> {
        let chosen = |n: u64| mixed(n, self.seed ^ salt) % 100 < of_100;
        let keys: Vec<u64> = self.holds.iter().filter(|(n, there)| **there && chosen(**n)).map(|(n, _)| *n).collect();
        for (i, n) in keys.iter().enumerate() {
            let begun = Instant::now();
            let deleted = loop {
                match bucket.delete(Full::key(*n).as_bytes()) {
                    Err(e) if e.kind() == ErrorKind::NoSpace && begun.elapsed() < COMES_BACK => {
                        self.counts.add("deletes_refused", 1);
                        sleep(PAUSE);
                    }
                    done => break done,
                }
            };
            match deleted {
                Ok(true) => {}
                other => return Err(format!("delete {i} of {} on a full disk: {other:?}", keys.len())),
            }
            let ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
            self.counts.add("ms_waited_by_deletes", if ms > 1 { ms } else { 0 });
            self.holds.insert(*n, false);
        }
        self.counts.add("deletes", keys.len() as u64);
        Ok(())
    }

    fn check(&self, bucket: &Bucket) -> Result<(), String> {
        for (&n, &there) in &self.holds {
            let found = bucket.get(Full::key(n).as_bytes()).map_err(|e| format!("a read failed: {e:?}"))?;
            if found.as_deref() != there.then(|| self.value(n)).as_deref() {
                return Err(format!("key {n} holds something else"));
            }
        }
        Ok(())
    }

    fn run(&mut self, dir: &Path) -> Result<(), String> {
        let failed = |e: kvasi::Error| format!("{e:?}");
        for life in 0..3 {
            let store = Store::open(dir, options(self.seed)).map_err(|e| format!("life {life}: cannot open: {e:?}"))?;
            let bucket = store.bucket("b").map_err(failed)?;
            self.check(&bucket)?;
            let set = self.fill(&bucket)?;
            self.counts.add("keys", set);
            self.check(&bucket)?;
            let held = self.holds.values().filter(|there| **there).count() as u64;
            self.delete(&bucket, 50, life)?;
            let again = self.fill(&bucket)?;
            // Where a tombstone, which stays for as long as there is an older segment, takes half of what its record took, less comes back.
            let least = held / if self.value_bytes < 100 { 8 } else { 5 };
            if again < least {
                return Err(format!("of {held} keys half were deleted, and {again} found space then"));
            }
            self.counts.add("keys_after_deletes", again);
            self.check(&bucket)?;
            let findings = store.verify().map_err(failed)?.findings;
            if !findings.is_empty() {
                return Err(format!("{findings:?}"));
            }
            drop(bucket);
            store.close().map_err(failed)?;
            collect_garbage();
        }
        Ok(())
    }
}

/// A store that fills its disk in a few lives.
pub(crate) fn round(seed: u64, base: &Path) -> Result<Counts, Violation> {
    let dir = base.join(format!("kvasi-full-{seed}"));
    let value_bytes = [100, 30, 1000, 20_000][(mixed(seed, 1) % 4) as usize];
    let mut full = Full { seed, value_bytes, holds: BTreeMap::new(), counts: Counts::default() };
    full.run(&dir).map_err(|what| Violation {
        seed,
        case: Case::default(),
        what: format!("{what} ({value_bytes} bytes a value; so far: {})", full.counts),
    })?;
    let _ = std::fs::remove_dir_all(&dir);
    full.counts.add("rounds", 1);
    Ok(full.counts)
}
