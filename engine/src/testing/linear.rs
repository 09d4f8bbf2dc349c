//! Linearizability: calls of several threads to one store took effect one after another, each between its begin and its
//! end.
//!
//! *White box*: the store says the order itself, by versions (and sums), so millions of calls are checked in one sweep a key.
//! *Black box*: only what callers see counts; whether there is an order is searched for, a few dozen calls a key, on a disk
//! whose process dies, or whose power is cut, in between: what got no answer may have happened, or not, once.
//! Source: Wing and Gong 1993, with the memory of Lowe 2017.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Random;
use super::counts::{Case, Counts, Violation};
use crate::io::sim::{self, Image, SimDisk, Variant};
use crate::worker::Jobs;
use crate::{Bucket, Durability, Options, Store, Swap};

/// Calls of a thread in a white-box round.
const CALLS: u32 = 20_000;
const THREADS: u64 = 4;
/// Keys of each kind: registers, counters, batches.
const KEYS: u64 = 6;
/// Keys of the hottest batch; the others have two.
const WIDE: u64 = 32;
/// Bytes of each of its values.
const WIDE_BYTES: usize = 256;

/// When a call was made, by a clock that all threads share.
#[derive(Clone, Copy, Debug)]
struct Span {
    begin: u64,
    end: u64,
}

/// What a call says of its place in the order of a key: right behind a write, or itself a write.
#[derive(Clone, Copy, Debug)]
struct Seen {
    span: Span,
    is_write: bool,
    /// The rank of that write; `None` for absent, after whichever deletion.
    rank: Option<u64>,
    deletes: bool,
}

#[derive(Default)]
struct Log {
    /// By key.
    registers: BTreeMap<u64, Vec<Seen>>,
    counters: BTreeMap<u64, Vec<Seen>>,
    /// Writes and reads of batches: the number written or seen.
    pairs: BTreeMap<u64, Vec<(Span, bool, u64)>>,
    calls: u64,
}

/// One store, some threads, a round of calls by each.
///
/// # Errors
/// The first call that has no place in any order.
pub fn white_box(seed: u64) -> Result<Counts, Violation> {
    let durability = if seed.is_multiple_of(2) { Durability::Ephemeral } else { Durability::Os };
    let store = store_for(durability, seed);
    let fail = |what: String| Violation { seed, case: Case::default(), what };
    let store = store.map_err(|e| fail(format!("{e:?}")))?;
    let bucket = store.bucket("b").map_err(|e| fail(format!("{e:?}")))?;
    let clock = AtomicU64::new(0);
    let logs = threads(THREADS, |thread| work(&bucket, &clock, seed.wrapping_mul(31).wrapping_add(thread)));
    let mut counts = Counts::default();
    let mut all = Log::default();
    for log in logs {
        let log = log.map_err(&fail)?;
        counts.add("linearized_calls", log.calls);
        log.registers.into_iter().for_each(|(key, seen)| all.registers.entry(key).or_default().extend(seen));
        log.counters.into_iter().for_each(|(key, seen)| all.counters.entry(key).or_default().extend(seen));
        log.pairs.into_iter().for_each(|(key, seen)| all.pairs.entry(key).or_default().extend(seen));
    }
    for (key, seen) in all.registers.iter().chain(&all.counters) {
        in_order(seen).map_err(|what| fail(format!("key {key}: {what}")))?;
    }
    for (key, seen) in &all.pairs {
        not_stale(seen).map_err(|what| fail(format!("batch {key}: {what}")))?;
    }
    Ok(counts)
}

/// In memory, or on the disk in a directory of its own; with its background thread either way.
#[allow(clippy::disallowed_methods, reason = "a directory for a test")]
fn store_for(durability: Durability, seed: u64) -> crate::Result<Store> {
    let options = Options::new().durability(durability).segment_bytes_max(1 << 20);
    if durability == Durability::Ephemeral {
        return Store::in_memory(options);
    }
    let store = Store::without_worker(Arc::new(SimDisk::new(Image::new(), seed)), options)?;
    store.start_worker()?;
    Ok(store)
}

