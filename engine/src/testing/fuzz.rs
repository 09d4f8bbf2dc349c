//! What the fuzz targets do, each of any bytes: these are read as what a file may hold; or they are a script, of what is put into a file with checksums
//! made right, or of what is done to a store and to the disk below it.
//!
//! Flow: bytes -> `Script` -> choices, as the campaigns make them of a seed -> the workloads and judges of the campaigns.
//! Invariants: 1. Any bytes are a script. 2. What differs from what was told is an `Err`, and what cannot be is a panic; both are finds.
//! 3. The same bytes do the same.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use crossbeam_epoch as epoch;

use super::call::{At, Call, Calls, KEYS};
use super::crash::{self, Judge, make};
use super::damage::{self, Damage, Fill};
use super::faults::{self, FaultPlan};
use super::model;
use super::workload::{self, Run, Step};
use super::{Choices, Random};
use crate::checkpoint::{self, Addressed, Buckets, Checkpoint};
use crate::checksum::Seed;
use crate::directory::{At as PartAt, LINE_BYTES, Shape};
use crate::io::map::Private;
use crate::io::sim::{self, FAILURES, Failure, Image, SimDisk, Variant};
use crate::log::record::{ALIGN, Kind, Record};
use crate::log::replay;
use crate::manifest::edit::{EDIT_BYTES, Edit};
use crate::manifest::superblock::Superblock;
use crate::manifest::{self, CheckpointEntry};
use crate::segment::{self, HEADER_BYTES, Header};
use crate::worker::Jobs;
use crate::{ErrorKind, Store};

/// The bytes that say what is done; zeros behind the last.
struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    fn is_over(&self) -> bool {
        self.0.is_empty()
    }

    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    /// The next bytes, fewer where there are no more.
    fn take(&mut self, bytes: u64) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(self.0.len().min(bytes as usize));
        self.0 = rest;
        taken
    }

    /// A small number, or a large one.
    fn number(&mut self) -> u64 {
        let byte = u64::from(self.byte());
        match byte {
            0..240 => byte,
            240..252 => (byte - 239) << (4 * (byte - 239)),
            _ => u64::MAX - (byte - 252),
        }
    }
}

impl Choices for Script<'_> {
    /// Of as many bytes as `n` needs: a change of one of them changes one choice.
    fn below(&mut self, n: u64) -> u64 {
        let mut number = 0;
        let mut most = n - 1;
        while most > 0 {
            number = number << 8 | u64::from(self.byte());
            most >>= 8;
        }
        number % n
    }
}

/// Calls of a script at most: inputs stay short enough to be many.
const CALLS_MAX: u32 = 64;

/// Calls of a store, with faults of its disk, a want of space and power cuts between them, and in the opens that follow. As the campaigns `errors`,
/// `enospc` and `crash-in-recovery`, in one run, as often as the script says.
///
/// # Errors
/// The first broken promise.
pub fn faults(bytes: &[u8]) -> Result<(), String> {
    let script = &mut Script(bytes);
    // What a seed chooses beside its calls are the options; there are 15 of them.
    let seed = script.below(15);
    let mut run = Run::new(SimDisk::new(Image::new(), seed), seed);
    let mut judge = Judge::recording(seed);
    let mut want = Want::None;
    for id in 1..=CALLS_MAX {
        if script.is_over() {
            break;
        }
        let step = match script.below(16) {
            0 => {
                want = set_faults(&run, script);
                continue;
            }
            1 => {
                crash::cut_now(&mut judge, &run, script)?;
                continue;
            }
            2 => {
                want = match want {
                    Want::Full | Want::WasFull => Want::None,
                    _ => Want::Full,
                };
                run.disk.set_faults(&[]);
                run.disk.set_quota(None);
                if let (Want::Full, Some(store)) = (want, run.store().cloned()) {
                    run.background_all(&store)?;
                    run.disk.set_quota(Some(run.disk.used_bytes() + script.below(9000)));
                }
                continue;
            }
            3 => run.set_log(At { bucket: script.below(3) as u8, key: script.below(u64::from(KEYS)) as u8 })?,
            _ => {
                let call = Call::random(script, id);
                // An open may need space, and not find it.
                if matches!(want, Want::Full | Want::WasFull) && (call.ends_process() || run.store().is_none()) {
                    continue;
                }
                run.call(&call)?
            }
        };
        match (step, want) {
            (Step::Done, _) | (Step::NoSpace, Want::FaultOfSpace) => {}
            (Step::NoSpace, Want::Full | Want::WasFull) => {
                if want == Want::Full {
                    run.delete_now()?;
                    want = Want::WasFull;
                }
                match run.compare_now()? {
                    Step::Done => {}
                    other => return Err(format!("on a full disk a comparison is {other:?}")),
                }
            }
            (Step::NoSpace, _) => return Err("a failure is said to be a want of space".to_owned()),
            (Step::Broken, Want::Full | Want::WasFull) => {
                return Err("a full disk has stopped the store for good".to_owned());
            }
            (Step::Broken, _) => {
                mend(&mut run, &mut judge, script)?;
                want = Want::None;
            }
        }
    }
    run.disk.set_quota(None);
    run.disk.set_faults(&[]);
    faults::go_on(&mut run, seed, &mut judge)
}

