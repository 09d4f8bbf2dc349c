//! Backups of stores on a real file system: a prefix of what four threads write, taken meanwhile; what is refused; and that
//! the two stores do not disturb each other.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
#![allow(clippy::disallowed_methods, reason = "looks at files as an operator would")]

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use kvasi::{Batch, Durability, ErrorKind, ListOptions, Options, Store};

const THREADS: u64 = 4;
/// Keys that each of them writes in turn.
const KEYS: u64 = 200;

fn options(durability: Durability) -> Options {
    Options::new().durability(durability).segment_bytes_max(64 << 10)
}

fn number(store: &Store, key: &str) -> u64 {
    let bucket = store.existing_bucket("b").unwrap().unwrap();
    bucket.get(key.as_bytes()).unwrap().map_or(0, |value| u64::from_le_bytes(value[..8].try_into().unwrap()))
}

/// What the threads of [`under_load`] wrote: each its number twice in a batch, then a key of that number; and a counter
/// counted after that. A prefix of the commits shows in all of them; the number of the thread whose prefix it is.
fn check_prefix(store: &Store, acknowledged: &[u64]) {
    let bucket = store.existing_bucket("b").unwrap().unwrap();
    let (mut counted, mut keys) = (0, 0);
    for (thread, acknowledged) in acknowledged.iter().enumerate() {
        let (one, two) = (number(store, &format!("{thread} one")), number(store, &format!("{thread} two")));
        assert_eq!(one, two, "a batch is whole");
        assert!(one >= *acknowledged, "thread {thread}: {acknowledged} was acknowledged before, {one} is there");
        let last = number(store, &format!("{thread} last"));
        assert!(last == one || last + 1 == one, "thread {thread}: {last} comes right after {one}");
        for i in (last + 1).saturating_sub(KEYS).max(1)..=last {
            let value = bucket.get(format!("{thread} key {}", i % KEYS).as_bytes()).unwrap().unwrap();
            let found = u64::from_le_bytes(value[..8].try_into().unwrap());
            // The next one is written before `last` says so.
            assert!(found == i || found == i + KEYS && found == last + 1, "thread {thread}, key {i}: {found}");
            assert!(value.len() == 308 && value[8..].iter().all(|b| *b == found as u8), "thread {thread}, key {i}");
        }
        keys += last.min(KEYS);
        counted += last;
    }
    let counter = bucket.get(b"counter").unwrap().map_or(0, |v| std::str::from_utf8(&v).unwrap().parse().unwrap());
    assert!(counter <= counted && counted <= counter + THREADS, "{counter} of {counted} counted");
    let page = bucket
        .list_keys(ListOptions {
            keys_max: usize::MAX,
            bytes_max: usize::MAX,
            entries_max: usize::MAX,
            ..Default::default()
        })
        .unwrap();
    assert!(page.iter().all(|key| bucket.exists(key).unwrap()), "a listing shows what is there");
    assert!(page.len() as u64 >= keys, "{} keys listed, {keys} written", page.len());
}

