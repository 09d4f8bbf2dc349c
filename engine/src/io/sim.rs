//! A simulated disk (feature `testing`): knows what a power cut would leave, fails on demand, and watches the engine's
//! manners.
//!
//! Every call that changes something is an [`Op`] in a recording. A [`Platter`] is what the recording comes to so far: of
//! each file what is durable and what was written since, of the directory likewise. From a platter the disk *image* of
//! any [`Variant`] of a power cut is built, without running the engine again.
//!
//! What is assumed of a disk is as little as can be: until a sync of the file covers it, each write may be on the disk or
//! not, whole or cut at any byte, in any order, and a file that grew may show zeros or garbage; until the directory is
//! synced each creation and removal may have happened or not, each for itself. A sync that fails leaves the cache as it
//! is and its bytes are never written (ext4). Appends through a mapping are writes like the others ([`Watch`]).
//!
//! A disk may have directories ([`SimDisk::directory`]): a store each, and one power for all. A file can be linked from one
//! into another; from then on it must not be written.
//!
//! The *monitor* is always on: [`SimDisk::violation`] tells of the first breach of the order in which files may change
//! (docs/file-format.md). Nothing here is for concurrent use beyond being sound: a test drives the engine by one thread.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use xxhash_rust::xxh3::Xxh3;

use super::disk::LOCK_FILE;
use super::map::{Map, Private, Watch};
use super::window::Budget;
use super::{Disk, File, Space};
use crate::manifest;
use crate::manifest::edit::EDIT_BYTES;
use crate::manifest::superblock::{self, Superblock};
use crate::run;
use crate::segment;
use crate::testing::Random;
use crate::{backup, checkpoint};

/// What is on a disk: every file by name.
pub(crate) type Image = BTreeMap<String, Arc<Vec<u8>>>;

thread_local! {
    static CLOCK: Cell<u64> = const { Cell::new(0) };
}

/// Has the clock of this thread stand at this time, in milliseconds since 1970; 0 is for the real one.
pub(crate) fn set_clock(ms: u64) {
    CLOCK.set(ms);
}

/// The simulated time, where there is one.
pub(crate) fn clock() -> Option<u64> {
    Some(CLOCK.get()).filter(|ms| *ms != 0)
}

/// Shards of a store's directory.
const SHARDS: usize = 8;
/// Bytes that a disk writes whole or not at all; but see [`Variant::LastTorn`].
const SECTOR_BYTES: u64 = 512;
/// Writes up to this size are torn at every byte, larger ones at sectors and at a few bytes besides.
const TORN_BYTES_MAX: usize = 64;
const TORN_BESIDES: u64 = 4;
/// The part of a segment that must be durable before the manifest may name it.
const SEGMENT_HEADER: Range<u64> = 0..56;

/// What a superblock and its manifest say.
type WhatCounts = Arc<(Superblock, manifest::State)>;

/// A call that changed something.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Create {
        file: usize,
        name: String,
        /// The file that it begins as a copy of: one that is recycled.
        from: Option<usize>,
    },
    /// A second name for a file.
    Link {
        file: usize,
        name: String,
    },
    Remove {
        name: String,
    },
    Write {
        file: usize,
        at: u64,
        bytes: Arc<[u8]>,
    },
    Resize {
        file: usize,
        to: u64,
    },
    Sync {
        file: usize,
    },
    SyncRange {
        file: usize,
        range: Range<u64>,
    },
    /// The sync failed, and what it should have written is never written.
    SyncFailed {
        file: usize,
    },
    SyncDir {
        dir: String,
    },
}

/// The directory of a name, with the slash; nothing for the root.
fn directory_of(name: &str) -> &str {
    name.rfind('/').map_or("", |slash| &name[..=slash])
}

/// Whether the file is a superblock or a manifest.
fn says_what_counts(name: &str) -> bool {
    let base = base_of(name);
    base == superblock::FILE || manifest::number_of(base).is_some()
}

/// The name within its directory.
fn base_of(name: &str) -> &str {
    &name[directory_of(name).len()..]
}

/// The files of one directory of an image, as an image of their own.
pub(crate) fn image_of(image: &Image, dir: &str) -> Image {
    let inside = image.iter().filter(|(name, _)| directory_of(name) == dir);
    inside.map(|(name, bytes)| (base_of(name).to_owned(), bytes.clone())).collect()
}

/// Something written to a file and not synced.
#[derive(Clone, Debug)]
enum Effect {
    Write { at: u64, bytes: Arc<[u8]> },
    Resize { to: u64 },
}

/// A name made or removed and not synced.
#[derive(Clone, Debug)]
struct NameChange {
    seq: u64,
    name: String,
    /// `None` removes it.
    file: Option<usize>,
}

#[derive(Clone, Debug, Default)]
struct FileState {
    name: String,
    /// As a reader sees it. Shared with images and between the two until written to.
    cache: Arc<Vec<u8>>,
    durable: Arc<Vec<u8>>,
    pending: Vec<(u64, Effect)>,
}

/// The state of a disk in mid-flight.
#[derive(Clone, Debug, Default)]
pub(crate) struct Platter {
    files: Vec<FileState>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    pending_names: Vec<NameChange>,
    seq: u64,
}

/// What a power cut leaves of what was not synced. Numbers count the unsynced changes, oldest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Variant {
    /// Nothing of it.
    AllLost,
    /// All of it.
    AllKept,
    /// All but one change.
    WithoutOne(u32),
    /// One change alone.
    OnlyOne(u32),
    /// All, but of the last write only so many bytes from its start.
    LastTorn(u32),
    /// All, but of the last write only what follows so many bytes.
    LastHeadless(u32),
    /// Files have grown, and hold zeros there.
    ZeroTails,
    /// Files have grown, and hold garbage there.
    GarbageTails(u64),
    /// Each change kept, lost or torn, by this seed.
    Random(u64),
}

/// What becomes of one unsynced change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Lost,
    Kept,
    Head(u64),
    Tail(u64),
    /// A write that made the file grow, its bytes lost.
    Grown,
}

