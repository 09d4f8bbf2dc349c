//! The command `kvasi` as a shell sees it: exit codes, standard streams, and what it says when something is wrong.
//!
//! Every failure exits with 2, names the file or the store in question, and says what to do.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "watcher/silent.rs"]
mod silent;

use silent::{async_watcher, watcher};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

struct Shell {
    dir: TempDir,
}

impl Shell {
    fn new() -> Shell {
        Shell { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    /// Writes a component, given as text, and gives its path.
    fn component(&self, name: &str, wat: &str) -> String {
        self.file(name, &wat::parse_str(wat).unwrap())
    }

    fn file(&self, name: &str, bytes: &[u8]) -> String {
        std::fs::write(self.dir.path().join(name), bytes).unwrap();
        self.path(name)
    }

    fn run_with(&self, args: &[&str], input: &[u8]) -> Output {
        let mut child = Command::new(env!("CARGO_BIN_EXE_kvasi"))
            .args(args)
            .current_dir(self.dir.path())
            .env("XDG_CACHE_HOME", self.path("cache"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A child that fails early reads nothing: that is its right.
        let _ = child.stdin.take().unwrap().write_all(input);
        child.wait_with_output().unwrap()
    }

    /// Runs a command and gives what it printed; asserts its exit code and that it did not complain.
    #[track_caller]
    fn ok(&self, args: &[&str], code: i32) -> String {
        let output = self.run_with(args, b"");
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", text(&output.stderr));
        assert_eq!(text(&output.stderr), "", "{args:?}");
        text(&output.stdout)
    }

    /// Runs a command that cannot be done and asserts that its complaint has all of `words`.
    #[track_caller]
    fn fails(&self, args: &[&str], words: &[&str]) {
        let output = self.run_with(args, b"");
        let complaint = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {complaint}");
        assert_eq!(text(&output.stdout), "", "{args:?}");
        for word in words {
            assert!(complaint.contains(word), "{args:?}: no {word:?} in: {complaint}");
        }
        assert!(!complaint.contains("panicked"), "{complaint}");
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn guest(name: &str) -> String {
    format!("{}/guests/prebuilt/{name}.wasm", env!("CARGO_MANIFEST_DIR"))
}

/// A command whose `run` returns `ok` (0) or `err` (1).
fn returning(result: u32) -> String {
    format!(
        r#"(component
            (core module $m (func (export "run") (result i32) i32.const {result}))
            (core instance $i (instantiate $m))
            (func $run (result (result)) (canon lift (core func $i "run")))
            (instance (export "wasi:cli/run@0.2.0") (export "run" (func $run))))"#
    )
}

const EXITING: &str = r#"(component
    (import "wasi:cli/exit@0.2.0" (instance $exit (export "exit" (func (param "status" (result))))))
    (core func $exit_core (canon lower (func $exit "exit")))
    (core module $m
        (import "host" "exit" (func $exit (param i32)))
        (func (export "run") (result i32) (call $exit (i32.const 1)) unreachable))
    (core instance $i (instantiate $m (with "host" (instance (export "exit" (func $exit_core))))))
    (func $run (result (result)) (canon lift (core func $i "run")))
    (instance (export "wasi:cli/run@0.2.0") (export "run" (func $run))))"#;

#[test]
fn a_second_run_finds_what_the_first_stored() {
    for name in ["visits-c", "visits-rust"] {
        let shell = Shell::new();
        let first = shell.ok(&["run", &guest(name)], 0);
        let second = shell.ok(&["run", &guest(name)], 0);
        assert!(first.contains("Visit 1.") && second.contains("Visit 2."), "{first}{second}");
        assert!(Path::new(&shell.path("kvasi-data")).is_dir());
        assert_eq!(shell.ok(&["get", "visits/count"], 0), "2");
    }
}

/// Files of code that wasmtime has kept below `dir`.
#[cfg(target_os = "linux")]
fn kept(dir: &Path) -> Vec<std::path::PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let paths = entries.map(|entry| entry.unwrap().path());
    paths
        .flat_map(|path| if path.is_dir() { kept(&path) } else { vec![path] })
        .filter(|path| path.extension().is_none())
        .collect()
}

#[test]
#[cfg(target_os = "linux")]
fn a_second_start_compiles_nothing() {
    const KEPT: &str = "the component was compiled, and its code is kept";
    const BEFORE: &str = "the component was compiled before";
    let shell = Shell::new();
    let component = guest("visits-c");
    let run = |more: &[&str], told: &str| {
        let output = shell.run_with(&[&["--log-level", "debug", "run", &component], more].concat(), b"");
        let log = text(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{log}");
        assert!(log.contains(told), "no {told:?} in: {log}");
    };
    let cache = shell.dir.path().join("cache");
    run(&["--no-cache"], "the component was compiled");
    assert!(!cache.exists(), "nothing is kept where nothing is to be");
    run(&[], KEPT);
    let [code] = kept(&cache).try_into().expect("one component, one file");
    run(&[], BEFORE);
    assert_eq!(kept(&cache), std::slice::from_ref(&code));

    // What a power cut may leave of the file is no code, and is made again.
    let whole = std::fs::read(&code).unwrap();
    for left in [&whole[..whole.len() / 2], &vec![0; whole.len()], &[]] {
        std::fs::write(&code, left).unwrap();
        run(&[], KEPT);
        assert_eq!(std::fs::read(&code).unwrap(), whole);
    }

    let own = shell.path("own");
    run(&["--cache", &own], KEPT);
    run(&["--cache", &own], BEFORE);
    std::process::Command::new("chmod").args(["755", &own]).status().unwrap();
    run(&["--cache", &own], "is open to other users");
}

#[test]
fn arguments_environment_and_streams_reach_the_component() {
    let shell = Shell::new();
    let output = shell.ok(&["run", &guest("visits-c"), "--durability", "ephemeral", "--", "Ada"], 0);
    assert!(output.contains("Ada"), "{output}");
    assert!(!Path::new(&shell.path("kvasi-data")).exists(), "an ephemeral store makes no file");
    let script = b"echo in\n";
    let output = shell.run_with(&["run", &guest("probe-c"), "--durability=ephemeral", "--env", "A=b"], script);
    assert_eq!(text(&output.stdout), "1 in\n");
}

#[test]
fn exit_codes_are_passed_on() {
    let shell = Shell::new();
    for (result, code) in [(0, 0), (1, 1)] {
        let path = shell.component("c.wasm", &returning(result));
        shell.ok(&["run", &path, "--durability=ephemeral"], code);
    }
    shell.ok(&["run", &shell.component("c.wasm", EXITING), "--durability=ephemeral"], 1);
    let output = shell.run_with(&["run", &guest("probe-c"), "--durability=ephemeral"], b"trap\n");
    assert_eq!(output.status.code(), Some(134));
    assert!(text(&output.stderr).contains("trapped"));
}

#[test]
fn buckets_are_named_by_flags_and_by_a_file() {
    let shell = Shell::new();
    let script = b"open 0 mine\nset 0 k v\nopen 1 %\nset 1 d w\nopen 2 theirs\n";
    let output = shell.run_with(&["run", &guest("probe-c"), "--bucket", "mine=stored"], script);
    assert_eq!(text(&output.stdout), "1 ok\n2 ok\n3 ok\n4 ok\n5 err no-such-store\n");
    assert_eq!(shell.ok(&["get", "--bucket", "stored", "k"], 0), "v");
    assert_eq!(shell.ok(&["get", "d"], 0), "w");
    assert_eq!(shell.ok(&["buckets"], 0), "\nstored\n");

    let config = shell.file(
        "kvasi.toml",
        b"durability = \"os\"\n[buckets.mine]\nbucket = \"stored\"\n[buckets.theirs]\n\
          [components.probe-c.grants]\nmine = [\"read\"]\n",
    );
    let script = b"open 0 mine\nget 0 k\nset 0 k x\nopen 1 theirs\nopen 2 %\n";
    let output = shell.run_with(&["run", &guest("probe-c"), "--config", &config], script);
    let expected = "1 ok\n2 some v\n3 err access-denied\n4 err access-denied\n5 err no-such-store\n";
    assert_eq!(text(&output.stdout), expected, "{}", text(&output.stderr));
}

#[test]
fn keys_are_read_and_written_from_a_shell() {
    let shell = Shell::new();
    shell.ok(&["set", "a", "1"], 0);
    assert_eq!(shell.ok(&["get", "a"], 0), "1");
    shell.ok(&["set", "negative", "-7"], 0);
    shell.ok(&["delete", "negative"], 0);
    let raw = [0_u8, 255, 10, 13];
    assert!(shell.run_with(&["set", "raw", "-"], &raw).status.success());
    assert_eq!(shell.run_with(&["get", "raw"], b"").stdout, raw);
    assert_eq!(shell.ok(&["get", "absent"], 1), "");
    assert_eq!(shell.ok(&["get", "--bucket", "none", "a"], 1), "");
    shell.ok(&["exists", "a"], 0);
    shell.ok(&["exists", "absent"], 1);
    assert_eq!(shell.ok(&["incr", "a"], 0), "2\n");
    assert_eq!(shell.ok(&["incr", "a", "-12"], 0), "-10\n");
    assert_eq!(shell.ok(&["list"], 0), "a\nraw\n");
    assert_eq!(shell.ok(&["list", "--prefix", "r", "-0"], 0), "raw\0");
    shell.ok(&["delete", "a"], 0);
    shell.ok(&["delete", "a"], 0);
    assert_eq!(shell.ok(&["get", "a"], 1), "");
    shell.fails(&["incr", "raw"], &["raw", "not a decimal number"]);
}

#[test]
fn a_component_that_cannot_run_is_named_with_the_way_out() {
    let shell = Shell::new();
    shell.fails(&["run", "nowhere.wasm"], &["nowhere.wasm"]);
    shell.fails(&["run", &shell.file("text.wasm", b"#!/bin/sh\n")], &["text.wasm", "not WebAssembly"]);
    shell.fails(&["run", &shell.file("empty.wasm", b"")], &["not WebAssembly"]);
    let path = shell.file("module.wasm", &wat::parse_str("(module)").unwrap());
    shell.fails(&["run", &path], &["core WebAssembly module", "wasm-tools component new", "wasm32-wasip2"]);
    let path = shell.file("broken.wasm", b"\0asm\x0d\0\x01\0nonsense");
    shell.fails(&["run", &path], &["broken.wasm", "not a component"]);
    shell.fails(&["run", &shell.component("lib.wasm", "(component)")], &["not a command", "wasi:cli/run"]);
    assert!(!Path::new(&shell.path("kvasi-data")).exists(), "no store was made for it");
}

#[test]
fn an_import_that_is_not_served_is_named_with_what_is() {
    let shell = Shell::new();
    let import = |name: &str| shell.component("i.wasm", &format!("(component (import \"{name}\" (instance)))"));
    shell.fails(&["run", &import("wasi:http/types@0.2.0")], &["wasi:http/types@0.2.0", "Served:", "wasi:keyvalue"]);
    shell.fails(
        &["run", &import("wasi:keyvalue/store@0.2.0")],
        &["wasi:keyvalue/store@0.2.0", "expected version 0.2.0-draft2 or 0.2.0-draft", "found 0.2.0"],
    );
    shell.fails(&["run", &import("wasmcloud:keyvalue/store@0.1.0")], &["expected version 0.2.0", "found 0.1.0"]);
    shell.fails(&["run", &import("wasi:keyvalue/watcher@0.2.0-draft2")], &["store, atomics, batch", "found watcher"]);
    let shape = r#"(component
        (import "wasi:keyvalue/store@0.2.0-draft2" (instance
            (export "open" (func (param "identifier" u32) (result u32))))))"#;
    shell.fails(
        &["run", &shell.component("s.wasm", shape)],
        &["s.wasm", "expects open: func(string) -> result<own, error>; found func(u32) -> u32"],
    );
}

#[test]
fn a_guest_of_any_shape_finds_what_one_of_another_stored() {
    let shell = Shell::new();
    let mut last = 0;
    for name in ["probe-c", "probe-draft-c", "probe-draft2-b-c", "probe-draft2-c-c", "probe-wasmcloud-c", "probe-rust"]
    {
        let script = b"open 0 %\nincrement 0 count 1\nget-many 0 count absent\n";
        let output = shell.run_with(&["run", &guest(name)], script);
        assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()), "{name}");
        last += 1;
        assert_eq!(text(&output.stdout), format!("1 ok\n2 ok {last}\n3 ok 2 count={last} -\n"), "{name}");
    }
    assert_eq!(shell.ok(&["get", "count"], 0), last.to_string());
}

#[test]
fn flags_and_files_that_are_wrong_say_what_is_right() {
    let shell = Shell::new();
    let component = shell.component("c.wasm", &returning(0));
    shell.fails(&["run", &component, "--bucket", "visits"], &["--bucket", "NAME=TARGET", "visits=visits"]);
    shell.fails(&["run", &component, "--bucket", "a=redis://host"], &["redis://host", "--store"]);
    shell.fails(&["run", &component, "--store", "riak://host"], &["riak://", "redis"]);
    shell.fails(&["run", &component, "--durability", "safe"], &["safe", "sync", "interval", "os", "ephemeral"]);
    shell.fails(&["run", &component, "--env", "A"], &["NAME=VALUE"]);
    shell.fails(&["run", &component, "--config", "nowhere.toml"], &["nowhere.toml"]);
    let config = shell.file("kvasi.toml", b"[buckets.a]\nstore = 7\n");
    shell.fails(&["run", &component, "--config", &config], &["kvasi.toml", "line 2"]);
    shell.fails(&["run"], &["Usage"]);
}

#[test]
fn a_store_that_cannot_be_opened_is_named_with_the_way_out() {
    let shell = Shell::new();
    let component = shell.component("c.wasm", &returning(0));
    shell.fails(&["get", "k"], &["no store at", "kvasi-data", "--store"]);

    let file = shell.file("file", b"not a directory");
    shell.fails(&["run", &component, "--store", &file], &["file", "--store"]);
    shell.fails(&["get", "k", "--store", &file], &["file", "--store"]);
    assert_eq!(std::fs::read(&file).unwrap(), b"not a directory");

    let foreign = shell.path("foreign");
    std::fs::create_dir(&foreign).unwrap();
    std::fs::write(Path::new(&foreign).join("letter.txt"), b"dear").unwrap();
    shell.fails(&["run", &component, "--store", &foreign], &["foreign", "--store"]);
    assert_eq!(std::fs::read_dir(&foreign).unwrap().count(), 1, "nothing was added");

    let held = shell.path("held");
    let store = kvasi::Store::open(&held, kvasi::Options::new()).unwrap();
    shell.fails(&["run", &component, "--store", &held], &["held", "other process"]);
    shell.fails(&["set", "k", "v", "--store", &held], &["held", "other process"]);
    drop(store);
    shell.ok(&["run", &component, "--store", &held], 0);
}

/// CRC-32 as the superblock has it, XOR the seed for offset 0 without a salt: docs/file-format.md.
fn checksum(bytes: &[u8]) -> u32 {
    let mixed = 0x9e37_79b9_7f4a_7c15_u64;
    let seed = (mixed ^ (mixed >> 32)) as u32;
    let bit = |crc: u32| (crc >> 1) ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 };
    let byte = |crc: u32, byte: &u8| (0..8).fold(crc ^ u32::from(*byte), |crc, _| bit(crc));
    (!bytes.iter().fold(!0, byte) ^ seed).max(1)
}

