//! Key runs: listings are right whatever runs there are, in the making, merged, missing or damaged.
//!
//! `KVASI_SEED` replays a run.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
#![allow(clippy::disallowed_methods, reason = "waits for the background thread; files are damaged here on purpose")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kvasi::{Bucket, Durability, ListOptions, Options, Stats, Store};

fn options() -> Options {
    Options::new().durability(Durability::Os).segment_bytes_max(64 << 10)
}

/// Waits for the background thread. The limit is only so that a broken one does not hang the test.
fn wait_for(store: &Store, what: impl Fn(&Stats) -> bool) {
    let start = Instant::now();
    while !what(&store.stats()) {
        assert!(start.elapsed() < Duration::from_secs(60), "{:?}", store.stats());
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn list(bucket: &Bucket, keys_max: usize) -> Vec<Vec<u8>> {
    let mut keys: Vec<Vec<u8>> = Vec::new();
    let mut after = None;
    loop {
        let page = bucket.list_keys(ListOptions { after: after.as_deref(), keys_max, ..Default::default() }).unwrap();
        keys.extend(page.iter().map(<[u8]>::to_vec));
        match page.next() {
            Some(next) => after = Some(next.to_vec()),
            None => return keys,
        }
    }
}

fn key(i: u32) -> Vec<u8> {
    format!("key {:08x}", i.wrapping_mul(2_654_435_761)).into_bytes()
}

/// A store with runs, closed: some keys written, written again, deleted. What its listing must be.
fn make(path: &Path) -> Vec<Vec<u8>> {
    let store = Store::open(path, options()).unwrap();
    let bucket = store.bucket("b").unwrap();
    for i in 0..6000 {
        bucket.set(&key(i % 5000), &[i as u8; 100]).unwrap();
    }
    for i in (0..5000).step_by(3) {
        bucket.delete(&key(i)).unwrap();
    }
    for i in 0..300 {
        bucket.set(&key(5000 + i), &[0; 100]).unwrap();
    }
    wait_for(&store, |stats| stats.runs >= 1);
    drop(bucket);
    store.close().unwrap();
    let keys: BTreeSet<Vec<u8>> = (0..5300).filter(|i| i % 3 != 0 || *i >= 5000).map(key).collect();
    keys.into_iter().collect()
}

fn runs(path: &Path) -> Vec<PathBuf> {
    let mut runs: Vec<PathBuf> = fs::read_dir(path).unwrap().map(|e| e.unwrap().path()).collect();
    runs.retain(|p| p.extension().is_some_and(|e| e == "run"));
    runs.sort();
    runs
}

fn copy(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    fs::create_dir(to).unwrap();
    for file in fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}

#[test]
fn a_reopened_store_lists_from_its_runs() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let expected = make(&path);
    for read_only in [false, true, false] {
        let store =
            if read_only { Store::open_read_only(&path, options()) } else { Store::open(&path, options()) }.unwrap();
        assert!(store.report().runs >= 1 && store.report().runs_thrown_away == 0, "{:?}", store.report());
        let bucket = store.existing_bucket("b").unwrap().unwrap();
        for keys_max in [1000, 17] {
            assert_eq!(list(&bucket, keys_max), expected);
        }
    }
}

#[test]
fn a_missing_or_damaged_run_is_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let (path, to) = (dir.path().join("store"), dir.path().join("copy"));
    let expected = make(&path);
    for run in runs(&path) {
        let good = fs::read(&run).unwrap();
        let name = run.file_name().unwrap();
        let mut damages: Vec<Option<Vec<u8>>> = vec![None, Some(Vec::new()), Some(good[..good.len() / 2].to_vec())];
        damages.push(Some([&good[..], b"more"].concat()));
        damages.extend((0..good.len()).step_by(good.len() / 20).map(|at| {
            let mut bad = good.clone();
            bad[at] ^= 4;
            Some(bad)
        }));
        for damage in damages {
            copy(&path, &to);
            match &damage {
                None => fs::remove_file(to.join(name)).unwrap(),
                Some(bytes) => fs::write(to.join(name), bytes).unwrap(),
            }
            let store = Store::open(&to, options()).unwrap();
            let bucket = store.bucket("b").unwrap();
            assert_eq!(list(&bucket, 500), expected);
            // Found at open, or by the listing: either way they are made again, and stay right.
            wait_for(&store, |stats| stats.runs >= 1);
            assert_eq!(list(&bucket, 500), expected);
            drop(bucket);
            store.close().unwrap();
            let store = Store::open(&to, options()).unwrap();
            assert_eq!(store.report().runs_thrown_away, 0);
            assert_eq!(list(&store.bucket("b").unwrap(), 500), expected);
        }
    }
}

