//! Cases 5 and 28, and what else a shape of the interface has of its own: numbers without a sign, numeric cursors, expiry, prefixes,
//! version tokens.

use crate::engine;
use crate::suite::guest::Language;
use crate::suite::list::page;
use crate::suite::target::Host;
use std::thread;
use std::time::Duration;

fn draft() -> Host {
    Host::new(Language::Draft, engine())
}

fn wasmcloud() -> Host {
    Host::new(Language::Wasmcloud, engine())
}

#[test]
fn draft_increments_as_the_other_shapes_do_where_it_can() {
    draft().guest().script(
        "increment 0 k 5 => ok 5
         increment 0 zero 0 => ok 0
         get 0 k => some 5
         set 0 k 41 => ok
         increment 0 k 1 => ok 42
         increment 0 k 9223372036854775807 => err other(overflow)
         get 0 k => some 42
         inc-loop 0 loop 3 100 => ok 300",
    );
}

#[test]
fn increment_28_what_does_not_fit_without_a_sign_is_an_error_and_changes_nothing() {
    let host = draft();
    // A negative delta goes over as a number above the largest s64.
    host.guest().script(
        "increment 0 k -1 => err other(overflow)
         exists 0 k => false
         set 0 k -5 => ok
         increment 0 k 0 => err other(overflow)
         increment 0 k 4 => err other(overflow)
         get 0 k => some -5
         increment 0 k 5 => ok 0
         increment 0 k 9223372036854775807 => ok 9223372036854775807
         increment 0 k 1 => err other(overflow)
         get 0 k => some 9223372036854775807",
    );
}

#[test]
fn increment_27_of_the_draft_counts_all() {
    let host = &draft();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| drop(host.guest().call("inc-loop 0 k 1 100")));
        }
    });
    host.guest().expect("get 0 k", "some 400");
}

#[test]
fn list_21_a_number_is_given_up_before_it_is_mistaken() {
    let mut host = draft();
    host.limit(|limits| limits.page_keys_max = 1);
    let mut guest = host.guest();
    guest.expect("set-many-gen 0 k 0 3 v", "ok");
    let (first, Some(cursor)) = page(&guest.call("list 0 -")) else { panic!("a cursor") };
    let next = format!("list 0 {cursor}");
    let (second, Some(_)) = page(&guest.call(&next)) else { panic!("a cursor") };
    assert_ne!(first, second);
    assert_eq!(page(&guest.call(&next)).0, second, "a number leads on more than once");
    for _ in 0..1100 {
        guest.call("list 0 -");
    }
    guest.expect(&next, "err other(invalid-cursor)");
    guest.expect("list 0 0", "err other(invalid-cursor)");
}

#[test]
fn expiry_ends_a_value_and_a_plain_set_ends_the_expiry() {
    let host = wasmcloud();
    let mut guest = host.guest();
    guest.script(
        "set-ttl 0 short v 1 => ok
         set-ttl 0 long v 3600000 => ok
         set-ttl 0 kept v 1 => ok
         set 0 kept w => ok
         set-ttl 0 counted 5 3600000 => ok
         increment 0 counted 1 => ok 6",
    );
    thread::sleep(Duration::from_millis(20));
    guest.script(
        "get 0 short => none
         exists 0 short => false
         get-many 0 short long => ok 2 - long=v
         get 0 kept => some w
         set-new 0 short again => ok
         get 0 short => some again
         set-ttl 0 gone v 0 => ok
         get 0 gone => none",
    );
}

#[test]
fn if_not_exists_writes_once() {
    let host = wasmcloud();
    host.guest().script(
        "set-new 0 k one => ok
         set-new 0 k two => err precondition-failed
         set-new-ttl 0 k two 1000 => err precondition-failed
         get 0 k => some one
         delete 0 k => ok
         set-new-ttl 0 k three 3600000 => ok
         set-new 0 k four => err precondition-failed
         get 0 k => some three",
    );
    // Of many at once one wins.
    let host = &host;
    let wins: usize = thread::scope(|scope| {
        let tasks: Vec<_> = (0..4)
            .map(|i| scope.spawn(move || usize::from(host.guest().call(&format!("set-new 0 lock {i}")) == "ok")))
            .collect();
        tasks.into_iter().map(|task| task.join().unwrap()).sum()
    });
    assert_eq!(wins, 1);
}

