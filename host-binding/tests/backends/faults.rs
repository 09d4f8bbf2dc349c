//! What a back end does when the network or the server fails: calls end in time, nothing is applied twice in silence, and everything works
//! again afterwards.

#![allow(dead_code, reason = "each back end uses some of it")]

use crate::proxy::{Mode, Proxy};
use crate::servers::Server;
use kvasi_wasmtime::backend::remote::{Policy, RemoteBucket, connect};
use kvasi_wasmtime::backend::{Capabilities, Key, PageBounds};
use kvasi_wasmtime::{Code, Error};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(crate) const POLICY: Policy =
    Policy { timeout: Duration::from_millis(1_500), attempts_max: 4, pause: Duration::from_millis(20) };

/// Of calls that nothing is to disturb, on a machine that may have other things to do.
const CALM: Policy = Policy { timeout: Duration::from_secs(20), ..POLICY };

pub(crate) async fn bucket(url: &str) -> Arc<dyn RemoteBucket> {
    bucket_by(url, POLICY).await
}

async fn bucket_by(url: &str, policy: Policy) -> Arc<dyn RemoteBucket> {
    connect(&url.parse().unwrap(), policy).await.unwrap().bucket("faults").unwrap()
}

/// What the service says that it can.
pub(crate) async fn capabilities(url: &str) -> Capabilities {
    connect(&url.parse().unwrap(), POLICY).await.unwrap().capabilities()
}

/// Through a proxy: the server's URL with another port.
pub(crate) async fn through(server: &Server) -> (Proxy, Arc<dyn RemoteBucket>) {
    through_by(server, POLICY).await
}

/// The same, for tests that count and do not disturb.
pub(crate) async fn calmly_through(server: &Server) -> (Proxy, Arc<dyn RemoteBucket>) {
    through_by(server, CALM).await
}

async fn through_by(server: &Server, policy: Policy) -> (Proxy, Arc<dyn RemoteBucket>) {
    let proxy = Proxy::to(server.ports[0]).await;
    let url = server.url.replace(&server.ports[0].to_string(), &proxy.port.to_string());
    let bucket = bucket_by(&url, policy).await;
    (proxy, bucket)
}

/// The answer of a call, which must come in time whatever happens, and if it is an error, names neither server nor credentials.
async fn timely<R>(call: impl Future<Output = Result<R, Error>>) -> Result<R, Error> {
    let begun = Instant::now();
    let answer = call.await;
    assert!(begun.elapsed() < POLICY.timeout + Duration::from_secs(1), "took {:?}", begun.elapsed());
    answer.inspect_err(nameless)
}

/// An error, with all that caused it, has no word of where the server is, nor of what opens it.
pub(crate) fn nameless(error: &Error) {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        let (shown, whole) = (error.to_string(), format!("{error:?}"));
        for word in ["127.0.0.1", "localhost", "kvasi.example", "secret", "C2y6yDjf"] {
            assert!(!shown.contains(word) && !whole.contains(word), "{word} in {shown:?}, {whole}");
        }
        cause = error.source();
    }
}

/// Calls until one succeeds: what a healed network or server must allow soon.
async fn recovered(bucket: &dyn RemoteBucket) {
    let begun = Instant::now();
    while let Err(error) = timely(bucket.set("recovered", b"v")).await {
        assert!(begun.elapsed() < Duration::from_secs(20), "still {error}");
    }
    assert_eq!(bucket.get("recovered").await.unwrap().as_deref(), Some(&b"v"[..]));
}

/// How many requests of calls that take more than one somewhere.
#[derive(Clone, Copy)]
pub(crate) struct Trips {
    pub(crate) increment: u64,
    pub(crate) set_many: u64,
    pub(crate) get_many: u64,
    pub(crate) delete_many: u64,
}

impl Trips {
    pub(crate) const ONE: Trips = Trips { increment: 1, set_many: 1, get_many: 1, delete_many: 1 };
}

