//! One edit of the manifest, as bytes; no I/O.
//!
//! | offset | bytes | field                                                                 |
//! |      0 |     4 | checksum of bytes 4..32, seeded by store id, manifest number, offset  |
//! |      4 |     4 | tag                                                                   |
//! |      8 |     8 | number of the segment, run or checkpoint                              |
//! |     16 |     8 | `Add`: base; `Seal`, `Close`: end of the records, a log position;     |
//! |        |       | `Remove`: position up to which the log was on the disk then, or 0;    |
//! |        |       | `AddRun`: first log position it covers; `AddCheckpoint`: first log    |
//! |        |       | position to be replayed after it                                      |
//! |     24 |     8 | `Add`: capacity in bytes; `AddRun`: first position after those;       |
//! |        |       | `AddCheckpoint`: position up to which the log was on the disk         |
//!
//! An edit has one size, so that an edit cut short shows by the length of the file.

use crate::checksum::Seed;
use crate::codec::Reader;
use crate::seeded::{Bug, seeded};

/// Bytes of every edit.
pub(crate) const EDIT_BYTES: usize = 32;

/// A change of the set of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Edit {
    /// The log may be in this segment from now on. Its file and name are on the disk.
    Add { segment: u64, base: u64, capacity: u64 },
    /// The segment takes no more; all its records, up to `end`, are on the disk.
    Seal { segment: u64, end: u64 },
    /// The segment does not belong to the store any more; its file may still be there. The log before `durable` was on the
    /// disk: what was moved out of the segment stands there.
    Remove { segment: u64, durable: u64 },
    /// The store was closed: the log ends at `end` in this segment, and all of it is on the disk.
    Close { segment: u64, end: u64 },
    /// The store was opened for writing after a [`Edit::Close`].
    Open,
    /// The keys of the log positions [from, to) are in this run; it takes the place of all runs within. Its file and name
    /// are on the disk; how long the file is, its footer says.
    AddRun { run: u64, from: u64, to: u64 },
    /// The run does not belong to the store any more; its file may still be there.
    RemoveRun { run: u64 },
    /// This directory checkpoint takes the place of the one before. It holds the directory as of `from`, or newer, and
    /// points at nothing from `end` on. Its file and name are on the disk, and so is the log before `end`.
    AddCheckpoint { number: u64, from: u64, end: u64 },
    /// There is no checkpoint any more; its file may still be there. Where there was none, it keeps the number from being used
    /// again.
    RemoveCheckpoint { number: u64 },
}

impl Edit {
    pub(crate) fn encode(&self, seed: Seed) -> [u8; EDIT_BYTES] {
        let (tag, fields): (u32, [u64; 3]) = match *self {
            Edit::Add { segment, base, capacity } => (1, [segment, base, capacity]),
            Edit::Seal { segment, end } => (2, [segment, end, 0]),
            Edit::Remove { segment, durable } => (3, [segment, durable, 0]),
            Edit::Close { segment, end } => (4, [segment, end, 0]),
            Edit::Open => (5, [0, 0, 0]),
            Edit::AddRun { run, from, to } => (6, [run, from, to]),
            Edit::RemoveRun { run } => (7, [run, 0, 0]),
            Edit::AddCheckpoint { number, from, end } => (8, [number, from, end]),
            Edit::RemoveCheckpoint { number } => (9, [number, 0, 0]),
        };
        let mut bytes = [0; EDIT_BYTES];
        bytes[4..8].copy_from_slice(&tag.to_le_bytes());
        for (i, field) in fields.iter().enumerate() {
            bytes[8 + 8 * i..16 + 8 * i].copy_from_slice(&field.to_le_bytes());
        }
        let checksum = seed.checksum(&bytes[4..]);
        bytes[..4].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// The edit in these bytes; `None` if they are not one that was written here.
    pub(crate) fn decode(bytes: &[u8], seed: Seed) -> Option<Edit> {
        let mut reader = Reader::new(bytes);
        let checksum = reader.u32()?;
        let tag = reader.u32()?;
        let (segment, second, third) = (reader.u64()?, reader.u64()?, reader.u64()?);
        if seed.checksum(bytes.get(4..EDIT_BYTES)?) != checksum && !seeded(Bug::EditUnchecked) {
            return None;
        }
        match (tag, second, third) {
            (1, base, capacity) => Some(Edit::Add { segment, base, capacity }),
            (2, end, 0) => Some(Edit::Seal { segment, end }),
            (3, durable, 0) => Some(Edit::Remove { segment, durable }),
            (4, end, 0) => Some(Edit::Close { segment, end }),
            (5, 0, 0) if segment == 0 => Some(Edit::Open),
            (6, from, to) if from < to => Some(Edit::AddRun { run: segment, from, to }),
            (7, 0, 0) => Some(Edit::RemoveRun { run: segment }),
            (8, from, end) if from <= end => Some(Edit::AddCheckpoint { number: segment, from, end }),
            (9, 0, 0) => Some(Edit::RemoveCheckpoint { number: segment }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_read_back_and_every_flipped_bit_is_seen() {
        let seed = Seed::new(1, 2);
        for edit in [
            Edit::Add { segment: 1, base: 2, capacity: 3 },
            Edit::Seal { segment: 1, end: 2 },
            Edit::Remove { segment: 1, durable: 2 },
            Edit::Close { segment: 1, end: 2 },
            Edit::Open,
            Edit::AddRun { run: 1, from: 2, to: 3 },
            Edit::RemoveRun { run: 1 },
            Edit::AddCheckpoint { number: 1, from: 2, end: 3 },
            Edit::RemoveCheckpoint { number: 1 },
        ] {
            let bytes = edit.encode(seed);
            assert_eq!(Edit::decode(&bytes, seed), Some(edit));
            for bit in 0..bytes.len() * 8 {
                let mut bad = bytes;
                bad[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(Edit::decode(&bad, seed), None, "bit {bit}");
            }
        }
    }
}
