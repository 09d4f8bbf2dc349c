//! The log: every record of the store, in segments; one of them active, the others closed.
//! Flow: `commit` -> here -> `Region`; a [`Place`] -> here -> [`Record`]. The background worker prepares, syncs, seals.
//!
//! A *place* is where a record is now: an address slot of 64 MiB and the offset in it, in units of 4 bytes. Slots are
//! handed out at open and reused. A *position* is when it was written: the bytes logged before it since the store was
//! made. Positions are never reused and rise with every commit: they are what versions are made of.
//!
//! Invariants:
//! 1. A segment is in the manifest, its header on the disk, before the first record goes into it.
//! 2. All below `durable` is on the disk; `durable` only rises.
//! 3. Segments become durable in the order of their positions, so that what a crash leaves is a prefix.
//! 4. Lock order: shard locks, then `making`, then `grow`, then `manifest`, then `unsynced`.

pub(crate) mod record;
pub(crate) mod replay;
mod reserve;

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Weak};
use std::time::Duration;

use crossbeam_epoch::{self as epoch, Guard};
use parking_lot::{Mutex, MutexGuard};

use crate::checkpoint;
use crate::checksum::Seed;
use crate::directory::{Cell, PLACE_BITS, Place};
use crate::error::{Error, ErrorKind, Result};
use crate::io::map::{Map, Region, Reservation};
use crate::io::memory::MemoryDisk;
use crate::io::{self as seam, Disk};
use crate::manifest::edit::Edit;
use crate::manifest::superblock::Superblock;
use crate::manifest::{self, CheckpointEntry, Manifest};
use crate::run;
use crate::seeded::{Bug, seeded};
use crate::segment::{self, HEADER_BYTES, Header, PAGE_BYTES, Segment};
use record::{Prepared, Purpose, Record};

/// Bytes of an address slot; a larger segment takes several.
pub(crate) const SLOT_BYTES: u64 = 64 << 20;
const SLOT_SHIFT: u32 = 24; // SLOT_BYTES in units of record::ALIGN
pub(crate) const SLOTS_MAX: usize = 1 << (PLACE_BITS - SLOT_SHIFT);
/// While no more slots are taken than that, segments get those of all that they could come to.
const SLOTS_PLENTY: usize = SLOTS_MAX / 16;
/// The first segment of a young store.
const FIRST_SEGMENT_BYTES: u64 = 4 << 20;
/// A writer that crosses a multiple of this looks whether it should slow down.
const PACE_SHIFT: u32 = 18; // 256 KiB
/// A segment is about so small a part of the log: what is kept ready, and what cleaning needs, stay small beside it.
const SEGMENTS_PER_LOG: u64 = 16;
/// Most space that is prepared at a time, before others are let at the lock; a writer waits for it. The thread that prepares
/// space has up to sixteen times as much ready.
const PREPARED_BYTES_MAX: u64 = 256 << 10;
/// Bytes for which the disk is asked to find blocks at a time, and the part of what is free that they are at most.
const PROMISED_BYTES: u64 = 16 << 20;
const PLENTY_SHARE: u64 = 64;
/// The zeros of a log whose commits are synced one by one are written in pieces of this size. Linux keeps as one what is written in
/// one call, and a byte changed in it through a mapping makes all of it dirty: a sync of one record would write 256 KiB to the
/// disk instead of 4.
pub(crate) const SYNCED_PIECE_BYTES: usize = PAGE_BYTES as usize;
/// How long a writer waits for the lock before it looks whether somebody else has made room.
const ROOM_WAIT: Duration = Duration::from_micros(50);
/// Bytes of a closed segment that are written back at a time: some ten milliseconds on a slow disk.
const SYNC_BYTES: u64 = 4 << 20;
/// Files of segments that were given up that are kept for segments to come.
const SPARES_MAX: usize = 2;

/// A writer is asked to ring for the background thread, which has something to do that it does not know of ...
pub(crate) const RING: u8 = 1;
/// ... to wake those who wait for commits ...
pub(crate) const WAKE: u8 = 2;
/// ... and to ring for the thread that prepares space.
pub(crate) const SPACE: u8 = 4;

/// Everything about the segments of an open store.
pub(crate) struct Log {
    disk: Arc<dyn Disk>,
    store: u64,
    segment_bytes_max: u64,
    verify: bool,
    /// Writers wait for the disk as a rule.
    syncs: bool,
    /// See [`crate::Options`].
    always_late: bool,
    manifest: Mutex<Manifest>,
    /// By address slot.
    slots: Cell<Vec<Option<Arc<Segment>>>>,
    active: Cell<Arc<Segment>>,
    grow: Mutex<Grow>,
    /// Held by whoever makes the next segment: that waits for the disk, and others extend the active one meanwhile.
    making: Mutex<()>,
    /// Closed and not yet durable, oldest first, then those durable and not yet sealed.
    unsynced: Mutex<Vec<Arc<Segment>>>,
    unsealed: Mutex<Vec<Arc<Segment>>>,
    durable: AtomicU64,
    /// The durable mark last written into a record.
    marked: AtomicU64,
    /// There is a next segment: the active one may be filled to its end.
    next_ready: AtomicBool,
    /// What the next writer is asked to do once its write is visible: [`RING`], [`WAKE`], [`SPACE`].
    asked: AtomicU8,
    /// What a writer pauses for every 256 KiB, while cleaning lags behind.
    brake_us: AtomicU64,
    /// Given up, but readers may still hold places in them.
    retired: Mutex<Vec<Retired>>,
    /// Given up, and their files kept to become those of segments to come; the oldest first.
    spares: Mutex<Vec<Spare>>,
    /// See `reserve`: its files and how many they are; somebody got no space; the active segment, or the next one, is made of a
    /// reserve that is not whole again; how much writers wanted at most; the cleaner can free nothing; what it has yet to move, in a starved store.
    reserve: Mutex<Vec<Spare>>,
    reserved_files: AtomicUsize,
    starved: AtomicBool,
    owes: AtomicBool,
    wanted: AtomicU64,
    hopeless: AtomicBool,
    to_move: AtomicU64,
    /// Segments that are gone, and that words of a checkpoint may still point into.
    ghosts: Mutex<Vec<Arc<Segment>>>,
    /// The log position from which on writers wake the background thread.
    wake_at: AtomicU64,
}

/// A segment that the directory no longer points into.
struct Retired {
    segment: Arc<Segment>,
    /// Set when every reader that was there when it was given up is gone.
    unreachable: Arc<AtomicBool>,
}

/// The file of a segment that the log does not know any more.
struct Spare {
    number: u64,
    salt: u64,
    /// As many as the segment was to take; in the reserve, as the file has the disk's space for.
    bytes: u64,
    /// While anybody holds this, its bytes are looked at.
    region: Weak<Region>,
}

impl Spare {
    /// Whether nobody looks at its bytes any more.
    fn is_free(&self) -> bool {
        // A simulation has one thread, which looks at nothing here, and must not depend on the collector's other threads.
        let free = self.region.strong_count() == 0 || seam::simulated();
        // What the last of them has read, it has read before what is written from here on.
        fence(Ordering::Acquire);
        free
    }
}

/// What making the next segment needs.
struct Grow {
    next: Option<Arc<Segment>>,
    number: u64,
    base: u64,
    /// The store was closed: nothing is made ready or taken over any more.
    closed: bool,
}

