//! Key runs: the keys of a stretch of the log, sorted, with the version and kind of the newest record of each; immutable.
//! Flow: `seal` and `merge` write them, `index` holds them, `list` reads them. Files are mapped, or read block by block; a run
//! may also be memory.
//!
//! A run covers the log positions [from, to): of every record logged there that still counted when the run was made, it
//! holds the key. It says nothing of places, so the cleaner may take the segments away that it was made of.
//!
//! Runs are made of the log and can be made again: a damaged one is never an error of the store, but it is never believed
//! either. Header, footer and index are checked at open, each block when it is first touched, or whenever it is read.

mod cursor;
pub(crate) mod format;
mod writer;

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
pub(crate) use cursor::Cursor;
pub(crate) use writer::Writer;

use crate::checksum::Seed;
use crate::error::{Error, Result};
use crate::io::map::Region;
use crate::io::{Disk, File, read_full};
use crate::seeded::{Bug, seeded};
use format::{BLOCK_HEADER_BYTES, Footer, HEADER_BYTES, Header, Indexed, RESTART_ENTRIES, file_name, indexed};

/// Bytes that are not those of a run, or not of this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Damaged {
    pub(crate) offset: u64,
    /// What was looked for there.
    pub(crate) what: &'static str,
}

impl Damaged {
    #[cold]
    pub(crate) fn at(offset: usize, what: &'static str) -> Damaged {
        Damaged { offset: offset as u64, what }
    }
}

/// An open run.
pub(crate) struct Run {
    pub(crate) header: Header,
    pub(crate) footer: Footer,
    source: Source,
    index: Bytes,
    /// A bit a block: its checksum was compared.
    checked: Box<[AtomicU64]>,
}

/// Where the blocks are.
enum Source {
    Memory(Bytes),
    /// In a file that is not mapped.
    File(Arc<dyn File>),
}

/// What keeps a mapping behind its bytes.
struct Mapped(Region);

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        self.0.slice(0..self.0.bytes()).unwrap_or_default()
    }
}

/// One block, taken apart: offsets in it, but for the first.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    bytes: Bytes,
    /// Where it begins in the file.
    start: usize,
    bucket: u64,
    entries: usize,
    entries_at: usize,
}

impl Block {
    fn restarts(&self) -> usize {
        self.entries.div_ceil(RESTART_ENTRIES)
    }

    /// Where restart `i` is, and how many entries follow from there on.
    fn restart(&self, i: usize) -> Option<(usize, usize)> {
        let at = BLOCK_HEADER_BYTES + 2 * i;
        let offset = u16::from_le_bytes(self.bytes.get(at..at + 2)?.try_into().ok()?);
        let at = usize::from(offset);
        (at >= self.entries_at).then_some((at, self.entries.checked_sub(i * RESTART_ENTRIES)?))
    }
}

impl Source {
    /// Bytes of the run; none where it has none.
    fn get(&self, range: Range<u64>) -> io::Result<Bytes> {
        let (start, end) = (range.start as usize, range.end as usize);
        match self {
            Source::Memory(bytes) if end <= bytes.len() => Ok(bytes.slice(start..end)),
            Source::Memory(_) => Ok(Bytes::new()),
            Source::File(file) => {
                let mut bytes = Vec::new();
                bytes.try_reserve_exact(end - start).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
                bytes.resize(end - start, 0);
                let read = read_full(&**file, range.start, &mut bytes)?;
                bytes.truncate(read);
                Ok(bytes.into())
            }
        }
    }
}

/// Why a run is not read.
enum Unread {
    Damaged(Damaged),
    Io(io::Error),
}

impl From<io::Error> for Unread {
    fn from(e: io::Error) -> Unread {
        Unread::Io(e)
    }
}