#[derive(Clone, Copy)]
enum Change<'a> {
    Data(usize, &'a Effect),
    Name(&'a NameChange),
}

impl Effect {
    /// What is left of it in a file that was cut since.
    fn cut(&mut self, len: u64) {
        match self {
            Effect::Write { at, bytes } => {
                let kept = len.saturating_sub(*at).min(bytes.len() as u64);
                *bytes = bytes[..kept as usize].into();
            }
            Effect::Resize { to } => *to = len.min(*to),
        }
    }
}

fn apply(bytes: &mut Vec<u8>, effect: &Effect) {
    match effect {
        Effect::Write { at, bytes: from } => write_into(bytes, *at, from),
        Effect::Resize { to } => bytes.resize(*to as usize, 0),
    }
}

fn write_into(bytes: &mut Vec<u8>, at: u64, from: &[u8]) {
    let end = at as usize + from.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[at as usize..end].copy_from_slice(from);
}

impl Platter {
    pub(crate) fn new(image: &Image) -> Platter {
        let mut platter = Platter::default();
        for (name, bytes) in image {
            let id = platter.files.len();
            let state =
                FileState { name: name.clone(), cache: bytes.clone(), durable: bytes.clone(), pending: Vec::new() };
            platter.files.push(state);
            platter.names.insert(name.clone(), id);
        }
        platter.durable_names = platter.names.clone();
        platter
    }

    pub(crate) fn apply(&mut self, op: &Op) {
        self.seq += 1;
        let seq = self.seq;
        match op {
            Op::Create { file, name, from } => {
                debug_assert_eq!(*file, self.files.len());
                let bytes = from.map(|from| self.files[from].clone()).unwrap_or_default();
                self.files.push(FileState { name: name.clone(), ..bytes });
                self.names.insert(name.clone(), *file);
                self.pending_names.push(NameChange { seq, name: name.clone(), file: Some(*file) });
            }
            Op::Link { file, name } => {
                self.names.insert(name.clone(), *file);
                self.pending_names.push(NameChange { seq, name: name.clone(), file: Some(*file) });
            }
            Op::Remove { name } => {
                self.names.remove(name);
                self.pending_names.push(NameChange { seq, name: name.clone(), file: None });
            }
            Op::Write { file, at, bytes } => {
                let effect = Effect::Write { at: *at, bytes: bytes.clone() };
                apply(Arc::make_mut(&mut self.files[*file].cache), &effect);
                self.files[*file].pending.push((seq, effect));
            }
            Op::Resize { file, to } => {
                let effect = Effect::Resize { to: *to };
                apply(Arc::make_mut(&mut self.files[*file].cache), &effect);
                self.files[*file].pending.push((seq, effect));
            }
            Op::Sync { file } => {
                let FileState { durable, pending, .. } = &mut self.files[*file];
                if !pending.is_empty() {
                    let durable = Arc::make_mut(durable);
                    pending.drain(..).for_each(|(_, effect)| apply(durable, &effect));
                }
            }
            Op::SyncRange { file, range } => self.files[*file].sync_range(range),
            Op::SyncFailed { file } => self.files[*file].pending.clear(),
            Op::SyncDir { dir } => {
                let inside = |name: &str| directory_of(name) == dir;
                self.durable_names.retain(|name, _| !inside(name));
                let now = self.names.iter().filter(|(name, _)| inside(name));
                self.durable_names.extend(now.map(|(name, file)| (name.clone(), *file)));
                self.pending_names.retain(|change| !inside(&change.name));
            }
        }
    }

    /// All unsynced changes that a power cut may or may not take, oldest first.
    fn changes(&self) -> Vec<(u64, Change<'_>)> {
        let mut reachable: Vec<usize> = self.durable_names.values().copied().collect();
        reachable.extend(self.pending_names.iter().filter_map(|n| n.file));
        reachable.sort_unstable();
        reachable.dedup();
        let mut changes: Vec<(u64, Change<'_>)> =
            self.pending_names.iter().map(|name| (name.seq, Change::Name(name))).collect();
        for file in reachable {
            changes.extend(self.files[file].pending.iter().map(|(seq, effect)| (*seq, Change::Data(file, effect))));
        }
        changes.sort_by_key(|(seq, _)| *seq);
        changes
    }

    /// Every way in which a power cut now may end, but for random ones, of which there are `random`.
    pub(crate) fn variants(&self, random: u64, seed: u64) -> Vec<Variant> {
        let changes = self.changes();
        let mut variants = vec![Variant::AllLost];
        if changes.is_empty() {
            return variants;
        }
        variants.push(Variant::AllKept);
        for i in 0..changes.len() as u32 {
            if changes.len() > 1 {
                variants.extend([Variant::WithoutOne(i), Variant::OnlyOne(i)]);
            }
        }
        let last = changes.iter().rev().find_map(|(_, change)| match change {
            Change::Data(file, Effect::Write { at, bytes }) => Some((*file, *at, bytes)),
            _ => None,
        });
        if let Some((file, at, bytes)) = last {
            let len = bytes.len();
            let mut tear =
                |cut: u64| variants.extend([Variant::LastTorn(cut as u32), Variant::LastHeadless(cut as u32)]);
            let sector = |cut: u64| (at + cut).is_multiple_of(SECTOR_BYTES);
            (1..len as u64).filter(|cut| len <= TORN_BYTES_MAX || sector(*cut)).for_each(&mut tear);
            // Only within what changes do the parts of a torn write make a difference.
            let old = self.files[file].durable.get(at as usize..).unwrap_or_default();
            let changes = |i: &usize| old.get(*i) != bytes.get(*i);
            if len > TORN_BYTES_MAX
                && let (Some(first), Some(last)) = ((0..len).find(changes), (0..len).rev().find(changes))
                && first < last
            {
                let mut random = Random::new(seed ^ 0x746f_726e);
                (0..TORN_BESIDES).for_each(|_| tear(first as u64 + 1 + random.below((last - first) as u64)));
            }
        }
        variants.extend([Variant::ZeroTails, Variant::GarbageTails(seed)]);
        variants.extend((0..random).map(|i| Variant::Random(seed.wrapping_add(i))));
        variants
    }

    /// The disk after a power cut now.
    pub(crate) fn image(&self, variant: Variant) -> Image {
        let changes = self.changes();
        let last = changes.iter().rposition(|(_, c)| matches!(c, Change::Data(_, Effect::Write { .. })));
        let mut random = Random::new(match variant {
            Variant::Random(seed) | Variant::GarbageTails(seed) => seed,
            _ => 0,
        });
        // A run of changes tends to share its fate: all three of "mostly kept", "mostly lost" and "even" are drawn.
        let odds = 1 + random.below(7);
        let mut fate = |i: usize, change: Change<'_>| match variant {
            Variant::AllLost => Fate::Lost,
            Variant::AllKept => Fate::Kept,
            Variant::WithoutOne(one) if one as usize == i => Fate::Lost,
            Variant::WithoutOne(_) => Fate::Kept,
            Variant::OnlyOne(one) if one as usize == i => Fate::Kept,
            Variant::OnlyOne(_) => Fate::Lost,
            Variant::LastTorn(cut) if last == Some(i) => Fate::Head(u64::from(cut)),
            Variant::LastHeadless(cut) if last == Some(i) => Fate::Tail(u64::from(cut)),
            Variant::LastTorn(_) | Variant::LastHeadless(_) => Fate::Kept,
            Variant::ZeroTails | Variant::GarbageTails(_) => match change {
                Change::Data(_, Effect::Write { .. }) => Fate::Grown,
                _ => Fate::Kept,
            },
            Variant::Random(_) => match change {
                Change::Data(_, Effect::Write { at, bytes }) if random.below(8) == 0 && bytes.len() > 1 => {
                    let any = 1 + random.below(bytes.len() as u64 - 1);
                    let sector = (at + any).next_multiple_of(SECTOR_BYTES) - at;
                    let cut = if sector < bytes.len() as u64 && random.below(2) == 0 { sector } else { any };
                    if random.below(2) == 0 { Fate::Head(cut) } else { Fate::Tail(cut) }
                }
                _ if random.below(8) < odds => Fate::Kept,
                _ => Fate::Lost,
            },
        };
        let mut names = self.durable_names.clone();
        let mut contents: BTreeMap<usize, Vec<u8>> = BTreeMap::new();
        let mut fill = Random::new(variant_seed(variant));
        for (i, (_, change)) in changes.iter().enumerate() {
            match (*change, fate(i, *change)) {
                (_, Fate::Lost) => {}
                (Change::Name(NameChange { name, file: Some(file), .. }), _) => drop(names.insert(name.clone(), *file)),
                (Change::Name(NameChange { name, .. }), _) => drop(names.remove(name)),
                (Change::Data(file, effect), fate) => {
                    let bytes = contents.entry(file).or_insert_with(|| self.files[file].durable.to_vec());
                    let before = bytes.len();
                    match (effect, fate) {
                        (Effect::Write { at, bytes: from }, Fate::Head(cut)) => {
                            write_into(bytes, *at, &from[..cut as usize]);
                        }
                        (Effect::Write { at, bytes: from }, Fate::Tail(cut)) => {
                            write_into(bytes, at + cut, &from[cut as usize..]);
                        }
                        (Effect::Write { at, bytes: from }, Fate::Grown) => {
                            let end = *at as usize + from.len();
                            bytes.resize(before.max(end), 0);
                        }
                        _ => apply(bytes, effect),
                    }
                    if matches!(variant, Variant::GarbageTails(_)) && bytes.len() > before {
                        bytes[before..].iter_mut().for_each(|b| *b = fill.next() as u8);
                    }
                }
            }
        }
        let contents: BTreeMap<usize, Arc<Vec<u8>>> =
            contents.into_iter().map(|(file, bytes)| (file, Arc::new(bytes))).collect();
        let content = |file: usize| contents.get(&file).unwrap_or(&self.files[file].durable).clone();
        names.iter().map(|(name, file)| (name.clone(), content(*file))).collect()
    }

    /// Log segments of which something waits for a sync.
    pub(crate) fn segments_unsynced(&self) -> usize {
        let segments = self.names.iter().filter(|(name, _)| segment::number_of(base_of(name)).is_some());
        segments.filter(|(_, file)| !self.files[**file].pending.is_empty()).count()
    }

    /// Whether bytes of a log segment in `dir` wait for a sync.
    fn has_unsynced_log(&self, dir: &str) -> bool {
        let ours = |name: &str| directory_of(name) == dir && segment::number_of(base_of(name)).is_some();
        let segments = self.names.iter().filter(|(name, _)| ours(name));
        let mut writes = segments.flat_map(|(_, file)| &self.files[*file].pending);
        // Zeros are no log: a recycled file is blanked. Nor is a header up to the link, which a file has that was to become a
        // segment and could not be removed when there was no space for it.
        let is_log = |at: u64, bytes: &[u8]| {
            at + bytes.len() as u64 > segment::HEADER_BYTES - segment::LINK_BYTES && bytes.iter().any(|byte| *byte != 0)
        };
        writes.any(|(_, effect)| matches!(effect, Effect::Write { at, bytes } if is_log(*at, bytes)))
    }

    /// What the store in `dir` comes to if the power is cut now, and nothing or all of what is not synced is kept.
    fn state_of(&self, dir: &str, kept: bool) -> Option<(Superblock, manifest::State)> {
        let names = if kept { &self.names } else { &self.durable_names };
        let content = |name: &str| {
            let state = &self.files[*names.get(&format!("{dir}{name}"))?];
            let mut bytes = state.durable.clone();
            if kept && !state.pending.is_empty() {
                state.pending.iter().for_each(|(_, effect)| apply(Arc::make_mut(&mut bytes), effect));
            }
            Some(bytes)
        };
        let slots = Superblock::slots_in(&content(superblock::FILE)?);
        let superblock = slots.into_iter().flatten().max_by_key(|slot| slot.generation)?;
        let name = manifest::file_name(superblock.manifest);
        let (state, _) = manifest::fold(&name, &content(&name)?, &superblock).ok()?;
        Some((superblock, state))
    }

    /// Whether what the superblock and the manifests in `dir` say is the same if all is lost and if all is kept.
    fn is_settled(&self, dir: &str) -> bool {
        let counts = |name: &str| directory_of(name) == dir && says_what_counts(name);
        let mut files = self.durable_names.iter().filter(|(name, _)| counts(name));
        !self.pending_names.iter().any(|change| counts(&change.name))
            && files.all(|(_, file)| self.files[*file].pending.is_empty())
    }

    /// A hash of all that a process could find or a power cut could leave of these files; `hash` is that of a file's bytes.
    fn digest(&self, counts: impl Fn(&str) -> bool, mut hash: impl FnMut(&Arc<Vec<u8>>) -> u64) -> u64 {
        let mut hasher = Xxh3::new();
        let mut put = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        for (name, file) in self.names.iter().chain(&self.durable_names).filter(|(name, _)| counts(name)) {
            let FileState { cache, durable, pending, .. } = &self.files[*file];
            put(name.as_bytes());
            put(&hash(cache).to_le_bytes());
            if !Arc::ptr_eq(cache, durable) && cache != durable {
                put(&hash(durable).to_le_bytes());
            }
            for (_, effect) in pending {
                match effect {
                    Effect::Write { at, bytes } => {
                        put(&at.to_le_bytes());
                        put(bytes);
                    }
                    Effect::Resize { to } => put(&to.to_le_bytes()),
                }
            }
        }
        for change in self.pending_names.iter().filter(|change| counts(&change.name)) {
            put(change.name.as_bytes());
            put(&change.file.map_or(0, |file| file as u64 + 1).to_le_bytes());
        }
        hasher.digest()
    }

    fn used_bytes(&self) -> u64 {
        let files: BTreeSet<usize> = self.names.values().copied().collect();
        files.into_iter().map(|file| self.files[file].cache.len() as u64).sum()
    }

    /// Whether `name` and the bytes of `range` in it are what a power cut leaves, whatever the variant.
    fn is_durable(&self, name: &str, range: &Range<u64>) -> bool {
        let Some(&file) = self.durable_names.get(name) else { return false };
        let state = &self.files[file];
        let touches = |effect: &Effect| match effect {
            Effect::Write { at, bytes } => *at < range.end && at + bytes.len() as u64 > range.start,
            Effect::Resize { to } => *to < range.end,
        };
        self.names.get(name) == Some(&file)
            && !self.pending_names.iter().any(|change| change.name == name)
            && state.durable.len() as u64 >= range.end
            && !state.pending.iter().any(|(_, effect)| touches(effect))
    }
}

fn variant_seed(variant: Variant) -> u64 {
    match variant {
        Variant::GarbageTails(seed) => seed ^ 0x5eed,
        _ => 0,
    }
}

impl FileState {
    /// Makes what was written to `range` durable; the rest of what is pending stays so.
    fn sync_range(&mut self, range: &Range<u64>) {
        let pending = std::mem::take(&mut self.pending);
        let mut len = self.durable.len() as u64;
        for (seq, effect) in pending {
            let Effect::Write { at, bytes } = &effect else {
                let Effect::Resize { to } = effect else { continue };
                let cuts = to < len;
                len = to;
                if to < self.durable.len() as u64 || cuts && to < range.end {
                    // Bytes that are synced came after the cut where they lie beyond it: it is not done again to them.
                    Arc::make_mut(&mut self.durable).truncate(to as usize);
                    self.pending.iter_mut().for_each(|(_, effect)| effect.cut(to));
                } else {
                    // As much of the new length as the synced bytes need.
                    let len = to.min(range.end).max(self.durable.len() as u64);
                    Arc::make_mut(&mut self.durable).resize(len as usize, 0);
                    self.pending.push((seq, Effect::Resize { to }));
                }
                continue;
            };
            len = len.max(at + bytes.len() as u64);
            let end = at + bytes.len() as u64;
            let (from, to) = (range.start.clamp(*at, end), range.end.clamp(*at, end));
            let part = |from: u64, to: u64| &bytes[(from - at) as usize..(to - at) as usize];
            if from >= to {
                self.pending.push((seq, effect));
                continue;
            }
            write_into(Arc::make_mut(&mut self.durable), from, part(from, to));
            for (from, to) in [(*at, from), (to, end)] {
                if from < to {
                    self.pending.push((seq, Effect::Write { at: from, bytes: part(from, to).into() }));
                }
            }
        }
        // A file that was made longer in several steps is longer than the first of them now.
        let len = self.durable.len() as u64;
        self.pending.retain(|(_, effect)| !matches!(effect, Effect::Resize { to } if *to <= len));
    }
}

/// How a call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The device has an error. Any call.
    Io,
    /// The device is full. Calls that may need space, syncs included.
    NoSpace,
    /// Half of it is done. Reads and writes.
    Short,
    /// Nothing is done and no error given. Writes.
    Zero,
    /// A signal came. Reads and writes.
    Interrupted,
}

