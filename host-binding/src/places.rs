//! What a configuration opens: each directory and each service once, whichever buckets name them.
//!
//! Flow: `config` -> [`Places`] -> buckets. Connections to services live on a thread of their own, which ends with the places.

use crate::backend::LocalBucket;
#[cfg(feature = "remote")]
use crate::backend::remote::{self, Blocking, RemoteBackend};
use crate::config::{Config, DurabilityName, Error};
use crate::target::Target;
use kvasi::{Options, Store};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use url::Url;

/// What is open: each directory and each service once.
#[derive(Default)]
pub(crate) struct Places {
    /// By directory; all ephemeral buckets share one store in memory, which stands under none.
    stores: BTreeMap<Option<PathBuf>, Store>,
    #[cfg(feature = "remote")]
    services: BTreeMap<String, Arc<dyn RemoteBackend>>,
    /// Drives the connections to services; made with the first one.
    #[cfg(feature = "remote")]
    runtime: Option<Runtime>,
}

impl Places {
    /// A bucket of the store in `dir`, both made if they are not there.
    pub(crate) fn of_directory(
        &mut self,
        dir: &Path,
        name: &str,
        durability: DurabilityName,
    ) -> Result<Arc<dyn LocalBucket>, Error> {
        let store = self.store(dir, durability)?;
        let bucket = Store::bucket(&store, name).map_err(|error| Error::Bucket(name.to_owned(), error.into()))?;
        Ok(match durability {
            DurabilityName::Ephemeral => Arc::new(bucket),
            durability => Arc::new(bucket.with_durability(durability.of_engine())),
        })
    }

    fn store(&mut self, dir: &Path, durability: DurabilityName) -> Result<Store, Error> {
        let dir = (durability != DurabilityName::Ephemeral).then(|| dir.to_owned());
        if let Some(store) = self.stores.get(&dir) {
            return Ok(store.clone());
        }
        let store = match &dir {
            None => Store::in_memory(Options::new()),
            Some(dir) => Store::open(dir, Options::new().durability(durability.of_engine())),
        };
        let store = store.map_err(|error| Error::Open(dir.clone().unwrap_or_default(), error))?;
        self.stores.insert(dir, store.clone());
        Ok(store)
    }

    /// A bucket of a service.
    #[cfg(feature = "remote")]
    pub(crate) fn of_service(&mut self, url: &Url, name: &str, config: &Config) -> Result<Arc<dyn LocalBucket>, Error> {
        let fail = |error| Error::Service(Target::Service(url.clone()).to_string(), error);
        let runtime = match &self.runtime {
            Some(runtime) => runtime,
            None => self.runtime.insert(Runtime::new().map_err(fail)?),
        };
        let driver = runtime.0.as_ref().map(|runtime| runtime.handle().clone());
        let driver = driver.ok_or_else(|| fail(crate::Error::new(crate::Code::Io)))?;
        let service = match self.services.get(url.as_str()) {
            Some(service) => service.clone(),
            None => {
                let connected = driver.block_on(remote::connect(url, config.policy()));
                let service = connected.map_err(fail)?;
                self.services.insert(url.to_string(), service.clone());
                service
            }
        };
        let bucket = service.bucket(name).map_err(|error| Error::Bucket(name.to_owned(), error))?;
        Ok(Arc::new(Blocking::new(bucket, driver)))
    }

    #[cfg(not(feature = "remote"))]
    #[expect(clippy::unused_self, reason = "as with the feature")]
    pub(crate) fn of_service(
        &mut self,
        url: &Url,
        _name: &str,
        _config: &Config,
    ) -> Result<Arc<dyn LocalBucket>, Error> {
        Err(Error::Service(Target::Service(url.clone()).to_string(), crate::Error::new(crate::Code::Unsupported)))
    }
}

impl Places {
    /// Makes everything acknowledged so far in directories survive a power cut.
    pub(crate) fn sync(&self) -> Result<(), kvasi::Error> {
        self.stores.values().try_for_each(Store::sync)
    }
}

/// The threads that connections live on.
#[cfg(feature = "remote")]
struct Runtime(Option<tokio::runtime::Runtime>);

#[cfg(feature = "remote")]
impl Runtime {
    fn new() -> Result<Self, crate::Error> {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let built = builder.worker_threads(1).thread_name("kvasi-remote").enable_all().build();
        Ok(Runtime(Some(built.map_err(|error| crate::Error::with_detail(crate::Code::Io, error))?)))
    }
}

#[cfg(feature = "remote")]
impl Drop for Runtime {
    /// Without waiting for the threads, which tokio does not allow where a host drops a configuration in async code.
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}
