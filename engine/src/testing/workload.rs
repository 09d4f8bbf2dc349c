//! A store driven by a seed on the simulated disk: every kind of call, in all durabilities, with the background jobs as
//! steps in between, through closing, reopening and sudden death. What it was told goes into a [`History`].

use std::sync::Arc;

use super::Random;
use super::feed;
use super::model::{self, Change, History};
use crate::io::sim::SimDisk;
use crate::worker::Jobs;
use crate::{Batch, Bucket, Commit, Durability, Error, ErrorKind, Options, Store, Swap, Version};

/// Bytes of a segment: so few that a run goes through many.
const SEGMENT_BYTES: u64 = 4096;
/// Dead bytes that the cleaner finds worth its work: likewise.
const DEAD_BYTES_MIN: u64 = 2048;

/// Bytes of log that make a checkpoint worth its while: likewise.
const CHECKPOINT_BYTES_MIN: u64 = 2048;

const BUCKETS: [&str; 3] = ["a", "b", "c"];

/// A run under way.
pub(crate) struct Run {
    pub(crate) disk: SimDisk,
    pub(crate) history: History,
    pub(crate) options: Options,
    store: Option<Store>,
    jobs: Jobs,
    random: Random,
    /// Writes that nobody has waited for yet.
    waiting: Vec<Waiting>,
    /// Makes every value another one.
    values: u64,
    /// The last commits of the history, whose outcome is not known.
    unknown: usize,
}

enum Waiting {
    Set(Commit<Version>, usize, String, Vec<u8>),
    Delete(Commit<bool>),
    Many(Commit<()>),
}

/// What became of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Done,
    /// The store said that there is no space, and did nothing.
    NoSpace,
    /// The store takes no more writes: reopen it.
    Broken,
}

/// The options of a seed's run.
pub(crate) fn options(seed: u64) -> Options {
    let durability = match seed % 3 {
        0 => Durability::Sync,
        1 => Durability::Os,
        _ => Durability::INTERVAL,
    };
    let checkpoint_bytes_min = CHECKPOINT_BYTES_MIN;
    Options { segment_bytes_max: SEGMENT_BYTES, checkpoint_bytes_min, ..Options::new().durability(durability) }
}

impl Run {
    pub(crate) fn new(disk: SimDisk, seed: u64) -> Run {
        Run {
            disk,
            history: History::default(),
            options: options(seed),
            store: None,
            jobs: Jobs::cleaning_from(DEAD_BYTES_MIN),
            random: Random::new(seed ^ 0x0077_6f72_6b6c_6f61),
            waiting: Vec::new(),
            values: 0,
            unknown: 0,
        }
    }

    /// Opens the store, and checks that it holds what it must.
    pub(crate) fn open(&mut self) -> Result<Step, String> {
        let store = match Store::without_worker(Arc::new(self.disk.clone()), self.options.clone()) {
            Ok(store) => store,
            // A failing disk is not a damaged one.
            Err(e) if self.disk.fault_hits() > 0 && matches!(e.kind(), ErrorKind::Io | ErrorKind::NoSpace) => {
                return Ok(Step::Broken);
            }
            Err(e) => return Err(format!("cannot open: {e:?}")),
        };
        let seen = model::read(&store).map_err(|e| format!("cannot read after opening: {e:?}"))?;
        let most = self.history.commits();
        let commits =
            self.history.find(&seen, most - self.unknown..=most).map_err(|e| format!("after opening: {e}"))?;
        self.history.decide(commits);
        self.unknown = 0;
        // What an open shows has been decided: it must not change again.
        self.history.acknowledge(self.disk.now());
        self.store = Some(store);
        self.jobs = Jobs::cleaning_from(DEAD_BYTES_MIN);
        Ok(Step::Done)
    }

    /// The process dies; the next one finds what was written.
    pub(crate) fn kill(&mut self) {
        self.disk = self.disk.restart();
        self.waiting.clear();
        self.store = None;
    }

    fn value(&mut self) -> Arc<[u8]> {
        self.values += 1;
        let len = match self.random.below(24) {
            0 => 0,
            1 => 4000 + self.random.below(3000),
            2..=5 => 300 + self.random.below(700),
            _ => self.random.below(60),
        };
        let mut value = format!("{}:", self.values).into_bytes();
        value.resize(value.len() + len as usize, self.values as u8);
        value.into()
    }

    fn key(&mut self) -> Vec<u8> {
        match self.random.below(30) {
            0 => Vec::new(),
            1 => vec![b'k'; 200],
            _ => format!("k{}", self.random.below(12)).into_bytes(),
        }
    }