/// Backups are taken by `each` while four threads write, until `rounds` of them were.
fn under_load(durability: Durability, rounds: u32, each: impl Fn(&Store, u32, &[u64])) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("store"), options(durability)).unwrap();
    let bucket = store.bucket("b").unwrap();
    let stop = AtomicBool::new(false);
    let acknowledged: Vec<AtomicU64> = (0..THREADS).map(|_| AtomicU64::new(0)).collect();
    std::thread::scope(|scope| {
        for thread in 0..THREADS as usize {
            let (store, bucket, stop, acknowledged) = (&store, &bucket, &stop, &acknowledged);
            scope.spawn(move || {
                for i in 1u64.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    // Overwritten again and again: work for the cleaner.
                    let value = [&i.to_le_bytes()[..], &[7; 900]].concat();
                    let mut batch = Batch::new();
                    batch.set(bucket, format!("{thread} one").as_bytes(), &value);
                    batch.set(bucket, format!("{thread} two").as_bytes(), &value);
                    store.commit(&batch).unwrap();
                    acknowledged[thread].store(i, Ordering::Release);
                    let value = [&i.to_le_bytes()[..], &[i as u8; 300]].concat();
                    bucket.set(format!("{thread} key {}", i % KEYS).as_bytes(), &value).unwrap();
                    bucket.set(format!("{thread} last").as_bytes(), &i.to_le_bytes()).unwrap();
                    bucket.increment(b"counter", 1).unwrap();
                    // Not all that the disk can take: backups are what is tested.
                    std::thread::sleep(std::time::Duration::from_micros(500));
                }
            });
        }
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for round in 0..rounds {
                let floor: Vec<u64> = acknowledged.iter().map(|a| a.load(Ordering::Acquire)).collect();
                each(&store, round, &floor);
            }
        }));
        stop.store(true, Ordering::Relaxed);
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    });
}

fn backups_under_load(durability: Durability, rounds: u32) {
    let dir = tempfile::tempdir().unwrap();
    let mut linked = 0;
    let links = std::sync::Mutex::new(&mut linked);
    under_load(durability, rounds, |store, round, floor| {
        let to = dir.path().join(round.to_string());
        let report = store.backup(&to).unwrap();
        **links.lock().unwrap() += report.linked_files;
        // Read-only first: it is whole as it is. Then as a store that is written to.
        let backup = Store::open_read_only(&to, options(durability)).unwrap();
        assert!(backup.report().clean && backup.report().bytes_cut == 0, "{:?}", backup.report());
        check_prefix(&backup, floor);
        drop(backup);
        let backup = Store::open(&to, options(durability)).unwrap();
        check_prefix(&backup, floor);
        for i in 0..300u32 {
            backup.bucket("of the backup").unwrap().set(&i.to_le_bytes(), &[1; 700]).unwrap();
        }
        backup.close().unwrap();
        let again = dir.path().join(format!("{round} restored"));
        kvasi::restore(&to, &again).unwrap();
        check_prefix(&Store::open(&again, options(durability)).unwrap(), floor);
    });
    println!("{linked} files linked");
}

#[test]
fn a_backup_under_load_is_a_prefix() {
    backups_under_load(Durability::Os, 8);
}

#[test]
fn a_backup_of_a_sync_store_under_load_is_a_prefix() {
    backups_under_load(Durability::Sync, 4);
}

fn fill(store: &Store) {
    let bucket = store.bucket("b").unwrap();
    for i in 0..2000u32 {
        bucket.set(&i.to_le_bytes(), &[i as u8; 300]).unwrap();
        bucket.delete(&(i / 2).to_le_bytes()).unwrap();
    }
}

fn state(store: &Store) -> Vec<(Vec<u8>, Vec<u8>, u64)> {
    let Some(bucket) = store.existing_bucket("b").unwrap() else { return Vec::new() };
    let page = bucket.list_keys(ListOptions { keys_max: usize::MAX, ..Default::default() }).unwrap();
    let value = |key: &[u8]| bucket.get(key).unwrap().unwrap();
    page.iter().map(|key| (key.to_vec(), value(key).to_vec(), value(key).version().get())).collect()
}

