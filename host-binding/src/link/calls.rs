//! The calls that several shapes of the interface have, each defined in one way for all of them; their shapes differ in the type of
//! an error, and in who is asked for what.
//!
//! Flow and invariants: see `link`. A call's first half clones the bucket out of the table, looks at the parameters in guest
//! memory and asks; its second half gives the answer its type, and pushes new handles.

use super::Access;
use crate::backend::{Key, Reply};
use crate::ctx::{Bucket, Cas, Rights};
use crate::error::Refusal;
use crate::lower::{FoundPair, Got};
use crate::{Utf8Bytes, atomics, batch, store};
use bytes::Bytes;
use smallvec::SmallVec;
use std::sync::Arc;
use wasmtime::component::{ComponentType, Lift, LinkerInstance, Lower, Resource, ResourceType, WasmList, WasmStr};
use wasmtime::{Result, StoreContextMut};

/// Batches up to this many keys are collected on the stack.
const INLINE_KEYS: usize = 128;
type Few<T> = SmallVec<[T; INLINE_KEYS]>;

/// The label of an import, if it has one.
pub(super) type Label = Option<Arc<str>>;
pub(super) type Instance<'a, T> = LinkerInstance<'a, T>;
/// A handle and a key: what most calls are given.
pub(super) type OneKey = (Resource<Bucket>, WasmStr);
type Keys = (Resource<Bucket>, WasmList<WasmStr>);

/// The type `error` of a shape.
pub(super) trait WitError: From<Refusal> + ComponentType + Lower + Send + 'static {}
impl<E: From<Refusal> + ComponentType + Lower + Send + 'static> WitError for E {}

/// The WIT record `key-response`, its keys sharing one buffer.
#[derive(ComponentType, Lower)]
#[component(record)]
struct KeyResponse {
    keys: Vec<Utf8Bytes>,
    cursor: Option<String>,
}

/// An answer that needs nothing but its type.
pub(super) fn plain<T, R, E: WitError>(
    _: &mut StoreContextMut<'_, T>,
    answer: std::result::Result<R, Refusal>,
) -> std::result::Result<R, E> {
    answer.map_err(E::from)
}

pub(super) fn bucket<T: Send + 'static>(instance: &mut Instance<'_, T>, access: Access<T>) -> Result<()> {
    instance.resource("bucket", ResourceType::host::<Bucket>(), move |mut cx, rep| {
        access.view(&mut cx).drop_bucket(Resource::new_own(rep))
    })
}

pub(super) fn open<T: Send + 'static, E: WitError>(
    instance: &mut Instance<'_, T>,
    access: Access<T>,
    label: Label,
) -> Result<()> {
    access.define(
        instance,
        "open",
        move |cx, _, (name,): (WasmStr,)| {
            let ctx = access.view(cx).ctx;
            let (held, ctx) = (ctx.handles.buckets.get(), ctx.clone());
            Ok(Reply::Now(store::open(&ctx, held, label.as_deref(), &name.to_str(&*cx)?)))
        },
        move |cx, opened| {
            let kept = opened.and_then(|bucket| store::keep(&mut access.view(cx), bucket));
            kept.map_err(E::from)
        },
    )
}

/// `get` and `exists`.
pub(super) fn reads<T: Send + 'static, E: WitError>(instance: &mut Instance<'_, T>, access: Access<T>) -> Result<()> {
    access.define(
        instance,
        "[method]bucket.get",
        move |cx, pace, (this, key): OneKey| {
            let bucket = access.view(cx).bucket(&this)?;
            Ok(store::get(&bucket.grant, pace, &key.to_str(&*cx)?))
        },
        |_, value| Got(value.map_err(E::from)),
    )?;
    access.define(
        instance,
        "[method]bucket.exists",
        move |cx, pace, (this, key): OneKey| {
            let bucket = access.view(cx).bucket(&this)?;
            Ok(store::exists(&bucket.grant, pace, &key.to_str(&*cx)?))
        },
        plain::<T, bool, E>,
    )
}

