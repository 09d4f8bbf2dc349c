//! `kvasi run`: a command component, with WASI and wasi:keyvalue, until it ends.
//!
//! Flow: flags over the configuration -> stores opened -> component compiled and checked -> `wasi:cli/run` -> exit code.
//! The component is looked at before the store is: a file that cannot run makes no store.

use crate::args::{ComponentArgs, RunArgs};
use crate::component;
use crate::failure::Failure;
use kvasi_wasmtime::config::{BucketConfig, Config};
use kvasi_wasmtime::{Target, WasiKeyValueCtx, WasiKeyValueCtxView, WasiKeyValueView};
use std::process::ExitCode;
use wasmtime::Store;
use wasmtime::component::{Linker, ResourceTable};
use wasmtime_wasi::p2::bindings::sync::CommandPre;
use wasmtime_wasi::p3::bindings as p3;
use wasmtime_wasi::{I32Exit, WasiCtx, WasiCtxView, WasiView};

/// As a shell reports a process that died of SIGABRT: what a trap amounts to.
const TRAPPED: u8 = 134;

/// What an asynchronous command exports.
const ASYNC_RUN: &str = "wasi:cli/run@0.3.";

struct Host {
    wasi: WasiCtx,
    keyvalue: WasiKeyValueCtx,
    table: ResourceTable,
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

pub(crate) fn run(args: &RunArgs) -> Result<ExitCode, Failure> {
    let command = command(&args.component)?;
    let opened = config(&args.component)?.open()?;
    let keyvalue = opened.context(&component::name(&args.component.component));
    let host = Host { wasi: wasi(args), keyvalue, table: ResourceTable::new() };
    let code = call(&command, host)?;
    opened.sync().map_err(|error| Failure::new(format!("the store did not sync at the end: {error}")))?;
    Ok(code)
}

/// A component that is linked, by how it is called.
enum Command {
    /// It blocks the thread.
    Blocking(CommandPre<Host>),
    /// It imports or exports `async` functions.
    Async(p3::CommandPre<Host>),
}

fn command(args: &ComponentArgs) -> Result<Command, Failure> {
    let path = &args.component;
    let component = component::load(path, &args.compiled())?;
    let shapes = component::check_imports(path, &component, component::World::Command)?;
    let engine = component.engine();
    let fail = |error: wasmtime::Error| Failure::new(format!("{} does not link: {error:#}", path.display()));
    let mut linker = Linker::new(engine);
    let ty = component.component_type();
    if !shapes.is_async() && ty.exports(engine).all(|(name, _)| !name.starts_with(ASYNC_RUN)) {
        wasmtime_wasi::p2::add_to_linker_sync(&mut linker).map_err(fail)?;
        kvasi_wasmtime::link_sync(&mut linker, &component).map_err(fail)?;
        let linked = linker.instantiate_pre(&component).map_err(fail)?;
        return CommandPre::new(linked).map(Command::Blocking).map_err(|error| {
            Failure::new(format!("{} is not a command: it does not export wasi:cli/run ({error})", path.display()))
        });
    }
    wasmtime_wasi::p2::add_to_linker_async(&mut linker).map_err(fail)?;
    wasmtime_wasi::p3::add_to_linker(&mut linker).map_err(fail)?;
    kvasi_wasmtime::link_async(&mut linker, &component).map_err(fail)?;
    let linked = linker.instantiate_pre(&component).map_err(fail)?;
    p3::CommandPre::new(linked).map(Command::Async).map_err(|error| {
        Failure::new(format!(
            "{} has async functions and is no asynchronous command: it does not export wasi:cli/run@0.3.0 ({error})",
            path.display()
        ))
    })
}

/// The file, then the flags over it; the default bucket where no file says which buckets there are.
pub(crate) fn config(args: &ComponentArgs) -> Result<Config, Failure> {
    let mut config = match &args.config {
        Some(path) => Config::read(path)?,
        None => Config::default(),
    };
    if args.config.is_none() {
        config.buckets.entry(String::new()).or_default();
    }
    if let Some(target) = &args.store {
        config.store = Some(from_here(target)?);
    }
    if let Some(durability) = args.durability {
        config.durability = durability.into();
    }
    for (name, target) in &args.buckets {
        let bucket = BucketConfig { bucket: Some(target.clone()), ..BucketConfig::default() };
        config.buckets.insert(name.clone(), bucket);
    }
    Ok(config)
}

/// Flags are relative to where the command runs, unlike the directories and files in a configuration file.
fn from_here(target: &Target) -> Result<Target, Failure> {
    let here = std::env::current_dir();
    here.map(|here| target.relative_to(&here))
        .map_err(|error| Failure::new(format!("cannot use the store {target}: {error}")))
}

/// Standard streams are passed on; arguments and environment are those given, with the file's name in front; no
/// directory and no network is.
fn wasi(args: &RunArgs) -> WasiCtx {
    let mut wasi = WasiCtx::builder();
    let ComponentArgs { component, env, .. } = &args.component;
    wasi.inherit_stdio().allow_blocking_current_thread(true).envs(env);
    wasi.arg(component.file_name().unwrap_or_default().to_string_lossy()).args(&args.args);
    wasi.build()
}

fn call(command: &Command, host: Host) -> Result<ExitCode, Failure> {
    let ended = match command {
        Command::Blocking(command) => {
            let mut store = Store::new(command.engine(), host);
            kvasi_wasmtime::limit_store(&mut store);
            command.instantiate(&mut store).and_then(|command| command.wasi_cli_run().call_run(&mut store))
        }
        Command::Async(command) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.map_err(|error| Failure::new(format!("no runtime for async calls: {error}")))?;
            runtime.block_on(call_async(command, host))
        }
    };
    match ended {
        Ok(Ok(())) => Ok(ExitCode::SUCCESS),
        Ok(Err(())) => Ok(ExitCode::FAILURE),
        Err(error) => match error.downcast_ref::<I32Exit>() {
            // The parent sees eight bits of it, as of any process.
            Some(I32Exit(code)) => Ok(ExitCode::from(u8::try_from(*code).unwrap_or(u8::MAX))),
            None => {
                eprintln!("kvasi: the component trapped: {}", component::shown(&error));
                Ok(ExitCode::from(TRAPPED))
            }
        },
    }
}

async fn call_async(command: &p3::CommandPre<Host>, host: Host) -> wasmtime::Result<Result<(), ()>> {
    let mut store = Store::new(command.engine(), host);
    kvasi_wasmtime::limit_store(&mut store);
    let command = command.instantiate_async(&mut store).await?;
    store.run_concurrent(async |store| command.wasi_cli_run().call_run(store).await).await?
}
