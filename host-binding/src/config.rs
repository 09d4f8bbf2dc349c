//! The configuration file `kvasi.toml`: which buckets there are, where they live, who may use them, within which limits.
//!
//! ```toml
//! store = "kvasi-data"            # the default store: a directory, relative to this file, or the URL of a service
//! durability = "os"               # sync (default), interval, os, ephemeral (in memory; nothing is kept)
//! hide-withheld = false           # true: a name that is not granted looks like one that does not exist
//!
//! [buckets."" ]                   # the name guests give to `open`; this one is the default bucket
//! bucket = "default"              # its name in the store; by default the same name
//! [buckets.audit]
//! store = "audit-data"            # another directory
//! durability = "sync"
//! [buckets.shared]
//! store = "redis://cache.internal:6379"   # a service: see `backend`; what it keeps, and how surely, is its own matter
//!
//! [labels.team-a]                 # what `import team-a: wasi:keyvalue/store@...` opens, and no other name
//! "" = "shared"                   # the name guests give to `open`, and the bucket that it is
//!
//! [remote]                        # of buckets in services
//! timeout-ms = 5000               # from a call to its answer
//! attempts = 4
//!
//! [components.visits.grants]      # without any [components] every component has all rights on all buckets
//! "" = ["read", "write", "list", "atomics", "watch"]
//! [components.visits.limits]      # over those of [limits]
//! written-keys-per-second = 500
//!
//! [limits]                        # of each call, instance and component: `Limits`
//! value-bytes = 1048576
//!
//! [buckets.orders]
//! tenant = "acme"                 # only components of that tenant may be granted it
//! stored-bytes = 1073741824       # what the bucket may hold, in directories only
//! stored-keys = 1000000
//! [components.shop]
//! tenant = "acme"
//! [tenants.acme]                  # over all its buckets, and over all its components
//! stored-bytes = 2147483648
//! calls-at-once = 100
//! ```
//!
//! Flow: file -> [`Config::parse`] (shape, names; an error points at its line) -> flags of the command, over it ->
//! [`Config::open`] (stores) -> [`Opened::context`] (one component).
//! Invariants: 1. An unknown word is an error, never ignored. 2. A directory is opened once, whoever names it, and a service
//! has one set of connections. 3. All grants of a bucket count into one account. 4. No component reaches a bucket of another
//! tenant, whatever is granted.

use crate::backend::LocalBucket;
#[cfg(feature = "remote")]
use crate::backend::remote::Policy;
use crate::places::Places;
use crate::target::Target;
use crate::{Account, Gate, Limits, Metered, Rights, Usage, WasiKeyValueCtx};
use kvasi::Durability;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
#[cfg(feature = "remote")]
use std::time::Duration;
use toml::Spanned;

/// The directory of the default store where nothing else is said.
pub const STORE_DEFAULT: &str = "kvasi-data";

/// What is wrong with a configuration, for the person who wrote it.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The file cannot be read.
    Read(PathBuf, std::io::Error),
    /// The file does not say what a configuration says: the text shows the line.
    Parse(String),
    /// A store did not open: the directory, and the engine's reason.
    Open(PathBuf, kvasi::Error),
    /// A bucket's back end refused it.
    Bucket(String, crate::Error),
    /// A service could not be made ready: its URL without credentials, and why.
    Service(String, crate::Error),
    /// One of these two, of a store that the file names: the file, if there is one, and the line.
    At(Option<PathBuf>, usize, Box<Error>),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Read(path, error) => write!(f, "cannot read the configuration {}: {error}", path.display()),
            Error::Parse(text) => f.write_str(text),
            Error::Open(dir, error) => write!(f, "cannot open the store {}: {error}", dir.display()),
            Error::Bucket(name, error) => write!(f, "cannot open the bucket {name:?}: {error}"),
            Error::Service(target, error) => write!(f, "cannot use {target}: {error}"),
            Error::At(None, line, error) => write!(f, "line {line}: {error}"),
            Error::At(Some(file), line, error) => write!(f, "{}: line {line}: {error}", file.display()),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Read(_, error) => Some(error),
            Error::Open(_, error) => Some(error),
            Error::Bucket(_, error) | Error::Service(_, error) => Some(error),
            Error::At(_, _, error) => Some(error),
            Error::Parse(_) => None,
        }
    }
}

