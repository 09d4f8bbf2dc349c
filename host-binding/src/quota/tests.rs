//! What is counted is what is held, and no sum is ever exceeded.

use super::*;
use crate::backend::{Backend, Memory};
use std::sync::atomic::{AtomicBool, Ordering};

fn usage(bytes: u64, keys: u64) -> Usage {
    Usage { bytes, keys }
}

fn memory() -> Arc<dyn LocalBucket> {
    Memory::new().unwrap().bucket("b").unwrap()
}

fn metered(max: Usage) -> (Metered, Account) {
    let account = Account::new(max);
    (Metered::new(memory(), [account.clone()]).unwrap(), account)
}

#[track_caller]
fn refused<R: fmt::Debug>(answer: Result<R, Error>) {
    assert_eq!(answer.unwrap_err().code(), Code::Quota);
}

#[test]
fn a_value_fits_up_to_the_last_byte() {
    for (max, fits) in [(9, false), (10, true), (11, true)] {
        let (bucket, account) = metered(usage(max, 10));
        let answer = bucket.set("key", &[0; 7]);
        assert_eq!(answer.is_ok(), fits, "{max}");
        assert_eq!(account.used(), if fits { usage(10, 1) } else { usage(0, 0) });
        assert_eq!(bucket.exists("key").unwrap(), fits, "what is refused is not written");
    }
}

#[test]
fn a_key_fits_up_to_the_last_one() {
    let (bucket, account) = metered(usage(1000, 2));
    bucket.set("a", b"").unwrap();
    bucket.set("b", b"").unwrap();
    refused(bucket.set("c", b""));
    refused(bucket.increment("c", 0));
    refused(bucket.swap("c", &Guard::Absent, b""));
    refused(bucket.set_many(&[("a".into(), b"1"), ("c".into(), b"1")]));
    assert_eq!(bucket.get("a").unwrap().unwrap(), "", "a batch that is refused changes nothing");
    bucket.set("a", b"more of the same key").unwrap();
    bucket.delete("b").unwrap();
    bucket.set("c", b"").unwrap();
    assert_eq!(account.used(), usage(22, 2));
}

#[test]
fn at_the_limit_what_does_not_grow_goes_on() {
    let (bucket, account) = metered(usage(10, 1));
    bucket.set("k", b"123456789").unwrap();
    bucket.set("k", b"987654321").unwrap();
    refused(bucket.set("k", b"1234567890"));
    bucket.increment("k", 1).unwrap();
    refused(bucket.increment("k", 100_000_000));
    let guard = bucket.observe("k").unwrap().guard;
    assert!(matches!(bucket.swap("k", &guard, b"short").unwrap(), Swap::Done));
    assert_eq!(account.used(), usage(6, 1));
    bucket.set_many(&[("k".into(), b"1234567890123"), ("k".into(), b"2")]).unwrap();
    assert_eq!(account.used(), usage(2, 1), "of equal keys the last counts");
    bucket.delete_many(&["k".into(), "absent".into(), "k".into()]).unwrap();
    assert_eq!(account.used(), usage(0, 0));
}

#[test]
fn numbers_count_the_digits_that_they_have() {
    let (bucket, account) = metered(usage(3, 1));
    assert_eq!(bucket.increment("n", 9).unwrap(), 9);
    assert_eq!(account.used(), usage(2, 1));
    assert_eq!(bucket.increment("n", 1).unwrap(), 10);
    assert_eq!(account.used(), usage(3, 1));
    refused(bucket.increment("n", 90));
    assert_eq!(bucket.increment("n", -11).unwrap(), -1);
    assert_eq!(account.used(), usage(3, 1));
    assert_eq!(bucket.increment("n", 1).unwrap(), 0);
    assert_eq!(account.used(), usage(2, 1));
    bucket.set("n", b"x").unwrap();
    assert_eq!(bucket.increment("n", 1).unwrap_err().code(), Code::NotANumber);
    assert_eq!(account.used(), usage(2, 1));
}

#[test]
fn what_is_there_is_counted_and_what_is_too_much_may_go_but_not_grow() {
    let inner = memory();
    for i in 0..2500 {
        inner.set(&format!("{i:04}"), b"value").unwrap();
    }
    let account = Account::new(usage(9 * 2000, u64::MAX));
    let bucket = Metered::new(inner, [account.clone()]).unwrap();
    assert_eq!(account.used(), usage(9 * 2500, 2500));
    refused(bucket.set("0000", b"longer value"));
    bucket.set("0000", b"less").unwrap();
    bucket.delete("0001").unwrap();
    assert_eq!(account.used(), usage(9 * 2499 - 1, 2499));
}