/// Every way in which a call can fail.
pub(crate) const FAILURES: [Failure; 5] =
    [Failure::Io, Failure::NoSpace, Failure::Short, Failure::Zero, Failure::Interrupted];

/// Which call fails.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    /// Calls until then, counted from when the fault was set.
    pub(crate) after: u64,
    pub(crate) failure: Failure,
    /// Every later call fails too.
    pub(crate) sticky: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Look,
    Read,
    Write,
    /// Needs space.
    Grow,
    /// Needs space, and another way is there if it fails.
    Link,
    Sync,
    Remove,
}

impl Failure {
    fn hits(self, call: Call) -> bool {
        match self {
            Failure::Io => true,
            Failure::NoSpace => matches!(call, Call::Write | Call::Grow | Call::Link | Call::Sync),
            Failure::Short | Failure::Interrupted => matches!(call, Call::Read | Call::Write),
            Failure::Zero => call == Call::Write,
        }
    }
}

#[derive(Debug, Default)]
struct World {
    base: Image,
    ops: Vec<Op>,
    platter: Platter,
    calls: u64,
    /// In the order in which they come.
    faults: Vec<Fault>,
    fault_calls: u64,
    fault_hits: u64,
    /// Bytes that fit.
    quota: Option<u64>,
    /// Space is kept for files that ask for it, and how far each did.
    keeps_promises: bool,
    promised: BTreeMap<usize, u64>,
    random: u64,
    /// Counts processes: the handles of an earlier one do nothing any more.
    boot: u64,
    /// Directories in which a sync has failed since then.
    sync_failed: BTreeSet<String>,
    /// Directories in which a write has failed since then, and not for want of space.
    write_failed: BTreeSet<String>,
    /// Files that a manifest named as complete: nobody may write them any more.
    complete: BTreeSet<usize>,
    /// Of files that were recycled, the bytes that they had: they may be written over.
    stale: BTreeMap<usize, Arc<Vec<u8>>>,
    /// A part of a file that cannot be read.
    unreadable: Option<(String, Range<u64>)>,
    /// Files cannot be linked, as from one file system to another.
    no_links: bool,
    violation: Option<String>,
    /// What [`Platter::state_of`] has said since a superblock or a manifest was last changed.
    states: BTreeMap<(String, bool), Option<WhatCounts>>,
}

