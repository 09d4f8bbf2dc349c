//! The calls of the interface `store`, once, whatever shape they came through: rights, limits, back end, answer.
//!
//! Flow: `link` (views on guest memory) -> here -> `backend` -> here -> `link` (lowering). No linker in here.
//! Invariants: 1. A right or a limit that forbids a call is found before the back end is asked. 2. Nothing of ours is
//! allocated between a `get` or `set` and its answer; errors and cursors excepted.

use crate::bindings::store::Error as WitError;
use crate::ctx::{Bucket, Grant, Limits, Refusal, Rights, WasiKeyValueCtx, WasiKeyValueCtxView};
use crate::{Code, Error, Utf8Bytes, cursor};
use bytes::Bytes;
use wasmtime::component::Resource;

/// One page of keys as `list-keys` answers it.
#[derive(Debug)]
pub(crate) struct KeyPage {
    pub(crate) keys: Vec<Utf8Bytes>,
    pub(crate) cursor: Option<String>,
}

/// `held` is how many buckets the instance has open already.
pub(crate) fn open(ctx: &WasiKeyValueCtx, held: usize, name: &str) -> Result<Bucket, WitError> {
    if held >= ctx.limits().open_buckets_max {
        return Err(Error::new(Code::TooManyHandles).for_guest("", "open"));
    }
    match ctx.look_up(name) {
        Ok(grant) => Ok(Bucket { grant }),
        Err(Refusal::Unknown) => Err(WitError::NoSuchStore),
        Err(Refusal::Denied) => Err(WitError::AccessDenied),
    }
}

/// Gives an opened bucket to the guest.
pub(crate) fn keep(view: &mut WasiKeyValueCtxView<'_>, bucket: Bucket) -> Result<Resource<Bucket>, WitError> {
    view.push_bucket(bucket).map_err(|error| error.for_guest("", "open"))
}

pub(crate) fn get(grant: &Grant, key: &str) -> Result<Option<Bytes>, WitError> {
    grant.call("get", Rights::READ, || {
        check_key(&grant.limits, key)?;
        let value = grant.bucket.get(key)?;
        check_reply(&grant.limits, value.as_ref().map_or(0, Bytes::len))?;
        Ok(value)
    })
}

pub(crate) fn set(grant: &Grant, key: &str, value: &[u8]) -> Result<(), WitError> {
    grant.call("set", Rights::WRITE, || {
        check_key(&grant.limits, key)?;
        check_value(&grant.limits, value.len())?;
        grant.bucket.set(key, value)
    })
}

pub(crate) fn delete(grant: &Grant, key: &str) -> Result<(), WitError> {
    grant.call("delete", Rights::WRITE, || {
        check_key(&grant.limits, key)?;
        grant.bucket.delete(key)
    })
}

pub(crate) fn exists(grant: &Grant, key: &str) -> Result<bool, WitError> {
    grant.call("exists", Rights::READ, || {
        check_key(&grant.limits, key)?;
        grant.bucket.exists(key)
    })
}

pub(crate) fn list_keys(grant: &Grant, at: Option<&str>) -> Result<KeyPage, WitError> {
    grant.call("list-keys", Rights::LIST, || {
        let identity = grant.bucket.identity();
        let after = at
            .map(|at| cursor::decode(identity, at))
            .transpose()
            .map_err(|cursor::Invalid| Error::new(Code::InvalidCursor))?;
        let page = grant.bucket.list(after.as_deref(), grant.limits.page())?;
        Ok(KeyPage { keys: page.keys, cursor: page.next.map(|last| cursor::encode(identity, &last)) })
    })
}

impl Grant {
    /// Asks for the right, makes the call, and turns a failure into what the guest may read of it.
    pub(crate) fn call<R>(
        &self,
        name: &'static str,
        needed: Rights,
        call: impl FnOnce() -> Result<R, Error>,
    ) -> Result<R, WitError> {
        if !self.rights.contains(needed) {
            return Err(WitError::AccessDenied);
        }
        call().map_err(|error| error.for_guest(&self.name, name))
    }
}

pub(crate) fn check_key(limits: &Limits, key: &str) -> Result<(), Error> {
    within(key.len(), limits.key_bytes_max)
}

pub(crate) fn check_value(limits: &Limits, value_bytes: usize) -> Result<(), Error> {
    within(value_bytes, limits.value_bytes_max)
}

pub(crate) fn check_reply(limits: &Limits, reply_bytes: usize) -> Result<(), Error> {
    within(reply_bytes, limits.reply_bytes_max)
}

pub(crate) fn within(size: usize, max: usize) -> Result<(), Error> {
    if size > max { Err(Error::new(Code::TooLarge)) } else { Ok(()) }
}
