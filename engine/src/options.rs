//! How a store is opened: each setting with its unit, its default and the reason for it.

use std::sync::Arc;
use std::time::Duration;

use crate::checkpoint::writer;
use crate::io::window::Budget;

/// What an acknowledged write has survived by the time the call returns.
///
/// In every mode, after any crash, a store reopens to a prefix of its commits, across all buckets; the modes differ in
/// how long that prefix is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// The commit is on the disk, power cut included, before the call returns and before anybody can read it.
    /// Concurrent callers share one sync.
    Sync,
    /// The commit survives the death of the process; a power cut may take the last `every` or the last `bytes`.
    Interval {
        /// Longest time between two syncs while there is something to sync.
        every: Duration,
        /// Bytes of log after which a sync starts early.
        bytes: u64,
    },
    /// The commit survives the death of the process; a power cut takes what the operating system had not yet written.
    Os,
    /// Nothing survives: no file is made. Only for [`Store::in_memory`](crate::Store::in_memory).
    Ephemeral,
}

impl Durability {
    /// [`Durability::Interval`] with its usual bounds: 10 ms, 1 MiB.
    pub const INTERVAL: Durability = Durability::Interval { every: Duration::from_millis(10), bytes: 1 << 20 };

    pub(crate) fn waits_for_disk(self) -> bool {
        matches!(self, Durability::Sync)
    }
}

/// When the checksum of a record is compared with its bytes on the way to a reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verify {
    /// When the store is opened, over all that is replayed; at each read of what was not, until the background has checked
    /// it. Later reads trust the mapping.
    Open,
    /// At every read as well. Costs one pass over the value.
    Always,
}

/// How the files of a store are read and written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Mapped where that is safe: not on network and user-space file systems (nor, to be read only, on overlays), where a
    /// mapping may fail by a signal or not see what was written by another way; nor, to be written, on those that copy on write (Bcachefs,
    /// Btrfs, ZFS), where it does when they are full. Linux says what a directory is on; elsewhere this is [`Access::Mapped`].
    Auto,
    /// Mapped into memory: a read copies nothing and asks nobody. If another process cuts a file short, or the device
    /// fails, a read of what is gone ends the process by a signal.
    Mapped,
    /// By calls of the system, each of which can fail with an error and none with a signal. A write costs a call, a read of
    /// what was not read lately another; values are copies. What was read is kept in memory as
    /// [`Options::read_bytes_max`] says.
    Unmapped,
}

/// Longest key, in bytes: keys stand in index files, where a 16-bit length is enough.
pub const KEY_BYTES_MAX: usize = 64 * 1024 - 1;
/// Longest value, in bytes.
pub const VALUE_BYTES_MAX: usize = 1 << 30;
/// Most bytes of keys and values in one batch: a batch stands in one piece in the log.
pub const BATCH_BYTES_MAX: usize = 1 << 30;
/// Longest bucket name, in bytes.
pub const BUCKET_NAME_BYTES_MAX: usize = 256;

/// How a store is opened. `Options::default()` is the safe choice; every setting can be changed at the next open.
#[derive(Clone, Debug)]
pub struct Options {
    pub(crate) durability: Durability,
    pub(crate) verify: Verify,
    pub(crate) create: bool,
    pub(crate) segment_bytes_max: u64,
    pub(crate) checkpoint_bytes_min: u64,
    pub(crate) access: Access,
    pub(crate) read_bytes_max: u64,
    pub(crate) guard_mappings: bool,
    /// For simulations, which have one thread: as if somebody else always were about to make the next segment.
    pub(crate) next_is_late: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            durability: Durability::Sync,
            verify: Verify::Open,
            create: true,
            segment_bytes_max: 64 << 20,
            checkpoint_bytes_min: writer::BYTES_MIN,
            access: Access::Auto,
            read_bytes_max: 64 << 20,
            guard_mappings: false,
            next_is_late: false,
        }
    }
}

impl Options {
    /// The defaults: [`Durability::Sync`], [`Verify::Open`], created if absent.
    pub fn new() -> Self {
        Self::default()
    }

    /// What an acknowledged write survives, unless the bucket handle says otherwise. Default: [`Durability::Sync`],
    /// because nobody reads a manual before the first power cut.
    #[must_use]
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// When checksums are compared. Default: [`Verify::Open`].
    #[must_use]
    pub fn verify(mut self, verify: Verify) -> Self {
        self.verify = verify;
        self
    }

    /// Whether a directory that holds no store becomes one. Default: yes.
    #[must_use]
    pub fn create(mut self, create: bool) -> Self {
        self.create = create;
        self
    }

    /// Largest log segment, in bytes; rounded to 4 KiB, between 64 KiB and 64 MiB. Default: 64 MiB. A young store
    /// starts with smaller ones, so that a small store stays a small directory.
    #[must_use]
    pub fn segment_bytes_max(mut self, bytes: u64) -> Self {
        self.segment_bytes_max = bytes.clamp(64 << 10, 64 << 20).next_multiple_of(4096);
        self
    }

    /// How files are read and written. Default: [`Access::Auto`].
    #[must_use]
    pub fn access(mut self, access: Access) -> Self {
        self.access = access;
        self
    }

    /// Most memory, in bytes, for what was read of files that are not mapped; the segment that is written to is in memory
    /// beside it. Default: 64 MiB. What readers hold on to counts, and is not taken from them.
    #[must_use]
    pub fn read_bytes_max(mut self, bytes: u64) -> Self {
        self.read_bytes_max = bytes;
        self
    }

    /// Lives through pages of mapped files that are gone, because a file was cut short or a device has failed: what is read of them
    /// is an error, where it would be a signal that ends the process. Default: no.
    ///
    /// Linux: installs a handler of SIGBUS for the process, once, which calls on to the one before it for whatever is none of ours;
    /// code that installs its own later must do the same. Every read compares checksums, on a copy, and values are copies. Key
    /// runs and checkpoints are not mapped. Other systems: as [`Access::Unmapped`]. Nothing where files are not mapped anyway.
    #[must_use]
    pub fn guard_mappings(mut self, guard: bool) -> Self {
        self.guard_mappings = guard;
        self
    }

    /// What memory unmapped files may take, `None` if all files are mapped; and whether segments are mapped after all, guarded.
    /// `hazard`: mappings are not safe where the store is.
    pub(crate) fn unmapped(&self, hazard: impl FnOnce() -> bool) -> (Option<Arc<Budget>>, bool) {
        #[cfg(feature = "testing")]
        if self.access == Access::Auto
            && let Some(asked) = crate::testing::access()
        {
            return asked;
        }
        let unmapped = match self.access {
            Access::Auto => hazard(),
            Access::Mapped => false,
            Access::Unmapped => true,
        };
        let budget = || Arc::new(Budget::new(self.read_bytes_max));
        ((unmapped || self.guard_mappings).then(budget), !unmapped && self.guard_mappings && cfg!(target_os = "linux"))
    }
}
