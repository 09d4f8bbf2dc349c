//! The change feed against what was written: in order, whole, once, from any position, through reopening, cleaning, threads.
//!
//! `KVASI_SEED` replays one run of the random test.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
#![allow(clippy::disallowed_methods, reason = "threads, and waits for the background thread")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use kvasi::{
    Batch, Bucket, Change, Delivery, Durability, ErrorKind, Options, Position, Store, Swap, Version, WatchFrom,
};

/// A change as a test expects it: bucket, key, and the value that was set; `None` for a delete.
type Told = (String, Vec<u8>, Option<Vec<u8>>);

fn told(delivery: Delivery) -> Vec<Told> {
    let Delivery::Commit(events) = delivery else { panic!("{delivery:?} instead of a commit") };
    let told = events.iter().map(|event| {
        let value = match event.change() {
            Change::Set { value, .. } => Some(value.to_vec()),
            Change::Delete => None,
            Change::DropBucket => Some(b"the bucket was dropped".to_vec()),
            _ => panic!("{event:?}"),
        };
        (event.bucket().unwrap_or("?").to_owned(), event.key().to_vec(), value)
    });
    told.collect()
}

/// Everything that is there from `from` on, commit by commit.
fn all(store: &Store, from: WatchFrom) -> Vec<Vec<Told>> {
    let mut watch = store.watch(from).unwrap();
    let mut commits = Vec::new();
    while let Some(delivery) = watch.try_next().unwrap() {
        commits.push(told(delivery));
    }
    assert_eq!(watch.position(), store.position(), "all was read");
    commits
}

fn set(bucket: &str, key: &[u8], value: &[u8]) -> Told {
    (bucket.to_owned(), key.to_vec(), Some(value.to_vec()))
}

fn gone(bucket: &str, key: &[u8]) -> Told {
    (bucket.to_owned(), key.to_vec(), None)
}

fn modes() -> [Durability; 3] {
    [Durability::Sync, Durability::Os, Durability::INTERVAL]
}

#[test]
fn every_commit_is_told_once_whole_and_in_order() {
    for durability in modes() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("store"), Options::new().durability(durability)).unwrap();
        let (a, b) = (store.bucket("a").unwrap(), store.bucket("b").unwrap());
        a.set(b"k", b"1").unwrap();
        b.set(b"k", b"2").unwrap();
        assert_eq!(a.increment(b"n", 5).unwrap(), 5);
        let version = a.get(b"k").unwrap().unwrap().version();
        assert!(matches!(a.compare_and_swap(b"k", Some(version), b"swapped").unwrap(), Swap::Done(_)));
        assert!(matches!(a.compare_and_swap(b"k", Some(version), b"late").unwrap(), Swap::Conflict(_)), "no event");
        assert!(!a.delete(b"absent").unwrap(), "no event");
        a.delete_many(&[&b"absent"[..], b"as well"]).unwrap();
        a.delete_many(&[&b"absent"[..], b"n", b"n"]).unwrap();
        let mut batch = Batch::new();
        batch.set(&a, b"x", b"3");
        batch.delete(&b, b"k");
        batch.delete(&b, b"k");
        batch.set(&b, b"k", b"again");
        batch.delete(&b, b"k");
        batch.set(&a, b"x", b"4");
        store.commit(&batch).unwrap();
        a.set_with_ttl(b"short", b"", Duration::ZERO).unwrap();
        assert!(!a.delete(b"short").unwrap(), "it has expired: no event");
        let expected = [
            vec![set("a", b"k", b"1")],
            vec![set("b", b"k", b"2")],
            vec![set("a", b"n", b"5")],
            vec![set("a", b"k", b"swapped")],
            vec![gone("a", b"n")],
            vec![
                set("a", b"x", b"3"),
                gone("b", b"k"),
                set("b", b"k", b"again"),
                gone("b", b"k"),
                set("a", b"x", b"4"),
            ],
            vec![set("a", b"short", b"")],
        ];
        assert_eq!(all(&store, WatchFrom::Oldest), expected, "{durability:?}");
        assert_eq!(all(&store, WatchFrom::Now), Vec::<Vec<Told>>::new());
        // Only one bucket's, of the same commits.
        let mut watch = b.watch(WatchFrom::Oldest).unwrap();
        let mut commits = Vec::new();
        while let Some(delivery) = watch.try_next().unwrap() {
            commits.push(told(delivery));
        }
        let of_b = |commit: &Vec<Told>| commit.iter().filter(|told| told.0 == "b").cloned().collect::<Vec<_>>();
        let expected_of_b: Vec<_> = expected.iter().map(of_b).filter(|commit| !commit.is_empty()).collect();
        assert_eq!(commits, expected_of_b);
    }
}

