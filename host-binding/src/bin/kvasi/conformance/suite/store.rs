//! Cases 1-13: buckets, and the calls that touch one key.

use super::target::Host;
use kvasi_wasmtime::Rights;

cases! {
    open_01_unknown_and_ungranted_are_told_apart
    open_01_a_switch_hides_what_exists
    open_01_rights_bound_every_call
    open_02_handles_see_each_other
    open_03_dropping_a_handle_changes_nothing
    open_04_the_default_bucket_is_a_name_like_others
    get_06_absent_is_none_and_empty_is_some
    set_07_is_seen_by_the_next_call
    delete_08_of_an_absent_key_is_ok
    exists_09_agrees_with_get
    value_10_any_bytes_any_length
    key_11_any_utf8_is_kept_exactly
    key_11_longest_in_every_call
    bucket_12_buckets_never_alias
    call_13_a_failed_call_changes_nothing
}

fn open_01_unknown_and_ungranted_are_told_apart(host: &mut Host) {
    host.configure(|builder| builder.withhold("other").withhold("never-made"));
    host.guest().script(
        "open 1 nowhere => err no-such-store
         open 1 other => err access-denied
         open 1 never-made => err access-denied
         open 1 Main => err no-such-store
         open 1 ../main => err no-such-store
         get 1 k => err empty-slot",
    );
    let long = "n".repeat(100_000);
    host.guest().expect(&format!("open 1 {long}"), "err no-such-store");
}

fn open_01_a_switch_hides_what_exists(host: &mut Host) {
    host.configure(|builder| builder.withhold("other").hide_withheld(true));
    host.guest().script(
        "open 1 nowhere => err access-denied
         open 1 other => err access-denied",
    );
}

fn open_01_rights_bound_every_call(host: &mut Host) {
    host.guest().expect("set 0 k 1", "ok");
    let bucket = host.bucket("main");
    host.configure(|builder| {
        builder
            .grant("read", bucket.clone(), Rights::READ)
            .grant("write", bucket.clone(), Rights::WRITE)
            .grant("list", bucket.clone(), Rights::LIST)
            .grant("atomics", bucket, Rights::ATOMICS)
    });
    let mut guest = host.guest();
    let calls = [
        ("get 1 k", "some 1", Rights::READ),
        ("exists 1 k", "true", Rights::READ),
        ("get-many 1 k", "ok 1 k=1", Rights::READ),
        ("set 1 k 1", "ok", Rights::WRITE),
        ("delete 1 absent", "ok", Rights::WRITE),
        ("set-many 1 k=1", "ok", Rights::WRITE),
        ("delete-many 1 absent", "ok", Rights::WRITE),
        ("list 1 -", "keys 1 k cursor -", Rights::LIST),
        ("increment 1 k 0", "ok 1", Rights::ATOMICS),
        ("cas-new 0 1 k", "ok", Rights::ATOMICS),
    ];
    for (name, rights) in
        [("read", Rights::READ), ("write", Rights::WRITE), ("list", Rights::LIST), ("atomics", Rights::ATOMICS)]
    {
        guest.expect(&format!("open 1 {name}"), "ok");
        for (call, answer, needed) in calls {
            guest.expect(call, if needed == rights { answer } else { "err access-denied" });
        }
    }
    guest.expect("get 0 k", "some 1");
}

fn open_02_handles_see_each_other(host: &mut Host) {
    let mut one = host.guest();
    one.script(
        "open 1 main => ok
         set 0 k one => ok
         get 1 k => some one",
    );
    let mut two = host.guest();
    two.script(
        "get 0 k => some one
         set 0 k two => ok",
    );
    one.script(
        "get 0 k => some two
         get 1 k => some two
         delete 1 k => ok",
    );
    two.expect("get 0 k", "none");
}

fn open_03_dropping_a_handle_changes_nothing(host: &mut Host) {
    let mut guest = host.guest();
    guest.script(
        "set 0 k v => ok
         open 1 main => ok
         drop 0 => ok
         get 1 k => some v
         drop 1 => ok
         open 0 main => ok
         get 0 k => some v",
    );
    drop(guest);
    host.guest().expect("get 0 k", "some v");
}

fn open_04_the_default_bucket_is_a_name_like_others(host: &mut Host) {
    host.guest().script(
        "open 1 % => ok
         set 1 k v => ok
         get 0 k => none",
    );
    host.configure(|builder| builder.withhold(""));
    host.guest().expect("open 1 %", "err access-denied");
}

fn get_06_absent_is_none_and_empty_is_some(host: &mut Host) {
    host.guest().script(
        "get 0 k => none
         set 0 k % => ok
         get 0 k => some %",
    );
}

fn set_07_is_seen_by_the_next_call(host: &mut Host) {
    host.guest().script(
        "set 0 k one => ok
         get 0 k => some one
         set 0 k two => ok
         get 0 k => some two
         exists 0 k => true
         list 0 - => keys 1 k cursor -
         get-many 0 k => ok 1 k=two",
    );
}

fn delete_08_of_an_absent_key_is_ok(host: &mut Host) {
    host.guest().script(
        "delete 0 k => ok
         set 0 k v => ok
         delete 0 k => ok
         delete 0 k => ok
         get 0 k => none",
    );
}

fn exists_09_agrees_with_get(host: &mut Host) {
    host.guest().script(
        "exists 0 k => false
         set 0 k % => ok
         exists 0 k => true
         delete 0 k => ok
         exists 0 k => false
         get 0 k => none",
    );
}

