//! Any bytes as a superblock and as a manifest.
#![no_main]
libfuzzer_sys::fuzz_target!(|input: (&[u8], &[u8])| kvasi::testing::read_manifest(input.0, input.1));
