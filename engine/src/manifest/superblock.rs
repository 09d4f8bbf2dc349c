//! The superblock: who this store is, what its format needs, and which manifest is the present one.
//!
//! File `KVASI`, two slots of 4,096 bytes. A slot is written in place, the other one stays valid meanwhile; the valid
//! slot with the higher generation counts. The commit point of a change is never a rename.
//!
//! | offset | bytes | field of a slot                                                              |
//! |      0 |     8 | magic `kvasi-kv`                                                             |
//! |      8 |     4 | format version                                                               |
//! |     12 |     4 | zero                                                                         |
//! |     16 |     8 | features that may be ignored (compat)                                        |
//! |     24 |     8 | features that a reader may ignore, but not a writer (ro-compat)              |
//! |     32 |     8 | features that must be known (incompat)                                       |
//! |     40 |     8 | store id: random, seeds the checksums of headers                             |
//! |     48 |     8 | hash seed: random, so that guests cannot choose collisions                   |
//! |     56 |     8 | generation                                                                   |
//! |     64 |     8 | number of the manifest file                                                  |
//! |     72 |     4 | checksum of bytes 0..72                                                      |
//! |     76 |       | zeros                                                                        |

use std::io as std_io;

use crate::checksum::Seed;
use crate::codec::Reader;
use crate::error::{Error, ErrorKind, Result};
use crate::io::{self, Disk, File};
use crate::seeded::{Bug, seeded};

/// The file's name.
pub(crate) const FILE: &str = "KVASI";
/// Bytes of a slot: no disk tears a write across two of them.
pub(crate) const SLOT_BYTES: u64 = 4096;
/// The format this build reads and writes.
pub(crate) const FORMAT: u32 = 1;
const MAGIC: &[u8; 8] = b"kvasi-kv";
const BODY_BYTES: usize = 72;
const BLANK: [u8; SLOT_BYTES as usize] = [0; SLOT_BYTES as usize];
const KNOWN_INCOMPAT: u64 = 0;
const KNOWN_RO_COMPAT: u64 = 0;

/// What a slot says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Superblock {
    pub(crate) compat: u64,
    pub(crate) ro_compat: u64,
    pub(crate) incompat: u64,
    pub(crate) store: u64,
    pub(crate) hash_seed: u64,
    pub(crate) generation: u64,
    pub(crate) manifest: u64,
}

/// Why a slot cannot be used.
#[derive(Debug, PartialEq, Eq)]
enum Bad {
    /// Not a slot: blank, torn or rotten.
    Invalid,
    /// A valid slot of another format.
    Format(u32),
}

