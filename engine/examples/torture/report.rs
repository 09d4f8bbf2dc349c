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

pub(crate) fn collect(into: &Path, from: &[PathBuf], table: Option<&Path>) -> Result<(), String> {
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

/// Puts text into a Markdown file, between the marks of this name.
pub(crate) fn replace(file: &Path, name: &str, new: &str) -> Result<(), String> {
    let failed = |e: &dyn std::fmt::Display| format!("{}: {e}", file.display());
    let old = fs::read_to_string(file).map_err(|e| failed(&e))?;
    let (begin, end) = (format!("<!-- torture {name}: begin -->\n"), format!("<!-- torture {name}: end -->"));
    let from = old.find(&begin).ok_or_else(|| failed(&format!("there is no {begin:?}")))? + begin.len();
    let to = old[from..].find(&end).ok_or_else(|| failed(&format!("there is no {end:?}")))? + from;
    fs::write(file, format!("{}{new}{}", &old[..from], &old[to..])).map_err(|e| failed(&e))
}
