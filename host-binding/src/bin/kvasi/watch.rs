//! `kvasi watch`: a component that exports `watcher`, told of the changes that are made through this process and of those
//! that others made before it.
//!
//! Flow: as `run`, up to the linked component -> `WatchService` -> steps, until it is disabled or the process ends.
//! A store in a directory is one process's: writes come from the component itself, or were made before. A service's are anybody's.

use crate::args::WatchArgs;
use crate::compiled::Compiled;
use crate::component;
use crate::failure::Failure;
use crate::run::config;
use kvasi_wasmtime::{Step, WasiKeyValueCtx, WasiKeyValueCtxView, WasiKeyValueView, WatchOptions, WatchService};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;
use tokio::runtime::Runtime;
use wasmtime::component::{InstancePre, Linker, ResourceTable};
use wasmtime::{Engine, StoreLimits};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};

/// How long an epoch is: a callback that does not return is interrupted after [`WatchOptions::epochs`] of them.
const EPOCH: Duration = Duration::from_millis(10);
/// How long a step waits for something to deliver.
const WAIT: Duration = Duration::from_secs(1);

struct Host {
    wasi: WasiCtx,
    keyvalue: WasiKeyValueCtx,
    table: ResourceTable,
    limits: StoreLimits,
}

impl WasiView for Host {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl WasiKeyValueView for Host {
    fn keyvalue(&mut self) -> WasiKeyValueCtxView<'_> {
        WasiKeyValueCtxView { ctx: &mut self.keyvalue, table: &mut self.table }
    }
}

pub(crate) fn run(args: &WatchArgs) -> Result<ExitCode, Failure> {
    let path = &args.component.component;
    let compiled = args.component.compiled();
    let linked = linked(path, &compiled)?;
    let runtime = if WatchService::<Host>::is_async(linked.component()) { Some(runtime()?) } else { None };
    let _entered = runtime.as_ref().map(Runtime::enter);
    let name = component::name(path);
    let opened = config(&args.component)?.open()?;
    let env = args.component.env.clone();
    let host = move |keyvalue, limits| {
        let wasi = WasiCtx::builder().inherit_stdout().inherit_stderr().envs(&env).build();
        Host { wasi, keyvalue, table: ResourceTable::new(), limits }
    };
    let (ctx, options) = (opened.context(&name), WatchOptions::default());
    let failed = |error: kvasi_wasmtime::Error| Failure::new(format!("{}: {error}", path.display()));
    let mut service = WatchService::new(&name, linked, &ctx, options, host, |host| &mut host.limits).map_err(failed)?;
    // What a service has to tell is on its way for a while.
    let wait = if args.once && !service.is_over_a_network() { Duration::ZERO } else { WAIT };
    loop {
        match service.step(wait).map_err(failed)? {
            Step::Idle if args.once => break,
            Step::Failed { rest, error, .. } => {
                eprintln!("kvasi: a callback failed: {}", component::shown(&error));
                std::thread::sleep(rest);
            }
            Step::Disabled => return Err(Failure::new(format!("{} failed too often on one event", path.display()))),
            _ => {}
        }
    }
    opened.sync().map_err(|error| Failure::new(format!("the store did not sync at the end: {error}")))?;
    Ok(ExitCode::SUCCESS)
}

/// The engine for components with `async` functions, or for those without, to whom it would cost more a call.
fn engine(compiled: &Compiled, concurrent: bool) -> Result<Engine, Failure> {
    let mut config = wasmtime::Config::new();
    compiled.configure(&mut config);
    config.concurrency_support(concurrent).epoch_interruption(true).wasm_component_model_implements(true);
    let engine = Engine::new(&config).map_err(|error| Failure::new(format!("wasmtime does not start: {error:#}")))?;
    component::clock(&engine, EPOCH);
    Ok(engine)
}

/// What waits for the functions of WASI that a callback waits for.
fn runtime() -> Result<Runtime, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    runtime.map_err(|error| Failure::new(format!("no runtime for async calls: {error}")))
}

fn linked(path: &Path, compiled: &Compiled) -> Result<InstancePre<Host>, Failure> {
    let load = |concurrent| component::load_for(&engine(compiled, concurrent)?, path, compiled);
    let component = load(false).or_else(|_| load(true))?;
    let shapes = component::check_imports(path, &component, component::World::Command)?;
    let mut linker = Linker::new(component.engine());
    let fail = |error: wasmtime::Error| Failure::new(format!("{} does not link: {error:#}", path.display()));
    if WatchService::<Host>::is_async(&component) {
        wasmtime_wasi::p2::add_to_linker_async(&mut linker).map_err(fail)?;
        wasmtime_wasi::p3::add_to_linker(&mut linker).map_err(fail)?;
        kvasi_wasmtime::link_async(&mut linker, &component).map_err(fail)?;
    } else if shapes.is_async() {
        let text = format!("{} imports async functions and exports a watcher that is not", path.display());
        return Err(Failure::new(text));
    } else {
        wasmtime_wasi::p2::add_to_linker_sync(&mut linker).map_err(fail)?;
        kvasi_wasmtime::link_sync(&mut linker, &component).map_err(fail)?;
    }
    linker.instantiate_pre(&component).map_err(fail)
}
