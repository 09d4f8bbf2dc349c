//! `kvasi conformance` on a server that a test has started: every case passes, or the store has not what it asks.
//!
//! `KVASI_CONFORMANCE_DIR` names a directory that takes the report of each store: what `docs/conformance.md` is made of.

#![allow(dead_code, reason = "used by whichever back ends this build has")]

use std::process::Command;

/// Runs the command and holds its report against the cases that this store is known not to support.
pub(crate) fn passes(place: &str, target: &str, not_supported: &[&str]) {
    // Of what is thrown away at the end nothing need be deleted; that the command can is tested on Redis.
    let keep: &[&str] = if place == "redis" { &[] } else { &["--keep"] };
    let output =
        Command::new(env!("CARGO_BIN_EXE_kvasi")).args(["conformance", target, "--json"]).args(keep).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    let report: serde_json::Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {errors}"));
    if let Some(dir) = std::env::var_os("KVASI_CONFORMANCE_DIR") {
        std::fs::write(std::path::Path::new(&dir).join(place), &text).unwrap();
    }
    let cases = report["cases"].as_array().unwrap();
    let of = |result: &str| -> Vec<&str> {
        let such = cases.iter().filter(|case| case["result"] == result);
        such.map(|case| case["case"].as_str().unwrap()).collect()
    };
    let told: Vec<_> = cases.iter().filter(|case| case["result"] == "fail").collect();
    assert!(told.is_empty(), "{place}: {told:#?}");
    assert_eq!(of("not supported"), not_supported, "{place}");
    assert_eq!(output.status.code(), Some(0), "{errors}");
    assert!(cases.len() >= 59 && of("pass").len() + not_supported.len() == cases.len(), "{place}");
}

/// Cases that no service is asked: a large batch is written in pieces.
pub(crate) const IN_PIECES: &[&str] = &["batch_52_all_or_nothing_to_readers"];
/// And those whose keys come in no order.
pub(crate) const UNORDERED: &[&str] =
    &["list_20_order_where_the_back_end_promises_it", "batch_52_all_or_nothing_to_readers"];
