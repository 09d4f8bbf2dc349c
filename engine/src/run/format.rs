//! The bytes of a key run: sorted keys, front-coded in blocks, each with what became of the key. No I/O, no locks.
//! Flow: `writer` -> here -> a file; a mapping -> here -> `cursor`.
//!
//! A run is a header, blocks, an index and a footer.
//!
//! | offset | bytes | field of the header                                                    |
//! |      0 |     8 | magic `kvasirun`                                                       |
//! |      8 |     4 | format version                                                         |
//! |     12 |     4 | zero                                                                   |
//! |     16 |     8 | run number; the file is named after it                                 |
//! |     24 |     8 | from: the run covers the log positions from here ...                   |
//! |     32 |     8 | to: ... to here, exclusive                                             |
//! |     40 |     8 | salt: random, seeds every other checksum in the file                   |
//! |     48 |     4 | checksum of bytes 0..48, seeded by the store's id                      |
//!
//! | offset | bytes | field of a block: keys of one bucket, at most 8 KiB unless it is one    |
//! |      0 |     4 | checksum of the rest of the block; seed: salt, offset in the file       |
//! |      4 |     8 | bucket                                                                  |
//! |     12 |     2 | number of entries                                                       |
//! |     14 |  2 n  | restarts: where entries 0, 64, 128, ... begin in the block              |
//! |        |       | entries                                                                 |
//!
//! | bytes | field of an entry                                                                 |
//! |     1 | shared: bytes of the key before that this one begins with; 0 at a restart         |
//! |     1 | rest: bytes of the key after those; 255 means that the next field is there        |
//! |     2 | rest, where it does not fit a byte                                                |
//! |     w | stamp: version + what the record says: 0 set, 1 set with an expiry, 2 deleted      |
//! |  rest | the end of the key                                                                |
//! | varint| expiry, ms since 1970, where there is one                                         |
//!
//! Versions are multiples of 4, so a stamp says both; of two entries of one key the one with the higher stamp counts. A
//! stamp is smaller than `to`, and takes the `w` bytes that `to` needs.
//!
//! | bytes | field of the index: one entry a block, and one more that holds the last key of the run; none in an empty run |
//! |     8 | offset of the block; in the last entry, of the index                              |
//! |     4 | bytes of the block; in the last entry 0                                           |
//! |     8 | bucket                                                                            |
//! |     2 | bytes of the key                                                                  |
//! |       | what the block begins with: after all keys of the blocks before, not after its own; in the first of a bucket its first key |
//! | 8 (n + 1) | behind all entries: where each of them begins in the index                    |
//!
//! | offset | bytes | field of the footer, the last 48 bytes                                 |
//! |      0 |     8 | entries                                                                |
//! |      8 |     8 | of them, tombstones                                                    |
//! |     16 |     8 | blocks                                                                 |
//! |     24 |     8 | offset of the index                                                    |
//! |     32 |     8 | bytes of the file                                                      |
//! |     40 |     4 | checksum of the index, seeded by salt and offset                       |
//! |     44 |     4 | checksum of bytes 0..44, seeded by salt and offset                     |
//!
//! Source: front coding with restarts after LevelDB's table format.

use crate::checksum::Seed;
use crate::codec::{Reader, hex16, name16};

pub(crate) const HEADER_BYTES: usize = 52;
pub(crate) const FOOTER_BYTES: usize = 48;
/// Bytes of a block before its restarts.
pub(crate) const BLOCK_HEADER_BYTES: usize = 14;
/// Largest block of more than one entry.
pub(crate) const BLOCK_BYTES_MAX: usize = 8 << 10;
/// Entries from one restart to the next: a seek decodes half of them on average.
pub(crate) const RESTART_ENTRIES: usize = 64;
/// Most bytes of the key before that an entry refers to.
pub(crate) const SHARED_MAX: usize = 255;
/// In the place of `rest`: two bytes of it follow.
pub(crate) const REST_IS_LONG: u8 = 255;
/// Bytes of an index entry without its key.
pub(crate) const INDEX_ENTRY_BYTES: usize = 22;
const MAGIC: &[u8; 8] = b"kvasirun";
const FORMAT: u32 = 1;

/// Low bits of a stamp: what the record says of its key.
pub(crate) const KIND: u64 = 0b11;
pub(crate) const SET: u64 = 0;
pub(crate) const SET_WITH_EXPIRY: u64 = 1;
pub(crate) const DELETED: u64 = 2;

/// What a run says of one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry<'a> {
    pub(crate) bucket: u64,
    pub(crate) key: &'a [u8],
    /// Version and kind.
    pub(crate) stamp: u64,
    /// Milliseconds since 1970; 0 unless the kind is [`SET_WITH_EXPIRY`].
    pub(crate) expires: u64,
}

