//! How long an open takes: `reopen DIR load KEYS` writes that many small records and dies without closing, `reopen DIR open`
//! opens and dies, `reopen DIR close` opens and closes.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a measurement")]

use std::time::Instant;

use kvasi::{Durability, Options, Store};

fn key(number: u64) -> String {
    format!("user:{:016x}", number.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let options = Options::new().durability(Durability::Os);
    let started = Instant::now();
    let store = Store::open(&args[1], options).unwrap();
    println!("opened in {:.2} ms: {:?}", started.elapsed().as_secs_f64() * 1e3, store.report());
    let bucket = store.bucket("b").unwrap();
    match args[2].as_str() {
        "load" => {
            let keys: u64 = args[3].parse().unwrap();
            let mut value = [0; 100];
            for number in 0..keys {
                value[..8].copy_from_slice(&number.to_le_bytes());
                bucket.set(key(number).as_bytes(), &value).unwrap();
            }
            println!("loaded in {:.2} s", started.elapsed().as_secs_f64());
        }
        "close" => {
            let started = Instant::now();
            drop(bucket);
            store.close().unwrap();
            println!("closed in {:.2} ms", started.elapsed().as_secs_f64() * 1e3);
            return;
        }
        _ => assert!(bucket.get(key(5).as_bytes()).unwrap().is_some()),
    }
    std::process::abort();
}