#[test]
fn stores_of_every_kind_come_back_the_same() {
    for (durability, filled) in
        [(Durability::Sync, false), (Durability::Os, false), (Durability::Os, true), (Durability::INTERVAL, true)]
    {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let store = Store::open(path("store"), options(durability)).unwrap();
        if filled {
            fill(&store);
        }
        store.backup(path("one")).unwrap();
        // A backup of a backup, of a store that is only read, and of a restored one.
        Store::open(path("one"), options(durability)).unwrap().backup(path("two")).unwrap();
        Store::open_read_only(path("two"), options(durability)).unwrap().backup(path("three")).unwrap();
        kvasi::restore(path("three"), path("four")).unwrap();
        let expected = state(&store);
        assert_eq!(expected.is_empty(), !filled);
        for name in ["one", "two", "three", "four"] {
            let again = Store::open(path(name), options(durability)).unwrap();
            assert_eq!(state(&again), expected, "{name}");
            assert!(again.report().clean, "{name}");
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let memory = Store::in_memory(options(Durability::Ephemeral)).unwrap();
    fill(&memory);
    let report = memory.backup(dir.path().join("kept")).unwrap();
    assert_eq!(report.linked_files, 0);
    assert_eq!(state(&Store::open(dir.path().join("kept"), Options::new()).unwrap()), state(&memory));
}

/// The length and bytes of every file in a directory.
fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|file| file.unwrap())
        .filter_map(|file| match std::fs::read(file.path()) {
            // A file whose removal waits for a mapping is listed, and not there.
            Err(e) if cfg!(windows) && e.kind() == std::io::ErrorKind::NotFound => None,
            bytes => Some((file.file_name().into_string().unwrap(), bytes.unwrap())),
        })
        .collect();
    files.sort();
    files
}

#[test]
fn neither_store_changes_a_byte_of_the_other() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let store = Store::open(path("store"), options(Durability::Os)).unwrap();
    fill(&store);
    // The background may not have got to seal anything yet; this does.
    store.close().unwrap();
    let store = Store::open(path("store"), options(Durability::Os)).unwrap();
    let report = store.backup(path("backup")).unwrap();
    let before = files(&path("backup"));
    if cfg!(unix) {
        assert!(report.linked_files > 0, "{report:?}");
    }
    // Written, cleaned, closed, opened, died: what of it is linked stays as it was.
    fill(&store);
    store.close().unwrap();
    let store = Store::open(path("store"), options(Durability::Os)).unwrap();
    fill(&store);
    assert!(files(&path("backup")) == before, "the backup has changed");
    let expected = state(&store);
    drop(store);
    let of_store = files(&path("store"));
    for _ in 0..3 {
        let backup = Store::open(path("backup"), options(Durability::Os)).unwrap();
        fill(&backup);
        backup.close().unwrap();
    }
    assert!(files(&path("store")) == of_store, "the store has changed");
    assert_eq!(state(&Store::open(path("store"), options(Durability::Os)).unwrap()), expected);
}

/// The files of segments that were cleaned become those of new ones, and are written over: not one that a backup has, too.
#[test]
fn what_a_backup_has_linked_is_not_written_over() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let options = Options::new().durability(Durability::Os).segment_bytes_max(1 << 20);
    let store = Store::open(path("store"), options).unwrap();
    let bucket = store.bucket("b").unwrap();
    let waits = bucket.with_durability(Durability::Sync);
    let write = |rounds: u32| {
        for i in 0..rounds * 500 {
            let bucket = if i % 500 == 0 { &waits } else { &bucket };
            bucket.set(&(i % 3000).to_le_bytes(), &[i as u8; 900]).unwrap();
            if i % 500 == 0 {
                // Time for the cleaner, and too little of it for a rest.
                std::thread::sleep(std::time::Duration::from_millis(3));
            }
        }
    };
    write(8);
    let report = store.backup(path("backup")).unwrap();
    assert!(report.linked_files > 0 || !cfg!(unix), "{report:?}");
    let before = files(&path("backup"));
    write(80);
    assert!(files(&path("backup")) == before, "the backup has changed");
}