/// Where a log that was recovered goes on.
pub(crate) struct Resume {
    /// Segments that hold records, in order; none of them takes more.
    pub(crate) segments: Vec<Arc<Segment>>,
    /// What keeps the address slots of segments that are gone.
    pub(crate) ghosts: Vec<Arc<Segment>>,
    /// The last of them, where the store was closed and it may take more.
    pub(crate) active: Option<Arc<Segment>>,
    /// All below this log position is on the disk.
    pub(crate) durable: u64,
    /// First log position that was never used.
    pub(crate) base: u64,
    /// First segment number that was never used.
    pub(crate) number: u64,
}

/// A log that holds still: a prefix of it, and the files that hold that prefix at one moment.
pub(crate) struct Snapshot {
    pub(crate) superblock: Superblock,
    /// What the manifest says at that moment.
    pub(crate) state: manifest::State,
    /// Segments with records before `position`, oldest first, each with the offset where those end. They stay readable,
    /// whatever becomes of their files.
    pub(crate) segments: Vec<(Arc<Segment>, u64)>,
    /// A log position between two commits.
    pub(crate) position: u64,
}

/// A record that stands in the log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Appended {
    pub(crate) place: Place,
    /// The log position of the record: its version.
    pub(crate) position: u64,
    /// The log position after it.
    pub(crate) end: u64,
}

/// Space taken in the active segment, to be filled at once.
pub(crate) struct Space<'g> {
    pub(crate) segment: &'g Arc<Segment>,
    reservation: Reservation<'g>,
}

fn place_in(segment: &Segment, offset: u64) -> Place {
    Place((u64::from(segment.first_slot) << SLOT_SHIFT) + offset / record::ALIGN)
}

impl Space<'_> {
    /// What a record of `bytes` bytes, `at` bytes into the space, will be known by.
    pub(crate) fn appended(&self, at: u64, bytes: u64) -> Appended {
        let offset = self.reservation.at() + at;
        let position = self.segment.position(offset);
        Appended { place: place_in(self.segment, offset), position, end: position + bytes }
    }

    /// Writes a record `at` bytes into the space; the bytes it took.
    #[inline]
    pub(crate) fn fill(&mut self, at: u64, record: &Prepared<'_>) -> u64 {
        let bytes = record.bytes();
        let seed = self.segment.seed(self.reservation.at() + at);
        record.write(&mut self.reservation.bytes_mut()[at as usize..(at + bytes) as usize], seed);
        bytes
    }

    /// Makes the records readable and safe from the death of the process. An error: whether they are in the file is not
    /// known, and nothing may be appended any more.
    #[inline]
    pub(crate) fn publish(self) -> Result<()> {
        let segment = self.segment;
        self.reservation.publish().map_err(|e| not_written(segment, e))
    }
}

impl Log {
    pub(crate) fn new(
        disk: Arc<dyn Disk>,
        manifest: Manifest,
        options: &crate::Options,
        resume: Resume,
    ) -> Result<Log> {
        let store = manifest.superblock().store;
        let mut slots = Vec::new();
        resume.segments.iter().chain(&resume.ghosts).for_each(|s| put_in_slots(&mut slots, s));
        let log = Log {
            store,
            segment_bytes_max: options.segment_bytes_max,
            verify: options.verify == crate::Verify::Always,
            syncs: options.durability.waits_for_disk(),
            always_late: options.next_is_late,
            manifest: Mutex::new(manifest),
            slots: Cell::new(slots),
            active: Cell::new(Arc::new(placeholder()?)),
            grow: Mutex::new(Grow {
                next: None,
                number: resume.number,
                base: resume.base.next_multiple_of(PAGE_BYTES),
                closed: false,
            }),
            making: Mutex::default(),
            unsynced: Mutex::default(),
            unsealed: Mutex::default(),
            durable: AtomicU64::new(resume.durable),
            marked: AtomicU64::new(resume.durable),
            next_ready: AtomicBool::new(false),
            asked: AtomicU8::new(0),
            brake_us: AtomicU64::new(0),
            retired: Mutex::default(),
            spares: Mutex::default(),
            reserve: Mutex::default(),
            reserved_files: AtomicUsize::new(0),
            starved: AtomicBool::new(false),
            owes: AtomicBool::new(false),
            wanted: AtomicU64::new(0),
            hopeless: AtomicBool::new(false),
            to_move: AtomicU64::new(0),
            ghosts: Mutex::new(resume.ghosts),
            wake_at: AtomicU64::new(u64::MAX),
            disk,
        };
        let guard = &epoch::pin();
        let active = resume.active;
        let last = resume.segments.last().cloned();
        let closed = resume.segments.into_iter().filter(|s| active.as_ref().is_none_or(|a| !Arc::ptr_eq(a, s)));
        {
            let manifest = log.manifest.lock();
            let sealed =
                |s: &Segment| manifest.state().segments.get(&s.header.number).is_some_and(|e| e.sealed.is_some());
            *log.unsynced.lock() = closed.filter(|s| !sealed(s)).collect();
        }
        if let Some(active) = active.or_else(|| last.clone().filter(|_| log.disk.read_only())) {
            log.active.replace(active, guard);
        } else if !log.disk.read_only() {
            let end = last.map_or(resume.durable, |s| s.end());
            log.make_first()?;
            let first = log.grow.lock().next.take();
            log.next_ready.store(false, Ordering::Relaxed);
            if let Some(first) = first {
                log.activate(&first, end)?;
                log.active.replace(first, guard);
            }
        }
        Ok(log)
    }

