//! A commit on its way to the disk: to wait for, or to await.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use crate::commit::Told;
use crate::error::Result;
use crate::store::Store;

/// A write that was made, and may not be on the disk yet: wait for it with [`Commit::wait`], or await it in any async
/// runtime (a background thread of the store does the sync). Dropping it gives up the waiting, not the write.
///
/// Where the durability asks for no wait, it is ready at once.
#[derive(Debug)]
#[must_use = "without waiting, nothing is known about the commit's durability"]
pub struct Commit<T> {
    store: Store,
    /// Taken by the poll that says it is ready.
    value: Option<T>,
    after: u64,
}

impl<T> Commit<T> {
    pub(crate) fn new(store: Store, told: Told<T>) -> Commit<T> {
        Commit { store, value: Some(told.value), after: told.after }
    }

    /// Whether waiting would return at once.
    pub fn is_ready(&self) -> bool {
        self.after <= self.store.0.commits.applied()
    }

    /// Waits until the commit is as durable as was asked for; the result of the write.
    ///
    /// # Errors
    /// `Indeterminate` if the disk failed under it: the next open decides.
    ///
    /// # Panics
    /// If the commit was polled to its end before.
    #[allow(clippy::expect_used, reason = "the documented panic")]
    pub fn wait(mut self) -> Result<T> {
        self.store.0.commits.wait(self.after)?;
        Ok(self.value.take().expect("a commit is waited for once"))
    }
}

impl<T: Unpin> Future for Commit<T> {
    type Output = Result<T>;

    #[allow(clippy::expect_used, reason = "polling a finished future again is a bug of the caller's")]
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        if !this.is_ready() {
            match this.store.0.commits.wake_when_durable(this.after, context.waker()) {
                Ok(true) => {}
                Ok(false) => {
                    this.store.0.bells.work.ring();
                    return Poll::Pending;
                }
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
        Poll::Ready(Ok(this.value.take().expect("a commit is polled to its end once")))
    }
}
