//! A sequence of a guest's calls through the binding: every answer as the model gives it, and nothing left behind; and any text as a cursor, a
//! version or what a watcher has stored.
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    kvasi_wasmtime::testing::tokens(bytes);
    kvasi_wasmtime::testing::host_calls(bytes);
});
