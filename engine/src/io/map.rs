//! Mapped memory with a safe door: append-only regions.
//!
//! A [`Region`] is a file mapping (or anonymous memory) that is filled from front to back, by many threads at once, and
//! read by many more. Where files are not to be mapped it is a [`window`](super::window) instead. This file holds the engine's `unsafe` for mappings; what keeps it sound:
//!
//! 1. `published <= reserved <= limit <= bytes`, and the file reaches to `limit` at least: a page past the end of the file is
//!    a trap. `published` and the offset in `reserved` only rise.
//! 2. A byte range is reserved once, by one compare-exchange on `reserved`: reservations are disjoint.
//! 3. Bytes below `published` never change again, and only those are lent out as `&[u8]`.
//! 4. Ranges are published in the order in which they were reserved. A thread whose turn it is not leaves its range in
//!    `done` and waits; whoever publishes the one before publishes it too. So a thread that is preempted in the middle of
//!    its copy holds up those behind it once, and not one after the other (which costs a switch of threads per record
//!    and, with more threads than cores, never ends: 0.11 M/s against 3.2 M/s for four threads on two cores).
//! 5. The mapping lives as long as the `Region`; everything lent out borrows from it.
//! 6. `limit` is lowered only while the region is closed and nothing is reserved that is not published; opening it again
//!    changes `reserved`, so that no exchange succeeds that was begun with the old limit.
//! 7. A `Map` with `of_file` is a shared mapping of a file.
//! 8. Of a guarded mapping nothing is lent: bytes are copied, and the copy counts if the mapping has not faulted since, or if
//!    its checksum is right.
//!
//! Rule 3 holds as long as nobody else writes to or truncates the file; the store's lock and the directory's
//! permissions guard that, and checksums find what they cannot (docs/durability.md).

use std::borrow::Cow;
#[cfg(target_os = "linux")]
use std::cell::Cell;
use std::fmt;
use std::io;
use std::ops::{Deref, Range};
use std::sync::Arc;
#[cfg(all(target_os = "linux", not(miri)))]
use std::sync::atomic::AtomicU8;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

#[cfg(target_os = "linux")]
use crossbeam_epoch as epoch;
use crossbeam_epoch::Guard;
use memmap2::{MmapOptions, MmapRaw};
use parking_lot::{Condvar, Mutex};

#[cfg(target_os = "linux")]
use super::guard::Guarded;
#[cfg(feature = "testing")]
use super::pool::Pooled;
use super::window::Unmapped;
use super::{Disk, File, read_full};
use crate::directory::prefetch;

/// Set in `reserved` while nothing more may be appended.
const CLOSED: u64 = 1 << 63;
/// Added to `reserved` whenever it is opened again, so that a reservation that was begun before fails (rule 6). It wraps
/// after 32,768 times, which would have to pass while one thread stands between two instructions.
const TURN: u64 = 1 << 48;
/// The part of `reserved` that is an offset.
const OFFSET: u64 = TURN - 1;

/// Looks at `published` before a thread goes to sleep: longer than a copy takes, shorter than a switch of threads.
const SPINS: u32 = 300;
/// Longest sleep between two looks.
const SLEEP_MAX: Duration = Duration::from_micros(200);

/// Bytes of a cache line, or fewer.
const LINE_BYTES: usize = 64;
/// Lines that are asked for ahead of a read: head, key and 100 bytes of value.
const PREFETCHED_LINES: usize = 3;

/// From this many bytes on a copy goes past the caches: it would push out all that is in the nearest ones.
const PAST_CACHES_BYTES: usize = 32 << 10;

/// See [`copy_into_caches`].
const PIECE_BYTES: usize = 2 << 10;
const PAGE_BYTES: usize = 4 << 10;

/// A mapping; in a simulation one that is used again.
#[cfg(not(feature = "testing"))]
type Mapping = MmapRaw;
#[cfg(feature = "testing")]
type Mapping = Pooled;

#[cfg(not(feature = "testing"))]
fn mapping(memory: MmapRaw) -> Mapping {
    memory
}

#[cfg(feature = "testing")]
fn mapping(memory: MmapRaw) -> Mapping {
    Pooled::alone(memory)
}

/// Memory of `len` bytes without a file: zeros.
fn blank(len: usize) -> io::Result<Mapping> {
    #[cfg(feature = "testing")]
    if super::simulated() {
        return Pooled::copied(&[], len);
    }
    Ok(mapping(MmapOptions::new().len(len).map_anon()?.into()))
}

/// Memory without a file, a copy of these bytes.
fn copy(bytes: &[u8]) -> io::Result<Mapping> {
    #[cfg(feature = "testing")]
    if super::simulated() {
        return Pooled::copied(bytes, bytes.len());
    }
    let mut memory = MmapOptions::new().len(bytes.len()).map_anon()?;
    memory.copy_from_slice(bytes);
    Ok(mapping(memory.into()))
}

/// Memory of a mapping, not yet a region: what the seam hands out.
pub(crate) struct Map {
    memory: Mapping,
    /// Of a file: the system has the bytes, whether or not this process has the pages.
    #[cfg_attr(not(target_os = "linux"), allow(dead_code, reason = "only Linux is told to let go of pages"))]
    of_file: bool,
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
    /// Maps the first `bytes` bytes of `file`, shared with every other mapping of it. Those past its end must not be touched
    /// before the file reaches there.
    pub(crate) fn file(file: &std::fs::File, bytes: u64, writable: bool) -> io::Result<Map> {
        let len = usize::try_from(bytes).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        let mut options = MmapOptions::new();
        options.len(len);
        let memory = if writable { options.map_raw(file)? } else { options.map_raw_read_only(file)? };
        Ok(Map { of_file: true, ..Map::unwatched(mapping(memory)) })
    }