    fn durability(&mut self) -> Durability {
        match self.random.below(4) {
            0 => Durability::Sync,
            1 => Durability::Os,
            _ => self.options.durability,
        }
    }

    /// One call of any kind but those that end the process: opening a store may need space.
    pub(crate) fn calm_step(&mut self) -> Result<Step, String> {
        loop {
            let random = self.random.clone();
            if self.random.below(100) > 5 || self.store.is_none() {
                self.random = random;
                return self.step();
            }
        }
    }

    /// The whole state, against what was told.
    pub(crate) fn compare_now(&mut self) -> Result<Step, String> {
        match self.store.clone() {
            Some(store) => self.compare(&store),
            None => Ok(Step::Done),
        }
    }

    /// A write that must succeed.
    pub(crate) fn set_now(&mut self, bucket: &Bucket, key: &[u8], value: Arc<[u8]>) -> Result<(), String> {
        let moment = self.disk.now();
        let changes = [Change::Put(bucket.name().to_owned(), key.to_vec(), Some(value.clone()))];
        let result = bucket.set(key, &value);
        let text = format!("{result:?}");
        match self.told(moment, bucket.durability, &changes, result, |_, _, _| Ok(()))? {
            Step::Done => Ok(()),
            step => Err(format!("a write that must succeed is {step:?}: {text}")),
        }
    }

    /// A delete that must succeed, of any key there is.
    pub(crate) fn delete_now(&mut self) -> Result<(), String> {
        let key =
            self.history.last().iter().find_map(|(bucket, keys)| Some((bucket.clone(), keys.keys().next()?.clone())));
        let (Some(store), Some((name, key))) = (self.store.clone(), key) else { return Ok(()) };
        let Some(bucket) = store.existing_bucket(&name).map_err(|e| format!("{e:?}"))? else { return Ok(()) };
        let moment = self.disk.now();
        let result = bucket.delete(&key);
        let text = format!("{result:?}");
        match self.told(moment, bucket.durability, &[Change::Put(name, key, None)], result, |_, _, _| Ok(()))? {
            Step::Done => Ok(()),
            step => Err(format!("a delete on a full disk is {step:?}: {text}")),
        }
    }

    /// Background jobs until there are none.
    pub(crate) fn background_all(&mut self, store: &Store) -> Result<(), String> {
        for _ in 0..40 {
            if self.background(store) == Step::Broken {
                return Err("background work has stopped the store".to_owned());
            }
        }
        Ok(())
    }

    /// One call of any kind.
    pub(crate) fn step(&mut self) -> Result<Step, String> {
        let Some(store) = self.store.clone() else {
            return self.open();
        };
        let step = match self.random.below(100) {
            0..=1 => self.drop_bucket(&store)?,
            2..=3 => return self.close(store),
            4..=5 => {
                drop(store);
                self.kill();
                return self.open();
            }
            6..=8 => match store.sync() {
                Ok(()) => self.acknowledge(),
                Err(e) => self.failed(&e, None)?,
            },
            9..=11 => self.settle()?,
            12..=24 => self.background(&store),
            25..=27 => self.compare(&store)?,
            28..=38 => self.batch(&store)?,
            _ => match self.bucket(&store)? {
                Ok(bucket) => self.write(&bucket)?,
                Err(step) => step,
            },
        };
        match self.disk.violation() {
            Some(breach) => Err(format!("protocol: {breach}")),
            None => Ok(step),
        }
    }

    fn acknowledge(&mut self) -> Step {
        self.disk.check_acknowledged();
        self.history.acknowledge(self.disk.now());
        Step::Done
    }

    /// A call has failed that may have been a commit: takes it up as one whose outcome the next open decides, if so.
    fn failed(&mut self, error: &Error, commit: Option<(usize, &[Change])>) -> Result<Step, String> {
        match error.kind() {
            ErrorKind::NoSpace => return Ok(Step::NoSpace),
            ErrorKind::Poisoned => {}
            ErrorKind::Indeterminate | ErrorKind::Io => {
                if let Some((moment, changes)) = commit {
                    self.history.push(moment, changes);
                    self.unknown += 1;
                }
            }
            _ => return Err(format!("unexpected error: {error:?}")),
        }
        Ok(Step::Broken)
    }

    /// Says what a write came to.
    fn told<T>(
        &mut self,
        moment: usize,
        durability: Durability,
        changes: &[Change],
        result: Result<T, Error>,
        then: impl FnOnce(&mut Run, usize, T) -> Result<(), String>,
    ) -> Result<Step, String> {
        match result {
            Ok(value) => {
                let commit = self.history.push(moment, changes);
                then(self, commit, value)?;
                Ok(if durability.waits_for_disk() { self.acknowledge() } else { Step::Done })
            }
            Err(e) => self.failed(&e, Some((moment, changes))),
        }
    }

