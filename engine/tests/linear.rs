//! Calls of several threads take effect one after another, also across deaths and power cuts; futures may be dropped.
//!
//! `KVASI_LINEARIZE` sets how many calls are made, `KVASI_CANCEL` how many futures, `KVASI_SEED` the first seed.

use kvasi::testing::drive::{Campaign, test};

#[test]
fn calls_of_several_threads_take_effect_one_after_another() {
    test(Campaign::Linearize, 160_000);
}

#[test]
fn a_commit_that_nobody_waits_for_any_more_is_made_all_the_same() {
    test(Campaign::Cancel, 2_000);
}
