//! Any bytes as a record and as a log segment; valid logs, and logs with records in their values, damaged at one place.
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kvasi::testing::fuzz::log(bytes));
