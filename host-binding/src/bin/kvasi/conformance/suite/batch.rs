//! Cases 45-52: many keys in one call.

use super::target::Host;
use std::thread;

cases! {
    batch_45_answers_in_request_order_with_misses_in_place
    batch_46_repeated_keys
    batch_47_empty_lists_are_ok
    batch_48_delete_many_skips_absent_keys
    batch_49_one_keyspace_with_the_single_calls
    batch_50_sizes
    batch_51_an_over_large_reply_is_an_error
    batch_52_a_refused_batch_changes_nothing
    batch_52_all_or_nothing_to_readers
}

fn batch_45_answers_in_request_order_with_misses_in_place(host: &mut Host) {
    host.guest().script(
        "set-many 0 a=1 c=3 e=% => ok
         get-many 0 e d c b a => ok 5 e=% - c=3 - a=1
         get-many 0 x => ok 1 -",
    );
}

fn batch_46_repeated_keys(host: &mut Host) {
    host.guest().script(
        "set-many 0 k=1 l=x k=2 k=3 => ok
         get-many 0 k k x k x => ok 5 k=3 k=3 - k=3 -
         delete-many 0 k k k => ok
         get-many 0 k l => ok 2 - l=x",
    );
}

fn batch_47_empty_lists_are_ok(host: &mut Host) {
    host.guest().script(
        "get-many 0 => ok 0
         set-many 0 => ok
         delete-many 0 => ok
         list 0 - => keys 0 cursor -",
    );
}

fn batch_48_delete_many_skips_absent_keys(host: &mut Host) {
    host.guest().script(
        "set-many 0 a=1 c=3 => ok
         delete-many 0 x a y => ok
         list 0 - => keys 1 c cursor -",
    );
}

fn batch_49_one_keyspace_with_the_single_calls(host: &mut Host) {
    host.guest().script(
        "set 0 a 1 => ok
         set-many 0 b=2 => ok
         get 0 b => some 2
         get-many 0 a b => ok 2 a=1 b=2
         increment 0 b 1 => ok 3
         get-many 0 b => ok 1 b=3
         delete 0 b => ok
         delete-many 0 a => ok
         get 0 a => none
         get-many 0 a b => ok 2 - -",
    );
}

fn batch_50_sizes(host: &mut Host) {
    let mut guest = host.guest();
    for count in [1, 26, 101, 129, 10_000] {
        guest.expect(&format!("set-many-gen 0 k 0 {count} v"), "ok");
        let answer = guest.call(&format!("get-many-gen 0 k 0 {count}"));
        assert!(answer.starts_with(&format!("ok {count} found {count} hash ")), "{answer}");
        if guest.lists() {
            let listed = guest.call("list-all 0");
            assert!(listed.starts_with(&format!("keys {count} pages ")) && !listed.ends_with("dup"), "{listed}");
        }
        guest.expect(&format!("delete-many-gen 0 k 0 {count}"), "ok");
        guest.expect("list 0 -", "keys 0 cursor -");
    }
    guest.expect("set-many-gen 0 k 0 10001 v", "err other(too-large)");
    guest.expect("get-many-gen 0 k 0 10001", "err other(too-large)");
    guest.expect("delete-many-gen 0 k 0 10001", "err other(too-large)");
}

fn batch_51_an_over_large_reply_is_an_error(host: &mut Host) {
    let size = host.capabilities().value_bytes_max.min(8_000_000);
    let over = (16 << 20) / size + 1;
    let mut guest = host.guest();
    guest.expect(&format!("set 0 k @{size}"), "ok");
    guest.expect(&format!("get-many 0{}", " k".repeat(over)), "err other(too-large)");
    guest.expect(&format!("set-many-gen 0 m 0 {over} @{size}"), "err other(too-large)");
    guest.expect("exists 0 m0", "false");
    let answer = guest.call("get-many 0 k k");
    assert!(answer.starts_with(&format!("ok 2 k=#{size}:")), "{answer}");
}

fn batch_52_a_refused_batch_changes_nothing(host: &mut Host) {
    let long = "k".repeat(4097);
    let mut guest = host.guest();
    guest.expect("set-many 0 a=1 b=2", "ok");
    guest.expect(&format!("set-many 0 a=9 c=3 {long}=v"), "err other(too-large)");
    guest.expect(&format!("delete-many 0 a b {long}"), "err other(too-large)");
    guest.expect("get-many 0 a b c", "ok 3 a=1 b=2 -");
    drop(guest);
    if host.restart() {
        host.guest().expect("get-many 0 a b c", "ok 3 a=1 b=2 -");
    }
}

/// Asked where the back end says that a batch is atomic and is read at one instant.
fn batch_52_all_or_nothing_to_readers(host: &mut Host) {
    let mut reader = host.guest();
    reader.expect("set-many 0 a=0 b=0", "ok");
    let mut writer = host.guest();
    let rounds = 300;
    thread::scope(|scope| {
        let writing = scope.spawn(move || {
            for i in 1..=rounds {
                writer.expect(&format!("set-many 0 a={i} b={i}"), "ok");
            }
        });
        let mut last = 0;
        while !writing.is_finished() {
            let answer = reader.call("get-many 0 a b");
            let (a, b) = answer.strip_prefix("ok 2 a=").unwrap().split_once(" b=").unwrap();
            assert_eq!(a, b, "half a batch");
            let now = a.parse().unwrap();
            assert!(now >= last, "{now} after {last}");
            last = now;
        }
    });
    reader.expect("get-many 0 a b", &format!("ok 2 a={rounds} b={rounds}"));
}
