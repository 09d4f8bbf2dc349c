//! Mapped memory with a safe door: append-only regions.
//!
//! A [`Region`] is a file mapping (or anonymous memory) that is filled from front to back, by many threads at once, and
//! read by many more. This file holds the engine's `unsafe` for mappings; what keeps it sound:
//!
//! 1. `published <= reserved <= bytes`; both only rise (but for [`Region::reopen`], which undoes a close).
//! 2. A byte range is reserved once, by one compare-exchange on `reserved`: reservations are disjoint.
//! 3. Bytes below `published` never change again, and only those are lent out as `&[u8]`.
//! 4. Ranges are published in the order in which they were reserved: a thread waits for the one before it.
//! 5. The mapping lives as long as the `Region`; everything lent out borrows from it.
//!
//! Rule 3 holds as long as nobody else writes to or truncates the file; the store's lock and the directory's
//! permissions guard that, and checksums find what they cannot (docs/durability.md).

use std::fmt;
use std::io;
use std::ops::Range;
#[cfg(feature = "testing")]
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::{MmapOptions, MmapRaw};

/// Set in `reserved` while nothing more may be appended.
const CLOSED: u64 = 1 << 63;

/// Memory of a mapping, not yet a region: what the seam hands out.
pub(crate) struct Map {
    memory: MmapRaw,
    /// Who wants to know; there is no such field in production.
    #[cfg(feature = "testing")]
    watch: Option<Arc<dyn Watch>>,
}

/// Is told what a mapping is used for, where the mapping cannot tell: the simulated disk is no kernel that sees which
/// pages are dirty.
#[cfg(feature = "testing")]
pub(crate) trait Watch: Send + Sync {
    /// These bytes were written at `at`. In the order in which they become readable.
    fn published(&self, at: u64, bytes: &[u8]);
    /// In place of `msync`.
    fn sync(&self, range: Range<u64>) -> io::Result<()>;
}

impl Map {
    /// Maps the first `bytes` bytes of `file`, shared with every other mapping of it.
    pub(crate) fn file(file: &std::fs::File, bytes: u64, writable: bool) -> io::Result<Map> {
        let len = usize::try_from(bytes).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        let mut options = MmapOptions::new();
        options.len(len);
        Ok(Map::unwatched(if writable { options.map_raw(file)? } else { options.map_raw_read_only(file)? }))
    }

    /// Zeroed memory without a file.
    pub(crate) fn anonymous(bytes: u64) -> io::Result<Map> {
        let len = usize::try_from(bytes).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        Ok(Map::unwatched(MmapOptions::new().len(len).map_anon()?.into()))
    }

    /// Memory that begins as a copy of `bytes`, and whose use `watch` is told of.
    #[cfg(feature = "testing")]
    pub(crate) fn copied(bytes: &[u8], watch: Option<Arc<dyn Watch>>) -> io::Result<Map> {
        let mut memory = MmapOptions::new().len(bytes.len()).map_anon()?;
        memory.copy_from_slice(bytes);
        Ok(Map { memory: memory.into(), watch })
    }

    fn unwatched(memory: MmapRaw) -> Map {
        Map {
            memory,
            #[cfg(feature = "testing")]
            watch: None,
        }
    }
}

/// A mapping filled from front to back; see the file header for what holds.
pub(crate) struct Region {
    map: Map,
    bytes: u64,
    reserved: AtomicU64,
    published: AtomicU64,
}

/// The region has no room for the reservation, or is closed.
#[derive(Debug)]
pub(crate) struct Full;

impl Region {
    /// A region over `map` whose first `filled` bytes are already there; `open` if more may be appended.
    pub(crate) fn new(map: Map, filled: u64, open: bool) -> Region {
        let bytes = map.memory.len() as u64;
        assert!(filled <= bytes, "a region of {bytes} bytes cannot hold {filled}");
        let reserved = if open { filled } else { filled | CLOSED };
        Region { map, bytes, reserved: AtomicU64::new(reserved), published: AtomicU64::new(filled) }
    }

    /// The same bytes, of which only the first `filled` count; takes no more.
    pub(crate) fn cut(self, filled: u64) -> Region {
        Region::new(self.map, filled, false)
    }

    /// Size of the mapping.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes that are complete and will not change.
    pub(crate) fn published(&self) -> u64 {
        self.published.load(Ordering::Acquire)
    }

