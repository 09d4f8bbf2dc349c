//! The shape `wasmcloud:keyvalue@0.2.0`: async functions, expiry, if-not-exists, prefixes, a compare-and-swap by version token.
//!
//! Flow and invariants: see `link`. The tokens are made and read by `version`.

use super::Access;
use super::calls::{self, Instance, Label, OneKey};
use super::shape::Interface;
use crate::atomics::{self, Conditions, Entry, Swapped};
use crate::backend::{Reply, SetOptions};
use crate::bindings::wasmcloud::types::{Error, SetOptions as WitOptions};
use crate::ctx::Bucket;
use crate::error::Refusal;
use crate::{Code, store};
use bytes::Bytes;
use std::time::Duration;
use wasmtime::Result;
use wasmtime::component::{ComponentType, Lift, Lower, Resource, WasmList, WasmStr};

impl From<Refusal> for Error {
    #[cold]
    fn from(refusal: Refusal) -> Self {
        let code = match refusal {
            Refusal::NoSuchStore => return Error::NoSuchStore,
            Refusal::AccessDenied => return Error::AccessDenied,
            Refusal::Failed(code) => code,
        };
        match code {
            Code::InvalidCursor | Code::Invalid => Error::InvalidArgument,
            Code::Timeout => Error::Timeout,
            Code::Busy => Error::StoreUnavailable,
            Code::Quota | Code::TooManyHandles => Error::QuotaExceeded,
            code => Error::Other(code.text().to_owned()),
        }
    }
}

/// The WIT record `cas-options`, looked at in guest memory.
#[derive(ComponentType, Lift)]
#[component(record)]
struct CasOptions {
    #[component(name = "require-version")]
    require_version: Option<WasmStr>,
    #[component(name = "require-value")]
    require_value: Option<WasmList<u8>>,
}

/// The WIT record `entry`.
#[derive(ComponentType, Lower)]
#[component(record)]
struct WitEntry {
    value: Bytes,
    version: String,
}

impl From<Entry> for WitEntry {
    fn from(Entry { value, version }: Entry) -> Self {
        WitEntry { value, version }
    }
}

/// The WIT variant `cas-result`.
#[derive(ComponentType, Lower)]
#[component(variant)]
enum CasResult {
    #[component(name = "swapped")]
    Swapped,
    #[component(name = "stale")]
    Stale(Option<WitEntry>),
}

pub(super) fn add<T: Send + 'static>(
    instance: &mut Instance<'_, T>,
    access: Access<T>,
    interface: Interface,
    label: Label,
) -> Result<()> {
    match interface {
        Interface::Types => {
            calls::bucket(instance, access)?;
            calls::reads::<T, Error>(instance, access)?;
            calls::list_prefix::<T, Error>(instance, access)?;
            set(instance, access)?;
            calls::delete::<T, Error>(instance, access)
        }
        Interface::Store => calls::open::<T, Error>(instance, access, label),
        Interface::Atomics => calls::increment::<T, Error>(instance, access),
        Interface::Cas => {
            current(instance, access)?;
            swap(instance, access)
        }
        Interface::Batch => {
            calls::get_many::<T, Error>(instance, access)?;
            calls::batch_writes::<T, Error>(instance, access)
        }
    }
}

/// What a `set` asks of a back end.
pub(super) fn options_of(options: Option<WitOptions>) -> SetOptions {
    options.map_or_else(SetOptions::default, |options| SetOptions {
        ttl: options.ttl_ms.map(Duration::from_millis),
        if_absent: options.if_not_exists,
    })
}

fn set<T: Send + 'static>(instance: &mut Instance<'_, T>, access: Access<T>) -> Result<()> {
    type Set = (Resource<Bucket>, WasmStr, WasmList<u8>, Option<WitOptions>);
    access.define(
        instance,
        "[method]bucket.set",
        move |cx, pace, (this, key, value, options): Set| {
            let bucket = access.view(cx).bucket(&this)?;
            let (key, value) = (key.to_str(&*cx)?, value.as_le_slice(&*cx));
            let options = options_of(options);
            if options == SetOptions::default() {
                return Ok(store::set(&bucket.grant, pace, &key, value).and_then(|()| Ok(true)));
            }
            Ok(store::set_with(&bucket.grant, pace, &key, value, options))
        },
        |_, written| match written {
            Ok(true) => Ok(()),
            Ok(false) => Err(Error::PreconditionFailed),
            Err(refusal) => Err(Error::from(refusal)),
        },
    )
}

fn current<T: Send + 'static>(instance: &mut Instance<'_, T>, access: Access<T>) -> Result<()> {
    access.define(
        instance,
        "current",
        move |cx, pace, (bucket, key): OneKey| {
            let bucket = access.view(cx).bucket(&bucket)?;
            Ok(atomics::current(&bucket.grant, pace, &key.to_str(&*cx)?))
        },
        |_, entry| entry.map(|entry| entry.map(WitEntry::from)).map_err(Error::from),
    )
}

fn swap<T: Send + 'static>(instance: &mut Instance<'_, T>, access: Access<T>) -> Result<()> {
    type Swap = (Resource<Bucket>, WasmStr, WasmList<u8>, CasOptions);
    access.define(
        instance,
        "swap",
        move |cx, pace, (bucket, key, value, options): Swap| {
            let bucket = access.view(cx).bucket(&bucket)?;
            let version = options.require_version.map(|version| version.to_str(&*cx)).transpose()?;
            let conditions = Conditions {
                version: version.as_deref(),
                value: options.require_value.as_ref().map(|value| value.as_le_slice(&*cx)),
            };
            if conditions == Conditions::default() {
                return Ok(Reply::Now(Err(Refusal::Failed(Code::Invalid))));
            }
            Ok(atomics::swap_if(&bucket.grant, pace, &key.to_str(&*cx)?, value.as_le_slice(&*cx), conditions))
        },
        |_, swapped| match swapped {
            Ok(Swapped::Done) => Ok(CasResult::Swapped),
            Ok(Swapped::Stale(entry)) => Ok(CasResult::Stale(entry.map(WitEntry::from))),
            Err(refusal) => Err(Error::from(refusal)),
        },
    )
}
