//! The command line: what it says, in types. Nothing is opened here.

use crate::compiled::Compiled;
use crate::conformance::suite::guest::Language;
use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use kvasi_wasmtime::Target;
use kvasi_wasmtime::config::{DurabilityName, STORE_DEFAULT};
#[cfg(feature = "serve")]
use std::net::SocketAddr;
#[cfg(feature = "serve")]
use std::num::NonZeroU32;
use std::num::NonZeroUsize;
use std::path::PathBuf;

/// Runs WebAssembly components over a key-value store, and looks into that store.
#[derive(Debug, Parser)]
#[command(name = "kvasi", version, max_term_width = 100)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
    /// What is logged to standard error: error, warn, info, debug or trace. [default: KVASI_LOG, else info for serve and warn
    /// for all else]
    #[arg(long, global = true, value_name = "LEVEL")]
    pub(crate) log_level: Option<tracing::Level>,
    /// How: lines of text for people, or a JSON object a line.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    pub(crate) log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

impl Command {
    /// What is logged where nobody says.
    pub(crate) fn log_level(&self) -> tracing::Level {
        match self {
            #[cfg(feature = "serve")]
            Command::Serve(_) => tracing::Level::INFO,
            _ => tracing::Level::WARN,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a command component (wasi:cli) with wasi:keyvalue.
    Run(RunArgs),
    /// Serve HTTP by a proxy component (wasi:http) with wasi:keyvalue, an instance for each request, until SIGINT or SIGTERM.
    #[cfg(feature = "serve")]
    Serve(ServeArgs),
    /// Tell a component that exports wasi:keyvalue/watcher of the changes in the buckets that it may watch: of those made since it
    /// was last told, or since it was first run. Its own writes are changes, too.
    ///
    /// The buckets are of the engine, of etcd or of a Redis server whose notify-keyspace-events has Kg$xe. Redis tells of what happens
    /// while the component runs, and of nothing before.
    Watch(WatchArgs),
    /// Write the value of a key to standard output, as it is; exit 1 if there is none.
    Get {
        #[command(flatten)]
        at: At,
        key: String,
    },
    /// Set a key.
    Set {
        #[command(flatten)]
        at: At,
        key: String,
        /// The value; `-` reads it from standard input.
        #[arg(allow_hyphen_values = true)]
        value: String,
    },
    /// Delete a key; fine if there is none.
    Delete {
        #[command(flatten)]
        at: At,
        key: String,
    },
    /// Exit 0 if the key is there, 1 if not.
    Exists {
        #[command(flatten)]
        at: At,
        key: String,
    },
    /// Write the keys of a bucket, in byte order, a line each.
    List {
        #[command(flatten)]
        at: At,
        /// Only keys that begin so.
        #[arg(long, default_value = "")]
        prefix: String,
        /// End keys with a NUL instead of a line feed, for keys that contain one.
        #[arg(short = '0', long)]
        null: bool,
    },
    /// Add to the decimal number at a key and write the sum; an absent key counts as 0.
    Incr {
        #[command(flatten)]
        at: At,
        key: String,
        /// What to add; may be negative.
        #[arg(default_value_t = 1, allow_negative_numbers = true)]
        delta: i64,
    },
    /// Write the names of the buckets, a line each.
    Buckets {
        /// The directory of the store.
        #[arg(long, default_value = STORE_DEFAULT)]
        store: PathBuf,
    },
    /// Back up a store that no other process has open. A host that has it open calls `Store::backup` of the crate `kvasi`, while
    /// its guests go on.
    ///
    /// What is sealed is shared by hard links where TO is on the same file system: quick, but no help against a disk that
    /// fails. Exit 0: made; 2: not made.
    Backup {
        /// The directory of the store.
        dir: PathBuf,
        /// The directory of the backup: absent or empty. A backup is a store.
        to: PathBuf,
    },
    /// Make a store from a backup, after reading and checking all of it. Exit 0: made; 2: not made.
    Restore {
        /// The directory of the backup, or of any store that is not open.
        from: PathBuf,
        /// The directory of the store: absent or empty.
        dir: PathBuf,
    },
    /// Read and check every byte of a store that is not open, and change nothing; also one that does not open any more.
    ///
    /// A host that has it open calls `Store::verify`. Exit 0: all is as it was written; 1: something is not, a line each;
    /// 2: could not be begun.
    Verify {
        /// The directory of the store.
        dir: PathBuf,
        /// Write one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Copy a bucket to another store, of whatever kind, and compare the two afterwards. What TO has besides stays; of a key that
    /// both have, FROM's value wins. An expiry is not carried over.
    ///
    /// A target is a directory or the URL of a service. Exit 0: copied, and equal; 1: the two differ; 2: could not be done.
    Copy(CopyArgs),
    /// Ask a store every case of the conformance suite, by a component, and write which it passes.
    ///
    /// The cases write to buckets of names of their own, and empty them; to a directory, in a new directory within it. Exit 0: no case
    /// failed; 1: one did; 2: the store could not be asked.
    Conformance(ConformanceArgs),
    /// Write counters and sizes of a store that is not open. Exit 0: done; 2: it does not open.
    Stats {
        /// The directory of the store.
        dir: PathBuf,
        /// Write one JSON object.
        #[arg(long)]
        json: bool,
    },
}

/// Which bucket of which store.
#[derive(Debug, ClapArgs)]
pub(crate) struct At {
    /// The directory of the store.
    #[arg(long, default_value = STORE_DEFAULT)]
    pub(crate) store: PathBuf,
    /// The bucket, by its name in the store.
    #[arg(long, default_value = "")]
    pub(crate) bucket: String,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct CopyArgs {
    /// The store to read; a directory must not be open elsewhere.
    pub(crate) from: Target,
    /// The store to write; a directory is made if it is not there.
    pub(crate) to: Target,
    /// The bucket, by its name in FROM.
    #[arg(long, default_value = "")]
    pub(crate) bucket: String,
    /// Its name in TO. [default: the same]
    #[arg(long, value_name = "BUCKET")]
    pub(crate) to_bucket: Option<String>,
    /// A file that keeps how far the copy is: the same command goes on from there. Removed at the end.
    #[arg(long, value_name = "FILE")]
    pub(crate) resume: Option<PathBuf>,
    /// Pages of 1,000 keys on their way at once.
    #[arg(long, default_value = "8", value_name = "N")]
    pub(crate) parallel: NonZeroUsize,
    /// Do not read both sides again at the end.
    #[arg(long)]
    pub(crate) no_verify: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ConformanceArgs {
    /// The store: a directory or the URL of a service.
    pub(crate) target: Target,
    /// Write one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
    /// The component that asks, and in which shape of the interface.
    #[arg(long, value_enum, default_value_t = Language::C)]
    pub(crate) guest: Language,
    /// Only cases whose names contain this. May be given several times.
    #[arg(long = "case", value_name = "TEXT")]
    pub(crate) cases: Vec<String>,
    /// Leave in a service what the cases wrote: quicker, for one that is thrown away.
    #[arg(long)]
    pub(crate) keep: bool,
}

/// A component and the stores that it is given.
#[derive(Debug, ClapArgs)]
pub(crate) struct ComponentArgs {
    /// The component, a .wasm file.
    pub(crate) component: PathBuf,
    /// The store: a directory, made if it is not there, or the URL of a service. [default: kvasi-data]
    #[arg(long, value_name = "TARGET")]
    pub(crate) store: Option<Target>,
    /// A bucket: the name that the component opens, and its name in the store. May be given several times. The bucket ""
    /// is there in any case.
    #[arg(long = "bucket", value_name = "NAME=TARGET", value_parser = bucket)]
    pub(crate) buckets: Vec<(String, String)>,
    /// What an acknowledged write survives. [default: sync]
    #[arg(long, value_enum)]
    pub(crate) durability: Option<DurabilityArg>,
    /// A configuration file: buckets, grants, limits. Flags go over it.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Where compiled code is kept for the next start; a directory of mode 700. [default: kvasi/compiled in the user's cache directory]
    #[arg(long, value_name = "DIR", conflicts_with = "no_cache")]
    pub(crate) cache: Option<PathBuf>,
    /// Compile the component, whether or not its code was kept, and keep nothing.
    #[arg(long)]
    pub(crate) no_cache: bool,
    /// An environment variable for the component. May be given several times.
    #[arg(long = "env", value_name = "K=V", value_parser = variable)]
    pub(crate) env: Vec<(String, String)>,
}

impl ComponentArgs {
    /// Where compiled code is kept.
    pub(crate) fn compiled(&self) -> Compiled {
        if self.no_cache { Compiled::NOT_KEPT } else { Compiled::kept_in(self.cache.as_deref()) }
    }
}

#[derive(Debug, ClapArgs)]
pub(crate) struct WatchArgs {
    #[command(flatten)]
    pub(crate) component: ComponentArgs,
    /// End when all that there is was delivered; of a service, when it has told of nothing for a second.
    #[arg(long)]
    pub(crate) once: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) component: ComponentArgs,
    /// Arguments for the component.
    #[arg(last = true)]
    pub(crate) args: Vec<String>,
}

#[cfg(feature = "serve")]
#[derive(Debug, ClapArgs)]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    pub(crate) component: ComponentArgs,
    /// Where to listen; port 0 takes a free one and says which.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8080")]
    pub(crate) listen: SocketAddr,
    /// Where to answer `GET /metrics`, in the text format of Prometheus. [default: nowhere]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) metrics: Option<SocketAddr>,
    /// Requests at work at once; one more is answered 503.
    #[arg(long, value_name = "N", default_value = "100")]
    pub(crate) requests_at_once: NonZeroU32,
    /// Milliseconds that a request may take; then its instance is stopped, and the answer is 504 if none was begun.
    #[arg(long, value_name = "MS", default_value = "30000")]
    pub(crate) request_ms: NonZeroU32,
    /// MiB of memory that the instance of a request may have.
    #[arg(long, value_name = "MIB", default_value = "128")]
    pub(crate) request_memory: NonZeroU32,
    /// Milliseconds that requests at work may go on when the server is told to end.
    #[arg(long, value_name = "MS", default_value = "10000")]
    pub(crate) grace_ms: u32,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum DurabilityArg {
    /// A power cut: every write waits for the disk.
    Sync,
    /// The death of the process; a power cut may take the last 10 ms.
    Interval,
    /// The death of the process.
    Os,
    /// Nothing: the store is in memory, no file is made.
    Ephemeral,
}

impl From<DurabilityArg> for DurabilityName {
    fn from(arg: DurabilityArg) -> Self {
        match arg {
            DurabilityArg::Sync => DurabilityName::Sync,
            DurabilityArg::Interval => DurabilityName::Interval,
            DurabilityArg::Os => DurabilityName::Os,
            DurabilityArg::Ephemeral => DurabilityName::Ephemeral,
        }
    }
}

fn bucket(text: &str) -> Result<(String, String), String> {
    let (name, target) = text.split_once('=').ok_or_else(|| {
        format!("write NAME=TARGET: `{text}={text}` for the bucket {text:?} of the store under its own name")
    })?;
    if target.contains("://") {
        return Err(format!(
            "{target:?} is a store, not the name of a bucket in one: say which store in --store or a file"
        ));
    }
    Ok((name.to_owned(), target.to_owned()))
}

fn variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}
