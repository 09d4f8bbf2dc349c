//! Cases 22-44: increment and compare-and-swap.

use super::guest::Guest;
use super::target::Host;
use std::thread;

cases! {
    increment_22_absent_key_is_created_with_delta
    increment_23_zero_reads
    increment_24_values_are_ascii_decimal
    increment_25_not_a_number_is_an_error_and_untouched
    increment_26_overflow_is_an_error_and_untouched
    increment_27_concurrent_increments_all_count
    cas_29_current_of_an_absent_key_is_none
    cas_30_guard_starts_at_new
    cas_31_created_by_another_fails
    cas_32_still_absent_creates
    cas_33_deleted_since_fails
    cas_34_versions_decide_not_values
    cas_35_a_set_of_the_same_bytes_fails_the_swap
    cas_36_so_do_increment_and_batches
    cas_37_failure_carries_a_fresh_handle
    cas_38_swap_consumes_its_handle
    cas_39_a_failed_swap_wrote_nothing
    cas_40_a_store_error_is_no_lost_race
    cas_41_of_two_handles_the_first_swap_wins
    cas_42_outlives_its_bucket_handle
    cas_43_concurrent_loops_converge
    cas_44_current_twice_is_the_guarded_value
}

fn increment_22_absent_key_is_created_with_delta(host: &mut Host) {
    host.guest().script(
        "increment 0 plus 5 => ok 5
         increment 0 minus -7 => ok -7
         increment 0 zero 0 => ok 0
         get 0 plus => some 5
         get 0 minus => some -7
         get 0 zero => some 0",
    );
}

fn increment_23_zero_reads(host: &mut Host) {
    host.guest().script(
        "set 0 k -12 => ok
         increment 0 k 0 => ok -12
         get 0 k => some -12",
    );
}

fn increment_24_values_are_ascii_decimal(host: &mut Host) {
    host.guest().script(
        "set 0 k 41 => ok
         increment 0 k 1 => ok 42
         get 0 k => some 42
         increment 0 k -50 => ok -8
         get 0 k => some -8",
    );
}

fn increment_25_not_a_number_is_an_error_and_untouched(host: &mut Host) {
    let mut guest = host.guest();
    for value in ["%", "x", "1x", "%201", "1%0A", "1.0", "-", "0x10", "%FF", "99999999999999999999", "@8"] {
        guest.expect(&format!("set 0 k {value}"), "ok");
        let before = guest.call("get 0 k");
        guest.expect("increment 0 k 1", "err other(not-a-number)");
        guest.expect("increment 0 k 0", "err other(not-a-number)");
        guest.expect("get 0 k", &before);
    }
}

fn increment_26_overflow_is_an_error_and_untouched(host: &mut Host) {
    host.guest().script(
        "increment 0 k 9223372036854775807 => ok 9223372036854775807
         increment 0 k 1 => err other(overflow)
         get 0 k => some 9223372036854775807
         increment 0 k -9223372036854775808 => ok -1
         increment 0 k -9223372036854775807 => ok -9223372036854775808
         increment 0 k -1 => err other(overflow)
         get 0 k => some -9223372036854775808",
    );
}

fn increment_27_concurrent_increments_all_count(host: &mut Host) {
    const TASKS: usize = 4;
    let host = &*host;
    let each = if host.waits() { 25 } else { 100 };
    let mut sums: Vec<i64> = thread::scope(|scope| {
        let tasks: Vec<_> = (0..TASKS)
            .map(|_| {
                let mut guest = host.guest();
                scope.spawn(move || -> Vec<i64> {
                    let sum = |guest: &mut Guest| guest.call("increment 0 k 1")[3..].parse().unwrap();
                    let sums = (0..each).map(|_| sum(&mut guest)).collect();
                    let last = guest.call(&format!("inc-loop 0 loop -2 {}", 2 * each));
                    assert!(!last.contains("not-monotonic") && last.starts_with("ok -"), "{last}");
                    sums
                })
            })
            .collect();
        tasks.into_iter().flat_map(|task| task.join().unwrap()).collect()
    });
    sums.sort_unstable();
    assert!(sums.into_iter().eq(1..=(TASKS * each) as i64), "all distinct, none lost");
    host.guest().expect("get 0 loop", &format!("some -{}", TASKS * 2 * 2 * each));
}

fn cas_29_current_of_an_absent_key_is_none(host: &mut Host) {
    host.guest().script(
        "cas-new 0 0 k => ok
         cas-current 0 => none
         cas-drop 0 => ok
         exists 0 k => false",
    );
}

fn cas_30_guard_starts_at_new(host: &mut Host) {
    host.guest().script(
        "set 0 k old => ok
         cas-new 0 0 k => ok
         cas-new 1 0 k => ok
         cas-current 1 => some old
         set 0 k rival => ok
         cas-swap 0 mine => cas-failed
         cas-swap 1 mine => cas-failed
         get 0 k => some rival",
    );
}

fn cas_31_created_by_another_fails(host: &mut Host) {
    let (mut one, mut two) = (host.guest(), host.guest());
    one.expect("cas-new 0 0 k", "ok");
    two.expect("set 0 k rival", "ok");
    one.script(
        "cas-swap 0 mine => cas-failed
         get 0 k => some rival",
    );
}

