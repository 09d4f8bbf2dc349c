//! What the campaigns have found, one by one, each as small as it gets. Every test here failed before its mend.

use std::sync::Arc;

use super::counts::{Case, Counts};
use super::model;
use crate::catalogue::CATALOGUE;
use crate::checksum::Seed;
use crate::io::sim::{Failure, Fault, Image, Platter, SimDisk, Variant};
use crate::io::{Disk, write_full};
use crate::log::record::Record;
use crate::log::replay;
use crate::manifest::edit::{EDIT_BYTES, Edit};
use crate::manifest::superblock::{self, Superblock};
use crate::manifest::{Manifest, State};
use crate::worker::Jobs;
use crate::{Batch, Durability, ErrorKind, Options, Store};

fn options() -> Options {
    Options { segment_bytes_max: 4096, ..Options::new() }
}

fn open(disk: &SimDisk) -> crate::Result<Store> {
    Store::without_worker(Arc::new(disk.clone()), options())
}

fn new() -> (SimDisk, Store) {
    let disk = SimDisk::new(Image::new(), 1);
    let store = open(&disk).unwrap();
    store.bucket("b").unwrap();
    (disk, store)
}

/// Fills the active segment by more than half, so that the next one is made ready.
fn make_next_ready(store: &Store) {
    store.bucket("b").unwrap().set(b"half", &[1; 2500]).unwrap();
    Jobs::default().round(&store.0.commits, false);
}

fn power_cut(disk: &SimDisk, variant: Variant) -> SimDisk {
    SimDisk::new(disk.image(variant), 2)
}

#[test]
fn a_value_larger_than_the_segment_made_ready_leaves_the_store_whole() {
    let (disk, store) = new();
    make_next_ready(&store);
    let bucket = store.bucket("b").unwrap();
    let first = bucket.set(b"large", &[2; 9000]).unwrap();
    let then = bucket.set(b"after", &[3; 3000]).unwrap();
    assert!(first < then, "positions rise");
    for variant in [Variant::AllLost, Variant::AllKept] {
        assert_eq!(model::read(&open(&power_cut(&disk, variant)).unwrap()).unwrap()["b"].len(), 3);
    }
}

#[test]
fn a_tail_cut_once_is_no_damage_when_more_was_synced_behind_it() {
    let (disk, store) = new();
    let os = store.bucket("b").unwrap().with_durability(Durability::Os);
    os.set(b"torn", &[1; 100]).unwrap();
    let disk = power_cut(&disk, Variant::LastTorn(50));
    let bucket = open(&disk).unwrap().bucket("b").unwrap();
    for key in [b"one", b"two"] {
        bucket.set(key, b"").unwrap();
    }
    let store = open(&power_cut(&disk, Variant::AllLost)).unwrap();
    assert_eq!(model::read(&store).unwrap()["b"].len(), 2);
    assert_eq!(store.report().bytes_cut, 0, "the first open has told of it");
}

#[test]
fn a_log_whose_beginning_is_lost_is_removed_from_its_end() {
    let (disk, store) = {
        let disk = SimDisk::new(Image::new(), 1);
        let store = Store::without_worker(Arc::new(disk.clone()), options().durability(Durability::Os)).unwrap();
        (disk, store)
    };
    let bucket = store.bucket("b").unwrap();
    for key in [b"one", b"two", b"six"] {
        bucket.set(key, &[1; 3500]).unwrap();
    }
    // One write lost of all that was not synced: the link of the first segment, among others.
    let mut emptied = 0;
    for lost in 0..12 {
        let disk = power_cut(&disk, Variant::WithoutOne(lost));
        let found = model::read(&open(&disk).unwrap()).unwrap();
        emptied += u32::from(found.is_empty());
        let (image, ops) = disk.recording();
        let mut platter = Platter::new(&image);
        for op in &ops {
            platter.apply(op);
            for variant in [Variant::AllLost, Variant::AllKept] {
                let again = open(&SimDisk::new(platter.image(variant), 3)).unwrap();
                assert_eq!(model::read(&again).unwrap(), found, "without {lost}, {variant:?}");
            }
        }
    }
    assert!(emptied > 0);
}

