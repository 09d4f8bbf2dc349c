//! Servers of their own for tests: started on free loopback ports, each in a directory of its own, ended with the value.

#![allow(dead_code, reason = "each back end uses its own server")]

#[cfg(any(feature = "etcd", feature = "redis"))]
use crate::tls::Certificates;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long a server may take until it answers.
const PATIENCE: Duration = Duration::from_secs(60);

/// Running servers, one or several that work together.
pub(crate) struct Server {
    pub(crate) url: String,
    pub(crate) ports: Vec<u16>,
    pub(crate) children: Vec<Child>,
    dir: TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        for child in &mut self.children {
            // It may have ended by itself, or by the test.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Server {
    fn new() -> Server {
        Server { url: String::new(), ports: Vec::new(), children: Vec::new(), dir: tempfile::tempdir().unwrap() }
    }

    /// Starts one process in a directory of its own; what it says goes to a file there.
    pub(crate) fn start(&mut self, port: u16, command: impl FnOnce(&Path) -> Command) {
        let dir = self.dir.path().join(port.to_string());
        std::fs::create_dir_all(&dir).unwrap();
        let log = File::create(dir.join("out")).unwrap();
        let mut command = command(&dir);
        command.current_dir(&dir).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.children.push(command.spawn().unwrap());
        self.ports.push(port);
    }

    /// Waits until `ready` says so.
    pub(crate) fn wait(&self, what: &str, mut ready: impl FnMut() -> bool) {
        let begun = Instant::now();
        while !ready() {
            assert!(begun.elapsed() < PATIENCE, "{what} does not answer; see {}", self.dir.path().display());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Whether a program is here; if not, a line says what is skipped, and where CI is set that is a failure.
pub(crate) fn installed(program: &str) -> bool {
    let found = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    found || skipped(program)
}

/// Says that a server is missing. In CI that is a failure, unless CI itself has said so before, in `KVASI_WITHOUT`.
pub(crate) fn skipped(what: &str) -> bool {
    let known = std::env::var("KVASI_WITHOUT").is_ok_and(|known| known == what);
    assert!(known || std::env::var_os("CI").is_none(), "{what} is not installed, and in CI it must be");
    eprintln!("skipped: {what} is not installed");
    false
}

/// A server that npm installs: a script of the package, in the directory that `.ci/run tools` fills, or in `KVASI_NODE_SERVERS`.
fn node_script(package: &str, script: &str) -> Option<PathBuf> {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/servers").into();
    let dir = std::env::var_os("KVASI_NODE_SERVERS").map_or(default, PathBuf::from);
    let script = dir.join("node_modules").join(package).join(script);
    (script.is_file() && installed("node") || skipped(package)).then_some(script)
}

/// A port that nobody listens on now.
pub(crate) fn free_port() -> u16 {
    // A cluster's bus port is 10,000 above: both must exist.
    loop {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        if port < 50_000 && TcpListener::bind((Ipv4Addr::LOCALHOST, port + 10_000)).is_ok() {
            return port;
        }
        // Above, the system may give the next ones: try one below by hand.
        let below = port - 20_000;
        let free = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
        if free(below) && free(below + 10_000) {
            return below;
        }
    }
}

/// What a server answers to one line, if it does.
pub(crate) fn answer(port: u16, line: &[u8]) -> Option<Vec<u8>> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
    stream.write_all(line).ok()?;
    let mut answer = vec![0; 4096];
    let read = stream.read(&mut answer).ok()?;
    answer.truncate(read);
    Some(answer)
}

fn answers_with(port: u16, line: &[u8], words: &str) -> bool {
    answer(port, line).is_some_and(|answer| String::from_utf8_lossy(&answer).contains(words))
}

fn redis_command(port: u16, dir: &Path, more: &[&str]) -> Command {
    let mut command = Command::new("redis-server");
    command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir"]);
    command.arg(dir).args(more);
    command
}

/// One Redis server.
pub(crate) fn redis() -> Option<Server> {
    redis_with(&[])
}

/// The same with more flags.
pub(crate) fn redis_with(more: &[&str]) -> Option<Server> {
    if !installed("redis-server") {
        return None;
    }
    let mut server = Server::new();
    let port = free_port();
    server.start(port, |dir| redis_command(port, dir, more));
    // One that wants a password first says so.
    server.wait("redis-server", || ["PONG", "NOAUTH"].iter().any(|words| answers_with(port, b"PING\r\n", words)));
    server.url = format!("redis://127.0.0.1:{port}");
    Some(server)
}

/// What gives a Redis server certificates, and has it ask for those of its clients.
#[cfg(any(feature = "etcd", feature = "redis"))]
fn redis_by_tls(port: u16, dir: &Path, files: &Certificates, more: &[&str]) -> Command {
    let mut command = redis_command(0, dir, &["--tls-port", &port.to_string()]);
    for (flag, file) in [("cert", "server.pem"), ("key", "server.key"), ("ca-cert", "ca.pem")] {
        command.arg(format!("--tls-{flag}-file")).arg(files.path(file));
    }
    command.args(more);
    command
}

/// One Redis server that is spoken to by TLS alone.
#[cfg(feature = "redis")]
pub(crate) fn redis_tls(files: &Certificates) -> Option<Server> {
    if !installed("redis-server") {
        return None;
    }
    let mut server = Server::new();
    let port = free_port();
    server.start(port, |dir| redis_by_tls(port, dir, files, &[]));
    server.url = format!("rediss://127.0.0.1:{port}");
    Some(server)
}

/// A cluster of one, which speaks TLS also to itself.
#[cfg(feature = "redis")]
pub(crate) fn redis_cluster_tls(files: &Certificates) -> Option<Server> {
    if !installed("redis-server") || !installed("redis-cli") {
        return None;
    }
    let mut server = Server::new();
    let port = free_port();
    let more = ["--tls-cluster", "yes", "--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf"];
    server.start(port, |dir| redis_by_tls(port, dir, files, &more));
    let ask = |words: &[&str]| {
        let mut command = Command::new("redis-cli");
        command.args(["--tls", "-p", &port.to_string()]);
        for (flag, file) in [("--cert", "client.pem"), ("--key", "client.key"), ("--cacert", "ca.pem")] {
            command.arg(flag).arg(files.path(file));
        }
        String::from_utf8(command.args(words).output().unwrap().stdout).unwrap()
    };
    server.wait("redis-server", || ask(&["ping"]).contains("PONG"));
    assert!(ask(&["cluster", "addslotsrange", "0", "16383"]).contains("OK"));
    server.wait("the cluster", || ask(&["cluster", "info"]).contains("cluster_state:ok"));
    server.url = format!("rediss-cluster://127.0.0.1:{port}");
    Some(server)
}

/// Three Redis masters that share the slots, each with so many replicas, which are in step with them.
pub(crate) fn redis_cluster(replicas: usize) -> Option<Server> {
    if !installed("redis-server") || !installed("redis-cli") {
        return None;
    }
    let mut server = Server::new();
    for _ in 0..3 * (1 + replicas) {
        let port = free_port();
        let more = [
            "--cluster-enabled",
            "yes",
            "--cluster-config-file",
            "nodes.conf",
            "--cluster-node-timeout",
            "2000",
            "--repl-diskless-sync-delay",
            "0",
        ];
        server.start(port, |dir| redis_command(port, dir, &more));
    }
    let ports = server.ports.clone();
    server.wait("redis-server", || ports.iter().all(|port| answers_with(*port, b"PING\r\n", "PONG")));
    let nodes: Vec<String> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
    let create = Command::new("redis-cli")
        .args(["--cluster", "create"])
        .args(&nodes)
        .args(["--cluster-replicas", &replicas.to_string(), "--cluster-yes"])
        .output()
        .unwrap();
    assert!(create.status.success(), "{}", String::from_utf8_lossy(&create.stdout));
    server
        .wait("the cluster", || ports.iter().all(|port| answers_with(*port, b"CLUSTER INFO\r\n", "cluster_state:ok")));
    let in_step = |port: &u16| answers_with(*port, b"INFO replication\r\n", "master_link_status:up");
    server.wait("the replicas", || ports[3..].iter().all(in_step));
    server.url = format!("redis-cluster://{}?node={}&node={}", nodes[0], nodes[1], nodes[2]);
    Some(server)
}

/// So many etcd nodes, one cluster.
pub(crate) fn etcd(nodes: usize) -> Option<Server> {
    etcd_with(nodes, &[])
}

/// The same with more flags.
pub(crate) fn etcd_with(nodes: usize, more: &[&str]) -> Option<Server> {
    if !installed("etcd") {
        return None;
    }
    let mut server = Server::new();
    let ports: Vec<(u16, u16)> = (0..nodes).map(|_| (free_port(), free_port())).collect();
    let local = |port: u16| format!("http://127.0.0.1:{port}");
    let cluster: Vec<String> = ports.iter().map(|(port, peer)| format!("n{port}={}", local(*peer))).collect();
    for (port, peer) in &ports {
        server.start(*port, |dir| {
            let mut command = Command::new("etcd");
            command.args(["--name", &format!("n{port}"), "--data-dir"]).arg(dir.join("data"));
            for (flag, port) in [("client", port), ("peer", peer)] {
                command.args([format!("--listen-{flag}-urls"), local(*port)]);
            }
            command.args(["--advertise-client-urls", &local(*port), "--initial-advertise-peer-urls", &local(*peer)]);
            command.args([
                "--initial-cluster",
                &cluster.join(","),
                "--initial-cluster-state",
                "new",
                "--unsafe-no-fsync",
            ]);
            command.args(more);
            command
        });
    }
    let healthy = |port: u16| answers_with(port, b"GET /health HTTP/1.0\r\n\r\n", "\"true\"");
    server.wait("etcd", || ports.iter().all(|(port, _)| healthy(*port)));
    let more: Vec<String> = ports[1..].iter().map(|(port, _)| format!("node=127.0.0.1:{port}")).collect();
    server.url = format!("etcd://127.0.0.1:{}?{}", ports[0].0, more.join("&"));
    Some(server)
}

/// One etcd node that is spoken to by TLS alone.
#[cfg(feature = "etcd")]
pub(crate) fn etcd_tls(files: &Certificates) -> Option<Server> {
    if !installed("etcd") {
        return None;
    }
    let mut server = Server::new();
    let (port, peer) = (free_port(), free_port());
    server.start(port, |dir| {
        let (client, peer) = (format!("https://127.0.0.1:{port}"), format!("http://127.0.0.1:{peer}"));
        let mut command = Command::new("etcd");
        command.args(["--name", "tls", "--unsafe-no-fsync", "--client-cert-auth", "--data-dir"]).arg(dir.join("data"));
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &format!("tls={peer}")]);
        for (flag, file) in [("cert", "server.pem"), ("key", "server.key"), ("trusted-ca", "ca.pem")] {
            command.arg(format!("--{flag}-file")).arg(files.path(file));
        }
        command
    });
    server.url = format!("etcds://127.0.0.1:{port}");
    Some(server)
}

/// Which of etcd's nodes leads.
pub(crate) fn etcd_leader(server: &Server) -> usize {
    let request = b"POST /v3/maintenance/status HTTP/1.0\r\ncontent-length: 2\r\n\r\n{}";
    let number = |text: &str, name: &str| {
        let digits = text.split_once(&format!("\"{name}\":\""))?.1;
        digits.split('"').next().map(str::to_owned)
    };
    let leads = |port: &u16| {
        let told = String::from_utf8(answer(*port, request)?).ok()?;
        Some(number(&told, "leader")? == number(&told, "member_id")?)
    };
    server.ports.iter().position(|port| leads(port) == Some(true)).expect("one of them leads")
}

/// One Memcached server.
pub(crate) fn memcached() -> Option<Server> {
    memcached_with(&[])
}

/// The same with more flags.
pub(crate) fn memcached_with(more: &[&str]) -> Option<Server> {
    if !installed("memcached") {
        return None;
    }
    let mut server = Server::new();
    let port = free_port();
    server.start(port, |_| {
        let mut command = Command::new("memcached");
        // As root it wants to become somebody else.
        command.args(["-l", "127.0.0.1", "-p", &port.to_string(), "-U", "0", "-m", "64", "-u", "nobody"]).args(more);
        command
    });
    server.wait("memcached", || answers_with(port, b"version\r\n", "VERSION"));
    server.url = format!("memcached://127.0.0.1:{port}");
    Some(server)
}

/// dynalite, which speaks the protocol of DynamoDB.
pub(crate) fn dynamodb() -> Option<Server> {
    let script = node_script("dynalite", "cli.js")?;
    let mut server = Server::new();
    let port = free_port();
    server.start(port, |_| {
        let mut command = Command::new("node");
        command.arg(script).args(["--host", "127.0.0.1", "--port", &port.to_string(), "--createTableMs", "0"]);
        command
    });
    server.wait("dynalite", || answers_with(port, b"GET / HTTP/1.0\r\n\r\n", "HTTP/1.1 "));
    server.url =
        format!("dynamodb://key:secret@kvasi-tests?region=us-east-1&endpoint=http://127.0.0.1:{port}&create=true");
    Some(server)
}

/// Google's emulator of Firestore, where the package of it is installed.
pub(crate) fn firestore() -> Option<Server> {
    let sdk = std::env::var_os("CLOUDSDK_ROOT_DIR").map_or("/usr/lib/google-cloud-sdk".into(), PathBuf::from);
    let jar = sdk.join("platform/cloud-firestore-emulator/cloud-firestore-emulator.jar");
    if !(jar.is_file() && installed("java") || skipped("firestore")) {
        return None;
    }
    let mut server = Server::new();
    let port = free_port();
    server.start(port, |_| {
        let mut command = Command::new("java");
        command.args(["-Duser.language=en", "-Xmx512m", "-cp"]).arg(jar);
        command.arg("com.google.cloud.datastore.emulator.firestore.CloudFirestore");
        command.args(["--host=127.0.0.1", &format!("--port={port}")]);
        command
    });
    // Its first answers are slow: it is ready when it has given some.
    let documents = "projects/kvasi-tests/databases/(default)/documents";
    let read = format!("{{\"documents\":[\"{documents}/warm/k\"]}}");
    let write = format!("{{\"writes\":[{{\"update\":{{\"name\":\"{documents}/warm/k\",\"fields\":{{}}}}}}]}}");
    for (call, body) in [("batchGet", &read), ("commit", &write)].into_iter().cycle().take(40) {
        let request = format!(
            "POST /v1/{documents}:{call} HTTP/1.1\r\nhost: h\r\nauthorization: Bearer owner\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        server.wait("the emulator of Firestore", || answers_with(port, request.as_bytes(), "HTTP/1.1 200"));
    }
    server.url = format!("firestore://kvasi-tests?endpoint=http://127.0.0.1:{port}");
    Some(server)
}

/// The emulator of Firestore that another test has running, for tests that leave it running and use buckets of names of their own: it takes
/// long to start. It ends with the last of them.
pub(crate) fn firestore_shared() -> Option<Arc<Server>> {
    static RUNNING: Mutex<Weak<Server>> = Mutex::new(Weak::new());
    let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(server) = running.upgrade() {
        return Some(server);
    }
    let server = Arc::new(firestore()?);
    *running = Arc::downgrade(&server);
    Some(server)
}

/// What follows the documentation of Cosmos DB: this binary again, as a server. It may tell one request in 97 to come later.
#[cfg(feature = "cosmosdb")]
pub(crate) fn cosmosdb(throttled: bool) -> Option<Server> {
    let mut server = Server::new();
    let port = free_port();
    server.start(port, |_| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["serve_forever", "--ignored", "--nocapture"]).env(crate::cosmos_fake::PORT, port.to_string());
        if throttled {
            command.env(crate::cosmos_fake::THROTTLED, "97");
        }
        command
    });
    server.wait("the stand-in for Cosmos DB", || answers_with(port, b"GET / HTTP/1.1\r\n\r\n", "HTTP/1.1 4"));
    server.url = cosmosdb_url(port);
    Some(server)
}

/// Vercel's server, which knows part of what Cosmos DB does.
#[cfg(feature = "cosmosdb")]
pub(crate) fn cosmosdb_server() -> Option<Server> {
    let script = node_script("@vercel/cosmosdb-server", "lib/cli.js")?;
    let mut server = Server::new();
    let port = free_port();
    server.start(port, |_| {
        let mut command = Command::new("node");
        command.arg(script).args(["-p", &port.to_string(), "--host", "127.0.0.1", "--no-ssl"]);
        command
    });
    server.wait("cosmosdb-server", || answers_with(port, b"GET / HTTP/1.0\r\n\r\n", "HTTP/1.1 "));
    server.url = cosmosdb_url(port);
    Some(server)
}

#[cfg(feature = "cosmosdb")]
fn cosmosdb_url(port: u16) -> String {
    let key = crate::cosmos_fake::KEY.replace('/', "%2F").replace('+', "%2B").replace('=', "%3D");
    format!("cosmos://:{key}@tests/kvasi/tests?endpoint=http://127.0.0.1:{port}&create=true")
}
