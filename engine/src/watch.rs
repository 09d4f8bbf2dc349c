//! The change feed: committed changes, in the order of their commits, from any position of the log that is still there.
//! Flow: `store` -> [`Watch`] -> `log`, read where it stands; whoever makes a commit visible -> [`Watchers`] -> who waits.
//!
//! The log is the feed: a watch walks the records of its segments, one commit at a time, and there is no second copy. What
//! the cleaner wrote again carries the version it had (`MOVED`), which tells it from what was written for the first time.
//! So a writer does nothing for those who watch, but for one look at a byte that it looks at anyway: who is about to
//! sleep sets a bit there, and the first writer that finds it wakes all sleepers.
//!
//! Invariants:
//! 1. A commit is shown when it is visible to readers, and not before: never behind one that waits for the disk
//!    ([`Commits::shown`]), and after the locks of its keys' shards were had once, so that who is told of a write finds it.
//! 2. Between two commits that a watch hands out one after the other, the log holds none that it should have handed out too:
//!    from segment to segment the link says that the one before ended where the watch stands. Where the cleaner has given one
//!    up, the watch says `Lagged`.
//!
//! Lost wake-ups: a sleeper sets the bit, then looks at the log again; a writer publishes, then looks at the bit; all of them
//! sequentially consistent. One of the two sees the other.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_epoch::{self as epoch, Guard};
use parking_lot::{Condvar, Mutex};

use crate::bucket::Bucket;
use crate::catalogue::{CATALOGUE, dropped_name};
use crate::commit::Commits;
use crate::error::{Error, Result};
use crate::io::deadline;
use crate::log::Found;
use crate::log::record::{Kind, Record};
use crate::segment::{HEADER_BYTES, Segment};
use crate::store::Store;
use crate::value::{Value, Version};

/// Bytes of log after which what was read may go from memory.
const REPIN_BYTES: u64 = 1 << 20;

/// Bytes of log without a change to tell that one poll passes over before it lets others run.
const POLL_BYTES: u64 = 4 << 20;

/// A moment in the history of a store: between two commits. What a consumer of the change feed keeps to go on from later,
/// also after the store was opened again. A number, for keeping; only its order means anything. It is of one store, and of
/// what a restored backup of it has in common with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position(u64);

impl Position {
    /// The position as a number.
    pub fn get(self) -> u64 {
        self.0
    }

    /// The position that [`Position::get`] gave.
    pub fn from_u64(position: u64) -> Position {
        Position(position)
    }
}

/// Where a [`Watch`] begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchFrom {
    /// With the oldest commit from which on nothing is missing.
    Oldest,
    /// With the first commit that becomes visible after the call.
    Now,
    /// Where another watch stood.
    Position(Position),
    /// After the commit that wrote this version.
    After(Version),
}

/// What a [`Watch`] hands out.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Delivery {
    /// One whole commit: of a batch, all its changes, in their order.
    Commit(Vec<Event>),
    /// The commits between the watch and `oldest` were cleaned away before it read them. It goes on from there: whatever was
    /// made of them must be read from the buckets.
    Lagged {
        /// The position from which on nothing is missing.
        oldest: Position,
    },
    /// The log does not reach where the watch was to begin: a power cut has taken commits that were not on the disk, or
    /// the position is another store's. The watch goes on from `end`, and misses nothing by it.
    Ahead {
        /// Where the log that there is goes on.
        end: Position,
    },
}

/// One change of one key, or the end of a bucket.
#[derive(Clone, Debug)]
pub struct Event {
    bucket: u64,
    name: Option<Arc<str>>,
    key: Bytes,
    version: Version,
    change: Change,
}

/// What a change was.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Change {
    /// The key was given this value, by whatever call. An expiry is the value's own: when it comes, there is no event.
    Set {
        /// As committed, whatever the key holds by now.
        value: Value,
        /// Milliseconds since 1970 from which on the key reads as absent.
        expires_unix_ms: Option<u64>,
    },
    /// The key was deleted.
    Delete,
    /// The bucket was dropped with all its keys: one event, and none for each of them.
    DropBucket,
}

impl Event {
    /// Id of the bucket in its store, never used for another one; `None` where a bucket was dropped that the watch had not met.
    pub fn bucket_id(&self) -> Option<u64> {
        (self.bucket != CATALOGUE).then_some(self.bucket)
    }

