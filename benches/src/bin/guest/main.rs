//! What a call costs a guest: one component's loops against `wasmtime-wasi-keyvalue`, SQLite and kvasi, in one process.
//!
//! `cargo run --release -p kvasi-bench --bin guest -- [--json FILE] [--slices N] [--dir DIR] [--rows get,set]`
//!
//! Short slices of all hosts take turns, so that whatever else the machine does hits all alike; medians of the thread's
//! processor time per call, and ratios. Every slice is checked by what the guest counted. `floor` is a host of the same
//! signatures that does nothing: what is left above it is ours to save. Then sets that are kept on disk, beside SQLite: see `sets`. What we
//! mean to reach stands beside each figure.

mod bounds;
mod guest;
mod hosts;
mod sets;
mod sqlite;

use bounds::Bound;
use clap::Parser;
use guest::{Call, Class, Run};
use hosts::Hosts;
use kvasi::{Durability, Options, Store};
use kvasi_bench::{Result, clock, median};
use serde::Serialize;
use std::io::Write;
use std::path::PathBuf;

/// Compares the bindings, seen from inside a guest.
#[derive(Parser)]
struct Arguments {
    /// Also write one JSON object a row and host to this file.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Slices of each host and row; the median counts.
    #[arg(long, default_value_t = 41)]
    slices: usize,
    /// Where the stores are made. Default: the system's temporary directory.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Only rows whose name begins with one of these.
    #[arg(long, value_delimiter = ',')]
    rows: Vec<String>,
    /// Only these hosts (for a profiler): peer, kvasi, memory, floor, million.
    #[arg(long, value_delimiter = ',', default_values = ["peer", "kvasi", "memory", "floor", "million"])]
    hosts: Vec<String>,
    /// Leave out the store of 1 M keys.
    #[arg(long)]
    small: bool,
    /// So many calls a slice, not timed: for a profiler that counts instructions.
    #[arg(long)]
    calls: Option<u32>,
    /// Turns of each host in the rows beside SQLite, half a second each; 0 leaves those rows out.
    #[arg(long, default_value_t = 5)]
    turns: usize,
}

/// Keys of 10,000-key stores; those of larger values are fewer, so that the peer fits in memory twice (its `open` copies
/// the map).
const SMALL: Class = Class { first: 0, count: 10_000, value_bytes: 100 };
const PAGE: Class = Class { first: 2_000_000, count: 10_000, value_bytes: 4 << 10 };
const LARGE: Class = Class { first: 3_000_000, count: 1_000, value_bytes: 64 << 10 };
const HUGE: Class = Class { first: 4_000_000, count: 64, value_bytes: 1 << 20 };
const MILLION: Class = Class { first: 0, count: 1_000_000, value_bytes: 100 };

/// Processor time that one slice should take.
const SLICE_NS: f64 = 2.5e6;

struct Row {
    name: &'static str,
    call: Call,
    class: Class,
    /// What the per-call time is divided by.
    per_call: u32,
    /// Most calls in a slice: where each leaves bytes behind.
    calls_max: u32,
}

#[derive(Serialize)]
struct Line<'a> {
    row: &'a str,
    host: &'a str,
    median_ns: f64,
    min_ns: f64,
    ratio_to_peer: Option<f64>,
    #[serde(flatten)]
    bound: Option<Bound>,
    within: Option<bool>,
}

/// The table, and the file of results.
struct Report(Option<std::fs::File>);

impl Report {
    /// One host of a row. `base` is the peer's median.
    fn line(&mut self, row: &str, host: &str, median_ns: f64, min_ns: f64, base: Option<f64>) -> Result<()> {
        let ratio_to_peer = base.map(|base| median_ns / base);
        let bound = bounds::of(row, host);
        let within = bound.and_then(|bound| bound.holds(median_ns, ratio_to_peer));
        let ratio = ratio_to_peer
            .map_or(String::new(), |ratio| if ratio < 0.01 { format!("{ratio:.5}x") } else { format!("{ratio:.2}x") });
        let bound_text = bound.map_or(String::new(), |bound| bound.to_string());
        let verdict = bounds::verdict(within);
        println!("{row:<18} {host:<8} {median_ns:>10.1} {min_ns:>10.1} {ratio:>9} {bound_text:>10} {verdict}");
        self.write(&Line { row, host, median_ns, min_ns, ratio_to_peer, bound, within })
    }

