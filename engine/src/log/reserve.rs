//! What is kept back of a disk that is nearly full, so that deletes and the cleaner go on where nobody else can.
//!
//! Deleting takes space before it gives any: a tombstone now, and later, while the cleaner moves what lives out of a segment, as much as
//! lives there. So where the disk has little room left, a *reserve* of files is kept, each as large as the largest segment: one for the
//! cleaner, the others, a 32nd of the log together, for deletes. Elsewhere there is none: what is free on the disk is reserve enough.
//!
//! | who     | may have the active segment up to                                  | may have the next one made of            |
//! | growth  | what deletes may need, and not if it *owes* (is made of a reserve   | the disk, if the reserve is whole         |
//! |         | that is not whole again)                                           |                                          |
//! | deletes | its end; where it owes and no file is left, half of it, and not     | the disk, or the reserve but for one file |
//! |         | what the cleaner has yet to move, but a sixteenth in any case      |                                          |
//! | cleaner | its end; where no more than one file is left, not the sixteenth    | the disk, or the reserve                  |
//! |         | that deletes have                                                  |                                          |
//!
//! A store is *starved* when somebody got no space. The cleaner then takes the segment with most to gain, if it has counted that what
//! lives there, as it will be written, fits into what is left; the file that it empties goes into the reserve first. Each segment that is
//! cleaned so leaves more space than there was, so it ends: when writers may go on, or when nothing is worth it any more.
//!
//! A file of the reserve has the name of a segment that was never made: the next open removes it, as it does any that nothing names.

use std::sync::Weak;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use crossbeam_epoch::{self as epoch, Guard};
use parking_lot::{Mutex, MutexGuard};

use super::record::Purpose;
use super::space::Spare;
use super::{HEADER_BYTES, Log, PAGE_BYTES};
use crate::error::{Error, ErrorKind, Result};
use crate::io::{File, Space};
use crate::manifest::edit::Edit;
use crate::segment::{self, Segment};

/// Deletes have at least so small a part of the log in reserve. With 21 bytes of key and 100 of value a tombstone is a fifth of a record, and
/// a record that is moved grows by a thirtieth: a seventh of all keys can be deleted, evenly, before a segment has to be worth
/// cleaning, and it is worth it then.
const LOG_PER_RESERVE: u64 = 32;
/// The disk has little room left when it is less than so many files of the reserve, beside those that are missing.
const FILES_FREE_MIN: u64 = 8;
/// Edits that the manifest has space for ahead then: cleaning a segment takes some four.
const RESERVED_EDITS: usize = 128;
/// On a small disk segments are so small a part of it, and no smaller than this.
const SEGMENTS_PER_DISK: u64 = 32;
pub(super) const SEGMENT_BYTES_MIN: u64 = 64 << 10;

pub(super) fn no_space() -> Error {
    Error::new(ErrorKind::NoSpace, "the disk is full: what is left is kept for deletes and for cleaning")
}

/// Has the disk keep space for all of a file.
fn hold(file: &dyn File, bytes: u64, piece: usize) -> std::io::Result<()> {
    if file.promise(bytes)? { Ok(()) } else { file.reserve(bytes, piece) }
}

/// The largest segment to be made on a disk of that size.
pub(super) fn segment_bytes_on(disk: Option<Space>) -> u64 {
    disk.map_or(u64::MAX, |space| {
        let part = (space.total / SEGMENTS_PER_DISK).max(SEGMENT_BYTES_MIN);
        1 << part.ilog2()
    })
}

/// The part of a segment of so many bytes that deletes alone have: half of what is kept.
pub(super) fn kept_for_deletes(bytes: u64) -> u64 {
    bytes / 16
}

/// What is left of the part that deletes have of a segment which is the last that there is of the reserve.
fn left_for_deletes(segment: &Segment) -> u64 {
    kept_for_deletes(segment.planned()).saturating_sub(segment.tombstone_bytes())
}

