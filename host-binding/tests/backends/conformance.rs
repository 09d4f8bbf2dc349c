//! What every call of every back end must do, as far as a back end can be asked without a guest; the numbers are those of the list of
//! behaviours. A case knows its back end only by its capabilities.

use bytes::Bytes;
use kvasi_wasmtime::Code;
use kvasi_wasmtime::backend::remote::{Local, RemoteBackend, RemoteBucket};
use kvasi_wasmtime::backend::{Backend, Capabilities, Guard, Key, Memory, PageBounds, SetOptions, Swap};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// Buckets in memory: what the cases themselves are held against.
pub(crate) struct Memories(Memory);

impl Default for Memories {
    fn default() -> Self {
        Memories(Memory::new().unwrap())
    }
}

impl RemoteBackend for Memories {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = self.0.capabilities();
        // The adaptor passes on what a local bucket has.
        capabilities.expiring = false;
        capabilities
    }

    fn bucket(&self, name: &str) -> Result<Arc<dyn RemoteBucket>, kvasi_wasmtime::Error> {
        Ok(Arc::new(Local::new(self.0.bucket(name)?)))
    }
}

type Bucket = Arc<dyn RemoteBucket>;

const BOUNDS: PageBounds = PageBounds { keys_max: 1_000, bytes_max: 256 << 10, entries_max: 50_000 };

/// Keys that one store or another would trip over.
fn awkward_keys() -> Vec<String> {
    let mut keys: Vec<String> = [
        "", ".", "..", "a/b", "a b", "'", "\"", "*", "?", "#", "\\", ":", "{x}", "}", "\0", "\n", "\r\n", "%2f",
        "__x__", "a", "A",
    ]
    .into_iter()
    .map(str::to_owned)
    .collect();
    // NFC and NFD of one letter are two keys; so are letters of any script.
    keys.extend(["\u{e9}", "e\u{301}", "ключ", "鍵", "\u{1f511}", "\u{10ffff}", "\u{202e}x"].map(str::to_owned));
    keys.push("k".repeat(200));
    keys
}

async fn every_key(bucket: &Bucket, bounds: PageBounds) -> Vec<String> {
    let (mut keys, mut after, mut pages) = (Vec::new(), None::<Bytes>, 0);
    loop {
        let page = bucket.list("", after.as_deref(), bounds).await.unwrap();
        assert!(page.keys.len() <= bounds.keys_max);
        keys.extend(page.keys.iter().map(|key| key.to_string()));
        pages += 1;
        assert!(pages < 100_000, "a listing ends");
        after = page.next;
        if after.is_none() {
            return keys;
        }
    }
}

fn keys_of(keys: &[String]) -> Vec<Key<'_>> {
    keys.iter().map(|key| Key::from(key.as_str())).collect()
}

fn pairs_of<'a>(pairs: &'a [(String, Vec<u8>)]) -> Vec<(Key<'a>, &'a [u8])> {
    pairs.iter().map(|(key, value)| (Key::from(key.as_str()), &value[..])).collect()
}

/// Runs every case; each in a bucket of its own.
pub(crate) async fn all(backend: &dyn RemoteBackend) {
    let can = backend.capabilities();
    let bucket = |name: &str| backend.bucket(name).unwrap();
    points(&bucket("points")).await;
    keys_are_kept_apart(&bucket("keys"), can).await;
    buckets_never_alias(backend).await;
    sizes(&bucket("sizes"), can).await;
    listing(&bucket("listing"), can).await;
    listing_while_others_write(&bucket("moving")).await;
    increments(&bucket("increments")).await;
    swaps(&bucket("swaps")).await;
    batches(&bucket("batches"), can).await;
    contention(&bucket("contention")).await;
    expiry(&bucket("expiry"), can).await;
}

