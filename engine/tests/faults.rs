//! Disks that fail and disks that are full: the store says so, loses nothing that it acknowledged, and goes on when it can.
//! Files that are damaged: an error with the place, and never a wrong value.
//!
//! `KVASI_ERRORS` and the like set how many runs are made, `KVASI_SEED` the first workload.

use kvasi::testing::drive::{Campaign, test};

#[test]
fn any_failing_call_loses_nothing_that_was_acknowledged() {
    test(Campaign::Errors, 400);
}

#[test]
fn a_full_disk_is_told_lived_through_and_left_behind() {
    test(Campaign::Enospc, 300);
}

#[test]
fn a_flipped_bit_is_told_and_never_a_wrong_value() {
    test(Campaign::Flip, 1_500);
}

#[test]
fn files_cut_extended_missing_or_swapped_are_told() {
    test(Campaign::Truncate, 1_500);
}

#[test]
fn lost_old_and_misdirected_sectors_are_told() {
    test(Campaign::Sectors, 1_500);
}
