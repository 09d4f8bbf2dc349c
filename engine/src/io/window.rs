//! A file that is not mapped, as memory all the same: for where a mapping is a hazard (see docs/decisions/0010).
//! Flow: `Region` -> here -> `File`. Any thread.
//!
//! While a file is appended to, all of it is in memory: records are put together there and written, in log order, before they
//! count as published. A file that takes no more is read where somebody looks, in pieces of 4 KiB, and forgotten as a whole
//! when the files of a store have taken more memory than their [`Budget`] allows; who still looks at it keeps what was there.
//! Errors of the disk are errors here, and a file that has become too short is one: no signals.
//!
//! What keeps it sound:
//! 1. A piece is written once, under its lock, before its bit in `present` is set, and never again. Only pieces whose bit is
//!    set are lent.
//! 2. Memory that is appended to is under the rules of `Region`; it is replaced only when the region takes no more.
//! 3. What is replaced lives until every guard is gone under which it was looked at (`Cell`).

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use crossbeam_epoch::{self as epoch, Guard};
use memmap2::{MmapOptions, MmapRaw};
use parking_lot::{Condvar, Mutex};

use super::{File, read_full, write_full};
use crate::directory::Cell;

/// Bytes read at a time, and forgotten by.
const PIECE_BYTES: u64 = 4096;
/// Pieces of a word of bits: those are read under one lock.
const PIECES: u64 = u64::BITS as u64;
/// Locks of a window; neighbouring words have different ones.
const LOCKS: usize = 8;

/// How much memory the files of a store may take that are not mapped and take no more.
#[derive(Debug)]
pub(crate) struct Budget {
    bytes_max: u64,
    used: AtomicU64,
    /// All files that can be forgotten; the one to be looked at next in front.
    files: Mutex<VecDeque<Weak<Unmapped>>>,
}

/// One file.
pub(crate) struct Unmapped {
    pub(crate) file: Arc<dyn File>,
    window: Cell<Window>,
    /// Somebody looked since the budget was last exceeded.
    looked_at: AtomicBool,
    pub(crate) budget: Arc<Budget>,
    queue: Mutex<Queue>,
    written: Condvar,
}

/// Ranges that are filled and not yet in the file.
#[derive(Default)]
struct Queue {
    ranges: Vec<(u64, u64)>,
    /// A thread is writing.
    busy: bool,
    /// A write has failed, and none is made any more.
    failed: Option<(io::ErrorKind, String)>,
}

enum Window {
    /// The file is appended to.
    Whole(MmapRaw),
    Pieces(Pieces),
}

struct Pieces {
    /// Bytes of the file that count; it has at least as many.
    bytes: u64,
    /// Made when somebody looks.
    memory: OnceLock<MmapRaw>,
    /// A bit a piece.
    present: Box<[AtomicU64]>,
    reading: [Mutex<()>; LOCKS],
    /// What of the budget this takes.
    counted: AtomicU64,
    budget: Arc<Budget>,
}

impl Budget {
    pub(crate) fn new(bytes_max: u64) -> Budget {
        Budget { bytes_max, used: AtomicU64::new(0), files: Mutex::default() }
    }

    /// Bytes of memory taken.
    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    fn is_exceeded(&self) -> bool {
        self.used() > self.bytes_max
    }

    /// Forgets files that nobody has looked at for the longest time, until the rest is within bounds.
    #[cold]
    fn make_room(&self, guard: &Guard) {
        // Who comes while somebody is at it already goes on: the bound is one for the order of size.
        let Some(mut files) = self.files.try_lock() else { return };
        let mut looks = 2 * files.len();
        while self.is_exceeded() && looks > 0 {
            looks -= 1;
            let Some(weak) = files.pop_front() else { break };
            let Some(file) = weak.upgrade() else { continue };
            if !file.looked_at.swap(false, Ordering::Relaxed) {
                file.forget(guard);
            }
            files.push_back(weak);
        }
        drop(files);
        guard.flush();
    }
}

fn length(bytes: u64) -> io::Result<usize> {
    usize::try_from(bytes).map_err(|_| io::ErrorKind::OutOfMemory.into())
}

/// Zeroed memory, of which only the pages touched are had.
fn memory(bytes: u64) -> io::Result<MmapRaw> {
    let memory = MmapOptions::new().len(length(bytes)?.max(1)).map_anon()?;
    // Otherwise a piece might take as much as 2 MiB.
    #[cfg(all(target_os = "linux", not(miri)))]
    let _ = memory.advise(memmap2::Advice::NoHugePage);
    Ok(memory.into())
}

