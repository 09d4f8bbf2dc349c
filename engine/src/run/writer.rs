//! Writes a run from entries that come in order, a block at a time, to a file or to memory.
//! Flow: `seal`, `merge`, `index` -> here -> a file, or the bytes of a run in memory.
//!
//! What is held in memory is one block, what was not yet written to the file, and the index (about 45 bytes a block).
//! Crash: the file counts only once [`Writer::finish`] has returned and the manifest names it; until then it is left over.

use std::sync::Arc;

use super::format::{
    BLOCK_BYTES_MAX, BLOCK_HEADER_BYTES, DELETED, Entry, FOOTER_BYTES, Footer, Header, INDEX_ENTRY_BYTES, Indexed,
    KIND, REST_IS_LONG, RESTART_ENTRIES, SET_WITH_EXPIRY, SHARED_MAX, put_indexed, stamp_bytes,
};
use crate::checksum::Seed;
use crate::codec::{put_varint, varint_bytes};
use crate::io::{File, simulated, unknown_state, write_full};
use crate::merge::common_bytes;

/// What is written to the file in one call.
const WRITE_BYTES: usize = 256 << 10;
/// Bytes after which the file is synced while it grows, so that the last sync does not find all of it.
const SYNC_BYTES: u64 = 16 << 20;

/// A run under way.
pub(crate) struct Writer {
    header: Header,
    /// Where it goes; `None`: all of it stays in `out`.
    file: Option<Arc<dyn File>>,
    /// Not yet written; begins at `written` in the file.
    out: Vec<u8>,
    written: u64,
    synced: u64,
    stamp_bytes: usize,
    /// Largest block of more than one entry: small in simulations, whose few keys would all stand in the first.
    block_bytes_max: usize,
    /// Entries of the block under way, its restarts in them, and their number.
    block: Vec<u8>,
    restarts: Vec<u16>,
    entries: usize,
    bucket: u64,
    /// What the index says of the block under way.
    begins: Vec<u8>,
    last_key: Vec<u8>,
    index: Vec<u8>,
    table: Vec<u64>,
    footer: Footer,
}

impl Writer {
    pub(crate) fn new(header: Header, store: u64, file: Option<Arc<dyn File>>) -> Writer {
        Writer {
            out: header.encode(store).to_vec(),
            stamp_bytes: stamp_bytes(header.to),
            block_bytes_max: if simulated() { BLOCK_BYTES_MAX / 64 } else { BLOCK_BYTES_MAX },
            header,
            file,
            written: 0,
            synced: 0,
            block: Vec::with_capacity(BLOCK_BYTES_MAX),
            restarts: Vec::new(),
            entries: 0,
            bucket: 0,
            begins: Vec::new(),
            last_key: Vec::new(),
            index: Vec::new(),
            table: Vec::new(),
            footer: Footer::default(),
        }
    }

    /// A run in memory that will take about so many bytes: what grows by doubling holds more at its end than it needs.
    pub(crate) fn in_memory(header: Header, store: u64, bytes: usize) -> Writer {
        let mut writer = Writer::new(header, store, None);
        writer.out.reserve_exact(bytes);
        writer
    }