    /// Takes `bytes` bytes of the active segment, moving on to the next one if this one is full. While there is no next
    /// one, an eighth of its size is kept for what frees space, and half of that for deletes alone: they and the cleaner go on
    /// where the disk is full. See `reserve` for what comes then.
    #[inline]
    pub(crate) fn reserve<'g>(&self, bytes: u64, purpose: Purpose, guard: &'g Guard) -> Result<Space<'g>> {
        loop {
            let segment = self.active.load(guard);
            let kept = match purpose {
                _ if self.next_ready.load(Ordering::Relaxed) => 0,
                _ if self.starved.load(Ordering::Relaxed) => self.kept_when_starved(segment, bytes, purpose)?,
                Purpose::Freeing => 0,
                Purpose::Cleaning => segment.kept_bytes() / 2,
                Purpose::Growth => segment.kept_bytes(),
            };
            match segment.region.reserve_keeping(bytes, kept) {
                Ok(reservation) => {
                    let (start, end) = (reservation.at(), reservation.at() + bytes);
                    if (start ^ end) >> PACE_SHIFT != 0 {
                        self.keep_pace(segment, end);
                    }
                    return Ok(Space { segment, reservation });
                }
                Err(_) => {
                    let made = self.make_room(segment, bytes, kept, purpose, guard);
                    made.inspect_err(|_| self.take_down_wanted(bytes, purpose))?;
                }
            }
        }
    }

    /// Every now and then: sees to it that space is prepared in time, and that cleaning is not outrun.
    #[cold]
    fn keep_pace(&self, segment: &Segment, end: u64) {
        if segment.position(end) >= self.wake_at.load(Ordering::Relaxed) {
            self.wake_at.store(u64::MAX, Ordering::Relaxed);
            self.asked.fetch_or(RING, Ordering::Relaxed);
        }
        let mut asked = if self.brake_us.load(Ordering::Relaxed) != 0 { RING } else { 0 };
        if self.lacks_space(segment, end) || self.lacks_next(segment, end) {
            asked |= SPACE | RING;
        }
        if asked != 0 {
            self.asked.fetch_or(asked, Ordering::Relaxed);
        }
    }

    /// Whether less is prepared behind `end` than is prepared at a time, and there is more to be had.
    fn lacks_space(&self, segment: &Segment, end: u64) -> bool {
        let kept = if self.next_ready.load(Ordering::Relaxed) { 0 } else { segment.kept_bytes() };
        let target = segment.target();
        segment.region.limit() < (end + kept + prepared_at_a_time(target)).min(target)
    }

    /// Whether it is time to make the next segment: at the rate of a fast writer the second half of this one lasts as long as
    /// the three syncs do that this takes.
    fn lacks_next(&self, segment: &Segment, end: u64) -> bool {
        end > segment.target() / 2 && !self.next_ready.load(Ordering::Relaxed)
    }

    /// Whether somebody makes the next segment: that waits for the disk, and the active one may take more meanwhile.
    fn next_is_late(&self) -> bool {
        (self.making.is_locked() || self.always_late) && !self.next_ready.load(Ordering::Relaxed) && !self.is_starved()
    }

    /// Background: how long a writer is to pause for every 256 KiB logged.
    pub(crate) fn set_brake(&self, pause: Duration) {
        self.brake_us.store(pause.as_micros() as u64, Ordering::Relaxed);
    }

    /// The pause that writers owe at present.
    pub(crate) fn brake(&self) -> Duration {
        Duration::from_micros(self.brake_us.load(Ordering::Relaxed))
    }

    /// The durable mark to be written into the next record, if it is newer than the one last written.
    #[inline]
    pub(crate) fn take_mark(&self) -> Option<u64> {
        let durable = match self.durable.load(Ordering::Acquire) {
            durable if seeded(Bug::MarkTooHigh) => durable.max(self.end(&epoch::pin())),
            durable => durable,
        };
        (durable > self.marked.load(Ordering::Relaxed) && durable > self.marked.fetch_max(durable, Ordering::Relaxed))
            .then_some(durable)
    }

    /// Prepares more of the active segment if that has room for `bytes`, and `kept` more behind them; or the next segment, so
    /// that this one may be filled to its end; or replaces it. Unless somebody else just did.
    #[cold]
    fn make_room(&self, active: &Arc<Segment>, bytes: u64, kept: u64, purpose: Purpose, guard: &Guard) -> Result<()> {
        let missing = {
            let mut grow = loop {
                if let Some(grow) = self.grow.try_lock_for(ROOM_WAIT) {
                    break grow;
                }
                if active.region.reserved() + bytes + kept <= active.region.limit() {
                    return Ok(());
                }
            };
            if grow.closed {
                return Err(Error::new(ErrorKind::Poisoned, "the store was closed"));
            }
            if !Arc::ptr_eq(active, self.active.load(guard)) {
                return Ok(());
            }
            if active.region.is_closed() {
                // Who closes it under this lock opens it again, unless that failed.
                return Err(Error::new(ErrorKind::Poisoned, "the log takes no more after a failure"));
            }
            let (reserved, limit, target) = (active.region.reserved(), active.region.limit(), active.target());
            if reserved + bytes > target && self.rotate(&mut grow, active, bytes, guard)? {
                return Ok(());
            }
            if reserved + bytes + kept > target && self.next_is_late() && active.raise_target() {
                return Ok(());
            }
            let least = (reserved + bytes + kept).min(target);
            if reserved + bytes > target {
                bytes
            } else if limit < least {
                let wanted = limit + prepared_at_a_time(target).min(PREPARED_BYTES_MAX);
                match self.prepare(active, least, wanted) {
                    // What is kept for deletes stands in the next segment by now.
                    Err(e) if e.kind() == ErrorKind::NoSpace && grow.next.is_some() => {
                        if self.rotate(&mut grow, active, bytes, guard)? {
                            return Ok(());
                        }
                        bytes
                    }
                    Err(e) if e.kind() == ErrorKind::NoSpace => {
                        drop(grow);
                        self.starve(&self.making.lock());
                        if purpose == Purpose::Growth {
                            return Err(e);
                        }
                        bytes
                    }
                    prepared => return prepared,
                }
            } else if kept > 0 && limit >= target {
                0
            } else {
                // There is room by now.
                return Ok(());
            }
        };
        self.make_next(missing, purpose)
    }

    /// Lets a segment be filled up to `wanted`, or where there is no space for that on the disk, to `least`. The caller holds
    /// `grow`.
    fn prepare(&self, segment: &Segment, least: u64, wanted: u64) -> Result<()> {
        let limit = segment.region.limit();
        let target = segment.target();
        let wanted = whole_steps(wanted, target).clamp(least, target.max(least));
        let name = segment::file_name(segment.header.number);
        self.promise_ahead(&*segment.file, limit..wanted, target);
        let reserve = |to: u64| match segment.file.reserve(to, self.piece_bytes()) {
            Ok(()) => Ok(to),
            Err(e) => Err(Error::io(format_args!("cannot extend {name}"), e)),
        };
        let is_full = |e: &Error| e.kind() == ErrorKind::NoSpace;
        let reserved = match reserve(wanted) {
            Err(e) if is_full(&e) && self.give_back_free_spares() => reserve(wanted),
            reserved => reserved,
        };
        let reserved = match reserved {
            Err(e) if is_full(&e) && least < wanted => reserve(least),
            reserved => reserved,
        };
        let prepared = reserved.inspect_err(|e| {
            if is_full(e) {
                // A part of it may have been had, which others need more.
                let _ = segment.file.set_len(limit);
            }
        })?;
        if self.syncs {
            // Zeros that are on the disk already make a later sync write just the pages it is about.
            segment.file.sync().map_err(|e| Error::sync(format_args!("cannot sync {name}"), e))?;
        } else {
            segment.region.populate(limit..prepared);
        }
        segment.region.extend(prepared);
        Ok(())
    }

    /// Where the disk has plenty of room, has it find the blocks of a segment some way ahead of the zeros that are written to it, many at
    /// a time: zeros for which none were found yet take half as long again. A hint.
    fn promise_ahead(&self, file: &dyn seam::File, zeros: Range<u64>, target: u64) {
        let is_next = zeros.start == 0 || zeros.start / PROMISED_BYTES != zeros.end / PROMISED_BYTES;
        let has_plenty = || self.disk.space().is_some_and(|space| space.free / PLENTY_SHARE > PROMISED_BYTES);
        if !self.syncs && target >= FIRST_SEGMENT_BYTES && is_next && has_plenty() {
            let _ = file.promise((zeros.end + 1).next_multiple_of(PROMISED_BYTES).min(target));
        }
    }

    /// Replaces the full segment by the next one; whether there is one with room for `bytes`.
    fn rotate(&self, grow: &mut Grow, full: &Arc<Segment>, bytes: u64, guard: &Guard) -> Result<bool> {
        let Some(next) = grow.next.take_if(|next| has_room(next, bytes)) else { return Ok(false) };
        let activated = full.region.close().map_err(|e| not_written(full, e)).and_then(|end| {
            let activated = self.activate(&next, full.position(end));
            activated.inspect_err(|_| full.region.reopen())
        });
        if let Err(e) = activated {
            grow.next = Some(next);
            return Err(e);
        }
        full.region.release_memory();
        self.unsynced.lock().push(full.clone());
        self.next_ready.store(false, Ordering::Relaxed);
        self.active.replace(next, guard);
        guard.flush();
        self.asked.fetch_or(RING | SPACE, Ordering::Relaxed);
        Ok(true)
    }

    /// Writes the link: from here on records may follow.
    fn activate(&self, next: &Arc<Segment>, end: u64) -> Result<()> {
        let link = segment::encode_link(next.header.salt, end);
        let mut reservation = next
            .region
            .reserve(link.len() as u64)
            .map_err(|_| Error::new(ErrorKind::Io, "a new segment has no room for its header"))?;
        reservation.bytes_mut().copy_from_slice(&link);
        reservation.publish().map_err(|e| not_written(next, e))
    }

    /// Has a next segment with room for a record of `bytes`, made of the disk's space or of the reserve, as the purpose may.
    #[cold]
    fn make_next(&self, bytes: u64, purpose: Purpose) -> Result<()> {
        let making = self.making.lock();
        {
            let mut grow = self.grow.lock();
            if grow.closed {
                return Err(Error::new(ErrorKind::Poisoned, "the store was closed"));
            }
            if let Some(small) = grow.next.take_if(|next| !has_room(next, bytes)) {
                // Used after the one made now it would break the order of positions, and left unused the links of recovery.
                if let Err(e) = self.retire(&small) {
                    grow.next = Some(small);
                    return Err(e);
                }
                self.next_ready.store(false, Ordering::Relaxed);
            }
            if grow.next.is_some() {
                drop(grow);
                if self.is_starved() && purpose == Purpose::Growth {
                    if self.owes() {
                        return Err(reserve::no_space());
                    }
                    self.sated(&making);
                }
                return Ok(());
            }
        }
        let was_starved = self.is_starved();
        let is_whole = self.refill(&making)?;
        let full = if is_whole || purpose != Purpose::Growth {
            let target = self.segment_bytes(&epoch::pin());
            match self.make_segment(bytes, target, None, &making) {
                Ok(()) => {
                    if !is_whole {
                        self.owes.store(true, Ordering::Relaxed);
                    } else if purpose == Purpose::Growth {
                        self.sated(&making);
                    }
                    return Ok(());
                }
                Err(e) if e.kind() != ErrorKind::NoSpace => return Err(e),
                Err(e) => e,
            }
        } else {
            reserve::no_space()
        };
        self.starve(&making);
        if purpose == Purpose::Cleaning && !was_starved {
            // First it has to count whether what it moves fits.
            return Err(full);
        }
        let Some(reserved) = self.take_reserved(bytes, purpose) else { return Err(full) };
        self.owes.store(true, Ordering::Relaxed);
        self.make_segment(bytes, reserved.bytes, Some(reserved), &making)
    }

    /// The segment that an opened log goes on in: a small one where the disk has no space for more, and in that of the key runs where it
    /// has none at all. They can be made again from the log.
    fn make_first(&self) -> Result<()> {
        let making = self.making.lock();
        let mut target = self.segment_bytes(&epoch::pin());
        loop {
            match self.make_segment(0, target, None, &making) {
                Err(e) if e.kind() == ErrorKind::NoSpace && target > reserve::SEGMENT_BYTES_MIN => target /= 2,
                Err(e) if e.kind() == ErrorKind::NoSpace && !self.runs().0.is_empty() => self.remove_runs()?,
                Err(e) => return Err(e),
                Ok(()) => break,
            }
        }
        if !self.refill(&making)? {
            self.owes.store(true, Ordering::Relaxed);
            self.starve(&making);
        }
        Ok(())
    }

    /// Makes the next segment, to be filled up to `target`: file, header and name on the disk, then its space, then its manifest edit.
    /// Nobody waits for it who does not need it.
    fn make_segment(
        &self,
        bytes: u64,
        target: u64,
        reserved: Option<Spare>,
        _making: &MutexGuard<'_, ()>,
    ) -> Result<()> {
        let guard = &epoch::pin();
        let target = (bytes + HEADER_BYTES).next_multiple_of(PAGE_BYTES).max(target);
        let (number, base, first_slot, capacity) = {
            let grow = self.grow.lock();
            let slots = self.slots.load(guard);
            let capacity = if seam::MAPS_PAST_END && slots.len() < SLOTS_PLENTY && reserved.is_none() {
                target * segment::TARGETS
            } else {
                target
            };
            let first_slot = free_slots(slots, slots_of(capacity)).ok_or_else(|| {
                Error::new(ErrorKind::NoSpace, "the log has reached 512 GiB, the most one store can address")
            })?;
            // Only whoever holds `making` uses a number up, or takes slots: they are free until then.
            (grow.number, grow.base, first_slot, capacity)
        };
        // Room for the record, what is kept for deletes, and a little more.
        let first = HEADER_BYTES + bytes + target / 8 + prepared_at_a_time(target).min(PREPARED_BYTES_MAX);
        let first = whole_steps(first, target);
        let first = if seam::MAPS_PAST_END { first.min(target) } else { target };
        let spare = reserved.or_else(|| self.take_spare(|spare| spare.bytes == target));
        let header = Header { number, base, salt: self.salt_unlike(spare.as_ref())?, capacity };
        let name = segment::file_name(header.number);
        let failed = |e| Error::io(format_args!("cannot make {name}"), e);
        let recycled = spare.and_then(|spare| self.recycle(&spare, &name));
        // All of a recycled file is prepared at once.
        let (file, stale, first) = match recycled {
            Some(file) => {
                let stale = file.len().map_err(failed)?;
                (file, stale, target)
            }
            None => (self.disk.create(&name).map_err(failed)?, 0, first),
        };
        self.grow.lock().number += 1;
        // Of the failures, only a want of space is lived through, and it comes before anything is known to the manifest;
        // the file of any other is left to the next open, which knows what the manifest came to say.
        let give_up = |e: Error| {
            if e.kind() == ErrorKind::NoSpace {
                let _ = self.disk.remove(&name);
                self.give_back_free_spares();
            }
            e
        };
        let no_sync = |e| Error::sync(format_args!("cannot sync {name}"), e);
        let encoded = header.encode(self.store);
        seam::write_full(&*file, 0, &encoded).map_err(failed).map_err(give_up)?;
        let blank = || {
            seam::write_zeros(&*file, encoded.len() as u64, stale, self.piece_bytes())?;
            if stale < first {
                self.promise_ahead(&*file, 0..first, target);
            }
            file.reserve(first, self.piece_bytes())
        };
        if self.syncs {
            // Zeros that are on the disk already make a later sync write just the pages it is about.
            blank().map_err(failed).map_err(give_up)?;
        }
        let written = if seeded(Bug::NoHeaderSync) { Ok(()) } else { file.sync() };
        written.and_then(|()| if seeded(Bug::NoNameSync) { Ok(()) } else { self.disk.sync_dir() }).map_err(no_sync)?;
        if !self.syncs {
            blank().map_err(failed).map_err(give_up)?;
        }
        let filled = HEADER_BYTES - segment::LINK_BYTES;
        let region = Region::to_fill(&*self.disk, &file, capacity, filled, first).map_err(failed)?;
        if !self.syncs {
            // That makes pages dirty, and zeros that are synced already would be written again.
            region.populate(0..first);
        }
        {
            // Nobody reads what the manifest says of it before it is the next one.
            let add = Edit::Add { segment: header.number, base: header.base, capacity };
            self.append_edit(add).map_err(give_up)?;
        }
        let mut grow = self.grow.lock();
        let mut slots = self.slots.load(guard).clone();
        let segment = Arc::new(Segment::new(header, target, first_slot as u32, file, region));
        put_in_slots(&mut slots, &segment);
        self.slots.replace(slots, guard);
        // The slots that were there hold on to their segments, and so to files that are removed by and by: this thread may have
        // nothing to do for long, and would keep them.
        guard.flush();
        grow.base += capacity;
        grow.next = Some(segment);
        self.next_ready.store(!self.is_starved(), Ordering::Relaxed);
        Ok(())
    }

    /// A file that was kept to become that of a segment, and that nobody looks at any more.
    fn take_spare(&self, fits: impl Fn(&Spare) -> bool) -> Option<Spare> {
        let mut spares = self.spares.lock();
        let found = spares.iter().position(|spare| fits(spare) && spare.is_free())?;
        Some(spares.remove(found))
    }

    /// Removes the files that were kept; whether there were any.
    fn give_back_spares(&self) -> bool {
        self.give_back_spares_if(|_| true)
    }

    /// As [`Log::give_back_spares`], of those whose space is to be had then. The others may become files of the reserve, which nobody
    /// else takes the space of.
    fn give_back_free_spares(&self) -> bool {
        self.give_back_spares_if(Spare::is_free)
    }

    fn give_back_spares_if(&self, goes: impl Fn(&Spare) -> bool) -> bool {
        let going: Vec<Spare> = self.spares.lock().extract_if(.., |spare| goes(spare)).collect();
        going.iter().for_each(|spare| self.remove_spare(spare));
        !going.is_empty()
    }

    fn remove_spare(&self, spare: &Spare) {
        // Where an open file cannot be removed (Windows) the next open does it.
        let _ = self.disk.remove(&segment::file_name(spare.number));
    }

    /// The file of `spare` as the file `name`; `None`, and no file of either name, if that cannot be done.
    fn recycle(&self, spare: &Spare, name: &str) -> Option<Arc<dyn seam::File>> {
        let old = segment::file_name(spare.number);
        let recycled = self.disk.recycle(&old, name);
        if recycled.is_err() {
            self.remove_spare(spare);
        }
        recycled.ok()
    }

    /// A salt by which no record that a recycled file still holds checks: seeds that differ at one offset differ at each.
    fn salt_unlike(&self, spare: Option<&Spare>) -> Result<u64> {
        loop {
            if let Some(spare) = spare.filter(|_| seeded(Bug::SpareKeepsSalt)) {
                return Ok(spare.salt);
            }
            let salt = self.random()?;
            if spare.is_none_or(|spare| Seed::new(salt, 0) != Seed::new(spare.salt, 0)) {
                return Ok(salt);
            }
        }
    }

    /// Size of the next segment, going by the size of the log. Larger while writers outrun the disk: each one takes three syncs,
    /// behind those of the segments before it.
    fn segment_bytes(&self, guard: &Guard) -> u64 {
        let logged: u64 = self.segments(guard).iter().map(|s| s.region.published()).sum();
        let waiting = if self.syncs { 0 } else { self.unsynced_bytes() };
        (logged / SEGMENTS_PER_LOG)
            .max(waiting / 2)
            .next_power_of_two()
            .max(FIRST_SEGMENT_BYTES)
            .min(reserve::segment_bytes_on(self.disk.space()))
            .min(self.segment_bytes_max)
    }

    pub(crate) fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    /// The store's id.
    pub(crate) fn store(&self) -> u64 {
        self.store
    }

    /// The key runs that the manifest names, oldest first, as number, from, to; and the first number never used.
    pub(crate) fn runs(&self) -> (Vec<(u64, u64, u64)>, u64) {
        let manifest = self.manifest.lock();
        let runs = manifest.state().runs.iter().map(|(&from, run)| (run.number, from, run.to)).collect();
        (runs, manifest.state().next_run)
    }

    /// Background: has the manifest name a run instead of those that cover parts of the same positions; their numbers.
    pub(crate) fn add_run(&self, run: u64, from: u64, to: u64) -> Result<Vec<u64>> {
        let mut manifest = self.manifest.lock();
        let replaced = manifest.state().runs.range(from..to).map(|(_, run)| run.number).collect();
        manifest.append(Edit::AddRun { run, from, to })?;
        Ok(replaced)
    }

    /// Background, and at open: has the manifest forget all runs, then removes their files. The oldest goes first: if a
    /// crash comes between, what is left does not begin at position 0 and is not believed.
    pub(crate) fn remove_runs(&self) -> Result<()> {
        for (run, ..) in self.runs().0 {
            self.manifest.lock().append(Edit::RemoveRun { run })?;
            let _ = self.disk.remove(&run::format::file_name(run));
        }
        Ok(())
    }

    /// The directory checkpoint that the manifest names, and the first number never used.
    pub(crate) fn checkpoint(&self) -> (Option<CheckpointEntry>, u64) {
        let manifest = self.manifest.lock();
        (manifest.state().checkpoint, manifest.state().next_checkpoint)
    }

    /// Background: has the manifest name a checkpoint instead of the one before, whose file goes.
    pub(crate) fn add_checkpoint(&self, new: CheckpointEntry) -> Result<()> {
        let CheckpointEntry { number, from, end } = new;
        let mut manifest = self.manifest.lock();
        let old = manifest.state().checkpoint;
        manifest.append(Edit::AddCheckpoint { number, from, end })?;
        if let Some(old) = old {
            let _ = self.disk.remove(&checkpoint::file_name(old.number));
        }
        Ok(())
    }

    /// The segments behind all address slots, also those that the log has given up.
    pub(crate) fn addressed(&self, guard: &Guard) -> Vec<Arc<Segment>> {
        let mut segments: Vec<Arc<Segment>> = self.slots.load(guard).iter().flatten().cloned().collect();
        segments.dedup_by(|a, b| Arc::ptr_eq(a, b));
        segments.retain(|s| s.region.published() >= HEADER_BYTES);
        segments
    }

    /// Bytes logged from `position` on.
    pub(crate) fn bytes_from(&self, position: u64, guard: &Guard) -> u64 {
        let bytes = |s: &Arc<Segment>| s.end().saturating_sub(position.max(s.header.base));
        self.segments(guard).iter().map(bytes).sum()
    }

    /// Has the background thread woken when the log gets to `position`.
    pub(crate) fn wake_at(&self, position: u64) {
        self.wake_at.store(position, Ordering::Relaxed);
    }

    /// Whether the place is in a segment that is gone: a word that says so is as good as none.
    #[cold]
    pub(crate) fn is_ghost(&self, place: Place, guard: &Guard) -> bool {
        self.locate(place, guard).is_ok_and(|(segment, _)| segment.is_ghost())
    }

    /// Whether there are segments that are gone and that words may still point into.
    pub(crate) fn has_ghosts(&self) -> bool {
        !self.ghosts.lock().is_empty()
    }

    /// Background: no word points into a segment that is gone any more.
    pub(crate) fn lay_ghosts(&self) {
        for ghost in std::mem::take(&mut *self.ghosts.lock()) {
            self.retire_slots(ghost);
        }
    }

    /// A random number: the salt of a file.
    pub(crate) fn random(&self) -> Result<u64> {
        self.disk.random_u64().map_err(|e| Error::io("no random numbers", e))
    }

    /// Background: prepares the active segment ahead of the writers, and the next one before it is full; whether there was
    /// something to do.
    pub(crate) fn prepare_space(&self) -> Result<bool> {
        let guard = &epoch::pin();
        if self.disk.read_only() {
            return Ok(false);
        }
        let mut prepared = 0;
        loop {
            let wants_next = {
                let grow = self.grow.lock();
                let active = self.active.load(guard);
                let (reserved, limit, target) = (active.region.reserved(), active.region.limit(), active.target());
                let ahead = prepared_at_a_time(target);
                // Lacking some, it prepares twice as much as is enough.
                let lacks = self.lacks_space(active, reserved + if prepared > 0 { ahead } else { 0 });
                if grow.closed || prepared > 2 * ahead {
                    return Ok(prepared > 0);
                }
                // First what writers need first.
                if lacks {
                    let step = if self.syncs { ahead } else { ahead.min(PREPARED_BYTES_MAX) };
                    self.prepare(active, (limit + step / 4).min(target), (limit + step).min(target))?;
                    prepared += step;
                    continue;
                }
                grow.next.is_none() && self.lacks_next(active, reserved)
            };
            if !wants_next || self.is_starved() {
                return Ok(prepared > 0);
            }
            self.make_next(0, Purpose::Growth)?;
            prepared += 1;
        }
    }

    /// Whether [`Log::give_back_space`] would.
    pub(crate) fn has_space_to_give_back(&self) -> bool {
        let guard = &epoch::pin();
        let grow = self.grow.lock();
        let mut prepared = prepared_segments(self.active.load(guard), &grow);
        seam::MAPS_PAST_END
            && !self.disk.read_only()
            && (prepared.any(|(segment, kept)| more_than_enough(segment, kept).is_some())
                || !self.spares.lock().is_empty()
                || self.has_reserve_to_give_back())
    }

    /// Background, when the log has ended at `end` for a while: gives back what was prepared and not needed, but for what deletes may
    /// need. A later write prepares it again. Whether it still ended there: a writer that waited for space looks like none.
    pub(crate) fn give_back_space(&self, end: u64) -> Result<bool> {
        self.give_back_space_after(end, || ())
    }

    /// As [`Log::give_back_space`]; `others` stands for what others do while it goes on.
    fn give_back_space_after(&self, end: u64, others: impl Fn()) -> Result<bool> {
        let _making = self.making.lock();
        let guard = &epoch::pin();
        let grow = self.grow.lock();
        if self.end(guard) != end {
            return Ok(false);
        }
        if !seam::MAPS_PAST_END || self.disk.read_only() {
            return Ok(true);
        }
        self.give_back_spares();
        if self.has_reserve_to_give_back() {
            self.give_back_reserve();
        }
        for (segment, kept) in prepared_segments(self.active.load(guard), &grow) {
            let region = &segment.region;
            if more_than_enough(segment, kept).is_none() {
                continue;
            }
            others();
            // Nobody can be writing beyond the published bytes now, and nobody will before the region is open again.
            region.close().map_err(|e| not_written(segment, e))?;
            // Somebody may have written since the look above.
            let cut = more_than_enough(segment, kept).map_or(Ok(()), |enough| {
                region.lower(enough);
                seam::cut(&*segment.file, enough)
            });
            region.reopen();
            cut.map_err(|e| Error::io(format_args!("cannot cut {}", segment::file_name(segment.header.number)), e))?;
        }
        Ok(true)
    }

    /// What the writer of a commit that is visible now (or, if not `visible`, will be behind a sync) is asked to do: of
    /// [`RING`], [`WAKE`] and [`SPACE`]. Asks each once.
    #[inline]
    pub(crate) fn take_asked(&self, visible: bool) -> u8 {
        // Sequentially consistent, like the store that published the write: see `watch`.
        if self.asked.load(Ordering::SeqCst) == 0 { 0 } else { self.take_asked_now(visible) }
    }

    #[cold]
    fn take_asked_now(&self, visible: bool) -> u8 {
        // Whoever leads the sync wakes those who watch.
        let mine = if visible { RING | WAKE | SPACE } else { RING | SPACE };
        self.asked.fetch_and(!mine, Ordering::SeqCst) & mine
    }

    /// Asks the next writer to wake those who watch. Who looks at the log after this, and then sleeps, misses no write.
    pub(crate) fn ask_to_wake(&self) {
        self.asked.fetch_or(WAKE, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// Whether this is the segment that is appended to.
    pub(crate) fn is_active(&self, segment: &Arc<Segment>, guard: &Guard) -> bool {
        Arc::ptr_eq(self.active.load(guard), segment)
    }

    /// As [`Log::record_of`], of what most reads find: see [`Segment::plain_record`].
    #[inline]
    pub(crate) fn plain_record<'s>(&self, segment: &'s Segment, offset: u64) -> Option<(Record<'s>, u64)> {
        segment.plain_record(offset, self.verify)
    }

    /// The record at an offset of a segment.
    pub(crate) fn record_of<'s>(
        &self,
        segment: &'s Segment,
        offset: u64,
        guard: &'s Guard,
    ) -> Result<(Record<'s>, u64)> {
        segment.record(offset, self.verify, guard).map_err(|defect| segment.no_record(offset, defect))
    }

    /// The place of the record at `offset` of a segment.
    pub(crate) fn place(&self, segment: &Segment, offset: u64) -> Place {
        place_in(segment, offset)
    }

    /// The segment of a place and the offset in it.
    #[inline]
    pub(crate) fn locate<'g>(&self, place: Place, guard: &'g Guard) -> Result<(&'g Arc<Segment>, u64)> {
        let slots = self.slots.load(guard);
        let slot = (place.0 >> SLOT_SHIFT) as usize;
        match slots.get(slot) {
            Some(Some(segment)) => {
                let first = u64::from(segment.first_slot) << SLOT_SHIFT;
                Ok((segment, (place.0 - first) * record::ALIGN))
            }
            _ => Err(Error::new(ErrorKind::Corrupt, format!("place {:#x} is in no segment", place.0))),
        }
    }

    /// Asks for the memory of a record, as far as most reach.
    #[inline]
    pub(crate) fn prefetch(&self, place: Place, guard: &Guard) {
        if let Ok((segment, offset)) = self.locate(place, guard) {
            segment.region.prefetch(offset);
        }
    }

    /// The record at a place, with its segment and offset.
    #[inline]
    pub(crate) fn record<'g>(&self, place: Place, guard: &'g Guard) -> Result<Found<'g>> {
        let (segment, offset) = self.locate(place, guard)?;
        // What comes after its first line is on its way while that is looked at.
        segment.region.prefetch(offset);
        let (record, bytes) = self.record_of(segment, offset, guard)?;
        Ok(Found { segment, offset, bytes, record })
    }

    /// All below this log position survives a power cut.
    #[inline]
    pub(crate) fn durable(&self) -> u64 {
        self.durable.load(Ordering::Acquire)
    }

    /// The log position after the last record that survives the death of the process.
    pub(crate) fn end(&self, guard: &Guard) -> u64 {
        self.active.load(guard).end()
    }

    /// The log up to its end, or to where it is `durable`, with the files that hold it.
    ///
    /// A segment is missing only if all that was moved out of it was durable before: then the position, read under the
    /// manifest's lock, is behind the moved records.
    pub(crate) fn snapshot(&self, durable: bool) -> Snapshot {
        let _grow = self.grow.lock();
        let manifest = self.manifest.lock();
        let guard = &epoch::pin();
        let position = if durable { self.durable() } else { self.end(guard) };
        let state = manifest.state().clone();
        let mut segments = self.segments(guard);
        segments.retain(|s| state.segments.contains_key(&s.header.number) && s.header.base + HEADER_BYTES <= position);
        let end = |s: &Segment| s.region.published().min(position - s.header.base);
        let segments = segments.into_iter().map(|s| (s.clone(), end(&s))).collect();
        Snapshot { superblock: *manifest.superblock(), state, segments, position }
    }

    /// What is on the disk of the manifest now, and what it should come to; see [`manifest::check`]. Nothing is appended
    /// meanwhile.
    pub(crate) fn check_manifest(&self) -> std::io::Result<manifest::Checked> {
        let manifest = self.manifest.lock();
        let mut checked = manifest::check(&*self.disk, manifest.superblock())?;
        if checked.wrong.is_empty() && checked.state != *manifest.state() {
            checked.wrong.push((0, "the edits do not come to what the open store knows"));
        }
        Ok(checked)
    }

    /// Whether closed segments wait for their sync, or synced ones for their manifest edit.
    pub(crate) fn has_closed(&self) -> bool {
        !self.unsynced.lock().is_empty() || !self.unsealed.lock().is_empty()
    }

    /// Bytes of closed segments that wait for their sync.
    pub(crate) fn unsynced_bytes(&self) -> u64 {
        self.unsynced.lock().iter().map(|segment| segment.region.published()).sum()
    }

    /// Bytes of zeros that are written at a time.
    fn piece_bytes(&self) -> usize {
        if self.syncs { SYNCED_PIECE_BYTES } else { PREPARED_BYTES_MAX as usize }
    }

    /// Whether writers wait for the disk as a rule.
    pub(crate) fn syncs(&self) -> bool {
        self.syncs
    }

    /// Whether closed segments wait for their sync.
    pub(crate) fn has_unsynced(&self) -> bool {
        !self.unsynced.lock().is_empty()
    }

    /// Waits until all that was published before the call is on the disk; with `closed_only`, just the next [`SYNC_BYTES`] of
    /// the oldest closed segment. One caller at a time.
    pub(crate) fn sync(&self, closed_only: bool) -> Result<()> {
        let (closed, active) = {
            let guard = &epoch::pin();
            // Under this lock a segment is either still active or already in the list.
            let unsynced = self.unsynced.lock();
            (unsynced.clone(), self.active.load(guard).clone())
        };
        // The background thread has more to see to than these, and comes again.
        let closed_max = if closed_only { 1 } else { usize::MAX };
        for segment in closed.iter().take(closed_max) {
            if closed_only && !self.synced(segment, segment.sync_some(SYNC_BYTES))? {
                break;
            }
            let end = self.synced(segment, segment.sync_closed())?;
            self.durable.fetch_max(end, Ordering::AcqRel);
            self.unsynced.lock().remove(0);
            self.unsealed.lock().push(segment.clone());
        }
        if !closed_only {
            let end = self.synced(&active, active.sync(self.durable()))?;
            self.durable.fetch_max(end, Ordering::AcqRel);
        }
        Ok(())
    }

    fn synced<T>(&self, segment: &Segment, result: std::io::Result<T>) -> Result<T> {
        result.map_err(|e| Error::sync(format_args!("cannot sync {}", segment::file_name(segment.header.number)), e))
    }

    /// Background: writes down that a closed, synced segment is complete.
    pub(crate) fn seal(&self) -> Result<()> {
        let first = { self.unsealed.lock().first().cloned() };
        if let Some(segment) = first {
            let edit = Edit::Seal { segment: segment.header.number, end: segment.end() };
            self.append_edit(edit)?;
            self.unsealed.lock().remove(0);
        }
        Ok(())
    }

    /// Background: gives up a segment that the directory no longer points into. All that was moved out of it must be
    /// durable. Its file goes at once, its mapping when the last view of it does, its address slots when no reader can
    /// hold a place in them.
    pub(crate) fn retire(&self, segment: &Arc<Segment>) -> Result<()> {
        let number = segment.header.number;
        if seeded(Bug::UnlinkBeforeEdit) {
            let _ = self.disk.remove(&segment::file_name(number));
        }
        self.append_edit(Edit::Remove { segment: number, durable: self.durable() })?;
        let Header { number, salt, .. } = segment.header;
        let spare = Spare { number, salt, bytes: segment.target(), region: Arc::downgrade(&segment.region) };
        // One that was in use: its memory and its blocks are at hand.
        if self.disk.recycles() && segment.region.published() > HEADER_BYTES {
            self.keep_spare(spare);
        } else {
            self.remove_spare(&spare);
        }
        self.retire_slots(segment.clone());
        Ok(())
    }

    /// Keeps a file for a segment to come, in place of the oldest that is kept if those are enough: somebody has held on to that.
    fn keep_spare(&self, spare: Spare) {
        let mut spares = self.spares.lock();
        spares.push(spare);
        let oldest = (spares.len() > SPARES_MAX).then(|| spares.remove(0));
        drop(spares);
        if let Some(oldest) = oldest {
            self.remove_spare(&oldest);
        }
    }

    fn retire_slots(&self, segment: Arc<Segment>) {
        let unreachable = Arc::new(AtomicBool::new(false));
        let guard = epoch::pin();
        let flag = unreachable.clone();
        guard.defer(move || flag.store(true, Ordering::Release));
        self.retired.lock().push(Retired { segment, unreachable });
        guard.flush();
    }

    /// Background: takes back the address slots of retired segments that nobody can reach any more.
    pub(crate) fn free_slots_of_retired(&self) {
        // A simulation has one thread, which holds no place here, and must not depend on the collector's other threads.
        let gone = |retired: &&Retired| retired.unreachable.load(Ordering::Acquire) || seam::simulated();
        let free: Vec<_> = self.retired.lock().iter().filter(gone).map(|retired| retired.segment.clone()).collect();
        if free.is_empty() {
            // Epochs only move on when somebody asks.
            epoch::pin().flush();
            return;
        }
        // `grow` is held so that nobody else replaces the slots meanwhile.
        let _grow = self.grow.lock();
        let guard = &epoch::pin();
        let mut slots = self.slots.load(guard).clone();
        for slot in &mut slots {
            if slot.as_ref().is_some_and(|segment| free.iter().any(|f| Arc::ptr_eq(f, segment))) {
                *slot = None;
            }
        }
        self.slots.replace(slots, guard);
        guard.flush();
        // Only now, or for a moment they would seem to belong to the log again.
        self.retired.lock().retain(|retired| !free.iter().any(|f| Arc::ptr_eq(f, &retired.segment)));
    }

    /// Whether address slots wait to be taken back, or files for their last reader.
    pub(crate) fn has_retired(&self) -> bool {
        !self.retired.lock().is_empty() || self.spares.lock().iter().any(|spare| !spare.is_free())
    }

    /// Sealed segments that still belong to the log, oldest first, and whether there is an older one of any kind: those
    /// that may be cleaned.
    pub(crate) fn sealed(&self, guard: &Guard) -> Vec<Arc<Segment>> {
        let manifest = self.manifest.lock();
        let mut segments = self.segments(guard);
        segments.retain(|s| manifest.state().segments.get(&s.header.number).is_some_and(|e| e.sealed.is_some()));
        segments
    }

    /// Seals all, gives unused space back and writes down that the store was closed. No writer may be left.
    pub(crate) fn close(&self) -> Result<()> {
        // A writer that was let in before the store was closed finds no room from here on, and makes none.
        let _making = self.making.lock();
        let mut grow = self.grow.lock();
        grow.closed = true;
        self.sync(false)?;
        while self.has_closed() {
            self.seal()?;
        }
        self.give_back_spares();
        self.give_back_reserve();
        if let Some(unused) = grow.next.take() {
            let remove = Edit::Remove { segment: unused.header.number, durable: self.durable() };
            self.manifest.lock().append(remove)?;
            let _ = self.disk.remove(&segment::file_name(unused.header.number));
        }
        let active = self.active.load(&epoch::pin()).clone();
        active.region.close().map_err(|e| not_written(&active, e))?;
        if !seeded(Bug::CloseDoesNotSync) {
            self.synced(&active, active.sync_closed())?;
        }
        self.manifest.lock().append(Edit::Close {
            segment: active.header.number,
            end: active.end() + if seeded(Bug::CloseSaysTooMuch) { 8 } else { 0 },
        })
    }

    /// All segments that hold records, by position.
    pub(crate) fn segments(&self, guard: &Guard) -> Vec<Arc<Segment>> {
        let mut segments: Vec<Arc<Segment>> = Vec::new();
        // In this order: what lived in a segment that was given up by now stands in those that are found.
        let retired = self.retired.lock();
        for segment in self.slots.load(guard).iter().flatten() {
            if segments.last().is_none_or(|last| !Arc::ptr_eq(last, segment)) {
                segments.push(segment.clone());
            }
        }
        segments
            .retain(|s| s.region.published() >= HEADER_BYTES && !retired.iter().any(|r| Arc::ptr_eq(&r.segment, s)));
        segments.sort_by_key(|s| s.header.base);
        segments
    }
}

