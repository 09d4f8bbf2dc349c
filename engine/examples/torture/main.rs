//! Tortures the engine until something breaks or it is enough.
//!
//! `cargo run --release -p kvasi --features testing --example torture -- CAMPAIGN [--count N] [--seconds S] [--seed X]
//! [--threads T] [--json FILE]`. Prints counts; at the first broken promise what it was, made as small as it gets, with the
//! line that replays it, and exits with 1. `torture collect` adds up what `--json` has written.
#![allow(clippy::disallowed_methods, reason = "a command: it has a clock and writes its report")]

mod bursts;
mod dice;
mod full;
mod hunt;
mod kill;
mod memory;
mod model;
mod report;
mod small_memory;
mod soak;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use kvasi::testing::counts::{Case, Violation};
use kvasi::testing::drive::{self, Campaign, Limits, Outcome};
use kvasi::testing::seeded;
use kvasi::testing::throughout::{self, Extent};

#[global_allocator]
static ALLOCATOR: memory::Memory = memory::Memory;

/// Tortures the engine until something breaks or it is enough.
#[derive(Parser)]
#[command(name = "torture")]
struct Command {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Long runs of calls with deaths of the process in between, and a power cut at the end
    Calls(How),
    /// Cut the power at every moment of random workloads, in every way
    Crash(How),
    /// ... and again while the store is opened after that, and again
    CrashInRecovery(How),
    /// Cut the power in every sequence of up to four calls of fourteen kinds
    Exhaustive(How),
    /// Have every call to the disk fail, in every way, alone and in pairs
    Errors(How),
    /// Have the disk full after every number of bytes
    Enospc(How),
    /// Flip every bit of every file
    Flip(How),
    /// Cut files to every length, extend, lose and swap them
    Truncate(How),
    /// Flip every bit of a store of 128 KiB, with mappings and without; the seeds are its parts
    EveryBit(How),
    /// Flip a bit of every byte of a store of 32 KiB, and cut its files at every byte; the seeds are its parts
    EveryByte(How),
    /// Have sectors be unreadable, blank, old or from elsewhere
    Sectors(How),
    /// Cut the power and have calls fail while a backup is made
    Backup(How),
    /// Compare random calls with a map, through reopening
    Model(InDir),
    /// Have several threads call, and look for an order that explains what they saw; with deaths and power cuts
    Linearize(How),
    /// Drop futures of commits at every poll
    Cancel(How),
    /// Kill real processes in the middle of their writes, and while they open the store
    Kill {
        #[command(flatten)]
        in_dir: InDir,
        /// Cut the power of the file system by this command before each kill; the stores sync then. One thread
        #[arg(long, requires = "mend")]
        cut: Option<String>,
        /// Mount it again by this one
        #[arg(long, requires = "cut")]
        mend: Option<String>,
        /// Put this fault into the engine of the processes that are killed: it has to be found
        #[arg(long)]
        fault: Option<String>,
    },
    #[command(hide = true)]
    KillChild {
        dir: PathBuf,
        seed: u64,
        from: u64,
        #[arg(long)]
        syncs: bool,
        #[arg(long)]
        fault: Option<String>,
    },
    /// Fill the file system that `--dir` is on, which should be a small one, and see that deletes make it usable again
    FullDisk(InDir),
    /// Write in bursts, with rests between them and values up to megabytes, beside the background threads
    Bursts(InDir),
    /// Write and read stores larger than the memory that a control group allows, and have the kernel kill processes for want of it
    SmallMemory {
        #[command(flatten)]
        in_dir: InDir,
        /// The control group, which limits memory
        #[arg(long)]
        group: PathBuf,
        /// Size of a store
        #[arg(long, default_value_t = 400)]
        mebibytes: u64,
    },
    #[command(hide = true)]
    SmallMemoryChild(small_memory::Child),
    /// Run everything at once for long: nothing may grow that should not
    Soak(InDir),
    /// Put faults into the engine, one at a time, and see which campaign finds each
    SeededBugs(Hunt),
    #[command(hide = true)]
    SeededBug { name: String, seconds: f64 },
    /// Add reports up into one, and print what a README says of it
    Collect {
        /// The report that is added to; made if there is none
        into: PathBuf,
        /// Reports of campaigns
        from: Vec<PathBuf>,
        /// Writes the table of all campaigns into this Markdown file, between its marks
        #[arg(long)]
        table: Option<PathBuf>,
        /// Writes the most important counts into this one
        #[arg(long)]
        summary: Option<PathBuf>,
    },
}

