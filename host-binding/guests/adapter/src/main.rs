//! Writes the adapter that turns a C program for WASI preview 1 into a WASI 0.2 command component.

use wasi_preview1_component_adapter_provider::WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER as ADAPTER;

fn main() -> std::io::Result<()> {
    let path = std::env::args_os().nth(1).expect("usage: adapter FILE");
    std::fs::write(path, ADAPTER)
}
