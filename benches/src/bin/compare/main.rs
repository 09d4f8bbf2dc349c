//! kvasi and other engines at the same work.
//!
//! `compare --profile quick|full [--engines a,b] [--workloads x,y] --json FILE` measures: one process per engine, group of
//! workloads and repetition (the binary runs itself), engines taking turns; the median of the repetitions counts.
//! `compare report FILE` prints the table, with the ratio to the best peer that stores as durably, and writes a page with
//! plots. What is measured is in `workloads`, who is measured and with which settings in `engines`.

mod engines;
mod report;
mod workloads;

use clap::{Parser, Subcommand, ValueEnum};
use engines::Kind;
use kvasi_bench::{Result, median};
use report::Line;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use workloads::{Group, Scale};

/// Compares kvasi with other engines.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Verb>,
    #[command(flatten)]
    measure: Measure,
}

#[derive(Subcommand)]
enum Verb {
    /// Prints the table of a file of results and writes a page with plots beside it.
    Report {
        file: PathBuf,
        /// Where the page goes. Default: the file with the extension `html`.
        #[arg(long)]
        html: Option<PathBuf>,
    },
    /// One engine, one group: what the binary runs itself as.
    #[command(hide = true)]
    Child {
        engine: String,
        group: Group,
        dir: PathBuf,
        #[command(flatten)]
        measure: Measure,
    },
}

#[derive(clap::Args, Clone)]
struct Measure {
    /// How much.
    #[arg(long, value_enum, default_value_t = Profile::Quick)]
    profile: Profile,
    /// Engines, by name. Default: all that were built in.
    #[arg(long, value_delimiter = ',')]
    engines: Vec<String>,
    /// Workloads, by the beginning of their names. Default: all.
    #[arg(long, value_delimiter = ',')]
    workloads: Vec<String>,
    /// Where the results go, one JSON object a line.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Repetitions; the median counts.
    #[arg(long, default_value_t = 3)]
    repetitions: usize,
    /// Where the stores are made. Default: the system's temporary directory.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Keys, instead of the profile's.
    #[arg(long)]
    keys: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Profile {
    /// 200 k keys, fewer rows, a second a row.
    Quick,
    /// 1 M keys, every row.
    Full,
}

impl Measure {
    fn scale(&self) -> Scale {
        let mut scale = match self.profile {
            Profile::Quick => Scale::QUICK,
            Profile::Full => Scale::FULL,
        };
        scale.keys = self.keys.unwrap_or(scale.keys);
        scale
    }

