//! One record: one write of one key, as it stands in a log segment. Bytes only: no I/O, no locks, any thread.
//! Flow: `commit` -> here -> `Region`; a place -> here -> `Value`; `log::replay` -> here -> `recovery`.
//!
//! | offset | bytes   | field                                                                  |
//! |      0 |       4 | checksum of all that follows, padding included; seed: salt, offset      |
//! |      4 |       1 | flags: bits 0-1 kind, then `EXPIRES`, `MOVED`, `MARK`, `MEMBER`         |
//! |      5 | varint  | bucket; in a batch header the number of members                         |
//! |        | varint  | key bytes; in a batch header the bytes of all members                   |
//! |        | varint  | value bytes (kind `Set` only)                                           |
//! |        | varint  | expiry, ms since 1970 (`EXPIRES`)                                       |
//! |        | varint  | version (`MOVED`: the record was copied by the cleaner and keeps it)    |
//! |        | 8       | durable mark (`MARK`): all below this log position was on disk before   |
//! |        |         | this record was written                                                 |
//! |        |         | key, value, zeros up to a multiple of 4                                 |
//!
//! A record without `MOVED` has its own log position as its version. A batch is a header and its members, each `MEMBER`
//! and each with a checksum of its own: it is valid iff the header and all members are. Kind 0 is no record, so
//! zeroed space ends a segment.

use std::io;

use crate::checksum::Seed;
use crate::codec::{Reader, VARINT_BYTES_MAX, put_varint, varint_bytes};
use crate::io::map::copy_out;
use crate::options::{BATCH_BYTES_MAX, KEY_BYTES_MAX, VALUE_BYTES_MAX};
use crate::seeded::{Bug, seeded};

/// Records start at multiples of this, so that a place needs fewer bits.
pub(crate) const ALIGN: u64 = 4;

const CHECKSUM_BYTES: usize = 4;
const MARK_BYTES: usize = 8;
/// Most bytes before the key.
pub(crate) const HEAD_BYTES_MAX: usize = CHECKSUM_BYTES + 1 + 5 * VARINT_BYTES_MAX + MARK_BYTES;
/// A record of so many bytes is put together before it is written, a longer one while it is.
const SHORT_BYTES_MAX: usize = 256;
/// Fewest bytes of a record that carries a durable mark.
pub(crate) const MARKED_BYTES_MIN: usize = CHECKSUM_BYTES + 3 + MARK_BYTES;

const KIND: u8 = 0b11;
const EXPIRES: u8 = 1 << 2;
const MOVED: u8 = 1 << 3;
const MARK: u8 = 1 << 4;
const MEMBER: u8 = 1 << 5;
const UNKNOWN: u8 = !(KIND | EXPIRES | MOVED | MARK | MEMBER);

/// What a record says of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// The key has this value.
    Set = 1,
    /// The key is gone: a tombstone.
    Delete = 2,
    /// Not a key: the next `count` records are one commit.
    Batch = 3,
}

/// What a record is written for: who may have the last space there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    Growth,
    /// The cleaner moves it; space comes back when all of a segment is moved.
    Cleaning,
    /// A delete.
    Freeing,
}

/// A record to be written, or as read: borrowed parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record<'a> {
    pub(crate) kind: Kind,
    /// Part of a batch.
    pub(crate) member: bool,
    /// Bucket id; the number of members for [`Kind::Batch`].
    pub(crate) bucket: u64,
    pub(crate) key: &'a [u8],
    pub(crate) value: &'a [u8],
    /// Milliseconds since 1970 from which on the key reads as absent.
    pub(crate) expires: Option<u64>,
    /// The version, where it is not the record's own position.
    pub(crate) moved: Option<u64>,
    /// The durable mark it carries.
    pub(crate) mark: Option<u64>,
    /// For [`Kind::Batch`]: bytes of all members.
    pub(crate) batch_bytes: u64,
}

/// What a record says before its key begins.
struct Head {
    kind: Kind,
    member: bool,
    bucket: u64,
    key_bytes: u64,
    value_bytes: u64,
    expires: Option<u64>,
    moved: Option<u64>,
    mark: Option<u64>,
    batch_bytes: u64,
    /// Of the record.
    bytes: u64,
}

