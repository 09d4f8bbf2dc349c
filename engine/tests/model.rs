//! The engine against a map: random calls, in all modes, through reopening; every answer compared.
//!
//! `KVASI_MODEL_OPS` sets the number of steps per run, `KVASI_SEED` replays one run.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod agrees;

use kvasi::Durability;

fn env(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

fn run(durability: Durability, ops: u64) {
    let seed = env("KVASI_SEED").unwrap_or(0x5eed ^ ops);
    println!("seed {seed}, {ops} steps, {durability:?}");
    let calls = agrees::run(seed, durability, ops, &std::env::temp_dir());
    println!("{calls} calls");
}

fn ops(default: u64) -> u64 {
    env("KVASI_MODEL_OPS").unwrap_or(default)
}

#[test]
fn agrees_with_a_map_in_memory() {
    run(Durability::Ephemeral, ops(100_000));
}

#[test]
fn agrees_with_a_map_on_disk() {
    run(Durability::Os, ops(100_000));
}

#[test]
fn agrees_with_a_map_when_every_write_is_synced() {
    run(Durability::Sync, ops(100_000) / 100);
}

#[test]
fn agrees_with_a_map_when_synced_in_intervals() {
    run(Durability::INTERVAL, ops(100_000) / 10);
}
