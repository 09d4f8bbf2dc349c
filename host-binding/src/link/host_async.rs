//! The generated traits of the shapes whose functions are `async`, form C of the second draft and wasmCloud's, implemented: for worlds of
//! an embedder's own (`with: { "wasi:keyvalue": kvasi_wasmtime::bindings::draft2_c }`, `D = WasiKeyValue`).
//!
//! Flow: `bindgen!` lifts owned parameters -> here -> `store`, `batch`, `atomics`. It behaves as `draft2` and `wasmcloud` do over a
//! linker that calls concurrently, and costs the copies that they spare: an embedder without such a world calls `p3::add_to_linker`.
//! Invariant: what is needed of the embedder's state is taken out in one step and given back in another; nothing of it is held in between.

use super::wasmcloud::options_of;
use crate::atomics::{self, Conditions, Entry, SwapError, Swapped};
use crate::backend::{Key, Pair, Reply, SetOptions};
use crate::bindings::draft2_c::{atomics as c_atomics, batch as c_batch, store as c};
use crate::bindings::wasmcloud::{atomics as w_atomics, batch as w_batch, cas as w_cas, store as w_store, types as w};
use crate::ctx::{Bucket, Cas, Grant, Rights, WasiKeyValue, WasiKeyValueCtxView};
use crate::error::Refusal;
use crate::pace::Pace;
use crate::{Code, batch, store};
use bytes::Bytes;
use std::sync::Arc;
use wasmtime::Result;
use wasmtime::component::{Accessor, Resource};

type View<'a> = WasiKeyValueCtxView<'a>;
type Held<T> = Accessor<T, WasiKeyValue>;
type Answer<R, E> = Result<std::result::Result<R, E>>;

impl From<Refusal> for c::Error {
    #[cold]
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::NoSuchStore => c::Error::NoSuchStore,
            Refusal::AccessDenied => c::Error::AccessDenied,
            Refusal::Failed(code) => c::Error::Other(code.text().to_owned()),
        }
    }
}

impl c::Host for View<'_> {}
impl c::HostBucket for View<'_> {}
impl c_atomics::Host for View<'_> {}
impl c_atomics::HostCas for View<'_> {}
impl c_batch::Host for View<'_> {}
impl w::Host for View<'_> {}
impl w::HostBucket for View<'_> {}
impl w_store::Host for View<'_> {}
impl w_atomics::Host for View<'_> {}
impl w_cas::Host for View<'_> {}
impl w_batch::Host for View<'_> {}

/// The open bucket behind a handle.
fn grant<T>(held: &Held<T>, bucket: &Resource<Bucket>) -> Result<Arc<Grant>> {
    held.with(|mut access| Ok(access.get().bucket(bucket)?.grant))
}

/// An answer, once it is there, in the words of a shape.
async fn answered<R: 'static, E: From<Refusal>>(reply: Reply<R, Refusal>) -> Answer<R, E> {
    Ok(reply.wait().await.map_err(E::from))
}

fn open<T, E: From<Refusal>>(held: &Held<T>, name: &str) -> Answer<Resource<Bucket>, E> {
    held.with(|mut access| {
        let mut view = access.get();
        let opened = store::open(view.ctx, view.ctx.handles.buckets.get(), None, name);
        Ok(opened.and_then(|bucket| store::keep(&mut view, bucket)).map_err(E::from))
    })
}

async fn get<T, E: From<Refusal>>(held: &Held<T>, this: Resource<Bucket>, key: String) -> Answer<Option<Vec<u8>>, E> {
    let value = store::get(&grant(held, &this)?, Pace::Start, &key);
    answered(value.and_then(|value| Ok(value.map(Vec::from)))).await
}

async fn set<T, E: From<Refusal>>(
    held: &Held<T>,
    this: Resource<Bucket>,
    key: String,
    value: Vec<u8>,
) -> Answer<(), E> {
    answered(store::set(&grant(held, &this)?, Pace::Start, &key, &value)).await
}

async fn delete<T, E: From<Refusal>>(held: &Held<T>, this: Resource<Bucket>, key: String) -> Answer<(), E> {
    answered(store::delete(&grant(held, &this)?, Pace::Start, &key)).await
}

