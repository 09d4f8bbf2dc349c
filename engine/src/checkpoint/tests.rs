//! Opens from a checkpoint, against opens from the log alone.

use super::*;
use crossbeam_epoch as epoch;

use crate::io::sim::{Image, SimDisk, Variant};
use crate::manifest::Manifest;
use crate::manifest::superblock::Superblock;
use crate::testing::Random;
use crate::testing::model::{self, Seen};
use crate::worker::Jobs;
use crate::{Batch, Durability, ErrorKind, Options, Store};

fn options() -> Options {
    Options { segment_bytes_max: 4096, checkpoint_bytes_min: 1024, ..Options::new().durability(Durability::Os) }
}

fn open(image: &Image) -> Store {
    Store::without_worker(Arc::new(SimDisk::new(image.clone(), 7)), options()).unwrap()
}

fn shards() -> usize {
    SimDisk::new(Image::new(), 1).shards()
}

/// A store after a clean close, with a checkpoint.
fn closed() -> Image {
    let disk = SimDisk::new(Image::new(), 1);
    let store = Store::without_worker(Arc::new(disk.clone()), options()).unwrap();
    let bucket = store.bucket("b").unwrap();
    for i in 0..100u32 {
        bucket.set(&i.to_le_bytes(), &[i as u8; 50]).unwrap();
    }
    store.bucket("gone").unwrap().set(b"key", b"value").unwrap();
    store.drop_bucket("gone").unwrap();
    drop(bucket);
    store.close().unwrap();
    disk.image(Variant::AllLost)
}

fn checkpoint_of(image: &Image) -> (String, Vec<u8>, CheckpointEntry, u64) {
    let disk: Arc<dyn Disk> = Arc::new(SimDisk::new(image.clone(), 1));
    let superblock = Superblock::read(&*disk).unwrap().unwrap();
    let entry = Manifest::read(disk, superblock).unwrap().state().checkpoint.unwrap();
    let name = file_name(entry.number);
    let bytes = image[&name].to_vec();
    (name, bytes, entry, superblock.store)
}

/// The same store, its checkpoint lost.
fn without(image: &Image) -> Image {
    image.iter().filter(|(name, _)| number_of(name).is_none()).map(|(n, b)| (n.clone(), b.clone())).collect()
}

#[test]
fn a_clean_open_replays_nothing_and_holds_everything() {
    let image = closed();
    let (with, without) = (open(&image), open(&without(&image)));
    let report = with.report();
    assert!(report.clean && report.checkpoint && report.records_replayed == 0, "{report:?}");
    let report = without.report();
    assert!(!report.checkpoint && report.checkpoint_thrown_away && report.records_replayed > 100, "{report:?}");
    assert_eq!(model::read(&with).unwrap(), model::read(&without).unwrap());
    for store in [&with, &without] {
        let mut jobs = Jobs::default();
        (0..20).for_each(|_| assert!(jobs.round(&store.0.commits, false).is_some()));
    }
    assert_eq!(with.stats().keys, without.stats().keys);
    assert_eq!(with.stats().live_bytes, without.stats().live_bytes);
}

#[test]
fn every_flipped_bit_and_every_cut_is_seen_or_does_not_matter() {
    let image = closed();
    let (name, bytes, entry, store) = checkpoint_of(&image);
    let read = |bytes: &[u8]| Checkpoint::read(Private::copy_of(bytes).unwrap(), entry, store, shards());
    assert!(read(&bytes).is_some());
    let tables = u64::from_le_bytes(bytes[48..56].try_into().unwrap()) as usize;
    for bit in 0..bytes.len() * 8 {
        let at = bit / 8;
        if (HEADER_BYTES..tables).contains(&at) && bit % 101 != 0 {
            continue;
        }
        let mut bad = bytes.clone();
        bad[at] ^= 1 << (bit % 8);
        assert!(read(&bad).is_none(), "bit {bit}");
    }
    for len in (1..bytes.len()).step_by(97) {
        assert!(read(&bytes[..len]).is_none(), "cut to {len}");
    }
    // And the store is whole all the same.
    let expected = model::read(&open(&image)).unwrap();
    for bit in (0..bytes.len() * 8).step_by(bytes.len() * 8 / 40) {
        let mut bad = bytes.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        let mut image = image.clone();
        image.insert(name.clone(), bad.into());
        assert_eq!(model::read(&open(&image)).unwrap(), expected, "bit {bit}");
    }
}

