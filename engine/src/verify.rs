//! Verifying: reads everything that a store is made of, and tells of all that is not as it was written.
//! Flow: `Store::verify` (open, writers go on), [`verify`] (closed, nothing is changed) -> here -> superblock, manifest, `log::replay`, `run`, the
//! directory and the key index.
//!
//! Every byte of every file that counts is covered: by a checksum, or by having to be zero. After damage the next whole
//! commit is looked for, so that one bad record hides nothing behind it. Last the references: each word of the
//! directory points at a valid record of its key, and the key index says of each key what the directory says.
//!
//! While writers go on, what the log says of a key and what readers see may differ for a moment. So the two are compared
//! up to a position before which all is visible, and a difference counts only if nothing logged since explains it.

use std::collections::BTreeSet;
use std::fmt;
use std::io::ErrorKind as IoKind;
use std::path::Path;
use std::sync::Arc;

use crossbeam_epoch as epoch;

use crate::backup::UNFINISHED;
use crate::catalogue::CATALOGUE;
use crate::checkpoint::{self, Checkpoint};
use crate::error::{Error, ErrorKind, Result};
use crate::index::View;
use crate::io::disk::RealDisk;
use crate::io::{self, Disk};
use crate::log::record::{Defect, Kind};
use crate::log::replay;
use crate::manifest::superblock::{self, SLOT_BYTES, Superblock};
use crate::manifest::{self, Entry, State};
use crate::merge::{Merge, Source};
use crate::options::Options;
use crate::run::format::{DELETED, Entry as RunEntry, KIND, SET_WITH_EXPIRY};
use crate::run::{self, Cursor, Damaged, Run};
use crate::segment::{self, HEADER_BYTES, Header, LINK_BYTES};
use crate::store::Store;

const STATIC_BYTES: u64 = HEADER_BYTES - LINK_BYTES;
/// Findings of references that are told one by one; where there are more, one cause has many of them.
const REFERENCES_MAX: usize = 100;

/// What a [`Finding`] is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FindingKind {
    /// A slot of the superblock. The other one still counts.
    Superblock,
    /// The list of files.
    Manifest,
    /// A file is missing, shorter than its records, or cannot be read.
    File,
    /// The header of a log segment.
    Header,
    /// Where a log segment says that the one before it ended.
    Link,
    /// Bytes in the log that are no valid commit.
    Record,
    /// Bytes behind the end of the log. After a crash they may be what it left of a commit that was never acknowledged.
    Tail,
    /// A key run. It is made again from the log; nothing is lost.
    Run,
    /// The directory checkpoint. It is made again from the log; nothing is lost.
    Checkpoint,
    /// The directory or the key index says something else than the log. A mistake of the engine: please report it.
    Reference,
    /// The store does not open, for a reason that no other finding names.
    Open,
}

/// Something that is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// The name of the file in the store's directory.
    pub file: String,
    /// The byte in it.
    pub offset: u64,
    /// What it is about.
    pub kind: FindingKind,
    /// What is wrong there, for people.
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, byte {}: {}", self.file, self.offset, self.what)
    }
}

/// What verifying has read, and found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct VerifyReport {
    /// Files read.
    pub files: u64,
    /// Bytes read in them.
    pub bytes: u64,
    /// Log segments.
    pub segments: u64,
    /// Commits in them.
    pub commits: u64,
    /// Records in those commits.
    pub records: u64,
    /// Keys that the directory holds. 0 if the store does not open.
    pub keys: u64,
    /// Key runs.
    pub runs: u64,
    /// Blocks in them.
    pub blocks: u64,
    /// Files of the store's that it does not need: left by a crash, removed at the next open.
    pub leftover_files: u64,
    /// The store opens: nothing that is known to have been on the disk is missing, whatever was found. What can be repaired
    /// is repaired then.
    pub opens: bool,
    /// Everything that is wrong.
    pub findings: Vec<Finding>,
}

