//! One log segment: a file of records, its mapping, and what of it is still live.
//!
//! | offset | bytes | field of the header                                                    |
//! |      0 |     8 | magic `kvasilog`                                                       |
//! |      8 |     4 | format version                                                         |
//! |     12 |     4 | zero                                                                   |
//! |     16 |     8 | segment number; the file is named after it                             |
//! |     24 |     8 | base: the log position of the first byte of this file                  |
//! |     32 |     8 | salt: random, seeds every checksum in the file                         |
//! |     40 |     8 | capacity in bytes                                                      |
//! |     48 |     4 | checksum of bytes 0..48, seeded by the store's id                      |
//! |     52 |     4 | zero                                                                   |
//! |     56 |     8 | link: the log position where the segment before ended; 0 until in use  |
//! |     64 |     4 | checksum of bytes 52..64, seeded by the salt                           |
//! |     68 |     4 | zero                                                                   |
//! |     72 |       | records, then zeros                                                    |
//!
//! The link is written when the segment becomes the active one. It makes a segment that was cut exactly between two
//! records show.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use crossbeam_epoch::{self as epoch, Guard};

use crate::checksum::Seed;
use crate::codec::{Reader, hex16, name16};
use crate::directory::KeepingCell;
use crate::error::Error;
use crate::io::map::{Apart, Region, prefetch_record};
use crate::io::{File, cut, write_full};
use crate::log::record::{Defect, HEAD_BYTES_MAX, Kind, Record};
use crate::seeded::{Bug, seeded};

/// Bytes before the first record.
pub(crate) const HEADER_BYTES: u64 = 72;
/// Bytes of the header that are written when the segment becomes the active one.
pub(crate) const LINK_BYTES: u64 = 16;
/// Segments begin and end at pages.
pub(crate) const PAGE_BYTES: u64 = 4096;
/// A segment can take so many times the bytes that it is meant to.
pub(crate) const TARGETS: u64 = 8;
/// So many bytes are synced as [`Region::write_back`] does: their pages are let go of first.
const MANY_BYTES: u64 = 1 << 20;
const STATIC_BYTES: u64 = HEADER_BYTES - LINK_BYTES;
const MAGIC: &[u8; 8] = b"kvasilog";
const FORMAT: u32 = 1;

/// What the header of a segment says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) number: u64,
    pub(crate) base: u64,
    pub(crate) salt: u64,
    pub(crate) capacity: u64,
}

impl Header {
    /// The bytes written when the file is made.
    pub(crate) fn encode(&self, store: u64) -> [u8; STATIC_BYTES as usize] {
        let mut bytes = [0; STATIC_BYTES as usize];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.number.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.base.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.salt.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.capacity.to_le_bytes());
        let checksum = Seed::new(store, 0).checksum(&bytes[..48]);
        bytes[48..52].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// The header, if these bytes are one written for this store.
    pub(crate) fn decode(bytes: &[u8], store: u64) -> Option<Header> {
        let mut reader = Reader::new(bytes);
        if reader.take(8)? != MAGIC || reader.u32()? != FORMAT || reader.u32()? != 0 {
            return None;
        }
        let header =
            Header { number: reader.u64()?, base: reader.u64()?, salt: reader.u64()?, capacity: reader.u64()? };
        let checksum = Seed::new(store, 0).checksum(bytes.get(..48)?);
        ((reader.u32()? == checksum || seeded(Bug::SegmentHeaderUnchecked)) && reader.u32()? == 0).then_some(header)
    }
}

