//! A component outgrows its machine and comes home: `kvasi copy` and one changed line of its configuration, nothing else.

#![allow(dead_code, reason = "used by whichever back ends this build has")]

use crate::proxy::{Mode, Proxy};
use crate::servers::Server;
use kvasi::{Durability, ListOptions, Options, Store};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const COMPONENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/guests/prebuilt/visits-c.wasm");
const BUCKET: &str = "visits";

fn command(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvasi"));
    command.args(args).current_dir(dir);
    command
}

fn kvasi(dir: &Path, args: &[&str]) -> String {
    let output = command(dir, args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The component, as the configuration has it: what it says of this visit. Another store is another first line, and all else is the same.
fn visit(dir: &Path, store: &str) -> String {
    let config = format!("store = {store:?}\n[buckets.\"\"]\nbucket = {BUCKET:?}\n");
    std::fs::write(dir.join("kvasi.toml"), config).unwrap();
    kvasi(dir, &["run", COMPONENT, "--config", "kvasi.toml"])
}

type Contents = BTreeMap<String, Vec<u8>>;

/// More keys than a page of a copy has.
pub(crate) const PAGES: usize = 1_500;
/// For stand-ins of services, which are slow.
pub(crate) const FEW: usize = 150;

/// What the component has besides its counter: so many keys and more, with values of many kinds.
fn filled(dir: &Path, keys: usize) -> Contents {
    let mut contents: Contents =
        (0..keys).map(|i| (format!("key {i:04}"), (0..i % 257).map(|byte| (byte * i) as u8).collect())).collect();
    for key in ["", "a/b", "%2f", "ключ", "\u{10ffff}", "a:b", "{x}", "."] {
        contents.insert(key.to_owned(), key.as_bytes().to_vec());
    }
    contents.insert("number".to_owned(), i64::MIN.to_string().into_bytes());
    contents.insert("large".to_owned(), vec![0xa5; 200_000]);
    let store = Store::open(dir, Options::new()).unwrap();
    let bucket = store.bucket(BUCKET).unwrap().with_durability(Durability::Os);
    for (key, value) in &contents {
        bucket.set(key.as_bytes(), value).unwrap();
    }
    contents
}

fn contents(dir: &Path) -> Contents {
    let store = Store::open(dir, Options::new()).unwrap();
    let bucket = store.bucket(BUCKET).unwrap();
    let (mut contents, mut after) = (Contents::new(), None);
    loop {
        let page = bucket.list_keys(ListOptions { after: after.as_deref(), ..ListOptions::default() }).unwrap();
        for key in page.iter() {
            let value = bucket.get(key).unwrap().expect("it was listed");
            contents.insert(String::from_utf8(key.to_vec()).unwrap(), value.to_vec());
        }
        after = page.next().map(|next| next.to_vec());
        if after.is_none() {
            return contents;
        }
    }
}

pub(crate) fn there_and_back(server: &Server, keys: usize) {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let url = server.url.as_str();
    assert!(visit(dir, "data").contains("Visit 1."));
    assert!(visit(dir, "data").contains("Visit 2."));
    let kept = filled(&dir.join("data"), keys);
    let before = contents(&dir.join("data"));
    let told = kvasi(dir, &["copy", "data", url, "--bucket", BUCKET]);
    let (counts, checksum) = told.split_once("; both sides have checksum ").unwrap_or_else(|| panic!("{told}"));
    assert!(counts.starts_with(&format!("copied {} keys, ", before.len())), "{told}");
    // Home again without a visit in between: the same, key for key and byte for byte, and the same sum.
    let home = kvasi(dir, &["copy", url, "home", "--bucket", BUCKET]);
    assert!(home.contains(checksum.trim()) && home.starts_with(counts), "{told}{home}");
    assert_eq!(contents(&dir.join("home")), before);

    assert!(visit(dir, url).contains("Visit 3."));
    assert!(visit(dir, url).contains("Visit 4."));
    kvasi(dir, &["copy", url, "home", "--bucket", BUCKET]);
    assert!(visit(dir, "home").contains("Visit 5."));
    assert!(visit(dir, "data").contains("Visit 3."), "what was left behind is as it was");
    let after = contents(&dir.join("home"));
    assert_eq!(after.len(), before.len());
    assert!(kept.iter().all(|(key, value)| after.get(key) == Some(value)), "all else is as it was");
}

/// A copy that is killed half-way goes on from where it was, and ends as one that was not.
pub(crate) fn killed_and_resumed(server: &Server) {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let before = filled(&dir.join("data"), PAGES);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let proxy = runtime.block_on(Proxy::to(server.ports[0]));
    let url = server.url.replace(&server.ports[0].to_string(), &proxy.port.to_string());
    let copy = ["copy", "data", &url, "--bucket", BUCKET, "--resume", "position", "--parallel", "1"];

    // Slow enough that it is killed in the midst of it.
    proxy.set(Mode::Delay(Duration::from_millis(300)));
    let mut cut = command(dir, &copy).stderr(Stdio::null()).spawn().unwrap();
    let (begun, position) = (Instant::now(), dir.join("position"));
    while !position.exists() {
        assert!(begun.elapsed() < Duration::from_secs(30) && cut.try_wait().unwrap().is_none(), "it keeps no position");
        std::thread::sleep(Duration::from_millis(10));
    }
    cut.kill().unwrap();
    cut.wait().unwrap();
    let kept: serde_json::Value = serde_json::from_slice(&std::fs::read(&position).unwrap()).unwrap();
    let done = kept["keys"].as_u64().unwrap();
    assert!(done > 0 && done < before.len() as u64, "{kept}");

    proxy.set(Mode::Pass);
    // What is there already is not written again: a mark on it stays.
    runtime.block_on(async {
        let first = before.keys().next().unwrap();
        let bucket = crate::connected(&server.url).await.bucket(BUCKET).unwrap();
        assert!(bucket.exists(first).await.unwrap());
        bucket.set(first, b"marked").await.unwrap();
    });
    let output = command(dir, &copy).output().unwrap();
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.code() == Some(1) && told.contains("the two differ"), "{told}");
    // The comparison has found it; a copy of all mends it.
    std::fs::remove_file(&position).unwrap();
    let told = kvasi(dir, &copy);
    assert!(told.starts_with(&format!("copied {} keys", before.len())) && told.contains("both sides"), "{told}");
    assert!(!position.exists(), "a copy that is done leaves nothing to go on from");
}
