//! A directory checkpoint: the hash directory as it was, in a file, so that an open need not read the log that made it.
//! Flow: `worker` -> [`writer`] -> the file -> `manifest`; `recovery` -> here -> `directory`.
//!
//! | offset | bytes | field of the header                                                                  |
//! |      0 |     8 | magic `kvasidir`                                                                     |
//! |      8 |     4 | format version                                                                       |
//! |     12 |     4 | zero                                                                                 |
//! |     16 |     8 | checkpoint number; the file is named after it                                        |
//! |     24 |     8 | salt: random, seeds every other checksum in the file                                 |
//! |     32 |     8 | from: the log position that replay begins at                                         |
//! |     40 |     8 | end: nothing here points at the log from this position on                            |
//! |     48 |     8 | offset of the tables; they end the file                                              |
//! |     56 |     8 | bytes of the tables                                                                  |
//! |     64 |     8 | first bucket id never used                                                           |
//! |     72 |    16 | number of parts, segments, buckets, buckets being forgotten, each 4 bytes            |
//! |     88 |     4 | checksum of the tables, seeded by salt and offset                                    |
//! |     92 |     4 | checksum of bytes 0..92, seeded by the store's id                                    |
//! |   4096 |       | the lines of all parts, in their order; a line is eight words (see `directory`)      |
//!
//! | bytes | the tables, one after another                                                                   |
//! |    20 | for each part: depth (1), depth of its tags (1), zero (2), lines (4), words used (4), keys (4), |
//! |       | checksum of its lines, seeded by salt and offset (4). In the order of the hash bits, so that    |
//! |       | the depths alone say which part is whose.                                                       |
//! |    40 | for each segment that words may point into: number (8), first address slot and number of slots  |
//! |       | (4 each), live bytes, bytes of tombstones, end: the offset up to which there were records (8    |
//! |       | each)                                                                                           |
//! |       | for each bucket: id (8), bytes of its name (2), the name                                        |
//! |     8 | for each bucket that was dropped, and whose keys may still be here: its id                      |
//!
//! **What it says.** All writes before `from` are in it. What comes later may be, too: parts were copied one after another while
//! others wrote. So replay goes through the log from `from` on, and a word that says more already stays (versions tell). The
//! log before `end` was on the disk before the manifest named the checkpoint, so no word points at what a crash may take.
//!
//! **Address slots.** A word is a place, and a place names a slot. Segments get the slots that they had. One that was given up
//! since is a *ghost*: its slots are kept, and a word that points there is as good as none, because whatever lived in the
//! segment was moved, replaced or deleted by a record after `from`. A sweep takes such words out, then the slots are free.
//! No slot is freed while a checkpoint is being written, so a slot means one segment in all of it.
//!
//! A file that is missing or not what was written is given up, and the directory is made from the log. It is never an error.

pub(crate) mod writer;

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::checksum::Seed;
use crate::codec::{Reader, hex16, name16};
use crate::directory::{Directory, LINE_BYTES, Lines, Shape};
use crate::io::Disk;
use crate::io::map::Private;
use crate::log::SLOTS_MAX;
use crate::manifest::CheckpointEntry;
use crate::seeded::{Bug, seeded};

const MAGIC: &[u8; 8] = b"kvasidir";
const FORMAT: u32 = 1;
const HEADER_BYTES: usize = 96;
/// Where the lines begin.
const LINES_AT: u64 = 4096;
const PART_BYTES: usize = 20;

/// The file name of checkpoint `number`.
pub(crate) fn file_name(number: u64) -> String {
    name16("", number, ".dir")
}

/// The number in a checkpoint's file name.
pub(crate) fn number_of(name: &str) -> Option<u64> {
    hex16(name.strip_suffix(".dir")?)
}

/// What a checkpoint says of one segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Addressed {
    pub(crate) number: u64,
    pub(crate) first_slot: u32,
    pub(crate) slots: u32,
    pub(crate) live: u64,
    pub(crate) tombstones: u64,
    /// Offset up to which there were records.
    pub(crate) end: u64,
}

/// The buckets at a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Buckets {
    pub(crate) named: Vec<(u64, String)>,
    pub(crate) next_id: u64,
    /// Dropped, and their keys may still be in the directory.
    pub(crate) forgotten: BTreeSet<u64>,
}

