//! Campaigns by name: seed after seed, on several threads, until it is enough or something breaks.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::counts::{Case, Counts, Violation};
use super::{backup, cancel, crash, damage, exhaustive, faults, linear};

/// What is done to the engine, and what is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Campaign {
    /// Long runs of calls with deaths of the process in between, and a power cut at the end.
    Calls,
    /// The power is cut at every moment of a workload.
    Crash,
    /// ... and again while the store is opened after that, and again.
    CrashInRecovery,
    /// The power is cut in every sequence of up to four calls of fourteen kinds.
    Exhaustive,
    /// Every call to the disk fails, in every way.
    Errors,
    /// The disk is full, after every number of bytes.
    Enospc,
    /// A bit of a file is another one.
    Flip,
    /// Files are cut, extended, missing, swapped.
    Truncate,
    /// Sectors are unreadable, blank, old or from elsewhere.
    Sectors,
    /// The power is cut, and calls fail, while a backup is made.
    Backup,
    /// Calls of several threads, with deaths of the process and power cuts: one after another all the same.
    Linearize,
    /// Futures of commits are dropped at every poll.
    Cancel,
}

/// All of them.
pub const CAMPAIGNS: [Campaign; 12] = [
    Campaign::Calls,
    Campaign::Crash,
    Campaign::CrashInRecovery,
    Campaign::Exhaustive,
    Campaign::Errors,
    Campaign::Enospc,
    Campaign::Flip,
    Campaign::Truncate,
    Campaign::Sectors,
    Campaign::Backup,
    Campaign::Linearize,
    Campaign::Cancel,
];

impl Campaign {
    /// As it is called on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Campaign::Calls => "calls",
            Campaign::Crash => "crash",
            Campaign::CrashInRecovery => "crash-in-recovery",
            Campaign::Exhaustive => "exhaustive",
            Campaign::Errors => "errors",
            Campaign::Enospc => "enospc",
            Campaign::Flip => "flip",
            Campaign::Truncate => "truncate",
            Campaign::Sectors => "sectors",
            Campaign::Backup => "backup",
            Campaign::Linearize => "linearize",
            Campaign::Cancel => "cancel",
        }
    }

    /// What its size is counted in.
    pub fn unit(self) -> &'static str {
        match self {
            Campaign::Calls => "calls",
            Campaign::Crash | Campaign::Exhaustive => "images",
            Campaign::CrashInRecovery => "recovery_images",
            Campaign::Errors | Campaign::Enospc => "runs",
            Campaign::Flip | Campaign::Truncate | Campaign::Sectors => "damages",
            Campaign::Backup => "backup_cases",
            Campaign::Linearize => "linearized_calls",
            Campaign::Cancel => "futures",
        }
    }

    /// How many seeds there are, where they come to an end.
    fn seeds(self) -> Option<u64> {
        (self == Campaign::Exhaustive).then(exhaustive::total)
    }

    /// All of a seed, or about `count` of it.
    ///
    /// # Errors
    /// The first broken promise, made small.
    pub fn round(self, seed: u64, count: u64, case: &Case) -> Result<Counts, Violation> {
        // Where few are wanted, they are of several workloads.
        let images = count.div_ceil(8).max(200);
        let plan = crash::Plan { steps: 60, before: 240, images, spread: true, each: 16, recovery_every: 0, depth: 1 };
        // Stores differ: some have key runs, some were closed.
        let damages = count.div_ceil(5).min(20_000);
        match self {
            Campaign::Calls => crash::calls(seed, CALLS, case),
            Campaign::Crash => crash::round(seed, &plan, case),
            Campaign::CrashInRecovery => {
                crash::round(seed, &crash::Plan { each: 4, recovery_every: 4, depth: 3, ..plan }, case)
            }
            Campaign::Exhaustive => exhaustive::round(seed, &crash::Plan { each: 16, ..plan }, case),
            Campaign::Errors => faults::errors(seed, count.min(2_000), case),
            Campaign::Enospc => faults::full(seed, count.min(500), case),
            Campaign::Flip => damage::round(damage::Kind::Flip, seed, damages, case),
            Campaign::Truncate => damage::round(damage::Kind::Truncate, seed, damages, case),
            Campaign::Sectors => damage::round(damage::Kind::Sectors, seed, damages, case),
            Campaign::Backup => backup::round(seed),
            Campaign::Linearize => linear::round(seed),
            Campaign::Cancel => cancel::round(seed),
        }
    }
}