    /// These bytes, without a file.
    pub(crate) fn copy_of(bytes: &[u8]) -> io::Result<Map> {
        Ok(Map::unwatched(copy(bytes)?))
    }

    /// Zeroed memory without a file.
    pub(crate) fn anonymous(bytes: u64) -> io::Result<Map> {
        let len = usize::try_from(bytes).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        Ok(Map::unwatched(blank(len)?))
    }

    /// `len` bytes of memory that begin as a copy of `bytes`, and whose use `watch` is told of.
    #[cfg(feature = "testing")]
    pub(crate) fn copied(bytes: &[u8], len: usize, watch: Option<Arc<dyn Watch>>) -> io::Result<Map> {
        Ok(Map { memory: Pooled::copied(bytes, len)?, of_file: false, watch })
    }

    #[cfg(all(target_os = "linux", not(miri)))]
    fn is_watched(&self) -> bool {
        #[cfg(feature = "testing")]
        let is_watched = self.watch.is_some();
        #[cfg(not(feature = "testing"))]
        let is_watched = false;
        is_watched
    }

    /// Writes to one page of `range` after the other, as long as each such fault makes several of them present: the system does so where
    /// it keeps the file in large pieces, and that takes less than the call for all of them, which looks at each. Where it ended; nothing
    /// is changed. The file reaches to the end of `range`, and nobody uses the bytes.
    #[cfg(all(target_os = "linux", not(miri)))]
    fn touch(&self, range: Range<usize>) -> usize {
        /// Pages between two looks at the number of faults, and how many of those are worth it.
        const PAGES: usize = 16;
        const FAULTS_MAX: i64 = 4;
        assert!(range.start <= range.end && range.end <= self.memory.len(), "pages outside of a mapping");
        let mut faults = minor_faults();
        for stretch in range.clone().step_by(PAGES * PAGE_BYTES) {
            let end = (stretch + PAGES * PAGE_BYTES).min(range.end);
            for at in (stretch..end).step_by(PAGE_BYTES) {
                // SAFETY: within the mapping, which is of a file that reaches there and writable; atomic, and of no effect, whoever
                // else looks at it.
                unsafe { AtomicU8::from_ptr(self.memory.as_mut_ptr().add(at)) }.fetch_or(0, Ordering::Relaxed);
            }
            let before = std::mem::replace(&mut faults, minor_faults());
            if faults - before > FAULTS_MAX {
                return end;
            }
        }
        range.end
    }

    fn unwatched(memory: Mapping) -> Map {
        Map {
            memory,
            of_file: false,
            #[cfg(feature = "testing")]
            watch: None,
        }
    }
}

/// Pages that this thread has found missing and the system had at hand.
#[cfg(all(target_os = "linux", not(miri)))]
fn minor_faults() -> i64 {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: memory for the answer, which is numbers, so that zeros stand for one as well.
    unsafe {
        libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr());
        usage.assume_init().ru_minflt
    }
}

/// A private mapping of a file: as the file was, and what is written to it stays in this process. Read as bytes first, then
/// shared as words.
pub(crate) struct Private(Mapping);

impl Private {
    /// Maps the first `bytes` bytes of `file`.
    pub(crate) fn file(file: &std::fs::File, bytes: u64) -> io::Result<Private> {
        let len = usize::try_from(bytes).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        // SAFETY: the mapping is this process's own, so that what is lent of it changes only through it. Nobody writes to or
        // truncates the file meanwhile (as for the other mappings, see the file header): it is written before its name
        // counts and never after.
        let memory = unsafe { MmapOptions::new().len(len).map_copy(file)? };
        #[cfg(target_os = "linux")]
        let _ = memory.advise(memmap2::Advice::PopulateRead);
        Ok(Private(mapping(memory.into())))
    }

    /// These bytes, without a file.
    pub(crate) fn copy_of(bytes: &[u8]) -> io::Result<Private> {
        Ok(Private(copy(bytes)?))
    }

    /// The first `bytes` bytes of `file` on `disk`, mapped only if that disk's files are.
    pub(crate) fn of(disk: &dyn Disk, file: &dyn File, bytes: u64) -> io::Result<Private> {
        if disk.unmapped().is_none() {
            return file.map_private(bytes);
        }
        // A length from the disk sizes an allocation only where the file is as long.
        if file.len()? < bytes {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let len = usize::try_from(bytes).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        let mut memory = MmapOptions::new().len(len).map_anon()?;
        if read_full(file, 0, &mut memory)? < len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Private(mapping(memory.into())))
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: all of the mapping, which is this process's own and nobody writes: it is shared only when `self` is gone.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr(), self.0.len()) }
    }

    /// The same memory, to be written from now on.
    pub(crate) fn share(self) -> Words {
        Words(self.0)
    }
}

/// Memory of a private mapping as words that any thread may write.
pub(crate) struct Words(Mapping);

impl Words {
    /// Memory without a file that has a page of so many bytes in it, if the system has such pages, zeros; and where that begins. As if it were
    /// one where there are none.
    pub(crate) fn page(bytes: usize) -> Option<(Words, usize)> {
        let memory: MmapRaw = MmapOptions::new().len(2 * bytes).map_anon().ok()?.into();
        let begin = memory.as_ptr().addr().next_multiple_of(bytes) - memory.as_ptr().addr();
        #[cfg(all(target_os = "linux", not(miri)))]
        let _ = memory.advise_range(memmap2::Advice::HugePage, begin, bytes);
        Some((Words(mapping(memory)), begin))
    }