fn too_short() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the file is shorter than it should be")
}

impl Unmapped {
    fn new(file: Arc<dyn File>, window: Window, budget: Arc<Budget>) -> Arc<Unmapped> {
        Arc::new(Unmapped {
            file,
            window: Cell::new(window),
            looked_at: AtomicBool::new(false),
            budget,
            queue: Mutex::default(),
            written: Condvar::new(),
        })
    }

    /// The first `bytes` bytes of a file, to be read.
    pub(crate) fn closed(file: Arc<dyn File>, bytes: u64, budget: Arc<Budget>) -> Arc<Unmapped> {
        let unmapped = Unmapped::new(file, Window::Pieces(Pieces::new(bytes, budget.clone())), budget);
        unmapped.budget.files.lock().push_back(Arc::downgrade(&unmapped));
        unmapped
    }

    /// A file of up to `capacity` bytes to be appended to behind the first `filled` ones.
    pub(crate) fn open(
        file: Arc<dyn File>,
        capacity: u64,
        filled: u64,
        budget: Arc<Budget>,
    ) -> io::Result<Arc<Unmapped>> {
        let memory = memory(capacity)?;
        // SAFETY: memory of our own that nobody else has seen yet, at least `capacity` bytes long.
        let into = unsafe { std::slice::from_raw_parts_mut(memory.as_mut_ptr(), length(filled.min(capacity))?) };
        if read_full(&*file, 0, into)? < into.len() {
            return Err(too_short());
        }
        Ok(Unmapped::new(file, Window::Whole(memory), budget))
    }

    /// Lends bytes of the file; while it is appended to, only such as are published.
    pub(crate) fn slice<'g>(&self, range: Range<u64>, guard: &'g Guard) -> io::Result<&'g [u8]> {
        let (start, len) = (length(range.start)?, length(range.end - range.start)?);
        let memory = match self.window.load(guard) {
            Window::Whole(memory) => memory,
            Window::Pieces(pieces) => {
                if !self.looked_at.load(Ordering::Relaxed) {
                    self.looked_at.store(true, Ordering::Relaxed);
                }
                pieces.load(&*self.file, range.clone())?
            }
        };
        if range.end > memory.len() as u64 {
            return Err(too_short());
        }
        // SAFETY: the range is within the memory, and of it nothing is written any more: of pieces that are present
        // (rule 1), or below `published` of the region (rule 2). The memory lives as long as the guard (rule 3).
        let bytes = unsafe { std::slice::from_raw_parts(memory.as_ptr().add(start), len) };
        if self.budget.is_exceeded() {
            self.budget.make_room(guard);
        }
        Ok(bytes)
    }

    /// Where the file's first byte is in memory, while it is appended to.
    pub(crate) fn first_byte(&self) -> *mut u8 {
        match self.window.load(&epoch::pin()) {
            Window::Whole(memory) => memory.as_mut_ptr(),
            Window::Pieces(_) => unreachable!("appended to a file that takes no more"),
        }
    }

    /// Says that the file takes no more, and that its first `bytes` bytes count: what is in memory of it can be had again.
    pub(crate) fn close(self: &Arc<Self>, bytes: u64) {
        let guard = &epoch::pin();
        if matches!(self.window.load(guard), Window::Whole(_)) {
            self.window.replace(Window::Pieces(Pieces::new(bytes, self.budget.clone())), guard);
            self.budget.files.lock().push_back(Arc::downgrade(self));
            guard.flush();
        }
    }

    /// Drops what was read of a file that takes no more.
    fn forget(&self, guard: &Guard) {
        let Window::Pieces(pieces) = self.window.load(guard) else { return };
        if pieces.counted.load(Ordering::Relaxed) == 0 {
            return;
        }
        self.window.replace(Window::Pieces(Pieces::new(pieces.bytes, self.budget.clone())), guard);
        // What others go on to read of it is counted until they let go of it.
        pieces.uncount();
    }

    /// Writes the range to the file when all before it was, and has `publish` say so; returns when that is done. Many threads
    /// at once: one of them writes what several have left.
    pub(crate) fn append(&self, start: u64, end: u64, published: &AtomicU64) -> io::Result<()> {
        let mut queue = self.queue.lock();
        queue.ranges.push((start, end));
        loop {
            queue.check()?;
            let from = published.load(Ordering::Acquire);
            if from >= end {
                return Ok(());
            }
            let to = if queue.busy { from } else { queue.take_from(from) };
            if to == from {
                self.written.wait(&mut queue);
                continue;
            }
            queue.busy = true;
            drop(queue);
            // SAFETY: these ranges were filled by threads that have given them over (`queue`), and are written no more; the
            // memory stays because the file is still appended to (rule 2).
            let bytes =
                unsafe { std::slice::from_raw_parts(self.first_byte().add(from as usize), (to - from) as usize) };
            let written = write_full(&*self.file, from, bytes);
            queue = self.queue.lock();
            queue.busy = false;
            match written {
                Ok(()) => published.store(to, Ordering::SeqCst),
                Err(e) => queue.failed = Some((e.kind(), e.to_string())),
            }
            self.written.notify_all();
        }
    }

    /// Waits until all before `end` is written; an error if it will not be.
    pub(crate) fn wait_for(&self, end: u64, published: &AtomicU64) -> io::Result<()> {
        let mut queue = self.queue.lock();
        while published.load(Ordering::Acquire) < end {
            queue.check()?;
            self.written.wait(&mut queue);
        }
        queue.check()
    }
}

