//! Cases 14-21: pages of keys and the cursors between them.

use super::guest::{Guest, Language};
use super::target::Host;
use std::collections::BTreeSet;

cases! {
    list_14_empty_bucket_has_no_keys_and_no_cursor
    list_15_every_steady_key_exactly_once_while_others_come_and_go
    list_16_no_cursor_means_no_more_keys
    list_17_a_returned_cursor_is_accepted
    list_18_damaged_foreign_and_overlong_cursors_are_errors
    list_19_pages_are_bounded
    list_20_order_where_the_back_end_promises_it
    list_21_cursors_survive_handle_instance_and_restart
}

/// One page as the probe prints it: keys, and the cursor if there is one.
pub(crate) fn page(answer: &str) -> (Vec<String>, Option<String>) {
    let words: Vec<&str> = answer.split(' ').collect();
    let ["keys", count, keys @ .., "cursor", cursor] = &words[..] else { panic!("no page: {answer:.100}") };
    assert_eq!(keys.len().to_string(), *count);
    let cursor = (*cursor != "-").then(|| (*cursor).to_owned());
    (keys.iter().map(|&key| key.to_owned()).collect(), cursor)
}

fn all(guest: &mut Guest) -> (Vec<String>, usize) {
    let mut answer = guest.call("list 0 -");
    let (mut all, mut pages) = (Vec::new(), 0);
    loop {
        pages += 1;
        let (keys, cursor) = page(&answer);
        all.extend(keys);
        if cursor.is_none() {
            return (all, pages);
        }
        answer = guest.call("list-next 0");
    }
}

fn list_14_empty_bucket_has_no_keys_and_no_cursor(host: &mut Host) {
    host.guest().script(
        "list 0 - => keys 0 cursor -
         set 0 k v => ok
         delete 0 k => ok
         list 0 - => keys 0 cursor -",
    );
}

fn list_15_every_steady_key_exactly_once_while_others_come_and_go(host: &mut Host) {
    let mut guest = host.guest();
    let mut rival = host.guest();
    guest.expect("set-many-gen 0 steady 1000 1500 v", "ok");
    guest.expect("set-many-gen 0 gone 1000 1500 v", "ok");
    let mut seen = Vec::new();
    let mut answer = guest.call("list 0 -");
    for round in 0.. {
        let (keys, cursor) = page(&answer);
        seen.extend(keys);
        if cursor.is_none() {
            break;
        }
        rival.expect(&format!("delete-many-gen 0 gone {} 500", 1000 + 500 * round), "ok");
        rival.expect(&format!("set-many-gen 0 new{round}x 0 200 v"), "ok");
        rival.expect("set-many-gen 0 steady 1000 1500 w", "ok");
        answer = guest.call("list-next 0");
    }
    let distinct: BTreeSet<&String> = seen.iter().collect();
    assert_eq!(distinct.len(), seen.len(), "a key came twice");
    let steady = distinct.iter().filter(|key| key.starts_with("steady")).count();
    assert_eq!(steady, 1500);
}

fn list_16_no_cursor_means_no_more_keys(host: &mut Host) {
    let mut guest = host.guest();
    for count in [999, 1000, 1001, 2000] {
        guest.expect(&format!("set-many-gen 0 k 10000 {count} v"), "ok");
        let (keys, _) = all(&mut guest);
        assert_eq!(keys.len(), count);
    }
    // Few entries looked at a page: pages may be empty, and still lead on.
    guest.expect("delete-many-gen 0 k 10000 1990", "ok");
    host.limit(|limits| limits.page_entries_max = 10);
    let mut guest = host.guest();
    let (keys, _) = all(&mut guest);
    assert_eq!(keys.len(), 10);
}

fn list_17_a_returned_cursor_is_accepted(host: &mut Host) {
    host.limit(|limits| limits.page_keys_max = 1);
    let mut guest = host.guest();
    for key in ["%00", "%E2%82%AC", "-", "a%20b", "z"] {
        guest.expect(&format!("set 0 {key} v"), "ok");
    }
    let (mut keys, mut cursor) = page(&guest.call("list 0 -"));
    while let Some(at) = cursor {
        let (more, next) = page(&guest.call(&format!("list 0 {at}")));
        keys.extend(more);
        cursor = next;
    }
    assert_eq!(keys.len(), 5, "{keys:?}");
}

fn list_18_damaged_foreign_and_overlong_cursors_are_errors(host: &mut Host) {
    host.limit(|limits| limits.page_keys_max = 2);
    let mut guest = host.guest();
    guest.expect("set-many-gen 0 k 0 9 v", "ok");
    guest.expect("open 1 other", "ok");
    let (_, Some(cursor)) = page(&guest.call("list 0 -")) else { panic!("a cursor") };
    guest.expect(&format!("list 1 {cursor}"), "err other(invalid-cursor)");
    let mut bad = vec![String::from("%"), "0".into(), "1".into(), "k3".into(), "18446744073709551615".into()];
    bad.extend((0..cursor.len()).map(|cut| cursor[..cut].to_owned()).filter(|cut| !cut.is_empty()));
    bad.push(format!("{cursor}x"));
    bad.push(format!("%00{cursor}"));
    bad.push("1".repeat(1 << 20));
    for cursor in bad {
        guest.expect(&format!("list 0 {cursor}"), "err other(invalid-cursor)");
    }
    assert_eq!(page(&guest.call(&format!("list 0 {cursor}"))).0.len(), 2, "and the good one still leads on");
}

fn list_19_pages_are_bounded(host: &mut Host) {
    let mut guest = host.guest();
    guest.expect("set-many-gen 0 k 10000 2500 v", "ok");
    let (keys, pages) = all(&mut guest);
    assert_eq!((keys.len(), pages), (2500, 3));
    guest.expect("delete-many-gen 0 k 10000 2500", "ok");
    let prefix = "p".repeat(host.capabilities().key_bytes_max.min(4010) - 10);
    let count = 800_000 / prefix.len();
    guest.expect(&format!("set-many-gen 0 {prefix} 100 {count} v"), "ok");
    let (keys, pages) = all(&mut guest);
    assert_eq!(keys.len(), count);
    assert!(pages >= 4, "256 KiB of keys a page: {pages}");
}

/// Asked where the back end says so.
fn list_20_order_where_the_back_end_promises_it(host: &mut Host) {
    let mut guest = host.guest();
    guest.expect("set-many-gen 0 k 1 1500 v", "ok");
    guest.expect("set-many-gen 0 A 1 300 v", "ok");
    let (keys, _) = all(&mut guest);
    assert_eq!(keys.len(), 1800);
    assert!(keys.is_sorted());
}

fn list_21_cursors_survive_handle_instance_and_restart(host: &mut Host) {
    let mut guest = host.guest();
    guest.expect("set-many-gen 0 k 10000 1500 v", "ok");
    let (first, Some(cursor)) = page(&guest.call("list 0 -")) else { panic!("a cursor") };
    let next = format!("list 0 {cursor}");
    guest.script(
        "drop 0 => ok
         open 0 main => ok",
    );
    let (rest, None) = page(&guest.call(&next)) else { panic!("no cursor") };
    assert_eq!(first.len() + rest.len(), 1500);
    drop(guest);
    assert!(page(&host.guest().call(&next)).0 == rest, "another instance");
    if host.restart() {
        let answer = host.guest().call(&next);
        if host.language() == Language::Draft {
            // Its cursor is a number of a table in the host.
            assert_eq!(answer, "err other(invalid-cursor)");
        } else {
            assert!(page(&answer).0 == rest, "after a restart");
        }
    }
}
