//! A store on the simulated disk, and calls made of it: every kind, in all durabilities, with the background jobs as
//! steps in between, through closing, reopening and sudden death. What it was told goes into a [`History`].
//!
//! The clock is simulated too: it stands still but for [`Call::Tick`].

use std::collections::BTreeMap;
use std::sync::Arc;

use super::call::{Against, At, BUCKETS, COUNTER, Call, Calls, Content, Level};
use super::feed;
use super::model::{self, Change, History};
use crate::io::Disk;
use crate::io::sim::{self, Image, SimDisk, Variant, image_of};
use crate::manifest::superblock;
use crate::segment;
use crate::worker::Jobs;
use crate::{Batch, Bucket, Commit, Durability, Error, ErrorKind, Options, Store, Swap, Value, Version};

/// Bytes of a segment: so few that a run goes through many.
const SEGMENT_BYTES: u64 = 4096;
/// Dead bytes that the cleaner finds worth its work: likewise.
const DEAD_BYTES_MIN: u64 = 2048;
/// Bytes of log that make a checkpoint worth its while: likewise.
const CHECKPOINT_BYTES_MIN: u64 = 2048;
/// More than any run logs.
const NO_CHECKPOINTS: u64 = 1 << 40;
/// Bytes of log that a value may hold.
const LOG_BYTES_MAX: usize = 2000;
/// When a run begins, in milliseconds since 1970.
const BEGINNING: u64 = 1_000_000;

/// A run under way.
pub(crate) struct Run {
    pub(crate) disk: SimDisk,
    pub(crate) history: History,
    pub(crate) options: Options,
    store: Option<Store>,
    jobs: Jobs,
    calls: Calls,
    /// Writes that nobody has waited for yet.
    waiting: Vec<Waiting>,
    /// The last commits of the history, whose outcome is not known.
    unknown: usize,
    backups: u32,
}

enum Waiting {
    Set(Commit<Version>, usize, At),
    Delete(Commit<bool>),
    Sum(Commit<i64>),
    Many(Commit<()>),
}

/// A version to swap against, and whether the swap must succeed; `None` if it may do either.
type Expected = (Option<Version>, Option<bool>);

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
    // Some stores have none, so that all of the log is replayed again and again.
    let checkpoint_bytes_min = if seed % 5 == 3 { NO_CHECKPOINTS } else { CHECKPOINT_BYTES_MIN };
    Options {
        segment_bytes_max: SEGMENT_BYTES,
        checkpoint_bytes_min,
        next_is_late: seed % 7 == 6,
        ..Options::new().durability(durability)
    }
}

