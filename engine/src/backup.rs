//! Backups: a consistent prefix of a store, taken while writers go on, that is a store itself.
//! Flow: `Store::backup`, [`restore`] -> here -> `log` for what holds still, `io` for both directories.
//!
//! A snapshot of the log names the segments and runs of one moment and a position up to which everything is on the disk:
//! so a backup holds nothing that the store could still lose. What is sealed is never written again, cut or reused, by
//! anybody: it is linked, one file for both stores. Everything else is copied, up to the position: the segment that is
//! still written to, those not yet sealed, and whatever cannot be linked. Nothing has to be kept from the cleaner
//! meanwhile: where it has removed a file that was about to be linked, the mapping still holds the bytes, and they are
//! copied from there.
//!
//! The backup keeps the store's id, because every checksum depends on it. It is a store that was closed at that position.
//!
//! Order, so that a backup cut short is no store: the marker [`UNFINISHED`]; segments and runs; manifest, under a number that
//! no new store has; superblock. Each is on the disk before the next; then the marker goes.

use std::path::Path;
use std::sync::Arc;

use crossbeam_epoch as epoch;

use crate::error::{Error, Result};
use crate::io::disk::{LOCK_FILE, RealDisk};
use crate::io::{self, Disk};
use crate::log::Snapshot;
use crate::log::replay;
use crate::manifest::superblock::{self, Superblock};
use crate::manifest::{Manifest, State};
use crate::options::Options;
use crate::run::{self, Run};
use crate::seeded::{Bug, seeded};
use crate::segment::{self, Header, Segment};
use crate::store::Store;

/// The file that says what a directory is that holds half a backup. Its contents do not matter.
pub(crate) const UNFINISHED: &str = "UNFINISHED-BACKUP";
/// Bytes written in one call.
const WRITE_BYTES: usize = 1 << 20;
/// Bytes of a segment's header that are the same from its making on.
const STATIC_BYTES: u64 = segment::HEADER_BYTES - segment::LINK_BYTES;
/// How often to look for a moment in which the index and the manifest name the same runs.
const TRIES: u32 = 4;

/// What a backup holds, and how it was made; see [`Store::backup`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BackupReport {
    /// The log position where it ends: it holds every commit with a version below this one.
    pub position: u64,
    /// Log segments.
    pub segments: u64,
    /// Key runs; 0 where those there were could not be used, and are made again in the background once the backup is
    /// opened.
    pub runs: u64,
    /// Files that the store and the backup share.
    pub linked_files: u64,
    /// Bytes of them: they take no space until the store lets go of them.
    pub linked_bytes: u64,
    /// Files copied.
    pub copied_files: u64,
    /// Bytes of them.
    pub copied_bytes: u64,
}

impl Store {
    /// Makes a backup of the store in directory `to`, which must be absent or empty, while readers and writers go on. It is
    /// a prefix of the store's commits, batches whole: every commit acknowledged before the call is in it, and some of those
    /// made meanwhile may be. It is a store: open it, or [`restore`] it to another place. Waits for the disk; at return
    /// the backup survives a power cut.
    ///
    /// What is sealed is shared by hard links, where `to` is on the same file system: then the time taken does not depend on
    /// the size of the store, once the background has checked what the open did not read. Such a backup does not protect against a disk that fails, or that damages a file; one on
    /// another file system does. If it fails, what was made is removed again; if the machine stops, `to` holds something
    /// that is not opened as a store, and that is to be removed.
    ///
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// # let path = dir.path();
    /// let store = kvasi::Store::open(path.join("store"), kvasi::Options::new())?;
    /// store.bucket("b")?.set(b"key", b"value")?;
    /// store.backup(path.join("backup"))?;
    /// let backup = kvasi::Store::open(path.join("backup"), kvasi::Options::new())?;
    /// assert!(backup.bucket("b")?.exists(b"key")?);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// `Invalid` if `to` is neither absent nor empty; `Locked` if it is in use; `Corrupt` if a file does not hold what was
    /// written to it; `Poisoned` if the store is, or was closed; `NoSpace`, `Io`. The store itself is none
    /// the worse, and goes on.
    pub fn backup(&self, to: impl AsRef<Path>) -> Result<BackupReport> {
        let to: Arc<dyn Disk> = Arc::new(RealDisk::open(to.as_ref(), &Options::new(), refuse_used)?);
        self.backup_onto(&to, true)
    }