    /// Takes the next `len` bytes; the caller fills and publishes them. Never waits.
    #[inline]
    pub(crate) fn reserve(&self, len: u64) -> Result<Reservation<'_>, Full> {
        self.reserve_below(len, self.bytes)
    }

    /// As [`Region::reserve`], of the first `limit` bytes only.
    #[inline]
    pub(crate) fn reserve_below(&self, len: u64, limit: u64) -> Result<Reservation<'_>, Full> {
        debug_assert!(limit <= self.bytes);
        let mut at = self.reserved.load(Ordering::Relaxed);
        loop {
            // A closed region has its top bit set and so fails the bound.
            let end = at.checked_add(len).filter(|&end| end <= limit).ok_or(Full)?;
            match self.reserved.compare_exchange_weak(at, end, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Ok(Reservation { region: self, at, len }),
                Err(now) => at = now,
            }
        }
    }

    /// Ends appending, waits for reservations under way, and returns the final length. Idempotent.
    pub(crate) fn close(&self) -> u64 {
        let end = self.reserved.fetch_or(CLOSED, Ordering::Relaxed) & !CLOSED;
        wait_until(|| self.published.load(Ordering::Acquire) == end);
        end
    }

    /// Undoes [`Region::close`], when no successor could be made. Only for whoever closed it.
    pub(crate) fn reopen(&self) {
        self.reserved.fetch_and(!CLOSED, Ordering::Relaxed);
    }

    /// The published bytes of `range`; `None` if it reaches past them.
    #[inline]
    pub(crate) fn slice(&self, range: Range<u64>) -> Option<&[u8]> {
        if range.start > range.end || range.end > self.published() {
            return None;
        }
        // SAFETY: the range lies below `published`, so inside the mapping and never written again (rules 1 and 3); the
        // Acquire load above orders the writer's copy before this read. The borrow keeps the mapping alive (rule 5).
        Some(unsafe {
            std::slice::from_raw_parts(
                self.map.memory.as_ptr().add(range.start as usize),
                (range.end - range.start) as usize,
            )
        })
    }

    /// Waits until the published bytes of `range` are on the disk. For anonymous memory there is nothing to wait for.
    pub(crate) fn sync(&self, range: Range<u64>) -> io::Result<()> {
        #[cfg(feature = "testing")]
        if let Some(watch) = &self.map.watch {
            return watch.sync(range);
        }
        self.map.memory.flush_range(range.start as usize, (range.end - range.start) as usize)
    }

    /// Asks the system to make the pages present for writing, so that appending does not fault. A hint: errors do not
    /// matter, the fault comes later instead.
    pub(crate) fn populate(&self) {
        #[cfg(target_os = "linux")]
        let _ = self.map.memory.advise(memmap2::Advice::PopulateWrite);
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Region").field("bytes", &self.bytes).field("published", &self.published()).finish()
    }
}

/// Reserved bytes of a [`Region`]: writable by the holder alone until published.
///
/// Every reservation must be published, and soon: those behind it wait. Dropping one unpublished publishes what is
/// there (zeros, or a half-filled record, which no checksum accepts), so that a panicking writer stops nobody.
#[must_use]
pub(crate) struct Reservation<'a> {
    region: &'a Region,
    at: u64,
    len: u64,
}

impl Reservation<'_> {
    /// Offset of the first byte in the region.
    #[inline]
    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    #[inline]
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: the range was reserved by this value alone (rule 2), lies inside the mapping (rule 1), and is lent to
        // nobody else before it is published (rule 3), which consumes `self`.
        unsafe {
            std::slice::from_raw_parts_mut(self.region.map.memory.as_mut_ptr().add(self.at as usize), self.len as usize)
        }
    }

    /// Makes the bytes readable, after those reserved before. Waits only for the copies of other threads.
    #[inline]
    pub(crate) fn publish(self) {
        drop(self);
    }
}

impl Drop for Reservation<'_> {
    #[inline]
    fn drop(&mut self) {
        let published = &self.region.published;
        if published.load(Ordering::Acquire) != self.at {
            wait_until(|| published.load(Ordering::Acquire) == self.at);
        }
        // Before it counts as published, so that whoever syncs past it finds it told.
        #[cfg(feature = "testing")]
        if let Some(watch) = self.region.map.watch.clone() {
            watch.published(self.at, self.bytes_mut());
        }
        published.store(self.at + self.len, Ordering::Release);
    }
}

/// Spins for as long as another thread's copy takes, then lets it run: on few cores it may have been preempted.
fn wait_until(ready: impl Fn() -> bool) {
    for _ in 0..200 {
        if ready() {
            return;
        }
        std::hint::spin_loop();
    }
    while !ready() {
        std::thread::yield_now();
    }
}

// `MmapRaw` is `Send + Sync`; the rules above make sharing it through `&Region` sound without further promises.

#[cfg(test)]
mod tests {
    use super::*;

    fn region(bytes: u64) -> Region {
        Region::new(Map::anonymous(bytes).unwrap(), 0, true)
    }

    #[test]
    fn published_bytes_are_those_written() {
        let region = region(4096);
        let mut r = region.reserve(5).unwrap();
        r.bytes_mut().copy_from_slice(b"hello");
        assert!(region.slice(0..5).is_none(), "not readable before it is published");
        r.publish();
        assert_eq!(region.slice(0..5).unwrap(), b"hello");
        assert!(region.slice(0..6).is_none());
    }

    #[test]
    fn a_full_or_closed_region_takes_nothing() {
        let region = region(16);
        region.reserve(10).unwrap().publish();
        assert!(region.reserve(7).is_err());
        assert_eq!(region.close(), 10);
        assert!(region.reserve(1).is_err());
        assert_eq!(region.close(), 10);
        region.reopen();
        region.reserve(6).unwrap().publish();
        assert_eq!(region.published(), 16);
    }

    #[test]
    fn threads_fill_disjoint_ranges_and_publish_in_order() {
        let region = region(if cfg!(miri) { 4096 } else { 1 << 20 });
        std::thread::scope(|scope| {
            for byte in 1..=4u8 {
                let region = &region;
                scope.spawn(move || {
                    while let Ok(mut r) = region.reserve(16) {
                        r.bytes_mut().fill(byte);
                        r.publish();
                    }
                });
            }
            let mut seen = 0;
            while seen < region.bytes() {
                let now = region.published();
                for block in region.slice(seen..now).unwrap().chunks(16) {
                    assert!(block[0] != 0 && block.iter().all(|b| *b == block[0]));
                }
                seen = now;
                std::thread::yield_now();
            }
        });
    }
}
