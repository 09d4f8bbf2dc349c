//! What a store must hold: the commits in order, and the state after each.
//!
//! The oracle of every campaign: what a store recovers to is the state after the first `k` commits, for one `k` that is
//! at least what was acknowledged as durable and at most what was begun.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

use crate::{ListOptions, Store};

/// Buckets by name, in them keys.
pub(crate) type State = BTreeMap<String, BTreeMap<Vec<u8>, Held>>;

/// What a key was set to.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) value: Arc<[u8]>,
    /// The commit that did so.
    commit: usize,
    /// When it reads as absent, in milliseconds since 1970; `u64::MAX` for never.
    expires: u64,
}

impl Held {
    pub(crate) fn is_there(&self, clock: u64) -> bool {
        self.expires > clock
    }
}

/// As read from a store: value and version.
pub(crate) type Seen = BTreeMap<String, BTreeMap<Vec<u8>, (Vec<u8>, u64)>>;

/// Keys, with their buckets, whose records are damaged.
pub(crate) type Unreadable = Vec<(String, Vec<u8>)>;

/// One change that a commit makes.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    MakeBucket(String),
    DropBucket(String),
    Put(String, Vec<u8>, Option<Arc<[u8]>>),
    /// The key expires at this time.
    PutUntil(String, Vec<u8>, Arc<[u8]>, u64),
}

/// All commits of a run.
#[derive(Clone, Debug)]
pub(crate) struct History {
    /// `states[k]` is the state after `k` commits.
    states: Vec<State>,
    /// The moment in which each commit was begun.
    begun: Vec<usize>,
    /// Moments from which on the first so many commits are durable.
    acknowledged: Vec<(usize, usize)>,
    /// Versions that were told, by commit; with bucket and key.
    versions: BTreeMap<usize, Vec<(String, Vec<u8>, u64)>>,
    /// The highest version ever told, also of what was lost since.
    highest: u64,
    /// The time by which keys expire, in milliseconds since 1970.
    pub(crate) clock: u64,
}

impl Default for History {
    fn default() -> History {
        History {
            states: vec![State::new()],
            begun: Vec::new(),
            acknowledged: Vec::new(),
            versions: BTreeMap::new(),
            highest: 0,
            clock: 0,
        }
    }
}

impl History {
    pub(crate) fn commits(&self) -> usize {
        self.begun.len()
    }

    /// The state after all commits.
    pub(crate) fn last(&self) -> &State {
        &self.states[self.begun.len()]
    }

    /// Takes up a commit begun at `moment`; its number.
    pub(crate) fn push(&mut self, moment: usize, changes: &[Change]) -> usize {
        let number = self.begun.len();
        let mut state = self.last().clone();
        for change in changes {
            match change {
                Change::MakeBucket(name) => drop(state.insert(name.clone(), BTreeMap::new())),
                Change::DropBucket(name) => drop(state.remove(name)),
                Change::Put(bucket, key, value) => {
                    let keys = state.entry(bucket.clone()).or_default();
                    match value {
                        Some(value) => {
                            let held = Held { value: value.clone(), commit: number, expires: u64::MAX };
                            keys.insert(key.clone(), held);
                        }
                        None => drop(keys.remove(key)),
                    }
                }
                Change::PutUntil(bucket, key, value, expires) => {
                    let held = Held { value: value.clone(), commit: number, expires: *expires };
                    state.entry(bucket.clone()).or_default().insert(key.clone(), held);
                }
            }
        }
        self.states.push(state);
        self.begun.push(moment);
        number
    }

    /// Takes up a version that was told; an error if the one of the last commit is not above all others ever told.
    pub(crate) fn set_version(&mut self, commit: usize, bucket: &str, key: &[u8], version: u64) -> Result<(), String> {
        if commit + 1 == self.commits() && version <= self.highest {
            return Err(format!("version {version} is told after version {}", self.highest));
        }
        self.highest = self.highest.max(version);
        self.versions.entry(commit).or_default().push((bucket.to_owned(), key.to_vec(), version));
        Ok(())
    }

