//! What the host sees of its guests' calls: a span and an event for each (`tracing`), counters and latencies (`metrics`).
//!
//! Flow: `store::Running` -> here, where somebody looks: a subscriber that wants debug events of [`TARGET`], or a context that was
//! built with metrics. Where nobody does, a call costs a load and two branches.
//! Invariants: 1. No key and no value is in any of it. 2. Labels come from the configuration and from fixed lists, so that no guest
//! makes a series. 3. A call that is dropped half-way is seen too, as `dropped`.

use crate::Error;
use std::time::Instant;
use tracing::{Level, Span};

/// Of the spans and events, for filters of a subscriber.
pub(crate) const TARGET: &str = "kvasi::call";

/// The calls by name; what is not among them is counted as the last.
#[cfg(feature = "metrics")]
const CALLS: [&str; 13] = [
    "get",
    "set",
    "delete",
    "exists",
    "list-keys",
    "increment",
    "cas.new",
    "swap",
    "get-many",
    "set-many",
    "delete-many",
    "watch",
    "other",
];

/// One call that somebody looks at.
pub(crate) struct Observed {
    begun: Instant,
    pub(crate) span: Span,
}

/// How a call ended, in words of a closed list.
pub(crate) fn outcome<R>(answer: &Result<R, Error>) -> &'static str {
    answer.as_ref().map_or_else(|error| error.code().text(), |_| "ok")
}

/// Whether anybody wants to hear of a call.
#[inline]
pub(crate) fn wanted(meters: Option<&Meters>) -> bool {
    meters.is_some() || tracing::enabled!(target: TARGET, Level::DEBUG)
}

#[cold]
pub(crate) fn begin(bucket: &str, call: &'static str, keys: usize, bytes: usize) -> Box<Observed> {
    let span = tracing::debug_span!(target: TARGET, "call", bucket = ?bucket, call, keys, bytes);
    Box::new(Observed { begun: Instant::now(), span })
}

impl Observed {
    #[cold]
    pub(crate) fn end(&self, meters: Option<&Meters>, call: &'static str, outcome: &'static str, bytes: [usize; 2]) {
        let took = self.begun.elapsed();
        let _in = self.span.enter();
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        tracing::debug!(target: TARGET, outcome, bytes_out = bytes[1], us, "done");
        if let Some(meters) = meters {
            meters.count(call, outcome, took, bytes);
        }
    }
}

/// A call that was not let in.
#[cold]
pub(crate) fn refused(meters: Option<&Meters>, bucket: &str, call: &'static str, outcome: &'static str) {
    tracing::debug!(target: TARGET, bucket = ?bucket, call, outcome, "refused");
    if let Some(meters) = meters {
        meters.refuse(call, outcome);
    }
}

/// The counters and histograms of one bucket, registered when a context is built: with the recorder that is installed then.
#[derive(Clone)]
pub(crate) struct Meters {
    #[cfg(feature = "metrics")]
    bucket: String,
    #[cfg(feature = "metrics")]
    calls: Box<[Meter]>,
}

#[cfg(feature = "metrics")]
#[derive(Clone)]
struct Meter {
    name: &'static str,
    ok: metrics::Counter,
    seconds: metrics::Histogram,
    bytes: [metrics::Counter; 2],
}

#[cfg(feature = "metrics")]
impl Meters {
    pub(crate) fn new(bucket: &str) -> Meters {
        metrics::describe_counter!("kvasi_calls_total", "Calls of guests, by bucket, call and outcome.");
        metrics::describe_histogram!(
            "kvasi_call_seconds",
            metrics::Unit::Seconds,
            "From a guest's call to its answer."
        );
        metrics::describe_counter!(
            "kvasi_call_bytes_total",
            metrics::Unit::Bytes,
            "Keys and values that guests passed (in) and were answered (out)."
        );
        let bytes = |name, direction| metrics::counter!("kvasi_call_bytes_total", "bucket" => bucket.to_owned(), "call" => name, "direction" => direction);
        let meter = |&name: &&'static str| Meter {
            name,
            ok: counter(bucket, name, "ok"),
            seconds: metrics::histogram!("kvasi_call_seconds", "bucket" => bucket.to_owned(), "call" => name),
            bytes: [bytes(name, "in"), bytes(name, "out")],
        };
        Meters { bucket: bucket.to_owned(), calls: CALLS.iter().map(meter).collect() }
    }

    fn meter(&self, call: &str) -> &Meter {
        let found = self.calls.iter().find(|meter| meter.name == call);
        found.unwrap_or(&self.calls[CALLS.len() - 1])
    }

    fn count(&self, call: &'static str, outcome: &'static str, took: std::time::Duration, bytes: [usize; 2]) {
        let meter = self.meter(call);
        meter.seconds.record(took.as_secs_f64());
        if outcome == "ok" {
            meter.ok.increment(1);
            for (counter, bytes) in meter.bytes.iter().zip(bytes) {
                counter.increment(bytes as u64);
            }
        } else {
            self.refuse(call, outcome);
        }
    }

    fn refuse(&self, call: &'static str, outcome: &'static str) {
        counter(&self.bucket, self.meter(call).name, outcome).increment(1);
    }
}

#[cfg(feature = "metrics")]
fn counter(bucket: &str, call: &'static str, outcome: &'static str) -> metrics::Counter {
    metrics::counter!("kvasi_calls_total", "bucket" => bucket.to_owned(), "call" => call, "outcome" => outcome)
}

#[cfg(not(feature = "metrics"))]
#[expect(clippy::unused_self, reason = "as with the feature")]
impl Meters {
    fn count(&self, _: &'static str, _: &'static str, _: std::time::Duration, _: [usize; 2]) {}
    fn refuse(&self, _: &'static str, _: &'static str) {}
}