impl Queue {
    /// Takes the ranges that follow `from` without a gap; where they end.
    fn take_from(&mut self, from: u64) -> u64 {
        let mut to = from;
        while let Some(next) = self.ranges.iter().position(|(start, _)| *start == to) {
            to = self.ranges.swap_remove(next).1;
        }
        to
    }

    fn check(&self) -> io::Result<()> {
        match &self.failed {
            None => Ok(()),
            Some((kind, message)) => Err(io::Error::new(*kind, message.clone())),
        }
    }
}

impl Pieces {
    fn new(bytes: u64, budget: Arc<Budget>) -> Pieces {
        let words = bytes.div_ceil(PIECE_BYTES * PIECES);
        Pieces {
            bytes,
            memory: OnceLock::new(),
            present: (0..words).map(|_| AtomicU64::new(0)).collect(),
            reading: Default::default(),
            counted: AtomicU64::new(0),
            budget,
        }
    }

    fn memory(&self) -> io::Result<&MmapRaw> {
        if let Some(memory) = self.memory.get() {
            return Ok(memory);
        }
        let made = memory(self.bytes)?;
        Ok(self.memory.get_or_init(|| made))
    }

    /// Sees to it that the pieces of a range are present.
    fn load(&self, file: &dyn File, range: Range<u64>) -> io::Result<&MmapRaw> {
        let memory = self.memory()?;
        if range.end > self.bytes {
            return Err(too_short());
        }
        let (first, end) = (range.start / PIECE_BYTES, range.end.div_ceil(PIECE_BYTES));
        let mut piece = first;
        while piece < end {
            let word = piece / PIECES;
            let next = end.min((word + 1) * PIECES);
            let wanted = (u64::MAX >> (PIECES - (next - piece))) << (piece % PIECES);
            if self.present[word as usize].load(Ordering::Acquire) & wanted != wanted {
                self.read(file, memory, word, wanted)?;
            }
            piece = next;
        }
        Ok(memory)
    }

    /// Reads those of the wanted pieces of a word that are not present.
    #[cold]
    fn read(&self, file: &dyn File, memory: &MmapRaw, word: u64, wanted: u64) -> io::Result<()> {
        let present = &self.present[word as usize];
        let _reading = self.reading[word as usize % LOCKS].lock();
        let mut missing = wanted & !present.load(Ordering::Relaxed);
        while missing != 0 {
            let first = missing.trailing_zeros();
            let pieces = (missing >> first).trailing_ones();
            let start = (word * PIECES + u64::from(first)) * PIECE_BYTES;
            let end = (start + u64::from(pieces) * PIECE_BYTES).min(self.bytes);
            // SAFETY: within the memory, which has `bytes` bytes. Nobody looks at these pieces, which are not present, and
            // nobody else writes them, under this lock (rule 1).
            let into = unsafe {
                std::slice::from_raw_parts_mut(memory.as_mut_ptr().add(start as usize), (end - start) as usize)
            };
            if read_full(file, start, into)? < into.len() {
                return Err(too_short());
            }
            let taken = u64::from(pieces) * PIECE_BYTES;
            self.counted.fetch_add(taken, Ordering::Relaxed);
            self.budget.used.fetch_add(taken, Ordering::Relaxed);
            let read = (u64::MAX >> (u64::BITS - pieces)) << first;
            present.fetch_or(read, Ordering::Release);
            missing &= !read;
        }
        Ok(())
    }

