//! What a call of a bucket comes to: an answer that is there, or one on its way.
//!
//! Flow: a back end -> [`Reply`] -> `store`, `batch`, `atomics`, which look at the answer -> `link`, which gives it to the guest at once
//! or suspends the guest until it is there. Nothing here waits but [`Reply::now`].
//! Invariant: an answer that is there costs no allocation and no future.

use crate::Error;
use std::fmt;
use std::pin::Pin;

/// An answer on its way. It borrows nothing, and may be dropped at any time: a write is then wholly done or not at all.
pub type Later<R, E = Error> = Pin<Box<dyn Future<Output = Result<R, E>> + Send>>;

/// An answer, or the way to one.
pub enum Reply<R, E = Error> {
    /// The answer is there.
    Now(Result<R, E>),
    /// The answer will be there: await it.
    Later(Later<R, E>),
}

impl<R, E> fmt::Debug for Reply<R, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the answer: it may be a value.
        f.write_str(match self {
            Reply::Now(Ok(_)) => "Now(Ok)",
            Reply::Now(Err(_)) => "Now(Err)",
            Reply::Later(_) => "Later",
        })
    }
}

impl<R: 'static, E: 'static> Reply<R, E> {
    /// An answer on its way.
    pub fn later(answer: impl Future<Output = Result<R, E>> + Send + 'static) -> Self {
        Reply::Later(Box::pin(answer))
    }

    /// The answer as `then` makes it, which is asked once the answer is there.
    #[inline]
    pub fn then<S, F>(self, then: impl FnOnce(Result<R, E>) -> Result<S, F> + Send + 'static) -> Reply<S, F> {
        match self {
            Reply::Now(answer) => Reply::Now(then(answer)),
            Reply::Later(answer) => Reply::Later(Box::pin(async move { then(answer.await) })),
        }
    }

    /// As [`Result::and_then`].
    #[inline]
    pub fn and_then<S>(self, then: impl FnOnce(R) -> Result<S, E> + Send + 'static) -> Reply<S, E> {
        self.then(|answer| answer.and_then(then))
    }

    /// The answer; where it is on its way, the calling thread waits for it, which other threads bring.
    ///
    /// # Errors
    /// The answer's.
    #[inline]
    pub fn now(self) -> Result<R, E> {
        match self {
            Reply::Now(answer) => answer,
            Reply::Later(answer) => pollster::block_on(answer),
        }
    }

    /// The answer, awaited.
    ///
    /// # Errors
    /// The answer's.
    pub async fn wait(self) -> Result<R, E> {
        match self {
            Reply::Now(answer) => answer,
            Reply::Later(answer) => answer.await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Code;
    use std::task::{Context, Poll, Waker};

    #[test]
    fn both_kinds_come_to_the_same() {
        let double = |number: u32| if number < 10 { Ok(number * 2) } else { Err(Error::new(Code::TooLarge)) };
        for number in [3, 30] {
            let now = Reply::Now(Ok(number)).and_then(double);
            assert!(matches!(now, Reply::Now(_)));
            let later = Reply::later(async move { Ok(number) }).and_then(double);
            assert!(matches!(later, Reply::Later(_)));
            assert_eq!(now.now().ok(), later.now().ok());
        }
    }

    #[test]
    fn an_answer_that_is_there_is_ready_at_the_first_poll() {
        let wait = std::pin::pin!(Reply::<_, Error>::Now(Ok(7)).wait());
        assert!(matches!(wait.poll(&mut Context::from_waker(Waker::noop())), Poll::Ready(Ok(7))));
    }
}
