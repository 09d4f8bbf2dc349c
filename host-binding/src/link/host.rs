//! The generated traits, implemented for the view: for a world of an embedder's own that includes `wasi:keyvalue` and
//! whose generated `add_to_linker` wants them (`with: { "wasi:keyvalue": kvasi_wasmtime::bindings }`, `D = WasiKeyValue`).
//!
//! Flow: `bindgen!` lifts owned parameters -> here -> `store`, `batch`, `atomics`. It behaves as `draft2` does and costs
//! the copies that `draft2` spares: an embedder without such a world calls `add_to_linker_sync` or `_async` instead.

use crate::atomics::SwapError;
use crate::backend::{Key, Reply};
use crate::bindings::atomics::CasError;
use crate::bindings::store::{Error, KeyResponse};
use crate::bindings::{atomics as wit_atomics, batch as wit_batch, store as wit_store};
use crate::ctx::{Bucket, Cas, Rights, WasiKeyValueCtxView};
use crate::error::Refusal;
use crate::pace::Pace;
use crate::{atomics, batch, store};
use wasmtime::Result;
use wasmtime::component::Resource;

type Answer<R> = Result<std::result::Result<R, Error>>;

/// What the guest reads of a swap that wrote nothing, with its fresh handle if it lost a race.
pub(super) fn lost(view: &mut WasiKeyValueCtxView<'_>, error: SwapError) -> CasError {
    match error {
        SwapError::Store(refusal) => CasError::StoreError(refusal.into()),
        SwapError::Lost(fresh) => match atomics::keep(view, fresh) {
            Ok(fresh) => CasError::CasFailed(fresh),
            Err(refusal) => CasError::StoreError(refusal.into()),
        },
    }
}

/// The answer of a call that was made at the pace of the thread.
fn answered<R: 'static>(reply: Reply<R, Refusal>) -> Answer<R> {
    Ok(reply.now().map_err(Error::from))
}

fn keys(keys: &[String]) -> Vec<Key<'_>> {
    keys.iter().map(|key| Key::from(key.as_str())).collect()
}

impl wit_store::Host for WasiKeyValueCtxView<'_> {
    fn open(&mut self, identifier: String) -> Answer<Resource<Bucket>> {
        let opened = store::open(self.ctx, self.ctx.handles.buckets.get(), None, &identifier);
        Ok(opened.and_then(|bucket| store::keep(self, bucket)).map_err(Error::from))
    }
}

impl wit_store::HostBucket for WasiKeyValueCtxView<'_> {
    fn get(&mut self, this: Resource<Bucket>, key: String) -> Answer<Option<Vec<u8>>> {
        let value = store::get(&self.bucket(&this)?.grant, Pace::Wait, &key);
        answered(value.and_then(|value| Ok(value.map(Vec::from))))
    }

    fn set(&mut self, this: Resource<Bucket>, key: String, value: Vec<u8>) -> Answer<()> {
        answered(store::set(&self.bucket(&this)?.grant, Pace::Wait, &key, &value))
    }

    fn delete(&mut self, this: Resource<Bucket>, key: String) -> Answer<()> {
        answered(store::delete(&self.bucket(&this)?.grant, Pace::Wait, &key))
    }

    fn exists(&mut self, this: Resource<Bucket>, key: String) -> Answer<bool> {
        answered(store::exists(&self.bucket(&this)?.grant, Pace::Wait, &key))
    }

    fn list_keys(&mut self, this: Resource<Bucket>, cursor: Option<String>) -> Answer<KeyResponse> {
        let page = store::list_keys(&self.bucket(&this)?.grant, Pace::Wait, "", cursor.as_deref());
        answered(page.and_then(|store::KeyPage { keys, cursor }| {
            Ok(KeyResponse { keys: keys.iter().map(|key| String::from(&**key)).collect(), cursor })
        }))
    }

    fn drop(&mut self, this: Resource<Bucket>) -> Result<()> {
        self.drop_bucket(this)
    }
}

impl wit_atomics::Host for WasiKeyValueCtxView<'_> {
    fn increment(&mut self, bucket: Resource<Bucket>, key: String, delta: i64) -> Answer<i64> {
        answered(atomics::increment(&self.bucket(&bucket)?.grant, Pace::Wait, &key, delta))
    }

    fn swap(&mut self, cas: Resource<Cas>, value: Vec<u8>) -> Result<std::result::Result<(), CasError>> {
        let cas = self.take_cas(cas)?;
        Ok(atomics::swap(cas, Pace::Wait, &value).now().map_err(|error| lost(self, error)))
    }
}

impl wit_atomics::HostCas for WasiKeyValueCtxView<'_> {
    fn new(&mut self, bucket: Resource<Bucket>, key: String) -> Answer<Resource<Cas>> {
        let attempt =
            atomics::attempt(&self.bucket(&bucket)?.grant, Pace::Wait, self.ctx.handles.cas.get(), &key).now();
        Ok(attempt.and_then(|cas| atomics::keep(self, cas)).map_err(Error::from))
    }

    fn current(&mut self, this: Resource<Cas>) -> Answer<Option<Vec<u8>>> {
        Ok(Ok(self.table.get(&this)?.value.as_ref().map(|value| value.to_vec())))
    }

    fn drop(&mut self, this: Resource<Cas>) -> Result<()> {
        self.take_cas(this).map(std::mem::drop)
    }
}

impl wit_batch::Host for WasiKeyValueCtxView<'_> {
    fn get_many(&mut self, bucket: Resource<Bucket>, many: Vec<String>) -> Answer<Vec<Option<(String, Vec<u8>)>>> {
        let bucket = self.bucket(&bucket)?;
        let pairs = batch::check_count(&bucket.grant, "get-many", Rights::READ, many.len())
            .and_then(|()| batch::get_many(&bucket.grant, Pace::Wait, &keys(&many)).now());
        let owned = |(key, value): crate::backend::Pair| (String::from(&*key), Vec::from(value));
        Ok(pairs.map(|pairs| pairs.into_iter().map(|pair| pair.map(owned)).collect()).map_err(Error::from))
    }

    fn set_many(&mut self, bucket: Resource<Bucket>, pairs: Vec<(String, Vec<u8>)>) -> Answer<()> {
        let bucket = self.bucket(&bucket)?;
        let views: Vec<_> = pairs.iter().map(|(key, value)| (Key::from(key.as_str()), value.as_slice())).collect();
        let counted = batch::check_count(&bucket.grant, "set-many", Rights::WRITE, views.len());
        Ok(counted.and_then(|()| batch::set_many(&bucket.grant, Pace::Wait, &views).now()).map_err(Error::from))
    }

    fn delete_many(&mut self, bucket: Resource<Bucket>, many: Vec<String>) -> Answer<()> {
        let bucket = self.bucket(&bucket)?;
        let counted = batch::check_count(&bucket.grant, "delete-many", Rights::WRITE, many.len());
        Ok(counted
            .and_then(|()| batch::delete_many(&bucket.grant, Pace::Wait, &keys(&many)).now())
            .map_err(Error::from))
    }
}