    /// Name of the bucket; `None` if it was dropped since, and the watch had not met it before.
    pub fn bucket(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// The key; empty where a bucket was dropped.
    pub fn key(&self) -> &[u8] {
        &self.key
    }

    /// The key as a `Bytes` over the log; it keeps a whole segment alive.
    pub fn key_bytes(&self) -> Bytes {
        self.key.clone()
    }

    /// Names the write. Rises from event to event.
    pub fn version(&self) -> Version {
        self.version
    }

    /// What happened.
    pub fn change(&self) -> &Change {
        &self.change
    }

    /// The value that was set; `None` for any other change.
    pub fn value(&self) -> Option<&Value> {
        match &self.change {
            Change::Set { value, .. } => Some(value),
            _ => None,
        }
    }
}

/// The changes of a store, commit by commit, from some position on. See [`Store::watch`].
///
/// A watch holds nobody back: it costs writers nothing while it reads, and the one write that wakes it when it sleeps about
/// what waking a thread costs. Nor does it hold back the cleaner: who reads too late is told so ([`Delivery::Lagged`]). It
/// keeps the store open.
pub struct Watch {
    store: Store,
    at: At,
    /// Commits that end here or before are visible, as far as was looked.
    shown: u64,
    /// Buckets that are wanted, with their names; all if `None`.
    only: Option<HashMap<u64, Arc<str>>>,
    names: HashMap<u64, Arc<str>>,
    /// To be handed out first.
    first: Option<Delivery>,
}

/// Where a watch reads next.
#[derive(Clone)]
struct At {
    segment: Arc<Segment>,
    offset: u64,
}

impl At {
    fn position(&self) -> u64 {
        self.segment.position(self.offset)
    }

    fn start_of(segment: &Arc<Segment>) -> At {
        At { segment: segment.clone(), offset: HEADER_BYTES }
    }
}

/// What a read came to.
enum Read {
    Some(Delivery),
    /// Nothing more is visible.
    None,
    /// So many bytes were passed over that others should have a turn.
    Enough,
}

impl Store {
    /// The committed changes of all buckets from `from` on: in the order of their commits, each commit whole, none left out
    /// without saying so, and none before it is visible to readers; in [`Durability::Sync`](crate::Durability::Sync) that is
    /// when it is on the disk. A failed swap and a delete of an absent key are no changes. Nor is the
    /// coming of a record's expiry.
    ///
    /// ```
    /// use kvasi::{Delivery, Options, Store, WatchFrom};
    /// # let dir = tempfile::tempdir()?;
    /// let store = Store::open(dir.path().join("store"), Options::new())?;
    /// let users = store.bucket("users")?;
    /// let mut watch = store.watch(WatchFrom::Now)?;
    /// users.set(b"ada", b"countess")?;
    /// if let Some(Delivery::Commit(events)) = watch.wait(std::time::Duration::from_secs(1))? {
    ///     assert_eq!((events[0].bucket(), events[0].key()), (Some("users"), &b"ada"[..]));
    /// }
    /// let later = watch.position(); // to be kept; `WatchFrom::Position(later)` goes on from here
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// How far back the log goes is the cleaner's doing: it keeps what lives, not what happened.
    ///
    /// # Errors
    /// `Invalid` if no commit begins or ends at `from`; `Corrupt` if the record there is damaged.
    pub fn watch(&self, from: WatchFrom) -> Result<Watch> {
        let guard = &epoch::pin();
        let commits = &self.0.commits;
        let history = History::of(commits, guard)?;
        let (at, first) = match from {
            WatchFrom::Oldest => (history.oldest(), None),
            WatchFrom::Now => (history.locate(commits.shown(guard))?.0, None),
            WatchFrom::Position(position) => history.locate(position.0)?,
            WatchFrom::After(version) => history.locate_after(version.0)?,
        };
        let (names, only) = (HashMap::new(), None);
        Ok(Watch { store: self.clone(), at, shown: 0, only, names, first })
    }

