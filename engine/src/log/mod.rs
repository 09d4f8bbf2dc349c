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
mod space;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering, fence};
use std::time::Duration;

use crossbeam_epoch::{self as epoch, Guard};
use parking_lot::Mutex;

use crate::checkpoint;
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
use reserve::Reserve;
pub(crate) use space::SYNCED_PIECE_BYTES;
use space::Spare;

/// Bytes of an address slot; a larger segment takes several.
pub(crate) const SLOT_BYTES: u64 = 64 << 20;
const SLOT_SHIFT: u32 = 24; // SLOT_BYTES in units of record::ALIGN
pub(crate) const SLOTS_MAX: usize = 1 << (PLACE_BITS - SLOT_SHIFT);
/// A writer that crosses a multiple of this looks whether it should slow down.
const PACE_SHIFT: u32 = 18; // 256 KiB
/// Bytes of a closed segment that are written back at a time: some ten milliseconds on a slow disk.
const SYNC_BYTES: u64 = 4 << 20;

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
    reserve: Reserve,
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
            reserve: Reserve::default(),
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
            if !log.disk.read_only() {
                // Before anything else takes the space of the one that was given back at the close. What is missing is made with the next segment.
                log.refill(&log.making.lock())?;
            }
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
    pub(crate) fn reserve<'g>(&'g self, bytes: u64, purpose: Purpose, guard: &'g Guard) -> Result<Space<'g>> {
        loop {
            let segment = self.active.load(guard);
            let kept = match purpose {
                _ if self.next_ready.load(Ordering::Relaxed) => 0,
                _ if self.reserve.starved.load(Ordering::Relaxed) => self.kept_when_starved(segment, bytes, purpose)?,
                Purpose::Freeing => 0,
                Purpose::Cleaning => reserve::kept_for_deletes(segment.planned()),
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

    /// The segment that is appended to.
    pub(crate) fn active<'g>(&'g self, guard: &'g Guard) -> &'g Arc<Segment> {
        self.active.load(guard)
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
    pub(crate) fn locate<'g>(&'g self, place: Place, guard: &'g Guard) -> Result<(&'g Arc<Segment>, u64)> {
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
    pub(crate) fn record<'g>(&'g self, place: Place, guard: &'g Guard) -> Result<Found<'g>> {
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