fn cas_32_still_absent_creates(host: &mut Host) {
    host.guest().script(
        "cas-new 0 0 k => ok
         cas-swap 0 v => ok
         get 0 k => some v",
    );
}

fn cas_33_deleted_since_fails(host: &mut Host) {
    let (mut one, mut two) = (host.guest(), host.guest());
    one.script(
        "set 0 k v => ok
         cas-new 0 0 k => ok",
    );
    two.expect("delete 0 k", "ok");
    one.script(
        "cas-swap 0 mine => cas-failed
         cas-current 0 => none
         get 0 k => none",
    );
}

fn cas_34_versions_decide_not_values(host: &mut Host) {
    host.guest().script(
        "set 0 k A => ok
         cas-new 0 0 k => ok
         cas-new 1 0 k => ok
         delete 0 k => ok
         set 0 k A => ok
         cas-swap 0 mine => cas-failed
         set 0 k B => ok
         set 0 k A => ok
         cas-swap 1 mine => cas-failed
         get 0 k => some A",
    );
}

fn cas_35_a_set_of_the_same_bytes_fails_the_swap(host: &mut Host) {
    host.guest().script(
        "set 0 k A => ok
         cas-new 0 0 k => ok
         set 0 k A => ok
         cas-swap 0 mine => cas-failed",
    );
}

fn cas_36_so_do_increment_and_batches(host: &mut Host) {
    let mut guest = host.guest();
    for rival in ["increment 0 k 0 => ok 5", "set-many 0 k=5 => ok", "delete-many 0 k => ok"] {
        guest.script(
            "set 0 k 5 => ok
             cas-new 0 0 k => ok",
        );
        guest.script(rival);
        guest.expect("cas-swap 0 mine", "cas-failed");
    }
    // Writes of other keys do not.
    guest.script(
        "cas-new 0 0 k => ok
         set-many 0 other=1 kk=2 => ok
         cas-swap 0 mine => ok",
    );
}

fn cas_37_failure_carries_a_fresh_handle(host: &mut Host) {
    host.guest().script(
        "cas-new 0 0 k => ok
         set 0 k rival => ok
         cas-swap 0 mine => cas-failed
         cas-current 0 => some rival
         cas-swap 0 mine => ok
         get 0 k => some mine",
    );
}

fn cas_38_swap_consumes_its_handle(host: &mut Host) {
    // Of so small a table, a leak of one handle a round is found soon.
    let (handles_max, attempts_max) = (100, 32);
    host.limit_table(handles_max);
    host.limit(|limits| limits.cas_handles_max = attempts_max);
    let rounds = match host.waits() {
        true => 2 * handles_max,
        false if cfg!(debug_assertions) => 10_000,
        false => 1_000_000,
    };
    let mut guest = host.guest();
    guest.expect(&format!("swap-loop 0 k {rounds}"), &format!("ok {rounds}"));
    let all = format!("cas-many {attempts_max} 0 k");
    guest.expect(&all, &format!("ok {attempts_max}"));
    guest.expect("drop-many", "ok");
    for _ in 0..attempts_max + 10 {
        guest.script(
            "cas-new 0 0 k => ok
             set 0 k rival => ok
             cas-swap 0 mine => cas-failed
             cas-drop 0 => ok",
        );
    }
    guest.expect(&all, &format!("ok {attempts_max}"));
}

fn cas_39_a_failed_swap_wrote_nothing(host: &mut Host) {
    host.guest().script(
        "set 0 k A => ok
         cas-new 0 0 k => ok
         delete 0 k => ok
         cas-swap 0 mine => cas-failed
         exists 0 k => false
         list 0 - => keys 0 cursor -",
    );
}

fn cas_40_a_store_error_is_no_lost_race(host: &mut Host) {
    host.guest().script(
        "set 0 k A => ok
         cas-new 0 0 k => ok
         cas-swap 0 @8388609 => store-error other(too-large)
         cas-current 0 => err empty-slot
         get 0 k => some A",
    );
}

fn cas_41_of_two_handles_the_first_swap_wins(host: &mut Host) {
    let (mut one, mut two) = (host.guest(), host.guest());
    one.expect("cas-new 0 0 k", "ok");
    two.expect("cas-new 0 0 k", "ok");
    two.expect("cas-swap 0 two", "ok");
    one.expect("cas-swap 0 one", "cas-failed");
    one.expect("cas-current 0", "some two");
}

fn cas_42_outlives_its_bucket_handle(host: &mut Host) {
    host.guest().script(
        "set 0 k old => ok
         cas-new 0 0 k => ok
         drop 0 => ok
         cas-current 0 => some old
         cas-swap 0 new => ok
         open 0 main => ok
         get 0 k => some new",
    );
}

fn cas_43_concurrent_loops_converge(host: &mut Host) {
    let host = &*host;
    let each = if host.waits() { 50 } else { 250 };
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| host.guest().expect(&format!("cas-loop 0 k {each}"), &format!("ok {each}")));
        }
    });
    host.guest().expect("get 0 k", &format!("some {}", 4 * each));
}

fn cas_44_current_twice_is_the_guarded_value(host: &mut Host) {
    host.guest().script(
        "set 0 k old => ok
         cas-new 0 0 k => ok
         cas-current 0 => some old
         set 0 k rival => ok
         cas-current 0 => some old
         cas-swap 0 mine => cas-failed
         cas-current 0 => some rival
         cas-current 0 => some rival",
    );
}
