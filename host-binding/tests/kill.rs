//! `kill -9` in the middle of a guest's loop of acknowledged sets loses none of them.
//!
//! The guest says `acked N` on standard output after the set of key N returned; whatever of that reached the pipe before
//! the process died must be in the store. Three rounds on one store: each also opens what the one before left.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

const ROUNDS: usize = 3;

fn kvasi(store: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvasi"));
    command.current_dir(store.parent().unwrap()).env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR"));
    command
}

/// Runs the loop, kills it after `acks` acknowledgements, and gives how many there were in all.
fn killed_run(store: &Path, durability: &str, prefix: &str, acks: usize) -> usize {
    let mut child = kvasi(store)
        .arg("run")
        .arg(format!("{}/guests/prebuilt/probe-c.wasm", env!("CARGO_MANIFEST_DIR")))
        .args(["--durability", durability, "--store"])
        .arg(store)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    write!(child.stdin.take().unwrap(), "open 0 %\nset-acked 0 {prefix} 100000000\n").unwrap();
    let mut acked = 0;
    for line in BufReader::new(child.stdout.take().unwrap()).split(b'\n') {
        let line = String::from_utf8(line.unwrap()).unwrap();
        if line == format!("acked {acked}") {
            acked += 1;
        }
        if acked == acks {
            // SIGKILL; the loop goes on to read what was acknowledged until then.
            child.kill().unwrap();
        }
    }
    child.wait().unwrap();
    assert!(acked >= acks, "the guest ended by itself after {acked}");
    acked
}

fn acknowledged_sets_survive(durability: &str, acks: usize) {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let mut rounds = Vec::new();
    for round in 0..ROUNDS {
        let prefix = format!("r{round}-");
        rounds.push((killed_run(&store, durability, &prefix, acks), prefix));
    }
    let listed = kvasi(&store).args(["list", "--store"]).arg(&store).output().unwrap();
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    let keys: BTreeSet<&str> = std::str::from_utf8(&listed.stdout).unwrap().lines().collect();
    for (acked, prefix) in &rounds {
        for i in 0..*acked {
            assert!(keys.contains(format!("{prefix}{i}").as_str()), "{prefix}{i} of {acked} acknowledged is lost");
        }
        for i in [0, acked / 2, acked - 1] {
            let got = kvasi(&store).args(["get", &format!("{prefix}{i}"), "--store"]).arg(&store).output().unwrap();
            assert_eq!(String::from_utf8(got.stdout).unwrap(), i.to_string());
        }
    }
    // Beyond what was acknowledged there may be the one set that was under way.
    let acked: usize = rounds.iter().map(|(acked, _)| acked).sum();
    assert!(keys.len() <= acked + ROUNDS, "{} keys, {acked} acknowledged", keys.len());
}

#[test]
fn acknowledged_sets_survive_kill_9_os() {
    acknowledged_sets_survive("os", 3000);
}

#[test]
fn acknowledged_sets_survive_kill_9_sync() {
    acknowledged_sets_survive("sync", 100);
}
