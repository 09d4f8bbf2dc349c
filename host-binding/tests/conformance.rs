//! The conformance suite as tests: each case with every guest on the engine and in memory, and with a guest of every other shape of
//! the interface on the engine.
//!
//! The cases are those of the command `kvasi conformance` (`src/bin/kvasi/conformance/suite`), which `tests/backends.rs` asks of each
//! service. Here is what else a shape of the interface has of its own, and that two guests give one transcript.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

/// One test per case, guest and target: `suite::store::get_06_absent_is_none_and_empty_is_some::c_on_engine`.
macro_rules! cases {
    ($($case:ident)*) => {
        $(
            mod $case {
                use crate::suite::guest::Language;
                use crate::suite::target::Host;
                use crate::{engine, memory};

                #[test]
                fn c_on_engine() {
                    super::$case(&mut Host::new(Language::C, engine()));
                }
                #[test]
                fn c_on_memory() {
                    super::$case(&mut Host::new(Language::C, memory()));
                }
                #[test]
                fn rust_on_engine() {
                    super::$case(&mut Host::new(Language::Rust, engine()));
                }
                #[test]
                fn rust_on_memory() {
                    super::$case(&mut Host::new(Language::Rust, memory()));
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
                        super::$case(&mut Host::new(shape, engine()));
                    }
                }
            }
        )*
    };
}

#[path = "../src/bin/kvasi/conformance/suite/mod.rs"]
mod suite;

#[path = "conformance/shapes.rs"]
mod shapes;
#[path = "conformance/transcript.rs"]
mod transcript;

use kvasi_wasmtime::backend::Memory;
use suite::target::Target;

/// The engine on files, in a directory of its own.
fn engine() -> Target {
    let dir = tempfile::tempdir().unwrap();
    Target::engine(dir.path()).unwrap().keeping(dir)
}

/// The engine without files.
fn memory() -> Target {
    Target::new(Box::new(Memory::new().unwrap()))
}
