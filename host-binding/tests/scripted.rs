//! The example in Python and in JavaScript prints what its twins in C and Rust print, over the store that they left.
//!
//! The two are 18 and 12 MB, so they are not committed: `host-binding/guests/rebuild.sh --scripted` builds them, and `KVASI_SCRIPTED`
//! names the folder where they are. Without that variable a test says so and passes: the command that tests are built with is not
//! optimised, and would compile each of the two for minutes. `KVASI_COMMAND` names one that is.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::Command;

fn guests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("guests")
}

/// Visits by these guests in turn, over one store: what each printed.
fn visits(guests: &[PathBuf]) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    let kvasi = std::env::var_os("KVASI_COMMAND").unwrap_or_else(|| env!("CARGO_BIN_EXE_kvasi").into());
    let visit = |(guest, name): (&PathBuf, &str)| {
        let mut command = Command::new(&kvasi);
        command.current_dir(dir.path()).env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR"));
        let output = command.arg("run").arg(guest).args(["--", name]).output().unwrap();
        assert!(output.status.success(), "{}: {}", guest.display(), String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    guests.iter().zip(["ada", "blaise", "ada"]).map(visit).collect()
}

fn agrees_with_its_twins(name: &str) {
    let Some(folder) = std::env::var_os("KVASI_SCRIPTED").map(PathBuf::from) else {
        println!("skipped: KVASI_SCRIPTED names no folder with {name}.wasm; guests/README.md says how to build it");
        return;
    };
    let guest = folder.join(format!("{name}.wasm"));
    assert!(guest.exists(), "there is no {}", guest.display());
    let (c, rust) = (guests().join("prebuilt/visits-c.wasm"), guests().join("prebuilt/visits-rust.wasm"));
    let expected = visits(&[c.clone(), rust.clone(), c.clone()]);
    assert_eq!(visits(&[guest.clone(), rust, guest]), expected);
}

#[test]
fn python_agrees_with_its_twins() {
    agrees_with_its_twins("visits-python");
}

#[test]
fn javascript_agrees_with_its_twins() {
    agrees_with_its_twins("visits-js");
}