    /// The highest version told of the first `commits`, and so of what a power cut can take of them.
    pub(crate) fn highest_of(&self, commits: usize) -> u64 {
        let told = self.versions.range(..commits).flat_map(|(_, told)| told);
        told.map(|(.., version)| *version).max().unwrap_or(0)
    }

    /// Whether the first lost commit had been acknowledged before the last one was begun, if the first `kept` are left: then
    /// what was written later says that it was on the disk.
    pub(crate) fn has_witness(&self, kept: usize) -> bool {
        let acknowledged =
            self.acknowledged.iter().filter(|(_, commits)| *commits > kept).map(|(moment, _)| *moment).min();
        acknowledged.is_some_and(|moment| self.begun.last().is_some_and(|begun| *begun > moment))
    }

    /// Versions that were told of commits, with the commits' numbers, in order.
    pub(crate) fn versions_in_order(&self) -> Vec<(usize, u64)> {
        let mut all: Vec<(usize, u64)> = Vec::new();
        for (commit, told) in &self.versions {
            all.extend(told.iter().map(|told| (*commit, told.2)));
        }
        all.sort_unstable();
        all
    }

    /// Everything up to now is acknowledged as durable at `moment`.
    pub(crate) fn acknowledge(&mut self, moment: usize) {
        self.acknowledged.push((moment, self.commits()));
    }

    /// The first `commits` are acknowledged as durable at `moment`.
    pub(crate) fn acknowledge_some(&mut self, moment: usize, commits: usize) {
        self.acknowledged.push((moment, commits));
    }

    /// The next open has decided: these commits there are, and no others.
    pub(crate) fn decide(&mut self, commits: usize) {
        self.begun.truncate(commits);
        self.states.truncate(commits + 1);
        self.acknowledged.iter_mut().for_each(|(_, k)| *k = (*k).min(commits));
        drop(self.versions.split_off(&commits));
    }

    /// How many commits may be found if the machine stops at `moment`.
    pub(crate) fn allowed(&self, moment: usize) -> RangeInclusive<usize> {
        let least = self.acknowledged.iter().filter(|(at, _)| *at <= moment).map(|(_, k)| *k).max().unwrap_or(0);
        let most = self.begun.partition_point(|begun| *begun < moment);
        least..=most.max(least)
    }

    /// The number of commits that come to what was seen, or what is wrong with it.
    pub(crate) fn find(&self, seen: &Seen, allowed: RangeInclusive<usize>) -> Result<usize, String> {
        let found = allowed.clone().rev().find(|k| self.differs(&self.states[*k], seen).is_none());
        found.ok_or_else(|| {
            let elsewhere: Vec<usize> =
                (0..self.states.len()).filter(|k| self.differs(&self.states[*k], seen).is_none()).collect();
            let best = self.differs(&self.states[*allowed.end()], seen).unwrap_or_default();
            format!(
                "the state is that after none of the {allowed:?} commits allowed; it is that after {elsewhere:?}; \
                 against the last of them: {best}"
            )
        })
    }

    /// After how many commits, at most, what was seen is the state, but for keys that could not be read. They must be there.
    pub(crate) fn find_but_for(&self, seen: &Seen, unreadable: &Unreadable) -> Option<usize> {
        self.states.iter().rposition(|state| {
            let mut state = state.clone();
            let all_there =
                unreadable.iter().all(|(bucket, key)| state.get_mut(bucket).is_some_and(|b| b.remove(key).is_some()));
            all_there && self.differs(&state, seen).is_none()
        })
    }

