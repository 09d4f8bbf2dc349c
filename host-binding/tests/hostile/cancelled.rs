//! Guests that are cut off while a call of theirs waits for a back end: the host drops the call at every one of its polls.

use crate::guest::{self, REALLOC, compile, limits, repeat};
use bytes::Bytes;
use kvasi_wasmtime::backend::{
    Backend, Guard, Key, LocalBucket, Memory, Observed, Page, PageBounds, Pair, Reply, Swap,
};
use kvasi_wasmtime::{Account, Error, Gate, Limits, Metered, Rights, WasiKeyValueCtx};
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

/// A bucket that answers every call that may wait after some polls.
struct Slow(Arc<dyn LocalBucket>);

const POLLS: usize = 3;

fn later<R: Send + 'static>(answer: Result<R, Error>) -> Reply<R> {
    let mut polls = 0;
    let mut answer = Some(answer);
    Reply::later(poll_fn(move |cx| {
        polls += 1;
        if polls < POLLS {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        answer.take().map_or(Poll::Pending, Poll::Ready)
    }))
}

impl LocalBucket for Slow {
    fn identity(&self) -> &str {
        self.0.identity()
    }
    fn waits(&self) -> bool {
        true
    }
    fn get(&self, key: &str) -> Result<Option<Bytes>, Error> {
        self.0.get(key)
    }
    fn exists(&self, key: &str) -> Result<bool, Error> {
        self.0.exists(key)
    }
    fn set(&self, key: &str, value: &[u8]) -> Result<(), Error> {
        self.0.set(key, value)
    }
    fn delete(&self, key: &str) -> Result<(), Error> {
        self.0.delete(key)
    }
    fn list(&self, after: Option<&[u8]>, bounds: PageBounds) -> Result<Page, Error> {
        self.0.list(after, bounds)
    }
    fn increment(&self, key: &str, delta: i64) -> Result<i64, Error> {
        self.0.increment(key, delta)
    }
    fn observe(&self, key: &str) -> Result<Observed, Error> {
        self.0.observe(key)
    }
    fn swap(&self, key: &str, guard: &Guard, value: &[u8]) -> Result<Swap, Error> {
        self.0.swap(key, guard, value)
    }
    fn get_many(&self, keys: &[Key<'_>]) -> Result<Vec<Option<Pair>>, Error> {
        self.0.get_many(keys)
    }
    fn set_many(&self, pairs: &[(Key<'_>, &[u8])]) -> Result<(), Error> {
        self.0.set_many(pairs)
    }
    fn delete_many(&self, keys: &[Key<'_>]) -> Result<(), Error> {
        self.0.delete_many(keys)
    }
    fn start_get(&self, key: &str) -> Reply<Option<Bytes>> {
        later(self.0.get(key))
    }
    fn start_exists(&self, key: &str) -> Reply<bool> {
        later(self.0.exists(key))
    }
    fn start_set(&self, key: &str, value: &[u8]) -> Reply<()> {
        later(self.0.set(key, value))
    }
    fn start_delete(&self, key: &str) -> Reply<()> {
        later(self.0.delete(key))
    }
    fn start_list(&self, prefix: &str, after: Option<&[u8]>, bounds: PageBounds) -> Reply<Page> {
        later(self.0.list_prefix(prefix, after, bounds))
    }
    fn start_increment(&self, key: &str, delta: i64) -> Reply<i64> {
        later(self.0.increment(key, delta))
    }
    fn start_observe(&self, key: &str) -> Reply<Observed> {
        later(self.0.observe(key))
    }
    fn start_swap(&self, key: &str, guard: &Guard, value: &[u8]) -> Reply<Swap> {
        later(self.0.swap(key, guard, value))
    }
    fn start_get_many(&self, keys: &[Key<'_>]) -> Reply<Vec<Option<Pair>>> {
        later(self.0.get_many(keys))
    }
    fn start_set_many(&self, pairs: &[(Key<'_>, &[u8])]) -> Reply<()> {
        later(self.0.set_many(pairs))
    }
    fn start_delete_many(&self, keys: &[Key<'_>]) -> Reply<()> {
        later(self.0.delete_many(keys))
    }
}

/// Every call that there is, one after the other.
const CALLS: &str = "(local.set $b (call $main))
    (call $strings #0x8000 #2 #1028 #1 #0) (call $strings #0x8100 #2 #1028 #1 #1)
    (drop (call $set_ (local.get $b) @l @text)) (drop (call $get_ (local.get $b) @l)) (drop (call $exists_ (local.get $b) @l))
    (drop (call $list_ (local.get $b) #0 #0 #0)) (drop (call $increment_ (local.get $b) @absent ##1))
    (drop (call $attempt_ (local.get $b) @l)) (drop (call $swap_ (call $given) @k))
    (drop (call $set_many_ (local.get $b) #0x8100 #2)) (drop (call $get_many_ (local.get $b) #0x8000 #2))
    (drop (call $delete_many_ (local.get $b) #0x8000 #2)) (call $delete_ (local.get $b) @l)";

/// Polls the guest so often and drops it there; whether it had ended.
fn polled(component: &wasmtime::component::Component, ctx: &WasiKeyValueCtx, polls: usize) -> bool {
    let mut call = pin!(guest::call_async(component, ctx));
    let mut cx = Context::from_waker(Waker::noop());
    (0..polls).any(|_| call.as_mut().poll(&mut cx).is_ready())
}

#[test]
fn a_call_dropped_at_any_poll_leaves_no_place_taken() {
    let gate = Gate::new(&Limits::default());
    let bucket = Arc::new(Slow(Memory::new().unwrap().bucket("main").unwrap()));
    let ctx =
        WasiKeyValueCtx::builder().limits(limits()).tenant(gate.clone()).grant("main", bucket, Rights::ALL).build();
    let component = compile(CALLS, REALLOC);
    let mut waiting = 0;
    let mut polls = 1;
    // One poll more each time, until it is enough for the last call.
    while !polled(&component, &ctx, polls) {
        assert_eq!((gate.calls(), gate.queued_bytes()), (0, 0), "dropped at poll {polls}");
        waiting += 1;
        polls += 1;
    }
    assert!(waiting >= 10 * (POLLS - 1), "each of the calls was dropped where it waits: {waiting}");
    assert_eq!((gate.calls(), gate.queued_bytes()), (0, 0));
}

#[test]
fn what_a_dropped_guest_has_stored_is_counted_to_the_byte() {
    let account = Account::new(guest::QUOTA);
    let slow: Arc<dyn LocalBucket> = Arc::new(Slow(Memory::new().unwrap().bucket("main").unwrap()));
    let metered: Arc<dyn LocalBucket> = Arc::new(Metered::new(slow, [account.clone()]).unwrap());
    let ctx = WasiKeyValueCtx::builder().limits(limits()).grant("main", metered.clone(), Rights::ALL).build();
    let body = format!(
        "(local.set $b (call $main)) {} #0",
        repeat(
            8,
            "(call $name #0x8000 (local.get $i))
        (drop (call $set_ (local.get $b) #0x8000 #8 @text)) (drop (call $get_ (local.get $b) @l))
        (drop (call $increment_ (local.get $b) @k ##7))"
        )
    );
    let component = compile(&body, REALLOC);
    for polls in 1..20 {
        polled(&component, &ctx, polls);
        assert_eq!(account.used(), guest::held(&*metered), "dropped at poll {polls}");
    }
}
