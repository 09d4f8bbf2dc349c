//! The calls of the interface `atomics`, once, whatever shape they came through.
//!
//! Flow: `link` -> here -> `backend`; a [`Cas`] lives in the resource table between its calls.
//! Invariants: 1. The guard is taken when the handle is made, and `current` answers what it guards. 2. `swap` is given
//! the handle itself, out of the table: consumed whatever comes of it. 3. A back end's failure is never a lost race.

use crate::backend::{Guard, Observed, Reply, Swap};
use crate::ctx::{Cas, Grant, Rights, WasiKeyValueCtxView};
use crate::error::Refusal;
use crate::pace::Pace;
use crate::store::{check_key, check_value, within, write};
use crate::{Code, Error, version};
use bytes::Bytes;
use std::sync::Arc;
use wasmtime::component::Resource;

/// Why a swap wrote nothing; the loser gets a handle on what stands there now.
#[derive(Debug)]
pub(crate) enum SwapError {
    Store(Refusal),
    Lost(Cas),
}

pub(crate) fn increment(grant: &Arc<Grant>, pace: Pace, key: &str, delta: i64) -> Reply<i64, Refusal> {
    grant.call(
        "increment",
        Rights::ATOMICS,
        write(1, key.len()),
        |_| 0,
        || {
            check_key(&grant.limits, key)?;
            Ok(grant.at(pace).increment(key, delta))
        },
    )
}

/// As [`increment`], for a shape whose numbers have no sign: what does not fit either kind is an overflow, and changes nothing.
pub(crate) fn increment_unsigned(grant: &Arc<Grant>, pace: Pace, key: &str, delta: u64) -> Reply<u64, Refusal> {
    grant.call(
        "increment",
        Rights::ATOMICS,
        write(1, key.len()),
        |_| 0,
        || {
            check_key(&grant.limits, key)?;
            let delta = i64::try_from(delta).map_err(|_| Error::new(Code::Overflow))?;
            let sum = grant.at(pace).increment_unsigned(key, delta);
            Ok(sum.and_then(|sum| u64::try_from(sum).map_err(|_| Error::new(Code::Overflow))))
        },
    )
}

/// A new attempt on `key`, guarding what stands there now, by an instance that has `held` handles already.
pub(crate) fn attempt(grant: &Arc<Grant>, pace: Pace, held: usize, key: &str) -> Reply<Cas, Refusal> {
    grant.call(
        "cas.new",
        Rights::ATOMICS,
        write(1, key.len()),
        |_| 0,
        || {
            check_key(&grant.limits, key)?;
            if held >= grant.limits.cas_handles_max {
                return Err(Error::new(Code::TooManyHandles));
            }
            let (kept, key_kept) = (grant.clone(), Box::from(key));
            Ok(grant
                .at(pace)
                .observe(key)
                .and_then(move |Observed { value, guard }| Ok(Cas { grant: kept, key: key_kept, guard, value })))
        },
    )
}

/// Gives an attempt to the guest.
pub(crate) fn keep(view: &mut WasiKeyValueCtxView<'_>, cas: Cas) -> Result<Resource<Cas>, Refusal> {
    let grant = cas.grant.clone();
    view.push_cas(cas).map_err(|error| error.for_guest(&grant.name, "cas.new"))
}

pub(crate) fn swap(cas: Cas, pace: Pace, value: &[u8]) -> Reply<(), SwapError> {
    let Cas { grant, key, guard, value: _ } = cas;
    let swapped = grant.call(
        "swap",
        Rights::ATOMICS,
        write(1, key.len() + value.len()),
        |_| 0,
        || {
            check_value(&grant.limits, value.len())?;
            Ok(grant.at(pace).swap(&key, &guard, value))
        },
    );
    swapped.then(move |swapped| match swapped {
        Ok(Swap::Done) => Ok(()),
        Ok(Swap::Conflict(Observed { value, guard })) => Err(SwapError::Lost(Cas { grant, key, guard, value })),
        Err(error) => Err(SwapError::Store(error)),
    })
}

/// A value and the token of the write that left it so.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) value: Bytes,
    pub(crate) version: String,
}

/// What must hold for a swap by token to write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Conditions<'a> {
    /// The token of the last write.
    pub(crate) version: Option<&'a str>,
    pub(crate) value: Option<&'a [u8]>,
}

