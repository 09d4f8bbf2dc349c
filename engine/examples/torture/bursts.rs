//! The campaign `bursts`: real files and the background threads, writers that rest between bursts, and values from nothing to megabytes:
//! so that what is done when nobody writes meets those who begin again. Each thread knows what its keys hold; a round that does not
//! end is a violation.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread::sleep;
use std::time::Duration;

use kvasi::testing::counts::{Case, Counts, Violation};
use kvasi::{Bucket, Durability, Options, Store};

use crate::dice::Dice;

const THREADS: u64 = 3;
/// Keys of a thread.
const KEYS: u64 = 40;
/// Bursts of a thread, and what it writes in one at most.
const BURSTS: u64 = 25;
const BURST_BYTES: u64 = 6 << 20;
/// A round takes some seconds; on a slow disk, with all else beside it, some ten.
const PATIENCE: Duration = Duration::from_secs(300);

/// What the `n`-th write of a key stores: told by its beginning, its length and every byte of the rest.
fn value(key: u64, n: u64, bytes: usize) -> Vec<u8> {
    let mut value = vec![(key * 31 + n * 7) as u8; bytes];
    let stamp = [key.to_le_bytes(), n.to_le_bytes()].concat();
    let told = bytes.min(stamp.len());
    value[..told].copy_from_slice(&stamp[..told]);
    value
}

/// By key: the number of the write that it holds, and the bytes of its value; nothing for one that was deleted.
type Holds = BTreeMap<u64, Option<(u64, usize)>>;

fn check(bucket: &Bucket, key: u64, holds: Option<(u64, usize)>) -> Result<(), String> {
    let found = bucket.get(&key.to_le_bytes()).map_err(|e| format!("{e:?}"))?;
    let as_it_should = match (&found, holds) {
        (None, None) => true,
        (Some(found), Some((n, bytes))) => found[..] == value(key, n, bytes),
        _ => false,
    };
    let len = found.map(|found| found.len());
    if as_it_should { Ok(()) } else { Err(format!("key {key} should hold {holds:?}, and {len:?} bytes are there")) }
}

/// What a thread's keys hold in the end, and how many it has written or looked at.
fn writer(bucket: &Bucket, thread: u64, seed: u64) -> Result<(Holds, u64), String> {
    let failed = |e: kvasi::Error| format!("{e:?}");
    let mut dice = Dice(seed * THREADS + thread);
    let mut holds = Holds::new();
    let mut n = 0;
    for _ in 0..BURSTS {
        let (least, most) =
            dice.one_of(&[(0, 64), (100, 5_000), (65_536, 65_537), (120_000, 600_000), (1 << 20, 3 << 20)]);
        let mut left = dice.below(BURST_BYTES);
        let mut left_calls = dice.below(2_000);
        while left > 0 && left_calls > 0 {
            left_calls -= 1;
            let mut pair = || {
                n += 1;
                let (key, bytes) = (dice.below(KEYS) * THREADS + thread, least + dice.below(most - least));
                left = left.saturating_sub(bytes + 50);
                (key, n, bytes as usize)
            };
            let (key, number, bytes) = pair();
            match number % 16 {
                0 => {
                    bucket.delete(&key.to_le_bytes()).map_err(failed)?;
                    holds.insert(key, None);
                }
                1 => {
                    let pairs = [(key, number, bytes), pair(), pair()];
                    let values = pairs.map(|(key, n, bytes)| (key.to_le_bytes(), value(key, n, bytes)));
                    bucket.set_many(&values).map_err(failed)?;
                    holds.extend(pairs.map(|(key, n, bytes)| (key, Some((n, bytes)))));
                }
                2 => check(bucket, key, holds.get(&key).copied().flatten())?,
                _ => {
                    bucket.set(&key.to_le_bytes(), &value(key, number, bytes)).map_err(failed)?;
                    holds.insert(key, Some((number, bytes)));
                }
            }
        }
        sleep(Duration::from_millis(dice.one_of(&[0, 1, 15, 25, 45, 130])));
    }
    Ok((holds, n))
}

fn work(seed: u64, path: &Path) -> Result<Counts, String> {
    let failed = |e: kvasi::Error| format!("{e:?}");
    let mut dice = Dice(seed);
    let options = Options::new()
        .durability(dice.one_of(&[Durability::Os, Durability::Os, Durability::INTERVAL, Durability::Sync]))
        .segment_bytes_max(dice.one_of(&[1 << 20, 4 << 20, 64 << 20]));
    let mut counts = Counts::default();
    let mut told = Holds::new();
    {
        let store = Store::open(path, options.clone()).map_err(failed)?;
        let bucket = store.bucket("b").map_err(failed)?;
        let results: Vec<_> = std::thread::scope(|scope| {
            let bucket = &bucket;
            let threads: Vec<_> =
                (0..THREADS).map(|thread| scope.spawn(move || writer(bucket, thread, seed))).collect();
            threads.into_iter().map(|thread| thread.join().map_err(|_| "a panic".to_owned())?).collect()
        });
        for result in results {
            let (holds, keys) = result?;
            told.extend(holds);
            counts.add("keys", keys);
        }
        told.iter().try_for_each(|(&key, &holds)| check(&bucket, key, holds))?;
        store.close().map_err(failed)?;
    }
    let store = Store::open(path, options).map_err(failed)?;
    let bucket = store.bucket("b").map_err(failed)?;
    told.iter().try_for_each(|(&key, &holds)| check(&bucket, key, holds))?;
    let report = store.verify().map_err(failed)?;
    if !report.findings.is_empty() {
        return Err(format!("{:?}", report.findings));
    }
    counts.add("rounds", 1);
    Ok(counts)
}

#[allow(clippy::disallowed_methods, reason = "a round that hangs must not keep the campaign from saying so")]
pub(crate) fn round(seed: u64, base: &Path) -> Result<Counts, Violation> {
    let fail = |what: String| Violation { seed, case: Case::default(), what };
    let dir = base.join(format!("kvasi-bursts-{}-{seed}", std::process::id()));
    let (done, outcome) = channel();
    let path = dir.clone();
    std::thread::spawn(move || done.send(work(seed, &path)));
    let counts = match outcome.recv_timeout(PATIENCE) {
        Ok(worked) => worked.map_err(&fail)?,
        Err(RecvTimeoutError::Timeout) => return Err(fail(format!("no end after {PATIENCE:?}"))),
        Err(RecvTimeoutError::Disconnected) => return Err(fail("a panic".to_owned())),
    };
    let _ = std::fs::remove_dir_all(&dir);
    Ok(counts)
}
