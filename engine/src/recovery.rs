//! Opening: from the files of a directory to a log that goes on. Reads everything, trusts nothing.
//!
//! 1. Superblock; a directory without one becomes a store if it is empty, and is refused if it is not.
//! 2. Manifest: the segments, and whether the store was closed.
//! 3. Each segment: header, link, every record; the log ends where the first commit is not whole.
//! 4. An end that a witness contradicts (see `log::replay`) is damage: the open fails, nothing is changed.
//! 5. Otherwise what lies behind it never counted: later segments are removed, files that nothing names too.
//!
//! Every step can be cut short by a crash and done again: nothing is changed before step 5, and there the manifest
//! edit comes before the file goes.

use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::io::disk::LOCK_FILE;
use crate::io::map::Region;
use crate::io::{self, Disk};
use crate::log::record::Defect;
use crate::log::replay::{self, Extent};
use crate::log::{self, Resume};
use crate::manifest::edit::Edit;
use crate::manifest::superblock::{self, Superblock};
use crate::manifest::{self, Entry, Manifest};
use crate::run;
use crate::segment::{self, HEADER_BYTES, Header, Segment};

/// What an open found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct OpenReport {
    /// The directory held no store and was made one.
    pub created: bool,
    /// The store had been closed: nothing had to be repaired.
    pub clean: bool,
    /// Log segments read.
    pub segments: u64,
    /// Commits found in them.
    pub commits: u64,
    /// Records (sets and deletes) in those commits.
    pub records: u64,
    /// Bytes of log read and checked.
    pub log_bytes: u64,
    /// Bytes behind the last whole commit, which a crash left and which were cut off. None of them was acknowledged by
    /// [`Durability::Sync`](crate::Durability::Sync).
    pub bytes_cut: u64,
    /// Key runs in use: the keys of the older part of the log, sorted.
    pub runs: u64,
    /// Key runs given up because a file was missing or damaged. They are made again from the log, in the background;
    /// until then the first listing reads the log. Nothing is lost by it.
    pub runs_thrown_away: u64,
}

/// A store read from its files, ready to go on.
pub(crate) struct Recovered {
    pub(crate) manifest: Manifest,
    pub(crate) resume: Resume,
    pub(crate) hash_seed: u64,
    pub(crate) report: OpenReport,
}

/// Reads the store on `disk`; makes one if there is none.
pub(crate) fn recover(disk: &Arc<dyn Disk>) -> Result<Recovered> {
    match Superblock::read(&**disk)? {
        Some(superblock) => reopen(disk, superblock),
        None => {
            refuse_foreign(&**disk)?;
            make(disk)
        }
    }
}

/// A directory that holds no store, and anything that we did not put there, is somebody else's.
pub(crate) fn refuse_foreign(disk: &dyn Disk) -> Result<()> {
    let names = disk.list().map_err(|e| Error::io(format_args!("cannot list {}", disk.location()), e))?;
    if names.iter().any(|name| name == superblock::FILE) {
        return Ok(());
    }
    let ours = |name: &String| name == LOCK_FILE || name == superblock::FILE || manifest::number_of(name) == Some(1);
    if let Some(foreign) = names.iter().find(|name| !ours(name)) {
        let message = format!(
            "{} is not a kvasi store, and not empty (it holds {foreign:?}): name an empty or a new directory",
            disk.location()
        );
        return Err(Error::new(ErrorKind::Format, message));
    }
    if disk.read_only() {
        let message = format!("{} holds no kvasi store", disk.location());
        return Err(Error::new(ErrorKind::Format, message));
    }
    Ok(())
}

fn make(disk: &Arc<dyn Disk>) -> Result<Recovered> {
    let random = || disk.random_u64().map_err(|e| Error::io("no random numbers", e));
    let superblock = Superblock {
        compat: 0,
        ro_compat: 0,
        incompat: 0,
        store: random()?,
        hash_seed: random()?,
        generation: 1,
        manifest: 1,
    };
    // The manifest first: the superblock is what completes a store.
    let manifest = Manifest::create(disk.clone(), superblock)?;
    superblock.create(&**disk)?;
    let resume = Resume { segments: Vec::new(), active: None, durable: 0, base: 0, number: 0 };
    let report = OpenReport { created: true, clean: true, ..OpenReport::default() };
    Ok(Recovered { manifest, resume, hash_seed: superblock.hash_seed, report })
}

