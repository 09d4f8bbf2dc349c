//! Opening: from the files of a directory to a log that goes on. Trusts nothing that it reads.
//!
//! 1. Superblock; a directory without one becomes a store if it is empty, and is refused if it is not.
//! 2. Manifest: the segments, and whether the store was closed.
//! 3. The directory checkpoint, if there is one that is whole.
//!    Each segment: header, link, every record; the log ends where the first commit is not whole. Of sealed segments that
//!    the checkpoint covers, and of what else it covers, the records are not read: see `scrub`.
//! 4. An end that a witness contradicts (see `log::replay`) is damage: the open fails, nothing is changed.
//! 5. Otherwise what lies behind it never counted: later segments are removed, files that nothing names too.
//!
//! Every step can be cut short by a crash and done again: nothing is changed before step 5, and there the manifest
//! edit comes before the file goes.

use std::borrow::Cow;
use std::sync::Arc;

use crate::backup;
use crate::checkpoint::{self, Checkpoint};
use crate::error::{Error, ErrorKind, Result};
use crate::io::disk::LOCK_FILE;
use crate::io::map::Region;
use crate::io::{self, Disk};
use crate::log::record::Defect;
use crate::log::replay::{self, Checked, Extent, Notes};
use crate::log::{self, Resume};
use crate::manifest::edit::Edit;
use crate::manifest::superblock::{self, Superblock};
use crate::manifest::{self, Entry, Manifest};
use crate::run;
use crate::seeded::{Bug, seeded};
use crate::segment::{self, HEADER_BYTES, Header, Segment};
use crate::take_up::Tail;

/// What an open found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct OpenReport {
    /// The directory held no store and was made one.
    pub created: bool,
    /// The store had been closed: nothing had to be repaired.
    pub clean: bool,
    /// Log segments.
    pub segments: u64,
    /// Commits found in what was read of them: all, or what was logged since the directory checkpoint.
    pub commits: u64,
    /// Records in those commits, headers of batches included.
    pub records: u64,
    /// Bytes of log read and checked.
    pub log_bytes: u64,
    /// The hash directory was taken from a checkpoint, and only what was logged since was read. The rest is checked in the
    /// background, and until then at each read.
    pub checkpoint: bool,
    /// There was a checkpoint, and it was missing or damaged: the directory was made from the log. Nothing is lost by it.
    pub checkpoint_thrown_away: bool,
    /// Records (sets and deletes) that the directory was brought up to date by.
    pub records_replayed: u64,
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
    pub(crate) tails: Vec<Tail>,
    pub(crate) checkpoint: Option<Checkpoint>,
    pub(crate) report: OpenReport,
}

