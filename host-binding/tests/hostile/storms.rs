//! Much of the same: counting, swapping, overwriting, and keys chosen to sit badly.

use crate::cases;
use crate::guest::repeat;

fn with_bucket(body: &str) -> String {
    format!("(local.set $b (call $main)) {body}")
}

cases! {
    counting_up_and_down: Returns(0), [], with_bucket(&format!(
        "{} {} (drop (call $increment_ (local.get $b) @k ##0)) (i32.wrap_i64 (call $sum))",
        repeat(30_000, "(if (call $increment_ (local.get $b) @k ##9999999) (then (return #1)))"),
        repeat(30_000, "(if (call $increment_ (local.get $b) @k ##-9999999) (then (return #2)))")));
    counting_over_the_top: Returns(0), ["overflow"], with_bucket(&format!(
        "(if (call $set_ (local.get $b) @k @max) (then (return #1))) {} (drop (call $get_ (local.get $b) @k)) (i32.ne (call $len) #19)",
        repeat(1_000, "(if (i32.ne #3 (call $increment_ (local.get $b) @k ##1)) (then (return #2)))")));
    counting_through_the_bottom: Returns(0), ["overflow"], with_bucket(&format!(
        "(if (call $set_ (local.get $b) @k @min) (then (return #1))) {} (drop (call $get_ (local.get $b) @k)) (i32.ne (call $len) #20)",
        repeat(1_000, "(if (i32.ne #3 (call $increment_ (local.get $b) @k ##-1)) (then (return #2)))")));
    counting_from_the_least_by_the_greatest: Returns(0), [], with_bucket(
        "(drop (call $set_ (local.get $b) @k @min)) (if (call $increment_ (local.get $b) @k ##9223372036854775807) (then (return #1)))
         (i64.ne (call $sum) ##-1)");
    counting_what_is_no_number: Returns(0), ["not-a-number"], with_bucket(&format!(
        "(if (call $set_ (local.get $b) @k @text) (then (return #1))) {} (drop (call $get_ (local.get $b) @k)) (i32.ne (call $len) #12)",
        repeat(1_000, "(if (i32.ne #3 (call $increment_ (local.get $b) @k ##1)) (then (return #2)))")));
    counting_a_megabyte: Returns(0), ["not-a-number"], with_bucket(&format!(
        "(memory.fill #0x80000 #57 #0x100000) (if (call $set_ (local.get $b) @k #0x80000 #0x100000) (then (return #1))) {} #0",
        repeat(20, "(if (i32.ne #3 (call $increment_ (local.get $b) @k ##1)) (then (return #2)))")));
    one_key_over_and_over: Returns(0), [], with_bucket(&format!(
        "{} #0", repeat(50_000, "(if (call $set_ (local.get $b) @k #0x80000 #100) (then (return #1)))")));
    one_large_value_over_and_over: Returns(0), [], with_bucket(&format!(
        "{} #0", repeat(100, "(if (call $set_ (local.get $b) @k #0x80000 #0x80000) (then (return #1)))")));
    a_key_made_and_deleted_over_and_over: Returns(0), [], with_bucket(&format!(
        "{} #0", repeat(30_000, "(if (call $set_ (local.get $b) @k @text) (then (return #1))) (if (call $delete_ (local.get $b) @k) (then (return #2)))")));
    an_absent_key_deleted_over_and_over: Returns(0), [], with_bucket(&format!(
        "{} #0", repeat(50_000, "(if (call $delete_ (local.get $b) @absent) (then (return #1)))")));
    a_swap_against_itself: Returns(0), [], with_bucket(&format!(
        // Two attempts on one key: one wins, the other loses and tries again.
        "{} #0", repeat(5_000, "(drop (call $attempt_ (local.get $b) @k)) (local.set $c (call $given))
            (drop (call $attempt_ (local.get $b) @k)) (local.set $j (call $given))
            (if (call $swap_ (local.get $c) @text) (then (return #1)))
            (if (i32.ne #4 (call $swap_ (local.get $j) @text)) (then (return #2)))
            (if (call $swap_ (call $lost) @text) (then (return #3)))")));
    a_value_changed_and_changed_back: Returns(4), [], with_bucket(
        "(drop (call $set_ (local.get $b) @k @l)) (drop (call $attempt_ (local.get $b) @k)) (local.set $c (call $given))
         (drop (call $set_ (local.get $b) @k @text)) (drop (call $set_ (local.get $b) @k @l)) (call $swap_ (local.get $c) @l)");
    keys_with_a_long_common_beginning: Returns(0), [], with_bucket(&format!(
        "(memory.fill #0x80000 #97 #0x2000) {} (call $list_ (local.get $b) #0 #0 #0)",
        repeat(500, "(call $name #0x80ff8 (local.get $i)) (if (call $set_ (local.get $b) #0x80000 #4096 @k) (then (return #1)))")));
    keys_that_are_each_others_beginnings: Returns(0), [], with_bucket(&format!(
        "(memory.fill #0x80000 #97 #0x2000) {} (call $list_ (local.get $b) #0 #0 #0)",
        repeat(1_000, "(if (call $set_ (local.get $b) #0x80000 (local.get $i) @k) (then (return #1)))")));
    keys_at_the_end_of_the_order: Returns(2), [], format!(
        "(data (i32.const 0x8000) \"\\f4\\8f\\bf\\bf\\f4\\8f\\bf\\bf\") RUN {}",
        with_bucket("(drop (call $set_ (local.get $b) #0x8000 #4 @k)) (drop (call $set_ (local.get $b) #0x8000 #8 @k))
            (drop (call $list_ (local.get $b) #0 #0 #0)) (call $page)"));
    everything_deleted_then_listed: Returns(0), [], with_bucket(&format!(
        "{} {} (drop (call $list_ (local.get $b) #0 #0 #0)) (i32.or (call $page) (call $more))",
        repeat(1_000, "(call $name #0x8000 (local.get $i)) (drop (call $set_ (local.get $b) #0x8000 #8 @k))"),
        repeat(1_000, "(call $name #0x8000 (local.get $i)) (drop (call $delete_ (local.get $b) #0x8000 #8))")));
}
