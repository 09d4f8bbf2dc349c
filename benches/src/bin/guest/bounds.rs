//! What the binding means to reach, by row and host; printed beside what is measured.
//!
//! Flow: `main` and `sets` ask by name. A run never fails of a bound: figures depend on the machine.

use serde::Serialize;
use std::fmt;

/// The row that is what a get costs beyond a host that does nothing, and the row that it is taken from.
pub(crate) const OWN_WORK: &str = "own work per get";
pub(crate) const OWN_WORK_OF: &str = "get 100 B";

/// A bound of a row.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Bound {
    /// So many times what the peer takes.
    MostTimes(f64),
    /// So many nanoseconds.
    MostNs(f64),
    /// So many times the peer's rate.
    LeastTimes(f64),
}

impl Bound {
    /// `None` where nothing is there to compare with.
    pub(crate) fn holds(self, ns: f64, ratio: Option<f64>) -> Option<bool> {
        match self {
            Bound::MostTimes(most) => ratio.map(|ratio| ratio <= most),
            Bound::MostNs(most) => Some(ns <= most),
            Bound::LeastTimes(least) => ratio.map(|ratio| ratio >= least),
        }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Bound::MostTimes(most) => format!("{most}x"),
            Bound::MostNs(most) => format!("{most} ns"),
            Bound::LeastTimes(least) => format!(">= {least}x"),
        };
        f.pad(&text)
    }
}

pub(crate) fn verdict(within: Option<bool>) -> &'static str {
    match within {
        None => "",
        Some(true) => "yes",
        Some(false) => "NO",
    }
}

pub(crate) fn of(row: &str, host: &str) -> Option<Bound> {
    use Bound::{LeastTimes, MostNs, MostTimes};
    Some(match (row, host) {
        ("get 100 B", "kvasi") => MostTimes(1.1),
        ("get 4 KiB", "kvasi") => MostTimes(0.95),
        ("get 64 KiB", "kvasi") => MostTimes(0.65),
        ("get 1 MiB", "kvasi") => MostTimes(0.5),
        ("get 100 B", "million") => MostTimes(1.6),
        ("get 4 KiB", "million") => MostTimes(1.3),
        ("get 64 KiB", "million") => MostTimes(0.7),
        ("get 1 MiB", "million") => MostTimes(0.55),
        ("set 100 B", "kvasi") => MostTimes(1.2),
        ("set 64 KiB", "kvasi") => MostTimes(1.6),
        ("open + drop", "kvasi") => MostNs(500.0),
        ("get-many 100x100 B", "kvasi") => MostNs(200.0),
        ("list page", "kvasi") => MostNs(120_000.0),
        ("request", "kvasi") => MostNs(20_000.0),
        (OWN_WORK, "kvasi") => MostNs(150.0),
        ("kept, Os", "spin") => LeastTimes(100.0),
        ("kept, Os", "tuned") => LeastTimes(10.0),
        ("kept, Sync", "spin") => LeastTimes(3.0),
        _ => return None,
    })
}