#[test]
fn a_bucket_that_is_dropped_is_one_event_and_its_history_stays() {
    let store = Store::in_memory(Options::new()).unwrap();
    let mut early = store.watch(WatchFrom::Oldest).unwrap();
    let bucket = store.bucket("gone").unwrap();
    bucket.set(b"k", b"v").unwrap();
    assert_eq!(told(early.try_next().unwrap().unwrap()), [set("gone", b"k", b"v")]);
    bucket.set(b"k", b"w").unwrap();
    assert!(store.drop_bucket("gone").unwrap());
    let dropped = || set("gone", b"", b"the bucket was dropped");
    assert_eq!(told(early.try_next().unwrap().unwrap()), [set("gone", b"k", b"w")], "it had met the bucket");
    let Some(Delivery::Commit(last)) = early.try_next().unwrap() else { panic!("the drop is missing") };
    assert!(last[0].bucket_id().is_some() && matches!(last[0].change(), Change::DropBucket));
    assert!(early.try_next().unwrap().is_none(), "not one for each key");
    let unnamed = |value: &[u8]| vec![set("?", b"k", value)];
    assert_eq!(all(&store, WatchFrom::Oldest), [unnamed(b"v"), unnamed(b"w"), vec![dropped()]]);
}

#[test]
fn the_end_of_an_older_bucket_of_the_same_name_is_none_of_this_one() {
    let store = Store::in_memory(Options::new()).unwrap();
    store.bucket("b").unwrap().set(b"old", b"").unwrap();
    assert!(store.drop_bucket("b").unwrap());
    let bucket = store.bucket("b").unwrap();
    bucket.set(b"new", b"").unwrap();
    let mut watch = bucket.watch(WatchFrom::Oldest).unwrap();
    assert_eq!(told(watch.try_next().unwrap().unwrap()), [set("b", b"new", b"")]);
    assert!(watch.try_next().unwrap().is_none());
    assert!(store.drop_bucket("b").unwrap());
    assert_eq!(told(watch.try_next().unwrap().unwrap()), [set("b", b"", b"the bucket was dropped")]);
}