    /// The first difference between a state and what was seen.
    fn differs(&self, state: &State, seen: &Seen) -> Option<String> {
        if !state.keys().eq(seen.keys()) {
            return Some(format!("buckets {:?} expected, {:?} found", state.keys(), seen.keys()));
        }
        for ((bucket, keys), found) in state.iter().zip(seen.values()) {
            let there = || keys.iter().filter(|(_, held)| held.is_there(self.clock));
            if !there().map(|(key, _)| key).eq(found.keys()) {
                let is_there = |key: &Vec<u8>| keys.get(key).is_some_and(|held| held.is_there(self.clock));
                let lost = there().filter(|(key, _)| !found.contains_key(*key)).map(|(key, _)| key.escape_ascii());
                let extra = found.keys().filter(|key| !is_there(key)).map(|key| key.escape_ascii());
                let lost = lost.map(|key| key.to_string()).collect::<Vec<_>>().join(", ");
                let extra = extra.map(|key| key.to_string()).collect::<Vec<_>>().join(", ");
                return Some(format!("bucket {bucket}: missing [{lost}], too many [{extra}]"));
            }
            for ((key, held), (bytes, version)) in there().zip(found.values()) {
                if held.value[..] != bytes[..] {
                    return Some(format!("bucket {bucket}, key {}: another value", key.escape_ascii()));
                }
                let told = self.versions.get(&held.commit).map_or(&[][..], |told| told);
                if told.iter().any(|(b, k, known)| k == key && b == bucket && known != version) {
                    return Some(format!("bucket {bucket}, key {}: another version", key.escape_ascii()));
                }
            }
        }
        None
    }
}

/// Lists every bucket a few keys at a time: the keys are the same, and in order.
pub(crate) fn read_by_pages(store: &Store, seen: &Seen, keys_max: usize) -> Result<(), String> {
    for (name, keys) in seen {
        let failed = |e: crate::Error| format!("a listing by pages: {e:?}");
        let Some(bucket) = store.existing_bucket(name).map_err(failed)? else { continue };
        let (mut listed, mut after) = (Vec::new(), None);
        loop {
            let options = ListOptions { keys_max, after: after.as_deref(), ..Default::default() };
            let page = bucket.list_keys(options).map_err(failed)?;
            listed.extend(page.iter().map(<[u8]>::to_vec));
            match page.next() {
                Some(next) => after = Some(next.to_vec()),
                None => break,
            }
        }
        if !listed.iter().eq(keys.keys()) {
            return Err(format!("bucket {name}: a listing by pages shows other keys"));
        }
    }
    Ok(())
}

/// As [`read`], but leaves out the keys whose record is damaged, and says which; `None` if they cannot be listed for damage.
/// With `fails`, a record that the disk cannot read counts as damaged.
pub(crate) fn read_what_is_whole(store: &Store, fails: bool) -> crate::Result<Option<(Seen, Unreadable)>> {
    use crate::ErrorKind::{Corrupt, Io};
    let damaged = |e: &crate::Error| e.kind() == Corrupt || (fails && e.kind() == Io);
    let (mut seen, mut unreadable) = (Seen::new(), Unreadable::new());
    for name in store.buckets()? {
        let Some(bucket) = store.existing_bucket(&name)? else { continue };
        let options = ListOptions { keys_max: usize::MAX, bytes_max: usize::MAX, ..Default::default() };
        let page = match bucket.list_keys(options) {
            Err(e) if damaged(&e) => return Ok(None),
            page => page?,
        };
        let mut keys = BTreeMap::new();
        for key in page.iter() {
            match bucket.get(key) {
                Ok(Some(value)) => drop(keys.insert(key.to_vec(), (value.to_vec(), value.version().get()))),
                Ok(None) => {}
                Err(e) if damaged(&e) => unreadable.push((name.clone(), key.to_vec())),
                Err(e) => return Err(e),
            }
        }
        seen.insert(name, keys);
    }
    Ok(Some((seen, unreadable)))
}

/// Everything in a store that holds still, as its callers see it.
pub(crate) fn read(store: &Store) -> crate::Result<Seen> {
    let mut seen = Seen::new();
    for name in store.buckets()? {
        let Some(bucket) = store.existing_bucket(&name)? else { continue };
        let page =
            bucket.list_keys(ListOptions { keys_max: usize::MAX, bytes_max: usize::MAX, ..Default::default() })?;
        let mut keys = BTreeMap::new();
        for key in page.iter() {
            // A key that is listed and has no value is no key of any state.
            let held = bucket.get(key)?.map_or((LISTED_ALONE.to_vec(), 0), |v| (v.to_vec(), v.version().get()));
            keys.insert(key.to_vec(), held);
        }
        seen.insert(name, keys);
    }
    Ok(seen)
}

/// Stands for the value of a key that is listed and has none.
const LISTED_ALONE: &[u8] = b"(listed, and without a value)";
