//! Where the log gets its space: the active segment is extended ahead of the writers, the next one is made before that is full, files of
//! segments that were given up become those of new ones, and at rest what nobody needed is given back.
//!
//! Two threads do this: the one that prepares space ([`Log::prepare_space`]), and a writer that outruns it ([`Log::make_room`]). What
//! either does to the active segment it does under `grow`, some 50 us at a time; the next one is made under `making`, which waits for
//! the disk. Why so: decision 7. What is kept back of a disk that is nearly full: `reserve`.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, Weak};
use std::time::Duration;

use crossbeam_epoch::{self as epoch, Guard};
use parking_lot::MutexGuard;

use super::record::Purpose;
use super::{Grow, Log, RING, SLOTS_MAX, SPACE, free_slots, not_written, put_in_slots, reserve, slots_of};
use crate::checksum::Seed;
use crate::error::{Error, ErrorKind, Result};
use crate::io as seam;
use crate::io::map::Region;
use crate::manifest::edit::Edit;
use crate::seeded::{Bug, seeded};
use crate::segment::{self, HEADER_BYTES, Header, PAGE_BYTES, Segment};
use crate::worker::Bell;

/// While no more slots are taken than that, segments get those of all that they could come to.
const SLOTS_PLENTY: usize = SLOTS_MAX / 16;
/// The first segment of a young store.
const FIRST_SEGMENT_BYTES: u64 = 4 << 20;
/// A segment is about so small a part of the log: what is kept ready, and what cleaning needs, stay small beside it.
const SEGMENTS_PER_LOG: u64 = 16;
/// Most space that is prepared at a time, before others are let at the lock; a writer waits for it. The thread that prepares
/// space has up to sixteen times as much ready.
const PREPARED_BYTES_MAX: u64 = 256 << 10;
/// Bytes for which the disk is asked to find blocks at a time: what is not written of them stays with an idle store. Not where less than
/// this is free.
const PROMISED_BYTES: u64 = 1 << 20;
const PLENTY_BYTES: u64 = 1 << 30;
/// How long a writer waits for the lock before it looks whether somebody else has made room.
const ROOM_WAIT: Duration = Duration::from_micros(50);
/// Files of segments that were given up that are kept for segments to come.
const SPARES_MAX: usize = 2;
/// The zeros of a log whose commits are synced one by one are written in pieces of this size. Linux keeps as one what is written in
/// one call, and a byte changed in it through a mapping makes all of it dirty: a sync of one record would write 256 KiB to the
/// disk instead of 4.
pub(crate) const SYNCED_PIECE_BYTES: usize = PAGE_BYTES as usize;

/// The file of a segment that the log does not know any more.
pub(super) struct Spare {
    pub(super) number: u64,
    pub(super) salt: u64,
    /// As many as the segment was to take; in the reserve, as the file has the disk's space for.
    pub(super) bytes: u64,
    /// While anybody holds this, its bytes are looked at.
    pub(super) region: Weak<Region>,
}

impl Spare {
    /// Whether nobody looks at its bytes any more.
    pub(super) fn is_free(&self) -> bool {
        // A simulation has one thread, which looks at nothing here, and must not depend on the collector's other threads.
        let free = self.region.strong_count() == 0 || seam::simulated();
        // What the last of them has read, it has read before what is written from here on.
        fence(Ordering::Acquire);
        free
    }
}

/// Says, also of a call that has panicked, that it has ended.
struct Made<'a> {
    is_made: &'a AtomicBool,
    bell: &'a Bell,
}

impl Drop for Made<'_> {
    fn drop(&mut self) {
        self.is_made.store(true, Ordering::Release);
        self.bell.ring();
    }
}

