//! Any bytes as a record of the log.
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kvasi::testing::read_record(bytes));
