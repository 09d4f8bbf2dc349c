//! Damaged files: every bit flipped, every length, sectors that are lost, old, or written to the wrong place, files that are
//! missing or swapped. The store opens with the state after some number of its commits, or says what is damaged; it never
//! shows a value that was not written, and never panics.

use std::sync::Arc;

use super::Random;
use super::call::{Call, Calls};
use super::counts::{Case, Counts, Violation};
use super::crash::{caught, make};
use super::model::{self, History};
use super::workload::{Run, options};
use crate::io::Disk;
use crate::io::sim::{self, Image, SimDisk, Variant};
use crate::manifest::edit::EDIT_BYTES;
use crate::manifest::{self, superblock};
use crate::segment;
use crate::worker::Jobs;
use crate::{ErrorKind, Store};

/// Calls of a workload, and of one in three, which is long enough for key runs that were merged.
const STEPS: u32 = 40;
const LONG_STEPS: u32 = 240;

/// Which damage is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One bit of a file.
    Flip,
    /// Files cut to a length, made longer, missing, or in the place of another.
    Truncate,
    /// Sectors of 512 or 4,096 bytes.
    Sectors,
}

/// One thing done to the files of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Damage {
    Flip {
        name: String,
        bit: u64,
    },
    Cut {
        name: String,
        to: u64,
    },
    Extend {
        name: String,
        by: u64,
        fill: Fill,
    },
    Missing {
        name: String,
    },
    Swapped {
        name: String,
        with: String,
    },
    Zeroed {
        name: String,
        at: u64,
        bytes: u64,
    },
    Unreadable {
        name: String,
        at: u64,
        bytes: u64,
    },
    /// As it was at some moment before.
    Stale {
        name: String,
        at: u64,
        bytes: u64,
        moment: usize,
    },
    /// What belongs elsewhere.
    Misdirected {
        name: String,
        at: u64,
        bytes: u64,
        from: String,
        from_at: u64,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fill {
    Zeros,
    Ones,
    Random,
    OwnStart,
}

/// Does damage of a kind to the store of a seed, closed or cut in mid-flight by turns of the seed: all there is, or `count`
/// of it.
///
/// # Errors
/// The first wrong answer.
pub fn round(kind: Kind, seed: u64, count: u64, case: &Case) -> Result<Counts, Violation> {
    let (image, run) = store(seed).map_err(|what| Violation::new(seed, None, what))?;
    let mut counts = Counts::default();
    counts.add("stores", 1);
    let all = total(kind, &image);
    let stride = (all / count.max(1)).max(1) | 1;
    let mut random = Random::new(seed ^ 0x6461_6d61_6765);
    let mut at = match &case.at {
        Some(at) => at.parse().map_err(|e| Violation::new(seed, at.clone(), format!("{at:?}: {e}")))?,
        None => random.below(stride),
    };
    while at < all {
        // Where not all is done, each file has the same chance every other time: those that matter most are short.
        let evenly = kind == Kind::Flip && stride > 1 && case.at.is_none() && random.below(2) == 0;
        let n = if evenly { any_bit(&image, &mut random) } else { at };
        let damage = nth(kind, &image, &run, n);
        let fail = |what| Violation::new(seed, n.to_string(), format!("{damage:?}: {what}"));
        if let Some(damage) = &damage {
            let damaged = apply(damage, &image, &run);
            check(&SimDisk::new(damaged, seed), std::slice::from_ref(damage), &run, seed).map_err(fail)?;
            counts.add("damages", 1);
        }
        if case.at.is_some() {
            break;
        }
        at += stride;
    }
    Ok(counts)
}

/// Any bit of any file, as [`nth`] numbers them; those that make what it says another thing that could have been written there
/// are drawn more often: only a checksum tells these. They are the salt of the last segment, without which it seems never to
/// have been used, other fields of headers, and kinds and numbers in the manifest.
fn any_bit(image: &Image, random: &mut Random) -> u64 {
    let last_segment = image.keys().rposition(|name| segment::number_of(name).is_some());
    let manifest = image.keys().rposition(|name| manifest::number_of(name).is_some());
    let any = random.below(image.len() as u64) as usize;
    let chosen = match random.below(4) {
        0 => last_segment.unwrap_or(any),
        1 => manifest.unwrap_or(any),
        _ => any,
    };
    let before: u64 = image.values().take(chosen).map(|file| 8 * file.len() as u64).sum();
    let bytes = image.values().nth(chosen).map_or(0, |file| file.len() as u64);
    let in_file = match random.below(2) {
        0 if Some(chosen) == manifest && bytes >= EDIT_BYTES as u64 => {
            // The lowest bits of the kind of an edit, and of its three numbers.
            let edit = random.below(bytes / EDIT_BYTES as u64) * EDIT_BYTES as u64;
            8 * (edit + [4, 8, 16, 24][random.below(4) as usize]) + random.below(4)
        }
        0 => random.below(8 * bytes.clamp(1, segment::HEADER_BYTES)),
        _ => random.below(8 * bytes.max(1)),
    };
    before + in_file
}

/// How many different damages there are to choose from.
fn total(kind: Kind, image: &Image) -> u64 {
    let bytes: u64 = image.values().map(|bytes| bytes.len() as u64).sum();
    match kind {
        Kind::Flip => 8 * bytes,
        // Every length; and for every file some of the others.
        Kind::Truncate => bytes + image.len() as u64 * OTHERS,
        Kind::Sectors => sectors(image).count() as u64 * SECTOR_DAMAGES,
    }
}

/// Of each file: longer by as many bytes in four ways, missing, in the place of others.
const OTHERS: u64 = 64;
/// Of each sector: zeros, unreadable, stale, and misdirected from some places.
const SECTOR_DAMAGES: u64 = 16;

fn sectors(image: &Image) -> impl Iterator<Item = (&String, u64, u64)> {
    image.iter().flat_map(|(name, file)| {
        let len = file.len() as u64;
        [512u64, 4096]
            .into_iter()
            .flat_map(move |size| (0..len).step_by(size as usize).map(move |at| (name, at, size.min(len - at))))
    })
}

pub(super) fn nth(kind: Kind, image: &Image, run: &Run, mut n: u64) -> Option<Damage> {
    match kind {
        Kind::Flip => {
            for (name, file) in image {
                let bits = 8 * file.len() as u64;
                if n < bits {
                    return Some(Damage::Flip { name: name.clone(), bit: n });
                }
                n -= bits;
            }
        }
        Kind::Truncate => {
            for (name, file) in image {
                if n < file.len() as u64 {
                    return Some(Damage::Cut { name: name.clone(), to: n });
                }
                n -= file.len() as u64;
            }
            let name = image.keys().nth((n / OTHERS) as usize)?.clone();
            let mut random = Random::new(n);
            let fills = [Fill::Zeros, Fill::Ones, Fill::Random, Fill::OwnStart];
            return Some(match n % OTHERS {
                0 => Damage::Missing { name },
                i @ 1..16 => {
                    let with = image.keys().nth(i as usize - 1)?.clone();
                    (with > name).then_some(Damage::Swapped { name, with })?
                }
                _ => Damage::Extend { name, by: 1 + random.below(4096), fill: fills[random.below(4) as usize] },
            });
        }
        Kind::Sectors => {
            let (name, at, bytes) = sectors(image).nth((n / SECTOR_DAMAGES) as usize)?;
            let name = name.clone();
            let mut random = Random::new(n);
            return Some(match n % SECTOR_DAMAGES {
                0 => Damage::Zeroed { name, at, bytes },
                1 => Damage::Unreadable { name, at, bytes },
                2..=5 => Damage::Stale { name, at, bytes, moment: random.below(run.disk.now() as u64 + 1) as usize },
                _ => {
                    let all: Vec<_> = sectors(image).filter(|(_, _, there)| *there == bytes).collect();
                    let (from, from_at, _) = all[random.below(all.len() as u64) as usize];
                    Damage::Misdirected { name, at, bytes, from: from.clone(), from_at }
                }
            });
        }
    }
    None
}

pub(super) fn apply(damage: &Damage, image: &Image, run: &Run) -> Image {
    let mut damaged = image.clone();
    let mut edit = |name: &String, edit: &mut dyn FnMut(&mut Vec<u8>)| {
        if let Some(file) = damaged.get_mut(name) {
            edit(Arc::make_mut(file));
        }
    };
    let range = |at: u64, bytes: u64| at as usize..(at + bytes) as usize;
    match damage {
        Damage::Flip { name, bit } => edit(name, &mut |file| file[(bit / 8) as usize] ^= 1 << (bit % 8)),
        Damage::Cut { name, to } => edit(name, &mut |file| file.truncate(*to as usize)),
        Damage::Extend { name, by, fill } => edit(name, &mut |file| {
            let mut random = Random::new(*by);
            let own = file.clone();
            let more = (0..*by as usize).map(|i| match fill {
                Fill::Zeros => 0,
                Fill::Ones => 0xff,
                Fill::Random => random.next() as u8,
                Fill::OwnStart => own.get(i).copied().unwrap_or(0),
            });
            file.extend(more);
        }),
        Damage::Zeroed { name, at, bytes } => edit(name, &mut |file| file[range(*at, *bytes)].fill(0)),
        Damage::Misdirected { name, at, bytes, from, from_at } => {
            let source = image[from][range(*from_at, *bytes)].to_vec();
            edit(name, &mut |file| file[range(*at, *bytes)].copy_from_slice(&source));
        }
        Damage::Stale { name, at, bytes, moment } => {
            let before = run.disk.image_at(*moment);
            let old = before.get(name).cloned().unwrap_or_default();
            edit(name, &mut |file| {
                for i in range(*at, *bytes) {
                    file[i] = old.get(i).copied().unwrap_or(0);
                }
            });
        }
        Damage::Missing { name } => drop(damaged.remove(name)),
        Damage::Swapped { name, with } => {
            let (one, other) = (image[name].clone(), image[with].clone());
            damaged.insert(name.clone(), other);
            damaged.insert(with.clone(), one);
        }
        // The disk says so when it is read.
        Damage::Unreadable { .. } => {}
    }
    damaged
}

pub(super) fn store(seed: u64) -> Result<(Image, Run), String> {
    let run = run_of(seed, &Calls::of(seed, if seed.is_multiple_of(3) { LONG_STEPS } else { STEPS }))?;
    if seed.is_multiple_of(2)
        && let Some(store) = run.store().cloned()
    {
        store.close().map_err(|e| format!("cannot close: {e:?}"))?;
    }
    Ok((files(&run), run))
}

/// What is left of these calls, made on a disk without faults.
pub(super) fn run_of(seed: u64, calls: &[Call]) -> Result<Run, String> {
    let mut run = Run::new(SimDisk::new(Image::new(), seed), seed);
    for (i, call) in calls.iter().enumerate() {
        make(&mut run, call).map_err(|what| format!("call {i}, without a fault: {what}"))?;
    }
    Ok(run)
}

/// The files of the store alone: a backup under way is none of it.
pub(super) fn files(run: &Run) -> Image {
    let mut image = run.disk.image(Variant::AllKept);
    image.retain(|name, _| !name.contains('/'));
    image
}

/// What one bit may cost: nothing, if it is no bit of a record, or of the link before the first; else the commits from there
/// on, if none of those that are lost knew of another that it was on the disk.
fn may_be_lost(damage: &Damage, image: &Image, history: &History, kept: usize) -> Result<(), String> {
    let Damage::Flip { name, bit } = damage else { return Ok(()) };
    if kept == history.commits() {
        return Ok(());
    }
    let lost = format!("{} of {} commits are lost", history.commits() - kept, history.commits());
    let offset = bit / 8;
    let is_record = segment::number_of(name).is_some() && offset >= segment::HEADER_BYTES - segment::LINK_BYTES;
    let base = image.get(name).and_then(|file| file.get(BASE)).and_then(|base| base.try_into().ok());
    let Some(base) = base.map(u64::from_le_bytes).filter(|_| is_record) else {
        return Err(format!("{lost} through what is no record"));
    };
    if history.has_witness(kept) {
        return Err(format!("{lost}, and the last of them was begun when the first was on the disk"));
    }
    // The first of them may be damaged itself; the second is not, if it stands before the damage.
    let second = history.versions_in_order().into_iter().find(|(commit, _)| *commit > kept);
    match second {
        Some((_, version)) if version <= base + offset => Err(format!("{lost}, of which one stands before the damage")),
        _ => Ok(()),
    }
}

/// Where a segment's header says at which log position it begins.
const BASE: std::ops::Range<usize> = 24..32;

/// What a store with this damage done to it may do: refuse, or show the state after some number of commits, but for the very keys whose records
/// are damaged.
pub(super) fn check(disk: &SimDisk, damages: &[Damage], run: &Run, seed: u64) -> Result<(), String> {
    let image = &disk.image(Variant::AllKept);
    caught(|| {
        sim::set_clock(run.history.clock);
        let unreadable = damages.iter().any(|damage| matches!(damage, Damage::Unreadable { .. }));
        // Only what is not mapped is read by whoever needs it, when he does.
        let read_late = unreadable && disk.unmapped().is_some();
        for damage in damages {
            if let Damage::Unreadable { name, at, bytes } = damage {
                disk.set_unreadable(name, *at..at + bytes);
            }
        }
        let store = match Store::without_worker(Arc::new(disk.clone()), options(seed)) {
            // Errors are told with the damage, not as if the system had failed.
            Err(e) if matches!(e.kind(), ErrorKind::Corrupt | ErrorKind::Format) => {
                let now = disk.image(Variant::AllKept);
                return if now == *image { Ok(()) } else { Err(format!("{e:?}, and files were changed")) };
            }
            // A disk that says it cannot read is believed, and nothing is decided on it.
            Err(e) if unreadable && e.kind() == ErrorKind::Io => return Ok(()),
            Err(e) => return Err(format!("{e:?}")),
            Ok(store) => store,
        };
        for _ in 0..3 {
            let whole = model::read_what_is_whole(&store, read_late).map_err(|e| format!("{e:?}"))?;
            if let Some((seen, unreadable)) = whole {
                let Some(kept) = run.history.find_but_for(&seen, &unreadable) else {
                    let what = run.history.find(&seen, 0..=run.history.commits()).map(|_| String::new());
                    return Err(format!("unreadable: {unreadable:?}; {}", what.unwrap_or_else(|what| what)));
                };
                if let [damage] = damages {
                    may_be_lost(damage, image, &run.history, kept)?;
                }
            }
            // The jobs meet the damage, too; the store lives through it.
            let mut jobs = Jobs::cleaning_from(2048);
            for _ in 0..8 {
                if jobs.round(&store.0.commits, false).is_none() {
                    return if unreadable { Ok(()) } else { Err("background work has stopped the store".to_owned()) };
                }
            }
        }
        match store.bucket("probe").and_then(|bucket| bucket.set(b"probe", b"value")) {
            Ok(_) => Ok(()),
            // Whoever writes may be the one that meets what the disk cannot read, and then stops the store.
            Err(e)
                if unreadable && matches!(e.kind(), ErrorKind::Io | ErrorKind::Indeterminate | ErrorKind::Poisoned) =>
            {
                Ok(())
            }
            Err(e) => Err(format!("a write beside damage: {e:?}")),
        }
    })
    .map_err(|what| if image.contains_key(superblock::FILE) { what } else { format!("no superblock: {what}") })
}