#[test]
fn a_store_of_a_newer_format_is_left_alone() {
    let shell = Shell::new();
    shell.ok(&["set", "k", "v"], 0);
    let path = Path::new(&shell.path("kvasi-data")).join("KVASI");
    let mut superblock = std::fs::read(&path).unwrap();
    for slot in superblock.chunks_mut(4096) {
        assert_eq!(slot[72..76], checksum(&slot[..72]).to_le_bytes(), "the layout is known");
        slot[8] += 1;
        let checksum = checksum(&slot[..72]).to_le_bytes();
        slot[72..76].copy_from_slice(&checksum);
    }
    std::fs::write(&path, &superblock).unwrap();
    shell.fails(&["get", "k"], &["kvasi-data", "format", "nothing was changed"]);
    let component = shell.component("c.wasm", &returning(0));
    shell.fails(&["run", &component], &["kvasi-data", "format", "nothing was changed"]);
    assert_eq!(std::fs::read(&path).unwrap(), superblock);
}

#[cfg(target_os = "linux")]
#[test]
fn a_directory_that_is_not_writable_is_named() {
    let shell = Shell::new();
    let component = shell.component("c.wasm", &returning(0));
    // Nobody, root included, makes a directory there.
    shell.fails(&["run", &component, "--store", "/proc/kvasi-store"], &["/proc/kvasi-store", "--store"]);
}

