//! The changes of a service, as `watch-service` follows them, whichever service tells of them.
//!
//! Flow: a task of the service's file, on the runtime that drives its connections -> a bounded channel -> [`Feed`] -> `watcher`.
//! Invariants: 1. Changes of one bucket come in the order in which they were made. 2. What was missed is said: [`Told::Lagged`] stands where it
//! would have been. 3. A component that is slow holds up the task, never the service or another guest.

#![cfg_attr(
    not(any(feature = "etcd", feature = "redis")),
    allow(dead_code, reason = "for services that tell of changes")
)]

use super::LocalBucket;
use super::remote::{Answer, Blocking, RemoteBucket};
use crate::{Code, Error};
use bytes::Bytes;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

/// Told and not yet taken: more wait in the service, or in a list of names.
const TOLD_MAX: usize = 1_000;

/// What a service tells.
#[derive(Debug)]
pub enum Told {
    /// A key was set, or deleted.
    Change {
        /// Which of the buckets that were asked for.
        bucket: usize,
        /// The key.
        key: String,
        /// Its value; `None`: it was deleted.
        value: Option<Bytes>,
        /// A position from which this comes again.
        before: u64,
    },
    /// What [`Changes::note`] was given, before the changes that were made after it.
    Note(Vec<u8>),
    /// All changes up to this position have been told.
    UpTo(u64),
    /// Changes were missed.
    Lagged,
}

/// A bucket of a service that tells of changes.
pub trait Changes: Send + Sync + 'static {
    /// Equal for buckets whose changes one feed can tell of.
    fn store(&self) -> usize;

    /// The bucket's name in the service.
    fn name(&self) -> &str;

    /// Another bucket of the same store.
    fn sibling(&self, name: &str) -> Arc<dyn RemoteBucket>;

    /// Whether a position is good for a later feed. If not, what happens while nobody follows is missed.
    fn resumes(&self) -> bool;

    /// Writes a note under this name, to be told of in every feed of the store that asks for notes of it.
    fn note<'a>(&'a self, name: &'a str, note: &'a [u8]) -> Answer<'a, ()>;

    /// Follows these buckets, and notes under the name `notes`: from `from` on, or from now, and says where that is.
    fn follow<'a>(&'a self, buckets: &'a [&'a str], notes: &'a str, from: Option<u64>) -> Answer<'a, (u64, Feed)>;
}

/// Where a task tells.
pub(crate) type Telling = mpsc::Sender<Told>;

/// Changes that are told of until it is dropped.
pub struct Feed {
    told: mpsc::Receiver<Told>,
    task: AbortHandle,
}

impl fmt::Debug for Feed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Feed").finish_non_exhaustive()
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Feed {
    /// What `task` tells, which runs until it ends or nobody listens. Called within a runtime.
    pub(crate) fn of<F>(task: impl FnOnce(Telling) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (telling, told) = mpsc::channel(TOLD_MAX);
        Feed { told, task: tokio::spawn(task(telling)).abort_handle() }
    }

    /// The next that is told, waited for at most so long.
    ///
    /// # Errors
    /// [`Code::Io`]: nothing more will be told.
    fn next(&mut self, runtime: &Handle, timeout: Duration) -> Result<Option<Told>, Error> {
        let told = match self.told.try_recv() {
            Ok(told) => Some(told),
            Err(mpsc::error::TryRecvError::Disconnected) => None,
            Err(mpsc::error::TryRecvError::Empty) if timeout.is_zero() => return Ok(None),
            Err(mpsc::error::TryRecvError::Empty) => {
                let _entered = runtime.enter();
                match pollster::block_on(async { tokio::time::timeout(timeout, self.told.recv()).await }) {
                    Ok(told) => told,
                    Err(_elapsed) => return Ok(None),
                }
            }
        };
        told.map(Some).ok_or_else(|| Error::with_detail(Code::Io, "the feed of changes has ended"))
    }
}

/// A bucket of a service that tells of changes, for callers that wait.
#[derive(Clone)]
pub struct Watched {
    changes: Arc<dyn Changes>,
    runtime: Handle,
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Watched").field(&self.changes.name()).finish()
    }
}

impl Watched {
    pub(crate) fn new(changes: Arc<dyn Changes>, runtime: Handle) -> Self {
        Watched { changes, runtime }
    }

    pub(crate) fn is_of_same_store(&self, other: &Watched) -> bool {
        self.changes.store() == other.changes.store()
    }

    pub(crate) fn name(&self) -> &str {
        self.changes.name()
    }

    pub(crate) fn resumes(&self) -> bool {
        self.changes.resumes()
    }

    pub(crate) fn sibling(&self, name: &str) -> Arc<dyn LocalBucket> {
        Arc::new(Blocking::new(self.changes.sibling(name), self.runtime.clone()))
    }

    pub(crate) fn note(&self, name: &str, note: &[u8]) -> Result<(), Error> {
        let _entered = self.runtime.enter();
        pollster::block_on(self.changes.note(name, note))
    }

    pub(crate) fn follow(&self, buckets: &[&str], notes: &str, from: Option<u64>) -> Result<Following, Error> {
        let _entered = self.runtime.enter();
        let (upto, feed) = pollster::block_on(self.changes.follow(buckets, notes, from))?;
        Ok(Following { feed, upto, runtime: self.runtime.clone() })
    }
}

/// A feed, and how far it is.
pub(crate) struct Following {
    feed: Feed,
    upto: u64,
    runtime: Handle,
}

impl Following {
    /// The next that is told; `None` if nothing is within the time.
    pub(crate) fn next(&mut self, timeout: Duration) -> Result<Option<Told>, Error> {
        let told = self.feed.next(&self.runtime, timeout)?;
        if let Some(Told::UpTo(position)) = told {
            self.upto = position;
        }
        Ok(told)
    }

    /// All up to here was told.
    pub(crate) fn position(&self) -> u64 {
        self.upto
    }
}
