//! Keys and values at their limits, quotas, and rates: one below, the limit, one above.

use crate::cases;
use crate::guest::{End, Host, QUOTA, limits, repeat};
use kvasi_wasmtime::Limits;
use std::num::NonZeroU32;

fn with_bucket(body: &str) -> String {
    format!("(local.set $b (call $main)) (memory.fill #0x80000 #97 #0x2000) {body}")
}

cases! {
    a_key_below_the_limit: Returns(0), [], with_bucket("(call $set_ (local.get $b) #0x80000 #4095 @k)");
    a_key_of_the_limit: Returns(0), [], with_bucket("(call $set_ (local.get $b) #0x80000 #4096 @k)");
    a_key_over_the_limit: Returns(3), ["too-large"], with_bucket("(call $set_ (local.get $b) #0x80000 #4097 @k)");
    a_key_of_a_megabyte: Returns(3), ["too-large"], "(memory.fill #0x80000 #97 #0x100000) (call $get_ (call $main) #0x80000 #0x100000)";
    a_key_over_the_limit_in_every_call: Returns(0), ["too-large"], with_bucket(
        "(if (i32.ne #3 (call $get_ (local.get $b) #0x80000 #4097)) (then (return #1)))
         (if (i32.ne #3 (call $exists_ (local.get $b) #0x80000 #4097)) (then (return #2)))
         (if (i32.ne #3 (call $delete_ (local.get $b) #0x80000 #4097)) (then (return #3)))
         (if (i32.ne #3 (call $increment_ (local.get $b) #0x80000 #4097 ##1)) (then (return #4)))
         (if (i32.ne #3 (call $attempt_ (local.get $b) #0x80000 #4097)) (then (return #5))) #0");
    an_empty_key: Returns(0), [], with_bucket("(i32.or (call $set_ (local.get $b) #0 #0 @k) (call $delete_ (local.get $b) #1 #0))");
    a_key_of_nuls: Returns(0), [], "(call $set_ (call $main) #0x80000 #4096 @k)";
    a_value_below_the_limit: Returns(0), [], with_bucket("(call $set_ (local.get $b) @k #0 #0xfffff)");
    a_value_of_the_limit: Returns(0), [], with_bucket("(call $set_ (local.get $b) @k #0 #0x100000)");
    a_value_over_the_limit: Returns(3), ["too-large"], with_bucket("(call $set_ (local.get $b) @k #0 #0x100001)");
    a_value_of_sixty_megabytes: Traps("hostcalls"), [], with_bucket("(call $grow #0x4000000) (call $set_ (local.get $b) @k #0 #0x3c00000)");
    values_of_sixty_megabytes_again_and_again: Traps("hostcalls"), [], with_bucket(&format!(
        "(call $grow #0x4000000) {} #0", repeat(1_000, "(drop (call $set_ (local.get $b) @k #0 #0x3c00000))")));
    a_swap_over_the_limit: Returns(3), ["too-large"], with_bucket(
        "(drop (call $attempt_ (local.get $b) @k)) (call $swap_ (call $given) #0 #0x100001)");
    bytes_until_none_are_left: Returns(0), ["quota"], with_bucket(&format!(
        "{} (if (call $get_ (local.get $b) #0x8000 #8) (then (return #1))) (call $set_ (local.get $b) #0x8000 #0 #0 #0)",
        repeat(200, "(call $name #0x8000 (local.get $i)) (drop (call $set_ (local.get $b) #0x8000 #8 #0x80000 #0x8000))")));
    keys_until_none_are_left: Returns(0), ["quota"], with_bucket(&format!(
        "{} (i32.ne (local.get $x) #{})",
        repeat(5_500, "(call $name #0x8000 (local.get $i))
            (if (i32.eqz (call $set_ (local.get $b) #0x8000 #8 #0 #0)) (then (local.set $x (i32.add #1 (local.get $x)))))"),
        QUOTA.keys));
    overwriting_where_nothing_is_left: Returns(0), ["quota"], with_bucket(&format!(
        "{} {} #0",
        repeat(5, "(call $name #0x8000 (local.get $i)) (drop (call $set_ (local.get $b) #0x8000 #8 #0 #0xf0000))"),
        repeat(200, "(call $name #0x8000 #5) (if (call $set_ (local.get $b) #0x8000 #8 #0 #0xf0000) (then (return #1)))")));
    deleting_where_nothing_is_left_makes_room: Returns(0), ["quota"], with_bucket(&format!(
        "{} (call $name #0x8000 #6) (drop (call $delete_ (local.get $b) #0x8000 #8)) (call $set_ (local.get $b) @l #0 #0xf0000)",
        repeat(6, "(call $name #0x8000 (local.get $i)) (drop (call $set_ (local.get $b) #0x8000 #8 #0 #0xf0000))")));
    counters_where_no_key_is_left: Returns(0), ["quota"], with_bucket(&format!(
        "{} (i32.ne (local.get $x) #{})",
        repeat(5_500, "(call $name #0x8000 (local.get $i))
            (if (i32.eqz (call $increment_ (local.get $b) #0x8000 #8 ##1)) (then (local.set $x (i32.add #1 (local.get $x)))))"),
        QUOTA.keys));
}

fn rated(limits: Limits) -> Host {
    Host::with(|builder| builder.limits(limits))
}

/// Answers how many of 1,000 calls were not refused.
fn passed(call: &str) -> String {
    with_bucket(&format!(
        "{} (local.get $x)",
        repeat(1_000, &format!("(if (i32.eqz {call}) (then (local.set $x (i32.add #1 (local.get $x)))))"))
    ))
}

#[test]
fn writes_over_the_rate_are_busy_and_reads_go_on() {
    // So slow that no further key is earned while the test runs.
    let limits = Limits { written_keys_per_second_max: NonZeroU32::new(1), ..limits() };
    rated(limits).run(&passed("(call $set_ (local.get $b) @k @text)"), End::Either, &["busy"]);
    rated(limits).run(&passed("(call $increment_ (local.get $b) @k ##1)"), End::Either, &["busy"]);
    rated(limits).run(&passed("(call $get_ (local.get $b) @k)"), End::Returns(1_000), &[]);
}

#[test]
fn calls_over_the_rate_are_busy() {
    let limits = Limits { keys_per_second_max: NonZeroU32::new(10), ..limits() };
    rated(limits).run(&passed("(call $get_ (local.get $b) @k)"), End::Either, &["busy"]);
}
