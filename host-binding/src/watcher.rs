//! `watch-service`: tells a component that exports `watcher` of committed changes, from the engine's change feed or a service's.
//!
//! Flow: `kvasi::Watch`, or `changes::Feed` of a service -> [`WatchService::step`] reads a batch of events ahead -> a fresh wasmtime store -> `on-set`, `on-delete`
//! -> the position, kept in the watched store itself. One service, one component, one thread at a time.
//!
//! **Where the queue is.** In the log: a writer does nothing for those who watch, and a component that is slow reads later. What
//! is held here at once is bounded by [`WatchOptions`]. Where the cleaner was faster than the component, the engine says
//! `Lagged`, and so does the service.
//!
//! **At least once.** The position stands in the bucket `kvasi:watch/NAME`, behind the events that were delivered. What was
//! delivered after it was last written, or last on the disk, is delivered again after a crash.
//!
//! **Services.** etcd tells of every revision, in order, and a revision is a position: all is as with the engine, as long as the cluster has not
//! compacted it away, which is `Lagged`. Redis tells whoever is connected and keeps nothing: *at most once*. What happens while the
//! connection is broken is missed, and so is what happens before a service is there again: both are `Lagged`.
//!
//! **Hops.** A write made inside a callback is one step further than the event that the callback was told of. A record has no
//! room for that; so such a write is preceded by a *note* in the bucket `kvasi:watch`, which all services of the store read: in which
//! bucket, which keys (as hashes), how far. So a chain through several components is one chain. The
//! feed has the note before the write, and so the service knows when the write comes; also after a restart, because notes
//! whose writes are yet to come are kept with the position. A note whose write failed, or changed nothing, is taken back by
//! one of 0 hops. Somebody else's write that comes between a note and its write is taken for the callback's: one chain may end a
//! step early by it, and the other begins anew, which costs one more write by somebody else each time.
//!
//! **`async` watchers**, of form C of the second draft and of wasmCloud's package, may wait in a callback: the thread of the service waits with
//! it, for [`WatchOptions::wait`] at most. An event is delivered when its callback has returned. A task that the component leaves behind
//! goes on while the batch does, and ends with its store; so that its writes are known for what they are, such a batch has events of
//! one distance only.
//!
//! Invariants: 1. Events of a key are delivered in the order of its commits, across buckets too. 2. A batch of events has a wasmtime
//! store of its own, with its own fuel, time and memory: what a callback breaks is that store. 3. No callback is under way
//! while the feed is read, and none inside a host call.

#[cfg(feature = "remote")]
use crate::backend::changes::{Following, Told, Watched};
use crate::backend::{Guard, Key, LocalBucket, Observed, Page, PageBounds, Pair, Reply, SetOptions, Swap};
use crate::ctx::Bucket;
use crate::{Code, Error, Rights, WasiKeyValueCtx, WasiKeyValueView};
use bytes::Bytes;
use kvasi::{Change, Delivery, Durability, Position, Watch, WatchFrom};
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};
use wasmtime::component::types::ComponentItem;
use wasmtime::component::{
    Component, ComponentExportIndex, ComponentNamedList, InstancePre, Lower, Resource, TypedFunc,
};
use wasmtime::{Store, StoreLimits, StoreLimitsBuilder};

/// What the shapes of the interface call it.
const WATCHERS: [&str; 3] =
    ["wasi:keyvalue/watcher@0.2.0-draft2", "wasi:keyvalue/watcher@0.2.0-draft", "wasmcloud:keyvalue/watcher@0.2.0"];
/// The bucket of notes; a service keeps its position in one named after this, a slash and the service.
const NOTES: &str = "kvasi:watch";
const POSITION: &str = "position";
const NOTE: &[u8] = b"note";