async fn exists<T, E: From<Refusal>>(held: &Held<T>, this: Resource<Bucket>, key: String) -> Answer<bool, E> {
    answered(store::exists(&grant(held, &this)?, Pace::Start, &key)).await
}

/// The page of keys with `prefix`, and its cursor.
async fn list<T, E: From<Refusal>>(
    held: &Held<T>,
    this: Resource<Bucket>,
    prefix: &str,
    cursor: Option<String>,
) -> Answer<(Vec<String>, Option<String>), E> {
    let page = store::list_keys(&grant(held, &this)?, Pace::Start, prefix, cursor.as_deref());
    let owned = |store::KeyPage { keys, cursor }| Ok((keys.iter().map(|key| String::from(&**key)).collect(), cursor));
    answered(page.and_then(owned)).await
}

fn drop_bucket<T>(held: &Held<T>, this: Resource<Bucket>) -> Result<()> {
    held.with(|mut access| access.get().drop_bucket(this))
}

async fn increment<T, E: From<Refusal>>(
    held: &Held<T>,
    bucket: Resource<Bucket>,
    key: String,
    delta: i64,
) -> Answer<i64, E> {
    answered(atomics::increment(&grant(held, &bucket)?, Pace::Start, &key, delta)).await
}

fn keys(many: &[String]) -> Vec<Key<'_>> {
    many.iter().map(|key| Key::from(key.as_str())).collect()
}

async fn get_many<T, E: From<Refusal>>(
    held: &Held<T>,
    bucket: Resource<Bucket>,
    many: Vec<String>,
) -> Answer<Vec<Option<(String, Vec<u8>)>>, E> {
    let grant = grant(held, &bucket)?;
    let owned = |(key, value): Pair| (String::from(&*key), Vec::from(value));
    let pairs = match batch::check_count(&grant, "get-many", Rights::READ, many.len()) {
        Ok(()) => batch::get_many(&grant, Pace::Start, &keys(&many)),
        Err(refusal) => Reply::Now(Err(refusal)),
    };
    answered(pairs.and_then(move |pairs| Ok(pairs.into_iter().map(|pair| pair.map(owned)).collect()))).await
}

async fn set_many<T, E: From<Refusal>>(
    held: &Held<T>,
    bucket: Resource<Bucket>,
    pairs: Vec<(String, Vec<u8>)>,
) -> Answer<(), E> {
    let grant = grant(held, &bucket)?;
    let done = match batch::check_count(&grant, "set-many", Rights::WRITE, pairs.len()) {
        Ok(()) => {
            let views: Vec<_> = pairs.iter().map(|(key, value)| (Key::from(key.as_str()), value.as_slice())).collect();
            batch::set_many(&grant, Pace::Start, &views)
        }
        Err(refusal) => Reply::Now(Err(refusal)),
    };
    answered(done).await
}

async fn delete_many<T, E: From<Refusal>>(
    held: &Held<T>,
    bucket: Resource<Bucket>,
    many: Vec<String>,
) -> Answer<(), E> {
    let grant = grant(held, &bucket)?;
    let done = match batch::check_count(&grant, "delete-many", Rights::WRITE, many.len()) {
        Ok(()) => batch::delete_many(&grant, Pace::Start, &keys(&many)),
        Err(refusal) => Reply::Now(Err(refusal)),
    };
    answered(done).await
}

impl<T> c::HostWithStore<T> for WasiKeyValue {
    async fn open(held: &Held<T>, identifier: String) -> Answer<Resource<Bucket>, c::Error> {
        open(held, &identifier)
    }
}

impl<T> c::HostBucketWithStore<T> for WasiKeyValue {
    async fn get(held: &Held<T>, this: Resource<Bucket>, key: String) -> Answer<Option<Vec<u8>>, c::Error> {
        get(held, this, key).await
    }

    async fn set(held: &Held<T>, this: Resource<Bucket>, key: String, value: Vec<u8>) -> Answer<(), c::Error> {
        set(held, this, key, value).await
    }

