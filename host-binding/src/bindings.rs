//! Every `bindgen!` of the crate, and nothing else: the types of the interface as embedders and guests' worlds share them.
//!
//! Flow: `../wit` -> here -> `link`, which registers the calls by hand and answers with these types. A downstream
//! `bindgen!` with `with: { "wasi:keyvalue": kvasi_wasmtime::bindings }` reuses them, and so meets the same handles.
//!
//! A world of an embedder's own that imports `wasi:keyvalue`, or `wasmcloud:keyvalue`, links these calls like any other interface's. Here a world
//! of a shape with `async` functions; the modules [`draft`], [`draft2_b`] and this one itself, with `imports: { default: trappable }`, do for
//! the shapes without:
//!
//! ```
//! # #[cfg(feature = "p3")] mod host {
//! use kvasi_wasmtime::{WasiKeyValue, WasiKeyValueView};
//! use wasmtime::component::Linker;
//!
//! mod world {
//!     wasmtime::component::bindgen!({
//!         inline: "package app:host; world uses { include wasmcloud:keyvalue/imports@0.2.0; }",
//!         path: "../wit/wasmcloud",
//!         world: "app:host/uses",
//!         imports: { default: async | store | trappable },
//!         with: { "wasmcloud:keyvalue": kvasi_wasmtime::bindings::wasmcloud },
//!     });
//! }
//!
//! fn link<T: WasiKeyValueView + 'static>(linker: &mut Linker<T>) -> wasmtime::Result<()> {
//!     world::Uses::add_to_linker::<_, WasiKeyValue>(linker, T::keyvalue)
//! }
//! # }
//! ```
//!
//! Invariant: nothing here is written by hand, so that a change of `wit/` shows as a compile error in `link`.

mod draft2 {
    #![allow(missing_docs, unreachable_pub, clippy::all, reason = "generated; the WIT files carry the text")]
    wasmtime::component::bindgen!({
        path: "../wit",
        world: "wasi:keyvalue/imports",
        imports: { default: trappable },
        with: {
            "wasi:keyvalue/store.bucket": crate::Bucket,
            "wasi:keyvalue/atomics.cas": crate::Cas,
        },
    });
}

pub use draft2::wasi::keyvalue::{atomics, batch, store};

/// The types of `wasi:keyvalue@0.2.0-draft`, the first draft.
pub mod draft {
    mod generated {
        #![allow(missing_docs, unreachable_pub, clippy::all, reason = "generated; the WIT files carry the text")]
        wasmtime::component::bindgen!({
            path: "../wit/draft",
            world: "wasi:keyvalue/imports",
            imports: { default: trappable },
            with: { "wasi:keyvalue/store.bucket": crate::Bucket },
        });
    }
    pub use generated::wasi::keyvalue::{atomics, batch, store};
}

/// The types of form B of `wasi:keyvalue@0.2.0-draft2`: those of form A, but for `batch`.
pub mod draft2_b {
    mod generated {
        #![allow(missing_docs, unreachable_pub, clippy::all, reason = "generated; the WIT files carry the text")]
        wasmtime::component::bindgen!({
            path: "../wit/draft2-b",
            world: "wasi:keyvalue/imports",
            imports: { default: trappable },
            with: {
                "wasi:keyvalue/store": crate::bindings::store,
                "wasi:keyvalue/atomics": crate::bindings::atomics,
            },
        });
    }
    pub use super::{atomics, store};
    pub use generated::wasi::keyvalue::batch;
}

/// The types of form C of `wasi:keyvalue@0.2.0-draft2`: form A with every function `async`.
#[cfg(feature = "p3")]
pub mod draft2_c {
    mod generated {
        #![allow(missing_docs, unreachable_pub, clippy::all, reason = "generated; the WIT files carry the text")]
        wasmtime::component::bindgen!({
            path: "../wit/draft2-c",
            world: "wasi:keyvalue/imports",
            imports: { default: async | store | trappable },
            with: {
                "wasi:keyvalue/store.bucket": crate::Bucket,
                "wasi:keyvalue/atomics.cas": crate::Cas,
            },
        });
    }
    pub use generated::wasi::keyvalue::{atomics, batch, store};
}

/// The types of `wasmcloud:keyvalue@0.2.0`.
#[cfg(feature = "p3")]
pub mod wasmcloud {
    mod generated {
        #![allow(missing_docs, unreachable_pub, clippy::all, reason = "generated; the WIT files carry the text")]
        wasmtime::component::bindgen!({
            path: "../wit/wasmcloud",
            world: "wasmcloud:keyvalue/imports",
            imports: { default: async | store | trappable },
            with: { "wasmcloud:keyvalue/types.bucket": crate::Bucket },
        });
    }
    pub use generated::wasmcloud::keyvalue::{atomics, batch, cas, store, types};
}