/// Bounds on what a service does at once, and what it gives a component.
#[derive(Clone, Copy, Debug)]
pub struct WatchOptions {
    /// Most events in one batch, that is, in one wasmtime store. Default: 1,000.
    pub events_max: usize,
    /// Bytes of keys and values after which a batch ends. Default: 4 MiB.
    pub bytes_max: usize,
    /// Fuel of a batch, where the engine's configuration consumes fuel. Default: 10^10.
    pub fuel: u64,
    /// Epochs until a batch is interrupted, where the engine's configuration has epoch interruption. One of fuel and epochs
    /// must be on, or a callback that never returns holds its service for ever (and nobody else). Default: 100.
    pub epochs: u64,
    /// How long a callback of an `async` watcher may take, waiting included, which neither fuel nor epochs count. It is interrupted
    /// where it waits; what it was told of comes again. Default: 30 s.
    pub wait: Duration,
    /// Most bytes of a linear memory. Default: 64 MiB.
    pub memory_bytes_max: usize,
    /// Callbacks in a chain in which each is set off by a write of the one before. Default: 8.
    pub hops_max: u8,
    /// Failures of one event after which the service gives up. Default: 5.
    pub failures_max: u32,
    /// Rest after the first failure, doubled with each further one. Default: 100 ms.
    pub backoff: Duration,
}

impl Default for WatchOptions {
    fn default() -> Self {
        WatchOptions {
            events_max: 1_000,
            bytes_max: 4 << 20,
            fuel: 10_000_000_000,
            epochs: 100,
            wait: Duration::from_secs(30),
            memory_bytes_max: 64 << 20,
            hops_max: 8,
            failures_max: 5,
            backoff: Duration::from_millis(100),
        }
    }
}

/// What a [`WatchService::step`] came to. All but `Delivered` and `Idle` are for the operator, too, and logged.
#[derive(Debug)]
#[non_exhaustive]
pub enum Step {
    /// So many callbacks returned.
    Delivered(usize),
    /// Nothing came within the time.
    Idle,
    /// Changes were cleaned away before they could be delivered; it goes on with the oldest that there are.
    Lagged,
    /// A callback trapped, ran out of fuel, time or memory. It is called again, in a fresh store, after this rest.
    Failed {
        /// How often in a row.
        failures: u32,
        /// When the next step should come.
        rest: Duration,
        /// Why, for the operator.
        error: wasmtime::Error,
    },
    /// It has failed too often on one event: nothing more is delivered. No write is lost by it; a new service begins with
    /// that event.
    Disabled,
}

/// An event on its way to the component.
struct Queued {
    grant: usize,
    key: String,
    /// `None`: it was deleted.
    value: Option<Bytes>,
    hops: u8,
    /// Where its commit begins, or a little before.
    from: u64,
}

/// Where changes come from.
enum Source {
    Engine(Watch),
    #[cfg(feature = "remote")]
    Service(Following),
}

impl Source {
    fn position(&self) -> u64 {
        match self {
            Source::Engine(watch) => watch.position().get(),
            #[cfg(feature = "remote")]
            Source::Service(following) => following.position(),
        }
    }
}

/// A bucket whose changes can be followed.
enum Followable {
    Engine(kvasi::Bucket),
    #[cfg(feature = "remote")]
    Service(Watched),
}

impl Followable {
    fn of(bucket: &dyn LocalBucket) -> Option<Self> {
        if let Some(bucket) = bucket.watchable() {
            return Some(Followable::Engine(bucket));
        }
        #[cfg(feature = "remote")]
        if let Some(watched) = bucket.watched() {
            return Some(Followable::Service(watched));
        }
        None
    }

    fn engine(&self) -> Option<&kvasi::Bucket> {
        match self {
            Followable::Engine(bucket) => Some(bucket),
            #[cfg(feature = "remote")]
            Followable::Service(_) => None,
        }
    }

    fn name(&self) -> &str {
        match self {
            Followable::Engine(bucket) => bucket.name(),
            #[cfg(feature = "remote")]
            Followable::Service(watched) => watched.name(),
        }
    }

    fn is_of_same_store(&self, other: &Followable) -> bool {
        match (self, other) {
            (Followable::Engine(one), Followable::Engine(other)) => one.store().is_same(other.store()),
            #[cfg(feature = "remote")]
            (Followable::Service(one), Followable::Service(other)) => one.is_of_same_store(other),
            #[cfg(feature = "remote")]
            _ => false,
        }
    }
}

/// What a component exports in order to be told.
struct Watcher {
    on_set: ComponentExportIndex,
    on_delete: ComponentExportIndex,
    /// Whether a callback may wait.
    is_async: bool,
}

impl Watcher {
    fn of(component: &Component) -> Option<Watcher> {
        let watcher = WATCHERS.iter().find_map(|name| component.get_export_index(None, name))?;
        let function = |name| match component.get_export(Some(&watcher), name)? {
            (ComponentItem::ComponentFunc(function), index) => Some((index, function.async_())),
            _ => None,
        };
        let ((on_set, set_is_async), (on_delete, delete_is_async)) = (function("on-set")?, function("on-delete")?);
        Some(Watcher { on_set, on_delete, is_async: set_is_async || delete_is_async })
    }
}