/// The disk as one process sees it; see the file header.
#[derive(Clone, Debug)]
pub(crate) struct SimDisk {
    world: Arc<Mutex<World>>,
    boot: u64,
    /// Nothing, or a name and a slash.
    dir: Arc<str>,
    read_only: bool,
    /// Files are not mapped.
    unmapped: Option<Arc<Budget>>,
}

fn eio() -> io::Error {
    io::Error::other("simulated I/O error")
}

impl World {
    fn record(&mut self, op: Op) {
        if let Op::Write { file, .. } | Op::Resize { file, .. } = &op
            && self.platter.names.values().filter(|other| *other == file).count() > 1
        {
            self.breach(format!("{} is linked, and written", self.platter.files[*file].name));
        }
        self.check_written_once(&op);
        let says_what_counts = match &op {
            Op::Create { name, .. } | Op::Link { name, .. } | Op::Remove { name } => says_what_counts(name),
            Op::Write { file, .. }
            | Op::Resize { file, .. }
            | Op::Sync { file }
            | Op::SyncRange { file, .. }
            | Op::SyncFailed { file } => says_what_counts(&self.platter.files[*file].name),
            Op::SyncDir { .. } => true,
        };
        if says_what_counts {
            self.states.clear();
        }
        self.platter.apply(&op);
        self.ops.push(op);
    }

