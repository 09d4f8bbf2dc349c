//! The calls of the interface `batch`, once, whatever shape they came through.
//!
//! Flow: `link` (views on guest memory, counted there before they are collected) -> here -> `backend` -> lowering.
//! Invariants: 1. A batch over a limit changes nothing. 2. The answer of `get-many` is bounded before it is copied into
//! the guest: the back end's answer only counts references. 3. An empty batch asks no back end.

use crate::backend::{Key, Pair};
use crate::bindings::store::Error as WitError;
use crate::ctx::{Grant, Limits, Rights};
use crate::store::{check_key, check_reply, check_value, within};
use crate::{Code, Error};

/// A batch whose keys alone are too many: found on the view, before anything is collected.
pub(crate) fn check_count(grant: &Grant, call: &'static str, needed: Rights, keys: usize) -> Result<(), WitError> {
    grant.call(call, needed, || within(keys, grant.limits.batch_keys_max))
}

pub(crate) fn get_many(grant: &Grant, keys: &[Key<'_>]) -> Result<Vec<Option<Pair>>, WitError> {
    grant.call("get-many", Rights::READ, || {
        check_keys(&grant.limits, keys)?;
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let pairs = grant.bucket.get_many(keys)?;
        let reply_bytes = pairs.iter().flatten().map(|(key, value)| key.len() + value.len()).sum();
        check_reply(&grant.limits, reply_bytes)?;
        Ok(pairs)
    })
}

pub(crate) fn set_many(grant: &Grant, pairs: &[(Key<'_>, &[u8])]) -> Result<(), WitError> {
    grant.call("set-many", Rights::WRITE, || {
        let mut batch = Budget::new(&grant.limits);
        for (key, value) in pairs {
            check_key(&grant.limits, key.as_ref())?;
            check_value(&grant.limits, value.len())?;
            batch.take(AsRef::<str>::as_ref(key).len() + value.len())?;
        }
        if pairs.is_empty() { Ok(()) } else { grant.bucket.set_many(pairs) }
    })
}

pub(crate) fn delete_many(grant: &Grant, keys: &[Key<'_>]) -> Result<(), WitError> {
    grant.call("delete-many", Rights::WRITE, || {
        check_keys(&grant.limits, keys)?;
        if keys.is_empty() { Ok(()) } else { grant.bucket.delete_many(keys) }
    })
}

fn check_keys(limits: &Limits, keys: &[Key<'_>]) -> Result<(), Error> {
    let mut batch = Budget::new(limits);
    for key in keys {
        check_key(limits, key.as_ref())?;
        batch.take(AsRef::<str>::as_ref(key).len())?;
    }
    Ok(())
}

/// Bytes that a batch may still take.
struct Budget(usize);

impl Budget {
    fn new(limits: &Limits) -> Self {
        Budget(limits.batch_bytes_max)
    }

    fn take(&mut self, bytes: usize) -> Result<(), Error> {
        self.0 = self.0.checked_sub(bytes).ok_or_else(|| Error::new(Code::TooLarge))?;
        Ok(())
    }
}