/// What a write of a bucket has survived when it is acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DurabilityName {
    /// A power cut.
    #[default]
    Sync,
    /// The death of the process; a power cut may take the last 10 ms.
    Interval,
    /// The death of the process.
    Os,
    /// Nothing: kept in memory, no file is made.
    Ephemeral,
}

impl DurabilityName {
    pub(crate) fn of_engine(self) -> Durability {
        match self {
            DurabilityName::Sync => Durability::Sync,
            DurabilityName::Interval => Durability::INTERVAL,
            DurabilityName::Os => Durability::Os,
            DurabilityName::Ephemeral => Durability::Ephemeral,
        }
    }
}

/// Where one bucket lives.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct BucketConfig {
    /// Its store; the default store for `None`.
    pub store: Option<Target>,
    /// Its name in the store; for `None` the name that guests use.
    pub bucket: Option<String>,
    /// Its durability; for `None` that of the whole configuration.
    pub durability: Option<DurabilityName>,
    /// Whose it is; anybody's for `None`.
    pub tenant: Option<String>,
    /// Most bytes of keys and values that it may hold; any for `None`.
    pub stored_bytes: Option<u64>,
    /// Most keys that it may hold; any for `None`.
    pub stored_keys: Option<u64>,
}

impl BucketConfig {
    fn has_quota(&self) -> bool {
        self.stored_bytes.is_some() || self.stored_keys.is_some()
    }
}

/// A configuration: read from a file, then changed by whoever runs a component.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Config {
    /// The default store.
    pub store: Option<Target>,
    /// The durability of buckets that name none.
    pub durability: DurabilityName,
    /// Whether a name that is not granted answers as one that does not exist.
    pub hide_withheld: bool,
    /// Whether calls are counted and timed by the recorder of `metrics` that is installed when a component's context is built.
    #[cfg(feature = "metrics")]
    pub metrics: bool,
    /// Buckets by the name that guests give to `open`.
    pub buckets: BTreeMap<String, BucketConfig>,
    /// By the label of an import: names that guests give to `open`, and the buckets they are.
    labels: BTreeMap<String, BTreeMap<String, Spanned<String>>>,
    components: Option<BTreeMap<String, ComponentConfig>>,
    tenants: BTreeMap<String, TenantConfig>,
    limits: LimitsConfig,
    remote: RemoteConfig,
    #[serde(skip)]
    base: PathBuf,
    #[serde(skip)]
    file: Option<PathBuf>,
    #[serde(skip)]
    stores: Stores,
}

/// Where the file names stores: the default one, and those of buckets.
#[derive(Clone, Debug, Default)]
struct Stores {
    default: Option<(Target, usize)>,
    buckets: BTreeMap<String, (Target, usize)>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ComponentConfig {
    tenant: Option<Spanned<String>>,
    #[serde(default)]
    grants: BTreeMap<Spanned<String>, Vec<RightName>>,
    #[serde(default)]
    limits: LimitsConfig,
}

/// What all buckets of a tenant may hold, and what all its components may ask.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct TenantConfig {
    stored_bytes: Option<u64>,
    stored_keys: Option<u64>,
    calls_at_once: Option<NonZeroUsize>,
    queued_bytes: Option<NonZeroUsize>,
    keys_per_second: Option<NonZeroU32>,
    written_keys_per_second: Option<NonZeroU32>,
}

impl TenantConfig {
    /// Where nothing is said, the tenant as such is not bounded: its components are.
    fn gate(&self) -> Gate {
        Gate::new(&Limits {
            calls_at_once_max: self.calls_at_once.map_or(usize::MAX, NonZeroUsize::get),
            queued_bytes_max: self.queued_bytes.map_or(usize::MAX, NonZeroUsize::get),
            keys_per_second_max: self.keys_per_second,
            written_keys_per_second_max: self.written_keys_per_second,
            ..Limits::default()
        })
    }

    fn account(&self) -> Option<Account> {
        account(self.stored_bytes, self.stored_keys)
    }
}

fn account(bytes: Option<u64>, keys: Option<u64>) -> Option<Account> {
    let any = Usage::UNBOUNDED;
    let max = Usage { bytes: bytes.unwrap_or(any.bytes), keys: keys.unwrap_or(any.keys) };
    (max != any).then(|| Account::new(max))
}