impl Superblock {
    fn encode(&self) -> Vec<u8> {
        let mut slot = vec![0; SLOT_BYTES as usize];
        slot[..8].copy_from_slice(MAGIC);
        slot[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        let fields =
            [self.compat, self.ro_compat, self.incompat, self.store, self.hash_seed, self.generation, self.manifest];
        for (i, field) in fields.iter().enumerate() {
            slot[16 + 8 * i..24 + 8 * i].copy_from_slice(&field.to_le_bytes());
        }
        let checksum = Seed::new(0, 0).checksum(&slot[..BODY_BYTES]);
        slot[BODY_BYTES..BODY_BYTES + 4].copy_from_slice(&checksum.to_le_bytes());
        slot
    }

    fn decode(slot: &[u8]) -> Result<Superblock, Bad> {
        let parse = || {
            let mut reader = Reader::new(slot);
            let magic = reader.take(8)?;
            let format = reader.u32()?;
            reader.u32()?;
            let superblock = Superblock {
                compat: reader.u64()?,
                ro_compat: reader.u64()?,
                incompat: reader.u64()?,
                store: reader.u64()?,
                hash_seed: reader.u64()?,
                generation: reader.u64()?,
                manifest: reader.u64()?,
            };
            let checks =
                reader.u32()? == Seed::new(0, 0).checksum(&slot[..BODY_BYTES]) || seeded(Bug::SuperblockUnchecked);
            let rest_is_zero = slot[BODY_BYTES + 4..] == BLANK[BODY_BYTES + 4..];
            (magic == MAGIC && checks && rest_is_zero).then_some((format, superblock))
        };
        match parse() {
            None => Err(Bad::Invalid),
            Some((FORMAT, superblock)) => Ok(superblock),
            Some((format, _)) => Err(Bad::Format(format)),
        }
    }

    /// Writes the superblock of a new store: both slots, then the names.
    pub(crate) fn create(&self, disk: &dyn Disk) -> Result<()> {
        let failed = |e| Error::io(format_args!("cannot make {FILE} in {}", disk.location()), e);
        let file = match disk.open(FILE) {
            Ok(file) => file, // left blank by a crash while the store was made
            Err(_) => disk.create(FILE).map_err(failed)?,
        };
        let slots = [self.encode(), self.encode()].concat();
        io::write_full(&*file, 0, &slots).map_err(failed)?;
        file.sync().map_err(failed)?;
        disk.sync_dir().map_err(failed)
    }

    /// Makes this the present superblock, by writing the slot that is not.
    ///
    /// First the one that is, `self` being made from it, is written again: after a sync that failed it may stand in the
    /// system's cache alone, and then the slot to be written now is the one that counts on the disk.
    pub(crate) fn write(&self, disk: &dyn Disk) -> Result<()> {
        let failed = |e| Error::io(format_args!("cannot write {FILE}"), e);
        let file = disk.open(FILE).map_err(failed)?;
        let (slots, _) = Superblock::slots(disk).map_err(failed)?;
        let generation = |slot: usize| slots[slot].map_or(0, |slot| slot.generation);
        let present = usize::from(generation(1) > generation(0));
        if let Some(superblock) = slots[present] {
            io::write_full(&*file, present as u64 * SLOT_BYTES, &superblock.encode()).map_err(failed)?;
            file.sync().map_err(failed)?;
        }
        let slot = if seeded(Bug::SameSuperblockSlot) { present as u64 } else { 1 - present as u64 };
        io::write_full(&*file, slot * SLOT_BYTES, &self.encode()).map_err(failed)?;
        file.sync().map_err(failed)
    }

    /// The present superblock of the store on `disk`; `None` if no store was ever completed there.
    pub(crate) fn read(disk: &dyn Disk) -> Result<Option<Superblock>> {
        let file = match disk.open(FILE) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io(format_args!("cannot open {FILE} in {}", disk.location()), e)),
        };
        let bytes = read_slots(&*file)?;
        let mut slots: Vec<_> = bytes.chunks(SLOT_BYTES as usize).map(Superblock::decode).collect();
        slots.sort_by_key(|slot| slot.as_ref().map_or(0, |s| s.generation));
        if let Some(Bad::Format(found)) = slots.iter().find_map(|s| s.as_ref().err().filter(|b| **b != Bad::Invalid)) {
            let message = format!(
                "{} has format {found}, this build reads format {FORMAT}: use a newer kvasi; nothing was changed",
                disk.location()
            );
            return Err(Error::new(ErrorKind::Format, message));
        }
        match slots.pop() {
            Some(Ok(superblock)) => superblock.check_features(disk).map(Some),
            // A store is complete only once both slots are on the disk.
            _ if was_never_completed(disk)? => Ok(None),
            _ => Err(Error::corrupt(FILE, 0, "neither slot is a superblock; restore from a backup")),
        }
    }

    /// What each of the two slots says, `None` where that is no superblock; and the length of the file.
    pub(crate) fn slots(disk: &dyn Disk) -> std_io::Result<([Option<Superblock>; 2], u64)> {
        let file = disk.open(FILE)?;
        let mut bytes = vec![0; 2 * SLOT_BYTES as usize];
        let read = io::read_full(&*file, 0, &mut bytes)?;
        Ok((Superblock::slots_in(&bytes[..read]), file.len()?))
    }

    /// What each of the two slots in these bytes says.
    pub(crate) fn slots_in(bytes: &[u8]) -> [Option<Superblock>; 2] {
        let slot = |i: usize| {
            let at = i * SLOT_BYTES as usize;
            bytes.get(at..at + SLOT_BYTES as usize).and_then(|slot| Superblock::decode(slot).ok())
        };
        [slot(0), slot(1)]
    }

    fn check_features(self, disk: &dyn Disk) -> Result<Superblock> {
        let unknown =
            self.incompat & !KNOWN_INCOMPAT | if disk.read_only() { 0 } else { self.ro_compat & !KNOWN_RO_COMPAT };
        if unknown != 0 {
            let message = format!(
                "{} uses features that this build does not know (bits {unknown:#x}): use a newer kvasi; nothing was changed",
                disk.location()
            );
            return Err(Error::new(ErrorKind::Format, message));
        }
        Ok(self)
    }
}