/// Why bytes are not a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Defect {
    /// Zeros: nothing was ever written here.
    Blank,
    /// The lengths do not fit the space, or a field is not one we write.
    Malformed,
    /// The bytes are not those that were written.
    Checksum,
    /// The file ends before the record does.
    Cut,
    /// The system could not read them.
    Unreadable(io::ErrorKind),
}

impl From<io::Error> for Defect {
    fn from(e: io::Error) -> Defect {
        match e.kind() {
            io::ErrorKind::UnexpectedEof => Defect::Cut,
            // Asked for more than was published: where there is no record.
            io::ErrorKind::InvalidInput => Defect::Malformed,
            kind => Defect::Unreadable(kind),
        }
    }
}

impl<'a> Record<'a> {
    pub(crate) fn set(bucket: u64, key: &'a [u8], value: &'a [u8]) -> Self {
        Record { kind: Kind::Set, value, ..Record::delete(bucket, key) }
    }

    pub(crate) fn delete(bucket: u64, key: &'a [u8]) -> Self {
        Record {
            kind: Kind::Delete,
            member: false,
            bucket,
            key,
            value: &[],
            expires: None,
            moved: None,
            mark: None,
            batch_bytes: 0,
        }
    }

    pub(crate) fn batch(members: u64, bytes: u64) -> Self {
        Record { kind: Kind::Batch, batch_bytes: bytes, ..Record::delete(members, &[]) }
    }

    /// What it is written for.
    #[inline]
    pub(crate) fn purpose(&self) -> Purpose {
        match self.kind {
            _ if self.moved.is_some() => Purpose::Cleaning,
            Kind::Delete => Purpose::Freeing,
            _ => Purpose::Growth,
        }
    }

    /// Bytes before the key.
    #[inline]
    fn head_bytes(&self) -> usize {
        let mut n = CHECKSUM_BYTES + 1 + varint_bytes(self.bucket) + varint_bytes(self.key_field());
        if self.kind == Kind::Set {
            n += varint_bytes(self.value.len() as u64);
        }
        n += self.expires.map_or(0, varint_bytes) + self.moved.map_or(0, varint_bytes);
        n + if self.mark.is_some() { MARK_BYTES } else { 0 }
    }

    /// Where the key begins in the record; the value follows it.
    #[inline]
    pub(crate) fn key_offset(&self) -> u64 {
        self.head_bytes() as u64
    }

    fn key_field(&self) -> u64 {
        if self.kind == Kind::Batch { self.batch_bytes } else { self.key.len() as u64 }
    }

    /// Bytes in the log, a multiple of [`ALIGN`].
    #[inline]
    pub(crate) fn bytes(&self) -> u64 {
        ((self.head_bytes() + self.key.len() + self.value.len()) as u64).next_multiple_of(ALIGN)
    }