impl Store {
    /// Reads and checks all that the store is made of, while readers and writers go on: every file, checksum, order and
    /// count, that each word of the directory points at a valid record of its key, and that the key index agrees. Takes
    /// as long as reading the store does, and about as long again for the keys. Changes nothing.
    ///
    /// # Errors
    /// `Io` if it cannot be begun. Damage is no error but a finding.
    pub fn verify(&self) -> Result<VerifyReport> {
        let mut check = Check::default();
        let disk = self.0.commits.log.disk().clone();
        let (snapshot, runs) = self.hold_still(false);
        check.superblock(&*disk);
        let name = manifest::file_name(snapshot.superblock.manifest);
        match self.0.commits.log.check_manifest() {
            Ok(checked) => check.manifest(&name, &checked),
            Err(e) => check.unreadable(&name, &e),
        }
        let mut before = None;
        for (segment, end) in &snapshot.segments {
            let name = segment::file_name(segment.header.number);
            let mut header = vec![0; STATIC_BYTES as usize];
            match io::read_full(&*segment.file, 0, &mut header) {
                Ok(read) => header.truncate(read),
                Err(e) => check.unreadable(&name, &e),
            }
            let bytes = match segment.region.read(0..*end) {
                Ok(bytes) => bytes,
                Err(e) => {
                    check.unreadable(&name, &e);
                    continue;
                }
            };
            let entry = Entry { base: segment.header.base, capacity: segment.header.capacity, sealed: None };
            let place = Place { number: segment.header.number, entry, until: Some(*end) };
            before = check.segment(&name, &place, &header, &bytes, snapshot.superblock.store, before);
        }
        for run in &runs {
            check.run(run);
        }
        check.references(self)?;
        check.report.opens = true;
        Ok(check.report)
    }
}

/// Reads and checks all that the store in directory `dir` is made of, as [`Store::verify`] does. Nothing is changed, and no
/// file is made. Goes on past damage, also where the store does not open any more because of it.
///
/// # Errors
/// `Locked` if the store is open for writing: use [`Store::verify`] there. `Format` if `dir` holds no store, or one of a newer format;
/// `Io` if it cannot be read at all. Damage is no error but a finding.
pub fn verify(dir: impl AsRef<Path>) -> Result<VerifyReport> {
    verify_disk(&(Arc::new(RealDisk::open_read_only(dir.as_ref(), &Options::new())?) as Arc<dyn Disk>))
}

/// As [`verify`], on any disk, which is only read.
pub(crate) fn verify_disk(disk: &Arc<dyn Disk>) -> Result<VerifyReport> {
    let mut check = Check::default();
    let superblock = match Superblock::read(&**disk) {
        Ok(Some(superblock)) => Some(superblock),
        Ok(None) => {
            crate::recovery::refuse_foreign(&**disk)?;
            let message = format!("{} holds no kvasi store", disk.location());
            return Err(Error::new(ErrorKind::Format, message));
        }
        Err(e) if e.kind() == ErrorKind::Corrupt => None,
        Err(e) => return Err(e),
    };
    check.superblock(&**disk);
    if let Some(superblock) = superblock {
        let name = manifest::file_name(superblock.manifest);
        match manifest::check(&**disk, &superblock) {
            Ok(checked) => {
                check.manifest(&name, &checked);
                check.files(disk, &superblock, &checked.state);
            }
            Err(e) => check.unreadable(&name, &e),
        }
    }
    match Store::without_worker(disk.clone(), Options::new()) {
        Ok(store) => {
            check.report.opens = true;
            check.references(&store)?;
        }
        Err(e) if check.report.findings.is_empty() => check.found("", 0, FindingKind::Open, e.to_string()),
        Err(_) => {}
    }
    Ok(check.report)
}

/// What is known of a segment before its file is read.
struct Place {
    number: u64,
    entry: Entry,
    /// Where its records end, if something says so.
    until: Option<u64>,
}

#[derive(Default)]
struct Check {
    report: VerifyReport,
    references: usize,
}

impl Check {
    fn found(&mut self, file: &str, offset: u64, kind: FindingKind, what: impl Into<String>) {
        self.report.findings.push(Finding { file: file.to_owned(), offset, kind, what: what.into() });
    }

    fn unreadable(&mut self, file: &str, e: &std::io::Error) {
        let what = match e.kind() {
            IoKind::NotFound => "the file is missing".to_owned(),
            _ => format!("the file cannot be read: {e}"),
        };
        self.found(file, 0, FindingKind::File, what);
    }

    fn read(&mut self, bytes: u64) {
        self.report.files += 1;
        self.report.bytes += bytes;
    }