/// `list-keys` with a textual cursor and nothing else.
pub(super) fn list<T: Send + 'static, E: WitError>(instance: &mut Instance<'_, T>, access: Access<T>) -> Result<()> {
    access.define(
        instance,
        "[method]bucket.list-keys",
        move |cx, pace, (this, cursor): (Resource<Bucket>, Option<WasmStr>)| {
            let bucket = access.view(cx).bucket(&this)?;
            let cursor = cursor.map(|cursor| cursor.to_str(&*cx)).transpose()?;
            Ok(store::list_keys(&bucket.grant, pace, "", cursor.as_deref()))
        },
        page::<T, E>,
    )
}

/// `list-keys` of the keys with a prefix.
pub(super) fn list_prefix<T: Send + 'static, E: WitError>(
    instance: &mut Instance<'_, T>,
    access: Access<T>,
) -> Result<()> {
    type List = (Resource<Bucket>, Option<WasmStr>, Option<WasmStr>);
    access.define(
        instance,
        "[method]bucket.list-keys",
        move |cx, pace, (this, prefix, cursor): List| {
            let bucket = access.view(cx).bucket(&this)?;
            let prefix = prefix.map(|prefix| prefix.to_str(&*cx)).transpose()?;
            let cursor = cursor.map(|cursor| cursor.to_str(&*cx)).transpose()?;
            Ok(store::list_keys(&bucket.grant, pace, prefix.as_deref().unwrap_or_default(), cursor.as_deref()))
        },
        page::<T, E>,
    )
}

fn page<T, E: WitError>(
    _: &mut StoreContextMut<'_, T>,
    page: std::result::Result<store::KeyPage, Refusal>,
) -> std::result::Result<KeyResponse, E> {
    let store::KeyPage { keys, cursor } = page.map_err(E::from)?;
    Ok(KeyResponse { keys, cursor })
}

pub(super) fn set<T: Send + 'static, E: WitError>(instance: &mut Instance<'_, T>, access: Access<T>) -> Result<()> {
    access.define(
        instance,
        "[method]bucket.set",
        move |cx, pace, (this, key, value): (Resource<Bucket>, WasmStr, WasmList<u8>)| {
            let bucket = access.view(cx).bucket(&this)?;
            Ok(store::set(&bucket.grant, pace, &key.to_str(&*cx)?, value.as_le_slice(&*cx)))
        },
        plain::<T, (), E>,
    )
}

pub(super) fn delete<T: Send + 'static, E: WitError>(instance: &mut Instance<'_, T>, access: Access<T>) -> Result<()> {
    access.define(
        instance,
        "[method]bucket.delete",
        move |cx, pace, (this, key): OneKey| {
            let bucket = access.view(cx).bucket(&this)?;
            Ok(store::delete(&bucket.grant, pace, &key.to_str(&*cx)?))
        },
        plain::<T, (), E>,
    )
}

pub(super) fn increment<T: Send + 'static, E: WitError>(
    instance: &mut Instance<'_, T>,
    access: Access<T>,
) -> Result<()> {
    access.define(
        instance,
        "increment",
        move |cx, pace, (bucket, key, delta): (Resource<Bucket>, WasmStr, i64)| {
            let bucket = access.view(cx).bucket(&bucket)?;
            Ok(atomics::increment(&bucket.grant, pace, &key.to_str(&*cx)?, delta))
        },
        plain::<T, i64, E>,
    )
}

/// The resource `cas`, and `new` and `current` of it.
pub(super) fn cas<T: Send + 'static, E: WitError>(instance: &mut Instance<'_, T>, access: Access<T>) -> Result<()> {
    instance.resource("cas", ResourceType::host::<Cas>(), move |mut cx, rep| {
        access.view(&mut cx).take_cas(Resource::new_own(rep)).map(drop)
    })?;
    access.define(
        instance,
        "[static]cas.new",
        move |cx, pace, (bucket, key): OneKey| {
            let bucket = access.view(cx).bucket(&bucket)?;
            let held = access.view(cx).ctx.handles.cas.get();
            Ok(atomics::attempt(&bucket.grant, pace, held, &key.to_str(&*cx)?))
        },
        move |cx, attempt| {
            let kept = attempt.and_then(|cas| atomics::keep(&mut access.view(cx), cas));
            kept.map_err(E::from)
        },
    )?;
    access.define(
        instance,
        "[method]cas.current",
        move |cx, _, (this,): (Resource<Cas>,)| {
            let value: Option<Bytes> = access.view(cx).table.get(&this)?.value.clone();
            Ok(Reply::Now(Ok(value)))
        },
        plain::<T, Option<Bytes>, E>,
    )
}

