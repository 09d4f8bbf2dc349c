//! The engine against a map: random calls through the public interface, every answer compared. Shared by `model.rs` and the
//! command `torture`.

use std::collections::BTreeMap;
use std::path::Path;

use kvasi::{Batch, Bucket, Durability, ErrorKind, ListOptions, Options, Store, Swap, Version};

/// A small generator of our own: the same seed gives the same run on every machine and in every release.
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

    fn key(&mut self) -> Vec<u8> {
        match self.below(20) {
            0 => Vec::new(),
            1 => vec![0xff; self.below(5) as usize],
            2 => vec![b'k'; 300 + self.below(3) as usize],
            _ => format!("key/{}", self.below(200)).into_bytes(),
        }
    }

    fn value(&mut self) -> Vec<u8> {
        match self.below(10) {
            0 => Vec::new(),
            1 => (self.below(2000) as i64 - 1000).to_string().into_bytes(),
            2 if self.below(10) == 0 => vec![self.next() as u8; 5_000 + self.below(20_000) as usize],
            _ => vec![self.next() as u8; self.below(120) as usize],
        }
    }
}

const BUCKETS: usize = 3;

/// By bucket and key: the value, and its version if that was told.
type Model = [BTreeMap<Vec<u8>, (Vec<u8>, Option<Version>)>; BUCKETS];

struct Run {
    store: Option<Store>,
    buckets: Vec<Bucket>,
    model: Model,
    random: Random,
    /// Keys that the present step has written.
    written: Vec<(usize, Vec<u8>)>,
    into: Vec<u8>,
    /// Calls whose answer was compared.
    calls: u64,
}

impl Run {
    fn open(&mut self, options: &Options, dir: Option<&Path>) {
        let store = match dir {
            Some(dir) => Store::open(dir, options.clone()).unwrap(),
            None => Store::in_memory(options.clone()).unwrap(),
        };
        self.buckets = (0..BUCKETS).map(|i| store.bucket(&format!("bucket {i}")).unwrap()).collect();
        self.store = Some(store);
    }

    fn expected(&self, bucket: usize, key: &[u8]) -> Option<&[u8]> {
        self.model[bucket].get(key).map(|(value, _)| &value[..])
    }

    /// Takes up what was written.
    fn put(&mut self, bucket: usize, key: Vec<u8>, value: Option<Vec<u8>>, version: Option<Version>) {
        self.written.push((bucket, key.clone()));
        match value {
            Some(value) => drop(self.model[bucket].insert(key, (value, version))),
            None => drop(self.model[bucket].remove(&key)),
        }
    }

    fn step(&mut self) {
        let b = self.random.below(BUCKETS as u64) as usize;
        let bucket = self.buckets[b].clone();
        let key = self.random.key();
        self.calls += 1;
        match self.random.below(42) {
            0..=11 => {
                let value = self.random.value();
                let version = bucket.set(&key, &value).unwrap();
                self.put(b, key, Some(value), Some(version));
            }
            12..=14 => {
                assert_eq!(bucket.delete(&key).unwrap(), self.expected(b, &key).is_some());
                self.put(b, key, None, None);
            }
            15..=20 => self.read(b, &key),
            21..=23 => self.increment(b, &bucket, key),
            24..=27 => self.swap(b, &bucket, key),
            28..=30 => {
                let n = self.random.below(6);
                let pairs: Vec<_> = (0..n).map(|_| (self.random.key(), self.random.value())).collect();
                bucket.set_many(&pairs).unwrap();
                pairs.into_iter().for_each(|(key, value)| self.put(b, key, Some(value), None));
            }
            31..=33 => {
                let keys: Vec<_> = (0..self.random.below(6)).map(|_| self.random.key()).collect();
                bucket.delete_many(&keys).unwrap();
                keys.into_iter().for_each(|key| self.put(b, key, None, None));
            }
            34..=37 => {
                let keys: Vec<_> = (0..self.random.below(6)).map(|_| self.random.key()).collect();
                let found = bucket.get_many(&keys).unwrap();
                let expected: Vec<_> = keys.iter().map(|key| self.expected(b, key)).collect();
                assert_eq!(found.iter().map(|v| v.as_deref()).collect::<Vec<_>>(), expected);
            }
            38..=40 => self.batch(),
            _ => self.list(b, &bucket),
        }
        // What was written is there at once, and what was not is as it was.
        for (b, key) in std::mem::take(&mut self.written) {
            self.read(b, &key);
        }
        let (b, key) = (self.random.below(BUCKETS as u64) as usize, self.random.key());
        self.read(b, &key);
    }

    /// In every way in which a key can be read it is what the model says.
    fn read(&mut self, b: usize, key: &[u8]) {
        self.calls += 4;
        let (bucket, held) = (&self.buckets[b], self.model[b].get(key));
        let expected = held.map(|(value, _)| &value[..]);
        let found = bucket.get(key).unwrap();
        assert_eq!(found.as_deref(), expected);
        assert_eq!(bucket.exists(key).unwrap(), found.is_some());
        if let (Some(value), Some((_, known))) = (&found, held) {
            assert_eq!(value.key(), key);
            assert!(known.is_none_or(|known| known == value.version()), "versions survive");
        }
        let mut into = std::mem::take(&mut self.into);
        into.extend_from_slice(b"rest");
        let version = bucket.get_into(key, &mut into).unwrap();
        assert_eq!(version.map(|_| &into[..]), expected);
        into.clear();
        self.into = into;
        assert_eq!(bucket.get_many(&[key]).unwrap()[0].as_deref(), expected);
    }