#[test]
fn a_damaged_log_is_an_error_with_file_and_offset_and_nothing_is_deleted() {
    let shell = Shell::new();
    shell.ok(&["run", &guest("visits-c")], 0);
    let store = shell.path("kvasi-data");
    let log = std::fs::read_dir(&store).unwrap().map(|f| f.unwrap().path()).find(|p| p.extension().is_some());
    let log = log.unwrap();
    let mut bytes = std::fs::read(&log).unwrap();
    bytes[200] ^= 1;
    std::fs::write(&log, &bytes).unwrap();
    let name = log.file_name().unwrap().to_str().unwrap();
    for call in [&["get", "visits/count"][..], &["run", &guest("visits-c")]] {
        shell.fails(call, &[name, "byte", "backup"]);
    }
    assert_eq!(std::fs::read(&log).unwrap(), bytes);
    bytes[200] ^= 1;
    std::fs::write(&log, &bytes).unwrap();
    assert_eq!(shell.ok(&["get", "visits/count"], 0), "1");
}

#[test]
fn the_example_says_the_same_in_both_languages() {
    let runs = |name: &str| {
        let shell = Shell::new();
        let visitors = ["Ada", "Grace", "", "Ada", "B\u{e4}r"];
        visitors.map(|visitor| shell.ok(&["run", &guest(name), "--", visitor], 0))
    };
    assert_eq!(runs("visits-c"), runs("visits-rust"));
}