/// The bytes that make a segment the active one: where the log stood when it took over.
pub(crate) fn encode_link(salt: u64, end: u64) -> [u8; LINK_BYTES as usize] {
    let mut bytes = [0; LINK_BYTES as usize];
    bytes[..8].copy_from_slice(&end.to_le_bytes());
    let checksum = Seed::new(salt, STATIC_BYTES).checksum(&bytes[..8]);
    bytes[8..12].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

/// Where the segment before ended; `None` if this one never took over.
pub(crate) fn decode_link(salt: u64, header: &[u8]) -> Option<u64> {
    let bytes = header.get(STATIC_BYTES as usize..HEADER_BYTES as usize)?;
    let mut reader = Reader::new(bytes);
    let end = reader.u64()?;
    let checksum = Seed::new(salt, STATIC_BYTES).checksum(&bytes[..8]);
    let checks = reader.u32()? == checksum || seeded(Bug::LinkUnchecked) && end != 0;
    (checks && reader.u32()? == 0).then_some(end)
}

/// [`Segment::kept_bytes`] of one planned for so many.
pub(crate) fn kept_of(planned: u64) -> u64 {
    planned / 8
}

/// The file name of segment `number`.
pub(crate) fn file_name(number: u64) -> String {
    name16("", number, ".log")
}

/// The number in a segment's file name.
pub(crate) fn number_of(name: &str) -> Option<u64> {
    hex16(name.strip_suffix(".log")?)
}

/// An open segment. Shared by the log, by readers under an epoch, and by the views that keep its memory alive.
pub(crate) struct Segment {
    pub(crate) header: Header,
    /// First of the address slots that the segment takes; see `log::Place`.
    pub(crate) first_slot: u32,
    /// Bytes to be written to it before the next one takes over, when it was made and by now; see [`Segment::target`].
    planned: u64,
    target: AtomicU64,
    pub(crate) file: Arc<dyn File>,
    pub(crate) region: Arc<Region>,
    counts: Apart<LiveCounts>,
    /// From this offset on to be written again before the next sync; `u64::MAX` for nothing.
    rewrite_from: AtomicU64,
    /// Before this offset, a multiple of a page, the file was written back since the segment was closed.
    written_back: AtomicU64,
    /// Records before this offset were not checked since the store was opened: each is when it is read.
    unchecked: AtomicU64,
    /// A record was found that is not the one that was written.
    damaged: AtomicBool,
    /// The two counts above began with what a checkpoint says.
    approximate: AtomicBool,
    /// The published bytes as seen at some moment, as `Bytes`: what values are cut from. Replaced when outgrown.
    view: KeepingCell<Bytes>,
}

/// What of a segment is still needed. Every overwrite changes it, while the rest of a segment is read by everybody.
#[derive(Default)]
struct LiveCounts {
    /// Bytes of records that the directory points at.
    live: AtomicU64,
    /// Bytes of tombstones.
    tombstones: AtomicU64,
}

impl Segment {
    /// One to be filled up to `planned`, or that an earlier process has filled somewhat further.
    pub(crate) fn new(header: Header, planned: u64, first_slot: u32, file: Arc<dyn File>, region: Region) -> Segment {
        Segment {
            header,
            first_slot,
            planned,
            target: AtomicU64::new(planned.max(region.published().next_multiple_of(PAGE_BYTES))),
            file,
            region: Arc::new(region),
            counts: Apart::default(),
            rewrite_from: AtomicU64::new(u64::MAX),
            written_back: AtomicU64::new(0),
            unchecked: AtomicU64::new(0),
            damaged: AtomicBool::new(false),
            approximate: AtomicBool::new(false),
            view: KeepingCell::new(Bytes::new()),
        }
    }

    /// Says that an earlier process left the bytes from this offset on without a sync that we know of: what the system's
    /// cache holds of them may not be what the disk holds, even where the cache calls it clean. They are written again
    /// before they count as durable.
    pub(crate) fn unwitnessed_from(&self, offset: u64) {
        if !seeded(Bug::NoRewriteAfterCrash) {
            self.rewrite_from.store(offset, Ordering::Relaxed);
        }
    }

    /// Says that the records before this offset were not checked at open.
    pub(crate) fn unchecked_before(&self, offset: u64) {
        self.unchecked.store(offset, Ordering::Relaxed);
    }

    /// Records before this offset were not checked yet.
    #[inline]
    pub(crate) fn unchecked(&self) -> u64 {
        self.unchecked.load(Ordering::Relaxed)
    }

    /// Takes up that a record here is damaged. Background work keeps off the segment; reads say so where they meet it.
    pub(crate) fn mark_damaged(&self) {
        self.damaged.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_damaged(&self) -> bool {
        self.damaged.load(Ordering::Relaxed)
    }

    /// Whether this only keeps address slots from being used: see `checkpoint`.
    #[inline]
    pub(crate) fn is_ghost(&self) -> bool {
        self.region.published() == 0
    }

    /// Where the log before this segment ended; `None` if it never took over.
    pub(crate) fn link(&self) -> Option<u64> {
        let guard = &epoch::pin();
        decode_link(self.header.salt, self.region.slice_in(0..HEADER_BYTES, guard).ok()?)
    }

    /// The log position of `offset` in this segment.
    pub(crate) fn position(&self, offset: u64) -> u64 {
        self.header.base + offset
    }

    /// The log position after the last published byte.
    pub(crate) fn end(&self) -> u64 {
        self.position(self.region.published())
    }

    /// The seed of a record at `offset`.
    #[inline]
    pub(crate) fn seed(&self, offset: u64) -> Seed {
        Seed::new(self.header.salt, offset)
    }

    /// The record at `offset`, its bytes not compared with their checksum unless `verify`, or unless nobody has done so
    /// since the store was opened, or since they were read from the file.
    #[inline]
    pub(crate) fn record<'g>(
        &'g self,
        offset: u64,
        verify: bool,
        guard: &'g Guard,
    ) -> Result<(Record<'g>, u64), Defect> {
        match self.region.rest(offset) {
            Some(bytes) if verify || offset < self.unchecked() => Record::verify(bytes, self.seed(offset)),
            Some(bytes) => Record::parse(bytes),
            None => self.record_not_mapped(offset, true, guard),
        }
    }

    /// As [`Segment::record`], of what most reads find: a plain record (see there) in a mapping, that need not be checked. `None` for
    /// all else. What comes after its first line is asked for before that is looked at.
    #[inline]
    pub(crate) fn plain_record(&self, offset: u64, verify: bool) -> Option<(Record<'_>, u64)> {
        let bytes = self.region.rest(offset)?;
        prefetch_record(bytes);
        if verify || offset < self.unchecked() { None } else { Record::parse_plain(bytes) }
    }

    /// The record at `offset`, whatever its checksum says.
    #[inline]
    pub(crate) fn record_as_it_is<'g>(&'g self, offset: u64, guard: &'g Guard) -> Result<(Record<'g>, u64), Defect> {
        match self.region.rest(offset) {
            Some(bytes) => Record::parse(bytes),
            None => self.record_not_mapped(offset, false, guard),
        }
    }

    /// As [`Segment::record`], where the file is not mapped: no more of it is read than the record takes. Bytes that come from
    /// the file are believed as far as their checksum goes, each time: nobody knows when they were read.
    #[cold]
    fn record_not_mapped<'g>(
        &'g self,
        offset: u64,
        verify: bool,
        guard: &'g Guard,
    ) -> Result<(Record<'g>, u64), Defect> {
        let published = self.region.published();
        if self.region.is_mapped() || offset >= published {
            return Err(Defect::Malformed);
        }
        let head = self.region.slice_in(offset..published.min(offset + HEAD_BYTES_MAX as u64), guard)?;
        let end = offset + Record::span(head)?;
        let bytes = self.region.slice_in(offset..end, guard)?;
        if verify { Record::verify(bytes, self.seed(offset)) } else { Record::parse(bytes) }
    }

    /// Compares the records from `from` on with their checksums, up to the first that begins at or after `to`; where that is.
    pub(crate) fn check(&self, from: u64, to: u64) -> crate::error::Result<u64> {
        let guard = &epoch::pin();
        let mut at = from;
        while at < to {
            match self.record(at, true, guard) {
                Ok((_, bytes)) => at += bytes,
                Err(defect) => return Err(self.no_record(at, defect)),
            }
        }
        Ok(at)
    }

    /// Checks what the open left unread, if nobody has yet.
    pub(crate) fn check_unread(&self) -> crate::error::Result<()> {
        self.check(HEADER_BYTES, self.unchecked())?;
        self.unchecked_before(0);
        Ok(())
    }

    /// All published bytes, up to `end`.
    pub(crate) fn read(&self, end: u64) -> crate::error::Result<Cow<'_, [u8]>> {
        self.region.read(0..end).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => self.corrupt(end, e),
            _ => Error::io(format_args!("cannot read {}", file_name(self.header.number)), e),
        })
    }

    /// Where there should be a record at `offset` there is none: damage, or the system cannot read it.
    #[cold]
    pub(crate) fn no_record(&self, offset: u64, defect: Defect) -> Error {
        let name = file_name(self.header.number);
        match defect {
            Defect::Unreadable(kind) => {
                Error::io(format_args!("cannot read {name}, byte {offset}"), io::Error::from(kind))
            }
            Defect::Cut => Error::corrupt(&name, offset, "the file ends before the record that should be here does"),
            defect => Error::corrupt(&name, offset, format_args!("no valid record ({defect:?})")),
        }
    }

    /// Damage found at `offset`.
    #[cold]
    pub(crate) fn corrupt(&self, offset: u64, what: impl fmt::Display) -> Error {
        Error::corrupt(&file_name(self.header.number), offset, what)
    }

    /// Published bytes as `Bytes` that keep the mapping alive; `None` where the file is not mapped. Allocates only when the
    /// segment has grown past the view made before.
    #[inline]
    pub(crate) fn view(&self, range: Range<u64>, guard: &Guard) -> Option<Bytes> {
        let (start, end) = (range.start as usize, range.end as usize);
        let view = self.view.load(guard);
        if end <= view.len() {
            return Some(view.slice(start..end));
        }
        self.region.is_mapped().then(|| self.grown_view(start..end, guard))
    }

    /// As [`Segment::view`], of the bytes that begin at `first`, which may lie elsewhere: a record that was read from the file.
    #[inline]
    pub(crate) fn view_from(&self, first: &[u8], len: usize, guard: &Guard) -> Option<Bytes> {
        let view = self.view.load(guard);
        let start = (first.as_ptr() as usize).wrapping_sub(view.as_ptr() as usize);
        (start <= view.len() && len <= view.len() - start).then(|| view.slice(start..start + len))
    }

    fn grown_view(&self, range: Range<usize>, guard: &Guard) -> Bytes {
        let grown = Bytes::from_owner(Published { bytes: self.region.published(), region: self.region.clone() });
        let cut = grown.slice(range);
        self.view.replace(grown, guard);
        cut
    }

    pub(crate) fn live_bytes(&self) -> u64 {
        // Below zero for a moment where a record dies before it is counted, and for longer where a checkpoint, which says what
        // was about the time when it was made, says too little.
        self.counts.live.load(Ordering::Relaxed).cast_signed().max(0).cast_unsigned()
    }

    pub(crate) fn tombstone_bytes(&self) -> u64 {
        self.counts.tombstones.load(Ordering::Relaxed)
    }

    /// Counts a record that was written here.
    #[inline]
    pub(crate) fn count(&self, kind: Kind, bytes: u64) {
        match kind {
            Kind::Set => self.counts.live.fetch_add(bytes, Ordering::Relaxed),
            Kind::Delete => self.counts.tombstones.fetch_add(bytes, Ordering::Relaxed),
            Kind::Batch => 0,
        };
    }

    #[inline]
    pub(crate) fn sub_live(&self, bytes: u64) {
        self.counts.live.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Takes up what a checkpoint says of the segment.
    pub(crate) fn take_up_counts(&self, live: u64, tombstones: u64) {
        self.counts.live.store(live, Ordering::Relaxed);
        self.counts.tombstones.store(tombstones, Ordering::Relaxed);
        self.approximate.store(true, Ordering::Relaxed);
    }

    /// Whether the counts may be off by what was written while a checkpoint was made.
    pub(crate) fn counts_are_approximate(&self) -> bool {
        self.approximate.load(Ordering::Relaxed)
    }

    /// Bytes that it takes before the next one takes over. Less than its capacity: what is left of that lets writers go on while
    /// the next one is late.
    pub(crate) fn target(&self) -> u64 {
        self.target.load(Ordering::Relaxed)
    }

    /// The next one is late. Whether this one can take more meanwhile; the caller holds `grow`, and nobody else stores.
    pub(crate) fn raise_target(&self) -> bool {
        let (target, capacity) = (self.target(), self.header.capacity);
        self.target.store((target + capacity / TARGETS).next_multiple_of(PAGE_BYTES).min(capacity), Ordering::Relaxed);
        target < capacity
    }

    /// What [`Segment::target`] was to begin with.
    pub(crate) fn planned(&self) -> u64 {
        self.planned
    }

    /// Whether it took more than it was made for.
    pub(crate) fn outgrew_plan(&self) -> bool {
        self.region.published() > self.planned
    }

    /// Bytes that are appended last: while there is no segment to follow, only by what frees space. However late that is.
    pub(crate) fn kept_bytes(&self) -> u64 {
        kept_of(self.planned)
    }

    /// Makes the published bytes from `from` on survive a power cut; the position that is now durable.
    pub(crate) fn sync(&self, from: u64) -> io::Result<u64> {
        let end = self.region.published();
        if self.is_to_be_rewritten() {
            return self.sync_again();
        }
        let start = from.saturating_sub(self.header.base).min(end);
        match end - start {
            _ if seeded(Bug::NoLogSync) => {}
            0 => {}
            MANY_BYTES.. => self.region.write_back(start..end)?,
            _ => self.region.sync(start..end)?,
        }
        Ok(self.position(end))
    }

    /// Has the next `bytes` bytes of a segment that takes no more written to the disk; whether that was all but the last of
    /// them, which [`Segment::sync_closed`] has to see to.
    pub(crate) fn sync_some(&self, bytes: u64) -> io::Result<bool> {
        let (from, end) = (self.written_back.load(Ordering::Relaxed), self.region.published());
        if from + bytes >= end || self.is_to_be_rewritten() || !self.region.is_mapped() {
            return Ok(true);
        }
        self.region.write_back(from..from + bytes)?;
        self.written_back.store(from + bytes, Ordering::Relaxed);
        Ok(false)
    }

    /// As [`Segment::sync`] of all there is, for a segment that takes no more; the space behind the last record is given
    /// back. Where a mapped file cannot be cut (Windows) it stays; that is only space.
    pub(crate) fn sync_closed(&self) -> io::Result<u64> {
        let end = self.region.published();
        if !cfg!(windows) {
            cut(&*self.file, end)?;
        }
        if self.is_to_be_rewritten() {
            return self.sync_again();
        }
        if !seeded(Bug::NoSyncOfClosedSegment) {
            self.region.sync_closed(&*self.file, self.written_back.load(Ordering::Relaxed).min(end))?;
        }
        Ok(self.position(end))
    }

    fn is_to_be_rewritten(&self) -> bool {
        self.rewrite_from.load(Ordering::Relaxed) < u64::MAX
    }

    /// Writes what is there again, from where nobody knows that it is on the disk, and syncs it.
    fn sync_again(&self) -> io::Result<u64> {
        let end = self.region.published();
        let from = self.rewrite_from.load(Ordering::Relaxed).min(end);
        let bytes = self.region.read(from..end)?;
        write_full(&*self.file, from, &bytes)?;
        self.file.sync()?;
        self.rewrite_from.store(u64::MAX, Ordering::Relaxed);
        Ok(self.position(end))
    }
}

