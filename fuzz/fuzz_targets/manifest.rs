//! Any bytes as a superblock and as a manifest; and manifests of any edits, with checksums made right.
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kvasi::testing::fuzz::manifest(bytes));