impl Run {
    pub(crate) fn new(disk: SimDisk, seed: u64) -> Run {
        let mut history = History::default();
        history.clock = BEGINNING;
        sim::set_clock(history.clock);
        Run {
            disk,
            history,
            options: options(seed),
            store: None,
            jobs: Jobs::cleaning_from(DEAD_BYTES_MIN),
            calls: Calls::new(seed),
            waiting: Vec::new(),
            unknown: 0,
            backups: 0,
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
        // Where files are not mapped, an open store still has to read what it shows.
        let Some(seen) = self.read(|| model::read(&store)).map_err(|what| format!("after opening: {what}"))? else {
            return Ok(Step::Broken);
        };
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

    /// A delete that must succeed, of any key there is, unless others have used up what is kept for them.
    pub(crate) fn delete_now(&mut self) -> Result<(), String> {
        // One that has expired is none, and a delete of it writes nothing.
        let first = |keys: &BTreeMap<Vec<u8>, model::Held>| {
            keys.iter().find(|(_, held)| held.is_there(self.history.clock)).map(|(key, _)| key.clone())
        };
        let key = self.history.last().iter().find_map(|(bucket, keys)| Some((bucket.clone(), first(keys)?)));
        let (Some(store), Some((name, key))) = (self.store.clone(), key) else { return Ok(()) };
        let Some(bucket) = store.existing_bucket(&name).map_err(|e| format!("{e:?}"))? else { return Ok(()) };
        let moment = self.disk.now();
        let result = bucket.delete(&key);
        let text = format!("{result:?}");
        match self.told(moment, bucket.durability, &[Change::Put(name, key, None)], result, |_, _, _| Ok(()))? {
            Step::Done => Ok(()),
            Step::NoSpace if store.0.commits.log.deletes_had_theirs() => Ok(()),
            step => Err(format!("a delete on a full disk is {step:?}: {text}")),
        }
    }

    /// Has a key hold what the last segment holds: records as they stand in a log, in a value.
    pub(crate) fn set_log(&mut self, at: At) -> Result<Step, String> {
        let Some(store) = self.store.clone() else { return self.open() };
        let bucket = match self.bucket(&store, at.bucket)? {
            Ok(bucket) => bucket,
            Err(step) => return Ok(step),
        };
        let image = self.disk.image(Variant::AllKept);
        let last = image.iter().rev().find(|(name, _)| segment::number_of(name).is_some());
        let records = last.and_then(|(_, file)| file.get(segment::HEADER_BYTES as usize..)).unwrap_or_default();
        let value: Arc<[u8]> = records[..records.len().min(LOG_BYTES_MAX)].into();
        let (moment, durability) = (self.disk.now(), self.options.durability);
        let changes = [Change::Put(bucket.name().to_owned(), at.key(), Some(value.clone()))];
        let result = bucket.set(&at.key(), &value);
        self.told(moment, durability, &changes, result, |run, commit, version| {
            run.history.set_version(commit, at.bucket(), &at.key(), version.get())
        })
    }

    /// Background jobs until there are none.
    pub(crate) fn background_all(&mut self, store: &Store) -> Result<(), String> {
        for _ in 0..40 {
            if self.background(store, 2) == Step::Broken {
                return Err("background work has stopped the store".to_owned());
            }
        }
        Ok(())
    }

    /// The next call of the seed.
    pub(crate) fn step(&mut self) -> Result<Step, String> {
        let call = self.calls.next();
        self.call(&call)
    }

    /// One call; where the store is not open, it is opened instead.
    pub(crate) fn call(&mut self, call: &Call) -> Result<Step, String> {
        sim::set_clock(self.history.clock);
        let Some(store) = self.store.clone() else {
            return self.open();
        };
        let step = match call {
            Call::DropBucket(bucket) => self.drop_bucket(&store, *bucket)?,
            Call::Close => return self.close(store),
            Call::Kill => {
                drop(store);
                self.kill();
                return self.open();
            }
            Call::Sync => match store.sync() {
                Ok(()) => self.acknowledge(),
                Err(e) => self.failed(&e, None)?,
            },
            Call::Settle => self.settle()?,
            Call::Background(rounds) => self.background(&store, *rounds),
            Call::Compare => self.compare(&store)?,
            Call::Tick(ms) => {
                self.history.clock += u64::from(*ms);
                sim::set_clock(self.history.clock);
                Step::Done
            }
            Call::Backup => self.backup(&store)?,
            Call::Batch { writes, start } => self.batch(&store, writes, *start)?,
            Call::Set(At { bucket, .. }, ..)
            | Call::SetUntil(At { bucket, .. }, ..)
            | Call::StartSet(At { bucket, .. }, ..)
            | Call::Delete(At { bucket, .. }, ..)
            | Call::StartDelete(At { bucket, .. })
            | Call::Swap(At { bucket, .. }, ..)
            | Call::DeleteIf(At { bucket, .. }, ..)
            | Call::Increment(bucket, ..)
            | Call::StartIncrement(bucket, ..)
            | Call::SetMany(bucket, ..)
            | Call::DeleteMany(bucket, ..)
            | Call::GetMany(bucket, ..) => match self.bucket(&store, *bucket)? {
                Ok(bucket) => self.write(&bucket, call)?,
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
            // It was a read of what the key holds that failed: nothing was written, and the store goes on.
            ErrorKind::Io if super::unmapped().is_some() && self.disk.fault_hits() > 0 && self.is_writable() => {
                return Ok(Step::Done);
            }
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

    /// The bucket, made if it is not there.
    fn bucket(&mut self, store: &Store, bucket: u8) -> Result<Result<Bucket, Step>, String> {
        let name = BUCKETS[usize::from(bucket)];
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

    fn drop_bucket(&mut self, store: &Store, bucket: u8) -> Result<Step, String> {
        let name = BUCKETS[usize::from(bucket)];
        let there = self.history.last().contains_key(name);
        let moment = self.disk.now();
        let changes = [Change::DropBucket(name.to_owned())];
        match store.drop_bucket(name) {
            Ok(false) if !there => Ok(Step::Done),
            Ok(found) if found != there => Err(format!("dropping bucket {name}: {found}, {there} expected")),
            result => self.told(moment, self.options.durability, &changes, result, |_, _, _| Ok(())),
        }
    }

    fn batch(&mut self, store: &Store, writes: &[(At, Option<Content>)], start: bool) -> Result<Step, String> {
        let mut batch = Batch::new();
        let mut changes = Vec::new();
        for (at, content) in writes {
            let bucket = match self.bucket(store, at.bucket)? {
                Ok(bucket) => bucket,
                Err(step) => return Ok(step),
            };
            match content.map(Content::value) {
                Some(value) => batch.set(&bucket, &at.key(), &value),
                None => batch.delete(&bucket, &at.key()),
            }
            changes.push(put(*at, *content));
        }
        if writes.iter().all(|(at, content)| content.is_none() && !self.is_there(*at)) {
            return self.nothing(store.commit(&batch));
        }
        let moment = self.disk.now();
        if start {
            let result = store.start_commit(&batch);
            return self.told(moment, Durability::Os, &changes, result, |run, _, commit| {
                run.waiting.push(Waiting::Many(commit));
                Ok(())
            });
        }
        self.told(moment, self.options.durability, &changes, store.commit(&batch), |_, _, ()| Ok(()))
    }

    /// Whether the store takes writes.
    fn is_writable(&self) -> bool {
        self.store.as_ref().is_some_and(|store| store.0.commits.check_writable().is_ok())
    }

    /// Reads from the open store. Where files are not mapped, a read may fail where the disk fails a call of that very read; it
    /// is made again then, and `None` if that fails too.
    fn read<T>(&self, read: impl Fn() -> Result<T, Error>) -> Result<Option<T>, String> {
        for _ in 0..2 {
            let failed = self.disk.fault_hits();
            match read() {
                Ok(found) => return Ok(Some(found)),
                Err(e)
                    if e.kind() == ErrorKind::Io && super::unmapped().is_some() && self.disk.fault_hits() > failed => {}
                Err(e) => return Err(format!("a read fails: {e:?}")),
            }
        }
        Ok(None)
    }

    /// As [`Run::read`], of a comparison: what it says is what is wrong, unless the disk failed one of its calls.
    fn holds(&self, check: impl Fn() -> Result<(), String>) -> Result<(), String> {
        for _ in 0..2 {
            let failed = self.disk.fault_hits();
            match check() {
                Err(_) if super::unmapped().is_some() && self.disk.fault_hits() > failed => {}
                checked => return checked,
            }
        }
        Ok(())
    }

    /// What a call came to that writes nothing, and so syncs nothing.
    fn nothing<T>(&mut self, result: Result<T, Error>) -> Result<Step, String> {
        match result {
            Ok(_) => Ok(Step::Done),
            Err(e) => self.failed(&e, None),
        }
    }

    fn level(&self, level: Level) -> Durability {
        match level {
            Level::AsOptions => self.options.durability,
            Level::Sync => Durability::Sync,
            Level::Os => Durability::Os,
        }
    }

    /// Whether the key has a value by what was told, what is not visible yet included.
    fn is_there(&self, at: At) -> bool {
        let held = self.history.last().get(at.bucket()).and_then(|keys| keys.get(&at.key()));
        held.is_some_and(|held| held.is_there(self.history.clock))
    }

    /// One call to one bucket.
    fn write(&mut self, bucket: &Bucket, call: &Call) -> Result<Step, String> {
        let moment = self.disk.now();
        let note = |at: At| {
            move |run: &mut Run, commit: usize, version: Version| {
                run.history.set_version(commit, at.bucket(), &at.key(), version.get())
            }
        };
        match call {
            Call::Set(at, content, level) => {
                let durability = self.level(*level);
                let result = bucket.with_durability(durability).set(&at.key(), &content.value());
                self.told(moment, durability, &[put(*at, Some(*content))], result, note(*at))
            }
            Call::SetUntil(at, content, after) => {
                let expires = self.history.clock.saturating_add_signed(*after);
                let result = bucket.set_until(&at.key(), &content.value(), expires);
                let value = content.value().into();
                let changes = [Change::PutUntil(at.bucket().to_owned(), at.key(), value, expires)];
                self.told(moment, self.options.durability, &changes, result, note(*at))
            }
            Call::StartSet(at, content) => {
                // After a fault the calls are made once more: the same value may be there already.
                let Some(before) = self.read(|| bucket.get(&at.key()))? else { return Ok(Step::Done) };
                let before = before.map(|value| value.version());
                let result = bucket.start_set(&at.key(), &content.value());
                self.told(moment, Durability::Os, &[put(*at, Some(*content))], result, |run, number, commit| {
                    let shown = run.read(|| bucket.get(&at.key()))?.flatten();
                    let is_new = |shown: &Value| Some(shown.version()) != before && shown[..] == content.value()[..];
                    if !commit.is_ready() && shown.as_ref().is_some_and(is_new) {
                        return Err("a value is read that is not durable yet, in a store that syncs".to_owned());
                    }
                    run.waiting.push(Waiting::Set(commit, number, *at));
                    Ok(())
                })
            }
            Call::Delete(at, level) if self.is_there(*at) => {
                let durability = self.level(*level);
                let result = bucket.with_durability(durability).delete(&at.key());
                self.told(moment, durability, &[put(*at, None)], result, |_, _, found| {
                    if found { Ok(()) } else { Err("a delete found no value where there is one".to_owned()) }
                })
            }
            Call::StartDelete(at) if self.is_there(*at) => {
                let result = bucket.start_delete(&at.key());
                self.told(moment, Durability::Os, &[put(*at, None)], result, |run, _, commit| {
                    run.waiting.push(Waiting::Delete(commit));
                    Ok(())
                })
            }
            Call::Delete(at, _) | Call::StartDelete(at) => match bucket.delete(&at.key()) {
                Ok(false) => Ok(Step::Done),
                Ok(true) => Err("a delete found a value where there is none".to_owned()),
                Err(e) => self.failed(&e, None),
            },
            Call::Increment(_, delta, level) => {
                let Some((changes, sum)) = self.count(bucket, *delta) else { return Ok(Step::Done) };
                let durability = self.level(*level);
                let result = bucket.with_durability(durability).increment(b"counter", *delta);
                self.told(moment, durability, &changes, result, |_, _, found| is_sum(found, sum))
            }
            Call::StartIncrement(_, delta) => {
                let Some((changes, _)) = self.count(bucket, *delta) else { return Ok(Step::Done) };
                let result = bucket.start_increment(b"counter", *delta);
                self.told(moment, Durability::Os, &changes, result, |run, _, commit| {
                    run.waiting.push(Waiting::Sum(commit));
                    Ok(())
                })
            }
            Call::Swap(at, content, against, level) => {
                let durability = self.level(*level);
                let Some((expected, must)) = self.against(bucket, *at, *against)? else { return Ok(Step::Done) };
                let value = content.value();
                let result = bucket.with_durability(durability).compare_and_swap(&at.key(), expected, &value);
                self.swapped(moment, durability, *at, Some(*content), must, result)
            }
            Call::DeleteIf(at, against) => {
                let Some((Some(expected), must)) = self.against(bucket, *at, *against)? else { return Ok(Step::Done) };
                let result = bucket.delete_if(&at.key(), expected);
                self.swapped(moment, self.options.durability, *at, None, must, result)
            }
            Call::SetMany(number, pairs) => {
                let at = |key: &u8| At { bucket: *number, key: *key };
                let changes: Vec<_> = pairs.iter().map(|(key, content)| put(at(key), Some(*content))).collect();
                let pairs: Vec<_> = pairs.iter().map(|(key, content)| (at(key).key(), content.value())).collect();
                self.told(moment, self.options.durability, &changes, bucket.set_many(&pairs), |_, _, ()| Ok(()))
            }
            Call::DeleteMany(number, keys) => {
                let keys: Vec<At> = keys.iter().map(|key| At { bucket: *number, key: *key }).collect();
                let changes: Vec<_> = keys.iter().map(|at| put(*at, None)).collect();
                let void = keys.iter().all(|at| !self.is_there(*at));
                let keys: Vec<_> = keys.iter().map(|at| at.key()).collect();
                let result = bucket.delete_many(&keys);
                if void {
                    return self.nothing(result);
                }
                self.told(moment, self.options.durability, &changes, result, |_, _, ()| Ok(()))
            }
            Call::GetMany(number, keys) => {
                let step = self.settle()?;
                if step != Step::Done {
                    return Ok(step);
                }
                let keys: Vec<At> = keys.iter().map(|key| At { bucket: *number, key: *key }).collect();
                let names: Vec<_> = keys.iter().map(|at| at.key()).collect();
                let Some(found) = self.read(|| bucket.get_many(&names))? else { return Ok(Step::Done) };
                for (at, value) in keys.iter().zip(found) {
                    let held = self.history.last().get(at.bucket()).and_then(|keys| keys.get(&at.key()));
                    let expected = held.filter(|held| held.is_there(self.history.clock)).map(|held| &held.value[..]);
                    if value.as_deref() != expected {
                        return Err(format!("a read of many keys shows another value of {at:?}"));
                    }
                }
                Ok(Step::Done)
            }
            other => Err(format!("{other:?} is not about one bucket")),
        }
    }

    /// What to swap against; `None` if that cannot be read.
    fn against(&self, bucket: &Bucket, at: At, against: Against) -> Result<Option<Expected>, String> {
        let there = self.is_there(at);
        Ok(Some(match against {
            Against::Wrong => (Some(Version::from_u64(u64::MAX)), Some(false)),
            Against::Absent => (None, Some(!there)),
            Against::Shown => {
                let Some(shown) = self.read(|| bucket.get(&at.key()))? else { return Ok(None) };
                // It may lose against a write that is not visible yet.
                let must = if self.waiting.is_empty() { Some(true) } else { None };
                (shown.map(|shown| shown.version()), must)
            }
        }))
    }

    fn swapped(
        &mut self,
        moment: usize,
        durability: Durability,
        at: At,
        content: Option<Content>,
        must: Option<bool>,
        result: Result<Swap, Error>,
    ) -> Result<Step, String> {
        let changes = [put(at, content)];
        match result {
            Ok(Swap::Done(_)) if must == Some(false) => Err("a swap against another version is done".to_owned()),
            Ok(Swap::Done(version)) => {
                self.told(moment, durability, &changes, Ok(version), |run, commit, version| match content {
                    Some(_) => run.history.set_version(commit, at.bucket(), &at.key(), version.get()),
                    None => Ok(()),
                })
            }
            Ok(Swap::Conflict(_)) if must == Some(true) => Err("a swap that must succeed does not".to_owned()),
            Ok(Swap::Conflict(now)) if must.is_some() && now.is_some() != self.is_there(at) => {
                Err("a swap against no version there is must tell what there is".to_owned())
            }
            Ok(Swap::Conflict(_)) => Ok(Step::Done),
            Err(e) if must == Some(false) => self.failed(&e, None),
            Err(e) => self.told(moment, durability, &changes, Err::<Version, _>(e), |_, _, _| Ok(())),
        }
    }

    /// What adding to the counter of a bucket comes to.
    fn count(&self, bucket: &Bucket, delta: i64) -> Option<([Change; 1], i64)> {
        let at = At { bucket: 0, key: COUNTER };
        let old: i64 = match self.history.last().get(bucket.name())?.get(&at.key()) {
            Some(held) => std::str::from_utf8(&held.value).ok()?.parse().ok()?,
            None => 0,
        };
        let sum = old + delta;
        Some(([Change::Put(bucket.name().to_owned(), at.key(), Some(sum.to_string().into_bytes().into()))], sum))
    }

    /// Waits for all writes that were begun.
    fn settle(&mut self) -> Result<Step, String> {
        for waiting in std::mem::take(&mut self.waiting) {
            let result = match waiting {
                Waiting::Set(commit, number, at) => match commit.wait() {
                    Ok(version) => {
                        self.history.set_version(number, at.bucket(), &at.key(), version.get())?;
                        Ok(())
                    }
                    Err(e) => Err(e),
                },
                Waiting::Delete(commit) => commit.wait().map(drop),
                Waiting::Sum(commit) => commit.wait().map(drop),
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
    fn background(&mut self, store: &Store, rounds: u8) -> Step {
        let interval = matches!(self.options.durability, Durability::Interval { .. });
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
        let Some(seen) = self.read(|| model::read(store))? else { return Ok(Step::Done) };
        self.holds(|| feed::check(store, &seen))?;
        let all = self.history.commits();
        self.history.find(&seen, all..=all).map_err(|e| format!("while open: {e}"))?;
        self.holds(|| model::read_by_pages(store, &seen, 3))?;
        Ok(Step::Done)
    }

    /// A backup into a directory of its own: it holds everything, and goes away again.
    fn backup(&mut self, store: &Store) -> Result<Step, String> {
        self.backups += 1;
        let name = format!("backup-{}", self.backups);
        let to = self.disk.directory(&name);
        let shared: Arc<dyn Disk> = Arc::new(to.clone());
        match store.backup_onto(&shared, true) {
            Ok(_) => {}
            // The store is none the worse for it, unless it was its own log that could not be synced.
            Err(e) => {
                return match (e.kind(), store.0.commits.check_writable().is_ok()) {
                    (ErrorKind::NoSpace, true) => Ok(Step::NoSpace),
                    (ErrorKind::Io, true) => Ok(Step::Done),
                    (_, false) => self.failed(&e, None),
                    _ => Err(format!("a backup: {e:?}")),
                };
            }
        }
        self.acknowledge();
        let image = image_of(&self.disk.image(Variant::AllLost), &format!("{name}/"));
        self.is_whole(image).map_err(|what| format!("the backup: {what}"))?;
        let removed = to.remove(superblock::FILE).and_then(|()| to.sync_dir()).and_then(|()| to.list());
        for name in removed.unwrap_or_default() {
            // On a disk that fails, files of it may stay.
            let _ = to.remove(&name);
        }
        Ok(Step::Done)
    }

    /// An image holds the state after all commits.
    fn is_whole(&self, image: Image) -> Result<(), String> {
        let disk: Arc<dyn Disk> = Arc::new(SimDisk::new(image, self.disk.now() as u64));
        let store = Store::without_worker(disk, self.options.clone()).map_err(|e| format!("{e:?}"))?;
        let seen = model::read(&store).map_err(|e| format!("{e:?}"))?;
        let all = self.history.commits();
        self.history.find(&seen, all..=all).map(drop)
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

fn put(at: At, content: Option<Content>) -> Change {
    Change::Put(at.bucket().to_owned(), at.key(), content.map(|content| content.value().into()))
}

fn is_sum(found: i64, expected: i64) -> Result<(), String> {
    if found == expected { Ok(()) } else { Err(format!("the sum is {found}, {expected} expected")) }
}
