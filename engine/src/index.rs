//! The key index: which runs and which tail make up the keys in order, now. Behind the writers, for listings only.
//! Flow: `seal`, `merge` install runs here; `list` takes a [`View`]; recovery opens it.
//!
//! ```text
//!  log position  0 ............... covered ............ tail ........ end of the log
//!                | runs, in files  | sorted in memory   | skiplist     |
//! ```
//! The runs chain: the first begins at 0, each where the one before ends. What they do not cover is read from the log by
//! the first listing that needs it: much at once is sorted into runs in memory, little goes into the skiplist, and what
//! has gathered there is sorted in its turn. So a listing after a load does not pay two microseconds a key, and one after a
//! single write pays for that write only.
//!
//! Invariants:
//! 1. A view holds an entry for every record before the end of the log at that time that still counted, or a newer one.
//! 2. An entry leaves memory when a run covers it, never before; where it stands in both, it is the same entry. Memory
//!    that ends before `covered` is always given up, so a tombstone that a merge drops is not outlived by what it hid.
//! 3. A damaged run takes all others with it: they might hold what it hid. What is left is the log, which is complete.
//! 4. The manifest's list of runs is changed by the background thread alone (and at open).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crossbeam_epoch::{self as epoch, Guard};
use parking_lot::Mutex;

use crate::commit::Commits;
use crate::error::{Error, ErrorKind, Result};
use crate::log::Log;
use crate::merge::{Failed, Merge, Source};
use crate::run::format::{Entry, Header, file_name};
use crate::run::{Cursor, Damaged, Run, Writer};
use crate::segment::{HEADER_BYTES, Segment};
use crate::stretch;
use crate::tail::Tail;

/// Bytes of log in the skiplist from which on they are sorted instead: some thousand keys.
const TAIL_BYTES: u64 = 1 << 20;
/// Bytes of log sorted into one run in memory.
const SORT_BYTES: u64 = 4 << 20;
/// Bytes of log of which the directory is asked, key by key, before the shards are asked whether all is visible.
const SETTLE_BYTES: u64 = 64 << 10;

/// See the file header.
pub(crate) struct KeyIndex {
    state: Mutex<State>,
    /// First run number never used.
    number: AtomicU64,
    /// The runs were found damaged, and the manifest still names them.
    distrusted: AtomicBool,
    pub(crate) buckets: Buckets,
}

type Runs = Arc<[Arc<Run>]>;

struct State {
    /// In files, oldest first.
    runs: Runs,
    /// In memory, oldest first.
    sorted: Runs,
    tail: Arc<Tail>,
    /// The tail holds what was logged from here ...
    tail_from: u64,
    /// ... to here.
    read: u64,
    /// Whatever was logged before this is visible.
    settled: u64,
}

/// The key index at one moment.
pub(crate) struct View {
    pub(crate) runs: Runs,
    pub(crate) sorted: Runs,
    pub(crate) tail: Arc<Tail>,
    pub(crate) settled: u64,
}

/// What opening the runs came to.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Opened {
    pub(crate) runs: u64,
    pub(crate) thrown_away: u64,
}

impl KeyIndex {
    /// Opens the runs that the manifest names; if one of them is not what was written, gives up all of them.
    pub(crate) fn open(log: &Log) -> Result<(KeyIndex, Opened)> {
        let (named, number) = log.runs();
        let mut runs = Vec::new();
        let mut end = 0;
        for &(number, from, to) in &named {
            match Run::open(&**log.disk(), log.store(), number, from, to)? {
                Ok(run) if from == end => runs.push(Arc::new(run)),
                _ => break,
            }
            end = to;
        }
        let mut opened = Opened { runs: runs.len() as u64, thrown_away: 0 };
        if runs.len() < named.len() {
            opened = Opened { runs: 0, thrown_away: named.len() as u64 };
            runs.clear();
            if !log.disk().read_only() {
                log.remove_runs()?;
            }
        }
        let index = KeyIndex {
            state: Mutex::new(State::new(runs.into())),
            number: AtomicU64::new(number),
            distrusted: AtomicBool::new(false),
            buckets: Buckets::default(),
        };
        Ok((index, opened))
    }

    /// The keys of this moment.
    pub(crate) fn view(&self, commits: &Commits, guard: &Guard) -> Result<View> {
        let mut state = self.state.lock();
        let end = commits.log.end(guard);
        if end > state.settled + SETTLE_BYTES
            && let Some(settled) = commits.settled(end, guard)?
        {
            state.settled = state.settled.max(settled);
        }
        state.catch_up(&commits.log, guard)?;
        Ok(View {
            runs: state.runs.clone(),
            sorted: state.sorted.clone(),
            tail: state.tail.clone(),
            settled: state.settled,
        })
    }

