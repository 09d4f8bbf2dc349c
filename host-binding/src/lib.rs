//! `wasi:keyvalue` for hosts built on wasmtime, over the kvasi engine: durable, shared, without a spare copy.
//!
//! An embedder builds a [`WasiKeyValueCtx`] (which buckets a component may open, with which rights and limits), keeps a
//! clone of it beside a `ResourceTable` in the state of each store, and adds the interface to its linker. A key or value
//! that a guest passes is read where it lies in guest memory; a value that a guest gets is copied once, from the engine's
//! mapped file into guest memory.
//!
//! # A whole host
//!
//! ```
//! use kvasi_wasmtime::{WasiKeyValueCtx, WasiKeyValueCtxView, WasiKeyValueView};
//! use wasmtime::component::{Component, Linker, ResourceTable};
//! use wasmtime::{Engine, Store};
//!
//! struct State {
//!     keyvalue: WasiKeyValueCtx,
//!     table: ResourceTable,
//! }
//!
//! impl WasiKeyValueView for State {
//!     fn keyvalue(&mut self) -> WasiKeyValueCtxView<'_> {
//!         WasiKeyValueCtxView { ctx: &mut self.keyvalue, table: &mut self.table }
//!     }
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let path = dir.path().join("data");
//! // One store for the process, one context for the component.
//! let data = kvasi::Store::open(&path, kvasi::Options::new())?;
//! let ctx = WasiKeyValueCtx::builder().bucket("visits", data.bucket("visits")?).build();
//!
//! let mut config = wasmtime::Config::new();
//! config.concurrency_support(false); // a third off each call, where no guest needs `async func`
//! let engine = Engine::new(&config)?;
//! let mut linker = Linker::new(&engine);
//! # const COMPONENT: [u8; 8] = *b"\0asm\x0d\0\x01\0";
//! let component = Component::new(&engine, COMPONENT)?;
//! kvasi_wasmtime::link_sync(&mut linker, &component)?; // in whatever shape it imports the interface
//!
//! // One clone of the context for each store, that is, for each instance.
//! let mut store = Store::new(&engine, State { keyvalue: ctx.clone(), table: ResourceTable::new() });
//! kvasi_wasmtime::limit_store(&mut store);
//! let instance = linker.instantiate(&mut store, &component)?;
//! # let _ = instance;
//! # Ok(())
//! # }
//! ```
//!
//! # Shapes of the interface
//!
//! Guests in the field import `wasi:keyvalue@0.2.0-draft`, `@0.2.0-draft2` in three forms that share the name, or
//! `wasmcloud:keyvalue@0.2.0`. [`link_sync`] and [`link_async`] look at the component and add what it imports, [`Shapes`] says what that is;
//! an import of no known shape is refused with what was expected and found. A host that knows its guests adds both drafts by
//! [`add_to_linker_sync`] or [`add_to_linker_async`], or what has `async` functions by `p3::add_to_linker`. A host that uses the
//! crate `wasmtime-wasi-keyvalue` changes one line: [`drop_in`].
//!
//! An asynchronous host's thread is not held: what is in memory is answered without a switch of stacks, and a write with
//! `Durability::Sync` or a bucket behind a network suspends the guest. Where a call is given up (a trap, an epoch, a timeout),
//! its write is made as a whole or not at all.
//!
//! # What a guest is told
//!
//! The WIT type `error` has two cases for `open` and for rights that are missing (`no-such-store`, `access-denied`); all
//! else is `other` with one text of a closed list, see [`Code`]. Limits are in [`Limits`]. A guest whose key is not UTF-8,
//! or that uses a handle it does not have, traps, as the canonical ABI demands; nothing a guest does panics the host.
//!
//! # Parts
//!
//! [`backend`] is what another place for keys to live must implement; `config` (feature `config`, on by default) reads
//! `kvasi.toml`; [`bindings`] are the generated types, for a `bindgen!` of your own. Without default features the crate is
//! the binding alone: no command, no compiler; the embedder chooses wasmtime's features.

#![cfg_attr(not(feature = "p3"), allow(dead_code, reason = "what the shapes with `async` functions alone use"))]

mod atomics;
pub mod backend;
mod batch;
pub mod bindings;
#[cfg(feature = "config")]
pub mod config;
#[cfg(feature = "remote")]
pub mod copy;
mod ctx;
mod cursor;
pub mod drop_in;
mod error;
mod gate;
mod link;
mod lower;
mod observe;
mod pace;
#[cfg(feature = "config")]
mod places;
mod quota;
mod store;
#[cfg(feature = "config")]
mod target;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod version;
mod watcher;

pub use ctx::{
    Bucket, Cas, Limits, Rights, WasiKeyValue, WasiKeyValueCtx, WasiKeyValueCtxBuilder, WasiKeyValueCtxView,
    WasiKeyValueView, limit_store,
};
pub use error::{Code, Error};
pub use gate::Gate;
#[cfg(feature = "p3")]
pub use link::p3;
pub use link::{Shapes, UnknownShape, add_to_linker, add_to_linker_async, add_to_linker_sync, link_async, link_sync};
pub use lower::Utf8Bytes;
pub use quota::{Account, Metered, Usage};
#[cfg(feature = "config")]
pub use target::Target;
pub use watcher::{Step, WatchOptions, WatchService};