#[test]
fn what_an_open_shows_survives_a_power_cut() {
    let (disk, store) = new();
    store.bucket("b").unwrap().with_durability(Durability::Os).set(b"key", b"value").unwrap();
    let disk = disk.restart();
    // Held, so that no closing of it syncs.
    let shown = open(&disk).unwrap();
    assert!(shown.bucket("b").unwrap().exists(b"key").unwrap());
    assert!(open(&power_cut(&disk, Variant::AllLost)).unwrap().bucket("b").unwrap().exists(b"key").unwrap());
}

#[test]
fn a_torn_superblock_of_a_creation_cut_short_is_no_damage() {
    let disk = SimDisk::new(Image::new(), 1);
    disk.create("MANIFEST-0000000000000001").unwrap();
    write_full(&*disk.create(superblock::FILE).unwrap(), 0, &[0xa5; 8192]).unwrap();
    assert!(open(&power_cut(&disk, Variant::AllKept)).unwrap().report().created);
}

#[test]
fn blank_superblock_slots_beside_a_store_are_damage() {
    let (disk, store) = new();
    store.close().unwrap();
    let mut image = disk.image(Variant::AllLost);
    image.insert(superblock::FILE.to_owned(), vec![0; 8192].into());
    assert_eq!(open(&SimDisk::new(image, 2)).unwrap_err().kind(), ErrorKind::Corrupt);
}

#[test]
fn an_edit_without_space_is_written_when_there_is_some() {
    let (disk, _store) = new();
    let superblock = Superblock::read(&disk).unwrap().unwrap();
    let mut manifest = Manifest::read(Arc::new(disk.clone()), superblock).unwrap();
    disk.set_quota(Some(disk.used_bytes() + 5));
    let seal = Edit::Seal { segment: 0, end: 100 };
    assert_eq!(manifest.append(seal).unwrap_err().kind(), ErrorKind::NoSpace);
    disk.set_quota(None);
    manifest.append(seal).unwrap();
    let again = Manifest::read(Arc::new(power_cut(&disk, Variant::AllLost)), superblock).unwrap();
    assert_eq!(again.state().segments[&0].sealed, Some(100));
}

#[test]
fn a_close_whose_sync_failed_leaves_no_hole_in_the_manifest() {
    for after in 0..20 {
        let (disk, store) = new();
        disk.set_fault(Some(Fault { after, failure: Failure::Io, sticky: true }));
        let _ = store.close();
        let disk = disk.restart();
        open(&disk).unwrap().bucket("b").unwrap().set(b"key", b"").unwrap();
        open(&power_cut(&disk, Variant::AllLost)).unwrap();
    }
}

#[test]
fn a_segment_that_cannot_be_made_stops_all_writing() {
    let mut poisoned = 0;
    for after in 0..12 {
        let (disk, store) = new();
        let bucket = store.bucket("b").unwrap().with_durability(Durability::Os);
        bucket.set(b"most", &[1; 3500]).unwrap();
        disk.set_fault(Some(Fault { after, failure: Failure::Io, sticky: false }));
        if bucket.set(b"more", &[2; 3500]).is_err() {
            disk.set_fault(None);
            assert_eq!(bucket.set(b"again", b"").unwrap_err().kind(), ErrorKind::Poisoned);
            assert!(bucket.exists(b"most").unwrap());
            poisoned += 1;
        }
        assert_eq!(disk.violation(), None);
        open(&power_cut(&disk, Variant::AllLost)).unwrap();
    }
    assert!(poisoned > 4);
}

#[test]
fn a_full_disk_that_fails_a_sync_poisons() {
    let (disk, store) = new();
    let bucket = store.bucket("b").unwrap().with_durability(Durability::Os);
    bucket.set(b"most", &[1; 3500]).unwrap();
    // The next segment takes over (by a write, where it is not mapped), more of it is filled with zeros, whose sync fails.
    let after = 1 + u64::from(super::unmapped().is_some());
    disk.set_fault(Some(Fault { after, failure: Failure::NoSpace, sticky: false }));
    assert!(bucket.set(b"more", &[2; 3500]).is_err());
    disk.set_fault(None);
    assert_eq!(bucket.set(b"again", b"").unwrap_err().kind(), ErrorKind::Poisoned);
    assert_eq!(disk.violation(), None);
}

#[test]
fn a_call_interrupted_for_ever_is_an_error_and_no_hang() {
    let (disk, store) = new();
    drop(store);
    let disk = disk.restart();
    disk.set_fault(Some(Fault { after: 0, failure: Failure::Interrupted, sticky: true }));
    assert_eq!(open(&disk).unwrap_err().kind(), ErrorKind::Io);
}