/// What the disk is short of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Want {
    None,
    Fault,
    /// A fault that looks like a full disk.
    FaultOfSpace,
    Full,
    /// The store has said so.
    WasFull,
}

/// Has one call fail, or two.
fn set_faults(run: &Run, script: &mut Script<'_>) -> Want {
    let n = 1 + script.below(2);
    let mut one = || faults::fault(script.below(40), script.below(2 * FAILURES.len() as u64));
    let faults: Vec<_> = (0..n).map(|_| one()).collect();
    run.disk.set_quota(None);
    run.disk.set_faults(&faults);
    match faults.iter().any(|fault| fault.failure == Failure::NoSpace) {
        true => Want::FaultOfSpace,
        false => Want::Fault,
    }
}

/// A store that takes no more writes reads on; the next open decides, on a disk that fails once more if the script says so.
fn mend(run: &mut Run, judge: &mut Judge, script: &mut Script<'_>) -> Result<(), String> {
    faults::reads_only(run)?;
    run.disk.set_faults(&[]);
    if script.below(4) == 0 {
        crash::cut_now(judge, run, script)?;
    }
    let fails = script.below(4) == 0;
    let in_open = fails.then(|| faults::fault(script.below(40), script.below(2 * FAILURES.len() as u64)));
    faults::opens(run, &FaultPlan { in_open, ..FaultPlan::default() })
}

/// Stores whose files are damaged.
const STORES: u64 = 8;
/// Calls that they were made by, before the last of them hold records in a value; every third is longer.
const STEPS: u32 = 40;
const LONG_STEPS: u32 = 200;
const STEPS_AFTER: u32 = 6;

thread_local! {
    static MADE: RefCell<BTreeMap<u64, Rc<(Image, Run)>>> = const { RefCell::new(BTreeMap::new()) };
}

/// The files of a store, closed or as a sudden death has left them, and what it was told.
fn made(seed: u64) -> Result<Rc<(Image, Run)>, String> {
    if let Some(made) = MADE.with_borrow(|made| made.get(&seed).cloned()) {
        return Ok(made);
    }
    let mut run = Run::new(SimDisk::new(Image::new(), seed), seed);
    let before = if seed.is_multiple_of(3) { LONG_STEPS } else { STEPS };
    let calls = Calls::of(seed, before + STEPS_AFTER);
    for (i, call) in calls.iter().enumerate() {
        if i == before as usize {
            for key in 0..3 {
                run.set_log(At { bucket: 0, key })?;
            }
        }
        make(&mut run, call)?;
    }
    if seed.is_multiple_of(2)
        && let Some(store) = run.store().cloned()
    {
        store.close().map_err(|e| format!("cannot close: {e:?}"))?;
    }
    let made = Rc::new((damage::files(&run), run));
    MADE.with_borrow_mut(|all| all.insert(seed, made.clone()));
    Ok(made)
}