/// Reads the store on `disk`; makes one if there is none.
pub(crate) fn recover(disk: &Arc<dyn Disk>) -> Result<Recovered> {
    match Superblock::read(&**disk)? {
        Some(superblock) => reopen(disk, superblock),
        None => {
            refuse_foreign(&**disk)?;
            // Its creation was cut short: whoever only looks does not complete it.
            if disk.read_only() { Err(no_store(&**disk)) } else { make(disk) }
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
    if disk.read_only() { Err(no_store(disk)) } else { Ok(()) }
}

fn no_store(disk: &dyn Disk) -> Error {
    Error::new(ErrorKind::Format, format!("{} holds no kvasi store", disk.location()))
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
    let manifest = Manifest::create(disk.clone(), superblock, manifest::State::default())?;
    superblock.create(&**disk)?;
    // A creation cut short may have left more than this one wrote over.
    remove_orphans(disk, &manifest);
    let resume = Resume { segments: Vec::new(), ghosts: Vec::new(), active: None, durable: 0, base: 0, number: 0 };
    let report = OpenReport { created: true, clean: true, ..OpenReport::default() };
    Ok(Recovered { manifest, resume, hash_seed: superblock.hash_seed, tails: Vec::new(), checkpoint: None, report })
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
    /// Offset of the first record read.
    read_from: u64,
    /// Offset up to which records are to be read; `None` if they are, or need not be.
    read_to: Option<u64>,
    /// Offset of the first record to be replayed; behind the end if there is none.
    replay_from: u64,
    /// The seed of hashes, if the records are to be taken down as they are read.
    noting: Option<u64>,
    notes: Option<Notes>,
}

impl Loaded {
    fn name(&self) -> String {
        segment::file_name(self.number)
    }

    fn end(&self) -> u64 {
        self.header.base + self.extent.end
    }

    fn bytes_to_read(&self) -> u64 {
        self.read_to.map_or(0, |to| to.saturating_sub(self.read_from))
    }

    /// Where those who check the records each have a half of them.
    fn middle(&self) -> u64 {
        self.read_from + self.bytes_to_read() / 2
    }

    /// Checks the records that [`load`] has left unread.
    fn read(&mut self) -> Result<()> {
        self.check(u64::MAX)?.map_or(Ok(()), |checked| self.take(checked))
    }

    /// Checks the records up to offset `until`; `None` if there is nothing to be read.
    fn check(&self, until: u64) -> Result<Option<Checked>> {
        let Some(to) = self.read_to else { return Ok(None) };
        self.region.read_ahead(self.read_from, until.min(to));
        let notes = self.noting.map(Notes::new);
        Ok(Some(Checked::up_to(&self.log_bytes(to)?, self.header.salt, self.read_from, until, notes)))
    }

    /// Checks the records behind the middle, if it can be told where they begin.
    fn check_behind(&self) -> Result<Option<Checked>> {
        let Some(to) = self.read_to else { return Ok(None) };
        self.region.read_ahead(self.middle(), to);
        let notes = self.noting.map(Notes::new);
        Ok(Checked::behind(&self.log_bytes(to)?, self.header.salt, self.middle(), notes))
    }

    /// Takes up what was checked of both halves, and checks what of the second was not.
    fn join(&mut self, first: Option<Checked>, behind: Option<Checked>) -> Result<()> {
        let (Some(first), Some(to)) = (first, self.read_to) else { return Ok(()) };
        let checked = first.join(&self.log_bytes(to)?, self.header.salt, self.middle(), behind);
        self.take(checked)
    }

    fn take(&mut self, checked: Checked) -> Result<()> {
        let Checked { extent, notes, .. } = checked;
        // Now, while nothing has been changed.
        if let Some(at) = extent.nonsense_at {
            return Err(Error::corrupt(&self.name(), at, "an entry of the bucket catalogue makes no sense"));
        }
        (self.extent, self.notes, self.read_to) = (extent, notes, None);
        Ok(())
    }

    fn log_bytes(&self, to: u64) -> Result<Cow<'_, [u8]>> {
        self.region.read(0..to).map_err(|e| self.unread(e))
    }

    fn bytes(&self) -> Result<Cow<'_, [u8]>> {
        self.region.read(0..self.region.bytes()).map_err(|e| self.unread(e))
    }

    /// The file could not be read.
    #[cold]
    fn unread(&self, e: std::io::Error) -> Error {
        match e.kind() {
            std::io::ErrorKind::UnexpectedEof => Error::corrupt(&self.name(), self.region.bytes(), e),
            _ => Error::io(format_args!("cannot read {}", self.name()), e),
        }
    }
}