#[allow(clippy::disallowed_methods, reason = "tests may start threads")]
fn threads<T: Send>(n: u64, work: impl Fn(u64) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..n)
            .map(|thread| {
                let work = &work;
                scope.spawn(move || work(thread))
            })
            .collect();
        threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
    })
}

fn work(bucket: &Bucket, clock: &AtomicU64, seed: u64) -> Result<Log, String> {
    let mut random = Random::new(seed);
    let mut log = Log::default();
    let now = || clock.fetch_add(1, Ordering::SeqCst);
    for i in 0..CALLS {
        log.calls += 1;
        // Few are hot: there the threads meet.
        let key = random.below(KEYS).min(random.below(KEYS));
        let begin = now();
        let span = |end| Span { begin, end };
        let failed = |e: crate::Error| format!("{e:?}");
        match random.below(12) {
            0..=6 => {
                let name = format!("r{key}");
                let value = [&seed.to_le_bytes()[..], &i.to_le_bytes()].concat();
                let write =
                    |rank: u64, end, deletes| Seen { span: span(end), is_write: true, rank: Some(rank), deletes };
                let seen = match random.below(6) {
                    0 => write(bucket.set(name.as_bytes(), &value).map_err(failed)?.get(), now(), false),
                    1..=3 => {
                        let found = bucket.get(name.as_bytes()).map_err(failed)?;
                        let rank = found.map(|found| found.version().get());
                        Seen { span: span(now()), is_write: false, rank, deletes: false }
                    }
                    kind => {
                        let shown = bucket.get(name.as_bytes()).map_err(failed)?.map(|shown| shown.version());
                        let (deletes, swapped) = match shown {
                            Some(shown) if kind == 4 => (true, bucket.delete_if(name.as_bytes(), shown)),
                            shown => (false, bucket.compare_and_swap(name.as_bytes(), shown, &value)),
                        };
                        match swapped.map_err(failed)? {
                            Swap::Done(version) => write(version.get(), now(), deletes),
                            Swap::Conflict(found) => {
                                if found.as_ref().map(|found| found.version()) == shown {
                                    return Err("a swap conflicts with the version it was made against".to_owned());
                                }
                                let rank = found.map(|found| found.version().get());
                                Seen { span: span(now()), is_write: false, rank, deletes: false }
                            }
                        }
                    }
                };
                log.registers.entry(key).or_default().push(seen);
            }
            7..=9 => {
                let name = format!("c{key}");
                let seen = if random.below(3) > 0 {
                    let sum = bucket.increment(name.as_bytes(), 1).map_err(failed)?;
                    Seen { span: span(now()), is_write: true, rank: Some(sum as u64), deletes: false }
                } else {
                    let found = bucket.get(name.as_bytes()).map_err(failed)?;
                    let sum = found.and_then(|found| std::str::from_utf8(&found).ok()?.parse().ok());
                    Seen { span: span(now()), is_write: false, rank: sum, deletes: false }
                };
                log.counters.entry(100 + key).or_default().push(seen);
            }
            _ => {
                // Of the hottest there are many: one reads them for long enough that others write in between, with any number of processors.
                let (n, bytes) = if key == 0 { (WIDE, WIDE_BYTES) } else { (2, 8) };
                let names: Vec<String> = (0..n).map(|n| format!("p{key}/{n}")).collect();
                let number = seed << 32 | u64::from(i);
                if random.below(3) == 0 {
                    let mut value = number.to_le_bytes().to_vec();
                    value.resize(bytes, 0);
                    let pairs: Vec<_> = names.iter().map(|name| (name, &value)).collect();
                    bucket.set_many(&pairs).map_err(failed)?;
                    log.pairs.entry(key).or_default().push((span(now()), true, number));
                } else {
                    let found = bucket.get_many(&names).map_err(failed)?;
                    if found.iter().any(|other| other.as_deref() != found[0].as_deref()) {
                        return Err("a read of several keys shows half a batch".to_owned());
                    }
                    if let Some(bytes) = found[0].as_deref().and_then(|found| found.get(..8)?.try_into().ok()) {
                        log.pairs.entry(key).or_default().push((span(now()), false, u64::from_le_bytes(bytes)));
                    }
                }
            }
        }
    }
    Ok(log)
}