/// Delivers the changes of some buckets to one component. See the module's documentation in the source for what it promises.
pub struct WatchService<T: 'static> {
    pre: InstancePre<T>,
    watcher: Watcher,
    host: Box<dyn Fn(WasiKeyValueCtx, StoreLimits) -> T + Send>,
    limits: fn(&mut T) -> &mut StoreLimits,
    options: WatchOptions,
    buckets: Vec<(String, String)>,
    ctx: WasiKeyValueCtx,
    hops: Arc<Hops>,
    state: Arc<dyn LocalBucket>,
    source: Source,
    /// Whether changes were missed before it was made.
    missed: bool,
    queue: VecDeque<Queued>,
    /// Notes whose writes are to come: hashes of keys.
    noted: HashMap<u64, u8>,
    failures: u32,
}

impl<T> fmt::Debug for WatchService<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WatchService")
            .field("buckets", &self.buckets)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl<T: WasiKeyValueView + 'static> WatchService<T> {
    /// A service for the component `pre`, which goes on where the last one of this `name` stopped, or begins now. The component is
    /// told of the buckets on which `ctx` gives it the right [`Rights::WATCH`]; they must be of one store: a kvasi store, one of etcd or a Redis server. `host`
    /// makes the state of each of its wasmtime stores, `limits` finds the limits in it.
    ///
    /// Where [`is_async`](WatchService::is_async), link with [`link_async`](crate::link_async), or as you do for `call_async`.
    ///
    /// # Errors
    /// [`Code::Unsupported`] if there is no such bucket, if one cannot be watched, or if they are of several stores;
    /// [`Code::Invalid`] if the component exports no `watcher`; the store's own.
    pub fn new(
        name: &str,
        pre: InstancePre<T>,
        ctx: &WasiKeyValueCtx,
        options: WatchOptions,
        host: impl Fn(WasiKeyValueCtx, StoreLimits) -> T + Send + 'static,
        limits: fn(&mut T) -> &mut StoreLimits,
    ) -> Result<Self, Error> {
        let watcher = Watcher::of(pre.component()).ok_or_else(|| {
            Error::with_detail(Code::Invalid, format!("the component exports none of {}", WATCHERS.join(", ")))
        })?;
        let followed = followed(ctx)?;
        let first = &followed.first().ok_or_else(|| Error::new(Code::Unsupported))?.1;
        let state_name = format!("{NOTES}/{name}");
        let (state, notes): (Arc<dyn LocalBucket>, _) = match first {
            Followable::Engine(bucket) => {
                let own = |name| Ok::<_, Error>(bucket.store().bucket(name)?.with_durability(Durability::Os));
                (Arc::new(own(&state_name)?), Notes::Engine(own(NOTES)?))
            }
            #[cfg(feature = "remote")]
            Followable::Service(watched) => (watched.sibling(&state_name), Notes::Service(watched.clone())),
        };
        let kept = match state.get(POSITION)? {
            Some(kept) => Some(decode(&kept).ok_or_else(|| Error::new(Code::Corrupt))?),
            None => None,
        };
        let (source, missed) = match first {
            Followable::Engine(bucket) => {
                let store = bucket.store();
                let from = kept.as_ref().map_or(store.position(), |(from, _)| Position::from_u64(*from));
                let buckets = followed.iter().filter_map(|(_, bucket)| bucket.engine());
                let notes = bucket.store().bucket(NOTES)?;
                (Source::Engine(store.watch(WatchFrom::Position(from))?.only(buckets.chain([&notes]))), false)
            }
            #[cfg(feature = "remote")]
            Followable::Service(watched) => {
                let names: Vec<&str> = followed.iter().map(|(_, bucket)| bucket.name()).collect();
                let from = kept.as_ref().map(|(from, _)| *from);
                (Source::Service(watched.follow(&names, NOTES, from)?), from.is_some() && !watched.resumes())
            }
        };
        let noted = kept.filter(|_| !missed).map(|(_, noted)| noted).unwrap_or_default();
        let hops = Arc::new(Hops { notes, now: AtomicU8::new(0) });
        let ctx = ctx.with_buckets(|grant| {
            let bucket = Followable::of(&*grant.bucket).filter(|bucket| bucket.is_of_same_store(first))?;
            Some(Arc::new(Followed { name: bucket.name().into(), bucket: grant.bucket.clone(), hops: hops.clone() }))
        });
        let buckets = followed.iter().map(|(name, bucket)| (name.clone(), bucket.name().to_owned())).collect();
        let service = WatchService {
            pre,
            watcher,
            host: Box::new(host),
            limits,
            options,
            buckets,
            ctx,
            hops,
            state,
            source,
            missed,
            queue: VecDeque::new(),
            noted,
            failures: 0,
        };
        // So that nothing is missed from here on, also if this process ends before anything comes.
        service.keep_position()?;
        Ok(service)
    }

    /// Whether the watcher that a component exports is `async`: then its callbacks may wait. `false` if it exports none.
    pub fn is_async(component: &Component) -> bool {
        Watcher::of(component).is_some_and(|watcher| watcher.is_async)
    }

    /// Whether changes come over a network, so that those made just now may not be there yet.
    pub fn is_over_a_network(&self) -> bool {
        match self.source {
            Source::Engine(_) => false,
            #[cfg(feature = "remote")]
            Source::Service(_) => true,
        }
    }

    /// Delivers what there is, at most one batch; waits for something at most `timeout`. Call it again and again.
    ///
    /// An `async` callback that waits is polled in the calling thread. What it waits for is the embedder's to drive: where functions of the host
    /// need a runtime, call this on a thread that has entered one whose work others do.
    ///
    /// # Errors
    /// The store's own. What a component does wrong is a [`Step`].
    pub fn step(&mut self, timeout: Duration) -> Result<Step, Error> {
        if self.failures >= self.options.failures_max {
            return Ok(Step::Disabled);
        }
        if self.queue.is_empty() && self.read_ahead(timeout)? {
            tracing::warn!("changes were cleaned away before they were delivered: the component has missed some");
            self.keep_position()?;
            return Ok(Step::Lagged);
        }
        if self.queue.is_empty() {
            return Ok(Step::Idle);
        }
        let mut delivered = 0;
        let failed = self.deliver(&mut delivered).err();
        if delivered > 0 {
            self.failures = 0;
            self.keep_position()?;
        }
        let Some(error) = failed else { return Ok(Step::Delivered(delivered)) };
        self.failures += 1;
        if self.failures >= self.options.failures_max {
            tracing::error!(error = %format_args!("{error:#}"), "a watcher failed too often: it is disabled");
            return Ok(Step::Disabled);
        }
        let rest = self.options.backoff.saturating_mul(1 << (self.failures - 1).min(16));
        tracing::warn!(error = %format_args!("{error:#}"), failures = self.failures, "a watcher failed");
        Ok(Step::Failed { failures: self.failures, rest, error })
    }

    /// Fills the queue; whether something was missed before.
    fn read_ahead(&mut self, timeout: Duration) -> Result<bool, Error> {
        if std::mem::take(&mut self.missed) {
            return Ok(true);
        }
        let (mut bytes, mut timeout) = (0, timeout);
        while self.queue.len() < self.options.events_max && bytes < self.options.bytes_max {
            match self.read_one(timeout)? {
                Read::Nothing => break,
                Read::Bytes(more) => bytes += more,
                Read::Missed => {
                    self.noted.clear();
                    return Ok(true);
                }
            }
            // What is not there yet is waited for only as long as there is nothing to deliver.
            if !self.queue.is_empty() {
                timeout = Duration::ZERO;
            }
        }
        Ok(false)
    }

    /// Takes the next commit, change or note.
    fn read_one(&mut self, timeout: Duration) -> Result<Read, Error> {
        match &mut self.source {
            Source::Engine(watch) => {
                // Where the watch stood before it read a commit: no later than where that begins.
                let from = watch.position().get();
                let next = if timeout.is_zero() { watch.try_next()? } else { watch.wait(timeout)? };
                match next {
                    None => Ok(Read::Nothing),
                    Some(Delivery::Commit(events)) => {
                        Ok(Read::Bytes(events.iter().map(|event| self.take(event, from)).sum()))
                    }
                    Some(Delivery::Lagged { .. }) => Ok(Read::Missed),
                    // A power cut has taken what was seen before; there is nothing to make up for.
                    Some(_) => Ok(Read::Bytes(0)),
                }
            }
            #[cfg(feature = "remote")]
            Source::Service(following) => match following.next(timeout)? {
                None => Ok(Read::Nothing),
                Some(Told::Lagged) => Ok(Read::Missed),
                Some(Told::UpTo(_)) => Ok(Read::Bytes(0)),
                Some(Told::Note(note)) => {
                    self.take_note(&note);
                    Ok(Read::Bytes(0))
                }
                Some(Told::Change { bucket, key, value, before }) => {
                    let Some((_, bucket)) = self.buckets.get(bucket) else { return Ok(Read::Bytes(0)) };
                    let bucket = bucket.clone();
                    Ok(Read::Bytes(self.enqueue(&bucket, key, value, before)))
                }
            },
        }
    }

    /// Queues an event of the engine, or takes up a note; the bytes it takes here.
    fn take(&mut self, event: &kvasi::Event, from: u64) -> usize {
        let Some(bucket) = event.bucket() else { return 0 };
        if bucket == NOTES {
            if let Some(note) = event.value().filter(|_| event.key() == NOTE) {
                self.take_note(note);
            }
            return 0;
        }
        let value = match event.change() {
            Change::Set { value, .. } => Some(value.clone().into_bytes()),
            Change::Delete => None,
            // Nobody can open it any more.
            _ => return 0,
        };
        // A guest can name no key but text.
        match std::str::from_utf8(event.key()) {
            Ok(key) => self.enqueue(bucket, key.to_owned(), value, from),
            Err(_) => 0,
        }
    }

    /// Queues a change; the bytes it takes here.
    fn enqueue(&mut self, bucket: &str, key: String, value: Option<Bytes>, from: u64) -> usize {
        let hops = self.noted.remove(&hash(bucket, key.as_bytes())).unwrap_or(0);
        if hops >= self.options.hops_max {
            tracing::warn!(bucket, hops, "a chain of callbacks was cut: each was set off by a write of the one before");
            return 0;
        }
        let bytes = key.len() + value.as_ref().map_or(0, Bytes::len);
        for (grant, _) in self.buckets.iter().enumerate().filter(|(_, (_, inner))| inner == bucket) {
            self.queue.push_back(Queued { grant, key: key.clone(), value: value.clone(), hops, from });
        }
        bytes
    }

    /// Takes up a note, if it is about a bucket of ours: else its write does not come.
    fn take_note(&mut self, note: &[u8]) {
        let Some((hops, rest)) = note.split_first() else { return };
        let Some((bucket, hashes)) = rest
            .split_first_chunk()
            .and_then(|(len, rest)| rest.split_at_checked(usize::from(u16::from_le_bytes(*len))))
        else {
            return;
        };
        if !self.buckets.iter().any(|(_, inner)| inner.as_bytes() == bucket) {
            return;
        }
        for hash in hashes.chunks_exact(8).filter_map(|hash| hash.try_into().ok()).map(u64::from_le_bytes) {
            match hops {
                0 => drop(self.noted.remove(&hash)),
                hops => drop(self.noted.insert(hash, *hops)),
            }
        }
    }

    /// Calls back for what is queued, in one store, until something fails.
    fn deliver(&mut self, delivered: &mut usize) -> wasmtime::Result<()> {
        let memory = StoreLimitsBuilder::new().memory_size(self.options.memory_bytes_max).build();
        let mut store = Store::new(self.pre.component().engine(), (self.host)(self.ctx.clone(), memory));
        let limits = self.limits;
        crate::limit_store(&mut store);
        store.limiter(move |host| limits(host));
        // An error where fuel is not consumed, or epochs interrupt nothing.
        let _ = store.set_fuel(self.options.fuel);
        store.set_epoch_deadline(self.options.epochs);
        let Watcher { on_set, on_delete, is_async } = &self.watcher;
        let wait = is_async.then_some(self.options.wait);
        let instance = match wait {
            None => self.pre.instantiate(&mut store)?,
            Some(wait) => drive(self.pre.instantiate_async(&mut store), wait)?,
        };
        let on_set = instance.get_typed_func::<(Resource<Bucket>, &str, &[u8]), ()>(&mut store, on_set)?;
        let on_delete = instance.get_typed_func::<(Resource<Bucket>, &str), ()>(&mut store, on_delete)?;
        let mut hops = None;
        while let Some(event) = self.queue.front() {
            // What a callback left behind writes at the distance of the callback.
            if *is_async && *hops.get_or_insert(event.hops) != event.hops {
                break;
            }
            self.hops.now.store(event.hops + 1, Ordering::Relaxed);
            let handle = {
                let mut view = store.data_mut().keyvalue();
                let grant = view
                    .ctx
                    .look_up(None, &self.buckets[event.grant].0)
                    .map_err(|_| wasmtime::Error::msg("not granted"))?;
                view.push_bucket(Bucket { grant })?
            };
            match &event.value {
                Some(value) => call(&on_set, &mut store, (handle, &event.key, value), wait)?,
                None => call(&on_delete, &mut store, (handle, &event.key), wait)?,
            }
            *delivered += 1;
            self.queue.pop_front();
        }
        Ok(())
    }

    /// Writes down where the next service of this name is to go on.
    fn keep_position(&self) -> Result<(), Error> {
        let from = self.queue.front().map_or(self.source.position(), |event| event.from);
        let mut noted = self.noted.clone();
        for event in self.queue.iter().filter(|event| event.hops > 0) {
            noted.insert(hash(&self.buckets[event.grant].1, event.key.as_bytes()), event.hops);
        }
        self.state.set(POSITION, &encode(from, &noted))?;
        Ok(())
    }
}