#[test]
fn deletes_go_on_where_the_disk_is_full() {
    let (disk, store) = new();
    let bucket = store.bucket("b").unwrap();
    disk.set_quota(Some(disk.used_bytes()));
    let mut keys = 0u32;
    let full = loop {
        match bucket.set(&keys.to_le_bytes(), &[1; 40]) {
            Ok(_) => keys += 1,
            Err(e) => break e,
        }
    };
    assert_eq!(full.kind(), ErrorKind::NoSpace);
    for key in 0..8u32 {
        assert!(bucket.delete(&key.to_le_bytes()).unwrap());
    }
    assert_eq!(bucket.set(b"key", &[1; 40]).unwrap_err().kind(), ErrorKind::NoSpace);
    disk.set_quota(None);
    bucket.set(b"key", &[1; 40]).unwrap();
    let seen = model::read(&open(&power_cut(&disk, Variant::AllLost)).unwrap()).unwrap();
    assert_eq!(seen["b"].len(), keys as usize - 8 + 1);
}

#[test]
fn deletes_go_on_where_the_disk_is_full_and_what_is_kept_for_them_is_in_the_next_segment() {
    let (disk, store) = new();
    let bucket = store.bucket("b").unwrap();
    for key in 0..50u32 {
        bucket.set(&key.to_le_bytes(), &[1; 40]).unwrap();
    }
    // Rounds with writes between them make the next segment ready, those without give back what is ahead.
    let mut jobs = Jobs::default();
    for _ in 0..2 {
        jobs.round(&store.0.commits, false);
        bucket.set(b"key", &[1; 40]).unwrap();
    }
    for _ in 0..20 {
        jobs.round(&store.0.commits, false);
    }
    disk.set_quota(Some(disk.used_bytes()));
    let full = (0..100u32).find_map(|_| bucket.set(b"key", &[1; 40]).err()).unwrap();
    assert_eq!(full.kind(), ErrorKind::NoSpace);
    for key in 0..8u32 {
        assert!(bucket.delete(&key.to_le_bytes()).unwrap());
    }
    assert_eq!(disk.violation(), None);
}

/// The manifest had no room to say that a segment is sealed or given up, and so the store stayed full whatever was deleted.
#[test]
fn a_disk_full_to_the_last_byte_is_emptied_by_what_is_dropped() {
    let disk = SimDisk::new(Image::new(), 1);
    disk.keep_promises();
    let store = open(&disk).unwrap();
    let bucket = store.bucket("b").unwrap();
    let mut jobs = Jobs::cleaning_from(1);
    for key in 0..200u32 {
        bucket.set(&key.to_le_bytes(), &[1; 500]).unwrap();
    }
    disk.set_quota(Some(disk.used_bytes()));
    let full = (1000..1100u32).find_map(|key| bucket.set(&key.to_le_bytes(), &[2; 500]).err()).unwrap();
    assert_eq!(full.kind(), ErrorKind::NoSpace);
    let used = disk.used_bytes();
    assert!(store.drop_bucket("b").unwrap());
    for _ in 0..300 {
        jobs.round(&store.0.commits, false);
    }
    assert!(disk.used_bytes() < used / 2, "{} bytes of {used} are still in use", disk.used_bytes());
    let again = store.bucket("again").unwrap();
    for key in 0..50u32 {
        again.set(&key.to_le_bytes(), &[3; 500]).unwrap();
    }
    assert_eq!(disk.violation(), None);
}

/// A disk full of what lives stayed full when it was deleted here and there: the cleaner had nowhere to move the rest of a segment to.
#[test]
fn a_disk_that_is_full_of_what_lives_is_emptied_by_scattered_deletes() {
    for seed in 0..2 {
        assert_eq!(super::full::fill_and_empty(seed, &mut Counts::default()), Ok(None), "seed {seed}");
    }
}

/// The cleaner took the last of the space that there was, also what deletes should have had of it.
#[test]
fn a_delete_finds_space_where_others_fill_the_disk_of_a_small_store() {
    let cases: [(u64, &[u32], &str); 2] =
        [(9000, &[0, 5, 6, 7, 9, 11, 13, 14, 18, 19, 25, 29], "6411"), (9002, &[4, 7, 10, 11, 13, 14, 19], "5900")];
    for (seed, calls, at) in cases {
        let case = Case { calls: Some(calls.to_vec()), at: Some(at.to_owned()) };
        let full = super::faults::full(seed, 1, &case);
        assert!(full.is_ok(), "{full:?}");
    }
}