    /// Adds an entry; its bucket and key come after all before.
    pub(crate) fn add(&mut self, entry: &Entry<'_>) -> std::io::Result<()> {
        debug_assert!(entry.stamp < self.header.to, "a run covers the versions in it");
        let has_expiry = entry.stamp & KIND == SET_WITH_EXPIRY;
        let most = 4 + self.stamp_bytes + entry.key.len() + if has_expiry { varint_bytes(entry.expires) } else { 0 };
        let header_bytes = BLOCK_HEADER_BYTES + 2 * (self.restarts.len() + 1);
        if self.entries > 0
            && (entry.bucket != self.bucket || header_bytes + self.block.len() + most > self.block_bytes_max)
        {
            self.end_block()?;
        }
        if self.entries == 0 {
            // Of long keys as much as tells them from the block before: the index would be as large as what it points to.
            let bytes = if self.footer.blocks > 0 && entry.bucket == self.bucket {
                entry.key.len().min(1 + common_bytes(&self.last_key, entry.key, entry.key.len()))
            } else {
                entry.key.len()
            };
            self.bucket = entry.bucket;
            self.begins.clear();
            self.begins.extend_from_slice(&entry.key[..bytes]);
        }
        let mut shared = 0;
        if self.entries.is_multiple_of(RESTART_ENTRIES) {
            self.restarts.push(self.block.len() as u16);
        } else {
            shared = common_bytes(&self.last_key, entry.key, SHARED_MAX);
        }
        let rest = &entry.key[shared..];
        self.block.push(shared as u8);
        if rest.len() < usize::from(REST_IS_LONG) {
            self.block.push(rest.len() as u8);
        } else {
            self.block.push(REST_IS_LONG);
            self.block.extend_from_slice(&(rest.len() as u16).to_le_bytes());
        }
        self.block.extend_from_slice(&entry.stamp.to_le_bytes()[..self.stamp_bytes]);
        self.block.extend_from_slice(rest);
        if has_expiry {
            let mut varint = [0; 10];
            let n = put_varint(&mut varint, entry.expires);
            self.block.extend_from_slice(&varint[..n]);
        }
        self.last_key.truncate(shared);
        self.last_key.extend_from_slice(rest);
        self.entries += 1;
        self.footer.entries += 1;
        self.footer.tombstones += u64::from(entry.stamp & KIND == DELETED);
        Ok(())
    }

    fn at(&self) -> u64 {
        self.written + self.out.len() as u64
    }

    fn end_block(&mut self) -> std::io::Result<()> {
        let (offset, start) = (self.at(), self.out.len());
        self.out.extend_from_slice(&[0; 4]);
        self.out.extend_from_slice(&self.bucket.to_le_bytes());
        self.out.extend_from_slice(&(self.entries as u16).to_le_bytes());
        let entries_at = (BLOCK_HEADER_BYTES + 2 * self.restarts.len()) as u16;
        for restart in &self.restarts {
            self.out.extend_from_slice(&(entries_at + restart).to_le_bytes());
        }
        self.out.extend_from_slice(&self.block);
        let checksum = Seed::new(self.header.salt, offset).checksum(&self.out[start + 4..]);
        self.out[start..start + 4].copy_from_slice(&checksum.to_le_bytes());
        self.table.push(self.index.len() as u64);
        let bytes = (self.out.len() - start) as u32;
        put_indexed(&mut self.index, &Indexed { offset, bytes, bucket: self.bucket, key: &self.begins });
        self.footer.blocks += 1;
        self.block.clear();
        self.restarts.clear();
        self.entries = 0;
        if self.out.len() >= WRITE_BYTES { self.write_out() } else { Ok(()) }
    }

    fn write_out(&mut self) -> std::io::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        write_full(&**file, self.written, &self.out)?;
        self.written += self.out.len() as u64;
        self.out.clear();
        if self.written - self.synced >= SYNC_BYTES {
            file.sync().map_err(unknown_state)?;
            self.synced = self.written;
        }
        Ok(())
    }

    /// Ends the run; where it goes to a file, all of it is on the disk then (its name is not). Where it does not, these
    /// are its bytes.
    pub(crate) fn finish(mut self) -> std::io::Result<Vec<u8>> {
        if self.entries > 0 {
            self.end_block()?;
        }
        self.footer.index = self.at();
        if self.footer.blocks > 0 {
            self.table.push(self.index.len() as u64);
            let last = Indexed { offset: self.footer.index, bytes: 0, bucket: self.bucket, key: &self.last_key };
            put_indexed(&mut self.index, &last);
        }
        for at in &self.table {
            self.index.extend_from_slice(&at.to_le_bytes());
        }
        debug_assert!(self.index.len() >= self.table.len() * (INDEX_ENTRY_BYTES + 8));
        self.footer.index_checksum = Seed::new(self.header.salt, self.footer.index).checksum(&self.index);
        self.out.extend_from_slice(&self.index);
        self.footer.bytes = self.at() + FOOTER_BYTES as u64;
        self.out.extend_from_slice(&self.footer.encode(self.header.salt));
        self.write_out()?;
        if let Some(file) = &self.file {
            file.sync().map_err(unknown_state)?;
        }
        if self.out.len() < self.out.capacity() / 8 * 7 {
            self.out.shrink_to_fit();
        }
        Ok(self.out)
    }
}
