//! The campaign `model`: random calls against a map, every answer compared; see `tests/agrees`.

use std::panic::catch_unwind;
use std::path::Path;

use kvasi::Durability;
use kvasi::testing::counts::{Case, Counts, Violation};

#[path = "../../tests/agrees/mod.rs"]
#[allow(clippy::unwrap_used, reason = "written as a test: stops at the first surprise")]
mod agrees;

/// Steps of a seed, by what each costs.
const STEPS: [(Durability, u64); 3] =
    [(Durability::Ephemeral, 300_000), (Durability::Os, 60_000), (Durability::INTERVAL, 20_000)];

pub(crate) fn round(seed: u64, base: &Path) -> Result<Counts, Violation> {
    let (durability, steps) = STEPS[(seed % STEPS.len() as u64) as usize];
    let mut counts = Counts::default();
    match catch_unwind(|| agrees::run(seed, durability, steps, base)) {
        Ok(calls) => {
            counts.add("calls", calls);
            Ok(counts)
        }
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("?");
            Err(Violation { seed, case: Case::default(), what: text.to_owned() })
        }
    }
}
