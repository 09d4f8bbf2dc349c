//! kvasi: an embedded key-value storage engine for one job, to be the store behind `wasi:keyvalue`.
//!
//! A [`Store`] is a directory (or memory); it holds [`Bucket`]s; a bucket holds keys with values, both any bytes. Points
//! (get, set, delete, exists, increment, compare-and-swap), batches, and keys listed in byte order: no scans of values, no
//! transactions beyond a batch, no secondary index.
//!
//! ```
//! use kvasi::{Durability, Options, Store};
//!
//! # let dir = tempfile::tempdir()?;
//! # let path = dir.path().join("store");
//! let store = Store::open(&path, Options::new().durability(Durability::Sync))?;
//! let users = store.bucket("users")?;
//! users.set(b"ada", b"countess")?; // on the disk when it returns
//! assert_eq!(users.get(b"ada")?.as_deref(), Some(&b"countess"[..]));
//! assert_eq!(users.increment(b"logins", 1)?, 1);
//! store.close()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! How it is built is told in ARCHITECTURE.md, every byte on the disk in docs/file-format.md.

mod atomics;
mod backup;
mod batch;
mod bucket;
mod catalogue;
mod checkpoint;
mod checksum;
mod clean;
mod codec;
mod commit;
mod directory;
mod error;
mod index;
mod io;
mod list;
mod log;
mod manifest;
mod merge;
mod options;
mod pending;
mod recovery;
mod run;
mod scrub;
mod seal;
mod seeded;
mod segment;
mod stats;
mod store;
mod stretch;
mod sweep;
mod tail;
mod take_up;
mod tally;
#[cfg(feature = "testing")]
pub mod testing;
mod value;
mod verify;
mod watch;
mod worker;

pub use atomics::Swap;
pub use backup::{BackupReport, restore};
pub use batch::Batch;
pub use bucket::Bucket;
pub use error::{Error, ErrorKind, Result};
pub use list::{KeyPage, ListOptions};
pub use options::{
    Access, BATCH_BYTES_MAX, BUCKET_NAME_BYTES_MAX, Durability, KEY_BYTES_MAX, Options, VALUE_BYTES_MAX, Verify,
};
pub use pending::Commit;
pub use recovery::OpenReport;
pub use stats::Stats;
pub use store::Store;
pub use tally::BucketStats;
pub use value::{Value, Version};
pub use verify::{Finding, FindingKind, VerifyReport, verify};
pub use watch::{Change, Delivery, Event, Next, Position, Watch, WatchFrom};
