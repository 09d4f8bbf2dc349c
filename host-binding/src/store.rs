//! The calls of the interface `store`, once, whatever shape they came through: rights, limits, back end, answer.
//!
//! Flow: `link` (views on guest memory) -> here -> `backend` -> here -> `link` (lowering). No linker in here.
//! Invariants: 1. A right or a limit that forbids a call is found before the back end is asked. 2. Nothing of ours is
//! allocated between a `get` or `set` and its answer; errors and cursors excepted.

use crate::backend::Reply;
use crate::ctx::{Bucket, Grant, Limits, Rights, WasiKeyValueCtx, WasiKeyValueCtxView};
use crate::error::Refusal;
use crate::pace::Pace;
use crate::{Code, Error, Utf8Bytes, cursor};
use bytes::Bytes;
use std::sync::Arc;
use wasmtime::component::Resource;

/// One page of keys as `list-keys` answers it.
#[derive(Debug)]
pub(crate) struct KeyPage {
    pub(crate) keys: Vec<Utf8Bytes>,
    pub(crate) cursor: Option<String>,
}

/// `held` is how many buckets the instance has open already.
pub(crate) fn open(ctx: &WasiKeyValueCtx, held: usize, name: &str) -> Result<Bucket, Refusal> {
    if held >= ctx.limits().open_buckets_max {
        return Err(Error::new(Code::TooManyHandles).for_guest("", "open"));
    }
    ctx.look_up(name).map(|grant| Bucket { grant })
}

/// Gives an opened bucket to the guest.
pub(crate) fn keep(view: &mut WasiKeyValueCtxView<'_>, bucket: Bucket) -> Result<Resource<Bucket>, Refusal> {
    view.push_bucket(bucket).map_err(|error| error.for_guest("", "open"))
}

pub(crate) fn get(grant: &Arc<Grant>, pace: Pace, key: &str) -> Reply<Option<Bytes>, Refusal> {
    grant.call("get", Rights::READ, || {
        check_key(&grant.limits, key)?;
        let reply_bytes_max = grant.limits.reply_bytes_max;
        Ok(grant.at(pace).get(key).and_then(move |value| {
            within(value.as_ref().map_or(0, Bytes::len), reply_bytes_max)?;
            Ok(value)
        }))
    })
}

pub(crate) fn set(grant: &Arc<Grant>, pace: Pace, key: &str, value: &[u8]) -> Reply<(), Refusal> {
    grant.call("set", Rights::WRITE, || {
        check_key(&grant.limits, key)?;
        check_value(&grant.limits, value.len())?;
        Ok(grant.at(pace).set(key, value))
    })
}

pub(crate) fn delete(grant: &Arc<Grant>, pace: Pace, key: &str) -> Reply<(), Refusal> {
    grant.call("delete", Rights::WRITE, || {
        check_key(&grant.limits, key)?;
        Ok(grant.at(pace).delete(key))
    })
}

pub(crate) fn exists(grant: &Arc<Grant>, pace: Pace, key: &str) -> Reply<bool, Refusal> {
    grant.call("exists", Rights::READ, || {
        check_key(&grant.limits, key)?;
        Ok(grant.at(pace).exists(key))
    })
}

/// The page of keys with `prefix` at the cursor `at`.
pub(crate) fn list_keys(grant: &Arc<Grant>, pace: Pace, prefix: &str, at: Option<&str>) -> Reply<KeyPage, Refusal> {
    grant.call("list-keys", Rights::LIST, || {
        check_key(&grant.limits, prefix)?;
        let after = at
            .map(|at| cursor::decode(grant.bucket.identity(), at))
            .transpose()
            .map_err(|cursor::Invalid| Error::new(Code::InvalidCursor))?;
        let page = grant.at(pace).list_prefix(prefix, after.as_deref(), grant.limits.page());
        let grant = grant.clone();
        Ok(page.and_then(move |page| {
            let cursor = page.next.map(|last| cursor::encode(grant.bucket.identity(), &last));
            Ok(KeyPage { keys: page.keys, cursor })
        }))
    })
}

impl Grant {
    /// Asks for the right, makes the call, and turns a failure into what the guest may know of it.
    #[inline]
    pub(crate) fn call<R: 'static>(
        self: &Arc<Self>,
        name: &'static str,
        needed: Rights,
        call: impl FnOnce() -> Result<Reply<R>, Error>,
    ) -> Reply<R, Refusal> {
        if !self.rights.contains(needed) {
            return Reply::Now(Err(Refusal::AccessDenied));
        }
        match call() {
            Ok(Reply::Now(answer)) => Reply::Now(answer.map_err(|error| error.for_guest(&self.name, name))),
            Err(error) => Reply::Now(Err(error.for_guest(&self.name, name))),
            Ok(Reply::Later(answer)) => {
                let grant = self.clone();
                Reply::later(async move { answer.await.map_err(|error| error.for_guest(&grant.name, name)) })
            }
        }
    }
}

pub(crate) fn check_key(limits: &Limits, key: &str) -> Result<(), Error> {
    within(key.len(), limits.key_bytes_max)
}

pub(crate) fn check_value(limits: &Limits, value_bytes: usize) -> Result<(), Error> {
    within(value_bytes, limits.value_bytes_max)
}

pub(crate) fn within(size: usize, max: usize) -> Result<(), Error> {
    if size > max { Err(Error::new(Code::TooLarge)) } else { Ok(()) }
}
