//! The calls of the interface `store`, once, whatever shape they came through: rights, limits, back end, answer.
//!
//! Flow: `link` (views on guest memory) -> here -> `backend` -> here -> `link` (lowering). No linker in here.
//! Invariants: 1. A right or a limit that forbids a call is found before the back end is asked. 2. Nothing of ours is
//! allocated between a `get` or `set` and its answer; errors and cursors excepted.

use crate::backend::{Reply, SetOptions};
use crate::ctx::{Bucket, Grant, Limits, Rights, WasiKeyValueCtx, WasiKeyValueCtxView};
use crate::error::Refusal;
use crate::gate::Load;
use crate::observe::{self, Observed};
use crate::pace::Pace;
use crate::{Code, Error, Utf8Bytes, cursor};
use bytes::Bytes;
use std::ops::Deref;
use std::sync::Arc;
use tracing::{Instrument, Span};
use wasmtime::component::Resource;

/// One page of keys as `list-keys` answers it.
#[derive(Debug)]
pub(crate) struct KeyPage {
    pub(crate) keys: Vec<Utf8Bytes>,
    pub(crate) cursor: Option<String>,
}

/// `held` is how many buckets the instance has open already, `label` that of the import it asks through.
pub(crate) fn open(ctx: &WasiKeyValueCtx, held: usize, label: Option<&str>, name: &str) -> Result<Bucket, Refusal> {
    if held >= ctx.limits().open_buckets_max {
        return Err(Error::new(Code::TooManyHandles).for_guest("", "open"));
    }
    ctx.look_up(label, name).map(|grant| Bucket { grant })
}

/// Gives an opened bucket to the guest.
pub(crate) fn keep(view: &mut WasiKeyValueCtxView<'_>, bucket: Bucket) -> Result<Resource<Bucket>, Refusal> {
    view.push_bucket(bucket).map_err(|error| error.for_guest("", "open"))
}

pub(crate) fn get(grant: &Arc<Grant>, pace: Pace, key: &str) -> Reply<Option<Bytes>, Refusal> {
    let weigh = |value: &Option<Bytes>| value.as_ref().map_or(0, Bytes::len);
    grant.call("get", Rights::READ, read(key), weigh, || {
        check_key(&grant.limits, key)?;
        let reply_bytes_max = grant.limits.reply_bytes_max;
        match grant.at(pace).get(key) {
            Reply::Now(value) => {
                if let Ok(Some(value)) = &value {
                    within(value.len(), reply_bytes_max)?;
                }
                Ok(Reply::Now(value))
            }
            later => Ok(later.and_then(move |value| {
                within(value.as_ref().map_or(0, Bytes::len), reply_bytes_max)?;
                Ok(value)
            })),
        }
    })
}

pub(crate) fn set(grant: &Arc<Grant>, pace: Pace, key: &str, value: &[u8]) -> Reply<(), Refusal> {
    grant.call(
        "set",
        Rights::WRITE,
        write(1, key.len() + value.len()),
        |()| 0,
        || {
            check_key(&grant.limits, key)?;
            check_value(&grant.limits, value.len())?;
            Ok(grant.at(pace).set(key, value))
        },
    )
}

/// A `set` with an expiry, or only where no value is: `false` if there was one.
pub(crate) fn set_with(
    grant: &Arc<Grant>,
    pace: Pace,
    key: &str,
    value: &[u8],
    options: SetOptions,
) -> Reply<bool, Refusal> {
    grant.call(
        "set",
        Rights::WRITE,
        write(1, key.len() + value.len()),
        |_| 0,
        || {
            check_key(&grant.limits, key)?;
            check_value(&grant.limits, value.len())?;
            Ok(grant.at(pace).set_with(key, value, options))
        },
    )
}

pub(crate) fn delete(grant: &Arc<Grant>, pace: Pace, key: &str) -> Reply<(), Refusal> {
    grant.call(
        "delete",
        Rights::WRITE,
        write(1, key.len()),
        |()| 0,
        || {
            check_key(&grant.limits, key)?;
            Ok(grant.at(pace).delete(key))
        },
    )
}