impl Log {
    /// Prepares more of the active segment if that has room for `bytes`, and `kept` more behind them; or the next segment, so
    /// that this one may be filled to its end; or replaces it. Unless somebody else just did.
    #[cold]
    pub(super) fn make_room(
        &self,
        active: &Arc<Segment>,
        bytes: u64,
        kept: u64,
        purpose: Purpose,
        guard: &Guard,
    ) -> Result<()> {
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

    /// Whether somebody makes the next segment: that waits for the disk, and the active one may take more meanwhile.
    fn next_is_late(&self) -> bool {
        (self.making.is_locked() || self.always_late) && !self.next_ready.load(Ordering::Relaxed) && !self.is_starved()
    }

    /// Lets a segment be filled up to `wanted`, or where there is no space for that on the disk, to `least`. The caller holds
    /// `grow`.
    pub(super) fn prepare(&self, segment: &Segment, least: u64, wanted: u64) -> Result<()> {
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
    /// a time: that spares it a look at each as it is written. A hint.
    fn promise_ahead(&self, file: &dyn seam::File, zeros: Range<u64>, target: u64) {
        let is_next = zeros.start == 0 || zeros.start / PROMISED_BYTES != zeros.end / PROMISED_BYTES;
        let has_plenty = || self.disk.space().is_some_and(|space| space.free > PLENTY_BYTES);
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
    pub(super) fn activate(&self, next: &Arc<Segment>, end: u64) -> Result<()> {
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
            let is_too_small = grow.next.as_ref().is_some_and(|next| !has_room(next, bytes));
            if is_too_small && purpose == Purpose::Growth && !self.has_space_for(bytes, grow.next.as_ref()) {
                // What deletes may need stands in it: it is not given up for one that cannot be had.
                drop(grow);
                self.starve(&making);
                return Err(reserve::no_space());
            }
            if let Some(small) = grow.next.take_if(|_| is_too_small) {
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
                        self.reserve.owes.store(true, Ordering::Relaxed);
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
        self.reserve.owes.store(true, Ordering::Relaxed);
        self.make_segment(bytes, reserved.bytes, Some(reserved), &making)
    }

    /// Whether the disk, as far as can be told, has space for a segment with a record of `bytes` in place of this one.
    fn has_space_for(&self, bytes: u64, instead_of: Option<&Arc<Segment>>) -> bool {
        let given_back = instead_of.and_then(|segment| segment.file.len().ok()).unwrap_or(0);
        self.disk.space().is_none_or(|space| space.free + given_back >= segment_bytes_for(bytes))
    }

    /// The segment that an opened log goes on in: a small one where the disk has no space for more, and in that of the key runs where it
    /// has none at all. They can be made again from the log.
    pub(super) fn make_first(&self) -> Result<()> {
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
            self.reserve.owes.store(true, Ordering::Relaxed);
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
        let target = segment_bytes_for(bytes).max(target);
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

    /// Size of the next segment, going by the size of the log. Larger while writers outrun the disk: each one takes three syncs,
    /// behind those of the segments before it.
    pub(super) fn segment_bytes(&self, guard: &Guard) -> u64 {
        let logged: u64 = self.segments(guard).iter().map(|s| s.region.published()).sum();
        let waiting = if self.syncs { 0 } else { self.unsynced_bytes() };
        (logged / SEGMENTS_PER_LOG)
            .max(waiting / 2)
            .next_power_of_two()
            .max(FIRST_SEGMENT_BYTES)
            .min(reserve::segment_bytes_on(self.disk.space()))
            .min(self.segment_bytes_max)
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

    /// Bytes of zeros that are written at a time.
    pub(super) fn piece_bytes(&self) -> usize {
        if self.syncs { SYNCED_PIECE_BYTES } else { PREPARED_BYTES_MAX as usize }
    }

    /// Whether less is prepared behind `end` than is prepared at a time, and there is more to be had.
    pub(super) fn lacks_space(&self, segment: &Segment, end: u64) -> bool {
        let kept = if self.next_ready.load(Ordering::Relaxed) { 0 } else { segment.kept_bytes() };
        let target = segment.target();
        segment.region.limit() < (end + kept + prepared_at_a_time(target)).min(target)
    }

    /// Whether it is time to make the next segment: at the rate of a fast writer the second half of this one lasts as long as
    /// the three syncs do that this takes.
    pub(super) fn lacks_next(&self, segment: &Segment, end: u64) -> bool {
        end > segment.target() / 2 && !self.next_ready.load(Ordering::Relaxed)
    }

    /// Background: prepares the active segment ahead of the writers, and the next one before it is full; whether there was
    /// something to do.
    pub(crate) fn prepare_space(&self) -> Result<bool> {
        self.prepare_space_by(|| self.make_next(0, Purpose::Growth))
    }

    /// As [`Log::prepare_space`], for a thread with nothing else to do: while another, of its own, makes the next segment, which waits for the
    /// disk, it goes on with the active one. `bell` is what it waits for.
    pub(crate) fn prepare_space_meanwhile(&self, bell: &Bell) -> Result<bool> {
        self.prepare_space_by(|| {
            let is_made = AtomicBool::new(false);
            let make = || {
                let _made = Made { is_made: &is_made, bell };
                self.make_next(0, Purpose::Growth)
            };
            let (made, prepared) = seam::both(make, |is_beside| {
                while is_beside && !is_made.load(Ordering::Acquire) {
                    if !self.prepare_active()?.0 {
                        bell.wait(None);
                    }
                }
                Ok(())
            });
            made.and(prepared)
        })
    }

    fn prepare_space_by(&self, make_next: impl Fn() -> Result<()>) -> Result<bool> {
        if self.disk.read_only() {
            return Ok(false);
        }
        let (mut prepared, mut wants_next) = self.prepare_active()?;
        while wants_next {
            make_next()?;
            prepared = true;
            wants_next = self.prepare_active()?.1;
        }
        Ok(prepared)
    }

    /// Prepares the active segment ahead of the writers; whether there was something to do, and whether the next one is to be made.
    fn prepare_active(&self) -> Result<(bool, bool)> {
        let guard = &epoch::pin();
        let mut prepared = 0;
        loop {
            let grow = self.grow.lock();
            let active = self.active.load(guard);
            let ahead = prepared_at_a_time(active.target());
            let (reserved, limit) = (active.region.reserved(), active.region.limit());
            if grow.closed || prepared > 2 * ahead {
                return Ok((prepared > 0, false));
            }
            if reserved + active.kept_bytes() + ahead > active.target() && self.next_is_late() {
                active.raise_target();
            }
            // Lacking some, it prepares twice as much as is enough; but for the next segment others may wait as well.
            let wants_next = grow.next.is_none() && self.lacks_next(active, reserved) && !self.is_starved();
            let lacks = self.lacks_space(active, reserved + if prepared > 0 { ahead } else { 0 });
            if !lacks || wants_next && prepared > 0 {
                return Ok((prepared > 0, wants_next));
            }
            // First what writers need first.
            let step = if self.syncs { ahead } else { ahead.min(PREPARED_BYTES_MAX) };
            let target = active.target();
            self.prepare(active, (limit + step / 4).min(target), (limit + step).min(target))?;
            prepared += step;
        }
    }

    /// Background: has the next segment take over from an active one that `may_end`; whether it has. Another may have become the active one
    /// meanwhile.
    pub(crate) fn end_active(&self, purpose: Purpose, may_end: impl Fn(&Segment) -> bool) -> Result<bool> {
        self.make_next(0, purpose)?;
        let guard = &epoch::pin();
        let mut grow = self.grow.lock();
        let active = self.active.load(guard);
        let may_end = may_end(active) && !grow.closed && !active.region.is_closed();
        Ok(may_end && self.rotate(&mut grow, active, 0, guard)?)
    }

    /// Whether [`Log::give_back_space`] would.
    pub(crate) fn has_space_to_give_back(&self) -> bool {
        let guard = &epoch::pin();
        let usual = self.segment_bytes(guard);
        let grow = self.grow.lock();
        let mut prepared = prepared_segments(self.active.load(guard), &grow);
        seam::MAPS_PAST_END
            && !self.disk.read_only()
            && (prepared.any(|(segment, kept)| more_than_enough(segment, kept, usual).is_some())
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
        let usual = self.segment_bytes(guard);
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
            if more_than_enough(segment, kept, usual).is_none() {
                continue;
            }
            others();
            // Nobody can be writing beyond the published bytes now, and nobody will before the region is open again.
            region.close().map_err(|e| not_written(segment, e))?;
            // Somebody may have written since the look above.
            let cut = more_than_enough(segment, kept, usual).map_or(Ok(()), |enough| {
                region.lower(enough);
                seam::cut(&*segment.file, enough)
            });
            region.reopen();
            cut.map_err(|e| Error::io(format_args!("cannot cut {}", segment::file_name(segment.header.number)), e))?;
        }
        Ok(true)
    }

    /// Keeps a file for a segment to come, in place of the oldest that is kept if those are enough: somebody has held on to that.
    pub(super) fn keep_spare(&self, spare: Spare) {
        let mut spares = self.spares.lock();
        spares.push(spare);
        let oldest = (spares.len() > SPARES_MAX).then(|| spares.remove(0));
        drop(spares);
        if let Some(oldest) = oldest {
            self.remove_spare(&oldest);
        }
    }

    /// A file that was kept to become that of a segment, and that nobody looks at any more.
    pub(super) fn take_spare(&self, fits: impl Fn(&Spare) -> bool) -> Option<Spare> {
        let mut spares = self.spares.lock();
        let found = spares.iter().position(|spare| fits(spare) && spare.is_free())?;
        Some(spares.remove(found))
    }

    /// The file of `spare` as the file `name`; `None`, and no file of either name, if that cannot be done.
    pub(super) fn recycle(&self, spare: &Spare, name: &str) -> Option<Arc<dyn seam::File>> {
        let old = segment::file_name(spare.number);
        let recycled = self.disk.recycle(&old, name);
        if recycled.is_err() {
            self.remove_spare(spare);
        }
        recycled.ok()
    }

    pub(super) fn remove_spare(&self, spare: &Spare) {
        // Where an open file cannot be removed (Windows) the next open does it.
        let _ = self.disk.remove(&segment::file_name(spare.number));
    }

    /// Removes the files that were kept; whether there were any.
    pub(super) fn give_back_spares(&self) -> bool {
        self.give_back_spares_if(|_| true)
    }

    /// As [`Log::give_back_spares`], of those whose space is to be had then. The others may become files of the reserve, which nobody
    /// else takes the space of.
    pub(super) fn give_back_free_spares(&self) -> bool {
        self.give_back_spares_if(Spare::is_free)
    }

    fn give_back_spares_if(&self, goes: impl Fn(&Spare) -> bool) -> bool {
        let going: Vec<Spare> = self.spares.lock().extract_if(.., |spare| goes(spare)).collect();
        going.iter().for_each(|spare| self.remove_spare(spare));
        !going.is_empty()
    }
}

/// Whether a record of `bytes` fits into a segment that is still empty.
fn has_room(next: &Segment, bytes: u64) -> bool {
    next.target() - HEADER_BYTES >= bytes
}

/// The smallest segment with room for a record of `bytes`.
fn segment_bytes_for(bytes: u64) -> u64 {
    (bytes + HEADER_BYTES).next_multiple_of(PAGE_BYTES)
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
/// there is no segment behind it where that is `kept`. One that was made larger than is `usual`, for writers that outran the disk, keeps no
/// more than a usual one.
fn more_than_enough(segment: &Segment, kept: bool, usual: u64) -> Option<u64> {
    let bytes = segment.planned().min(usual);
    let margin = bytes / 64;
    let enough = segment.region.reserved() + if kept { segment::kept_of(bytes) } else { 0 } + margin;
    (segment.region.limit() > enough + 2 * margin).then_some(enough)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::io::Disk;
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
