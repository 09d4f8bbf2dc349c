//! What one component may reach: [`WasiKeyValueCtx`], its builder, and how an embedder's state hands it to the calls.
//!
//! Flow: configuration or embedder -> builder -> context (shared by all instances of a component) -> `link`, through the
//! view -> handles in the embedder's `ResourceTable`.
//! Invariants: 1. A guest names buckets by the names given here; a name is never joined to a path. 2. What a context
//! grants never changes while it lives. 3. Opening a bucket is a look-up and a count, no I/O. 4. Each store's handles
//! are counted apart: a clone of a context begins with none.

use crate::backend::{Guard, LocalBucket, PageBounds};
use crate::cursor::Positions;
use crate::error::Refusal;
use crate::gate::{Gate, Load};
use crate::observe::Meters;
use crate::pace::{Pace, Paced};
use crate::{Code, Error};
use bytes::Bytes;
use std::collections::HashMap;
use std::fmt;
use std::num::NonZeroU32;
use std::ops::BitOr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use wasmtime::Store;
use wasmtime::component::{HasData, Resource, ResourceTable};

/// What a component may do with a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rights(u8);

impl Rights {
    /// Nothing at all, not even to open it.
    pub const NONE: Rights = Rights(0);
    /// `get`, `exists`, `get-many`.
    pub const READ: Rights = Rights(1);
    /// `set`, `delete`, `set-many`, `delete-many`.
    pub const WRITE: Rights = Rights(2);
    /// `list-keys`.
    pub const LIST: Rights = Rights(4);
    /// `increment` and compare-and-swap, which read and write one key.
    pub const ATOMICS: Rights = Rights(8);
    /// To be told of changes, by `watch-service`.
    pub const WATCH: Rights = Rights(16);
    /// Everything.
    pub const ALL: Rights = Rights(31);

    /// Whether all of `other` is in here.
    pub const fn contains(self, other: Rights) -> bool {
        self.0 & other.0 == other.0
    }
}

impl BitOr for Rights {
    type Output = Rights;
    fn bitor(self, other: Rights) -> Rights {
        Rights(self.0 | other.0)
    }
}

/// Bounds on what one call, one instance or one component may ask. Exceeding one is an error to the guest and changes
/// nothing. What a component may hold is not among them: see [`Metered`](crate::Metered).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest key, in bytes. Default: 4 KiB.
    pub key_bytes_max: usize,
    /// Longest name given to `open`, in bytes; longer ones are unknown. Default: 256.
    pub name_bytes_max: usize,
    /// Longest value, in bytes. Default: 8 MiB.
    pub value_bytes_max: usize,
    /// Most keys in one batch call. Default: 10,000.
    pub batch_keys_max: usize,
    /// Most bytes of keys and values in one batch call. Default: 16 MiB.
    pub batch_bytes_max: usize,
    /// Most bytes of keys and values in one answer: guests can make the host copy one value into the same place many
    /// times over. Default: 16 MiB.
    pub reply_bytes_max: usize,
    /// Most keys in one page of `list-keys`. Default: 1,000.
    pub page_keys_max: usize,
    /// Most bytes of keys in one page. Default: 256 KiB.
    pub page_bytes_max: usize,
    /// Most entries looked at for one page, so that a sea of deleted keys does not hold the host. Default: 50,000.
    pub page_entries_max: usize,
    /// Most buckets open at once in one instance. Default: 1,024.
    pub open_buckets_max: usize,
    /// Most compare-and-swap handles at once in one instance; each keeps a value alive. Default: 256.
    pub cas_handles_max: usize,
    /// Most calls of one component at once, over all its instances: those that write, and those that wait for a network.
    /// One more is told `busy`. Default: 256. A million is as good as any number above.
    pub calls_at_once_max: usize,
    /// Most bytes of keys and values that those calls bring; a call that is alone passes in any case. One more is told `busy`.
    /// Default: 256 MiB.
    pub queued_bytes_max: usize,
    /// Most keys that one component names in a second, over all its instances and calls, and most at once after a pause; a call
    /// without a key counts as one. One more is told `busy`. Default: any number.
    pub keys_per_second_max: Option<NonZeroU32>,
    /// The same, of calls that write, compare-and-swap attempts included. Default: any number.
    pub written_keys_per_second_max: Option<NonZeroU32>,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            key_bytes_max: 4 << 10,
            name_bytes_max: 256,
            value_bytes_max: 8 << 20,
            batch_keys_max: 10_000,
            batch_bytes_max: 16 << 20,
            reply_bytes_max: 16 << 20,
            page_keys_max: 1_000,
            page_bytes_max: 256 << 10,
            page_entries_max: 50_000,
            open_buckets_max: 1_024,
            cas_handles_max: 256,
            calls_at_once_max: 256,
            queued_bytes_max: 256 << 20,
            keys_per_second_max: None,
            written_keys_per_second_max: None,
        }
    }
}