/// Which calls are one round trip; batches are of 100 keys.
pub(crate) async fn round_trips(proxy: &Proxy, bucket: &dyn RemoteBucket, can: Capabilities, expected: Trips) {
    let keys: Vec<String> = (0..100).map(|i| format!("key {i}")).collect();
    let names: Vec<Key<'_>> = keys.iter().map(|key| Key::from(key.as_str())).collect();
    let pairs: Vec<(Key<'_>, &[u8])> = keys.iter().map(|key| (Key::from(key.as_str()), &b"value"[..])).collect();
    recovered(bucket).await;
    // The connection is made, and scripts are known, before anything is counted.
    for _ in 0..2 {
        bucket.set_many(&pairs).await.unwrap();
        bucket.get_many(&names).await.unwrap();
        bucket.increment("number", 1).await.unwrap();
        bucket.delete("none").await.unwrap();
    }
    let trips = |what: &str, expected| assert_eq!(proxy.trips(), expected, "{what}");
    proxy.trips();
    bucket.get("key 1").await.unwrap();
    trips("get", 1);
    bucket.exists("key 1").await.unwrap();
    trips("exists", 1);
    bucket.set("key 1", b"v").await.unwrap();
    trips("set", 1);
    bucket.delete("key 1").await.unwrap();
    trips("delete", 1);
    bucket.increment("number", 1).await.unwrap();
    trips("increment", expected.increment);
    bucket.set_many(&pairs).await.unwrap();
    trips("set-many of 100", expected.set_many);
    bucket.get_many(&names).await.unwrap();
    trips("get-many of 100", expected.get_many);
    bucket.delete_many(&names).await.unwrap();
    trips("delete-many of 100", expected.delete_many);
    bucket.set_many(&[]).await.unwrap();
    bucket.get_many(&[]).await.unwrap();
    bucket.delete_many(&[]).await.unwrap();
    trips("empty batches", 0);
    // What is said to be one step is one request.
    if can.batch_keys_max > 1 {
        let keys: Vec<String> = (0..can.batch_keys_max).map(|i| format!("step {i}")).collect();
        let names: Vec<Key<'_>> = keys.iter().map(|key| Key::from(key.as_str())).collect();
        let pairs: Vec<(Key<'_>, &[u8])> = names.iter().map(|key| (key.clone(), &b""[..])).collect();
        bucket.set_many(&pairs).await.unwrap();
        trips("a set-many of one step", 1);
        bucket.delete_many(&names).await.unwrap();
        trips("a delete-many of one step", 1);
    }
}

/// Silence, delay, and answers that drip.
pub(crate) async fn silence(proxy: &Proxy, bucket: &dyn RemoteBucket) {
    recovered(bucket).await;
    bucket.set("k", b"1").await.unwrap();
    proxy.set(Mode::BlackHole);
    let error = timely(bucket.get("k")).await.unwrap_err();
    assert!(matches!(error.code(), Code::Timeout | Code::Io), "{error}");
    let error = timely(bucket.increment("k", 1)).await.unwrap_err();
    assert!(matches!(error.code(), Code::Indeterminate | Code::Timeout | Code::Io), "{error}");
    let error = timely(bucket.set("k", b"2")).await.unwrap_err();
    assert!(matches!(error.code(), Code::Indeterminate | Code::Timeout | Code::Io), "{error}");
    proxy.set(Mode::Pass);
    recovered(bucket).await;
    proxy.set(Mode::Delay(Duration::from_millis(30)));
    timely(bucket.get("k")).await.unwrap();
    proxy.set(Mode::Drip(Duration::from_millis(1)));
    let _ = timely(bucket.get("k")).await;
    proxy.set(Mode::Refuse);
    let _ = timely(bucket.get("k")).await;
    proxy.set(Mode::Pass);
    recovered(bucket).await;
    slow_reads(proxy, bucket).await;
}

/// A server that takes its requests slowly: much is not sent in time, and that is told; a little slower than usual is no failure.
async fn slow_reads(proxy: &Proxy, bucket: &dyn RemoteBucket) {
    let large = vec![b'v'; 300_000];
    proxy.set(Mode::SlowRead(Duration::from_millis(300)));
    let error = timely(bucket.set("large", &large)).await.unwrap_err();
    assert!(matches!(error.code(), Code::Indeterminate | Code::Io), "{error}");
    proxy.set(Mode::Pass);
    recovered(bucket).await;
    proxy.set(Mode::SlowRead(Duration::from_millis(1)));
    timely(bucket.set("large", &large)).await.unwrap();
    proxy.set(Mode::Pass);
    assert!(timely(bucket.get("large")).await.unwrap().is_some_and(|found| found == large));
}

/// Connections of which the server has closed its half: the request may have arrived, and no answer will come. An idempotent call is made
/// again, another one is in doubt.
async fn half_closes(proxy: &Proxy, bucket: &dyn RemoteBucket) {
    recovered(bucket).await;
    bucket.set("half", b"0").await.unwrap();
    let (mut certain, mut doubtful) = (0, 0);
    for _ in 0..3 {
        proxy.set(Mode::HalfClose);
        timely(bucket.set("k", b"w")).await.unwrap();
        proxy.set(Mode::HalfClose);
        assert_eq!(timely(bucket.get("k")).await.unwrap().as_deref(), Some(&b"w"[..]));
        proxy.set(Mode::HalfClose);
        match timely(bucket.increment("half", 1)).await {
            Ok(_) => certain += 1,
            Err(error) => {
                assert_eq!(error.code(), Code::Indeterminate, "{error}");
                doubtful += 1;
            }
        }
        proxy.set(Mode::Pass);
    }
    let count = bucket.increment("half", 0).await.unwrap();
    assert!((certain..=certain + doubtful).contains(&count), "{certain} + {doubtful} at most, and it is {count}");
}

/// Connections that end in the midst of an answer or a request: an idempotent call is made again, and an increment is applied once if it
/// says so, and at most once if it cannot say.
pub(crate) async fn cuts(proxy: &Proxy, bucket: &dyn RemoteBucket) {
    recovered(bucket).await;
    bucket.set("count", b"0").await.unwrap();
    let (mut certain, mut doubtful) = (0, 0);
    for bytes in [0, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377, 450, 500, 550, 610] {
        for mode in [
            Mode::CutAnswer { bytes, reset: false },
            Mode::CutAnswer { bytes, reset: true },
            Mode::CutRequest { bytes },
        ] {
            proxy.set(mode);
            timely(bucket.set("k", b"v")).await.unwrap_or_else(|error| panic!("{mode:?}: {error}"));
            proxy.set(mode);
            let found = timely(bucket.get("k")).await.unwrap_or_else(|error| panic!("{mode:?}: {error}"));
            assert_eq!(found.as_deref(), Some(&b"v"[..]), "{mode:?}");
            proxy.set(mode);
            match timely(bucket.increment("count", 1)).await {
                Ok(_) => certain += 1,
                Err(error) => {
                    assert_eq!(error.code(), Code::Indeterminate, "{mode:?}: {error}");
                    doubtful += 1;
                }
            }
            proxy.set(Mode::Pass);
        }
    }
    let count = bucket.increment("count", 0).await.unwrap();
    assert!((certain..=certain + doubtful).contains(&count), "{certain} + {doubtful} at most, and it is {count}");
    assert!(doubtful > 0, "the cuts met no increment");
    half_closes(proxy, bucket).await;
}

/// A server that stops for a while, and one that is gone.
pub(crate) async fn stopped(server: &mut Server, bucket: &dyn RemoteBucket) {
    recovered(bucket).await;
    let signal = |signal: &str, id: u32| {
        assert!(Command::new("kill").args([signal, &id.to_string()]).status().unwrap().success());
    };
    let id = server.children[0].id();
    signal("-STOP", id);
    // On a busy machine its other threads go on until one of them has taken the signal.
    let stopped = || std::fs::read_to_string(format!("/proc/{id}/stat")).is_ok_and(|stat| stat.contains(") T "));
    let begun = Instant::now();
    while !stopped() && begun.elapsed() < Duration::from_secs(10) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(timely(bucket.get("k")).await.is_err());
    assert!(timely(bucket.increment("k2", 1)).await.is_err());
    signal("-CONT", id);
    recovered(bucket).await;

    server.children[0].kill().unwrap();
    server.children[0].wait().unwrap();
    // A connection that breaks under the first call leaves it in doubt; from then on nothing is sent.
    let _ = timely(bucket.get("k")).await;
    let error = timely(bucket.get("k")).await.unwrap_err();
    assert!(matches!(error.code(), Code::Io | Code::Timeout | Code::Busy), "{error}");
    let error = timely(bucket.increment("k", 1)).await.unwrap_err();
    assert!(matches!(error.code(), Code::Io | Code::Busy), "nothing was sent, so nothing is in doubt: {error}");
}

/// Batches of several pieces: one with a key that is too long is refused before anything of it is sent; one that the server, which has
/// room for half of it, breaks off is in doubt, because its first pieces are written.
pub(crate) async fn pieces(bucket: &dyn RemoteBucket) {
    let keys: Vec<String> = (0..1_200).map(|i| format!("key {i}")).collect();
    let long = "k".repeat(70_000);
    let mut pairs: Vec<(Key<'_>, &[u8])> = keys.iter().map(|key| (Key::from(key.as_str()), &b"value"[..])).collect();
    pairs.push((Key::from(long.as_str()), b"value"));
    assert_eq!(bucket.set_many(&pairs).await.unwrap_err().code(), Code::TooLarge);
    assert!(!bucket.exists(&keys[0]).await.unwrap(), "some of a batch that was refused is written");

    let large = vec![b'v'; 1_000_000];
    let pairs: Vec<(Key<'_>, &[u8])> = keys[..40].iter().map(|key| (Key::from(key.as_str()), &large[..])).collect();
    assert_eq!(bucket.set_many(&pairs).await.unwrap_err().code(), Code::Indeterminate);
    assert!(bucket.exists(&keys[0]).await.unwrap() && !bucket.exists(&keys[39]).await.unwrap());
}

/// What increments have told while something went wrong.
#[derive(Default)]
pub(crate) struct Counted {
    certain: i64,
    doubtful: i64,
}

/// Counts for a while, each call in its time, and after a call that failed until one is applied again; says what was told.
async fn counting(bucket: Arc<dyn RemoteBucket>, least: Duration) -> Counted {
    let (begun, mut counted, mut failed) = (Instant::now(), Counted::default(), false);
    while begun.elapsed() < least || failed {
        match timely(bucket.increment("count", 1)).await {
            Ok(_) => {
                counted.certain += 1;
                failed = false;
            }
            Err(error) => {
                failed = true;
                counted.doubtful += i64::from(error.code() == Code::Indeterminate);
                let known = matches!(error.code(), Code::Indeterminate | Code::Busy | Code::Io | Code::Timeout);
                assert!(known && begun.elapsed() < least + Duration::from_secs(20), "still {error}");
            }
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    counted
}

/// One of several servers is killed in the midst of counting: calls end in time, the others go on, and nothing is counted twice. Where
/// `durable`, nothing that was told is lost.
pub(crate) async fn one_dies(server: &mut Server, victim: usize, bucket: Arc<dyn RemoteBucket>, durable: bool) {
    recovered(&*bucket).await;
    bucket.set("count", b"0").await.unwrap();
    let counting = tokio::spawn(counting(bucket.clone(), Duration::from_secs(5)));
    tokio::time::sleep(Duration::from_millis(500)).await;
    server.children[victim].kill().unwrap();
    server.children[victim].wait().unwrap();
    let counted = counting.await.unwrap();
    // Keys of every server.
    for i in 0..200 {
        let begun = Instant::now();
        while let Err(error) = timely(bucket.set(&format!("key {i}"), b"v")).await {
            assert!(begun.elapsed() < Duration::from_secs(20), "key {i}: still {error}");
        }
    }
    let count = bucket.increment("count", 0).await.unwrap();
    let expected = if durable { counted.certain } else { 1 }..=counted.certain + counted.doubtful;
    assert!(expected.contains(&count), "{expected:?}, and it is {count}");
}

/// Slots move from node to node in the midst of counting and writing: every call is applied once, by whoever has the slot now.
pub(crate) async fn slots_move(server: &Server, bucket: Arc<dyn RemoteBucket>) {
    recovered(&*bucket).await;
    let keys: Vec<String> = (0..300).map(|i| format!("key {i}")).collect();
    let pairs: Vec<(Key<'_>, &[u8])> = keys.iter().map(|key| (Key::from(key.as_str()), key.as_bytes())).collect();
    bucket.set_many(&pairs).await.unwrap();
    bucket.set("count", b"0").await.unwrap();
    let bounds = PageBounds { keys_max: 40, bytes_max: 1 << 20, entries_max: 1_000 };
    let mut page = bucket.list("key ", None, bounds).await.unwrap();
    let counting = tokio::spawn(counting(bucket.clone(), Duration::from_secs(6)));
    let ports = server.ports.clone();
    let moved = tokio::task::spawn_blocking(move || {
        let id = |port: u16| {
            let told = Command::new("redis-cli").args(["-p", &port.to_string(), "cluster", "myid"]).output().unwrap();
            String::from_utf8(told.stdout).unwrap().trim().to_owned()
        };
        // There and back, so that some slots are asked for while they are on their way.
        for (from, to) in [(0, 1), (1, 2), (2, 0)] {
            let output = Command::new("redis-cli")
                .args(["--cluster", "reshard", &format!("127.0.0.1:{}", ports[0]), "--cluster-yes"])
                .args(["--cluster-from", &id(ports[from]), "--cluster-to", &id(ports[to]), "--cluster-slots", "2000"])
                .output()
                .unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        }
    });
    moved.await.unwrap();
    let counted = counting.await.unwrap();
    let count = bucket.increment("count", 0).await.unwrap();
    let expected = counted.certain..=counted.certain + counted.doubtful;
    assert!(counted.certain > 0 && expected.contains(&count), "{expected:?}, and it is {count}");
    // A listing that began before goes on after: each key once.
    let mut listed = std::mem::take(&mut page.keys);
    while let Some(after) = page.next {
        page = bucket.list("key ", Some(&after), bounds).await.unwrap();
        listed.append(&mut page.keys);
    }
    let mut listed: Vec<String> = listed.iter().map(|key| key.to_string()).collect();
    let mut expected = keys.clone();
    listed.sort();
    expected.sort();
    assert_eq!(listed, expected);
    for key in &keys {
        assert_eq!(bucket.get(key).await.unwrap().as_deref(), Some(key.as_bytes()), "{key}");
        bucket.set(key, b"again").await.unwrap();
    }
    let names: Vec<Key<'_>> = keys.iter().map(|key| Key::from(key.as_str())).collect();
    let found = bucket.get_many(&names).await.unwrap();
    assert!(found.iter().all(|pair| pair.as_ref().is_some_and(|(_, value)| &**value == b"again")));
}

/// A future that is dropped before it is done leaves nothing behind that a later call could take for its own.
pub(crate) async fn dropped(proxy: &Proxy, bucket: &dyn RemoteBucket) {
    bucket.set("a", b"value of a").await.unwrap();
    bucket.set("b", b"value of b").await.unwrap();
    proxy.set(Mode::Delay(Duration::from_millis(5)));
    for wait in 0..40 {
        let cut = tokio::time::timeout(Duration::from_micros(500 * wait), bucket.get("a")).await;
        if let Ok(answer) = cut {
            assert_eq!(answer.unwrap().as_deref(), Some(&b"value of a"[..]));
        }
        assert_eq!(bucket.get("b").await.unwrap().as_deref(), Some(&b"value of b"[..]));
    }
    proxy.set(Mode::Pass);
}
