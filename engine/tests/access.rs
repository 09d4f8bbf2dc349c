//! Files that are mapped and files that are not: the same store, and what the latter promises beside. (All other tests run
//! both ways too: `KVASI_ACCESS=unmapped cargo test -p kvasi --features testing`.)
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
#![allow(clippy::disallowed_methods, reason = "files are cut here on purpose")]

use std::fs;
use std::path::{Path, PathBuf};

use kvasi::{Access, Bucket, Durability, ErrorKind, Options, Store};

fn options(access: Access) -> Options {
    Options::new().durability(Durability::Os).segment_bytes_max(1 << 20).access(access).read_bytes_max(1 << 20)
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
    for (round, access) in [Access::Unmapped, Access::Mapped, Access::Unmapped, Access::Mapped].into_iter().enumerate()
    {
        let store = Store::open(&path, options(access)).unwrap();
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
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("store"), options(Access::Unmapped)).unwrap();
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

/// Of this process: what of its memory is no file.
#[cfg(target_os = "linux")]
fn anonymous_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

#[test]
#[cfg(target_os = "linux")]
fn memory_is_bounded_whatever_the_size_of_the_store() {
    // The other tests take memory too, and at other times: this one has a process of its own.
    if std::env::var_os("KVASI_ALONE").is_none() {
        let test = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "memory_is_bounded_whatever_the_size_of_the_store", "--nocapture"])
            .env("KVASI_ALONE", "1")
            .output()
            .unwrap();
        assert!(test.status.success(), "{}", String::from_utf8_lossy(&test.stderr));
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let options = options(Access::Unmapped).segment_bytes_max(4 << 20).read_bytes_max(8 << 20);
    let before = anonymous_bytes();
    let store = Store::open(dir.path().join("store"), options.clone()).unwrap();
    let bucket = store.bucket("b").unwrap();
    let mut most = 0;
    for i in 0..12_000 {
        bucket.set(&key(i), &value(i, 8000)).unwrap();
        if i % 500 == 0 {
            most = most.max(anonymous_bytes());
        }
    }
    for i in 0..12_000u32 {
        let i = i * 7919 % 12_000;
        assert_eq!(bucket.get(&key(i)).unwrap().as_deref(), Some(&value(i, 8000)[..]));
        if i % 50 == 0 {
            most = most.max(anonymous_bytes());
        }
    }
    let taken = most.saturating_sub(before) >> 20;
    // 8 MiB of what was read, two segments of 4 MiB, the directory, and what the allocator keeps.
    assert!(taken < 40, "{taken} MiB for a store of 92 MiB");
}
