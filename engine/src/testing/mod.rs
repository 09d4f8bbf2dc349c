//! What the project's own tests share (feature `testing`): doors into what reads untrusted bytes, and the crash and fault
//! campaigns on the simulated disk. No stability promise.
//!
//! `workload` drives a store by seed and tells `model` what it was told; `crash` and `faults` judge what is left by it. The
//! functions in this file must return for any input: no panic, no hang, no allocation beyond the input's size.

pub mod backup;
mod call;
pub mod cancel;
pub mod counts;
pub mod crash;
pub mod damage;
pub mod drive;
pub mod exhaustive;
pub mod faults;
mod feed;
mod full;
pub mod fuzz;
mod held;
pub mod linear;
pub(crate) mod model;
pub mod seeded;
#[cfg(test)]
mod tests;
pub mod throughout;
pub mod verify;
mod workload;

use std::sync::Arc;

use crossbeam_epoch as epoch;

use crate::catalogue;
use crate::checksum::Seed;
use crate::io::memory::MemoryDisk;
use crate::io::window::Budget;
use crate::io::{self, Disk};
use crate::log::record::Record;
use crate::log::replay;
use crate::manifest::Manifest;
use crate::manifest::superblock::Superblock;
use crate::run::format::{Entry, Header};
use crate::run::{Cursor, Run, Writer};
use crate::{Durability, Options, Store};

/// A small generator of our own (SplitMix64): the same seed gives the same run on every machine and in every release.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// Where a choice comes from: a generator, or the bytes of a fuzzer.
pub(crate) trait Choices {
    /// A number below `n`, which is not zero.
    fn below(&mut self, n: u64) -> u64;
}

impl Choices for Random {
    fn below(&mut self, n: u64) -> u64 {
        Random::below(self, n)
    }
}

/// The memory that unmapped files may take: little, so that all of it is forgotten and read again, over and over.
pub(crate) fn small_budget() -> Arc<Budget> {
    Arc::new(Budget::new(64 << 10))
}

/// The same, where the environment (`KVASI_ACCESS=unmapped`) has all tests run without mappings.
pub(crate) fn unmapped() -> Option<Arc<Budget>> {
    let is_set = std::env::var_os("KVASI_ACCESS").is_some_and(|access| access == "unmapped");
    is_set.then(small_budget)
}

/// The same for real files, which may be mapped and guarded, too (`KVASI_ACCESS=guarded`).
pub(crate) fn access() -> Option<(Option<Arc<Budget>>, bool)> {
    let is_guarded = std::env::var_os("KVASI_ACCESS").is_some_and(|access| access == "guarded");
    if is_guarded && cfg!(target_os = "linux") {
        return Some((Some(small_budget()), true));
    }
    unmapped().map(|budget| (Some(budget), false))
}

/// Lets go of all that was kept for readers that are gone by now: otherwise the next calls of any store do, by and by.
pub fn collect_garbage() {
    (0..256).for_each(|_| crossbeam_epoch::pin().flush());
}

/// The same options, for a store that makes directory checkpoints from so few bytes of log on.
pub fn with_checkpoints_from(options: Options, bytes: u64) -> Options {
    Options { checkpoint_bytes_min: bytes, ..options }
}

/// Reads `bytes` as a record; what was read is written again and must be the same bytes.
pub fn read_record(bytes: &[u8]) {
    let Ok((record, len)) = Record::parse(bytes) else { return };
    let mut again = vec![0; record.bytes() as usize];
    record.encode(&mut again, Seed::new(1, 2));
    // Padding may be anything as long as nobody has looked at the checksum.
    let unpadded = record.key_offset() as usize + record.key.len() + record.value.len();
    assert_eq!(again.len() as u64, len);
    assert_eq!(again[4..unpadded], bytes[4..unpadded], "one record, one encoding");
    assert!(Record::verify(&again, Seed::new(1, 2)).is_ok());
}

/// Reads `bytes` as a log segment: its extent is a prefix, and does not change when what follows it is cut off.
pub fn read_log(bytes: &[u8], salt: u64) {
    let extent = replay::extent(bytes, salt);
    assert!(extent.commits == 0 || extent.end <= bytes.len() as u64);
    if extent.commits > 0 {
        let cut = replay::extent(&bytes[..extent.end as usize], salt);
        assert_eq!((cut.end, cut.commits), (extent.end, extent.commits));
    }
    replay::witness_behind(bytes, salt, extent.end, 0);
    // Those of the catalogue tell of buckets.
    let mut catalogue = catalogue::Replay::new(None);
    let log = bytes.get(..extent.end as usize).unwrap_or_default();
    let told = replay::records(log, crate::segment::HEADER_BYTES, |_, record, _| {
        let _ = catalogue.take(record);
        Ok(())
    });
    assert!(told.is_ok());
    catalogue::Catalogue::default().take_up(catalogue);
}