/// One segment as found on the disk.
struct Loaded {
    number: u64,
    entry: Entry,
    header: Header,
    file: Arc<dyn io::File>,
    region: Region,
    /// Where the log before it ended; `None` if it never became the active segment.
    link: Option<u64>,
    extent: Extent,
}

impl Loaded {
    fn name(&self) -> String {
        segment::file_name(self.number)
    }

    fn end(&self) -> u64 {
        self.header.base + self.extent.end
    }

    fn bytes(&self) -> &[u8] {
        self.region.slice(0..self.region.bytes()).unwrap_or_default()
    }
}

fn reopen(disk: &Arc<dyn Disk>, superblock: Superblock) -> Result<Recovered> {
    let mut manifest = Manifest::read(disk.clone(), superblock)?;
    let state = manifest.state().clone();
    refuse_lost_edits(disk, &manifest)?;

    let mut segments = Vec::new();
    for (&number, &entry) in &state.segments {
        segments.push(load(&**disk, number, entry, superblock.store)?);
    }
    let kept = log_end(&segments, state.closed)?;
    let mut report = OpenReport { clean: state.closed.is_some(), ..OpenReport::default() };
    for (i, segment) in segments.iter().enumerate() {
        let whole = if i < kept { segment.extent.end } else { HEADER_BYTES };
        report.segments += u64::from(i < kept);
        if i < kept {
            report.commits += segment.extent.commits;
            report.records += segment.extent.records;
            report.log_bytes += segment.extent.end;
        }
        let cut_before = i + 1 < kept && goes_on(&segments, i);
        if segment.link.is_some() && segment.entry.sealed.is_none() && state.closed.is_none() && !cut_before {
            report.bytes_cut += used_bytes(segment.bytes()).saturating_sub(whole);
        }
    }

    let base = segments.iter().map(|s| s.entry.base + s.entry.capacity).max().unwrap_or(0);
    if !disk.read_only() {
        manifest.take_over()?;
        // The newest first: cut short, what is left still ends where it was found to end. Without the first of all, the next
        // would pass for the beginning of the log.
        for segment in segments.split_off(kept).into_iter().rev() {
            let name = segment.name();
            manifest.append(Edit::Remove { segment: segment.number })?;
            drop(segment);
            let _ = disk.remove(&name);
        }
        remove_orphans(disk, &manifest);
    }
    segments.truncate(kept);
    let resume = resume(segments, &state, base, disk.read_only())?;
    Ok(Recovered { manifest, resume, hash_seed: superblock.hash_seed, report })
}

/// A segment that was the active one was in the manifest before: if it is not now, and its number was never given up,
/// the manifest has lost an edit.
fn refuse_lost_edits(disk: &Arc<dyn Disk>, manifest: &Manifest) -> Result<()> {
    for number in segment_files(&**disk)? {
        if number < manifest.state().next_segment {
            continue; // known, or removed
        }
        let name = segment::file_name(number);
        let header = read_header(&**disk, &name)?;
        let link = Header::decode(&header, manifest.superblock().store)
            .and_then(|decoded| segment::decode_link(decoded.salt, &header));
        if link.is_some() {
            return Err(Error::corrupt(&name, 0, "the segment was in use, and the manifest does not know it"));
        }
    }
    Ok(())
}

fn segment_files(disk: &dyn Disk) -> Result<Vec<u64>> {
    let names = disk.list().map_err(|e| Error::io(format_args!("cannot list {}", disk.location()), e))?;
    Ok(names.iter().filter_map(|name| segment::number_of(name)).collect())
}

fn read_header(disk: &dyn Disk, name: &str) -> Result<Vec<u8>> {
    let failed = |e| Error::io(format_args!("cannot read {name}"), e);
    let file = disk.open(name).map_err(failed)?;
    let mut bytes = vec![0; HEADER_BYTES as usize];
    let read = io::read_full(&*file, 0, &mut bytes).map_err(failed)?;
    bytes.truncate(read);
    Ok(bytes)
}