/// Whether the order that the ranks say is one that the spans allow.
fn in_order(all: &[Seen]) -> Result<(), String> {
    let mut writes: Vec<&Seen> = all.iter().filter(|seen| seen.is_write).collect();
    writes.sort_by_key(|write| write.rank);
    if let Some(twice) = writes.windows(2).find(|two| two[0].rank == two[1].rank) {
        return Err(format!("two writes have one rank: {twice:?}"));
    }
    // What was begun by the first n writes, and the first write that ended not before them.
    let mut latest_begin = 0;
    let mut begun = Vec::with_capacity(writes.len());
    for write in &writes {
        if write.span.end < latest_begin {
            return Err(format!("{write:?} ended before one that it comes after began"));
        }
        latest_begin = latest_begin.max(write.span.begin);
        begun.push(latest_begin);
    }
    let mut ends: Vec<u64> = writes.iter().map(|write| write.span.end).collect();
    for i in (1..ends.len()).rev() {
        ends[i - 1] = ends[i - 1].min(ends[i]);
    }
    let mut reads: Vec<&Seen> = all.iter().filter(|seen| !seen.is_write).collect();
    reads.sort_by_key(|read| read.span.begin);
    // Reads that have ended, by their end, with the place that they were given: later ones are not before it.
    let mut ended: std::collections::BinaryHeap<std::cmp::Reverse<(u64, usize)>> = std::collections::BinaryHeap::new();
    let mut least = 0;
    for read in reads {
        while let Some(std::cmp::Reverse((end, place))) = ended.peek().copied()
            && end < read.span.begin
        {
            least = least.max(place);
            ended.pop();
        }
        // After so many writes at least: all that ended before the read began; and at most: those begun before it ended.
        let low = least.max(ends.partition_point(|end| *end < read.span.begin));
        let high = begun.partition_point(|begin| *begin < read.span.end);
        let place = match read.rank {
            Some(rank) => writes.binary_search_by_key(&Some(rank), |write| write.rank).map_or(usize::MAX, |at| at + 1),
            None => (low..=high).find(|n| *n == 0 || writes[*n - 1].deletes).unwrap_or(usize::MAX),
        };
        if place < low || place > high {
            return Err(format!("{read:?} is of write {place}, and must be of one of {low}..={high}"));
        }
        ended.push(std::cmp::Reverse((read.span.end, place)));
    }
    Ok(())
}

/// Whether no read of a batch shows what had surely been written over, or not yet been written.
fn not_stale(all: &[(Span, bool, u64)]) -> Result<(), String> {
    let writes: BTreeMap<u64, Span> =
        all.iter().filter(|(_, write, _)| *write).map(|(span, _, n)| (*n, *span)).collect();
    let mut by_end: Vec<Span> = writes.values().copied().collect();
    by_end.sort_by_key(|span| span.end);
    let mut latest = 0;
    let latest_begin: Vec<u64> = by_end
        .iter()
        .map(|span| {
            latest = latest.max(span.begin);
            latest
        })
        .collect();
    for (read, _, number) in all.iter().filter(|(_, write, _)| !write) {
        let Some(write) = writes.get(number) else { return Err(format!("{number:#x} was never written")) };
        let ended = by_end.partition_point(|span| span.end < read.begin);
        let after = ended.checked_sub(1).map_or(0, |i| latest_begin[i]);
        if write.begin > read.end || after > write.end {
            return Err(format!("a read {read:?} shows what {write:?} wrote, and a later write had ended"));
        }
    }
    Ok(())
}