    fn uncount(&self) {
        self.budget.used.fetch_sub(self.counted.swap(0, Ordering::Relaxed), Ordering::Relaxed);
    }
}

impl Drop for Pieces {
    fn drop(&mut self) {
        self.uncount();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::Disk;
    use crate::io::memory::MemoryDisk;

    const BYTES: usize = if cfg!(miri) { 20_000 } else { 600_000 };
    const BUDGET: u64 = if cfg!(miri) { 16 << 10 } else { 128 << 10 };

    /// What the files hold: made, and compared, in one go, since Miri takes half a minute for as many bytes one by one.
    fn content() -> &'static [u8] {
        static CONTENT: OnceLock<Vec<u8>> = OnceLock::new();
        CONTENT.get_or_init(|| {
            let mut bytes = vec![0; BYTES];
            bytes.chunks_mut(7).enumerate().for_each(|(i, chunk)| chunk.fill(i as u8));
            bytes
        })
    }

    fn file(disk: &MemoryDisk, name: &str) -> Arc<dyn File> {
        let file = disk.create(name).unwrap();
        write_full(&*file, 0, content()).unwrap();
        file
    }

    fn is_right(bytes: &[u8], at: usize) -> bool {
        *bytes == content()[at..at + bytes.len()]
    }

    #[test]
    fn memory_stays_within_the_budget_and_every_read_is_right() {
        let disk = MemoryDisk::default();
        let budget = Arc::new(Budget::new(BUDGET));
        let files: Vec<_> =
            (0..4).map(|i| Unmapped::closed(file(&disk, &i.to_string()), BYTES as u64, budget.clone())).collect();
        let mut at = 1;
        for round in 0..if cfg!(miri) { 20 } else { 4000 } {
            at = at * 48271 % 0x7fff_ffff;
            let (start, len) = (at % BYTES, (at >> 7) % 9000);
            let end = (start + len).min(BYTES);
            let guard = &epoch::pin();
            let bytes = files[round % 4].slice(start as u64..end as u64, guard).unwrap();
            assert!(bytes.len() == end - start && is_right(bytes, start));
            assert!(budget.used() <= BUDGET + 3 * 12_288, "{} bytes", budget.used());
        }
        drop(files);
        // Other tests hold on to epochs for a while.
        for _ in 0..100_000 {
            if budget.used() == 0 {
                break;
            }
            epoch::pin().flush();
            std::thread::yield_now();
        }
        assert_eq!(budget.used(), 0, "all of it is given back");
    }

    #[test]
    fn what_was_lent_stays_when_it_is_forgotten() {
        let disk = MemoryDisk::default();
        let budget = Arc::new(Budget::new(0));
        let unmapped = Unmapped::closed(file(&disk, "f"), BYTES as u64, budget);
        let guard = &epoch::pin();
        let first = unmapped.slice(100..9000, guard).unwrap();
        for at in (0..BYTES as u64 - 5000).step_by(BYTES / 12) {
            assert!(is_right(unmapped.slice(at..at + 5000, guard).unwrap(), at as usize));
        }
        assert!(is_right(first, 100));
    }

    #[test]
    fn threads_that_read_the_same_pieces_see_whole_ones() {
        let disk = MemoryDisk::default();
        let budget = Arc::new(Budget::new(BYTES as u64 / 15));
        let unmapped = Unmapped::closed(file(&disk, "f"), BYTES as u64, budget);
        std::thread::scope(|scope| {
            for thread in 0..4usize {
                let unmapped = &unmapped;
                scope.spawn(move || {
                    for round in 0..if cfg!(miri) { 10 } else { 3000 } {
                        let at = (round * 4099 + thread * 17) % (BYTES - 6000);
                        let guard = &epoch::pin();
                        assert!(is_right(unmapped.slice(at as u64..at as u64 + 6000, guard).unwrap(), at));
                    }
                });
            }
        });
    }

    #[test]
    fn a_file_that_has_become_too_short_is_an_error() {
        let disk = MemoryDisk::default();
        let file = file(&disk, "f");
        let unmapped = Unmapped::closed(file.clone(), BYTES as u64, Arc::new(Budget::new(1 << 20)));
        let guard = &epoch::pin();
        unmapped.slice(0..10, guard).unwrap();
        file.set_len(5000).unwrap();
        assert_eq!(unmapped.slice(4000..9000, guard).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(unmapped.slice(4000..4096, guard).unwrap(), &content()[4000..4096]);
        assert!(unmapped.slice(0..BYTES as u64 + 1, guard).is_err());
    }
}
