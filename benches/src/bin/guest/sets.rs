//! Sets that are kept on disk, from inside a guest: kvasi beside SQLite as Spin uses it, and tuned, through the same binding.
//!
//! Flow: for each durability and number of guests, hosts take turns of half a second; every guest is a thread with an instance of its own.
//! Time is the wall's, because what is waited for is the disk; the middle turn counts. After each turn every store must hold what a
//! guest set.

use crate::Report;
use crate::bounds;
use crate::guest::{Call, Class, DICE, Run};
use crate::hosts::Hosts;
use crate::sqlite::{Sqlite, Way};
use kvasi::{Durability, Options, Store};
use kvasi_bench::{Result, median};
use kvasi_wasmtime::backend::{Backend, LocalBucket};
use serde::Serialize;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

const KEYS: Class = Class { first: 0, count: 100_000, value_bytes: 100 };
const TURN: Duration = Duration::from_millis(500);

#[derive(Serialize)]
struct Line<'a> {
    row: &'a str,
    guests: usize,
    host: &'a str,
    sets_per_s: f64,
    /// kvasi's rate over this host's.
    kvasi_times: Option<f64>,
    #[serde(flatten)]
    bound: Option<bounds::Bound>,
    within: Option<bool>,
}

pub(crate) fn compare(hosts: &Hosts, dir: &Path, turns: usize, report: &mut Report) -> Result<()> {
    println!("\nsets of 100 B over 100 k keys, kept on disk: wall time, median of {turns} turns of {TURN:?}");
    println!(
        "spin: SQLite as Spin opens it, which syncs every set; tuned: its write-ahead log, in Os without a sync\n"
    );
    println!("{:<12} {:>6} {:<8} {:>12} {:>12} {:>10}", "row", "guests", "host", "sets/s", "kvasi/host", "at least");
    for (row, durability, sync) in [("kept, Os", Durability::Os, false), ("kept, Sync", Durability::Sync, true)] {
        let store = Store::open(dir.join(row), Options::new().durability(durability))?;
        let database = |name: &str, way| Sqlite::open(&dir.join(format!("{row}-{name}.sqlite")), way);
        let buckets: [(&str, Arc<dyn LocalBucket>); 3] = [
            ("kvasi", Backend::bucket(&store, "bench")?),
            ("spin", Arc::new(database("spin", Way::Spin)?)),
            ("tuned", Arc::new(database("tuned", Way::Tuned { sync })?)),
        ];
        for guests in [1, 8] {
            let mut rates: [Vec<f64>; 3] = Default::default();
            for turn in 0..turns as u64 {
                for ((_, bucket), rates) in buckets.iter().zip(&mut rates) {
                    rates.push(rate(hosts, bucket, guests, turn)?);
                    kept(&**bucket, dice(turn, 0))?;
                }
            }
            let medians = rates.map(|mut rates| median(&mut rates).unwrap_or(f64::NAN));
            for ((host, _), sets_per_s) in buckets.iter().zip(medians) {
                let ours = medians[0];
                let kvasi_times = (*host != "kvasi").then_some(ours / sets_per_s);
                // What is asked is asked of one guest: eight show what a shared sync gains.
                let bound = bounds::of(row, host).filter(|_| guests == 1);
                let within = bound.and_then(|bound| bound.holds(f64::NAN, kvasi_times));
                let times = kvasi_times.map_or(String::new(), |times| format!("{times:.1}x"));
                let least = bound.map_or(String::new(), |bound| bound.to_string());
                let verdict = bounds::verdict(within);
                println!("{row:<12} {guests:>6} {host:<8} {sets_per_s:>12.0} {times:>12} {least:>10} {verdict}");
                report.write(&Line { row, guests, host, sets_per_s, kvasi_times, bound, within })?;
            }
        }
        drop(buckets);
        store.close()?;
    }
    Ok(())
}

/// No two guests draw the same, and none what it drew in another turn: SQLite leaves a page alone, and syncs nothing, where a row is set
/// to what it is already.
fn dice(turn: u64, guest: u64) -> u64 {
    DICE + (turn << 8) + guest
}

/// Sets a second of so many guests at once.
fn rate(hosts: &Hosts, bucket: &Arc<dyn LocalBucket>, guests: usize, turn: u64) -> Result<f64> {
    let mut runs =
        (0..guests as u64).map(|n| hosts.behind(bucket.clone(), dice(turn, n))).collect::<Result<Vec<_>>>()?;
    let begun = Instant::now();
    let sets: u64 = std::thread::scope(|scope| {
        let threads: Vec<_> = runs.iter_mut().map(|run| scope.spawn(move || sets(run, begun))).collect();
        threads.into_iter().map(|thread| thread.join().map_err(|_| "a guest's thread panicked")?).sum::<Result<u64>>()
    })?;
    Ok(sets as f64 / begun.elapsed().as_secs_f64())
}

/// Sets until the turn is over, in calls of about a hundredth of it.
fn sets(run: &mut impl Run, begun: Instant) -> Result<u64> {
    let (mut sets, mut calls) = (0, 1);
    while begun.elapsed() < TURN {
        let at = Instant::now();
        sets += run.run(Call::Set, calls, KEYS)?;
        if at.elapsed() < TURN / 200 {
            calls = calls.saturating_mul(2);
        }
    }
    Ok(sets)
}

/// The store has the first key that a guest with this `dice` has set.
fn kept(bucket: &dyn LocalBucket, dice: u64) -> Result<()> {
    // The first number that the guest's generator draws, as `guest.wat` has it.
    let dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    let number = ((dice >> 32) * u64::from(KEYS.count)) >> 32;
    let key = kvasi_bench::keys::key(number);
    match bucket.get(std::str::from_utf8(&key)?)? {
        Some(value) if value.len() == KEYS.value_bytes as usize => Ok(()),
        _ => Err(format!("{} did not keep what was set", bucket.identity()).into()),
    }
}
