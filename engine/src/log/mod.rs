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
//! 4. Lock order: shard locks, then `grow`, then `manifest`, then `unsynced`.

pub(crate) mod record;
pub(crate) mod replay;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crossbeam_epoch::{self as epoch, Guard};
use parking_lot::Mutex;

use crate::directory::{Cell, PLACE_BITS, Place};
use crate::error::{Error, ErrorKind, Result};
use crate::io::map::{Map, Region, Reservation};
use crate::io::memory::MemoryDisk;
use crate::io::{self as seam, Disk};
use crate::manifest::Manifest;
use crate::manifest::edit::Edit;
use crate::run;
use crate::segment::{self, HEADER_BYTES, Header, Segment};
use record::{Prepared, Record};

/// Bytes of an address slot; a larger segment takes several.
const SLOT_BYTES: u64 = 64 << 20;
const SLOT_SHIFT: u32 = 24; // SLOT_BYTES in units of record::ALIGN
const SLOTS_MAX: usize = 1 << (PLACE_BITS - SLOT_SHIFT);
/// The first segment of a young store.
const FIRST_SEGMENT_BYTES: u64 = 1 << 20;
/// A writer that crosses a multiple of this looks whether it should slow down.
const PACE_SHIFT: u32 = 18; // 256 KiB
/// Segments are made in this number of one size before the size doubles: the space kept ready, at most two segments, stays
/// small beside the log.
const SEGMENTS_PER_SIZE: u64 = 4;
/// Segments begin and end at pages.
const PAGE_BYTES: u64 = 4096;

/// Everything about the segments of an open store.
pub(crate) struct Log {
    disk: Arc<dyn Disk>,
    store: u64,
    segment_bytes_max: u64,
    verify: bool,
    /// Writers wait for the disk as a rule.
    syncs: bool,
    manifest: Mutex<Manifest>,
    /// By address slot.
    slots: Cell<Vec<Option<Arc<Segment>>>>,
    active: Cell<Arc<Segment>>,
    grow: Mutex<Grow>,
    /// Closed and not yet durable, oldest first, then those durable and not yet sealed.
    unsynced: Mutex<Vec<Arc<Segment>>>,
    unsealed: Mutex<Vec<Arc<Segment>>>,
    durable: AtomicU64,
    /// The durable mark last written into a record.
    marked: AtomicU64,
    /// The active segment is half full and no next one is there.
    wants_next: AtomicBool,
    /// There is a next segment: the active one may be filled to its end.
    next_ready: AtomicBool,
    /// The background thread has something to do that it does not know of.
    has_work: AtomicBool,
    /// What a writer pauses for every 256 KiB, while cleaning lags behind.
    brake_us: AtomicU64,
    /// Given up, but readers may still hold places in them.
    retired: Mutex<Vec<Retired>>,
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
    bytes: u64,
}

/// Where a log that was recovered goes on.
pub(crate) struct Resume {
    /// Segments that hold records, in order; none of them takes more.
    pub(crate) segments: Vec<Arc<Segment>>,
    /// The last of them, where the store was closed and it may take more.
    pub(crate) active: Option<Arc<Segment>>,
    /// All below this log position is on the disk.
    pub(crate) durable: u64,
    /// First log position that was never used.
    pub(crate) base: u64,
    /// First segment number that was never used.
    pub(crate) number: u64,
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

