//! `watch-service`: cases 60 to 64 of the conformance suite, and what a component that fails does to others: nothing.
//!
//! The component is `watcher.wat`: it logs its calls, and the first byte of a key says what it does then. What is promised is promised to
//! it in every shape that an export `watcher` has.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "watcher/host.rs"]
mod host;

use host::{Log, Shape, State, options, pair, watch, watch_as};
use kvasi::{Bucket, Durability, Options};
use kvasi_wasmtime::backend::{Backend, Capabilities, LocalBucket, Memory};
use kvasi_wasmtime::{Code, Rights, Step, WasiKeyValueCtx, WatchOptions, WatchService};
use std::sync::Arc;
use std::time::Duration;

/// A store, a bucket in it, and a service that is told of it.
struct World {
    store: kvasi::Store,
    bucket: Bucket,
    log: Log,
    service: WatchService<State>,
}

fn service(store: &kvasi::Store, log: &Log, options: WatchOptions) -> WatchService<State> {
    service_of(Shape::Draft2, store, log, options)
}

fn service_of(shape: Shape, store: &kvasi::Store, log: &Log, options: WatchOptions) -> WatchService<State> {
    let bucket = store.bucket("main").unwrap();
    let ctx = WasiKeyValueCtx::builder().bucket("guest's name", bucket).build();
    watch_as(shape, "test", &ctx, log, options).unwrap()
}

fn world_of(store: kvasi::Store) -> World {
    told_in(Shape::Draft2, store)
}

fn told_in(shape: Shape, store: kvasi::Store) -> World {
    let (log, bucket) = (Log::default(), store.bucket("main").unwrap());
    let service = service_of(shape, &store, &log, options());
    World { store, bucket, log, service }
}

fn world() -> World {
    world_as(Shape::Draft2)
}

fn world_as(shape: Shape) -> World {
    told_in(shape, kvasi::Store::in_memory(Options::new()).unwrap())
}