/// It held the thread of whoever only wanted to start it, for seconds.
#[test]
fn a_delete_that_is_only_started_does_not_wait_for_space() {
    let (disk, store) = new();
    let bucket = store.bucket("b").unwrap().with_durability(Durability::Os);
    let full = (0..200u32).find_map(|key| {
        // Two segments, of which none gets nearly empty.
        if key == 100 {
            disk.set_quota(Some(disk.used_bytes()));
        }
        bucket.set(&key.to_le_bytes(), &[1; 40]).err()
    });
    assert_eq!(full.unwrap().kind(), ErrorKind::NoSpace);
    store.start_worker().unwrap();
    let pauses = || store.stats().pause_us.count();
    let refused = (0..60u32).find(|key| bucket.start_delete(&key.to_le_bytes()).is_err()).unwrap();
    let key = refused.to_le_bytes();
    assert_eq!(bucket.start_delete(&key).unwrap_err().kind(), ErrorKind::NoSpace);
    assert_eq!(bucket.start_delete_many(&[key]).unwrap_err().kind(), ErrorKind::NoSpace);
    let mut batch = Batch::new();
    batch.delete(&bucket, &key);
    assert_eq!(store.start_commit(&batch).unwrap_err().kind(), ErrorKind::NoSpace);
    assert_eq!(pauses(), 0);
    assert_eq!(bucket.delete(&key).unwrap_err().kind(), ErrorKind::NoSpace);
    assert_eq!(bucket.delete_many(&[key]).unwrap_err().kind(), ErrorKind::NoSpace);
    assert_eq!(store.commit(&batch).unwrap_err().kind(), ErrorKind::NoSpace);
    assert_eq!(pauses(), 3);
    disk.set_quota(None);
    assert!(bucket.delete(&key).unwrap());
}

/// The cleaner let go of the tombstones of two buckets that the checkpoint named: they were there again after the next crash.
#[test]
fn a_bucket_that_was_dropped_after_a_checkpoint_stays_dropped() {
    let calls = (7..=16).chain([20]).chain(22..=26).chain([28]).collect();
    let case = Case { calls: Some(calls), at: Some("69:NoSpace:once".to_owned()) };
    let errors = super::faults::errors(5_020_000_000_011, 1, &case);
    assert!(errors.is_ok(), "{errors:?}");
}

/// The simulation took a number that is given up for a run that should be there, where the disk had space for half of the new manifest.
#[test]
fn a_run_that_is_given_up_need_not_be_there() {
    let superblock =
        Superblock { compat: 0, ro_compat: 0, incompat: 0, store: 1, hash_seed: 1, generation: 1, manifest: 1 };
    let state = State { next_run: 8, ..State::default() };
    for bytes in 1..2 * EDIT_BYTES as u64 {
        let disk = SimDisk::new(Image::new(), 1);
        disk.set_quota(Some(bytes));
        let made = Manifest::create(Arc::new(disk.clone()), superblock, state.clone());
        assert_eq!(made.unwrap_err().kind(), ErrorKind::NoSpace);
        assert_eq!(disk.violation(), None, "space for {bytes} bytes");
    }
}

#[test]
fn one_seed_is_one_run_to_the_byte() {
    let recording = |seed| {
        let mut run = super::workload::Run::new(SimDisk::new(Image::new(), seed), seed);
        for _ in 0..80 {
            run.step().unwrap();
        }
        format!("{:?}", run.disk.recording().1)
    };
    for seed in 0..5 {
        assert!(recording(seed) == recording(seed), "seed {seed}");
    }
}

#[test]
fn a_position_that_a_crash_took_is_never_used_again_also_if_recovery_is_cut() {
    let (disk, store) = new();
    make_next_ready(&store);
    let bucket = store.bucket("b").unwrap().with_durability(Durability::Os);
    bucket.set(b"rest", &[1; 1200]).unwrap();
    let mut lost = bucket.set(b"next", &[2; 1200]).unwrap();
    for key in 0..8u8 {
        lost = bucket.set(&[key], &[3; 700]).unwrap();
    }
    let disk = power_cut(&disk, Variant::AllLost);
    drop(open(&disk).unwrap());
    let (base, ops) = disk.recording();
    let mut platter = crate::io::sim::Platter::new(&base);
    for moment in 0..=ops.len() {
        for variant in platter.variants(2, 7) {
            let cut = SimDisk::new(platter.image(variant), 3);
            let store = open(&cut).unwrap();
            let version = store.bucket("b").unwrap().set(b"new", b"").unwrap();
            assert!(version > lost, "cut before op {moment}, {variant:?}: {version:?} comes after {lost:?}");
        }
        if let Some(op) = ops.get(moment) {
            platter.apply(op);
        }
    }
}