    /// The position after the last commit that is visible now.
    pub fn position(&self) -> Position {
        Position(self.0.commits.shown(&epoch::pin()))
    }
}

impl Bucket {
    /// As [`Store::watch`], only what happens in this bucket.
    ///
    /// # Errors
    /// As [`Store::watch`]; `Invalid` if the bucket was dropped.
    pub fn watch(&self, from: WatchFrom) -> Result<Watch> {
        self.entry.check()?;
        Ok(self.store.watch(from)?.only([self]))
    }
}

/// The segments of the log without a gap, oldest first; the last one is the end of the log.
struct History {
    segments: Vec<Arc<Segment>>,
    /// Where the log before the first of them ended.
    before: u64,
}

impl History {
    fn of(commits: &Commits, guard: &Guard) -> Result<History> {
        let mut segments = commits.log.segments(guard);
        let gap = segments.windows(2).rposition(|two| two[1].link() != Some(two[0].end()));
        segments.drain(..gap.map_or(0, |gap| gap + 1));
        let first = segments.first().ok_or_else(|| Error::invalid("a store that was never written has no changes"))?;
        let before = first.link().unwrap_or(first.header.base);
        Ok(History { segments, before })
    }

    fn oldest(&self) -> At {
        At::start_of(&self.segments[0])
    }

    /// Where to read on from `position`, and what must be said of it first.
    fn locate(&self, position: u64) -> Result<(At, Option<Delivery>)> {
        if position < self.before {
            return Ok(self.lagged());
        }
        let Some(i) = self.segments.iter().rposition(|s| s.header.base <= position) else {
            let ahead = (position > self.before).then_some(self.oldest());
            return Ok((self.oldest(), ahead.map(|at| Delivery::Ahead { end: Position(at.position()) })));
        };
        let (segment, offset) = (&self.segments[i], position - self.segments[i].header.base);
        if offset == 0 || offset == HEADER_BYTES {
            return Ok((At::start_of(segment), None));
        }
        let end = segment.region.published();
        if offset > end {
            let at = At { segment: segment.clone(), offset: end };
            let ahead = Delivery::Ahead { end: Position(at.position()) };
            return Ok((at, Some(ahead)));
        }
        let guard = &epoch::pin();
        let begins = |(record, _): (Record<'_>, u64)| !record.member;
        if offset < HEADER_BYTES || offset < end && !segment.record(offset, true, guard).is_ok_and(begins) {
            return Err(Error::invalid(format!("no commit begins at position {position}")));
        }
        Ok((At { segment: segment.clone(), offset }, None))
    }

    /// As [`History::locate`], behind the commit that the record of this version is part of.
    fn locate_after(&self, version: u64) -> Result<(At, Option<Delivery>)> {
        if version < self.before {
            return Ok(self.lagged());
        }
        let no_write = || Error::invalid(format!("no write has version {version}"));
        let segment = self.segments.iter().rfind(|s| s.header.base <= version).ok_or_else(no_write)?;
        let (mut offset, end) = (version - segment.header.base, segment.region.published());
        if offset >= end {
            return self.locate(version);
        }
        let guard = &epoch::pin();
        let (record, bytes) = segment.record(offset, true, guard).map_err(|_| no_write())?;
        if offset < HEADER_BYTES || record.kind == Kind::Batch || record.moved.is_some() {
            return Err(no_write());
        }
        offset += bytes;
        // The rest of its batch: what follows that begins with a record that is no member.
        while record.member && offset < end {
            match segment.record(offset, false, guard) {
                Ok((next, bytes)) if next.member => offset += bytes,
                _ => break,
            }
        }
        Ok((At { segment: segment.clone(), offset }, None))
    }

    fn lagged(&self) -> (At, Option<Delivery>) {
        let at = self.oldest();
        let oldest = Position(at.position());
        (at, Some(Delivery::Lagged { oldest }))
    }
}

impl Watch {
    /// Only what happens in these buckets.
    #[must_use]
    pub fn only<'b>(mut self, buckets: impl IntoIterator<Item = &'b Bucket>) -> Watch {
        self.only = Some(buckets.into_iter().map(|b| (b.entry.id, Arc::from(b.name()))).collect());
        self
    }

    /// Where the watch stands: behind the last commit that it handed out, or passed over because nothing was wanted of it.
    pub fn position(&self) -> Position {
        Position(self.at.position())
    }

    /// What is next, if there is something now. Does not wait.
    ///
    /// # Errors
    /// `Corrupt` if a record is damaged: the watch stays in front of it.
    pub fn try_next(&mut self) -> Result<Option<Delivery>> {
        match self.read(u64::MAX)? {
            Read::Some(delivery) => Ok(Some(delivery)),
            Read::None | Read::Enough => Ok(None),
        }
    }

