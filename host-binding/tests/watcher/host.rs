//! A host for the component `watcher.wat`, which logs its calls.

#![allow(dead_code, reason = "each test uses some of it")]

use kvasi_wasmtime::{WasiKeyValueCtx, WasiKeyValueCtxView, WasiKeyValueView, WatchOptions, WatchService};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use wasmtime::component::{Component, InstancePre, Linker, ResourceTable};
use wasmtime::{Engine, StoreLimits};

/// Keys and values, in the order of the calls.
pub(crate) type Log = Arc<Mutex<Vec<(String, String)>>>;

pub(crate) struct State {
    keyvalue: WasiKeyValueCtx,
    table: ResourceTable,
    limits: StoreLimits,
    log: Log,
}

impl WasiKeyValueView for State {
    fn keyvalue(&mut self) -> WasiKeyValueCtxView<'_> {
        WasiKeyValueCtxView { ctx: &mut self.keyvalue, table: &mut self.table }
    }
}

pub(crate) fn engine() -> Engine {
    Engine::new(wasmtime::Config::new().concurrency_support(false).consume_fuel(true)).unwrap()
}

pub(crate) fn component(engine: &Engine) -> InstancePre<State> {
    let mut linker = Linker::<State>::new(engine);
    kvasi_wasmtime::add_to_linker_sync(&mut linker).unwrap();
    linker
        .root()
        .func_wrap("log", |cx: wasmtime::StoreContextMut<'_, State>, (key, value): (String, Vec<u8>)| {
            cx.data().log.lock().unwrap().push((key, String::from_utf8(value).unwrap()));
            Ok(())
        })
        .unwrap();
    let component = Component::new(engine, wat::parse_str(include_str!("../watcher.wat")).unwrap()).unwrap();
    linker.instantiate_pre(&component).unwrap()
}

pub(crate) fn options() -> WatchOptions {
    WatchOptions { fuel: 1_000_000, memory_bytes_max: 1 << 20, backoff: Duration::ZERO, ..WatchOptions::default() }
}

/// A service of that name over what the context grants.
pub(crate) fn watch(
    name: &str,
    ctx: &WasiKeyValueCtx,
    log: &Log,
    options: WatchOptions,
) -> Result<WatchService<State>, kvasi_wasmtime::Error> {
    let log = log.clone();
    let host = move |keyvalue, limits| State { keyvalue, table: ResourceTable::new(), limits, log: log.clone() };
    WatchService::new(name, component(&engine()), ctx, options, host, |state| &mut state.limits)
}

pub(crate) fn pair(key: &str, value: &str) -> (String, String) {
    (key.to_owned(), value.to_owned())
}