/// The files of a small store, damaged, or written anew with checksums that are right, and then opened and used.
///
/// Damage of the kinds that the campaigns `flip`, `truncate` and `sectors` do, up to three of them at once, is judged as there: the state after
/// some number of the store's commits, but for keys that cannot be read, or an error that tells of damage, and no file changed. Where the
/// script's own bytes are written, anything may be in the store, as far as its checksums go: what is asked then is that nothing panics, hangs
/// or asks for more memory than there is, that errors are those for damage, and that what is written can be read.
///
/// # Errors
/// The first broken promise.
pub fn files(bytes: &[u8]) -> Result<(), String> {
    let script = &mut Script(bytes);
    let seed = script.below(STORES);
    let (image, run) = &*made(seed)?;
    sim::set_clock(run.history.clock);
    let mut image = image.clone();
    if script.below(2) == 0 {
        let mut damages = Vec::new();
        for _ in 0..=script.below(3) {
            let Some(damage) = some_damage(&image, run, script) else { continue };
            image = damage::apply(&damage, &image, run);
            damages.push(damage);
        }
        return damage::check(&SimDisk::new(image, seed), &damages, run, seed)
            .map_err(|what| format!("{damages:?}: {what}"));
    }
    for _ in 0..=script.below(4) {
        write_anew(&mut image, script);
    }
    use_all(&image, seed, script)
}

/// A range within `0..len`, of bytes that are not many.
fn range(len: u64, script: &mut Script<'_>) -> Option<(u64, u64)> {
    let at = script.below(len.max(1));
    let bytes = (1 + script.below(600)).min(len.checked_sub(at)?);
    (bytes > 0).then_some((at, bytes))
}

fn name_of(image: &Image, script: &mut Script<'_>) -> Option<String> {
    image.keys().nth(script.below(image.len().max(1) as u64) as usize).cloned()
}

fn some_damage(image: &Image, run: &Run, script: &mut Script<'_>) -> Option<Damage> {
    let name = name_of(image, script)?;
    let len = image[&name].len() as u64;
    let kind = script.below(9);
    if let 3..=5 = kind {
        return Some(match kind {
            3 => Damage::Missing { name },
            4 => Damage::Swapped { with: name_of(image, script).filter(|with| *with != name)?, name },
            _ => {
                let fills = [Fill::Zeros, Fill::Ones, Fill::Random, Fill::OwnStart];
                Damage::Extend { name, by: 1 + script.below(4096), fill: fills[script.below(4) as usize] }
            }
        });
    }
    let (at, bytes) = range(len, script)?;
    Some(match kind {
        0 => Damage::Flip { name, bit: 8 * at + script.below(8) },
        1 => Damage::Cut { name, to: at },
        2 => Damage::Zeroed { name, at, bytes },
        6 => Damage::Unreadable { name, at, bytes },
        7 => {
            let moment = (script.below(256) * run.disk.now() as u64 / 256) as usize;
            Damage::Stale { name, at, bytes, moment }
        }
        _ => {
            let from = name_of(image, script)?;
            let from_at = script.below((image[&from].len() as u64).checked_sub(bytes)? + 1);
            Damage::Misdirected { name, at, bytes, from, from_at }
        }
    })
}