    /// Makes a range of bytes ready for writes all over it. What the first write to a page costs (the system copies it, and tells the
    /// other processors) is a third for many of them at once.
    pub(crate) fn expect_writes(&self, range: Range<usize>) {
        // Miri takes no advice.
        #[cfg(all(target_os = "linux", not(miri)))]
        if range.start <= range.end && range.end <= self.0.len() {
            let begin = range.start - range.start % PAGE_BYTES;
            let _ = self.0.advise_range(memmap2::Advice::PopulateWrite, begin, range.end - begin);
        }
        #[cfg(not(all(target_os = "linux", not(miri))))]
        let _ = range;
    }

    /// The words of a range of bytes; `None` if it is not within, or not of whole words.
    pub(crate) fn get(&self, range: Range<usize>) -> Option<&[AtomicU64]> {
        const WORD: usize = size_of::<AtomicU64>();
        let whole = range.start.is_multiple_of(WORD) && range.end.is_multiple_of(WORD);
        if range.start > range.end || range.end > self.0.len() || !whole {
            return None;
        }
        // SAFETY: the range is within the mapping, which begins at a page, and of whole words; the mapping lives as long as
        // `self`, and since it was shared its memory is looked at through such words only.
        Some(unsafe {
            std::slice::from_raw_parts(
                self.0.as_mut_ptr().add(range.start).cast::<AtomicU64>(),
                (range.end - range.start) / WORD,
            )
        })
    }
}

/// The number of the file system that a directory is on, as statfs(2) has it; `None` where it cannot be told.
#[cfg(target_os = "linux")]
#[allow(clippy::disallowed_methods, reason = "the seam itself")]
fn file_system(dir: &std::path::Path) -> Option<u32> {
    use std::os::fd::AsRawFd;
    let dir = std::fs::File::open(dir).ok()?;
    let mut about = std::mem::MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: an open descriptor, and memory for the answer.
    if unsafe { libc::fstatfs(dir.as_raw_fd(), about.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: the call has filled it in.
    Some(unsafe { about.assume_init() }.f_type as u32)
}

#[cfg(not(target_os = "linux"))]
fn file_system(_dir: &std::path::Path) -> Option<u32> {
    None
}

/// Whether the directory is on a file system that puts what is written over a byte elsewhere (Bcachefs, Btrfs, ZFS): that takes space, also
/// where all of a file is there, and a mapping has no way to say that there is none but a signal.
pub(crate) fn copies_on_write(dir: &std::path::Path) -> bool {
    file_system(dir).is_some_and(|magic| [0xca45_1a4e, 0x9123_683e, 0x2fc1_2fc1].contains(&magic))
}

/// Whether the directory is on a file system where a mapping may end the process by a signal, or not see what was written by
/// another way: one of a network or of user space; for a reader also one laid over others, where a file that somebody writes
/// becomes another one than that which was opened to be read. Where it cannot be told, it is not.
pub(crate) fn mapping_is_a_hazard(dir: &std::path::Path, read_only: bool) -> bool {
    /// 9P, AFS (two), CEPH, CIFS, CODA, FUSE, GFS2, LUSTRE, NCP, NFS, OCFS2, SMB, SMB2, VBOXSF.
    const HAZARDS: [u32; 15] = [
        0x0102_1997,
        0x5346_414f,
        0x6b41_4653,
        0x00c3_6400,
        0xff53_4d42,
        0x7375_7245,
        0x6573_5546,
        0x0116_1970,
        0x0bd0_0bd0,
        0x0000_564c,
        0x0000_6969,
        0x7461_636f,
        0x0000_517b,
        0xfe53_4d42,
        0x786f_4256,
    ];
    const OVERLAY: u32 = 0x794c_7630;
    file_system(dir).is_some_and(|magic| HAZARDS.contains(&magic) || read_only && magic == OVERLAY)
}

/// On cache lines of its own: what one processor changes all the time must not take from the others what lies beside it.
#[derive(Default)]
#[repr(align(128))]
pub(crate) struct Apart<T>(T);

impl<T> Deref for Apart<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.0
    }
}

/// How far a region is filled.
struct Ends {
    /// Flag, turn and offset.
    reserved: AtomicU64,
    published: AtomicU64,
    /// Length of `Region::done`.
    done_len: AtomicUsize,
}

/// A mapping filled from front to back; see the file header for what holds.
pub(crate) struct Region {
    memory: Memory,
    bytes: u64,
    /// What may be appended to: all of it stands on the disk.
    limit: AtomicU64,
    ends: Apart<Ends>,
    /// Filled out of turn: start and end of each range.
    done: Mutex<Vec<(u64, u64)>>,
    /// Threads asleep until `published` moves.
    asleep: AtomicUsize,
    moved: Condvar,
}

/// Where the bytes of a region are.
enum Memory {
    Mapped(Map),
    Unmapped(Arc<Unmapped>),
    /// Mapped, and pages of it may go (rule 8).
    #[cfg(target_os = "linux")]
    Guarded {
        /// Before the mapping, which it must not outlive.
        guarded: Guarded,
        map: Map,
        file: Arc<dyn File>,
    },
}

/// The region has no room for the reservation, or is closed.
#[derive(Debug)]
pub(crate) struct Full;

