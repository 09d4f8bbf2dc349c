//! The calls of the interface `batch`, once, whatever shape they came through.
//!
//! Flow: `link` (views on guest memory, counted there before they are collected) -> here -> `backend` -> lowering.
//! Invariants: 1. A batch over a limit changes nothing. 2. The answer of `get-many` is bounded before it is copied into
//! the guest: the back end's answer only counts references. 3. An empty batch asks no back end.

use crate::backend::{Key, Pair, Reply};
use crate::ctx::{Grant, Limits, Rights};
use crate::error::Refusal;
use crate::gate::Load;
use crate::pace::Pace;
use crate::store::{check_key, check_value, within, write};
use crate::{Code, Error, Utf8Bytes};
use bytes::Bytes;
use std::sync::Arc;

/// A batch whose keys alone are too many: found on the view, before anything is collected.
pub(crate) fn check_count(grant: &Arc<Grant>, call: &'static str, needed: Rights, keys: usize) -> Result<(), Refusal> {
    grant.allow(call, needed)?;
    within(keys, grant.limits.batch_keys_max).map_err(|error| error.for_guest(&grant.name, call))
}

pub(crate) fn get_many(grant: &Arc<Grant>, pace: Pace, keys: &[Key<'_>]) -> Reply<Vec<Option<Pair>>, Refusal> {
    let load = Load { keys: keys.len(), bytes: bytes_of(keys), writes: false };
    grant.call("get-many", Rights::READ, load, reply_bytes, || {
        check_keys(&grant.limits, keys)?;
        if keys.is_empty() {
            return Ok(Reply::Now(Ok(Vec::new())));
        }
        let reply_bytes_max = grant.limits.reply_bytes_max;
        Ok(grant.at(pace).get_many(keys).and_then(move |pairs| {
            within(reply_bytes(&pairs), reply_bytes_max)?;
            Ok(pairs)
        }))
    })
}

/// As [`get_many`], each key asked beside what it gave.
pub(crate) fn get_many_with_misses(
    grant: &Arc<Grant>,
    pace: Pace,
    keys: &[Key<'_>],
) -> Reply<Vec<(Utf8Bytes, Option<Bytes>)>, Refusal> {
    match get_many(grant, pace, keys) {
        Reply::Now(answer) => Reply::Now(answer.map(|pairs| with_misses(keys, pairs))),
        Reply::Later(answer) => {
            let keys: Vec<Key<'static>> = keys.iter().map(Key::to_static).collect();
            Reply::later(async move { answer.await.map(|pairs| with_misses(&keys, pairs)) })
        }
    }
}

/// The keys of all misses share one buffer, and the answer takes the place of the pairs: `collect` sees that its items are as large.
fn with_misses(keys: &[Key<'_>], pairs: Vec<Option<Pair>>) -> Vec<(Utf8Bytes, Option<Bytes>)> {
    let missed =
        || keys.iter().zip(&pairs).filter(|(_, pair)| pair.is_none()).map(|(key, _)| AsRef::<str>::as_ref(key));
    let mut buffer = String::with_capacity(missed().map(str::len).sum());
    missed().for_each(|key| buffer.push_str(key));
    let mut left = Utf8Bytes::from(buffer);
    let answer = |(pair, key): (Option<Pair>, &Key<'_>)| match pair {
        Some((key, value)) => (key, Some(value)),
        None => (left.split_to(AsRef::<str>::as_ref(key).len()), None),
    };
    pairs.into_iter().zip(keys).map(answer).collect()
}

pub(crate) fn set_many(grant: &Arc<Grant>, pace: Pace, pairs: &[(Key<'_>, &[u8])]) -> Reply<(), Refusal> {
    let bytes = pairs.iter().map(|(key, value)| length(key) + value.len()).sum();
    grant.call(
        "set-many",
        Rights::WRITE,
        write(pairs.len(), bytes),
        |()| 0,
        || {
            let mut batch = Budget::new(&grant.limits);
            for (key, value) in pairs {
                check_key(&grant.limits, key.as_ref())?;
                check_value(&grant.limits, value.len())?;
                batch.take(length(key) + value.len())?;
            }
            Ok(if pairs.is_empty() { Reply::Now(Ok(())) } else { grant.at(pace).set_many(pairs) })
        },
    )
}

pub(crate) fn delete_many(grant: &Arc<Grant>, pace: Pace, keys: &[Key<'_>]) -> Reply<(), Refusal> {
    grant.call(
        "delete-many",
        Rights::WRITE,
        write(keys.len(), bytes_of(keys)),
        |()| 0,
        || {
            check_keys(&grant.limits, keys)?;
            Ok(if keys.is_empty() { Reply::Now(Ok(())) } else { grant.at(pace).delete_many(keys) })
        },
    )
}

#[allow(clippy::ptr_arg, reason = "the answer as it is")]
fn reply_bytes(pairs: &Vec<Option<Pair>>) -> usize {
    pairs.iter().flatten().map(|(key, value)| key.len() + value.len()).sum()
}

fn length(key: &Key<'_>) -> usize {
    AsRef::<str>::as_ref(key).len()
}

fn bytes_of(keys: &[Key<'_>]) -> usize {
    keys.iter().map(length).sum()
}

fn check_keys(limits: &Limits, keys: &[Key<'_>]) -> Result<(), Error> {
    let mut batch = Budget::new(limits);
    for key in keys {
        check_key(limits, key.as_ref())?;
        batch.take(length(key))?;
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