#[test]
fn a_watch_can_begin_at_any_commit_and_nowhere_else() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("store"), Options::new().durability(Durability::Os)).unwrap();
    let bucket = store.bucket("b").unwrap();
    let mut watch = store.watch(WatchFrom::Now).unwrap();
    let mut positions = vec![watch.position()];
    let mut versions = Vec::new();
    for i in 0..20u8 {
        if i % 5 == 4 {
            bucket.set_many(&[([i], "x"), ([i + 100], "y"), ([i + 150], "z")]).unwrap();
            versions.push(bucket.get(&[i + 100]).unwrap().unwrap().version());
        } else {
            versions.push(bucket.set(&[i], b"v").unwrap());
        }
        let Some(Delivery::Commit(events)) = watch.try_next().unwrap() else { panic!("commit {i} is missing") };
        assert!(events.iter().any(|event| event.version() == *versions.last().unwrap()));
        positions.push(watch.position());
    }
    let whole = all(&store, WatchFrom::Position(positions[0]));
    for (i, position) in positions.iter().enumerate() {
        assert_eq!(all(&store, WatchFrom::Position(*position)), whole[i..], "position {i}");
    }
    for (i, version) in versions.iter().enumerate() {
        assert_eq!(all(&store, WatchFrom::After(*version)), whole[i + 1..], "version {i}");
    }
    let (first, last) = (positions[0].get(), positions.last().unwrap().get());
    let starts: Vec<u64> = positions.iter().map(|position| position.get()).collect();
    for at in (first..last).filter(|at| !starts.contains(at)) {
        let error = store.watch(WatchFrom::Position(Position::from_u64(at))).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "position {at}");
        if !versions.iter().any(|version| version.get() == at) {
            // A member of a batch, whose version no test asked for, is a version too.
            let after = store.watch(WatchFrom::After(Version::from_u64(at)));
            assert!(after.is_ok() || after.unwrap_err().kind() == ErrorKind::Invalid);
        }
    }
    // Beyond the end.
    let mut ahead = store.watch(WatchFrom::Position(Position::from_u64(last + (1 << 40)))).unwrap();
    assert!(matches!(ahead.try_next().unwrap(), Some(Delivery::Ahead { end }) if end.get() == last));
    bucket.set(b"next", b"").unwrap();
    assert_eq!(told(ahead.try_next().unwrap().unwrap()), [set("b", b"next", b"")]);
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// A consumer that folds the feed into a map, as a replica would.
struct Replica {
    state: BTreeMap<(String, Vec<u8>), Vec<u8>>,
    position: WatchFrom,
    last: Option<Version>,
    lagged: usize,
}

impl Replica {
    fn catch_up(&mut self, store: &Store) {
        let mut watch = store.watch(self.position).unwrap();
        while let Some(delivery) = watch.try_next().unwrap() {
            match delivery {
                Delivery::Commit(events) => self.take(events),
                Delivery::Lagged { .. } => {
                    // What is there now stands for all that was missed; what comes again changes nothing for the worse.
                    self.lagged += 1;
                    self.state.clear();
                    for name in store.buckets().unwrap() {
                        let bucket = store.bucket(&name).unwrap();
                        for key in bucket.list_keys(all_keys()).unwrap().iter() {
                            let value = bucket.get(key).unwrap().unwrap();
                            self.state.insert((name.clone(), key.to_vec()), value.to_vec());
                        }
                    }
                    watch = store.watch(WatchFrom::Now).unwrap();
                }
                other => panic!("{other:?}"),
            }
        }
        self.position = WatchFrom::Position(watch.position());
    }

    fn take(&mut self, events: Vec<kvasi::Event>) {
        for event in events {
            assert!(self.last < Some(event.version()), "versions rise");
            self.last = Some(event.version());
            let key = (event.bucket().unwrap().to_owned(), event.key().to_vec());
            match event.value() {
                Some(value) => drop(self.state.insert(key, value.to_vec())),
                None => assert!(self.state.remove(&key).is_some(), "a delete of what there was"),
            }
        }
    }
}

fn all_keys() -> kvasi::ListOptions<'static> {
    kvasi::ListOptions { keys_max: usize::MAX, bytes_max: usize::MAX, ..Default::default() }
}

fn state(store: &Store) -> BTreeMap<(String, Vec<u8>), Vec<u8>> {
    let mut state = BTreeMap::new();
    for name in store.buckets().unwrap() {
        let bucket = store.bucket(&name).unwrap();
        for key in bucket.list_keys(all_keys()).unwrap().iter() {
            state.insert((name.clone(), key.to_vec()), bucket.get(key).unwrap().unwrap().to_vec());
        }
    }
    state
}