#[test]
fn a_prefix_lists_its_keys_and_a_cursor_leads_on_with_it_alone() {
    let mut host = wasmcloud();
    host.limit(|limits| limits.page_keys_max = 2);
    let mut guest = host.guest();
    guest.expect("set-many 0 a=1 a/1=1 a/2=1 a/3=1 a/4=1 a/5=1 b=1 %C3%A4=1", "ok");
    let mut keys = Vec::new();
    let mut at = "-".to_owned();
    loop {
        let (more, next) = page(&guest.call(&format!("list-prefix 0 a/ {at}")));
        keys.extend(more);
        let Some(next) = next else { break };
        guest.expect(&format!("list 0 {next}"), "err other(invalid-cursor)");
        guest.expect(&format!("list-prefix 0 a {next}"), "err other(invalid-cursor)");
        at = next;
    }
    assert_eq!(keys, ["a/1", "a/2", "a/3", "a/4", "a/5"]);
    assert_eq!(page(&guest.call("list-prefix 0 none -")), (vec![], None));
    assert_eq!(page(&guest.call("list-prefix 0 %C3%A4 -")).0, ["%C3%A4"]);
    assert_eq!(page(&guest.call("list-prefix 0 % -")).0.len(), 2);
}

#[test]
fn a_version_token_is_good_for_the_write_it_names() {
    let host = wasmcloud();
    let mut guest = host.guest();
    guest.expect("version 0 k", "none");
    guest.expect("set 0 k A", "ok");
    let version = guest.call("version 0 k").strip_prefix("version ").unwrap().to_owned();
    guest.expect("set 0 l A", "ok");
    guest.expect(&format!("swap-if 0 l B {version} -"), "stale A");
    guest.expect(&format!("swap-if 0 k B {version} -"), "ok");
    guest.expect(&format!("swap-if 0 k C {version} -"), "stale B");
    // A -> B -> A: the bytes are back, the version is not.
    guest.expect("set 0 k A", "ok");
    guest.expect(&format!("swap-if 0 k C {version} -"), "stale A");
    guest.expect(&format!("swap-if 0 k C {version} A"), "stale A");
    guest.expect("swap-if 0 k C - A", "ok");
    guest.expect("swap-if 0 k D - A", "stale C");
    guest.expect("swap-if 0 k D no-token -", "stale C");
    guest.expect("swap-if 0 k D % -", "stale C");
    let version = guest.call("version 0 k").strip_prefix("version ").unwrap().to_owned();
    guest.expect(&format!("swap-if 0 k D {version} X"), "stale C");
    guest.expect(&format!("swap-if 0 k D {version} C"), "ok");
    guest.expect("swap-if 0 k D - -", "err invalid-argument");
    guest.expect("swap-if 0 absent D - %", "stale");
    guest.expect(&format!("swap-if 0 absent D {version} -"), "stale");
    guest.expect("swap-if 0 k @8388609 - D", "err other(too-large)");
    guest.expect("get 0 k", "some D");
    let version = guest.call("version 0 k").strip_prefix("version ").unwrap().to_owned();
    guest.expect("delete 0 k", "ok");
    guest.expect("set 0 k D", "ok");
    guest.expect(&format!("swap-if 0 k E {version} -"), "stale D");
}

#[test]
fn swaps_that_compare_values_lose_nothing() {
    let host = &wasmcloud();
    host.guest().expect("set 0 k 0", "ok");
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut guest = host.guest();
                for _ in 0..50 {
                    loop {
                        let now = guest.call("get 0 k").strip_prefix("some ").unwrap().to_owned();
                        let next = now.parse::<u32>().unwrap() + 1;
                        if guest.call(&format!("swap-if 0 k {next} - {now}")) == "ok" {
                            break;
                        }
                    }
                }
            });
        }
    });
    host.guest().expect("get 0 k", "some 150");
}
