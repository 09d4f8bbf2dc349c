//! A store: opening, closing, and its buckets. Owns everything below it.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use crossbeam_epoch as epoch;
use parking_lot::Mutex;

use crate::batch::Batch;
use crate::bucket::Bucket;
use crate::checkpoint::writer::Checkpointer;
use crate::commit::Commits;
use crate::directory::Directory;
use crate::error::{Error, ErrorKind, Result};
use crate::index::KeyIndex;
use crate::io::disk::RealDisk;
use crate::io::memory::MemoryDisk;
use crate::io::{self, Disk};
use crate::log::Log;
use crate::options::{Durability, Options};
use crate::recovery::{self, OpenReport};
use crate::seeded::{Bug, seeded};
use crate::stats::Stats;
use crate::take_up::{forget_keys, take_up};
use crate::worker::{Bells, Worker};

/// An open store. Cheap to clone; all clones are one store, which is closed when the last of them, of its buckets and of
/// its pending commits is dropped, or by [`Store::close`].
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// let store = kvasi::Store::open(dir.path().join("store"), kvasi::Options::new())?;
/// let visits = store.bucket("visits")?;
/// assert_eq!(visits.increment(b"total", 1)?, 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Store(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) commits: Arc<Commits>,
    pub(crate) durability: Durability,
    pub(crate) bells: Bells,
    worker: Mutex<Option<Worker>>,
    report: OpenReport,
    location: String,
    pub(crate) read_only: bool,
    /// What closing came to, once it was tried.
    closed: Mutex<Option<Result<()>>>,
}

impl Store {
    /// Opens the store in directory `dir`, which becomes one if it is empty or absent (unless [`Options::create`] says
    /// no). Reads what was logged since the last directory checkpoint; after a crash the store is the prefix of its commits that survived.
    ///
    /// # Errors
    /// `Locked` if it is open elsewhere; `Format` if the directory is something else, or of a newer format; `Corrupt`
    /// with file and offset if a file does not hold what was written to it; `Io`, `NoSpace`. Nothing is changed then.
    pub fn open(dir: impl AsRef<Path>, options: Options) -> Result<Store> {
        if options.durability == Durability::Ephemeral {
            return Err(Error::invalid("an ephemeral store has no directory: use Store::in_memory"));
        }
        let disk: Arc<dyn Disk> = Arc::new(RealDisk::open(dir.as_ref(), &options, recovery::refuse_foreign)?);
        Store::on_disk(disk, options)
    }

    /// Opens the store in directory `dir` to be read: no file is made or changed, also on read-only media. What a crash
    /// left behind is read around, not repaired.
    ///
    /// # Errors
    /// As for [`Store::open`].
    pub fn open_read_only(dir: impl AsRef<Path>, options: Options) -> Result<Store> {
        let disk: Arc<dyn Disk> = Arc::new(RealDisk::open_read_only(dir.as_ref(), &options)?);
        Store::on_disk(disk, options)
    }

    /// A store without files: everything is gone with its last handle. [`Options::durability`] does not matter.
    ///
    /// # Errors
    /// `Io` if there is no memory for it.
    pub fn in_memory(options: Options) -> Result<Store> {
        Store::on_disk(Arc::new(MemoryDisk::default()), options.durability(Durability::Ephemeral))
    }

    fn on_disk(disk: Arc<dyn Disk>, options: Options) -> Result<Store> {
        let store = Store::without_worker(disk, options)?;
        if !store.0.read_only {
            store.start_worker()?;
        }
        Ok(store)
    }

    /// Has threads run the background jobs from here on.
    pub(crate) fn start_worker(&self) -> Result<()> {
        let worker = Worker::start(self.0.commits.clone(), self.0.bells.clone(), self.0.durability)?;
        *self.0.worker.lock() = Some(worker);
        Ok(())
    }

    /// Whether threads run the background jobs.
    pub(crate) fn has_worker(&self) -> bool {
        self.0.worker.lock().is_some()
    }

    /// The store alone; its background jobs are the caller's to run.
    pub(crate) fn without_worker(disk: Arc<dyn Disk>, options: Options) -> Result<Store> {
        let recovered = recovery::recover(&disk)?;
        let (location, read_only, shards) = (disk.location(), disk.read_only(), disk.shards());
        let log = Log::new(disk, recovered.manifest, &options, recovered.resume)?;
        let (index, opened) = KeyIndex::open(&log)?;
        let (directory, buckets) = match recovered.checkpoint {
            Some(checkpoint) => (checkpoint.directory, Some(checkpoint.buckets)),
            None => (Directory::new(shards), None),
        };
        let least = options.checkpoint_bytes_min;
        let commits = Arc::new(Commits::new(log, directory, index, recovered.hash_seed, read_only, least));
        // What the open shows is decided for good, also for those who were told that a commit is indeterminate: what a dead process
        // left in the system's cache must not vanish with the next power cut. The disk has that while the processors replay it.
        let settle = || {
            while !read_only && commits.log.has_unsynced() && !seeded(Bug::OpenDoesNotSync) {
                // There is no store yet that could be said to be poisoned.
                let synced = commits.sync_closed();
                synced.map_err(|e| e.with_kind(ErrorKind::Io, "cannot make durable what the log holds"))?;
            }
            Ok(0)
        };
        let take_up = || take_up(&commits, recovered.tails, buckets.as_ref());
        // Replaying does not call the disk where files are mapped.
        let at_once = commits.log.has_unsynced() && commits.log.disk().unmapped().is_none();
        let (settled, records_replayed) = if at_once { io::both(settle, |_| take_up()) } else { (settle(), take_up()) };
        let records_replayed = settled.and(records_replayed)?;
        let (live, known) = commits.catalogue.ids();
        commits.index.buckets.take_up(live, known, commits.log.end(&epoch::pin()));
        let bells = Bells::default();
        // There may be segments to seal, runs to make and to merge.
        bells.work.ring();
        Ok(Store(Arc::new(Inner {
            commits,
            durability: options.durability,
            bells,
            worker: Mutex::default(),
            report: OpenReport {
                runs: opened.runs,
                runs_thrown_away: opened.thrown_away,
                records_replayed,
                ..recovered.report
            },
            location,
            read_only,
            closed: Mutex::default(),
        })))
    }

