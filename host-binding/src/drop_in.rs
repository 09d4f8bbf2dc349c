//! The names of the crate `wasmtime-wasi-keyvalue`, so that a host that uses it moves here by changing one line.
//!
//! ```
//! use wasmtime::component::{Linker, ResourceTable};
//! use wasmtime::{Engine, Result, Store};
//!
//! // use wasmtime_wasi_keyvalue as keyvalue;
//! use kvasi_wasmtime::drop_in as keyvalue;
//!
//! struct Ctx {
//!     table: ResourceTable,
//!     keyvalue: keyvalue::WasiKeyValueCtx,
//! }
//!
//! fn main() -> Result<()> {
//!     let engine = Engine::default();
//!     let mut store = Store::new(
//!         &engine,
//!         Ctx {
//!             table: ResourceTable::new(),
//!             keyvalue: keyvalue::WasiKeyValueCtxBuilder::new().in_memory_data([("key", "value")]).build(),
//!         },
//!     );
//!     let mut linker = Linker::<Ctx>::new(&engine);
//!     keyvalue::add_to_linker(&mut linker, |ctx: &mut Ctx| {
//!         keyvalue::WasiKeyValue::new(&ctx.keyvalue, &mut ctx.table)
//!     })?;
//! #   let _ = &mut store;
//!     // ... instantiate with `linker` in `store` ...
//!     Ok(())
//! }
//! ```
//!
//! Flow: builder -> a store in memory, or the bucket given -> the context of this crate. From there on nothing is different.
//! What is: data is shared by all handles and survives them; a number that does not fit, a cursor that is none, are errors; and
//! with one line more, [`bucket`](WasiKeyValueCtxBuilder::bucket), the data survives the process.

pub use crate::{WasiKeyValueCtx, add_to_linker};

use crate::WasiKeyValueCtxView;
use crate::backend::{Backend, LocalBucket, Memory};
use crate::{Error, Rights};
use std::fmt;
use std::sync::Arc;

/// What `add_to_linker` wants of the host's state.
pub type WasiKeyValue<'a> = WasiKeyValueCtxView<'a>;

/// Builds a context with one bucket, `""`: in memory, if no other is given.
#[derive(Default)]
pub struct WasiKeyValueCtxBuilder {
    data: Vec<(String, Vec<u8>)>,
    bucket: Option<Arc<dyn LocalBucket>>,
}

impl fmt::Debug for WasiKeyValueCtxBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WasiKeyValueCtxBuilder").finish_non_exhaustive()
    }
}

impl WasiKeyValueCtxBuilder {
    /// A builder with nothing in it.
    pub fn new() -> Self {
        Self::default()
    }

    /// What the bucket holds at the beginning.
    #[must_use]
    pub fn in_memory_data<I, K, V>(mut self, data: I) -> Self
    where
        I: IntoIterator<Item = (K, V)>,
        K: Into<String>,
        V: Into<Vec<u8>>,
    {
        self.data = data.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
        self
    }

    /// The bucket to use in place of one in memory: `store.bucket("name")?` of a [`kvasi::Store`], or one of a service.
    #[must_use]
    pub fn bucket(mut self, bucket: impl LocalBucket) -> Self {
        self.bucket = Some(Arc::new(bucket));
        self
    }

    /// The context.
    ///
    /// # Panics
    /// If the data cannot be written: [`try_build`](WasiKeyValueCtxBuilder::try_build) gives the error instead. In memory that is for
    /// want of memory, or of randomness from the system.
    #[allow(clippy::expect_used, reason = "the documented panic: the crate whose name this has returns no error here")]
    pub fn build(self) -> WasiKeyValueCtx {
        self.try_build().expect("the bucket takes the data")
    }

    /// The context.
    ///
    /// # Errors
    /// The bucket does not take the data.
    pub fn try_build(self) -> Result<WasiKeyValueCtx, Error> {
        let bucket = match self.bucket {
            Some(bucket) => bucket,
            None => Memory::new()?.bucket("")?,
        };
        for (key, value) in &self.data {
            bucket.set(key, value)?;
        }
        Ok(WasiKeyValueCtx::builder().grant("", bucket, Rights::ALL).build())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_data_is_there_at_the_beginning() {
        let ctx = WasiKeyValueCtxBuilder::new().in_memory_data([("k", "v")]).build();
        let grant = ctx.look_up(None, "").unwrap();
        assert_eq!(grant.bucket.get("k").unwrap().as_deref(), Some(&b"v"[..]));
        let store = kvasi::Store::in_memory(kvasi::Options::new()).unwrap();
        let ctx = WasiKeyValueCtxBuilder::new().bucket(store.bucket("b").unwrap()).in_memory_data([("k", "w")]).build();
        assert_eq!(store.bucket("b").unwrap().get(b"k").unwrap().as_deref(), Some(&b"w"[..]));
        assert!(ctx.look_up(None, "k").is_err());
    }
}