    /// A byte of a log segment is written once, and a file that is complete not at all. The same bytes may be written again.
    fn check_written_once(&mut self, op: &Op) {
        let breach = match op {
            Op::Write { file, at, bytes } => {
                let state = &self.platter.files[*file];
                let at = (*at as usize).min(state.cache.len());
                let old = &state.cache[at..(at + bytes.len()).min(state.cache.len())];
                let stale = self.stale.get(file).and_then(|stale| stale.get(at..)).unwrap_or_default();
                let is_stale = |i: usize, old: u8| stale.get(i) == Some(&old);
                let both = old.iter().zip(&**bytes).enumerate();
                let changes = || both.clone().any(|(i, (old, new))| *old != 0 && old != new && !is_stale(i, *old));
                let differs = || old.len() < bytes.len() || old != &bytes[..old.len()];
                if segment::number_of(base_of(&state.name)).is_some() && changes() {
                    Some("has bytes of the log written over")
                } else if self.complete.contains(file) && differs() {
                    Some("is complete by the manifest, and written")
                } else {
                    None
                }
            }
            Op::Resize { file, to } => {
                let is_cut = self.complete.contains(file) && *to != self.platter.files[*file].cache.len() as u64;
                is_cut.then_some("is complete by the manifest, and cut or extended")
            }
            _ => None,
        };
        if let (Some(what), Op::Write { file, .. } | Op::Resize { file, .. }) = (breach, op) {
            self.breach(format!("{} {what}", self.platter.files[*file].name));
        }
    }

    #[cold]
    fn breach(&mut self, what: String) {
        let at = self.ops.len();
        self.violation.get_or_insert_with(|| format!("before op {at}: {what}"));
    }

    /// Counts a call; how it is to fail, if it is.
    fn call(&mut self, boot: u64, dir: &str, call: Call) -> io::Result<Option<Failure>> {
        if boot != self.boot {
            return Err(io::Error::other("the simulated process is dead"));
        }
        self.calls += 1;
        if self.sync_failed.contains(dir) && !matches!(call, Call::Look | Call::Read | Call::Remove) {
            self.breach(format!("{call:?} after a sync has failed"));
        }
        if self.faults.is_empty() {
            return Ok(None);
        }
        self.fault_calls += 1;
        let calls = self.fault_calls;
        let due = |fault: &Fault| if fault.sticky { calls > fault.after } else { calls == fault.after + 1 };
        let Some(fault) = self.faults.iter().find(|fault| due(fault) && fault.failure.hits(call)).copied() else {
            return Ok(None);
        };
        self.fault_hits += 1;
        if fault.failure == Failure::Io && matches!(call, Call::Write | Call::Grow) {
            self.write_failed.insert(dir.to_owned());
        }
        match fault.failure {
            Failure::Io => Err(eio()),
            Failure::NoSpace => Err(io::ErrorKind::StorageFull.into()),
            Failure::Interrupted => Err(io::ErrorKind::Interrupted.into()),
            other => Ok(Some(other)),
        }
    }

    /// A call that fails or is done.
    fn plain(&mut self, disk: &SimDisk, call: Call) -> io::Result<()> {
        self.call(disk.boot, &disk.dir, call).map(drop)
    }

    /// How much of a file that grows from `len` to `want` fits.
    fn fitting(&self, file: usize, len: u64, want: u64) -> u64 {
        let len = self.promised.get(&file).map_or(len, |promised| len.max(*promised));
        match self.quota {
            Some(quota) if want > len => want.min(len + quota.saturating_sub(self.used_bytes())),
            _ => want,
        }
    }

    fn used_bytes(&self) -> u64 {
        let is_there = |file: &&usize| self.platter.names.values().any(|there| there == *file);
        let kept = |file: &usize| self.promised[file].saturating_sub(self.platter.files[*file].cache.len() as u64);
        self.platter.used_bytes() + self.promised.keys().filter(is_there).map(kept).sum::<u64>()
    }

    /// Whether a part of a file can be read.
    fn readable(&self, file: usize, range: &Range<u64>) -> io::Result<()> {
        match &self.unreadable {
            Some((name, bad))
                if *name == self.platter.files[file].name && bad.start < range.end && range.start < bad.end =>
            {
                Err(eio())
            }
            _ => Ok(()),
        }
    }