/// The reserve, and how the store stands without it.
#[derive(Default)]
pub(super) struct Reserve {
    /// Its files, and how many they are.
    files: Mutex<Vec<Spare>>,
    count: AtomicUsize,
    /// Somebody got no space.
    pub(super) starved: AtomicBool,
    /// The active segment, or the next one, is made of a reserve that is not whole again.
    pub(super) owes: AtomicBool,
    /// How much writers wanted at most.
    wanted: AtomicU64,
    /// The cleaner can free nothing.
    hopeless: AtomicBool,
    /// What the cleaner has yet to move, in a starved store.
    to_move: AtomicU64,
}

impl Log {
    /// Whether somebody got no space, and nothing is known to have changed since.
    pub(crate) fn is_starved(&self) -> bool {
        self.reserve.starved.load(Ordering::Relaxed)
    }

    /// Says so. From here on nobody fills the active segment to its end but who frees space.
    pub(super) fn starve(&self, _making: &MutexGuard<'_, ()>) {
        self.next_ready.store(false, Ordering::Relaxed);
        self.reserve.starved.store(true, Ordering::Relaxed);
    }

    pub(super) fn sated(&self, _making: &MutexGuard<'_, ()>) {
        self.reserve.starved.store(false, Ordering::Relaxed);
        self.reserve.wanted.store(0, Ordering::Relaxed);
        let next = self.grow.lock().next.is_some();
        self.next_ready.store(next, Ordering::Relaxed);
    }

    pub(super) fn owes(&self) -> bool {
        self.reserve.owes.load(Ordering::Relaxed)
    }

    fn reserved_files(&self) -> usize {
        self.reserve.count.load(Ordering::Relaxed)
    }

    /// Bytes of the active segment that have to be left behind a record of so many, while the store is starved.
    #[cold]
    pub(super) fn kept_when_starved(&self, segment: &Segment, bytes: u64, purpose: Purpose) -> Result<u64> {
        match purpose {
            Purpose::Growth => {
                if self.owes() && !self.refill(&self.making.lock())? {
                    self.take_down_wanted(bytes, purpose);
                    return Err(no_space());
                }
                Ok(segment.kept_bytes())
            }
            Purpose::Freeing if self.reserved_files() > 0 => Ok(0),
            Purpose::Freeing if self.owes() && bytes <= left_for_deletes(segment) => Ok(0),
            Purpose::Freeing => {
                let half = if self.owes() { segment.target() / 2 } else { 0 };
                let kept = half.max(self.reserve.to_move.load(Ordering::Relaxed));
                if kept > 0 && segment.region.reserved() + bytes + kept > segment.target() {
                    return Err(no_space());
                }
                Ok(kept)
            }
            Purpose::Cleaning => Ok(self.kept_from_cleaner(segment)),
        }
    }

    /// A write of so many bytes found no space.
    #[cold]
    pub(super) fn take_down_wanted(&self, bytes: u64, purpose: Purpose) {
        if purpose == Purpose::Growth {
            self.reserve.wanted.fetch_max(bytes, Ordering::Relaxed);
        }
    }

    /// What deletes alone may have, where the cleaner has the last of the reserve, or will.
    fn kept_from_cleaner(&self, segment: &Segment) -> u64 {
        if self.reserved_files() > 1 || self.grow.lock().next.is_some() {
            0
        } else if self.owes() {
            left_for_deletes(segment)
        } else {
            kept_for_deletes(segment.planned())
        }
    }

    /// How much the cleaner may be about to move, in a starved store: all of it fits into the active segment, the next one or a file of the
    /// reserve, as what is left of one may be too short for a record.
    pub(crate) fn room_to_clean(&self, guard: &Guard) -> u64 {
        let active = self.active.load(guard);
        let next = self.grow.lock().next.clone();
        let file = self.reserve.files.lock().iter().map(|spare| spare.bytes).max();
        // As of `kept_from_cleaner`, of one that is to become the active segment.
        let kept_then = |bytes: u64| if self.reserved_files() > 1 { 0 } else { kept_for_deletes(bytes) };
        let left = |segment: &Segment, kept: u64| {
            let target = segment.target();
            if file.is_none() && segment.region.limit() < target {
                let _grow = self.grow.lock();
                // What there is of space.
                let _ = self.prepare(segment, target, target);
            }
            segment.region.limit().saturating_sub(segment.region.reserved() + kept)
        };
        left(active, self.kept_from_cleaner(active))
            .max(next.map_or(0, |next| left(&next, kept_then(next.planned()))))
            .max(file.map_or(0, |bytes| bytes - HEADER_BYTES - kept_then(bytes)))
    }