/// Cuts the power at every moment of what was done on `disk`, in every way, and opens what is left.
fn at_every_cut(disk: &SimDisk, mut check: impl FnMut(usize, Variant, SimDisk)) {
    let (base, ops) = disk.recording();
    let mut platter = Platter::new(&base);
    for moment in 0..=ops.len() {
        let plain = |variant: &Variant| !matches!(variant, Variant::WithoutOne(_) | Variant::OnlyOne(_));
        for variant in platter.variants(2, 11).into_iter().filter(plain).take(8) {
            check(moment, variant, SimDisk::new(platter.image(variant), 5));
        }
        if let Some(op) = ops.get(moment) {
            platter.apply(op);
        }
    }
}

#[test]
fn a_creation_cut_twice_leaves_nothing_behind() {
    let (disk, store) = {
        let disk = SimDisk::new(Image::new(), 1);
        let store = open(&disk).unwrap();
        (disk, store)
    };
    drop(store);
    let made = disk.image_at(4);
    let whole = disk.image(Variant::AllKept)[superblock::FILE].clone();
    // The first cut has left one slot of two.
    for kept in [0..4096, 4096..8192] {
        let mut image = made.clone();
        image.retain(|name, _| name.starts_with("MANIFEST"));
        let mut slots = vec![0; 8192];
        slots[kept.clone()].copy_from_slice(&whole[kept]);
        image.insert(superblock::FILE.to_owned(), slots.into());
        let disk = SimDisk::new(image, 2);
        let held = open(&disk).unwrap();
        at_every_cut(&disk, |moment, variant, cut| {
            open(&cut).unwrap_or_else(|e| panic!("cut before op {moment}, {variant:?}: {e:?}"));
            super::crash::no_orphans(&cut).unwrap_or_else(|what| panic!("cut before op {moment}, {variant:?}: {what}"));
        });
        drop(held);
    }
}

#[test]
fn looking_at_a_creation_cut_short_does_not_complete_it() {
    let disk = SimDisk::new(Image::new(), 1);
    disk.create(superblock::FILE).unwrap();
    let disk = power_cut(&disk, Variant::AllKept).read_only_view();
    assert_eq!(open(&disk).unwrap_err().kind(), ErrorKind::Format);
    assert_eq!(disk.now(), 0, "no file is changed");
}

#[test]
fn a_superblock_whose_sync_failed_is_written_again_before_the_other_slot() {
    let (disk, store) = new();
    let bucket = store.bucket("b").unwrap();
    bucket.set(b"key", b"value").unwrap();
    let mut failed = 0;
    for after in 0..30 {
        let disk = power_cut(&disk, Variant::AllLost);
        disk.set_fault(Some(Fault { after, failure: Failure::Io, sticky: false }));
        if open(&disk).is_ok() {
            continue;
        }
        failed += 1;
        // The process ends, the next one opens the store on a disk that is well again.
        let again = disk.restart();
        let held = open(&again).unwrap();
        at_every_cut(&again, |moment, variant, cut| {
            let found = open(&cut).unwrap_or_else(|e| panic!("fault {after}, op {moment}, {variant:?}: {e:?}"));
            assert!(found.bucket("b").unwrap().exists(b"key").unwrap(), "fault {after}, op {moment}, {variant:?}");
        });
        drop(held);
    }
    assert!(failed > 5, "{failed}");
}

#[test]
fn a_close_that_failed_says_so_again() {
    let (disk, store) = new();
    store.bucket("b").unwrap().with_durability(Durability::Os).set(b"key", b"value").unwrap();
    disk.set_fault(Some(Fault { after: 0, failure: Failure::Io, sticky: true }));
    let other = store.clone();
    let first = store.close().unwrap_err();
    disk.set_fault(None);
    assert_eq!(other.close().unwrap_err().kind(), first.kind());
}