#[test]
fn left_over_run_files_are_removed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let expected = make(&path);
    let before = runs(&path);
    let left_over = path.join("00000000deadbeef.run");
    fs::copy(&before[0], &left_over).unwrap();
    let store = Store::open(&path, options()).unwrap();
    assert!(!left_over.exists());
    assert_eq!(list(&store.bucket("b").unwrap(), 1000), expected);
}

#[test]
fn deleted_keys_and_dropped_buckets_vanish_from_the_runs() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("store"), options()).unwrap();
    let (kept, dropped) = (store.bucket("kept").unwrap(), store.bucket("dropped").unwrap());
    for i in 0..4000 {
        kept.set(&key(i), b"").unwrap();
        dropped.set(&key(i), b"").unwrap();
    }
    store.drop_bucket("dropped").unwrap();
    (0..4000).filter(|i| i % 100 != 0).for_each(|i| assert!(kept.delete(&key(i)).unwrap()));
    store.sync().unwrap();
    // More of the log, so that what is above is sealed and merged with what comes.
    for i in 0..20_000u32 {
        kept.set(b"the same", &i.to_le_bytes()).unwrap();
    }
    wait_for(&store, |stats| stats.runs >= 1 && stats.run_bytes < 4000);
    assert_eq!(list(&kept, 1000).len(), 41);
    drop((kept, dropped));
    store.close().unwrap();
    let store = Store::open(dir.path().join("store"), options()).unwrap();
    assert_eq!(list(&store.bucket("kept").unwrap(), 1000).len(), 41);
}

#[test]
fn writes_that_are_not_durable_are_not_listed() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("store"), options()).unwrap();
    let bucket = store.bucket("b").unwrap();
    let synced = bucket.with_durability(Durability::Sync);
    for i in 0..200 {
        bucket.set(&key(i), &[0; 1000]).unwrap();
    }
    let listed = list(&bucket, 1000);
    let pending: Vec<_> = (200..300).map(|i| synced.start_set(&key(i), b"")).collect();
    let deletes: Vec<_> = (0..100).map(|i| synced.start_delete(&key(i))).collect();
    for i in 100..200 {
        bucket.set(&key(i), b"more").unwrap();
    }
    // The background thread may have synced meanwhile for its own ends: what it made visible may be listed, and must be
    // what `exists` says.
    let exists = |i: u32| bucket.exists(&key(i)).unwrap();
    let before: Vec<bool> = (0..300).map(exists).collect();
    let now: BTreeSet<Vec<u8>> = list(&bucket, 1000).into_iter().collect();
    let after: Vec<bool> = (0..300).map(exists).collect();
    for i in 0..300 {
        let (listed, i) = (now.contains(&key(i)), i as usize);
        assert!(listed == before[i] || listed == after[i], "key {i}");
    }
    assert!(listed.len() == 200 && pending.len() + deletes.len() == 200);
    store.sync().unwrap();
    assert_eq!(list(&bucket, 1000).len(), 200);
}

