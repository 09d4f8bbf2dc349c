//! What the functions of each shape look like: by this table a component's imports are told apart, in `shape`.
//!
//! Flow: `wit/` -> here, by hand -> `shape`. The words are those of WIT, without the names of parameters and of resources; `error` is the
//! shape's own type of that name. `async` stands before every function of form C and of wasmCloud's package.

use super::shape::{Call, Interface};

/// Names of packages and their versions.
pub(super) const WASI: &str = "wasi:keyvalue";
pub(super) const WASI_DRAFT: &str = "0.2.0-draft";
pub(super) const WASI_DRAFT2: &str = "0.2.0-draft2";
pub(super) const WASMCLOUD: &str = "wasmcloud:keyvalue";
pub(super) const WASMCLOUD_VERSION: &str = "0.2.0";

/// What stands as `error` in the shapes of WASI.
pub(super) const WASI_ERROR: &str = "variant{no-such-store, access-denied, other(string)}";
/// What stands as `error` in wasmCloud's.
pub(super) const WASMCLOUD_ERROR: &str = "variant{no-such-store, access-denied, invalid-argument, precondition-failed, \
                                          timeout, store-unavailable, quota-exceeded, other(string)}";

/// `wasi:keyvalue@0.2.0-draft`.
pub(super) const DRAFT: &[Call] = &[
    (Interface::Store, "open", "func(string) -> result<own, error>"),
    (Interface::Store, "[method]bucket.get", "func(borrow, string) -> result<option<list<u8>>, error>"),
    (Interface::Store, "[method]bucket.set", "func(borrow, string, list<u8>) -> result<_, error>"),
    (Interface::Store, "[method]bucket.delete", "func(borrow, string) -> result<_, error>"),
    (Interface::Store, "[method]bucket.exists", "func(borrow, string) -> result<bool, error>"),
    (
        Interface::Store,
        "[method]bucket.list-keys",
        "func(borrow, option<u64>) -> result<record{keys: list<string>, cursor: option<u64>}, error>",
    ),
    (Interface::Atomics, "increment", "func(borrow, string, u64) -> result<u64, error>"),
    (
        Interface::Batch,
        "get-many",
        "func(borrow, list<string>) -> result<list<option<tuple<string, list<u8>>>>, error>",
    ),
    (Interface::Batch, "set-many", "func(borrow, list<tuple<string, list<u8>>>) -> result<_, error>"),
    (Interface::Batch, "delete-many", "func(borrow, list<string>) -> result<_, error>"),
];

/// `wasi:keyvalue@0.2.0-draft2`, forms A and C.
pub(super) const DRAFT2: &[Call] = &[
    (Interface::Store, "open", "func(string) -> result<own, error>"),
    (Interface::Store, "[method]bucket.get", "func(borrow, string) -> result<option<list<u8>>, error>"),
    (Interface::Store, "[method]bucket.set", "func(borrow, string, list<u8>) -> result<_, error>"),
    (Interface::Store, "[method]bucket.delete", "func(borrow, string) -> result<_, error>"),
    (Interface::Store, "[method]bucket.exists", "func(borrow, string) -> result<bool, error>"),
    (
        Interface::Store,
        "[method]bucket.list-keys",
        "func(borrow, option<string>) -> result<record{keys: list<string>, cursor: option<string>}, error>",
    ),
    (Interface::Atomics, "[static]cas.new", "func(borrow, string) -> result<own, error>"),
    (Interface::Atomics, "[method]cas.current", "func(borrow) -> result<option<list<u8>>, error>"),
    (Interface::Atomics, "increment", "func(borrow, string, s64) -> result<s64, error>"),
    (Interface::Atomics, "swap", "func(own, list<u8>) -> result<_, variant{store-error(error), cas-failed(own)}>"),
    (
        Interface::Batch,
        "get-many",
        "func(borrow, list<string>) -> result<list<option<tuple<string, list<u8>>>>, error>",
    ),
    (Interface::Batch, "set-many", "func(borrow, list<tuple<string, list<u8>>>) -> result<_, error>"),
    (Interface::Batch, "delete-many", "func(borrow, list<string>) -> result<_, error>"),
];

/// What form B has in place of form A's.
pub(super) const GET_MANY_OF_B: &str =
    "func(borrow, list<string>) -> result<list<tuple<string, option<list<u8>>>>, error>";

/// `wasmcloud:keyvalue@0.2.0`.
pub(super) const WASMCLOUD_CALLS: &[Call] = &[
    (Interface::Types, "[method]bucket.get", "func(borrow, string) -> result<option<list<u8>>, error>"),
    (
        Interface::Types,
        "[method]bucket.set",
        "func(borrow, string, list<u8>, option<record{ttl-ms: option<u64>, if-not-exists: bool}>) -> result<_, error>",
    ),
    (Interface::Types, "[method]bucket.delete", "func(borrow, string) -> result<_, error>"),
    (Interface::Types, "[method]bucket.exists", "func(borrow, string) -> result<bool, error>"),
    (
        Interface::Types,
        "[method]bucket.list-keys",
        "func(borrow, option<string>, option<string>) -> result<record{keys: list<string>, cursor: option<string>}, error>",
    ),
    (Interface::Store, "open", "func(string) -> result<own, error>"),
    (Interface::Atomics, "increment", "func(borrow, string, s64) -> result<s64, error>"),
    (
        Interface::Cas,
        "current",
        "func(borrow, string) -> result<option<record{value: list<u8>, version: string}>, error>",
    ),
    (
        Interface::Cas,
        "swap",
        "func(borrow, string, list<u8>, record{require-version: option<string>, require-value: option<list<u8>>}) -> \
         result<variant{swapped, stale(option<record{value: list<u8>, version: string}>)}, error>",
    ),
    (
        Interface::Batch,
        "get-many",
        "func(borrow, list<string>) -> result<list<option<tuple<string, list<u8>>>>, error>",
    ),
    (Interface::Batch, "set-many", "func(borrow, list<tuple<string, list<u8>>>) -> result<_, error>"),
    (Interface::Batch, "delete-many", "func(borrow, list<string>) -> result<_, error>"),
];
