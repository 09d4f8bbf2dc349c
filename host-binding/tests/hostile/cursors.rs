//! Cursors that no listing gave, and listings that somebody makes long.

use crate::cases;
use crate::guest::repeat;

/// 250 keys, three pages of them; `$b` is the bucket.
const KEYS: &str = "(local.set $b (call $main)) (local.set $i #250)
    (loop $fill (call $name #0x8000 (local.get $i))
        (if (call $set_ (local.get $b) #0x8000 #8 @k) (then (return #99)))
        (br_if $fill (local.tee $i (i32.sub (local.get $i) #1))))";
/// Pages from the first to the last; what `each` does is done before each next one. Counts them in `$x`, keys in `$j`.
fn pages(each: &str) -> String {
    format!(
        "(if (call $list_ (local.get $b) #0 #0 #0) (then (return #98)))
        (loop $next
            (local.set $x (i32.add (local.get $x) #1)) (local.set $j (i32.add (local.get $j) (call $page)))
            (if (call $more) (then
                (memory.copy #0x9000 (i32.load #32) (i32.load #36)) (local.set $c (i32.load #36))
                {each}
                (if (call $list_ (local.get $b) #1 #0x9000 (local.get $c)) (then (return #97)))
                (br_if $next (i32.lt_u (local.get $x) #500)))))"
    )
}
const FLIP: &str = "(i32.store8 (i32.add #0x9000 (i32.rem_u (local.get $i) (local.get $c)))
    (i32.xor #1 (i32.load8_u (i32.add #0x9000 (i32.rem_u (local.get $i) (local.get $c))))))";

cases! {
    every_key_in_pages: Returns(250), [], format!("{KEYS} {} (local.get $j)", pages(""));
    a_cursor_of_random_text: Returns(0), ["invalid-cursor"], format!("{KEYS} {} #0", repeat(20_000,
        "(local.set $j #24) (loop $letters
            (i32.store8 (i32.add #0x9000 (local.get $j)) (i32.add #32 (i32.rem_u (call $random) #95)))
            (br_if $letters (local.tee $j (i32.sub (local.get $j) #1))))
        (if (i32.ne #3 (call $list_ (local.get $b) #1 #0x9001 #24)) (then (return #1)))"));
    a_cursor_of_random_length_and_the_right_version: Returns(0), ["invalid-cursor"], format!("{KEYS} {} #0", repeat(20_000,
        "(local.set $j #64) (loop $letters
            (i32.store8 (i32.add #0x9000 (local.get $j)) (i32.add #97 (i32.and (call $random) #7)))
            (br_if $letters (local.tee $j (i32.sub (local.get $j) #1))))
        (i32.store8 #0x9000 #49)
        (if (i32.ne #3 (call $list_ (local.get $b) #1 #0x9000 (i32.and (call $random) #63))) (then (return #1)))"));
    a_cursor_with_one_bit_changed: Returns(0), ["invalid-cursor"], format!(
        "{KEYS} (drop (call $list_ (local.get $b) #0 #0 #0)) (local.set $c (i32.load #36)) (memory.copy #0x9000 (i32.load #32) (local.get $c)) {} #0",
        repeat(64, &format!("{FLIP} (if (i32.ne #3 (call $list_ (local.get $b) #1 #0x9000 (local.get $c))) (then (return #1))) {FLIP}")));
    a_cursor_cut_short: Returns(0), ["invalid-cursor"], format!(
        "{KEYS} (drop (call $list_ (local.get $b) #0 #0 #0)) (local.set $c (i32.load #36)) (memory.copy #0x9000 (i32.load #32) (local.get $c)) {} #0",
        repeat(17, "(if (i32.ne #3 (call $list_ (local.get $b) #1 #0x9000 (local.get $i))) (then (return (local.get $i))))"));
    a_cursor_of_another_bucket: Returns(3), ["invalid-cursor"], format!(
        "{KEYS} (drop (call $list_ (local.get $b) #0 #0 #0)) (local.set $c (i32.load #36)) (memory.copy #0x9000 (i32.load #32) (local.get $c))
         (drop (call $open_ @other)) (call $list_ (call $given) #1 #0x9000 (local.get $c))");
    an_empty_cursor: Returns(3), ["invalid-cursor"], "(call $list_ (call $main) #1 #0 #0)";
    a_cursor_that_is_a_number: Returns(3), ["invalid-cursor"], "(call $list_ (call $main) #1 @u64)";
    a_cursor_of_a_megabyte: Returns(3), ["invalid-cursor"],
        "(memory.fill #0x80000 #49 #0x100000) (call $list_ (call $main) #1 #0x80000 #0x100000)";
    a_cursor_of_a_key_that_is_gone: Returns(150), [], format!(
        "{KEYS} (drop (call $list_ (local.get $b) #0 #0 #0)) (local.set $c (i32.load #36)) (memory.copy #0x9000 (i32.load #32) (local.get $c))
         (drop (call $delete_ (local.get $b) (i32.add #0x9000 #10) #8))
         (drop (call $list_ (local.get $b) #1 #0x9000 (local.get $c))) (local.set $j (call $page))
         (local.set $c (i32.load #36)) (memory.copy #0x9000 (i32.load #32) (local.get $c))
         (drop (call $list_ (local.get $b) #1 #0x9000 (local.get $c))) (i32.add (local.get $j) (call $page))");
    a_listing_that_is_written_in_front_of: Returns(0), ["quota"], format!(
        // Each page adds keys behind the last one, each greater than the one before, until the quota ends it.
        "{KEYS} (i32.store8 #0x80000 #122) (local.set $i #0) {} (i32.ge_u (local.get $x) #500)",
        pages("(loop $ahead (local.set $i (i32.rem_u (i32.add (local.get $i) #1) #9000))
            (i32.store8 #0x80001 (i32.add #32 (i32.div_u (local.get $i) #95)))
            (i32.store8 #0x80002 (i32.add #32 (i32.rem_u (local.get $i) #95)))
            (drop (call $set_ (local.get $b) #0x80000 #3 @k))
            (br_if $ahead (i32.rem_u (local.get $i) #200)))"));
    a_sea_of_deleted_keys: Returns(1), [], format!(
        "(local.set $b (call $main)) {} (drop (call $set_ (local.get $b) @l @k)) {} (local.get $j)",
        repeat(4_000, "(call $name #0x8000 (local.get $i))
            (if (call $set_ (local.get $b) #0x8000 #8 @k) (then (return #96)))
            (if (call $delete_ (local.get $b) #0x8000 #8) (then (return #95)))"),
        pages(""));
    listings_that_are_begun_and_left: Returns(0), [], format!(
        "{KEYS} {} #0", repeat(2_000, "(if (call $list_ (local.get $b) #0 #0 #0) (then (return #1)))"));
}