#[test]
fn a_store_is_backed_up_verified_and_restored() {
    let shell = Shell::new();
    shell.ok(&["set", "--store", "data", "key", "value"], 0);
    let made = shell.ok(&["backup", "data", "copy"], 0);
    assert!(made.contains("copy") && made.contains("copied"), "{made}");
    shell.ok(&["set", "--store", "data", "key", "later"], 0);
    shell.ok(&["restore", "copy", "again"], 0);
    assert_eq!(shell.ok(&["get", "--store", "again", "key"], 0), "value");
    for dir in ["data", "copy", "again"] {
        let text = shell.ok(&["verify", dir], 0);
        assert!(text.lines().any(|line| line.split_whitespace().eq(["findings", "0"])), "{text}");
        let json = shell.ok(&["verify", dir, "--json"], 0);
        assert!(json.starts_with("{\"files\":") && json.ends_with("\"opens\":true,\"findings\":[]}\n"), "{json}");
        assert!(shell.ok(&["stats", dir], 0).contains("log_bytes"));
        let json = shell.ok(&["stats", dir, "--json"], 0);
        assert!(json.starts_with("{\"keys\":") && json.ends_with("}\n"), "{json}");
    }
    shell.fails(&["backup", "data", "copy"], &["copy", "not empty"]);
    shell.fails(&["restore", "copy", "again"], &["again", "not empty"]);
    shell.fails(&["backup", "nowhere", "new"], &["no store at nowhere"]);
    shell.fails(&["restore", "nowhere", "new"], &["no store at nowhere"]);
    shell.fails(&["verify", "nowhere"], &["no store at nowhere"]);
    assert!(!Path::new(&shell.path("new")).exists());
    assert_eq!(shell.run_with(&["backup", "data"], b"").status.code(), Some(2), "usage");
}