    /// What is next, waited for; `None` if nothing came within `timeout`. A thread that waits costs no processor time.
    ///
    /// # Errors
    /// As [`Watch::try_next`]; `Poisoned` or `ReadOnly` if all was handed out and nothing more can come, because the store is
    /// closed, broken, or open for reading only.
    pub fn wait(&mut self, timeout: Duration) -> Result<Option<Delivery>> {
        let until = deadline(timeout);
        let store = self.store.clone();
        let commits = &store.0.commits;
        loop {
            let ticket = commits.watchers.ticket();
            if let Some(delivery) = self.look_and_arm()? {
                return Ok(Some(delivery));
            }
            if !commits.watchers.sleep(ticket, until) {
                return self.try_next();
            }
        }
    }

    /// What is next, awaited in any async runtime. Dropping the future loses nothing.
    ///
    /// # Errors
    /// As [`Watch::wait`].
    #[allow(clippy::should_implement_trait, reason = "not an iterator: it can fail, and wait")]
    pub fn next(&mut self) -> Next<'_> {
        Next(self)
    }

    /// As [`Watch::next`], for whoever writes a future of their own.
    ///
    /// # Errors
    /// As [`Watch::wait`].
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<Delivery>> {
        match self.read(POLL_BYTES)? {
            Read::Some(delivery) => return Poll::Ready(Ok(delivery)),
            Read::Enough => {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            Read::None => {}
        }
        self.store.0.commits.watchers.register(context.waker());
        self.look_and_arm()?.map_or(Poll::Pending, |delivery| Poll::Ready(Ok(delivery)))
    }

    /// What is next; if nothing is there now, the next writer has been asked to wake who waits.
    fn look_and_arm(&mut self) -> Result<Option<Delivery>> {
        if let Some(delivery) = self.try_next()? {
            return Ok(Some(delivery));
        }
        self.store.0.commits.check_writable()?;
        self.store.0.commits.log.ask_to_wake();
        self.try_next()
    }

    /// Reads on, passing over what is not wanted for about `bytes_max` bytes.
    fn read(&mut self, bytes_max: u64) -> Result<Read> {
        if let Some(first) = self.first.take() {
            return Ok(Read::Some(first));
        }
        let store = self.store.clone();
        let commits = &store.0.commits;
        let mut pinned = epoch::pin();
        let (mut passed, mut repinned) = (0, 0);
        loop {
            if passed >= bytes_max {
                return Ok(Read::Enough);
            }
            if passed - repinned >= REPIN_BYTES {
                repinned = passed;
                pinned.repin();
            }
            let guard = &pinned;
            let At { segment, offset } = self.at.clone();
            if offset >= segment.region.published() {
                match self.move_on(commits, guard)? {
                    Some(read) => return Ok(read),
                    None => continue,
                }
            }
            let (record, bytes) = commits.log.record_of(&segment, offset, guard)?;
            let members = if record.kind == Kind::Batch { record.batch_bytes } else { 0 };
            let end = offset + bytes + members;
            if segment.position(end) > self.shown {
                self.shown = commits.shown(guard);
                if segment.position(end) > self.shown {
                    return Ok(Read::None);
                }
            }
            let mut events = Vec::new();
            if record.kind == Kind::Batch {
                let mut at = offset + bytes;
                while at < end {
                    let (member, bytes) = commits.log.record_of(&segment, at, guard)?;
                    events.extend(self.event(
                        commits,
                        Found { segment: &segment, offset: at, bytes, record: member },
                        guard,
                    ));
                    at += bytes;
                }
            } else {
                events.extend(self.event(commits, Found { segment: &segment, offset, bytes, record }, guard));
            }
            self.at.offset = end;
            passed += bytes + members;
            if !events.is_empty() {
                return Ok(Read::Some(Delivery::Commit(events)));
            }
        }
    }

    /// From the end of a segment to the next one; `None` if the watch has moved, or there is more here.
    fn move_on(&mut self, commits: &Commits, guard: &Guard) -> Result<Option<Read>> {
        let here = &self.at.segment;
        if commits.log.is_active(here, guard) {
            return Ok(Some(Read::None));
        }
        // It was closed before another one took its place: this is its end.
        if self.at.offset < here.region.published() {
            return Ok(None);
        }
        let segments = commits.log.segments(guard);
        let next = segments.iter().find(|s| s.header.base > here.header.base);
        if let Some(next) = next.filter(|next| next.link() == Some(here.end())) {
            self.at = At::start_of(next);
            return Ok(None);
        }
        if next.is_none() {
            return Ok(Some(Read::None));
        }
        self.at = History::of(commits, guard)?.oldest();
        Ok(Some(Read::Some(Delivery::Lagged { oldest: self.position() })))
    }

    /// What a record of a visible commit tells whoever watches, if anything.
    fn event(&mut self, commits: &Commits, found: Found<'_>, guard: &Guard) -> Option<Event> {
        let record = &found.record;
        if record.moved.is_some() {
            return None;
        }
        if record.bucket == CATALOGUE {
            let name = dropped_name(record)?;
            let known = |names: &HashMap<u64, Arc<str>>| names.iter().find(|(_, n)| ***n == *name).map(|(id, _)| *id);
            let bucket = match &self.only {
                // Where the one that is watched lives, it was an older one of that name.
                Some(only) => known(only).filter(|id| commits.catalogue.by_id(*id).is_none())?,
                None => known(&self.names).unwrap_or(CATALOGUE),
            };
            self.names.remove(&bucket);
            let (key, version) = (Bytes::new(), Version(found.version()));
            return Some(Event { bucket, name: Some(name.into()), key, version, change: Change::DropBucket });
        }
        let name = match &self.only {
            Some(only) => Some(only.get(&record.bucket)?.clone()),
            None => self.name_of(commits, record.bucket),
        };
        // A write is visible when its writer has let go of the shard.
        drop(commits.directory.lock(commits.hash(record.bucket, record.key)));
        let value = Value::new(&found, guard);
        let (key, version) = (value.key_bytes(), value.version());
        let change = match record.kind {
            Kind::Set => Change::Set { value, expires_unix_ms: record.expires },
            _ => Change::Delete,
        };
        Some(Event { bucket: record.bucket, name, key, version, change })
    }

    fn name_of(&mut self, commits: &Commits, bucket: u64) -> Option<Arc<str>> {
        if let Some(name) = self.names.get(&bucket) {
            return Some(name.clone());
        }
        let name: Arc<str> = Arc::from(&*commits.catalogue.by_id(bucket)?.name);
        self.names.insert(bucket, name.clone());
        Some(name)
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("position", &self.position()).finish_non_exhaustive()
    }
}

/// What comes next of a [`Watch`]; see [`Watch::next`].
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct Next<'w>(&'w mut Watch);