/// The stamp of a record.
pub(crate) fn stamp(version: u64, deleted: bool, expires: Option<u64>) -> u64 {
    debug_assert!(version & KIND == 0, "records start at multiples of 4, and so do versions");
    let kind = match (deleted, expires) {
        (true, _) => DELETED,
        (false, Some(_)) => SET_WITH_EXPIRY,
        (false, None) => SET,
    };
    version & !KIND | kind
}

/// Bytes of a stamp in a run that ends at log position `to`.
pub(crate) fn stamp_bytes(to: u64) -> usize {
    (64 - (to | 1).leading_zeros() as usize).div_ceil(8)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) number: u64,
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) salt: u64,
}

impl Header {
    pub(crate) fn encode(&self, store: u64) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        for (i, field) in [self.number, self.from, self.to, self.salt].iter().enumerate() {
            bytes[16 + 8 * i..24 + 8 * i].copy_from_slice(&field.to_le_bytes());
        }
        let checksum = Seed::new(store, 0).checksum(&bytes[..48]);
        bytes[48..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// The header, if these bytes are one written for this store.
    pub(crate) fn decode(bytes: &[u8], store: u64) -> Option<Header> {
        let mut reader = Reader::new(bytes);
        if reader.take(8)? != MAGIC || reader.u32()? != FORMAT || reader.u32()? != 0 {
            return None;
        }
        let header = Header { number: reader.u64()?, from: reader.u64()?, to: reader.u64()?, salt: reader.u64()? };
        (reader.u32()? == Seed::new(store, 0).checksum(bytes.get(..48)?)).then_some(header)
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Footer {
    pub(crate) entries: u64,
    pub(crate) tombstones: u64,
    pub(crate) blocks: u64,
    pub(crate) index: u64,
    pub(crate) bytes: u64,
    pub(crate) index_checksum: u32,
}

impl Footer {
    pub(crate) fn encode(&self, salt: u64) -> [u8; FOOTER_BYTES] {
        let mut bytes = [0; FOOTER_BYTES];
        let fields = [self.entries, self.tombstones, self.blocks, self.index, self.bytes];
        for (i, field) in fields.iter().enumerate() {
            bytes[8 * i..8 * i + 8].copy_from_slice(&field.to_le_bytes());
        }
        bytes[40..44].copy_from_slice(&self.index_checksum.to_le_bytes());
        let checksum = Seed::new(salt, self.bytes - FOOTER_BYTES as u64).checksum(&bytes[..44]);
        bytes[44..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// The footer in the last bytes of a run file of so many bytes.
    pub(crate) fn decode(last: &[u8], file_bytes: u64, salt: u64) -> Option<Footer> {
        let at = file_bytes.checked_sub(FOOTER_BYTES as u64).filter(|at| *at >= HEADER_BYTES as u64)?;
        let mut reader = Reader::new(last);
        let footer = Footer {
            entries: reader.u64()?,
            tombstones: reader.u64()?,
            blocks: reader.u64()?,
            index: reader.u64()?,
            bytes: reader.u64()?,
            index_checksum: reader.u32()?,
        };
        let checks = reader.u32()? == Seed::new(salt, at).checksum(last.get(..44)?);
        (checks && footer.bytes == file_bytes).then_some(footer)
    }
}

/// A block that an index entry names.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Indexed<'a> {
    pub(crate) offset: u64,
    pub(crate) bytes: u32,
    pub(crate) bucket: u64,
    pub(crate) key: &'a [u8],
}

/// Entry `i` of an index of `blocks` blocks; `blocks` itself is the one with the last key.
pub(crate) fn indexed(index: &[u8], blocks: usize, i: usize) -> Option<Indexed<'_>> {
    let table = index.len().checked_sub(blocks.checked_add(1)?.checked_mul(8)?)?;
    let at = Reader::new(index.get(table.checked_add(i.checked_mul(8)?)?..)?).u64()?;
    let mut reader = Reader::new(index.get(usize::try_from(at).ok()?..table)?);
    let (offset, bytes, bucket) = (reader.u64()?, reader.u32()?, reader.u64()?);
    let key_bytes = u16::from_le_bytes(reader.take(2)?.try_into().ok()?);
    Some(Indexed { offset, bytes, bucket, key: reader.take(key_bytes.into())? })
}

/// Adds an index entry to `index`.
pub(crate) fn put_indexed(index: &mut Vec<u8>, entry: &Indexed<'_>) {
    index.extend_from_slice(&entry.offset.to_le_bytes());
    index.extend_from_slice(&entry.bytes.to_le_bytes());
    index.extend_from_slice(&entry.bucket.to_le_bytes());
    index.extend_from_slice(&(entry.key.len() as u16).to_le_bytes());
    index.extend_from_slice(entry.key);
}

/// The file name of run `number`.
pub(crate) fn file_name(number: u64) -> String {
    name16("", number, ".run")
}

/// The number in a run's file name.
pub(crate) fn number_of(name: &str) -> Option<u64> {
    hex16(name.strip_suffix(".run")?)
}