/// Where a bucket's settings stand, for errors that point at them.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Lines {
    store: Option<Spanned<Target>>,
    buckets: BTreeMap<String, BucketLines>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct BucketLines {
    store: Option<Spanned<Target>>,
    tenant: Option<Spanned<String>>,
    stored_bytes: Option<Spanned<u64>>,
    stored_keys: Option<Spanned<u64>>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum RightName {
    Read,
    Write,
    List,
    Atomics,
    Watch,
}

impl RightName {
    fn rights(self) -> Rights {
        match self {
            RightName::Read => Rights::READ,
            RightName::Write => Rights::WRITE,
            RightName::List => Rights::LIST,
            RightName::Atomics => Rights::ATOMICS,
            RightName::Watch => Rights::WATCH,
        }
    }
}

/// The fields of [`Limits`], by the names of the file; what is left out keeps its default.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct LimitsConfig {
    key_bytes: Option<usize>,
    value_bytes: Option<usize>,
    batch_keys: Option<usize>,
    batch_bytes: Option<usize>,
    reply_bytes: Option<usize>,
    page_keys: Option<usize>,
    page_bytes: Option<usize>,
    page_entries: Option<usize>,
    open_buckets: Option<usize>,
    cas_handles: Option<usize>,
    calls_at_once: Option<NonZeroUsize>,
    queued_bytes: Option<NonZeroUsize>,
    keys_per_second: Option<NonZeroU32>,
    written_keys_per_second: Option<NonZeroU32>,
}

/// How buckets in services are asked; what is left out keeps its default.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[cfg_attr(not(feature = "remote"), expect(dead_code, reason = "a build without services reads it all the same"))]
struct RemoteConfig {
    timeout_ms: Option<NonZeroU32>,
    attempts: Option<NonZeroU32>,
}

#[cfg(feature = "remote")]
impl RemoteConfig {
    fn policy(self) -> Policy {
        let default = Policy::default();
        let timeout = self.timeout_ms.map(|ms| Duration::from_millis(ms.get().into()));
        Policy {
            timeout: timeout.unwrap_or(default.timeout),
            attempts_max: self.attempts.map_or(default.attempts_max, NonZeroU32::get),
            ..default
        }
    }
}

impl LimitsConfig {
    /// These limits over `default`.
    fn limits(self, default: Limits) -> Limits {
        Limits {
            key_bytes_max: self.key_bytes.unwrap_or(default.key_bytes_max),
            name_bytes_max: default.name_bytes_max,
            value_bytes_max: self.value_bytes.unwrap_or(default.value_bytes_max),
            batch_keys_max: self.batch_keys.unwrap_or(default.batch_keys_max),
            batch_bytes_max: self.batch_bytes.unwrap_or(default.batch_bytes_max),
            reply_bytes_max: self.reply_bytes.unwrap_or(default.reply_bytes_max),
            // A page of no keys would never end.
            page_keys_max: self.page_keys.unwrap_or(default.page_keys_max).max(1),
            page_bytes_max: self.page_bytes.unwrap_or(default.page_bytes_max),
            page_entries_max: self.page_entries.unwrap_or(default.page_entries_max).max(1),
            open_buckets_max: self.open_buckets.unwrap_or(default.open_buckets_max),
            cas_handles_max: self.cas_handles.unwrap_or(default.cas_handles_max),
            calls_at_once_max: self.calls_at_once.map_or(default.calls_at_once_max, NonZeroUsize::get),
            queued_bytes_max: self.queued_bytes.map_or(default.queued_bytes_max, NonZeroUsize::get),
            keys_per_second_max: self.keys_per_second.or(default.keys_per_second_max),
            written_keys_per_second_max: self.written_keys_per_second.or(default.written_keys_per_second_max),
        }
    }
}

impl Config {
    /// How services are asked.
    #[cfg(feature = "remote")]
    pub(crate) fn policy(&self) -> Policy {
        self.remote.policy()
    }