    /// Whether deletes have had the most of the part of the active segment that is kept for them.
    #[cfg(feature = "testing")]
    pub(crate) fn deletes_had_theirs(&self) -> bool {
        let guard = &epoch::pin();
        let active = self.active.load(guard);
        left_for_deletes(active) < kept_for_deletes(active.planned()) / 2
    }

    /// The cleaner is about to move so many bytes: deletes do not take the space for them.
    pub(crate) fn set_to_move(&self, bytes: u64) {
        self.reserve.to_move.store(bytes, Ordering::Relaxed);
    }

    /// The cleaner has moved a record of so many bytes.
    pub(crate) fn moved(&self, bytes: u64) {
        if self.is_starved() {
            let left = self.reserve.to_move.load(Ordering::Relaxed);
            self.reserve.to_move.store(left.saturating_sub(bytes), Ordering::Relaxed);
        }
    }

    /// Cleaner: whether there is nothing that cleaning would free.
    pub(crate) fn set_hopeless(&self, is: bool) {
        self.reserve.hopeless.store(is, Ordering::Release);
    }

    /// Whether the cleaner has said since, for all that it knew, that it can free nothing.
    pub(crate) fn is_hopeless(&self) -> bool {
        self.reserve.hopeless.load(Ordering::Acquire)
    }

    /// Cleaner: fills up the reserve, and looks whether writers may go on.
    pub(crate) fn relieve(&self) -> Result<()> {
        let making = self.making.lock();
        if self.refill(&making)? {
            let guard = &epoch::pin();
            let active = self.active.load(guard);
            let left = active.region.limit().saturating_sub(active.region.reserved());
            let wanted = self.reserve.wanted.load(Ordering::Relaxed).max(active.target() / 16);
            if left >= active.kept_bytes() + wanted || !self.lacks_room(guard) {
                self.sated(&making);
            }
        }
        Ok(())
    }

    /// Whether a reserve is needed.
    fn lacks_room(&self, guard: &Guard) -> bool {
        self.wanted_reserve(guard).0 > 0
    }

    /// The reserve as it should be: files, and bytes of each.
    fn wanted_reserve(&self, guard: &Guard) -> (u64, u64) {
        let Some(space) = self.disk.space() else { return (0, 0) };
        let (mut logged, mut largest) = (0, self.segment_bytes(guard));
        for segment in self.segments(guard) {
            logged += segment.region.published();
            // One that was made for a single record is emptied when that is gone.
            largest = largest.max(Some(segment.target()).filter(|c| *c <= self.segment_bytes_max).unwrap_or(0));
        }
        let files = 1 + (logged / LOG_PER_RESERVE).div_ceil(largest).max(1);
        let missing = files.saturating_sub(self.reserved_files() as u64);
        let files = if space.free < (missing + FILES_FREE_MIN) * largest { files } else { 0 };
        (files, largest)
    }

    /// Makes what the reserve lacks, of files that were given up or of what is free on the disk; whether it is whole then, or none is needed.
    pub(super) fn refill(&self, _making: &MutexGuard<'_, ()>) -> Result<bool> {
        let guard = &epoch::pin();
        let (files, bytes) = self.wanted_reserve(guard);
        if files > 0 {
            // The first file, which the cleaner goes on with, then what the manifest needs, then the others.
            let whole = self.have_reserved(1, bytes)? && self.promise_edits()? && self.have_reserved(files, bytes)?;
            if !whole {
                return Ok(false);
            }
        }
        self.reserve.owes.store(false, Ordering::Relaxed);
        Ok(true)
    }

