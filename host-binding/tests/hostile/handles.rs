//! Handles by the million, handles that were given away, handles of another kind, handles that were never given.

use crate::cases;
use crate::guest::repeat;

fn with_bucket(body: &str) -> String {
    format!("(local.set $b (call $main)) {body}")
}

const ATTEMPT: &str = "(if (call $attempt_ (local.get $b) @k) (then (return #99))) (local.set $c (call $given))";

cases! {
    a_handle_that_was_never_given: Traps("handle"), [], "(call $get_ #7 @k)";
    the_handle_zero: Traps("handle"), [], "(call $get_ #0 @k)";
    a_negative_handle: Traps("handle"), [], "(call $get_ #-1 @k)";
    a_handle_that_was_dropped: Traps("handle"), [], with_bucket("(call $drop_bucket (local.get $b)) (call $get_ (local.get $b) @k)");
    a_handle_dropped_twice: Traps("handle"), [], with_bucket("(call $drop_bucket (local.get $b)) (call $drop_bucket (local.get $b)) #0");
    an_attempt_used_as_a_bucket: Traps("handle"), [], with_bucket(&format!("{ATTEMPT} (call $get_ (local.get $c) @k)"));
    a_bucket_used_as_an_attempt: Traps("handle"), [], with_bucket("(call $swap_ (local.get $b) @k)");
    a_bucket_dropped_as_an_attempt: Traps("handle"), [], with_bucket("(call $drop_cas (local.get $b)) #0");
    a_swap_of_a_swap: Traps("handle"), [], with_bucket(&format!(
        "{ATTEMPT} (drop (call $swap_ (local.get $c) @k)) (call $swap_ (local.get $c) @k)"));
    a_look_at_a_spent_attempt: Traps("handle"), [], with_bucket(&format!(
        "{ATTEMPT} (drop (call $swap_ (local.get $c) @k)) (call $current_ (local.get $c))"));
    a_look_at_a_dropped_attempt: Traps("handle"), [], with_bucket(&format!(
        "{ATTEMPT} (call $drop_cas (local.get $c)) (call $current_ (local.get $c))"));
    a_bucket_dropped_before_its_attempt: Returns(0), [], with_bucket(&format!(
        "{ATTEMPT} (call $drop_bucket (local.get $b)) (if (call $current_ (local.get $c)) (then (return #1)))
         (call $swap_ (local.get $c) @k)"));
    an_attempt_dropped_before_its_bucket: Returns(0), [], with_bucket(&format!(
        "{ATTEMPT} (call $drop_cas (local.get $c)) (call $drop_bucket (local.get $b)) #0"));
    drops_from_the_middle: Returns(0), [], with_bucket(&format!(
        "{} {} {} (call $set_ (local.get $b) @k @k)",
        repeat(20, "(if (call $open_ @main) (then (return #1)))"),
        repeat(20, "(call $drop_bucket (i32.add (local.get $b) (local.get $i)))"),
        repeat(20, "(if (call $open_ @main) (then (return #2)))"),
    ));
    nothing_is_dropped: Returns(0), [], with_bucket(&format!(
        "{} (call $attempt_ (local.get $b) @k)", repeat(60, "(if (call $open_ @main) (then (return #1)))")));
    a_hundred_thousand_opens: Returns(64), ["too-many-handles"], format!(
        "{} (local.get $x)",
        repeat(100_000, "(if (i32.eqz (call $open_ @main)) (then (local.set $x (i32.add #1 (local.get $x)))))"));
    a_hundred_thousand_attempts: Returns(64), ["too-many-handles"], with_bucket(&format!(
        "{} (local.get $x)",
        repeat(100_000, "(if (i32.eqz (call $attempt_ (local.get $b) @k)) (then (local.set $x (i32.add #1 (local.get $x)))))")));
    opens_and_drops_leave_nothing_behind: Returns(0), [], format!(
        "{} #0", repeat(50_000, "(call $drop_bucket (call $main))"));
    attempts_and_drops_leave_nothing_behind: Returns(0), [], with_bucket(&format!(
        "{} #0", repeat(50_000, "(if (call $attempt_ (local.get $b) @k) (then (return #1))) (call $drop_cas (call $given))")));
    swaps_leave_nothing_behind: Returns(0), [], with_bucket(&format!(
        "{} #0", repeat(20_000, "(if (call $attempt_ (local.get $b) @k) (then (return #1)))
            (if (call $swap_ (call $given) @text) (then (return #2)))")));
    lost_swaps_that_are_kept: Returns(64), ["too-many-handles"], with_bucket(&format!(
        "{} (local.get $x)",
        repeat(200, "(if (call $attempt_ (local.get $b) @k) (then (return (local.get $x))))
            (local.set $c (call $given))
            (if (call $set_ (local.get $b) @k @text) (then (return #98)))
            (if (i32.ne #4 (call $swap_ (local.get $c) @text)) (then (return #97)))
            (local.set $x (i32.add #1 (local.get $x)))")));
    lost_swaps_that_are_tried_again: Returns(0), [], with_bucket(&format!(
        "{ATTEMPT} {} #0",
        repeat(10_000, "(if (call $set_ (local.get $b) @k @text) (then (return #98)))
            (if (i32.ne #4 (call $swap_ (local.get $c) @text)) (then (return #97)))
            (local.set $c (call $lost))")));
}