impl fmt::Debug for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Segment").field("header", &self.header).field("region", &self.region).finish_non_exhaustive()
    }
}

/// The owner behind a view: the published bytes at one moment, which never change.
struct Published {
    region: Arc<Region>,
    bytes: u64,
}

impl AsRef<[u8]> for Published {
    fn as_ref(&self) -> &[u8] {
        self.region.slice(0..self.bytes).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_reads_back_and_only_in_its_store() {
        let header = Header { number: 5, base: 1 << 30, salt: 99, capacity: 1 << 20 };
        let bytes = header.encode(7);
        assert_eq!(Header::decode(&bytes, 7), Some(header));
        assert_eq!(Header::decode(&bytes, 8), None);
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Header::decode(&bad, 7), None, "bit {bit}");
        }
    }

    #[test]
    fn a_link_reads_back_and_a_blank_one_is_none() {
        let mut header = [0; HEADER_BYTES as usize];
        assert_eq!(decode_link(3, &header), None);
        header[STATIC_BYTES as usize..].copy_from_slice(&encode_link(3, 0));
        assert_eq!(decode_link(3, &header), Some(0));
    }

    #[test]
    fn file_names_are_told_from_others() {
        assert_eq!(number_of(&file_name(0xabc)), Some(0xabc));
        for other in ["1.log", "MANIFEST", "000000000000000A.log", "+00000000000000a.log"] {
            assert_eq!(number_of(other), None, "{other}");
        }
    }
}
