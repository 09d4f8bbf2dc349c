//! Registration: the calls of the interface, by hand, in an embedder's linker; one file per shape of the interface.
//!
//! Flow: guest -> wasmtime lifts views -> a closure of `draft2` -> `store`, `batch`, `atomics` -> wasmtime lowers.
//! By hand, because `bindgen!` makes a `String` and a `Vec` of every parameter before our code runs: here keys and values
//! are read where they lie in guest memory, and limits are checked on their lengths.
//! Invariants: 1. A view borrows the store, so whatever is needed of the embedder's state is cloned out first. 2. A trap is
//! for what the canonical ABI forbids (text that is not UTF-8, a handle of another kind); all else is a WIT error.

mod draft2;
mod host;

use crate::ctx::{WasiKeyValueCtxView, WasiKeyValueView};
use std::future::ready;
use wasmtime::Result;
use wasmtime::StoreContextMut;
use wasmtime::component::{ComponentNamedList, Lift, Linker, LinkerInstance, Lower};

/// Adds `wasi:keyvalue` for instances that are called synchronously. A write that waits for the disk blocks its thread.
///
/// # Errors
/// The linker already has one of the names.
pub fn add_to_linker_sync<T: WasiKeyValueView + 'static>(linker: &mut Linker<T>) -> Result<()> {
    add(linker, Access { view: T::keyvalue, pace: Pace::Blocking })
}

/// Adds `wasi:keyvalue` for instances that are called with `call_async`.
///
/// Reads answer at once, without a switch of stacks. A write waits in the calling thread for what its bucket's
/// durability asks, which with `Durability::Sync` is the disk: give such stores a thread that may wait.
///
/// # Errors
/// The linker already has one of the names.
pub fn add_to_linker_async<T: WasiKeyValueView + 'static>(linker: &mut Linker<T>) -> Result<()> {
    add(linker, Access { view: T::keyvalue, pace: Pace::Suspending })
}

/// As [`add_to_linker_sync`], for an embedder whose state does not implement [`WasiKeyValueView`]: `view` finds the
/// context and the table in it. Works under `call_async` too.
///
/// # Errors
/// The linker already has one of the names.
pub fn add_to_linker<T: Send + 'static>(
    linker: &mut Linker<T>,
    view: fn(&mut T) -> WasiKeyValueCtxView<'_>,
) -> Result<()> {
    add(linker, Access { view, pace: Pace::Blocking })
}

fn add<T: Send + 'static>(linker: &mut Linker<T>, access: Access<T>) -> Result<()> {
    draft2::add(linker, access)
}

/// What a call does while a write of it is on its way to the disk.
#[derive(Clone, Copy)]
enum Pace {
    Blocking,
    Suspending,
}

/// How the closures reach the embedder's state, and how they wait.
struct Access<T: 'static> {
    view: fn(&mut T) -> WasiKeyValueCtxView<'_>,
    pace: Pace,
}

impl<T> Clone for Access<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Access<T> {}

impl<T: Send + 'static> Access<T> {
    fn view<'a>(&self, cx: &'a mut StoreContextMut<'_, T>) -> WasiKeyValueCtxView<'a> {
        (self.view)(cx.data_mut())
    }

    /// Defines a call that may wait for the disk. The one place that knows how: a write is finished here in the calling
    /// thread, in both paces, and the suspending one answers with a future that is ready. A back end whose writes are
    /// futures hands them on from here.
    fn define_write<P, R>(
        &self,
        instance: &mut LinkerInstance<'_, T>,
        name: &str,
        call: impl Fn(StoreContextMut<'_, T>, P) -> Result<R> + Send + Sync + 'static,
    ) -> Result<()>
    where
        P: ComponentNamedList + Lift + 'static,
        R: ComponentNamedList + Lower + Send + 'static,
    {
        match self.pace {
            Pace::Blocking => instance.func_wrap(name, call),
            Pace::Suspending => instance.func_wrap_async(name, move |cx, params: P| Box::new(ready(call(cx, params)))),
        }
    }
}