/// Files of ours that the manifest does not name: left by a crash between two steps, needed by nobody.
fn remove_orphans(disk: &Arc<dyn Disk>, manifest: &Manifest) {
    for name in disk.list().unwrap_or_default() {
        let runs = &manifest.state().runs;
        let numbers = (segment::number_of(&name), manifest::number_of(&name), run::format::number_of(&name));
        let orphan = match numbers {
            (Some(segment), ..) => !manifest.state().segments.contains_key(&segment),
            (_, Some(number), _) => number != manifest.superblock().manifest,
            (.., Some(number)) => runs.values().all(|run| run.number != number),
            _ => false,
        };
        if orphan {
            // Where it cannot be removed yet (open elsewhere, on Windows) the next open tries again.
            let _ = disk.remove(&name);
        }
    }
}

fn load(disk: &dyn Disk, number: u64, entry: Entry, store: u64) -> Result<Loaded> {
    let name = segment::file_name(number);
    let failed = |e| Error::io(format_args!("cannot read {name}"), e);
    let file = match disk.open(&name) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::corrupt(&name, 0, "the file is missing; restore it from a backup"));
        }
        Err(e) => return Err(failed(e)),
    };
    let file_bytes = file.len().map_err(failed)?;
    let header_bytes = read_header(disk, &name)?;
    let header = Header::decode(&header_bytes, store)
        .filter(|h| h.number == number && h.base == entry.base && h.capacity == entry.capacity)
        .ok_or_else(|| Error::corrupt(&name, 0, "the header is not the one that was written"))?;
    let mapped = file_bytes.min(entry.capacity);
    if let Some(end) = entry.sealed
        && (end < header.base + HEADER_BYTES || end - header.base > mapped)
    {
        let message = format!("the file ends here, its records end at byte {}", end.saturating_sub(header.base));
        return Err(Error::corrupt(&name, file_bytes, message));
    }
    let link = segment::decode_link(header.salt, &header_bytes);
    let region = Region::new(file.map(mapped, false).map_err(failed)?, mapped, false);
    let extent = match region.slice(0..mapped) {
        Some(bytes) if link.is_some() => {
            let sealed = entry.sealed.map_or(mapped, |end| end - header.base);
            replay::extent(&bytes[..sealed as usize], header.salt)
        }
        _ => replay::extent(&[], header.salt),
    };
    Ok(Loaded { number, entry, header, file, region, link, extent })
}

/// How many of the segments belong to the log: those up to where it first ends. An error if the log went on there once.
fn log_end(segments: &[Loaded], closed: Option<(u64, u64)>) -> Result<usize> {
    for (i, segment) in segments.iter().enumerate() {
        let before = i.checked_sub(1).map(|i| &segments[i]);
        let Some(link) = segment.link else {
            // Made ready, never used. Then nothing after it was used either, and nothing may say it was.
            return match witness(segments, i, segment.header.base, closed) {
                Some(by) => Err(damaged(segment, segment::HEADER_BYTES - segment::LINK_BYTES, &by)),
                None => Ok(i),
            };
        };
        // Where a number is missing, either a segment was cleaned away, and then all before it are sealed, or one was made
        // ready and given up unused, and then the link is to the segment before that.
        if let Some(before) = before
            && (before.number + 1 == segment.number || before.entry.sealed.is_none())
            && link != before.end()
        {
            // The log before this segment was longer than it is now.
            return match witness(segments, i - 1, before.end(), closed) {
                Some(by) => Err(damaged(before, before.extent.defect_at, &by)),
                None if link < before.end() => Err(damaged(segment, 56, "the log before it is longer than it says")),
                None => Ok(i),
            };
        }
        // A torn tail that an earlier open cut is no end, and what was written since bears no witness to it.
        let torn = segment.extent.defect != Defect::Blank && !goes_on(segments, i);
        let stops = torn || segment.entry.sealed.is_some_and(|e| e != segment.end());
        if (stops || i + 1 == segments.len())
            && let Some(by) = witness(segments, i, segment.end(), closed)
        {
            return Err(damaged(segment, segment.extent.defect_at, &by));
        }
        if torn && segment.entry.sealed.is_none() {
            return Ok(i + 1);
        }
    }
    Ok(segments.len())
}