/// Calls back; for `wait` at most, if it may wait.
fn call<T: Send, P: ComponentNamedList + Lower>(
    callback: &TypedFunc<P, ()>,
    store: &mut Store<T>,
    params: P,
    wait: Option<Duration>,
) -> wasmtime::Result<()> {
    match wait {
        None => callback.call(store, params),
        Some(wait) => drive(callback.call_async(store, params), wait),
    }
}

/// What `call` comes to, driven in this thread, which sleeps in between; an error when it was not done after so long.
fn drive<R>(call: impl Future<Output = wasmtime::Result<R>>, wait: Duration) -> wasmtime::Result<R> {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let (waker, begun) = (Waker::from(Arc::new(Unpark(thread::current()))), Instant::now());
    let mut call = pin!(call);
    loop {
        if let Poll::Ready(done) = call.as_mut().poll(&mut Context::from_waker(&waker)) {
            return done;
        }
        match wait.checked_sub(begun.elapsed()) {
            Some(left) if !left.is_zero() => thread::park_timeout(left),
            _ => return Err(wasmtime::Error::msg(format!("it has waited for more than {wait:?}"))),
        }
    }
}

/// What reading ahead came to.
enum Read {
    Nothing,
    /// So many bytes for the queue, if any.
    Bytes(usize),
    /// Something that does not come any more.
    Missed,
}