#[test]
fn a_backup_goes_to_a_new_or_an_empty_directory_only() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let store = Store::open(path("store"), options(Durability::Os)).unwrap();
    for used in [path("store"), dir.path().to_owned()] {
        assert_eq!(store.backup(&used).unwrap_err().kind(), ErrorKind::Invalid);
    }
    std::fs::write(path("file"), b"").unwrap();
    assert_eq!(store.backup(path("file")).unwrap_err().kind(), ErrorKind::Format);
    std::fs::create_dir(path("empty")).unwrap();
    store.backup(path("empty")).unwrap();
    assert_eq!(store.backup(path("empty")).unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(kvasi::restore(path("store"), path("new")).unwrap_err().kind(), ErrorKind::Locked);
    assert!(!path("new").exists());
    assert_eq!(kvasi::restore(path("nowhere"), path("new")).unwrap_err().kind(), ErrorKind::Io);
    let closed = store.clone();
    store.close().unwrap();
    assert_eq!(closed.backup(path("late")).unwrap_err().kind(), ErrorKind::Poisoned);
}

#[test]
fn half_a_backup_is_no_store() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let store = Store::open(path("store"), options(Durability::Os)).unwrap();
    fill(&store);
    store.backup(path("backup")).unwrap();
    std::fs::remove_file(path("backup").join("KVASI")).unwrap();
    for unfinished in [true, false] {
        if unfinished {
            std::fs::write(path("backup").join("UNFINISHED-BACKUP"), b"").unwrap();
        } else {
            std::fs::remove_file(path("backup").join("UNFINISHED-BACKUP")).unwrap();
        }
        assert_eq!(Store::open(path("backup"), Options::new()).unwrap_err().kind(), ErrorKind::Format);
        assert_eq!(kvasi::restore(path("backup"), path("new")).unwrap_err().kind(), ErrorKind::Format);
        assert!(!path("new").exists());
    }
}

#[test]
fn a_damaged_backup_is_not_restored() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let store = Store::open(path("store"), options(Durability::Os)).unwrap();
    fill(&store);
    store.backup(path("backup")).unwrap();
    drop(store);
    for (name, bytes) in files(&path("backup")) {
        // Of a run nothing can be lost; of one superblock slot neither.
        if name.ends_with(".run") || name == "LOCK" || name == "KVASI" {
            continue;
        }
        let mut bad = bytes.clone();
        let middle = bad.len() / 2;
        bad[middle] ^= 4;
        // A file of its own, lest the other store is damaged too.
        std::fs::remove_file(path("backup").join(&name)).unwrap();
        std::fs::write(path("backup").join(&name), &bad).unwrap();
        let error = kvasi::restore(path("backup"), path("new")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{name}: {error}");
        assert!(error.to_string().contains(&name), "{error}");
        assert!(!path("new").exists());
        std::fs::write(path("backup").join(&name), &bytes).unwrap();
    }
    kvasi::restore(path("backup"), path("new")).unwrap();
}

#[test]
fn damage_that_an_open_did_not_meet_is_neither_backed_up_nor_restored() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let store = Store::open(path("store"), options(Durability::Os)).unwrap();
    let bucket = store.bucket("b").unwrap();
    for i in 0..1000u32 {
        bucket.set(&i.to_le_bytes(), &[i as u8; 300]).unwrap();
    }
    drop(bucket);
    store.close().unwrap();
    let (name, mut bytes) = files(&path("store")).into_iter().find(|(name, _)| name.ends_with(".log")).unwrap();
    bytes[20_000] ^= 1;
    std::fs::write(path("store").join(&name), &bytes).unwrap();

    let store = Store::open(path("store"), options(Durability::Os)).unwrap();
    assert!(store.report().checkpoint, "the open has not read it");
    for to in ["here", "there"] {
        let error = store.backup(path(to)).unwrap_err();
        assert!(error.kind() == ErrorKind::Corrupt && error.to_string().contains(&name), "{error}");
        assert_eq!(Store::open(path(to), Options::new().create(false)).unwrap_err().kind(), ErrorKind::Format);
    }
    drop(store);
    assert_eq!(kvasi::restore(path("store"), path("new")).unwrap_err().kind(), ErrorKind::Corrupt);
    assert!(!path("new").exists());
}
