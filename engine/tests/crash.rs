//! Power cuts at every moment, in every way: what was acknowledged survives, and nothing that never was appears.
//!
//! `KVASI_CRASH` and the like set how many disks are opened, `KVASI_SEED` the first workload.

use kvasi::testing::drive::{Campaign, test};

#[test]
fn acknowledged_commits_survive_a_power_cut_at_any_moment() {
    test(Campaign::Crash, 3_000);
}

#[test]
fn acknowledged_commits_survive_power_cuts_in_recovery() {
    test(Campaign::CrashInRecovery, 2_000);
}

#[test]
fn short_sequences_of_calls_survive_a_power_cut_in_each() {
    test(Campaign::Exhaustive, 2_000);
}