    fn superblock(&mut self, disk: &dyn Disk) {
        let (slots, bytes) = match Superblock::slots(disk) {
            Ok(slots) => slots,
            Err(e) => return self.unreadable(superblock::FILE, &e),
        };
        self.read(bytes);
        for (slot, offset) in slots.iter().zip([0, SLOT_BYTES]) {
            if slot.is_none() {
                let what = "this slot is no superblock: damage, or a crash while it was written";
                self.found(superblock::FILE, offset, FindingKind::Superblock, what);
            }
        }
        if let [Some(one), Some(other)] = slots
            && (one.store, one.hash_seed) != (other.store, other.hash_seed)
        {
            self.found(superblock::FILE, SLOT_BYTES, FindingKind::Superblock, "the slots are those of two stores");
        }
        if bytes > 2 * SLOT_BYTES {
            self.found(superblock::FILE, 2 * SLOT_BYTES, FindingKind::Superblock, "more bytes than two slots have");
        }
    }

    fn manifest(&mut self, name: &str, checked: &manifest::Checked) {
        self.read(checked.bytes);
        for (offset, what) in &checked.wrong {
            self.found(name, *offset, FindingKind::Manifest, *what);
        }
    }

    /// The segments and runs of a store that is not open.
    fn files(&mut self, disk: &Arc<dyn Disk>, superblock: &Superblock, state: &State) {
        let mut segments = Vec::new();
        for (&number, &entry) in &state.segments {
            let name = segment::file_name(number);
            match self.load(&**disk, &name, &entry) {
                Ok(bytes) => segments.push((number, entry, name, bytes)),
                Err(e) => self.unreadable(&name, &e),
            }
        }
        let link = |bytes: &[u8]| {
            Header::decode(bytes, superblock.store).and_then(|header| segment::decode_link(header.salt, bytes))
        };
        let mut before = None;
        for (i, (number, entry, name, bytes)) in segments.iter().enumerate() {
            let next = segments.get(i + 1).map(|(next, _, _, bytes)| (*next, link(bytes)));
            // The manifest says where a segment ends, or the close, or the segment that came after it.
            let closed = state.closed.filter(|(last, _)| last == number).map(|(_, end)| end);
            let linked = next.filter(|(next, _)| *next == number + 1 || entry.sealed.is_none()).and_then(|n| n.1);
            let until = entry.sealed.or(closed).or(linked).and_then(|end| end.checked_sub(entry.base));
            if link(bytes).is_none() && until.is_none() && next.is_none_or(|(_, link)| link.is_none()) {
                // Made ready and never used.
                self.unused(name, superblock.store, *number, entry, bytes);
                continue;
            }
            let place = Place { number: *number, entry: *entry, until };
            before = self.segment(name, &place, bytes, bytes, superblock.store, before);
        }
        let mut covered = 0;
        for (&from, entry) in &state.runs {
            let name = run::format::file_name(entry.number);
            if from != covered {
                self.found(
                    &name,
                    0,
                    FindingKind::Run,
                    format!("it does not begin where the one before ends, {covered}"),
                );
            }
            covered = entry.to;
            match Run::open(&**disk, superblock.store, entry.number, from, entry.to) {
                Ok(Ok(run)) => self.run(&Arc::new(run)),
                Ok(Err(damaged)) => self.damaged_run(&name, &damaged),
                Err(e) => self.found(&name, 0, FindingKind::File, e.to_string()),
            }
        }
        if let Some(entry) = state.checkpoint {
            let name = checkpoint::file_name(entry.number);
            match Checkpoint::open(&**disk, entry, superblock.store) {
                Some(_) => self.read(disk.open(&name).and_then(|file| file.len()).unwrap_or_default()),
                None => {
                    self.found(&name, 0, FindingKind::Checkpoint, "the directory checkpoint is not what was written")
                }
            }
        }
        for name in disk.list().unwrap_or_default() {
            let leftover = match (segment::number_of(&name), manifest::number_of(&name), run::format::number_of(&name))
            {
                (Some(number), ..) => !state.segments.contains_key(&number),
                (_, Some(number), _) => number != superblock.manifest,
                (.., Some(number)) => state.runs.values().all(|run| run.number != number),
                _ => match checkpoint::number_of(&name) {
                    Some(number) => state.checkpoint.is_none_or(|entry| entry.number != number),
                    None => name == UNFINISHED,
                },
            };
            self.report.leftover_files += u64::from(leftover);
        }
    }

