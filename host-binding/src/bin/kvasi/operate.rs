//! The subcommands for operators: backup, restore, verify, stats. One call of the engine each.
//!
//! None of them changes the store that it is about; `backup` and `restore` make a new directory.

use crate::failure::Failure;
use crate::keys::{print, there};
use kvasi::{BackupReport, Error, ErrorKind, Options, Stats, Store, VerifyReport};
use std::fmt::Write;
use std::path::Path;
use std::process::ExitCode;

const FINDINGS: ExitCode = ExitCode::FAILURE;

pub(crate) fn backup(dir: &Path, to: &Path) -> Result<ExitCode, Failure> {
    let store = open(dir)?;
    let report = store.backup(to).map_err(|error| onto(dir, to, &error))?;
    made(&report, to)
}

pub(crate) fn restore(from: &Path, dir: &Path) -> Result<ExitCode, Failure> {
    there(from)?;
    let report = kvasi::restore(from, dir).map_err(|error| match error.kind() {
        ErrorKind::Corrupt => {
            Failure::new(format!("backup {}: {error}\n  nothing was restored: use another backup", from.display()))
        }
        _ => onto(from, dir, &error),
    })?;
    made(&report, dir)
}

pub(crate) fn verify(dir: &Path, json: bool) -> Result<ExitCode, Failure> {
    there(dir)?;
    let report = kvasi::verify(dir).map_err(|error| Failure::store_or_host(dir, &error))?;
    print(|out| out.write_all(if json { verify_json(&report) } else { verify_text(&report) }.as_bytes()))?;
    Ok(if report.findings.is_empty() && report.opens { ExitCode::SUCCESS } else { FINDINGS })
}

pub(crate) fn stats(dir: &Path, json: bool) -> Result<ExitCode, Failure> {
    let stats = open(dir)?.stats();
    let figures = figures(&stats);
    let text = if json {
        json_object(&figures) + "\n"
    } else {
        figures.iter().map(|(name, value)| format!("{name:16} {value}\n")).collect()
    };
    print(|out| out.write_all(text.as_bytes()))
}

/// The store to be looked at; no file of it is changed.
fn open(dir: &Path) -> Result<Store, Failure> {
    there(dir)?;
    Store::open_read_only(dir, Options::new()).map_err(|error| Failure::store_or_host(dir, &error))
}

/// What a backup or a restore could not do: the two directories are told apart by what is wrong.
fn onto(from: &Path, to: &Path, error: &Error) -> Failure {
    match error.kind() {
        ErrorKind::NoSpace => Failure::new(format!("{}: {error}\n  make room there", to.display())),
        ErrorKind::Invalid => Failure::new(error.to_string()),
        _ => Failure::store(from, error),
    }
}

fn made(report: &BackupReport, to: &Path) -> Result<ExitCode, Failure> {
    print(|out| writeln!(out, "{}: {report}", to.display()))
}

fn counts(report: &VerifyReport) -> Vec<(&'static str, u64)> {
    vec![
        ("files", report.files),
        ("bytes", report.bytes),
        ("segments", report.segments),
        ("commits", report.commits),
        ("records", report.records),
        ("keys", report.keys),
        ("runs", report.runs),
        ("blocks", report.blocks),
        ("leftover_files", report.leftover_files),
    ]
}

fn verify_text(report: &VerifyReport) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    for finding in &report.findings {
        let _ = writeln!(text, "{finding}");
    }
    for (name, count) in counts(report) {
        let _ = writeln!(text, "{name:16} {count}");
    }
    let _ = writeln!(text, "{:16} {}", "findings", report.findings.len());
    if !report.opens {
        text.push_str("the store does not open: restore a backup\n");
    } else if !report.findings.is_empty() {
        text.push_str("the store opens all the same, and repairs then what can be\n");
    }
    text
}

fn verify_json(report: &VerifyReport) -> String {
    let findings: Vec<String> = report
        .findings
        .iter()
        .map(|finding| {
            format!(
                "{{\"file\":{},\"offset\":{},\"kind\":{},\"what\":{}}}",
                quoted(&finding.file),
                finding.offset,
                quoted(&format!("{:?}", finding.kind)),
                quoted(&finding.what)
            )
        })
        .collect();
    let counts = json_object(&counts(report));
    let counts = counts.trim_end_matches('}');
    format!("{counts},\"opens\":{},\"findings\":[{}]}}\n", report.opens, findings.join(","))
}

fn figures(stats: &Stats) -> Vec<(&'static str, u64)> {
    vec![
        ("keys", stats.keys),
        ("segments", stats.segments),
        ("log_bytes", stats.log_bytes),
        ("live_bytes", stats.live_bytes),
        ("directory_bytes", stats.directory_bytes),
        ("runs", stats.runs),
        ("run_bytes", stats.run_bytes),
        ("unsynced_bytes", stats.unsynced_bytes),
    ]
}

/// Names that need no quoting, and numbers.
fn json_object(fields: &[(&str, u64)]) -> String {
    let fields: Vec<String> = fields.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
    format!("{{{}}}", fields.join(","))
}

/// A JSON string.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c < ' ' => {
                let _ = write!(quoted, "\\u{:04x}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_quoted_for_json() {
        assert_eq!(quoted("a\"b\\c\n\u{1}ä"), "\"a\\\"b\\\\c\\u000a\\u0001ä\"");
    }
}
