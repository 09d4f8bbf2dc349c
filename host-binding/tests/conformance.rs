//! The conformance suite: what each call must do, asked by a guest component, checked by the host.
//!
//! Flow: a case (named by its number in the list of behaviours) -> lines of the `probe` script -> a guest in C or in Rust
//! -> the binding -> a back end -> the guest's answers -> asserts. Every case runs with every guest on every target, and
//! with a guest of every other shape of the interface on the engine; a later back end adds itself to `targets` in `target.rs` and to the
//! macro below, and nothing else.
//! Invariant: a case knows its target only by its capabilities.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[cfg(feature = "cosmosdb")]
#[path = "backends/cosmos_fake.rs"]
mod cosmos_fake;
#[path = "conformance/guest.rs"]
mod guest;
#[path = "conformance/target.rs"]
mod target;

#[cfg(any(
    feature = "cosmosdb",
    feature = "dynamodb",
    feature = "etcd",
    feature = "firestore",
    feature = "memcached",
    feature = "redis"
))]
#[path = "backends/servers.rs"]
mod servers;
#[cfg(any(
    feature = "cosmosdb",
    feature = "dynamodb",
    feature = "etcd",
    feature = "firestore",
    feature = "memcached",
    feature = "redis"
))]
#[path = "conformance/services.rs"]
mod services;

#[path = "conformance/atomics.rs"]
mod atomics;
#[path = "conformance/batch.rs"]
mod batch;
#[path = "conformance/limits.rs"]
mod limits;
#[path = "conformance/list.rs"]
mod list;
#[path = "conformance/shapes.rs"]
mod shapes;
#[path = "conformance/store.rs"]
mod store;
#[path = "conformance/transcript.rs"]
mod transcript;

/// One test per case, guest and target: `store::get_06_absent_is_none::c_on_engine`.
macro_rules! cases {
    ($($case:ident)*) => {
        $(
            mod $case {
                use crate::guest::Language;
                use crate::target::{Host, Target};

                #[test]
                fn c_on_engine() {
                    super::$case(&mut Host::new(Language::C, Target::engine()));
                }
                #[test]
                fn c_on_memory() {
                    super::$case(&mut Host::new(Language::C, Target::memory()));
                }
                #[test]
                fn rust_on_engine() {
                    super::$case(&mut Host::new(Language::Rust, Target::engine()));
                }
                #[test]
                fn rust_on_memory() {
                    super::$case(&mut Host::new(Language::Rust, Target::memory()));
                }
                #[test]
                fn of_the_first_draft() {
                    of(Language::Draft);
                }
                #[test]
                fn of_form_b() {
                    of(Language::FormB);
                }
                #[test]
                fn of_form_c() {
                    of(Language::FormC);
                }
                #[test]
                fn of_wasmcloud() {
                    of(Language::Wasmcloud);
                }

                /// Another shape of the interface, on the engine.
                fn of(shape: Language) {
                    if !shape.lacks(stringify!($case)) {
                        super::$case(&mut Host::new(shape, Target::engine()));
                    }
                }
            }
        )*

        /// The cases of this file, for whoever runs them one after the other.
        #[cfg(any(
    feature = "cosmosdb",
    feature = "dynamodb",
    feature = "etcd",
    feature = "firestore",
    feature = "memcached",
    feature = "redis"
))]
        pub(crate) const CASES: &[(&str, fn(&mut crate::target::Host))] = &[$((stringify!($case), $case)),*];
    };
}
pub(crate) use cases;