impl Future for Next<'_> {
    type Output = Result<Delivery>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.get_mut().0.poll_next(context)
    }
}

/// Who waits for commits to become visible.
#[derive(Default)]
pub(crate) struct Watchers {
    state: Mutex<Waiting>,
    woken: Condvar,
}

#[derive(Default)]
struct Waiting {
    /// How often all were woken.
    calls: u64,
    asleep: usize,
    wakers: Vec<Waker>,
}

impl Watchers {
    /// Wakes all of them.
    #[cold]
    pub(crate) fn wake(&self) {
        let wakers = {
            let mut waiting = self.state.lock();
            waiting.calls += 1;
            if waiting.asleep > 0 {
                self.woken.notify_all();
            }
            std::mem::take(&mut waiting.wakers)
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    /// To be had before looking whether there is something: a call between that and the sleep is not missed.
    fn ticket(&self) -> u64 {
        self.state.lock().calls
    }

    /// Sleeps until somebody wakes all, at most `until`; `false` if nobody did. `None` is for ever.
    fn sleep(&self, ticket: u64, until: Option<Instant>) -> bool {
        let mut waiting = self.state.lock();
        waiting.asleep += 1;
        let mut timed_out = false;
        while waiting.calls == ticket && !timed_out {
            match until {
                Some(until) => timed_out = self.woken.wait_until(&mut waiting, until).timed_out(),
                None => self.woken.wait(&mut waiting),
            }
        }
        waiting.asleep -= 1;
        waiting.calls != ticket
    }

    fn register(&self, waker: &Waker) {
        let mut waiting = self.state.lock();
        if !waiting.wakers.iter().any(|w| w.will_wake(waker)) {
            waiting.wakers.push(waker.clone());
        }
    }
}