fn change(store: &Store, random: &mut Random) {
    let bucket = |random: &mut Random| store.bucket(["a", "b", "c"][random.below(3) as usize]).unwrap();
    let key = |random: &mut Random| format!("key {}", random.below(300)).into_bytes();
    let value = |random: &mut Random| vec![random.next() as u8; random.below(900) as usize];
    match random.below(10) {
        0 => drop(bucket(random).delete(&key(random)).unwrap()),
        1 => {
            let mut batch = Batch::new();
            for _ in 0..1 + random.below(9) {
                match random.below(3) {
                    0 => batch.delete(&bucket(random), &key(random)),
                    _ => batch.set(&bucket(random), &key(random), &value(random)),
                }
            }
            store.commit(&batch).unwrap();
        }
        2 => drop(bucket(random).increment(b"count", 1).unwrap()),
        _ => drop(bucket(random).set(&key(random), &value(random)).unwrap()),
    }
}

#[test]
fn a_replica_that_follows_the_feed_is_the_store_through_cleaning_and_reopening() {
    let seed = std::env::var("KVASI_SEED").map_or(0x0066_6565_6431, |seed| seed.parse().unwrap());
    println!("KVASI_SEED={seed}");
    let mut random = Random(seed);
    let mut lagged = 0;
    for durability in [Durability::Os, Durability::INTERVAL, Durability::Sync] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store");
        let options = Options::new().durability(durability).segment_bytes_max(64 << 10);
        let rounds = if durability == Durability::Sync { 5 } else { 100 };
        let mut replica = Replica { state: BTreeMap::new(), position: WatchFrom::Oldest, last: None, lagged: 0 };
        for round in 0..6 {
            let store = Store::open(&path, options.clone()).unwrap();
            for _ in 0..rounds {
                // Sometimes it reads often, sometimes it is left behind.
                for _ in 0..if round % 2 == 0 { 5 } else { 50 } {
                    change(&store, &mut random);
                }
                if round % 2 == 0 {
                    replica.catch_up(&store);
                }
            }
            if round == 3 && durability == Durability::Os {
                let start = Instant::now();
                while store.stats().log_bytes > 2 << 20 {
                    assert!(start.elapsed() < Duration::from_secs(600), "{:?}", store.stats());
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
            replica.catch_up(&store);
            assert_eq!(replica.state, state(&store), "{durability:?}, round {round}");
            if round % 3 == 0 {
                store.close().unwrap();
            }
        }
        lagged += replica.lagged;
    }
    assert!(lagged > 0, "no watch was overtaken: the test is too small");
}

#[test]
fn a_watch_that_was_overtaken_says_so_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options::new().durability(Durability::Os).segment_bytes_max(64 << 10);
    let store = Store::open(dir.path().join("store"), options).unwrap();
    let bucket = store.bucket("b").unwrap();
    let mut slow = store.watch(WatchFrom::Now).unwrap();
    let (begin, version) = (slow.position(), bucket.set(b"first", b"").unwrap());
    let start = Instant::now();
    let mut i = 0u64;
    // The segment that a watch reads stays readable for it, gone or not: some behind it must be gone.
    for _ in 0..200 {
        bucket.set(&(i % 50).to_le_bytes(), &[i as u8; 1000]).unwrap();
        i += 1;
    }
    let behind = store.position();
    let from_the_file = |from| matches!(store.watch(from).unwrap().try_next().unwrap(), Some(Delivery::Lagged { .. }));
    while !from_the_file(WatchFrom::Position(behind)) {
        bucket.set(&(i % 50).to_le_bytes(), &[i as u8; 1000]).unwrap();
        i += 1;
        assert!(start.elapsed() < Duration::from_secs(600), "nothing is cleaned");
    }
    assert!(from_the_file(WatchFrom::Position(begin)) && from_the_file(WatchFrom::After(version)));
    let end = bucket.set(b"last", b"").unwrap();
    assert_eq!(told(slow.try_next().unwrap().unwrap()), [set("b", b"first", b"")]);
    let (mut told_lagged, mut last) = (None, None);
    while let Some(delivery) = slow.try_next().unwrap() {
        match delivery {
            Delivery::Commit(events) => last = Some(events[0].version()),
            Delivery::Lagged { oldest } => {
                assert_eq!(slow.position(), oldest);
                told_lagged = last;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(told_lagged.is_some() && told_lagged < last, "the rest of its segment, the gap, the rest of the log");
    assert_eq!(last, Some(end));
}

#[test]
fn nothing_is_shown_before_it_is_durable() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("store"), Options::new()).unwrap();
    let bucket = store.bucket("b").unwrap();
    let mut watch = store.watch(WatchFrom::Now).unwrap();
    let begun = bucket.start_set(b"k", b"v").unwrap();
    // Behind it, and visible at once to those who read it; still not told before what comes first.
    let loose = bucket.with_durability(Durability::Os);
    let mut other = 0u32;
    let key = loop {
        let key = format!("other {other}").into_bytes();
        let at_once = loose.start_set(&key, b"w").unwrap().is_ready();
        other += 1;
        if at_once {
            break key;
        }
        assert!(other < 1000, "every shard waits");
    };
    assert!(bucket.get(&key).unwrap().is_some() && bucket.get(b"k").unwrap().is_none());
    assert!(watch.try_next().unwrap().is_none());
    let mut late = store.watch(WatchFrom::Now).unwrap();
    begun.wait().unwrap();
    assert_eq!(told(watch.try_next().unwrap().unwrap()), [set("b", b"k", b"v")]);
    assert_eq!(
        told(late.try_next().unwrap().unwrap()),
        [set("b", b"k", b"v")],
        "it was not visible when the watch began"
    );
}

#[test]
fn threads_that_write_and_one_that_watches_agree() {
    for durability in modes() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("store"), Options::new().durability(durability)).unwrap();
        let bucket = store.bucket("b").unwrap();
        let per_thread = if durability == Durability::Sync { 200u32 } else { 20_000 };
        let mut watch = store.watch(WatchFrom::Now).unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let writers: Vec<_> = (0..3u32)
                .map(|thread| {
                    let bucket = bucket.clone();
                    scope.spawn(move || {
                        for i in 0..per_thread {
                            bucket.set(&(thread, i % 7).encode(), &i.to_le_bytes()).unwrap();
                            bucket.increment(b"shared", 1).unwrap();
                        }
                    })
                })
                .collect();
            let watcher = scope.spawn(|| {
                let mut seen: BTreeMap<Vec<u8>, i64> = BTreeMap::new();
                let (mut events, mut last) = (0u32, None);
                while events < 6 * per_thread {
                    let Some(Delivery::Commit(commit)) = watch.wait(Duration::from_secs(60)).unwrap() else {
                        panic!("{events} events, then nothing")
                    };
                    for event in commit {
                        assert!(last < Some(event.version()));
                        last = Some(event.version());
                        let value = event.value().unwrap();
                        let number = match event.key() {
                            b"shared" => std::str::from_utf8(value).unwrap().parse().unwrap(),
                            _ => i64::from(u32::from_le_bytes(value[..].try_into().unwrap())),
                        };
                        let before = seen.insert(event.key().to_vec(), number);
                        assert!(before.is_none_or(|before| before < number), "in the order of each key's commits");
                        // Who is told of a write finds it, or a later one.
                        assert!(bucket.get(event.key()).unwrap().unwrap().version() >= event.version());
                        events += 1;
                    }
                }
                assert_eq!(seen[&b"shared"[..]], i64::from(3 * per_thread));
                done.store(true, Ordering::Release);
            });
            writers.into_iter().for_each(|writer| writer.join().unwrap());
            watcher.join().unwrap();
        });
        assert!(done.load(Ordering::Acquire));
        assert!(watch.try_next().unwrap().is_none(), "nothing twice");
    }
}