/// All of a checkpoint but the lines.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Contents {
    number: u64,
    salt: u64,
    from: u64,
    end: u64,
    /// Each part with the checksum of its lines.
    parts: Vec<(Shape, u32)>,
    segments: Vec<Addressed>,
    buckets: Buckets,
}

impl Contents {
    /// The tables, and the header that goes with them when they stand at `offset`.
    fn encode(&self, store: u64, offset: u64) -> ([u8; HEADER_BYTES], Vec<u8>) {
        let mut tables = Vec::with_capacity(self.parts.len() * PART_BYTES);
        for (shape, checksum) in &self.parts {
            tables.extend_from_slice(&[shape.depth, shape.tag_depth, 0, 0]);
            for field in [shape.lines, shape.used, shape.keys, *checksum] {
                tables.extend_from_slice(&field.to_le_bytes());
            }
        }
        for segment in &self.segments {
            let Addressed { number, first_slot, slots, live, tombstones, end } = *segment;
            let slots = u64::from(first_slot) | u64::from(slots) << 32;
            for field in [number, slots, live, tombstones, end] {
                tables.extend_from_slice(&field.to_le_bytes());
            }
        }
        for (id, name) in &self.buckets.named {
            tables.extend_from_slice(&id.to_le_bytes());
            tables.extend_from_slice(&(name.len() as u16).to_le_bytes());
            tables.extend_from_slice(name.as_bytes());
        }
        for id in &self.buckets.forgotten {
            tables.extend_from_slice(&id.to_le_bytes());
        }
        let mut header = [0; HEADER_BYTES];
        header[..8].copy_from_slice(MAGIC);
        header[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        let fields = [self.number, self.salt, self.from, self.end, offset, tables.len() as u64, self.buckets.next_id];
        for (i, field) in fields.iter().enumerate() {
            header[16 + 8 * i..24 + 8 * i].copy_from_slice(&field.to_le_bytes());
        }
        let counts = [self.parts.len(), self.segments.len(), self.buckets.named.len(), self.buckets.forgotten.len()];
        for (i, count) in counts.iter().enumerate() {
            header[72 + 4 * i..76 + 4 * i].copy_from_slice(&(*count as u32).to_le_bytes());
        }
        let checksum = Seed::new(self.salt, offset).checksum(&tables);
        header[88..92].copy_from_slice(&checksum.to_le_bytes());
        let checksum = Seed::new(store, 0).checksum(&header[..92]);
        header[92..].copy_from_slice(&checksum.to_le_bytes());
        (header, tables)
    }

    /// What this file says, its lines left alone; `None` if it was not written for this store, or not so.
    fn decode(file: &[u8], store: u64) -> Option<Contents> {
        let mut reader = Reader::new(file.get(..HEADER_BYTES)?);
        if reader.take(8)? != MAGIC || reader.u32()? != FORMAT || reader.u32()? != 0 {
            return None;
        }
        let (number, salt, from, end) = (reader.u64()?, reader.u64()?, reader.u64()?, reader.u64()?);
        let (offset, bytes, next_id) = (reader.u64()?, reader.u64()?, reader.u64()?);
        let (parts, segments) = (reader.u32()? as usize, reader.u32()? as usize);
        let (named, forgotten) = (reader.u32()? as usize, reader.u32()? as usize);
        let tables_checksum = reader.u32()?;
        let blank = file.get(HEADER_BYTES..LINES_AT as usize)?.iter().all(|byte| *byte == 0);
        if Seed::new(store, 0).checksum(&file[..92]) != reader.u32()? || from > end || !blank {
            return None;
        }
        let at = usize::try_from(offset).ok()?;
        let tables = file.get(at..)?;
        if tables.len() as u64 != bytes || Seed::new(salt, offset).checksum(tables) != tables_checksum {
            return None;
        }
        let mut reader = Reader::new(tables);
        let mut contents = Contents {
            number,
            salt,
            from,
            end,
            parts: Vec::with_capacity(parts.min(tables.len() / PART_BYTES)),
            segments: Vec::new(),
            buckets: Buckets { next_id, ..Buckets::default() },
        };
        for _ in 0..parts {
            let (depth, tag_depth) = (reader.u8()?, reader.u8()?);
            reader.take(2)?;
            let shape = Shape { depth, tag_depth, lines: reader.u32()?, used: reader.u32()?, keys: reader.u32()? };
            contents.parts.push((shape, reader.u32()?));
        }
        for _ in 0..segments {
            contents.segments.push(Addressed {
                number: reader.u64()?,
                first_slot: reader.u32()?,
                slots: reader.u32()?,
                live: reader.u64()?,
                tombstones: reader.u64()?,
                end: reader.u64()?,
            });
        }
        for _ in 0..named {
            let (id, len) = (reader.u64()?, u16::from_le_bytes(reader.take(2)?.try_into().ok()?));
            let name = std::str::from_utf8(reader.take(usize::from(len))?).ok()?;
            contents.buckets.named.push((id, name.to_owned()));
        }
        for _ in 0..forgotten {
            contents.buckets.forgotten.insert(reader.u64()?);
        }
        (reader.at() == tables.len()).then_some(contents)
    }
}

/// A checkpoint as read from its file.
pub(crate) struct Checkpoint {
    pub(crate) entry: CheckpointEntry,
    pub(crate) directory: Directory,
    pub(crate) segments: Vec<Addressed>,
    pub(crate) buckets: Buckets,
}

impl Checkpoint {
    /// Reads the checkpoint that the manifest names; `None` if it cannot be read, for whatever reason.
    pub(crate) fn open(disk: &dyn Disk, entry: CheckpointEntry, store: u64) -> Option<Checkpoint> {
        let file = disk.open(&file_name(entry.number)).ok()?;
        let bytes = file.len().ok()?;
        if bytes < LINES_AT {
            return None;
        }
        Checkpoint::read(Private::of(disk, &*file, bytes).ok()?, entry, store, disk.shards())
    }

