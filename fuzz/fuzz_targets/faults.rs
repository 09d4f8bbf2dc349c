//! A sequence of calls with faults of the disk, power cuts and a full disk between them: everything is as a model has it.
#![no_main]
#[allow(clippy::unwrap_used, reason = "an error is a find")]
mod target {
    libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kvasi::testing::fuzz::faults(bytes).unwrap());
}
