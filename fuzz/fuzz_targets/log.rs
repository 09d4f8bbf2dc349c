//! Any bytes as a log segment; and valid logs, damaged at one place.
#![no_main]
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u16, u8, &[u8])| {
    let (at, with, bytes) = input;
    kvasi::testing::read_log(bytes, 7);
    let mut log = kvasi::testing::valid_log(bytes, 7);
    kvasi::testing::read_log(&log, 7);
    let at = usize::from(at) % log.len();
    log[at] ^= with;
    kvasi::testing::read_log(&log, 7);
});