fn value_10_any_bytes_any_length(host: &mut Host) {
    let mut guest = host.guest();
    let all: String = (0..=255_u8).map(|byte| format!("%{byte:02X}")).collect();
    guest.expect(&format!("set 0 all {all}"), "ok");
    guest.expect("set 0 utf8 %FF%FE", "ok");
    guest.expect("get 0 utf8", "some %FF%FE");
    guest.expect("get 0 all", &format!("some {}", shown(&(0..=255).collect::<Vec<u8>>())));
    let longest = host.capabilities().value_bytes_max.min(8 << 20);
    for len in [1, 63, 64, 65, 4095, 4096, 4097, 65_535, 65_536, 1 << 20, longest] {
        let len = len.min(longest);
        guest.expect(&format!("set 0 k @{len}"), "ok");
        guest.expect("get 0 k", &format!("some {}", shown(&pattern(len))));
    }
}

/// The value that the script writes as `@LEN`.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| ((i * 31 + 7) % 251) as u8).collect()
}

/// A value as the probe prints it.
fn shown(value: &[u8]) -> String {
    if value.len() > 64 {
        let hash = value.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        return format!("#{}:{hash:016x}", value.len());
    }
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_./:+-".contains(&byte);
    match value {
        [] => "%".to_owned(),
        _ => value.iter().map(|&b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect(),
    }
}

/// Percent-encodes text as the probe prints it.
pub(crate) fn encoded(text: &str) -> String {
    assert!(text.len() <= 64 || text.bytes().all(|byte| byte.is_ascii_alphanumeric()));
    if text.len() > 64 { text.to_owned() } else { shown(text.as_bytes()) }
}

const ODD_KEYS: [&str; 22] = [
    "",
    ".",
    "..",
    "a/b",
    "/",
    "\\",
    " ",
    "a b",
    "\"",
    "'",
    "*",
    "?",
    ":",
    "%",
    "\0",
    "a\0b",
    "k",
    "K",
    "e\u{301}",
    "\u{e9}",
    "\u{202e}x",
    "\u{10ffff}",
];

fn key_11_any_utf8_is_kept_exactly(host: &mut Host) {
    let mut guest = host.guest();
    for (i, key) in ODD_KEYS.iter().enumerate() {
        guest.expect(&format!("set 0 {} {i}", encoded(key)), "ok");
    }
    for (i, key) in ODD_KEYS.iter().enumerate() {
        let key = encoded(key);
        guest.expect(&format!("get 0 {key}"), &format!("some {i}"));
        guest.expect(&format!("exists 0 {key}"), "true");
        guest.expect(&format!("get-many 0 {key}"), &format!("ok 1 {key}={i}"));
        guest.expect(&format!("increment 0 {key} 0"), &format!("ok {i}"));
        guest.expect(&format!("cas-new 0 0 {key}"), "ok");
        guest.expect("cas-current 0", &format!("some {i}"));
        guest.expect("cas-swap 0 swapped", "ok");
        guest.expect(&format!("set-many 0 {key}={i}"), "ok");
    }
    if !guest.lists() {
        return;
    }
    let page = guest.call("list 0 -");
    let mut listed: Vec<&str> = page.split(' ').skip(2).take(ODD_KEYS.len()).collect();
    let mut expected: Vec<String> = ODD_KEYS.iter().map(|key| encoded(key)).collect();
    listed.sort_unstable();
    expected.sort_unstable();
    assert_eq!(listed, expected);
    for key in ODD_KEYS {
        guest.expect(&format!("delete 0 {}", encoded(key)), "ok");
    }
    guest.expect("list 0 -", "keys 0 cursor -");
}

fn key_11_longest_in_every_call(host: &mut Host) {
    let key = "k".repeat(host.capabilities().key_bytes_max.min(4096));
    let mut guest = host.guest();
    guest.expect(&format!("set 0 {key} 1"), "ok");
    guest.expect(&format!("get 0 {key}"), "some 1");
    guest.expect(&format!("get-many 0 {key}"), &format!("ok 1 {key}=1"));
    guest.expect(&format!("increment 0 {key} 1"), "ok 2");
    guest.expect(&format!("cas-new 0 0 {key}"), "ok");
    guest.expect("cas-swap 0 3", "ok");
    guest.expect("list 0 -", &format!("keys 1 {key} cursor -"));
    guest.expect(&format!("delete-many 0 {key}"), "ok");
    guest.expect(&format!("exists 0 {key}"), "false");
}

fn bucket_12_buckets_never_alias(host: &mut Host) {
    host.guest().script(
        "open 1 a => ok
         open 2 a:b => ok
         open 3 with/slash%20and%20space => ok
         set 1 b:c one => ok
         set 2 c two => ok
         set 3 c three => ok
         get 0 c => none
         get 1 c => none
         get 1 b:c => some one
         get 2 b:c => none
         get 2 c => some two
         get 3 c => some three
         list 1 - => keys 1 b:c cursor -
         list 2 - => keys 1 c cursor -",
    );
}

fn call_13_a_failed_call_changes_nothing(host: &mut Host) {
    let long = "k".repeat(4097);
    let mut guest = host.guest();
    guest.script(
        "set 0 k old => ok
         set 0 k @8388609 => err other(too-large)
         get 0 k => some old
         increment 0 k 1 => err other(not-a-number)
         set-many 0 k=new l=@8388609 => err other(too-large)",
    );
    guest.expect(&format!("set-many 0 k=new {long}=v"), "err other(too-large)");
    guest.expect(&format!("delete-many 0 k {long}"), "err other(too-large)");
    guest.expect(&format!("set 0 {long} v"), "err other(too-large)");
    guest.expect("get 0 k", "some old");
    guest.expect("list 0 -", "keys 1 k cursor -");
}
