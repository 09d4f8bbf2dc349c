//! What buckets say they hold, against what they hold: through every kind of write, reopening, cleaning, expiry and drops.
//!
//! `KVASI_SEED` replays one run.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
#![allow(clippy::disallowed_methods, reason = "threads, and waits for the background thread")]

use std::time::Duration;

use kvasi::{Batch, Bucket, BucketStats, Durability, ListOptions, Options, Store};

/// Counted anew, key by key.
fn counted(bucket: &Bucket) -> (u64, u64, u64) {
    let no_limit = usize::MAX;
    let options = ListOptions { keys_max: no_limit, bytes_max: no_limit, entries_max: no_limit, ..Default::default() };
    let mut sum = (0, 0, 0);
    for key in bucket.list_keys(options).unwrap().iter() {
        sum.0 += 1;
        sum.1 += key.len() as u64;
        sum.2 += bucket.get(key).unwrap().unwrap().len() as u64;
    }
    sum
}

fn told(bucket: &Bucket) -> (u64, u64, u64) {
    let BucketStats { keys, key_bytes, value_bytes, .. } = bucket.stats().unwrap();
    (keys, key_bytes, value_bytes)
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

const NAMES: [&str; 3] = ["a", "b", "c"];

fn change(store: &Store, random: &mut Random) {
    let bucket = |random: &mut Random| store.bucket(NAMES[random.below(3) as usize]).unwrap();
    let key = |random: &mut Random| {
        let n = random.below(400);
        format!("key {n}{}", "x".repeat(n as usize % 30)).into_bytes()
    };
    let value = |random: &mut Random| vec![random.next() as u8; random.below(700) as usize];
    match random.below(12) {
        0..=1 => drop(bucket(random).delete(&key(random)).unwrap()),
        2 => {
            let mut batch = Batch::new();
            for _ in 0..1 + random.below(9) {
                match random.below(3) {
                    0 => batch.delete(&bucket(random), &key(random)),
                    _ => batch.set(&bucket(random), &key(random), &value(random)),
                }
            }
            store.commit(&batch).unwrap();
        }
        3 => drop(bucket(random).increment(b"count", random.next() as i32 as i64).unwrap()),
        4 => drop(bucket(random).compare_and_swap(&key(random), None, &value(random)).unwrap()),
        5 if random.below(200) == 0 => drop(store.drop_bucket(NAMES[random.below(3) as usize]).unwrap()),
        _ => drop(bucket(random).set(&key(random), &value(random)).unwrap()),
    }
}

#[test]
fn a_bucket_says_exactly_what_it_holds() {
    let seed = std::env::var("KVASI_SEED").map_or(0x0074_616c_6c79, |seed| seed.parse().unwrap());
    println!("KVASI_SEED={seed}");
    let mut random = Random(seed);
    for durability in [Durability::Os, Durability::Sync] {
        let dir = tempfile::tempdir().unwrap();
        let options = Options::new().durability(durability).segment_bytes_max(64 << 10);
        for round in 0..6 {
            let store = Store::open(dir.path().join("store"), options.clone()).unwrap();
            // Sometimes counted when there is much already, sometimes from the start, sometimes never.
            for part in 0..4 {
                for _ in 0..if durability == Durability::Sync { 60 } else { 6000 } {
                    change(&store, &mut random);
                }
                if round % 3 == 0 || part > 1 && round % 3 == 1 {
                    for name in NAMES {
                        let bucket = store.bucket(name).unwrap();
                        assert_eq!(told(&bucket), counted(&bucket), "{durability:?}, round {round}.{part}, {name}");
                    }
                }
            }
            if round % 2 == 0 {
                store.close().unwrap();
            }
        }
    }
}

#[test]
fn what_expires_counts_until_it_is_cleaned_away() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options::new().durability(Durability::Os).segment_bytes_max(64 << 10);
    let store = Store::open(dir.path().join("store"), options).unwrap();
    let bucket = store.bucket("b").unwrap();
    for i in 0..4000u32 {
        bucket.set_with_ttl(&i.to_le_bytes(), &[7; 600], Duration::from_millis(1)).unwrap();
    }
    assert_eq!(told(&bucket), (4000, 16_000, 2_400_000));
    let other = store.bucket("other").unwrap();
    let mut i = 0u32;
    while bucket.stats().unwrap().keys == 4000 {
        other.set(&(i % 10).to_le_bytes(), &[1; 1000]).unwrap();
        i += 1;
        assert!(i < 1_000_000, "nothing is cleaned");
    }
    let (keys, key_bytes, value_bytes) = told(&bucket);
    assert_eq!((key_bytes, value_bytes), (4 * keys, 600 * keys));
    assert_eq!(told(&other), counted(&other));
}

#[test]
fn threads_that_write_while_it_is_counted_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let options = Options::new().durability(Durability::Os);
    let store = Store::open(&path, options.clone()).unwrap();
    for i in 0..50_000u32 {
        store.bucket("b").unwrap().set(&i.to_le_bytes(), b"value").unwrap();
    }
    store.close().unwrap();
    let store = Store::open(&path, options).unwrap();
    let bucket = store.bucket("b").unwrap();
    std::thread::scope(|scope| {
        for thread in 0..2u32 {
            let bucket = bucket.clone();
            scope.spawn(move || {
                for i in 0..40_000u32 {
                    let key = (i * 2 + thread).wrapping_mul(2_654_435_761) % 60_000;
                    match i % 3 {
                        0 => drop(bucket.delete(&key.to_le_bytes()).unwrap()),
                        _ => drop(bucket.set(&key.to_le_bytes(), &key.to_le_bytes()[..i as usize % 4]).unwrap()),
                    }
                }
            });
        }
        for _ in 0..20 {
            bucket.stats().unwrap();
        }
    });
    assert_eq!(told(&bucket), counted(&bucket));
}