impl Memory {
    /// A guarded mapping, if `disk` asks for one and there can be one more.
    fn guarded(disk: &dyn Disk, file: &Arc<dyn File>, bytes: u64, writable: bool) -> io::Result<Option<Memory>> {
        if !disk.guards() {
            return Ok(None);
        }
        let map = file.map(bytes, writable)?;
        #[cfg(target_os = "linux")]
        if let Some(guarded) = Guarded::new(map.memory.as_ptr(), map.memory.len())? {
            return Ok(Some(Memory::Guarded { guarded, map, file: file.clone() }));
        }
        drop(map);
        Ok(None)
    }

    /// The mapping, if there is one.
    #[cfg(target_os = "linux")]
    fn map(&self) -> Option<&Map> {
        match self {
            Memory::Mapped(map) => Some(map),
            Memory::Unmapped(_) => None,
            #[cfg(target_os = "linux")]
            Memory::Guarded { map, .. } => Some(map),
        }
    }

    /// Whether pages of it were found gone.
    fn check(&self) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        if let Memory::Guarded { guarded, .. } = self
            && guarded.has_faulted()
        {
            return Err(gone());
        }
        Ok(())
    }
}

#[cfg(target_os = "linux")]
#[cold]
fn gone() -> io::Error {
    io::Error::other("a part of the mapped file is gone: it was cut short, or the device has failed")
}

/// Asks for the first cache lines of these bytes, as many as a record of a short key and value takes. A hint.
#[inline]
pub(crate) fn prefetch_record(bytes: &[u8]) {
    bytes.iter().step_by(LINE_BYTES).take(PREFETCHED_LINES).for_each(prefetch);
}

/// Copies `from` to `into`, which is as long, for somebody else to read, or nobody soon. A large copy goes past the caches: lines
/// that are overwritten as a whole are then not read from memory first, which was half of the time (64 KiB to memory that is in
/// no cache: 6.4 us before, 3.5 us now).
#[inline]
pub(crate) fn copy_out(from: &[u8], into: &mut [u8]) {
    if from.len() < PAST_CACHES_BYTES { copy_into_caches(from, into) } else { copy_past_caches(from, into) }
}

/// As `copy_from_slice`. The GNU C library copies more than [`PIECE_BYTES`] by one instruction of the processor's, which on some (Zen 3)
/// takes eight times as long (4 KiB) or 27 times (64 KiB) where `from` lies, within a page, up to 31 bytes before `into`: one
/// place of 132, if they are where they happen to be. Piece by piece it takes another way.
#[inline]
fn copy_into_caches(from: &[u8], into: &mut [u8]) {
    let before = (into.as_ptr() as usize).wrapping_sub(from.as_ptr() as usize) % PAGE_BYTES;
    if from.len() <= PIECE_BYTES || !(1..32).contains(&before) {
        return into.copy_from_slice(from);
    }
    assert_eq!(from.len(), into.len());
    for (from, into) in from.chunks(PIECE_BYTES).zip(into.chunks_mut(PIECE_BYTES)) {
        into.copy_from_slice(from);
    }
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
#[inline(never)]
fn copy_past_caches(from: &[u8], into: &mut [u8]) {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_sfence, _mm_stream_si128};
    assert_eq!(from.len(), into.len());
    // What such a store writes is aligned, and is best a whole line at a time.
    let lead = into.as_ptr().align_offset(LINE_BYTES).min(into.len());
    let (from_lead, from) = from.split_at(lead);
    let (into_lead, into) = into.split_at_mut(lead);
    into_lead.copy_from_slice(from_lead);
    let (from_lines, from_rest) = from.as_chunks::<LINE_BYTES>();
    let (into_lines, into_rest) = into.as_chunks_mut::<LINE_BYTES>();
    // SAFETY: four times 16 bytes are the 64 of a line, borrowed from both slices for this; `into` is aligned to that. SSE2, which has
    // these instructions, is part of every x86-64. Such stores are not ordered with others: the fence comes before whatever
    // follows, so that whoever is told of these bytes sees them.
    unsafe {
        for (from, into) in from_lines.iter().zip(into_lines) {
            let (from, into) = (from.as_ptr().cast::<__m128i>(), into.as_mut_ptr().cast::<__m128i>());
            for i in 0..LINE_BYTES / size_of::<__m128i>() {
                _mm_stream_si128(into.add(i), _mm_loadu_si128(from.add(i)));
            }
        }
        _mm_sfence();
    }
    into_rest.copy_from_slice(from_rest);
}

#[cfg(not(all(target_arch = "x86_64", not(miri))))]
fn copy_past_caches(from: &[u8], into: &mut [u8]) {
    into.copy_from_slice(from);
}

impl Region {
    /// A region over `map` whose first `filled` bytes are already there; `open` if more may be appended.
    pub(crate) fn new(map: Map, filled: u64, open: bool) -> Region {
        let bytes = map.memory.len() as u64;
        Region::over(Memory::Mapped(map), bytes, filled, bytes, open)
    }

    /// The first `bytes` bytes of `file` on `disk`, to be read.
    pub(crate) fn of_file(disk: &dyn Disk, file: &Arc<dyn File>, bytes: u64) -> io::Result<Region> {
        if let Some(memory) = Memory::guarded(disk, file, bytes, false)? {
            return Ok(Region::over(memory, bytes, bytes, bytes, false));
        }
        let memory = match disk.unmapped() {
            None => Memory::Mapped(file.map(bytes, false)?),
            Some(_) if file.len()? < bytes => return Err(io::ErrorKind::UnexpectedEof.into()),
            Some(budget) => Memory::Unmapped(Unmapped::closed(file.clone(), bytes, budget.clone())),
        };
        Ok(Region::over(memory, bytes, bytes, bytes, false))
    }