/// 6 to 10, 13.
async fn points(bucket: &Bucket) {
    assert_eq!(bucket.get("absent").await.unwrap(), None);
    assert!(!bucket.exists("absent").await.unwrap());
    bucket.delete("absent").await.unwrap();
    for value in [&b""[..], b"v", b"\0\xff\r\n", &[0x80; 5_000]] {
        bucket.set("k", value).await.unwrap();
        assert_eq!(bucket.get("k").await.unwrap().as_deref(), Some(value));
        assert!(bucket.exists("k").await.unwrap());
    }
    bucket.delete("k").await.unwrap();
    bucket.delete("k").await.unwrap();
    assert_eq!(bucket.get("k").await.unwrap(), None);
    assert!(!bucket.exists("k").await.unwrap());
}

/// 11: every key is stored exactly, on every call.
async fn keys_are_kept_apart(bucket: &Bucket, can: Capabilities) {
    let keys = awkward_keys();
    for (i, key) in keys.iter().enumerate() {
        bucket.set(key, i.to_string().as_bytes()).await.unwrap_or_else(|error| panic!("{key:?}: {error}"));
    }
    for (i, key) in keys.iter().enumerate() {
        assert_eq!(bucket.get(key).await.unwrap().as_deref(), Some(i.to_string().as_bytes()), "{key:?}");
        assert!(bucket.exists(key).await.unwrap(), "{key:?}");
        assert_eq!(bucket.increment(key, 1).await.unwrap(), i as i64 + 1, "{key:?}");
        let observed = bucket.observe(key).await.unwrap();
        let swapped = bucket.swap(key, &observed.guard, b"swapped").await.unwrap();
        assert!(matches!(swapped, Swap::Done), "{key:?}");
    }
    let many = bucket.get_many(&keys_of(&keys)).await.unwrap();
    for (key, found) in keys.iter().zip(&many) {
        let (name, value) = found.as_ref().unwrap();
        assert_eq!((&**name, &value[..]), (key.as_str(), &b"swapped"[..]));
    }
    let listed = match bucket.list("", None, BOUNDS).await {
        Err(error) if error.code() == Code::Unsupported => None,
        _ => Some(every_key(bucket, BOUNDS).await),
    };
    if let Some(mut listed) = listed {
        let mut expected = keys.clone();
        expected.sort();
        if can.ordered {
            assert_eq!(listed, expected, "byte order");
        }
        listed.sort();
        assert_eq!(listed, expected);
    }
    bucket.delete_many(&keys_of(&keys)).await.unwrap();
    for key in &keys {
        assert!(!bucket.exists(key).await.unwrap(), "{key:?}");
    }
}

/// 12.
async fn buckets_never_alias(backend: &dyn RemoteBackend) {
    let names = ["", "a", "a:b", "a/b", "A", "a{b}", "a%3ab", "ü", "a!", "b"];
    let buckets: Vec<Bucket> = names.iter().map(|name| backend.bucket(name).unwrap()).collect();
    for (name, bucket) in names.iter().zip(&buckets) {
        for key in ["b:c", "c", ":c", "b}:c", "!"] {
            bucket.set(key, name.as_bytes()).await.unwrap();
        }
    }
    for (name, bucket) in names.iter().zip(&buckets) {
        for key in ["b:c", "c", ":c", "b}:c", "!"] {
            assert_eq!(bucket.get(key).await.unwrap().as_deref(), Some(name.as_bytes()), "{name} {key}");
        }
    }
}

