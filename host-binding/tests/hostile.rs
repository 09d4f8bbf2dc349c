//! Hostile guests: small components, each of which does one thing that might hurt its host or its neighbours.
//!
//! Flow: a case (a name, a body in WAT, how it must end, what it must have been told) -> `guest` builds a component around
//! the body, runs it against a bucket with a quota, and looks: how it ended, every text it was given, how much memory of the
//! host's it held at the highest, what stands in the accounts, and whether a well-behaved neighbour still has everything.
//! Each case is a test of its own; all share one engine. What is asked of every one of them is in `guest::Host::run`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "hostile/guest.rs"]
mod guest;
#[path = "hostile/memory.rs"]
mod memory;

#[path = "hostile/batches.rs"]
mod batches;
#[path = "hostile/cancelled.rs"]
mod cancelled;
#[path = "hostile/cursors.rs"]
mod cursors;
#[path = "hostile/ends.rs"]
mod ends;
#[path = "hostile/handles.rs"]
mod handles;
#[path = "hostile/lifting.rs"]
mod lifting;
#[path = "hostile/limits.rs"]
mod limits;
#[path = "hostile/names.rs"]
mod names;
#[path = "hostile/races.rs"]
mod races;
#[path = "hostile/rights.rs"]
mod rights;
#[path = "hostile/storms.rs"]
mod storms;

/// One test per case: `name: how it ends, what it is told (in any order, each once), body`.
macro_rules! cases {
    ($($(#[$attribute:meta])* $name:ident: $end:expr, $told:expr, $body:expr;)*) => {
        $(
            $(#[$attribute])*
            #[test]
            fn $name() {
                #[allow(unused_imports, reason = "each case takes one of them")]
                use crate::guest::End::{Either, Returns, Traps};
                crate::guest::Host::new().run(&$body.to_string(), $end, &$told);
            }
        )*
    };
}
pub(crate) use cases;
