//! A sequence of calls: every answer as a map gives it, and the log tells the same story.
#![no_main]
#[allow(clippy::unwrap_used, reason = "an error is a find")]
mod target {
    libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kvasi::testing::operations(bytes).unwrap());
}
