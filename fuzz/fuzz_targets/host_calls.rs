//! A sequence of a guest's calls through the binding: every answer as the model gives it, and nothing left behind.
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kvasi_wasmtime::testing::host_calls(bytes));
