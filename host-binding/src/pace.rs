//! How the calls of one linker wait for a back end: in the calling thread, or not at all.
//!
//! Flow: `link` (which knows its linker's way) -> `store`, `batch`, `atomics` -> [`Paced`] -> `backend`. So the calls above are written
//! once, for both.
//! Invariant: with [`Pace::Wait`] every reply is there at once.

use crate::Error;
use crate::backend::{Guard, Key, LocalBucket, Observed, Page, PageBounds, Pair, Reply, SetOptions, Swap};
use bytes::Bytes;

/// What a call does while its answer is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// It holds the calling thread.
    Wait,
    /// It gives the reply out of hand: for hosts whose threads drive async tasks.
    Start,
}

/// A bucket, asked at some pace.
#[derive(Clone, Copy)]
pub(crate) struct Paced<'a> {
    pub(crate) bucket: &'a dyn LocalBucket,
    pub(crate) pace: Pace,
}

macro_rules! calls {
    ($($call:ident / $start:ident ($($name:ident: $type:ty),*) -> $answer:ty;)*) => {
        impl Paced<'_> {
            $(
                #[inline]
                pub(crate) fn $call(self, $($name: $type),*) -> Reply<$answer, Error> {
                    match self.pace {
                        Pace::Wait => Reply::Now(self.bucket.$call($($name),*)),
                        Pace::Start => self.bucket.$start($($name),*),
                    }
                }
            )*
        }
    };
}

calls! {
    get / start_get(key: &str) -> Option<Bytes>;
    exists / start_exists(key: &str) -> bool;
    set / start_set(key: &str, value: &[u8]) -> ();
    set_with / start_set_with(key: &str, value: &[u8], options: SetOptions) -> bool;
    delete / start_delete(key: &str) -> ();
    list_prefix / start_list(prefix: &str, after: Option<&[u8]>, bounds: PageBounds) -> Page;
    increment / start_increment(key: &str, delta: i64) -> i64;
    increment_unsigned / start_increment_unsigned(key: &str, delta: i64) -> i64;
    observe / start_observe(key: &str) -> Observed;
    swap / start_swap(key: &str, guard: &Guard, value: &[u8]) -> Swap;
    get_many / start_get_many(keys: &[Key<'_>]) -> Vec<Option<Pair>>;
    set_many / start_set_many(pairs: &[(Key<'_>, &[u8])]) -> ();
    delete_many / start_delete_many(keys: &[Key<'_>]) -> ();
}