#[test]
fn a_directory_made_ready_for_more_keys_holds_the_same() {
    let (_, bytes, entry, store) = checkpoint_of(&closed());
    let guard = &epoch::pin();
    let read = || Checkpoint::read(Private::copy_of(&bytes).unwrap(), entry, store, shards()).unwrap().directory;
    let places = |directory: &Directory| {
        let mut places: Vec<_> = (0..shards()).flat_map(|shard| directory.places(shard, guard)).collect();
        places.sort_unstable();
        places
    };
    let as_written = read();
    for keys_per_key in [1.0, 1.2, 3.0] {
        let directory = read();
        directory.expect(keys_per_key);
        directory.make_ready(0..shards(), guard);
        assert_eq!(places(&directory), places(&as_written));
        assert_eq!(directory.keys(guard), as_written.keys(guard));
        let grew = directory.bytes(guard) > as_written.bytes(guard);
        assert_eq!(grew, keys_per_key > 1.0, "{keys_per_key}");
    }
}

#[test]
fn a_checkpoint_of_another_store_or_number_is_none() {
    let (_, bytes, entry, store) = checkpoint_of(&closed());
    let read = |entry, store| Checkpoint::read(Private::copy_of(&bytes).unwrap(), entry, store, shards()).is_some();
    assert!(read(entry, store));
    assert!(!read(entry, store + 1));
    assert!(!read(CheckpointEntry { number: entry.number + 1, ..entry }, store));
    assert!(!read(CheckpointEntry { from: entry.from - 4, ..entry }, store));
}

#[test]
fn a_record_damaged_below_the_checkpoint_is_an_error_of_its_key_alone() {
    let mut image = closed();
    let name = crate::segment::file_name(0);
    let mut bytes = image[&name].to_vec();
    let at = bytes.windows(50).position(|w| w == [5; 50]).unwrap() + 20;
    bytes[at] ^= 1;
    image.insert(name, bytes.into());
    let store = open(&image);
    let bucket = store.bucket("b").unwrap();
    let mut jobs = Jobs::cleaning_from(1);
    for round in 0..20 {
        assert!(jobs.round(&store.0.commits, false).is_some(), "damage stops no background work");
        for i in 0..100u32 {
            match bucket.get(&i.to_le_bytes()) {
                Err(e) => assert!(i == 5 && e.kind() == ErrorKind::Corrupt, "{e}"),
                Ok(value) => assert!(i != 5 && value.unwrap()[..] == [i as u8; 50]),
            }
        }
        // Work for the cleaner.
        let _ = bucket.set(&(60 + round as u32).to_le_bytes(), &[60 + round as u8; 50]).unwrap();
    }
    let mut batch = Batch::new();
    batch.set(&bucket, &5u32.to_le_bytes(), b"again");
    store.commit(&batch).unwrap();
    assert_eq!(&bucket.get(&5u32.to_le_bytes()).unwrap().unwrap()[..], b"again");
}

#[test]
fn the_scrub_ends_the_checking_at_each_read() {
    let store = open(&closed());
    let unchecked = || {
        let guard = &crossbeam_epoch::pin();
        store.0.commits.log.segments(guard).iter().map(|s| s.unchecked()).sum::<u64>()
    };
    assert!(unchecked() > 0);
    let mut jobs = Jobs::default();
    (0..20).for_each(|_| assert!(jobs.round(&store.0.commits, false).is_some()));
    assert_eq!(unchecked(), 0);
}

/// What a store shows, each key asked for as well.
fn seen(store: &Store) -> Seen {
    let seen = model::read(store).unwrap();
    for (name, keys) in &seen {
        let bucket = store.existing_bucket(name).unwrap().unwrap();
        for key in (0..40u8).map(|k| vec![k]) {
            let found = bucket.get(&key).unwrap().map(|v| (v.to_vec(), v.version().get()));
            assert_eq!(found.as_ref(), keys.get(&key), "a listing and a read differ");
        }
    }
    seen
}

/// Every word of the directory is the only one of its key, and that is there or has expired.
fn no_word_is_left_over(store: &Store, seen: &Seen) {
    let (guard, commits) = (&crossbeam_epoch::pin(), &store.0.commits);
    let ids: Vec<u64> = seen.keys().map(|name| store.existing_bucket(name).unwrap().unwrap().entry.id).collect();
    let mut keys = BTreeSet::new();
    for place in (0..commits.directory.shards()).flat_map(|shard| commits.directory.places(shard, guard)) {
        let found = commits.log.record(place, guard).unwrap();
        let (id, key) = (found.record.bucket, found.record.key.to_vec());
        assert!(keys.insert((id, key.clone())), "two words of one key");
        assert!(id == 0 || ids.contains(&id), "a word of a bucket that was dropped");
        let there = ids.iter().position(|i| *i == id).is_some_and(|i| seen.values().nth(i).unwrap().contains_key(&key));
        assert!(id == 0 || there || found.is_expired(), "a word of a key that is gone");
    }
}