impl Limits {
    pub(crate) fn page(&self) -> PageBounds {
        PageBounds { keys_max: self.page_keys_max, bytes_max: self.page_bytes_max, entries_max: self.page_entries_max }
    }

    /// What wasmtime may allocate for the parameters of one call: the largest that these limits let through, and a half more for
    /// the lengths of lists. Its own default is 128 MiB.
    pub fn hostcall_fuel(&self) -> usize {
        let largest = self.batch_bytes_max.max(self.value_bytes_max.saturating_add(self.key_bytes_max));
        largest.saturating_add(largest / 2)
    }

    /// Handles that one instance may have at once: those of these limits, and a thousand for other interfaces.
    pub fn table_entries_max(&self) -> usize {
        const OTHERS: usize = 1_000;
        self.open_buckets_max.saturating_add(self.cas_handles_max).saturating_add(OTHERS)
    }
}

/// Sets what wasmtime itself allots to a store by the limits of its context: host memory for the parameters of a call, and
/// the size of the handle table. Its defaults, 128 MiB and a million, are for hosts that trust their guests.
pub fn limit_store<T: WasiKeyValueView>(store: &mut Store<T>) {
    let view = store.data_mut().keyvalue();
    let limits = *view.ctx.limits();
    view.table.set_max_capacity(limits.table_entries_max());
    store.set_hostcall_fuel(limits.hostcall_fuel());
}

/// A bucket as one component has it: where it is, and what may be done with it.
pub(crate) struct Grant {
    /// The name the guest knows it by.
    pub(crate) name: Box<str>,
    pub(crate) bucket: Arc<dyn LocalBucket>,
    pub(crate) rights: Rights,
    pub(crate) limits: Limits,
    /// Of the component, over all its buckets and instances.
    gate: Gate,
    tenant: Option<Gate>,
    /// Whether calls that only read pass the gates too.
    reads_count: bool,
    meters: Option<Meters>,
}

impl Grant {
    fn with_bucket(&self, bucket: Arc<dyn LocalBucket>) -> Grant {
        let Grant { name, rights, limits, gate, tenant, reads_count, meters, .. } = self;
        let (name, gate, tenant, meters) = (name.clone(), gate.clone(), tenant.clone(), meters.clone());
        Grant { name, bucket, rights: *rights, limits: *limits, gate, tenant, reads_count: *reads_count, meters }
    }

    pub(crate) fn meters(&self) -> Option<&Meters> {
        self.meters.as_ref()
    }

    /// Whether calls that only read pass the gates too.
    #[inline]
    pub(crate) fn counts_reads(&self) -> bool {
        self.reads_count
    }

    /// Takes a place at the gates; `false` for a call that passes without: a read that neither waits nor is counted by a rate.
    #[inline]
    pub(crate) fn enter(&self, load: Load) -> Result<bool, Error> {
        if !load.writes && !self.reads_count {
            return Ok(false);
        }
        self.gate.enter(load)?;
        if let Some(tenant) = &self.tenant
            && let Err(error) = tenant.enter(load)
        {
            self.gate.leave(load);
            return Err(error);
        }
        Ok(true)
    }

    /// Gives the place back.
    #[inline]
    pub(crate) fn leave(&self, load: Load) {
        self.gate.leave(load);
        if let Some(tenant) = &self.tenant {
            tenant.leave(load);
        }
    }