/// `get-many` with `none` in the place of a miss. The answer stays in the memory in which the back end gave it.
pub(super) fn get_many<T: Send + 'static, E: WitError>(
    instance: &mut Instance<'_, T>,
    access: Access<T>,
) -> Result<()> {
    access.define(
        instance,
        "get-many",
        move |cx, pace, (bucket, keys): Keys| {
            let bucket = access.view(cx).bucket(&bucket)?;
            if let Err(refusal) = batch::check_count(&bucket.grant, "get-many", Rights::READ, keys.len()) {
                return Ok(Reply::Now(Err(refusal)));
            }
            let views = views(&keys, cx)?;
            Ok(batch::get_many(&bucket.grant, pace, &texts(&views, cx)?))
        },
        |_, pairs| pairs.map(|pairs| pairs.into_iter().map(FoundPair).collect::<Vec<_>>()).map_err(E::from),
    )
}

/// `get-many` with the keys asked beside what they gave: for the shape that answers a miss with its key.
pub(super) fn get_many_with_misses<T: Send + 'static, E: WitError>(
    instance: &mut Instance<'_, T>,
    access: Access<T>,
) -> Result<()> {
    access.define(
        instance,
        "get-many",
        move |cx, pace, (bucket, keys): Keys| {
            let bucket = access.view(cx).bucket(&bucket)?;
            if let Err(refusal) = batch::check_count(&bucket.grant, "get-many", Rights::READ, keys.len()) {
                return Ok(Reply::Now(Err(refusal)));
            }
            let views = views(&keys, cx)?;
            let keys = texts(&views, cx)?;
            Ok(batch::get_many_with_misses(&bucket.grant, pace, &keys))
        },
        plain::<T, Vec<(Utf8Bytes, Option<Bytes>)>, E>,
    )
}

/// `set-many` and `delete-many`.
pub(super) fn batch_writes<T: Send + 'static, E: WitError>(
    instance: &mut Instance<'_, T>,
    access: Access<T>,
) -> Result<()> {
    type Pairs = (Resource<Bucket>, WasmList<(WasmStr, WasmList<u8>)>);
    access.define(
        instance,
        "set-many",
        move |cx, pace, (bucket, pairs): Pairs| {
            let bucket = access.view(cx).bucket(&bucket)?;
            if let Err(refusal) = batch::check_count(&bucket.grant, "set-many", Rights::WRITE, pairs.len()) {
                return Ok(Reply::Now(Err(refusal)));
            }
            let views = views(&pairs, cx)?;
            let pair = |(key, value): &(WasmStr, WasmList<u8>)| Ok((Key(key.to_str(&*cx)?), value.as_le_slice(&*cx)));
            let pairs = gather(views.len(), views.iter().map(pair))?;
            Ok(batch::set_many(&bucket.grant, pace, &pairs))
        },
        plain::<T, (), E>,
    )?;
    access.define(
        instance,
        "delete-many",
        move |cx, pace, (bucket, keys): Keys| {
            let bucket = access.view(cx).bucket(&bucket)?;
            if let Err(refusal) = batch::check_count(&bucket.grant, "delete-many", Rights::WRITE, keys.len()) {
                return Ok(Reply::Now(Err(refusal)));
            }
            let views = views(&keys, cx)?;
            Ok(batch::delete_many(&bucket.grant, pace, &texts(&views, cx)?))
        },
        plain::<T, (), E>,
    )
}

/// Where each item lies in guest memory. A step of its own: finding an item needs the store whole, reading it does not.
fn views<T: 'static, V: Lift>(list: &WasmList<V>, cx: &mut StoreContextMut<'_, T>) -> Result<Few<V>> {
    gather(list.len(), list.iter(cx)?)
}

fn texts<'a, T: 'static>(views: &[WasmStr], cx: &'a StoreContextMut<'_, T>) -> Result<Few<Key<'a>>> {
    gather(views.len(), views.iter().map(|view| Ok(Key(view.to_str(cx)?))))
}

/// As `collect`, which would forget how many there are; `count` was held against the limits before.
fn gather<V>(count: usize, items: impl Iterator<Item = Result<V>>) -> Result<Few<V>> {
    let mut gathered = Few::with_capacity(count);
    for item in items {
        gathered.push(item?);
    }
    Ok(gathered)
}
