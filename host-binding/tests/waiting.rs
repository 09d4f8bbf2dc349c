//! An asynchronous host: what is there is answered without a switch of stacks, what is not suspends the guest and nobody else,
//! and a call that is given up at any poll leaves nothing behind and is wholly made or not at all.
//!
//! How: a component of a few lines sets many keys and reads them back; a bucket of ours answers later, in as many polls as a test likes, or
//! the engine does, when its disk has synced. Futures are polled by hand, or by a runtime whose clock is the test's own.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use bytes::Bytes;
use kvasi::{Durability, Options};
use kvasi_wasmtime::backend::{
    Backend, Guard, Key, LocalBucket, Memory, Observed, Page, PageBounds, Pair, Reply, Swap,
};
use kvasi_wasmtime::{Error, Rights, WasiKeyValueCtx, WasiKeyValueCtxView, WasiKeyValueView, link_async};
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use wasmtime::component::{Component, InstancePre, Linker, ResourceTable};
use wasmtime::{Engine, Store};

/// Opens "b", sets "one" and "two" to "v" in one call, reads "two" back. Gives what it read: 1 for some, 0 for none, 10 and more for the
/// call that failed.
const GUEST: &str = r#"(component
    (import "wasi:keyvalue/store@0.2.0-draft2" (instance $store
        (export "bucket" (type $bucket (sub resource)))
        (type $e' (variant (case "no-such-store") (case "access-denied") (case "other" string)))
        (export "error" (type $e (eq $e')))
        (export "open" (func (param "identifier" string) (result (result (own $bucket) (error $e)))))
        (export "[method]bucket.get" (func (param "self" (borrow $bucket)) (param "key" string)
            (result (result (option (list u8)) (error $e)))))))
    (alias export $store "bucket" (type $bucket))
    (alias export $store "error" (type $error))
    (import "wasi:keyvalue/batch@0.2.0-draft2" (instance $batch
        (alias outer 1 $bucket (type $b'))
        (export "bucket" (type $b (eq $b')))
        (alias outer 1 $error (type $e'))
        (export "error" (type $e (eq $e')))
        (export "set-many" (func (param "bucket" (borrow $b))
            (param "key-values" (list (tuple string (list u8)))) (result (result (error $e)))))))
    (core module $libc
        (memory (export "memory") 1)
        (global $next (mut i32) (i32.const 4096))
        (func (export "realloc") (param i32 i32 i32 i32) (result i32)
            (global.set $next (i32.add (global.get $next) (i32.and (i32.add (local.get 3) (i32.const 15)) (i32.const -8))))
            (i32.sub (global.get $next) (i32.and (i32.add (local.get 3) (i32.const 15)) (i32.const -8)))))
    (core instance $libc (instantiate $libc))
    (alias core export $libc "memory" (core memory $memory))
    (alias core export $libc "realloc" (core func $realloc))
    (alias export $store "open" (func $open))
    (alias export $store "[method]bucket.get" (func $get))
    (alias export $batch "set-many" (func $set_many))
    (core func $open_ (canon lower (func $open) (memory $memory) (realloc $realloc)))
    (core func $get_ (canon lower (func $get) (memory $memory) (realloc $realloc)))
    (core func $set_many_ (canon lower (func $set_many) (memory $memory) (realloc $realloc)))
    (core module $m
        (import "libc" "memory" (memory 1))
        (import "host" "open" (func $open (param i32 i32 i32)))
        (import "host" "get" (func $get (param i32 i32 i32 i32)))
        (import "host" "set-many" (func $set_many (param i32 i32 i32 i32)))
        (data (i32.const 0) "b")
        (data (i32.const 8) "onetwov")
        ;; Two pairs: key and length, value and length.
        (data (i32.const 32) "\08\00\00\00\03\00\00\00\0e\00\00\00\01\00\00\00")
        (data (i32.const 48) "\0b\00\00\00\03\00\00\00\0e\00\00\00\01\00\00\00")
        (func (export "run") (result i32)
            (local $bucket i32)
            (call $open (i32.const 0) (i32.const 1) (i32.const 128))
            (if (i32.load8_u (i32.const 128)) (then (return (i32.const 10))))
            (local.set $bucket (i32.load (i32.const 132)))
            (call $set_many (local.get $bucket) (i32.const 32) (i32.const 2) (i32.const 128))
            (if (i32.load8_u (i32.const 128)) (then (return (i32.const 11))))
            (call $get (local.get $bucket) (i32.const 11) (i32.const 3) (i32.const 128))
            (if (i32.load8_u (i32.const 128)) (then (return (i32.const 12))))
            (i32.load8_u (i32.const 132))))
    (core instance $m (instantiate $m
        (with "libc" (instance $libc))
        (with "host" (instance
            (export "open" (func $open_)) (export "get" (func $get_)) (export "set-many" (func $set_many_))))))
    (func (export "run") (result u32) (canon lift (core func $m "run"))))"#;

struct State {
    keyvalue: WasiKeyValueCtx,
    table: ResourceTable,
}

impl WasiKeyValueView for State {
    fn keyvalue(&mut self) -> WasiKeyValueCtxView<'_> {
        WasiKeyValueCtxView { ctx: &mut self.keyvalue, table: &mut self.table }
    }
}

/// The guest, linked for an asynchronous host.
fn guest() -> InstancePre<State> {
    let engine = Engine::new(wasmtime::Config::new().concurrency_support(false)).unwrap();
    let component = Component::new(&engine, wat::parse_str(GUEST).unwrap()).unwrap();
    let mut linker = Linker::new(&engine);
    link_async(&mut linker, &component).unwrap();
    linker.instantiate_pre(&component).unwrap()
}

fn ctx(bucket: Arc<dyn LocalBucket>) -> WasiKeyValueCtx {
    WasiKeyValueCtx::builder().grant("b", bucket, Rights::ALL).build()
}

/// One run of the guest in a store of its own.
async fn run(guest: &InstancePre<State>, keyvalue: WasiKeyValueCtx) -> wasmtime::Result<u32> {
    let mut store = Store::new(guest.engine(), State { keyvalue, table: ResourceTable::new() });
    let instance = guest.instantiate_async(&mut store).await?;
    let run = instance.get_typed_func::<(), (u32,)>(&mut store, "run")?;
    Ok(run.call_async(&mut store, ()).await?.0)
}

/// How often a future is pending before it is ready, polled by nobody but us; its answer.
fn polls<R>(future: impl Future<Output = R>) -> (u32, R) {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    let mut pending = 0;
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(answer) => return (pending, answer),
            Poll::Pending => pending += 1,
        }
        assert!(pending < 100_000, "it does not end");
    }
}

/// A bucket in memory whose answers take some time.
struct Late<F> {
    bucket: Arc<dyn LocalBucket>,
    time: F,
}

impl<F, W> Late<F>
where
    F: Fn() -> W + Send + Sync + 'static,
    W: Future<Output = ()> + Send + 'static,
{
    /// The call is made when its time has come, as a service would.
    fn later<R: 'static>(&self, call: impl FnOnce(&dyn LocalBucket) -> Result<R, Error> + Send + 'static) -> Reply<R> {
        let (bucket, time) = (self.bucket.clone(), (self.time)());
        Reply::later(async move {
            time.await;
            call(&*bucket)
        })
    }
}

impl<F, W> LocalBucket for Late<F>
where
    F: Fn() -> W + Send + Sync + 'static,
    W: Future<Output = ()> + Send + 'static,
{
    fn identity(&self) -> &str {
        self.bucket.identity()
    }
    fn get(&self, _: &str) -> Result<Option<Bytes>, Error> {
        panic!("an asynchronous host does not make its thread wait")
    }
    fn exists(&self, key: &str) -> Result<bool, Error> {
        self.bucket.exists(key)
    }
    fn set(&self, key: &str, value: &[u8]) -> Result<(), Error> {
        self.bucket.set(key, value)
    }
    fn delete(&self, key: &str) -> Result<(), Error> {
        self.bucket.delete(key)
    }
    fn list(&self, after: Option<&[u8]>, bounds: PageBounds) -> Result<Page, Error> {
        self.bucket.list(after, bounds)
    }
    fn increment(&self, key: &str, delta: i64) -> Result<i64, Error> {
        self.bucket.increment(key, delta)
    }
    fn observe(&self, key: &str) -> Result<Observed, Error> {
        self.bucket.observe(key)
    }
    fn swap(&self, key: &str, guard: &Guard, value: &[u8]) -> Result<Swap, Error> {
        self.bucket.swap(key, guard, value)
    }
    fn get_many(&self, keys: &[Key<'_>]) -> Result<Vec<Option<Pair>>, Error> {
        self.bucket.get_many(keys)
    }
    fn set_many(&self, _: &[(Key<'_>, &[u8])]) -> Result<(), Error> {
        panic!("an asynchronous host does not make its thread wait")
    }
    fn delete_many(&self, keys: &[Key<'_>]) -> Result<(), Error> {
        self.bucket.delete_many(keys)
    }
    fn start_get(&self, key: &str) -> Reply<Option<Bytes>> {
        let key = key.to_owned();
        self.later(move |bucket| bucket.get(&key))
    }
    fn start_set_many(&self, pairs: &[(Key<'_>, &[u8])]) -> Reply<()> {
        let pairs: Vec<(String, Vec<u8>)> =
            pairs.iter().map(|(key, value)| (AsRef::<str>::as_ref(key).to_owned(), value.to_vec())).collect();
        self.later(move |bucket| {
            let pairs: Vec<_> = pairs.iter().map(|(key, value)| (Key::from(&**key), &**value)).collect();
            bucket.set_many(&pairs)
        })
    }
}

/// Pending so many times.
async fn pending(times: u32) {
    let mut left = times;
    poll_fn(move |context| {
        if left == 0 {
            return Poll::Ready(());
        }
        left -= 1;
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

fn memory() -> Arc<dyn LocalBucket> {
    Memory::new().unwrap().bucket("b").unwrap()
}

#[test]
fn what_is_in_memory_is_answered_at_the_first_poll() {
    let (pending, answer) = polls(run(&guest(), ctx(memory())));
    assert_eq!((pending, answer.unwrap()), (0, 1), "no call switched stacks");
}

#[test]
fn what_is_not_there_suspends_the_guest_and_is_answered_when_it_is() {
    let late = Late { bucket: memory(), time: || pending(3) };
    let (pending, answer) = polls(run(&guest(), ctx(Arc::new(late))));
    assert_eq!((pending, answer.unwrap()), (6, 1), "two calls of three polls each");
}

#[test]
fn the_executor_goes_on_while_a_guest_waits() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let late = Late { bucket: memory(), time: || tokio::time::sleep(Duration::from_secs(1)) };
    let (ticks, guest) = (Arc::new(AtomicU32::new(0)), guest());
    let counted = runtime.block_on(async {
        let ticker = ticks.clone();
        let ticking = tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(10)).await;
                ticker.fetch_add(1, Ordering::Relaxed);
            }
        });
        assert_eq!(run(&guest, ctx(Arc::new(late))).await.unwrap(), 1);
        ticking.abort();
        ticks.load(Ordering::Relaxed)
    });
    // Two calls of a second each, on the test's own clock.
    assert!((198..=201).contains(&counted), "{counted} ticks");
}

/// How many keys of the two are there.
fn count(bucket: &dyn LocalBucket) -> usize {
    ["one", "two"].into_iter().filter(|key| bucket.exists(key).unwrap()).count()
}

#[test]
fn a_call_given_up_at_any_poll_leaves_nothing_and_is_whole_or_not_made() {
    let guest = guest();
    for k in 0..=6 {
        let bucket = memory();
        let late: Arc<dyn LocalBucket> = Arc::new(Late { bucket: bucket.clone(), time: || pending(3) });
        let ctx = ctx(late.clone());
        {
            let mut call = pin!(run(&guest, ctx.clone()));
            let mut context = Context::from_waker(Waker::noop());
            for _ in 0..k {
                assert!(call.as_mut().poll(&mut context).is_pending());
            }
        }
        // The guest's store, its handles and its future are gone: nobody but us and the context has the bucket.
        drop(ctx);
        assert_eq!(Arc::strong_count(&late), 1, "after {k} polls");
        drop(late);
        assert_eq!(Arc::strong_count(&bucket), 1, "after {k} polls");
        // The batch is made in the fourth poll.
        assert_eq!(count(&*bucket), if k > 3 { 2 } else { 0 }, "after {k} polls");
    }
}

#[test]
fn a_sync_write_suspends_and_when_given_up_is_made_as_a_whole() {
    let dir = tempfile::tempdir().unwrap();
    let guest = guest();
    let mut suspended = 0;
    for round in 0..20 {
        let store = kvasi::Store::open(dir.path(), Options::new().durability(Durability::Sync)).unwrap();
        let bucket = store.bucket(&format!("b{round}")).unwrap();
        {
            let mut call = pin!(run(&guest, ctx(Arc::new(bucket.clone()))));
            let mut context = Context::from_waker(Waker::noop());
            suspended += u32::from(call.as_mut().poll(&mut context).is_pending());
            // Given up here, while the disk works.
        }
        drop(bucket);
        store.close().unwrap();
        let store = kvasi::Store::open(dir.path(), Options::new()).unwrap();
        let bucket = store.bucket(&format!("b{round}")).unwrap();
        assert_eq!(count(&bucket), 2, "round {round}");
        drop(bucket);
        store.close().unwrap();
    }
    // A disk may be quicker than a poll, but not each time.
    assert!(suspended > 0, "no write was left to the disk");
}

#[test]
fn a_sync_write_is_durable_when_it_is_answered() {
    let dir = tempfile::tempdir().unwrap();
    let store = kvasi::Store::open(dir.path(), Options::new().durability(Durability::Sync)).unwrap();
    let bucket = store.bucket("b").unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let guest = guest();
    assert_eq!(runtime.block_on(run(&guest, ctx(Arc::new(bucket)))).unwrap(), 1);
}
