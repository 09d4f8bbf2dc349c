//! `kvasi serve` as its clients see it: a real process, real connections, a proxy component that counts visits.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;
use tempfile::TempDir;

/// Longest wait for a process to say or do what it must: far above what it takes.
const PATIENCE: Duration = Duration::from_secs(60);

struct Server {
    child: Child,
    at: String,
    metrics: Option<String>,
    log: JoinHandle<String>,
}

impl Server {
    fn start(dir: &TempDir, args: &[&str]) -> Server {
        let guest = format!("{}/guests/prebuilt/proxy-c.wasm", env!("CARGO_MANIFEST_DIR"));
        let mut child = Command::new(env!("CARGO_BIN_EXE_kvasi"))
            .args(["serve", &guest, "--listen", "127.0.0.1:0"])
            .args(args)
            .current_dir(dir.path())
            .env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR"))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (said, addresses) = mpsc::channel();
        let log = std::thread::spawn(move || {
            let mut log = String::new();
            for line in stderr.lines() {
                let line = line.unwrap();
                if let Some((_, at)) = line.split_once("http://") {
                    let at = at.split('"').next().unwrap();
                    let _ = said.send(at.to_owned());
                }
                log += &line;
                log.push('\n');
            }
            log
        });
        let wait = || addresses.recv_timeout(PATIENCE).expect("it says where it listens");
        let metrics = args.contains(&"--metrics").then(wait);
        let at = wait();
        // Which of the two says so first is nobody's promise.
        let (at, metrics) = match metrics {
            Some(first) if at.ends_with("/metrics") => (first, Some(at)),
            other => (at, other),
        };
        Server { child, at, metrics, log }
    }

    /// The status and the body of an answer; 0 for a connection that was closed without one.
    fn get(&self, path: &str) -> (u16, String) {
        get(&self.at, path)
    }

    fn signal(&self, signal: &str) {
        assert!(Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap().success());
    }

    /// Ends it as an operator does; what it logged.
    fn end(mut self, signal: &str) -> String {
        self.signal(signal);
        let status = self.child.wait().unwrap();
        let log = self.log.join().unwrap();
        assert!(status.success(), "{status}: {log}");
        assert!(!log.contains("panicked"), "{log}");
        log
    }
}

fn get(at: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(at).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    let status = answer.split(' ').nth(1).map_or(0, |status| status.parse().unwrap());
    // A body in chunks is short here, and its frames do not disturb.
    (status, answer.split_once("\r\n\r\n").map_or(String::new(), |(_, body)| body.to_owned()))
}

#[test]
fn visits_are_counted_and_still_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir, &[]);
    for visit in 1..=3 {
        let (status, body) = server.get("/home");
        assert!(status == 200 && body.contains(&format!("Visit {visit}.")), "{status} {body}");
    }
    assert!(server.get("/other").1.contains("Visit 1."));
    let log = server.end("-TERM");
    assert!(log.contains("kvasi::access") && log.contains("path=\"/home\" status=200"), "{log}");
    let server = Server::start(&dir, &[]);
    assert!(server.get("/home").1.contains("Visit 4."));
    server.end("-INT");
}

#[test]
fn a_request_that_dies_grows_or_never_ends_is_answered_and_the_next_one_too() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir, &["--request-ms", "500", "--request-memory", "32", "--durability", "ephemeral"]);
    assert_eq!(server.get("/trap").0, 500);
    assert_eq!(server.get("/loop").0, 504);
    // It gets no more memory than it may, and then counts as all do.
    let (status, body) = server.get("/grow");
    assert!(status == 200 && body.contains("Visit 1."), "{status} {body}");
    // What it works on after its answer is stopped too.
    assert!(server.get("/late").1.contains("Visit 1."));
    assert!(server.get("/home").1.contains("Visit 1."));
    assert_eq!(server.get("/\u{1b}[2J").0, 400, "no path of HTTP");
    let log = server.end("-TERM");
    assert!(log.contains("trapped") && log.contains("its time was up"), "{log}");
    assert!(!log.contains('\x1b'), "{log}");
}

