//! The calls of the interface `atomics`, once, whatever shape they came through.
//!
//! Flow: `link` -> here -> `backend`; a [`Cas`] lives in the resource table between its calls.
//! Invariants: 1. The guard is taken when the handle is made, and `current` answers what it guards. 2. `swap` is given
//! the handle itself, out of the table: consumed whatever comes of it. 3. A back end's failure is never a lost race.

use crate::backend::{Observed, Swap};
use crate::bindings::atomics::CasError;
use crate::bindings::store::Error as WitError;
use crate::ctx::{Cas, Grant, Rights, WasiKeyValueCtxView};
use crate::store::{check_key, check_value};
use crate::{Code, Error};
use std::sync::Arc;
use wasmtime::component::Resource;

/// Why a swap wrote nothing; the loser gets a handle on what stands there now.
#[derive(Debug)]
pub(crate) enum SwapError {
    Store(WitError),
    Lost(Cas),
}

pub(crate) fn increment(grant: &Grant, key: &str, delta: i64) -> Result<i64, WitError> {
    grant.call("increment", Rights::ATOMICS, || {
        check_key(&grant.limits, key)?;
        grant.bucket.increment(key, delta)
    })
}

/// A new attempt on `key`, guarding what stands there now, by an instance that has `held` handles already.
pub(crate) fn attempt(held: usize, grant: &Arc<Grant>, key: &str) -> Result<Cas, WitError> {
    grant.call("cas.new", Rights::ATOMICS, || {
        check_key(&grant.limits, key)?;
        if held >= grant.limits.cas_handles_max {
            return Err(Error::new(Code::TooManyHandles));
        }
        let Observed { value, guard } = grant.bucket.observe(key)?;
        Ok(Cas { grant: grant.clone(), key: key.into(), guard, value })
    })
}

/// Gives an attempt to the guest.
pub(crate) fn keep(view: &mut WasiKeyValueCtxView<'_>, cas: Cas) -> Result<Resource<Cas>, WitError> {
    let grant = cas.grant.clone();
    view.push_cas(cas).map_err(|error| error.for_guest(&grant.name, "cas.new"))
}

/// What the guest reads of a swap that wrote nothing, with its fresh handle if it lost a race.
pub(crate) fn keep_lost(view: &mut WasiKeyValueCtxView<'_>, error: SwapError) -> CasError {
    match error {
        SwapError::Store(error) => CasError::StoreError(error),
        SwapError::Lost(fresh) => keep(view, fresh).map_or_else(CasError::StoreError, CasError::CasFailed),
    }
}

pub(crate) fn swap(cas: Cas, value: &[u8]) -> Result<(), SwapError> {
    let Cas { grant, key, guard, value: _ } = cas;
    let swapped = grant.call("swap", Rights::ATOMICS, || {
        check_value(&grant.limits, value.len())?;
        grant.bucket.swap(&key, &guard, value)
    });
    match swapped {
        Ok(Swap::Done) => Ok(()),
        Ok(Swap::Conflict(Observed { value, guard })) => Err(SwapError::Lost(Cas { grant, key, guard, value })),
        Err(error) => Err(SwapError::Store(error)),
    }
}