    async fn delete(held: &Held<T>, this: Resource<Bucket>, key: String) -> Answer<(), c::Error> {
        delete(held, this, key).await
    }

    async fn exists(held: &Held<T>, this: Resource<Bucket>, key: String) -> Answer<bool, c::Error> {
        exists(held, this, key).await
    }

    async fn list_keys(
        held: &Held<T>,
        this: Resource<Bucket>,
        cursor: Option<String>,
    ) -> Answer<c::KeyResponse, c::Error> {
        Ok(list(held, this, "", cursor).await?.map(|(keys, cursor)| c::KeyResponse { keys, cursor }))
    }

    async fn drop(held: &Held<T>, this: Resource<Bucket>) -> Result<()> {
        drop_bucket(held, this)
    }
}

impl<T> c_atomics::HostWithStore<T> for WasiKeyValue {
    async fn increment(held: &Held<T>, bucket: Resource<Bucket>, key: String, delta: i64) -> Answer<i64, c::Error> {
        increment(held, bucket, key, delta).await
    }

    async fn swap(held: &Held<T>, cas: Resource<Cas>, value: Vec<u8>) -> Answer<(), c_atomics::CasError> {
        let cas = held.with(|mut access| access.get().take_cas(cas))?;
        let lost = match atomics::swap(cas, Pace::Start, &value).wait().await {
            Ok(()) => return Ok(Ok(())),
            Err(SwapError::Store(refusal)) => Err(refusal),
            Err(SwapError::Lost(fresh)) => held.with(|mut access| atomics::keep(&mut access.get(), fresh)),
        };
        Ok(Err(match lost {
            Ok(fresh) => c_atomics::CasError::CasFailed(fresh),
            Err(refusal) => c_atomics::CasError::StoreError(refusal.into()),
        }))
    }
}

impl<T> c_atomics::HostCasWithStore<T> for WasiKeyValue {
    async fn new(held: &Held<T>, bucket: Resource<Bucket>, key: String) -> Answer<Resource<Cas>, c::Error> {
        let handles = held.with(|mut access| access.get().ctx.handles.cas.get());
        let attempt = atomics::attempt(&grant(held, &bucket)?, Pace::Start, handles, &key).wait().await;
        let kept = attempt.and_then(|cas| held.with(|mut access| atomics::keep(&mut access.get(), cas)));
        Ok(kept.map_err(c::Error::from))
    }

    async fn current(held: &Held<T>, this: Resource<Cas>) -> Answer<Option<Vec<u8>>, c::Error> {
        held.with(|mut access| {
            let value: &Option<Bytes> = &access.get().table.get(&this)?.value;
            Ok(Ok(value.as_ref().map(|value| value.to_vec())))
        })
    }

    async fn drop(held: &Held<T>, this: Resource<Cas>) -> Result<()> {
        held.with(|mut access| access.get().take_cas(this)).map(std::mem::drop)
    }
}

impl<T> c_batch::HostWithStore<T> for WasiKeyValue {
    async fn get_many(
        held: &Held<T>,
        bucket: Resource<Bucket>,
        keys: Vec<String>,
    ) -> Answer<Vec<Option<(String, Vec<u8>)>>, c::Error> {
        get_many(held, bucket, keys).await
    }

    async fn set_many(
        held: &Held<T>,
        bucket: Resource<Bucket>,
        key_values: Vec<(String, Vec<u8>)>,
    ) -> Answer<(), c::Error> {
        set_many(held, bucket, key_values).await
    }

    async fn delete_many(held: &Held<T>, bucket: Resource<Bucket>, keys: Vec<String>) -> Answer<(), c::Error> {
        delete_many(held, bucket, keys).await
    }
}

impl<T> w_store::HostWithStore<T> for WasiKeyValue {
    async fn open(held: &Held<T>, identifier: String) -> Answer<Resource<Bucket>, w::Error> {
        open(held, &identifier)
    }
}

impl<T> w::HostBucketWithStore<T> for WasiKeyValue {
    async fn get(held: &Held<T>, this: Resource<Bucket>, key: String) -> Answer<Option<Vec<u8>>, w::Error> {
        get(held, this, key).await
    }

