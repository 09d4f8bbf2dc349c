//! The ways into a linker that embedders use: each serves the same calls to the same guest.
//!
//! `add_to_linker_sync` is what every other test goes through; here are the asynchronous one, the one with a function
//! that finds the context, and a world generated downstream over this crate's bindings.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use kvasi_wasmtime::backend::{Backend, Memory};
use kvasi_wasmtime::{Rights, WasiKeyValue, WasiKeyValueCtx, WasiKeyValueCtxView, WasiKeyValueView};
use wasmtime::component::{Component, Linker, ResourceTable};
use wasmtime::{Engine, Store};
use wasmtime_wasi::p2::bindings::{Command, sync};
use wasmtime_wasi::p2::pipe::{MemoryInputPipe, MemoryOutputPipe};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};

mod downstream {
    wasmtime::component::bindgen!({
        inline: "package test:downstream;
                 world uses { include wasi:keyvalue/imports@0.2.0-draft2; }",
        path: "../wit",
        world: "test:downstream/uses",
        imports: { default: trappable },
        with: { "wasi:keyvalue": kvasi_wasmtime::bindings },
    });
}

/// Worlds over the shapes whose functions are `async`.
mod downstream_async {
    pub(crate) mod form_c {
        wasmtime::component::bindgen!({
            inline: "package test:downstream;
                     world uses { include wasi:keyvalue/imports@0.2.0-draft2; }",
            path: "../wit/draft2-c",
            world: "test:downstream/uses",
            imports: { default: async | store | trappable },
            with: { "wasi:keyvalue": kvasi_wasmtime::bindings::draft2_c },
        });
    }
    pub(crate) mod wasmcloud {
        wasmtime::component::bindgen!({
            inline: "package test:downstream;
                     world uses { include wasmcloud:keyvalue/imports@0.2.0; }",
            path: "../wit/wasmcloud",
            world: "test:downstream/uses",
            imports: { default: async | store | trappable },
            with: { "wasmcloud:keyvalue": kvasi_wasmtime::bindings::wasmcloud },
        });
    }
}

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

const SCRIPT: &str = "open 0 main\nset 0 k 1\nget 0 k\nexists 0 k\nincrement 0 k 4\ncas-new 0 0 k\ncas-current 0\nset 0 k 9\n\
    cas-swap 0 x\ncas-swap 0 y\nset-many 0 a=1 b=2\nget-many 0 a x b\ndelete-many 0 a\ndelete 0 b\nlist 0 -\nlist 0 bad\n\
    open 1 none\ncas-new 0 0 k\ncas-drop 0\ndrop 0\n";
const ANSWERS: &str = "1 ok\n2 ok\n3 some 1\n4 true\n5 ok 5\n6 ok\n7 some 5\n8 ok\n9 cas-failed\n10 ok\n11 ok\n\
    12 ok 3 a=1 - b=2\n13 ok\n14 ok\n15 keys 1 k cursor -\n16 err other(invalid-cursor)\n17 err no-such-store\n18 ok\n\
    19 ok\n20 ok\n";

fn engine() -> Engine {
    Engine::new(wasmtime::Config::new().concurrency_support(false)).unwrap()
}

fn component(engine: &Engine) -> Component {
    let path = format!("{}/guests/prebuilt/probe-c.wasm", env!("CARGO_MANIFEST_DIR"));
    Component::from_file(engine, path).unwrap()
}

fn state(script: &str) -> (State, MemoryOutputPipe) {
    let output = MemoryOutputPipe::new(1 << 16);
    let wasi = WasiCtx::builder().stdin(MemoryInputPipe::new(script.to_owned())).stdout(output.clone()).build();
    let bucket = Memory::new().unwrap().bucket("main").unwrap();
    let keyvalue = WasiKeyValueCtx::builder().grant("main", bucket, Rights::ALL).build();
    (State { wasi, keyvalue, table: ResourceTable::new() }, output)
}

/// Runs the probe with what `add` adds, and checks its answers.
fn serves(add: impl FnOnce(&mut Linker<State>) -> wasmtime::Result<()>) {
    let engine = engine();
    let mut linker = Linker::new(&engine);
    wasmtime_wasi::p2::add_to_linker_sync(&mut linker).unwrap();
    add(&mut linker).unwrap();
    let (state, output) = state(SCRIPT);
    let mut store = Store::new(&engine, state);
    let command = sync::Command::instantiate(&mut store, &component(&engine), &linker).unwrap();
    command.wasi_cli_run().call_run(&mut store).unwrap().unwrap();
    assert_eq!(String::from_utf8(output.contents().to_vec()).unwrap(), ANSWERS);
}