/// Bytes of the script in a file, in the place of one or as one more; or a record or an edit more, with checksums that are right.
fn write_anew(image: &mut Image, script: &mut Script<'_>) {
    let Some(name) = name_of(image, script) else { return };
    let disk = SimDisk::new(image.clone(), 1);
    let superblock = Superblock::read(&disk).ok().flatten();
    let store = superblock.map_or(0, |superblock| superblock.store);
    let bytes = script.below(200);
    match script.below(8) {
        0 => {
            let new = script.take(bytes).to_vec();
            image.insert(name, Arc::new(new));
        }
        1 => {
            let number = script.number();
            let names = [
                segment::file_name(number),
                manifest::file_name(number),
                checkpoint::file_name(number),
                crate::run::format::file_name(number),
            ];
            let like = image[&name].clone();
            image.insert(names[script.below(4) as usize].clone(), like);
        }
        2 | 3 => {
            let file = Arc::make_mut(image.entry(name).or_default());
            let at = script.below(file.len() as u64 + 1) as usize;
            let new = script.take(bytes);
            file.resize(file.len().max(at + new.len()), 0);
            file[at..at + new.len()].copy_from_slice(new);
        }
        4 | 5 => {
            // What its manifest says of the store, of the script's own making.
            let Some(superblock) = superblock else { return };
            let file = Arc::make_mut(image.entry(manifest::file_name(superblock.manifest)).or_default());
            let at = script.below((file.len() / EDIT_BYTES) as u64 + 1) as usize * EDIT_BYTES;
            let edit = some_edit(script);
            file.resize(file.len().max(at + EDIT_BYTES), 0);
            file[at..at + EDIT_BYTES].copy_from_slice(&edit.encode(manifest::seed(&superblock, at as u64)));
        }
        6 => {
            let Some(file) = image.get_mut(&name).filter(|file| file.len() >= HEADER_BYTES as usize) else { return };
            let Some(old) = Header::decode(file, store) else { return };
            let mut one = |old: u64| if script.below(2) == 0 { old } else { script.number() };
            let new =
                Header { number: one(old.number), base: one(old.base), salt: old.salt, capacity: one(old.capacity) };
            let encoded = new.encode(store);
            Arc::make_mut(file)[..encoded.len()].copy_from_slice(&encoded);
        }
        _ => {
            let Some(file) = image.get_mut(&name) else { return };
            let Some(header) = Header::decode(file, store) else { return };
            let kind = [Kind::Set, Kind::Delete, Kind::Batch][script.below(3) as usize];
            let key = script.take(bytes % 20);
            let value = script.take(if kind == Kind::Set { bytes } else { 0 });
            let mut some = || (script.below(2) == 0).then(|| script.number());
            let record = Record {
                expires: some(),
                moved: some(),
                mark: some(),
                member: some().is_some(),
                batch_bytes: some().unwrap_or(0),
                ..match kind {
                    Kind::Set => Record::set(some().unwrap_or(1), key, value),
                    Kind::Delete => Record::delete(some().unwrap_or(1), key),
                    Kind::Batch => Record::batch(some().unwrap_or(1), some().unwrap_or(0)),
                }
            };
            let end = replay::extent(file, header.salt).end;
            let at = if script.below(2) == 0 { end } else { script.below(end / ALIGN + 1) * ALIGN };
            let file = Arc::make_mut(file);
            let to = (at + record.bytes()) as usize;
            file.resize(file.len().max(to), 0);
            record.encode(&mut file[at as usize..to], Seed::new(header.salt, at));
        }
    }
}

/// An edit of any numbers.
fn some_edit(script: &mut Script<'_>) -> Edit {
    let (first, second, third) = (script.number(), script.number(), script.number());
    match script.below(9) {
        0 => Edit::Add { segment: first, base: second, capacity: third },
        1 => Edit::Seal { segment: first, end: second },
        2 => Edit::Remove { segment: first, durable: second },
        3 => Edit::Close { segment: first, end: second },
        4 => Edit::Open,
        5 => Edit::AddRun { run: first, from: second, to: third },
        6 => Edit::RemoveRun { run: first },
        7 => Edit::AddCheckpoint { number: first, from: second, end: third },
        _ => Edit::RemoveCheckpoint { number: first },
    }
}

/// Whether what a store says of such files is what may be said of damage.
fn is_of_damage(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Corrupt | ErrorKind::Format)
}