    /// As [`Store::backup`], onto any disk; with `links`, files are shared where they can be.
    pub(crate) fn backup_onto(&self, to: &Arc<dyn Disk>, links: bool) -> Result<BackupReport> {
        refuse_used(&**to)?;
        self.check_unread()?;
        if !self.0.read_only {
            // What is acknowledged is in; also where nobody has waited for the disk yet.
            self.sync()?;
        }
        // A store that is only read is all there is, whether that is known to be durable or not.
        let (snapshot, runs) = self.hold_still(!self.0.read_only);
        let mut backup =
            Backup { from: &**self.0.commits.log.disk(), to, links, report: BackupReport::default(), made: Vec::new() };
        match backup.fill(&snapshot, &runs) {
            Ok(()) => Ok(backup.report),
            Err(e) => {
                backup.undo();
                Err(e)
            }
        }
    }

    /// Checks what the open has not read: a backup of damage would be a store that does not open.
    fn check_unread(&self) -> Result<()> {
        let segments = self.0.commits.log.segments(&epoch::pin());
        segments.iter().try_for_each(|segment| segment.check_unread())
    }

    /// The log of one moment, up to its end or to where it is `durable`, and the runs in use then, held so that they stay readable.
    pub(crate) fn hold_still(&self, durable: bool) -> (Snapshot, Vec<Arc<Run>>) {
        let commits = &self.0.commits;
        let mut tries = 0;
        loop {
            let runs = commits.index.runs().to_vec();
            let mut snapshot = commits.log.snapshot(durable);
            let named = snapshot.state.runs.iter().map(|(&from, run)| (run.number, from, run.to));
            if named.eq(runs.iter().map(|run| (run.header.number, run.header.from, run.header.to))) {
                return (snapshot, runs);
            }
            tries += 1;
            if tries == TRIES {
                // One is being given up or put in: without any the index is made again, from the log.
                snapshot.state.runs.clear();
                return (snapshot, Vec::new());
            }
        }
    }
}

/// Makes a store in directory `to`, which must be absent or empty, from the backup (or any store that is not open) in
/// directory `from`. All of `from` is read and checked first, and every byte copied is checked as it is copied: if anything
/// is wrong that could lose a commit, nothing is made. Shares no file with `from`.
///
/// The two are one store until they are written to: they have the same id, and versions handed out by one for what was
/// written since mean nothing to the other. Files of one must not be put into the other's directory.
///
/// # Errors
/// `Corrupt` with file and offset of the first damage found; `Format` if `from` holds no store; `Locked` if it is open for
/// writing; `Invalid` if `to` is neither absent nor empty; `NoSpace`, `Io`.
pub fn restore(from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<BackupReport> {
    let from: Arc<dyn Disk> = Arc::new(RealDisk::open_read_only(from.as_ref(), &Options::new())?);
    restore_onto(from, || Ok(Arc::new(RealDisk::open(to.as_ref(), &Options::new(), refuse_used)?)))
}

/// As [`restore`], on any disks; `to` is opened when `from` was found good.
pub(crate) fn restore_onto(from: Arc<dyn Disk>, to: impl FnOnce() -> Result<Arc<dyn Disk>>) -> Result<BackupReport> {
    let store = Store::without_worker(from, Options::new())?;
    store.check_unread()?;
    store.backup_onto(&to()?, false)
}

/// Says no to a directory that holds anything.
fn refuse_used(disk: &dyn Disk) -> Result<()> {
    let names = disk.list().map_err(|e| Error::io(format_args!("cannot list {}", disk.location()), e))?;
    match names.iter().find(|name| *name != LOCK_FILE) {
        None => Ok(()),
        Some(name) => {
            let message = format!("{} is not empty (it holds {name:?}): name a new directory", disk.location());
            Err(Error::invalid(message))
        }
    }
}

/// A backup being made.
struct Backup<'a> {
    from: &'a dyn Disk,
    to: &'a Arc<dyn Disk>,
    links: bool,
    report: BackupReport,
    /// Names of files made, the marker first.
    made: Vec<String>,
}

