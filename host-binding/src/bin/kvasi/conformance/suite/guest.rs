//! One running `probe`: a thread that runs the component, and two pipes to talk with it, a line there, a line back.
//!
//! Invariants: 1. Each guest is compiled once in a process. 2. A guest ends when its [`Guest`] is dropped: its input ends.
//! 3. Cases speak the words of the usual shape of the interface; where another shape has another word for an error, it is
//! translated here.

use clap::ValueEnum;
use kvasi_wasmtime::{WasiKeyValueCtx, WasiKeyValueCtxView, WasiKeyValueView, link_async, link_sync};
use std::fs::File;
use std::io::{BufRead, BufReader, PipeReader, PipeWriter, Write, pipe};
use std::sync::OnceLock;
use std::thread::JoinHandle;
use wasmtime::component::{Component, Linker, ResourceTable};
use wasmtime::{Engine, Store};
use wasmtime_wasi::cli::{InputFile, OutputFile};
use wasmtime_wasi::p2::bindings::sync::CommandPre;
use wasmtime_wasi::p3::bindings as p3;
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};

/// What the probe is written in, and against: the usual shape of the interface but for the last four, all in C.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Language {
    /// wasi:keyvalue@0.2.0-draft2, form A, in C.
    C,
    /// The same, in Rust.
    Rust,
    /// wasi:keyvalue@0.2.0-draft.
    Draft,
    /// wasi:keyvalue@0.2.0-draft2, form B.
    FormB,
    /// wasi:keyvalue@0.2.0-draft2, form C: `async` functions.
    FormC,
    /// wasmcloud:keyvalue@0.2.0.
    Wasmcloud,
}

macro_rules! prebuilt {
    ($file:literal) => {
        ($file, include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/guests/prebuilt/", $file)))
    };
}

impl Language {
    /// The guest, as it comes with this crate.
    fn prebuilt(self) -> (&'static str, &'static [u8]) {
        match self {
            Language::C => prebuilt!("probe-c.wasm"),
            Language::Rust => prebuilt!("probe-rust.wasm"),
            Language::Draft => prebuilt!("probe-draft-c.wasm"),
            Language::FormB => prebuilt!("probe-draft2-b-c.wasm"),
            Language::FormC => prebuilt!("probe-draft2-c-c.wasm"),
            Language::Wasmcloud => prebuilt!("probe-wasmcloud-c.wasm"),
        }
    }

    fn component(self, engine: &Engine) -> wasmtime::Result<Component> {
        let (_file, bytes) = self.prebuilt();
        // `KVASI_GUESTS` names a directory with guests built another way, for tests.
        #[cfg(test)]
        if let Some(dir) = std::env::var_os("KVASI_GUESTS") {
            return Component::from_file(engine, std::path::Path::new(&dir).join(_file));
        }
        Component::new(engine, bytes)
    }

    /// As the command line has it.
    #[allow(dead_code, reason = "for the command")]
    pub(crate) fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    fn is_async(self) -> bool {
        matches!(self, Language::FormC | Language::Wasmcloud)
    }

    /// Whether the shape has no such call, or means another thing by it; then `shapes` says what it does instead.
    pub(crate) fn lacks(self, case: &str) -> bool {
        match self {
            // No compare-and-swap, and no number below zero.
            Language::Draft => {
                case.starts_with("cas_") || case.starts_with("increment_") && !case.starts_with("increment_25")
            }
            // An attempt is no handle.
            Language::Wasmcloud => {
                ["cas_42_outlives_its_bucket_handle", "limit_53_a_million_opens_and_attempts"].contains(&case)
            }
            _ => false,
        }
    }

    /// How this shape says what the usual one says so.
    fn words(self, answer: &str) -> String {
        let mut words = answer.to_owned();
        if self == Language::Wasmcloud {
            for (usual, own) in [
                ("other(invalid-cursor)", "invalid-argument"),
                ("other(timeout)", "timeout"),
                ("other(busy)", "store-unavailable"),
                ("other(quota)", "quota-exceeded"),
                ("other(too-many-handles)", "quota-exceeded"),
            ] {
                words = words.replace(usual, own);
            }
        }
        words
    }
}

/// Handles that the binding may have in a table at once, WASI's own included: what leaks is refused soon.
pub(crate) const TABLE_ENTRIES_MAX: usize = 1_500;

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

/// A probe, compiled and linked.
enum Command {
    Blocking(CommandPre<State>),
    Async(p3::CommandPre<State>),
}

fn engine(concurrent: bool) -> Engine {
    let mut config = wasmtime::Config::new();
    // What a guest does between its calls is little: a compiler that takes less time is worth more.
    config.concurrency_support(concurrent).cranelift_opt_level(wasmtime::OptLevel::None);
    Engine::new(&config).unwrap()
}

fn command(language: Language) -> &'static Command {
    static COMMANDS: [OnceLock<Command>; 6] = [const { OnceLock::new() }; 6];
    COMMANDS[language as usize].get_or_init(|| {
        let engine = engine(language.is_async());
        let component = language.component(&engine).unwrap();
        let mut linker = Linker::new(&engine);
        if language.is_async() {
            wasmtime_wasi::p2::add_to_linker_async(&mut linker).unwrap();
            link_async(&mut linker, &component).unwrap();
            Command::Async(p3::CommandPre::new(linker.instantiate_pre(&component).unwrap()).unwrap())
        } else {
            wasmtime_wasi::p2::add_to_linker_sync(&mut linker).unwrap();
            link_sync(&mut linker, &component).unwrap();
            Command::Blocking(CommandPre::new(linker.instantiate_pre(&component).unwrap()).unwrap())
        }
    })
}