/// A call of a black-box history, to one key.
#[derive(Clone, Debug)]
struct Event {
    begin: u64,
    /// `u64::MAX`: it got no answer, and may yet happen.
    end: u64,
    call: Did,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Did {
    Set(u64),
    Got(Option<u64>),
    /// Whether there was a value; `None` without an answer.
    Deleted(Option<bool>),
    /// The sum; `None` without an answer.
    Added(Option<u64>),
}

impl Did {
    fn without_answer(self) -> Did {
        match self {
            Did::Deleted(_) => Did::Deleted(None),
            Did::Added(_) => Did::Added(None),
            other => other,
        }
    }

    /// What the key holds after the call, as its answer tells.
    fn leaves(&self) -> Option<u64> {
        match *self {
            Did::Set(value) => Some(value),
            Did::Got(value) | Did::Added(value) => value,
            Did::Deleted(_) => None,
        }
    }
}

/// Whether some order of the calls explains what they told.
///
/// An answer says by itself what the key holds after it. So a call without one matters only where an answered call needs it,
/// right before that one: the search puts it nowhere else, and never more of them than needed, and stays short however many
/// calls the dead have left.
fn is_linearizable(events: &[Event]) -> bool {
    let mut calls = Calls::default();
    for event in events {
        match event.call {
            _ if event.end < u64::MAX => calls.answered.push(event.clone()),
            Did::Set(value) => calls.sets.push((event.begin, value)),
            Did::Deleted(_) => calls.deletes.push(event.begin),
            Did::Added(_) => calls.adds.push(event.begin),
            Did::Got(_) => {}
        }
    }
    calls.sets.sort_unstable();
    calls.deletes.sort_unstable();
    calls.adds.sort_unstable();
    let fits = calls.answered.len() <= 128 && calls.sets.len() <= 128;
    fits && calls.explain(Placed::default(), &mut HashSet::new())
}

/// The calls of a history. Those without an answer in the order that they were begun in: of a kind, the first are the most useful.
#[derive(Default)]
struct Calls {
    answered: Vec<Event>,
    sets: Vec<(u64, u64)>,
    deletes: Vec<u64>,
    adds: Vec<u64>,
}

/// What has its place in the order, and what the key holds then.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
struct Placed {
    answered: u128,
    sets: u128,
    deletes: usize,
    adds: usize,
    now: Option<u64>,
}

impl Calls {
    fn explain(&self, placed: Placed, known: &mut HashSet<Placed>) -> bool {
        let left = || self.answered.iter().enumerate().filter(|(i, _)| placed.answered & (1 << i) == 0);
        let Some(first_end) = left().map(|(_, event)| event.end).min() else { return true };
        if !known.insert(placed) {
            return false;
        }
        left().filter(|(_, event)| event.begin < first_end).any(|(i, event)| {
            let (answered, now) = (placed.answered | 1 << i, event.call.leaves());
            let mut ways = self.before(&event.call, placed, first_end).into_iter();
            ways.any(|before| self.explain(Placed { answered, now, ..before }, known))
        })
    }

    /// Each way to make an answered call possible, by calls without an answer that were begun before `end`.
    fn before(&self, call: &Did, placed: Placed, end: u64) -> Vec<Placed> {
        match *call {
            Did::Set(_) => vec![placed],
            Did::Got(value) => self.reach(value, placed, end),
            Did::Deleted(Some(true)) => self.reach_any(placed, end),
            Did::Deleted(_) => self.reach(None, placed, end),
            Did::Added(Some(1)) => [self.reach(None, placed, end), self.reach(Some(0), placed, end)].concat(),
            Did::Added(sum) => self.reach(sum.and_then(|sum| sum.checked_sub(1)), placed, end),
        }
    }

