//! The shape `wasi:keyvalue@0.2.0-draft`: a numeric cursor, an unsigned increment, no compare-and-swap.
//!
//! Flow and invariants: see `link`. The text of a cursor stays with the host, in the context's `cursor::Positions`; the guest
//! has its number.

use super::Access;
use super::calls::{self, Instance, Label};
use super::shape::Interface;
use crate::backend::Reply;
use crate::bindings::store::Error;
use crate::ctx::Bucket;
use crate::error::Refusal;
use crate::{Code, Utf8Bytes, atomics, store};
use wasmtime::Result;
use wasmtime::component::{ComponentType, Lower, Resource, WasmStr};

/// The WIT record `key-response` of this shape.
#[derive(ComponentType, Lower)]
#[component(record)]
struct KeyResponse {
    keys: Vec<Utf8Bytes>,
    cursor: Option<u64>,
}

pub(super) fn add<T: Send + 'static>(
    instance: &mut Instance<'_, T>,
    access: Access<T>,
    interface: Interface,
    label: Label,
) -> Result<()> {
    match interface {
        Interface::Store => {
            calls::bucket(instance, access)?;
            calls::open::<T, Error>(instance, access, label)?;
            calls::reads::<T, Error>(instance, access)?;
            list(instance, access)?;
            calls::set::<T, Error>(instance, access)?;
            calls::delete::<T, Error>(instance, access)
        }
        Interface::Atomics => increment(instance, access),
        Interface::Batch => {
            calls::get_many::<T, Error>(instance, access)?;
            calls::batch_writes::<T, Error>(instance, access)
        }
        Interface::Types | Interface::Cas => Ok(()),
    }
}

fn list<T: Send + 'static>(instance: &mut Instance<'_, T>, access: Access<T>) -> Result<()> {
    access.define(
        instance,
        "[method]bucket.list-keys",
        move |cx, pace, (this, at): (Resource<Bucket>, Option<u64>)| {
            let bucket = access.view(cx).bucket(&this)?;
            let positions = access.view(cx).ctx.positions();
            let at = match at.map(|at| positions.find(at).ok_or(Refusal::Failed(Code::InvalidCursor))).transpose() {
                Ok(at) => at,
                Err(refusal) => return Ok(Reply::Now(Err(refusal))),
            };
            Ok(store::list_keys(&bucket.grant, pace, "", at.as_deref()))
        },
        move |cx, page| -> std::result::Result<KeyResponse, Error> {
            let store::KeyPage { keys, cursor } = page.map_err(Error::from)?;
            let cursor = cursor.map(|cursor| access.view(cx).ctx.positions().keep(cursor));
            Ok(KeyResponse { keys, cursor })
        },
    )
}

fn increment<T: Send + 'static>(instance: &mut Instance<'_, T>, access: Access<T>) -> Result<()> {
    access.define(
        instance,
        "increment",
        move |cx, pace, (bucket, key, delta): (Resource<Bucket>, WasmStr, u64)| {
            let bucket = access.view(cx).bucket(&bucket)?;
            Ok(atomics::increment_unsigned(&bucket.grant, pace, &key.to_str(&*cx)?, delta))
        },
        calls::plain::<T, u64, Error>,
    )
}