    pub(crate) fn read(map: Private, entry: CheckpointEntry, store: u64, shards: usize) -> Option<Checkpoint> {
        let file = map.bytes();
        let contents = Contents::decode(file, store)?;
        if (contents.number, contents.from, contents.end) != (entry.number, entry.from, entry.end) {
            return None;
        }
        let mut at = LINES_AT as usize;
        let mut places = Vec::with_capacity(contents.parts.len());
        for (shape, checksum) in &contents.parts {
            let end = at.checked_add((shape.lines as usize).checked_mul(LINE_BYTES)?)?;
            let sum = Seed::new(contents.salt, at as u64).checksum(file.get(at..end)?);
            if sum != *checksum && !seeded(Bug::CheckpointUnchecked) {
                return None;
            }
            places.push(at);
            at = end;
        }
        if !slots_are_apart(&contents.segments) {
            return None;
        }
        let words = Arc::new(map.share());
        let parts = contents.parts.iter().zip(places);
        let lines: Option<Vec<_>> =
            parts.map(|((shape, _), at)| Some((*shape, Lines::mapped(&words, at, shape.lines as usize)?))).collect();
        let directory = Directory::of_parts(shards, lines?)?;
        Some(Checkpoint { entry, directory, segments: contents.segments, buckets: contents.buckets })
    }
}

fn slots_are_apart(segments: &[Addressed]) -> bool {
    let mut slots: Vec<(u64, u64)> =
        segments.iter().map(|s| (u64::from(s.first_slot), u64::from(s.first_slot) + u64::from(s.slots))).collect();
    slots.sort_unstable();
    slots.iter().all(|(first, end)| first < end)
        && slots.windows(2).all(|pair| pair[0].1 <= pair[1].0)
        && slots.last().is_none_or(|last| last.1 <= SLOTS_MAX as u64)
}

/// A file with checksums made right, of parts with their lines, segments and buckets that may be anything. What a fuzzer cannot guess.
#[cfg(feature = "testing")]
pub(crate) fn file_of(
    (entry, salt, store): (CheckpointEntry, u64, u64),
    parts: &[(Shape, Vec<u8>)],
    segments: Vec<Addressed>,
    buckets: Buckets,
) -> Vec<u8> {
    let mut file = vec![0; LINES_AT as usize];
    let CheckpointEntry { number, from, end } = entry;
    let mut contents = Contents { number, salt, from, end, parts: Vec::new(), segments, buckets };
    for (shape, lines) in parts {
        contents.parts.push((*shape, Seed::new(salt, file.len() as u64).checksum(lines)));
        file.extend_from_slice(lines);
    }
    let (header, tables) = contents.encode(store, file.len() as u64);
    file[..HEADER_BYTES].copy_from_slice(&header);
    file.extend_from_slice(&tables);
    file
}

#[cfg(test)]
#[cfg(feature = "testing")]
mod tests;