    /// Until the key holds this.
    fn reach(&self, wanted: Option<u64>, placed: Placed, end: u64) -> Vec<Placed> {
        if placed.now == wanted {
            return vec![placed];
        }
        let mut from = vec![placed];
        if placed.now.is_some() && self.deletes.get(placed.deletes).is_some_and(|begin| *begin < end) {
            from.push(Placed { deletes: placed.deletes + 1, now: None, ..placed });
        }
        from.extend(self.sets_left(placed, end));
        let added = |from: Placed| {
            let Some(wanted) = wanted else { return from.now.is_none().then_some(from) };
            let adds = from.adds + usize::try_from(wanted.checked_sub(from.now.unwrap_or(0))?).ok()?;
            // From nothing to 0 leads no increment; and all of them were begun, if the last one was.
            let reached = if adds == from.adds { from.now == Some(wanted) } else { *self.adds.get(adds - 1)? < end };
            reached.then_some(Placed { adds, now: Some(wanted), ..from })
        };
        from.into_iter().filter_map(added).collect()
    }

    /// Until the key holds something.
    fn reach_any(&self, placed: Placed, end: u64) -> Vec<Placed> {
        if placed.now.is_some() {
            return vec![placed];
        }
        let mut all = Vec::new();
        if self.adds.get(placed.adds).is_some_and(|begin| *begin < end) {
            all.push(Placed { adds: placed.adds + 1, now: Some(1), ..placed });
        }
        // Of the values that no answer tells of, one is as good as another.
        let (told, untold): (Vec<_>, Vec<_>) =
            self.sets_left(placed, end).partition(|set| set.now.is_some_and(|value| self.is_told(value)));
        all.extend(untold.into_iter().take(1).chain(told));
        all
    }

    fn sets_left(&self, placed: Placed, end: u64) -> impl Iterator<Item = Placed> {
        let left =
            self.sets.iter().enumerate().filter(move |(i, (begin, _))| placed.sets & (1 << i) == 0 && *begin < end);
        left.map(move |(i, (_, value))| Placed { sets: placed.sets | 1 << i, now: Some(*value), ..placed })
    }

