//! The shape `wasi:keyvalue@0.2.0-draft2`, form A: the one in `wit/`.
//!
//! Flow and invariants: see `link`. Every closure does the same four things: clone the bucket out of the table, look at
//! the parameters in guest memory, call, push new handles.

use super::Access;
use crate::backend::{Key, Pair};
use crate::bindings::store::Error;
use crate::ctx::{Bucket, Cas, Rights};
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

fn add_open<T: Send + 'static>(instance: &mut LinkerInstance<'_, T>, access: Access<T>) -> Result<()> {
    instance.resource("bucket", ResourceType::host::<Bucket>(), move |mut cx, rep| {
        access.view(&mut cx).drop_bucket(Resource::new_own(rep))
    })?;
    instance.func_wrap("open", move |mut cx, (name,): (WasmStr,)| {
        let ctx = access.view(&mut cx).ctx;
        let (held, ctx) = (ctx.handles.buckets, ctx.clone());
        let answer = store::open(&ctx, held, &name.to_str(&cx)?);
        Ok((answer.and_then(|bucket| store::keep(&mut access.view(&mut cx), bucket)),))
    })
}

fn add_reads<T: Send + 'static>(instance: &mut LinkerInstance<'_, T>, access: Access<T>) -> Result<()> {
    instance.func_wrap("[method]bucket.get", move |mut cx, (this, key): (Resource<Bucket>, WasmStr)| {
        let bucket = access.view(&mut cx).bucket(&this)?;
        Ok((store::get(&bucket.grant, &key.to_str(&cx)?),))
    })?;
    instance.func_wrap("[method]bucket.exists", move |mut cx, (this, key): (Resource<Bucket>, WasmStr)| {
        let bucket = access.view(&mut cx).bucket(&this)?;
        Ok((store::exists(&bucket.grant, &key.to_str(&cx)?),))
    })?;
    instance.func_wrap(
        "[method]bucket.list-keys",
        move |mut cx, (this, cursor): (Resource<Bucket>, Option<WasmStr>)| {
            let bucket = access.view(&mut cx).bucket(&this)?;
            let cursor = cursor.map(|cursor| cursor.to_str(&cx)).transpose()?;
            let page = store::list_keys(&bucket.grant, cursor.as_deref());
            Ok((page.map(|store::KeyPage { keys, cursor }| KeyResponse { keys, cursor }),))
        },
    )
}

fn add_writes<T: Send + 'static>(instance: &mut LinkerInstance<'_, T>, access: Access<T>) -> Result<()> {
    type Set = (Resource<Bucket>, WasmStr, WasmList<u8>);
    access.define_write(instance, "[method]bucket.set", move |mut cx, (this, key, value): Set| {
        let bucket = access.view(&mut cx).bucket(&this)?;
        Ok((store::set(&bucket.grant, &key.to_str(&cx)?, value.as_le_slice(&cx)),))
    })?;
    access.define_write(instance, "[method]bucket.delete", move |mut cx, (this, key): (Resource<Bucket>, WasmStr)| {
        let bucket = access.view(&mut cx).bucket(&this)?;
        Ok((store::delete(&bucket.grant, &key.to_str(&cx)?),))
    })
}

fn add_cas<T: Send + 'static>(instance: &mut LinkerInstance<'_, T>, access: Access<T>) -> Result<()> {
    instance.resource("cas", ResourceType::host::<Cas>(), move |mut cx, rep| {
        access.view(&mut cx).take_cas(Resource::new_own(rep)).map(drop)
    })?;
    instance.func_wrap("[static]cas.new", move |mut cx, (bucket, key): (Resource<Bucket>, WasmStr)| {
        let bucket = access.view(&mut cx).bucket(&bucket)?;
        let held = access.view(&mut cx).ctx.handles.cas;
        let answer = atomics::attempt(held, &bucket.grant, &key.to_str(&cx)?);
        Ok((answer.and_then(|cas| atomics::keep(&mut access.view(&mut cx), cas)),))
    })?;
    instance.func_wrap("[method]cas.current", move |mut cx, (this,): (Resource<Cas>,)| {
        let value: Option<Bytes> = access.view(&mut cx).table.get(&this)?.value.clone();
        Ok((Ok::<_, Error>(value),))
    })
}

fn add_increment_and_swap<T: Send + 'static>(instance: &mut LinkerInstance<'_, T>, access: Access<T>) -> Result<()> {
    type Increment = (Resource<Bucket>, WasmStr, i64);
    access.define_write(instance, "increment", move |mut cx, (bucket, key, delta): Increment| {
        let bucket = access.view(&mut cx).bucket(&bucket)?;
        Ok((atomics::increment(&bucket.grant, &key.to_str(&cx)?, delta),))
    })?;
    access.define_write(instance, "swap", move |mut cx, (cas, value): (Resource<Cas>, WasmList<u8>)| {
        let cas = access.view(&mut cx).take_cas(cas)?;
        let answer = atomics::swap(cas, value.as_le_slice(&cx));
        let answer = answer.map_err(|error| atomics::keep_lost(&mut access.view(&mut cx), error));
        Ok((answer,))
    })
}

type Keys = (Resource<Bucket>, WasmList<WasmStr>);

fn add_batch_reads<T: Send + 'static>(instance: &mut LinkerInstance<'_, T>, access: Access<T>) -> Result<()> {
    instance.func_wrap("get-many", move |mut cx, (bucket, keys): Keys| {
        let bucket = access.view(&mut cx).bucket(&bucket)?;
        if let Err(error) = batch::check_count(&bucket.grant, "get-many", Rights::READ, keys.len()) {
            return Ok((Err(error),));
        }
        let views = views(&keys, &mut cx)?;
        let answer: Result<Vec<Option<Pair>>, Error> = batch::get_many(&bucket.grant, &texts(&views, &cx)?);
        Ok((answer,))
    })
}

fn add_batch_writes<T: Send + 'static>(instance: &mut LinkerInstance<'_, T>, access: Access<T>) -> Result<()> {
    type Pairs = (Resource<Bucket>, WasmList<(WasmStr, WasmList<u8>)>);
    access.define_write(instance, "set-many", move |mut cx, (bucket, pairs): Pairs| {
        let bucket = access.view(&mut cx).bucket(&bucket)?;
        if let Err(error) = batch::check_count(&bucket.grant, "set-many", Rights::WRITE, pairs.len()) {
            return Ok((Err(error),));
        }
        let views = views(&pairs, &mut cx)?;
        let pair = |(key, value): &(WasmStr, WasmList<u8>)| Ok((Key(key.to_str(&cx)?), value.as_le_slice(&cx)));
        let pairs = gather(views.len(), views.iter().map(pair))?;
        Ok((batch::set_many(&bucket.grant, &pairs),))
    })?;
    access.define_write(instance, "delete-many", move |mut cx, (bucket, keys): Keys| {
        let bucket = access.view(&mut cx).bucket(&bucket)?;
        if let Err(error) = batch::check_count(&bucket.grant, "delete-many", Rights::WRITE, keys.len()) {
            return Ok((Err(error),));
        }
        let views = views(&keys, &mut cx)?;
        Ok((batch::delete_many(&bucket.grant, &texts(&views, &cx)?),))
    })
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