    /// Makes the records readable and safe from the death of the process.
    #[inline]
    pub(crate) fn publish(self) {
        self.reservation.publish();
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
        let logged: u64 = resume.segments.iter().map(|s| s.region.published()).sum();
        let bytes = (logged / 4).next_power_of_two().max(FIRST_SEGMENT_BYTES).min(options.segment_bytes_max);
        let mut slots = Vec::new();
        resume.segments.iter().for_each(|s| put_in_slots(&mut slots, s));
        let log = Log {
            store,
            segment_bytes_max: options.segment_bytes_max,
            verify: options.verify == crate::Verify::Always,
            syncs: options.durability.waits_for_disk(),
            manifest: Mutex::new(manifest),
            slots: Cell::new(slots),
            active: Cell::new(Arc::new(placeholder()?)),
            grow: Mutex::new(Grow {
                next: None,
                number: resume.number,
                base: resume.base.next_multiple_of(PAGE_BYTES),
                bytes,
            }),
            unsynced: Mutex::default(),
            unsealed: Mutex::default(),
            durable: AtomicU64::new(resume.durable),
            marked: AtomicU64::new(resume.durable),
            wants_next: AtomicBool::new(false),
            next_ready: AtomicBool::new(false),
            has_work: AtomicBool::new(false),
            brake_us: AtomicU64::new(0),
            retired: Mutex::default(),
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
        if let Some(active) = &active
            && active.region.published() >= active.header.capacity / 2
        {
            log.wants_next.store(true, Ordering::Relaxed);
            log.has_work.store(true, Ordering::Relaxed);
        }
        if let Some(active) = active.or_else(|| last.clone().filter(|_| log.disk.read_only())) {
            log.active.replace(active, guard);
        } else if !log.disk.read_only() {
            let end = last.map_or(resume.durable, |s| s.end());
            let first = log.make_segment(&mut log.grow.lock(), 0)?;
            log.activate(&first, end)?;
            log.active.replace(first, guard);
        }
        Ok(log)
    }

    /// Takes `bytes` bytes of the active segment, moving on to the next one if this one is full. While there is no next
    /// one, the last eighth is only for what `frees` space: deletes and the cleaner go on where the disk is full.
    #[inline]
    pub(crate) fn reserve<'g>(&self, bytes: u64, frees: bool, guard: &'g Guard) -> Result<Space<'g>> {
        loop {
            let segment = self.active.load(guard);
            let capacity = segment.region.bytes();
            let kept = if frees || self.next_ready.load(Ordering::Relaxed) { 0 } else { capacity / 8 };
            match segment.region.reserve_below(bytes, capacity - kept) {
                Ok(reservation) => {
                    let (start, end) = (reservation.at(), reservation.at() + bytes);
                    if (start ^ end) >> PACE_SHIFT != 0 {
                        self.keep_pace(segment, start, end);
                    }
                    return Ok(Space { segment, reservation });
                }
                Err(_) if kept > 0 => self.ensure_next(segment, bytes, guard)?,
                Err(_) => self.rotate(segment, bytes, guard)?,
            }
        }
    }

    /// Every now and then: sees to it that the next segment is made in time, and that cleaning is not outrun.
    #[cold]
    fn keep_pace(&self, segment: &Segment, start: u64, end: u64) {
        let half = segment.header.capacity / 2;
        if start < half && end >= half {
            self.wants_next.store(true, Ordering::Relaxed);
            self.has_work.store(true, Ordering::Relaxed);
        }
        if self.brake_us.load(Ordering::Relaxed) != 0 {
            self.has_work.store(true, Ordering::Relaxed);
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
        let durable = self.durable.load(Ordering::Acquire);
        (durable > self.marked.load(Ordering::Relaxed) && durable > self.marked.fetch_max(durable, Ordering::Relaxed))
            .then_some(durable)
    }

    /// Makes the next segment, so that the active one may be filled to its end; or replaces that, if it has no room anyway.
    #[cold]
    fn ensure_next(&self, active: &Arc<Segment>, bytes: u64, guard: &Guard) -> Result<()> {
        if active.region.published() + bytes > active.region.bytes() {
            return self.rotate(active, bytes, guard);
        }
        let mut grow = self.grow.lock();
        if Arc::ptr_eq(active, self.active.load(guard)) {
            if grow.next.is_none() {
                grow.next = Some(self.make_segment(&mut grow, 0)?);
            }
            self.next_ready.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Replaces the full segment by one with room for `bytes`, unless somebody else just did.
    #[cold]
    fn rotate(&self, full: &Arc<Segment>, bytes: u64, guard: &Guard) -> Result<()> {
        let mut grow = self.grow.lock();
        if !Arc::ptr_eq(full, self.active.load(guard)) {
            return Ok(());
        }
        let fits = |next: &Arc<Segment>| next.header.capacity - HEADER_BYTES >= bytes;
        if let Some(small) = grow.next.take_if(|next| !fits(next)) {
            // Used after the one made now it would break the order of positions, and left unused the links of recovery.
            if let Err(e) = self.retire(&small) {
                grow.next = Some(small);
                return Err(e);
            }
            self.next_ready.store(false, Ordering::Relaxed);
        }
        let next = match grow.next.take() {
            Some(next) => next,
            None => self.make_segment(&mut grow, bytes)?,
        };
        let end = full.position(full.region.close());
        if let Err(e) = self.activate(&next, end) {
            full.region.reopen();
            return Err(e);
        }
        self.unsynced.lock().push(full.clone());
        self.next_ready.store(false, Ordering::Relaxed);
        self.active.replace(next, guard);
        self.has_work.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Writes the link: from here on records may follow.
    fn activate(&self, next: &Arc<Segment>, end: u64) -> Result<()> {
        let link = segment::encode_link(next.header.salt, end);
        let mut reservation = next
            .region
            .reserve(link.len() as u64)
            .map_err(|_| Error::new(ErrorKind::Io, "a new segment has no room for its header"))?;
        reservation.bytes_mut().copy_from_slice(&link);
        reservation.publish();
        Ok(())
    }

    /// Makes a segment with room for a record of `bytes`: file, header and name on the disk, then its manifest edit,
    /// then its space.
    fn make_segment(&self, grow: &mut Grow, bytes: u64) -> Result<Arc<Segment>> {
        let capacity = (bytes + HEADER_BYTES).next_multiple_of(PAGE_BYTES).max(grow.bytes);
        let header = Header { number: grow.number, base: grow.base, salt: self.random()?, capacity };
        let guard = &epoch::pin();
        let mut slots = self.slots.load(guard).clone();
        let first_slot = free_slots(&slots, slots_of(capacity)).ok_or_else(|| {
            Error::new(ErrorKind::NoSpace, "the log has reached 512 GiB, the most one store can address")
        })?;
        let name = segment::file_name(header.number);
        let failed = |e| Error::io(format_args!("cannot make {name}"), e);
        let file = self.disk.create(&name).map_err(failed)?;
        grow.number += 1;
        // Of the failures, only a want of space is lived through, and it comes before anything is known to the manifest;
        // the file of any other is left to the next open, which knows what the manifest came to say.
        let give_up = |e: Error| {
            if e.kind() == ErrorKind::NoSpace {
                let _ = self.disk.remove(&name);
            }
            e
        };
        let no_sync = |e| Error::sync(format_args!("cannot sync {name}"), e);
        seam::write_full(&*file, 0, &header.encode(self.store)).map_err(failed).map_err(give_up)?;
        if self.syncs {
            // Zeros that are on the disk already make a later sync write just the pages it is about.
            file.reserve(capacity).map_err(failed).map_err(give_up)?;
        }
        file.sync().and_then(|()| self.disk.sync_dir()).map_err(no_sync)?;
        if !self.syncs {
            file.reserve(capacity).map_err(failed).map_err(give_up)?;
        }
        let map = file.map(capacity, true).map_err(failed)?;
        let add = Edit::Add { segment: header.number, base: header.base, capacity };
        self.manifest.lock().append(add).map_err(give_up)?;
        let region = Region::new(map, HEADER_BYTES - segment::LINK_BYTES, true);
        let segment = Arc::new(Segment::new(header, first_slot as u32, file, region));
        segment.region.populate();
        put_in_slots(&mut slots, &segment);
        self.slots.replace(slots, guard);
        grow.base += capacity;
        if grow.number.is_multiple_of(SEGMENTS_PER_SIZE) {
            grow.bytes = (grow.bytes * 2).min(self.segment_bytes_max);
        }
        Ok(segment)
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

    /// A random number: the salt of a file.
    pub(crate) fn random(&self) -> Result<u64> {
        self.disk.random_u64().map_err(|e| Error::io("no random numbers", e))
    }

    /// Background: has the next segment ready before the active one is full.
    pub(crate) fn prepare_next(&self) -> Result<()> {
        if !self.wants_next.swap(false, Ordering::Relaxed) {
            return Ok(());
        }
        let mut grow = self.grow.lock();
        if grow.next.is_none() {
            grow.next = Some(self.make_segment(&mut grow, 0)?);
            self.next_ready.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Whether the background thread is to be woken; says so once.
    #[inline]
    pub(crate) fn take_work(&self) -> bool {
        self.has_work.load(Ordering::Relaxed) && self.has_work.swap(false, Ordering::Relaxed)
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
        match segment.record(offset, self.verify) {
            Ok((record, bytes)) => Ok(Found { segment, offset, bytes, record }),
            Err(defect) => Err(segment.corrupt(offset, format_args!("no valid record ({defect:?})"))),
        }
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

    /// Whether closed segments wait for their sync, or synced ones for their manifest edit.
    pub(crate) fn has_closed(&self) -> bool {
        !self.unsynced.lock().is_empty() || !self.unsealed.lock().is_empty()
    }

    /// Waits until all that was published before the call is on the disk; with `closed_only`, just what stands in closed
    /// segments. One caller at a time.
    pub(crate) fn sync(&self, closed_only: bool) -> Result<()> {
        let (closed, active) = {
            let guard = &epoch::pin();
            // Under this lock a segment is either still active or already in the list.
            let unsynced = self.unsynced.lock();
            (unsynced.clone(), self.active.load(guard).clone())
        };
        for segment in &closed {
            let end = self.sync_segment(segment)?;
            self.durable.fetch_max(end, Ordering::AcqRel);
            self.unsynced.lock().remove(0);
            self.unsealed.lock().push(segment.clone());
        }
        if !closed_only {
            let end = self.sync_segment(&active)?;
            self.durable.fetch_max(end, Ordering::AcqRel);
        }
        Ok(())
    }

    fn sync_segment(&self, segment: &Segment) -> Result<u64> {
        segment
            .sync(self.durable())
            .map_err(|e| Error::sync(format_args!("cannot sync {}", segment::file_name(segment.header.number)), e))
    }

    /// Background: writes down that closed, synced segments are complete, and gives their unused space back.
    pub(crate) fn seal(&self) -> Result<()> {
        while let Some(segment) = { self.unsealed.lock().first().cloned() } {
            trim(&segment)?;
            let edit = Edit::Seal { segment: segment.header.number, end: segment.end() };
            self.manifest.lock().append(edit)?;
            self.unsealed.lock().remove(0);
        }
        Ok(())
    }

    /// Background: gives up a segment that the directory no longer points into. All that was moved out of it must be
    /// durable. Its file goes at once, its mapping when the last view of it does, its address slots when no reader can
    /// hold a place in them.
    pub(crate) fn retire(&self, segment: &Arc<Segment>) -> Result<()> {
        let number = segment.header.number;
        self.manifest.lock().append(Edit::Remove { segment: number })?;
        // Where an open file cannot be removed (Windows) the next open does it.
        let _ = self.disk.remove(&segment::file_name(number));
        let unreachable = Arc::new(AtomicBool::new(false));
        let guard = epoch::pin();
        let flag = unreachable.clone();
        guard.defer(move || flag.store(true, Ordering::Release));
        self.retired.lock().push(Retired { segment: segment.clone(), unreachable });
        guard.flush();
        Ok(())
    }

    /// Background: takes back the address slots of retired segments that nobody can reach any more.
    pub(crate) fn free_slots_of_retired(&self) {
        let mut free = Vec::new();
        self.retired.lock().retain(|retired| {
            let gone = retired.unreachable.load(Ordering::Acquire);
            if gone {
                free.push(retired.segment.clone());
            }
            !gone
        });
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
    }

    /// Whether address slots wait to be taken back.
    pub(crate) fn has_retired(&self) -> bool {
        !self.retired.lock().is_empty()
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
        self.sync(false)?;
        self.seal()?;
        let mut grow = self.grow.lock();
        if let Some(unused) = grow.next.take() {
            self.manifest.lock().append(Edit::Remove { segment: unused.header.number })?;
            let _ = self.disk.remove(&segment::file_name(unused.header.number));
        }
        let active = self.active.load(&epoch::pin()).clone();
        active.region.close();
        trim(&active)?;
        self.manifest.lock().append(Edit::Close { segment: active.header.number, end: active.end() })
    }

    /// All segments that hold records, by position.
    pub(crate) fn segments(&self, guard: &Guard) -> Vec<Arc<Segment>> {
        let mut segments: Vec<Arc<Segment>> = Vec::new();
        for segment in self.slots.load(guard).iter().flatten() {
            if segments.last().is_none_or(|last| !Arc::ptr_eq(last, segment)) {
                segments.push(segment.clone());
            }
        }
        let retired = self.retired.lock();
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
        self.record.expires.is_some_and(|at| at <= seam::unix_ms())
    }
}

/// Gives back the space behind the last record. Where a mapped file cannot be cut (Windows) it stays; that is only space.
fn trim(segment: &Segment) -> Result<()> {
    let end = segment.region.published();
    if cfg!(windows) {
        return Ok(());
    }
    let name = segment::file_name(segment.header.number);
    let failed = |e| Error::io(format_args!("cannot trim {name}"), e);
    segment.file.set_len(end).map_err(failed)?;
    segment.file.sync().map_err(|e| Error::sync(format_args!("cannot sync {name}"), e))
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
    let failed = |e| Error::io("no memory for a mapping", e);
    let region = Region::new(Map::anonymous(PAGE_BYTES).map_err(failed)?, 0, false);
    let file = MemoryDisk::default().create("placeholder").map_err(failed)?;
    Ok(Segment::new(Header { number: 0, base: 0, salt: 0, capacity: PAGE_BYTES }, 0, file, region))
}
