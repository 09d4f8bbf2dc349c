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
    AtMostTimes(f64),
    /// So many nanoseconds.
    AtMostNs(f64),
    /// So many times the peer's rate.
    AtLeastTimes(f64),
}

impl Bound {
    /// `None` where nothing is there to compare with.
    pub(crate) fn holds(self, ns: f64, ratio: Option<f64>) -> Option<bool> {
        match self {
            Bound::AtMostTimes(most) => ratio.map(|ratio| ratio <= most),
            Bound::AtMostNs(most) => Some(ns <= most),
            Bound::AtLeastTimes(least) => ratio.map(|ratio| ratio >= least),
        }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Bound::AtMostTimes(most) => format!("{most}x"),
            Bound::AtMostNs(most) => format!("{most} ns"),
            Bound::AtLeastTimes(least) => format!(">= {least}x"),
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
    use Bound::{AtLeastTimes, AtMostNs, AtMostTimes};
    Some(match (row, host) {
        ("get 100 B", "kvasi") => AtMostTimes(1.1),
        ("get 4 KiB", "kvasi") => AtMostTimes(0.95),
        ("get 64 KiB", "kvasi") => AtMostTimes(0.65),
        ("get 1 MiB", "kvasi") => AtMostTimes(0.5),
        ("get 100 B", "million") => AtMostTimes(1.6),
        ("get 4 KiB", "million") => AtMostTimes(1.3),
        ("get 64 KiB", "million") => AtMostTimes(0.7),
        ("get 1 MiB", "million") => AtMostTimes(0.55),
        ("set 100 B", "kvasi") => AtMostTimes(1.2),
        ("set 64 KiB", "kvasi") => AtMostTimes(1.6),
        ("open + drop", "kvasi") => AtMostNs(500.0),
        ("get-many 100x100 B", "kvasi") => AtMostNs(200.0),
        ("list page", "kvasi") => AtMostNs(120_000.0),
        ("request", "kvasi") => AtMostNs(20_000.0),
        (OWN_WORK, "kvasi") => AtMostNs(150.0),
        ("kept, Os", "spin") => AtLeastTimes(100.0),
        ("kept, Os", "tuned") => AtLeastTimes(10.0),
        ("kept, Sync", "spin") => AtLeastTimes(3.0),
        _ => return None,
    })
}