    fn increment(&mut self, b: usize, bucket: &Bucket, key: Vec<u8>) {
        let delta = [0, 1, -1, 7, i64::MAX, i64::MIN][self.random.below(6) as usize];
        let old = self.expected(b, &key).map(<[u8]>::to_vec);
        let number = match &old {
            None => Some(0),
            // Only the shortest spelling is a number.
            Some(text) => {
                let number = std::str::from_utf8(text).ok().and_then(|t| t.parse::<i64>().ok());
                number.filter(|number| number.to_string().as_bytes() == text)
            }
        };
        match (bucket.increment(&key, delta), number) {
            (Ok(sum), Some(number)) => {
                assert_eq!(Some(sum), number.checked_add(delta));
                self.put(b, key, Some(sum.to_string().into_bytes()), None);
            }
            (Err(e), Some(number)) => {
                assert_eq!((e.kind(), number.checked_add(delta)), (ErrorKind::Overflow, None));
            }
            (result, None) => assert_eq!(result.unwrap_err().kind(), ErrorKind::NotANumber),
        }
    }

    fn swap(&mut self, b: usize, bucket: &Bucket, key: Vec<u8>) {
        let now = bucket.get(&key).unwrap();
        self.calls += 1;
        let stale = self.random.below(2) == 0;
        let expected = match (&now, stale) {
            (None, false) => None,
            (Some(value), false) => Some(value.version()),
            (None, true) => Some(Version::from_u64(1)),
            (Some(_), true) => None,
        };
        let value = self.random.value();
        match bucket.compare_and_swap(&key, expected, &value).unwrap() {
            Swap::Done(version) => {
                assert!(!stale);
                self.put(b, key, Some(value), Some(version));
            }
            Swap::Conflict(current) => {
                assert!(stale);
                assert_eq!(current.as_deref(), self.expected(b, &key));
            }
        }
    }

    fn batch(&mut self) {
        let mut batch = Batch::new();
        for _ in 0..self.random.below(8) {
            let b = self.random.below(BUCKETS as u64) as usize;
            let key = self.random.key();
            if self.random.below(3) == 0 {
                batch.delete(&self.buckets[b], &key);
                self.put(b, key, None, None);
            } else {
                let value = self.random.value();
                batch.set(&self.buckets[b], &key, &value);
                self.put(b, key, Some(value), None);
            }
        }
        self.store.as_ref().unwrap().commit(&batch).unwrap();
    }

    fn list(&mut self, b: usize, bucket: &Bucket) {
        let prefix: &[u8] = [&b""[..], b"key/", b"key/1", b"\xff", b"none"][self.random.below(5) as usize];
        let keys_max = 1 + self.random.below(40) as usize;
        let mut listed: Vec<Vec<u8>> = Vec::new();
        let mut after = None;
        loop {
            let options = ListOptions { prefix, after: after.as_deref(), keys_max, ..ListOptions::default() };
            let page = bucket.list_keys(options).unwrap();
            self.calls += 1;
            assert!(page.len() <= keys_max);
            listed.extend(page.iter().map(<[u8]>::to_vec));
            match page.next() {
                Some(next) => after = Some(next.to_vec()),
                None => break,
            }
        }
        let expected = self.model[b].keys().filter(|key| key.starts_with(prefix));
        assert!(listed.iter().eq(expected), "{listed:?}");
    }
}

/// One run of `ops` steps, reopened some thirty times, now and then without closing (which no one sees here: the log is in
/// the system's cache); the number of calls. A store with files has a directory in `base`.
pub(crate) fn run(seed: u64, durability: Durability, ops: u64, base: &Path) -> u64 {
    let dir = tempfile::tempdir_in(base).unwrap();
    let path = dir.path().join("store");
    let options = Options::new().durability(durability).segment_bytes_max(256 << 10);
    let on_disk = (durability != Durability::Ephemeral).then_some(&*path);
    let mut run = Run {
        store: None,
        buckets: Vec::new(),
        model: Model::default(),
        random: Random(seed),
        written: Vec::new(),
        into: Vec::new(),
        calls: 0,
    };
    run.open(&options, on_disk);
    for i in 0..ops {
        run.step();
        if on_disk.is_some() && i % (ops / 30).max(1) == 0 {
            run.buckets.clear();
            let store = run.store.take().unwrap();
            if run.random.below(2) == 0 {
                store.close().unwrap()
            } else {
                drop(store)
            }
            run.open(&options, on_disk);
            let report = run.store.as_ref().unwrap().report();
            assert!(report.clean && report.bytes_cut == 0, "{report:?}");
        }
    }
    for (bucket, keys) in run.buckets.iter().zip(&run.model) {
        for (key, (value, _)) in keys {
            assert_eq!(bucket.get(key).unwrap().as_deref(), Some(&value[..]));
        }
    }
    run.calls
}