#[test]
fn several_buckets_share_a_tenants_account_and_each_has_its_own() {
    let tenant = Account::new(usage(10, 10));
    let own = Account::new(usage(6, 10));
    let first = Metered::new(memory(), [own.clone(), tenant.clone()]).unwrap();
    let second = Metered::new(memory(), [tenant.clone()]).unwrap();
    first.set("k", b"12345").unwrap();
    refused(first.set("l", b""));
    second.set("k", b"123").unwrap();
    refused(second.set("k", b"1234"));
    first.set("k", b"").unwrap();
    second.set("k", b"12345678").unwrap();
    refused(first.set("k", b"1"));
    assert_eq!((own.used(), tenant.used()), (usage(1, 1), usage(10, 2)), "the refused one gave back to both");
}

/// A bucket whose writes fail on demand.
struct Failing {
    inner: Arc<dyn LocalBucket>,
    code: Mutex<Option<Code>>,
}

impl Failing {
    fn fail(&self) -> Result<(), Error> {
        self.code.lock().unwrap().map_or(Ok(()), |code| Err(Error::new(code)))
    }
}

impl LocalBucket for Failing {
    fn identity(&self) -> &str {
        self.inner.identity()
    }
    fn get(&self, key: &str) -> Result<Option<Bytes>, Error> {
        self.inner.get(key)
    }
    fn exists(&self, key: &str) -> Result<bool, Error> {
        self.inner.exists(key)
    }
    fn set(&self, key: &str, value: &[u8]) -> Result<(), Error> {
        self.fail()?;
        self.inner.set(key, value)
    }
    fn delete(&self, key: &str) -> Result<(), Error> {
        self.fail()?;
        self.inner.delete(key)
    }
    fn list(&self, after: Option<&[u8]>, bounds: PageBounds) -> Result<Page, Error> {
        self.inner.list(after, bounds)
    }
    fn increment(&self, key: &str, delta: i64) -> Result<i64, Error> {
        self.fail()?;
        self.inner.increment(key, delta)
    }
    fn observe(&self, key: &str) -> Result<Observed, Error> {
        self.inner.observe(key)
    }
    fn swap(&self, key: &str, guard: &Guard, value: &[u8]) -> Result<Swap, Error> {
        self.fail()?;
        self.inner.swap(key, guard, value)
    }
    fn get_many(&self, keys: &[Key<'_>]) -> Result<Vec<Option<Pair>>, Error> {
        self.inner.get_many(keys)
    }
    fn set_many(&self, pairs: &[(Key<'_>, &[u8])]) -> Result<(), Error> {
        self.fail()?;
        self.inner.set_many(pairs)
    }
    fn delete_many(&self, keys: &[Key<'_>]) -> Result<(), Error> {
        self.fail()?;
        self.inner.delete_many(keys)
    }
}

#[test]
fn what_fails_or_loses_a_race_gives_back_and_what_is_in_doubt_stays() {
    let failing = Arc::new(Failing { inner: memory(), code: Mutex::default() });
    let account = Account::new(usage(100, 10));
    let bucket = Metered::new(failing.clone(), [account.clone()]).unwrap();
    bucket.set("k", b"12").unwrap();
    let stale = bucket.observe("k").unwrap().guard;
    bucket.set("k", b"34").unwrap();
    assert!(matches!(bucket.swap("k", &stale, b"much longer").unwrap(), Swap::Conflict(_)));
    assert_eq!(account.used(), usage(3, 1), "a lost race");

    let set = |code: Option<Code>| *failing.code.lock().unwrap() = code;
    set(Some(Code::NoSpace));
    let pair: [(Key<'_>, &[u8]); 1] = [("l".into(), b"123")];
    bucket.set("k", b"longer").unwrap_err();
    bucket.set_many(&pair).unwrap_err();
    bucket.increment("n", 1).unwrap_err();
    bucket.delete("k").unwrap_err();
    assert_eq!(account.used(), usage(3, 1), "a failure");

    set(Some(Code::Indeterminate));
    bucket.set("l", b"123").unwrap_err();
    bucket.delete("k").unwrap_err();
    assert_eq!(account.used(), usage(7, 2), "it may be there, and the other may be there still");
}

#[test]
fn many_writers_never_exceed_the_sum_and_leave_an_exact_count() {
    const MAX: Usage = Usage { bytes: 700, keys: 40 };
    let seed = std::env::var("KVASI_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0x9e37_79b9_u64);
    println!("KVASI_SEED={seed}");
    let (bucket, account) = metered(MAX);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // What is held, as somebody who does not trust the account sees it.
        let auditor = scope.spawn(|| {
            let mut audits = 0;
            while !done.load(Ordering::Relaxed) {
                let used = account.used();
                assert!(used.bytes <= MAX.bytes && used.keys <= MAX.keys, "{used:?}");
                audits += 1;
            }
            audits
        });
        let writers: Vec<_> = (0..64_u64)
            .map(|writer| {
                let bucket = &bucket;
                scope.spawn(move || {
                    let mut state = seed ^ (writer << 32);
                    let mut random = |below: u64| {
                        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                        (state >> 33) % below
                    };
                    let mut full = 0;
                    for _ in 0..300 {
                        let key = random(60).to_string();
                        let value = vec![b'7'; random(40) as usize];
                        let other = Key::from("shared");
                        let answer = match random(6) {
                            0 => bucket.delete(&key),
                            1 => bucket.increment(&format!("n{key}"), random(1000) as i64).map(drop),
                            2 => bucket.observe(&key).and_then(|seen| bucket.swap(&key, &seen.guard, &value)).map(drop),
                            3 => bucket.set_many(&[(key.as_str().into(), &value), (other, &value)]),
                            4 => bucket.delete_many(&[other, key.as_str().into()]),
                            _ => bucket.set(&key, &value),
                        };
                        if let Err(error) = answer {
                            assert_eq!(error.code(), Code::Quota);
                            full += 1;
                        }
                    }
                    full
                })
            })
            .collect();
        let full: u32 = writers.into_iter().map(|writer| writer.join().unwrap()).sum();
        done.store(true, Ordering::Relaxed);
        assert!(full > 100 && auditor.join().unwrap() > 0, "{full} were refused");
    });
    assert_eq!(account.used(), count(&*bucket.inner).unwrap());
}

/// A bucket of the engine whose writes wait for the disk, under a quota.
fn synced(dir: &std::path::Path, max: Usage) -> (kvasi::Bucket, Metered, Account) {
    let store = kvasi::Store::open(dir, kvasi::Options::new().durability(kvasi::Durability::Sync)).unwrap();
    let (inner, account) = (store.bucket("b").unwrap(), Account::new(max));
    let metered = Metered::new(Arc::new(inner.clone()), [account.clone()]).unwrap();
    (inner, metered, account)
}

#[test]
fn a_started_write_holds_nobody_and_is_counted_where_it_stands() {
    let dir = tempfile::tempdir().unwrap();
    let (inner, bucket, account) = synced(&dir.path().join("store"), usage(20, 2));
    let mut answers = Vec::new();
    // None of these is on the disk before the next: each must see what the one before has left.
    for (value, held) in [(&b"12345"[..], 6), (b"1", 2), (b"123", 4)] {
        let answer = bucket.start_set("k", value);
        assert!(matches!(answer, Reply::Later(_)), "it waits for the disk, and not in this thread");
        answers.push(answer);
        assert_eq!(account.used(), usage(held, 1));
    }
    let absent = SetOptions { if_absent: true, ..SetOptions::default() };
    let lost = bucket.start_set_with("k", b"much longer", absent);
    assert!(!lost.now().unwrap());
    let lost = bucket.start_swap("k", &Guard::Absent, b"much longer");
    assert!(matches!(lost.now().unwrap(), Swap::Conflict(_)));
    assert_eq!(account.used(), usage(4, 1), "who lost a race has added nothing");
    let counted = bucket.start_increment("k", 10);
    let batch = bucket.start_set_many(&[("l".into(), b"12"), ("k".into(), b"7")]);
    assert_eq!(account.used(), usage(5, 2));
    refused(bucket.start_set("m", b"").now());
    refused(bucket.start_set("k", &[0; 20]).now());
    let gone = bucket.start_delete("l");
    assert_eq!(account.used(), usage(2, 1));
    // Dropped: the write stands all the same.
    drop(bucket.start_set("l", b"123"));
    answers.into_iter().for_each(|answer| answer.now().unwrap());
    batch.now().unwrap();
    gone.now().unwrap();
    assert_eq!(counted.now().unwrap(), 133);
    bucket.set("k", b"8").unwrap();
    assert_eq!(account.used(), usage(6, 2));
    assert_eq!(account.used(), LocalBucket::usage(&inner).unwrap().unwrap());
    assert_eq!(account.used(), count(&inner).unwrap());
}

#[test]
fn what_expires_is_given_back_before_a_write_is_refused() {
    let (bucket, account) = metered(usage(100, 2));
    let ttl = |milliseconds| SetOptions { ttl: Some(Duration::from_millis(milliseconds)), ..SetOptions::default() };
    // The key is written anew once it has expired, again and again: it is one key all the time.
    for round in 0..5 {
        bucket.set_with("k", b"value", ttl(1)).unwrap();
        std::thread::sleep(RECOUNT_PAUSE + Duration::from_millis(5));
        bucket.set("l", b"value").unwrap_or_else(|error| panic!("round {round}: {error}"));
        bucket.delete("l").unwrap();
    }
    std::thread::sleep(RECOUNT_PAUSE);
    bucket.set("k", b"stays").unwrap();
    bucket.set("l", b"stays").unwrap();
    refused(bucket.set("m", b""));
    assert_eq!(account.used(), count(&*bucket.inner).unwrap());
}
