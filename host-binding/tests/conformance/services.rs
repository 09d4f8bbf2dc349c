//! The whole suite on services: each case with a guest, over a real server that the test starts, under names of its own.
//!
//! `KVASI_CONFORMANCE_DIR` names a directory that takes a line a case of each service: what `docs/conformance.md` is made of.

use crate::guest::Language;
use crate::servers::{self, Server};
use crate::target::{Host, Target};
use crate::{atomics, batch, limits, list, store};
use std::panic::{AssertUnwindSafe, catch_unwind};

fn every_case(service: &str, server: Option<Server>) {
    let Some(server) = server else { return };
    let separator = if server.url.contains('?') { '&' } else { '?' };
    run(service, |case| Target::service(&format!("{}{separator}prefix=c{case}.", server.url)));
}

fn run(place: &str, target: impl Fn(usize) -> Target) {
    let files = [store::CASES, list::CASES, atomics::CASES, batch::CASES, limits::CASES];
    let mut lines = String::new();
    let mut failed = Vec::new();
    for (i, (name, case)) in files.into_iter().flatten().enumerate() {
        let call = || case(&mut Host::new(Language::C, target(i)));
        let passed = catch_unwind(AssertUnwindSafe(call)).is_ok();
        if !passed {
            failed.push(*name);
        }
        lines += &format!("{name}\t{}\n", if passed { "pass" } else { "fail" });
    }
    if let Some(dir) = std::env::var_os("KVASI_CONFORMANCE_DIR") {
        std::fs::write(std::path::Path::new(&dir).join(place), lines).unwrap();
    }
    assert!(failed.is_empty(), "{place}: {failed:?}");
}

#[test]
fn every_case_on_engine() {
    run("engine", |_| Target::engine());
}

#[cfg(feature = "redis")]
#[test]
fn every_case_on_redis() {
    every_case("redis", servers::redis());
}

#[cfg(feature = "redis")]
#[test]
fn every_case_on_redis_cluster() {
    every_case("redis-cluster", servers::redis_cluster(0));
}

#[cfg(feature = "etcd")]
#[test]
fn every_case_on_etcd() {
    every_case("etcd", servers::etcd(1));
}

#[cfg(feature = "memcached")]
#[test]
fn every_case_on_memcached() {
    every_case("memcached", servers::memcached());
}

#[cfg(feature = "dynamodb")]
#[test]
fn every_case_on_dynamodb() {
    every_case("dynamodb", servers::dynamodb());
}

#[cfg(feature = "firestore")]
#[test]
fn every_case_on_firestore() {
    every_case("firestore", servers::firestore());
}

#[cfg(feature = "cosmosdb")]
#[test]
fn every_case_on_cosmosdb() {
    every_case("cosmosdb", servers::cosmosdb(true));
}