    /// Has so many files of so many bytes in the reserve; whether there was space for them.
    fn have_reserved(&self, files: u64, bytes: u64) -> Result<bool> {
        // A file may be somewhat smaller: the manifest had a part of it.
        let enough = (bytes / 16 * 15).next_multiple_of(PAGE_BYTES);
        let mut reserve = self.reserve.files.lock();
        for spare in reserve.iter_mut().filter(|spare| spare.bytes < enough) {
            let name = segment::file_name(spare.number);
            let held = self.disk.open(&name).and_then(|file| hold(&*file, bytes, self.piece_bytes()));
            if !had_space(&name, held)? {
                return Ok(false);
            }
            spare.bytes = bytes;
        }
        let there = reserve.len() as u64;
        drop(reserve);
        for _ in there..files {
            let had = self.reserve_file(bytes)? || self.give_back_free_spares() && self.reserve_file(bytes)?;
            if !had && (enough == bytes || !self.reserve_file(enough)?) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Has space for the edits that cleaning takes.
    fn promise_edits(&self) -> Result<bool> {
        let promise = || match self.manifest.lock().promise(RESERVED_EDITS) {
            Err(e) if e.kind() == ErrorKind::NoSpace => Ok(false),
            promised => promised.map(|()| true),
        };
        Ok(promise()? || self.give_back_free_spares() && promise()?)
    }

    /// One more file for the reserve; whether there was space for it.
    fn reserve_file(&self, bytes: u64) -> Result<bool> {
        let number = {
            let grow = self.grow.lock();
            if grow.closed {
                return Ok(false);
            }
            grow.number
        };
        let name = segment::file_name(number);
        let spare = self.take_spare(|_| true);
        let salt = spare.as_ref().map_or(0, |spare| spare.salt);
        let file = match spare.and_then(|spare| self.recycle(&spare, &name)) {
            Some(file) => Ok(file),
            None => self.disk.create(&name),
        };
        let file = match file {
            Err(e) => return had_space(&name, Err(e)),
            Ok(file) => file,
        };
        self.grow.lock().number += 1;
        if !had_space(&name, hold(&*file, bytes, self.piece_bytes()))? {
            let _ = self.disk.remove(&name);
            return Ok(false);
        }
        let mut reserve = self.reserve.files.lock();
        reserve.push(Spare { number, salt, bytes, region: Weak::new() });
        self.reserve.count.store(reserve.len(), Ordering::Relaxed);
        Ok(true)
    }

    /// Appends an edit to the manifest, if need be in the space of a file of the reserve.
    pub(super) fn append_edit(&self, edit: Edit) -> Result<()> {
        let appended = self.manifest.lock().append(edit);
        if !appended.as_ref().is_err_and(|e| e.kind() == ErrorKind::NoSpace) {
            return appended;
        }
        {
            let mut reserve = self.reserve.files.lock();
            let Some(spare) = reserve.pop() else { return appended };
            self.reserve.count.store(reserve.len(), Ordering::Relaxed);
            self.remove_spare(&spare);
        }
        self.manifest.lock().append(edit)
    }

    /// A file of the reserve for a segment that has room for a record of `bytes`, if this purpose may have one.
    pub(super) fn take_reserved(&self, bytes: u64, purpose: Purpose) -> Option<Spare> {
        let mut reserve = self.reserve.files.lock();
        let left_for_others = match purpose {
            Purpose::Growth => return None,
            Purpose::Freeing => 1,
            Purpose::Cleaning => 0,
        };
        let fits = |spare: &Spare| spare.bytes >= HEADER_BYTES + bytes;
        let found = reserve.iter().position(fits).filter(|_| reserve.len() > left_for_others)?;
        let taken = reserve.remove(found);
        self.reserve.count.store(reserve.len(), Ordering::Relaxed);
        Some(taken)
    }

    /// Whether there is a reserve that is not needed.
    pub(super) fn has_reserve_to_give_back(&self) -> bool {
        self.reserved_files() > 0 && !self.lacks_room(&epoch::pin())
    }

    /// Removes the reserve. The caller sees to it that none is made meanwhile.
    pub(super) fn give_back_reserve(&self) {
        let mut reserve = self.reserve.files.lock();
        self.reserve.count.store(0, Ordering::Relaxed);
        reserve.drain(..).for_each(|spare| self.remove_spare(&spare));
    }
}

/// Whether a call that makes a file of the reserve had the space for it.
fn had_space(name: &str, result: std::io::Result<()>) -> Result<bool> {
    match result.map_err(|e| Error::io(format_args!("cannot make {name}"), e)) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == ErrorKind::NoSpace => Ok(false),
        Err(e) => Err(e),
    }
}