pub(crate) fn exists(grant: &Arc<Grant>, pace: Pace, key: &str) -> Reply<bool, Refusal> {
    grant.call(
        "exists",
        Rights::READ,
        read(key),
        |_| 0,
        || {
            check_key(&grant.limits, key)?;
            Ok(grant.at(pace).exists(key))
        },
    )
}

/// The page of keys with `prefix` at the cursor `at`.
pub(crate) fn list_keys(grant: &Arc<Grant>, pace: Pace, prefix: &str, at: Option<&str>) -> Reply<KeyPage, Refusal> {
    let load = Load { keys: 1, bytes: prefix.len() + at.map_or(0, str::len), writes: false };
    let weigh = |page: &KeyPage| page.keys.iter().map(|key| key.len()).sum();
    grant.call("list-keys", Rights::LIST, load, weigh, || {
        check_key(&grant.limits, prefix)?;
        let after = at
            .map(|at| cursor::decode(grant.bucket.identity(), prefix, at))
            .transpose()
            .map_err(|cursor::Invalid| Error::new(Code::InvalidCursor))?;
        let page = grant.at(pace).list_prefix(prefix, after.as_deref(), grant.limits.page());
        let (grant, prefix) = (grant.clone(), Box::<str>::from(prefix));
        Ok(page.and_then(move |page| {
            let cursor = page.next.map(|last| cursor::encode(grant.bucket.identity(), &prefix, &last));
            Ok(KeyPage { keys: page.keys, cursor })
        }))
    })
}

/// What a call of one key that reads asks of the gates.
fn read(key: &str) -> Load {
    Load { keys: 1, bytes: key.len(), writes: false }
}

/// What a call that writes asks of the gates.
pub(crate) fn write(keys: usize, bytes: usize) -> Load {
    Load { keys, bytes, writes: true }
}

impl Grant {
    /// A call from its beginning to its end, at once or later: asks for the right and for a place at the gates, makes the call,
    /// and turns a failure into what the guest may know of it. `weigh` tells how many bytes of keys and values an answer has.
    ///
    /// A read that no gate counts and nobody looks at, as most are, has nothing of all that but the call.
    #[inline]
    pub(crate) fn call<R: 'static>(
        self: &Arc<Self>,
        name: &'static str,
        needed: Rights,
        load: Load,
        weigh: impl FnOnce(&R) -> usize + Send + 'static,
        call: impl FnOnce() -> Result<Reply<R>, Error>,
    ) -> Reply<R, Refusal> {
        if load.writes {
            return self.call_through(name, needed, load, weigh, call);
        }
        if !self.passes(needed) {
            return self.call_apart(name, needed, load, weigh, call);
        }
        match call() {
            Ok(Reply::Now(Ok(answer))) => Reply::Now(Ok(answer)),
            Ok(Reply::Now(Err(error))) | Err(error) => Reply::Now(Err(error.for_guest(&self.name, name))),
            Ok(Reply::Later(answer)) => {
                let grant = self.clone();
                Reply::later(async move { answer.await.map_err(|error| error.for_guest(&grant.name, name)) })
            }
        }
    }

    /// As [`Grant::call_through`], out of the way of the calls that need none of it.
    #[cold]
    #[inline(never)]
    fn call_apart<R: 'static>(
        self: &Arc<Self>,
        name: &'static str,
        needed: Rights,
        load: Load,
        weigh: impl FnOnce(&R) -> usize + Send + 'static,
        call: impl FnOnce() -> Result<Reply<R>, Error>,
    ) -> Reply<R, Refusal> {
        self.call_through(name, needed, load, weigh, call)
    }

    #[inline]
    fn call_through<R: 'static>(
        self: &Arc<Self>,
        name: &'static str,
        needed: Rights,
        load: Load,
        weigh: impl FnOnce(&R) -> usize + Send + 'static,
        call: impl FnOnce() -> Result<Reply<R>, Error>,
    ) -> Reply<R, Refusal> {
        let running = match self.begin(name, needed, load) {
            Ok(running) => running,
            Err(refusal) => return Reply::Now(Err(refusal)),
        };
        let reply = match &running.observed {
            None => call(),
            Some(observed) => observed.span.in_scope(call),
        };
        match reply {
            Ok(Reply::Now(answer)) => Reply::Now(running.end(answer, weigh)),
            Err(error) => Reply::Now(running.end(Err(error), weigh)),
            Ok(Reply::Later(answer)) => {
                let running = running.detach();
                let answer = answer.instrument(running.span());
                Reply::later(async move {
                    let answer = answer.await;
                    running.end(answer, weigh)
                })
            }
        }
    }

    /// Whether a call that only reads is granted, passes without the gates, and is nobody's to hear of.
    #[inline]
    fn passes(&self, needed: Rights) -> bool {
        self.rights.contains(needed) && !self.counts_reads() && !observe::wanted(self.meters())
    }

    #[inline]
    fn begin<'a>(
        self: &'a Arc<Self>,
        call: &'static str,
        needed: Rights,
        load: Load,
    ) -> Result<Running<&'a Arc<Grant>>, Refusal> {
        self.allow(call, needed)?;
        let gated = self.enter(load).map_err(|error| {
            if observe::wanted(self.meters()) {
                observe::refused(self.meters(), &self.name, call, error.code().text());
            }
            error.for_guest(&self.name, call)
        })?;
        let observed = observe::wanted(self.meters()).then(|| observe::begin(&self.name, call, load.keys, load.bytes));
        Ok(Running { grant: self, call, load, gated, observed })
    }

    #[inline]
    pub(crate) fn allow(&self, call: &'static str, needed: Rights) -> Result<(), Refusal> {
        if self.rights.contains(needed) {
            return Ok(());
        }
        if observe::wanted(self.meters()) {
            observe::refused(self.meters(), &self.name, call, "access-denied");
        }
        Err(Refusal::AccessDenied)
    }
}