    /// Reads a configuration file. Directories in it are relative to where it lies.
    ///
    /// # Errors
    /// [`Error::Read`], [`Error::Parse`].
    pub fn read(path: &Path) -> Result<Config, Error> {
        let text = std::fs::read_to_string(path).map_err(|error| Error::Read(path.to_owned(), error))?;
        let base = path.parent().unwrap_or(Path::new(""));
        let config = Config::parse(&text, base).map_err(|error| match error {
            Error::Parse(text) => Error::Parse(format!("{}: {text}", path.display())),
            other => other,
        })?;
        Ok(Config { file: Some(path.to_owned()), ..config })
    }

    /// Reads a configuration from its text; directories in it are relative to `base`.
    ///
    /// # Errors
    /// [`Error::Parse`], with the line and what was expected there.
    pub fn parse(text: &str, base: &Path) -> Result<Config, Error> {
        let mut config: Config = toml::from_str(text).map_err(|error| Error::Parse(error.to_string()))?;
        config.base = base.to_owned();
        config.stores = Stores::of(text);
        config.check_labels(text)?;
        config.check_grants(text)?;
        config.check_tenants(text)?;
        config.check_quotas(text)?;
        Ok(config)
    }

    fn check_labels(&self, text: &str) -> Result<(), Error> {
        for (label, names) in &self.labels {
            if let Some(bucket) = names.values().find(|bucket| !self.buckets.contains_key(bucket.as_ref())) {
                let name = bucket.as_ref();
                let what = format!(
                    "label {label:?} opens {name:?}, but there is no bucket of that name: add [buckets.{name:?}]"
                );
                return Err(at_line(text, bucket.span().start, what));
            }
        }
        Ok(())
    }

    /// A grant on a bucket that does not exist is a slip of the pen: better found here than by the component. So is one that
    /// crosses from tenant to tenant.
    fn check_grants(&self, text: &str) -> Result<(), Error> {
        for (component, settings) in self.components.iter().flatten() {
            let of_component = settings.tenant.as_ref().map(AsRef::as_ref);
            for name in settings.grants.keys() {
                let fail = |what: String| {
                    let what = format!("component {component:?} is granted {:?}, {what}", name.as_ref());
                    Err(at_line(text, name.span().start, what))
                };
                let Some(bucket) = self.buckets.get(name.as_ref()) else {
                    return fail(format!("but there is no bucket of that name: add [buckets.{:?}]", name.as_ref()));
                };
                if bucket.tenant.as_ref() != of_component {
                    let whose =
                        |tenant: Option<&String>| tenant.map_or("no tenant".to_owned(), |t| format!("tenant {t:?}"));
                    let (bucket, component) = (whose(bucket.tenant.as_ref()), whose(of_component));
                    return fail(format!("but the bucket is of {bucket} and the component of {component}"));
                }
            }
        }
        Ok(())
    }

    /// Every tenant that is named is there; and who has tenants says which component may do what.
    fn check_tenants(&self, text: &str) -> Result<(), Error> {
        let lines: Lines = toml::from_str(text).unwrap_or_default();
        let of_buckets = lines.buckets.values().filter_map(|bucket| bucket.tenant.as_ref());
        let of_components = self.components.iter().flatten().filter_map(|(_, settings)| settings.tenant.as_ref());
        for tenant in of_buckets.chain(of_components) {
            let name = tenant.as_ref();
            if !self.tenants.contains_key(name) {
                let what = format!("there is no tenant {name:?}: add [tenants.{name:?}]");
                return Err(at_line(text, tenant.span().start, what));
            }
            if self.components.is_none() {
                let what = "a bucket has a tenant, but no component is granted anything: add [components.NAME.grants]";
                return Err(at_line(text, tenant.span().start, what.to_owned()));
            }
        }
        Ok(())
    }

    /// What a service holds is not ours to count: others write there too.
    fn check_quotas(&self, text: &str) -> Result<(), Error> {
        let Some((name, _)) = self.buckets.iter().find(|(_, bucket)| self.counts_a_service(bucket)) else {
            return Ok(());
        };
        let lines: Lines = toml::from_str(text).unwrap_or_default();
        let lines = lines.buckets.get(name);
        let at = lines.and_then(|lines| {
            let quota = [lines.stored_bytes.as_ref(), lines.stored_keys.as_ref()];
            quota
                .into_iter()
                .flatten()
                .map(|value| value.span().start)
                .chain(lines.tenant.as_ref().map(|t| t.span().start))
                .next()
        });
        let error = counted_service(name);
        Err(at.map_or(Error::Parse(error.clone()), |at| at_line(text, at, error)))
    }