impl Run {
    /// Opens the file of run `number`, which covers the positions [from, to). The inner error: it is not there, or not
    /// what was written.
    pub(crate) fn open(disk: &dyn Disk, store: u64, number: u64, from: u64, to: u64) -> Result<Result<Run, Damaged>> {
        let name = file_name(number);
        let failed = |e| Error::io(format_args!("cannot read {name}"), e);
        let file = match disk.open(&name) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Err(Damaged::at(0, "the file"))),
            Err(e) => return Err(failed(e)),
        };
        let bytes = file.len().map_err(failed)?;
        if bytes < HEADER_BYTES as u64 {
            return Ok(Err(Damaged::at(0, "a header")));
        }
        let region = Region::of_file(disk, &file, bytes).map_err(failed)?;
        let source =
            if region.is_mapped() { Source::Memory(Bytes::from_owner(Mapped(region))) } else { Source::File(file) };
        let run = match Run::read(source, bytes, store) {
            Ok(run) => run,
            Err(Unread::Io(e)) => return Err(failed(e)),
            Err(Unread::Damaged(damaged)) => return Ok(Err(damaged)),
        };
        let is_it = (run.header.number, run.header.from, run.header.to) == (number, from, to);
        Ok(if is_it { Ok(run) } else { Err(Damaged::at(0, "this run's header")) })
    }

    /// A run in memory, from what [`Writer::finish`] gave.
    pub(crate) fn in_memory(bytes: Vec<u8>, store: u64) -> Result<Run, Damaged> {
        let len = bytes.len() as u64;
        Run::read(Source::Memory(bytes.into()), len, store).map_err(|unread| match unread {
            Unread::Damaged(damaged) => damaged,
            Unread::Io(_) => Damaged::at(0, "room in memory"),
        })
    }

    fn read(source: Source, len: u64, store: u64) -> Result<Run, Unread> {
        let damaged = |offset, what| Unread::Damaged(Damaged { offset, what });
        let first = source.get(0..len.min(HEADER_BYTES as u64))?;
        let header = Header::decode(&first, store).filter(|h| h.from < h.to).ok_or(damaged(0, "a header"))?;
        let end = len.saturating_sub(format::FOOTER_BYTES as u64);
        let last = source.get(end..len)?;
        let footer = Footer::decode(&last, len, header.salt).ok_or(damaged(end, "a footer"))?;
        let wrong_index = damaged(footer.index, "the index");
        if footer.index > end {
            return Err(wrong_index);
        }
        let index = source.get(footer.index..end)?;
        if Seed::new(header.salt, footer.index).checksum(&index) != footer.index_checksum
            || footer.blocks > index.len() as u64 / 8
        {
            return Err(wrong_index);
        }
        let checked = (0..footer.blocks.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Ok(Run { header, footer, source, index, checked })
    }

    /// All of the file.
    pub(crate) fn bytes(&self) -> io::Result<Bytes> {
        self.source.get(0..self.footer.bytes)
    }

    pub(crate) fn blocks(&self) -> usize {
        self.footer.blocks as usize
    }

    fn indexed(&self, i: usize) -> Result<Indexed<'_>, Damaged> {
        indexed(&self.index, self.blocks(), i).ok_or(Damaged { offset: self.footer.index, what: "an index entry" })
    }

    /// The block in which the first entry at or after a key is, unless that is the first entry of the block after it.
    fn block_for(&self, bucket: u64, key: &[u8]) -> Result<Option<usize>, Damaged> {
        let blocks = self.blocks();
        if blocks == 0 {
            return Ok(None);
        }
        let last = self.indexed(blocks)?;
        if (last.bucket, last.key) < (bucket, key) {
            return Ok(None);
        }
        // The last block whose first key is not after this one.
        let (mut low, mut high) = (0, blocks);
        while high - low > 1 {
            let middle = low.midpoint(high);
            let first = self.indexed(middle)?;
            if (first.bucket, first.key) <= (bucket, key) { low = middle } else { high = middle }
        }
        Ok(Some(low))
    }

    /// Block `i`, its checksum compared the first time.
    fn block(&self, i: usize) -> Result<Block, Damaged> {
        let indexed = self.indexed(i)?;
        let damaged = Damaged { offset: indexed.offset, what: "a block" };
        let end = indexed.offset.checked_add(u64::from(indexed.bytes)).filter(|end| *end <= self.footer.index);
        // What cannot be read is as good as damaged: the run is made again from the log.
        let bytes = self.source.get(indexed.offset..end.ok_or(damaged)?).map_err(|_| damaged)?;
        if bytes.len() < BLOCK_HEADER_BYTES {
            return Err(damaged);
        }
        let (bit, checked) = (1 << (i % 64), &self.checked[i / 64]);
        if matches!(self.source, Source::File(_)) || checked.load(Ordering::Relaxed) & bit == 0 {
            let stored = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            if Seed::new(self.header.salt, indexed.offset).checksum(&bytes[4..]) != stored
                && !seeded(Bug::RunBlockUnchecked)
            {
                return Err(damaged);
            }
            checked.fetch_or(bit, Ordering::Relaxed);
        }
        let entries = usize::from(u16::from_le_bytes([bytes[12], bytes[13]]));
        let entries_at = BLOCK_HEADER_BYTES + 2 * entries.div_ceil(RESTART_ENTRIES);
        if entries == 0 || entries_at > bytes.len() {
            return Err(damaged);
        }
        Ok(Block { bytes, start: indexed.offset as usize, bucket: indexed.bucket, entries, entries_at })
    }

    /// Compares the checksum of every block again, whether that was done before or not; those that do not match.
    pub(crate) fn damaged_blocks(&self) -> Vec<Damaged> {
        self.checked.iter().for_each(|bits| bits.store(0, Ordering::Relaxed));
        (0..self.blocks()).filter_map(|i| self.block(i).err()).collect()
    }

    /// Reads all of it: every checksum, the order, the counts.
    pub(crate) fn check(self: &Arc<Run>) -> Result<(), Damaged> {
        let mut cursor = Cursor::first(self)?;
        let mut before: Option<(u64, Vec<u8>)> = None;
        let (mut entries, mut tombstones) = (0, 0);
        while let Some(at) = &mut cursor {
            let entry = at.entry();
            if before.as_ref().is_some_and(|(bucket, key)| (*bucket, key.as_slice()) >= (entry.bucket, entry.key)) {
                return Err(Damaged { offset: at.offset(), what: "the next key" });
            }
            before = Some((entry.bucket, entry.key.to_vec()));
            entries += 1;
            tombstones += u64::from(entry.stamp & format::KIND == format::DELETED);
            if !at.next()? {
                cursor = None;
            }
        }
        if (entries, tombstones) == (self.footer.entries, self.footer.tombstones) {
            Ok(())
        } else {
            Err(Damaged { offset: self.footer.index, what: "as many entries as the footer says" })
        }
    }
}

impl std::fmt::Debug for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Run").field("header", &self.header).field("footer", &self.footer).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