    /// Called when `range` of a manifest was written: what it names must be there.
    fn check_edits(&mut self, file: usize, range: Range<u64>) {
        let state = &self.platter.files[file];
        let dir = directory_of(&state.name).to_owned();
        let field =
            |edit: &[u8], i: usize| edit.get(8 * i..8 * i + 8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
        let mut named = BTreeMap::new();
        for (i, edit) in state.cache.chunks_exact(EDIT_BYTES).enumerate() {
            let (Some(first), Some(number)) = (field(edit, 0), field(edit, 1)) else { continue };
            match first >> 32 {
                // Of no capacity: a number that was given up, and is again in the edit behind.
                1 if field(edit, 3) != Some(0) => drop(named.insert(number, (i * EDIT_BYTES) as u64)),
                3 => drop(named.remove(&number)),
                _ => {}
            }
        }
        let written = |at: u64| at < range.end && at + EDIT_BYTES as u64 > range.start;
        let missing =
            named.iter().filter(|(_, at)| written(**at)).map(|(number, _)| dir.clone() + &segment::file_name(*number));
        let missing = missing.into_iter().find(|name| !self.platter.is_durable(name, &SEGMENT_HEADER));
        if let Some(name) = missing {
            self.breach(format!("the manifest names {name}, whose header or name is not durable"));
        }
        self.check_complete(file, &dir, &written);
    }

    /// What an edit just written says is on the disk must be there: a sealed or closed segment up to its end, runs and
    /// checkpoints whole, and the log that those were made of. It stays as it is from then on.
    fn check_complete(&mut self, manifest: usize, dir: &str, written: &dyn Fn(u64) -> bool) {
        let cache = self.platter.files[manifest].cache.clone();
        let field = |edit: &[u8], i: usize| {
            edit.get(8 * i..8 * i + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
        };
        // Number, base; and what is named now, by kind and number.
        let mut bases = BTreeMap::new();
        let mut named: BTreeMap<(u64, u64), (String, u64)> = BTreeMap::new();
        let mut covers: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        for (i, edit) in cache.chunks_exact(EDIT_BYTES).enumerate() {
            let new = written((i * EDIT_BYTES) as u64);
            let (tag, number, second, third) = (field(edit, 0) >> 32, field(edit, 1), field(edit, 2), field(edit, 3));
            match tag {
                1 => drop(bases.insert(number, second)),
                2 | 4 => {
                    let base = bases.get(&number).copied().unwrap_or(0);
                    if new {
                        named.insert((tag, number), (segment::file_name(number), second.saturating_sub(base)));
                    }
                }
                3 => drop((named.remove(&(2, number)), named.remove(&(4, number)))),
                5 => named.retain(|(tag, _), _| *tag != 4),
                6 => {
                    // It takes the place of all within.
                    let within = |(from, to): &(u64, u64)| *from >= second && *to <= third;
                    named.retain(|(tag, n), _| *tag != 6 || !covers.get(n).is_some_and(within));
                    covers.insert(number, (second, third));
                    // Of the log's first byte alone: a number that was given up, and is again in the edit behind.
                    if new && (second, third) != (0, 1) {
                        named.insert((6, number), (run::format::file_name(number), u64::MAX));
                    }
                }
                7 => drop(named.remove(&(6, number))),
                8 => {
                    named.retain(|(tag, _), _| *tag != 8);
                    if new {
                        named.insert((8, number), (checkpoint::file_name(number), u64::MAX));
                        let unsynced = self.unsynced_log(dir, &bases);
                        if unsynced < third {
                            self.breach(format!(
                                "checkpoint {number} is made of the log up to {third}, on the disk up to {unsynced}"
                            ));
                        }
                    }
                }
                9 => drop(named.remove(&(8, number))),
                _ => {}
            }
        }
        for ((tag, _), (name, len)) in named {
            let name = format!("{dir}{name}");
            let Some(&file) = self.platter.names.get(&name) else {
                self.breach(format!("the manifest names {name}, which is not there"));
                continue;
            };
            let len = len.min(self.platter.files[file].cache.len() as u64);
            if !self.platter.is_durable(&name, &(0..len)) {
                self.breach(format!("the manifest says that {name} is on the disk up to byte {len}, and it is not"));
            }
            // A log that was closed goes on in the same segment.
            if tag != 4 {
                self.complete.insert(file);
            }
        }
    }

    /// The first log position whose byte waits for a sync.
    fn unsynced_log(&self, dir: &str, bases: &BTreeMap<u64, u64>) -> u64 {
        let unsynced = bases.iter().filter_map(|(number, base)| {
            let file = self.platter.names.get(&format!("{dir}{}", segment::file_name(*number)))?;
            let writes = self.platter.files[*file].pending.iter().filter_map(|(_, effect)| match effect {
                Effect::Write { at, bytes } => bytes.iter().any(|byte| *byte != 0).then_some(*at),
                Effect::Resize { .. } => None,
            });
            writes.min().map(|at| base + at)
        });
        unsynced.min().unwrap_or(u64::MAX)
    }

    /// Called before `name` is removed: no manifest that a power cut could leave may need it.
    fn check_removal(&mut self, dir: &str, name: &str) {
        let ways: &[bool] = if self.platter.is_settled(dir) { &[false] } else { &[false, true] };
        for &kept in ways {
            let Some(found) = self.state_of(dir, kept) else { continue };
            let (superblock, state) = &*found;
            let named = match () {
                () if manifest::number_of(name) == Some(superblock.manifest) => "the superblock",
                () if segment::number_of(name).is_some_and(|n| state.segments.contains_key(&n)) => "the manifest",
                () if checkpoint::number_of(name).is_some_and(|n| state.checkpoint.is_some_and(|c| c.number == n)) => {
                    "the manifest"
                }
                () if run::format::number_of(name).is_some_and(|n| state.runs.values().any(|run| run.number == n)) => {
                    "the manifest"
                }
                () => continue,
            };
            let way = if kept { "kept" } else { "lost" };
            self.breach(format!("{name} is removed, and {named} names it if all is {way}"));
        }
    }

    /// As [`Platter::state_of`].
    fn state_of(&mut self, dir: &str, kept: bool) -> Option<WhatCounts> {
        let key = (dir.to_owned(), kept);
        if let Some(state) = self.states.get(&key) {
            return state.clone();
        }
        let state = self.platter.state_of(dir, kept).map(Arc::new);
        self.states.insert(key, state.clone());
        state
    }

    fn check_name(&mut self, name: &str) {
        let ours = name == superblock::FILE
            || name == LOCK_FILE
            || segment::number_of(name).is_some()
            || run::format::number_of(name).is_some()
            || checkpoint::number_of(name).is_some()
            || manifest::number_of(name).is_some()
            || name == backup::UNFINISHED;
        if !ours {
            self.breach(format!("{name:?} is no name of the store's"));
        }
    }
}

impl SimDisk {
    /// A disk that holds `image`, all of it durable. The seed is for the engine's random numbers.
    pub(crate) fn new(image: Image, seed: u64) -> SimDisk {
        let platter = Platter::new(&image);
        let world = World { base: image, platter, random: seed, ..World::default() };
        SimDisk {
            world: Arc::new(Mutex::new(world)),
            boot: 0,
            dir: Arc::from(""),
            read_only: false,
            unmapped: crate::testing::unmapped(),
        }
    }

    /// The same disk, whose files are mapped or are not, whatever the environment says.
    pub(crate) fn mapped(self, is_mapped: bool) -> SimDisk {
        let unmapped = (!is_mapped).then(crate::testing::small_budget);
        SimDisk { unmapped, ..self }
    }

    /// A directory of the disk, as the same process sees it.
    pub(crate) fn directory(&self, name: &str) -> SimDisk {
        SimDisk { dir: format!("{name}/").into(), ..self.clone() }
    }

    /// The same disk, opened to be looked at only.
    pub(crate) fn read_only_view(&self) -> SimDisk {
        SimDisk { read_only: true, ..self.clone() }
    }

    /// Whether files can be linked from one directory into another; they can at first.
    pub(crate) fn set_links(&self, possible: bool) {
        self.world.lock().no_links = !possible;
    }

    fn full_name(&self, name: &str) -> String {
        if self.dir.is_empty() { name.to_owned() } else { format!("{}{name}", self.dir) }
    }

    /// Ends the process: its handles do nothing any more. The disk for the next one; what was written stays readable.
    pub(crate) fn restart(&self) -> SimDisk {
        let mut world = self.world.lock();
        world.boot += 1;
        world.sync_failed.clear();
        world.write_failed.clear();
        world.faults.clear();
        SimDisk { world: self.world.clone(), boot: world.boot, ..self.clone() }
    }

    /// Whether the process that has this handle lives.
    pub(crate) fn is_alive(&self) -> bool {
        self.boot == self.world.lock().boot
    }

    /// What was there at first and all that was done since.
    pub(crate) fn recording(&self) -> (Image, Vec<Op>) {
        let world = self.world.lock();
        (world.base.clone(), world.ops.clone())
    }

    /// Number of operations recorded: names a moment.
    pub(crate) fn now(&self) -> usize {
        self.world.lock().ops.len()
    }

    /// Calls made, those that change nothing included.
    pub(crate) fn calls(&self) -> u64 {
        self.world.lock().calls
    }

    /// The disk as a power cut would leave it now.
    pub(crate) fn image(&self, variant: Variant) -> Image {
        self.world.lock().platter.image(variant)
    }

    /// What the superblock and the manifest say now, whether or not they are synced.
    pub(crate) fn state_now(&self) -> Option<WhatCounts> {
        let mut world = self.world.lock();
        world.state_of(&self.dir, true)
    }

    /// Whatever it holds in these files, and what of that is synced.
    pub(crate) fn digest(&self, counts: impl Fn(&str) -> bool, hash: impl FnMut(&Arc<Vec<u8>>) -> u64) -> u64 {
        self.world.lock().platter.digest(counts, hash)
    }

    /// The disk as readers saw it at an earlier moment.
    pub(crate) fn image_at(&self, moment: usize) -> Image {
        let (base, ops) = self.recording();
        let mut platter = Platter::new(&base);
        ops.iter().take(moment).for_each(|op| platter.apply(op));
        platter.image(Variant::AllKept)
    }

    /// Has reading a part of a file fail.
    pub(crate) fn set_unreadable(&self, name: &str, range: Range<u64>) {
        self.world.lock().unreadable = Some((name.to_owned(), range));
    }

    pub(crate) fn violation(&self) -> Option<String> {
        self.world.lock().violation.clone()
    }

    /// Has a call fail; `None` heals the disk.
    pub(crate) fn set_fault(&self, fault: Option<Fault>) {
        self.set_faults(fault.as_slice());
    }

    /// Has calls fail, each as its own fault says; none heals the disk.
    pub(crate) fn set_faults(&self, faults: &[Fault]) {
        let mut world = self.world.lock();
        world.faults = faults.to_vec();
        world.fault_calls = 0;
        world.fault_hits = 0;
    }

    /// Calls that have failed since the fault was set.
    pub(crate) fn fault_hits(&self) -> u64 {
        self.world.lock().fault_hits
    }

    pub(crate) fn set_quota(&self, bytes: Option<u64>) {
        self.world.lock().quota = bytes;
    }

    pub(crate) fn used_bytes(&self) -> u64 {
        self.world.lock().used_bytes()
    }

    /// Has the disk keep space for files that ask for it, as some file systems do.
    pub(crate) fn keep_promises(&self) {
        self.world.lock().keeps_promises = true;
    }

    /// To be called when a synced commit is acknowledged and all before it are: a breach if the disk could still lose it.
    pub(crate) fn check_acknowledged(&self) {
        let mut world = self.world.lock();
        if world.platter.has_unsynced_log(&self.dir) {
            world.breach("a commit is acknowledged as durable, and log bytes are not synced".to_owned());
        }
    }

    fn file(&self, file: usize) -> SimFile {
        SimFile { disk: self.clone(), file }
    }
}

impl Disk for SimDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        let mut world = self.world.lock();
        world.plain(self, Call::Look)?;
        let ours = world.platter.names.keys().filter(|name| directory_of(name) == &*self.dir);
        Ok(ours.map(|name| base_of(name).to_owned()).collect())
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let mut world = self.world.lock();
        world.plain(self, Call::Grow)?;
        world.check_name(name);
        let name = self.full_name(name);
        if world.platter.names.contains_key(&name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let file = world.platter.files.len();
        world.record(Op::Create { file, name, from: None });
        Ok(Arc::new(self.file(file)))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let mut world = self.world.lock();
        world.plain(self, Call::Look)?;
        world.check_name(name);
        match world.platter.names.get(&self.full_name(name)) {
            Some(&file) => Ok(Arc::new(self.file(file))),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut world = self.world.lock();
        world.plain(self, Call::Remove)?;
        world.check_name(name);
        let full_name = self.full_name(name);
        if !world.platter.names.contains_key(&full_name) {
            return Err(io::ErrorKind::NotFound.into());
        }
        world.check_removal(&self.dir, name);
        if let Some(file) = world.platter.names.get(&full_name).copied() {
            world.promised.remove(&file);
        }
        world.record(Op::Remove { name: full_name });
        Ok(())
    }

    fn recycles(&self) -> bool {
        true
    }

    /// The names of both may be lost or kept, each for itself; the bytes are those of the old file until others are written.
    fn recycle(&self, old: &str, new: &str) -> io::Result<Arc<dyn File>> {
        let mut world = self.world.lock();
        world.plain(self, Call::Link)?;
        world.check_name(new);
        let (old_name, name) = (self.full_name(old), self.full_name(new));
        if world.platter.names.contains_key(&name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let Some(&from) = world.platter.names.get(&old_name) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        if world.platter.names.values().filter(|file| **file == from).count() > 1 {
            return Err(io::ErrorKind::Unsupported.into());
        }
        world.check_removal(&self.dir, old);
        world.record(Op::Remove { name: old_name });
        let file = world.platter.files.len();
        let stale = world.platter.files[from].cache.clone();
        world.record(Op::Create { file, name, from: Some(from) });
        world.stale.insert(file, stale);
        if let Some(promised) = world.promised.remove(&from) {
            world.promised.insert(file, promised);
        }
        Ok(Arc::new(self.file(file)))
    }

    fn link_to(&self, name: &str, to: &dyn Disk) -> io::Result<()> {
        let mut world = self.world.lock();
        world.plain(self, Call::Link)?;
        world.check_name(name);
        let Some(to) = to.path().and_then(Path::to_str).filter(|_| !world.no_links) else {
            return Err(io::ErrorKind::CrossesDevices.into());
        };
        let new = format!("{to}{name}");
        if world.platter.names.contains_key(&new) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let Some(&file) = world.platter.names.get(&self.full_name(name)) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        if !world.platter.files[file].pending.is_empty() {
            world.breach(format!("{name} is linked before it is synced"));
        }
        world.record(Op::Link { file, name: new });
        Ok(())
    }

    fn path(&self) -> Option<&Path> {
        Some(Path::new(&*self.dir))
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut world = self.world.lock();
        if let Err(e) = world.plain(self, Call::Sync) {
            if self.boot == world.boot {
                world.sync_failed.insert(self.dir.to_string());
            }
            return Err(e);
        }
        world.record(Op::SyncDir { dir: self.dir.to_string() });
        Ok(())
    }

    fn location(&self) -> String {
        "simulation".to_owned()
    }

    /// Few: a directory of them is made for every image, and so few keys fill one.
    fn shards(&self) -> usize {
        SHARDS
    }

    fn space(&self) -> Option<Space> {
        let world = self.world.lock();
        world.quota.map(|quota| Space { total: quota, free: quota.saturating_sub(world.used_bytes()) })
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn unmapped(&self) -> Option<&Arc<Budget>> {
        self.unmapped.as_ref()
    }

    fn random_u64(&self) -> io::Result<u64> {
        let mut world = self.world.lock();
        world.random = world.random.wrapping_add(1);
        Ok(Random::new(world.random).next())
    }
}

#[derive(Clone, Debug)]
struct SimFile {
    disk: SimDisk,
    file: usize,
}

impl SimFile {
    fn sync_as(&self, op: Op) -> io::Result<()> {
        let mut world = self.disk.world.lock();
        if let Err(e) = world.plain(&self.disk, Call::Sync) {
            if self.disk.boot == world.boot {
                world.sync_failed.insert(self.disk.dir.to_string());
                world.record(Op::SyncFailed { file: self.file });
            }
            return Err(e);
        }
        world.record(op);
        Ok(())
    }
}

impl File for SimFile {
    fn len(&self) -> io::Result<u64> {
        let mut world = self.disk.world.lock();
        world.plain(&self.disk, Call::Look)?;
        Ok(world.platter.files[self.file].cache.len() as u64)
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let mut world = self.disk.world.lock();
        let half = world.call(self.disk.boot, &self.disk.dir, Call::Read)?.is_some();
        world.readable(self.file, &(offset..offset + into.len() as u64))?;
        let from = world.platter.files[self.file].cache.get(offset as usize..).unwrap_or_default();
        let n = from.len().min(if half { into.len().div_ceil(2) } else { into.len() });
        into[..n].copy_from_slice(&from[..n]);
        Ok(n)
    }

    fn write_at(&self, offset: u64, from: &[u8]) -> io::Result<usize> {
        let mut world = self.disk.world.lock();
        let failure = world.call(self.disk.boot, &self.disk.dir, Call::Write)?;
        if failure == Some(Failure::Zero) {
            world.write_failed.insert(self.disk.dir.to_string());
            return Ok(0);
        }
        let asked = if failure.is_some() { from.len().div_ceil(2) } else { from.len() };
        let len = world.platter.files[self.file].cache.len() as u64;
        let end = world.fitting(self.file, len, offset + asked as u64);
        let n = end.saturating_sub(offset) as usize;
        if n == 0 && asked > 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        world.record(Op::Write { file: self.file, at: offset, bytes: from[..n].into() });
        if manifest::number_of(base_of(&world.platter.files[self.file].name)).is_some() {
            world.check_edits(self.file, offset..end);
        }
        Ok(n)
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        let mut world = self.disk.world.lock();
        world.plain(&self.disk, Call::Write)?;
        world.record(Op::Resize { file: self.file, to: bytes });
        Ok(())
    }

    fn reserve(&self, bytes: u64, _piece: usize) -> io::Result<()> {
        let mut world = self.disk.world.lock();
        let failure = world.call(self.disk.boot, &self.disk.dir, Call::Write)?;
        let len = world.platter.files[self.file].cache.len() as u64;
        if bytes <= len {
            return Ok(());
        }
        let end = world.fitting(self.file, len, bytes);
        if end > len {
            world.record(Op::Resize { file: self.file, to: end });
        }
        match failure {
            Some(Failure::Zero) => Err(io::ErrorKind::WriteZero.into()),
            _ if end < bytes => Err(io::ErrorKind::StorageFull.into()),
            _ => Ok(()),
        }
    }

    fn promise(&self, bytes: u64) -> io::Result<bool> {
        let mut world = self.disk.world.lock();
        if !world.keeps_promises {
            return Ok(false);
        }
        let len = world.platter.files[self.file].cache.len() as u64;
        if world.fitting(self.file, len, bytes) < bytes {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let promised = world.promised.entry(self.file).or_default();
        *promised = bytes.max(*promised);
        Ok(true)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_as(Op::Sync { file: self.file })
    }

    fn map(&self, bytes: u64, writable: bool) -> io::Result<Map> {
        let mut world = self.disk.world.lock();
        world.plain(&self.disk, Call::Look)?;
        world.readable(self.file, &(0..bytes))?;
        let cache = &world.platter.files[self.file].cache;
        let there = &cache[..cache.len().min(bytes as usize)];
        if !writable && there.len() < bytes as usize {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file is shorter than it should be"));
        }
        Map::copied(there, bytes as usize, writable.then(|| Arc::new(self.clone()) as Arc<dyn Watch>))
    }

    fn map_private(&self, bytes: u64) -> io::Result<Private> {
        let mut world = self.disk.world.lock();
        world.plain(&self.disk, Call::Look)?;
        world.readable(self.file, &(0..bytes))?;
        let cache = &world.platter.files[self.file].cache;
        let Some(bytes) = cache.get(..bytes as usize) else {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file is shorter than it should be"));
        };
        Private::copy_of(bytes)
    }
}

impl Watch for SimFile {
    fn published(&self, at: u64, bytes: &[u8]) {
        let mut world = self.disk.world.lock();
        if self.disk.boot != world.boot {
            return;
        }
        if world.sync_failed.contains(&*self.disk.dir) {
            world.breach("a record is written after a sync has failed".to_owned());
        }
        if world.write_failed.contains(&*self.disk.dir) {
            world.breach("a record is written after a write has failed".to_owned());
        }
        let FileState { name, cache, .. } = &world.platter.files[self.file];
        if at + bytes.len() as u64 > cache.len() as u64 {
            // The process would be dead by now.
            let message = format!("{name} is written through the mapping past its end");
            world.breach(message);
        }
        world.record(Op::Write { file: self.file, at, bytes: bytes.into() });
    }

    fn sync(&self, range: Range<u64>) -> io::Result<()> {
        self.sync_as(Op::SyncRange { file: self.file, range })
    }
}