/// The buckets to be told of, each with the name that the component has for it.
fn followed(ctx: &WasiKeyValueCtx) -> Result<Vec<(String, Followable)>, Error> {
    let mut followed: Vec<(String, Followable)> = Vec::new();
    for grant in ctx.grants().filter(|grant| grant.rights.contains(Rights::WATCH)) {
        let bucket = Followable::of(&*grant.bucket).ok_or_else(|| {
            let text = format!(
                "the store of bucket {:?} tells of no changes: the engine, etcd and a Redis server do",
                grant.name
            );
            Error::with_detail(Code::Unsupported, text)
        })?;
        if followed.first().is_some_and(|(_, first)| !first.is_of_same_store(&bucket)) {
            return Err(Error::with_detail(Code::Unsupported, "the buckets to be watched are in several stores"));
        }
        followed.push((String::from(&*grant.name), bucket));
    }
    Ok(followed)
}

/// FNV-1a, the same in every build: which key a note is about. A guest that makes two keys collide shortens its own chains.
fn hash(bucket: &str, key: &[u8]) -> u64 {
    let mix = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    let bucket = bucket.as_bytes().iter().chain(&[0xff]).fold(0xcbf2_9ce4_8422_2325, mix);
    key.iter().fold(bucket, mix)
}

/// The position, then each note: hash and hops.
fn encode(from: u64, noted: &HashMap<u64, u8>) -> Vec<u8> {
    let mut bytes = from.to_le_bytes().to_vec();
    for (hash, hops) in noted {
        bytes.extend_from_slice(&hash.to_le_bytes());
        bytes.push(*hops);
    }
    bytes
}

