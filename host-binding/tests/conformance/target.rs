//! What a case runs on: a back end behind a context, and how to start guests over it.
//!
//! A new back end is a function of [`Target`]: a way to open it, twice where it is durable.

use crate::guest::{Guest, Language};
use kvasi::{Options, Store};
#[cfg(any(
    feature = "cosmosdb",
    feature = "dynamodb",
    feature = "etcd",
    feature = "firestore",
    feature = "memcached",
    feature = "redis"
))]
use kvasi_wasmtime::backend::remote::{Blocking, Policy, RemoteBackend, connect};
use kvasi_wasmtime::backend::{Backend, Capabilities, LocalBucket, Memory};
use kvasi_wasmtime::{Limits, Rights, WasiKeyValueCtx, WasiKeyValueCtxBuilder};
use std::sync::Arc;
use tempfile::TempDir;

/// A back end under test.
pub(crate) struct Target {
    backend: Option<Box<dyn Backend>>,
    /// Opens it again after everything of it was dropped; `None` if nothing would be left.
    reopen: Option<Box<dyn Fn() -> Box<dyn Backend> + Send + Sync>>,
    _dir: Option<TempDir>,
}

impl Target {
    /// The engine on files, in a directory of its own.
    pub(crate) fn engine() -> Target {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_owned();
        let open = move || -> Box<dyn Backend> {
            let options = Options::new().durability(kvasi::Durability::Os);
            Box::new(Store::open(&path, options).unwrap())
        };
        Target { backend: Some(open()), reopen: Some(Box::new(open)), _dir: Some(dir) }
    }

    /// The engine without files.
    pub(crate) fn memory() -> Target {
        Target { backend: Some(Box::new(Memory::new().unwrap())), reopen: None, _dir: None }
    }

    /// A service that runs already.
    #[cfg(any(
        feature = "cosmosdb",
        feature = "dynamodb",
        feature = "etcd",
        feature = "firestore",
        feature = "memcached",
        feature = "redis"
    ))]
    pub(crate) fn service(url: &str) -> Target {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let url = url.parse().unwrap();
        let service = runtime.block_on(connect(&url, Policy::default())).unwrap();
        Target { backend: Some(Box::new(Service { service, runtime })), reopen: None, _dir: None }
    }
}

/// A service for guests that are called synchronously.
#[cfg(any(
    feature = "cosmosdb",
    feature = "dynamodb",
    feature = "etcd",
    feature = "firestore",
    feature = "memcached",
    feature = "redis"
))]
struct Service {
    service: Arc<dyn RemoteBackend>,
    runtime: tokio::runtime::Runtime,
}

#[cfg(any(
    feature = "cosmosdb",
    feature = "dynamodb",
    feature = "etcd",
    feature = "firestore",
    feature = "memcached",
    feature = "redis"
))]
impl Backend for Service {
    fn capabilities(&self) -> Capabilities {
        self.service.capabilities()
    }

    fn bucket(&self, name: &str) -> Result<Arc<dyn LocalBucket>, kvasi_wasmtime::Error> {
        let bucket = self.service.bucket(name)?;
        Ok(Arc::new(Blocking::new(bucket, self.runtime.handle().clone())))
    }
}

/// A host with one target and guests of one language.
pub(crate) struct Host {
    language: Language,
    target: Target,
    ctx: WasiKeyValueCtx,
}

/// The buckets that every case finds, by one name for guest and back end.
const BUCKETS: [&str; 6] = ["", "main", "other", "a", "a:b", "with/slash and space"];

impl Host {
    pub(crate) fn new(language: Language, target: Target) -> Host {
        let ctx = Host::context(&target).build();
        Host { language, target, ctx }
    }

    fn context(target: &Target) -> WasiKeyValueCtxBuilder {
        let backend = target.backend.as_ref().unwrap();
        let mut builder = WasiKeyValueCtx::builder();
        for name in BUCKETS {
            builder = builder.grant(name, backend.bucket(name).unwrap(), Rights::ALL);
        }
        builder
    }

    /// A guest without anything open.
    pub(crate) fn bare_guest(&self) -> Guest {
        Guest::start(self.language, &self.ctx)
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
        self.target.backend.as_ref().unwrap().capabilities()
    }

    pub(crate) fn bucket(&self, name: &str) -> Arc<dyn LocalBucket> {
        self.target.backend.as_ref().unwrap().bucket(name).unwrap()
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

    /// Closes the back end and opens it again; `false`, having done nothing, where nothing would be left.
    pub(crate) fn restart(&mut self) -> bool {
        let Some(reopen) = &self.target.reopen else { return false };
        self.ctx = WasiKeyValueCtx::builder().build();
        drop(self.target.backend.take());
        self.target.backend = Some(reopen());
        self.ctx = Host::context(&self.target).build();
        true
    }
}
