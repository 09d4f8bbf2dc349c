//! Backups on a simulated disk that fails, fills and loses its power at every call: the store is none the worse, and what
//! there is of the backup is all of it, or no store.
//!
//! `KVASI_BACKUPS` sets how many workloads are backed up, `KVASI_SEED` the first.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use kvasi::testing::backup::{Plan, cuts, errors};

fn plan(workloads: u64, each: u32) -> Plan {
    let number = |name: &str, default| std::env::var(name).map_or(default, |text| text.parse().unwrap());
    Plan { seed: number("KVASI_SEED", 1), workloads: number("KVASI_BACKUPS", workloads), steps: 60, each }
}

#[test]
fn a_power_cut_at_any_moment_leaves_a_whole_backup_or_none() {
    match cuts(&plan(20, 6)) {
        Ok(counts) => println!("{counts}"),
        Err(what) => panic!("{what}"),
    }
}

#[test]
fn any_failing_call_of_a_backup_leaves_the_store_alone() {
    match errors(&plan(3, 0)) {
        Ok(counts) => println!("{counts}"),
        Err(what) => panic!("{what}"),
    }
}
