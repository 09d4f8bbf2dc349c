//! Which campaign finds a fault that was put into the engine on purpose, and how soon.

use std::time::{Duration, Instant};

use super::counts::{Case, leave_as_found};
use super::drive::{self, CAMPAIGNS, Campaign, Limits};
use crate::seeded::{BUGS, put_in};

/// The faults by name, each with what it does.
pub fn all() -> Vec<(String, &'static str)> {
    BUGS.iter().map(|(bug, what)| (format!("{bug:?}"), *what)).collect()
}

/// Puts the fault into the engine of this process, for good.
///
/// # Panics
/// If there is no such fault.
pub fn put(name: &str) {
    let bug = BUGS.iter().map(|(bug, _)| *bug).find(|bug| format!("{bug:?}") == name);
    put_in(Some(bug.unwrap_or_else(|| panic!("there is no fault {name}"))));
}

/// Who found a fault.
#[derive(Clone, Debug)]
pub struct Catch {
    /// The campaign.
    pub campaign: &'static str,
    /// What it had done by then, of what it counts.
    pub done: u64,
    /// How long it took.
    pub time: Duration,
    /// What it says.
    pub what: String,
}

/// Parts of a CI tier's counts that the campaigns are given in turn.
const SHARES: [u64; 5] = [2000, 200, 20, 4, 1];

/// What the CI tier gives a campaign, in what it counts.
fn ci_count(campaign: Campaign) -> u64 {
    match campaign {
        Campaign::Calls => 400_000,
        Campaign::Crash => 500_000,
        Campaign::CrashInRecovery => 100_000,
        Campaign::Exhaustive => 200_000,
        Campaign::Errors => 80_000,
        Campaign::Enospc | Campaign::Sectors => 10_000,
        Campaign::Flip => 50_000,
        Campaign::Truncate => 20_000,
        Campaign::Backup => 10_000,
        Campaign::Linearize => 2_000_000,
        Campaign::Cancel => 10_000,
    }
}

/// Puts the fault into the engine of this process, for good, and lets the campaigns look for it, each for a while and then
/// for longer; `None` if none has found it in `at_most`, or in the CI tier's counts.
///
/// # Panics
/// If there is no such fault.
#[allow(clippy::disallowed_methods, reason = "tests may look at the clock")]
pub fn find(name: &str, at_most: Duration) -> Option<Catch> {
    put(name);
    leave_as_found();
    let start = Instant::now();
    for (i, share) in SHARES.into_iter().enumerate() {
        for campaign in CAMPAIGNS {
            // What begins with much.
            if share == SHARES[0] && campaign == Campaign::Backup {
                continue;
            }
            let left = at_most.saturating_sub(start.elapsed());
            // The last one is what CI does; the others are of other seeds.
            let seed = 1 + 1000 * (SHARES.len() - 1 - i) as u64;
            // What depends on when threads meet needs a few rounds.
            let least = if campaign == Campaign::Linearize { 400_000 } else { 50 };
            let count = (ci_count(campaign) / share).max(least);
            let limits = Limits { seed, count, time: Some(left), seeds: None, threads: 1 };
            let began = Instant::now();
            let outcome = drive::run(campaign, &limits, &Case::default());
            if let Some(violation) = outcome.violation {
                let done = outcome.counts.of(campaign.unit());
                return Some(Catch { campaign: campaign.name(), done, time: began.elapsed(), what: violation.what });
            }
            if start.elapsed() >= at_most {
                return None;
            }
        }
    }
    None
}