/// A segment's bytes with checksums made right: `plan` is cut into commits. What a fuzzer cannot guess.
pub fn valid_log(plan: &[u8], salt: u64) -> Vec<u8> {
    let mut bytes = vec![0; crate::segment::HEADER_BYTES as usize];
    for (i, value) in plan.chunks(7).enumerate() {
        let at = bytes.len() as u64;
        let mark = value.first().is_some_and(|b| b % 3 == 0).then_some(at);
        let record = Record { mark, ..Record::set(i as u64 % 3, &value[..value.len() / 2], value) };
        bytes.resize((at + record.bytes()) as usize, 0);
        record.encode(&mut bytes[at as usize..], Seed::new(salt, at));
    }
    bytes
}

/// Reads `bytes` as a key run: whatever it holds is in order, or it is refused.
pub fn read_run(bytes: &[u8], store: u64) {
    if let Ok(run) = Run::in_memory(bytes.to_vec(), store) {
        let run = Arc::new(run);
        let _ = run.check();
        if let Ok(Some(mut cursor)) = Cursor::seek(&run, 1, bytes.get(..3).unwrap_or_default()) {
            while matches!(cursor.next(), Ok(true)) {}
        }
    }
}

/// A key run with checksums made right: `plan` is cut into keys. What a fuzzer cannot guess.
pub fn valid_run(plan: &[u8], store: u64) -> Vec<u8> {
    let keys: std::collections::BTreeSet<(u64, &[u8])> =
        plan.chunks(9).map(|key| (u64::from(key[0] % 3), &key[1..])).collect();
    let mut writer = Writer::new(Header { number: 0, from: 0, to: 1 << 20, salt: 3 }, store, None);
    for (bucket, key) in keys {
        let stamp = 4 + key.len() as u64 % 3;
        // Memory takes it, or the process ends.
        let _ = writer.add(&Entry { bucket, key, stamp, expires: stamp & 1 });
    }
    writer.finish().unwrap_or_default()
}

/// Reads `superblock` and `manifest` as the files of a store.
pub fn read_manifest(superblock: &[u8], manifest: &[u8]) {
    let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::default());
    let put = |name: &str, bytes: &[u8]| {
        let file = disk.create(name)?;
        io::write_full(&*file, 0, bytes)
    };
    let known = Superblock { compat: 0, ro_compat: 0, incompat: 0, store: 1, hash_seed: 2, generation: 1, manifest: 1 };
    if put(crate::manifest::superblock::FILE, superblock).is_ok() {
        let _ = Superblock::read(&*disk);
    }
    if put("MANIFEST-0000000000000001", manifest).is_ok() {
        let _ = Manifest::read(disk.clone(), known);
    }
}

/// A store in memory whose log is read again from the start must say the same as the store itself.
pub fn operations(bytes: &[u8]) -> crate::Result<()> {
    let store = Store::in_memory(Options::new().durability(Durability::Ephemeral).segment_bytes_max(64 << 10))?;
    let bucket = store.bucket("b")?;
    let mut model = std::collections::BTreeMap::new();
    for op in bytes.chunks_exact(4) {
        let key = vec![op[1] % 16; usize::from(op[1] % 5)];
        match op[0] % 5 {
            0 | 1 => {
                let value = vec![op[2]; usize::from(op[3]) * usize::from(op[2] % 64)];
                bucket.set(&key, &value)?;
                model.insert(key, value);
            }
            2 => assert_eq!(bucket.delete(&key)?, model.remove(&key).is_some()),
            3 => {
                let pairs = [(key.clone(), vec![op[2]]), (vec![op[3] % 16], vec![op[3]])];
                bucket.set_many(&pairs)?;
                model.extend(pairs);
            }
            _ => assert_eq!(bucket.get(&key)?.as_deref(), model.get(&key).map(|v| &v[..])),
        }
    }
    let mut said = std::collections::BTreeMap::new();
    let guard = &epoch::pin();
    for segment in store.0.commits.log.segments(guard) {
        let bytes = &*segment.read(segment.region.published())?;
        assert_eq!(replay::extent(bytes, segment.header.salt).end, bytes.len() as u64);
        replay::records(bytes, crate::segment::HEADER_BYTES, |_, record, _| {
            match record.kind {
                _ if record.bucket == 0 => {}
                crate::log::record::Kind::Set => drop(said.insert(record.key.to_vec(), record.value.to_vec())),
                _ => drop(said.remove(record.key)),
            }
            Ok(())
        })?;
    }
    assert_eq!(said, model);
    Ok(())
}
