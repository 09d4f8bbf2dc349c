//! Verifying finds what is damaged and nothing else, of stores that are open, closed, or do not open any more.
//!
//! `KVASI_FLIPS` sets how many bytes of each store are damaged, `KVASI_SEED` the first store.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
#![allow(clippy::disallowed_methods, reason = "damages files as a disk would")]

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use kvasi::testing::verify::{flips, healthy};
use kvasi::{Durability, ErrorKind, FindingKind, Options, Store};

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

#[test]
fn every_flipped_bit_is_found_in_its_file() {
    let seed = number("KVASI_SEED", 1);
    for seed in seed..seed + 4 {
        let flipped = flips(seed, number("KVASI_FLIPS", 500)).unwrap_or_else(|what| panic!("{what}"));
        println!("seed {seed}: {flipped} bytes");
    }
}

#[test]
fn of_a_healthy_store_nothing_is_said() {
    let reports = healthy(number("KVASI_SEED", 1), 6, 60).unwrap_or_else(|what| panic!("{what}"));
    println!("{reports} reports");
}

fn options() -> Options {
    Options::new().durability(Durability::Os).segment_bytes_max(64 << 10)
}

#[test]
fn of_a_healthy_store_under_load_nothing_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), options()).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..4u32 {
            let (store, stop) = (&store, &stop);
            scope.spawn(move || {
                let bucket = store.bucket(&format!("bucket {}", thread % 2)).unwrap();
                let waits = bucket.with_durability(Durability::Sync);
                for i in (0u32..).take_while(|_| !stop.load(Ordering::Relaxed)) {
                    let key = (i.wrapping_mul(2_654_435_761) % 3000).to_le_bytes();
                    match i % 50 {
                        0..10 => drop(bucket.delete(&key).unwrap()),
                        10..14 => drop(bucket.set_until(&key, &[1; 100], u64::from(i % 2) * u64::MAX).unwrap()),
                        14 => drop(waits.set(&key, &[2; 100]).unwrap()),
                        15 if thread == 3 && i % 500 == 15 => {
                            let dropped = store.bucket("dropped").unwrap();
                            for k in 0..50u8 {
                                dropped.set(&[k], &[k; 200]).unwrap();
                            }
                            store.drop_bucket("dropped").unwrap();
                        }
                        _ => drop(bucket.set(&key, &[3; 300]).unwrap()),
                    }
                    if i % 16 == 0 {
                        std::thread::sleep(std::time::Duration::from_micros(800));
                    }
                }
            });
        }
        let reports: Vec<_> = (0..12)
            .map(|_| {
                std::thread::sleep(std::time::Duration::from_millis(100));
                store.verify().unwrap()
            })
            .collect();
        stop.store(true, Ordering::Relaxed);
        for report in reports {
            assert_eq!(report.findings, [], "{report:?}");
            assert!(report.segments > 0);
        }
    });
    let open = store.verify().unwrap();
    assert!(open.keys > 1000 && open.records > 1000 && open.opens, "{open:?}");
    assert_eq!(kvasi::verify(dir.path()).unwrap_err().kind(), ErrorKind::Locked);
    store.close().unwrap();
    let closed = kvasi::verify(dir.path()).unwrap();
    assert_eq!(closed.findings, []);
    // Meanwhile the cleaner may have let go of expired ones.
    assert!(closed.keys > 1000 && closed.keys <= open.keys, "{} keys, then {}", open.keys, closed.keys);
}

fn make(dir: &Path) -> PathBuf {
    let path = dir.join("store");
    let store = Store::open(&path, options()).unwrap();
    let bucket = store.bucket("b").unwrap();
    for i in 0..1000u32 {
        bucket.set(&i.to_le_bytes(), &[i as u8; 300]).unwrap();
    }
    store.close().unwrap();
    path
}

/// The first file of that kind.
fn with_extension(path: &Path, extension: &str) -> PathBuf {
    let names = std::fs::read_dir(path).unwrap().map(|file| file.unwrap().path());
    names.filter(|p| p.extension().is_some_and(|e| e == extension)).min().unwrap()
}

#[test]
fn damage_is_told_byte_by_byte_whether_or_not_it_stops_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let path = make(dir.path());
    assert_eq!(kvasi::verify(&path).unwrap().findings, []);
    let log = with_extension(&path, "log");
    let mut bytes = std::fs::read(&log).unwrap();
    for at in [5_000, 20_000, 40_000] {
        bytes[at] ^= 1;
    }
    std::fs::write(&log, &bytes).unwrap();
    // An open from the checkpoint does not read it, and an open without one fails.
    told(&path, &log, true);
    std::fs::remove_file(with_extension(&path, "dir")).unwrap();
    assert_eq!(Store::open(&path, options()).unwrap_err().kind(), ErrorKind::Corrupt);
    told(&path, &log, false);

    std::fs::remove_file(&log).unwrap();
    let report = kvasi::verify(&path).unwrap();
    let missing = report.findings.iter().find(|f| Some(f.file.as_str()) == log.file_name().and_then(|n| n.to_str()));
    assert!(missing.is_some_and(|f| f.kind == FindingKind::File && f.what.contains("missing")), "{report:?}");
}

/// The three damaged records are found, nothing else is but a missing checkpoint, and no file is changed.
fn told(path: &Path, log: &Path, opens: bool) {
    let names = || std::fs::read_dir(path).unwrap().map(|f| f.unwrap().file_name()).collect::<Vec<_>>();
    let before = names();
    let mut report = kvasi::verify(path).unwrap();
    assert_eq!(report.opens, opens, "{report:?}");
    let all = report.findings.len();
    report.findings.retain(|finding| finding.kind != FindingKind::Checkpoint);
    assert_eq!((all - report.findings.len(), report.findings.len()), (usize::from(!opens), 3), "{report:?}");
    for (finding, at) in report.findings.iter().zip([5_000, 20_000, 40_000]) {
        assert_eq!(finding.kind, FindingKind::Record);
        assert!(finding.offset <= at && at < finding.offset + 400, "{finding}");
        assert_eq!(Some(finding.file.as_str()), log.file_name().and_then(|name| name.to_str()));
    }
    assert!(report.records > 990, "what is not damaged is read: {report:?}");
    assert_eq!(before, names());
}

#[test]
fn what_is_no_store_is_said_to_be_none() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(kvasi::verify(dir.path()).unwrap_err().kind(), ErrorKind::Format);
    std::fs::write(dir.path().join("file"), b"").unwrap();
    assert_eq!(kvasi::verify(dir.path()).unwrap_err().kind(), ErrorKind::Format);
    assert_eq!(kvasi::verify(dir.path().join("nowhere")).unwrap_err().kind(), ErrorKind::Io);
    let memory = Store::in_memory(options()).unwrap();
    memory.bucket("b").unwrap().set(b"key", b"value").unwrap();
    assert_eq!(memory.verify().unwrap().findings, []);
}