/// A record in the log, and where it stands.
pub(crate) struct Found<'g> {
    pub(crate) segment: &'g Arc<Segment>,
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
    pub(crate) record: Record<'g>,
}

impl Found<'_> {
    /// The version of the write: its position when it was first written.
    pub(crate) fn version(&self) -> u64 {
        self.record.moved.unwrap_or_else(|| self.segment.position(self.offset))
    }

    /// Where the key begins in the segment; the value follows it.
    #[inline]
    pub(crate) fn key_offset(&self) -> u64 {
        self.offset + self.record.key_offset()
    }

    /// Whether it reads as absent by now.
    #[inline]
    pub(crate) fn is_expired(&self) -> bool {
        self.record.expires.is_some_and(|at| at <= seam::unix_ms()) && !seeded(Bug::ExpiryIgnored)
    }
}

/// A write into reserved space that failed, for whatever reason: what is there now is not known, as after a failed sync.
#[cold]
fn not_written(segment: &Segment, e: std::io::Error) -> Error {
    Error::sync(format_args!("cannot write {}", segment::file_name(segment.header.number)), e)
}

/// Whether a record of `bytes` fits into a segment that is still empty.
fn has_room(next: &Segment, bytes: u64) -> bool {
    next.target() - HEADER_BYTES >= bytes
}