    /// The runs in files, oldest first.
    pub(crate) fn runs(&self) -> Runs {
        self.state.lock().runs.clone()
    }

    /// Runs hold the keys of everything logged before this position.
    pub(crate) fn covered(&self) -> u64 {
        self.state.lock().covered()
    }

    /// A run number that was never used.
    pub(crate) fn take_number(&self) -> u64 {
        self.number.fetch_add(1, Ordering::Relaxed)
    }

    /// Background: puts a complete run in the place of those that cover the same positions; its bytes.
    pub(crate) fn install(&self, log: &Log, header: &Header) -> Result<u64, Failed> {
        let Header { number, from, to, .. } = *header;
        let run = Arc::new(Run::open(&**log.disk(), log.store(), number, from, to)??);
        let bytes = run.footer.bytes;
        let replaced = log.add_run(number, from, to)?;
        self.state.lock().put(run, self.distrusted.load(Ordering::Acquire));
        for old in replaced {
            // Where an open file cannot be removed (Windows) the next open does it.
            let _ = log.disk().remove(&file_name(old));
        }
        Ok(bytes)
    }

    /// Gives up all runs, one of `seen` having been found damaged. What they held is read from the log until they are made
    /// again. Does nothing where others have taken their place meanwhile.
    pub(crate) fn distrust(&self, seen: &Runs) {
        let mut state = self.state.lock();
        if state.runs.iter().any(|run| seen.iter().any(|other| Arc::ptr_eq(run, other))) {
            self.distrusted.store(true, Ordering::Release);
            *state = State { settled: state.settled, ..State::new(Arc::default()) };
        }
    }

    /// Background: has the manifest forget runs that were given up; whether there were any.
    pub(crate) fn repair(&self, log: &Log) -> Result<bool> {
        if !self.distrusted.load(Ordering::Acquire) {
            return Ok(false);
        }
        log.remove_runs()?;
        self.distrusted.store(false, Ordering::Release);
        Ok(true)
    }
}

impl State {
    fn new(runs: Runs) -> State {
        let covered = runs.last().map_or(0, |run| run.header.to);
        State { runs, sorted: Arc::default(), tail: Arc::default(), tail_from: covered, read: covered, settled: 0 }
    }

    fn covered(&self) -> u64 {
        self.runs.last().map_or(0, |run| run.header.to)
    }

    /// Puts a run in its place, unless runs are not to be trusted at all just now.
    fn put(&mut self, run: Arc<Run>, distrusted: bool) {
        if distrusted {
            return;
        }
        let (from, to) = (run.header.from, run.header.to);
        let before = self.runs.iter().filter(|r| r.header.to <= from);
        let after = self.runs.iter().filter(|r| r.header.from >= to);
        self.runs = before.cloned().chain([run]).chain(after.cloned()).collect();
        let covered = self.covered();
        if covered > self.tail_from {
            self.tail = Arc::default();
            self.tail_from = covered;
            self.read = covered;
        }
        if self.sorted.iter().any(|run| run.header.to <= covered) {
            self.sorted = self.sorted.iter().filter(|run| run.header.to > covered).cloned().collect();
        }
    }

    /// Takes in what was logged since.
    fn catch_up(&mut self, log: &Log, guard: &Guard) -> Result<()> {
        let end = log.end(guard);
        if self.read >= end {
            return Ok(());
        }
        let sort = end - self.tail_from >= TAIL_BYTES;
        let from = if sort { self.tail_from } else { self.read };
        let mut sorted = self.sorted.to_vec();
        let mut read = self.read;
        for segment in log.segments(guard) {
            let published = segment.region.published();
            if segment.position(published) <= from {
                continue;
            }
            let mut at = from.saturating_sub(segment.header.base).max(HEADER_BYTES);
            while at < published {
                if sort {
                    let (run, next) = self::sort(&segment, at, published.min(at + SORT_BYTES), log.store())?;
                    push_sorted(&mut sorted, Arc::new(run), log.store())?;
                    at = next;
                } else {
                    let (record, bytes) = stretch::record(&segment, at, guard)?;
                    if let Some(entry) = stretch::entry_of(&segment, at, &record) {
                        self.tail.add(&entry);
                    }
                    at += bytes;
                }
            }
            read = segment.position(published);
        }
        if sort {
            self.sorted = sorted.into();
            self.tail = Arc::default();
            self.tail_from = read;
        }
        self.read = read;
        Ok(())
    }
}

