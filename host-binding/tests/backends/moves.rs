//! A component outgrows its machine and comes home: `kvasi copy` and one changed line of its configuration, nothing else.

#![allow(dead_code, reason = "used by whichever back ends this build has")]

use crate::servers::Server;
use std::path::Path;
use std::process::Command;

const COMPONENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/guests/prebuilt/visits-c.wasm");

fn kvasi(dir: &Path, args: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_kvasi")).args(args).current_dir(dir).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The component, as the configuration has it: what it says of this visit.
fn visit(dir: &Path, store: &str) -> String {
    let config = format!("store = {store:?}\n[buckets.\"\"]\nbucket = \"visits\"\n");
    std::fs::write(dir.join("kvasi.toml"), config).unwrap();
    kvasi(dir, &["run", COMPONENT, "--config", "kvasi.toml"])
}

pub(crate) fn there_and_back(server: &Server) {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let url = server.url.as_str();
    assert!(visit(dir, "data").contains("Visit 1."));
    assert!(visit(dir, "data").contains("Visit 2."));
    let told = kvasi(dir, &["copy", "data", url, "--bucket", "visits"]);
    assert!(told.contains("both sides have checksum"), "{told}");
    assert!(visit(dir, url).contains("Visit 3."));
    assert!(visit(dir, url).contains("Visit 4."));
    kvasi(dir, &["copy", url, "home", "--bucket", "visits"]);
    assert!(visit(dir, "home").contains("Visit 5."));
    assert!(visit(dir, "data").contains("Visit 3."), "what was left behind is as it was");
}