    /// `file` on `disk`, to be appended to up to byte `limit`, and up to byte `bytes` when it has been extended. The first
    /// `filled` bytes are there.
    pub(crate) fn to_fill(
        disk: &dyn Disk,
        file: &Arc<dyn File>,
        bytes: u64,
        filled: u64,
        limit: u64,
    ) -> io::Result<Region> {
        if let Some(memory) = Memory::guarded(disk, file, bytes, true)? {
            return Ok(Region::over(memory, bytes, filled, limit, true));
        }
        let memory = match disk.unmapped() {
            None => Memory::Mapped(file.map(bytes, true)?),
            Some(budget) => Memory::Unmapped(Unmapped::open(file.clone(), bytes, filled, budget.clone())?),
        };
        Ok(Region::over(memory, bytes, filled, limit, true))
    }

    fn over(memory: Memory, bytes: u64, filled: u64, limit: u64, open: bool) -> Region {
        assert!(
            filled <= limit && limit <= bytes && bytes <= OFFSET,
            "a region of {bytes} bytes cannot hold {filled} of {limit}"
        );
        let reserved = if open { filled } else { filled | CLOSED };
        Region {
            memory,
            bytes,
            limit: AtomicU64::new(limit),
            ends: Apart(Ends {
                reserved: AtomicU64::new(reserved),
                published: AtomicU64::new(filled),
                done_len: AtomicUsize::new(0),
            }),
            done: Mutex::default(),
            asleep: AtomicUsize::new(0),
            moved: Condvar::new(),
        }
    }

    /// The same bytes, of which only the first `filled` count; takes no more.
    pub(crate) fn cut(self, filled: u64) -> Region {
        match self.memory {
            Memory::Mapped(map) => Region::new(map, filled, false),
            Memory::Unmapped(old) => {
                let memory = Unmapped::closed(old.file.clone(), filled, old.budget.clone());
                Region::over(Memory::Unmapped(memory), filled, filled, filled, false)
            }
            #[cfg(target_os = "linux")]
            guarded @ Memory::Guarded { .. } => Region::over(guarded, self.bytes, filled, self.bytes, false),
        }
    }

    /// Size of the mapping.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes that are complete and will not change.
    #[inline]
    pub(crate) fn published(&self) -> u64 {
        self.ends.published.load(Ordering::Acquire)
    }

    /// Bytes that may be appended to.
    pub(crate) fn limit(&self) -> u64 {
        self.limit.load(Ordering::Acquire)
    }

    /// Lets the first `limit` bytes be appended to; they are there.
    pub(crate) fn extend(&self, limit: u64) {
        assert!(limit <= self.bytes, "a region of {} bytes is not extended to {limit}", self.bytes);
        self.limit.fetch_max(limit, Ordering::Release);
    }

    /// Bytes that were ever reserved: somebody may be filling the last of them.
    pub(crate) fn reserved(&self) -> u64 {
        self.ends.reserved.load(Ordering::Acquire) & OFFSET
    }

