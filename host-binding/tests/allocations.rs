//! What one call allocates: nothing of ours for get, set, exists, delete and increment, at most two for a get-many of 100.
//!
//! How: one script, run twice by the same guest: with the binding, and with a function of the same type in place of one
//! call that answers the same and does nothing. What the two allocate differs by what that call allocates between
//! wasmtime's lifting and lowering. A counting allocator counts, per thread.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use bytes::Bytes;
use kvasi_wasmtime::backend::{self, Backend, Guard, LocalBucket, Memory, Observed, Page, PageBounds, Pair, Swap};
use kvasi_wasmtime::bindings::store::Error;
use kvasi_wasmtime::{Bucket, Rights, Utf8Bytes, WasiKeyValueCtx, WasiKeyValueCtxView, WasiKeyValueView};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::{Arc, OnceLock};
use wasmtime::component::{Component, Linker, LinkerInstance, Resource, ResourceTable, WasmList, WasmStr};
use wasmtime::{Engine, Store};
use wasmtime_wasi::p2::bindings::sync::Command;
use wasmtime_wasi::p2::pipe::{MemoryInputPipe, MemoryOutputPipe};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};

thread_local!(static COUNT: Cell<u64> = const { Cell::new(0) });

struct Counting;

fn count() {
    COUNT.with(|count| count.set(count.get() + 1));
}

