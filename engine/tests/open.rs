//! Opening: what is refused, with which error, and that nothing is changed by it.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
#![allow(clippy::disallowed_methods, reason = "files are damaged here on purpose")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use kvasi::{Durability, ErrorKind, Options, Store};

struct Dir(tempfile::TempDir);

impl Dir {
    fn new() -> Dir {
        Dir(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("store")
    }

    /// A closed store with some keys, in several segments.
    fn with_store() -> Dir {
        let dir = Dir::new();
        fill(&dir.path()).close().unwrap();
        dir
    }
}

fn options() -> Options {
    Options::new().durability(Durability::Os).segment_bytes_max(64 << 10)
}

fn fill(path: &Path) -> Store {
    let store = Store::open(path, options()).unwrap();
    let bucket = store.bucket("b").unwrap();
    for i in 0..300u32 {
        bucket.set(format!("key {i}").as_bytes(), &[i as u8; 500]).unwrap();
    }
    store
}

/// Every file with its bytes.
fn contents(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = fs::read_dir(path).unwrap().map(|entry| entry.unwrap());
    files.map(|f| (f.file_name().into_string().unwrap(), fs::read(f.path()).unwrap())).collect()
}

fn refused(path: &Path, kind: ErrorKind) -> String {
    let before = path.is_dir().then(|| contents(path));
    let error = Store::open(path, options()).unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
    if let Some(before) = before {
        assert_eq!(before, contents(path), "nothing is changed by a refused open");
    }
    error.to_string()
}

fn logs(path: &Path) -> Vec<PathBuf> {
    let mut logs: Vec<PathBuf> = fs::read_dir(path).unwrap().map(|e| e.unwrap().path()).collect();
    logs.retain(|p| p.extension().is_some_and(|e| e == "log"));
    logs.sort();
    logs
}

#[test]
fn a_second_opener_is_refused_also_in_the_same_process() {
    let dir = Dir::with_store();
    let store = Store::open(dir.path(), options()).unwrap();
    let text = Store::open(dir.path(), options()).unwrap_err();
    assert_eq!(text.kind(), ErrorKind::Locked, "{text}");
    assert_eq!(Store::open_read_only(dir.path(), options()).unwrap_err().kind(), ErrorKind::Locked);
    drop(store);
    Store::open(dir.path(), options()).unwrap();
}

#[test]
fn a_file_and_a_foreign_directory_are_refused() {
    let dir = Dir::new();
    fs::write(dir.path(), b"").unwrap();
    assert!(refused(&dir.path(), ErrorKind::Format).contains("is a file"));
    let dir = Dir::new();
    fs::create_dir(dir.path()).unwrap();
    fs::write(dir.path().join("letter.txt"), b"dear").unwrap();
    assert!(refused(&dir.path(), ErrorKind::Format).contains("letter.txt"));
}

#[test]
fn a_missing_store_is_not_made_when_that_is_not_wanted() {
    let dir = Dir::new();
    assert!(Store::open(dir.path(), options().create(false)).is_err());
    assert!(!dir.path().exists());
    assert!(Store::open_read_only(dir.path(), options()).is_err());
    assert!(!dir.path().exists());
}

#[test]
fn a_newer_format_is_refused() {
    let dir = Dir::with_store();
    let superblock = dir.path().join("KVASI");
    let mut bytes = fs::read(&superblock).unwrap();
    for slot in 0..2 {
        let slot = &mut bytes[slot * 4096..(slot + 1) * 4096];
        slot[8..12].copy_from_slice(&7u32.to_le_bytes());
        // The documented checksum: CRC-32 mixed with the seed of salt 0, offset 0.
        let mixed = 0x9e37_79b9_7f4a_7c15u64;
        let seed = (mixed ^ (mixed >> 32)) as u32;
        let checksum = crc32fast::hash(&slot[..72]) ^ seed;
        slot[72..76].copy_from_slice(&checksum.to_le_bytes());
    }
    fs::write(&superblock, bytes).unwrap();
    let text = refused(&dir.path(), ErrorKind::Format);
    assert!(text.contains("format 7"), "{text}");
}

#[test]
fn missing_files_are_named() {
    let dir = Dir::with_store();
    let derived = |name: &str| name == "LOCK" || name == "KVASI" || name.ends_with(".run");
    let names = contents(&dir.path()).into_keys().filter(|name| !derived(name));
    for name in names {
        let path = dir.path().join(&name);
        let bytes = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let text = refused(&dir.path(), ErrorKind::Corrupt);
        assert!(text.contains(&name), "{text}");
        fs::write(&path, bytes).unwrap();
    }
    Store::open(dir.path(), options()).unwrap();
}

#[test]
fn a_flipped_byte_of_a_closed_log_is_an_error_with_file_and_offset() {
    let dir = Dir::with_store();
    for log in logs(&dir.path()) {
        let good = fs::read(&log).unwrap();
        let name = log.file_name().unwrap().to_str().unwrap().to_owned();
        // Windows does not cut a file that is mapped: what was made ahead of the log stays behind its end, and is nobody's.
        let used = if cfg!(windows) { good.iter().rposition(|byte| *byte != 0).unwrap() + 1 } else { good.len() };
        for at in (0..used).step_by(used / 40) {
            let mut bad = good.clone();
            bad[at] ^= 0x20;
            fs::write(&log, &bad).unwrap();
            let text = refused(&dir.path(), ErrorKind::Corrupt);
            assert!(text.contains(&name) && text.contains("byte"), "{text}");
        }
        for len in (0..used).step_by(used / 40) {
            fs::write(&log, &good[..len]).unwrap();
            refused(&dir.path(), ErrorKind::Corrupt);
        }
        fs::write(&log, &good).unwrap();
    }
    Store::open(dir.path(), options()).unwrap();
}

#[test]
fn an_unclean_log_loses_a_torn_tail_and_nothing_else() {
    let dir = Dir::new();
    let store = fill(&dir.path());
    let snapshot = contents(&dir.path());
    drop(store);
    // The store as a power cut might leave it: the last segment cut at some byte of the last records.
    let last = snapshot.keys().rfind(|name| name.ends_with(".log") && snapshot[*name].iter().skip(72).any(|b| *b != 0));
    let last = last.unwrap().clone();
    let used = snapshot[&last].iter().rposition(|b| *b != 0).unwrap();
    for cut in (used - 1200..used).step_by(7) {
        let copy = Dir::new();
        fs::create_dir(copy.path()).unwrap();
        for (name, bytes) in &snapshot {
            let mut bytes = bytes.clone();
            if *name == last {
                bytes[cut..].fill(0);
            }
            fs::write(copy.path().join(name), bytes).unwrap();
        }
        let store = Store::open(copy.path(), options()).unwrap();
        assert!(!store.report().clean);
        let bucket = store.bucket("b").unwrap();
        let there = (0..300u32).take_while(|i| bucket.exists(format!("key {i}").as_bytes()).unwrap()).count();
        assert!((296..=300).contains(&there), "a prefix, {there} long");
        for i in 0..there as u32 {
            assert_eq!(&*bucket.get(format!("key {i}").as_bytes()).unwrap().unwrap(), &[i as u8; 500]);
        }
        assert!((there as u32..300).all(|i| !bucket.exists(format!("key {i}").as_bytes()).unwrap()));
        bucket.set(b"after", b"the crash").unwrap();
        drop((store, bucket));
        let again = Store::open(copy.path(), options()).unwrap();
        assert!(again.report().clean && again.report().bytes_cut == 0, "repaired once");
        assert!(again.bucket("b").unwrap().exists(b"after").unwrap());
    }
}

#[test]
fn a_read_only_open_changes_nothing_and_refuses_writes() {
    let dir = Dir::with_store();
    let before = contents(&dir.path());
    let store = Store::open_read_only(dir.path(), options()).unwrap();
    let bucket = store.existing_bucket("b").unwrap().unwrap();
    assert_eq!(bucket.list_keys(Default::default()).unwrap().len(), 300);
    assert_eq!(bucket.set(b"k", b"v").unwrap_err().kind(), ErrorKind::ReadOnly);
    assert_eq!(store.bucket("new").unwrap_err().kind(), ErrorKind::ReadOnly);
    let second = Store::open_read_only(dir.path(), options()).unwrap();
    assert_eq!(&*second.bucket("b").unwrap().get(b"key 7").unwrap().unwrap(), &[7; 500]);
    drop((store, bucket, second));
    assert_eq!(contents(&dir.path()), before);
}

#[test]
fn limits_hold_exactly() {
    let store = Store::in_memory(Options::new()).unwrap();
    let bucket = store.bucket("b").unwrap();
    let key = vec![b'k'; kvasi::KEY_BYTES_MAX + 1];
    bucket.set(&key[1..], b"v").unwrap();
    assert_eq!(bucket.set(&key, b"v").unwrap_err().kind(), ErrorKind::Invalid);
    assert!(bucket.get(&key).unwrap().is_none());
    let name = "n".repeat(kvasi::BUCKET_NAME_BYTES_MAX + 1);
    store.bucket(&name[1..]).unwrap();
    assert_eq!(store.bucket(&name).unwrap_err().kind(), ErrorKind::Invalid);
    bucket.set_many::<&[u8], &[u8]>(&[]).unwrap();
    bucket.set_many(&[("d", "1"), ("d", "2")]).unwrap();
    assert_eq!(&*bucket.get(b"d").unwrap().unwrap(), b"2");
}

#[test]
fn expired_keys_read_as_absent_everywhere() {
    let dir = Dir::new();
    let store = Store::open(dir.path(), options()).unwrap();
    let bucket = store.bucket("b").unwrap();
    bucket.set_until(b"past", b"1", 1).unwrap();
    bucket.set_with_ttl(b"future", b"1", std::time::Duration::from_secs(3600)).unwrap();
    bucket.increment(b"future", 1).unwrap();
    let check = |bucket: &kvasi::Bucket| {
        assert!(bucket.get(b"past").unwrap().is_none() && !bucket.exists(b"past").unwrap());
        assert!(bucket.get_many(&["past"]).unwrap()[0].is_none());
        assert_eq!(bucket.list_keys(Default::default()).unwrap().iter().collect::<Vec<_>>(), [b"future"]);
        assert!(!bucket.delete(b"past").unwrap());
    };
    check(&bucket);
    drop((store, bucket));
    let store = Store::open(dir.path(), options()).unwrap();
    check(&store.bucket("b").unwrap());
    assert_eq!(store.bucket("b").unwrap().increment(b"past", 3).unwrap(), 3, "absent counts as 0");
}

#[test]
fn a_dropped_bucket_is_gone_with_its_keys_and_its_name_starts_anew() {
    let dir = Dir::new();
    let store = fill(&dir.path());
    let old = store.bucket("b").unwrap();
    assert!(store.drop_bucket("b").unwrap());
    assert!(!store.drop_bucket("b").unwrap());
    assert_eq!(old.get(b"key 1").unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(old.set(b"key 1", b"").unwrap_err().kind(), ErrorKind::Invalid);
    assert!(store.buckets().unwrap().is_empty());
    let new = store.bucket("b").unwrap();
    assert!(new.list_keys(Default::default()).unwrap().is_empty());
    new.set(b"key 1", b"new").unwrap();
    drop((store, old, new));
    let store = Store::open(dir.path(), options()).unwrap();
    assert_eq!(store.buckets().unwrap(), ["b"]);
    let bucket = store.bucket("b").unwrap();
    assert_eq!(bucket.list_keys(Default::default()).unwrap().len(), 1);
    assert_eq!(&*bucket.get(b"key 1").unwrap().unwrap(), b"new");
}

#[test]
fn a_value_larger_than_a_segment_gets_one_of_its_own() {
    let dir = Dir::new();
    let store = Store::open(dir.path(), options()).unwrap();
    let bucket = store.bucket("b").unwrap();
    let large = vec![3; 5 << 20];
    bucket.set(b"large", &large).unwrap();
    bucket.set(b"small", b"s").unwrap();
    drop((store, bucket));
    let store = Store::open(dir.path(), options()).unwrap();
    assert_eq!(&*store.bucket("b").unwrap().get(b"large").unwrap().unwrap(), &large[..]);
    assert_eq!(&*store.bucket("b").unwrap().get(b"small").unwrap().unwrap(), b"s");
}

#[test]
fn a_key_whose_record_is_beyond_reading_can_be_written_again() {
    let dir = Dir::new();
    let store = Store::open(dir.path(), options()).unwrap();
    let bucket = store.bucket("b").unwrap();
    for i in 0..2000u32 {
        bucket.set(format!("key {i:04}").as_bytes(), &[i as u8; 500]).unwrap();
    }
    drop(bucket);
    // A checkpoint is made, so that the log is not read when the store is opened.
    store.close().unwrap();
    let path = logs(&dir.path()).into_iter().find(|path| find(path, b"key 0005").is_some()).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    // Before the key: the flags, bucket, length of the key, two bytes of that of the value.
    let flags = find(&path, b"key 0005").unwrap() - 5;
    bytes[flags] = 0xff;
    fs::write(&path, &bytes).unwrap();

    let store = Store::open(dir.path(), options()).unwrap();
    assert!(store.report().checkpoint);
    let bucket = store.bucket("b").unwrap();
    assert_eq!(bucket.get(b"key 0005").unwrap_err().kind(), ErrorKind::Corrupt);
    bucket.set(b"key 0005", b"again").unwrap();
    bucket.set_many(&[(b"key 0005", b"anew!")]).unwrap();
    assert_eq!(bucket.get(b"key 0005").unwrap().unwrap()[..], *b"anew!");
    assert!(bucket.exists(b"key 0006").unwrap());
    drop(bucket);
    store.close().unwrap();
    let store = Store::open(dir.path(), options()).unwrap();
    assert_eq!(store.bucket("b").unwrap().get(b"key 0005").unwrap().unwrap()[..], *b"anew!");
}

fn find(path: &Path, what: &[u8]) -> Option<usize> {
    fs::read(path).unwrap().windows(what.len()).position(|bytes| bytes == what)
}
