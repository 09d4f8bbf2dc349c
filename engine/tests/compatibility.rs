//! Stores written by earlier versions: each opens with what it held, or is refused with nothing changed.
//!
//! `tests/data/` holds one text file a store (see [`pack`]). They are never written again: a new format adds new ones
//! beside them. The two there are of format 1, with everything that it has: several segments, a durable mark in most
//! records, a batch, deletes, expiry, a dropped bucket, key runs, a directory checkpoint; one was closed, the other left
//! in the middle of a record. Made by
//! `cargo test -p kvasi --features testing --test compatibility -- --ignored`, which writes only what is missing.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
#![allow(clippy::disallowed_methods, reason = "files are put in place and damaged here on purpose")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use kvasi::{Bucket, Durability, ErrorKind, Options, Store};

const CLOSED: &str = "format-1-closed";
const TORN: &str = "format-1-torn";
/// What stands behind the last record of the store that was not closed.
const TORN_TAIL: &[u8] = &[0xa5; 11];
const SLOT_BYTES: usize = 4096;

type Files = BTreeMap<String, Vec<u8>>;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

fn options() -> Options {
    Options::new().durability(Durability::Sync).segment_bytes_max(64 << 10)
}

/// Files as text: for each `file NAME BYTES`, then rows of up to 32 bytes as `OFFSET HEX`, with ` xN` behind a row that
/// comes N times in a row. What no row covers is zero.
#[cfg(feature = "testing")]
fn pack(files: &Files) -> String {
    use std::fmt::Write as _;

    let mut text = String::new();
    for (name, bytes) in files {
        writeln!(text, "file {name} {}", bytes.len()).unwrap();
        let rows: Vec<&[u8]> = bytes.chunks(32).collect();
        let mut at = 0;
        while at < rows.len() {
            let times = rows[at..].iter().take_while(|row| **row == rows[at]).count();
            if rows[at].iter().any(|byte| *byte != 0) {
                let hex: String = rows[at].iter().map(|byte| format!("{byte:02x}")).collect();
                let many = if times > 1 { format!(" x{times}") } else { String::new() };
                writeln!(text, "{} {hex}{many}", at * 32).unwrap();
            }
            at += times;
        }
    }
    text
}

fn unpack(text: &str) -> Files {
    let mut files = Files::new();
    let mut bytes = &mut Vec::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        if let ["file", name, len] = words[..] {
            bytes = files.entry(name.to_owned()).or_default();
            bytes.resize(len.parse().unwrap(), 0);
            continue;
        }
        let (offset, hex) = (words[0].parse::<usize>().unwrap(), words[1]);
        let times = words.get(2).map_or(1, |times| times[1..].parse().unwrap());
        let row: Vec<u8> = (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect();
        for i in 0..times {
            let at = offset + i * row.len();
            bytes[at..at + row.len()].copy_from_slice(&row);
        }
    }
    files
}

fn put(dir: &Path, files: &Files) {
    fs::create_dir_all(dir).unwrap();
    files.iter().for_each(|(name, bytes)| fs::write(dir.join(name), bytes).unwrap());
}

fn contents(dir: &Path) -> Files {
    let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    files.map(|f| (f.file_name().into_string().unwrap(), fs::read(f.path()).unwrap())).collect()
}

/// A golden store, put into a directory of its own.
fn place(name: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    put(&dir.path().join("store"), &unpack(&fs::read_to_string(golden(name)).unwrap()));
    dir
}

/// What the golden stores hold.
fn expected() -> BTreeMap<&'static str, BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut plain = BTreeMap::new();
    for i in 0..60u8 {
        let value = if i % 4 == 0 { format!("again {i}").into_bytes() } else { vec![i; 3000] };
        if i % 10 != 3 {
            plain.insert(format!("key {i:03}").into_bytes(), value);
        }
    }
    plain.insert(Vec::new(), Vec::new());
    plain.insert(vec![0xff; 300], b"long key".to_vec());
    plain.insert(b"lasting".to_vec(), b"until the year 9999".to_vec());
    let other = BTreeMap::from([
        (b"counter".to_vec(), b"-7".to_vec()),
        (b"swapped".to_vec(), b"second".to_vec()),
        (b"member".to_vec(), b"of a batch".to_vec()),
    ]);
    BTreeMap::from([("empty", BTreeMap::new()), ("other", other), ("plain", plain)])
}