#[test]
fn a_bucket_dropped_while_a_checkpoint_is_written_leaves_no_word() {
    let mut with_a_checkpoint = 0;
    for rounds in 0..12 {
        let disk = SimDisk::new(Image::new(), 1);
        let store = Store::without_worker(Arc::new(disk.clone()), options()).unwrap();
        let (stays, goes) = (store.bucket("stays").unwrap(), store.bucket("goes").unwrap());
        for key in 0..30u8 {
            stays.set(&[key], &[1; 60]).unwrap();
            goes.set(&[key], &[1; 60]).unwrap();
        }
        let mut jobs = Jobs::cleaning_from(u64::MAX);
        (0..rounds).for_each(|_| assert!(jobs.round(&store.0.commits, false).is_some()));
        store.drop_bucket("goes").unwrap();
        (0..20).for_each(|_| assert!(jobs.round(&store.0.commits, false).is_some()));
        let again = open(&disk.image(Variant::AllKept));
        with_a_checkpoint += u32::from(again.report().checkpoint);
        let mut jobs = Jobs::cleaning_from(u64::MAX);
        (0..20).for_each(|_| assert!(jobs.round(&again.0.commits, false).is_some()));
        no_word_is_left_over(&again, &seen(&again));
    }
    assert!(with_a_checkpoint > 6, "{with_a_checkpoint} opens with a checkpoint");
}

#[test]
fn an_open_from_a_checkpoint_shows_what_one_from_the_log_does() {
    let (mut opens, mut ghosts, mut used, mut replayed) = (0, 0, 0, 0);
    for seed in 0..if cfg!(miri) { 1 } else { 30 } {
        let mut random = Random::new(seed);
        let mut disk = SimDisk::new(Image::new(), seed);
        let mut store = Store::without_worker(Arc::new(disk.clone()), options()).unwrap();
        let mut jobs = Jobs::cleaning_from(1024);
        for step in 0..400u32 {
            let bucket = store.bucket(["a", "b", "c"][random.below(3) as usize]).unwrap();
            let key = [random.below(40) as u8];
            let value = vec![step as u8; random.below(200) as usize];
            match random.below(100) {
                0..40 => drop(bucket.set(&key, &value).unwrap()),
                40..46 => drop(bucket.set_until(&key, &value, u64::MAX / 2).unwrap()),
                46..50 => drop(bucket.set_until(&key, &value, 1).unwrap()),
                50..60 => drop(bucket.delete(&key).unwrap()),
                60..63 => drop(bucket.with_durability(Durability::Sync).set(&key, &value).unwrap()),
                63..70 => {
                    let mut batch = Batch::new();
                    for _ in 0..random.below(6) {
                        batch.set(&bucket, &[random.below(40) as u8], &value);
                        batch.delete(&bucket, &[random.below(40) as u8]);
                    }
                    store.commit(&batch).unwrap();
                }
                70 => drop(store.drop_bucket("b").unwrap()),
                71..96 => assert!(jobs.round(&store.0.commits, false).is_some()),
                96 => {
                    // The process ends, in order or not, and the next one goes on.
                    drop(bucket);
                    if random.below(2) == 0 {
                        store.close().unwrap();
                    }
                    disk = disk.restart();
                    store = Store::without_worker(Arc::new(disk.clone()), options()).unwrap();
                    jobs = Jobs::cleaning_from(1024);
                }
                _ => {
                    let image = disk.image(Variant::AllKept);
                    let (with, without) = (open(&image), open(&without(&image)));
                    opens += 1;
                    used += u64::from(with.report().checkpoint);
                    ghosts += u64::from(with.0.commits.log.has_ghosts());
                    replayed += with.report().records_replayed;
                    let expected = seen(&without);
                    assert_eq!(seen(&store), expected, "seed {seed}, step {step}: the log");
                    assert_eq!(seen(&with), expected, "seed {seed}, step {step}: the checkpoint");
                    for store in [&with, &without] {
                        let mut jobs = Jobs::cleaning_from(1024);
                        (0..60).for_each(|_| assert!(jobs.round(&store.0.commits, false).is_some()));
                        assert_eq!(seen(store), expected, "seed {seed}, step {step}: after background work");
                        assert!(!store.0.commits.log.has_ghosts());
                        no_word_is_left_over(store, &expected);
                    }
                }
            }
        }
    }
    assert!(cfg!(miri) || used > opens / 2 && ghosts > 20 && replayed > 0, "{used} of {opens}, {ghosts} with ghosts");
}
