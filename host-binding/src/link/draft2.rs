//! The shape `wasi:keyvalue@0.2.0-draft2`, form A: the one in `wit/`.
//!
//! Flow and invariants: see `link`. A call's first half clones the bucket out of the table, looks at the parameters in guest
//! memory and asks; its second half pushes new handles.

use super::Access;
use crate::backend::{Key, Pair, Reply};
use crate::bindings::store::Error;
use crate::ctx::{Bucket, Cas, Rights};
use crate::error::Refusal;
use crate::{Utf8Bytes, atomics, batch, store};
use bytes::Bytes;
use smallvec::SmallVec;
use wasmtime::component::{
    ComponentType, Lift, Linker, LinkerInstance, Lower, Resource, ResourceType, WasmList, WasmStr,
};
use wasmtime::{Result, StoreContextMut};

const STORE: &str = "wasi:keyvalue/store@0.2.0-draft2";
const ATOMICS: &str = "wasi:keyvalue/atomics@0.2.0-draft2";
const BATCH: &str = "wasi:keyvalue/batch@0.2.0-draft2";

/// Batches up to this many keys are collected on the stack.
const INLINE_KEYS: usize = 128;
type Few<T> = SmallVec<[T; INLINE_KEYS]>;

/// What a call answers: the WIT type `result<R, error>`.
type Answer<R> = std::result::Result<R, Error>;

/// The WIT record `key-response`, its keys sharing one buffer.
#[derive(ComponentType, Lower)]
#[component(record)]
struct KeyResponse {
    keys: Vec<Utf8Bytes>,
    cursor: Option<String>,
}

pub(super) fn add<T: Send + 'static>(linker: &mut Linker<T>, access: Access<T>) -> Result<()> {
    let mut instance = linker.instance(STORE)?;
    add_open(&mut instance, access)?;
    add_reads(&mut instance, access)?;
    add_writes(&mut instance, access)?;
    let mut instance = linker.instance(ATOMICS)?;
    add_cas(&mut instance, access)?;
    add_increment_and_swap(&mut instance, access)?;
    let mut instance = linker.instance(BATCH)?;
    add_batch_reads(&mut instance, access)?;
    add_batch_writes(&mut instance, access)
}

/// An answer that needs nothing but its type.
fn plain<T, R>(_: &mut StoreContextMut<'_, T>, answer: std::result::Result<R, Refusal>) -> Answer<R> {
    answer.map_err(Error::from)
}

fn add_open<T: Send + 'static>(instance: &mut LinkerInstance<'_, T>, access: Access<T>) -> Result<()> {
    instance.resource("bucket", ResourceType::host::<Bucket>(), move |mut cx, rep| {
        access.view(&mut cx).drop_bucket(Resource::new_own(rep))
    })?;
    access.define(
        instance,
        "open",
        move |cx, _, (name,): (WasmStr,)| {
            let ctx = access.view(cx).ctx;
            let (held, ctx) = (ctx.handles.buckets, ctx.clone());
            Ok(Reply::Now(store::open(&ctx, held, &name.to_str(&*cx)?)))
        },
        move |cx, bucket| Answer::Ok(store::keep(&mut access.view(cx), bucket?)?),
    )
}

type OneKey = (Resource<Bucket>, WasmStr);

fn add_reads<T: Send + 'static>(instance: &mut LinkerInstance<'_, T>, access: Access<T>) -> Result<()> {
    access.define(
        instance,
        "[method]bucket.get",
        move |cx, pace, (this, key): OneKey| {
            let bucket = access.view(cx).bucket(&this)?;
            Ok(store::get(&bucket.grant, pace, &key.to_str(&*cx)?))
        },
        plain,
    )?;
    access.define(
        instance,
        "[method]bucket.exists",
        move |cx, pace, (this, key): OneKey| {
            let bucket = access.view(cx).bucket(&this)?;
            Ok(store::exists(&bucket.grant, pace, &key.to_str(&*cx)?))
        },
        plain,
    )?;
    access.define(
        instance,
        "[method]bucket.list-keys",
        move |cx, pace, (this, cursor): (Resource<Bucket>, Option<WasmStr>)| {
            let bucket = access.view(cx).bucket(&this)?;
            let cursor = cursor.map(|cursor| cursor.to_str(&*cx)).transpose()?;
            Ok(store::list_keys(&bucket.grant, pace, "", cursor.as_deref()))
        },
        |_, page| {
            let store::KeyPage { keys, cursor } = page?;
            Answer::Ok(KeyResponse { keys, cursor })
        },
    )
}

