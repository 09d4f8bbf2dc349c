//! The subcommands for operators: backup, restore, verify, stats. One call of the engine each.
//!
//! None of them changes the store that it is about; `backup` and `restore` make a new directory.

use crate::failure::Failure;
use crate::keys::{print, there};
use kvasi::{BackupReport, BucketStats, Error, ErrorKind, Finding, Options, Stats, Store, VerifyReport};
use serde_json::{Map, Value, json};
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
    let store = open(dir)?;
    let figures = figures(&store.stats());
    let buckets = buckets(&store).map_err(|error| Failure::store_or_host(dir, &error))?;
    let text = if json {
        let each = buckets.iter().map(|(name, BucketStats { keys, key_bytes, value_bytes, .. })| {
            json!({ "name": name, "keys": keys, "key_bytes": key_bytes, "value_bytes": value_bytes })
        });
        let each = Value::Array(each.collect());
        json_object(figures.into_iter().map(|(name, value)| (name, value.into())).chain([("buckets", each)]))
    } else {
        let figures = figures.iter().map(|(name, value)| format!("{name:16} {value}\n"));
        let each = buckets.iter().map(|(name, BucketStats { keys, key_bytes, value_bytes, .. })| {
            format!("bucket {name:?}: {keys} keys, {key_bytes} bytes of keys, {value_bytes} bytes of values\n")
        });
        figures.chain(each).collect()
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
    let found = |finding: &Finding| {
        let Finding { file, offset, kind, what, .. } = finding;
        json!({ "file": file, "offset": offset, "kind": format!("{kind:?}"), "what": what })
    };
    let findings: Vec<Value> = report.findings.iter().map(found).collect();
    let more = [("opens", report.opens.into()), ("findings", findings.into())];
    json_object(counts(report).into_iter().map(|(name, count)| (name, count.into())).chain(more))
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

/// What each bucket holds. Counting takes a look at every record.
fn buckets(store: &Store) -> Result<Vec<(String, BucketStats)>, kvasi::Error> {
    let mut buckets = Vec::new();
    for name in store.buckets()? {
        if let Some(bucket) = store.existing_bucket(&name)? {
            buckets.push((name, bucket.stats()?));
        }
    }
    Ok(buckets)
}

fn json_object(fields: impl IntoIterator<Item = (&'static str, Value)>) -> String {
    let fields: Map<String, Value> = fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    format!("{}\n", Value::Object(fields))
}
