//! Registration: the calls of the interface, by hand, in an embedder's linker; one file per shape of the interface.
//!
//! Flow: guest -> wasmtime lifts views -> a call's first half, in the shape's file -> `store`, `batch`, `atomics` -> its second half,
//! once the answer is there -> wasmtime lowers. [`Access::define`] joins the halves, in each of the ways that wasmtime knows.
//! By hand, because `bindgen!` makes a `String` and a `Vec` of every parameter before our code runs: here keys and values
//! are read where they lie in guest memory, and limits are checked on their lengths.
//! Invariants: 1. A view borrows the store, so whatever is needed of the embedder's state is cloned out first. 2. Nothing of
//! guest memory is looked at after the first half: an asynchronous guest may use its parameters' memory again. 3. A trap is
//! for what the canonical ABI forbids (text that is not UTF-8, a handle of another kind); all else is a WIT error.

mod calls;
mod draft;
mod draft2;
mod host;
#[cfg(feature = "p3")]
mod host_async;
mod host_drafts;
mod shape;
mod signatures;
#[cfg(feature = "p3")]
mod wasmcloud;

pub use shape::{Shapes, UnknownShape};

use crate::backend::Reply;
use crate::ctx::{WasiKeyValueCtxView, WasiKeyValueView};
use crate::pace::Pace;
use draft2::Misses;
use shape::{Interface, Shape};
use std::future::ready;
use std::sync::Arc;
#[cfg(feature = "p3")]
use wasmtime::AsContextMut;
use wasmtime::component::{Component, ComponentNamedList, ComponentType, Lift, Linker, LinkerInstance, Lower};
use wasmtime::error::Context;
use wasmtime::{Result, StoreContextMut, bail};

/// Adds `wasi:keyvalue@0.2.0-draft2`, form A, and `@0.2.0-draft`, for instances that are called synchronously. A write that waits for the
/// disk blocks its thread. For the other shapes see [`link_sync`].
///
/// # Errors
/// The linker already has one of the names.
pub fn add_to_linker_sync<T: WasiKeyValueView + 'static>(linker: &mut Linker<T>) -> Result<()> {
    add_drafts(linker, Access { view: T::keyvalue, host: Host::Blocking })
}

/// Adds `wasi:keyvalue@0.2.0-draft2`, form A, and `@0.2.0-draft`, for instances that are called with `call_async`. For the other shapes
/// see [`link_async`].
///
/// What is in memory is answered at once, without a switch of stacks. A call that has to wait, a write with `Durability::Sync` or
/// one of a bucket behind a network, suspends its guest: the thread goes on with other tasks.
///
/// # Errors
/// The linker already has one of the names.
pub fn add_to_linker_async<T: WasiKeyValueView + 'static>(linker: &mut Linker<T>) -> Result<()> {
    add_drafts(linker, Access { view: T::keyvalue, host: Host::Suspending })
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
    add_drafts(linker, Access { view, host: Host::Blocking })
}

fn add_drafts<T: Send + 'static>(linker: &mut Linker<T>, access: Access<T>) -> Result<()> {
    add(linker, Shape::Draft2A, access)?;
    add(linker, Shape::Draft, access)
}

/// The shapes of the interface whose functions are `async`: the guest may have several calls under way.
#[cfg(feature = "p3")]
pub mod p3 {
    use super::{Access, Host, Shape, add};
    use crate::ctx::WasiKeyValueView;
    use wasmtime::Result;
    use wasmtime::component::Linker;

    /// Adds `wasi:keyvalue@0.2.0-draft2` with every function `async` (form C), and `wasmcloud:keyvalue@0.2.0`. The engine's configuration
    /// must have `concurrency_support` on, as it is by default.
    ///
    /// # Errors
    /// The linker already has one of the names, among them those of the synchronous form; or concurrency is off.
    pub fn add_to_linker<T: WasiKeyValueView + 'static>(linker: &mut Linker<T>) -> Result<()> {
        let access = Access { view: T::keyvalue, host: Host::Concurrent };
        add(linker, Shape::Draft2C, access)?;
        add(linker, Shape::Wasmcloud, access)
    }
}

/// Adds what `component` imports of the key-value interfaces, each in the shape in which it imports it, labelled imports under
/// their labels; nothing if it imports none. For instances that are called synchronously.
///
/// One linker takes one component: three shapes have the same names. Clone a linker that has all the rest.
///
/// # Errors
/// An import has no shape that is served: an [`UnknownShape`]. It has `async` functions, and so needs [`link_async`]. The linker
/// already has one of the names.
pub fn link_sync<T: WasiKeyValueView + 'static>(linker: &mut Linker<T>, component: &Component) -> Result<Shapes> {
    link(linker, component, Access { view: T::keyvalue, host: Host::Blocking })
}

/// As [`link_sync`], for instances that are called with `call_async`. Calls wait as [`add_to_linker_async`] says.
///
/// # Errors
/// As [`link_sync`]; `async` functions need the feature `p3` and an engine with `concurrency_support`.
pub fn link_async<T: WasiKeyValueView + 'static>(linker: &mut Linker<T>, component: &Component) -> Result<Shapes> {
    link(linker, component, Access { view: T::keyvalue, host: Host::Suspending })
}