impl World {
    /// Steps until nothing comes; what was logged meanwhile. A failure is not expected.
    fn settle(&mut self) -> Vec<(String, String)> {
        loop {
            match self.service.step(Duration::ZERO).unwrap() {
                Step::Idle => return std::mem::take(&mut *self.log.lock().unwrap()),
                Step::Delivered(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn watch_60_the_bucket_is_the_callees_to_use_and_to_drop() {
    for shape in Shape::ALL {
        let mut world = world_as(shape);
        // Once more than the handles it may have at once: each was dropped.
        let events = if shape == Shape::Draft2 { 3000 } else { 300 };
        for _ in 0..events {
            world.bucket.set(b"i", b"x").unwrap();
        }
        let told = world.settle();
        assert_eq!(told.iter().filter(|(key, _)| key == "i").count(), events, "{shape:?}");
        assert_eq!(world.bucket.get(b"count").unwrap().unwrap()[..], *events.to_string().as_bytes(), "{shape:?}");
    }
}

#[test]
fn watch_61_64_one_call_for_each_committed_change_in_order_and_none_for_what_changed_nothing() {
    let durabilities = [Durability::Ephemeral, Durability::Sync, Durability::Os];
    for (shape, durability) in Shape::ALL.into_iter().flat_map(|shape| durabilities.map(|of| (shape, of))) {
        let dir = tempfile::tempdir().unwrap();
        let store = match durability {
            Durability::Ephemeral => kvasi::Store::in_memory(Options::new()).unwrap(),
            durability => kvasi::Store::open(dir.path().join("s"), Options::new().durability(durability)).unwrap(),
        };
        let mut world = told_in(shape, store);
        let bucket = &world.bucket;
        bucket.set(b"k", b"1").unwrap();
        bucket.increment(b"k", 4).unwrap();
        let version = bucket.get(b"k").unwrap().unwrap().version();
        bucket.compare_and_swap(b"k", Some(version), b"swapped").unwrap();
        bucket.compare_and_swap(b"k", Some(version), b"lost").unwrap();
        assert!(!bucket.delete(b"absent").unwrap());
        bucket.set_many(&[("x", "1"), ("y", "2"), ("x", "3")]).unwrap();
        bucket.delete_many(&["x", "absent", "y"]).unwrap();
        bucket.set(b"", b"").unwrap();
        bucket.set(b"\xff not text", b"").unwrap();
        bucket.delete(b"k").unwrap();
        world.store.bucket("another").unwrap().set(b"k", b"not watched").unwrap();
        let expected = [
            pair("k", "1"),
            pair("k", "5"),
            pair("k", "swapped"),
            pair("x", "1"),
            pair("y", "2"),
            pair("x", "3"),
            pair("x", "deleted"),
            pair("y", "deleted"),
            pair("", ""),
            pair("k", "deleted"),
        ];
        assert_eq!(world.settle(), expected, "{shape:?}, {durability:?}");
        assert_eq!(world.settle(), [], "once");
        // What a callback writes is as durable as other writes, and what it waits for is not held up by its waiting.
        world.bucket.set(b"l", b"itself").unwrap();
        assert_eq!(world.settle(), vec![pair("l", "itself"); 8], "{shape:?}, {durability:?}");
    }
}

#[test]
fn watch_62_a_chain_of_callbacks_ends_after_eight_steps() {
    for shape in Shape::ALL {
        let mut world = world_as(shape);
        world.bucket.set(b"l", b"itself").unwrap();
        assert_eq!(world.settle(), vec![pair("l", "itself"); 8]);
        world.bucket.set(b"a", b"in turn").unwrap();
        let told: Vec<String> = world.settle().into_iter().map(|(key, _)| key).collect();
        assert_eq!(told, ["a", "b", "a", "b", "a", "b", "a", "b"]);
        // A chain that was cut leaves nothing behind: the next write begins anew.
        world.bucket.set(b"a", b"again").unwrap();
        assert_eq!(world.settle().len(), 8);
        // A delete is a step, too; and a write of an absent key's deletion leaves no note for the next one's.
        world.bucket.set(b"d", b"").unwrap();
        assert_eq!(world.settle(), [pair("d", ""), pair("d", "deleted")]);
        for _ in 0..20 {
            world.bucket.set(b"e", b"").unwrap();
            assert_eq!(world.settle(), [pair("e", ""), pair("x", "")]);
        }
        world.bucket.set(b"deleted", b"a key of that name").unwrap();
        assert_eq!(world.settle()[0], pair("deleted", "a key of that name"));
    }
}

#[test]
fn watch_62_a_chain_ends_after_eight_steps_also_if_the_service_ends_after_each() {
    let dir = tempfile::tempdir().unwrap();
    let store = kvasi::Store::open(dir.path().join("s"), Options::new().durability(Durability::Os)).unwrap();
    let mut world = world_of(store);
    world.bucket.set(b"l", b"itself").unwrap();
    let mut steps = 0;
    for _ in 0..30 {
        match world.service.step(Duration::ZERO).unwrap() {
            Step::Delivered(n) => steps += n,
            Step::Idle => {}
            other => panic!("{other:?}"),
        }
        world.service = service(&world.store, &world.log, options());
    }
    assert_eq!(steps, 8);
}

#[test]
fn watch_62_a_chain_through_two_components_is_one_chain() {
    let store = kvasi::Store::in_memory(Options::new()).unwrap();
    let log = Log::default();
    let make = |name: &str| {
        let ctx = WasiKeyValueCtx::builder().bucket("main", store.bucket("main").unwrap()).build();
        watch(name, &ctx, &log, options()).unwrap()
    };
    let mut services = [make("one"), make("two")];
    store.bucket("main").unwrap().set(b"a", b"").unwrap();
    let mut rounds = 0;
    while services.iter_mut().any(|service| !matches!(service.step(Duration::ZERO).unwrap(), Step::Idle)) {
        rounds += 1;
        assert!(rounds < 10_000, "the chain does not end");
    }
    // Each callback of either sets off one of both: at most 2 + 4 + ... + 2^8.
    assert!(log.lock().unwrap().len() <= 510, "{}", log.lock().unwrap().len());
}

#[test]
fn watch_63_a_callback_that_fails_loses_no_write_and_holds_nobody_up() {
    const WAIT: Duration = Duration::from_millis(200);
    let ways = [("t", "unreachable"), ("n", "fuel"), ("m", "unreachable"), ("w", "waited for more than 200ms")];
    let ways = Shape::ALL.into_iter().flat_map(|shape| ways.map(|way| (shape, way)));
    for (shape, (key, why)) in ways.filter(|(shape, (key, _))| *key != "w" || shape.is_async()) {
        let options = || if key == "w" { WatchOptions { wait: WAIT, ..options() } } else { options() };
        let mut world = world_as(shape);
        world.service = service_of(shape, &world.store, &world.log, options());
        world.bucket.set(b"before", b"1").unwrap();
        world.bucket.set(key.as_bytes(), b"2").unwrap();
        world.bucket.set(b"zafter", b"3").unwrap();
        let mut failures = Vec::new();
        let delivered = loop {
            match world.service.step(Duration::ZERO).unwrap() {
                Step::Failed { failures: n, error, .. } => {
                    assert!(format!("{error:?}").contains(why), "{shape:?}, {key}: {error:?}");
                    failures.push(n);
                    // The writer goes on meanwhile.
                    world.bucket.set(b"zmeanwhile", b"4").unwrap();
                }
                Step::Disabled => break std::mem::take(&mut *world.log.lock().unwrap()),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(failures, [1, 2, 3, 4]);
        assert_eq!(delivered.iter().filter(|(key, _)| key == "before").count(), 1, "what was delivered is not again");
        assert_eq!(delivered.iter().filter(|(k, _)| k == key).count(), 5);
        assert!(matches!(world.service.step(Duration::from_secs(100)).unwrap(), Step::Disabled));
        assert_eq!(world.bucket.get(key.as_bytes()).unwrap().unwrap()[..], *b"2");
        // A service that begins anew begins with the event that failed; once it is gone from its way, all comes.
        world.service = service_of(shape, &world.store, &world.log, options());
        assert!(matches!(world.service.step(Duration::ZERO).unwrap(), Step::Failed { failures: 1, .. }));
        assert_eq!(world.log.lock().unwrap().last(), Some(&pair(key, "2")));
    }
}

#[test]
fn a_task_that_goes_on_when_its_callback_has_returned_writes_one_step_further_than_it_was_told() {
    let mut world = world_as(Shape::Tasks);
    world.bucket.set(b"g", b"itself").unwrap();
    assert_eq!(world.settle(), vec![pair("g", "itself"); 8]);
}

#[test]
fn a_batch_of_an_async_watcher_has_events_of_one_distance() {
    for (shape, batches) in [(Shape::Draft2C, &[2, 1, 1][..]), (Shape::Draft2, &[2, 2])] {
        let mut world = world_as(shape);
        world.bucket.set(b"l", b"").unwrap();
        world.bucket.set(b"k", b"").unwrap();
        for delivered in batches {
            match world.service.step(Duration::ZERO).unwrap() {
                Step::Delivered(n) => assert_eq!(n, *delivered, "{shape:?}"),
                other => panic!("{shape:?}: {other:?}"),
            }
            if *delivered == 2 {
                world.bucket.set(b"k", b"").unwrap();
            }
        }
    }
}

#[test]
fn watch_63_back_off_doubles() {
    let world = world();
    let mut service =
        service(&world.store, &world.log, WatchOptions { backoff: Duration::from_millis(10), ..options() });
    world.bucket.set(b"t", b"").unwrap();
    let mut rests = Vec::new();
    while let Step::Failed { rest, .. } = service.step(Duration::ZERO).unwrap() {
        rests.push(rest.as_millis());
    }
    assert_eq!(rests, [10, 20, 40, 80]);
}

#[test]
fn a_service_goes_on_where_the_last_one_stopped_and_a_batch_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let open = || kvasi::Store::open(dir.path().join("s"), Options::new().durability(Durability::Os)).unwrap();
    let mut world = world_of(open());
    for i in 0..2500u32 {
        world.bucket.set(format!("k{i}").as_bytes(), b"").unwrap();
    }
    assert!(matches!(world.service.step(Duration::ZERO).unwrap(), Step::Delivered(1000)));
    let World { store, bucket, log, service: gone } = world;
    drop((bucket, gone));
    store.close().unwrap();
    let store = open();
    let mut service = service(&store, &log, WatchOptions { bytes_max: 1000, ..options() });
    store.bucket("main").unwrap().set(b"k2500", b"").unwrap();
    while !matches!(service.step(Duration::ZERO).unwrap(), Step::Idle) {}
    let told = log.lock().unwrap();
    assert!(told.iter().map(|(key, _)| key.clone()).eq((0..=2500).map(|i| format!("k{i}"))), "each once, in order");
}

#[test]
fn a_service_that_was_overtaken_says_so_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let options_of_store = Options::new().durability(Durability::Os).segment_bytes_max(64 << 10);
    let mut world = world_of(kvasi::Store::open(dir.path().join("s"), options_of_store).unwrap());
    let mut i = 0u32;
    let mut write = |n| {
        for _ in 0..n {
            world.bucket.set(format!("k{}", i % 50).as_bytes(), &[b'x'; 1000]).unwrap();
            i += 1;
        }
        i
    };
    write(200);
    let position = world.store.position();
    loop {
        let written = write(100);
        let mut watch = world.store.watch(kvasi::WatchFrom::Position(position)).unwrap();
        if matches!(watch.try_next().unwrap(), Some(kvasi::Delivery::Lagged { .. })) {
            break;
        }
        assert!(written < 3_000_000, "nothing is cleaned");
    }
    let mut lagged = 0;
    world.service = service(&world.store, &world.log, options());
    loop {
        match world.service.step(Duration::ZERO).unwrap() {
            Step::Lagged => lagged += 1,
            Step::Delivered(_) => {}
            Step::Idle => break,
            other => panic!("{other:?}"),
        }
    }
    assert!(lagged >= 1);
    world.bucket.set(b"k", b"at last").unwrap();
    assert_eq!(world.settle().last(), Some(&pair("k", "at last")));
}

/// A bucket that is nowhere in particular.
struct Elsewhere(Arc<dyn LocalBucket>);

impl LocalBucket for Elsewhere {
    fn identity(&self) -> &str {
        self.0.identity()
    }
    fn get(&self, key: &str) -> Result<Option<bytes::Bytes>, kvasi_wasmtime::Error> {
        self.0.get(key)
    }
    fn exists(&self, key: &str) -> Result<bool, kvasi_wasmtime::Error> {
        self.0.exists(key)
    }
    fn set(&self, key: &str, value: &[u8]) -> Result<(), kvasi_wasmtime::Error> {
        self.0.set(key, value)
    }
    fn delete(&self, key: &str) -> Result<(), kvasi_wasmtime::Error> {
        self.0.delete(key)
    }
    fn list(
        &self,
        after: Option<&[u8]>,
        bounds: kvasi_wasmtime::backend::PageBounds,
    ) -> Result<kvasi_wasmtime::backend::Page, kvasi_wasmtime::Error> {
        self.0.list(after, bounds)
    }
    fn increment(&self, key: &str, delta: i64) -> Result<i64, kvasi_wasmtime::Error> {
        self.0.increment(key, delta)
    }
    fn observe(&self, key: &str) -> Result<kvasi_wasmtime::backend::Observed, kvasi_wasmtime::Error> {
        self.0.observe(key)
    }
    fn swap(
        &self,
        key: &str,
        guard: &kvasi_wasmtime::backend::Guard,
        value: &[u8],
    ) -> Result<kvasi_wasmtime::backend::Swap, kvasi_wasmtime::Error> {
        self.0.swap(key, guard, value)
    }
    fn get_many(
        &self,
        keys: &[kvasi_wasmtime::backend::Key<'_>],
    ) -> Result<Vec<Option<kvasi_wasmtime::backend::Pair>>, kvasi_wasmtime::Error> {
        self.0.get_many(keys)
    }
    fn set_many(&self, pairs: &[(kvasi_wasmtime::backend::Key<'_>, &[u8])]) -> Result<(), kvasi_wasmtime::Error> {
        self.0.set_many(pairs)
    }
    fn delete_many(&self, keys: &[kvasi_wasmtime::backend::Key<'_>]) -> Result<(), kvasi_wasmtime::Error> {
        self.0.delete_many(keys)
    }
}

#[test]
fn what_cannot_be_watched_is_not_supported() {
    const { assert!(Capabilities::ENGINE.watchable) };
    let code = |ctx: &WasiKeyValueCtx| {
        let made = watch("x", ctx, &Log::default(), options());
        made.unwrap_err().code()
    };
    let memory = || Memory::new().unwrap().bucket("b").unwrap();
    let elsewhere: Arc<dyn LocalBucket> = Arc::new(Elsewhere(memory()));
    let ctx = WasiKeyValueCtx::builder().grant("b", elsewhere, Rights::ALL).build();
    assert_eq!(code(&ctx), Code::Unsupported);
    let ctx = WasiKeyValueCtx::builder().grant("b", memory(), Rights::READ | Rights::WRITE).build();
    assert_eq!(code(&ctx), Code::Unsupported, "nothing is to be watched");
    let ctx = WasiKeyValueCtx::builder().grant("a", memory(), Rights::ALL).grant("b", memory(), Rights::ALL).build();
    assert_eq!(code(&ctx), Code::Unsupported, "two stores");
}
