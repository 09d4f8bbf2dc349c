//! Many threads on one store: nothing is lost, nothing is seen by halves, views stay what they were.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use kvasi::{Batch, Durability, ListOptions, Options, Store, Swap};

/// Under Miri a call takes some thousand times as long: so many times, or a fiftieth of it.
const fn times(n: u32) -> u32 {
    if cfg!(miri) { n.div_ceil(50) } else { n }
}

fn stores(test: impl Fn(&Store)) {
    // Miri has no files that are mapped, and segments of the usual length would fill its memory.
    if cfg!(miri) {
        return test(&Store::in_memory(Options::new().segment_bytes_max(64 << 10)).unwrap());
    }
    for durability in [Durability::Os, Durability::Sync] {
        let dir = tempfile::tempdir().unwrap();
        test(&Store::open(dir.path().join("store"), Options::new().durability(durability)).unwrap());
    }
    test(&Store::in_memory(Options::new()).unwrap());
}

#[test]
fn every_increment_counts_and_every_result_is_unique() {
    stores(|store| {
        let bucket = store.bucket("b").unwrap();
        let each = i64::from(times(300));
        let mut results: Vec<i64> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| (0..each).map(|_| bucket.increment(b"n", 1).unwrap()).collect::<Vec<_>>()))
                .collect();
            threads.into_iter().flat_map(|t| t.join().unwrap()).collect()
        });
        results.sort_unstable();
        assert_eq!(results, (1..=4 * each).collect::<Vec<_>>());
        assert_eq!(&*bucket.get(b"n").unwrap().unwrap(), (4 * each).to_string().as_bytes());
    });
}

#[test]
fn compare_and_swap_loops_converge() {
    stores(|store| {
        let bucket = store.bucket("b").unwrap();
        let each = u64::from(times(100));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..each {
                        let mut now = bucket.get(b"n").unwrap();
                        loop {
                            let number: u64 =
                                now.as_ref().map_or(0, |v| std::str::from_utf8(v).unwrap().parse().unwrap());
                            let next = (number + 1).to_string();
                            let version = now.as_ref().map(|v| v.version());
                            match bucket.compare_and_swap(b"n", version, next.as_bytes()).unwrap() {
                                Swap::Done(_) => break,
                                Swap::Conflict(current) => now = current,
                            }
                        }
                    }
                });
            }
        });
        assert_eq!(&*bucket.get(b"n").unwrap().unwrap(), (4 * each).to_string().as_bytes());
    });
}

#[test]
fn a_batch_is_seen_whole_or_not_at_all_across_buckets() {
    stores(|store| {
        let (a, b) = (store.bucket("a").unwrap(), store.bucket("b").unwrap());
        let done = AtomicBool::new(false);
        let keys: Vec<String> = (0..8).map(|i| format!("key {i}")).collect();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 0..times(300) {
                    let mut batch = Batch::new();
                    for key in &keys {
                        batch.set(&a, key.as_bytes(), &round.to_le_bytes());
                        batch.set(&b, key.as_bytes(), &round.to_le_bytes());
                    }
                    store.commit(&batch).unwrap();
                }
                done.store(true, Ordering::Release);
            });
            while !done.load(Ordering::Acquire) {
                for bucket in [&a, &b] {
                    let seen = bucket.get_many(&keys).unwrap();
                    let first = seen[0].as_deref();
                    assert!(seen.iter().all(|value| value.as_deref() == first));
                }
            }
        });
    });
}

/// More keys than are looked at together, each several times in one batch.
#[test]
fn of_equal_keys_in_a_batch_the_last_wins_for_every_reader() {
    stores(|store| {
        let bucket = store.bucket("b").unwrap();
        let own = store.stats().keys;
        let keys: Vec<String> = (0..times(250)).map(|i| format!("key {i}")).collect();
        let writers = AtomicU32::new(2);
        let rounds = times(20).max(2);
        let check = || {
            let seen = bucket.get_many(&keys).unwrap();
            let first = seen[0].as_deref();
            assert!(first.is_none_or(|value| value.len() == 4), "a value that was overwritten in its own batch");
            assert!(seen.iter().all(|value| value.as_deref() == first));
            for _ in 0..times(200) {
                assert!(!bucket.exists(b"set and deleted").unwrap(), "of one instant, in the middle of a batch");
                let last = bucket.get(keys[0].as_bytes()).unwrap();
                assert!(last.is_none_or(|value| value.len() == 4), "as above");
            }
            first.map(|value| u32::from_le_bytes(value.try_into().unwrap()))
        };
        std::thread::scope(|scope| {
            for writer in 0..2 {
                let (bucket, keys, writers) = (&bucket, &keys, &writers);
                scope.spawn(move || {
                    for round in 0..rounds {
                        let mut batch = Batch::new();
                        keys.iter().for_each(|key| batch.set(bucket, key.as_bytes(), b"first"));
                        batch.set(bucket, b"set and deleted", b"v");
                        for key in keys.iter().rev() {
                            batch.delete(bucket, key.as_bytes());
                            batch.set(bucket, key.as_bytes(), &(2 * round + writer).to_le_bytes());
                        }
                        batch.delete(bucket, b"set and deleted");
                        store.commit(&batch).unwrap();
                    }
                    writers.fetch_sub(1, Ordering::Release);
                });
            }
            while writers.load(Ordering::Acquire) > 0 {
                check();
            }
        });
        assert!(check().unwrap() >= 2 * (rounds - 1), "the last batch is one of the writers' last");
        assert_eq!(store.stats().keys, own + keys.len() as u64);
    });
}

