//! Reads a run in order, from any key on. Flow: `list`, `merge` -> here -> [`Run`].
//!
//! The cursor decodes from a block into a key of its own: of each entry only the bytes that differ from the key before
//! are copied. It keeps the run alive, and can rest between two steps for as long as it likes. No bytes make it panic:
//! what cannot be an entry is [`Damaged`].

use std::cmp::Ordering;
use std::sync::Arc;

use super::format::{Entry, KIND, REST_IS_LONG, SET_WITH_EXPIRY, stamp_bytes};
use super::{Block, Damaged, Run};
use crate::codec::Reader;
use crate::seeded::{Bug, seeded};

/// A place in a run, at an entry.
pub(crate) struct Cursor {
    run: Arc<Run>,
    stamp_bytes: usize,
    /// The block at hand.
    number: usize,
    block: Block,
    /// Offset in the block of the entry after this one.
    at: usize,
    /// Entries of the block after this one.
    left: usize,
    key: Vec<u8>,
    stamp: u64,
    expires: u64,
}

impl Cursor {
    /// At the first entry; `None` if the run has none.
    pub(crate) fn first(run: &Arc<Run>) -> Result<Option<Cursor>, Damaged> {
        if run.blocks() == 0 {
            return Ok(None);
        }
        let mut cursor = Cursor::at_block(run, 0)?;
        Ok(cursor.next()?.then_some(cursor))
    }

    /// At the first entry of `bucket` whose key is `from` or comes after it; `None` if there is none.
    pub(crate) fn seek(run: &Arc<Run>, bucket: u64, from: &[u8]) -> Result<Option<Cursor>, Damaged> {
        let Some(number) = run.block_for(bucket, from)? else { return Ok(None) };
        let mut cursor = Cursor::at_block(run, number)?;
        if cursor.block.bucket == bucket {
            cursor.skip_to_restart(from)?;
        }
        while cursor.next()? {
            match cursor.block.bucket.cmp(&bucket) {
                Ordering::Less => continue,
                Ordering::Equal if cursor.key.as_slice() < from => continue,
                Ordering::Equal => return Ok(Some(cursor)),
                Ordering::Greater => break,
            }
        }
        Ok(None)
    }

    /// Before the first entry of a block.
    fn at_block(run: &Arc<Run>, number: usize) -> Result<Cursor, Damaged> {
        let block = run.block(number)?;
        Ok(Cursor {
            stamp_bytes: stamp_bytes(run.header.to),
            run: run.clone(),
            number,
            at: block.entries_at,
            left: block.entries,
            block,
            key: Vec::new(),
            stamp: 0,
            expires: 0,
        })
    }

    /// Before the last restart of the block whose key is not after `from`.
    fn skip_to_restart(&mut self, from: &[u8]) -> Result<(), Damaged> {
        let (mut low, mut high) = (0, self.block.restarts());
        // Restart 0 is where the cursor stands, whatever its key.
        while high - low > 1 {
            let middle = low.midpoint(high);
            self.go_to_restart(middle)?;
            self.decode()?;
            if self.key.as_slice() <= from { low = middle } else { high = middle }
        }
        self.go_to_restart(low)
    }

    fn go_to_restart(&mut self, i: usize) -> Result<(), Damaged> {
        let (at, left) = self.block.restart(i).ok_or(Damaged::at(self.block.start, "a restart"))?;
        (self.at, self.left) = (at, left);
        self.key.clear();
        Ok(())
    }

    /// Moves to the next entry; `false` if that was the last one.
    #[inline]
    pub(crate) fn next(&mut self) -> Result<bool, Damaged> {
        if self.left == 0 {
            if self.number + 1 >= self.run.blocks() {
                return Ok(false);
            }
            self.number += 1;
            self.block = match self.run.block(self.number) {
                Err(_) if seeded(Bug::DamagedRunEnds) => return Ok(false),
                block => block?,
            };
            (self.at, self.left) = (self.block.entries_at, self.block.entries);
            self.key.clear();
        }
        self.decode()?;
        self.left -= 1;
        Ok(true)
    }

    #[inline]
    fn decode(&mut self) -> Result<(), Damaged> {
        match self.try_decode() {
            Some(()) => Ok(()),
            None => Err(Damaged::at(self.block.start + self.at, "an entry")),
        }
    }

    #[inline]
    fn try_decode(&mut self) -> Option<()> {
        let bytes = self.block.bytes.get(self.at..)?;
        let shared = usize::from(*bytes.first()?);
        let mut rest = usize::from(*bytes.get(1)?);
        let mut at = 2;
        if rest == usize::from(REST_IS_LONG) {
            rest = usize::from(u16::from_le_bytes(bytes.get(2..4)?.try_into().ok()?));
            at = 4;
        }
        // Eight bytes at once where there are as many: the rest is masked off.
        let stamp = match bytes.get(at..at + 8) {
            Some(eight) => u64::from_le_bytes(eight.try_into().ok()?),
            None => {
                let mut eight = [0; 8];
                eight[..self.stamp_bytes].copy_from_slice(bytes.get(at..at + self.stamp_bytes)?);
                u64::from_le_bytes(eight)
            }
        };
        self.stamp = stamp & (u64::MAX >> (64 - 8 * self.stamp_bytes));
        at += self.stamp_bytes;
        if shared > self.key.len() {
            return None;
        }
        self.key.truncate(shared);
        self.key.extend_from_slice(bytes.get(at..at + rest)?);
        at += rest;
        self.expires = 0;
        if self.stamp & KIND == SET_WITH_EXPIRY {
            let mut reader = Reader::new(bytes.get(at..)?);
            self.expires = reader.varint()?;
            at += reader.at();
        }
        self.at += at;
        Some(())
    }

    #[inline]
    pub(crate) fn bucket(&self) -> u64 {
        self.block.bucket
    }

    #[inline]
    pub(crate) fn key(&self) -> &[u8] {
        &self.key
    }

    #[inline]
    pub(crate) fn entry(&self) -> Entry<'_> {
        Entry { bucket: self.block.bucket, key: &self.key, stamp: self.stamp, expires: self.expires }
    }

    /// Offset in the run: how much of it was read.
    pub(crate) fn offset(&self) -> u64 {
        (self.block.start + self.at) as u64
    }
}
