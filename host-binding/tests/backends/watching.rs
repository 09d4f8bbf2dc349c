//! `watch-service` over a service that tells of changes: what the engine's tests ask (`tests/watcher.rs`), as far as the service can.

#![allow(dead_code, reason = "each back end uses some of it")]

use crate::host::{Log, State, options, pair, watch};
use crate::servers::Server;
use kvasi_wasmtime::backend::remote::{Blocking, Policy, connect};
use kvasi_wasmtime::backend::{Key, LocalBucket, Swap};
use kvasi_wasmtime::{Error, Step, WasiKeyValueCtx, WatchService};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// Longer than a loopback and a busy machine take.
const SILENCE: Duration = Duration::from_millis(400);
const PATIENCE: Duration = Duration::from_secs(20);

/// A service's buckets, and the threads that bring their answers.
pub(crate) struct World {
    runtime: Runtime,
    pub(crate) bucket: Arc<dyn LocalBucket>,
    other: Arc<dyn LocalBucket>,
    pub(crate) log: Log,
}

impl World {
    pub(crate) fn of(url: &str) -> World {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let policy = Policy { timeout: Duration::from_secs(2), ..Policy::default() };
        let service = runtime.block_on(connect(&url.parse().unwrap(), policy)).unwrap();
        let bucket = |name: &str| -> Arc<dyn LocalBucket> {
            Arc::new(Blocking::new(service.bucket(name).unwrap(), runtime.handle().clone()))
        };
        let (bucket, other) = (bucket("main"), bucket("another"));
        World { runtime, bucket, other, log: Log::default() }
    }

    pub(crate) fn service(&self, name: &str) -> Result<WatchService<State>, Error> {
        let ctx = WasiKeyValueCtx::builder().grant("guest's name", self.bucket.clone(), kvasi_wasmtime::Rights::ALL);
        watch(name, &ctx.build(), &self.log, options())
    }

    /// Steps until nothing comes for a while; what was logged meanwhile.
    pub(crate) fn settle(&self, service: &mut WatchService<State>) -> Vec<(String, String)> {
        let begun = Instant::now();
        loop {
            assert!(begun.elapsed() < PATIENCE, "it does not settle");
            match service.step(SILENCE).unwrap() {
                Step::Idle => return std::mem::take(&mut *self.log.lock().unwrap()),
                Step::Delivered(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Steps until the service says that it has missed something.
    pub(crate) fn lags(&self, service: &mut WatchService<State>) {
        let begun = Instant::now();
        while !matches!(service.step(SILENCE).unwrap(), Step::Lagged) {
            assert!(begun.elapsed() < PATIENCE, "it does not say so");
        }
    }
}

/// 60 to 62 and 64: one call for each change, in order, none for what changed nothing, and chains that end.
pub(crate) fn changes(world: &World) {
    let bucket = &world.bucket;
    bucket.set("before", b"nobody was there").unwrap();
    let mut service = world.service("test").unwrap();
    bucket.set("k", b"1").unwrap();
    bucket.increment("q", 4).unwrap();
    let seen = bucket.observe("s").unwrap();
    assert!(matches!(bucket.swap("s", &seen.guard, b"swapped").unwrap(), Swap::Done));
    assert!(matches!(bucket.swap("s", &seen.guard, b"lost").unwrap(), Swap::Conflict(_)));
    bucket.delete("none").unwrap();
    bucket.set_many(&[(Key::from("x"), b"3"), (Key::from("y/\u{e9}"), b"2")]).unwrap();
    world.other.set("k", b"not watched").unwrap();
    bucket.set("", b"").unwrap();
    let expected =
        [pair("k", "1"), pair("q", "4"), pair("s", "swapped"), pair("x", "3"), pair("y/\u{e9}", "2"), pair("", "")];
    assert_eq!(world.settle(&mut service), expected);
    bucket.delete_many(&[Key::from("x"), Key::from("none")]).unwrap();
    bucket.delete("k").unwrap();
    assert_eq!(world.settle(&mut service), [pair("x", "deleted"), pair("k", "deleted")]);
    // Eight steps, and no more; a write by somebody else begins anew.
    bucket.set("l", b"itself").unwrap();
    assert_eq!(world.settle(&mut service).len(), 8);
    bucket.set("a", b"in turn").unwrap();
    let told: Vec<String> = world.settle(&mut service).into_iter().map(|(key, _)| key).collect();
    assert_eq!(told, ["a", "b", "a", "b", "a", "b", "a", "b"]);
    bucket.set("e", b"").unwrap();
    assert_eq!(world.settle(&mut service), [pair("e", ""), pair("x", "")]);
    // A chain through two components is one.
    let mut other = world.service("other").unwrap();
    bucket.set("l", b"itself").unwrap();
    let begun = Instant::now();
    while [&mut service, &mut other]
        .map(|service| !matches!(service.step(SILENCE).unwrap(), Step::Idle))
        .contains(&true)
    {
        assert!(begun.elapsed() < PATIENCE, "the chain does not end");
    }
    let told = std::mem::take(&mut *world.log.lock().unwrap()).len();
    assert!((9..=510).contains(&told), "{told}");
}

/// The command, over the same: what was written before it ran is told where the service keeps it.
pub(crate) fn command(server: &Server) {
    let dir = tempfile::tempdir().unwrap();
    let component = dir.path().join("counts.wasm");
    std::fs::write(&component, crate::silent::watcher()).unwrap();
    let world = World::of(&server.url);
    let kvasi = |component: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kvasi"));
        command.arg("watch").arg(component).args(["--store", &server.url, "--bucket", "=main", "--once"]);
        command.output().unwrap()
    };
    for counted in [0, 3] {
        let output = kvasi(&component);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(world.bucket.increment("count", 0).unwrap(), counted);
        for _ in 0..3 {
            // `i` has it count.
            world.bucket.set("i", b"").unwrap();
        }
    }
}