#[test]
#[cfg_attr(miri, ignore = "maps files")]
fn in_sync_mode_what_is_read_is_durable() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("store"), Options::new()).unwrap();
    let bucket = store.bucket("b").unwrap();
    let pending = bucket.start_set(b"k", b"v").unwrap();
    let seen_before = bucket.get(b"k").unwrap().is_some();
    assert!(!seen_before || pending.is_ready(), "visible before it is durable");
    pending.wait().unwrap();
    assert!(bucket.exists(b"k").unwrap());
}

#[test]
#[cfg_attr(miri, ignore = "maps files")]
fn a_dropped_commit_still_happens_and_a_future_is_woken() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("store"), Options::new()).unwrap();
    let bucket = store.bucket("b").unwrap();
    drop(bucket.start_set(b"dropped", b"v").unwrap());
    assert_eq!(block_on(bucket.start_increment(b"n", 5).unwrap()).unwrap(), 5);
    assert!(bucket.exists(b"dropped").unwrap(), "a later commit makes earlier ones visible");
}

/// Enough of an executor to see that the waker is called.
fn block_on<F: Future + Unpin>(mut future: F) -> F::Output {
    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = std::sync::Arc::new(Unpark(std::thread::current())).into();
    let mut context = std::task::Context::from_waker(&waker);
    loop {
        match std::pin::Pin::new(&mut future).poll(&mut context) {
            std::task::Poll::Ready(output) => return output,
            std::task::Poll::Pending => std::thread::park(),
        }
    }
}

#[test]
fn listings_yield_what_existed_throughout_exactly_once() {
    stores(|store| {
        let bucket = store.bucket("b").unwrap().with_durability(Durability::Os);
        let fixed: Vec<String> = (0..times(500)).map(|i| format!("{i:04}")).collect();
        for key in &fixed {
            bucket.set(key.as_bytes(), b"").unwrap();
        }
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for i in 0..times(5_000) {
                    let key = format!("{:04}x", i % 700);
                    bucket.set(key.as_bytes(), b"").unwrap();
                    bucket.delete(format!("{:04}x", (i + 350) % 700).as_bytes()).unwrap();
                }
                done.store(true, Ordering::Release);
            });
            while !done.load(Ordering::Acquire) {
                let mut listed = Vec::new();
                let mut after = None;
                loop {
                    let options = ListOptions { after: after.as_deref(), keys_max: 37, ..ListOptions::default() };
                    let page = bucket.list_keys(options).unwrap();
                    listed.extend(page.iter().filter(|key| key.len() == 4).map(<[u8]>::to_vec));
                    match page.next() {
                        Some(next) => after = Some(next.to_vec()),
                        None => break,
                    }
                }
                assert!(listed.iter().eq(fixed.iter().map(|key| key.as_bytes())));
            }
        });
    });
}

#[test]
fn a_value_stays_what_it_was() {
    stores(|store| {
        let bucket = store.bucket("b").unwrap().with_durability(Durability::Os);
        bucket.set(b"k", b"first").unwrap();
        let first = bucket.get(b"k").unwrap().unwrap();
        for i in 0..times(1000) {
            bucket.set(b"k", &[i as u8; 4000]).unwrap();
        }
        bucket.delete(b"k").unwrap();
        assert_eq!(&*first, b"first");
        let bytes = first.into_bytes();
        drop(bucket);
        assert_eq!(&bytes[..], b"first");
    });
}

/// A close meets writers that were let in before it: each is told that the store is closed, and what was acknowledged is there.
/// Where one was not, it looked for room for ever.
#[test]
#[cfg_attr(miri, ignore = "maps files")]
fn a_close_among_writers_lets_each_of_them_end() {
    for round in 0..40u64 {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store");
        let options = || Options::new().durability(Durability::Os).segment_bytes_max(64 << 10);
        let store = Store::open(&path, options()).unwrap();
        let bucket = store.bucket("b").unwrap();
        let written: Vec<u64> = std::thread::scope(|scope| {
            let writers: Vec<_> = (0..2u8)
                .map(|thread| {
                    let bucket = &bucket;
                    scope.spawn(move || {
                        let key = |i: u64| [&[thread][..], &i.to_le_bytes()].concat();
                        (0..).take_while(|i| bucket.set(&key(*i), &[7; 700]).is_ok()).count() as u64
                    })
                })
                .collect();
            while store.stats().log_bytes < (32 << 10) * (round % 5) {
                std::thread::yield_now();
            }
            store.clone().close().unwrap();
            writers.into_iter().map(|writer| writer.join().unwrap()).collect()
        });
        drop((bucket, store));
        let store = Store::open(&path, options()).unwrap();
        let bucket = store.bucket("b").unwrap();
        for (thread, count) in (0..).zip(written) {
            for i in 0..count {
                assert!(bucket.exists(&[&[thread][..], &i.to_le_bytes()].concat()).unwrap(), "{i} of {count}");
            }
        }
    }
}