/// A call between its admission and its answer. What it holds is given back when it ends, or is dropped.
struct Running<G: Deref<Target = Arc<Grant>>> {
    grant: G,
    call: &'static str,
    load: Load,
    /// Whether it has a place at the gates.
    gated: bool,
    /// Where somebody looks.
    observed: Option<Box<Observed>>,
}

/// A grant that is kept: what [`Running`] holds when its call goes on after the function that began it.
struct Kept(Arc<Grant>);

impl Deref for Kept {
    type Target = Arc<Grant>;
    fn deref(&self) -> &Arc<Grant> {
        &self.0
    }
}

impl<G: Deref<Target = Arc<Grant>>> Running<G> {
    /// The same call, on its own.
    #[cold]
    fn detach(mut self) -> Running<Kept> {
        let (gated, observed) = (std::mem::take(&mut self.gated), self.observed.take());
        Running { grant: Kept(self.grant.clone()), call: self.call, load: self.load, gated, observed }
    }

    fn span(&self) -> Span {
        self.observed.as_ref().map_or_else(Span::none, |observed| observed.span.clone())
    }

    #[inline]
    fn end<R>(mut self, answer: Result<R, Error>, weigh: impl FnOnce(&R) -> usize) -> Result<R, Refusal> {
        if let Some(observed) = self.observed.take() {
            let bytes = [self.load.bytes, answer.as_ref().map_or(0, weigh)];
            observed.end(self.grant.meters(), self.call, observe::outcome(&answer), bytes);
        }
        answer.map_err(|error| error.for_guest(&self.grant.name, self.call))
    }
}

impl<G: Deref<Target = Arc<Grant>>> Drop for Running<G> {
    #[inline]
    fn drop(&mut self) {
        if self.gated {
            self.grant.leave(self.load);
        }
        if let Some(observed) = self.observed.take() {
            observed.end(self.grant.meters(), self.call, "dropped", [self.load.bytes, 0]);
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