    /// Takes the next `len` bytes; the caller fills and publishes them. Never waits.
    #[inline]
    pub(crate) fn reserve(&self, len: u64) -> Result<Reservation<'_>, Full> {
        self.reserve_keeping(len, 0)
    }

    /// As [`Region::reserve`], if `kept` bytes are left after that.
    #[inline]
    pub(crate) fn reserve_keeping(&self, len: u64, kept: u64) -> Result<Reservation<'_>, Full> {
        let mut now = self.ends.reserved.load(Ordering::Acquire);
        loop {
            // In this order: if the limit has been lowered since the load above, the exchange below fails.
            let limit = self.limit.load(Ordering::Acquire);
            let at = now & OFFSET;
            let fits = at.checked_add(len).and_then(|end| end.checked_add(kept)).is_some_and(|end| end <= limit);
            if now & CLOSED != 0 || !fits {
                return Err(Full);
            }
            match self.ends.reserved.compare_exchange_weak(now, now + len, Ordering::Acquire, Ordering::Acquire) {
                Ok(_) => return Ok(Reservation { region: self, at, len }),
                Err(other) => now = other,
            }
        }
    }

    /// Ends appending, waits for reservations under way, and returns the final length; an error if some of them could not be
    /// written. Idempotent.
    pub(crate) fn close(&self) -> io::Result<u64> {
        let end = self.ends.reserved.fetch_or(CLOSED, Ordering::AcqRel) & OFFSET;
        match &self.memory {
            Memory::Unmapped(unmapped) => unmapped.wait_for(end, &self.ends.published)?,
            _ => self.wait_for(end),
        }
        self.memory.check()?;
        Ok(end)
    }

    /// Whether nothing can be reserved, whatever the limit.
    pub(crate) fn is_closed(&self) -> bool {
        self.ends.reserved.load(Ordering::Acquire) & CLOSED != 0
    }

    /// Says that the region, which is closed, will not be opened again: where the file is not mapped all is in it by now, and the
    /// memory that it was put together in can be had again. Whether it is on the disk does not matter: a slow one would have
    /// memory grow without bound.
    pub(crate) fn release_memory(&self) {
        if let Memory::Unmapped(unmapped) = &self.memory {
            unmapped.close(self.published());
        }
    }

    /// Lowers the limit of a closed region, which must not go below what is filled.
    pub(crate) fn lower(&self, limit: u64) {
        assert!(
            self.ends.reserved.load(Ordering::Acquire) & CLOSED != 0 && self.published() <= limit,
            "lowered in use"
        );
        self.limit.fetch_min(limit, Ordering::Release);
    }

    /// Publishes a range that has been filled, and returns when it is published. An error: it could not be written, and
    /// nothing behind it will be.
    #[inline]
    fn publish(&self, start: u64, end: u64) -> io::Result<()> {
        match &self.memory {
            Memory::Mapped(map) => self.publish_in_turn(map, start, end),
            Memory::Unmapped(unmapped) => return unmapped.append(start, end, &self.ends.published),
            #[cfg(target_os = "linux")]
            Memory::Guarded { map, .. } => {
                self.publish_in_turn(map, start, end);
                // What was put together on a page that is gone is in no file.
                return self.memory.check();
            }
        }
        Ok(())
    }

    #[inline]
    fn publish_in_turn(&self, map: &Map, start: u64, end: u64) {
        if self.ends.published.load(Ordering::Acquire) == start {
            self.tell(map, start, end);
            // Only the owner of the range that starts here may move on: nobody else stores now.
            self.ends.published.store(end, Ordering::SeqCst);
            // Either this load sees the range that somebody left, or they see the store above (both SeqCst).
            if self.ends.done_len.load(Ordering::SeqCst) != 0 {
                self.publish_done(map, &mut self.done.lock());
            }
        } else {
            self.publish_out_of_turn(map, start, end);
        }
    }

    /// Says that these bytes are complete, before they count as published: so that whoever syncs past them finds them told.
    #[inline]
    #[cfg_attr(not(feature = "testing"), allow(unused_variables, reason = "nobody listens in production"))]
    fn tell(&self, map: &Map, start: u64, end: u64) {
        #[cfg(feature = "testing")]
        if let Some(watch) = &map.watch {
            // SAFETY: the range was reserved and filled by a thread that has given it over by now (in its turn, or through
            // `done`), and lies inside the mapping (rule 1).
            let bytes =
                unsafe { std::slice::from_raw_parts(map.memory.as_ptr().add(start as usize), (end - start) as usize) };
            watch.published(start, bytes);
        }
    }

    #[cold]
    fn publish_out_of_turn(&self, map: &Map, start: u64, end: u64) {
        {
            let mut done = self.done.lock();
            done.push((start, end));
            self.ends.done_len.store(done.len(), Ordering::SeqCst);
            self.publish_done(map, &mut done);
        }
        self.wait_for(end);
    }

    /// Publishes what was left in `done` and now has its turn.
    fn publish_done(&self, map: &Map, done: &mut Vec<(u64, u64)>) {
        let mut moved = false;
        loop {
            let published = self.ends.published.load(Ordering::SeqCst);
            let Some(next) = done.iter().position(|(start, _)| *start == published) else { break };
            let (start, end) = done.swap_remove(next);
            self.tell(map, start, end);
            self.ends.published.store(end, Ordering::SeqCst);
            moved = true;
        }
        self.ends.done_len.store(done.len(), Ordering::SeqCst);
        if moved && self.asleep.load(Ordering::Relaxed) != 0 {
            self.moved.notify_all();
        }
    }

    /// Waits until all before `end` is published. That takes as long as another thread's copy, unless that thread was
    /// preempted in the middle of it: then this one sleeps, so that the other may run.
    fn wait_for(&self, end: u64) {
        let published = || self.ends.published.load(Ordering::Acquire) >= end;
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

    /// Undoes [`Region::close`]. Only for whoever closed it.
    pub(crate) fn reopen(&self) {
        let now = self.ends.reserved.load(Ordering::Relaxed);
        // Nobody else stores while it is closed.
        self.ends.reserved.store((now & !CLOSED).wrapping_add(TURN) & !CLOSED, Ordering::Release);
    }

    /// The published bytes of `range`; `None` if it reaches past them, or the file is not mapped (or guarded).
    #[inline]
    pub(crate) fn slice(&self, range: Range<u64>) -> Option<&[u8]> {
        let Memory::Mapped(map) = &self.memory else { return None };
        if range.start > range.end || range.end > self.published() {
            return None;
        }
        // SAFETY: the range lies below `published`, so inside the mapping and never written again (rules 1 and 3); the
        // Acquire load above orders the writer's copy before this read. The borrow keeps the mapping alive (rule 5).
        Some(unsafe {
            std::slice::from_raw_parts(
                map.memory.as_ptr().add(range.start as usize),
                (range.end - range.start) as usize,
            )
        })
    }

    /// As [`Region::slice`], from `start` to the end of what is published, which is looked up once.
    #[inline]
    pub(crate) fn rest(&self, start: u64) -> Option<&[u8]> {
        let Memory::Mapped(map) = &self.memory else { return None };
        let len = self.published().checked_sub(start)?;
        // SAFETY: as in `slice`: the range ends where `published` does.
        Some(unsafe { std::slice::from_raw_parts(map.memory.as_ptr().add(start as usize), len as usize) })
    }

    /// Whether [`Region::slice`] lends anything.
    pub(crate) fn is_mapped(&self) -> bool {
        matches!(self.memory, Memory::Mapped(_))
    }

    /// The published bytes of `range`, wherever they are. `InvalidInput` if it reaches past them.
    pub(crate) fn slice_in<'g>(&'g self, range: Range<u64>, guard: &'g Guard) -> io::Result<&'g [u8]> {
        match &self.memory {
            Memory::Mapped(_) => self.slice(range).ok_or_else(|| io::ErrorKind::InvalidInput.into()),
            _ if range.start > range.end || range.end > self.published() => Err(io::ErrorKind::InvalidInput.into()),
            Memory::Unmapped(unmapped) => unmapped.slice(range, guard),
            #[cfg(target_os = "linux")]
            Memory::Guarded { guarded, map, file } => copy_of_guarded(guarded, map, &**file, range, guard),
        }
    }

    /// The published bytes of `range`, for who goes through all of them: where the file is not mapped, read for this alone.
    pub(crate) fn read(&self, range: Range<u64>) -> io::Result<Cow<'_, [u8]>> {
        let file = match &self.memory {
            Memory::Mapped(_) => {
                return self.slice(range).map(Cow::Borrowed).ok_or_else(|| io::ErrorKind::InvalidInput.into());
            }
            Memory::Unmapped(unmapped) => &unmapped.file,
            #[cfg(target_os = "linux")]
            Memory::Guarded { file, .. } => file,
        };
        if range.start > range.end || range.end > self.published() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let len = (range.end - range.start) as usize;
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(len).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        bytes.resize(len, 0);
        if read_full(&**file, range.start, &mut bytes)? < len {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file is shorter than it should be"));
        }
        Ok(Cow::Owned(bytes))
    }

    /// Where the first byte is in memory, for who appends.
    #[inline]
    fn first_byte(&self) -> *mut u8 {
        match &self.memory {
            Memory::Mapped(map) => map.memory.as_mut_ptr(),
            Memory::Unmapped(unmapped) => unmapped.first_byte(),
            #[cfg(target_os = "linux")]
            Memory::Guarded { map, .. } => map.memory.as_mut_ptr(),
        }
    }

    /// Asks for the cache lines from `at` on that a record of a short key and value takes. A hint.
    #[inline]
    pub(crate) fn prefetch(&self, at: u64) {
        prefetch_record(self.rest(at).unwrap_or_default());
    }

    /// Waits until the published bytes of `range` are on the disk. For anonymous memory there is nothing to wait for.
    pub(crate) fn sync(&self, range: Range<u64>) -> io::Result<()> {
        let map = match &self.memory {
            Memory::Mapped(map) => map,
            Memory::Unmapped(unmapped) => return unmapped.file.sync(),
            #[cfg(target_os = "linux")]
            Memory::Guarded { map, .. } => {
                map.memory.flush_range(range.start as usize, (range.end - range.start) as usize)?;
                return self.memory.check();
            }
        };
        #[cfg(feature = "testing")]
        if let Some(watch) = &map.watch {
            return watch.sync(range);
        }
        // Miri has no call for it, and maps no files.
        if cfg!(miri) && !map.of_file {
            return Ok(());
        }
        map.memory.flush_range(range.start as usize, (range.end - range.start) as usize)
    }

    /// Makes the pages of `range`, which the file has and nobody has reserved anything of, present for writing, so that appending
    /// does not fault. A hint: errors do not matter, the fault comes later instead.
    pub(crate) fn populate(&self, range: Range<u64>) {
        // Miri takes no advice.
        #[cfg(all(target_os = "linux", not(miri)))]
        if let Some(map) = self.memory.map().filter(|map| !map.is_watched()) {
            let (begin, end) = (range.start as usize, range.end as usize);
            let touched = map.touch(begin..end);
            let _ = map.memory.advise_range(memmap2::Advice::PopulateWrite, touched, end - touched);
        }
        #[cfg(not(all(target_os = "linux", not(miri))))]
        let _ = range;
    }

    /// As [`Region::sync`] of many bytes, all of them published.
    ///
    /// The system, before it writes a page, takes the right to write it from every mapping, and tells the other processors of
    /// each page by itself: that costs more than all else, and interrupts whoever reads and writes meanwhile. So the pages
    /// are let go of first, all at once, and are made present again after.
    pub(crate) fn write_back(&self, range: Range<u64>) -> io::Result<()> {
        // Others may be appending to the page where the range ends.
        let pages = range.start.next_multiple_of(4096)..range.end - range.end % 4096;
        self.let_go(&pages);
        let synced = self.sync(range);
        self.read_ahead(pages.start, pages.end);
        synced
    }

    /// Waits until all that is filled, and the length of `file`, are on the disk, for a region that takes no more; what comes
    /// before `from`, the beginning of a page, was written back already.
    pub(crate) fn sync_closed(&self, file: &dyn super::File, from: u64) -> io::Result<()> {
        self.let_go(&(from..self.bytes));
        let synced = file.sync();
        self.read_ahead(from, self.published());
        self.memory.check()?;
        synced
    }

    #[cfg(target_os = "linux")]
    fn let_go(&self, range: &Range<u64>) {
        if let Memory::Mapped(map) = &self.memory
            && map.of_file
            && range.start < range.end
        {
            let (at, len) = (range.start as usize, (range.end - range.start) as usize);
            // SAFETY: the mapping is a shared one of a file (rule 7): its bytes are the system's, who reads or writes one
            // gets the same page again.
            let _ = unsafe { map.memory.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, at, len) };
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn let_go(&self, _range: &Range<u64>) {}

    /// Asks the system to have the pages from `from` to `to` present for reading: all of them will be read at once. A hint.
    pub(crate) fn read_ahead(&self, from: u64, to: u64) {
        #[cfg(target_os = "linux")]
        if from < to
            && to <= self.bytes
            && let Some(map) = self.memory.map().filter(|map| map.of_file)
        {
            let from = from - from % 4096;
            let _ = map.memory.advise_range(memmap2::Advice::PopulateRead, from as usize, (to - from) as usize);
        }
        #[cfg(not(target_os = "linux"))]
        let _ = (from, to);
    }
}

