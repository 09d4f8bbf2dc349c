//! What a back end does when the network or the server fails: calls end in time, nothing is applied twice in silence, and everything works
//! again afterwards.

#![allow(dead_code, reason = "each back end uses some of it")]

use crate::proxy::{Mode, Proxy};
use crate::servers::Server;
use kvasi_wasmtime::Code;
use kvasi_wasmtime::backend::Key;
use kvasi_wasmtime::backend::remote::{Policy, RemoteBucket, connect};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

const POLICY: Policy =
    Policy { timeout: Duration::from_millis(1_500), attempts_max: 4, pause: Duration::from_millis(20) };

pub(crate) async fn bucket(url: &str) -> Arc<dyn RemoteBucket> {
    connect(&url.parse().unwrap(), POLICY).await.unwrap().bucket("faults").unwrap()
}

/// Through a proxy: the server's URL with another port.
pub(crate) async fn through(server: &Server) -> (Proxy, Arc<dyn RemoteBucket>) {
    let proxy = Proxy::to(server.ports[0]).await;
    let bucket = bucket(&server.url.replace(&server.ports[0].to_string(), &proxy.port.to_string())).await;
    (proxy, bucket)
}

/// The answer of a call, which must come in time whatever happens.
async fn timely<R>(call: impl Future<Output = R>) -> R {
    let begun = Instant::now();
    let answer = call.await;
    assert!(begun.elapsed() < POLICY.timeout + Duration::from_secs(1), "took {:?}", begun.elapsed());
    answer
}

/// Calls until one succeeds: what a healed network or server must allow soon.
async fn recovered(bucket: &dyn RemoteBucket) {
    let begun = Instant::now();
    while let Err(error) = timely(bucket.set("recovered", b"v")).await {
        assert!(begun.elapsed() < Duration::from_secs(20), "still {error}");
    }
    assert_eq!(bucket.get("recovered").await.unwrap().as_deref(), Some(&b"v"[..]));
}

/// Which calls are one round trip.
pub(crate) async fn round_trips(proxy: &Proxy, bucket: &dyn RemoteBucket, increment: u64) {
    let keys: Vec<String> = (0..100).map(|i| format!("key {i}")).collect();
    let names: Vec<Key<'_>> = keys.iter().map(|key| Key::from(key.as_str())).collect();
    let pairs: Vec<(Key<'_>, &[u8])> = keys.iter().map(|key| (Key::from(key.as_str()), &b"value"[..])).collect();
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
    trips("increment", increment);
    bucket.set_many(&pairs).await.unwrap();
    trips("set-many of 100", 1);
    bucket.get_many(&names).await.unwrap();
    trips("get-many of 100", 1);
    bucket.set_many(&[]).await.unwrap();
    bucket.get_many(&[]).await.unwrap();
    bucket.delete_many(&[]).await.unwrap();
    trips("empty batches", 0);
}

/// Silence, delay, and answers that drip.
pub(crate) async fn silence(proxy: &Proxy, bucket: &dyn RemoteBucket) {
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
}

/// Connections that end in the midst of an answer or a request: an idempotent call is made again, and an increment is applied once if it
/// says so, and at most once if it cannot say.
pub(crate) async fn cuts(proxy: &Proxy, bucket: &dyn RemoteBucket) {
    recovered(bucket).await;
    bucket.set("count", b"0").await.unwrap();
    let (mut certain, mut doubtful) = (0, 0);
    for bytes in [0, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144] {
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
}

/// A server that stops for a while, and one that is gone.
pub(crate) async fn stopped(server: &mut Server, bucket: &dyn RemoteBucket) {
    recovered(bucket).await;
    let signal = |signal: &str, id: u32| {
        assert!(Command::new("kill").args([signal, &id.to_string()]).status().unwrap().success());
    };
    let id = server.children[0].id();
    signal("-STOP", id);
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

/// Of several servers one is killed: calls end in time, and go on with the others.
pub(crate) async fn one_of_several_dies(server: &mut Server, bucket: &dyn RemoteBucket) {
    recovered(bucket).await;
    server.children[0].kill().unwrap();
    server.children[0].wait().unwrap();
    recovered(bucket).await;
    let sum = bucket.increment("count", 1).await.unwrap();
    assert_eq!(sum, 1);
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
