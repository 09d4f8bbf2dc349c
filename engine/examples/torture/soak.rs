//! The campaign `soak`: everything at once on real files with the background thread, for as long as one likes: writes, reads,
//! listings, batches, buckets dropped, backups, verification, reopening. What must stay small is looked at after each round:
//! memory, file descriptors, threads, and the size of the store beside what it holds.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use kvasi::testing::collect_garbage;
use kvasi::testing::counts::{Case, Counts, Violation};
use kvasi::{Batch, Durability, ListOptions, Options, Store};

use crate::memory;

/// Keys of the bucket that stays, and bytes of the values.
const KEYS: u64 = 2_000;
const VALUE_BYTES: usize = 300;
const WRITES: u64 = 30_000;

/// What the rounds before this one hold at most is what every later one may hold: they have filled the caches.
const FIRST_ROUNDS: u64 = 4;
/// Bytes that may be held beyond that. All buffers of a store are gone with it; what is left is what threads and collectors
/// keep for themselves, and every leak of a byte per write would be four times this much after the first round.
const SLACK_BYTES: u64 = 16 << 10;

static FIRST: [AtomicU64; 3] = [AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0)];
static ROUNDS: AtomicU64 = AtomicU64::new(0);

/// Bytes allocated, open files, threads of this process; nothing where the system does not say.
fn resources() -> Option<[u64; 3]> {
    let files = std::fs::read_dir("/proc/self/fd").ok()?.count() as u64;
    let threads = std::fs::read_dir("/proc/self/task").ok()?.count() as u64;
    Some([memory::allocated(), files, threads])
}

fn bytes_in(dir: &Path) -> std::io::Result<u64> {
    std::fs::read_dir(dir)?.map(|entry| entry?.metadata().map(|m| m.len())).sum()
}

pub(crate) fn round(seed: u64, base: &Path) -> Result<Counts, Violation> {
    let fail = |what: String| Violation { seed, case: Case::default(), what };
    let dir = base.join(format!("kvasi-soak-{}", std::process::id()));
    let mut counts = Counts::default();
    memory::count();
    let round = ROUNDS.fetch_add(1, Ordering::Relaxed);
    let done = work(seed, &dir, &mut counts);
    let _ = std::fs::remove_dir_all(dir.join("backup"));
    done.map_err(&fail)?;
    counts.add("rounds", 1);
    // With the store closed, nothing is left of it: no memory, no file, no thread.
    collect_garbage();
    if let Some(now) = resources() {
        let what = [("bytes of memory", SLACK_BYTES), ("files", 0), ("threads", 0)];
        for ((what, slack), (first, now)) in what.into_iter().zip(FIRST.iter().zip(now)) {
            if round < FIRST_ROUNDS {
                first.fetch_max(now, Ordering::Relaxed);
            } else if now > first.load(Ordering::Relaxed) + slack {
                return Err(fail(format!("{now} {what}, {} after the first rounds", first.load(Ordering::Relaxed))));
            }
        }
    }
    Ok(counts)
}

fn work(seed: u64, dir: &Path, counts: &mut Counts) -> Result<(), String> {
    let failed = |e: kvasi::Error| format!("{e:?}");
    let path = dir.join("store");
    std::fs::create_dir_all(&path).map_err(|e| e.to_string())?;
    let options = Options::new().durability(Durability::INTERVAL).segment_bytes_max(1 << 20);
    let store = Store::open(&path, options).map_err(failed)?;
    let bucket = store.bucket("stays").map_err(failed)?;
    let value = |n: u64, i: u64| [&n.to_le_bytes()[..], &vec![i as u8; VALUE_BYTES]].concat();
    let result: Result<Vec<()>, String> = std::thread::scope(|scope| {
        let writer = |half: u64| {
            let (bucket, store) = (&bucket, &store);
            move || -> Result<(), String> {
                for i in 0..WRITES {
                    let key = (i * 7919 + seed * 31) % KEYS / 2 * 2 + half;
                    bucket.set(&key.to_le_bytes(), &value(key, i)).map_err(failed)?;
                    if i % 500 == 0 {
                        let goes = store.bucket(&format!("goes {half}")).map_err(failed)?;
                        let mut batch = Batch::new();
                        (0..40u64).for_each(|k| batch.set(&goes, &k.to_le_bytes(), &value(k, i)));
                        store.commit(&batch).map_err(failed)?;
                        store.drop_bucket(&format!("goes {half}")).map_err(failed)?;
                    }
                }
                Ok(())
            }
        };
        let reader = || -> Result<(), String> {
            for i in 0..WRITES {
                let key = (i * 104_729 + seed) % KEYS;
                if let Some(found) = bucket.get(&key.to_le_bytes()).map_err(failed)?
                    && found[..8] != key.to_le_bytes()
                {
                    return Err(format!("key {key} holds the value of another"));
                }
                if i % 3000 == 0 {
                    bucket.list_keys(ListOptions::default()).map_err(failed)?;
                }
            }
            Ok(())
        };
        let threads = [scope.spawn(writer(0)), scope.spawn(writer(1)), scope.spawn(reader)];
        threads.into_iter().map(|thread| thread.join().map_err(|_| "a panic".to_owned())?).collect()
    });
    result?;
    counts.add("writes", 2 * WRITES);
    store.backup(dir.join("backup")).map_err(failed)?;
    let report = store.verify().map_err(failed)?;
    if !report.findings.is_empty() {
        return Err(format!("{:?}", report.findings));
    }
    store.close().map_err(failed)?;
    let (holds, takes) = (KEYS * (VALUE_BYTES as u64 + 40), bytes_in(&path).map_err(|e| e.to_string())?);
    if takes > 8 * holds + (24 << 20) {
        return Err(format!("{takes} bytes on the disk for {holds}"));
    }
    Ok(())
}
