//! The calls of the interface `batch`, once, whatever shape they came through.
//!
//! Flow: `link` (views on guest memory, counted there before they are collected) -> here -> `backend` -> lowering.
//! Invariants: 1. A batch over a limit changes nothing. 2. The answer of `get-many` is bounded before it is copied into
//! the guest: the back end's answer only counts references. 3. An empty batch asks no back end.

use crate::backend::{Key, Pair, Reply};
use crate::ctx::{Grant, Limits, Rights};
use crate::error::Refusal;
use crate::pace::Pace;
use crate::store::{check_key, check_value, within};
use crate::{Code, Error};
use std::sync::Arc;

/// A batch whose keys alone are too many: found on the view, before anything is collected.
pub(crate) fn check_count(grant: &Arc<Grant>, call: &'static str, needed: Rights, keys: usize) -> Result<(), Refusal> {
    grant.call(call, needed, || Ok(Reply::Now(within(keys, grant.limits.batch_keys_max)))).now()
}

pub(crate) fn get_many(grant: &Arc<Grant>, pace: Pace, keys: &[Key<'_>]) -> Reply<Vec<Option<Pair>>, Refusal> {
    grant.call("get-many", Rights::READ, || {
        check_keys(&grant.limits, keys)?;
        if keys.is_empty() {
            return Ok(Reply::Now(Ok(Vec::new())));
        }
        let reply_bytes_max = grant.limits.reply_bytes_max;
        Ok(grant.at(pace).get_many(keys).and_then(move |pairs| {
            let reply_bytes = pairs.iter().flatten().map(|(key, value)| key.len() + value.len()).sum();
            within(reply_bytes, reply_bytes_max)?;
            Ok(pairs)
        }))
    })
}

pub(crate) fn set_many(grant: &Arc<Grant>, pace: Pace, pairs: &[(Key<'_>, &[u8])]) -> Reply<(), Refusal> {
    grant.call("set-many", Rights::WRITE, || {
        let mut batch = Budget::new(&grant.limits);
        for (key, value) in pairs {
            check_key(&grant.limits, key.as_ref())?;
            check_value(&grant.limits, value.len())?;
            batch.take(AsRef::<str>::as_ref(key).len() + value.len())?;
        }
        Ok(if pairs.is_empty() { Reply::Now(Ok(())) } else { grant.at(pace).set_many(pairs) })
    })
}

pub(crate) fn delete_many(grant: &Arc<Grant>, pace: Pace, keys: &[Key<'_>]) -> Reply<(), Refusal> {
    grant.call("delete-many", Rights::WRITE, || {
        check_keys(&grant.limits, keys)?;
        Ok(if keys.is_empty() { Reply::Now(Ok(())) } else { grant.at(pace).delete_many(keys) })
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