    /// Whether an answer may be of this value, or of increments to it.
    fn is_told(&self, value: u64) -> bool {
        let most = value + (self.answered.len() + self.adds.len()) as u64;
        self.answered.iter().any(|event| match event.call {
            Did::Got(Some(told)) | Did::Added(Some(told)) => (value..=most).contains(&told),
            _ => false,
        })
    }
}

/// A few calls by several threads, with deaths of the process or power cuts between, and one history of all.
///
/// # Errors
/// A history that no order explains.
pub fn black_box(seed: u64) -> Result<Counts, Violation> {
    let fail = |what: String| Violation { seed, case: Case::default(), what };
    let mut random = Random::new(seed ^ 0x0062_6c61_636b);
    let syncs = seed.is_multiple_of(2);
    let durability = if syncs { Durability::Sync } else { Durability::Os };
    let options = Options { segment_bytes_max: 4096, ..Options::new().durability(durability) };
    let clock = AtomicU64::new(1);
    let mut disk = SimDisk::new(Image::new(), seed);
    let mut histories: BTreeMap<u64, Vec<Event>> = BTreeMap::new();
    let threads_now = 4 + seed % 5;
    for life in 0..3u64 {
        sim::set_clock(0);
        let store =
            Store::without_worker(Arc::new(disk.clone()), options.clone()).map_err(|e| fail(format!("{e:?}")))?;
        let bucket = store.bucket("b").map_err(|e| fail(format!("{e:?}")))?;
        let dies_after = random.below(60);
        let made = AtomicU64::new(0);
        let logs = threads(threads_now + 1, |thread| {
            let mut random = Random::new(seed ^ life << 8 ^ thread << 32);
            let mut log = Vec::new();
            if thread == threads_now {
                // The background, and death in the middle of it all.
                let mut jobs = Jobs::cleaning_from(2048);
                while life < 2 && made.load(Ordering::Relaxed) < dies_after.min(threads_now * 5) {
                    let _ = jobs.round(&store.0.commits, true);
                    std::thread::yield_now();
                }
                if life < 2 {
                    disk.restart();
                }
                return log;
            }
            for i in 0..5 {
                let key = random.below(2);
                let begin = clock.fetch_add(1, Ordering::SeqCst);
                let call = call(&bucket, key, seed, (life * 100 + thread) * 100 + i, &mut random);
                made.fetch_add(1, Ordering::Relaxed);
                let (call, answered) = call;
                // The dead tell nobody, whatever they did in their own memory.
                let answered = answered && disk.is_alive();
                let call = if answered { call } else { call.without_answer() };
                let end = if answered { clock.fetch_add(1, Ordering::SeqCst) } else { u64::MAX };
                log.push((key, Event { begin, end, call }));
            }
            log
        });
        for (key, event) in logs.into_iter().flatten() {
            // A read without an answer says nothing.
            if event.end < u64::MAX || !matches!(event.call, Did::Got(_)) {
                histories.entry(key).or_default().push(event);
            }
        }
        disk = disk.restart();
        if syncs && life < 2 {
            let variant =
                [Variant::AllLost, Variant::AllKept, Variant::Random(random.next())][random.below(3) as usize];
            disk = SimDisk::new(disk.image(variant), seed + life);
        }
    }
    let mut counts = Counts::default();
    for (key, events) in &histories {
        counts.add("histories", 1);
        counts.add("calls_of_histories", events.len() as u64);
        if !is_linearizable(events) {
            return Err(fail(format!("key {key}: no order explains {events:?}")));
        }
    }
    Ok(counts)
}

/// A call, and whether it was answered.
fn call(bucket: &Bucket, key: u64, seed: u64, id: u64, random: &mut Random) -> (Did, bool) {
    let name = [b'k', key as u8];
    let number = |bytes: &[u8]| std::str::from_utf8(bytes).ok().and_then(|text| text.parse().ok()).unwrap_or(u64::MAX);
    match random.below(6) {
        0 | 1 => {
            let value = 1_000_000 * (id + 1) + seed % 1000 * 1000;
            // Some of them fill a segment of their own.
            (Did::Set(value), bucket.set(&name, value.to_string().as_bytes()).is_ok())
        }
        2 | 3 => match bucket.get(&name) {
            Ok(found) => (Did::Got(found.map(|found| number(&found))), true),
            Err(_) => (Did::Got(None), false),
        },
        4 => match bucket.delete(&name) {
            Ok(found) => (Did::Deleted(Some(found)), true),
            Err(_) => (Did::Deleted(None), false),
        },
        _ => match bucket.increment(&name, 1) {
            Ok(sum) => (Did::Added(Some(sum as u64)), true),
            Err(_) => (Did::Added(None), false),
        },
    }
}

/// The rounds of a seed: one white box, and histories.
///
/// # Errors
/// The first call that has no place in any order.
pub fn round(seed: u64) -> Result<Counts, Violation> {
    let mut counts = white_box(seed)?;
    for i in 0..50 {
        counts.merge(&black_box(seed * 50 + i)?);
    }
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(begin: u64, end: u64, call: Did) -> Event {
        Event { begin, end, call }
    }

    #[test]
    fn histories_are_told_apart() {
        let set = |begin, end| event(begin, end, Did::Set(7));
        let got = |begin, end, value| event(begin, end, Did::Got(value));
        assert!(is_linearizable(&[set(1, 4), got(2, 3, None)]));
        assert!(is_linearizable(&[set(1, 4), got(2, 3, Some(7))]));
        assert!(!is_linearizable(&[set(1, 2), got(3, 4, None)]), "lost");
        assert!(!is_linearizable(&[set(1, 6), got(2, 3, Some(7)), got(4, 5, None)]), "seen, then not");
        assert!(is_linearizable(&[set(1, u64::MAX), got(2, 3, None), got(4, 5, Some(7))]), "without an answer, late");
        assert!(!is_linearizable(&[set(1, u64::MAX), got(2, 3, Some(7)), got(4, 5, None)]));
        let added = |begin, end, sum| event(begin, end, Did::Added(Some(sum)));
        assert!(is_linearizable(&[added(1, 4, 2), added(2, 3, 1)]));
        assert!(!is_linearizable(&[added(1, 4, 1), added(2, 3, 1)]), "an increment is lost");
    }

    /// Every order of all calls, and of any of those without an answer.
    fn some_order_explains(events: &[Event], now: Option<u64>) -> bool {
        let first_end = events.iter().map(|event| event.end).min().unwrap_or(u64::MAX);
        let then = |call: &Did| match *call {
            Did::Set(value) => Some(Some(value)),
            Did::Got(value) => (value == now).then_some(now),
            Did::Deleted(found) => found.is_none_or(|found| found == now.is_some()).then_some(None),
            Did::Added(sum) => {
                let new = now.unwrap_or(0) + 1;
                sum.is_none_or(|sum| sum == new).then_some(Some(new))
            }
        };
        first_end == u64::MAX
            || (0..events.len()).filter(|i| events[*i].begin < first_end).any(|i| {
                then(&events[i].call)
                    .is_some_and(|then| some_order_explains(&[&events[..i], &events[i + 1..]].concat(), then))
            })
    }

    #[test]
    fn a_search_finds_an_order_where_there_is_one() {
        let (mut explained, mut not) = (0, 0);
        for seed in 0..40_000 {
            let mut random = Random::new(seed);
            let events: Vec<Event> = (0..2 + random.below(5))
                .map(|_| {
                    let begin = random.below(12);
                    let end = if random.below(2) == 0 { u64::MAX } else { begin + 1 + random.below(6) };
                    let value = random.below(4);
                    let call = match random.below(4) {
                        0 => Did::Set(value),
                        1 => Did::Got(value.checked_sub(1)),
                        2 => Did::Deleted(Some(value < 2)),
                        _ => Did::Added(Some(1 + value)),
                    };
                    let is_read = matches!(call, Did::Got(_));
                    let end = if is_read { begin + 1 + random.below(6) } else { end };
                    event(begin, end, if end == u64::MAX { call.without_answer() } else { call })
                })
                .collect();
            let expected = some_order_explains(&events, None);
            assert_eq!(is_linearizable(&events), expected, "seed {seed}: {events:?}");
            if expected { explained += 1 } else { not += 1 }
        }
        assert!(explained > 4_000 && not > 4_000, "{explained} and {not}");
    }

    #[test]
    fn what_the_dead_leave_makes_no_search_long() {
        let lost = |i| {
            let calls = [Did::Set(1_000_000 * (i + 1)), Did::Added(None), Did::Deleted(None)];
            event(i, u64::MAX, calls[i as usize % 3].clone())
        };
        let mut events: Vec<Event> = (0..60).map(lost).collect();
        // Present and absent in turn; and in the end what nobody can have written.
        events.extend((0..30).map(|i| event(100 + 2 * i, 101 + 2 * i, Did::Deleted(Some(i.is_multiple_of(2))))));
        assert!(is_linearizable(&events));
        events.push(event(200, 201, Did::Got(Some(77))));
        assert!(!is_linearizable(&events));
    }

    #[test]
    fn orders_are_told_apart() {
        let write =
            |begin, end, rank, deletes| Seen { span: Span { begin, end }, is_write: true, rank: Some(rank), deletes };
        let read = |begin, end, rank| Seen { span: Span { begin, end }, is_write: false, rank, deletes: false };
        assert!(in_order(&[write(1, 4, 10, false), write(2, 3, 20, false), read(5, 6, Some(20))]).is_ok());
        assert!(in_order(&[write(1, 2, 20, false), write(3, 4, 10, false)]).is_err(), "real time");
        assert!(in_order(&[write(1, 2, 10, false), write(3, 4, 20, false), read(5, 6, Some(10))]).is_err(), "stale");
        assert!(in_order(&[write(1, 2, 10, false), read(3, 4, None)]).is_err(), "lost");
        assert!(in_order(&[write(1, 2, 10, false), write(3, 8, 20, true), read(4, 5, None)]).is_ok());
        assert!(in_order(&[write(1, 9, 10, false), read(2, 3, Some(10)), read(4, 5, None)]).is_err(), "seen, then not");
        assert!(in_order(&[write(1, 2, 10, false), read(3, 4, Some(11))]).is_err(), "never written");
    }
}
