//! Tortures the engine on a simulated disk until something breaks or it is enough.
//!
//! `cargo run --release -p kvasi --features testing --example torture -- CAMPAIGN [--count N] [--seconds S] [--seed X]
//! [--json FILE]`, where CAMPAIGN is `crash`, `crash-in-recovery`, `errors`, `enospc`, `flip` or `truncate`. Prints counts;
//! at the first violation, its text with the line that replays it, and exits with 1.
#![allow(clippy::disallowed_methods, reason = "a command: it has a clock and writes its report")]

use std::process::ExitCode;
use std::time::Instant;

use kvasi::testing::{crash, damage, faults};

const USAGE: &str = "torture crash|crash-in-recovery|errors|enospc|flip|truncate \
                     [--count N] [--seconds S] [--seed X] [--json FILE]";

struct Arguments {
    campaign: String,
    count: u64,
    seconds: u64,
    seed: u64,
    json: Option<String>,
}

fn arguments() -> Result<Arguments, String> {
    let mut words = std::env::args().skip(1);
    let campaign = words.next().ok_or("no campaign is named")?;
    let mut arguments = Arguments { campaign, count: u64::MAX, seconds: u64::MAX, seed: 1, json: None };
    while let Some(name) = words.next() {
        let value = words.next().ok_or(format!("{name} wants a value"))?;
        let number = || value.parse::<u64>().map_err(|e| format!("{name} {value}: {e}"));
        match name.as_str() {
            "--count" => arguments.count = number()?,
            "--seconds" => arguments.seconds = number()?,
            "--seed" => arguments.seed = number()?,
            "--json" => arguments.json = Some(value),
            _ => return Err(format!("{name} is no option")),
        }
    }
    if arguments.count == u64::MAX && arguments.seconds == u64::MAX {
        arguments.seconds = 60;
    }
    Ok(arguments)
}

/// One workload's worth of a campaign: what was done, and the text of it.
fn round(campaign: &str, seed: u64, count: u64) -> Result<u64, String> {
    let in_recovery = campaign == "crash-in-recovery";
    match campaign {
        "crash" | "crash-in-recovery" => {
            let plan = crash::Plan {
                seed,
                images: count,
                steps: 60,
                each: if in_recovery { 4 } else { 24 },
                recovery_every: if in_recovery { 4 } else { 0 },
                workloads: 1,
            };
            let counts = crash::campaign(&plan).map_err(|violation| violation.to_string())?;
            Ok(if in_recovery { counts.recovery_images } else { counts.images })
        }
        "errors" => faults::errors(&faults::Plan { seed, runs: count.min(2000), steps: 40 }).map(|counts| counts.runs),
        "enospc" => faults::full(&faults::Plan { seed, runs: count.min(2000), steps: 40 }).map(|counts| counts.runs),
        "flip" => damage::flips(seed, count.min(20_000)),
        "truncate" => damage::cuts(seed, count.min(20_000)),
        _ => Err(format!("{campaign} is no campaign\n{USAGE}")),
    }
}

fn run(arguments: &Arguments) -> Result<(), String> {
    let start = Instant::now();
    // Violations are told by what the campaign returns; a panic it has caught needs no second text.
    std::panic::set_hook(Box::new(|_| {}));
    let (mut done, mut seed) = (0, arguments.seed);
    while done < arguments.count && start.elapsed().as_secs() < arguments.seconds {
        done += round(&arguments.campaign, seed, arguments.count - done).map_err(|what| {
            format!("{what}\nreplay: torture {} --seed {seed} --count {}", arguments.campaign, arguments.count - done)
        })?;
        seed += 1;
    }
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{}: {done} in {} seeds from {}, {seconds:.1} s",
        arguments.campaign,
        seed - arguments.seed,
        arguments.seed
    );
    if let Some(file) = &arguments.json {
        let text = format!(
            "{{\"campaign\":\"{}\",\"seed\":{},\"seeds\":{},\"count\":{done},\"seconds\":{seconds:.1},\"violations\":0}}\n",
            arguments.campaign,
            arguments.seed,
            seed - arguments.seed
        );
        std::fs::write(file, text).map_err(|e| format!("{file}: {e}"))?;
    }
    Ok(())
}

fn main() -> ExitCode {
    match arguments().and_then(|arguments| run(&arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(what) => {
            eprintln!("{what}");
            ExitCode::FAILURE
        }
    }
}
