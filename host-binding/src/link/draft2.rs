//! The shape `wasi:keyvalue@0.2.0-draft2`: form A, the one in `wit/`; form B, with another answer of `get-many`; form C, which is A
//! with every function `async`.
//!
//! Flow and invariants: see `link`. Which form it is only the types tell: all have one name.

use super::calls::{self, Instance, Label};
use super::shape::Interface;
use super::{Access, host};
use crate::atomics;
use crate::bindings::store::Error;
use crate::ctx::Cas;
use wasmtime::Result;
use wasmtime::component::{Resource, WasmList};

/// Which answer of `get-many`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Misses {
    /// `none` in the place of the pair: forms A and C.
    AreNone,
    /// The key, with `none` in the place of its value: form B.
    HaveKeys,
}

pub(super) fn add<T: Send + 'static>(
    instance: &mut Instance<'_, T>,
    access: Access<T>,
    interface: Interface,
    label: Label,
    misses: Misses,
) -> Result<()> {
    match interface {
        Interface::Store => {
            calls::bucket(instance, access)?;
            calls::open::<T, Error>(instance, access, label)?;
            calls::reads::<T, Error>(instance, access)?;
            calls::list::<T, Error>(instance, access)?;
            calls::set::<T, Error>(instance, access)?;
            calls::delete::<T, Error>(instance, access)
        }
        Interface::Atomics => {
            calls::cas::<T, Error>(instance, access)?;
            calls::increment::<T, Error>(instance, access)?;
            swap(instance, access)
        }
        Interface::Batch => {
            match misses {
                Misses::AreNone => calls::get_many::<T, Error>(instance, access)?,
                Misses::HaveKeys => calls::get_many_with_misses::<T, Error>(instance, access)?,
            }
            calls::batch_writes::<T, Error>(instance, access)
        }
        Interface::Types | Interface::Cas => Ok(()),
    }
}

fn swap<T: Send + 'static>(instance: &mut Instance<'_, T>, access: Access<T>) -> Result<()> {
    access.define(
        instance,
        "swap",
        move |cx, pace, (cas, value): (Resource<Cas>, WasmList<u8>)| {
            let cas = access.view(cx).take_cas(cas)?;
            Ok(atomics::swap(cas, pace, value.as_le_slice(&*cx)))
        },
        move |cx, swapped| swapped.map_err(|error| host::lost(&mut access.view(cx), error)),
    )
}