#[test]
fn stopping_leaves_no_half_made_run() {
    let (disk, store) = new();
    let bucket = store.bucket("b").unwrap().with_durability(Durability::Os);
    let mut jobs = Jobs::cleaning_from(1 << 20);
    let mut half_made = 0;
    for i in 0..800u32 {
        // Now and then nobody writes for a while.
        if i % 40 < 20 {
            bucket.set(&i.to_le_bytes(), &[1; 400]).unwrap();
        }
        jobs.round(&store.0.commits, false).unwrap();
        let named = store.0.commits.log.runs().0.len();
        let there = disk.list().unwrap().iter().filter(|name| name.ends_with(".run")).count();
        if there > named {
            half_made += 1;
            jobs.stop(&store.0.commits);
            jobs = Jobs::cleaning_from(1 << 20);
            let there = disk.list().unwrap().iter().filter(|name| name.ends_with(".run")).count();
            assert_eq!(there, store.0.commits.log.runs().0.len());
        }
    }
    assert!(half_made > 0);
}

#[test]
fn a_log_cut_before_what_the_cleaner_moved_is_damage() {
    let (disk, store) = new();
    let bucket = store.bucket("b").unwrap();
    for key in 0..4u8 {
        bucket.set(&[key], &[key; 300]).unwrap();
    }
    let mut jobs = Jobs::cleaning_from(2048);
    let mut cuts = 0;
    for i in 0..60u8 {
        bucket.set(b"dead", &[i; 900]).unwrap();
        for _ in 0..3 {
            jobs.round(&store.0.commits, false).unwrap();
        }
        // As a process that has died leaves it, and of its last segment with records only so much.
        let image = disk.image(Variant::AllKept);
        let used = |bytes: &[u8]| bytes.len() > 72 && bytes[56..64] != [0; 8];
        let last = image.iter().rfind(|(name, bytes)| name.ends_with(".log") && used(bytes));
        let Some((name, bytes)) = last else { continue };
        for len in [72, 400, 800, 1200, 2000].into_iter().filter(|len| *len < bytes.len()) {
            let mut cut = image.clone();
            cut.insert(name.clone(), bytes[..len].to_vec().into());
            let found = match open(&SimDisk::new(cut, 9)) {
                Ok(store) => model::read(&store).unwrap(),
                Err(e) => {
                    assert_eq!(e.kind(), ErrorKind::Corrupt);
                    cuts += 1;
                    continue;
                }
            };
            // They were written first: without them there is nothing.
            let Some(keys) = found.get("b").filter(|keys| keys.contains_key(&b"dead"[..])) else { continue };
            let kept = (0..4u8).filter(|key| keys.contains_key(&vec![*key])).count();
            assert_eq!(kept, 4, "round {i}, {name} cut to {len} bytes: {:?}", keys.keys());
        }
    }
    assert!(cuts > 0, "something was cleaned");
}

#[test]
fn a_key_whose_old_record_is_damaged_reads_as_what_it_was_set_to_since() {
    let disk = SimDisk::new(Image::new(), 1);
    let options = || Options { checkpoint_bytes_min: 2048, ..options() }.durability(Durability::Os);
    let open = |disk: &SimDisk| Store::without_worker(Arc::new(disk.clone()), options()).unwrap();
    let store = open(&disk);
    let bucket = store.bucket("b").unwrap();
    bucket.set(b"damaged", &[7; 40]).unwrap();
    for i in 0..60u32 {
        bucket.set(&i.to_le_bytes(), &[1; 300]).unwrap();
        Jobs::default().round(&store.0.commits, false).unwrap();
    }
    drop(bucket);
    store.close().unwrap();

    let mut image = disk.image(Variant::AllLost);
    let is_at = |bytes: &[u8]| bytes.windows(7).position(|seven| seven == b"damaged");
    let (name, at) = image
        .iter()
        .filter(|(name, _)| name.ends_with(".log"))
        .find_map(|(name, bytes)| Some((name.clone(), is_at(bytes)?)))
        .unwrap();
    // The flags stand before bucket, key and value length.
    Arc::make_mut(image.get_mut(&name).unwrap())[at - 4] = 0xff;
    let store = open(&SimDisk::new(image, 2));
    assert!(store.report().checkpoint, "the old log is not read");
    let bucket = store.bucket("b").unwrap();
    assert_eq!(bucket.get(b"damaged").unwrap_err().kind(), ErrorKind::Corrupt);
    bucket.set_many(&[(b"damaged", b"new")]).unwrap();
    assert_eq!(bucket.get(b"damaged").unwrap().as_deref(), Some(&b"new"[..]));
    bucket.set(b"damaged", b"newer").unwrap();
    assert_eq!(bucket.get(b"damaged").unwrap().as_deref(), Some(&b"newer"[..]));
    assert!(bucket.delete(b"damaged").unwrap());
    assert_eq!(bucket.get(b"damaged").unwrap_err().kind(), ErrorKind::Corrupt, "nobody knows what it holds");
}