#[test]
fn damage_is_found_and_not_restored() {
    let shell = Shell::new();
    for i in 0..20 {
        shell.ok(&["set", "--store", "data", &format!("key {i}"), "value"], 0);
    }
    let log = Path::new(&shell.path("data")).join("0000000000000000.log");
    let mut bytes = std::fs::read(&log).unwrap();
    bytes[200] ^= 1;
    std::fs::write(&log, &bytes).unwrap();
    let text = shell.ok(&["verify", "data"], 1);
    assert!(text.contains("0000000000000000.log, byte ") && text.contains("does not open"), "{text}");
    let json = shell.ok(&["verify", "data", "--json"], 1);
    assert!(json.contains("\"kind\":\"Record\"") && json.contains("\"opens\":false"), "{json}");
    shell.fails(&["restore", "data", "new"], &["0000000000000000.log", "nothing was restored"]);
    shell.fails(&["backup", "data", "new"], &["0000000000000000.log"]);
    shell.fails(&["stats", "data"], &["0000000000000000.log"]);
    assert!(!Path::new(&shell.path("new")).exists());
}

#[test]
fn a_store_that_another_process_has_open_is_left_to_it() {
    let shell = Shell::new();
    let held = kvasi::Store::open(shell.path("data"), kvasi::Options::new()).unwrap();
    for args in [&["backup", "data", "new"][..], &["verify", "data"], &["stats", "data"]] {
        shell.fails(args, &["in use", "Store::backup"]);
    }
    shell.fails(&["restore", "data", "new"], &["in use"]);
    drop(held);
    assert!(!Path::new(&shell.path("new")).exists());
}