fn add_writes<T: Send + 'static>(instance: &mut LinkerInstance<'_, T>, access: Access<T>) -> Result<()> {
    access.define(
        instance,
        "[method]bucket.set",
        move |cx, pace, (this, key, value): (Resource<Bucket>, WasmStr, WasmList<u8>)| {
            let bucket = access.view(cx).bucket(&this)?;
            Ok(store::set(&bucket.grant, pace, &key.to_str(&*cx)?, value.as_le_slice(&*cx)))
        },
        plain,
    )?;
    access.define(
        instance,
        "[method]bucket.delete",
        move |cx, pace, (this, key): OneKey| {
            let bucket = access.view(cx).bucket(&this)?;
            Ok(store::delete(&bucket.grant, pace, &key.to_str(&*cx)?))
        },
        plain,
    )
}

fn add_cas<T: Send + 'static>(instance: &mut LinkerInstance<'_, T>, access: Access<T>) -> Result<()> {
    instance.resource("cas", ResourceType::host::<Cas>(), move |mut cx, rep| {
        access.view(&mut cx).take_cas(Resource::new_own(rep)).map(drop)
    })?;
    access.define(
        instance,
        "[static]cas.new",
        move |cx, pace, (bucket, key): OneKey| {
            let bucket = access.view(cx).bucket(&bucket)?;
            let held = access.view(cx).ctx.handles.cas;
            Ok(atomics::attempt(&bucket.grant, pace, held, &key.to_str(&*cx)?))
        },
        move |cx, attempt| Answer::Ok(atomics::keep(&mut access.view(cx), attempt?)?),
    )?;
    access.define(
        instance,
        "[method]cas.current",
        move |cx, _, (this,): (Resource<Cas>,)| {
            let value: Option<Bytes> = access.view(cx).table.get(&this)?.value.clone();
            Ok(Reply::Now(Ok(value)))
        },
        plain,
    )
}

fn add_increment_and_swap<T: Send + 'static>(instance: &mut LinkerInstance<'_, T>, access: Access<T>) -> Result<()> {
    access.define(
        instance,
        "increment",
        move |cx, pace, (bucket, key, delta): (Resource<Bucket>, WasmStr, i64)| {
            let bucket = access.view(cx).bucket(&bucket)?;
            Ok(atomics::increment(&bucket.grant, pace, &key.to_str(&*cx)?, delta))
        },
        plain,
    )?;
    access.define(
        instance,
        "swap",
        move |cx, pace, (cas, value): (Resource<Cas>, WasmList<u8>)| {
            let cas = access.view(cx).take_cas(cas)?;
            Ok(atomics::swap(cas, pace, value.as_le_slice(&*cx)))
        },
        move |cx, swapped| swapped.map_err(|error| super::host::lost(&mut access.view(cx), error)),
    )
}

type Keys = (Resource<Bucket>, WasmList<WasmStr>);

fn add_batch_reads<T: Send + 'static>(instance: &mut LinkerInstance<'_, T>, access: Access<T>) -> Result<()> {
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
        plain::<T, Vec<Option<Pair>>>,
    )
}

fn add_batch_writes<T: Send + 'static>(instance: &mut LinkerInstance<'_, T>, access: Access<T>) -> Result<()> {
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
        plain,
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
        plain,
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