    fn load(&mut self, disk: &dyn Disk, name: &str, entry: &Entry) -> std::io::Result<Vec<u8>> {
        let file = disk.open(name)?;
        let len = file.len()?;
        if len > entry.capacity {
            self.found(name, entry.capacity, FindingKind::Tail, "the file is longer than the segment");
        }
        let mut bytes = vec![0; usize::try_from(len.min(entry.capacity)).unwrap_or_default()];
        let read = io::read_full(&*file, 0, &mut bytes)?;
        bytes.truncate(read);
        Ok(bytes)
    }

    /// The header of a segment as it was written, if it still is.
    fn header(&mut self, name: &str, store: u64, number: u64, entry: &Entry, bytes: &[u8]) -> Option<Header> {
        let header = Header::decode(bytes, store)
            .filter(|h| h.number == number && h.base == entry.base && h.capacity == entry.capacity);
        if header.is_none() {
            self.found(name, 0, FindingKind::Header, "the header is not the one that was written");
        }
        header
    }

    fn unused(&mut self, name: &str, store: u64, number: u64, entry: &Entry, bytes: &[u8]) {
        self.read(bytes.len() as u64);
        self.report.segments += 1;
        self.header(name, store, number, entry, bytes);
        let rest = bytes.get(STATIC_BYTES as usize..).unwrap_or_default();
        if let Some(at) = rest.iter().position(|b| *b != 0) {
            let offset = STATIC_BYTES + at as u64;
            let (kind, what) = if offset < HEADER_BYTES {
                (FindingKind::Link, "this is no link to the segment before")
            } else {
                (FindingKind::Tail, "bytes in a segment that was never used")
            };
            self.found(name, offset, kind, what);
        }
    }

    /// A segment in use; the log position where its records end. `header` has the first bytes of the file, `bytes` all but
    /// perhaps those.
    fn segment(
        &mut self,
        name: &str,
        place: &Place,
        header: &[u8],
        bytes: &[u8],
        store: u64,
        before: Option<(u64, u64)>,
    ) -> Option<(u64, u64)> {
        self.read(bytes.len() as u64);
        self.report.segments += 1;
        // Nothing else in the file can be told without its salt.
        let header = self.header(name, store, place.number, &place.entry, header)?;
        match segment::decode_link(header.salt, bytes) {
            None => {
                let what = "this is no link to the segment before";
                self.found(name, STATIC_BYTES, FindingKind::Link, what);
            }
            Some(link) if link > header.base => {
                self.found(name, STATIC_BYTES, FindingKind::Link, "the link is to a position behind this segment");
            }
            Some(link) if before.is_some_and(|(number, end)| number + 1 == place.number && link < end) => {
                let what = "the log before this segment is longer than the link says";
                self.found(name, STATIC_BYTES, FindingKind::Link, what);
            }
            Some(_) => {}
        }
        let end = self.records(name, place, &header, bytes);
        Some((place.number, header.base + end))
    }

    /// Every commit of a segment; where the last one ends.
    fn records(&mut self, name: &str, place: &Place, header: &Header, bytes: &[u8]) -> u64 {
        let len = bytes.len() as u64;
        if let Some(until) = place.until.filter(|until| *until > len) {
            let what = format!("the file ends here, its records end at byte {until}");
            self.found(name, len, FindingKind::File, what);
        }
        let until = place.until.map(|until| until.min(len));
        let log = bytes.get(..until.unwrap_or(len) as usize).unwrap_or_default();
        let mut at = HEADER_BYTES;
        loop {
            let extent = replay::extent_from(log, header.salt, at);
            self.report.commits += extent.commits;
            self.report.records += extent.records;
            self.fields(name, header, log.get(..extent.end as usize).unwrap_or_default(), at);
            at = extent.end;
            if at >= log.len() as u64 || until.is_none() {
                break;
            }
            let what = match extent.defect {
                Defect::Blank => "nothing where a record should be",
                Defect::Malformed | Defect::Cut | Defect::Unreadable(_) => "this is no record",
                Defect::Checksum => "a record does not match its checksum",
            };
            match replay::next_commit(log, header.salt, extent.defect_at) {
                Some(next) => {
                    let what = format!("{what}; the next whole commit is at byte {next}");
                    self.found(name, extent.defect_at, FindingKind::Record, what);
                    at = next;
                }
                None => {
                    let what = format!("{what}, nor any valid commit up to byte {}", log.len());
                    self.found(name, extent.defect_at, FindingKind::Record, what);
                    at = log.len() as u64;
                    break;
                }
            }
        }
        let rest = bytes.get(at as usize..).unwrap_or_default();
        if let Some(first) = rest.iter().position(|b| *b != 0) {
            let what = "bytes behind the last whole commit: what a crash left of one, or damage that looks like it";
            self.found(name, at + first as u64, FindingKind::Tail, what);
        }
        at
    }

