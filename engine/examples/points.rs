//! Point operations and nothing else, to count instructions by or to look at in a profile: fills a store with KEYS keys, then reads
//! GETS times and overwrites SETS times.
//!
//! `cargo run --release -p kvasi --example points -- KEYS GETS SETS [mapped|unmapped]`. Under `valgrind --tool=callgrind`, the
//! difference between two runs with different counts is what the operations take.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "an example stops at the first surprise")]

use std::time::Instant;

use kvasi::{Access, Durability, Options, Store};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize| args.get(i).map_or(0, |arg| arg.parse::<u64>().unwrap());
    let (keys, gets, sets) = (number(0).max(1), number(1), number(2));
    let access = match args.get(3).map(String::as_str) {
        Some("unmapped") => Access::Unmapped,
        Some("mapped") => Access::Mapped,
        _ => Access::Auto,
    };
    let dir = tempfile::tempdir().unwrap();
    let options = Options::new().durability(Durability::Os).access(access);
    let store = Store::open(dir.path().join("store"), options).unwrap();
    let bucket = store.bucket("b").unwrap();
    let key = |i: u64| format!("user:{:016x}", i.wrapping_mul(0x9e37_79b9_7f4a_7c15)).into_bytes();
    let all: Vec<Vec<u8>> = (0..keys).map(key).collect();
    let scattered = |i: u64| &all[(i.wrapping_mul(7_919) % keys) as usize];
    for key in &all {
        bucket.set(key, &[7; 100]).unwrap();
    }
    let mut into = Vec::with_capacity(100);
    let start = Instant::now();
    for i in 0..gets {
        into.clear();
        bucket.get_into(scattered(i), &mut into).unwrap();
    }
    let got = start.elapsed();
    let start = Instant::now();
    for i in 0..sets {
        bucket.set(scattered(i), &[8; 100]).unwrap();
    }
    let set = start.elapsed();
    let per = |time: std::time::Duration, n: u64| time.as_nanos() as u64 / n.max(1);
    println!("{keys} keys: {} ns a get, {} ns a set", per(got, gets), per(set, sets));
}
