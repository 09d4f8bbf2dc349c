//! Back ends behind a network, each against a real server that the test starts: what every call must do, and what it must do when the
//! network or the server does not.
//!
//! Flow: `servers` (a process on a free loopback port, a directory of its own, gone at the end) -> `remote::connect` ->
//! `conformance::all` (the cases of semantics, on the trait), `suite` (the command `kvasi conformance`: all cases, by a component) and `faults` (through a proxy that delays, cuts and counts).
//! A server that is not installed: the test says `skipped` and passes on a user's machine; it fails where CI is set.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "backends/conformance.rs"]
mod conformance;
#[cfg(feature = "cosmosdb")]
#[path = "backends/cosmos_fake.rs"]
mod cosmos_fake;
#[path = "backends/faults.rs"]
mod faults;
#[path = "watcher/host.rs"]
#[cfg(feature = "cli")]
mod host;
#[path = "backends/http.rs"]
#[cfg(any(feature = "cosmosdb", feature = "dynamodb"))]
mod http;
#[path = "backends/moves.rs"]
#[cfg(feature = "cli")]
mod moves;
#[path = "backends/proxy.rs"]
mod proxy;
#[path = "backends/servers.rs"]
mod servers;
#[path = "watcher/silent.rs"]
#[cfg(feature = "cli")]
mod silent;
#[path = "backends/suite.rs"]
#[cfg(feature = "cli")]
mod suite;
#[path = "backends/throttled.rs"]
#[cfg(feature = "dynamodb")]
mod throttled;
#[path = "backends/tls.rs"]
#[cfg(any(feature = "etcd", feature = "redis"))]
mod tls;
#[path = "backends/watching.rs"]
#[cfg(feature = "cli")]
mod watching;

use kvasi_wasmtime::backend::remote::{Policy, RemoteBackend, connect};
use std::sync::Arc;

#[allow(dead_code, reason = "used by whichever back ends this build has")]
async fn connected(url: &str) -> Arc<dyn RemoteBackend> {
    // A machine that is busy is no fault of the server's.
    let policy = Policy { timeout: std::time::Duration::from_secs(30), ..Policy::default() };
    connect(&url.parse().unwrap(), policy).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_as_the_measure_of_the_cases() {
    conformance::all(&conformance::Memories::default()).await;
}

#[cfg(feature = "cli")]
#[test]
fn every_case_on_the_engine() {
    let dir = tempfile::tempdir().unwrap();
    suite::passes("engine", dir.path().to_str().unwrap(), &[]);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "what the run made is gone");
}

#[cfg(feature = "redis")]
mod redis {
    use super::*;
    use kvasi_wasmtime::Code;

