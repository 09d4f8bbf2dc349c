//! Reports: a line of JSON for each campaign run, and one file that they are added up in.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use kvasi::testing::drive::Outcome;
use serde::{Deserialize, Serialize};

/// One run of a campaign, as `--json` writes it: a line each.
#[derive(Serialize, Deserialize)]
struct Line {
    campaign: String,
    /// First seed, and how many.
    seed: u64,
    seeds: u64,
    seconds: f64,
    counts: BTreeMap<String, u64>,
    violations: u64,
}

/// All runs of a campaign.
#[derive(Default, Serialize, Deserialize)]
struct Total {
    runs: u64,
    seeds: u64,
    seconds: f64,
    counts: BTreeMap<String, u64>,
    violations: u64,
    /// Seeds run, as first and one past the last: none is counted twice.
    ranges: Vec<(u64, u64)>,
}

/// `reliability.json`.
#[derive(Default, Serialize, Deserialize)]
struct Report {
    campaigns: BTreeMap<String, Total>,
}

pub(crate) fn append(file: &Path, campaign: &str, seed: u64, outcome: &Outcome) -> Result<(), String> {
    let failed = |e: &dyn std::fmt::Display| format!("{}: {e}", file.display());
    let line = Line {
        campaign: campaign.to_owned(),
        seed,
        seeds: outcome.seeds,
        seconds: (outcome.time.as_secs_f64() * 10.0).round() / 10.0,
        counts: outcome.counts.iter().map(|(what, n)| (what.to_owned(), n)).collect(),
        violations: u64::from(outcome.violation.is_some()),
    };
    let text = serde_json::to_string(&line).map_err(|e| failed(&e))?;
    let mut file = fs::OpenOptions::new().create(true).append(true).open(file).map_err(|e| failed(&e))?;
    writeln!(file, "{text}").map_err(|e| e.to_string())
}

pub(crate) fn collect(
    into: &Path,
    from: &[PathBuf],
    table: Option<&Path>,
    summary: Option<&Path>,
) -> Result<(), String> {
    let read = |path: &Path| fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()));
    let mut report: Report = match fs::exists(into) {
        Ok(true) => serde_json::from_str(&read(into)?).map_err(|e| format!("{}: {e}", into.display()))?,
        _ => Report::default(),
    };
    for path in from {
        for line in read(path)?.lines() {
            let line: Line = serde_json::from_str(line).map_err(|e| format!("{}: {e}", path.display()))?;
            let total = report.campaigns.entry(line.campaign.clone()).or_default();
            let range = (line.seed, line.seed + line.seeds);
            if total.ranges.iter().any(|(from, to)| range.0 < *to && *from < range.1) {
                return Err(format!("{}: seeds {range:?} of {} are counted already", path.display(), line.campaign));
            }
            total.runs += 1;
            total.seeds += line.seeds;
            total.seconds += line.seconds;
            total.violations += line.violations;
            line.counts.into_iter().for_each(|(what, n)| *total.counts.entry(what).or_default() += n);
            total.ranges.push(range);
            join(&mut total.ranges);
        }
    }
    let text = serde_json::to_string_pretty(&report).map_err(|e| e.to_string())?;
    fs::write(into, text + "\n").map_err(|e| format!("{}: {e}", into.display()))?;
    if let Some(file) = summary {
        replace(file, "summary", &in_short(&report))?;
    }
    match table {
        Some(file) => replace(file, "collect", &markdown(&report)),
        None => {
            print!("{}", markdown(&report));
            Ok(())
        }
    }
}

/// Ranges that touch are one.
fn join(ranges: &mut Vec<(u64, u64)>) {
    ranges.sort_unstable();
    ranges.dedup_by(|next, before| {
        let touches = next.0 <= before.1;
        if touches {
            before.1 = before.1.max(next.1);
        }
        touches
    });
}

fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let groups: Vec<&str> = digits.as_bytes().rchunks(3).rev().map(|g| std::str::from_utf8(g).unwrap_or("")).collect();
    groups.join(",")
}

fn markdown(report: &Report) -> String {
    let mut text =
        "| campaign | what was done | violations | seeds | processor hours |\n|---|---|---|---|---|\n".to_owned();
    for (name, total) in &report.campaigns {
        let counts: Vec<_> =
            total.counts.iter().map(|(what, n)| format!("{} {}", grouped(*n), what.replace('_', " "))).collect();
        let hours = total.seconds / 3600.0;
        let (violations, seeds) = (total.violations, grouped(total.seeds));
        text += &format!("| {name} | {} | {violations} | {seeds} | {hours:.2} |\n", counts.join(", "));
    }
    text
}

/// What a README says of it: a campaign, what it counts, and what that is called.
const IN_SHORT: [(&str, &str, &str); 9] = [
    ("crash", "images", "images of power cuts"),
    ("crash-in-recovery", "recovery_images", "of cuts while an open repaired"),
    ("errors", "runs", "runs with failing calls"),
    ("every-bit", "damages_mapped", "bits flipped, all that a store has"),
    ("model", "calls", "calls against a map"),
    ("linearize", "linearized_calls", "calls of several threads"),
    ("kill", "kills", "processes killed"),
    ("small-memory", "reads", "reads where memory is scarce"),
    ("seeded-bugs", "found", "faults put in on purpose, and all found"),
];

fn in_short(report: &Report) -> String {
    let done = |(campaign, what, name): (&str, &str, &str)| {
        let n = *report.campaigns.get(campaign)?.counts.get(what)?;
        Some(format!("{} {name}", rounded(n)))
    };
    let mut done: Vec<_> = IN_SHORT.into_iter().filter_map(done).collect();
    let fuzzed = report.campaigns.iter().filter(|(name, _)| name.starts_with("fuzz "));
    let (targets, seconds) = fuzzed.fold((0, 0.0), |(n, sum), (_, total)| (n + 1, sum + total.seconds));
    done.push(format!("{:.1} hours of fuzzing of {targets} targets", seconds / 3600.0));
    let violations: u64 = report.campaigns.values().map(|total| total.violations).sum();
    format!("{}: {violations} promises broken.\n", done.join(", "))
}

/// Three digits of it.
fn rounded(n: u64) -> String {
    match n {
        ..10_000 => n.to_string(),
        10_000..1_000_000 => format!("{:.1} thousand", n as f64 / 1e3),
        1_000_000..100_000_000 => format!("{:.1} million", n as f64 / 1e6),
        100_000_000..1_000_000_000 => format!("{:.0} million", n as f64 / 1e6),
        1_000_000_000.. => format!("{:.2} billion", n as f64 / 1e9),
    }
}

/// Puts text into a Markdown file, between the marks of this name.
pub(crate) fn replace(file: &Path, name: &str, new: &str) -> Result<(), String> {
    let failed = |e: &dyn std::fmt::Display| format!("{}: {e}", file.display());
    let old = fs::read_to_string(file).map_err(|e| failed(&e))?;
    let (begin, end) = (format!("<!-- torture {name}: begin -->\n"), format!("<!-- torture {name}: end -->"));
    let from = old.find(&begin).ok_or_else(|| failed(&format!("there is no {begin:?}")))? + begin.len();
    let to = old[from..].find(&end).ok_or_else(|| failed(&format!("there is no {end:?}")))? + from;
    fs::write(file, format!("{}{new}{}", &old[..from], &old[to..])).map_err(|e| failed(&e))
}
