//! The calls of the interface `atomics`, once, whatever shape they came through.
//!
//! Flow: `link` -> here -> `backend`; a [`Cas`] lives in the resource table between its calls.
//! Invariants: 1. The guard is taken when the handle is made, and `current` answers what it guards. 2. `swap` is given
//! the handle itself, out of the table: consumed whatever comes of it. 3. A back end's failure is never a lost race.

use crate::backend::{Observed, Reply, Swap};
use crate::ctx::{Cas, Grant, Rights, WasiKeyValueCtxView};
use crate::error::Refusal;
use crate::pace::Pace;
use crate::store::{check_key, check_value, write};
use crate::{Code, Error};
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