/// Calls of a run of the campaign `calls`: enough for runs to be merged, and merged again.
const CALLS: u32 = 500;

/// When a campaign ends.
#[derive(Clone, Debug)]
pub struct Limits {
    /// The first seed; the others count up.
    pub seed: u64,
    /// Of the campaign's unit, about.
    pub count: u64,
    /// After this time.
    pub time: Option<Duration>,
    /// Seeds at most.
    pub seeds: Option<u64>,
    /// Threads, each with a seed of its own.
    pub threads: usize,
}

/// What was done, and what went wrong first.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The counts of all seeds.
    pub counts: Counts,
    /// Seeds begun.
    pub seeds: u64,
    /// How long it took.
    pub time: Duration,
    /// Of the lowest seed in which there is one.
    pub violation: Option<Violation>,
}

/// Runs a campaign to its end.
pub fn run(campaign: Campaign, limits: &Limits, case: &Case) -> Outcome {
    drive(limits, campaign.unit(), campaign.seeds(), |seed, count| campaign.round(seed, count, case))
}

/// Hands out seeds to threads. `round` gets a seed and how much is left to be done.
#[allow(clippy::disallowed_methods, reason = "tests may start threads and look at the clock")]
pub fn drive(
    limits: &Limits,
    unit: &str,
    seeds: Option<u64>,
    round: impl Fn(u64, u64) -> Result<Counts, Violation> + Sync,
) -> Outcome {
    let start = Instant::now();
    let last = [seeds, limits.seeds.map(|n| limits.seed.saturating_add(n))].into_iter().flatten().min();
    let next = AtomicU64::new(limits.seed);
    let stop = AtomicBool::new(false);
    let done = Mutex::new((Counts::default(), None::<Violation>));
    let work = || {
        while !stop.load(Ordering::Relaxed) {
            let left = limits.count.saturating_sub(done.lock().0.of(unit));
            let seed = next.fetch_add(1, Ordering::Relaxed);
            let late = limits.time.is_some_and(|time| start.elapsed() >= time);
            if left == 0 || late || last.is_some_and(|last| seed >= last) {
                next.fetch_sub(1, Ordering::Relaxed);
                return;
            }
            let result = round(seed, left);
            let mut done = done.lock();
            match result {
                Ok(counts) => done.0.merge(&counts),
                Err(violation) => {
                    stop.store(true, Ordering::Relaxed);
                    if done.1.as_ref().is_none_or(|other| violation.seed < other.seed) {
                        done.1 = Some(violation);
                    }
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..limits.threads.max(1) {
            scope.spawn(work);
        }
        work();
    });
    let (counts, violation) = done.into_inner();
    Outcome { counts, seeds: next.load(Ordering::Relaxed) - limits.seed, time: start.elapsed(), violation }
}

/// Runs a campaign in a test: prints what was done, with the seed.
///
/// # Panics
/// At the first broken promise.
#[allow(clippy::disallowed_methods, reason = "the environment of a test")]
pub fn test(campaign: Campaign, count: u64) {
    let number = |name: &str, default: u64| {
        std::env::var(name).ok().map_or(default, |text| text.parse().unwrap_or_else(|e| panic!("{name}={text}: {e}")))
    };
    let name = format!("KVASI_{}", campaign.name().replace('-', "_").to_uppercase());
    let limits =
        Limits { seed: number("KVASI_SEED", 1), count: number(&name, count), time: None, seeds: None, threads: 1 };
    let outcome = run(campaign, &limits, &Case::default());
    match outcome.violation {
        None => println!("{} from seed {}: {}", campaign.name(), limits.seed, outcome.counts),
        Some(violation) => panic!("{}: {violation}", campaign.name()),
    }
}