/// The segments that are prepared for writers, and for each whether what deletes may need is kept there: in the last.
fn prepared_segments<'a>(active: &'a Arc<Segment>, grow: &'a Grow) -> impl Iterator<Item = (&'a Arc<Segment>, bool)> {
    [(active, grow.next.is_none())].into_iter().chain(grow.next.iter().map(|next| (next, true)))
}

/// Bytes of a segment that are prepared at a time.
fn prepared_at_a_time(target: u64) -> u64 {
    (target / 4).min(16 * PREPARED_BYTES_MAX)
}

/// Where the step ends that `bytes` bytes end in: zeros that begin and end at such places are written, and their pages mapped,
/// in large pieces.
fn whole_steps(bytes: u64, target: u64) -> u64 {
    bytes.next_multiple_of(prepared_at_a_time(target).clamp(1, PREPARED_BYTES_MAX))
}

/// How far a segment needs to be prepared while nobody writes, if it is prepared much further: for what deletes may need, if
/// there is no segment behind it where that is `kept`.
fn more_than_enough(segment: &Segment, kept: bool) -> Option<u64> {
    let margin = segment.target() / 64;
    let enough = segment.region.reserved() + if kept { segment.kept_bytes() } else { 0 } + margin;
    (segment.region.limit() > enough + 2 * margin).then_some(enough)
}

