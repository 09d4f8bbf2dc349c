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
//! [remote]                        # of buckets in services
//! timeout-ms = 5000               # from a call to its answer
//! attempts = 4
//!
//! [components.visits.grants]      # without any [components] every component has all rights on all buckets
//! "" = ["read", "write", "list", "atomics"]
//!
//! [limits]
//! value-bytes = 1048576
//! ```
//!
//! Flow: file -> [`Config::parse`] (shape, names; an error points at its line) -> flags of the command, over it ->
//! [`Config::open`] (stores) -> [`Opened::context`] (one component).
//! Invariants: 1. An unknown word is an error, never ignored. 2. A directory is opened once, whoever names it, and a service
//! has one set of connections.

use crate::backend::LocalBucket;
#[cfg(feature = "remote")]
use crate::backend::remote::Policy;
use crate::places::Places;
use crate::target::Target;
use crate::{Limits, Rights, WasiKeyValueCtx};
use kvasi::Durability;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;
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
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Read(path, error) => write!(f, "cannot read the configuration {}: {error}", path.display()),
            Error::Parse(text) => f.write_str(text),
            Error::Open(dir, error) => write!(f, "cannot open the store {}: {error}", dir.display()),
            Error::Bucket(name, error) => write!(f, "cannot open the bucket {name:?}: {error}"),
            Error::Service(target, error) => write!(f, "cannot use {target}: {error}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Read(_, error) => Some(error),
            Error::Open(_, error) => Some(error),
            Error::Bucket(_, error) | Error::Service(_, error) => Some(error),
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
    /// Buckets by the name that guests give to `open`.
    pub buckets: BTreeMap<String, BucketConfig>,
    components: Option<BTreeMap<String, ComponentConfig>>,
    limits: LimitsConfig,
    remote: RemoteConfig,
    #[serde(skip)]
    base: PathBuf,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ComponentConfig {
    #[serde(default)]
    grants: BTreeMap<Spanned<String>, Vec<RightName>>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum RightName {
    Read,
    Write,
    List,
    Atomics,
}

impl RightName {
    fn rights(self) -> Rights {
        match self {
            RightName::Read => Rights::READ,
            RightName::Write => Rights::WRITE,
            RightName::List => Rights::LIST,
            RightName::Atomics => Rights::ATOMICS,
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
    fn limits(self) -> Limits {
        let default = Limits::default();
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
        Config::parse(&text, base).map_err(|error| match error {
            Error::Parse(text) => Error::Parse(format!("{}: {text}", path.display())),
            other => other,
        })
    }

    /// Reads a configuration from its text; directories in it are relative to `base`.
    ///
    /// # Errors
    /// [`Error::Parse`], with the line and what was expected there.
    pub fn parse(text: &str, base: &Path) -> Result<Config, Error> {
        let mut config: Config = toml::from_str(text).map_err(|error| Error::Parse(error.to_string()))?;
        config.base = base.to_owned();
        config.check_grants(text)?;
        Ok(config)
    }

    /// A grant on a bucket that does not exist is a slip of the pen: better found here than by the component.
    fn check_grants(&self, text: &str) -> Result<(), Error> {
        let grants = |(component, settings): (_, &ComponentConfig)| {
            settings.grants.keys().map(move |name| (component, name.clone())).collect::<Vec<_>>()
        };
        let unknown = |(_, name): &(&String, Spanned<String>)| !self.buckets.contains_key(name.as_ref());
        let Some((component, name)) = self.components.iter().flatten().flat_map(grants).find(unknown) else {
            return Ok(());
        };
        let line = 1 + text[..name.span().start].matches('\n').count();
        let name = name.as_ref();
        Err(Error::Parse(format!(
            "line {line}: component {component:?} is granted {name:?}, but there is no bucket of that name: \
             add [buckets.{name:?}]"
        )))
    }

    /// Opens every store that a bucket names and every bucket in it, creating what is not there. Services are made ready, not
    /// asked: one that does not answer now may answer when a component calls.
    ///
    /// # Errors
    /// [`Error::Open`], [`Error::Bucket`], [`Error::Service`].
    pub fn open(self) -> Result<Opened, Error> {
        let mut places = Places::default();
        let mut buckets = BTreeMap::new();
        for (name, settings) in &self.buckets {
            let target = settings.store.as_ref().or(self.store.as_ref());
            let inner = settings.bucket.as_deref().unwrap_or(name);
            let durability = settings.durability.unwrap_or(self.durability);
            let bucket = match target {
                Some(Target::Service(url)) => places.of_service(url, inner, &self)?,
                Some(Target::Directory(dir)) => places.of_directory(&self.base.join(dir), inner, durability)?,
                None => places.of_directory(&self.base.join(STORE_DEFAULT), inner, durability)?,
            };
            buckets.insert(name.clone(), bucket);
        }
        Ok(Opened { config: self, places, buckets })
    }
}

/// A configuration whose stores are open.
pub struct Opened {
    config: Config,
    places: Places,
    buckets: BTreeMap<String, Arc<dyn LocalBucket>>,
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
        let mut builder =
            WasiKeyValueCtx::builder().limits(self.config.limits.limits()).hide_withheld(self.config.hide_withheld);
        for (name, bucket) in &self.buckets {
            builder = builder.grant(name, bucket.clone(), self.rights(component, name));
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
        assert_eq!(ctx.look_up("").ok().unwrap().rights, Rights::READ | Rights::WRITE);
        assert!(ctx.look_up("audit").is_err());
        assert!(opened.context("other").look_up("").is_err());
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
    fn a_target_of_no_kind_is_refused_at_its_line() {
        let error = parse("[buckets.a]\nstore = \"riak://h\"\n").unwrap_err().to_string();
        assert!(error.contains("line 2") && error.contains("riak") && error.contains("redis"), "{error}");
        let error = parse("store = \"redis://h:port\"\n").unwrap_err().to_string();
        assert!(error.contains("line 1") && error.contains("port"), "{error}");
        let error = parse("[remote]\ntimeout-ms = 0\n").unwrap_err().to_string();
        assert!(error.contains("line 2"), "{error}");
    }

    #[cfg(not(feature = "redis"))]
    #[test]
    fn a_service_that_this_build_has_not_is_refused_by_name() {
        let error =
            parse("[buckets.a]\nstore = \"redis://user:secret@h/?password=secret\"").unwrap().open().unwrap_err();
        let text = error.to_string();
        assert!(text.contains("redis://h") && !text.contains("secret"), "{text}");
    }
}
