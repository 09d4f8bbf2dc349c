//! A sequence of calls through the binding, against a model: shared by a test and the fuzz target `host_calls`.
//!
//! Flow: bytes -> calls, of whatever parameters the bytes say -> the generated traits over a view, as a guest's world calls them ->
//! every answer compared with a map's. Limits and quota are small, so that short inputs meet them.
//! Invariants: 1. Any bytes are a sequence. 2. What differs panics. 3. At the end nothing is left behind: no handle but those held,
//! no call at the gate, and the account says what is held.

use crate::backend::{Backend, Guard, LocalBucket, Memory};
use crate::bindings::atomics::{CasError, Host as _, HostCas};
use crate::bindings::batch::Host as _;
use crate::bindings::store::{Error as WitError, Host as _, HostBucket};
use crate::{Account, Bucket, Cas, Code, Gate, Limits, Metered, Rights, Usage, WasiKeyValueCtx, WasiKeyValueCtxView};
use crate::{cursor, version, watcher};
use std::collections::BTreeMap;
use std::sync::Arc;
use wasmtime::component::{Resource, ResourceTable};

const LIMITS: Limits = Limits {
    key_bytes_max: 8,
    name_bytes_max: 8,
    value_bytes_max: 24,
    batch_keys_max: 4,
    batch_bytes_max: 48,
    reply_bytes_max: 40,
    page_keys_max: 2,
    page_bytes_max: 12,
    page_entries_max: 3,
    open_buckets_max: 4,
    cas_handles_max: 3,
    calls_at_once_max: 1,
    queued_bytes_max: 1 << 20,
    keys_per_second_max: None,
    written_keys_per_second_max: None,
};
const QUOTA: Usage = Usage { bytes: 60, keys: 4 };
/// Names that may be opened: what opens, the data behind it and the rights on it.
const NAMES: [(&str, Option<(usize, Rights)>); 7] = [
    ("main", Some((0, Rights::ALL))),
    ("read", Some((0, Rights::READ))),
    ("write", Some((0, Rights::WRITE))),
    ("bounded", Some((1, Rights::ALL))),
    ("withheld", None),
    ("", None),
    ("a name that is too long", None),
];
const KEYS: [&str; 8] = ["", "a", "b", "ab", "\u{e9}", "\0", "12345678", "123456789"];
const VALUES: [&[u8]; 7] = [b"", b"7", b"-1", b"9223372036854775807", b"text", &[0; 24], &[0; 25]];

/// The bytes that say what is done; endless, zeros behind the last.
struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn byte(&mut self) -> usize {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        usize::from(*first)
    }
    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.byte() % all.len()]
    }
    fn key(&mut self) -> String {
        self.of(&KEYS).to_owned()
    }
    fn value(&mut self) -> Vec<u8> {
        self.of(&VALUES).to_vec()
    }
    fn number(&mut self) -> i64 {
        self.of(&[0, 1, -1, 41, i64::MAX, i64::MIN])
    }
}

/// What a bucket holds, and which write it was that left it so.
#[derive(Default)]
struct Model {
    data: BTreeMap<String, (Vec<u8>, u64)>,
    writes: u64,
    bounded: bool,
}

type Told<R> = Result<R, WitError>;

fn other<R>(code: Code) -> Told<R> {
    Err(WitError::Other(code.text().to_owned()))
}

impl Model {
    fn used(&self) -> Usage {
        let bytes = self.data.iter().map(|(key, (value, _))| (key.len() + value.len()) as u64).sum();
        Usage { bytes, keys: self.data.len() as u64 }
    }

