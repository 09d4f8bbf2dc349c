//! Power cuts at every moment, in every way: what was acknowledged survives, and nothing that never was appears.
//!
//! `KVASI_CRASH_IMAGES` sets how many disks are opened, `KVASI_SEED` the first workload.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use kvasi::testing::crash::{Plan, campaign};

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

#[test]
fn acknowledged_commits_survive_a_power_cut_at_any_moment() {
    let plan = Plan {
        seed: number("KVASI_SEED", 1),
        images: number("KVASI_CRASH_IMAGES", 3_000),
        steps: 60,
        each: 8,
        recovery_every: 60,
        workloads: u64::MAX,
    };
    match campaign(&plan) {
        Ok(counts) => println!("seed {}: {counts}", plan.seed),
        Err(violation) => panic!("{violation}"),
    }
}
