//! What the benchmarks share: the same keys and values for every store, a clock, medians.
//!
//! The measuring is in the binaries: `compare` (engines against each other), `guest` (bindings against each other), and
//! in `benches/engine.rs` (our own calls, by criterion).

pub mod clock;
pub mod keys;

/// What a benchmark may fail with: told to a person, and the run is void.
pub type Error = Box<dyn std::error::Error + Send + Sync>;
/// See [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// The middle one of some measurements; the lower of the two middle ones. `None` of none.
pub fn median(measured: &mut [f64]) -> Option<f64> {
    measured.sort_by(f64::total_cmp);
    measured.len().checked_sub(1).map(|last| measured[last / 2])
}