/// 10, 11: what is over a limit is the same error on every call, and what is at it is stored.
async fn sizes(bucket: &Bucket, can: Capabilities) {
    let longest = "k".repeat(can.key_bytes_max.min(64 << 10));
    if can.key_bytes_max <= 64 << 10 {
        bucket.set(&longest, b"v").await.unwrap();
        assert_eq!(bucket.get(&longest).await.unwrap().as_deref(), Some(&b"v"[..]));
        bucket.delete(&longest).await.unwrap();
        let over = format!("{longest}k");
        if can.key_bytes_max < kvasi::KEY_BYTES_MAX {
            let codes = [
                bucket.get(&over).await.unwrap_err().code(),
                bucket.set(&over, b"v").await.unwrap_err().code(),
                bucket.exists(&over).await.unwrap_err().code(),
                bucket.delete(&over).await.unwrap_err().code(),
                bucket.increment(&over, 1).await.unwrap_err().code(),
                bucket.observe(&over).await.unwrap_err().code(),
                bucket.swap(&over, &Guard::Absent, b"v").await.unwrap_err().code(),
                bucket.set_with(&over, b"v", SetOptions::default()).await.unwrap_err().code(),
                bucket.get_many(&[Key::from("a"), Key::from(over.as_str())]).await.unwrap_err().code(),
                bucket.set_many(&[(Key::from(over.as_str()), b"v")]).await.unwrap_err().code(),
                bucket.delete_many(&[Key::from(over.as_str())]).await.unwrap_err().code(),
            ];
            assert!(codes.iter().all(|code| *code == Code::TooLarge), "{codes:?}");
        }
    }
    let large = vec![7; can.value_bytes_max.min(1 << 20) * 9 / 10];
    bucket.set("large", &large).await.unwrap();
    assert!(bucket.get("large").await.unwrap().unwrap() == large);
    if can.value_bytes_max < 8 << 20 {
        let error = bucket.set("large", &vec![8; can.value_bytes_max + 1]).await.unwrap_err();
        assert_eq!(error.code(), Code::TooLarge);
        assert!(bucket.get("large").await.unwrap().unwrap() == large, "a failed call changes nothing");
    }
}

/// 14, 16 to 21.
async fn listing(bucket: &Bucket, can: Capabilities) {
    let empty = match bucket.list("", None, BOUNDS).await {
        Err(error) => {
            assert_eq!(error.code(), Code::Unsupported);
            return;
        }
        Ok(page) => page,
    };
    assert!(empty.keys.is_empty() && empty.next.is_none());
    let pairs: Vec<_> = (0..137).map(|i| (format!("key {i:03}"), vec![b'v'; i])).collect();
    bucket.set_many(&pairs_of(&pairs)).await.unwrap();
    let expected: BTreeSet<String> = pairs.iter().map(|(key, _)| key.clone()).collect();
    for keys_max in [1, 10, 137, 1_000] {
        let listed = every_key(bucket, PageBounds { keys_max, ..BOUNDS }).await;
        assert_eq!(listed.len(), expected.len(), "each once, pages of {keys_max}");
        assert_eq!(listed.iter().cloned().collect::<BTreeSet<_>>(), expected);
        if can.ordered {
            assert!(listed.is_sorted());
        }
    }
    let page = bucket.list("", None, PageBounds { bytes_max: 20, ..BOUNDS }).await.unwrap();
    assert!(!page.keys.is_empty() && page.keys.len() <= 3, "a page is bounded in bytes");
    // A cursor that the back end did not give is an error or a place, never a panic.
    for cursor in [&b""[..], b"\0", b"\xff", b"zzz", &[0xff; 300]] {
        let _ = bucket.list("", Some(cursor), BOUNDS).await;
    }
    match bucket.list("key 01", None, BOUNDS).await {
        Ok(page) => assert_eq!(page.keys.len(), 10, "a prefix"),
        Err(error) => assert_eq!(error.code(), Code::Unsupported),
    }
}