#[test]
fn an_open_that_cannot_sync_what_it_found_fails_with_an_error_of_the_disk() {
    let (disk, store) = new();
    store.bucket("b").unwrap().with_durability(Durability::Os).set(b"key", b"value").unwrap();
    let mut failed = 0;
    for after in 0..40 {
        let disk = power_cut(&disk, Variant::AllKept);
        disk.set_fault(Some(Fault { after, failure: Failure::Io, sticky: false }));
        if let Err(e) = open(&disk) {
            assert_eq!(e.kind(), ErrorKind::Io, "call {after}: {e:?}");
            failed += 1;
        }
    }
    assert!(failed > 10, "{failed}");
}

#[test]
fn the_header_of_a_segment_that_was_given_up_is_no_log() {
    for calls in 0..6 {
        let (disk, store) = new();
        let bucket = store.bucket("b").unwrap().with_durability(Durability::Sync);
        bucket.set(b"first", &[1; 1500]).unwrap();
        let fault = |after, failure| Fault { after, failure, sticky: false };
        // Also: space for the header alone, and then the file cannot be removed either.
        disk.set_faults(&[fault(calls, Failure::NoSpace), fault(calls + 1, Failure::Io)]);
        let refused = bucket.set(b"second", &[2; 3000]);
        disk.set_faults(&[]);
        if refused.is_err_and(|e| e.kind() == ErrorKind::NoSpace) {
            bucket.set(b"third", &[3; 3000]).unwrap();
            disk.check_acknowledged();
        }
        assert_eq!(disk.violation(), None);
    }
}

#[test]
fn verifying_an_open_store_finds_damage_that_its_open_had_no_need_to_read() {
    let options = || Options { segment_bytes_max: 4096, checkpoint_bytes_min: 1, ..Options::new() };
    let open = |disk: &SimDisk| Store::without_worker(Arc::new(disk.clone()), options());
    let disk = SimDisk::new(Image::new(), 1);
    let store = open(&disk).unwrap();
    let bucket = store.bucket("b").unwrap();
    for i in 0..20u8 {
        bucket.set(&[i], &[i; 20]).unwrap();
    }
    drop(bucket);
    store.close().unwrap();
    let mut image = disk.image(Variant::AllLost);
    let (name, log) = image.iter_mut().find(|(name, _)| crate::segment::number_of(name).is_some()).unwrap();
    let name = name.clone();
    Arc::make_mut(log)[400] ^= 1;
    let store = open(&SimDisk::new(image, 2)).unwrap();
    assert!(store.report().checkpoint);
    let report = store.verify().unwrap();
    assert!(report.findings.iter().any(|finding| finding.file == name), "{report:?}");
}

#[test]
fn a_record_of_the_catalogue_that_makes_no_sense_is_refused_before_anything_is_changed() {
    let (disk, store) = new();
    store.bucket("b").unwrap().set(b"key", &[1; 300]).unwrap();
    drop(store);
    let mut image = disk.image(Variant::AllKept);
    let (_, log) = image.iter_mut().find(|(name, _)| crate::segment::number_of(name).is_some()).unwrap();
    let log = Arc::make_mut(log);
    let salt = u64::from_le_bytes(log[32..40].try_into().unwrap());
    // With a checksum that is right, and behind it what a crash leaves of a record: an open has something to repair.
    let at = replay::extent(log, salt).end as usize;
    let nonsense = Record::set(CATALOGUE, b"x", b"y");
    let end = at + nonsense.bytes() as usize;
    log.resize(log.len().max(end + 64), 0);
    nonsense.encode(&mut log[at..end], Seed::new(salt, at as u64));
    log[end..end + 64].fill(0xa5);
    let disk = SimDisk::new(image.clone(), 2);
    assert_eq!(open(&disk).unwrap_err().kind(), ErrorKind::Corrupt);
    assert!(disk.image(Variant::AllKept) == image, "files were changed");
}