    /// The bucket, asked in this way.
    pub(crate) fn at(&self, pace: Pace) -> Paced<'_> {
        Paced { bucket: &*self.bucket, pace }
    }
}

/// What a configured name means to this component.
enum Entry {
    Granted(Arc<Grant>),
    /// Somebody has it; this component has not.
    Withheld,
}

struct Shared {
    names: HashMap<Box<str>, Entry>,
    /// For an import's label, what the names that it opens are called in `names`.
    labels: HashMap<Box<str>, HashMap<Box<str>, Box<str>>>,
    hide_withheld: bool,
    limits: Limits,
    /// The cursors of guests whose cursors are numbers.
    positions: Positions,
}

/// What a component may reach of `wasi:keyvalue`: buckets by name, rights, limits.
///
/// Build it once for a component and clone it for each of its stores: a clone costs one counter.
pub struct WasiKeyValueCtx {
    shared: Arc<Shared>,
    pub(crate) handles: Handles,
}

/// How many handles this store's instance holds now.
///
/// Atomic only so that a context can be shared: one store's instance is in one call at a time, or nearly.
#[derive(Default)]
pub(crate) struct Handles {
    pub(crate) buckets: Count,
    pub(crate) cas: Count,
}

#[derive(Default)]
pub(crate) struct Count(AtomicUsize);

impl Count {
    pub(crate) fn get(&self) -> usize {
        self.0.load(Relaxed)
    }

    fn add(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    fn take(&self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Clone for WasiKeyValueCtx {
    /// The same buckets, rights and limits for another store, which holds no handle yet.
    fn clone(&self) -> Self {
        WasiKeyValueCtx { shared: self.shared.clone(), handles: Handles::default() }
    }
}

impl fmt::Debug for WasiKeyValueCtx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut names: Vec<_> = self.shared.names.keys().collect();
        names.sort_unstable();
        f.debug_struct("WasiKeyValueCtx").field("names", &names).finish_non_exhaustive()
    }
}

impl WasiKeyValueCtx {
    /// A context that grants nothing yet.
    pub fn builder() -> WasiKeyValueCtxBuilder {
        WasiKeyValueCtxBuilder::default()
    }

    /// The limits that hold for this component.
    pub fn limits(&self) -> &Limits {
        &self.shared.limits
    }

    pub(crate) fn positions(&self) -> &Positions {
        &self.shared.positions
    }

    /// All grants, in no order.
    pub(crate) fn grants(&self) -> impl Iterator<Item = &Arc<Grant>> {
        self.shared.names.values().filter_map(|entry| match entry {
            Entry::Granted(grant) => Some(grant),
            Entry::Withheld => None,
        })
    }

    /// The same, with other buckets behind some of the names.
    pub(crate) fn with_buckets(&self, other: impl Fn(&Grant) -> Option<Arc<dyn LocalBucket>>) -> WasiKeyValueCtx {
        let names = self.shared.names.iter().map(|(name, entry)| {
            let entry = match entry {
                Entry::Withheld => Entry::Withheld,
                Entry::Granted(grant) => Entry::Granted(match other(grant) {
                    Some(bucket) => Arc::new(grant.with_bucket(bucket)),
                    None => grant.clone(),
                }),
            };
            (name.clone(), entry)
        });
        let Shared { hide_withheld, limits, .. } = *self.shared;
        let (names, labels) = (names.collect(), self.shared.labels.clone());
        let shared = Arc::new(Shared { names, labels, hide_withheld, limits, positions: Positions::default() });
        WasiKeyValueCtx { shared, handles: Handles::default() }
    }