fn decode(bytes: &[u8]) -> Option<(u64, HashMap<u64, u8>)> {
    let (from, notes) = bytes.split_first_chunk()?;
    let note = |note: &[u8]| Some((u64::from_le_bytes(*note.first_chunk()?), *note.get(8)?));
    let noted = notes.chunks(9).map(note).collect::<Option<_>>()?;
    Some((u64::from_le_bytes(*from), noted))
}

/// Any bytes as what a watcher has stored: read, written and read again they say the same.
#[cfg(any(test, feature = "testing"))]
pub(crate) fn read_notes(bytes: &[u8]) {
    if let Some((from, noted)) = decode(bytes) {
        let again = encode(from, &noted);
        assert!(again.len() <= bytes.len());
        assert_eq!(decode(&again), Some((from, noted)));
    }
}

/// How far the callback that runs now is from a write of somebody else, and where that is noted.
struct Hops {
    notes: Notes,
    /// Of a write made now.
    now: AtomicU8,
}

/// Where it is noted that a write of a callback comes.
enum Notes {
    Engine(kvasi::Bucket),
    #[cfg(feature = "remote")]
    Service(Watched),
}

impl Notes {
    fn write(&self, note: &[u8]) -> Result<(), Error> {
        match self {
            // Not waited for: it is logged before the write, and so durable no later.
            Notes::Engine(notes) => drop(notes.start_set(NOTE, note)?),
            #[cfg(feature = "remote")]
            Notes::Service(watched) => watched.note(NOTES, note)?,
        }
        Ok(())
    }
}

