//! Any bytes as a key run; and valid runs, damaged at one place.
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kvasi::testing::fuzz::run(bytes));