/// Bytes of a guarded mapping, copied: they live as long as the guard. The copy comes first and the look at the mark after it, so that
/// whoever reads a blank page is told.
#[cfg(target_os = "linux")]
fn copy_of_guarded<'g>(
    guarded: &Guarded,
    map: &Map,
    file: &dyn File,
    range: Range<u64>,
    guard: &'g Guard,
) -> io::Result<&'g [u8]> {
    /// After so many bytes the collector is called: by itself it takes up a few copies for each hundred guards, and who goes through a
    /// store makes hundreds under one.
    const COLLECTED_BYTES: usize = 64 << 10;
    thread_local! {
        static COPIED: Cell<usize> = const { Cell::new(0) };
    }
    let (start, len) = (range.start as usize, (range.end - range.start) as usize);
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(len).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
    // SAFETY: published bytes, inside the mapping; the copy has room for them. Should a page go meanwhile they are blank.
    unsafe {
        std::ptr::copy_nonoverlapping(map.memory.as_ptr().add(start), bytes.as_mut_ptr(), len);
        bytes.set_len(len);
    }
    if guarded.has_faulted() {
        // Some page is gone, perhaps none of these: the file itself says. What it does not have, or cannot give, is an error.
        if read_full(file, range.start, &mut bytes)? < len {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file is shorter than it should be"));
        }
    }
    let bytes = epoch::Owned::new(bytes).into_shared(guard);
    // SAFETY: nobody else has it, and it goes when this guard, and all that are held now, are gone.
    let lent = unsafe {
        guard.defer_destroy(bytes);
        bytes.deref()
    };
    COPIED.set(COPIED.get() + len);
    if COPIED.get() >= COLLECTED_BYTES {
        COPIED.set(0);
        guard.flush();
    }
    Ok(lent)
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
        // SAFETY: the range was reserved by this value alone (rule 2), lies inside the memory (rule 1), and is lent to
        // nobody else before it is published (rule 3), which consumes `self`.
        unsafe { std::slice::from_raw_parts_mut(self.region.first_byte().add(self.at as usize), self.len as usize) }
    }

    /// Makes the bytes readable, after those reserved before. Waits only for the copies of other threads, and where the file
    /// is not mapped for their being handed to the system. An error: that failed, and nothing behind them will be published
    /// either.
    #[inline]
    pub(crate) fn publish(self) -> io::Result<()> {
        let this = std::mem::ManuallyDrop::new(self);
        this.region.publish(this.at, this.at + this.len)
    }
}

