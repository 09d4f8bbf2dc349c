//! The campaign `seeded-bugs`: each fault in a process of its own, since it is there for the whole process, may hang it,
//! and may end it.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use kvasi::testing::counts::Counts;
use kvasi::testing::drive::Outcome;
use kvasi::testing::seeded;

use crate::{Hunt, report};

/// How one fault was found, as told by the process that looked for it.
struct Row {
    name: String,
    what: &'static str,
    /// Campaign, how much it had done, what it said; `None` if none has found it.
    found: Option<(String, String, String)>,
    seconds: f64,
}

/// Looks for one fault, and prints who found it.
pub(crate) fn one(name: &str, seconds: f64) -> Result<(), String> {
    let found = seeded::find(name, Duration::from_secs_f64(seconds)).ok_or("nobody has found it")?;
    let what: String = found.what.chars().map(|c| if c == '\n' || c == '\t' { ' ' } else { c }).take(160).collect();
    println!("{}\t{}\t{what}", found.campaign, found.done);
    Ok(())
}

fn hunt(name: &str, what: &'static str, seconds: f64) -> Result<Row, String> {
    let start = Instant::now();
    let me = std::env::current_exe().map_err(|e| e.to_string())?;
    let mut child = Command::new(me)
        .args(["seeded-bug", name, &seconds.to_string()])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| e.to_string())?;
    // A fault that hangs the engine is found by that.
    let mut hung = false;
    let status = loop {
        if let Some(status) = child.try_wait().map_err(|e| e.to_string())? {
            break status;
        }
        if start.elapsed().as_secs_f64() > 2.0 * seconds + 20.0 {
            hung = true;
            let _ = child.kill();
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let mut text = String::new();
    if let Some(mut out) = child.stdout.take() {
        let _ = std::io::Read::read_to_string(&mut out, &mut text);
    }
    let mut parts = text.trim_end().splitn(3, '\t').map(str::to_owned);
    let found = match (parts.next(), parts.next(), parts.next(), status.code()) {
        (Some(campaign), Some(done), Some(what), Some(0)) => Some((campaign, done, what)),
        _ if hung => Some(("any".to_owned(), "0".to_owned(), "it hangs".to_owned())),
        (.., None) => Some(("any".to_owned(), "0".to_owned(), format!("the process dies: {status}"))),
        _ => None,
    };
    Ok(Row { name: name.to_owned(), what, found, seconds: start.elapsed().as_secs_f64() })
}

pub(crate) fn run(hunt_for: &Hunt) -> Result<(), String> {
    let mut bugs = seeded::all();
    if !hunt_for.names.is_empty() {
        bugs.retain(|(name, _)| hunt_for.names.contains(name));
    }
    if let Some(n) = hunt_for.sample {
        // Every so manyth, from a start that the seed chooses.
        let step = (bugs.len() / n.max(1)).max(1);
        let from = hunt_for.seed as usize % step;
        bugs = bugs.into_iter().skip(from).step_by(step).take(n).collect();
    }
    let start = Instant::now();
    let threads = hunt_for.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let (left, rows) = (Mutex::new(bugs.clone()), Mutex::new(Vec::new()));
    let failed = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let next = left.lock().ok().and_then(|mut left| left.pop());
                    let Some((name, what)) = next else { return };
                    match hunt(&name, what, hunt_for.seconds) {
                        Ok(row) => {
                            let by = row.found.as_ref().map_or("NOBODY", |found| &found.0);
                            println!("{:<30} {by:<18} {:>6.1} s", row.name, row.seconds);
                            rows.lock().map(|mut rows| rows.push(row)).unwrap_or(());
                        }
                        Err(e) => failed.lock().map(|mut failed| *failed = Some(e)).unwrap_or(()),
                    }
                }
            });
        }
    });
    if let Some(e) = failed.into_inner().unwrap_or(None) {
        return Err(e);
    }
    let mut rows = rows.into_inner().unwrap_or_default();
    rows.sort_by_key(|row| bugs.iter().position(|(name, _)| *name == row.name));
    let missed: Vec<&str> = rows.iter().filter(|row| row.found.is_none()).map(|row| row.name.as_str()).collect();
    println!("{} of {} faults found", rows.len() - missed.len(), rows.len());
    if let Some(file) = &hunt_for.table {
        write_table(file, &rows)?;
    }
    if let Some(file) = &hunt_for.json {
        let mut counts = Counts::default();
        counts.add("faults", rows.len() as u64);
        counts.add("found", (rows.len() - missed.len()) as u64);
        let outcome = Outcome { counts, seeds: 1, time: start.elapsed(), violation: None };
        report::append(file, "seeded-bugs", hunt_for.seed, &outcome)?;
    }
    if missed.is_empty() { Ok(()) } else { Err(format!("not found: {}", missed.join(", "))) }
}

/// Rows of faults that were not looked for stay as they are.
fn write_table(file: &Path, rows: &[Row]) -> Result<(), String> {
    let old = std::fs::read_to_string(file).map_err(|e| format!("{}: {e}", file.display()))?;
    let mut text = "| fault | what it does | found by | after | seconds |\n|---|---|---|---|---|\n".to_owned();
    for (name, _) in seeded::all() {
        let row = rows.iter().find(|row| row.name == name).map(|Row { what, found, seconds, .. }| {
            let (by, after) = found.as_ref().map_or(("**nobody**", ""), |found| (&found.0, &found.1));
            format!("| {name} | {what} | {by} | {after} | {seconds:.1} |")
        });
        let before = || old.lines().find(|line| line.starts_with(&format!("| {name} |"))).map(str::to_owned);
        text.extend(row.or_else(before).map(|row| row + "\n"));
    }
    report::replace(file, "seeded-bugs", &text)
}