/// Writes what [`expected`] says, by the calls that leave a trace of their own in the files.
#[cfg(feature = "testing")]
fn fill(store: &Store) {
    const YEAR_9999_MS: u64 = 253_402_300_799_000;
    let (plain, other) = (store.bucket("plain").unwrap(), store.bucket("other").unwrap());
    store.bucket("empty").unwrap();
    let dropped = store.bucket("dropped").unwrap();
    dropped.set(b"key", b"of a bucket that is dropped").unwrap();
    for i in 0..60u8 {
        plain.set(format!("key {i:03}").as_bytes(), &vec![i; 3000]).unwrap();
    }
    plain.set(b"", b"").unwrap();
    plain.set(&[0xff; 300], b"long key").unwrap();
    plain.set_until(b"lasting", b"until the year 9999", YEAR_9999_MS).unwrap();
    plain.set_until(b"past", b"gone", 1).unwrap();
    other.set(b"leaves", b"with the batch").unwrap();
    let first = other.set(b"swapped", b"first").unwrap();
    assert!(matches!(other.compare_and_swap(b"swapped", Some(first), b"second").unwrap(), kvasi::Swap::Done(_)));
    // What follows may stand behind the checkpoint and the runs.
    std::thread::sleep(std::time::Duration::from_secs(2));
    for i in 0..60u8 {
        let key = format!("key {i:03}");
        if i % 4 == 0 {
            plain.set(key.as_bytes(), format!("again {i}").as_bytes()).unwrap();
        }
        if i % 10 == 3 {
            assert!(plain.delete(key.as_bytes()).unwrap());
        }
    }
    assert_eq!(other.increment(b"counter", 5).unwrap(), 5);
    assert_eq!(other.increment(b"counter", -12).unwrap(), -7);
    let mut batch = kvasi::Batch::new();
    batch.set(&other, b"member", b"of a batch");
    batch.delete(&other, b"leaves");
    batch.delete(&plain, b"past");
    store.commit(&batch).unwrap();
    assert!(store.drop_bucket("dropped").unwrap());
}

#[track_caller]
fn assert_holds_what_it_should(store: &Store) {
    let expected = expected();
    assert_eq!(store.buckets().unwrap(), expected.keys().copied().collect::<Vec<_>>());
    for (name, keys) in &expected {
        let bucket = store.existing_bucket(name).unwrap().unwrap();
        assert_eq!(keys_of(&bucket), keys.keys().cloned().collect::<Vec<_>>(), "bucket {name}");
        for (key, value) in keys {
            assert_eq!(bucket.get(key).unwrap().as_deref(), Some(&value[..]), "bucket {name}, key {key:?}");
        }
    }
    let plain = store.existing_bucket("plain").unwrap().unwrap();
    for gone in ["key 003", "key 053", "past", "leaves"] {
        assert!(!plain.exists(gone.as_bytes()).unwrap(), "{gone}");
    }
}

fn keys_of(bucket: &Bucket) -> Vec<Vec<u8>> {
    bucket.list_keys(Default::default()).unwrap().iter().map(<[u8]>::to_vec).collect()
}

/// Opens and looks, then writes, closes and looks again: what an upgrade is.
fn goes_on(dir: &Path) {
    let store = Store::open(dir, options()).unwrap();
    assert_holds_what_it_should(&store);
    let other = store.bucket("other").unwrap();
    assert_eq!(other.increment(b"counter", 7).unwrap(), 0);
    assert_eq!(other.increment(b"counter", -7).unwrap(), -7);
    drop(other);
    store.close().unwrap();
    let store = Store::open(dir, options()).unwrap();
    assert!(store.report().clean);
    assert_holds_what_it_should(&store);
}

#[test]
fn a_closed_store_of_format_1_opens_and_goes_on() {
    let dir = place(CLOSED);
    let path = &dir.path().join("store");
    let before = contents(path);
    let store = Store::open_read_only(path, options()).unwrap();
    let report = store.report();
    assert!(report.clean && report.checkpoint && !report.checkpoint_thrown_away, "{report:?}");
    assert!(report.segments > 2 && report.runs > 0 && report.runs_thrown_away == 0, "{report:?}");
    assert_holds_what_it_should(&store);
    drop(store);
    let verified = kvasi::verify(path).unwrap();
    assert!(verified.findings.is_empty() && verified.leftover_files == 0, "{verified:?}");
    assert_eq!(before, contents(path), "looking changes nothing");
    goes_on(path);
}

#[test]
fn a_torn_store_of_format_1_opens_and_goes_on() {
    let dir = place(TORN);
    let path = &dir.path().join("store");
    let before = contents(path);
    let store = Store::open_read_only(path, options()).unwrap();
    let report = store.report();
    assert!(!report.clean && report.checkpoint && report.runs > 0 && report.runs_thrown_away == 0, "{report:?}");
    assert!(report.records_replayed > 0, "{report:?}");
    assert_eq!(report.bytes_cut, TORN_TAIL.len() as u64);
    assert_holds_what_it_should(&store);
    drop(store);
    assert_eq!(before, contents(path), "looking changes nothing");
    goes_on(path);
}

#[test]
fn versions_of_keys_are_those_that_were_given_out() {
    // A token that a client brings back after an upgrade must name the same write.
    let version = |name: &str, bucket: &str, key: &[u8]| {
        let dir = place(name);
        let store = Store::open(dir.path().join("store"), options()).unwrap();
        let value = store.bucket(bucket).unwrap().get(key).unwrap().unwrap();
        value.version().get()
    };
    let golden = |name: &str| {
        let text = fs::read_to_string(golden(&format!("{name}.versions"))).unwrap();
        text.lines().map(|line| line.parse().unwrap()).collect::<Vec<u64>>()
    };
    for name in [CLOSED, TORN] {
        let now = [
            version(name, "plain", b"key 001"),
            version(name, "plain", b"key 056"),
            version(name, "other", b"counter"),
        ];
        assert_eq!(now[..], golden(name), "{name}");
    }
}

