//! The manifest: which segments, key runs and directory checkpoint make up the store, as an append-only list of edits.
//!
//! File `MANIFEST-` and a number; the superblock says which one is the present one. Every edit is on the disk before
//! what it allows is done: a segment is added before it is written to, removed before its file goes.
//!
//! A manifest that ends in half an edit, or in one that does not check, was cut by a crash while that edit was written:
//! nothing depended on it yet. One that does not check and has others behind it is damage.

pub(crate) mod edit;
pub(crate) mod superblock;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::checksum::Seed;
use crate::codec::{hex16, name16};
use crate::error::{Error, ErrorKind, Result};
use crate::io::{self, Disk, File};
use crate::seeded::{Bug, seeded};
use edit::{EDIT_BYTES, Edit};
use superblock::Superblock;

/// Length from which on a manifest is written anew at the next open.
const REWRITE_BYTES: u64 = 64 << 10;
/// Space is kept for it in blocks of so many bytes.
const PROMISED_BYTES: u64 = 4096;
/// A manifest longer than this was not written by us.
const FILE_BYTES_MAX: u64 = 64 << 20;

pub(crate) fn file_name(number: u64) -> String {
    name16("MANIFEST-", number, "")
}

/// The number in a manifest's file name.
pub(crate) fn number_of(name: &str) -> Option<u64> {
    hex16(name.strip_prefix("MANIFEST-")?)
}

/// What the manifest says of one segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) base: u64,
    pub(crate) capacity: u64,
    /// Where its records end, if it is sealed: all of them were on the disk by then.
    pub(crate) sealed: Option<u64>,
}

/// What the manifest says of one key run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RunEntry {
    pub(crate) number: u64,
    /// First log position that it does not cover any more.
    pub(crate) to: u64,
}

/// What the manifest says of the directory checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CheckpointEntry {
    pub(crate) number: u64,
    /// First log position to be replayed after it.
    pub(crate) from: u64,
    /// The log before this position was on the disk.
    pub(crate) end: u64,
}

/// What all edits come to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) segments: BTreeMap<u64, Entry>,
    /// The store was closed and not opened since: the segment and the position where the log ends.
    pub(crate) closed: Option<(u64, u64)>,
    /// The log before this position was on the disk when a segment was given up.
    pub(crate) durable: u64,
    /// First segment number never used.
    pub(crate) next_segment: u64,
    /// First log position behind all segments that ever were.
    pub(crate) next_base: u64,
    /// By the first log position that they cover. No two cover the same.
    pub(crate) runs: BTreeMap<u64, RunEntry>,
    /// First run number never used.
    pub(crate) next_run: u64,
    pub(crate) checkpoint: Option<CheckpointEntry>,
    /// First checkpoint number never used.
    pub(crate) next_checkpoint: u64,
}

impl State {
    fn apply(&mut self, edit: Edit) -> Option<()> {
        if !matches!(edit, Edit::Close { .. }) {
            self.closed = None;
        }
        match edit {
            Edit::Add { segment, base, capacity } => {
                self.segments.insert(segment, Entry { base, capacity, sealed: None });
                self.next_segment = self.next_segment.max(segment.checked_add(1)?);
                self.next_base = self.next_base.max(base.checked_add(capacity)?);
            }
            Edit::Seal { segment, end } => self.segments.get_mut(&segment)?.sealed = Some(end),
            Edit::Remove { segment, durable } => {
                self.segments.remove(&segment)?;
                self.durable = self.durable.max(durable);
            }
            Edit::Close { segment, end } => self.closed = Some((segment, end)),
            Edit::Open => {}
            Edit::AddRun { run, from, to } => {
                self.runs.retain(|&start, old| start < from || old.to > to);
                if self.runs.iter().any(|(&start, old)| start < to && old.to > from) {
                    return None;
                }
                self.runs.insert(from, RunEntry { number: run, to });
                self.next_run = self.next_run.max(run.checked_add(1)?);
            }
            Edit::RemoveRun { run } => {
                let from = self.runs.iter().find(|(_, entry)| entry.number == run).map(|(&from, _)| from)?;
                self.runs.remove(&from);
            }
            Edit::AddCheckpoint { number, from, end } => {
                self.checkpoint = Some(CheckpointEntry { number, from, end });
                self.next_checkpoint = self.next_checkpoint.max(number.checked_add(1)?);
            }
            Edit::RemoveCheckpoint { number } => {
                // Without the checkpoint before it, it only keeps the number from being used again.
                if self.checkpoint.take().is_some_and(|checkpoint| checkpoint.number != number) {
                    return None;
                }
                self.next_checkpoint = self.next_checkpoint.max(number.checked_add(1)?);
            }
        }
        Some(())
    }