fn link<T: Send + 'static>(linker: &mut Linker<T>, component: &Component, access: Access<T>) -> Result<Shapes> {
    let shapes = Shapes::of(component, linker.engine())?;
    for import in &shapes.imports {
        let access = access.for_shape(import.shape).with_context(|| format!("{} is {}", import.name, import.shape))?;
        let label = import.is_label.then(|| Arc::from(&*import.name));
        add_interface(&mut linker.instance(&import.name)?, import.shape, import.interface, access, label)?;
    }
    Ok(shapes)
}

/// All interfaces of a shape, under their own names.
fn add<T: Send + 'static>(linker: &mut Linker<T>, shape: Shape, access: Access<T>) -> Result<()> {
    for interface in shape.interfaces() {
        let mut instance = linker.instance(&shape.interface(interface))?;
        add_interface(&mut instance, shape, interface, access, None)?;
    }
    Ok(())
}

fn add_interface<T: Send + 'static>(
    instance: &mut LinkerInstance<'_, T>,
    shape: Shape,
    interface: Interface,
    access: Access<T>,
    label: calls::Label,
) -> Result<()> {
    match shape {
        Shape::Draft => draft::add(instance, access, interface, label),
        Shape::Draft2A | Shape::Draft2C => draft2::add(instance, access, interface, label, Misses::AreNone),
        Shape::Draft2B => draft2::add(instance, access, interface, label, Misses::HaveKeys),
        #[cfg(feature = "p3")]
        Shape::Wasmcloud => wasmcloud::add(instance, access, interface, label),
        #[cfg(not(feature = "p3"))]
        Shape::Wasmcloud => Ok(()),
    }
}

/// How the host calls its guests, and so how a call may wait.
#[derive(Clone, Copy, Debug)]
enum Host {
    /// With `call`: the thread waits.
    Blocking,
    /// With `call_async`: the guest's stack is put aside.
    Suspending,
    /// With `call_async`, functions that the interface calls `async`: the guest may have several calls under way.
    #[cfg(feature = "p3")]
    Concurrent,
}

/// How the closures reach the embedder's state, and how they wait.
struct Access<T: 'static> {
    view: fn(&mut T) -> WasiKeyValueCtxView<'_>,
    host: Host,
}

impl<T> Clone for Access<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Access<T> {}

impl<T: Send + 'static> Access<T> {
    /// The way in which the functions of `shape` are defined for this host.
    fn for_shape(self, shape: Shape) -> Result<Self> {
        match self.host {
            _ if !shape.is_async() => Ok(self),
            #[cfg(feature = "p3")]
            Host::Suspending | Host::Concurrent => Ok(Access { host: Host::Concurrent, ..self }),
            #[cfg(not(feature = "p3"))]
            Host::Suspending => {
                bail!("its functions are async, which this build leaves out: it is made with the feature p3")
            }
            Host::Blocking => bail!("its functions are async: the host must call its guests asynchronously"),
        }
    }

    fn view<'a>(&self, cx: &'a mut StoreContextMut<'_, T>) -> WasiKeyValueCtxView<'a> {
        (self.view)(cx.data_mut())
    }

    /// Defines a call by its two halves: `start` looks at the parameters in guest memory and asks the back end, `finish` makes what
    /// the guest gets of the answer. Where the answer is there at once, no host switches stacks.
    fn define<P, R, E, W>(
        self,
        instance: &mut LinkerInstance<'_, T>,
        name: &str,
        start: impl Fn(&mut StoreContextMut<'_, T>, Pace, P) -> Result<Reply<R, E>> + Send + Sync + 'static,
        finish: impl Fn(&mut StoreContextMut<'_, T>, std::result::Result<R, E>) -> W + Copy + Send + Sync + 'static,
    ) -> Result<()>
    where
        P: ComponentNamedList + Lift + 'static,
        R: 'static,
        E: 'static,
        W: ComponentType + Lower + Send + 'static,
    {
        match self.host {
            Host::Blocking => instance.func_wrap(name, move |mut cx, params: P| {
                let answer = start(&mut cx, Pace::Wait, params)?.now();
                Ok((finish(&mut cx, answer),))
            }),
            Host::Suspending => {
                instance.func_wrap_async(name, move |mut cx, params: P| match start(&mut cx, Pace::Start, params) {
                    Err(trap) => Box::new(ready(Err(trap))),
                    Ok(Reply::Now(answer)) => Box::new(ready(Ok((finish(&mut cx, answer),)))),
                    Ok(Reply::Later(answer)) => Box::new(async move {
                        let answer = answer.await;
                        Ok((finish(&mut cx, answer),))
                    }),
                })
            }
            #[cfg(feature = "p3")]
            Host::Concurrent => instance.func_wrap_concurrent(name, move |accessor, params: P| {
                match accessor.with(|mut access| start(&mut access.as_context_mut(), Pace::Start, params)) {
                    Err(trap) => Box::pin(ready(Err(trap))),
                    Ok(Reply::Now(answer)) => {
                        let given = accessor.with(|mut access| finish(&mut access.as_context_mut(), answer));
                        Box::pin(ready(Ok((given,))))
                    }
                    Ok(Reply::Later(answer)) => Box::pin(async move {
                        let answer = answer.await;
                        Ok((accessor.with(|mut access| finish(&mut access.as_context_mut(), answer)),))
                    }),
                }
            }),
        }
    }
}