/// Whether the directory is that of a creation cut short: nothing in it but the superblock has any bytes yet.
fn was_never_completed(disk: &dyn Disk) -> Result<bool> {
    let failed = |e| Error::io(format_args!("cannot list {}", disk.location()), e);
    for name in disk.list().map_err(failed)? {
        if name != FILE && disk.open(&name).and_then(|file| file.len()).map_err(failed)? > 0 {
            return Ok(false);
        }
    }
    Ok(true)
}

fn read_slots(file: &dyn File) -> Result<Vec<u8>> {
    let mut bytes = vec![0; 2 * SLOT_BYTES as usize];
    let read = io::read_full(file, 0, &mut bytes).map_err(|e| Error::io(format_args!("cannot read {FILE}"), e))?;
    bytes.truncate(read);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::memory::MemoryDisk;

    const SAMPLE: Superblock =
        Superblock { compat: 0, ro_compat: 0, incompat: 0, store: 1, hash_seed: 2, generation: 3, manifest: 4 };

    fn patch(disk: &MemoryDisk, slot: u64, bytes: &[u8]) {
        io::write_full(&*disk.open(FILE).unwrap(), slot * SLOT_BYTES, bytes).unwrap();
    }

    #[test]
    fn the_newer_valid_slot_counts() {
        let disk = MemoryDisk::default();
        assert_eq!(Superblock::read(&disk).unwrap(), None);
        SAMPLE.create(&disk).unwrap();
        io::write_full(&*disk.create("MANIFEST-0000000000000004").unwrap(), 0, b"edits").unwrap();
        let newer = Superblock { generation: 4, manifest: 9, ..SAMPLE };
        newer.write(&disk).unwrap();
        assert_eq!(Superblock::read(&disk).unwrap(), Some(newer));
        patch(&disk, 1, b"torn");
        assert_eq!(Superblock::read(&disk).unwrap(), Some(SAMPLE), "the other slot still stands");
        patch(&disk, 0, b"torn");
        assert_eq!(Superblock::read(&disk).unwrap_err().kind(), ErrorKind::Corrupt);
    }

    #[test]
    fn a_newer_format_and_unknown_features_are_refused() {
        let disk = MemoryDisk::default();
        SAMPLE.create(&disk).unwrap();
        let mut slot = SAMPLE.encode();
        slot[8] = 2;
        let checksum = Seed::new(0, 0).checksum(&slot[..BODY_BYTES]);
        slot[BODY_BYTES..BODY_BYTES + 4].copy_from_slice(&checksum.to_le_bytes());
        patch(&disk, 1, &slot);
        assert_eq!(Superblock::read(&disk).unwrap_err().kind(), ErrorKind::Format);

        let disk = MemoryDisk::default();
        Superblock { incompat: 4, ..SAMPLE }.create(&disk).unwrap();
        assert_eq!(Superblock::read(&disk).unwrap_err().kind(), ErrorKind::Format);
        let disk = MemoryDisk::default();
        Superblock { compat: 4, ..SAMPLE }.create(&disk).unwrap();
        assert!(Superblock::read(&disk).unwrap().is_some(), "compat bits may be ignored");
    }

    #[test]
    fn every_flipped_bit_is_seen() {
        let slot = SAMPLE.encode();
        assert_eq!(Superblock::decode(&slot), Ok(SAMPLE));
        for bit in 0..slot.len() * 8 {
            let mut bad = slot.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Superblock::decode(&bad), Err(Bad::Invalid), "bit {bit}");
        }
    }
}