    /// Edits that come to this state.
    fn edits(&self) -> Vec<Edit> {
        let mut edits = Vec::new();
        for (&segment, entry) in &self.segments {
            edits.push(Edit::Add { segment, base: entry.base, capacity: entry.capacity });
            edits.extend(entry.sealed.map(|end| Edit::Seal { segment, end }));
        }
        // The last number that is given up: it keeps numbers and positions from being used again, and says how far the log was
        // on the disk then.
        let gone = (0..self.next_segment).rev().find(|n| !self.segments.contains_key(n));
        if let Some(gone) = gone.filter(|_| !seeded(Bug::PositionsReused)) {
            edits.push(Edit::Add { segment: gone, base: self.next_base, capacity: 0 });
            edits.push(Edit::Remove { segment: gone, durable: self.durable });
        }
        if let Some(last) = self.next_run.checked_sub(1).filter(|n| self.runs.values().all(|run| run.number != *n)) {
            edits.push(Edit::AddRun { run: last, from: 0, to: 1 });
            edits.push(Edit::RemoveRun { run: last });
        }
        edits.extend(self.runs.iter().map(|(&from, run)| Edit::AddRun { run: run.number, from, to: run.to }));
        match (self.checkpoint, self.next_checkpoint.checked_sub(1)) {
            (Some(CheckpointEntry { number, from, end }), _) => edits.push(Edit::AddCheckpoint { number, from, end }),
            (None, Some(last)) => edits.push(Edit::RemoveCheckpoint { number: last }),
            (None, None) => {}
        }
        edits.extend(self.closed.map(|(segment, end)| Edit::Close { segment, end }));
        edits
    }
}

/// The manifest of an open store. Appending waits for the disk.
#[derive(Debug)]
pub(crate) struct Manifest {
    disk: Arc<dyn Disk>,
    superblock: Superblock,
    file: Arc<dyn File>,
    bytes: u64,
    /// So far the disk keeps space for the file.
    promised: u64,
    state: State,
    /// An append failed: what the file ends in is unknown.
    broken: bool,
    /// As read, the file ended in an edit that never counted, from this byte on.
    torn: Option<u64>,
}

impl Manifest {
    /// Makes the manifest of a new store that holds what `state` says; file and name are on the disk then.
    pub(crate) fn create(disk: Arc<dyn Disk>, superblock: Superblock, state: State) -> Result<Manifest> {
        let (file, bytes) = write_new(&*disk, &superblock, &state)?;
        Ok(Manifest { disk, superblock, file, bytes, promised: 0, state, broken: false, torn: None })
    }