/// Whether the segment after `i` took over exactly where `i` ends now: what stands behind is a torn tail that an earlier
/// open cut already.
fn goes_on(segments: &[Loaded], i: usize) -> bool {
    segments.get(i + 1).is_some_and(|next| next.link == Some(segments[i].end()))
}

/// Who says that the log reached past `position`, where segment `i` now ends.
fn witness(segments: &[Loaded], i: usize, position: u64, closed: Option<(u64, u64)>) -> Option<String> {
    let segment = &segments[i];
    if let Some(sealed) = segment.entry.sealed.filter(|sealed| *sealed > position) {
        return Some(format!("the manifest says that its records reach byte {}", sealed - segment.header.base));
    }
    if closed.is_some_and(|(_, end)| end > position) {
        return Some("the store had been closed after more was written".to_owned());
    }
    let later = segments[i + 1..].iter();
    if later.clone().any(|s| s.entry.sealed.is_some()) {
        return Some("a later segment is sealed".to_owned());
    }
    let marked = later.clone().any(|s| s.extent.mark > position)
        || replay::witness_behind(segment.bytes(), segment.header.salt, segment.extent.end, position)
        || later.clone().any(|s| replay::witness_behind(s.bytes(), s.header.salt, s.extent.end, position));
    marked.then(|| "a later record says that more had reached the disk".to_owned())
}

#[cold]
fn damaged(segment: &Loaded, offset: u64, by: impl std::fmt::Display) -> Error {
    let what = match segment.extent.defect {
        Defect::Blank => "the log ends here",
        Defect::Malformed => "there is no record here",
        Defect::Checksum => "a record does not match its checksum",
    };
    Error::corrupt(
        &segment.name(),
        offset,
        format_args!("{what}, but {by}; nothing was changed; restore the file from a backup"),
    )
}

/// Bytes up to the last one that is not zero.
fn used_bytes(bytes: &[u8]) -> u64 {
    bytes.iter().rposition(|b| *b != 0).map_or(0, |at| at as u64 + 1)
}

/// The open segments, and which of them goes on.
fn resume(loaded: Vec<Loaded>, state: &manifest::State, base: u64, read_only: bool) -> Result<Resume> {
    let closed = state.closed;
    let mut slots = Vec::new();
    let mut segments = Vec::new();
    let mut active = None;
    let mut durable = loaded.first().map_or(base, |s| s.header.base);
    let mut gap = false;
    for loaded in loaded {
        let (name, end, sealed) = (loaded.name(), loaded.end(), loaded.entry.sealed);
        let was_closed = closed.is_some();
        let first_slot = log::free_slots(&slots, log::slots_of(loaded.header.capacity))
            .ok_or_else(|| Error::new(ErrorKind::NoSpace, "the log is larger than one store can address"))?;
        let goes_on = closed == Some((loaded.number, end)) && sealed.is_none() && !read_only;
        let region = if goes_on {
            let failed = |e| Error::io(format_args!("cannot go on with {name}"), e);
            let (filled, capacity) = (loaded.extent.end, loaded.header.capacity);
            // The first write prepares more; what deletes may need is had at once, if it can be had.
            let kept = if io::MAPS_PAST_END { (filled + capacity / 8).min(capacity) } else { capacity };
            let limit = match loaded.file.reserve(kept) {
                Ok(()) => kept,
                Err(e) => match failed(e) {
                    full if io::MAPS_PAST_END && full.kind() == ErrorKind::NoSpace => filled,
                    other => return Err(other),
                },
            };
            let map = loaded.file.map(capacity, true).map_err(failed)?;
            Region::up_to(map, filled, limit, true)
        } else {
            loaded.region.cut(loaded.extent.end)
        };
        let mut segment = Segment::new(loaded.header, first_slot as u32, loaded.file, region);
        if sealed.is_none() && !was_closed {
            segment = segment.unwitnessed();
            gap = true;
        }
        if !gap {
            durable = end;
        }
        let segment = Arc::new(segment);
        log::put_in_slots(&mut slots, &segment);
        if goes_on {
            active = Some(segment.clone());
        }
        segments.push(segment);
    }
    Ok(Resume { segments, active, durable, base, number: state.next_segment })
}