    /// The record as it will stand in the log, but for its place: everything that takes time, so that writing it there
    /// does not.
    #[inline]
    pub(crate) fn prepare(&self) -> Prepared<'a> {
        let mut flags = self.kind as u8;
        for (flag, on) in [
            (EXPIRES, self.expires.is_some()),
            (MOVED, self.moved.is_some()),
            (MARK, self.mark.is_some()),
            (MEMBER, self.member),
        ] {
            if on {
                flags |= flag;
            }
        }
        let mut head = [0; SHORT_BYTES_MAX];
        head[CHECKSUM_BYTES] = flags;
        let mut at = CHECKSUM_BYTES + 1;
        at += put_varint(&mut head[at..], self.bucket);
        at += put_varint(&mut head[at..], self.key_field());
        if self.kind == Kind::Set {
            at += put_varint(&mut head[at..], self.value.len() as u64);
        }
        for number in [self.expires, self.moved].into_iter().flatten() {
            at += put_varint(&mut head[at..], number);
        }
        if let Some(mark) = self.mark {
            head[at..at + MARK_BYTES].copy_from_slice(&mark.to_le_bytes());
            at += MARK_BYTES;
        }
        let unpadded = at + self.key.len() + self.value.len();
        let bytes = (unpadded as u64).next_multiple_of(ALIGN);
        if bytes <= SHORT_BYTES_MAX as u64 {
            // In one piece: the fast way of the checksum begins at 128 bytes, and one copy is made later.
            head[at..at + self.key.len()].copy_from_slice(self.key);
            head[at + self.key.len()..unpadded].copy_from_slice(self.value);
            let crc = crc32fast::hash(&head[CHECKSUM_BYTES..bytes as usize]);
            return Prepared { head, head_bytes: bytes as usize, key: &[], value: &[], bytes, crc };
        }
        let mut crc = crc32fast::Hasher::new();
        crc.update(&head[CHECKSUM_BYTES..at]);
        crc.update(self.key);
        crc.update(self.value);
        crc.update(&[0; ALIGN as usize][..bytes as usize - unpadded]);
        Prepared { head, head_bytes: at, key: self.key, value: self.value, bytes, crc: crc.finalize() }
    }

    #[cfg(any(test, feature = "testing"))]
    /// Writes the record into `into`, which has [`Record::bytes`] bytes, all zero before.
    pub(crate) fn encode(&self, into: &mut [u8], seed: Seed) {
        self.prepare().write(into, seed);
    }

    /// The record at the front of `bytes` and the bytes it takes; structure only, the checksum is not looked at.
    #[inline]
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<(Record<'a>, u64), Defect> {
        match Self::parse_plain(bytes) {
            Some(plain) => Ok(plain),
            None => Self::parse_any(bytes),
        }
    }

    /// A record as most are, a set and nothing besides, whose numbers take a byte each and the value's length two at most. `None`
    /// for every other, and for what is no record: a third of the instructions of [`Record::parse_any`], and every read takes them.
    #[inline]
    pub(crate) fn parse_plain(bytes: &'a [u8]) -> Option<(Record<'a>, u64)> {
        const PLAIN: u8 = Kind::Set as u8;
        const LAST: u8 = 0x80;
        let &[_, _, _, _, PLAIN, bucket, key_bytes, low, high, ..] = bytes else { return None };
        let (head, value_bytes) = match (low < LAST, high) {
            (true, _) => (8, usize::from(low)),
            (false, 1..LAST) => (9, usize::from(low & !LAST) | usize::from(high) << 7),
            _ => return None,
        };
        if bucket | key_bytes >= LAST {
            return None;
        }
        let value_at = head + usize::from(key_bytes);
        let end = value_at + value_bytes;
        let len = end.next_multiple_of(ALIGN as usize);
        if len > bytes.len() {
            return None;
        }
        let (key, value) = (bytes.get(head..value_at)?, bytes.get(value_at..end)?);
        Some((Record::set(u64::from(bucket), key, value), len as u64))
    }

    #[inline(never)]
    fn parse_any(bytes: &'a [u8]) -> Result<(Record<'a>, u64), Defect> {
        let mut reader = Reader::new(bytes);
        match (reader.u32(), reader.u8()) {
            (Some(0), Some(0)) => Err(Defect::Blank),
            (Some(_), Some(flags)) => Self::parse_body(reader, flags).ok_or(Defect::Malformed),
            _ if bytes.iter().all(|b| *b == 0) => Err(Defect::Blank),
            _ => Err(Defect::Malformed),
        }
    }

    /// Bytes of the record that begins with `head`: [`HEAD_BYTES_MAX`] bytes, or all there are.
    pub(crate) fn span(head: &[u8]) -> Result<u64, Defect> {
        let mut reader = Reader::new(head);
        let flags = match (reader.u32(), reader.u8()) {
            (Some(0), Some(0)) => return Err(Defect::Blank),
            (Some(_), Some(flags)) => flags,
            _ => return Err(Defect::Malformed),
        };
        Self::parse_head(&mut reader, flags).map(|head| head.bytes).ok_or(Defect::Malformed)
    }

    #[inline]
    fn parse_body(mut reader: Reader<'a>, flags: u8) -> Option<(Record<'a>, u64)> {
        let Head { kind, member, bucket, key_bytes, value_bytes, expires, moved, mark, batch_bytes, bytes } =
            Self::parse_head(&mut reader, flags)?;
        let key = reader.take(key_bytes as usize)?;
        let value = reader.take(value_bytes as usize)?;
        reader.take(bytes as usize - reader.at())?;
        Some((Record { kind, member, bucket, key, value, expires, moved, mark, batch_bytes }, bytes))
    }

    /// All before the key.
    #[inline]
    fn parse_head(reader: &mut Reader<'_>, flags: u8) -> Option<Head> {
        let kind = match flags & KIND {
            1 => Kind::Set,
            2 => Kind::Delete,
            3 => Kind::Batch,
            _ => return None,
        };
        if flags & UNKNOWN != 0 {
            return None;
        }
        let bucket = reader.varint()?;
        let key_field = reader.varint()?;
        let value_bytes = if kind == Kind::Set { reader.varint()? } else { 0 };
        let expires = if flags & EXPIRES != 0 { Some(reader.varint()?) } else { None };
        let moved = if flags & MOVED != 0 { Some(reader.varint()?) } else { None };
        let mark = if flags & MARK != 0 { Some(reader.u64()?) } else { None };
        let (key_bytes, batch_bytes) = if kind == Kind::Batch { (0, key_field) } else { (key_field, 0) };
        if key_bytes > KEY_BYTES_MAX as u64
            || value_bytes > VALUE_BYTES_MAX as u64
            || batch_bytes > 4 * BATCH_BYTES_MAX as u64
            // A version is where the record was written first.
            || moved.is_some_and(|version| !version.is_multiple_of(ALIGN))
        {
            return None;
        }
        let bytes = (reader.at() as u64 + key_bytes + value_bytes).next_multiple_of(ALIGN);
        let member = flags & MEMBER != 0;
        Some(Head { kind, member, bucket, key_bytes, value_bytes, expires, moved, mark, batch_bytes, bytes })
    }

    /// As [`Record::parse`], and the bytes are those that were written here.
    pub(crate) fn verify(bytes: &'a [u8], seed: Seed) -> Result<(Record<'a>, u64), Defect> {
        let (record, len) = Record::parse(bytes)?;
        let stored = Reader::new(bytes).u32().ok_or(Defect::Malformed)?;
        if seed.checksum(&bytes[CHECKSUM_BYTES..len as usize]) != stored && !seeded(Bug::RecordUnchecked) {
            return Err(Defect::Checksum);
        }
        Ok((record, len))
    }
}

