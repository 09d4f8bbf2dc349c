//! Results: one JSON object a line, the middle of several repetitions, the table, and the page with plots.

use crate::workloads::Scale;
use kvasi_bench::Result;
use plotters::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

/// The engine whose ratio the table shows.
const OURS: &str = "kvasi";

/// A line of the file of results.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Line {
    /// Where it ran.
    Machine { machine: String, processors: usize, keys: u64 },
    /// How an engine was opened; `compared` if its durability in class A is at least kvasi's.
    Settings { engine: String, class_a: String, compared: bool, settings: String },
    /// Operations over time; keys instead of operations for batches and listings.
    Row {
        engine: String,
        workload: String,
        threads: usize,
        ops_per_s: f64,
        p50_ns: u64,
        p99_ns: u64,
        p999_ns: u64,
        max_ns: u64,
    },
    /// A size or a time; less is better.
    Size { engine: String, workload: String, value: f64, unit: String },
    /// A group of workloads that broke off.
    Failed { engine: String, group: String, error: String },
}

impl Line {
    /// What the repetitions of a line have in common, beside the engine.
    pub(crate) fn place(&self) -> (String, usize) {
        match self {
            Line::Machine { .. } | Line::Settings { .. } => (String::new(), 0),
            Line::Row { workload, threads, .. } => (workload.clone(), *threads),
            Line::Size { workload, .. } => (workload.clone(), 0),
            Line::Failed { group, .. } => (format!("failed: {group}"), 0),
        }
    }

    fn rank(&self) -> f64 {
        match self {
            Line::Row { ops_per_s, .. } => *ops_per_s,
            Line::Size { value, .. } => *value,
            _ => 0.0,
        }
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Line::Machine { machine, processors, keys } => {
                write!(f, "machine      {machine}, {processors} processors; {keys} keys of 21 bytes")
            }
            Line::Settings { engine, class_a, settings, .. } => write!(f, "{engine:<12} {class_a}; {settings}"),
            other => write!(f, "{}", serde_json::to_string(other).map_err(|_| fmt::Error)?),
        }
    }
}

/// The machine line.
pub(crate) fn machine(scale: Scale) -> Line {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")).and_then(|rest| rest.split(": ").nth(1));
    let machine =
        format!("{} {}, {}", std::env::consts::OS, std::env::consts::ARCH, model.unwrap_or("unknown processor"));
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    Line::Machine { machine, processors, keys: scale.keys }
}

/// The repetition in the middle, whole; that of rates, with its latencies.
pub(crate) fn middle(mut repetitions: Vec<Line>, median: fn(&mut [f64]) -> Option<f64>) -> Result<Line> {
    let mut ranks: Vec<f64> = repetitions.iter().map(Line::rank).collect();
    let rank = median(&mut ranks).ok_or("a row without measurements")?;
    let at = repetitions.iter().position(|line| line.rank() == rank).ok_or("a row without a median")?;
    Ok(repetitions.swap_remove(at))
}

pub(crate) fn read(file: &Path) -> Result<Vec<Line>> {
    let text = std::fs::read_to_string(file)?;
    Ok(text.lines().filter(|line| !line.is_empty()).map(serde_json::from_str).collect::<std::result::Result<_, _>>()?)
}

/// One workload over all engines.
struct Compared {
    title: String,
    unit: String,
    more_is_better: bool,
    /// Engine, value, whether it is compared with.
    values: Vec<(String, f64, bool)>,
    /// p99.9 and longest of ours, in µs, where they were measured.
    tail_us: Option<(f64, f64)>,
}

impl Compared {
    /// Ours to the best peer's, and which that is.
    fn ratio(&self) -> Option<(f64, &str)> {
        let ours = self.values.iter().find(|(engine, ..)| engine == OURS)?.1;
        let peers = self.values.iter().filter(|(engine, _, compared)| engine != OURS && *compared);
        let best = peers.reduce(|best, next| if (next.1 > best.1) == self.more_is_better { next } else { best })?;
        (best.1 > 0.0).then(|| (ours / best.1, best.0.as_str()))
    }
}

fn compared(lines: &[Line]) -> (Vec<String>, Vec<Compared>) {
    let mut engines = Vec::new();
    let mut durable = BTreeMap::new();
    for line in lines {
        if let Line::Settings { engine, compared, .. } = line {
            engines.push(engine.clone());
            durable.insert(engine.clone(), *compared);
        }
    }
    let mut rows: Vec<Compared> = Vec::new();
    for line in lines {
        let (engine, title, unit, value, more_is_better) = match line {
            Line::Row { engine, workload, threads, ops_per_s, .. } => {
                (engine, format!("{workload} x{threads}"), "/s".to_owned(), *ops_per_s, true)
            }
            Line::Size { engine, workload, value, unit } => (engine, workload.clone(), unit.clone(), *value, false),
            _ => continue,
        };
        let at = rows.iter().position(|row| row.title == title).unwrap_or_else(|| {
            rows.push(Compared { title: title.clone(), unit, more_is_better, values: Vec::new(), tail_us: None });
            rows.len() - 1
        });
        // In the sync rows every engine is as durable as asked.
        let fair = durable.get(engine).copied().unwrap_or(true) || title.starts_with("sync-");
        rows[at].values.push((engine.clone(), value, fair));
        if let Line::Row { p999_ns, max_ns, .. } = line
            && engine == OURS
        {
            rows[at].tail_us = Some((*p999_ns as f64 / 1e3, *max_ns as f64 / 1e3));
        }
    }
    (engines, rows)
}