    fn write(&mut self, line: &impl Serialize) -> Result<()> {
        if let Some(file) = &mut self.0 {
            writeln!(file, "{}", serde_json::to_string(line)?)?;
        }
        Ok(())
    }
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let hosts = Hosts::new()?;
    let dir = match &arguments.dir {
        Some(dir) => tempfile::tempdir_in(dir)?,
        None => tempfile::tempdir()?,
    };
    let options = || Options::new().durability(Durability::Os);
    let small = Store::open(dir.path().join("small"), options())?;
    let large = Store::open(dir.path().join("large"), options())?;
    let mut report = Report(arguments.json.as_ref().map(std::fs::File::create).transpose()?);

    println!("ns of thread CPU time per call (per key for get-many): median (min) of {} slices", arguments.slices);
    println!("wasmtime 48, concurrency_support(false); kvasi durability Os; 21-byte keys, random order");
    println!(
        "peer: wasmtime-wasi-keyvalue 48, a HashMap; kvasi: on disk, 21 k keys; memory: the same engine without files;"
    );
    println!("floor: a host that does nothing; million: kvasi on disk with 1 M keys\n");
    println!("{:<18} {:<8} {:>10} {:>10} {:>9} {:>10}", "row", "host", "median", "min", "to peer", "at most");

    let rows = rows();
    let wanted =
        |row: &Row| arguments.rows.is_empty() || arguments.rows.iter().any(|r| row.name.starts_with(r.as_str()));
    let rows: Vec<Row> = rows.into_iter().filter(wanted).collect();
    let all = [SMALL, PAGE, LARGE, HUGE];
    let mut disk = hosts.kvasi(&small, &all)?;
    let mut disk_million =
        if arguments.small { None } else { Some(hosts.kvasi(&large, &[MILLION, PAGE, LARGE, HUGE])?) };

    for row in &rows {
        let class = row.class;
        if row.call == Call::Request {
            let (mut peer, mut kvasi) = (hosts.peer_requests(&[class])?, hosts.kvasi_requests(&small)?);
            let mut runs: Vec<(&str, &mut dyn Run, Class)> =
                vec![("peer", &mut *peer, class), ("kvasi", &mut *kvasi, class)];
            runs.retain(|(host, ..)| arguments.hosts.iter().any(|wanted| wanted == host));
            told(row, &measure(row, &mut runs, &arguments)?, &mut report)?;
            continue;
        }
        let mut peer = hosts.peer(&[class])?;
        let memory = Store::in_memory(Options::new())?;
        let mut in_memory = hosts.kvasi(&memory, &[class])?;
        let mut floor = hosts.floor(class.value_bytes)?;
        let mut runs: Vec<(&str, &mut dyn Run, Class)> = vec![
            ("peer", &mut *peer, class),
            ("kvasi", &mut *disk, class),
            ("memory", &mut *in_memory, class),
            ("floor", &mut *floor, class),
        ];
        if let Some(million) = &mut disk_million {
            // Its small keys are a million; the others are the same.
            let class = if class.value_bytes == 100 { MILLION } else { class };
            runs.push(("million", &mut **million, class));
        }
        runs.retain(|(host, ..)| arguments.hosts.iter().any(|wanted| wanted == host));
        told(row, &measure(row, &mut runs, &arguments)?, &mut report)?;
    }
    drop((disk, disk_million));
    small.close()?;
    large.close()?;
    let sets_wanted = arguments.rows.is_empty() || arguments.rows.iter().any(|row| row.starts_with("kept"));
    if arguments.turns > 0 && sets_wanted {
        sets::compare(&hosts, dir.path(), arguments.turns, &mut report)?;
    }
    Ok(())
}