/// Opens a store and does what can be done with one. It may hold anything.
fn use_all(image: &Image, seed: u64, script: &mut Script<'_>) -> Result<(), String> {
    let disk = SimDisk::new(image.clone(), seed);
    let options = workload::options(seed);
    let store = match Store::without_worker(Arc::new(disk.clone()), options.clone()) {
        Err(e) if is_of_damage(e.kind()) => {
            let same = disk.image(Variant::AllKept) == *image;
            return if same { Ok(()) } else { Err(format!("{e:?}, and files were changed")) };
        }
        Err(e) => return Err(format!("opening: {e:?}")),
        Ok(store) => store,
    };
    let _ = store.verify().map_err(|e| format!("verify: {e:?}"))?;
    if let Err(e) = model::read_what_is_whole(&store, false) {
        return Err(format!("reading: {e:?}"));
    }
    let mut jobs = Jobs::cleaning_from(2048);
    for i in 0..4 {
        let bucket = match store.bucket(["a", "b", "probe"][script.below(3) as usize]) {
            Ok(bucket) => bucket,
            Err(e) if after_damage(&store, e.kind()) => break,
            Err(e) => return Err(format!("making a bucket: {e:?}")),
        };
        let (key, value) = ([b'k', script.byte() % 4], vec![i; script.below(600) as usize]);
        match bucket.set(&key, &value) {
            Ok(_) => {
                let found = bucket.get(&key).map_err(|e| format!("reading what was written: {e:?}"))?;
                if found.as_deref() != Some(&value[..]) {
                    return Err("what was written reads otherwise".to_owned());
                }
            }
            Err(e) if after_damage(&store, e.kind()) => break,
            Err(e) => return Err(format!("a write beside damage: {e:?}")),
        }
        for _ in 0..3 {
            if jobs.round(&store.0.commits, false).is_none() {
                break;
            }
        }
    }
    let closed = store.close();
    match Store::without_worker(Arc::new(disk.restart()), options) {
        Ok(_) => {}
        Err(e) if is_of_damage(e.kind()) => {}
        Err(e) => return Err(format!("opening again, after closing has said {closed:?}: {e:?}")),
    }
    Ok(())
}

/// Whether a write may have ended so in a store that holds anything: with what says that there is damage, or because that has stopped the store
/// already.
fn after_damage(store: &Store, kind: ErrorKind) -> bool {
    is_of_damage(kind) || store.0.commits.check_writable().is_err()
}

/// Any bytes as a record and as a log segment; valid logs, and logs with records in their values, damaged at one place.
pub fn log(bytes: &[u8]) {
    const SALT: u64 = 7;
    super::read_record(bytes);
    super::read_log(bytes, SALT);
    let (at, with, plan) = damage_first(bytes);
    log_in_values(plan, at, with);
    let mut log = super::valid_log(plan, SALT);
    super::read_log(&log, SALT);
    let at = at as usize % log.len();
    log[at] ^= with;
    super::read_log(&log, SALT);
}

/// Any bytes as a key run; and valid runs, damaged at one place.
pub fn run(bytes: &[u8]) {
    const STORE: u64 = 7;
    super::read_run(bytes, STORE);
    let (at, with, plan) = damage_first(bytes);
    let mut run = super::valid_run(plan, STORE);
    super::read_run(&run, STORE);
    let at = at as usize % run.len().max(1);
    if let Some(byte) = run.get_mut(at) {
        *byte ^= with;
    }
    super::read_run(&run, STORE);
}

/// Any bytes as a superblock and as a manifest; and manifests of any edits, with checksums made right.
pub fn manifest(bytes: &[u8]) {
    super::read_manifest(bytes, bytes);
    let script = &mut Script(bytes);
    let superblock =
        Superblock { compat: 0, ro_compat: 0, incompat: 0, store: 1, hash_seed: 2, generation: 1, manifest: 1 };
    let mut file = Vec::new();
    while !script.is_over() && file.len() < 100 * EDIT_BYTES {
        let edit = some_edit(script);
        file.extend_from_slice(&edit.encode(manifest::seed(&superblock, file.len() as u64)));
    }
    super::read_manifest(&[], &file);
}

/// Where damage is done and what is changed there, from the first bytes; the others are a plan.
fn damage_first(bytes: &[u8]) -> (u64, u8, &[u8]) {
    let script = &mut Script(bytes);
    (script.below(1 << 16), script.byte(), script.0)
}