    /// Decided from the configuration alone: the back end is not asked, so a refusal tells nothing about it. An import without a
    /// label, or with one that the configuration does not name, opens the plain names.
    pub(crate) fn look_up(&self, label: Option<&str>, name: &str) -> Result<Arc<Grant>, Refusal> {
        let shared = &*self.shared;
        let name = if name.len() <= shared.limits.name_bytes_max { Some(name) } else { None };
        let name = match label.and_then(|label| shared.labels.get(label)) {
            Some(names) => name.and_then(|name| names.get(name)).map(|name| &**name),
            None => name,
        };
        match name.and_then(|name| shared.names.get(name)) {
            Some(Entry::Granted(grant)) => Ok(grant.clone()),
            Some(Entry::Withheld) => Err(Refusal::AccessDenied),
            None if shared.hide_withheld => Err(Refusal::AccessDenied),
            None => Err(Refusal::NoSuchStore),
        }
    }
}

/// Builds a [`WasiKeyValueCtx`]. Of two settings for one name the last holds.
#[derive(Default)]
pub struct WasiKeyValueCtxBuilder {
    granted: HashMap<Box<str>, (Arc<dyn LocalBucket>, Rights)>,
    withheld: Vec<Box<str>>,
    labels: HashMap<Box<str>, HashMap<Box<str>, Box<str>>>,
    hide_withheld: bool,
    limits: Limits,
    tenant: Option<Gate>,
    #[cfg(feature = "metrics")]
    metrics: bool,
}

impl fmt::Debug for WasiKeyValueCtxBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WasiKeyValueCtxBuilder").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl WasiKeyValueCtxBuilder {
    /// As [`WasiKeyValueCtx::builder`].
    pub fn new() -> Self {
        Self::default()
    }

    /// Grants `bucket` with all rights under the name that guests give to `open`. The name `""` is no exception.
    #[must_use]
    pub fn bucket(self, name: impl Into<String>, bucket: impl LocalBucket) -> Self {
        self.grant(name, Arc::new(bucket), Rights::ALL)
    }

    /// Grants `bucket` with some rights; with [`Rights::NONE`] the name is known but withheld.
    #[must_use]
    pub fn grant(mut self, name: impl Into<String>, bucket: Arc<dyn LocalBucket>, rights: Rights) -> Self {
        let name = name.into();
        if rights == Rights::NONE {
            return self.withhold(name);
        }
        self.granted.insert(name.into(), (bucket, rights));
        self
    }

    /// Makes a name known that this component may not open: `open` answers `access-denied` instead of `no-such-store`.
    #[must_use]
    pub fn withhold(mut self, name: impl Into<String>) -> Self {
        let name = name.into().into_boxed_str();
        self.granted.remove(&name);
        self.withheld.push(name);
        self
    }

    /// What a labelled import (`import team-a: wasi:keyvalue/store@...`) opens: `name` is the bucket that plain imports know as
    /// `bucket`, with its rights and limits. Other names are unknown through that label; a label that is not given here at all opens
    /// the plain names. A bucket that was opened through a label is that bucket wherever the guest uses it.
    #[must_use]
    pub fn label(mut self, label: impl Into<String>, name: impl Into<String>, bucket: impl Into<String>) -> Self {
        let names = self.labels.entry(label.into().into()).or_default();
        names.insert(name.into().into(), bucket.into().into());
        self
    }

    /// Whether unknown names answer `access-denied` too, so that a component cannot learn which buckets exist.
    /// Default: no.
    #[must_use]
    pub fn hide_withheld(mut self, hide: bool) -> Self {
        self.hide_withheld = hide;
        self
    }

    /// Bounds on calls and handles. Default: [`Limits::default`].
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// The gate of the component's tenant, which its calls pass besides their own. Default: none.
    #[must_use]
    pub fn tenant(mut self, gate: Gate) -> Self {
        self.tenant = Some(gate);
        self
    }

    /// Whether calls are counted and timed by the recorder of `metrics` that is installed when the context is built: see
    /// docs/observability.md for names and labels. Default: no.
    #[cfg(feature = "metrics")]
    #[must_use]
    pub fn metrics(mut self, metrics: bool) -> Self {
        self.metrics = metrics;
        self
    }