    /// Any bucket, made if it is not there.
    fn bucket(&mut self, store: &Store) -> Result<Result<Bucket, Step>, String> {
        let name = BUCKETS[self.random.below(3) as usize];
        if let Some(bucket) = store.existing_bucket(name).map_err(|e| format!("{e:?}"))? {
            return Ok(Ok(bucket));
        }
        let moment = self.disk.now();
        let mut made = None;
        let changes = [Change::MakeBucket(name.to_owned())];
        let step = self.told(moment, self.options.durability, &changes, store.bucket(name), |_, _, bucket| {
            made = Some(bucket);
            Ok(())
        })?;
        Ok(made.ok_or(step))
    }

    fn drop_bucket(&mut self, store: &Store) -> Result<Step, String> {
        let name = BUCKETS[self.random.below(3) as usize];
        let there = self.history.last().contains_key(name);
        let moment = self.disk.now();
        let changes = [Change::DropBucket(name.to_owned())];
        match store.drop_bucket(name) {
            Ok(false) if !there => Ok(Step::Done),
            Ok(found) if found != there => Err(format!("dropping bucket {name}: {found}, {there} expected")),
            result => self.told(moment, self.options.durability, &changes, result, |_, _, _| Ok(())),
        }
    }

    fn batch(&mut self, store: &Store) -> Result<Step, String> {
        let mut batch = Batch::new();
        let mut changes = Vec::new();
        for _ in 0..1 + self.random.below(5) {
            let bucket = match self.bucket(store)? {
                Ok(bucket) => bucket,
                Err(step) => return Ok(step),
            };
            let key = self.key();
            let value = (self.random.below(4) != 0).then(|| self.value());
            match &value {
                Some(value) => batch.set(&bucket, &key, value),
                None => batch.delete(&bucket, &key),
            }
            changes.push(Change::Put(bucket.name().to_owned(), key, value));
        }
        let last = self.history.last();
        let absent = |bucket: &String, key: &Vec<u8>| last.get(bucket).is_none_or(|keys| !keys.contains_key(key));
        if changes.iter().all(|change| matches!(change, Change::Put(bucket, key, None) if absent(bucket, key))) {
            // Nothing is written, and so nothing synced.
            return match store.commit(&batch) {
                Ok(()) => Ok(Step::Done),
                Err(e) => self.failed(&e, None),
            };
        }
        let moment = self.disk.now();
        if self.random.below(3) == 0 {
            let result = store.start_commit(&batch);
            return self.told(moment, Durability::Os, &changes, result, |run, _, commit| {
                run.waiting.push(Waiting::Many(commit));
                Ok(())
            });
        }
        self.told(moment, self.options.durability, &changes, store.commit(&batch), |_, _, ()| Ok(()))
    }