// SAFETY: every call goes to `System` as it is; counting touches a thread-local that needs no allocation.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise, passed on.
        unsafe { System.dealloc(at, layout) }
    }
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promise, passed on.
        unsafe { System.realloc(at, layout, bytes) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

struct State {
    wasi: WasiCtx,
    keyvalue: WasiKeyValueCtx,
    table: ResourceTable,
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl WasiKeyValueView for State {
    fn keyvalue(&mut self) -> WasiKeyValueCtxView<'_> {
        WasiKeyValueCtxView { ctx: &mut self.keyvalue, table: &mut self.table }
    }
}

type Stub = fn(&mut LinkerInstance<'_, State>) -> wasmtime::Result<()>;
type Key = (Resource<Bucket>, WasmStr);

fn stub_get(instance: &mut LinkerInstance<'_, State>) -> wasmtime::Result<()> {
    let answer = || Ok::<_, Error>(Some(Bytes::from_static(b"0")));
    instance.func_wrap("[method]bucket.get", move |_, (_, _): Key| Ok((answer(),)))
}

fn stub_set(instance: &mut LinkerInstance<'_, State>) -> wasmtime::Result<()> {
    type Set = (Resource<Bucket>, WasmStr, WasmList<u8>);
    instance.func_wrap("[method]bucket.set", |_, (_, _, _): Set| Ok((Ok::<_, Error>(()),)))
}

fn stub_exists(instance: &mut LinkerInstance<'_, State>) -> wasmtime::Result<()> {
    instance.func_wrap("[method]bucket.exists", |_, (_, _): Key| Ok((Ok::<_, Error>(true),)))
}

fn stub_delete(instance: &mut LinkerInstance<'_, State>) -> wasmtime::Result<()> {
    instance.func_wrap("[method]bucket.delete", |_, (_, _): Key| Ok((Ok::<_, Error>(()),)))
}

fn stub_increment(instance: &mut LinkerInstance<'_, State>) -> wasmtime::Result<()> {
    type Increment = (Resource<Bucket>, WasmStr, i64);
    instance.func_wrap("increment", |_, (_, _, _): Increment| Ok((Ok::<_, Error>(0_i64),)))
}

/// A list that is there already costs no allocation when it is answered: an `Arc` of it is.
fn stub_get_many(instance: &mut LinkerInstance<'_, State>) -> wasmtime::Result<()> {
    type Keys = (Resource<Bucket>, WasmList<WasmStr>);
    let pairs: Arc<[_]> = (0..100).map(|i| Some((key_bytes(i), Bytes::from_static(b"v")))).collect();
    instance.func_wrap("get-many", move |_, (_, _): Keys| Ok((Ok::<_, Error>(pairs.clone()),)))
}

/// The same of form B, whose misses have their keys.
fn stub_get_many_b(instance: &mut LinkerInstance<'_, State>) -> wasmtime::Result<()> {
    type Keys = (Resource<Bucket>, WasmList<WasmStr>);
    let pairs: Arc<[_]> = (0..100).map(|i| (key_bytes(i), Some(Bytes::from_static(b"v")))).collect();
    instance.func_wrap("get-many", move |_, (_, _): Keys| Ok((Ok::<_, Error>(pairs.clone()),)))
}

struct Bench {
    engine: Engine,
    component: Component,
    version: &'static str,
    ctx: WasiKeyValueCtx,
}

impl Bench {
    /// Allocations of this thread while the guest runs the script, and what the guest printed.
    fn run(&self, script: &str, stub: Option<(&str, Stub)>) -> (u64, Bytes) {
        let mut linker = Linker::new(&self.engine);
        wasmtime_wasi::p2::add_to_linker_sync(&mut linker).unwrap();
        kvasi_wasmtime::link_sync(&mut linker, &self.component).unwrap();
        if let Some((interface, stub)) = stub {
            linker.allow_shadowing(true);
            stub(&mut linker.instance(&format!("wasi:keyvalue/{interface}@{}", self.version)).unwrap()).unwrap();
        }
        let output = MemoryOutputPipe::new(1 << 20);
        let wasi = WasiCtx::builder()
            .stdin(MemoryInputPipe::new(script.to_owned()))
            .stdout(output.clone())
            .allow_blocking_current_thread(true)
            .build();
        let state = State { wasi, keyvalue: self.ctx.clone(), table: ResourceTable::new() };
        let mut store = Store::new(&self.engine, state);
        let command = Command::instantiate(&mut store, &self.component, &linker).unwrap();
        let before = COUNT.get();
        command.wasi_cli_run().call_run(&mut store).unwrap().unwrap();
        (COUNT.get() - before, output.contents())
    }

    /// What `call` allocates of ours, per call.
    fn per_call(&self, call: &str, interface: &str, stub: Stub) -> f64 {
        const CALLS: u32 = 1000;
        let script = format!("open 0 main\nset 0 k 0\n{}", format!("{call}\n").repeat(CALLS as usize));
        self.run(&script, None);
        let (ours, said) = self.run(&script, None);
        let (base, expected) = self.run(&script, Some((interface, stub)));
        assert_eq!(said, expected, "the stub answers as the binding does");
        (ours as f64 - base as f64) / f64::from(CALLS)
    }
}

fn bench(bucket: Arc<dyn LocalBucket>) -> Bench {
    bench_of("probe-c", "0.2.0-draft2", bucket)
}

/// `guest` imports the interface at that version.
fn bench_of(guest: &str, version: &'static str, bucket: Arc<dyn LocalBucket>) -> Bench {
    let mut config = wasmtime::Config::new();
    config.concurrency_support(false);
    let engine = Engine::new(&config).unwrap();
    let path = format!("{}/guests/prebuilt/{guest}.wasm", env!("CARGO_MANIFEST_DIR"));
    let component = Component::from_file(&engine, path).unwrap();
    Bench { engine, component, version, ctx: WasiKeyValueCtx::builder().grant("main", bucket, Rights::ALL).build() }
}

/// Asserts that single calls allocate nothing and a get-many of 100 at most `get_many_max`.
fn measure(bucket: Arc<dyn LocalBucket>, get_many_max: f64) {
    let bench = bench(bucket);
    let singles: [(&str, &str, Stub); 5] = [
        ("get 0 k", "store", stub_get),
        ("set 0 k 0", "store", stub_set),
        ("exists 0 k", "store", stub_exists),
        ("delete 0 absent", "store", stub_delete),
        ("increment 0 k 0", "atomics", stub_increment),
    ];
    let mut report = String::new();
    let mut over = false;
    for (call, interface, stub) in singles {
        let count = bench.per_call(call, interface, stub);
        report += &format!("{call}: {count}\n");
        // The engine's log and index grow now and then; a call of its own is a whole one each time.
        over |= count > 0.05;
    }
    let count = bench.per_call("get-many-gen 0 g 0 100", "batch", stub_get_many);
    report += &format!("get-many of 100: {count}\n");
    assert!(!over && count <= get_many_max + 0.05, "{report}");
    println!("{report}");
}

/// A back end that allocates nothing itself, but for the list that `get-many` answers.
struct Fixed;

fn key_bytes(i: usize) -> Utf8Bytes {
    static KEYS: OnceLock<Vec<Utf8Bytes>> = OnceLock::new();
    let make = |i: usize| Utf8Bytes::new(Bytes::from(format!("g{i}").into_bytes())).unwrap();
    KEYS.get_or_init(|| (0..100).map(make).collect())[i].clone()
}

impl LocalBucket for Fixed {
    fn identity(&self) -> &str {
        "fixed"
    }
    fn get(&self, _: &str) -> Result<Option<Bytes>, kvasi_wasmtime::Error> {
        Ok(Some(Bytes::from_static(b"0")))
    }
    fn exists(&self, _: &str) -> Result<bool, kvasi_wasmtime::Error> {
        Ok(true)
    }
    fn set(&self, _: &str, _: &[u8]) -> Result<(), kvasi_wasmtime::Error> {
        Ok(())
    }
    fn delete(&self, _: &str) -> Result<(), kvasi_wasmtime::Error> {
        Ok(())
    }
    fn list(&self, _: Option<&[u8]>, _: PageBounds) -> Result<Page, kvasi_wasmtime::Error> {
        Ok(Page::default())
    }
    fn increment(&self, _: &str, _: i64) -> Result<i64, kvasi_wasmtime::Error> {
        Ok(0)
    }
    fn observe(&self, _: &str) -> Result<Observed, kvasi_wasmtime::Error> {
        Ok(Observed { value: None, guard: Guard::Absent })
    }
    fn swap(&self, _: &str, _: &Guard, _: &[u8]) -> Result<Swap, kvasi_wasmtime::Error> {
        Ok(Swap::Done)
    }
    fn get_many(&self, keys: &[backend::Key<'_>]) -> Result<Vec<Option<Pair>>, kvasi_wasmtime::Error> {
        Ok((0..keys.len()).map(|i| Some((key_bytes(i), Bytes::from_static(b"v")))).collect())
    }
    fn set_many(&self, _: &[(backend::Key<'_>, &[u8])]) -> Result<(), kvasi_wasmtime::Error> {
        Ok(())
    }
    fn delete_many(&self, _: &[backend::Key<'_>]) -> Result<(), kvasi_wasmtime::Error> {
        Ok(())
    }
}

#[test]
fn the_binding_alone_allocates_nothing_but_a_list() {
    measure(Arc::new(Fixed), 1.0);
}

#[test]
fn with_the_engine_single_calls_allocate_nothing_and_get_many_two() {
    let bucket = Memory::new().unwrap().bucket("main").unwrap();
    (0..100).for_each(|i| bucket.set(&key_bytes(i), b"v").unwrap());
    measure(bucket, 2.0);
}

#[test]
fn get_many_of_the_other_shapes_allocates_no_more() {
    let bucket = Memory::new().unwrap().bucket("main").unwrap();
    (0..100).for_each(|i| bucket.set(&key_bytes(i), b"v").unwrap());
    let shapes: [(&str, &str, Stub); 2] =
        [("probe-draft-c", "0.2.0-draft", stub_get_many), ("probe-draft2-b-c", "0.2.0-draft2", stub_get_many_b)];
    for (guest, version, stub) in shapes {
        let bench = bench_of(guest, version, bucket.clone());
        let count = bench.per_call("get-many-gen 0 g 0 100", "batch", stub);
        assert!(count <= 2.05, "{guest}: {count}");
        println!("{guest}: {count}");
    }
}