    /// The context, fixed from here on.
    pub fn build(self) -> WasiKeyValueCtx {
        let limits = self.limits;
        let (gate, tenant) = (Gate::new(&limits), self.tenant);
        let rated = gate.minds_reads() || tenant.as_ref().is_some_and(Gate::minds_reads);
        let withheld = self.withheld.into_iter().map(|name| (name, Entry::Withheld));
        let granted = self.granted.into_iter().map(|(name, (bucket, rights))| {
            let reads_count = rated || bucket.waits();
            #[cfg(feature = "metrics")]
            let meters = self.metrics.then(|| Meters::new(&name));
            #[cfg(not(feature = "metrics"))]
            let meters = None;
            let (gate, tenant) = (gate.clone(), tenant.clone());
            let grant = Grant { name: name.clone(), bucket, rights, limits, gate, tenant, reads_count, meters };
            (name, Entry::Granted(Arc::new(grant)))
        });
        // Granted names come last: a name withheld first and granted later is granted.
        let names = withheld.chain(granted).collect();
        WasiKeyValueCtx {
            shared: Arc::new(Shared {
                names,
                labels: self.labels,
                hide_withheld: self.hide_withheld,
                limits,
                positions: Positions::default(),
            }),
            handles: Handles::default(),
        }
    }
}

/// The WIT resource `bucket`: an open bucket in a store's resource table.
#[derive(Clone)]
pub struct Bucket {
    pub(crate) grant: Arc<Grant>,
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Bucket").field(&self.grant.name).finish()
    }
}

/// The WIT resource `cas`: one attempt at a compare-and-swap. Keeps its bucket and the value it guards alive.
pub struct Cas {
    pub(crate) grant: Arc<Grant>,
    pub(crate) key: Box<str>,
    pub(crate) guard: Guard,
    pub(crate) value: Option<Bytes>,
}

impl fmt::Debug for Cas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // No key and no value: this may end in a log.
        f.debug_struct("Cas").field("bucket", &self.grant.name).finish_non_exhaustive()
    }
}

/// What the calls need of an embedder's state for the length of one step.
#[derive(Debug)]
pub struct WasiKeyValueCtxView<'a> {
    /// What the component may reach.
    pub ctx: &'a WasiKeyValueCtx,
    /// Where its handles are.
    pub table: &'a mut ResourceTable,
}

impl<'a> WasiKeyValueCtxView<'a> {
    /// A view of both.
    pub fn new(ctx: &'a WasiKeyValueCtx, table: &'a mut ResourceTable) -> Self {
        WasiKeyValueCtxView { ctx, table }
    }
}

/// Handles in and out of the table, counted on the way: the only code that touches either.
impl WasiKeyValueCtxView<'_> {
    /// The open bucket behind a handle: one count, so that guest memory can be looked at while it is used.
    pub(crate) fn bucket(&self, handle: &Resource<Bucket>) -> wasmtime::Result<Bucket> {
        Ok(self.table.get(handle)?.clone())
    }

    pub(crate) fn push_bucket(&mut self, bucket: Bucket) -> Result<Resource<Bucket>, Error> {
        let handle = self.table.push(bucket).map_err(|_full| Error::new(Code::TooManyHandles))?;
        self.ctx.handles.buckets.add();
        Ok(handle)
    }

    pub(crate) fn drop_bucket(&mut self, handle: Resource<Bucket>) -> wasmtime::Result<()> {
        self.table.delete(handle)?;
        self.ctx.handles.buckets.take();
        Ok(())
    }

    pub(crate) fn push_cas(&mut self, cas: Cas) -> Result<Resource<Cas>, Error> {
        let handle = self.table.push(cas).map_err(|_full| Error::new(Code::TooManyHandles))?;
        self.ctx.handles.cas.add();
        Ok(handle)
    }

    /// Takes a handle out of the table for good.
    pub(crate) fn take_cas(&mut self, handle: Resource<Cas>) -> wasmtime::Result<Cas> {
        let cas = self.table.delete(handle)?;
        self.ctx.handles.cas.take();
        Ok(cas)
    }
}

/// An embedder's state that has a [`WasiKeyValueCtx`].
pub trait WasiKeyValueView: Send {
    /// The context and the table, both at once.
    fn keyvalue(&mut self) -> WasiKeyValueCtxView<'_>;
}

/// Names the view for generated bindings: the `D` of a `bindgen!` world's `add_to_linker::<_, D>`.
#[derive(Debug)]
pub struct WasiKeyValue;

impl HasData for WasiKeyValue {
    type Data<'a> = WasiKeyValueCtxView<'a>;
}