/// 15.
async fn listing_while_others_write(bucket: &Bucket) {
    if bucket.list("", None, BOUNDS).await.is_err() {
        return;
    }
    let stay: Vec<_> = (0..60).map(|i| (format!("stay {i:02}"), b"v".to_vec())).collect();
    bucket.set_many(&pairs_of(&stay)).await.unwrap();
    let (mut seen, mut after, mut round) = (Vec::new(), None::<Bytes>, 0);
    loop {
        let page = bucket.list("", after.as_deref(), PageBounds { keys_max: 7, ..BOUNDS }).await.unwrap();
        seen.extend(page.keys.iter().map(|key| key.to_string()));
        // Keys come and go on both sides of the cursor; those that stay are written again too.
        bucket.set(&format!("comes {round}"), b"v").await.unwrap();
        bucket.set(&format!("z comes {round}"), b"v").await.unwrap();
        bucket.delete(&format!("comes {}", round / 2)).await.unwrap();
        bucket.set(&stay[round % 60].0, b"again").await.unwrap();
        round += 1;
        after = page.next;
        if after.is_none() || round > 500 {
            break;
        }
    }
    for (key, _) in &stay {
        assert_eq!(seen.iter().filter(|seen| *seen == key).count(), 1, "{key} exactly once");
    }
}

/// 22 to 26.
async fn increments(bucket: &Bucket) {
    assert_eq!(bucket.increment("new", -5).await.unwrap(), -5);
    assert_eq!(bucket.increment("new", 0).await.unwrap(), -5);
    assert_eq!(bucket.get("new").await.unwrap().as_deref(), Some(&b"-5"[..]));
    assert_eq!(bucket.increment("zero", 0).await.unwrap(), 0);
    assert_eq!(bucket.get("zero").await.unwrap().as_deref(), Some(&b"0"[..]));
    bucket.set("k", b"41").await.unwrap();
    assert_eq!(bucket.increment("k", 1).await.unwrap(), 42);
    assert_eq!(bucket.get("k").await.unwrap().as_deref(), Some(&b"42"[..]));
    for value in [&b"abc"[..], b"", b"1.5", b" 1", b"1 ", b"0x10", b"\xff", b"9223372036854775808", b"--1"] {
        bucket.set("k", value).await.unwrap();
        let error = bucket.increment("k", 1).await.unwrap_err();
        let right = matches!(error.code(), Code::NotANumber | Code::Overflow);
        assert!(right, "{value:?}: {error}");
        assert_eq!(bucket.get("k").await.unwrap().as_deref(), Some(value), "untouched");
    }
    for (value, delta) in [(i64::MAX, 1), (i64::MIN, -1), (1, i64::MAX), (-2, i64::MIN)] {
        bucket.set("k", value.to_string().as_bytes()).await.unwrap();
        let error = bucket.increment("k", delta).await.unwrap_err();
        assert_eq!(error.code(), Code::Overflow, "{value} + {delta}: {error}");
        assert_eq!(bucket.get("k").await.unwrap().unwrap(), value.to_string().as_bytes(), "untouched");
    }
    // Numbers that do not fit a double.
    bucket.set("k", b"9007199254740993").await.unwrap();
    assert_eq!(bucket.increment("k", 2).await.unwrap(), 9_007_199_254_740_995);
    bucket.set("k", i64::MAX.to_string().as_bytes()).await.unwrap();
    assert_eq!(bucket.increment("k", i64::MIN).await.unwrap(), -1);
    bucket.increment("k", i64::MIN + 1).await.unwrap();
    assert_eq!(bucket.increment("k", 0).await.unwrap(), i64::MIN);
}