#[test]
fn more_requests_than_are_allowed_are_turned_away_and_places_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir, &["--requests-at-once", "1", "--request-ms", "2000", "--durability", "ephemeral"]);
    let seen = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Takes the only place again and again, until somebody was turned away for it.
        let stuck = scope.spawn(|| {
            let mut statuses = Vec::new();
            while !seen.load(Ordering::Relaxed) {
                statuses.push(server.get("/loop").0);
            }
            statuses
        });
        while server.get("/home").0 != 503 {}
        seen.store(true, Ordering::Relaxed);
        assert!(stuck.join().unwrap().contains(&504));
    });
    assert_eq!(server.get("/home").0, 200);
    server.end("-TERM");
}

#[test]
fn a_hundred_clients_at_once_count_to_a_hundred() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir, &["--durability", "os"]);
    std::thread::scope(|scope| {
        for _ in 0..10 {
            scope.spawn(|| (0..10).for_each(|_| assert_eq!(server.get("/all").0, 200)));
        }
    });
    assert!(server.get("/all").1.contains("Visit 101."));
    server.end("-TERM");
}

#[test]
fn limits_of_the_configuration_hold_and_metrics_and_json_are_there() {
    let dir = tempfile::tempdir().unwrap();
    let file =
        "durability = \"os\"\n[buckets.\"\"]\nstored-keys = 2\n[components.proxy-c.grants]\n\"\" = [\"atomics\"]\n";
    std::fs::write(dir.path().join("kvasi.toml"), file).unwrap();
    let args = ["--config", "kvasi.toml", "--metrics", "127.0.0.1:0", "--log-format", "json", "--log-level", "debug"];
    let server = Server::start(&dir, &args);
    for path in ["/a", "/b", "/a"] {
        assert!(server.get(path).1.contains("Visit"), "{path}");
    }
    let (status, body) = server.get("/secret-path");
    assert!(status == 200 && body.contains("quota"), "{status} {body}");
    let at = server.metrics.clone().unwrap();
    let (status, text) = get(at.trim_end_matches("/metrics"), "/metrics");
    assert_eq!(status, 200);
    for line in [
        "kvasi_calls_total{bucket=\"\",call=\"increment\",outcome=\"ok\"} 3",
        "kvasi_calls_total{bucket=\"\",call=\"increment\",outcome=\"quota\"} 1",
        "kvasi_call_seconds_count{bucket=\"\",call=\"increment\"} 4",
        "kvasi_requests_total{status=\"2xx\"} 4",
    ] {
        assert!(text.contains(line), "no {line} in\n{text}");
    }
    assert!(!text.contains("secret"), "{text}");
    let log = server.end("-TERM");
    let calls: Vec<_> = log.lines().filter(|line| line.contains("kvasi::call")).collect();
    assert!(calls.len() >= 4 && calls.iter().all(|line| line.starts_with('{')), "{log}");
    // The path is in the access log; as a key it is in no line of a call.
    assert!(calls.iter().all(|line| !line.contains("secret")), "{log}");
}

#[test]
fn what_cannot_be_served_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let guest = |name: &str| format!("{}/guests/prebuilt/{name}.wasm", env!("CARGO_MANIFEST_DIR"));
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = taken.local_addr().unwrap().to_string();
    for (args, words) in [
        (vec!["serve".to_owned(), guest("visits-c")], "not a proxy"),
        (vec!["serve".to_owned(), guest("proxy-c"), "--listen".to_owned(), at.clone()], at.as_str()),
        (vec!["run".to_owned(), guest("proxy-c")], "wasi:http/types"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_kvasi")).args(&args).current_dir(dir.path()).output().unwrap();
        let complaint = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{complaint}");
        assert!(complaint.contains(words), "{complaint}");
    }
}
