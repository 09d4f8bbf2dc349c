//! Calls that a grant does not allow: `access-denied`, and nothing is changed.

use crate::cases;

/// A body that makes all calls through the bucket at `$b` and adds up, a bit each, which were denied.
fn each(name: &str) -> String {
    let calls = [
        "(call $get_ (local.get $b) @k)",
        "(call $exists_ (local.get $b) @k)",
        "(call $get_many_ (local.get $b) #0x8000 #1)",
        "(call $set_ (local.get $b) @k @text)",
        "(call $delete_ (local.get $b) @absent)",
        "(call $set_many_ (local.get $b) #0x8100 #1)",
        "(call $delete_many_ (local.get $b) #0x8000 #1)",
        "(call $list_ (local.get $b) #0 #0 #0)",
        "(call $increment_ (local.get $b) @l ##1)",
        "(call $attempt_ (local.get $b) @k)",
    ];
    let count = |(bit, call): (usize, &&str)| {
        format!("(if (i32.eq #2 {call}) (then (local.set $x (i32.or (local.get $x) #{}))))", 1 << bit)
    };
    let calls: String = calls.iter().enumerate().map(count).collect();
    format!(
        "(call $strings #0x8000 #1 #1028 #1 #0) (call $strings #0x8100 #1 #1028 #1 #1)
         (if (call $open_ @{name}) (then (return #0xffff))) (local.set $b (call $given)) {calls} (local.get $x)"
    )
}

cases! {
    all_rights_deny_nothing: Returns(0), [], each("main");
    reading_alone: Returns(0b11_1111_1000), [], each("read");
    writing_alone: Returns(0b11_1000_0111), [], each("write");
    counting_alone: Returns(0b00_1111_1111), [], each("count");
    a_denied_call_is_denied_before_its_size_is_looked_at: Returns(2), [],
        "(if (call $open_ @read) (then (unreachable)))
         (call $set_ (call $given) #0 #8000 #0 #0x1fffff)";
    an_empty_batch_needs_the_right_too: Returns(2), [],
        "(if (call $open_ @read) (then (unreachable))) (call $set_many_ (call $given) #0 #0)";
    a_million_denials: Returns(2), [], {
        let denied = crate::guest::repeat(100_000, "(local.set $x (call $open_ @none))");
        format!("{denied} (local.get $x)")
    };
}