/// Adds a run in memory, merged with those before it while they are of its size: so they stay few.
fn push_sorted(sorted: &mut Vec<Arc<Run>>, mut run: Arc<Run>, store: u64) -> Result<()> {
    while let Some(before) = sorted.pop_if(|before| before.footer.bytes <= 4 * run.footer.bytes) {
        let merged = merge_in_memory(&[before, run], store).map_err(in_memory)?;
        run = Arc::new(merged);
    }
    sorted.push(run);
    Ok(())
}

fn merge_in_memory(runs: &[Arc<Run>; 2], store: u64) -> Result<Run, Damaged> {
    let mut sources = Vec::new();
    for run in runs {
        sources.extend(Cursor::first(run)?.map(Source::Run));
    }
    let mut merge = Merge::new(sources);
    let bytes = runs[0].footer.bytes + runs[1].footer.bytes;
    let mut writer = in_memory_writer(runs[0].header.from, runs[1].header.to, store, bytes as usize);
    while let Some(entry) = merge.entry() {
        add(&mut writer, &entry)?;
        merge.next()?;
    }
    finish(writer, store)
}

/// The records of a segment from `from` on, at least up to `limit`, as a run in memory; and where the next record is.
pub(crate) fn sort(segment: &Segment, from: u64, limit: u64, store: u64) -> Result<(Run, u64)> {
    let guard = &epoch::pin();
    let (entries, at) = stretch::sorted(segment, from, limit, guard)?;
    // Beginnings in common are left out, blocks and index come on top: about what the keys take.
    let bytes = entries.iter().map(|(entry, _)| entry.key.len() + 8).sum();
    let mut writer = in_memory_writer(segment.position(from), segment.position(at), store, bytes);
    let written = entries.iter().try_for_each(|(entry, _)| add(&mut writer, entry));
    let run = written.and_then(|()| finish(writer, store)).map_err(in_memory)?;
    Ok((run, at))
}

fn in_memory_writer(from: u64, to: u64, store: u64, bytes: usize) -> Writer {
    Writer::in_memory(Header { number: 0, from, to, salt: 0 }, store, bytes)
}

fn add(writer: &mut Writer, entry: &Entry<'_>) -> Result<(), Damaged> {
    writer.add(entry).map_err(|_| Damaged::at(0, "room in memory"))
}

fn finish(writer: Writer, store: u64) -> Result<Run, Damaged> {
    let bytes = writer.finish().map_err(|_| Damaged::at(0, "room in memory"))?;
    Run::in_memory(bytes, store)
}

/// Memory that we wrote ourselves is not what we wrote.
#[cold]
pub(crate) fn in_memory(damaged: Damaged) -> Error {
    let Damaged { offset, what } = damaged;
    Error::new(ErrorKind::Corrupt, format!("a key run in memory, byte {offset}: this is not {what}"))
}

/// Which buckets are gone for good: what merges may leave out.
///
/// A bucket that was dropped comes back if a power cut takes the drop. So the drop counts from when it is durable.
#[derive(Default)]
pub(crate) struct Buckets(Mutex<Gone>);

#[derive(Default)]
struct Gone {
    /// At open, of the ids below `known` only these were of a bucket ...
    live: BTreeSet<u64>,
    known: u64,
    /// ... and the log ended here.
    end: u64,
    /// Dropped since then, each with the end of the log after that.
    dropped: BTreeMap<u64, u64>,
}

impl Buckets {
    /// Takes up the catalogue at open: ids in use, the first never used, and the end of the log.
    pub(crate) fn take_up(&self, live: BTreeSet<u64>, known: u64, end: u64) {
        *self.0.lock() = Gone { live, known, end, dropped: BTreeMap::new() };
    }

    /// Takes up that a bucket was dropped; the log ends at `end` now.
    pub(crate) fn drop(&self, id: u64, end: u64) {
        self.0.lock().dropped.insert(id, end);
    }

    /// Whether no crash can bring the bucket back, the log being durable up to `durable`.
    pub(crate) fn is_gone(&self, id: u64, durable: u64) -> bool {
        let gone = self.0.lock();
        match gone.dropped.get(&id) {
            Some(end) => *end <= durable,
            None => id < gone.known && !gone.live.contains(&id) && gone.end <= durable,
        }
    }
}
