//! Mapped memory with a safe door: append-only regions.
//!
//! A [`Region`] is a file mapping (or anonymous memory) that is filled from front to back, by many threads at once, and
//! read by many more. This file holds the engine's `unsafe` for mappings; what keeps it sound:
//!
//! 1. `published <= reserved <= bytes`; both only rise (but for [`Region::reopen`], which undoes a close).
//! 2. A byte range is reserved once, by one compare-exchange on `reserved`: reservations are disjoint.
//! 3. Bytes below `published` never change again, and only those are lent out as `&[u8]`.
//! 4. Ranges are published in the order in which they were reserved. A thread whose turn it is not leaves its range in
//!    `done` and waits; whoever publishes the one before publishes it too. So a thread that is preempted in the middle of
//!    its copy holds up those behind it once, and not one after the other (which costs a switch of threads per record
//!    and, with more threads than cores, never ends: 0.11 M/s against 3.2 M/s for four threads on two cores).
//! 5. The mapping lives as long as the `Region`; everything lent out borrows from it.
//!
//! Rule 3 holds as long as nobody else writes to or truncates the file; the store's lock and the directory's
//! permissions guard that, and checksums find what they cannot (docs/durability.md).

use std::fmt;
use std::io;
use std::ops::Range;
#[cfg(feature = "testing")]
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use memmap2::{MmapOptions, MmapRaw};
use parking_lot::{Condvar, Mutex};

use crate::directory::prefetch;

/// Set in `reserved` while nothing more may be appended.
const CLOSED: u64 = 1 << 63;

/// Looks at `published` before a thread goes to sleep: longer than a copy takes, shorter than a switch of threads.
const SPINS: u32 = 300;
/// Longest sleep between two looks.
const SLEEP_MAX: Duration = Duration::from_micros(200);

/// Bytes of a cache line, or fewer.
const LINE_BYTES: usize = 64;
/// Lines that are asked for ahead of a read: head, key and 100 bytes of value.
const PREFETCHED_LINES: usize = 3;

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

    /// These bytes, without a file.
    pub(crate) fn copy_of(bytes: &[u8]) -> io::Result<Map> {
        let mut map = MmapOptions::new().len(bytes.len()).map_anon()?;
        map.copy_from_slice(bytes);
        Ok(Map::unwatched(map.into()))
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
    /// Filled out of turn: start and end of each range.
    done: Mutex<Vec<(u64, u64)>>,
    /// Length of `done`.
    done_len: AtomicUsize,
    /// Threads asleep until `published` moves.
    asleep: AtomicUsize,
    moved: Condvar,
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
        Region {
            map,
            bytes,
            reserved: AtomicU64::new(reserved),
            published: AtomicU64::new(filled),
            done: Mutex::default(),
            done_len: AtomicUsize::new(0),
            asleep: AtomicUsize::new(0),
            moved: Condvar::new(),
        }
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
        self.wait_for(end);
        end
    }

    /// Publishes a range that has been filled, and returns when it is published.
    #[inline]
    fn publish(&self, start: u64, end: u64) {
        if self.published.load(Ordering::Acquire) == start {
            self.tell(start, end);
            // Only the owner of the range that starts here may move on: nobody else stores now.
            self.published.store(end, Ordering::SeqCst);
            // Either this load sees the range that somebody left, or they see the store above (both SeqCst).
            if self.done_len.load(Ordering::SeqCst) != 0 {
                self.publish_done(&mut self.done.lock());
            }
        } else {
            self.publish_out_of_turn(start, end);
        }
    }

    /// Says that these bytes are complete, before they count as published: so that whoever syncs past them finds them told.
    #[inline]
    #[cfg_attr(not(feature = "testing"), allow(unused_variables, reason = "nobody listens in production"))]
    fn tell(&self, start: u64, end: u64) {
        #[cfg(feature = "testing")]
        if let Some(watch) = &self.map.watch {
            // SAFETY: the range was reserved and filled by a thread that has given it over by now (in its turn, or through
            // `done`), and lies inside the mapping (rule 1).
            let bytes = unsafe {
                std::slice::from_raw_parts(self.map.memory.as_ptr().add(start as usize), (end - start) as usize)
            };
            watch.published(start, bytes);
        }
    }

    #[cold]
    fn publish_out_of_turn(&self, start: u64, end: u64) {
        {
            let mut done = self.done.lock();
            done.push((start, end));
            self.done_len.store(done.len(), Ordering::SeqCst);
            self.publish_done(&mut done);
        }
        self.wait_for(end);
    }

    /// Publishes what was left in `done` and now has its turn.
    fn publish_done(&self, done: &mut Vec<(u64, u64)>) {
        let mut moved = false;
        loop {
            let published = self.published.load(Ordering::SeqCst);
            let Some(next) = done.iter().position(|(start, _)| *start == published) else { break };
            let (start, end) = done.swap_remove(next);
            self.tell(start, end);
            self.published.store(end, Ordering::SeqCst);
            moved = true;
        }
        self.done_len.store(done.len(), Ordering::SeqCst);
        if moved && self.asleep.load(Ordering::Relaxed) != 0 {
            self.moved.notify_all();
        }
    }

    /// Waits until all before `end` is published. That takes as long as another thread's copy, unless that thread was
    /// preempted in the middle of it: then this one sleeps, so that the other may run.
    fn wait_for(&self, end: u64) {
        let published = || self.published.load(Ordering::Acquire) >= end;
        for _ in 0..SPINS {
            if published() {
                return;
            }
            std::hint::spin_loop();
        }
        let mut done = self.done.lock();
        self.asleep.fetch_add(1, Ordering::Relaxed);
        while !published() {
            // Bounded, because who publishes in turn and finds `done` empty wakes nobody.
            self.moved.wait_for(&mut done, SLEEP_MAX);
        }
        self.asleep.fetch_sub(1, Ordering::Relaxed);
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

    /// Asks for the cache lines from `at` on that a record of a short key and value takes. A hint.
    #[inline]
    pub(crate) fn prefetch(&self, at: u64) {
        let bytes = self.slice(at..self.published()).unwrap_or_default();
        bytes.iter().step_by(LINE_BYTES).take(PREFETCHED_LINES).for_each(prefetch);
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
        self.region.publish(self.at, self.at + self.len);
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