    fn engines(&self) -> Result<Vec<Kind>> {
        let mut all = engines::all();
        if let Some(unknown) = self.engines.iter().find(|name| all.iter().all(|kind| kind.name != **name)) {
            let known: Vec<_> = all.iter().map(|kind| kind.name).collect();
            return Err(format!("no engine {unknown:?} in this build; there are {}", known.join(", ")).into());
        }
        all.retain(|kind| self.engines.is_empty() || self.engines.iter().any(|name| name == kind.name));
        Ok(all)
    }
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    match arguments.command {
        None => measure(&arguments.measure),
        Some(Verb::Report { file, html }) => {
            let lines = report::read(&file)?;
            report::print(&lines);
            let html = html.unwrap_or_else(|| file.with_extension("html"));
            report::write_page(&lines, &html)?;
            println!("\nplots: {}", html.display());
            Ok(())
        }
        Some(Verb::Child { engine, group, dir, measure }) => {
            let kinds = engines::all();
            let kind = kinds.iter().find(|kind| kind.name == engine).ok_or("no such engine")?;
            workloads::run(kind, group, &dir, measure.scale(), &measure.workloads)
        }
    }
}

fn measure(measure: &Measure) -> Result<()> {
    let kinds = measure.engines()?;
    let scale = measure.scale();
    let mut lines = vec![report::machine(scale)];
    lines.extend(kinds.iter().map(|kind| Line::Settings {
        engine: kind.name.into(),
        class_a: kind.gives.text().into(),
        compared: kind.gives.durable(),
        settings: kind.settings.into(),
    }));
    for line in &lines {
        println!("{line}");
    }

    let mut repeated: BTreeMap<(usize, String, usize), Vec<Line>> = BTreeMap::new();
    let mut order = Vec::new();
    let mut all = lines.clone();
    for repetition in 1..=measure.repetitions.max(1) {
        for group in Group::ALL {
            if !group.wanted(&measure.workloads) {
                continue;
            }
            for (number, kind) in kinds.iter().enumerate() {
                if group == Group::Sync && !kind.syncs || group == Group::Reopen && !kind.gives.durable() {
                    continue;
                }
                eprintln!("repetition {repetition}: {} {}", kind.name, group.name());
                let found = match run_group(kind, group, measure) {
                    Ok(found) => found,
                    Err(error) => {
                        let error = error.to_string();
                        eprintln!("{} {}: {error}", kind.name, group.name());
                        vec![Line::Failed { engine: kind.name.into(), group: group.name().into(), error }]
                    }
                };
                for line in found {
                    let (workload, threads) = line.place();
                    if !order.contains(&(workload.clone(), threads)) {
                        order.push((workload.clone(), threads));
                    }
                    repeated.entry((number, workload, threads)).or_default().push(line);
                }
            }
            // All engines take an hour and more: what there is so far is not lost with the rest.
            all.clone_from(&lines);
            for (workload, threads) in &order {
                for number in 0..kinds.len() {
                    if let Some(found) = repeated.get(&(number, workload.clone(), *threads)) {
                        all.push(report::middle(found.clone(), median)?);
                    }
                }
            }
            if let Some(path) = &measure.json {
                write_lines(&all, path)?;
            }
        }
    }

    println!();
    report::print(&all);
    let failed = all.iter().filter(|line| matches!(line, Line::Failed { .. })).count();
    if failed > 0 {
        return Err(format!("{failed} groups of workloads failed, see above").into());
    }
    Ok(())
}

fn write_lines(lines: &[Line], path: &Path) -> Result<()> {
    let mut file = std::io::BufWriter::new(std::fs::File::create(path)?);
    for line in lines {
        writeln!(file, "{}", serde_json::to_string(line)?)?;
    }
    Ok(file.flush()?)
}

/// One group on a fresh directory, in processes of its own.
fn run_group(kind: &Kind, group: Group, measure: &Measure) -> Result<Vec<Line>> {
    let dir = match &measure.dir {
        Some(dir) => tempfile::tempdir_in(dir)?,
        None => tempfile::tempdir()?,
    };
    let steps: &[Group] = match group {
        Group::Reopen => &[Group::ReopenLoad, Group::ReopenKill, Group::ReopenClean],
        _ => &[group],
    };
    let mut lines = Vec::new();
    for step in steps {
        lines.extend(run_process(kind, *step, dir.path(), measure)?);
    }
    Ok(lines)
}

fn run_process(kind: &Kind, group: Group, dir: &Path, measure: &Measure) -> Result<Vec<Line>> {
    let profile = measure.profile.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["child", kind.name, group.name()]).arg(dir).args(["--profile", &profile]);
    command.args(["--keys", &measure.scale().keys.to_string()]);
    if !measure.workloads.is_empty() {
        command.args(["--workloads", &measure.workloads.join(",")]);
    }
    let mut child: Child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut lines = Vec::new();
    let output = child.stdout.take().ok_or("the child has no output")?;
    for line in BufReader::new(output).lines() {
        let line = line?;
        if line == workloads::LOADED {
            // It waits for this.
            child.kill()?;
            child.wait()?;
            return Ok(lines);
        }
        lines.push(serde_json::from_str(&line)?);
    }
    let status = child.wait()?;
    if !status.success() {
        return Err(format!("the process ended with {status}").into());
    }
    Ok(lines)
}
