//! What a case runs on: a back end behind a context, and how to start guests over it.

use super::guest::{Guest, Language, TABLE_ENTRIES_MAX};
use kvasi::{Options, Store};
use kvasi_wasmtime::backend::{Backend, Capabilities, Key, LocalBucket, PageBounds};
use kvasi_wasmtime::{Error, Limits, Rights, WasiKeyValueCtx, WasiKeyValueCtxBuilder};
use std::any::Any;
use std::path::Path;
use std::sync::Arc;

pub(crate) type Opened = Result<Box<dyn Backend>, Error>;

/// A back end under test.
pub(crate) struct Target {
    backend: Option<Box<dyn Backend>>,
    /// Opens it again after everything of it was dropped; `None` if nothing would be left.
    reopen: Option<Box<dyn Fn() -> Opened + Send + Sync>>,
    /// What must outlive it.
    _kept: Box<dyn Any + Send + Sync>,
}

impl Target {
    /// A back end that is gone when it is dropped.
    pub(crate) fn new(backend: Box<dyn Backend>) -> Target {
        Target { backend: Some(backend), reopen: None, _kept: Box::new(()) }
    }

    /// What can be opened again.
    pub(crate) fn reopened(open: impl Fn() -> Opened + Send + Sync + 'static) -> Result<Target, Error> {
        let backend = open()?;
        Ok(Target { reopen: Some(Box::new(open)), ..Target::new(backend) })
    }

    /// The engine on files.
    pub(crate) fn engine(dir: &Path) -> Result<Target, Error> {
        let dir = dir.to_owned();
        Target::reopened(move || Ok(Box::new(Store::open(&dir, Options::new().durability(kvasi::Durability::Os))?)))
    }

    /// The same, with something that is dropped after it.
    #[allow(dead_code, reason = "for tests")]
    pub(crate) fn keeping(self, kept: impl Any + Send + Sync) -> Target {
        Target { _kept: Box::new(kept), ..self }
    }

    fn backend(&self) -> &dyn Backend {
        self.backend.as_deref().unwrap()
    }

    /// What guests may rely on here.
    pub(crate) fn capabilities(&self) -> Capabilities {
        self.backend().capabilities()
    }

    pub(crate) fn bucket(&self, name: &str) -> Result<Arc<dyn LocalBucket>, Error> {
        self.backend().bucket(name)
    }

    #[allow(dead_code, reason = "a test throws its target away")]
    /// Deletes every key of the buckets that cases write to.
    pub(crate) fn clear(&self) -> Result<(), Error> {
        let bounds = PageBounds { keys_max: 1_000, bytes_max: 1 << 20, entries_max: 50_000 };
        for name in BUCKETS {
            let bucket = self.bucket(name)?;
            let mut after = None;
            loop {
                let page = bucket.list(after.as_deref(), bounds)?;
                bucket.delete_many(&page.keys.iter().map(|key| Key::from(&**key)).collect::<Vec<_>>())?;
                after = page.next;
                if after.is_none() {
                    break;
                }
            }
        }
        Ok(())
    }
}

/// A host with one target and guests of one language.
pub(crate) struct Host {
    language: Language,
    target: Target,
    ctx: WasiKeyValueCtx,
    /// Whether the target can enumerate its keys: if not, a case goes on without asking for that.
    lists: bool,
    /// Handles that a guest's table has room for.
    handles_max: usize,
}

/// The buckets that every case finds, by one name for guest and back end.
pub(crate) const BUCKETS: [&str; 6] = ["", "main", "other", "a", "a:b", "with/slash and space"];

impl Host {
    pub(crate) fn new(language: Language, target: Target) -> Host {
        let ctx = Host::context(&target).build();
        Host { language, target, ctx, lists: true, handles_max: TABLE_ENTRIES_MAX }
    }

    /// As [`new`](Host::new), of a target that cannot enumerate its keys.
    #[allow(dead_code, reason = "all that tests have can")]
    pub(crate) fn without_listing(language: Language, target: Target) -> Host {
        Host { lists: false, ..Host::new(language, target) }
    }

    fn context(target: &Target) -> WasiKeyValueCtxBuilder {
        let mut builder = WasiKeyValueCtx::builder();
        for name in BUCKETS {
            builder = builder.grant(name, target.bucket(name).unwrap(), Rights::ALL);
        }
        builder
    }

    /// A guest without anything open.
    pub(crate) fn bare_guest(&self) -> Guest {
        Guest::start(self.language, &self.ctx, self.lists, self.handles_max)
    }

    /// A guest with the bucket `main` in slot 0.
    pub(crate) fn guest(&self) -> Guest {
        let mut guest = self.bare_guest();
        guest.expect("open 0 main", "ok");
        guest
    }

    pub(crate) fn language(&self) -> Language {
        self.language
    }

    /// What guests may rely on here.
    pub(crate) fn capabilities(&self) -> Capabilities {
        self.target.capabilities()
    }

    pub(crate) fn bucket(&self, name: &str) -> Arc<dyn LocalBucket> {
        self.target.bucket(name).unwrap()
    }

    /// Whether a call goes over a network: then a case repeats no more than it must.
    pub(crate) fn waits(&self) -> bool {
        self.bucket("main").waits()
    }

    /// Changes what guests that start from here on may reach.
    pub(crate) fn configure(&mut self, change: impl FnOnce(WasiKeyValueCtxBuilder) -> WasiKeyValueCtxBuilder) {
        self.ctx = change(Host::context(&self.target)).build();
    }

    /// Changes the limits of guests that start from here on.
    pub(crate) fn limit(&mut self, change: impl FnOnce(&mut Limits)) {
        let mut limits = Limits::default();
        change(&mut limits);
        self.configure(|builder| builder.limits(limits));
    }

    /// Changes how many handles the binding may have in a table of guests that start from here on.
    pub(crate) fn limit_table(&mut self, handles_max: usize) {
        self.handles_max = handles_max;
    }

    /// Closes the back end and opens it again; `false`, having done nothing, where nothing would be left.
    pub(crate) fn restart(&mut self) -> bool {
        let Some(reopen) = &self.target.reopen else { return false };
        self.ctx = WasiKeyValueCtx::builder().build();
        drop(self.target.backend.take());
        self.target.backend = Some(reopen().unwrap());
        self.ctx = Host::context(&self.target).build();
        true
    }

    /// What the case ran on, unless that could not be opened again.
    #[allow(dead_code, reason = "a test throws it away")]
    pub(crate) fn into_target(self) -> Option<Target> {
        self.target.backend.is_some().then_some(self.target)
    }
}