/// `1234567.0` as `1.23M`.
fn short(value: f64) -> String {
    match value.abs() {
        v if v >= 1e6 => format!("{:.2}M", value / 1e6),
        v if v >= 1e4 => format!("{:.0}k", value / 1e3),
        v if v >= 1e3 => format!("{:.1}k", value / 1e3),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// The table: a row a workload, a column an engine, and kvasi's ratio to the best peer that is as durable.
pub(crate) fn print(lines: &[Line]) {
    let (engines, rows) = compared(lines);
    print!("{:<20} {:<13}", "workload", "unit");
    for engine in &engines {
        print!(" {engine:>11}");
    }
    println!(" {:>20} {:>20}", "kvasi to best", "kvasi p99.9/max us");
    for row in &rows {
        print!("{:<20} {:<13}", row.title, row.unit);
        for engine in &engines {
            let value = row.values.iter().find(|(name, ..)| name == engine);
            print!(" {:>11}", value.map_or_else(|| "-".to_owned(), |(_, value, _)| short(*value)));
        }
        let ratio = row.ratio().map(|(ratio, peer)| format!("{ratio:.2}x {peer}")).unwrap_or_default();
        let tail = row.tail_us.map(|(p999, max)| format!("{}/{}", short(p999), short(max))).unwrap_or_default();
        println!(" {ratio:>20} {tail:>20}");
    }
    for line in lines {
        if let Line::Failed { engine, group, error } = line {
            println!("{engine} {group} failed: {error}");
        }
    }
}

/// A page that stands alone: settings, the table, a plot a workload.
pub(crate) fn write_page(lines: &[Line], path: &Path) -> Result<()> {
    let (engines, rows) = compared(lines);
    let mut page = String::from(
        "<!doctype html><meta charset=\"utf-8\"><title>kvasi compared</title><style>body{font:14px sans-serif;margin:2em}\
         table{border-collapse:collapse}td,th{padding:2px 8px;text-align:right;border-bottom:1px solid #ddd}\
         td:first-child,th:first-child{text-align:left}svg{margin:8px}</style><h1>kvasi compared</h1><ul>",
    );
    for line in lines {
        if matches!(line, Line::Machine { .. } | Line::Settings { .. } | Line::Failed { .. }) {
            page += &format!("<li>{}</li>", escape(&line.to_string()));
        }
    }
    page += "</ul><table><tr><th>workload</th><th>unit</th>";
    for engine in &engines {
        page += &format!("<th>{}</th>", escape(engine));
    }
    page += "<th>kvasi to best</th></tr>";
    for row in &rows {
        page += &format!("<tr><td>{}</td><td>{}</td>", escape(&row.title), escape(&row.unit));
        for engine in &engines {
            let value = row.values.iter().find(|(name, ..)| name == engine).map(|(_, value, _)| short(*value));
            page += &format!("<td>{}</td>", value.unwrap_or_default());
        }
        let ratio = row.ratio().map(|(ratio, peer)| format!("{ratio:.2}x {peer}")).unwrap_or_default();
        page += &format!("<td>{}</td></tr>", escape(&ratio));
    }
    page += "</table><p>Of rates more is better, of sizes and times less. Grey: not as durable, not compared with.</p>";
    for row in &rows {
        page += &plot(row)?;
    }
    std::fs::write(path, page)?;
    Ok(())
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

/// Bars from the left, one an engine.
fn plot(row: &Compared) -> Result<String> {
    let height = 40 + 24 * row.values.len() as u32;
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (460, height)).into_drawing_area();
        let title = format!("{} ({})", row.title, row.unit);
        area.draw(&Text::new(title, (8, 8), ("sans-serif", 15).into_font()))?;
        let longest = row.values.iter().map(|(_, value, _)| *value).fold(f64::MIN_POSITIVE, f64::max);
        for (at, (engine, value, compared)) in row.values.iter().enumerate() {
            let top = 34 + 24 * at as i32;
            let right = 110 + (260.0 * value.max(0.0) / longest) as i32;
            let colour = match (engine == OURS, compared) {
                (true, _) => RGBColor(204, 85, 0),
                (false, true) => RGBColor(70, 110, 160),
                (false, false) => RGBColor(185, 185, 185),
            };
            area.draw(&Text::new(engine.clone(), (8, top + 2), ("sans-serif", 13).into_font()))?;
            area.draw(&Rectangle::new([(110, top), (right, top + 17)], colour.filled()))?;
            area.draw(&Text::new(short(*value), (right + 6, top + 2), ("sans-serif", 13).into_font()))?;
        }
        area.present()?;
    }
    Ok(svg)
}