    fn counts_a_service(&self, bucket: &BucketConfig) -> bool {
        let service = matches!(bucket.store.as_ref().or(self.store.as_ref()), Some(Target::Service(_)));
        let tenant = bucket.tenant.as_ref().and_then(|tenant| self.tenants.get(tenant));
        service && (bucket.has_quota() || tenant.is_some_and(|tenant| tenant.account().is_some()))
    }

    /// Opens every store that a bucket names and every bucket in it, creating what is not there. Services are made ready, not
    /// asked: one that does not answer now may answer when a component calls.
    ///
    /// # Errors
    /// [`Error::Open`], [`Error::Bucket`], [`Error::Service`].
    pub fn open(self) -> Result<Opened, Error> {
        let mut places = Places::default();
        let mut buckets: BTreeMap<String, Arc<dyn LocalBucket>> = BTreeMap::new();
        let accounts: BTreeMap<&String, Account> =
            self.tenants.iter().filter_map(|(name, tenant)| Some((name, tenant.account()?))).collect();
        for (name, settings) in &self.buckets {
            if let Some(other) = self.shadowed(name) {
                return Err(Error::Parse(format!(
                    "the buckets {other:?} and {name:?} are one bucket of one store, and one has a quota or a tenant that \
                     the other would get around: name it once"
                )));
            }
            if self.counts_a_service(settings) {
                return Err(Error::Parse(counted_service(name)));
            }
            let inner = settings.bucket.as_deref().unwrap_or(name);
            let durability = settings.durability.unwrap_or(self.durability);
            let bucket = match self.target(settings) {
                Target::Service(url) => places.of_service(&url, inner, &self),
                Target::Directory(dir) => places.of_directory(&dir, inner, durability),
            };
            let bucket = bucket.map_err(|error| match (error, self.line(name, settings)) {
                // A directory says enough by its name.
                (error @ Error::Open(..), _) | (error, None) => error,
                (error, Some(line)) => Error::At(self.file.clone(), line, Box::new(error)),
            })?;
            let own = account(settings.stored_bytes, settings.stored_keys);
            let tenant = settings.tenant.as_ref().and_then(|tenant| accounts.get(tenant)).cloned();
            let counts: Vec<Account> = own.into_iter().chain(tenant).collect();
            let bucket: Arc<dyn LocalBucket> = if counts.is_empty() {
                bucket
            } else {
                Arc::new(Metered::new(bucket, counts).map_err(|error| Error::Bucket(name.clone(), error))?)
            };
            buckets.insert(name.clone(), bucket);
        }
        let gates = self.tenants.iter().map(|(name, tenant)| (name.clone(), tenant.gate())).collect();
        Ok(Opened { config: self, places, buckets, gates, contexts: Mutex::default() })
    }

    /// Where a bucket lives, a directory with the base before it.
    fn target(&self, bucket: &BucketConfig) -> Target {
        match bucket.store.as_ref().or(self.store.as_ref()) {
            Some(target) => target.relative_to(&self.base),
            None => Target::Directory(self.base.join(STORE_DEFAULT)),
        }
    }

    /// The line that says where a bucket lives, unless something else than the file has said it since.
    fn line(&self, name: &str, bucket: &BucketConfig) -> Option<usize> {
        let (target, said) = match &bucket.store {
            Some(target) => (target, self.stores.buckets.get(name)?),
            None => (self.store.as_ref()?, self.stores.default.as_ref()?),
        };
        (target == &said.0).then_some(said.1)
    }

    /// Another name of the same bucket, where one of the two is bounded or somebody's.
    fn shadowed(&self, name: &str) -> Option<&String> {
        let place = |name: &str, bucket: &BucketConfig| {
            (self.target(bucket), bucket.bucket.clone().unwrap_or_else(|| name.to_owned()))
        };
        let bounded = |bucket: &BucketConfig| bucket.has_quota() || bucket.tenant.is_some();
        let this = &self.buckets[name];
        let same = |(other, bucket): &(&String, &BucketConfig)| {
            *other != name && (bounded(bucket) || bounded(this)) && place(other, bucket) == place(name, this)
        };
        self.buckets.iter().find(same).map(|(other, _)| other)
    }
}

