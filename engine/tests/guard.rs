//! What takes another process to show: that memory is bounded, and that mappings cut short by somebody else are lived through.
//! A file of its own, because a child holds the locks of every open store for the moment between its fork and its start.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
#![allow(clippy::disallowed_methods, reason = "files are cut here on purpose")]

use std::fs;
use std::path::{Path, PathBuf};

use kvasi::{Access, Durability, ErrorKind, Options, Store};

fn options(access: Access) -> Options {
    Options::new().durability(Durability::Os).segment_bytes_max(1 << 20).access(access).read_bytes_max(1 << 20)
}

fn key(i: u32) -> Vec<u8> {
    format!("key {i:06}").into_bytes()
}

fn value(i: u32, bytes: usize) -> Vec<u8> {
    (0..bytes as u32).map(|at| (i.wrapping_mul(31) + at * 7) as u8).collect()
}

fn logs(path: &Path) -> Vec<PathBuf> {
    let mut logs: Vec<PathBuf> = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect();
    logs.retain(|path| path.extension().is_some_and(|e| e == "log"));
    logs.sort();
    logs
}

/// Of this process: what of its memory is no file.
fn anonymous_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

#[test]
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
    // 8 MiB of what was read, two segments of 4 MiB, the directory, what the allocator keeps; and what was forgotten and is not had
    // again yet, because the background thread looks at the log while a slow disk keeps it. Before closed segments gave up their
    // memory without waiting for their sync, the whole store could be in memory.
    assert!(taken < 40, "{taken} MiB for a store of 92 MiB");
}

/// A closed store of some segments, of which the oldest will be cut short.
fn template() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("store"), options(Access::Mapped)).unwrap();
    let bucket = store.bucket("b").unwrap();
    for i in 0..600 {
        bucket.set(&key(i), &value(i, 3000)).unwrap();
    }
    drop(bucket);
    store.close().unwrap();
    dir
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// Reads all keys, over and over, while another process cuts a segment short; how often that was an error.
fn reads_while_cut(store: &Path, options: Options, bytes: u64) -> u64 {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    let log = logs(store).remove(0);
    let store = Store::open_read_only(store, options).unwrap();
    let bucket = &store.bucket("b").unwrap();
    let (done, errors) = (&AtomicBool::new(false), &AtomicU64::new(0));
    let read_all = move || {
        for i in 0..600 {
            match bucket.get(&key(i)) {
                Ok(found) => assert_eq!(found.as_deref(), Some(&value(i, 3000)[..]), "key {i}"),
                Err(e) => {
                    assert!(matches!(e.kind(), ErrorKind::Corrupt | ErrorKind::Io), "{e}");
                    errors.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    read_all();
                }
            });
        }
        let cut = std::process::Command::new("truncate").arg("-s").arg(bytes.to_string()).arg(log).status().unwrap();
        assert!(cut.success());
        read_all();
        done.store(true, Ordering::Relaxed);
    });
    errors.load(Ordering::Relaxed)
}

#[test]
fn a_file_cut_short_by_another_process_is_an_error_where_mappings_are_guarded() {
    let template = template();
    for round in 0..40u64 {
        let dir = tempfile::tempdir().unwrap();
        copy(&template.path().join("store"), &dir.path().join("store"));
        let guarded = options(Access::Mapped).guard_mappings(true);
        let errors = reads_while_cut(&dir.path().join("store"), guarded, round * 17_011);
        assert!(errors > 0, "round {round}: the cut was not seen");
    }
}

#[test]
fn without_the_guard_the_process_would_die() {
    use std::os::unix::process::ExitStatusExt;
    const SIGBUS: i32 = 7;
    if std::env::var_os("KVASI_ALONE").is_some() {
        let template = template();
        reads_while_cut(&template.path().join("store"), options(Access::Mapped), 100);
        return;
    }
    let test = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "without_the_guard_the_process_would_die"])
        .env("KVASI_ALONE", "1")
        .output()
        .unwrap();
    assert_eq!(test.status.signal(), Some(SIGBUS), "what the guard is for: {:?}", test.status);
}