#[test]
fn listings_are_right_while_runs_are_made_merged_and_segments_cleaned() {
    let seed = std::env::var("KVASI_SEED").map_or(0x5eed, |text| text.parse().unwrap());
    println!("seed {seed}");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    for round in 0..4u64 {
        let store = Store::open(&path, options()).unwrap();
        let bucket = store.bucket("b").unwrap();
        // Present throughout, absent throughout.
        let fixed: BTreeSet<Vec<u8>> = (0..400).map(|i| [b"a", &key(i)[..]].concat()).collect();
        for key in &fixed {
            bucket.set(key, b"fixed").unwrap();
            bucket.set(&[key, &b" gone"[..]].concat(), b"").unwrap();
            bucket.delete(&[key, &b" gone"[..]].concat()).unwrap();
        }
        let done = AtomicBool::new(false);
        let present: Vec<BTreeSet<Vec<u8>>> = std::thread::scope(|scope| {
            let writers: Vec<_> = (0..2u64)
                .map(|writer| {
                    let bucket = &bucket;
                    scope.spawn(move || {
                        let mut random = seed ^ round << 32 ^ writer << 48;
                        let mut present = BTreeSet::new();
                        for _ in 0..15_000 {
                            random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
                            let key = format!("w{round}{writer} {:04}", (random >> 40) % 1500).into_bytes();
                            match random >> 33 & 15 {
                                0..=6 => assert_eq!(bucket.delete(&key).unwrap(), present.contains(&key)),
                                7 => bucket.set_many(&[(&key, "batch"), (&key, "again")]).unwrap(),
                                8 => assert!(bucket.set_until(&key, b"expired", 1).unwrap().get() > 0),
                                9 => {
                                    bucket.set_with_ttl(&key, b"later", Duration::from_secs(3600)).unwrap();
                                }
                                _ => {
                                    bucket.set(&key, &[7; 150]).unwrap();
                                }
                            }
                            let is_set = matches!(random >> 33 & 15, 7 | 9..);
                            if is_set {
                                present.insert(key)
                            } else {
                                present.remove(&key)
                            };
                        }
                        present
                    })
                })
                .collect();
            let listing = scope.spawn(|| {
                while !done.load(Ordering::Acquire) {
                    let mut listed = list(&bucket, 97);
                    assert!(listed.is_sorted_by(|a, b| a < b), "in order, each once");
                    listed.retain(|key| key.starts_with(b"a"));
                    assert!(listed.iter().eq(&fixed), "what existed throughout, and nothing that did not");
                }
            });
            let present = writers.into_iter().map(|writer| writer.join().unwrap()).collect();
            done.store(true, Ordering::Release);
            listing.join().unwrap();
            present
        });
        let expected = |bucket: &Bucket| {
            let expected: BTreeSet<Vec<u8>> = present.iter().flatten().cloned().collect();
            let prefix = format!("w{round}");
            let page = bucket
                .list_keys(ListOptions { prefix: prefix.as_bytes(), keys_max: 10_000, ..Default::default() })
                .unwrap();
            assert!(page.iter().eq(expected.iter().map(|key| key.as_slice())));
        };
        expected(&bucket);
        drop(bucket);
        // With and without a chance for the background thread to catch up.
        if round % 2 == 0 {
            wait_for(&store, |stats| stats.runs <= 3);
            expected(&store.bucket("b").unwrap());
        }
        store.close().unwrap();
        let store = Store::open(&path, options()).unwrap();
        assert_eq!(store.report().runs_thrown_away, 0);
        expected(&store.bucket("b").unwrap());
    }
}

#[test]
fn bounds_hold_and_every_page_goes_on_where_the_last_one_ended() {
    let store = Store::in_memory(Options::new().segment_bytes_max(64 << 10)).unwrap();
    let bucket = store.bucket("b").unwrap();
    for i in 0..3000 {
        bucket.set(&key(i), &[0; 50]).unwrap();
    }
    (0..3000).filter(|i| i % 10 != 0).for_each(|i| assert!(bucket.delete(&key(i)).unwrap()));
    let (mut pages, mut keys, mut after) = (0, Vec::new(), None);
    loop {
        let options = ListOptions { after: after.as_deref(), entries_max: 50, bytes_max: 60, ..Default::default() };
        let page = bucket.list_keys(options).unwrap();
        assert!(page.iter().map(<[u8]>::len).sum::<usize>() <= 60);
        keys.extend(page.iter().map(<[u8]>::to_vec));
        pages += 1;
        match page.next() {
            Some(next) => {
                assert!(after.as_deref() < Some(&next[..]), "every page moves on");
                after = Some(next.to_vec());
            }
            None => break,
        }
    }
    let expected: BTreeSet<Vec<u8>> = (0..3000).step_by(10).map(key).collect();
    assert!(keys.iter().eq(&expected) && pages >= 60);
}
