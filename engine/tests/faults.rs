//! Disks that fail and disks that are full: the store says so, loses nothing that it acknowledged, and goes on when it can.
//!
//! `KVASI_FAULT_RUNS` sets how many runs are made, `KVASI_SEED` the first workload.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use kvasi::testing::faults::{Plan, errors, full};

fn plan(runs: u64) -> Plan {
    let number = |name: &str, default| std::env::var(name).map_or(default, |text| text.parse().unwrap());
    Plan { seed: number("KVASI_SEED", 1), runs: number("KVASI_FAULT_RUNS", runs), steps: 40 }
}

#[test]
fn any_failing_call_loses_nothing_that_was_acknowledged() {
    match errors(&plan(300)) {
        Ok(counts) => println!("{counts}"),
        Err(what) => panic!("{what}"),
    }
}

#[test]
fn a_full_disk_is_told_lived_through_and_left_behind() {
    match full(&plan(300)) {
        Ok(counts) => println!("{counts}"),
        Err(what) => panic!("{what}"),
    }
}