/// 29 to 37, 39, 41, 44.
async fn swaps(bucket: &Bucket) {
    let absent = bucket.observe("k").await.unwrap();
    assert_eq!((absent.value, &absent.guard), (None, &Guard::Absent));
    assert!(matches!(bucket.swap("k", &Guard::Absent, b"1").await.unwrap(), Swap::Done));
    let lost = bucket.swap("k", &Guard::Absent, b"2").await.unwrap();
    let Swap::Conflict(now) = lost else { panic!("created by another") };
    assert_eq!(now.value.as_deref(), Some(&b"1"[..]));
    assert!(matches!(bucket.swap("k", &now.guard, b"3").await.unwrap(), Swap::Done), "the fresh guard holds");

    // Whatever writes in between, a swap that stands on what was before fails, changes nothing and tells what is now.
    for (i, what) in
        ["same bytes", "there and back", "increment", "batch", "deleted", "created again"].iter().enumerate()
    {
        bucket.set("k", b"7").await.unwrap();
        let before = bucket.observe("k").await.unwrap();
        assert_eq!(before.value.as_deref(), Some(&b"7"[..]));
        match i {
            0 => bucket.set("k", b"7").await.unwrap(),
            1 => {
                bucket.set("k", b"8").await.unwrap();
                bucket.set("k", b"7").await.unwrap();
            }
            2 => assert_eq!(bucket.increment("k", 0).await.unwrap(), 7),
            3 => bucket.set_many(&[(Key::from("k"), b"7")]).await.unwrap(),
            4 => bucket.delete("k").await.unwrap(),
            _ => {
                bucket.delete_many(&[Key::from("k")]).await.unwrap();
                bucket.set("k", b"7").await.unwrap();
            }
        }
        let Swap::Conflict(now) = bucket.swap("k", &before.guard, b"lost").await.unwrap() else { panic!("{what}") };
        let expected = (i != 4).then_some(&b"7"[..]);
        assert_eq!(now.value.as_deref(), expected, "{what}");
        assert_eq!(bucket.get("k").await.unwrap().as_deref(), expected, "{what}: nothing was written");
        assert!(matches!(bucket.swap("k", &now.guard, b"won").await.unwrap(), Swap::Done), "{what}");
    }
    let (a, b) = (bucket.observe("k").await.unwrap(), bucket.observe("k").await.unwrap());
    assert!(matches!(bucket.swap("k", &a.guard, b"first").await.unwrap(), Swap::Done));
    assert!(matches!(bucket.swap("k", &b.guard, b"second").await.unwrap(), Swap::Conflict(_)));
}

/// 45 to 50.
async fn batches(bucket: &Bucket, can: Capabilities) {
    assert!(bucket.get_many(&[]).await.unwrap().is_empty());
    bucket.set_many(&[]).await.unwrap();
    bucket.delete_many(&[]).await.unwrap();

    bucket.set_many(&[(Key::from("a"), b"1"), (Key::from("b"), b""), (Key::from("a"), b"2")]).await.unwrap();
    assert_eq!(bucket.get("a").await.unwrap().as_deref(), Some(&b"2"[..]), "the last wins");
    let keys: Vec<Key<'_>> = ["b", "none", "a", "a"].map(Key::from).into();
    let found = bucket.get_many(&keys).await.unwrap();
    let found: Vec<_> = found.iter().map(|pair| pair.as_ref().map(|(key, value)| (&**key, &value[..]))).collect();
    assert_eq!(found, [Some(("b", &b""[..])), None, Some(("a", b"2")), Some(("a", b"2"))]);
    bucket.delete_many(&[Key::from("a"), Key::from("none"), Key::from("a")]).await.unwrap();
    assert!(!bucket.exists("a").await.unwrap() && bucket.exists("b").await.unwrap());

    for count in [26, 101, 1_500] {
        let pairs: Vec<_> = (0..count).map(|i| (format!("{count} {i}"), format!("value {i}").into_bytes())).collect();
        bucket.set_many(&pairs_of(&pairs)).await.unwrap();
        let keys: Vec<String> = pairs.iter().map(|(key, _)| key.clone()).collect();
        let found = bucket.get_many(&keys_of(&keys)).await.unwrap();
        assert_eq!(found.len(), count);
        for ((key, value), found) in pairs.iter().zip(&found) {
            let (name, found) = found.as_ref().unwrap();
            assert_eq!((&**name, &found[..]), (key.as_str(), &value[..]));
        }
        bucket.delete_many(&keys_of(&keys)).await.unwrap();
        assert!(bucket.get_many(&keys_of(&keys)).await.unwrap().iter().all(Option::is_none));
    }
    // More than one request of any service holds.
    let large = vec![b'x'; (can.value_bytes_max / 2).min(300 << 10)];
    let pairs: Vec<_> = (0..20).map(|i| (format!("large {i}"), large.clone())).collect();
    bucket.set_many(&pairs_of(&pairs)).await.unwrap();
    let keys: Vec<String> = pairs.iter().map(|(key, _)| key.clone()).collect();
    let found = bucket.get_many(&keys_of(&keys)).await.unwrap();
    assert!(found.iter().all(|pair| pair.as_ref().is_some_and(|(_, value)| *value == large)));
}