pub(crate) fn slots_of(capacity: u64) -> usize {
    capacity.div_ceil(SLOT_BYTES) as usize
}

/// The first of `n` free address slots in a row.
pub(crate) fn free_slots(slots: &[Option<Arc<Segment>>], n: usize) -> Option<usize> {
    let mut free = 0;
    for (i, slot) in slots.iter().enumerate() {
        free = if slot.is_none() { free + 1 } else { 0 };
        if free == n {
            return Some(i + 1 - n);
        }
    }
    let first = slots.len() - free;
    (first + n <= SLOTS_MAX).then_some(first)
}

pub(crate) fn put_in_slots(slots: &mut Vec<Option<Arc<Segment>>>, segment: &Arc<Segment>) {
    let first = segment.first_slot as usize;
    let n = slots_of(segment.header.capacity);
    if slots.len() < first + n {
        slots.resize(first + n, None);
    }
    slots[first..first + n].fill(Some(segment.clone()));
}

/// Stands where the active segment will: full from the start.
fn placeholder() -> Result<Segment> {
    ghost(Header { number: 0, base: 0, salt: 0, capacity: PAGE_BYTES }, 0)
}

/// A segment of which there is nothing but its address slots.
pub(crate) fn ghost(header: Header, first_slot: u32) -> Result<Segment> {
    let failed = |e| Error::io("no memory for a mapping", e);
    let region = Region::new(Map::anonymous(1).map_err(failed)?, 0, false);
    let file = MemoryDisk::default().create("placeholder").map_err(failed)?;
    Ok(Segment::new(header, header.capacity, first_slot, file, region))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::disk::RealDisk;
    use crate::recovery::refuse_foreign;
    use crate::{Durability, Options, Store};

    #[test]
    fn a_write_while_space_is_given_back_keeps_its_space() {
        let dir = tempfile::tempdir().unwrap();
        let options = Options::new().durability(Durability::Os);
        let disk: Arc<dyn Disk> = Arc::new(RealDisk::open(dir.path(), &options, refuse_foreign).unwrap());
        let store = Store::without_worker(disk, options).unwrap();
        let (bucket, log) = (store.bucket("b").unwrap(), &store.0.commits.log);
        // More than is left to a segment that nobody writes to.
        let value = vec![7; 150_000];
        // Past the half: the next segment is ready, and nothing is kept in this one.
        (0..15).for_each(|_| _ = bucket.set(b"first", &value).unwrap());
        while log.prepare_space().unwrap() {}
        let writes = AtomicUsize::new(0);
        let write = || {
            if writes.fetch_add(1, Ordering::Relaxed) == 0 {
                bucket.set(b"meanwhile", &value).unwrap();
            }
        };
        assert!(log.give_back_space_after(log.end(&epoch::pin()), write).unwrap());
        assert_eq!(bucket.get(b"meanwhile").unwrap().unwrap()[..], value);
        let before = log.end(&epoch::pin());
        bucket.set(b"after", &value).unwrap();
        assert!(!log.give_back_space(before).unwrap(), "somebody has written since");
        assert!(log.give_back_space(log.end(&epoch::pin())).unwrap());
        bucket.set(b"last", &value).unwrap();
        assert_eq!(bucket.get(b"last").unwrap().unwrap()[..], value);
    }

    #[test]
    fn while_the_next_segment_is_late_the_active_one_takes_more() {
        let dir = tempfile::tempdir().unwrap();
        let options = Options { next_is_late: true, ..Options::new().durability(Durability::Os) };
        let options = options.segment_bytes_max(64 << 10);
        let open = || {
            let disk: Arc<dyn Disk> = Arc::new(RealDisk::open(dir.path(), &options, refuse_foreign).unwrap());
            Store::without_worker(disk, options.clone()).unwrap()
        };
        let store = open();
        let bucket = store.bucket("b").unwrap();
        let all: Vec<_> = (0..90u8).map(|i| [i; 10_000]).collect();
        for (i, value) in all.iter().enumerate() {
            bucket.set(&[i as u8], value).unwrap();
        }
        let ends: Vec<_> = store.0.commits.log.segments(&epoch::pin()).iter().map(|s| s.region.published()).collect();
        let factor = if seam::MAPS_PAST_END { segment::TARGETS } else { 1 };
        let most = factor * (64 << 10);
        assert!(ends.iter().all(|end| *end <= most), "{ends:?}");
        assert!(ends[0] > most - 20_000, "filled to the end of what it can take: {ends:?}");
        drop((bucket, store));
        let store = open();
        let bucket = store.bucket("b").unwrap();
        for (i, value) in all.iter().enumerate() {
            assert_eq!(bucket.get(&[i as u8]).unwrap().unwrap()[..], value[..]);
        }
    }
}