    /// All the writes, or none.
    fn write(&mut self, writes: &[(String, Option<Vec<u8>>)]) -> Told<()> {
        let mut then = self.data.clone();
        for (key, value) in writes {
            self.writes += 1;
            match value {
                Some(value) => drop(then.insert(key.clone(), (value.clone(), self.writes))),
                None => drop(then.remove(key)),
            }
        }
        let before = self.used();
        let data = std::mem::replace(&mut self.data, then);
        let after = self.used();
        let over = |of: fn(&Usage) -> u64| of(&after) > of(&before) && of(&after) > of(&QUOTA);
        if self.bounded && (over(|usage| usage.bytes) || over(|usage| usage.keys)) {
            self.data = data;
            return other(Code::Quota);
        }
        Ok(())
    }

    fn value(&self, key: &str) -> Option<Vec<u8>> {
        self.data.get(key).map(|(value, _)| value.clone())
    }

    fn increment(&mut self, key: &str, delta: i64) -> Told<i64> {
        let number = match self.value(key) {
            None => 0,
            Some(value) => {
                let text = String::from_utf8_lossy(&value).into_owned();
                match text.parse::<i64>() {
                    Ok(number) if number.to_string() == text => number,
                    _ => return other(Code::NotANumber),
                }
            }
        };
        let Some(sum) = number.checked_add(delta) else { return other(Code::Overflow) };
        self.write(&[(key.to_owned(), Some(sum.to_string().into_bytes()))])?;
        Ok(sum)
    }
}

fn right(rights: Rights, needed: Rights) -> Told<()> {
    if rights.contains(needed) { Ok(()) } else { Err(WitError::AccessDenied) }
}

fn sized(sizes: &[(usize, usize)]) -> Told<()> {
    if sizes.iter().all(|(size, max)| size <= max) { Ok(()) } else { other(Code::TooLarge) }
}

fn key_fits(key: &str) -> Told<()> {
    sized(&[(key.len(), LIMITS.key_bytes_max)])
}

fn value_fits(value: &[u8]) -> Told<()> {
    sized(&[(value.len(), LIMITS.value_bytes_max)])
}

struct OpenBucket {
    handle: u32,
    data: usize,
    rights: Rights,
}

struct Attempt {
    handle: u32,
    data: usize,
    key: String,
    value: Option<Vec<u8>>,
    version: Option<u64>,
}

#[track_caller]
fn same<R: std::fmt::Debug + PartialEq>(found: Told<R>, expected: Told<R>) {
    // The generated error has no equality of its own.
    assert_eq!(format!("{found:?}"), format!("{expected:?}"));
}