#[test]
fn a_view_serves() {
    serves(kvasi_wasmtime::add_to_linker_sync);
}

#[test]
fn a_function_that_finds_the_context_serves() {
    serves(|linker| {
        kvasi_wasmtime::add_to_linker(linker, |state: &mut State| WasiKeyValueCtxView {
            ctx: &mut state.keyvalue,
            table: &mut state.table,
        })
    });
}

#[test]
fn a_downstream_world_over_our_bindings_serves() {
    serves(|linker| downstream::Uses::add_to_linker::<_, WasiKeyValue>(linker, WasiKeyValueView::keyvalue));
}

#[test]
fn an_asynchronous_host_serves() {
    let engine = engine();
    let mut linker = Linker::new(&engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker).unwrap();
    kvasi_wasmtime::add_to_linker_async(&mut linker).unwrap();
    let (state, output) = state(SCRIPT);
    let mut store = Store::new(&engine, state);
    wasmtime_wasi::runtime::in_tokio(async {
        let command = Command::instantiate_async(&mut store, &component(&engine), &linker).await.unwrap();
        command.wasi_cli_run().call_run(&mut store).await.unwrap().unwrap();
    });
    assert_eq!(String::from_utf8(output.contents().to_vec()).unwrap(), ANSWERS);
}

/// What a probe whose functions are `async` answers to a script, with what `add` adds.
fn answers(
    probe: &str,
    script: &str,
    add: impl FnOnce(&mut Linker<State>, &Component) -> wasmtime::Result<()>,
) -> String {
    let engine = Engine::default();
    let path = format!("{}/guests/prebuilt/{probe}.wasm", env!("CARGO_MANIFEST_DIR"));
    let component = Component::from_file(&engine, path).unwrap();
    let mut linker = Linker::new(&engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker).unwrap();
    add(&mut linker, &component).unwrap();
    let (state, output) = state(script);
    let mut store = Store::new(&engine, state);
    wasmtime_wasi::runtime::in_tokio(async {
        use wasmtime_wasi::p3::bindings::Command;
        let command = Command::instantiate_async(&mut store, &component, &linker).await.unwrap();
        let run = store.run_concurrent(async |store| command.wasi_cli_run().call_run(store).await);
        run.await.unwrap().unwrap().unwrap();
    });
    String::from_utf8(output.contents().to_vec()).unwrap()
}

#[test]
fn a_downstream_world_of_form_c_serves_as_our_own_linking_does() {
    let downstream = answers("probe-draft2-c-c", SCRIPT, |linker, _| {
        downstream_async::form_c::Uses::add_to_linker::<_, WasiKeyValue>(linker, WasiKeyValueView::keyvalue)
    });
    assert_eq!(downstream, ANSWERS);
}

#[test]
fn a_downstream_world_of_wasmcloud_serves_as_our_own_linking_does() {
    let script = "open 0 main\nopen 1 none\nset 0 k 1\nget 0 k\nexists 0 k\nincrement 0 k 4\nset-new 0 k 2\n\
        set-new 0 new 2\nset-ttl 0 gone v 0\nget 0 gone\nset-ttl 0 long v 3600000\nget 0 long\nversion 0 absent\n\
        swap-if 0 k 6 - 5\nswap-if 0 k 7 - 5\nswap-if 0 k 7 no-token -\nswap-if 0 k 7 - -\nset-many 0 a=1 b=2\n\
        get-many 0 a x b\ndelete-many 0 a\ndelete 0 b\nlist 0 -\nlist 0 bad\nset 0 k @8388609\ndrop 0\n";
    let ours = answers("probe-wasmcloud-c", script, |linker, component| {
        kvasi_wasmtime::link_async(linker, component).map(drop)
    });
    for answer in [
        "6 ok 5",
        "7 err precondition-failed",
        "10 none",
        "12 some v",
        "14 ok",
        "15 stale 6",
        "17 err invalid-argument",
        "19 ok 3 a=1 - b=2",
        "22 keys 3 k long new cursor -",
        "24 err other(too-large)",
        "25 ok",
    ] {
        assert!(ours.lines().any(|line| line == answer), "no {answer:?} in:\n{ours}");
    }
    let downstream = answers("probe-wasmcloud-c", script, |linker, _| {
        downstream_async::wasmcloud::Uses::add_to_linker::<_, WasiKeyValue>(linker, WasiKeyValueView::keyvalue)
    });
    assert_eq!(downstream, ours);
}

#[test]
fn adding_twice_is_an_error() {
    let mut linker = Linker::<State>::new(&engine());
    kvasi_wasmtime::add_to_linker_sync(&mut linker).unwrap();
    assert!(kvasi_wasmtime::add_to_linker_async(&mut linker).is_err());
}
