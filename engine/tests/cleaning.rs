//! Space comes back: overwritten, deleted, expired and dropped data is cleaned away, and nothing else is.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
#![allow(clippy::disallowed_methods, reason = "waits for the background thread")]

use std::time::{Duration, Instant};

use kvasi::{Durability, ListOptions, Options, Store};

fn open(dir: &tempfile::TempDir) -> Store {
    let options = Options::new().durability(Durability::Os).segment_bytes_max(256 << 10);
    Store::open(dir.path().join("store"), options).unwrap()
}

/// Waits until the log is at most `bytes` long. The limit is only so that a broken cleaner does not hang the test.
fn shrinks_to(store: &Store, bytes: u64) {
    let start = Instant::now();
    while store.stats().log_bytes > bytes {
        assert!(start.elapsed() < Duration::from_secs(600), "{:?}", store.stats());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Bytes of all files. One that the background thread removes meanwhile takes none.
fn files(dir: &tempfile::TempDir) -> u64 {
    let files = std::fs::read_dir(dir.path().join("store")).unwrap();
    files.filter_map(|file| file.unwrap().metadata().ok()).map(|file| file.len()).sum()
}

const MIB: u64 = 1 << 20;

#[test]
fn overwriting_keeps_the_log_within_bounds_and_every_last_value() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let bucket = store.bucket("b").unwrap();
    let key = |i: u32| format!("key {}", i % 4000).into_bytes();
    for i in 0..160_000u32 {
        bucket.set(&key(i.wrapping_mul(2_654_435_761) >> 8), &[&i.to_le_bytes()[..], &[7; 500]].concat()).unwrap();
    }
    let expected: Vec<Vec<u8>> = (0..4000).map(|i| bucket.get(&key(i)).unwrap().unwrap().to_vec()).collect();
    let versions: Vec<_> = (0..4000).map(|i| bucket.get(&key(i)).unwrap().unwrap().version()).collect();
    shrinks_to(&store, 5 * MIB);
    let check = |store: &Store| {
        let bucket = store.bucket("b").unwrap();
        for i in 0..4000 {
            let value = bucket.get(&key(i)).unwrap().unwrap();
            assert_eq!(value[..], expected[i as usize]);
            assert_eq!(value.version(), versions[i as usize], "moving keeps the version");
        }
    };
    check(&store);
    drop(bucket);
    store.close().unwrap();
    assert!(files(&dir) <= 6 * MIB, "{} bytes of files", files(&dir));
    check(&open(&dir));
}

/// Waits until the files take at most `bytes`.
fn rests_at(dir: &tempfile::TempDir, store: &Store, bytes: u64) {
    let start = Instant::now();
    while files(dir) > bytes {
        assert!(start.elapsed() < Duration::from_secs(600), "{} bytes, {:?}", files(dir), store.stats());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn at_rest_little_is_dead_or_kept_ready_and_the_log_goes_on_after() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("store"), Options::new().durability(Durability::Os)).unwrap();
    let bucket = store.bucket("b").unwrap();
    let user_bytes = 40_000 * 1004;
    for round in 0..3u8 {
        for i in 0..40_000u32 {
            bucket.set(&i.wrapping_mul(2_654_435_761).to_le_bytes(), &[round; 1000]).unwrap();
        }
        // Dead: a sixteenth. Ahead: an eighth and a bit of a segment, which is at most an eighth of the log. Key runs: 1 %.
        rests_at(&dir, &store, user_bytes + user_bytes / 8);
        for i in 0..40_000u32 {
            let value = bucket.get(&i.wrapping_mul(2_654_435_761).to_le_bytes()).unwrap().unwrap();
            assert_eq!(value[..], [round; 1000]);
        }
    }
}

#[test]
fn segments_of_large_values_that_are_all_dead_go() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let bucket = store.bucket("b").unwrap();
    for i in 0..400u32 {
        bucket.set(&(i % 8).to_le_bytes(), &[i as u8; 64 << 10]).unwrap();
    }
    shrinks_to(&store, 2 * MIB);
    for i in 392..400u32 {
        assert_eq!(bucket.get(&(i % 8).to_le_bytes()).unwrap().unwrap()[..], [i as u8; 64 << 10]);
    }
}

#[test]
fn deleted_keys_stay_deleted_and_their_space_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let bucket = store.bucket("b").unwrap();
    for round in 0..4u32 {
        for i in 0..6000u32 {
            bucket.set(&i.to_le_bytes(), &[round as u8; 700]).unwrap();
        }
        for i in (0..6000u32).filter(|i| i % 50 != 0) {
            bucket.delete(&i.to_le_bytes()).unwrap();
        }
    }
    shrinks_to(&store, 2 * MIB);
    let check = |store: &Store| {
        let bucket = store.bucket("b").unwrap();
        for i in 0..6000u32 {
            assert_eq!(bucket.exists(&i.to_le_bytes()).unwrap(), i % 50 == 0, "key {i}");
        }
        let page = bucket.list_keys(ListOptions::default()).unwrap();
        let mut expected: Vec<_> = (0..6000u32).step_by(50).map(u32::to_le_bytes).collect();
        expected.sort_unstable();
        assert!(page.iter().eq(expected.iter().map(|key| &key[..])));
    };
    check(&store);
    drop((store, bucket));
    check(&open(&dir));
}

