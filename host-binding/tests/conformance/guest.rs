//! One running `probe`: a thread that runs the component, and two pipes to talk with it, a line there, a line back.
//!
//! Invariants: 1. Each guest is compiled once in a process. 2. A guest ends when its [`Guest`] is dropped: its input ends.

use kvasi_wasmtime::{WasiKeyValueCtx, WasiKeyValueCtxView, WasiKeyValueView, add_to_linker_sync};
use std::fs::File;
use std::io::{BufRead, BufReader, PipeReader, PipeWriter, Write, pipe};
use std::sync::OnceLock;
use std::thread::JoinHandle;
use wasmtime::component::{Component, Linker, ResourceTable};
use wasmtime::{Engine, Store};
use wasmtime_wasi::cli::{InputFile, OutputFile};
use wasmtime_wasi::p2::bindings::sync::CommandPre;
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};

/// What the probe is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Language {
    C,
    Rust,
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

fn engine() -> &'static Engine {
    static ENGINE: OnceLock<Engine> = OnceLock::new();
    ENGINE.get_or_init(|| {
        let mut config = wasmtime::Config::new();
        config.concurrency_support(false);
        Engine::new(&config).unwrap()
    })
}

fn command(language: Language) -> &'static CommandPre<State> {
    static C: OnceLock<CommandPre<State>> = OnceLock::new();
    static RUST: OnceLock<CommandPre<State>> = OnceLock::new();
    let (cell, file) = match language {
        Language::C => (&C, "probe-c.wasm"),
        Language::Rust => (&RUST, "probe-rust.wasm"),
    };
    cell.get_or_init(|| {
        // `KVASI_GUESTS` names a directory with guests built another way.
        let dir = std::env::var("KVASI_GUESTS");
        let dir = dir.unwrap_or_else(|_| format!("{}/guests/prebuilt", env!("CARGO_MANIFEST_DIR")));
        let path = std::path::Path::new(&dir).join(file);
        let component = Component::from_file(engine(), path).unwrap();
        let mut linker = Linker::new(engine());
        wasmtime_wasi::p2::add_to_linker_sync(&mut linker).unwrap();
        add_to_linker_sync(&mut linker).unwrap();
        CommandPre::new(linker.instantiate_pre(&component).unwrap()).unwrap()
    })
}

/// A running probe.
pub(crate) struct Guest {
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
            let mut store = Store::new(engine(), State { wasi, keyvalue, table });
            let instance = command(language).instantiate(&mut store).unwrap();
            // A trap shows as the end of the output.
            let _ = instance.wasi_cli_run().call_run(&mut store);
        });
        Guest { input: Some(input), output: BufReader::new(output), thread: Some(thread), lines: 0 }
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

    /// Sends a command and asserts its answer.
    #[track_caller]
    pub(crate) fn expect(&mut self, command: &str, answer: &str) {
        let shown = if command.len() > 200 { &command[..200] } else { command };
        assert_eq!(self.call(command), answer, "after `{shown}`");
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