fn reopen(disk: &Arc<dyn Disk>, superblock: Superblock) -> Result<Recovered> {
    let mut manifest = Manifest::read(disk.clone(), superblock)?;
    let state = manifest.state().clone();
    refuse_lost_edits(disk, &manifest)?;

    let mut checkpoint = state.checkpoint.and_then(|entry| Checkpoint::open(&**disk, entry, superblock.store));
    let mut segments = load_all(&**disk, &state, &superblock, checkpoint.as_ref())?;
    let mut kept = log_end(&segments, &state)?;
    if checkpoint.as_ref().is_some_and(|checkpoint| !fits(checkpoint, &segments, kept)) {
        checkpoint = None;
        segments = load_all(&**disk, &state, &superblock, None)?;
        kept = log_end(&segments, &state)?;
    }
    let mut report = OpenReport { clean: state.closed.is_some(), ..OpenReport::default() };
    for (i, segment) in segments.iter().enumerate() {
        let whole = if i < kept { segment.extent.end } else { HEADER_BYTES };
        report.segments += u64::from(i < kept);
        if i < kept {
            report.commits += segment.extent.commits;
            report.records += segment.extent.records;
            report.log_bytes += segment.extent.end.saturating_sub(segment.read_from.min(segment.extent.end));
        }
        let cut_before = i + 1 < kept && goes_on(&segments, i);
        if segment.link.is_some() && segment.entry.sealed.is_none() && state.closed.is_none() && !cut_before {
            report.bytes_cut += used_bytes(&segment.bytes()?, whole).saturating_sub(whole);
        }
    }

    let base = state.next_base;
    if !disk.read_only() || seeded(Bug::LookingWrites) {
        if let Err(e) = manifest.take_over() {
            if e.kind() != ErrorKind::NoSpace {
                return Err(e);
            }
            make_room(disk, &manifest, segments[..kept].last())?;
            match manifest.take_over() {
                Err(e) if e.kind() == ErrorKind::NoSpace => manifest.go_on()?,
                taken_over => taken_over?,
            }
        }
        // The newest first: cut short, what is left still ends where it was found to end. Without the first of all, the next
        // would pass for the beginning of the log.
        let mut cut_off = segments.split_off(kept);
        if seeded(Bug::OldestRemovedFirst) {
            cut_off.reverse();
        }
        for segment in cut_off.into_iter().rev() {
            let name = segment.name();
            manifest.append(Edit::Remove { segment: segment.number, durable: 0 })?;
            drop(segment);
            let _ = disk.remove(&name);
        }
        if let (Some(entry), None) = (state.checkpoint, &checkpoint) {
            manifest.append(Edit::RemoveCheckpoint { number: entry.number })?;
        }
        remove_orphans(disk, &manifest);
    }
    segments.truncate(kept);
    report.checkpoint = checkpoint.is_some();
    report.checkpoint_thrown_away = state.checkpoint.is_some() && checkpoint.is_none();
    let (resume, tails) = resume(segments, &state, checkpoint.as_ref(), base, &**disk)?;
    Ok(Recovered { manifest, resume, hash_seed: superblock.hash_seed, tails, checkpoint, report })
}

/// Bytes of log of which the records are taken down while they are checked: some hundred MiB of memory at most. Of a longer
/// log they are read a second time.
const NOTED_BYTES_MAX: u64 = 512 << 20;

fn load_all(
    disk: &dyn Disk,
    state: &manifest::State,
    superblock: &Superblock,
    checkpoint: Option<&Checkpoint>,
) -> Result<Vec<Loaded>> {
    let from = checkpoint.map_or(0, |checkpoint| checkpoint.entry.from);
    let mut segments: Vec<Loaded> = Vec::new();
    let mut noted = 0;
    for (&number, &entry) in &state.segments {
        let noting = (noted <= NOTED_BYTES_MAX).then_some(superblock.hash_seed);
        let loaded = load(disk, number, entry, superblock.store, from, noting)?;
        noted += loaded.region.bytes().saturating_sub(loaded.read_from);
        segments.push(loaded);
    }
    if segments.iter().map(Loaded::bytes_to_read).sum::<u64>() < SHARED_BYTES {
        segments.iter_mut().try_for_each(Loaded::read)?;
    } else {
        // The most of it may be in one segment: each has a half of every one.
        let behind = || segments.iter().map(Loaded::check_behind).collect::<Result<Vec<_>>>();
        let first = |_| segments.iter().map(|segment| segment.check(segment.middle())).collect::<Result<Vec<_>>>();
        let (behind, first) = io::both(behind, first);
        for ((segment, first), behind) in segments.iter_mut().zip(first?).zip(behind?) {
            segment.join(first, behind)?;
        }
    }
    Ok(segments)
}

/// Bytes of log from which on a second thread helps to read them.
const SHARED_BYTES: u64 = if cfg!(feature = "testing") { 8 << 10 } else { 2 << 20 };

/// Whether the log is all that the checkpoint points at.
fn fits(checkpoint: &Checkpoint, segments: &[Loaded], kept: usize) -> bool {
    checkpoint.segments.iter().all(|addressed| {
        let Some(i) = segments.iter().position(|s| s.number == addressed.number) else { return true };
        let slots = log::slots_of(segments[i].header.capacity) as u64;
        i < kept && segments[i].extent.end >= addressed.end && slots == u64::from(addressed.slots)
    })
}