    /// One write of one key.
    fn write(&mut self, bucket: &Bucket) -> Result<Step, String> {
        let durability = self.durability();
        let bucket = bucket.with_durability(durability);
        let (name, key, value) = (bucket.name().to_owned(), self.key(), self.value());
        let moment = self.disk.now();
        let put = |value| [Change::Put(name.clone(), key.clone(), value)];
        let note = |run: &mut Run, commit: usize, version: Version| {
            run.history.set_version(commit, &name, &key, version.get());
            Ok(())
        };
        let there = self.history.last().get(&name).and_then(|keys| keys.get(&key)).map(|(value, _)| value.clone());
        match self.random.below(10) {
            0..=3 => self.told(moment, durability, &put(Some(value.clone())), bucket.set(&key, &value), note),
            4 => {
                let result = bucket.start_set(&key, &value);
                let (name, key2) = (name.clone(), key.clone());
                self.told(moment, Durability::Os, &put(Some(value)), result, |run, number, commit| {
                    run.waiting.push(Waiting::Set(commit, number, name, key2));
                    Ok(())
                })
            }
            5 if there.is_some() => self.told(moment, durability, &put(None), bucket.delete(&key), |_, _, found| {
                if found { Ok(()) } else { Err("a delete found no value where there is one".to_owned()) }
            }),
            6 if there.is_some() => {
                let result = bucket.start_delete(&key);
                self.told(moment, Durability::Os, &put(None), result, |run, _, commit| {
                    run.waiting.push(Waiting::Delete(commit));
                    Ok(())
                })
            }
            5 | 6 => match bucket.delete(&key) {
                Ok(false) => Ok(Step::Done),
                Ok(true) => Err("a delete found a value where there is none".to_owned()),
                Err(e) => self.failed(&e, None),
            },
            7 => {
                let old: i64 = match self.count(&name) {
                    Some(old) => old,
                    None => return Ok(Step::Done),
                };
                let delta = self.random.below(9) as i64 + 1;
                let sum = old + delta;
                let counter = b"counter".to_vec();
                let changes = [Change::Put(name.clone(), counter, Some(sum.to_string().into_bytes().into()))];
                let result = bucket.increment(b"counter", delta);
                self.told(moment, durability, &changes, result, |_, _, found| {
                    if found == sum { Ok(()) } else { Err(format!("the sum is {found}, {sum} expected")) }
                })
            }
            8 => {
                let now = match bucket.get(&key) {
                    Ok(now) => now.map(|value| value.version()),
                    Err(e) => return Err(format!("a read fails: {e:?}")),
                };
                match bucket.compare_and_swap(&key, now, &value) {
                    Ok(Swap::Done(version)) => self.told(moment, durability, &put(Some(value)), Ok(version), note),
                    // Lost against a write that is not visible yet.
                    Ok(Swap::Conflict(_)) if !self.waiting.is_empty() => Ok(Step::Done),
                    Ok(Swap::Conflict(_)) => Err("a swap that must succeed does not".to_owned()),
                    Err(e) => self.told(moment, durability, &put(Some(value)), Err::<Version, _>(e), note),
                }
            }
            _ => match bucket.compare_and_swap(&key, Some(Version::from_u64(u64::MAX)), &value) {
                Ok(Swap::Conflict(now)) if now.is_some() == there.is_some() => Ok(Step::Done),
                Ok(_) => Err("a swap against no version there is must tell what there is".to_owned()),
                Err(e) => self.failed(&e, None),
            },
        }
    }

    fn count(&self, bucket: &str) -> Option<i64> {
        match self.history.last().get(bucket)?.get(&b"counter"[..]) {
            Some((value, _)) => std::str::from_utf8(value).ok()?.parse().ok(),
            None => Some(0),
        }
    }

    /// Waits for all writes that were begun.
    fn settle(&mut self) -> Result<Step, String> {
        for waiting in std::mem::take(&mut self.waiting) {
            let result = match waiting {
                Waiting::Set(commit, number, bucket, key) => {
                    commit.wait().map(|version| self.history.set_version(number, &bucket, &key, version.get()))
                }
                Waiting::Delete(commit) => commit.wait().map(drop),
                Waiting::Many(commit) => commit.wait(),
            };
            if let Err(e) = result {
                // It is in the history; whether it stays there is for the next open to say.
                return self.failed(&e, None);
            }
        }
        Ok(Step::Done)
    }

    /// Background jobs, as the thread would run them.
    fn background(&mut self, store: &Store) -> Step {
        let interval = matches!(self.options.durability, Durability::Interval { .. });
        let rounds = 1 + self.random.below(4);
        for _ in 0..rounds {
            if self.jobs.round(&store.0.commits, interval).is_none() {
                return Step::Broken;
            }
        }
        Step::Done
    }

    /// The whole state, against what was told.
    fn compare(&mut self, store: &Store) -> Result<Step, String> {
        let step = self.settle()?;
        if step != Step::Done {
            return Ok(step);
        }
        let seen = model::read(store).map_err(|e| format!("a read fails: {e:?}"))?;
        feed::check(store, &seen)?;
        let all = self.history.commits();
        self.history.find(&seen, all..=all).map_err(|e| format!("while open: {e}"))?;
        Ok(Step::Done)
    }

    fn close(&mut self, store: Store) -> Result<Step, String> {
        let result = self.settle().and_then(|step| match step {
            Step::Done => match store.close() {
                Ok(()) => Ok(self.acknowledge()),
                // Closed it is, but not in order: the next open finds what a crash would leave.
                Err(e) => self.failed(&e, None).map(|_| Step::Broken),
            },
            other => Ok(other),
        })?;
        if result != Step::Done {
            return Ok(result);
        }
        self.store = None;
        let opened = self.open()?;
        if opened != Step::Done {
            return Ok(opened);
        }
        match self.store.as_ref().map(|store| store.report().clone()) {
            Some(report) if !report.clean || report.bytes_cut != 0 => {
                Err(format!("a closed store had to be repaired: {report:?}"))
            }
            _ => Ok(Step::Done),
        }
    }

    /// Says that all commits so far are on the disk, by a way of their own.
    pub(crate) fn all_is_durable(&mut self) {
        self.history.acknowledge(self.disk.now());
    }

    pub(crate) fn store(&self) -> Option<&Store> {
        self.store.as_ref()
    }
}