/// Makes the calls that these bytes say.
///
/// # Panics
/// An answer is not the model's.
#[allow(clippy::too_many_lines, clippy::unwrap_used, reason = "one arm a call; what fails is a find")]
pub fn host_calls(bytes: &[u8]) {
    let store = Memory::new().unwrap();
    let account = Account::new(QUOTA);
    let plain = store.bucket("main").unwrap();
    let bounded: Arc<dyn LocalBucket> =
        Arc::new(Metered::new(store.bucket("bounded").unwrap(), [account.clone()]).unwrap());
    let gate = Gate::new(&LIMITS);
    let mut builder = WasiKeyValueCtx::builder().limits(LIMITS).withhold("withheld").tenant(gate.clone());
    for (name, grant) in NAMES {
        if let Some((data, rights)) = grant {
            builder = builder.grant(name, [&plain, &bounded][data].clone(), rights);
        }
    }
    let (mut ctx, mut table) = (builder.build(), ResourceTable::new());
    let mut view = WasiKeyValueCtxView { ctx: &mut ctx, table: &mut table };
    let mut models = [Model::default(), Model { bounded: true, ..Model::default() }];
    let (mut buckets, mut attempts) = (Vec::<OpenBucket>::new(), Vec::<Attempt>::new());
    let mut script = Script(bytes);
    while !script.0.is_empty() {
        let call = script.byte() % 18;
        // Without a handle there is little to call.
        let call = if buckets.is_empty() { call.min(1) } else { call };
        let at = script.byte();
        let of = if buckets.is_empty() { None } else { Some(&buckets[at % buckets.len()]) };
        let this = || Resource::<Bucket>::new_borrow(of.unwrap().handle);
        let rights = of.map_or(Rights::NONE, |of| of.rights);
        let data = of.map_or(0, |of| of.data);
        match call {
            0 => {
                let (name, grant) = script.of(&NAMES);
                let opened = view.open(name.to_owned()).unwrap();
                match (opened, grant) {
                    (Ok(handle), Some((data, rights))) => {
                        assert!(buckets.len() < LIMITS.open_buckets_max);
                        buckets.push(OpenBucket { handle: handle.rep(), data, rights });
                    }
                    (Err(error), _) if buckets.len() == LIMITS.open_buckets_max => {
                        same::<()>(Err(error), other(Code::TooManyHandles));
                    }
                    (Err(WitError::AccessDenied), None) if name == "withheld" => {}
                    (Err(WitError::NoSuchStore), None) if name != "withheld" => {}
                    (found, _) => panic!("open {name:?}: {found:?}"),
                }
            }
            1 => {
                // A handle that nobody gave is a trap of that guest, whatever it is used for.
                let forged = 1_000 + at as u32;
                assert!(HostBucket::get(&mut view, Resource::new_borrow(forged), String::new()).is_err());
                assert!(HostBucket::drop(&mut view, Resource::new_own(forged)).is_err());
                assert!(view.swap(Resource::<Cas>::new_own(forged), Vec::new()).is_err());
                assert!(HostCas::current(&mut view, Resource::new_borrow(forged)).is_err());
                assert!(view.get_many(Resource::new_borrow(forged), Vec::new()).is_err());
            }
            2 => {
                let of = buckets.swap_remove(at % buckets.len());
                HostBucket::drop(&mut view, Resource::new_own(of.handle)).unwrap();
            }
            3 => {
                let key = script.key();
                let expected = right(rights, Rights::READ).and_then(|()| key_fits(&key));
                let expected = expected.map(|()| models[data].value(&key));
                same(HostBucket::get(&mut view, this(), key).unwrap(), expected);
            }
            4 => {
                let (key, value) = (script.key(), script.value());
                let fits = right(rights, Rights::WRITE).and_then(|()| key_fits(&key)).and_then(|()| value_fits(&value));
                let expected = fits.and_then(|()| models[data].write(&[(key.clone(), Some(value.clone()))]));
                same(HostBucket::set(&mut view, this(), key, value).unwrap(), expected);
            }
            5 => {
                let key = script.key();
                let fits = right(rights, Rights::WRITE).and_then(|()| key_fits(&key));
                let expected = fits.and_then(|()| models[data].write(&[(key.clone(), None)]));
                same(HostBucket::delete(&mut view, this(), key).unwrap(), expected);
            }
            6 => {
                let key = script.key();
                let fits = right(rights, Rights::READ).and_then(|()| key_fits(&key));
                let expected = fits.map(|()| models[data].data.contains_key(&key));
                same(HostBucket::exists(&mut view, this(), key).unwrap(), expected);
            }
            7 => {
                let (mut keys, mut cursor) = (Vec::new(), None::<String>);
                let listed = loop {
                    match HostBucket::list_keys(&mut view, this(), cursor.clone()).unwrap() {
                        Err(error) => break Err(error),
                        Ok(page) => {
                            assert!(page.keys.len() <= LIMITS.page_keys_max);
                            keys.extend(page.keys);
                            cursor = page.cursor;
                        }
                    }
                    if cursor.is_none() {
                        break Ok(std::mem::take(&mut keys));
                    }
                };
                let expected = right(rights, Rights::LIST).map(|()| models[data].data.keys().cloned().collect());
                same(listed, expected);
            }
            8 => {
                let text: String = (0..at % 24).map(|_| char::from(script.byte() as u8)).collect();
                let expected = right(rights, Rights::LIST).and_then(|()| other(Code::InvalidCursor));
                same(HostBucket::list_keys(&mut view, this(), Some(text)).unwrap().map(drop), expected);
            }
            9 => {
                let (key, delta) = (script.key(), script.number());
                let fits = right(rights, Rights::ATOMICS).and_then(|()| key_fits(&key));
                let expected = fits.and_then(|()| models[data].increment(&key, delta));
                same(view.increment(this(), key, delta).unwrap(), expected);
            }
            10 => {
                let key = script.key();
                let attempted = HostCas::new(&mut view, this(), key.clone()).unwrap();
                let fits = right(rights, Rights::ATOMICS).and_then(|()| key_fits(&key));
                let room = attempts.len() < LIMITS.cas_handles_max;
                let expected = fits.and_then(|()| if room { Ok(()) } else { other(Code::TooManyHandles) });
                if let Ok(handle) = &attempted {
                    let (value, version) = models[data].data.get(&key).cloned().unzip();
                    attempts.push(Attempt { handle: handle.rep(), data, key, value, version });
                }
                same(attempted.map(drop), expected);
            }
            11 if !attempts.is_empty() => {
                let attempt = &attempts[at % attempts.len()];
                same(
                    HostCas::current(&mut view, Resource::new_borrow(attempt.handle)).unwrap(),
                    Ok(attempt.value.clone()),
                );
            }
            12 if !attempts.is_empty() => {
                let Attempt { handle, data, key, version, .. } = attempts.swap_remove(at % attempts.len());
                let value = script.value();
                let model = &mut models[data];
                let now = model.data.get(&key).map(|(_, version)| *version);
                let fits = value_fits(&value);
                let swapped = view.swap(Resource::new_own(handle), value.clone()).unwrap();
                match swapped {
                    Err(CasError::CasFailed(fresh)) => {
                        assert!(fits.is_ok() && now != version, "a swap lost that nobody won");
                        let (value, version) = model.data.get(&key).cloned().unzip();
                        attempts.push(Attempt { handle: fresh.rep(), data, key, value, version });
                    }
                    // A swap that would have lost anyhow may be told that there is no room for it.
                    Err(CasError::StoreError(error)) => {
                        let expected = fits.and_then(|()| model.write(&[(key, Some(value))]));
                        same(Err(error), expected);
                    }
                    Ok(()) => {
                        assert_eq!(now, version, "a swap won over another write");
                        same(Ok(()), fits.and_then(|()| model.write(&[(key, Some(value))])));
                    }
                }
            }
            13 if !attempts.is_empty() => {
                let attempt = attempts.swap_remove(at % attempts.len());
                HostCas::drop(&mut view, Resource::new_own(attempt.handle)).unwrap();
            }
            14 => {
                let keys: Vec<String> = (0..script.byte() % 6).map(|_| script.key()).collect();
                let bytes = keys.iter().map(String::len).sum();
                let found: Vec<_> = keys.iter().map(|key| Some((key.clone(), models[data].value(key)?))).collect();
                let reply = found.iter().flatten().map(|(key, value)| key.len() + value.len()).sum();
                let expected = right(rights, Rights::READ)
                    .and_then(|()| sized(&[(keys.len(), LIMITS.batch_keys_max), (bytes, LIMITS.batch_bytes_max)]))
                    .and_then(|()| keys.iter().try_for_each(|key| key_fits(key)))
                    .and_then(|()| sized(&[(reply, LIMITS.reply_bytes_max)]))
                    .map(|()| found);
                same(view.get_many(this(), keys).unwrap(), expected);
            }
            15 => {
                let pairs: Vec<_> = (0..script.byte() % 6).map(|_| (script.key(), script.value())).collect();
                let bytes = pairs.iter().map(|(key, value)| key.len() + value.len()).sum();
                let expected = right(rights, Rights::WRITE)
                    .and_then(|()| sized(&[(pairs.len(), LIMITS.batch_keys_max), (bytes, LIMITS.batch_bytes_max)]))
                    .and_then(|()| {
                        pairs.iter().try_for_each(|(key, value)| key_fits(key).and_then(|()| value_fits(value)))
                    })
                    .and_then(|()| {
                        let writes: Vec<_> =
                            pairs.iter().map(|(key, value)| (key.clone(), Some(value.clone()))).collect();
                        models[data].write(&writes)
                    });
                same(view.set_many(this(), pairs).unwrap(), expected);
            }
            16 => {
                let keys: Vec<String> = (0..script.byte() % 6).map(|_| script.key()).collect();
                let bytes = keys.iter().map(String::len).sum();
                let expected = right(rights, Rights::WRITE)
                    .and_then(|()| sized(&[(keys.len(), LIMITS.batch_keys_max), (bytes, LIMITS.batch_bytes_max)]))
                    .and_then(|()| keys.iter().try_for_each(|key| key_fits(key)))
                    .and_then(|()| {
                        let writes: Vec<_> = keys.iter().map(|key| (key.clone(), None)).collect();
                        models[data].write(&writes)
                    });
                same(view.delete_many(this(), keys).unwrap(), expected);
            }
            _ => {}
        }
        assert_eq!((gate.calls(), gate.queued_bytes()), (0, 0), "a call has left");
        assert_eq!(account.used(), models[1].used());
    }
    for attempt in attempts {
        HostCas::drop(&mut view, Resource::new_own(attempt.handle)).unwrap();
    }
    for of in buckets {
        HostBucket::drop(&mut view, Resource::new_own(of.handle)).unwrap();
    }
    assert!(table.is_empty(), "no handle is left");
}