/// 27, 43.
async fn contention(bucket: &Bucket) {
    const TASKS: i64 = 6;
    const EACH: i64 = 20;
    let tasks: Vec<_> = (0..TASKS)
        .map(|_| {
            let bucket = bucket.clone();
            tokio::spawn(async move {
                let mut sums = Vec::new();
                for _ in 0..EACH {
                    sums.push(retried(|| bucket.increment("counter", 1)).await);
                    swap_up(&bucket).await;
                }
                sums
            })
        })
        .collect();
    let mut sums = BTreeMap::new();
    for task in tasks {
        for sum in task.await.unwrap() {
            *sums.entry(sum).or_insert(0) += 1;
        }
    }
    assert_eq!(sums.len() as i64, TASKS * EACH, "all distinct");
    assert_eq!(bucket.get("counter").await.unwrap().unwrap(), (TASKS * EACH).to_string().as_bytes());
    assert_eq!(bucket.get("swapped").await.unwrap().unwrap(), (TASKS * EACH).to_string().as_bytes());
}

/// Services that count by comparing may give up under contention: they say `busy`, and nothing was applied.
async fn retried<R, F: Future<Output = Result<R, kvasi_wasmtime::Error>>>(mut call: impl FnMut() -> F) -> R {
    loop {
        match call().await {
            Ok(answer) => return answer,
            Err(error) => assert_eq!(error.code(), Code::Busy, "{error}"),
        }
    }
}

async fn swap_up(bucket: &Bucket) {
    let mut observed = bucket.observe("swapped").await.unwrap();
    loop {
        let text = observed.value.as_ref().map_or("0", |value| std::str::from_utf8(value).unwrap());
        let next = (text.parse::<i64>().unwrap() + 1).to_string();
        match retried(|| bucket.swap("swapped", &observed.guard, next.as_bytes())).await {
            Swap::Done => return,
            Swap::Conflict(now) => observed = now,
        }
    }
}

/// Expiry and creation, where the back end has them.
async fn expiry(bucket: &Bucket, can: Capabilities) {
    if !can.expiring {
        return;
    }
    let mut options = SetOptions::default();
    options.if_absent = true;
    assert!(bucket.set_with("k", b"first", options).await.unwrap());
    assert!(!bucket.set_with("k", b"second", options).await.unwrap());
    assert_eq!(bucket.get("k").await.unwrap().as_deref(), Some(&b"first"[..]));

    let mut options = SetOptions::default();
    options.ttl = Some(Duration::from_secs(2));
    assert!(bucket.set_with("short", b"v", options).await.unwrap());
    assert!(bucket.set_with("kept", b"v", options).await.unwrap());
    assert_eq!(bucket.get("short").await.unwrap().as_deref(), Some(&b"v"[..]));
    bucket.set("kept", b"for ever").await.unwrap();
    // Services forget by the second, and not at once.
    tokio::time::sleep(Duration::from_millis(4_200)).await;
    assert_eq!(bucket.get("short").await.unwrap(), None);
    assert!(!bucket.exists("short").await.unwrap());
    assert!(bucket.get_many(&[Key::from("short")]).await.unwrap()[0].is_none());
    assert_eq!(bucket.observe("short").await.unwrap().guard, Guard::Absent);
    assert_eq!(bucket.get("kept").await.unwrap().as_deref(), Some(&b"for ever"[..]), "a plain set lives for ever");
    if bucket.list("", None, BOUNDS).await.is_ok() {
        let mut listed = every_key(bucket, BOUNDS).await;
        listed.sort();
        assert_eq!(listed, ["k", "kept"]);
    }
}