/// Any bytes as a directory checkpoint; and files with checksums made right of parts and tables that may be anything, damaged at one place.
pub fn checkpoint(bytes: &[u8]) {
    const STORE: u64 = 7;
    let word =
        |file: &[u8], at: usize| file.get(at..at + 8).map_or(0, |b| u64::from_le_bytes(b.try_into().unwrap_or([0; 8])));
    let entry = CheckpointEntry { number: word(bytes, 16), from: word(bytes, 32), end: word(bytes, 40) };
    let read = |bytes: &[u8], entry, shards| Checkpoint::read(Private::copy_of(bytes).ok()?, entry, STORE, shards);
    let _ = read(bytes, entry, 1);

    let (damaged_at, with, plan) = damage_first(bytes);
    let script = &mut Script(plan);
    let shards = 1 + script.below(3) as usize;
    let entry = CheckpointEntry { number: script.number(), from: script.number(), end: script.number() };
    let segments = (0..script.below(4)).map(|_| Addressed {
        number: script.number(),
        first_slot: script.number() as u32,
        slots: script.number() as u32,
        live: script.number(),
        tombstones: script.number(),
        end: script.number(),
    });
    let segments: Vec<_> = segments.collect();
    let mut buckets = Buckets { next_id: script.number(), ..Buckets::default() };
    for _ in 0..script.below(3) {
        let len = script.below(6);
        buckets.named.push((script.number(), String::from_utf8_lossy(script.take(len)).into_owned()));
        buckets.forgotten.insert(script.number());
    }
    let mut parts = Vec::new();
    while !script.is_over() && parts.len() < 40 {
        let lines = 1 + script.below(3) as usize;
        let used = script.below(8 * lines as u64) as u32;
        let shape = Shape {
            depth: script.below(5) as u8,
            tag_depth: script.below(5) as u8,
            // Seldom another number than there are.
            lines: if script.below(16) == 15 { script.number() as u32 } else { lines as u32 },
            used: if script.below(16) == 15 { script.number() as u32 } else { used },
            keys: script.below(u64::from(used) + 2) as u32,
        };
        let mut words = vec![0; lines * LINE_BYTES];
        for word in words.chunks_exact_mut(8).take(used as usize) {
            let place = 2 + script.number() % 1000;
            word.copy_from_slice(&(u64::from(script.byte()) << 56 | place).to_le_bytes());
        }
        parts.push((shape, words));
    }
    let mut file = checkpoint::file_of((entry, script.number(), STORE), &parts, segments.clone(), buckets.clone());
    let found = read(&file, entry, shards);
    if let Some(found) = &found {
        assert!(entry.from <= entry.end);
        assert_eq!((&found.segments, &found.buckets), (&segments, &buckets));
        let guard = &epoch::pin();
        let (mut at, mut lines, mut n) = (PartAt::default(), Vec::new(), 0);
        while let Some(shape) = found.directory.copy_part(&mut at, &mut lines, guard) {
            assert_eq!(shape, parts[n].0, "part {n}");
            n += 1;
        }
        assert_eq!(n, parts.len(), "each part once");
        assert!(lines.iter().eq(parts.iter().flat_map(|(_, lines)| lines)), "word by word");
        let places: usize = (0..shards).map(|shard| found.directory.places(shard, guard).len()).sum();
        let mut random = Random::new(1);
        for _ in 0..64 {
            // A probe ends, whatever the words are.
            let mut met = 0;
            let absent = found.directory.find(random.next(), guard, |_| {
                met += 1;
                Ok(false)
            });
            assert!(matches!(absent, Ok(None)) && met <= places);
        }
    }
    let at = damaged_at as usize % file.len();
    file[at] ^= with;
    assert!(with == 0 || read(&file, entry, shards).is_none(), "damage at {at} is not seen");
}

