//! Batches that are too many, too large, all one key, or fail at their last entry; and answers that one call makes large.

use crate::cases;
use crate::guest::repeat;

/// `$b` is the bucket.
fn with_bucket(body: &str) -> String {
    format!("(local.set $b (call $main)) {body}")
}

/// A value of 64 KiB at `l`.
const LARGE: &str = "(if (call $set_ (local.get $b) @l #0x80000 #0x10000) (then (return #99)))";

cases! {
    empty_batches: Returns(0), [], with_bucket(
        "(i32.or (call $get_many_ (local.get $b) #0 #0) (i32.or (call $set_many_ (local.get $b) #0 #0) (call $delete_many_ (local.get $b) #0 #0)))");
    keys_of_the_limit: Returns(0), [], with_bucket("(call $strings #0x20000 #1000 #1028 #1 #0) (call $get_many_ (local.get $b) #0x20000 #1000)");
    a_key_too_many_to_get: Returns(3), ["too-large"], with_bucket("(call $strings #0x20000 #1001 #1028 #1 #0) (call $get_many_ (local.get $b) #0x20000 #1001)");
    a_key_too_many_to_delete: Returns(3), ["too-large"], with_bucket("(call $strings #0x20000 #1001 #1028 #1 #0) (call $delete_many_ (local.get $b) #0x20000 #1001)");
    a_pair_too_many: Returns(3), ["too-large"], with_bucket("(call $strings #0x20000 #1001 #1028 #1 #1) (call $set_many_ (local.get $b) #0x20000 #1001)");
    a_hundred_thousand_keys_that_are_one: Traps("hostcalls"), [], with_bucket("(call $grow #0x200000) (call $strings #0x200000 #100000 #1028 #1 #0) (call $get_many_ (local.get $b) #0x200000 #100000)");
    a_thousand_pairs_that_are_one: Returns(0), [], with_bucket("(call $strings #0x20000 #1000 #1028 #1 #1) (call $set_many_ (local.get $b) #0x20000 #1000)");
    pairs_that_are_too_large_together: Returns(3), ["too-large"], with_bucket(
        "(call $strings #0x20000 #600 #0x80000 #2048 #1) (call $set_many_ (local.get $b) #0x20000 #600)");
    a_thousand_keys_of_the_longest_kind: Traps("hostcalls"), [], with_bucket(
        "(memory.fill #0x80000 #97 #4096) (call $strings #0x20000 #1000 #0x80000 #4096 #0) (call $delete_many_ (local.get $b) #0x20000 #1000)");
    the_last_key_is_too_long: Returns(0), ["too-large"], with_bucket(
        "(memory.fill #0x80000 #97 #4097) (call $strings #0x20000 #9 #1028 #1 #1) (call $strings #0x20090 #1 #0x80000 #4097 #1)
         (if (i32.ne #3 (call $set_many_ (local.get $b) #0x20000 #10)) (then (return #1)))
         (drop (call $exists_ (local.get $b) @k)) (i32.load8_u #20)");
    the_last_value_is_too_large: Returns(0), ["too-large"], with_bucket(
        "(call $strings #0x20000 #10 #1028 #1 #1) (i32.store #0x20098 #0) (i32.store #0x2009c #0x100001)
         (if (i32.ne #3 (call $set_many_ (local.get $b) #0x20000 #10)) (then (return #1)))
         (drop (call $exists_ (local.get $b) @k)) (i32.load8_u #20)");
    an_answer_of_the_limit_many_times_over: Returns(3), ["too-large"], with_bucket(&format!(
        "{LARGE} (call $strings #0x20000 #1000 #1029 #1 #0) (call $get_many_ (local.get $b) #0x20000 #1000)"));
    an_answer_below_the_limit: Returns(0), [], with_bucket(&format!(
        "{LARGE} (call $strings #0x20000 #31 #1029 #1 #0) (call $get_many_ (local.get $b) #0x20000 #31)"));
    answers_below_the_limit_again_and_again: Returns(0), [], with_bucket(&format!(
        "{LARGE} (call $strings #0x20000 #31 #1029 #1 #0) {} #0",
        repeat(100, "(if (call $get_many_ (local.get $b) #0x20000 #31) (then (return #1)))")));
    a_batch_that_writes_and_one_that_deletes_the_same: Returns(0), [], with_bucket(&format!(
        "(call $strings #0x20000 #500 #1028 #1 #1) (call $strings #0x30000 #500 #1028 #1 #0) {} #0",
        repeat(50, "(if (call $set_many_ (local.get $b) #0x20000 #500) (then (return #1)))
            (if (call $delete_many_ (local.get $b) #0x30000 #500) (then (return #2)))")));
}

#[test]
fn an_answer_that_is_put_in_one_place_many_times_is_bounded() {
    // Each string and value of the answer asks for memory of its own, and this guest gives the same again.
    const REALLOC: &str =
        "(func (export \"forget\")) (func (export \"cabi_realloc\") (param i32 i32 i32 i32) (result i32)
        (i32.const 0x100000))";
    let body = with_bucket(&format!(
        "{LARGE} (call $strings #0x20000 #1000 #1029 #1 #0) (call $get_many_ (local.get $b) #0x20000 #1000)"
    ));
    crate::guest::Host::new().realloc(REALLOC).run(&body, crate::guest::End::Returns(3), &["too-large"]);
}
