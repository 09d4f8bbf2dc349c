//! Files that are mapped and files that are not: the same store, and what the latter promises beside. (All other tests run
//! so too: `KVASI_ACCESS=unmapped cargo test -p kvasi --features testing`, or `guarded`.)
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
#![allow(clippy::disallowed_methods, reason = "files are cut here on purpose")]

use std::fs;
use std::path::{Path, PathBuf};

use kvasi::{Access, Bucket, Durability, ErrorKind, Options, Store};

fn options(access: Access) -> Options {
    Options::new().durability(Durability::Os).segment_bytes_max(1 << 20).access(access).read_bytes_max(1 << 20)
}

/// How the tests below open their stores, one after the other.
fn ways() -> [Options; 3] {
    [options(Access::Unmapped), options(Access::Mapped), options(Access::Mapped).guard_mappings(true)]
}

fn key(i: u32) -> Vec<u8> {
    format!("key {i:06}").into_bytes()
}

fn value(i: u32, bytes: usize) -> Vec<u8> {
    (0..bytes as u32).map(|at| (i.wrapping_mul(31) + at * 7) as u8).collect()
}

fn assert_holds(bucket: &Bucket, keys: impl Iterator<Item = u32>, bytes: usize) {
    for i in keys {
        assert_eq!(bucket.get(&key(i)).unwrap().as_deref(), Some(&value(i, bytes)[..]), "key {i}");
    }
}

fn logs(path: &Path) -> Vec<PathBuf> {
    let mut logs: Vec<PathBuf> = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect();
    logs.retain(|path| path.extension().is_some_and(|e| e == "log"));
    logs.sort();
    logs
}

#[test]
fn what_was_written_one_way_is_read_the_other_way() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    for (round, options) in ways().into_iter().chain(ways()).enumerate() {
        let store = Store::open(&path, options).unwrap();
        let bucket = store.bucket("b").unwrap();
        let (old, new) = (0..round as u32 * 500, round as u32 * 500..(round as u32 + 1) * 500);
        assert_holds(&bucket, old.clone(), 3000);
        for i in new.clone() {
            bucket.set(&key(i), &value(i, 3000)).unwrap();
        }
        assert_holds(&bucket, 0..new.end, 3000);
        bucket.set(&[b'l'; 100], &value(7, 3 << 20)).unwrap();
        assert_eq!(&*bucket.get(&[b'l'; 100]).unwrap().unwrap(), &value(7, 3 << 20)[..]);
        assert_eq!(bucket.increment(b"n", 1).unwrap(), round as i64 + 1);
        assert_eq!(
            bucket
                .list_keys(kvasi::ListOptions { keys_max: 10_000, bytes_max: 1 << 20, ..Default::default() })
                .unwrap()
                .len(),
            new.end as usize + 2
        );
        // Closed every other time.
        if round % 2 == 0 {
            store.close().unwrap();
        }
    }
    assert!(kvasi::verify(&path).unwrap().findings.is_empty());
}

#[test]
fn a_value_keeps_its_bytes_when_all_else_was_read_since() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("store"), options(Access::Unmapped)).unwrap();
    let bucket = store.bucket("b").unwrap();
    for i in 0..3000 {
        bucket.set(&key(i), &value(i, 3000)).unwrap();
    }
    let held = bucket.get(&key(17)).unwrap().unwrap();
    bucket.set(&key(17), b"another").unwrap();
    assert_holds(&bucket, 18..3000, 3000);
    assert_eq!(&*held, &value(17, 3000)[..]);
    assert_eq!(held.into_bytes(), value(17, 3000));
}

#[test]
fn threads_read_and_write_a_store_larger_than_its_memory() {
    threads_read_and_write(options(Access::Unmapped));
}

#[test]
fn threads_read_and_write_guarded_mappings() {
    threads_read_and_write(options(Access::Mapped).guard_mappings(true));
}

fn threads_read_and_write(options: Options) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("store"), options).unwrap();
    let bucket = &store.bucket("b").unwrap();
    for i in 0..4000 {
        bucket.set(&key(i), &value(i, 2000)).unwrap();
    }
    std::thread::scope(|scope| {
        for thread in 0..4u32 {
            scope.spawn(move || {
                for round in 0..3000u32 {
                    let i = (round * 7919 + thread * 1013) % 4000;
                    if thread % 2 == 0 && i % 4 == thread {
                        bucket.set(&key(i), &value(i, 2000)).unwrap();
                    }
                    assert_holds(bucket, i..i + 1, 2000);
                }
            });
        }
    });
}

#[test]
fn files_cut_short_under_an_open_store_are_an_error_and_no_signal() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let store = Store::open(&path, options(Access::Unmapped)).unwrap();
    let bucket = store.bucket("b").unwrap();
    for i in 0..1500 {
        bucket.set(&key(i), &value(i, 3000)).unwrap();
    }
    // Nothing of it is in memory.
    store.close().unwrap();
    drop(bucket);
    let store = Store::open_read_only(&path, options(Access::Unmapped)).unwrap();
    let bucket = store.bucket("b").unwrap();
    let first = &logs(&path)[0];
    fs::OpenOptions::new().write(true).open(first).unwrap().set_len(100_000).unwrap();
    let mut errors = 0;
    for i in 0..1500 {
        match bucket.get(&key(i)) {
            Ok(found) => assert_eq!(found.as_deref(), Some(&value(i, 3000)[..])),
            Err(e) => {
                assert_eq!(e.kind(), ErrorKind::Corrupt, "{e}");
                assert!(e.to_string().contains(first.file_name().unwrap().to_str().unwrap()), "{e}");
                errors += 1;
            }
        }
    }
    assert!(errors > 100, "{errors}");
    assert!((1400..1500).all(|i| bucket.get(&key(i)).is_ok()), "what stands in other files is there");
}

#[test]
#[cfg(target_os = "linux")]
fn an_open_store_whose_active_file_is_cut_short_takes_no_more_and_lives() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let store = Store::open(&path, options(Access::Mapped).guard_mappings(true)).unwrap();
    let bucket = store.bucket("b").unwrap();
    bucket.set(b"first", &value(1, 100)).unwrap();
    let active = logs(&path).into_iter().rfind(|log| fs::read(log).unwrap()[72..].iter().any(|b| *b != 0)).unwrap();
    fs::OpenOptions::new().write(true).open(active).unwrap().set_len(4096).unwrap();
    let refused = (0..2000).find_map(|i| bucket.set(&key(i), &value(i, 3000)).err()).expect("it is seen");
    assert_eq!(refused.kind(), ErrorKind::Indeterminate, "{refused}");
    assert_eq!(bucket.set(b"k", b"v").unwrap_err().kind(), ErrorKind::Poisoned);
    assert_eq!(&*bucket.get(b"first").unwrap().unwrap(), &value(1, 100)[..]);
}