/// Logs with records in their values, damaged at one place and cut at another: only what was written as a record is one.
///
/// The values are copies of the log before them, as a store that is kept in a store would have them; or, with an odd first byte, records whose
/// checksums would be right where they stand, as nobody can write them that does not know the salt, at the very end of what may be believed.
fn log_in_values(plan: &[u8], at: u64, with: u8) {
    const SALT: u64 = 7;
    let forged = plan.first().is_some_and(|first| first % 2 == 1);
    let mut bytes = vec![0; HEADER_BYTES as usize];
    let mut ends = vec![HEADER_BYTES];
    for part in plan.chunks(7).take(30) {
        let at = bytes.len() as u64;
        let key = &part[..part.len() / 3];
        let value = if forged {
            let inner = Record { mark: Some(u64::MAX), ..Record::set(1, key, part) };
            // So far behind the beginning of the value that it would stand where records may.
            let place = |padding: u64| {
                let value = vec![0; (padding + inner.bytes()) as usize];
                (Record::set(1, key, &value).key_offset() + key.len() as u64 + at + padding, value)
            };
            let (padding, (place, mut value)) = (0..ALIGN)
                .map(|padding| (padding, place(padding)))
                .find(|(_, (place, _))| place % ALIGN == 0)
                .unwrap_or_else(|| (0, place(0)));
            inner.encode(&mut value[padding as usize..], Seed::new(SALT, place));
            value
        } else {
            let from = bytes.len().saturating_sub(usize::from(part[0]) + 40).max(HEADER_BYTES as usize);
            // Aligned as the log is, by turns.
            [&vec![0; part.len() % 4][..], &bytes[from / 4 * 4..]].concat()
        };
        let record = Record { mark: (!forged).then_some(at), ..Record::set(1, key, &value) };
        bytes.resize((at + record.bytes()) as usize, 0);
        record.encode(&mut bytes[at as usize..], Seed::new(SALT, at));
        ends.push(bytes.len() as u64);
    }
    let whole = replay::extent(&bytes, SALT);
    assert_eq!((whole.end, whole.commits), (bytes.len() as u64, ends.len() as u64 - 1));
    let at = HEADER_BYTES + at % (bytes.len() as u64 - HEADER_BYTES + 1);
    let before = ends.partition_point(|end| *end <= at) - 1;
    let cut = &bytes[..at as usize];
    let extent = replay::extent(cut, SALT);
    assert_eq!((extent.end, extent.commits), (ends[before], before as u64), "cut at {at}");
    assert!(forged || !replay::witness_behind(cut, SALT, extent.end, 0), "a value is taken for a witness");
    if let Some(byte) = bytes.get_mut(at as usize).filter(|_| with != 0) {
        *byte ^= with;
        let extent = replay::extent(&bytes, SALT);
        assert_eq!((extent.end, extent.commits), (ends[before], before as u64), "damaged at {at}");
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "reads files of the repository, and the environment")]
mod tests {
    use std::path::Path;

    use super::*;

    /// What a target begins with, and what it has found.
    fn kept(target: &str, check: impl Fn(&[u8])) {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds").join(target);
        let mut inputs = 0;
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            println!("{}", path.display());
            check(&std::fs::read(path).unwrap());
            inputs += 1;
        }
        assert!(inputs > 0);
    }

    #[test]
    fn kept_bytes_of_files_are_read_or_refused() {
        kept("log", log);
        kept("run", run);
        kept("manifest", manifest);
        kept("checkpoint", checkpoint);
    }

    #[test]
    fn kept_scripts_do_as_the_model_does() {
        kept("operations", |bytes| crate::testing::operations(bytes).unwrap());
        kept("faults", |bytes| faults(bytes).unwrap());
        kept("files", |bytes| files(bytes).unwrap());
    }

    /// Without a fuzzer to choose them, and with what a debug build checks besides.
    #[test]
    fn random_scripts_do_as_the_model_does() {
        let number = |name, default| std::env::var(name).map_or(default, |text| text.parse().unwrap());
        let (seed, rounds) = (number("KVASI_SEED", 1u64), number("KVASI_ROUNDS", 60));
        for seed in seed..seed + rounds {
            let mut random = Random::new(seed);
            let bytes: Vec<u8> = (0..40 + random.below(160)).map(|_| random.next() as u8).collect();
            let fail = |what: String| panic!("KVASI_SEED={seed} KVASI_ROUNDS=1: {what}");
            crash::caught(|| faults(&bytes)).unwrap_or_else(fail);
            crash::caught(|| files(&bytes)).unwrap_or_else(fail);
            [log, run, manifest, checkpoint].into_iter().for_each(|read| read(&bytes));
        }
    }
}