impl Backup<'_> {
    fn fill(&mut self, snapshot: &Snapshot, runs: &[Arc<Run>]) -> Result<()> {
        let failed = |e| Error::io(format_args!("cannot make {UNFINISHED} in the backup"), e);
        self.made.push(UNFINISHED.to_owned());
        self.to.create(UNFINISHED).map_err(failed)?;
        self.sync_names()?;
        for (segment, end) in &snapshot.segments {
            self.segment(snapshot, segment, *end)?;
        }
        let runs = self.runs(runs)?;
        self.sync_names()?;

        let state = state_of(snapshot, runs);
        let old = snapshot.superblock;
        // A new store begins with manifest 1: so what there is without a superblock is never taken for one being made.
        let superblock = Superblock { generation: old.generation + 1, manifest: old.manifest + 1, ..old };
        self.made.push(crate::manifest::file_name(superblock.manifest));
        Manifest::create(self.to.clone(), superblock, state)?;
        self.made.push(superblock::FILE.to_owned());
        superblock.create(&**self.to)?;
        // Beside a superblock it says nothing any more: whether it is gone for good does not matter.
        let _ = self.to.remove(UNFINISHED);
        self.report.position = snapshot.position;
        Ok(())
    }

    fn sync_names(&self) -> Result<()> {
        self.to.sync_dir().map_err(|e| Error::io(format_args!("cannot sync {}", self.to.location()), e))
    }

    fn segment(&mut self, snapshot: &Snapshot, segment: &Segment, end: u64) -> Result<()> {
        let name = segment::file_name(segment.header.number);
        let sealed = snapshot.state.segments.get(&segment.header.number).is_some_and(|entry| entry.sealed.is_some());
        self.report.segments += 1;
        if (sealed || seeded(Bug::BackupLinksActive)) && self.link(&name, end) {
            return Ok(());
        }
        let bytes = &*segment.read(end)?;
        let extent = replay::extent(bytes, segment.header.salt);
        if extent.end != end {
            return Err(segment.corrupt(extent.defect_at, "no valid record, found while copying"));
        }
        // The header is made, not copied: in memory it stands in no file.
        let header: &[u8] = &Header::encode(&segment.header, snapshot.superblock.store);
        self.copy(&name, &[header, bytes.get(STATIC_BYTES as usize..).unwrap_or_default()])
    }

    /// All runs or none: a newer one may hold the tombstone of what an older one holds.
    fn runs<'r>(&mut self, runs: &'r [Arc<Run>]) -> Result<&'r [Arc<Run>]> {
        if !self.links && runs.iter().any(|run| run.check().is_err()) {
            return Ok(&[]);
        }
        for run in runs {
            let name = run::format::file_name(run.header.number);
            if !self.link(&name, run.footer.bytes) {
                let bytes = run.bytes().map_err(|e| Error::io(format_args!("cannot read {name}"), e))?;
                self.copy(&name, &[&bytes])?;
            }
        }
        self.report.runs = runs.len() as u64;
        Ok(runs)
    }

    /// Shares a file with the backup; `false` if that cannot be done, for whatever reason.
    fn link(&mut self, name: &str, bytes: u64) -> bool {
        if !self.links || self.from.link_to(name, &**self.to).is_err() {
            return false;
        }
        self.made.push(name.to_owned());
        self.report.linked_files += 1;
        self.report.linked_bytes += bytes;
        true
    }

    fn copy(&mut self, name: &str, parts: &[&[u8]]) -> Result<()> {
        let failed = |e| Error::io(format_args!("cannot write {name} of the backup"), e);
        let file = self.to.create(name).map_err(failed)?;
        self.made.push(name.to_owned());
        let mut at = 0;
        for chunk in parts.iter().flat_map(|part| part.chunks(WRITE_BYTES)) {
            io::write_full(&*file, at, chunk).map_err(failed)?;
            at += chunk.len() as u64;
        }
        if !seeded(Bug::BackupWithoutSync) {
            file.sync().map_err(failed)?;
        }
        self.report.copied_files += 1;
        self.report.copied_bytes += at;
        Ok(())
    }

    /// Removes what was made, as far as that can be done; the marker last. A superblock may be on the disk though writing
    /// it has failed: then all that it names stays, and it is a backup after all if its removal does not reach the disk.
    fn undo(&self) {
        if self.made.last().is_some_and(|name| name == superblock::FILE) {
            let _ = self.to.remove(superblock::FILE);
            return;
        }
        for name in self.made.iter().rev() {
            let _ = self.to.remove(name);
        }
    }
}

/// What the manifest of the backup says: the segments that hold the prefix, the runs, and that the store was closed where
/// the prefix ends.
fn state_of(snapshot: &Snapshot, runs: &[Arc<Run>]) -> State {
    let mut state = snapshot.state.clone();
    state.segments.retain(|number, _| snapshot.segments.iter().any(|(segment, _)| segment.header.number == *number));
    let last = snapshot.segments.last().map(|(segment, _)| segment.header.number);
    for (segment, _) in &snapshot.segments {
        // The last one may take more when the backup is opened, unless it is shared.
        if let Some(entry) = state.segments.get_mut(&segment.header.number)
            && Some(segment.header.number) != last
        {
            entry.sealed = Some(segment.end());
        }
    }
    if runs.is_empty() {
        state.runs.clear();
    }
    state.checkpoint = None;
    state.closed = snapshot.segments.last().map(|(last, end)| (last.header.number, last.position(*end)));
    state
}

impl std::fmt::Display for BackupReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} segments and {} key runs; {} files linked ({} bytes), {} copied ({} bytes)",
            self.segments, self.runs, self.linked_files, self.linked_bytes, self.copied_files, self.copied_bytes
        )
    }
}
