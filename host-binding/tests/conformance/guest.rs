//! One running `probe`: a thread that runs the component, and two pipes to talk with it, a line there, a line back.
//!
//! Invariants: 1. Each guest is compiled once in a process. 2. A guest ends when its [`Guest`] is dropped: its input ends.
//! 3. Cases speak the words of the usual shape of the interface; where another shape has another word for an error, it is
//! translated here.

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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Language {
    C,
    Rust,
    Draft,
    FormB,
    FormC,
    Wasmcloud,
}

impl Language {
    fn file(self) -> &'static str {
        match self {
            Language::C => "probe-c.wasm",
            Language::Rust => "probe-rust.wasm",
            Language::Draft => "probe-draft-c.wasm",
            Language::FormB => "probe-draft2-b-c.wasm",
            Language::FormC => "probe-draft2-c-c.wasm",
            Language::Wasmcloud => "probe-wasmcloud-c.wasm",
        }
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
const TABLE_ENTRIES_MAX: usize = 4096;

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
    config.concurrency_support(concurrent);
    Engine::new(&config).unwrap()
}

fn command(language: Language) -> &'static Command {
    static COMMANDS: [OnceLock<Command>; 6] = [const { OnceLock::new() }; 6];
    COMMANDS[language as usize].get_or_init(|| {
        // `KVASI_GUESTS` names a directory with guests built another way.
        let dir = std::env::var("KVASI_GUESTS");
        let dir = dir.unwrap_or_else(|_| format!("{}/guests/prebuilt", env!("CARGO_MANIFEST_DIR")));
        let path = std::path::Path::new(&dir).join(language.file());
        let engine = engine(language.is_async());
        let component = Component::from_file(&engine, path).unwrap();
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
    input: Option<PipeWriter>,
    output: BufReader<PipeReader>,
    thread: Option<JoinHandle<()>>,
    lines: u64,
}

impl Guest {
    /// Starts one with nothing open.
    pub(crate) fn start(language: Language, ctx: &WasiKeyValueCtx) -> Guest {
        let (guest_input, input) = pipe().unwrap();
        let (output, guest_output) = pipe().unwrap();
        let keyvalue = ctx.clone();
        let thread = std::thread::spawn(move || {
            let wasi = WasiCtx::builder()
                .stdin(InputFile::new(file_of_reader(guest_input)))
                .stdout(OutputFile::new(file_of_writer(guest_output)))
                .build();
            let mut table = ResourceTable::new();
            table.set_max_capacity(TABLE_ENTRIES_MAX);
            // A trap shows as the end of the output.
            let _ = run(command(language), State { wasi, keyvalue, table });
        });
        Guest { language, input: Some(input), output: BufReader::new(output), thread: Some(thread), lines: 0 }
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

    /// Sends a command and asserts its answer; a command that the shape has no call for is passed over.
    #[track_caller]
    pub(crate) fn expect(&mut self, command: &str, answer: &str) {
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
