//! Every `bindgen!` of the crate, and nothing else: the types of the interface as embedders and guests' worlds share them.
//!
//! Flow: `../wit` -> here -> `link`, which registers the calls by hand and answers with these types. A downstream
//! `bindgen!` with `with: { "wasi:keyvalue": kvasi_wasmtime::bindings }` reuses them, and so meets the same handles.
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