/// A record ready to be written anywhere.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Prepared<'a> {
    /// All before the key, the checksum left out; of a short record all there is, and then key and value are not looked at.
    head: [u8; SHORT_BYTES_MAX],
    head_bytes: usize,
    key: &'a [u8],
    value: &'a [u8],
    bytes: u64,
    crc: u32,
}

impl Prepared<'_> {
    /// Bytes in the log.
    #[inline]
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Copies the record to the place that `seed` is made for: [`Prepared::bytes`] bytes, all zero before.
    #[inline]
    pub(crate) fn write(&self, into: &mut [u8], seed: Seed) {
        let (head, rest) = into.split_at_mut(self.head_bytes);
        head.copy_from_slice(&self.head[..self.head_bytes]);
        head[..CHECKSUM_BYTES].copy_from_slice(&seed.place(self.crc).to_le_bytes());
        let (key, rest) = rest.split_at_mut(self.key.len());
        key.copy_from_slice(self.key);
        copy_out(self.value, &mut rest[..self.value.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encode(record: &Record<'_>) -> Vec<u8> {
        let mut bytes = vec![0; record.bytes() as usize];
        record.encode(&mut bytes, Seed::new(1, 2));
        bytes
    }

    fn samples() -> Vec<Record<'static>> {
        let set = Record::set(3, b"key", b"value");
        vec![
            set,
            Record::set(0, b"", b""),
            Record::delete(u64::MAX, b"gone"),
            Record::batch(100, 13_200),
            Record::set(7, b"short", &[5; SHORT_BYTES_MAX - 14]),
            Record::set(7, b"long!", &[6; SHORT_BYTES_MAX - 13]),
            Record { expires: Some(1_700_000_000_000), ..set },
            Record { moved: Some(1 << 40), mark: Some(u64::MAX), member: true, ..set },
        ]
    }

    #[test]
    fn a_short_record_ends_where_it_is_said_to() {
        let short = Record::set(7, b"short", &[5; SHORT_BYTES_MAX - 14]);
        assert_eq!((short.bytes(), short.prepare().head_bytes), (SHORT_BYTES_MAX as u64, SHORT_BYTES_MAX));
        let long = Record::set(7, b"long!", &[6; SHORT_BYTES_MAX - 13]);
        assert!(long.bytes() > SHORT_BYTES_MAX as u64 && long.prepare().head_bytes < HEAD_BYTES_MAX);
    }

    #[test]
    fn a_record_reads_back_as_written() {
        for record in samples() {
            let bytes = encode(&record);
            assert_eq!(bytes.len() as u64 % ALIGN, 0);
            assert_eq!(Record::verify(&bytes, Seed::new(1, 2)), Ok((record, bytes.len() as u64)));
            assert_eq!(Record::span(&bytes[..bytes.len().min(HEAD_BYTES_MAX)]), Ok(bytes.len() as u64));
        }
    }

    #[test]
    fn a_version_at_which_no_record_can_stand_is_malformed() {
        let moved = |version| encode(&Record { moved: Some(version), ..Record::set(7, b"key", b"value") });
        assert!(Record::verify(&moved(8 * ALIGN), Seed::new(1, 2)).is_ok());
        for wrong in 1..ALIGN {
            assert_eq!(Record::verify(&moved(8 * ALIGN + wrong), Seed::new(1, 2)), Err(Defect::Malformed));
        }
    }

    #[test]
    fn a_plain_record_reads_as_any_does() {
        let (key, value) = (vec![b'k'; 200], vec![b'v'; 20_000]);
        for bucket in [0, 1, 127, 128, u64::MAX] {
            for key_bytes in [0, 1, 21, 127, 128, 200] {
                for value_bytes in [0, 1, 2, 3, 100, 127, 128, 255, 16_383, 16_384, 20_000] {
                    let bytes = encode(&Record::set(bucket, &key[..key_bytes], &value[..value_bytes]));
                    for len in [bytes.len(), bytes.len() - 1, bytes.len() - 4, 9.min(bytes.len()), 8, 7, 5, 4] {
                        let any = Record::parse_any(&bytes[..len]);
                        assert_eq!(Record::parse(&bytes[..len]), any);
                        let small = bucket < 128 && key_bytes < 128 && value_bytes < 16_384;
                        let is_plain = small && len == bytes.len() && len > 8;
                        let expected = if is_plain { Some(any.unwrap()) } else { None };
                        assert_eq!(Record::parse_plain(&bytes[..len]), expected);
                    }
                }
            }
        }
        for record in samples() {
            let mut bytes = encode(&record);
            bytes.extend_from_slice(&[0; 16]);
            for at in CHECKSUM_BYTES..bytes.len() {
                let written = bytes[at];
                for byte in 0..=u8::MAX {
                    bytes[at] = byte;
                    assert_eq!(Record::parse(&bytes), Record::parse_any(&bytes), "{byte} at {at} of {record:?}");
                }
                bytes[at] = written;
            }
        }
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_seen() {
        for record in samples() {
            let bytes = encode(&record);
            for bit in 0..bytes.len() * 8 {
                let mut bad = bytes.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                assert!(Record::verify(&bad, Seed::new(1, 2)).is_err(), "bit {bit} of {record:?}");
            }
            for len in 0..bytes.len() {
                assert!(Record::verify(&bytes[..len], Seed::new(1, 2)).is_err());
            }
        }
    }

    #[test]
    fn a_set_of_100_bytes_costs_at_most_12_bytes_more() {
        assert!(Record::set(1, &[b'k'; 21], &[b'v'; 100]).bytes() <= 121 + 12);
    }

    #[test]
    fn the_bytes_are_the_documented_ones() {
        let bytes = encode(&Record::set(3, b"key", b"value"));
        assert_eq!(bytes.len(), 16);
        assert_eq!(&bytes[4..], b"\x01\x03\x03\x05keyvalue");
        assert_eq!(bytes[..4], 0xdc3c_27d0u32.to_le_bytes());
    }
}