/// Prints a row, and of the first of them what is ours in it.
fn told(row: &Row, measured: &[(&str, f64, f64)], report: &mut Report) -> Result<()> {
    let of = |wanted: &str| measured.iter().find(|(host, ..)| *host == wanted).map(|(_, median, min)| (*median, *min));
    let base = of("peer").map(|(median, _)| median);
    for (host, median_ns, min_ns) in measured {
        report.line(row.name, host, *median_ns, *min_ns, base.filter(|_| *host != "peer"))?;
    }
    if row.name == bounds::OWN_WORK_OF
        && let (Some(ours), Some(floor)) = (of("kvasi"), of("floor"))
    {
        report.line(bounds::OWN_WORK, "kvasi", ours.0 - floor.0, ours.1 - floor.1, None)?;
    }
    Ok(())
}

fn rows() -> Vec<Row> {
    let row = |name, call, class| Row { name, call, class, per_call: 1, calls_max: u32::MAX };
    vec![
        row("key alone", Call::Keys, SMALL),
        row("get 100 B", Call::Get, SMALL),
        row("get 4 KiB", Call::Get, PAGE),
        row("get 64 KiB", Call::Get, LARGE),
        row("get 1 MiB", Call::Get, HUGE),
        row("exists", Call::Exists, SMALL),
        row("open + drop", Call::Open, SMALL),
        Row { per_call: 100, ..row("get-many 100x100 B", Call::GetMany, SMALL) },
        row("list page", Call::List, SMALL),
        row("request", Call::Request, SMALL),
        // Last: these leave a log behind.
        row("set 100 B", Call::Set, SMALL),
        Row { calls_max: 200, ..row("set 64 KiB", Call::Set, LARGE) },
    ]
}

/// Slices of all hosts in turn; for each its median and its minimum per call.
fn measure<'a>(
    row: &Row,
    runs: &mut [(&'a str, &mut dyn Run, Class)],
    arguments: &Arguments,
) -> Result<Vec<(&'a str, f64, f64)>> {
    if let Some(calls) = arguments.calls {
        for _ in 0..arguments.slices {
            runs.iter_mut().try_for_each(|(host, run, class)| counted(row, host, *run, *class, calls))?;
        }
        return Ok(Vec::new());
    }
    let mut calls = Vec::with_capacity(runs.len());
    for (host, run, class) in runs.iter_mut() {
        // Warm up, and find how many calls make a slice.
        let mut n = 4;
        loop {
            let ns = slice(row, host, *run, *class, n)? * f64::from(n) * f64::from(row.per_call);
            if ns >= SLICE_NS / 4.0 || n >= row.calls_max / 2 {
                let fit = f64::from(n) * SLICE_NS / ns;
                calls.push((fit.max(1.0) as u32).min(row.calls_max));
                break;
            }
            n *= 2;
        }
    }
    let mut measured = vec![Vec::with_capacity(arguments.slices); runs.len()];
    for _ in 0..arguments.slices {
        for (((host, run, class), &calls), measured) in runs.iter_mut().zip(&calls).zip(&mut measured) {
            measured.push(slice(row, host, *run, *class, calls)?);
        }
    }
    let summed = runs.iter().zip(&mut measured).map(|((host, ..), measured)| {
        let median = median(measured).unwrap_or(f64::NAN);
        (*host, median, measured.first().copied().unwrap_or(f64::NAN))
    });
    Ok(summed.collect())
}

/// Nanoseconds a call.
fn slice(row: &Row, host: &str, run: &mut dyn Run, class: Class, calls: u32) -> Result<f64> {
    let before = clock::thread();
    counted(row, host, run, class, calls)?;
    let spent = clock::thread() - before;
    Ok(spent.as_nanos() as f64 / f64::from(calls) / f64::from(row.per_call))
}

/// Makes the calls. Fails if the guest did not find what is there.
fn counted(row: &Row, host: &str, run: &mut dyn Run, class: Class, calls: u32) -> Result<()> {
    let counted = run.run(row.call, calls, class)?;
    let per_call = match row.call {
        Call::Keys => 0,
        Call::Exists | Call::Set | Call::Open => 1,
        Call::Get | Call::Request => u64::from(class.value_bytes),
        Call::GetMany => 100 * u64::from(class.value_bytes),
        // wasmtime's crate answers all keys at once, whatever the cursor.
        Call::List if host == "peer" => u64::from(class.count),
        Call::List => 1000,
    };
    if counted != per_call * u64::from(calls) {
        return Err(format!("{}, {host}: {counted} counted, {} expected", row.name, per_call * u64::from(calls)).into());
    }
    Ok(())
}