    /// Whether both are handles to one open store.
    pub fn is_same(&self, other: &Store) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// What the open found, and what it had to cut.
    pub fn report(&self) -> &OpenReport {
        &self.0.report
    }

    /// The bucket of that name, made if there is none: a look-up in memory, or one commit.
    ///
    /// # Errors
    /// `Invalid` if the name has more than 256 bytes; as a write if there is no such bucket.
    pub fn bucket(&self, name: &str) -> Result<Bucket> {
        let entry = self.0.commits.catalogue.get_or_create(name, &self.0.commits, self.0.durability)?;
        Ok(Bucket::new(self.clone(), entry))
    }

    /// The bucket of that name, `None` if there is none. A look-up in memory.
    ///
    /// # Errors
    /// None today; a `Result` because buckets may be read from the disk one day.
    pub fn existing_bucket(&self, name: &str) -> Result<Option<Bucket>> {
        Ok(self.0.commits.catalogue.get(name).map(|entry| Bucket::new(self.clone(), entry)))
    }

    /// Drops a bucket with all its keys, as one commit; `false` if there was none. Handles to it fail from then on.
    ///
    /// # Errors
    /// As a write.
    pub fn drop_bucket(&self, name: &str) -> Result<bool> {
        let remove = || self.0.commits.catalogue.remove(name, &self.0.commits, self.0.durability);
        let Some(entry) = self.free(remove)? else {
            return Ok(false);
        };
        self.0.commits.index.buckets.drop(entry.id, self.0.commits.log.end(&epoch::pin()));
        // The keys mean nothing to anybody now; this gives their memory back.
        forget_keys(&self.0.commits, |bucket| {
            bucket == entry.id || seeded(Bug::DropForgetsNeighbour) && bucket == entry.id + 1
        });
        self.0.commits.directory.forget_tally(entry.id);
        self.0.commits.catalogue.forgotten(&BTreeSet::from([entry.id]));
        self.nudge(true);
        Ok(true)
    }

    /// Names of all buckets, in byte order.
    ///
    /// # Errors
    /// As [`Store::existing_bucket`].
    pub fn buckets(&self) -> Result<Vec<String>> {
        Ok(self.0.commits.catalogue.names())
    }

    /// Applies all writes of a batch as one commit: all or nothing, across buckets, for readers and across a crash. Of
    /// several writes to one key the last wins. Returns when the batch is as durable as the store's option says. A batch of
    /// deletes alone waits on a full disk as [`Bucket::delete`] does.
    ///
    /// # Errors
    /// `Invalid` if a limit is passed or a bucket is of another store; as a write otherwise. Nothing is applied then,
    /// except that an `Indeterminate` commit is decided by the next open.
    pub fn commit(&self, batch: &Batch) -> Result<()> {
        let start = || self.start_commit(batch);
        if batch.frees() { self.free(start)?.wait() } else { start()?.wait() }
    }

    /// Waits until every commit acknowledged so far survives a power cut.
    ///
    /// # Errors
    /// `Poisoned` or `Indeterminate` if the disk fails.
    pub fn sync(&self) -> Result<()> {
        self.0.commits.check_writable()?;
        let end = self.0.commits.log.end(&epoch::pin());
        self.0.commits.wait(end)
    }

    /// Syncs everything and closes the store, so that the next open has nothing to repair. Other handles can still read,
    /// and no longer write. Dropping the last handle does the same, but cannot tell of errors.
    ///
    /// # Errors
    /// As [`Store::sync`]. A store is closed once: whoever closes it again is told the same.
    pub fn close(self) -> Result<()> {
        self.0.close()
    }

    /// Counters and sizes of this moment.
    pub fn stats(&self) -> Stats {
        Stats::of(&self.0.commits)
    }
}

impl Inner {
    fn close(&self) -> Result<()> {
        if self.read_only {
            return Ok(());
        }
        self.closed.lock().get_or_insert_with(|| self.close_once()).clone()
    }

    fn close_once(&self) -> Result<()> {
        // The thread first: it may hold the last piece of work.
        drop(self.worker.lock().take());
        self.commits.check_writable()?;
        let end = self.commits.log.end(&epoch::pin());
        self.commits.wait(end)?;
        Checkpointer::default().close(&self.commits).inspect_err(|e| self.commits.poison(e.clone()))?;
        self.commits.poison(Error::new(ErrorKind::Poisoned, "the store was closed"));
        self.commits.log.close()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Nobody is left to be told; the next open will find the log as a crash would have left it.
        let _ = self.close();
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("location", &self.0.location).field("report", &self.0.report).finish()
    }
}