/// A segment that was the active one was in the manifest before: if it is not now, and its number was never given up,
/// the manifest has lost an edit.
fn refuse_lost_edits(disk: &Arc<dyn Disk>, manifest: &Manifest) -> Result<()> {
    for number in segment_files(&**disk)? {
        if number < manifest.state().next_segment {
            continue; // known, or removed
        }
        let name = segment::file_name(number);
        let failed = |e| Error::io(format_args!("cannot read {name}"), e);
        let header = read_header(&*disk.open(&name).map_err(failed)?).map_err(failed)?;
        // A file that was to become this segment, and still is the one that it was, says nothing.
        let link = Header::decode(&header, manifest.superblock().store)
            .filter(|decoded| decoded.number == number)
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

fn read_header(file: &dyn io::File) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; HEADER_BYTES as usize];
    let read = io::read_full(file, 0, &mut bytes)?;
    bytes.truncate(read);
    Ok(bytes)
}

/// On a full disk: gives up what the manifest does not name, and of the last segment what was prepared and never written, or is torn.
/// First the manifest is on the disk as it was read: what a dead process has said last may be in the system's cache only.
fn make_room(disk: &Arc<dyn Disk>, manifest: &Manifest, last: Option<&Loaded>) -> Result<()> {
    manifest.write_again()?;
    remove_orphans(disk, manifest);
    if let Some(last) = last.filter(|last| last.entry.sealed.is_none() && !cfg!(windows)) {
        // That it is shorter is all that comes of it; if not, the disk is as full as it was.
        let _ = io::cut(&*last.file, last.extent.end);
    }
    Ok(())
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
            // Beside a superblock the marker says nothing: the backup was finished.
            _ if name == backup::UNFINISHED => true,
            _ => checkpoint::number_of(&name)
                .is_some_and(|number| manifest.state().checkpoint.is_none_or(|checkpoint| checkpoint.number != number)),
        };
        if orphan && !seeded(Bug::OrphansLeft) {
            // Where it cannot be removed yet (open elsewhere, on Windows) the next open tries again.
            let _ = disk.remove(&name);
        }
    }
}

/// Opens a segment whose records are to be checked from log position `from` on, and all of them if it is not known where they
/// end; those from there on are to be taken down if `noting`. [`Loaded::read`] does it, any number of them at once; where the file
/// is not mapped it is done here, so that the calls of the disk come in one order.
fn load(disk: &dyn Disk, number: u64, entry: Entry, store: u64, from: u64, noting: Option<u64>) -> Result<Loaded> {
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
    let header_bytes = read_header(&*file).map_err(failed)?;
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
    let region = Region::of_file(disk, &file, mapped).map_err(failed)?;
    let replay_from = from.saturating_sub(header.base).max(HEADER_BYTES);
    let mut loaded = Loaded {
        number,
        entry,
        header,
        file,
        region,
        link,
        extent: Extent::unread(HEADER_BYTES),
        read_from: HEADER_BYTES,
        read_to: None,
        replay_from,
        noting: None,
        notes: None,
    };
    if link.is_none() {
        return Ok(loaded);
    }
    let end = entry.sealed.map_or(mapped, |end| end - header.base);
    if replay_from >= end && entry.sealed.is_some() {
        loaded.extent = Extent::unread(end);
        loaded.read_from = end;
        return Ok(loaded);
    }
    if replay_from <= end && replay_from <= entry.capacity {
        loaded.read_from = replay_from;
        loaded.noting = noting;
    }
    loaded.read_to = Some(end);
    if !loaded.region.is_mapped() {
        loaded.read()?;
    }
    Ok(loaded)
}