impl Stores {
    fn of(text: &str) -> Self {
        let lines: Lines = toml::from_str(text).unwrap_or_default();
        let place = |target: Spanned<Target>| {
            let line = line_of(text, target.span().start);
            (target.into_inner(), line)
        };
        let buckets = lines.buckets.into_iter().filter_map(|(name, bucket)| Some((name, place(bucket.store?))));
        Stores { buckets: buckets.collect(), default: lines.store.map(place) }
    }
}

fn line_of(text: &str, at: usize) -> usize {
    1 + text[..at].matches('\n').count()
}

#[cold]
fn at_line(text: &str, at: usize, what: String) -> Error {
    Error::Parse(format!("line {}: {what}", line_of(text, at)))
}

fn counted_service(name: &str) -> String {
    format!(
        "the bucket {name:?} is in a service, and a quota counts what is in a directory only: bound it in the service"
    )
}

/// A configuration whose stores are open.
pub struct Opened {
    config: Config,
    places: Places,
    buckets: BTreeMap<String, Arc<dyn LocalBucket>>,
    /// Of the tenants.
    gates: BTreeMap<String, Gate>,
    /// Of the components asked for so far: one each, for the limits that its instances share.
    contexts: Mutex<BTreeMap<String, WasiKeyValueCtx>>,
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opened").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Opened {
    /// What the component of that name may reach. Without `[components]` in the file that is everything; with it, a
    /// component that is not listed may open nothing.
    pub fn context(&self, component: &str) -> WasiKeyValueCtx {
        let mut contexts = self.contexts.lock().unwrap_or_else(PoisonError::into_inner);
        contexts.entry(component.to_owned()).or_insert_with(|| self.new_context(component)).clone()
    }

    fn new_context(&self, component: &str) -> WasiKeyValueCtx {
        let settings = self.config.components.as_ref().and_then(|components| components.get(component));
        let mut limits = self.config.limits.limits(Limits::default());
        if let Some(settings) = settings {
            limits = settings.limits.limits(limits);
        }
        let mut builder = WasiKeyValueCtx::builder().limits(limits).hide_withheld(self.config.hide_withheld);
        #[cfg(feature = "metrics")]
        {
            builder = builder.metrics(self.config.metrics);
        }
        let tenant = settings.and_then(|settings| settings.tenant.as_ref());
        if let Some(gate) = tenant.and_then(|tenant| self.gates.get(tenant.as_ref())) {
            builder = builder.tenant(gate.clone());
        }
        for (name, bucket) in &self.buckets {
            builder = builder.grant(name, bucket.clone(), self.rights(component, name));
        }
        for (label, names) in &self.config.labels {
            for (name, bucket) in names {
                builder = builder.label(label, name, bucket.as_ref());
            }
        }
        builder.build()
    }

    /// Makes everything acknowledged so far survive a power cut.
    ///
    /// # Errors
    /// The engine's, of the first store that fails.
    pub fn sync(&self) -> Result<(), kvasi::Error> {
        self.places.sync()
    }

