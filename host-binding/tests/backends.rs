//! Back ends behind a network, each against a real server that the test starts: what every call must do, and what it must do when the
//! network or the server does not.
//!
//! Flow: `servers` (a process on a free loopback port, a directory of its own, gone at the end) -> `remote::connect` ->
//! `conformance::all` (the cases of semantics, on the trait) and `faults` (through a proxy that delays, cuts and counts).
//! A server that is not installed: the test says `skipped` and passes on a user's machine; it fails where CI is set.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "backends/conformance.rs"]
mod conformance;
#[path = "backends/faults.rs"]
mod faults;
#[path = "backends/moves.rs"]
#[cfg(any(feature = "redis", feature = "etcd", feature = "memcached"))]
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

    #[test]
    fn a_component_moves_to_redis_and_back() {
        let Some(server) = servers::redis() else { return };
        moves::there_and_back(&server);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn redis_calls_are_one_round_trip() {
        let Some(server) = servers::redis() else { return };
        let (proxy, bucket) = faults::through(&server).await;
        faults::round_trips(&proxy, &*bucket, 1).await;
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
        let Some(cluster) = servers::redis_cluster() else { return };
        conformance::all(&*connected(&cluster.url).await).await;
    }
}

#[cfg(feature = "etcd")]
mod etcd {
    use super::*;

    #[test]
    fn a_component_moves_to_etcd_and_back() {
        let Some(server) = servers::etcd(1) else { return };
        moves::there_and_back(&server);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn etcd_calls_are_one_round_trip() {
        let Some(server) = servers::etcd(1) else { return };
        let (proxy, bucket) = faults::through(&server).await;
        faults::round_trips(&proxy, &*bucket, 2).await;
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
    async fn three_etcd_nodes_conform_and_live_without_one() {
        let Some(mut servers) = servers::etcd(3) else { return };
        conformance::all(&*connected(&servers.url).await).await;
        let bucket = faults::bucket(&servers.url).await;
        faults::one_of_several_dies(&mut servers, &*bucket).await;
    }
}

#[cfg(feature = "memcached")]
mod memcached {
    use super::*;

    #[test]
    fn a_component_moves_to_memcached_and_back() {
        let Some(server) = servers::memcached() else { return };
        moves::there_and_back(&server);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn memcached_calls_are_one_round_trip() {
        let Some(server) = servers::memcached() else { return };
        let (proxy, bucket) = faults::through(&server).await;
        faults::round_trips(&proxy, &*bucket, 2).await;
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