/// A bucket in the hands of a callback: writes are noted before they are made.
struct Followed {
    /// Its name in the store.
    name: Box<str>,
    bucket: Arc<dyn LocalBucket>,
    hops: Arc<Hops>,
}

impl Followed {
    /// Makes a write of these keys, `changed` saying whether it came to one.
    fn noted<'k, R: 'static>(
        &self,
        keys: impl Iterator<Item = &'k [u8]>,
        write: impl FnOnce(&dyn LocalBucket) -> Reply<R>,
        changed: fn(&R) -> bool,
    ) -> Reply<R> {
        let mut note = vec![self.hops.now.load(Ordering::Relaxed)];
        note.extend_from_slice(&(self.name.len() as u16).to_le_bytes());
        note.extend_from_slice(self.name.as_bytes());
        for key in keys {
            note.extend_from_slice(&hash(&self.name, key).to_le_bytes());
        }
        if let Err(error) = self.hops.notes.write(&note) {
            return Reply::Now(Err(error));
        }
        let hops = self.hops.clone();
        write(&*self.bucket).then(move |written| {
            if !written.as_ref().is_ok_and(changed) {
                note[0] = 0;
                hops.notes.write(&note)?;
            }
            written
        })
    }

    /// Those of the keys that are there: of an absent one that is deleted the note would stay.
    fn there<'k>(&self, keys: &[Key<'k>]) -> Result<Vec<Key<'k>>, Error> {
        let mut there = Vec::new();
        for key in keys {
            if self.bucket.exists(key.as_ref())? {
                there.push(key.clone());
            }
        }
        Ok(there)
    }

    fn delete_noted(
        &self,
        keys: &[Key<'_>],
        delete: impl FnOnce(&dyn LocalBucket, &[Key<'_>]) -> Reply<()>,
    ) -> Reply<()> {
        match self.there(keys) {
            Ok(there) if there.is_empty() => Reply::Now(Ok(())),
            Ok(there) => {
                let keys = there.iter().map(AsRef::<[u8]>::as_ref);
                self.noted(keys, |bucket| delete(bucket, &there), |()| true)
            }
            Err(error) => Reply::Now(Err(error)),
        }
    }
}

fn one(key: &str) -> std::iter::Once<&[u8]> {
    std::iter::once(key.as_bytes())
}

fn keys_of<'k>(pairs: &'k [(Key<'_>, &[u8])]) -> impl Iterator<Item = &'k [u8]> {
    pairs.iter().map(|(key, _)| AsRef::<[u8]>::as_ref(key))
}

fn is_done(swap: &Swap) -> bool {
    matches!(swap, Swap::Done)
}

impl LocalBucket for Followed {
    fn identity(&self) -> &str {
        self.bucket.identity()
    }

    fn waits(&self) -> bool {
        self.bucket.waits()
    }

    fn get(&self, key: &str) -> Result<Option<Bytes>, Error> {
        self.bucket.get(key)
    }

    fn exists(&self, key: &str) -> Result<bool, Error> {
        self.bucket.exists(key)
    }

    fn set(&self, key: &str, value: &[u8]) -> Result<(), Error> {
        self.noted(one(key), |bucket| Reply::Now(bucket.set(key, value)), |()| true).now()
    }

    fn set_with(&self, key: &str, value: &[u8], options: SetOptions) -> Result<bool, Error> {
        self.noted(one(key), |bucket| Reply::Now(bucket.set_with(key, value, options)), |written| *written).now()
    }

    fn delete(&self, key: &str) -> Result<(), Error> {
        self.delete_noted(&[Key::from(key)], |bucket, _| Reply::Now(bucket.delete(key))).now()
    }

    fn list(&self, after: Option<&[u8]>, bounds: PageBounds) -> Result<Page, Error> {
        self.bucket.list(after, bounds)
    }

    fn list_prefix(&self, prefix: &str, after: Option<&[u8]>, bounds: PageBounds) -> Result<Page, Error> {
        self.bucket.list_prefix(prefix, after, bounds)
    }

    fn increment(&self, key: &str, delta: i64) -> Result<i64, Error> {
        self.noted(one(key), |bucket| Reply::Now(bucket.increment(key, delta)), |_| true).now()
    }

    fn observe(&self, key: &str) -> Result<Observed, Error> {
        self.bucket.observe(key)
    }

    fn swap(&self, key: &str, guard: &Guard, value: &[u8]) -> Result<Swap, Error> {
        self.noted(one(key), |bucket| Reply::Now(bucket.swap(key, guard, value)), is_done).now()
    }

    fn get_many(&self, keys: &[Key<'_>]) -> Result<Vec<Option<Pair>>, Error> {
        self.bucket.get_many(keys)
    }

    fn set_many(&self, pairs: &[(Key<'_>, &[u8])]) -> Result<(), Error> {
        self.noted(keys_of(pairs), |bucket| Reply::Now(bucket.set_many(pairs)), |()| true).now()
    }

    fn delete_many(&self, keys: &[Key<'_>]) -> Result<(), Error> {
        self.delete_noted(keys, |bucket, there| Reply::Now(bucket.delete_many(there))).now()
    }

    fn start_get(&self, key: &str) -> Reply<Option<Bytes>> {
        self.bucket.start_get(key)
    }

    fn start_exists(&self, key: &str) -> Reply<bool> {
        self.bucket.start_exists(key)
    }

    fn start_set(&self, key: &str, value: &[u8]) -> Reply<()> {
        self.noted(one(key), |bucket| bucket.start_set(key, value), |()| true)
    }

    fn start_set_with(&self, key: &str, value: &[u8], options: SetOptions) -> Reply<bool> {
        self.noted(one(key), |bucket| bucket.start_set_with(key, value, options), |written| *written)
    }

    fn start_delete(&self, key: &str) -> Reply<()> {
        self.delete_noted(&[Key::from(key)], |bucket, _| bucket.start_delete(key))
    }

    fn start_list(&self, prefix: &str, after: Option<&[u8]>, bounds: PageBounds) -> Reply<Page> {
        self.bucket.start_list(prefix, after, bounds)
    }

    fn start_increment(&self, key: &str, delta: i64) -> Reply<i64> {
        self.noted(one(key), |bucket| bucket.start_increment(key, delta), |_| true)
    }

    fn start_observe(&self, key: &str) -> Reply<Observed> {
        self.bucket.start_observe(key)
    }

    fn start_swap(&self, key: &str, guard: &Guard, value: &[u8]) -> Reply<Swap> {
        self.noted(one(key), |bucket| bucket.start_swap(key, guard, value), is_done)
    }

    fn start_get_many(&self, keys: &[Key<'_>]) -> Reply<Vec<Option<Pair>>> {
        self.bucket.start_get_many(keys)
    }

    fn start_set_many(&self, pairs: &[(Key<'_>, &[u8])]) -> Reply<()> {
        self.noted(keys_of(pairs), |bucket| bucket.start_set_many(pairs), |()| true)
    }

    fn start_delete_many(&self, keys: &[Key<'_>]) -> Reply<()> {
        self.delete_noted(keys, |bucket, there| bucket.start_delete_many(there))
    }
}