#[test]
fn a_bucket_is_copied_compared_and_never_onto_itself() {
    let shell = Shell::new();
    for i in 0..30 {
        shell.ok(&["set", "--store", "a", "--bucket", "visits", &format!("key {i}"), &"v".repeat(i)], 0);
    }
    let copied = shell.ok(&["copy", "a", "engine:b", "--bucket", "visits", "--resume", "position"], 0);
    assert!(copied.starts_with("copied 30 keys, ") && copied.contains("checksum"), "{copied}");
    assert!(!Path::new(&shell.path("position")).exists(), "a copy that is done leaves nothing to go on from");
    assert_eq!(shell.ok(&["get", "--store", "b", "--bucket", "visits", "key 7"], 0), "v".repeat(7));

    // What the destination has besides stays, and what both have is the source's.
    shell.ok(&["set", "--store", "b", "--bucket", "visits", "own", "x"], 0);
    shell.ok(&["set", "--store", "b", "--bucket", "visits", "key 7", "other"], 0);
    shell.ok(&["copy", "a", "b", "--bucket", "visits", "--no-verify"], 0);
    assert_eq!(shell.ok(&["get", "--store", "b", "--bucket", "visits", "key 7"], 0), "v".repeat(7));
    assert_eq!(shell.ok(&["get", "--store", "b", "--bucket", "visits", "own"], 0), "x");

    shell.fails(&["copy", "a", "a", "--bucket", "visits"], &["one bucket", "--to-bucket"]);
    shell.fails(&["copy", "nowhere", "b"], &["no store at nowhere"]);
    shell.fails(&["copy", "a", "b", "--bucket", "none"], &["no bucket \"none\""]);
    shell.file("position", br#"{"from":"x","to":"y","after":[1],"keys":1,"bytes":1}"#);
    shell.fails(&["copy", "a", "b", "--bucket", "visits", "--resume", "position"], &["position of a copy of x to y"]);
    shell.file("position", b"nonsense");
    shell.fails(&["copy", "a", "b", "--bucket", "visits", "--resume", "position"], &["no position"]);
}

#[test]
fn a_watcher_is_told_of_what_was_written_since_it_was_last_told() {
    let shell = Shell::new();
    let (data, component) = (shell.path("data"), shell.path("counts.wasm"));
    std::fs::write(&component, watcher()).unwrap();
    let watch = ["watch", &component, "--store", &data, "--once"];
    let key = |command: &'static str, key: &'static str| [command, "--store", &data, key].map(str::to_owned);
    shell.ok(&watch, 0);
    for round in 1..=2 {
        for _ in 0..3 {
            // `i` has it count.
            let set = key("set", "i");
            shell.ok(&set.iter().map(String::as_str).chain(["x"]).collect::<Vec<_>>(), 0);
        }
        shell.ok(&watch, 0);
        shell.ok(&watch, 0);
        let get = key("get", "count");
        assert_eq!(shell.ok(&get.each_ref().map(String::as_str), 0), (3 * round).to_string());
    }
    // `t` traps, each time; the write stays, and so does the event.
    let set = key("set", "t");
    shell.ok(&set.iter().map(String::as_str).chain(["x"]).collect::<Vec<_>>(), 0);
    let output = shell.run_with(&watch, b"");
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("failed too often"), "{}", text(&output.stderr));
    let get = key("get", "t");
    assert_eq!(shell.ok(&get.each_ref().map(String::as_str), 0), "x");
    shell.fails(&["watch", &shell.path("absent.wasm"), "--store", &data], &["absent.wasm"]);
    // Another, whose functions are `async`, begins where it is first asked.
    let waits = shell.path("waits.wasm");
    std::fs::write(&waits, async_watcher()).unwrap();
    let watch = ["watch", &waits, "--store", &data, "--once"];
    shell.ok(&watch, 0);
    shell.ok(&["set", "--store", &data, "i", "x"], 0);
    shell.ok(&watch, 0);
    let get = key("get", "count");
    assert_eq!(shell.ok(&get.each_ref().map(String::as_str), 0), "7");
}