#[test]
fn a_damaged_store_of_format_1_is_refused_unchanged() {
    let dir = place(TORN);
    let path = &dir.path().join("store");
    let files = contents(path);
    // In a segment that is sealed, and that no checkpoint spares the open from reading.
    for name in files.keys().filter(|name| name.ends_with(".dir")) {
        fs::remove_file(path.join(name)).unwrap();
    }
    let log = files.keys().find(|name| name.ends_with(".log")).unwrap();
    let mut bytes = files[log].clone();
    bytes[5000] ^= 0x10;
    fs::write(path.join(log), bytes).unwrap();
    let text = refused(path, ErrorKind::Corrupt);
    assert!(text.contains(log.as_str()), "{text}");
}

fn refused(path: &Path, kind: ErrorKind) -> String {
    let before = contents(path);
    let error = Store::open(path, options()).unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
    assert_eq!(before, contents(path), "nothing is changed by a refused open");
    error.to_string()
}

/// A golden store whose superblock says something else: `bytes` at `at` of both slots, with the documented checksum.
fn patched(at: usize, bytes: &[u8]) -> tempfile::TempDir {
    let dir = place(CLOSED);
    let path = dir.path().join("store/KVASI");
    let mut superblock = fs::read(&path).unwrap();
    for slot in superblock.chunks_mut(SLOT_BYTES) {
        slot[at..at + bytes.len()].copy_from_slice(bytes);
        // CRC-32 XOR the seed of salt 0, offset 0.
        let mixed = 0x9e37_79b9_7f4a_7c15u64;
        let checksum = crc32fast::hash(&slot[..72]) ^ (mixed ^ (mixed >> 32)) as u32;
        slot[72..76].copy_from_slice(&checksum.to_le_bytes());
    }
    fs::write(path, superblock).unwrap();
    dir
}

#[test]
fn a_newer_format_is_refused_for_reading_too() {
    for format in [0u32, 2, 7, u32::MAX] {
        let dir = patched(8, &format.to_le_bytes());
        let path = &dir.path().join("store");
        let text = refused(path, ErrorKind::Format);
        assert!(text.contains(&format!("format {format}")), "{text}");
        assert_eq!(Store::open_read_only(path, options()).unwrap_err().kind(), ErrorKind::Format);
        assert_eq!(kvasi::verify(path).unwrap_err().kind(), ErrorKind::Format);
    }
}

#[test]
fn of_unknown_features_each_class_is_treated_as_promised() {
    for bit in [1u64, 1 << 63] {
        let bits = &bit.to_le_bytes();
        let incompat = patched(32, bits);
        let path = &incompat.path().join("store");
        refused(path, ErrorKind::Format);
        assert_eq!(Store::open_read_only(path, options()).unwrap_err().kind(), ErrorKind::Format);

        let ro_compat = patched(24, bits);
        let path = &ro_compat.path().join("store");
        refused(path, ErrorKind::Format);
        assert_holds_what_it_should(&Store::open_read_only(path, options()).unwrap());

        let compat = patched(16, bits);
        let path = &compat.path().join("store");
        goes_on(path);
        for slot in fs::read(path.join("KVASI")).unwrap().chunks(SLOT_BYTES) {
            assert_eq!(slot[16..24], *bits, "what is not known is kept");
        }
    }
}

#[test]
#[ignore = "makes those of the stores above that are missing"]
#[cfg(feature = "testing")]
fn make_golden_stores() {
    for name in [CLOSED, TORN].into_iter().filter(|name| !golden(name).exists()) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store");
        let store = Store::open(&path, kvasi::testing::with_checkpoints_from(options(), 1024)).unwrap();
        fill(&store);
        let version =
            |bucket: &str, key: &[u8]| store.bucket(bucket).unwrap().get(key).unwrap().unwrap().version().get();
        let versions = [version("plain", b"key 001"), version("plain", b"key 056"), version("other", b"counter")];
        let versions: String = versions.map(|version| format!("{version}\n")).concat();
        let files = if name == CLOSED {
            store.close().unwrap();
            contents(&path)
        } else {
            // The background has come to rest when two looks in a row see the same.
            let mut files = contents(&path);
            loop {
                std::thread::sleep(std::time::Duration::from_millis(500));
                let again = contents(&path);
                if again == files {
                    break;
                }
                files = again;
            }
            let last = files.keys().rfind(|name| name.ends_with(".log") && files[*name][72..].iter().any(|b| *b != 0));
            let last = last.unwrap().clone();
            let log = files.get_mut(&last).unwrap();
            let end = log.iter().rposition(|byte| *byte != 0).unwrap() + 1;
            let end = end.next_multiple_of(4);
            log[end..end + TORN_TAIL.len()].copy_from_slice(TORN_TAIL);
            files
        };
        fs::write(golden(name), pack(&files)).unwrap();
        fs::write(golden(&format!("{name}.versions")), versions).unwrap();
    }
}