    /// Reads the present manifest. Changes nothing.
    pub(crate) fn read(disk: Arc<dyn Disk>, superblock: Superblock) -> Result<Manifest> {
        let name = file_name(superblock.manifest);
        let failed = |e| Error::io(format_args!("cannot read {name}"), e);
        let file = match disk.open(&name) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::corrupt(&name, 0, "the file is missing; restore it from a backup"));
            }
            Err(e) => return Err(failed(e)),
        };
        let bytes = io::read_whole(&*file, FILE_BYTES_MAX).map_err(failed)?;
        let (state, torn) = fold(&name, &bytes, &superblock)?;
        let bytes = bytes.len() as u64;
        Ok(Manifest { disk, superblock, file, bytes, promised: 0, state, broken: false, torn })
    }

    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    pub(crate) fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// Adds an edit; at return it is on the disk. Where there was no space for it the next one is written in its place;
    /// after any other failure the manifest takes no more.
    ///
    /// An edit by which the store gets larger is refused while there is no space for those by which it gets smaller: a disk that
    /// is full to the last byte would stay so whatever is deleted.
    pub(crate) fn append(&mut self, edit: Edit) -> Result<()> {
        let name = file_name(self.superblock.manifest);
        if self.broken {
            return Err(Error::io(format_args!("{name} takes no more edits"), std::io::ErrorKind::Other.into()));
        }
        if matches!(edit, Edit::Add { .. } | Edit::AddRun { .. } | Edit::AddCheckpoint { .. }) {
            self.promise(0)?;
        }
        let bytes = edit.encode(seed(&self.superblock, self.bytes));
        let failed = |e| Error::io(format_args!("cannot append to {name}"), e);
        if let Err(e) = io::write_full(&*self.file, self.bytes, &bytes).map_err(failed) {
            // Half an edit never counts, and is written over.
            self.broken = e.kind() != ErrorKind::NoSpace;
            if seeded(Bug::HalfEditStays) {
                self.bytes += EDIT_BYTES as u64;
            }
            return Err(e);
        }
        if let Err(e) = if seeded(Bug::NoManifestSync) { Ok(()) } else { self.file.sync() } {
            self.broken = true;
            return Err(Error::sync(format_args!("cannot sync {name}"), e));
        }
        self.bytes += EDIT_BYTES as u64;
        self.state.apply(edit);
        Ok(())
    }

    /// Sees to it that there is space for `more` edits, the seal and the removal of every segment, the removal of every run, and
    /// as many again.
    pub(crate) fn promise(&mut self, more: usize) -> Result<()> {
        let edits = 16 + more + 4 * (self.state.segments.len() + self.state.runs.len());
        let wanted = (self.bytes + (edits * EDIT_BYTES) as u64).next_multiple_of(PROMISED_BYTES);
        if wanted > self.promised {
            let name = file_name(self.superblock.manifest);
            self.file.promise(wanted).map_err(|e| Error::io(format_args!("cannot keep space for {name}"), e))?;
            self.promised = wanted;
        }
        Ok(())
    }

    /// Writes what was read once more, in its place.
    fn write_over(&self) -> Result<()> {
        let edits =
            io::read_whole(&*self.file, FILE_BYTES_MAX).and_then(|edits| io::write_full(&*self.file, 0, &edits));
        edits.map_err(|e| Error::io("cannot write the manifest again", e))
    }

    /// Makes sure that what was read is on the disk, without taking any space. It is not safe from a power cut meanwhile if an earlier sync
    /// has failed: for where a new manifest finds no space.
    pub(crate) fn write_again(&self) -> Result<()> {
        self.write_over()?;
        self.file.sync().map_err(|e| Error::sync("cannot sync the manifest", e))
    }

    /// As [`Manifest::take_over`], where there is no space for a new one: goes on with this one, which [`Manifest::write_again`] has seen to.
    pub(crate) fn go_on(&mut self) -> Result<()> {
        // What never counted is written over, as after a want of space.
        self.bytes = self.torn.take().unwrap_or(self.bytes);
        self.append(Edit::Open)?;
        let _ = self.promise(0);
        Ok(())
    }

    /// Makes the manifest ready for appending after it was read: one that was not closed, or has grown long, is written
    /// anew, since what a crashed process left in the system's cache may not be on the disk.
    pub(crate) fn take_over(&mut self) -> Result<()> {
        let torn = self.torn.is_some() && !seeded(Bug::TornEditKept);
        if !torn && self.bytes <= REWRITE_BYTES && (self.state.closed.is_some() || seeded(Bug::TornEditKept)) {
            // Again, lest the edits that were read stand in the system's cache only, after a sync that failed.
            self.write_over()?;
            self.append(Edit::Open)?;
            // Without it the store opens all the same; the next segment needs it.
            let _ = self.promise(0);
            return Ok(());
        }
        self.state.closed = None;
        let old = self.superblock.manifest;
        let next = Superblock { generation: self.superblock.generation + 1, manifest: old + 1, ..self.superblock };
        (self.file, self.bytes) = write_new(&*self.disk, &next, &self.state)?;
        // Its bytes have a place: whatever failed, it is not known which of the two manifests counts.
        next.write(&*self.disk).map_err(|e| match e.kind() {
            ErrorKind::NoSpace => e.with_kind(ErrorKind::Io, "the superblock cannot be written"),
            _ => e,
        })?;
        self.superblock = next;
        self.torn = None;
        self.promised = 0;
        let _ = self.promise(0);
        // Not there after all, or still in use somewhere: the next open tries again.
        let _ = self.disk.remove(&file_name(old));
        Ok(())
    }
}

