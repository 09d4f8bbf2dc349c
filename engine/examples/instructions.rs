//! For callgrind: `instructions get|set|overwrite N [stats|watch]` makes a store of 20,000 keys in memory, then N calls. The
//! difference between two N, divided by theirs, is what a call executes:
//! `valgrind --tool=callgrind target/release/examples/instructions set 20000`.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a measurement")]

use kvasi::{Options, Store, WatchFrom};

const KEYS: u64 = 20_000;

fn key(number: u64) -> String {
    format!("user:{:016x}", number.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let calls: u64 = args[2].parse().unwrap();
    let store = Store::in_memory(Options::new()).unwrap();
    let bucket = store.bucket("b").unwrap();
    let keys: Vec<String> = (0..KEYS + calls).map(key).collect();
    let value = [7; 100];
    for key in &keys[..KEYS as usize] {
        bucket.set(key.as_bytes(), &value).unwrap();
    }
    let mut watch = store.watch(WatchFrom::Now).unwrap();
    match args.get(3).map(String::as_str) {
        Some("stats") => println!("{:?}", bucket.stats().unwrap()),
        // Asleep, as far as writers can see; the first of them wakes it, the others find nothing to do.
        Some("watch") => drop(watch.wait(std::time::Duration::from_millis(1)).unwrap()),
        _ => {}
    }
    let mut into = Vec::with_capacity(value.len());
    for i in 0..calls as usize {
        match args[1].as_str() {
            "get" => assert!(bucket.get_into(keys[i % KEYS as usize].as_bytes(), &mut into).unwrap().is_some()),
            "set" => drop(bucket.set(keys[KEYS as usize + i].as_bytes(), &value).unwrap()),
            _ => drop(bucket.set(keys[i % KEYS as usize].as_bytes(), &value).unwrap()),
        }
    }
}