impl Drop for Reservation<'_> {
    #[inline]
    fn drop(&mut self) {
        // Who could be told is gone; the next one to publish is.
        let _ = self.region.publish(self.at, self.at + self.len);
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
        r.publish().unwrap();
        assert_eq!(region.slice(0..5).unwrap(), b"hello");
        assert!(region.slice(0..6).is_none());
    }

    #[test]
    fn a_large_copy_is_a_copy_wherever_it_begins_and_ends() {
        let from: Vec<u8> = (0..PAST_CACHES_BYTES + 300).map(|i| (i % 251) as u8).collect();
        for lead in [0, 1, 15, 16, 63, 64] {
            for len in
                [0, 1, 63, 64, 65, 127, 128, 200, PAST_CACHES_BYTES - 1, PAST_CACHES_BYTES, PAST_CACHES_BYTES + 77]
            {
                let mut into = vec![0xee; len + 200];
                let from = &from[3..3 + len];
                copy_past_caches(from, &mut into[lead..lead + len]);
                assert_eq!(&into[lead..lead + len], from);
                assert!(into[..lead].iter().chain(&into[lead + len..]).all(|b| *b == 0xee), "{lead}, {len}");
                into[lead..lead + len].fill(0);
                copy_out(from, &mut into[lead..lead + len]);
                assert_eq!(&into[lead..lead + len], from);
            }
        }
    }

    #[test]
    fn a_copy_is_one_wherever_in_a_page_it_is_from() {
        let from: Vec<u8> = (0..3 * PAGE_BYTES).map(|i| (i ^ i >> 8) as u8).collect();
        let mut into = vec![0xee; 4 * PAGE_BYTES];
        // Where they are equally far into a page.
        let begin = (from.as_ptr() as usize).wrapping_sub(into.as_ptr() as usize) % PAGE_BYTES;
        for len in [PIECE_BYTES, PIECE_BYTES + 1, 5001] {
            for before in (0..PAGE_BYTES).step_by(61).chain(0..34) {
                let into_all = &mut into[begin..][before..];
                copy_out(&from[..len], &mut into_all[..len]);
                assert!(into_all[..len] == from[..len], "{len} bytes, {before} before");
                assert_eq!(into_all[len], 0xee);
                into_all[..len].fill(0xee);
            }
        }
    }

    #[test]
    fn a_full_or_closed_region_takes_nothing() {
        let region = region(16);
        region.reserve(10).unwrap().publish().unwrap();
        assert!(region.reserve(7).is_err());
        assert_eq!(region.close().unwrap(), 10);
        assert!(region.reserve(1).is_err());
        assert_eq!(region.close().unwrap(), 10);
        region.lower(12);
        region.reopen();
        assert!(region.reserve(3).is_err(), "the limit was lowered");
        assert!(region.reserve_keeping(2, 1).is_err());
        region.extend(16);
        region.reserve(6).unwrap().publish().unwrap();
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
                        r.publish().unwrap();
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
