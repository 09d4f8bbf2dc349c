//! Any bytes as a key run; and valid runs, damaged at one place.
#![no_main]
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u16, u8, &[u8])| {
    let (at, with, bytes) = input;
    kvasi::testing::read_run(bytes, 7);
    let mut run = kvasi::testing::valid_run(bytes, 7);
    kvasi::testing::read_run(&run, 7);
    let at = usize::from(at) % run.len();
    run[at] ^= with;
    kvasi::testing::read_run(&run, 7);
});