#[test]
fn a_crash_at_any_moment_of_cleaning_brings_nothing_back() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let bucket = store.bucket("b").unwrap();
    let (source, copy) = (dir.path().join("store"), tempfile::tempdir().unwrap());
    for i in 0..20_000u32 {
        bucket.set(&(i % 500).to_le_bytes(), &[i as u8; 600]).unwrap();
        bucket.delete(&((i + 250) % 500).to_le_bytes()).unwrap();
        if i % 1000 != 999 {
            continue;
        }
        // What the process would leave behind if it died now, as far as files copied one by one can show it: the
        // background thread may be anywhere. Files that vanish meanwhile make the copy useless; it is tried again.
        let present: Vec<bool> = (0..500u32).map(|k| bucket.exists(&k.to_le_bytes()).unwrap()).collect();
        let to = copy.path().join("store");
        let copied = loop {
            let _ = std::fs::remove_dir_all(&to);
            std::fs::create_dir(&to).unwrap();
            let names = || {
                let mut names: Vec<_> = std::fs::read_dir(&source).unwrap().map(|f| f.unwrap().file_name()).collect();
                names.sort();
                names
            };
            let before = names();
            let manifests: Vec<_> = before.iter().filter(|n| n.to_string_lossy().starts_with("MANIFEST")).collect();
            let edits: Vec<_> = manifests.iter().map(|n| std::fs::read(source.join(n)).unwrap()).collect();
            let copied = before.iter().all(|name| std::fs::copy(source.join(name), to.join(name)).is_ok());
            let same = manifests.iter().zip(&edits).all(|(n, e)| std::fs::read(source.join(n)).unwrap() == *e);
            if copied && same && names() == before {
                break Store::open(&to, Options::new().durability(Durability::Os)).unwrap();
            }
        };
        let again = copied.bucket("b").unwrap();
        let page = again.list_keys(ListOptions::default()).unwrap();
        let mut expected: Vec<_> = (0..500u32).filter(|k| present[*k as usize]).map(u32::to_le_bytes).collect();
        expected.sort_unstable();
        assert!(page.iter().eq(expected.iter().map(|key| &key[..])), "the listing after {i} rounds");
        for k in 0..500u32 {
            assert_eq!(again.exists(&k.to_le_bytes()).unwrap(), present[k as usize], "key {k} after {i} rounds");
        }
    }
}

#[test]
fn expired_and_dropped_data_is_cleaned_away() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let (kept, dropped) = (store.bucket("kept").unwrap(), store.bucket("dropped").unwrap());
    for i in 0..4000u32 {
        kept.set(&i.to_le_bytes(), &[1; 300]).unwrap();
        kept.set_until(&i.to_le_bytes(), &[2; 300], if i % 2 == 0 { 1 } else { u64::MAX }).unwrap();
        dropped.set(&i.to_le_bytes(), &[3; 1000]).unwrap();
    }
    store.drop_bucket("dropped").unwrap();
    shrinks_to(&store, 2 * MIB);
    let check = |store: &Store| {
        let kept = store.bucket("kept").unwrap();
        for i in 0..4000u32 {
            let value = kept.get(&i.to_le_bytes()).unwrap();
            assert_eq!(value.as_deref(), (i % 2 == 1).then_some(&[2; 300][..]), "key {i}");
        }
        let page = kept.list_keys(ListOptions { keys_max: 10_000, ..ListOptions::default() }).unwrap();
        assert_eq!(page.len(), 2000);
    };
    check(&store);
    drop((store, kept, dropped));
    check(&open(&dir));
}

#[test]
fn views_outlive_the_segment_they_came_from() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let bucket = store.bucket("b").unwrap();
    // Only what is on the disk is cleaned, and what is cleaned while others write is written over: its file is the next segment's.
    let waits = bucket.with_durability(Durability::Sync);
    let mut views = Vec::new();
    for i in 0..30_000u32 {
        let bucket = if i % 300 == 0 { &waits } else { &bucket };
        bucket.set(&(i % 100).to_le_bytes(), &[i as u8; 400]).unwrap();
        if i % 500 == 0 {
            views.push((i as u8, bucket.get(&(i % 100).to_le_bytes()).unwrap().unwrap()));
        }
    }
    shrinks_to(&store, 2 * MIB);
    assert!(views.iter().all(|(byte, view)| view[..] == [*byte; 400]));
    drop((store, bucket));
    assert!(views.iter().all(|(byte, view)| view[..] == [*byte; 400]));
}
