//! The conformance suite: what each call must do, asked by a guest component, checked by the host.
//!
//! Flow: a case (named by its number in the list of behaviours) -> lines of the `probe` script -> a guest in C or in Rust
//! -> the binding -> a back end -> the guest's answers -> asserts. The cases are here once: the command `kvasi conformance` asks them
//! of whatever store it is given, and `tests/conformance.rs`, which includes this directory, makes a test of each with each guest.
//! Whoever includes it defines the macro `cases`, which is given the names of a file's cases.
//! Invariants: 1. A case knows its target only by its capabilities. 2. It fails by panicking. 3. It writes to the buckets of its
//! target and nowhere else.

#![allow(clippy::unwrap_used, reason = "a case fails by panicking")]

pub(crate) mod atomics;
pub(crate) mod batch;
pub(crate) mod guest;
pub(crate) mod limits;
pub(crate) mod list;
pub(crate) mod store;
pub(crate) mod target;