    fn rights(&self, component: &str, bucket: &str) -> Rights {
        let Some(components) = &self.config.components else { return Rights::ALL };
        let grants = components.get(component).map(|settings| &settings.grants);
        let rights = grants.into_iter().flatten().find(|(name, _)| name.as_ref() == bucket);
        rights.map_or(Rights::NONE, |(_, rights)| rights.iter().fold(Rights::NONE, |all, right| all | right.rights()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, Error> {
        Config::parse(text, Path::new(""))
    }

    #[test]
    fn a_whole_file_is_understood() {
        let config = parse(
            r#"
            store = "data"
            durability = "ephemeral"
            hide-withheld = true
            [buckets.""]
            bucket = "default"
            [buckets.audit]
            store = "audit"
            [components.visits.grants]
            "" = ["read", "write"]
            [limits]
            value-bytes = 10
            "#,
        )
        .unwrap();
        let opened = config.open().unwrap();
        let ctx = opened.context("visits");
        assert_eq!(ctx.limits().value_bytes_max, 10);
        assert_eq!(ctx.look_up(None, "").ok().unwrap().rights, Rights::READ | Rights::WRITE);
        assert!(ctx.look_up(None, "audit").is_err());
        assert!(opened.context("other").look_up(None, "").is_err());
    }

    #[test]
    fn a_label_opens_its_own_names_with_the_grants_of_the_buckets() {
        let config = parse(
            r#"
            durability = "ephemeral"
            [buckets.""]
            bucket = "plain"
            [buckets.a]
            [buckets.b]
            [labels.team-a]
            "" = "a"
            main = "b"
            [components.visits.grants]
            "" = ["read"]
            a = ["read", "write"]
            "#,
        )
        .unwrap();
        let ctx = config.open().unwrap().context("visits");
        let open =
            |label, name| ctx.look_up(label, name).map(|grant| (grant.bucket.identity().to_owned(), grant.rights));
        assert_eq!(open(Some("team-a"), ""), Ok(("a".to_owned(), Rights::READ | Rights::WRITE)));
        assert_eq!(open(Some("team-a"), "main"), Err(crate::error::Refusal::AccessDenied));
        assert_eq!(open(Some("team-a"), "a"), Err(crate::error::Refusal::NoSuchStore));
        assert_eq!(open(Some("other"), ""), Ok(("plain".to_owned(), Rights::READ)));
        assert_eq!(open(None, ""), Ok(("plain".to_owned(), Rights::READ)));
        let error = parse("[buckets.a]\n[labels.x]\n\"\" = \"b\"\n").unwrap_err().to_string();
        assert!(error.contains("line 3") && error.contains("\"x\"") && error.contains("\"b\""), "{error}");
    }

    #[test]
    fn errors_point_at_the_line() {
        let error = parse("store = \"x\"\ndurability = \"safe\"\n").unwrap_err().to_string();
        assert!(error.contains("line 2") && error.contains("safe") && error.contains("sync"), "{error}");
        let error = parse("[buckets.a]\nbuckets = \"b\"\n").unwrap_err().to_string();
        assert!(error.contains("line 2") && error.contains("buckets"), "{error}");
        let error = parse("[buckets.a]\n[components.c.grants]\nb = [\"read\"]\n").unwrap_err().to_string();
        assert!(error.contains("line 3") && error.contains("\"b\""), "{error}");
    }

    #[test]
    fn tenants_quotas_and_limits_are_understood() {
        let file = r#"
            durability = "ephemeral"
            [buckets.orders]
            tenant = "acme"
            stored-keys = 2
            [buckets.notes]
            tenant = "acme"
            [tenants.acme]
            stored-bytes = 10
            calls-at-once = 3
            [components.shop]
            tenant = "acme"
            grants = { orders = ["read", "write", "watch"], notes = ["write"] }
            limits = { value-bytes = 7, written-keys-per-second = 5 }
            [components.other]
            [limits]
            value-bytes = 9
            cas-handles = 8
            "#;
        let opened = parse(file).unwrap().open().unwrap();
        let ctx = opened.context("shop");
        let limits = ctx.limits();
        assert_eq!((limits.value_bytes_max, limits.cas_handles_max), (7, 8), "a component's limits over those of all");
        assert_eq!(limits.written_keys_per_second_max.map(NonZeroU32::get), Some(5));
        assert_eq!(opened.context("other").limits().value_bytes_max, 9);
        let grant = |name: &str| ctx.look_up(None, name).ok().unwrap();
        assert!(grant("orders").rights.contains(Rights::WATCH) && !grant("notes").rights.contains(Rights::READ));
        let (orders, notes) = (&grant("orders").bucket, &grant("notes").bucket);
        orders.set("a", b"1").unwrap();
        orders.set("b", b"1").unwrap();
        assert_eq!(orders.set("c", b"").unwrap_err().code(), crate::Code::Quota, "two keys, says the bucket");
        notes.set("c", b"12345").unwrap();
        assert_eq!(notes.set("c", b"123456").unwrap_err().code(), crate::Code::Quota, "ten bytes, says the tenant");
    }

    #[test]
    fn limits_that_cannot_be_meant_are_refused_at_their_line() {
        let tenant = "[buckets.a]\ntenant = \"t\"\n";
        for (text, line, words) in [
            ("[limits]\nkeys-per-second = 0\n", 2, &["nonzero"][..]),
            ("[limits]\nvalue-bytes = -1\n", 2, &["-1"]),
            ("[buckets.a]\nstored-bytes = \"1 GiB\"\n", 2, &["1 GiB"]),
            ("[tenants.t]\nvalue-bytes = 1\n", 2, &["value-bytes", "stored-bytes"]),
            (tenant, 2, &["\"t\"", "[tenants"]),
            ("[components.c]\ntenant = \"t\"\n", 2, &["\"t\""]),
            (&format!("{tenant}[tenants.t]\n"), 2, &["[components"]),
            (&format!("{tenant}[tenants.t]\n[components.c.grants]\na = [\"read\"]\n"), 5, &["no tenant", "\"t\""]),
            ("[buckets.b]\n[tenants.t]\n[components.c]\ntenant = \"t\"\ngrants.b = [\"read\"]\n", 5, &["no tenant"]),
            ("[buckets.a]\nstore = \"redis://h\"\nstored-keys = 1\n", 3, &["\"a\"", "service"]),
            (
                "[tenants.t]\nstored-keys = 1\n[buckets.a]\nstore = \"redis://h\"\ntenant = \"t\"\n[components.c]\n",
                5,
                &["\"a\"", "service"],
            ),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(&format!("line {line}")), "{text}{error}");
            assert!(words.iter().all(|word| error.contains(word)), "{text}{error}");
        }
    }

    #[test]
    fn a_quota_is_not_got_around_by_a_second_name() {
        let text = "durability = \"ephemeral\"\n[buckets.a]\nstored-keys = 1\n[buckets.b]\nbucket = \"a\"\n";
        let error = parse(text).unwrap().open().unwrap_err().to_string();
        assert!(error.contains("\"a\"") && error.contains("\"b\""), "{error}");
    }

    #[test]
    fn a_target_of_no_kind_is_refused_at_its_line() {
        let error = parse("[buckets.a]\nstore = \"riak://h\"\n").unwrap_err().to_string();
        assert!(error.contains("line 2") && error.contains("riak") && error.contains("redis"), "{error}");
        let error = parse("store = \"redis://h:port\"\n").unwrap_err().to_string();
        assert!(error.contains("line 1") && error.contains("port"), "{error}");
        let error = parse("[buckets.a]\n\nstore = \"dynamodb://table?regoin=x\"\n").unwrap_err().to_string();
        assert!(error.contains("line 3") && error.contains("regoin") && error.contains("region"), "{error}");
        let error = parse("[remote]\ntimeout-ms = 0\n").unwrap_err().to_string();
        assert!(error.contains("line 2"), "{error}");
    }

    #[cfg(not(feature = "redis"))]
    #[test]
    fn a_service_that_this_build_has_not_is_refused_by_name() {
        let error = parse("[buckets.a]\nstore = \"redis://user:secret@h/?prefix=secret\"").unwrap().open().unwrap_err();
        let text = error.to_string();
        assert!(text.contains("line 2") && text.contains("redis://h") && !text.contains("secret"), "{text}");
    }

    #[cfg(feature = "redis")]
    #[test]
    fn a_service_that_cannot_be_made_ready_is_named_with_the_line_and_without_the_password() {
        for (store, words) in [
            ("redis://user:secret@h?prefix={", "braces"),
            ("rediss://user:secret@h?ca=none.pem", "ca=/base/none.pem: No such file"),
        ] {
            for text in [format!("[buckets.a]\n\nstore = {store:?}"), format!("\n\nstore = {store:?}\n[buckets.a]")] {
                let config = Config::parse(&text, Path::new("/base")).unwrap();
                let error = config.open().unwrap_err().to_string();
                assert!(error.starts_with("line 3: ") && error.contains(words), "{error}");
                assert!(!error.contains("secret"), "{error}");
            }
        }
        // What was said instead of the file is not in the file.
        let mut config = parse("store = \"redis://h?prefix={\"\n[buckets.a]\n").unwrap();
        config.store = Some("redis://other?prefix={".parse().unwrap());
        assert!(!config.open().unwrap_err().to_string().contains("line"));
    }
}
