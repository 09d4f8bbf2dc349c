//! The files of a small store, damaged or written anew, and the store then opened and used.
#![no_main]
#[allow(clippy::unwrap_used, reason = "an error is a find")]
mod target {
    libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kvasi::testing::fuzz::files(bytes).unwrap());
}
