//! Any bytes as a directory checkpoint; and checkpoints with checksums made right, damaged at one place.
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kvasi::testing::fuzz::checkpoint(bytes));
