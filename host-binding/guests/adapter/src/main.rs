//! Writes the adapters that turn a C program for WASI preview 1 into a WASI 0.2 component: one for a command, one for a library
//! (called a reactor), whose exports are its own.

use wasi_preview1_component_adapter_provider::{
    WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER as COMMAND, WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER as REACTOR,
};

fn main() -> std::io::Result<()> {
    let mut paths = std::env::args_os().skip(1);
    let mut path = || paths.next().expect("usage: adapter COMMAND-FILE REACTOR-FILE");
    std::fs::write(path(), COMMAND)?;
    std::fs::write(path(), REACTOR)
}
