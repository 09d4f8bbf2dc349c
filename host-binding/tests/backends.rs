//! Back ends behind a network, each against a real server that the test starts: what every call must do, and what it must do when the
//! network or the server does not.
//!
//! Flow: `servers` (a process on a free loopback port, a directory of its own, gone at the end) -> `remote::connect` ->
//! `conformance::all` (the cases of semantics, on the trait) and `faults` (through a proxy that delays, cuts and counts).
//! A server that is not installed: the test says `skipped` and passes on a user's machine; it fails where CI is set.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "backends/conformance.rs"]
mod conformance;
#[cfg(feature = "cosmosdb")]
#[path = "backends/cosmos_fake.rs"]
mod cosmos_fake;
#[path = "backends/faults.rs"]
mod faults;
#[path = "backends/moves.rs"]
#[cfg(feature = "cli")]
mod moves;
#[path = "backends/proxy.rs"]
mod proxy;
#[path = "backends/servers.rs"]
mod servers;

use kvasi_wasmtime::backend::remote::{Policy, RemoteBackend, connect};
use std::sync::Arc;

#[allow(dead_code, reason = "used by whichever back ends this build has")]
async fn connected(url: &str) -> Arc<dyn RemoteBackend> {
    connect(&url.parse().unwrap(), Policy::default()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_as_the_measure_of_the_cases() {
    conformance::all(&conformance::Memories::default()).await;
}

#[cfg(feature = "redis")]
mod redis {
    use super::*;

    #[cfg(feature = "cli")]
    #[test]
    fn a_component_moves_to_redis_and_back() {
        let Some(server) = servers::redis() else { return };
        moves::there_and_back(&server);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn redis_calls_are_one_round_trip() {
        let Some(server) = servers::redis() else { return };
        let (proxy, bucket) = faults::through(&server).await;
        faults::round_trips(&proxy, &*bucket, faults::Trips::ONE).await;
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
    fn a_component_moves_to_etcd_and_back() {
        let Some(server) = servers::etcd(1) else { return };
        moves::there_and_back(&server);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn etcd_calls_are_one_round_trip() {
        let Some(server) = servers::etcd(1) else { return };
        let (proxy, bucket) = faults::through(&server).await;
        faults::round_trips(&proxy, &*bucket, faults::Trips { increment: 2, ..faults::Trips::ONE }).await;
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
    fn a_component_moves_to_memcached_and_back() {
        let Some(server) = servers::memcached() else { return };
        moves::there_and_back(&server);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn memcached_calls_are_one_round_trip() {
        let Some(server) = servers::memcached() else { return };
        let (proxy, bucket) = faults::through(&server).await;
        faults::round_trips(&proxy, &*bucket, faults::Trips { increment: 2, ..faults::Trips::ONE }).await;
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
    fn a_component_moves_to_dynamodb_and_back() {
        let Some(server) = servers::dynamodb() else { return };
        moves::there_and_back(&server);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn dynamodb_calls_are_one_round_trip() {
        let Some(server) = servers::dynamodb() else { return };
        let (proxy, bucket) = faults::through(&server).await;
        // The service takes 25 writes at once.
        let expected = faults::Trips { set_many: 4, delete_many: 4, ..faults::Trips::ONE };
        faults::round_trips(&proxy, &*bucket, expected).await;
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
    fn a_component_moves_to_firestore_and_back() {
        let Some(server) = servers::firestore() else { return };
        moves::there_and_back(&server);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn firestore_calls_are_one_round_trip() {
        let Some(server) = servers::firestore() else { return };
        let (proxy, bucket) = faults::through(&server).await;
        faults::round_trips(&proxy, &*bucket, faults::Trips { increment: 2, ..faults::Trips::ONE }).await;
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
        let Some(server) = servers::firestore() else { return };
        conformance::all(&*connected(&server.url).await).await;
    }
}

#[cfg(feature = "cosmosdb")]
mod cosmosdb {
    use super::*;
    use kvasi_wasmtime::Code;

    #[cfg(feature = "cli")]
    #[test]
    fn a_component_moves_to_cosmosdb_and_back() {
        let Some(server) = servers::cosmosdb(false) else { return };
        moves::there_and_back(&server);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn cosmosdb_calls_are_one_round_trip() {
        let Some(server) = servers::cosmosdb(false) else { return };
        let (proxy, bucket) = faults::through(&server).await;
        // Writes go one by one, several at a time.
        let expected = faults::Trips { increment: 2, set_many: 100, get_many: 1, delete_many: 100 };
        faults::round_trips(&proxy, &*bucket, expected).await;
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