trait Encode {
    fn encode(&self) -> Vec<u8>;
}

impl Encode for (u32, u32) {
    fn encode(&self) -> Vec<u8> {
        format!("{}/{}", self.0, self.1).into_bytes()
    }
}

#[test]
fn who_waits_is_woken_by_a_write_a_timeout_and_the_end_of_the_store() {
    for durability in modes() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("store"), Options::new().durability(durability)).unwrap();
        let bucket = store.bucket("b").unwrap();
        let mut watch = store.watch(WatchFrom::Now).unwrap();
        assert!(watch.wait(Duration::from_millis(1)).unwrap().is_none(), "nothing comes");
        for round in 0..50u8 {
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    // Before, while and after it falls asleep.
                    std::thread::sleep(Duration::from_micros(u64::from(round) * 20));
                    match round % 3 {
                        0 => drop(bucket.set(&[round], b"").unwrap()),
                        1 => bucket.set_many(&[([round], "")]).unwrap(),
                        _ => drop(bucket.start_set(&[round], b"").unwrap().wait().unwrap()),
                    }
                });
                // Much longer than a wake-up takes: without one the test fails.
                let delivery = watch.wait(Duration::from_secs(100)).unwrap();
                assert_eq!(told(delivery.unwrap()), [set("b", &[round], b"")]);
            });
        }
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| watch.wait(Duration::MAX).unwrap_err().kind());
            std::thread::sleep(Duration::from_millis(5));
            store.clone().close().unwrap();
            assert_eq!(waiting.join().unwrap(), ErrorKind::Poisoned);
        });
    }
}

struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn a_future_is_woken_once_something_is_there_and_loses_nothing_when_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("store"), Options::new()).unwrap();
    let bucket = store.bucket("b").unwrap();
    let mut watch = store.watch(WatchFrom::Now).unwrap();
    let count = Arc::new(Count(AtomicUsize::new(0)));
    let waker = Waker::from(count.clone());
    let context = &mut Context::from_waker(&waker);
    for i in 0..20u8 {
        let before = count.0.load(Ordering::SeqCst);
        assert!(matches!(watch.poll_next(context), Poll::Pending));
        assert!(matches!(watch.poll_next(context), Poll::Pending), "polled again, woken once");
        bucket.set(&[i], b"").unwrap();
        assert_eq!(count.0.load(Ordering::SeqCst), before + 1);
        // A future that is dropped before it was polled takes nothing with it.
        if i % 2 == 0 {
            drop(watch.next());
        }
        let Poll::Ready(delivery) = watch.poll_next(context) else { panic!("woken for nothing") };
        assert_eq!(told(delivery.unwrap()), [set("b", &[i], b"")]);
    }
    assert_eq!(told_by(&mut watch, &bucket), [set("b", b"awaited", b"")]);
}

/// Awaits on a thread that parks, as the smallest of runtimes would.
fn told_by(watch: &mut kvasi::Watch, bucket: &Bucket) -> Vec<Told> {
    struct Unpark(std::thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let writer = bucket.clone();
    let thread = std::thread::spawn(move || writer.set(b"awaited", b"").unwrap());
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let context = &mut Context::from_waker(&waker);
    let mut next = std::pin::pin!(watch.next());
    let delivery = loop {
        match next.as_mut().poll(context) {
            Poll::Ready(delivery) => break delivery.unwrap(),
            Poll::Pending => std::thread::park_timeout(Duration::from_secs(100)),
        }
    };
    thread.join().unwrap();
    told(delivery)
}

#[test]
fn a_store_that_is_only_read_tells_its_history_and_does_not_wait() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let store = Store::open(&path, Options::new()).unwrap();
    store.bucket("b").unwrap().set(b"k", b"v").unwrap();
    let position = store.position();
    store.close().unwrap();
    let store = Store::open_read_only(&path, Options::new()).unwrap();
    let mut watch = store.watch(WatchFrom::Oldest).unwrap();
    assert_eq!(told(watch.wait(Duration::MAX).unwrap().unwrap()), [set("b", b"k", b"v")]);
    assert_eq!(watch.position(), position);
    assert_eq!(watch.wait(Duration::MAX).unwrap_err().kind(), ErrorKind::ReadOnly);
}