/// Of the checksum of the edit at this offset.
pub(crate) fn seed(superblock: &Superblock, offset: u64) -> Seed {
    Seed::new(superblock.store ^ superblock.manifest.rotate_left(32), offset)
}

/// Writes a manifest file, its bytes and its name safe on the disk.
fn write_new(disk: &dyn Disk, superblock: &Superblock, state: &State) -> Result<(Arc<dyn File>, u64)> {
    let name = file_name(superblock.manifest);
    let write = || {
        // A file of that name was left by a crash before the superblock named it.
        let file = match disk.create(&name) {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                disk.remove(&name)?;
                disk.create(&name)?
            }
            other => other?,
        };
        let mut bytes = Vec::new();
        for edit in state.edits() {
            bytes.extend_from_slice(&edit.encode(seed(superblock, bytes.len() as u64)));
        }
        io::write_full(&*file, 0, &bytes)?;
        if !seeded(Bug::ManifestNotSyncedFirst) {
            // However it failed: a want of space is lived through by whoever asked, and this is not.
            file.sync().and_then(|()| disk.sync_dir()).map_err(io::unknown_state)?;
        }
        Ok((file, bytes.len() as u64))
    };
    write().map_err(|e| Error::io(format_args!("cannot write {name}"), e))
}

/// All edits in the file, in order, and where it ends in one that never counted.
pub(crate) fn fold(name: &str, bytes: &[u8], superblock: &Superblock) -> Result<(State, Option<u64>)> {
    let mut state = State::default();
    let mut bad = None;
    for (i, chunk) in bytes.chunks(EDIT_BYTES).enumerate() {
        let offset = (i * EDIT_BYTES) as u64;
        match Edit::decode(chunk, seed(superblock, offset)) {
            None => bad = bad.or(Some(offset)),
            Some(_) if bad.is_some() => {
                let offset = bad.unwrap_or_default();
                return Err(Error::corrupt(name, offset, "an edit does not check and others follow it"));
            }
            Some(edit) => state
                .apply(edit)
                .ok_or_else(|| Error::corrupt(name, offset, "an edit names a segment or run that is not there"))?,
        }
    }
    Ok((state, bad))
}