/// What became of a swap by token.
#[derive(Debug)]
pub(crate) enum Swapped {
    Done,
    /// A condition did not hold: what stands there now.
    Stale(Option<Entry>),
}

/// How often a swap that compares values starts again because another write came between: each time somebody got on.
const ROUNDS_MAX: usize = 1_000;

/// What stands at `key` now.
pub(crate) fn current(grant: &Arc<Grant>, pace: Pace, key: &str) -> Reply<Option<Entry>, Refusal> {
    let weigh = |entry: &Option<Entry>| entry.as_ref().map_or(0, |entry| entry.value.len());
    grant.call("current", Rights::ATOMICS, write(1, key.len()), weigh, || {
        check_key(&grant.limits, key)?;
        let (kept, key_kept) = (grant.clone(), Box::<str>::from(key));
        let reply_bytes_max = grant.limits.reply_bytes_max;
        Ok(grant.at(pace).observe(key).and_then(move |observed| {
            within(observed.value.as_ref().map_or(0, Bytes::len), reply_bytes_max)?;
            Ok(entry(&kept, &key_kept, observed))
        }))
    })
}

/// Writes `value` if all `conditions` hold, of which there is one at least.
pub(crate) fn swap_if(
    grant: &Arc<Grant>,
    pace: Pace,
    key: &str,
    value: &[u8],
    conditions: Conditions<'_>,
) -> Reply<Swapped, Refusal> {
    let bytes = key.len() + value.len() + conditions.value.map_or(0, <[u8]>::len);
    let weigh = |swapped: &Swapped| match swapped {
        Swapped::Stale(Some(entry)) => entry.value.len(),
        _ => 0,
    };
    grant.call("swap", Rights::ATOMICS, write(1, bytes), weigh, || {
        check_key(&grant.limits, key)?;
        check_value(&grant.limits, value.len())?;
        let guard = conditions.version.map(|token| version::decode(grant.bucket.identity(), key, token));
        let (kept, key_kept) = (grant.clone(), Box::<str>::from(key));
        match (guard, conditions.value) {
            // A token that names no write of this key is the version of nothing.
            (Some(None), _) => Ok(grant.at(pace).observe(key).and_then(move |now| stale(&kept, &key_kept, now))),
            (Some(Some(guard)), None) => Ok(grant.at(pace).swap(key, &guard, value).and_then(move |swap| match swap {
                Swap::Done => Ok(Swapped::Done),
                Swap::Conflict(now) => stale(&kept, &key_kept, now),
            })),
            (guard, expected) => {
                // Two steps at least, and the guest's memory is not there in the second.
                let (value, expected) = (value.to_vec(), expected.map(<[u8]>::to_vec));
                let steps = swap_by_value(kept, pace, key_kept, value, guard.flatten(), expected);
                Ok(match pace {
                    Pace::Wait => Reply::Now(Reply::later(steps).now()),
                    Pace::Start => Reply::later(steps),
                })
            }
        }
    })
}

/// Looks, compares, and swaps on what it saw, until nobody writes in between.
async fn swap_by_value(
    grant: Arc<Grant>,
    pace: Pace,
    key: Box<str>,
    value: Vec<u8>,
    guard: Option<Guard>,
    expected: Option<Vec<u8>>,
) -> Result<Swapped, Error> {
    for _ in 0..ROUNDS_MAX {
        let now = grant.at(pace).observe(&key).wait().await?;
        let differs = guard.as_ref().is_some_and(|guard| *guard != now.guard)
            || expected.as_ref().is_some_and(|expected| now.value.as_deref() != Some(&**expected));
        if differs {
            return stale(&grant, &key, now);
        }
        if let Swap::Done = grant.at(pace).swap(&key, &now.guard, &value).wait().await? {
            return Ok(Swapped::Done);
        }
    }
    Err(Error::new(Code::Busy))
}

fn entry(grant: &Grant, key: &str, observed: Observed) -> Option<Entry> {
    let version = version::encode(grant.bucket.identity(), key, &observed.guard)?;
    Some(Entry { value: observed.value?, version })
}

fn stale(grant: &Grant, key: &str, now: Observed) -> Result<Swapped, Error> {
    within(now.value.as_ref().map_or(0, Bytes::len), grant.limits.reply_bytes_max)?;
    Ok(Swapped::Stale(entry(grant, key, now)))
}