/// Runs a probe to its end.
fn run(command: &Command, state: State) -> wasmtime::Result<()> {
    match command {
        Command::Blocking(command) => {
            let mut store = Store::new(command.engine(), state);
            let instance = command.instantiate(&mut store)?;
            instance.wasi_cli_run().call_run(&mut store).map(drop)
        }
        Command::Async(command) => {
            let mut store = Store::new(command.engine(), state);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let instance = command.instantiate_async(&mut store).await?;
                let run = store.run_concurrent(async |store| instance.wasi_cli_run().call_run(store).await);
                run.await?.map(drop)
            })
        }
    }
}

/// A running probe.
pub(crate) struct Guest {
    language: Language,
    lists: bool,
    input: Option<PipeWriter>,
    output: BufReader<PipeReader>,
    thread: Option<JoinHandle<()>>,
    lines: u64,
}

impl Guest {
    /// Starts one with nothing open.
    pub(crate) fn start(language: Language, ctx: &WasiKeyValueCtx, lists: bool, handles_max: usize) -> Guest {
        let (guest_input, input) = pipe().unwrap();
        let (output, guest_output) = pipe().unwrap();
        let keyvalue = ctx.clone();
        let thread = std::thread::spawn(move || {
            let wasi = WasiCtx::builder()
                .stdin(InputFile::new(file_of_reader(guest_input)))
                .stdout(OutputFile::new(file_of_writer(guest_output)))
                .build();
            let mut table = ResourceTable::new();
            table.set_max_capacity(handles_max);
            // A trap shows as the end of the output.
            let _ = run(command(language), State { wasi, keyvalue, table });
        });
        Guest { language, lists, input: Some(input), output: BufReader::new(output), thread: Some(thread), lines: 0 }
    }

    /// Sends a command and gives the answer, without its line number; `"trap"` if the guest is no more.
    #[track_caller]
    pub(crate) fn call(&mut self, command: &str) -> String {
        self.lines += 1;
        let sent = writeln!(self.input.as_mut().unwrap(), "{command}");
        let mut line = String::new();
        if sent.is_err() || self.output.read_line(&mut line).unwrap() == 0 {
            return "trap".to_owned();
        }
        let (number, answer) = line.trim_end_matches('\n').split_once(' ').unwrap_or((&line, ""));
        // A guest that dies in the middle of a line has written its number perhaps.
        if !line.ends_with('\n') {
            return "trap".to_owned();
        }
        assert_eq!(number, self.lines.to_string(), "{command} -> {line}");
        answer.to_owned()
    }

    /// Whether the back end can enumerate its keys.
    pub(crate) fn lists(&self) -> bool {
        self.lists
    }

    /// Sends a command and asserts its answer; a command that the shape or the back end has no call for is passed over.
    #[track_caller]
    pub(crate) fn expect(&mut self, command: &str, answer: &str) {
        if !self.lists && command.starts_with("list") {
            return;
        }
        if self.language == Language::Draft && (command.starts_with("cas-") || command.starts_with("swap-")) {
            return;
        }
        let shown = if command.len() > 200 { &command[..200] } else { command };
        assert_eq!(self.call(command), self.language.words(answer), "after `{shown}`");
    }

    /// Sends commands and asserts their answers: `command => answer`, a line each.
    #[track_caller]
    pub(crate) fn script(&mut self, lines: &str) {
        for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let (command, answer) = line.split_once(" => ").unwrap();
            self.expect(command, answer);
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        drop(self.input.take());
        let ended = self.thread.take().unwrap().join();
        if !std::thread::panicking() {
            ended.expect("the host panicked");
        }
    }
}

#[cfg(unix)]
fn file_of_reader(pipe: PipeReader) -> File {
    File::from(std::os::fd::OwnedFd::from(pipe))
}
#[cfg(unix)]
fn file_of_writer(pipe: PipeWriter) -> File {
    File::from(std::os::fd::OwnedFd::from(pipe))
}
#[cfg(windows)]
fn file_of_reader(pipe: PipeReader) -> File {
    File::from(std::os::windows::io::OwnedHandle::from(pipe))
}
#[cfg(windows)]
fn file_of_writer(pipe: PipeWriter) -> File {
    File::from(std::os::windows::io::OwnedHandle::from(pipe))
}
