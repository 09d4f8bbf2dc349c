//! Case 5: labelled imports of one interface, each with names of its own, and a handle that keeps its back end wherever it is used.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use kvasi_wasmtime::backend::{Backend, LocalBucket, Memory};
use kvasi_wasmtime::{Rights, Shapes, WasiKeyValueCtx, WasiKeyValueCtxView, WasiKeyValueView, link_sync};
use std::sync::Arc;
use wasmtime::component::{Component, Linker, ResourceTable};
use wasmtime::{Config, Engine, Store};

/// An import of the store under a label, and the cores of its functions.
fn store(label: &str) -> String {
    format!(
        r#"(import "{label}" (implements "wasi:keyvalue/store@0.2.0-draft2") (instance ${label}
            (export "bucket" (type $bucket (sub resource)))
            (type $e' (variant (case "no-such-store") (case "access-denied") (case "other" string)))
            (export "error" (type $e (eq $e')))
            (export "open" (func (param "identifier" string) (result (result (own $bucket) (error $e)))))
            (export "[method]bucket.exists" (func (param "self" (borrow $bucket)) (param "key" string)
                (result (result bool (error $e)))))))
        (alias export ${label} "open" (func ${label}-open))
        (alias export ${label} "[method]bucket.exists" (func ${label}-exists))
        (core func ${label}-open' (canon lower (func ${label}-open) (memory $memory) (realloc $realloc)))
        (core func ${label}-exists' (canon lower (func ${label}-exists) (memory $memory) (realloc $realloc)))"#
    )
}

/// Opens "" through each label, increments "n" through the interface without a label in the bucket that came through the first, and
/// looks for "n" in both. Gives 100 * the sum + 10 * whether the first has it + whether the second has it; 10,000 and more for the call
/// that failed.
fn guest() -> Vec<u8> {
    let text = format!(
        r#"(component
        (core module $libc
            (memory (export "memory") 1)
            (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 4096)))
        (core instance $libc (instantiate $libc))
        (alias core export $libc "memory" (core memory $memory))
        (alias core export $libc "realloc" (core func $realloc))
        {a}
        {b}
        (alias export $team-a "bucket" (type $bucket))
        (alias export $team-a "error" (type $error))
        (import "wasi:keyvalue/atomics@0.2.0-draft2" (instance $atomics
            (alias outer 1 $bucket (type $b'))
            (export "bucket" (type $b (eq $b')))
            (alias outer 1 $error (type $e'))
            (export "error" (type $e (eq $e')))
            (export "increment" (func (param "bucket" (borrow $b)) (param "key" string) (param "delta" s64)
                (result (result s64 (error $e)))))))
        (alias export $atomics "increment" (func $increment))
        (core func $increment' (canon lower (func $increment) (memory $memory) (realloc $realloc)))
        (core module $m
            (import "libc" "memory" (memory 1))
            (import "host" "a-open" (func $a-open (param i32 i32 i32)))
            (import "host" "b-open" (func $b-open (param i32 i32 i32)))
            (import "host" "a-exists" (func $a-exists (param i32 i32 i32 i32)))
            (import "host" "b-exists" (func $b-exists (param i32 i32 i32 i32)))
            (import "host" "increment" (func $increment (param i32 i32 i32 i64 i32)))
            (data (i32.const 0) "n")
            (func (export "run") (result i32)
                (local $a i32) (local $b i32) (local $sum i32)
                (call $a-open (i32.const 0) (i32.const 0) (i32.const 128))
                (if (i32.load8_u (i32.const 128)) (then (return (i32.add (i32.const 10000) (i32.load8_u (i32.const 132))))))
                (local.set $a (i32.load (i32.const 132)))
                (call $b-open (i32.const 0) (i32.const 0) (i32.const 128))
                (if (i32.load8_u (i32.const 128)) (then (return (i32.add (i32.const 20000) (i32.load8_u (i32.const 132))))))
                (local.set $b (i32.load (i32.const 132)))
                (call $increment (local.get $a) (i32.const 0) (i32.const 1) (i64.const 7) (i32.const 128))
                (if (i32.load8_u (i32.const 128)) (then (return (i32.const 30000))))
                (local.set $sum (i32.wrap_i64 (i64.load (i32.const 136))))
                (call $a-exists (local.get $a) (i32.const 0) (i32.const 1) (i32.const 128))
                (call $b-exists (local.get $b) (i32.const 0) (i32.const 1) (i32.const 144))
                (i32.add (i32.mul (local.get $sum) (i32.const 100))
                    (i32.add (i32.mul (i32.load8_u (i32.const 132)) (i32.const 10)) (i32.load8_u (i32.const 148))))))
        (core instance $m (instantiate $m
            (with "libc" (instance $libc))
            (with "host" (instance
                (export "a-open" (func $team-a-open')) (export "b-open" (func $team-b-open'))
                (export "a-exists" (func $team-a-exists')) (export "b-exists" (func $team-b-exists'))
                (export "increment" (func $increment'))))))
        (func (export "run") (result u32) (canon lift (core func $m "run"))))"#,
        a = store("team-a"),
        b = store("team-b"),
    );
    wat::parse_str(text).unwrap()
}

struct State {
    keyvalue: WasiKeyValueCtx,
    table: ResourceTable,
}

impl WasiKeyValueView for State {
    fn keyvalue(&mut self) -> WasiKeyValueCtxView<'_> {
        WasiKeyValueCtxView { ctx: &self.keyvalue, table: &mut self.table }
    }
}

fn run(keyvalue: &WasiKeyValueCtx) -> u32 {
    let mut config = Config::new();
    config.concurrency_support(false).wasm_component_model_implements(true);
    let engine = Engine::new(&config).unwrap();
    let component = Component::new(&engine, guest()).unwrap();
    let shapes = Shapes::of(&component, &engine).unwrap();
    assert_eq!(shapes.labels().collect::<Vec<_>>(), ["team-a", "team-b"]);
    let mut linker = Linker::new(&engine);
    link_sync(&mut linker, &component).unwrap();
    let mut store = Store::new(&engine, State { keyvalue: keyvalue.clone(), table: ResourceTable::new() });
    let instance = linker.instantiate(&mut store, &component).unwrap();
    instance.get_typed_func::<(), (u32,)>(&mut store, "run").unwrap().call(&mut store, ()).unwrap().0
}

#[test]
fn open_05_each_label_opens_its_own_and_a_handle_keeps_its_back_end() {
    // Two back ends, which have nothing to do with one another.
    let (one, two) = (Memory::new().unwrap(), Memory::new().unwrap());
    let (a, b): (Arc<dyn LocalBucket>, Arc<dyn LocalBucket>) = (one.bucket("x").unwrap(), two.bucket("x").unwrap());
    let ctx = WasiKeyValueCtx::builder()
        .grant("of-a", a.clone(), Rights::ALL)
        .grant("of-b", b.clone(), Rights::ALL)
        .label("team-a", "", "of-a")
        .label("team-b", "", "of-b")
        .build();
    assert_eq!(run(&ctx), 710);
    assert_eq!(run(&ctx), 1410);
    assert_eq!(a.get("n").unwrap().as_deref(), Some(&b"14"[..]));
    assert_eq!(b.get("n").unwrap(), None);
}

#[test]
fn open_05_a_label_without_names_opens_the_plain_ones_and_rights_hold_through_it() {
    let memory = Memory::new().unwrap();
    let bucket = memory.bucket("x").unwrap();
    let ctx = WasiKeyValueCtx::builder().grant("", bucket.clone(), Rights::ALL).build();
    assert_eq!(run(&ctx), 711, "both labels are the plain name");
    let named = |bucket: Arc<dyn LocalBucket>, rights| {
        WasiKeyValueCtx::builder().grant("x", bucket, rights).label("team-a", "", "x").label("team-b", "y", "x").build()
    };
    // Through team-b only "y" is known: the case `no-such-store`.
    assert_eq!(run(&named(bucket.clone(), Rights::ALL)), 20_000);
    // Withheld is `access-denied`, through a label too.
    assert_eq!(run(&named(bucket, Rights::NONE)), 10_001);
}