/// How much, and of what.
#[derive(Args, Clone)]
struct How {
    /// At least so many, in what the campaign counts: images, runs, damages
    #[arg(long)]
    count: Option<u64>,
    /// End after so many seconds; 60 if there is neither this nor a count
    #[arg(long)]
    seconds: Option<f64>,
    /// The first seed; the others count up
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Seeds at most
    #[arg(long)]
    seeds: Option<u64>,
    /// Seeds at a time; all processors if not given
    #[arg(long)]
    threads: Option<usize>,
    /// Make these calls of the seed alone: 0-3,7
    #[arg(long)]
    calls: Option<String>,
    /// Have it go wrong here alone, as a violation says
    #[arg(long)]
    at: Option<String>,
    /// Add a line of JSON about it to this file
    #[arg(long)]
    json: Option<PathBuf>,
}

impl How {
    fn limits(&self) -> Limits {
        let seconds = match (self.count, self.seconds, self.seeds) {
            (None, None, None) => Some(60.0),
            (_, seconds, _) => seconds,
        };
        let threads = self.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
        let one = self.calls.is_some() || self.at.is_some();
        Limits {
            seed: self.seed,
            count: self.count.unwrap_or(u64::MAX),
            time: seconds.map(Duration::from_secs_f64),
            seeds: self.seeds.or(one.then_some(1)),
            threads: if one { 1 } else { threads },
        }
    }

    fn case(&self) -> Result<Case, String> {
        Ok(Case { calls: self.calls.as_deref().map(Case::parse_calls).transpose()?, at: self.at.clone() })
    }
}

#[derive(Args, Clone)]
struct InDir {
    #[command(flatten)]
    how: How,
    /// Where the stores are made; in memory if that can be
    #[arg(long)]
    dir: Option<PathBuf>,
}

impl InDir {
    fn dir(&self) -> PathBuf {
        let memory = PathBuf::from("/dev/shm");
        self.dir.clone().unwrap_or_else(|| if memory.is_dir() { memory } else { std::env::temp_dir() })
    }
}

#[derive(Args, Clone)]
struct Hunt {
    /// These faults only
    names: Vec<String>,
    /// Some of them, chosen by this number
    #[arg(long)]
    sample: Option<usize>,
    /// Chooses which are taken as the sample
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Most seconds for each
    #[arg(long, default_value_t = 120.0)]
    seconds: f64,
    /// Faults at a time; all processors if not given
    #[arg(long)]
    threads: Option<usize>,
    /// Add a line of JSON about it to this file
    #[arg(long)]
    json: Option<PathBuf>,
    /// Writes the table of who found what into this Markdown file, between its marks
    #[arg(long)]
    table: Option<PathBuf>,
}

/// Prints what was done and how to see again what went wrong, and reports it.
fn tell(name: &str, unit: &str, how: &How, outcome: &Outcome) -> Result<(), String> {
    let Outcome { counts, seeds, time, violation } = outcome;
    let seconds = time.as_secs_f64();
    println!("{name}: {counts}; {seeds} seeds from {}, {seconds:.1} s, {:.0} {unit}/s", how.seed, {
        counts.of(unit) as f64 / seconds.max(1e-9)
    });
    if let Some(file) = &how.json {
        report::append(file, name, how.seed, outcome)?;
    }
    match violation {
        None => Ok(()),
        Some(Violation { seed, case, what }) => {
            Err(format!("{what}\nreplay: torture {name} --seed {seed}{}", case.options()))
        }
    }
}

fn campaign(campaign: Campaign, how: &How) -> Result<(), String> {
    let outcome = drive::run(campaign, &how.limits(), &how.case()?);
    tell(campaign.name(), campaign.unit(), how, &outcome)
}

fn all_through(name: &str, extent: Extent, how: &How) -> Result<(), String> {
    let (limits, case) = (how.limits(), how.case()?);
    let end = 1 + extent.stretches()?;
    let outcome = drive::drive(&limits, "bytes", Some(end), |seed, _| throughout::round(extent, seed, &case));
    tell(name, "bytes", how, &outcome)
}