    #[cfg(feature = "cli")]
    #[test]
    fn redis_tells_of_changes_while_somebody_follows_and_says_when_some_were_missed() {
        let Some(server) = servers::redis_with(&["--notify-keyspace-events", "Kg$xe"]) else { return };
        for (database, more) in [("", ""), ("/3", "?prefix=p*[")] {
            let world = watching::World::of(&format!("{}{database}{more}", server.url));
            watching::changes(&world);
            let mut service = world.service("new").unwrap();
            world.bucket.set_with("short", b"v", short()).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(300));
            let told = world.settle(&mut service);
            assert!(told.iter().any(|told| told == &host::pair("short", "deleted")), "{told:?}");
            // The server forgets who listened.
            servers::answer(server.ports[0], b"CLIENT KILL TYPE pubsub\r\n").unwrap();
            world.lags(&mut service);
            world.bucket.set("z", b"1").unwrap();
            assert_eq!(world.settle(&mut service), [host::pair("z", "1")]);
            drop(service);
            world.bucket.set("while", b"yes").unwrap();
            let mut service = world.service("new").unwrap();
            assert!(matches!(service.step(std::time::Duration::ZERO).unwrap(), kvasi_wasmtime::Step::Lagged));
            world.bucket.set("z", b"2").unwrap();
            assert_eq!(world.settle(&mut service), [host::pair("z", "2")]);
        }
    }

    #[cfg(feature = "cli")]
    fn short() -> kvasi_wasmtime::backend::SetOptions {
        let mut options = kvasi_wasmtime::backend::SetOptions::default();
        options.ttl = Some(std::time::Duration::from_millis(100));
        options
    }

    #[cfg(feature = "cli")]
    #[test]
    fn a_server_that_tells_of_nothing_is_found_out() {
        let Some(server) = servers::redis() else { return };
        let error = watching::World::of(&server.url).service("test").unwrap_err();
        assert_eq!(error.code(), kvasi_wasmtime::Code::Unsupported);
        assert!(error.to_string().contains("notify-keyspace-events"), "{error}");
    }

    #[cfg(feature = "cli")]
    #[test]
    fn every_case_on_redis() {
        let Some(server) = servers::redis() else { return };
        suite::passes("redis", &server.url, suite::IN_PIECES);
    }

    #[cfg(feature = "cli")]
    #[test]
    fn every_case_on_redis_cluster() {
        let Some(server) = servers::redis_cluster(0) else { return };
        suite::passes("redis-cluster", &server.url, suite::UNORDERED);
    }

    #[cfg(feature = "cli")]
    #[test]
    fn a_component_moves_to_redis_and_back() {
        let Some(server) = servers::redis() else { return };
        moves::there_and_back(&server, moves::PAGES);
    }

    #[cfg(feature = "cli")]
    #[test]
    fn a_copy_to_redis_that_is_killed_goes_on_where_it_was() {
        let Some(server) = servers::redis() else { return };
        moves::killed_and_resumed(&server);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn redis_calls_are_one_round_trip() {
        let Some(server) = servers::redis() else { return };
        let (proxy, bucket) = faults::calmly_through(&server).await;
        faults::round_trips(&proxy, &*bucket, faults::capabilities(&server.url).await, faults::Trips::ONE).await;
        faults::dropped(&proxy, &*bucket).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn redis_calls_end_in_time_and_are_never_applied_twice() {
        let Some(mut server) = servers::redis() else { return };
        let (proxy, bucket) = faults::through(&server).await;
        faults::silence(&proxy, &*bucket).await;
        faults::cuts(&proxy, &*bucket).await;
        let direct = faults::bucket(&server.url).await;
        faults::stopped(&mut server, &*direct).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn redis_by_tls_is_checked_on_both_sides() {
        let files = tls::Certificates::of(&["127.0.0.1"]);
        let Some(server) = servers::redis_tls(&files) else { return };
        tls::is_checked_on_both_sides(&server.url, &files).await;
        let files = tls::Certificates::of(&["kvasi.example"]);
        let Some(server) = servers::redis_tls(&files) else { return };
        tls::another_name_is_refused(&server.url, &files).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn redis_cluster_by_tls_is_checked_on_both_sides() {
        let files = tls::Certificates::of(&["127.0.0.1"]);
        let Some(server) = servers::redis_cluster_tls(&files) else { return };
        tls::is_checked_on_both_sides(&server.url, &files).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_password_is_needed_and_never_told() {
        let Some(server) = servers::redis_with(&["--requirepass", "right:secret"]) else { return };
        let with = |authority: &str| server.url.replace("redis://", &format!("redis://{authority}@"));
        let bucket = faults::bucket(&with(":right%3Asecret")).await;
        bucket.set("k", b"v").await.unwrap();
        for authority in [":wrong-secret", "secret-user:right%3Asecret"] {
            let error = faults::bucket(&with(authority)).await.get("k").await.unwrap_err();
            faults::nameless(&error);
            assert_eq!(error.code(), Code::Io, "{error}");
        }
        let error = faults::bucket(&server.url).await.get("k").await.unwrap_err();
        assert!(error.code() == Code::Io && error.to_string().contains("NOAUTH"), "{error}");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn redis_batches_that_break_off_say_so() {
        let Some(server) = servers::redis() else { return };
        assert!(servers::answer(server.ports[0], b"CONFIG SET maxmemory 24mb\r\n").is_some());
        faults::pieces(&*connected(&server.url).await.bucket("pieces").unwrap()).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn redis_conforms() {
        let Some(server) = servers::redis() else { return };
        conformance::all(&*connected(&server.url).await).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn redis_cluster_conforms() {
        let Some(cluster) = servers::redis_cluster(0) else { return };
        conformance::all(&*connected(&cluster.url).await).await;
        faults::slots_move(&cluster, faults::bucket(&cluster.url).await).await;
    }

    /// What a replica has not yet when its master dies is lost with that server, whatever the client does.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn redis_cluster_lives_without_one_of_its_masters() {
        let Some(mut cluster) = servers::redis_cluster(1) else { return };
        let bucket = faults::bucket(&cluster.url).await;
        faults::one_dies(&mut cluster, 0, bucket, false).await;
    }
}

#[cfg(feature = "etcd")]
mod etcd {
    use super::*;

    #[cfg(feature = "cli")]
    #[test]
    fn etcd_tells_of_every_change_also_of_those_while_nobody_followed() {
        let Some(server) = servers::etcd(1) else { return };
        // A prefix, and none: the watch is of that range.
        for prefix in ["", "&prefix=p/"] {
            let world = watching::World::of(&format!("{}{prefix}", server.url));
            watching::changes(&world);
            world.bucket.set("while", b"no").unwrap();
            let mut service = world.service("test").unwrap();
            assert_eq!(world.settle(&mut service), [host::pair("while", "no")]);
            drop(service);
            // What is compacted away is missed, and that is said.
            world.bucket.set("gone", b"1").unwrap();
            world.bucket.set("gone", b"2").unwrap();
            let ask = |call: &str, body: &str| {
                let head = format!("POST /v3/kv/{call} HTTP/1.0\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                String::from_utf8(servers::answer(server.ports[0], head.as_bytes()).unwrap()).unwrap()
            };
            let told = ask("range", "{\"key\":\"AA==\"}");
            let revision = told.split_once("\"revision\":\"").unwrap().1.split('"').next().unwrap();
            ask("compaction", &format!("{{\"revision\":\"{revision}\"}}"));
            let mut service = world.service("test").unwrap();
            world.lags(&mut service);
            world.bucket.set("z", b"").unwrap();
            assert_eq!(world.settle(&mut service).last(), Some(&host::pair("z", "")));
        }
        watching::command(&server);
    }

    #[cfg(feature = "cli")]
    #[test]
    fn a_watch_of_etcd_that_breaks_misses_nothing() {
        let Some(server) = servers::etcd(1) else { return };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let proxy = runtime.block_on(proxy::Proxy::to(server.ports[0]));
        let world = watching::World::of(&server.url.replace(&server.ports[0].to_string(), &proxy.port.to_string()));
        let direct = watching::World::of(&server.url);
        let mut service = world.service("test").unwrap();
        for i in 0..5 {
            direct.bucket.set("k", i.to_string().as_bytes()).unwrap();
            proxy.set(proxy::Mode::CutAnswer { bytes: 20, reset: true });
            direct.bucket.set("k", b"again").unwrap();
        }
        // Silence, for longer than any call of the client may take.
        std::thread::sleep(std::time::Duration::from_millis(2500));
        direct.bucket.set("k", b"last").unwrap();
        let told = world.settle(&mut service);
        assert_eq!(told.iter().filter(|(_, value)| value != "again").count(), 6, "{told:?}");
        assert_eq!((told.len(), told.last()), (11, Some(&host::pair("k", "last"))));
    }

    #[cfg(feature = "cli")]
    #[test]
    fn every_case_on_etcd() {
        let Some(server) = servers::etcd(1) else { return };
        suite::passes("etcd", &server.url, suite::IN_PIECES);
    }

    #[cfg(feature = "cli")]
    #[test]
    fn a_component_moves_to_etcd_and_back() {
        let Some(server) = servers::etcd(1) else { return };
        moves::there_and_back(&server, moves::PAGES);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn etcd_calls_are_one_round_trip() {
        let Some(server) = servers::etcd(1) else { return };
        let (proxy, bucket) = faults::calmly_through(&server).await;
        faults::round_trips(
            &proxy,
            &*bucket,
            faults::capabilities(&server.url).await,
            faults::Trips { increment: 2, ..faults::Trips::ONE },
        )
        .await;
        faults::dropped(&proxy, &*bucket).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn etcd_calls_end_in_time_and_are_never_applied_twice() {
        let Some(mut server) = servers::etcd(1) else { return };
        let (proxy, bucket) = faults::through(&server).await;
        faults::silence(&proxy, &*bucket).await;
        faults::cuts(&proxy, &*bucket).await;
        let direct = faults::bucket(&server.url).await;
        faults::stopped(&mut server, &*direct).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn etcd_by_tls_is_checked_on_both_sides() {
        let files = tls::Certificates::of(&["127.0.0.1"]);
        let Some(server) = servers::etcd_tls(&files) else { return };
        tls::is_checked_on_both_sides(&server.url, &files).await;
        let files = tls::Certificates::of(&["kvasi.example"]);
        let Some(server) = servers::etcd_tls(&files) else { return };
        tls::another_name_is_refused(&server.url, &files).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn etcd_batches_that_break_off_say_so() {
        let Some(server) = servers::etcd_with(1, &["--quota-backend-bytes=24000000"]) else { return };
        faults::pieces(&*connected(&server.url).await.bucket("pieces").unwrap()).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn etcd_conforms() {
        let Some(server) = servers::etcd(1) else { return };
        conformance::all(&*connected(&server.url).await).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn three_etcd_nodes_conform_and_live_without_their_leader() {
        let Some(mut servers) = servers::etcd(3) else { return };
        conformance::all(&*connected(&servers.url).await).await;
        let bucket = faults::bucket(&servers.url).await;
        let leader = servers::etcd_leader(&servers);
        faults::one_dies(&mut servers, leader, bucket, true).await;
    }
}

#[cfg(feature = "memcached")]
mod memcached {
    use super::*;

    #[cfg(feature = "cli")]
    #[test]
    fn memcached_tells_of_no_changes_and_that_is_said() {
        let Some(server) = servers::memcached() else { return };
        let error = watching::World::of(&server.url).service("test").unwrap_err();
        assert_eq!(error.code(), kvasi_wasmtime::Code::Unsupported);
        assert!(error.to_string().contains("tells of no changes"), "{error}");
    }

    #[cfg(feature = "cli")]
    #[test]
    fn every_case_on_memcached() {
        let Some(server) = servers::memcached() else { return };
        suite::passes("memcached", &server.url, suite::IN_PIECES);
    }

    #[cfg(feature = "cli")]
    #[test]
    fn a_component_moves_to_memcached_and_back() {
        let Some(server) = servers::memcached() else { return };
        moves::there_and_back(&server, moves::PAGES);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn memcached_calls_are_one_round_trip() {
        let Some(server) = servers::memcached() else { return };
        let (proxy, bucket) = faults::calmly_through(&server).await;
        faults::round_trips(
            &proxy,
            &*bucket,
            faults::capabilities(&server.url).await,
            faults::Trips { increment: 2, ..faults::Trips::ONE },
        )
        .await;
        faults::dropped(&proxy, &*bucket).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn memcached_calls_end_in_time_and_are_never_applied_twice() {
        let Some(mut server) = servers::memcached() else { return };
        let (proxy, bucket) = faults::through(&server).await;
        faults::silence(&proxy, &*bucket).await;
        faults::cuts(&proxy, &*bucket).await;
        let direct = faults::bucket(&server.url).await;
        faults::stopped(&mut server, &*direct).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn memcached_that_dumps_no_keys_lists_none_and_says_why() {
        let Some(server) = servers::memcached_with(&["-o", "no_lru_crawler"]) else { return };
        let bucket = connected(&server.url).await.bucket("b").unwrap();
        bucket.set("k", b"v").await.unwrap();
        let bounds = kvasi_wasmtime::backend::PageBounds { keys_max: 10, bytes_max: 1 << 20, entries_max: 100 };
        for prefix in ["", "k"] {
            let error = bucket.list(prefix, None, bounds).await.unwrap_err();
            assert_eq!(error.code(), kvasi_wasmtime::Code::Unsupported);
            assert!(error.to_string().contains("lru_crawler"), "{error}");
        }
        assert_eq!(bucket.get("k").await.unwrap().as_deref(), Some(&b"v"[..]), "all else goes on");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn memcached_conforms() {
        let Some(server) = servers::memcached() else { return };
        conformance::all(&*connected(&server.url).await).await;
    }
}

#[cfg(feature = "dynamodb")]
mod dynamodb {
    use super::*;

    #[cfg(feature = "cli")]
    #[test]
    fn every_case_on_dynamodb() {
        let Some(server) = servers::dynamodb() else { return };
        suite::passes("dynamodb", &server.url, suite::IN_PIECES);
    }

    #[cfg(feature = "cli")]
    #[test]
    fn a_component_moves_to_dynamodb_and_back() {
        let Some(server) = servers::dynamodb() else { return };
        moves::there_and_back(&server, moves::FEW);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn dynamodb_calls_are_one_round_trip() {
        let Some(server) = servers::dynamodb() else { return };
        let (proxy, bucket) = faults::calmly_through(&server).await;
        // The service takes 25 writes at once.
        let expected = faults::Trips { set_many: 4, delete_many: 4, ..faults::Trips::ONE };
        faults::round_trips(&proxy, &*bucket, faults::capabilities(&server.url).await, expected).await;
        faults::dropped(&proxy, &*bucket).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn dynamodb_calls_end_in_time_and_are_never_applied_twice() {
        let Some(mut server) = servers::dynamodb() else { return };
        let (proxy, bucket) = faults::through(&server).await;
        faults::silence(&proxy, &*bucket).await;
        faults::cuts(&proxy, &*bucket).await;
        let direct = faults::bucket(&server.url).await;
        faults::stopped(&mut server, &*direct).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_dynamodb_leaves_undone_is_asked_for_again() {
        let Some(server) = servers::dynamodb() else { return };
        throttled::batches_are_finished_or_say_so(&server).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn dynamodb_conforms() {
        let Some(server) = servers::dynamodb() else { return };
        conformance::all(&*connected(&server.url).await).await;
    }
}

#[cfg(feature = "firestore")]
mod firestore {
    use super::*;

    #[cfg(feature = "cli")]
    #[test]
    fn every_case_on_firestore() {
        let Some(server) = servers::firestore_shared() else { return };
        suite::passes("firestore", &server.url, suite::IN_PIECES);
    }

    #[cfg(feature = "cli")]
    #[test]
    fn a_component_moves_to_firestore_and_back() {
        let Some(server) = servers::firestore_shared() else { return };
        moves::there_and_back(&server, moves::FEW);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn firestore_calls_are_one_round_trip() {
        let Some(server) = servers::firestore_shared() else { return };
        let (proxy, bucket) = faults::calmly_through(&server).await;
        faults::round_trips(
            &proxy,
            &*bucket,
            faults::capabilities(&server.url).await,
            faults::Trips { increment: 2, ..faults::Trips::ONE },
        )
        .await;
        faults::dropped(&proxy, &*bucket).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn firestore_calls_end_in_time_and_are_never_applied_twice() {
        let Some(mut server) = servers::firestore() else { return };
        let (proxy, bucket) = faults::through(&server).await;
        faults::silence(&proxy, &*bucket).await;
        faults::cuts(&proxy, &*bucket).await;
        let direct = faults::bucket(&server.url).await;
        faults::stopped(&mut server, &*direct).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn firestore_conforms() {
        let Some(server) = servers::firestore_shared() else { return };
        conformance::all(&*connected(&server.url).await).await;
    }
}

#[cfg(feature = "cosmosdb")]
mod cosmosdb {
    use super::*;
    use kvasi_wasmtime::Code;

    #[cfg(feature = "cli")]
    #[test]
    fn every_case_on_cosmosdb() {
        let Some(server) = servers::cosmosdb(true) else { return };
        suite::passes("cosmosdb", &server.url, suite::UNORDERED);
    }

    #[cfg(feature = "cli")]
    #[test]
    fn a_component_moves_to_cosmosdb_and_back() {
        let Some(server) = servers::cosmosdb(false) else { return };
        moves::there_and_back(&server, moves::FEW);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn cosmosdb_calls_are_one_round_trip() {
        let Some(server) = servers::cosmosdb(false) else { return };
        let (proxy, bucket) = faults::calmly_through(&server).await;
        // Writes go one by one, several at a time.
        let expected = faults::Trips { increment: 2, set_many: 100, get_many: 1, delete_many: 100 };
        faults::round_trips(&proxy, &*bucket, faults::capabilities(&server.url).await, expected).await;
        faults::dropped(&proxy, &*bucket).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn cosmosdb_calls_end_in_time_and_are_never_applied_twice() {
        let Some(mut server) = servers::cosmosdb(false) else { return };
        let (proxy, bucket) = faults::through(&server).await;
        faults::silence(&proxy, &*bucket).await;
        faults::cuts(&proxy, &*bucket).await;
        let direct = faults::bucket(&server.url).await;
        faults::stopped(&mut server, &*direct).await;
    }

    /// The stand-in tells one request in 97 to come back later: all of this goes on through that.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn cosmosdb_conforms() {
        let Some(server) = servers::cosmosdb(true) else { return };
        conformance::all(&*connected(&server.url).await).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_wrong_key_and_a_container_that_is_not_there_are_errors_and_no_absence() {
        let Some(server) = servers::cosmosdb(false) else { return };
        let elsewhere = server.url.replace("/kvasi/tests", "/kvasi/other").replace("&create=true", "");
        let wrong = server.url.replacen("C2y6", "AAAA", 1).replace("&create=true", "");
        for url in [elsewhere, wrong] {
            let bucket = connected(&url).await.bucket("b").unwrap();
            for error in [
                bucket.get("k").await.unwrap_err(),
                bucket.delete("k").await.unwrap_err(),
                bucket.increment("k", 1).await.unwrap_err(),
                bucket.set("k", b"v").await.unwrap_err(),
                bucket.swap("k", &kvasi_wasmtime::backend::Guard::Absent, b"v").await.unwrap_err(),
            ] {
                assert_eq!(error.code(), Code::Io, "{error}");
            }
        }
    }

    /// What that server does as the service does: it answers a read of what is not there with a failure, so the calls that read
    /// before they write are not asked of it.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn cosmosdb_server_is_understood() {
        let Some(server) = servers::cosmosdb_server() else { return };
        let bucket = connected(&server.url).await.bucket("smoke").unwrap();
        for (key, value) in [("a", &b"1"[..]), ("b/\u{e9}", b"\0\xff"), ("", b"")] {
            bucket.set(key, value).await.unwrap();
            assert_eq!(bucket.get(key).await.unwrap().as_deref(), Some(value), "{key:?}");
            assert!(bucket.exists(key).await.unwrap());
        }
        assert_eq!(bucket.increment("a", 41).await.unwrap(), 42);
        let before = bucket.observe("a").await.unwrap();
        bucket.set("a", b"42").await.unwrap();
        let lost = bucket.swap("a", &before.guard, b"lost").await.unwrap();
        let kvasi_wasmtime::backend::Swap::Conflict(now) = lost else { panic!("it was written since") };
        assert!(matches!(bucket.swap("a", &now.guard, b"won").await.unwrap(), kvasi_wasmtime::backend::Swap::Done));
        let created = bucket.swap("b/\u{e9}", &kvasi_wasmtime::backend::Guard::Absent, b"lost").await.unwrap();
        assert!(matches!(created, kvasi_wasmtime::backend::Swap::Conflict(_)));
        let keys = ["b/\u{e9}", "none", "a"].map(kvasi_wasmtime::backend::Key::from);
        let found = bucket.get_many(&keys).await.unwrap();
        let found: Vec<_> = found.iter().map(|pair| pair.as_ref().map(|(_, value)| &value[..])).collect();
        assert_eq!(found, [Some(&b"\0\xff"[..]), None, Some(b"won")]);
        let bounds = kvasi_wasmtime::backend::PageBounds { keys_max: 2, bytes_max: 1 << 20, entries_max: 100 };
        let first = bucket.list("", None, bounds).await.unwrap();
        let rest = bucket.list("", first.next.as_deref(), bounds).await.unwrap();
        assert_eq!((first.keys.len(), rest.keys.len(), rest.next), (2, 1, None));
        bucket.delete("a").await.unwrap();
    }
}