/// What guests hold as text and hand back, and what the watcher stores for itself: what these bytes are given comes back, and what else they may
/// be is taken back as it was given, or not at all.
///
/// # Panics
/// Something else comes back.
pub fn tokens(bytes: &[u8]) {
    let mut script = Script(bytes);
    let (identity, prefix) = (script.key(), script.key());
    let rest = script.0;
    let cursor = cursor::encode(&identity, &prefix, rest);
    assert_eq!(cursor::decode(&identity, &prefix, &cursor).as_deref(), Ok(rest));
    let text = String::from_utf8_lossy(rest);
    if let Ok(key) = cursor::decode(&identity, &prefix, &text) {
        assert_eq!(cursor::encode(&identity, &prefix, &key), text, "a place has one cursor");
    }
    for guard in [Guard::Version(kvasi::Version::from_u64(script.number() as u64)), Guard::Token(rest.to_vec().into())]
    {
        let token = version::encode(&identity, &prefix, &guard).expect("it names a write");
        let given_back = version::decode(&identity, &prefix, &token);
        // What is longer than any that is given is not taken back.
        assert!(given_back == Some(guard) || given_back.is_none() && token.len() > 4096);
    }
    if let Some(guard) = version::decode(&identity, &prefix, &text) {
        assert_eq!(version::encode(&identity, &prefix, &guard).as_deref(), Some(&*text), "a write has one token");
    }
    watcher::read_notes(rest);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_sequences_are_answered_as_the_model_answers() {
        let seed = std::env::var("KVASI_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0x5eed_0001_u64);
        let rounds = std::env::var("KVASI_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(300_u64);
        for round in 0..rounds {
            let mut state = seed.wrapping_add(round);
            let mut next = || {
                // SplitMix64.
                state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                ((mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 56) as u8
            };
            let bytes: Vec<u8> = (0..400).map(|_| next()).collect();
            println!("KVASI_SEED={} KVASI_ROUNDS=1", seed.wrapping_add(round));
            tokens(&bytes);
            host_calls(&bytes);
        }
    }

    /// What the fuzz target begins with, and what it has found.
    #[test]
    fn inputs_that_are_kept_are_answered_as_the_model_answers() {
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds/host_calls");
        let mut inputs = 0;
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            println!("{}", path.display());
            let bytes = std::fs::read(path).unwrap();
            tokens(&bytes);
            host_calls(&bytes);
            inputs += 1;
        }
        assert!(inputs > 0);
    }
}