fn run(what: &What) -> Result<(), String> {
    match what {
        What::Calls(how) => campaign(Campaign::Calls, how),
        What::Crash(how) => campaign(Campaign::Crash, how),
        What::CrashInRecovery(how) => campaign(Campaign::CrashInRecovery, how),
        What::Exhaustive(how) => campaign(Campaign::Exhaustive, how),
        What::Errors(how) => campaign(Campaign::Errors, how),
        What::Enospc(how) => campaign(Campaign::Enospc, how),
        What::Flip(how) => campaign(Campaign::Flip, how),
        What::Truncate(how) => campaign(Campaign::Truncate, how),
        What::EveryBit(how) => all_through("every-bit", Extent::Bits, how),
        What::EveryByte(how) => all_through("every-byte", Extent::Bytes, how),
        What::Sectors(how) => campaign(Campaign::Sectors, how),
        What::Backup(how) => campaign(Campaign::Backup, how),
        What::Linearize(how) => campaign(Campaign::Linearize, how),
        What::Cancel(how) => campaign(Campaign::Cancel, how),
        What::Model(in_dir @ InDir { how, .. }) => {
            let dir = in_dir.dir();
            let outcome = drive::drive(&how.limits(), "calls", None, |seed, _| model::round(seed, &dir));
            tell("model", "calls", how, &outcome)
        }
        What::Kill { in_dir: in_dir @ InDir { how, .. }, cut, mend, fault } => {
            let dir = in_dir.dir();
            let cut = cut.as_deref().zip(mend.as_deref()).map(|(cut, mend)| kill::Cut { cut, mend });
            let fault = fault.as_deref();
            let (name, unit, threads) = match cut {
                Some(_) => ("power-cut", "power_cuts", 1),
                None => ("kill", "kills", how.limits().threads),
            };
            let limits = Limits { threads, ..how.limits() };
            let outcome = drive::drive(&limits, unit, None, |seed, _| kill::round(seed, &dir, cut, fault));
            tell(name, unit, how, &outcome)
        }
        What::KillChild { dir, seed, from, syncs, fault } => {
            fault.as_deref().into_iter().for_each(seeded::put);
            kill::child(dir, *seed, *from, *syncs)
        }
        What::FullDisk(in_dir @ InDir { how, .. }) => {
            // Several would be in each other's way.
            let (limits, dir) = (Limits { threads: 1, ..how.limits() }, in_dir.dir());
            let outcome = drive::drive(&limits, "rounds", None, |seed, _| full::round(seed, &dir));
            tell("full-disk", "rounds", how, &outcome)
        }
        What::Bursts(in_dir @ InDir { how, .. }) => {
            let dir = in_dir.dir();
            let outcome = drive::drive(&how.limits(), "rounds", None, |seed, _| bursts::round(seed, &dir));
            tell("bursts", "rounds", how, &outcome)
        }
        What::SmallMemory { in_dir: in_dir @ InDir { how, .. }, group, mebibytes } => {
            let (limits, dir, bytes) = (Limits { threads: 1, ..how.limits() }, in_dir.dir(), mebibytes << 20);
            let round = |seed, _| small_memory::round(seed, &dir, group, bytes);
            let outcome = drive::drive(&limits, "kills", None, round);
            tell("small-memory", "kills", how, &outcome)
        }
        What::SmallMemoryChild(child) => small_memory::child(child),
        What::Soak(in_dir @ InDir { how, .. }) => {
            let dir = in_dir.dir();
            let outcome =
                drive::drive(&Limits { threads: 1, ..how.limits() }, "rounds", None, |seed, _| soak::round(seed, &dir));
            tell("soak", "rounds", how, &outcome)
        }
        What::SeededBugs(hunt) => hunt::run(hunt),
        What::SeededBug { name, seconds } => hunt::one(name, *seconds),
        What::Collect { into, from, table, summary } => {
            report::collect(into, from, table.as_deref(), summary.as_deref())
        }
    }
}

fn main() -> ExitCode {
    let command = Command::parse();
    // Violations are told by what the campaign returns; a panic it has caught needs no second text.
    std::panic::set_hook(Box::new(|_| {}));
    match run(&command.what) {
        Ok(()) => ExitCode::SUCCESS,
        Err(what) => {
            eprintln!("{what}");
            ExitCode::FAILURE
        }
    }
}