    /// What records say of positions must lie before them.
    fn fields(&mut self, name: &str, header: &Header, log: &[u8], from: u64) {
        let mut wrong = Vec::new();
        // The closure never fails.
        let _ = replay::records(log, from, |offset, record, _| {
            let position = header.base + offset;
            if record.moved.is_some_and(|version| version >= position) {
                wrong.push((offset, "a record that was moved here has a version that is not older"));
            }
            if record.mark.is_some_and(|mark| mark > position) {
                wrong.push((offset, "a record says that what comes after it was on the disk before it"));
            }
            Ok(())
        });
        for (offset, what) in wrong {
            self.found(name, offset, FindingKind::Record, what);
        }
    }

    fn run(&mut self, run: &Arc<Run>) {
        self.read(run.footer.bytes);
        self.report.runs += 1;
        self.report.blocks += run.footer.blocks;
        let name = run::format::file_name(run.header.number);
        let damaged = run.damaged_blocks();
        damaged.iter().for_each(|damaged| self.damaged_run(&name, damaged));
        if damaged.is_empty()
            && let Err(damaged) = run.check()
        {
            self.damaged_run(&name, &damaged);
        }
    }

    fn damaged_run(&mut self, name: &str, damaged: &Damaged) {
        self.found(name, damaged.offset, FindingKind::Run, format!("this is not {}", damaged.what));
    }

    /// The directory and the key index against the log, and against each other.
    fn references(&mut self, store: &Store) -> Result<()> {
        match self.refer(store) {
            // Damage that the open did not meet; it was found where the files were read.
            Err(e) if e.kind() == ErrorKind::Corrupt => {
                if self.report.findings.is_empty() {
                    self.found("", 0, FindingKind::Reference, e.to_string());
                }
                Ok(())
            }
            referred => referred,
        }
    }

    fn refer(&mut self, store: &Store) -> Result<()> {
        let commits = &store.0.commits;
        let (view, settled) = {
            let guard = &epoch::pin();
            let end = commits.log.end(guard);
            // Where writers are too busy to tell, as far as it was last known.
            let settled = commits.settled(end, guard)?;
            let view = commits.index.view(commits, guard)?;
            let settled = settled.unwrap_or(view.settled);
            (view, settled)
        };
        let (live, _) = store.0.commits.catalogue.ids();
        for shard in 0..commits.directory.shards() {
            self.words(store, shard, &view, settled, &live);
        }
        if let Err(damaged) = self.entries(store, &view, settled)? {
            // Told where the run was read, unless it stands in memory only.
            let Damaged { offset, what } = damaged;
            if !self.report.findings.iter().any(|finding| finding.kind == FindingKind::Run) {
                self.reference("", offset, format!("in a key run in memory this is not {what}"));
            }
        }
        Ok(())
    }

    fn reference(&mut self, file: &str, offset: u64, what: String) {
        self.references += 1;
        if self.references <= REFERENCES_MAX {
            self.found(file, offset, FindingKind::Reference, what);
        }
    }

    /// The words of a shard: each points at a valid record of its key, which the index knows.
    fn words(&mut self, store: &Store, shard: usize, view: &View, settled: u64, live: &BTreeSet<u64>) {
        let commits = &store.0.commits;
        let guard = &epoch::pin();
        for place in commits.directory.places(shard, guard) {
            if commits.log.is_ghost(place, guard) {
                // As good as none; a sweep takes it out.
                continue;
            }
            self.report.keys += 1;
            let (segment, offset) = match commits.log.locate(place, guard) {
                Ok(at) => at,
                Err(e) => {
                    self.reference("", 0, format!("the directory: {e}"));
                    continue;
                }
            };
            let name = segment::file_name(segment.header.number);
            let record = match segment.record(offset, true, guard) {
                Ok((record, _)) if record.kind == Kind::Set => record,
                Ok(_) => {
                    self.reference(&name, offset, "the directory points here, and this record sets no key".to_owned());
                    continue;
                }
                // Told where the segment was read.
                Err(_) if self.report.findings.iter().any(|f| f.file == name) => continue,
                Err(defect) => {
                    self.reference(&name, offset, format!("the directory points here, to no record ({defect:?})"));
                    continue;
                }
            };
            let version = record.moved.unwrap_or_else(|| segment.position(offset));
            if version >= settled || record.bucket != CATALOGUE && !live.contains(&record.bucket) {
                continue;
            }
            match newest(view, record.bucket, record.key) {
                Ok(Some(stamp)) if stamp & !KIND >= version => {}
                Ok(_) => self.reference(&name, offset, "the key index does not know the key of this record".to_owned()),
                // Told where the run was read.
                Err(_) => {}
            }
        }
    }