/// How many of the segments belong to the log: those up to where it first ends. An error if the log went on there once.
fn log_end(segments: &[Loaded], state: &manifest::State) -> Result<usize> {
    for (i, segment) in segments.iter().enumerate() {
        let before = i.checked_sub(1).map(|i| &segments[i]);
        let Some(link) = segment.link else {
            // Made ready, never used. Then nothing after it was used either, and nothing may say it was.
            // What is said of the segment before it counts too: it may have been cut where a record ends.
            let end = before.map_or(segment.header.base, Loaded::end);
            return match witness(segments, i, end, state)? {
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
            return match witness(segments, i - 1, before.end(), state)? {
                Some(by) => Err(damaged(before, before.extent.defect_at, &by)),
                None if link < before.end() => Err(damaged(segment, 56, "the log before it is longer than it says")),
                None => Ok(i),
            };
        }
        // A torn tail that an earlier open cut is no end, and what was written since bears no witness to it.
        let torn = segment.extent.defect != Defect::Blank && !goes_on(segments, i);
        let stops = torn || segment.entry.sealed.is_some_and(|e| e != segment.end());
        if (stops || i + 1 == segments.len())
            && let Some(by) = witness(segments, i, segment.end(), state)?
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
fn witness(segments: &[Loaded], i: usize, position: u64, state: &manifest::State) -> Result<Option<String>> {
    let segment = &segments[i];
    if seeded(Bug::WitnessIgnored) {
        return Ok(None);
    }
    if let Some(sealed) = segment.entry.sealed.filter(|sealed| *sealed > position) {
        return Ok(Some(format!("the manifest says that its records reach byte {}", sealed - segment.header.base)));
    }
    if state.checkpoint.is_some_and(|checkpoint| checkpoint.end > position) {
        return Ok(Some("a directory checkpoint was made of more".to_owned()));
    }
    if state.durable > position {
        return Ok(Some("a segment was given up after more had reached the disk".to_owned()));
    }
    if state.closed.is_some_and(|(_, end)| end > position) {
        return Ok(Some("the store had been closed after more was written".to_owned()));
    }
    let later = segments[i + 1..].iter();
    if later.clone().any(|s| s.entry.sealed.is_some()) {
        return Ok(Some("a later segment is sealed".to_owned()));
    }
    let mut marked = later.clone().any(|s| s.extent.mark > position) || {
        let bytes = segment.bytes()?;
        used_bytes(&bytes, segment.extent.end) != segment.extent.end
            && replay::witness_behind(&bytes, segment.header.salt, segment.extent.end, position)
    };
    for s in later {
        marked = marked || replay::witness_behind(&s.bytes()?, s.header.salt, s.extent.end, position);
    }
    Ok(marked.then(|| "a later record says that more had reached the disk".to_owned()))
}

#[cold]
fn damaged(segment: &Loaded, offset: u64, by: impl std::fmt::Display) -> Error {
    let what = match segment.extent.defect {
        Defect::Blank => "the log ends here",
        Defect::Malformed | Defect::Cut | Defect::Unreadable(_) => "there is no record here",
        Defect::Checksum => "a record does not match its checksum",
    };
    Error::corrupt(
        &segment.name(),
        offset,
        format_args!("{what}, but {by}; nothing was changed; restore the file from a backup"),
    )
}

/// Bytes up to the last one that is not zero, at least `from`.
fn used_bytes(bytes: &[u8], from: u64) -> u64 {
    const BLOCK: usize = 4096;
    let mut end = bytes.len();
    let from = from.min(end as u64) as usize;
    // Blank space is long: whole blocks of it first.
    while end - from >= BLOCK && bytes[end - BLOCK..end] == [0; BLOCK] {
        end -= BLOCK;
    }
    bytes[from..end].iter().rposition(|b| *b != 0).map_or(from as u64, |at| (from + at) as u64 + 1)
}

/// How far a segment was to be filled when it was made, or less.
fn planned_of(header: &Header) -> u64 {
    let planned = if io::MAPS_PAST_END { header.capacity / segment::TARGETS } else { header.capacity };
    planned.next_multiple_of(segment::PAGE_BYTES).min(header.capacity)
}

/// The open segments, which of them goes on, and what is to be replayed.
fn resume(
    loaded: Vec<Loaded>,
    state: &manifest::State,
    checkpoint: Option<&Checkpoint>,
    base: u64,
    disk: &dyn Disk,
) -> Result<(Resume, Vec<Tail>)> {
    let closed = state.closed;
    let mut slots = Vec::new();
    let addressed = checkpoint.map_or(&[][..], |checkpoint| &checkpoint.segments);
    let mut ghosts = Vec::new();
    for gone in addressed.iter().filter(|a| loaded.iter().all(|s| s.number != a.number)) {
        if seeded(Bug::GhostsForgotten) {
            continue;
        }
        let header =
            Header { number: gone.number, base: 0, salt: 0, capacity: u64::from(gone.slots) * log::SLOT_BYTES };
        let ghost = Arc::new(log::ghost(header, gone.first_slot)?);
        log::put_in_slots(&mut slots, &ghost);
        ghosts.push(ghost);
    }
    // What the checkpoint names gets its slots before what is newer.
    for (a, s) in addressed.iter().filter_map(|a| Some((a, loaded.iter().find(|s| s.number == a.number)?))) {
        let header = Header { capacity: s.header.capacity, ..s.header };
        log::put_in_slots(&mut slots, &Arc::new(log::ghost(header, a.first_slot)?));
    }
    let marked = loaded.iter().map(|s| s.extent.mark).max().unwrap_or(0);
    let known_durable = state.checkpoint.map_or(0, |checkpoint| checkpoint.end).max(marked);
    let mut tails = Vec::new();
    let mut segments = Vec::new();
    let mut active = None;
    let mut durable = loaded.first().map_or(base, |s| s.header.base);
    let mut gap = false;
    let last = loaded.last().map(|last| last.number);
    for loaded in loaded {
        let (name, end, sealed) = (loaded.name(), loaded.end(), loaded.entry.sealed);
        let was_closed = closed.is_some();
        let counts = addressed.iter().find(|a| a.number == loaded.number);
        let first_slot = match counts {
            Some(addressed) => addressed.first_slot as usize,
            None => log::free_slots(&slots, log::slots_of(loaded.header.capacity))
                .ok_or_else(|| Error::new(ErrorKind::NoSpace, "the log is larger than one store can address"))?,
        };
        let goes_on = (closed == Some((loaded.number, end))
            || seeded(Bug::AppendAfterReopen) && Some(loaded.number) == last)
            && sealed.is_none()
            && !disk.read_only();
        let planned = planned_of(&loaded.header);
        let region = if goes_on {
            let failed = |e| Error::io(format_args!("cannot go on with {name}"), e);
            let (filled, capacity) = (loaded.extent.end, loaded.header.capacity);
            // The first write prepares more; what deletes may need is had at once, if it can be had.
            let kept = if io::MAPS_PAST_END { (filled + planned / 8).min(planned.max(filled)) } else { capacity };
            let limit = match loaded.file.reserve(kept, log::SYNCED_PIECE_BYTES) {
                Ok(()) => kept,
                Err(e) => match failed(e) {
                    full if io::MAPS_PAST_END && full.kind() == ErrorKind::NoSpace => filled,
                    other => return Err(other),
                },
            };
            Region::to_fill(disk, &loaded.file, capacity, filled, limit).map_err(failed)?
        } else {
            loaded.region.cut(loaded.extent.end)
        };
        let segment = Segment::new(loaded.header, planned, first_slot as u32, loaded.file, region);
        if let Some(counts) = counts {
            segment.take_up_counts(counts.live, counts.tombstones);
        }
        // Where no record was read, it is not known whether they are whole.
        if loaded.read_from > HEADER_BYTES {
            segment.unchecked_before(loaded.read_from);
        }
        if sealed.is_none() && !was_closed && end > known_durable {
            segment.unwitnessed_from(known_durable.saturating_sub(segment.header.base));
            durable = durable.max(known_durable);
            gap = true;
        }
        if !gap {
            durable = end;
        }
        let segment = Arc::new(segment);
        if loaded.replay_from < segment.region.published() {
            tails.push(Tail { segment: segment.clone(), from: loaded.replay_from, notes: loaded.notes });
        }
        log::put_in_slots(&mut slots, &segment);
        if goes_on {
            active = Some(segment.clone());
        }
        segments.push(segment);
    }
    Ok((Resume { segments, ghosts, active, durable, base, number: state.next_segment }, tails))
}
