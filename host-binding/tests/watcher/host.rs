//! A host for the component `watcher.wat`, which logs its calls, in each shape that an export `watcher` has.

#![allow(dead_code, reason = "each test uses some of it")]

use kvasi_wasmtime::{WasiKeyValueCtx, WasiKeyValueCtxView, WasiKeyValueView, WatchOptions, WatchService};
use std::future::pending;
use std::sync::{Arc, Mutex, OnceLock};
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

/// How the component is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// As `watcher.wat` has it: of the second draft, form A.
    Draft2,
    /// The same of the first draft.
    Draft,
    /// With every function of the interface `async`: form C. Its callbacks wait on their stacks.
    Draft2C,
    /// The same, lifted with a callback: a task may go on when it has returned.
    Tasks,
    Wasmcloud,
}

impl Shape {
    pub(crate) const ALL: [Shape; 5] = [Shape::Draft2, Shape::Draft, Shape::Draft2C, Shape::Tasks, Shape::Wasmcloud];
    pub(crate) const ASYNC: [Shape; 3] = [Shape::Draft2C, Shape::Tasks, Shape::Wasmcloud];

    pub(crate) fn is_async(self) -> bool {
        Shape::ASYNC.contains(&self)
    }

    fn text(self) -> String {
        let mut text = include_str!("../watcher.wat").to_owned();
        let mut put = |from: &str, to: &str| {
            assert!(text.contains(from), "{from}");
            text = text.replace(from, to);
        };
        if self == Shape::Draft {
            put("@0.2.0-draft2", "@0.2.0-draft");
            put(r#"(param "delta" s64) (result $sum)"#, r#"(param "delta" u64) (result $sum)"#);
            put("(result s64 (error", "(result u64 (error");
        }
        if self.is_async() {
            for function in ["(type $set (func", "(type $delete (func", "(type $increment (func"] {
                put(function, &format!("{function} async"));
            }
            put("(func $on-set (param", "(func $on-set async (param");
            put("(func $on-delete (param", "(func $on-delete async (param");
            // `w` waits.
            put(r#"(import "log""#, "(import \"wait\" (func $wait async))\n (import \"log\"");
            put("(core func $log (canon", "(core func $wait (canon lower (func $wait)))\n (core func $log (canon");
            put(r#"(export "log" (func $log))"#, r#"(export "log" (func $log)) (export "wait" (func $wait))"#);
            put(r#"(import "host" "drop""#, "(import \"host\" \"wait\" (func $wait))\n (import \"host\" \"drop\"");
            let traps = "(if (i32.eq (local.get $first) (i32.const 116))";
            put(traps, &format!("(if (i32.eq (local.get $first) (i32.const 119)) (then (call $wait)))\n {traps}"));
        }
        if self == Shape::Tasks {
            put("(func $on-set async", &format!("{TASKS}\n (func $on-set async"));
            for name in ["on-set", "on-delete"] {
                let lift = format!("(canon lift (core func $main \"{name}\")");
                let task = format!("(canon lift (core func $tasks \"{name}\") async (callback $callback)");
                put(&lift, &task);
            }
        }
        if self == Shape::Wasmcloud {
            put("wasi:keyvalue/store@0.2.0-draft2", "wasmcloud:keyvalue/types@0.2.0");
            put("wasi:keyvalue/atomics@0.2.0-draft2", "wasmcloud:keyvalue/atomics@0.2.0");
            put("wasi:keyvalue/watcher@0.2.0-draft2", "wasmcloud:keyvalue/watcher@0.2.0");
            put(
                r#"(case "access-denied") (case "other" string)"#,
                r#"(case "access-denied") (case "invalid-argument") (case "precondition-failed") (case "timeout")
                   (case "store-unavailable") (case "quota-exceeded") (case "other" string)"#,
            );
            put(
                "(type $set (func",
                r#"(type $set-options' (record (field "ttl-ms" (option u64)) (field "if-not-exists" bool)))
                   (export "set-options" (type $set-options (eq $set-options')))
                   (type $set (func"#,
            );
            put(
                r#"(param "value" (list u8)) (result $done)"#,
                r#"(param "value" (list u8)) (param "options" (option $set-options)) (result $done)"#,
            );
            put("(core func $set (canon", "(core func $set' (canon");
            put("(core module $main", &format!("{PLAIN_SET}\n (core module $main"));
        }
        text
    }
}

/// Tasks of the callbacks. `g` goes on when it has returned, and writes its own key.
const TASKS: &str = r#"
    (core func $return (canon task.return))
    (core module $Tasks
        (import "libc" "memory" (memory 2))
        (import "host" "return" (func $return))
        (import "host" "log" (func $log (param i32 i32 i32 i32)))
        (import "host" "set" (func $set (param i32 i32 i32 i32 i32 i32)))
        (import "host" "drop" (func $drop (param i32)))
        (import "main" "on-set" (func $on-set (param i32 i32 i32 i32 i32)))
        (import "main" "on-delete" (func $on-delete (param i32 i32 i32)))
        (func (export "on-set") (param i32 i32 i32 i32 i32) (result i32)
            (if (i32.and (i32.ne (local.get 2) (i32.const 0)) (i32.eq (i32.load8_u (local.get 1)) (i32.const 103)))
                (then
                    (call $log (local.get 1) (local.get 2) (local.get 3) (local.get 4))
                    (call $return)
                    (call $set (local.get 0) (local.get 1) (local.get 2) (local.get 3) (local.get 4) (i32.const 0))
                    (call $drop (local.get 0)))
                (else
                    (call $on-set (local.get 0) (local.get 1) (local.get 2) (local.get 3) (local.get 4))
                    (call $return)))
            (i32.const 0))
        (func (export "on-delete") (param i32 i32 i32) (result i32)
            (call $on-delete (local.get 0) (local.get 1) (local.get 2))
            (call $return)
            (i32.const 0))
        (func (export "callback") (param i32 i32 i32) (result i32) unreachable))
    (core instance $tasks (instantiate $Tasks
        (with "libc" (instance $libc))
        (with "main" (instance $main))
        (with "host" (instance (export "return" (func $return)) (export "log" (func $log)) (export "set" (func $set))
            (export "drop" (func $drop))))))
    (alias core export $tasks "callback" (core func $callback))"#;

/// The `set` of wasmCloud's package without its options.
const PLAIN_SET: &str = r#"
    (core module $Plain
        (import "host" "set" (func $set (param i32 i32 i32 i32 i32 i32 i32 i64 i32 i32)))
        (func (export "set") (param i32 i32 i32 i32 i32 i32)
            (call $set (local.get 0) (local.get 1) (local.get 2) (local.get 3) (local.get 4)
                (i32.const 0) (i32.const 0) (i64.const 0) (i32.const 0) (local.get 5))))
    (core instance $plain (instantiate $Plain (with "host" (instance (export "set" (func $set'))))))
    (alias core export $plain "set" (core func $set))"#;

/// Compiled once for all tests: here that takes longer than they do.
fn component(shape: Shape) -> InstancePre<State> {
    static MADE: [OnceLock<InstancePre<State>>; Shape::ALL.len()] = [const { OnceLock::new() }; Shape::ALL.len()];
    MADE[shape as usize].get_or_init(|| compiled(shape)).clone()
}

fn compiled(shape: Shape) -> InstancePre<State> {
    let mut config = wasmtime::Config::new();
    let engine = Engine::new(config.concurrency_support(shape.is_async()).consume_fuel(true)).unwrap();
    let mut linker = Linker::<State>::new(&engine);
    let component = Component::new(&engine, wat::parse_str(shape.text()).unwrap()).unwrap();
    assert_eq!(WatchService::<State>::is_async(&component), shape.is_async());
    if shape.is_async() {
        kvasi_wasmtime::link_async(&mut linker, &component).unwrap();
        let mut root = linker.root();
        root.func_wrap_concurrent("wait", |_, (): ()| Box::pin(pending::<wasmtime::Result<()>>())).unwrap();
    } else {
        kvasi_wasmtime::link_sync(&mut linker, &component).unwrap();
    }
    linker
        .root()
        .func_wrap("log", |cx: wasmtime::StoreContextMut<'_, State>, (key, value): (String, Vec<u8>)| {
            cx.data().log.lock().unwrap().push((key, String::from_utf8(value).unwrap()));
            Ok(())
        })
        .unwrap();
    linker.instantiate_pre(&component).unwrap()
}

pub(crate) fn options() -> WatchOptions {
    let (fuel, memory_bytes_max, backoff) = (1_000_000, 1 << 20, Duration::ZERO);
    WatchOptions { fuel, memory_bytes_max, backoff, wait: Duration::from_secs(60), ..WatchOptions::default() }
}

/// A service of that name over what the context grants.
pub(crate) fn watch(
    name: &str,
    ctx: &WasiKeyValueCtx,
    log: &Log,
    options: WatchOptions,
) -> Result<WatchService<State>, kvasi_wasmtime::Error> {
    watch_as(Shape::Draft2, name, ctx, log, options)
}

/// As [`watch`], the component made in this shape.
pub(crate) fn watch_as(
    shape: Shape,
    name: &str,
    ctx: &WasiKeyValueCtx,
    log: &Log,
    options: WatchOptions,
) -> Result<WatchService<State>, kvasi_wasmtime::Error> {
    let log = log.clone();
    let host = move |keyvalue, limits| State { keyvalue, table: ResourceTable::new(), limits, log: log.clone() };
    WatchService::new(name, component(shape), ctx, options, host, |state| &mut state.limits)
}

pub(crate) fn pair(key: &str, value: &str) -> (String, String) {
    (key.to_owned(), value.to_owned())
}