    /// The entries of the key index: each says of its key what the directory says.
    fn entries(&mut self, store: &Store, view: &View, settled: u64) -> Result<Result<(), Damaged>> {
        let mut sources = Vec::new();
        for run in view.runs.iter().chain(&*view.sorted) {
            match Cursor::first(run) {
                Ok(cursor) => sources.extend(cursor.map(Source::Run)),
                Err(damaged) => return Ok(Err(damaged)),
            }
        }
        sources.extend(view.tail.first().map(Source::Tail));
        let mut merge = Merge::new(sources);
        while let Some(entry) = merge.entry() {
            if entry.stamp < settled
                && let Some(what) = disagreement(store, &entry, settled)?
            {
                let version = entry.stamp & !KIND;
                let run = view.runs.iter().find(|run| (run.header.from..run.header.to).contains(&version));
                let file = run.map(|run| run::format::file_name(run.header.number)).unwrap_or_default();
                self.reference(&file, 0, format!("the key {:?}: {what}", entry.key.escape_ascii().to_string()));
            }
            if let Err(damaged) = merge.next() {
                return Ok(Err(damaged));
            }
        }
        Ok(Ok(()))
    }
}

/// The stamp of the newest entry of a key.
fn newest(view: &View, bucket: u64, key: &[u8]) -> Result<Option<u64>, Damaged> {
    let mut newest = None;
    for run in view.runs.iter().chain(&*view.sorted) {
        let at = Cursor::seek(run, bucket, key)?.filter(|at| at.key() == key);
        newest = newest.max(at.map(|at| at.entry().stamp));
    }
    let at = view.tail.seek(bucket, key).filter(|at| at.entry().key == key);
    Ok(newest.max(at.map(|at| at.entry().stamp)))
}

/// In what the directory disagrees with the newest entry of a key, all before `settled` being visible when it was taken.
fn disagreement(store: &Store, entry: &RunEntry<'_>, settled: u64) -> Result<Option<String>> {
    let commits = &store.0.commits;
    let guard = &epoch::pin();
    let (version, deleted) = (entry.stamp & !KIND, entry.stamp & KIND == DELETED);
    let has_expired = || entry.stamp & KIND == SET_WITH_EXPIRY && entry.expires <= io::unix_ms();
    let found = match commits.get(entry.bucket, entry.key, guard) {
        Ok(found) => found,
        // A record that is damaged was told where its segment was read.
        Err(e) if e.kind() == ErrorKind::Corrupt => return Ok(None),
        Err(e) => return Err(e),
    };
    match found {
        Some(found) if found.version() == version && !deleted => {
            let same = found.record.expires.unwrap_or(0) == entry.expires;
            Ok((!same).then(|| "the key index has another expiry than its record".to_owned()))
        }
        // Written since.
        Some(found) if found.version() > version && found.version() >= settled => Ok(None),
        Some(found) => {
            let what = if deleted { "was deleted at" } else { "has" };
            Ok(Some(format!(
                "it {what} version {version} in the key index, and has {} in the directory",
                found.version()
            )))
        }
        None if deleted || has_expired() => Ok(None),
        None if !store.0.commits.catalogue.is_live(entry.bucket) => Ok(None),
        None => {
            // Deleted since: then the log says so by now, if only by an older tombstone, moved meanwhile, where runs hold neither the
            // entry nor what deleted it any more.
            let now = commits.index.view(commits, guard)?;
            match newest(&now, entry.bucket, entry.key) {
                Ok(Some(stamp)) if stamp <= entry.stamp && stamp & KIND != DELETED => {
                    Ok(Some(format!("it has version {version} in the key index, and is not in the directory")))
                }
                _ => Ok(None),
            }
        }
    }
}