/// What there is of a manifest, damaged or not.
pub(crate) struct Checked {
    /// What the edits that check come to.
    pub(crate) state: State,
    pub(crate) bytes: u64,
    /// What is wrong, each with the byte where.
    pub(crate) wrong: Vec<(u64, &'static str)>,
}

/// Reads the file of the present manifest as [`Manifest::read`] does, but past what is damaged.
pub(crate) fn check(disk: &dyn Disk, superblock: &Superblock) -> std::io::Result<Checked> {
    let file = disk.open(&file_name(superblock.manifest))?;
    let bytes = io::read_whole(&*file, FILE_BYTES_MAX)?;
    let mut checked = Checked { state: State::default(), bytes: bytes.len() as u64, wrong: Vec::new() };
    for (i, chunk) in bytes.chunks(EDIT_BYTES).enumerate() {
        let offset = (i * EDIT_BYTES) as u64;
        match Edit::decode(chunk, seed(superblock, offset)) {
            None => checked.wrong.push((offset, "an edit does not match its checksum, or is cut short")),
            Some(edit) if checked.state.apply(edit).is_none() => {
                checked.wrong.push((offset, "an edit names a segment or run that is not there"));
            }
            Some(_) => {}
        }
    }
    Ok(checked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::memory::MemoryDisk;

    fn new() -> (Arc<MemoryDisk>, Manifest) {
        let disk = Arc::new(MemoryDisk::default());
        let superblock =
            Superblock { compat: 0, ro_compat: 0, incompat: 0, store: 1, hash_seed: 2, generation: 1, manifest: 1 };
        superblock.create(&*disk).unwrap();
        let manifest = Manifest::create(disk.clone(), superblock, State::default()).unwrap();
        (disk, manifest)
    }

    fn reread(disk: &Arc<MemoryDisk>) -> Result<Manifest> {
        let superblock = Superblock::read(&**disk).unwrap().unwrap();
        Manifest::read(disk.clone(), superblock)
    }

    #[test]
    fn what_was_appended_is_read_back_also_after_taking_over() {
        let (disk, mut manifest) = new();
        manifest.append(Edit::Add { segment: 0, base: 0, capacity: 100 }).unwrap();
        manifest.append(Edit::Add { segment: 1, base: 100, capacity: 100 }).unwrap();
        manifest.append(Edit::Seal { segment: 0, end: 90 }).unwrap();
        manifest.append(Edit::Remove { segment: 1, durable: 95 }).unwrap();
        let mut again = reread(&disk).unwrap();
        assert_eq!(again.state(), manifest.state());
        again.take_over().unwrap();
        assert_eq!(reread(&disk).unwrap().state(), manifest.state());
        assert_eq!(again.state().next_segment, 2, "a number is never used twice");
        again.append(Edit::Close { segment: 0, end: 90 }).unwrap();
        assert_eq!(reread(&disk).unwrap().state().closed, Some((0, 90)));
        again.append(Edit::AddRun { run: 0, from: 0, to: 50 }).unwrap();
        again.append(Edit::AddRun { run: 1, from: 50, to: 100 }).unwrap();
        again.append(Edit::AddRun { run: 2, from: 0, to: 100 }).unwrap();
        again.append(Edit::AddRun { run: 3, from: 100, to: 200 }).unwrap();
        again.append(Edit::RemoveRun { run: 3 }).unwrap();
        again.append(Edit::AddCheckpoint { number: 0, from: 10, end: 20 }).unwrap();
        again.append(Edit::AddCheckpoint { number: 1, from: 30, end: 30 }).unwrap();
        let runs = BTreeMap::from([(0, RunEntry { number: 2, to: 100 })]);
        again.append(Edit::Close { segment: 0, end: 90 }).unwrap();
        let mut opened = reread(&disk).unwrap();
        assert_eq!(opened.state().runs, runs);
        assert_eq!(opened.state().checkpoint, Some(CheckpointEntry { number: 1, from: 30, end: 30 }));
        opened.take_over().unwrap();
        assert_eq!(reread(&disk).unwrap().state().closed, None);
        opened.append(Edit::RemoveCheckpoint { number: 1 }).unwrap();
        opened.state.closed = None;
        opened.take_over().unwrap();
        let state = reread(&disk).unwrap().state().clone();
        assert_eq!((state.checkpoint, state.next_checkpoint), (None, 2), "a number is never used twice");
    }

    #[test]
    fn a_cut_or_damaged_end_never_counted_but_a_damaged_middle_is_an_error() {
        let (disk, mut manifest) = new();
        for segment in 0..3 {
            manifest.append(Edit::Add { segment, base: segment * 10, capacity: 10 }).unwrap();
        }
        let name = file_name(1);
        let whole = io::read_whole(&*disk.open(&name).unwrap(), FILE_BYTES_MAX).unwrap();
        for cut in 2 * EDIT_BYTES..whole.len() {
            disk.open(&name).unwrap().set_len(cut as u64).unwrap();
            assert_eq!(reread(&disk).unwrap().state().segments.len(), 2);
        }
        let mut bad = whole.clone();
        bad[EDIT_BYTES + 9] ^= 1;
        io::write_full(&*disk.open(&name).unwrap(), 0, &bad).unwrap();
        assert_eq!(reread(&disk).unwrap_err().kind(), ErrorKind::Corrupt);
    }
}