    async fn set(
        held: &Held<T>,
        this: Resource<Bucket>,
        key: String,
        value: Vec<u8>,
        options: Option<w::SetOptions>,
    ) -> Answer<(), w::Error> {
        let options = options_of(options);
        if options == SetOptions::default() {
            return set(held, this, key, value).await;
        }
        let written = store::set_with(&grant(held, &this)?, Pace::Start, &key, &value, options).wait().await;
        Ok(match written {
            Ok(true) => Ok(()),
            Ok(false) => Err(w::Error::PreconditionFailed),
            Err(refusal) => Err(refusal.into()),
        })
    }

    async fn delete(held: &Held<T>, this: Resource<Bucket>, key: String) -> Answer<(), w::Error> {
        delete(held, this, key).await
    }

    async fn exists(held: &Held<T>, this: Resource<Bucket>, key: String) -> Answer<bool, w::Error> {
        exists(held, this, key).await
    }

    async fn list_keys(
        held: &Held<T>,
        this: Resource<Bucket>,
        prefix: Option<String>,
        cursor: Option<String>,
    ) -> Answer<w::KeyResponse, w::Error> {
        let page = list(held, this, prefix.as_deref().unwrap_or_default(), cursor).await?;
        Ok(page.map(|(keys, cursor)| w::KeyResponse { keys, cursor }))
    }

    async fn drop(held: &Held<T>, this: Resource<Bucket>) -> Result<()> {
        drop_bucket(held, this)
    }
}

impl<T> w_atomics::HostWithStore<T> for WasiKeyValue {
    async fn increment(held: &Held<T>, bucket: Resource<Bucket>, key: String, delta: i64) -> Answer<i64, w::Error> {
        increment(held, bucket, key, delta).await
    }
}

impl From<Entry> for w_cas::Entry {
    fn from(Entry { value, version }: Entry) -> Self {
        w_cas::Entry { value: value.into(), version }
    }
}

impl<T> w_cas::HostWithStore<T> for WasiKeyValue {
    async fn current(held: &Held<T>, bucket: Resource<Bucket>, key: String) -> Answer<Option<w_cas::Entry>, w::Error> {
        let entry = atomics::current(&grant(held, &bucket)?, Pace::Start, &key);
        answered(entry.and_then(|entry| Ok(entry.map(w_cas::Entry::from)))).await
    }

    async fn swap(
        held: &Held<T>,
        bucket: Resource<Bucket>,
        key: String,
        value: Vec<u8>,
        options: w_cas::CasOptions,
    ) -> Answer<w_cas::CasResult, w::Error> {
        let conditions =
            Conditions { version: options.require_version.as_deref(), value: options.require_value.as_deref() };
        let grant = grant(held, &bucket)?;
        if conditions == Conditions::default() {
            return Ok(Err(Refusal::Failed(Code::Invalid).into()));
        }
        let swapped = atomics::swap_if(&grant, Pace::Start, &key, &value, conditions);
        let told = |swapped| {
            Ok(match swapped {
                Swapped::Done => w_cas::CasResult::Swapped,
                Swapped::Stale(entry) => w_cas::CasResult::Stale(entry.map(w_cas::Entry::from)),
            })
        };
        answered(swapped.and_then(told)).await
    }
}

impl<T> w_batch::HostWithStore<T> for WasiKeyValue {
    async fn get_many(
        held: &Held<T>,
        bucket: Resource<Bucket>,
        keys: Vec<String>,
    ) -> Answer<Vec<Option<(String, Vec<u8>)>>, w::Error> {
        get_many(held, bucket, keys).await
    }

    async fn set_many(
        held: &Held<T>,
        bucket: Resource<Bucket>,
        key_values: Vec<(String, Vec<u8>)>,
    ) -> Answer<(), w::Error> {
        set_many(held, bucket, key_values).await
    }

    async fn delete_many(held: &Held<T>, bucket: Resource<Bucket>, keys: Vec<String>) -> Answer<(), w::Error> {
        delete_many(held, bucket, keys).await
    }
}
