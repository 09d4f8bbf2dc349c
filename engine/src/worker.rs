//! Background work: two threads a store, woken when there is something to do. One prepares space for writers and nothing else,
//! since those wait for it, and would wait for the disk behind whatever else is done; the other does the rest.
//!
//! The jobs themselves are steps that anybody may run ([`Jobs::round`]); the threads are only what runs them in production. A job
//! that fails for want of space is tried again later; any other failure poisons the store, and so does a panic.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_epoch as epoch;
use parking_lot::{Condvar, Mutex};

use crate::checkpoint::writer::Checkpointer;
use crate::clean::{Cleaner, Mood, Progress};
use crate::commit::Commits;
use crate::error::{Error, ErrorKind, Result};
use crate::io::{Stopwatch, simulated};
use crate::merge::{Failed, Merger, would_shrink};
use crate::options::Durability;
use crate::scrub::Scrubber;
use crate::seal::Sealer;
use crate::sweep::Sweeper;

/// How long the thread rests when a job could not be done.
const RETRY: Duration = Duration::from_millis(100);
/// How long it rests while it watches whether others still write.
const SOON: Duration = Duration::from_millis(20);
/// Rests without a write after which nobody writes: what is done then is half for nothing if somebody goes on, and a writer may have waited
/// for space, or for a processor. A simulation, which has no other writers, goes by one.
const QUIET_RESTS: u32 = if cfg!(feature = "testing") { 1 } else { 5 };

/// While others write, closed segments wait so long for their sync, if nobody waits for that: whatever makes the next segment
/// would wait behind theirs, and a burst of writes for it ...
const SYNC_AFTER: Duration = Duration::from_secs(1);
/// ... and no more bytes than this: then writers are faster than the disk, and too much is at stake.
const UNSYNCED_BYTES_MAX: u64 = 768 << 20;

/// Runs of so many bytes at most are made again where the disk is full: a background thread does nothing else meanwhile.
const RENEWED_BYTES_MAX: u64 = 64 << 20;

/// Steps of cleaning in a round, while writers are slowed until it has caught up.
const CLEANING_STEPS_MAX: usize = 16;

/// Wakes a background thread.
#[derive(Debug, Default)]
pub(crate) struct Bell {
    rung: Mutex<bool>,
    condvar: Condvar,
    stop: AtomicBool,
}

impl Bell {
    /// Asks for a round of work.
    #[cold]
    pub(crate) fn ring(&self) {
        *self.rung.lock() = true;
        self.condvar.notify_one();
    }

    pub(crate) fn wait(&self, at_most: Option<Duration>) {
        let mut rung = self.rung.lock();
        if !*rung {
            match at_most {
                Some(time) => drop(self.condvar.wait_for(&mut rung, time)),
                None => self.condvar.wait(&mut rung),
            }
        }
        *rung = false;
    }
}

/// What wakes the background threads of a store.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bells {
    /// Something is to be done that nobody waits for.
    pub(crate) work: Arc<Bell>,
    /// Writers will need space.
    pub(crate) space: Arc<Bell>,
}

/// The background threads of one store; stopped and joined when dropped.
#[derive(Debug)]
pub(crate) struct Worker {
    bells: Bells,
    threads: Vec<JoinHandle<()>>,
}

impl Worker {
    pub(crate) fn start(commits: Arc<Commits>, bells: Bells, durability: Durability) -> Result<Worker> {
        // Should one not start, the other is stopped.
        let mut worker = Worker { bells: bells.clone(), threads: Vec::new() };
        let (with, bell) = (commits.clone(), bells.space.clone());
        worker.spawn("kvasi-space", move || run_space(&with, &bell))?;
        worker.spawn("kvasi", move || run(&commits, &bells.work, durability))?;
        Ok(worker)
    }

    #[allow(clippy::disallowed_methods, reason = "the one place where the engine starts a thread")]
    fn spawn(&mut self, name: &str, body: impl FnOnce() + Send + 'static) -> Result<()> {
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(body)
            .map_err(|e| Error::io("cannot start a background thread", e))?;
        self.threads.push(thread);
        Ok(())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        for bell in [&self.bells.work, &self.bells.space] {
            bell.stop.store(true, Ordering::Release);
            bell.ring();
        }
        for thread in self.threads.drain(..) {
            // A panic in it has poisoned the store already.
            let _ = thread.join();
        }
    }
}

/// Poisons the store if the thread unwinds.
struct Fuse<'a>(&'a Commits);

impl Drop for Fuse<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.poison(Error::new(ErrorKind::Poisoned, "a background thread has panicked"));
            self.0.wake_waiting();
        }
    }
}

/// Prepares space for writers.
fn run_space(commits: &Commits, bell: &Bell) {
    let _fuse = Fuse(commits);
    loop {
        bell.wait(None);
        loop {
            if bell.stop.load(Ordering::Acquire) {
                return;
            }
            match commits.log.prepare_space_meanwhile(bell) {
                Ok(true) => {}
                Ok(false) => break,
                // Writers are told when they need it.
                Err(e) if e.kind() == ErrorKind::NoSpace => break,
                Err(e) => {
                    commits.poison(e);
                    commits.wake_waiting();
                    return;
                }
            }
        }
    }
}

fn run(commits: &Commits, bell: &Bell, durability: Durability) {
    let _fuse = Fuse(commits);
    let every = match durability {
        Durability::Interval { every, .. } => Some(every),
        _ => None,
    };
    let mut rest = every;
    let mut jobs = Jobs { space_is_anothers: true, ..Jobs::default() };
    loop {
        bell.wait(rest);
        if bell.stop.load(Ordering::Acquire) {
            jobs.stop(commits);
            return;
        }
        rest = match jobs.round(commits, every.is_some()) {
            Some(Next::AtOnce) => Some(Duration::ZERO),
            Some(Next::Soon) => Some(every.unwrap_or(SOON).min(SOON)),
            Some(Next::WhenRung) => every,
            Some(Next::WhenSpace) => Some(RETRY),
            None => return,
        };
    }
}

/// When the next round is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    AtOnce,
    /// After a short rest: it depends on what others do meanwhile.
    Soon,
    WhenRung,
    /// A job wanted space and there was none.
    WhenSpace,
}

/// All background jobs of a store, between two rounds.
#[derive(Default)]
pub(crate) struct Jobs {
    cleaner: Cleaner,
    sealer: Sealer,
    merger: Merger,
    checkpointer: Checkpointer,
    sweeper: Sweeper,
    scrubber: Scrubber,
    /// Damage in the log stands in the way of key runs.
    no_runs: bool,
    /// The end of the log after the last round, whether the thread rested since, and how many rests it is that nobody has written.
    seen_end: u64,
    rested: bool,
    quiet_rests: u32,
    /// Another thread prepares space.
    space_is_anothers: bool,
    /// Since closed segments wait for their sync.
    waits: Option<Stopwatch>,
}

impl Jobs {
    /// Jobs whose cleaner finds this many dead bytes worth its work.
    #[cfg(feature = "testing")]
    pub(crate) fn cleaning_from(dead_bytes_min: u64) -> Jobs {
        Jobs { cleaner: Cleaner::cleaning_from(dead_bytes_min), ..Jobs::default() }
    }

    /// Whether a key run is half made.
    #[cfg(feature = "testing")]
    pub(crate) fn makes_runs(&self) -> bool {
        self.sealer.is_at_work() || self.merger.is_at_work()
    }

    /// One round, and what its failure does to the store; `None` if that was the last one.
    pub(crate) fn round(&mut self, commits: &Commits, interval: bool) -> Option<Next> {
        let end = commits.log.end(&epoch::pin());
        self.quiet_rests =
            if end == self.seen_end { self.quiet_rests.saturating_add(u32::from(self.rested)) } else { 0 };
        let next = match self.step(commits, interval) {
            Ok(next) => next,
            Err(e) if e.kind() == ErrorKind::NoSpace => {
                // The space of segments that were given up comes back when nobody can look at them any more, and epochs only move
                // on when somebody asks.
                epoch::pin().flush();
                Next::WhenSpace
            }
            Err(e) => {
                commits.poison(e);
                commits.wake_waiting();
                return None;
            }
        };
        self.seen_end = commits.log.end(&epoch::pin());
        self.rested = next != Next::AtOnce;
        Some(next)
    }

    /// A step of making runs, and one of merging them; whether there was something to do. Damaged runs are given up, and
    /// made again from the log.
    fn step_runs(&mut self, commits: &Commits, quiet: bool) -> Result<bool> {
        if commits.index.repair(&commits.log)? {
            self.give_up_runs(commits);
        }
        let seen = commits.index.runs();
        let stepped = match self.sealer.step(commits, quiet) {
            Ok(sealed) => self.merger.step(commits, quiet).map(|merged| sealed || merged),
            Err(failed) => Err(failed),
        };
        match stepped {
            Ok(some) => Ok(some),
            Err(Failed::Error(e)) => {
                self.give_up_runs(commits);
                Err(e)
            }
            Err(Failed::Damaged(_)) => {
                commits.index.distrust(&seen);
                Ok(true)
            }
        }
    }

    /// On a full disk where cleaning frees nothing more: all runs go, and are made again from the log in a part of their space, without
    /// the keys that are gone. No older run holds what is deleted then, so that the tombstones of it may go too.
    fn renew_runs(&mut self, commits: &Commits) -> Result<()> {
        let runs = commits.index.runs();
        let bytes: u64 = runs.iter().map(|run| run.footer.bytes).sum();
        if bytes > RENEWED_BYTES_MAX || !would_shrink(commits, &runs) {
            return Ok(());
        }
        self.give_up_runs(commits);
        commits.index.distrust(&runs);
        // At once, as if nobody wrote: what is free is anybody's.
        while self.step_runs(commits, true)? {}
        Ok(())
    }

    /// A step of cleaning; several while writers are slowed for its sake: the other work of a round would make them wait longer.
    fn clean(&mut self, commits: &Commits, mood: Mood) -> Result<Progress> {
        let mut progress = self.cleaner.step(commits, mood)?;
        for _ in 1..CLEANING_STEPS_MAX {
            if progress != Progress::Some || commits.log.brake().is_zero() || commits.wants_sync() {
                break;
            }
            progress = self.cleaner.step(commits, mood)?;
        }
        Ok(progress)
    }

    /// Whether nobody writes.
    fn quiet(&self) -> bool {
        self.quiet_rests >= QUIET_RESTS
    }

    /// Whether there is something to do when nobody writes, other than cleaning.
    fn puts_off(&self, commits: &Commits) -> bool {
        commits.log.has_space_to_give_back() || self.sealer.puts_off(commits) || self.merger.puts_off(commits)
    }

    /// Leaves no half-made run behind; what is half done otherwise is seen to by closing.
    pub(crate) fn stop(&mut self, commits: &Commits) {
        if commits.check_writable().is_ok() {
            self.give_up_runs(commits);
        }
    }

    fn give_up_runs(&mut self, commits: &Commits) {
        self.sealer.give_up(commits);
        self.merger.give_up(commits);
    }

    /// Whether closed segments may wait a while for their sync.
    fn lets_sync_wait(&mut self, commits: &Commits) -> bool {
        // What a simulation does must not depend on a clock.
        if self.quiet() || simulated() || commits.log.syncs() || !commits.log.has_unsynced() {
            self.waits = None;
            return false;
        }
        let waited = Duration::from_micros(self.waits.get_or_insert_with(Stopwatch::start).us());
        waited < SYNC_AFTER && commits.log.unsynced_bytes() < UNSYNCED_BYTES_MAX
    }

    /// One round: the next segment, syncs that are due, seals, a step each of making runs, merging and
    /// cleaning. With `interval`, everything logged is synced, not only what somebody waits for.
    fn step(&mut self, commits: &Commits, interval: bool) -> Result<Next> {
        let quiet = self.quiet();
        // While nobody writes, it would only be given back again.
        let prepared = if quiet || self.space_is_anothers { Ok(false) } else { commits.log.prepare_space() };
        if prepared.as_ref().is_err_and(|e| e.kind() != ErrorKind::NoSpace) {
            // Nothing more is written or synced.
            return prepared.map(|_| Next::WhenRung);
        }
        if interval || commits.wants_sync() {
            let end = commits.log.end(&epoch::pin());
            if end > commits.applied() {
                commits.wait(end)?;
            }
        }
        let mut more_closed = false;
        let waits = !interval && !commits.wants_sync() && self.lets_sync_wait(commits);
        if commits.log.has_closed() && !waits {
            let led = !commits.log.has_unsynced() || commits.sync_closed()?;
            commits.log.seal()?;
            more_closed = led && commits.log.has_closed();
        }
        let checkpoint = self.checkpointer.step(commits, quiet)?;
        let swept = self.sweeper.step(commits);
        // Cleaning frees space, so a full disk must not keep it from going on. While nobody writes it comes first: what is cleaned
        // need not be sorted.
        let mood = if quiet { Mood::Idle } else { Mood::Busy };
        let cleaning = match self.clean(commits, mood) {
            Err(e) if e.kind() != ErrorKind::NoSpace => return Err(e),
            cleaning => cleaning,
        };
        let cleans_first = quiet && matches!(cleaning, Ok(Progress::Some));
        // What is closed is sealed soon, and goes into the same run.
        let seals_first = quiet && more_closed;
        let (starved, hopeless) = (commits.log.is_starved(), commits.log.is_hopeless());
        let cleaner_gives = starved && !hopeless;
        if cleaner_gives {
            // Runs would take what it gives, and what is half made of one keeps the files of segments that it reads.
            self.give_up_runs(commits);
        }
        let runs = match () {
            () if self.no_runs || cleans_first || seals_first || cleaner_gives => Ok(false),
            () if starved => self.renew_runs(commits).and_then(|()| self.step_runs(commits, quiet)),
            () => self.step_runs(commits, quiet),
        };
        let runs = match runs {
            Err(e) if e.kind() == ErrorKind::Corrupt => {
                // Reads say so where they meet the damage; the rest of the store goes on.
                self.no_runs = true;
                Ok(false)
            }
            Err(e) if e.kind() != ErrorKind::NoSpace => return Err(e),
            runs => runs,
        };
        // Their files take space until then: before a full disk ends the round.
        if commits.log.has_retired() && !self.checkpointer.is_writing() {
            commits.log.free_slots_of_retired();
        }
        prepared?;
        let (cleaning, made_runs) = (cleaning?, runs?);
        let rests = quiet && !made_runs && !more_closed;
        let ends_active = rests && !starved && !self.no_runs && cleaning != Progress::Some;
        if ends_active && self.sealer.end_active(commits)? {
            return Ok(Next::AtOnce);
        }
        // Not by what is retired, whose readers may be anybody's: what reaches the disk depends on this store alone.
        let idle = rests && cleaning == Progress::None;
        if idle && commits.log.has_space_to_give_back() && !commits.log.give_back_space(self.seen_end)? {
            return Ok(Next::Soon);
        }
        Ok(match cleaning {
            _ if made_runs || more_closed || swept || checkpoint == Progress::Some => Next::AtOnce,
            Progress::Some => Next::AtOnce,
            Progress::Later => Next::Soon,
            _ if waits => Next::Soon,
            Progress::None if checkpoint == Progress::Later || self.scrubber.step(commits) => Next::Soon,
            Progress::None if commits.log.has_retired() => Next::Soon,
            // What is to be done when nobody writes is done after so many rests in which nobody wrote.
            Progress::None if !quiet && self.puts_off(commits) => Next::Soon,
            Progress::None => Next::WhenRung,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::Disk;
    use crate::io::disk::RealDisk;
    use crate::recovery::refuse_foreign;
    use crate::{Options, Store};

    fn open(dir: &std::path::Path, options: Options) -> (Arc<dyn Disk>, Store) {
        let disk: Arc<dyn Disk> = Arc::new(RealDisk::open(dir, &options, refuse_foreign).unwrap());
        (disk.clone(), Store::without_worker(disk, options).unwrap())
    }

    /// Runs rounds until there is nothing to do. Between two that wait for others it rests a little: what was retired waits for the guards
    /// that other tests hold.
    fn come_to_rest(commits: &Commits) {
        let mut jobs = Jobs::default();
        for _ in 0..10_000 {
            match jobs.round(commits, false).unwrap() {
                Next::AtOnce => {}
                Next::WhenRung => return,
                Next::Soon | Next::WhenSpace => crate::io::pause(Duration::from_millis(1)),
            }
        }
        panic!("it does not come to rest");
    }

    #[test]
    fn after_overwrites_a_store_comes_to_rest_by_itself() {
        const KEYS: u32 = 60_000;
        let dir = tempfile::tempdir().unwrap();
        let options = Options::new().durability(Durability::Os).segment_bytes_max(1 << 20);
        let (disk, store) = open(dir.path(), options);
        let bucket = store.bucket("b").unwrap();
        let commits = &store.0.commits;
        let mut jobs = Jobs::default();
        for i in 0..5 * KEYS {
            bucket.set(format!("user:{:016x}", i % KEYS).as_bytes(), &[i as u8; 100]).unwrap();
            // The thread has a part of the processor only.
            if i % (2 * KEYS) == 0 {
                jobs.round(commits, false).unwrap();
            }
        }
        let files = || disk.list().unwrap().iter().map(|name| disk.open(name).unwrap().len().unwrap()).sum::<u64>();
        let user_bytes = u64::from(KEYS) * 121;
        assert!(files() > 2 * user_bytes, "there is something to be cleaned");
        let (mut rounds, mut rests) = (0, 0u32);
        // Until there is nothing to do but to wait for readers, which are gone by now, or not even that.
        while files() * 100 > user_bytes * 145 || commits.log.has_space_to_give_back() {
            rounds += 1;
            match jobs.round(commits, false).unwrap() {
                Next::AtOnce => {}
                Next::Soon => rests += 1,
                Next::WhenRung => break,
                Next::WhenSpace => panic!("no space"),
            }
            assert!(rests <= 4 + QUIET_RESTS && rounds < 10_000, "{rests} rests, {rounds} rounds, {} bytes", files());
        }
        assert!(files() * 100 <= user_bytes * 145, "{} bytes for {user_bytes}", files());
        for i in 0..KEYS {
            let value = bucket.get(format!("user:{i:016x}").as_bytes()).unwrap().unwrap();
            assert_eq!(value[..], [(4 * KEYS + i) as u8; 100]);
        }
    }

    #[test]
    fn one_run_is_made_when_nobody_has_written_for_some_rests() {
        let dir = tempfile::tempdir().unwrap();
        let options = Options::new().durability(Durability::Os).segment_bytes_max(64 << 10);
        let (_, store) = open(dir.path(), options);
        let bucket = store.bucket("b").unwrap();
        let commits = &store.0.commits;
        let mut jobs = Jobs::default();
        for i in 0..6000u32 {
            bucket.set(&i.to_le_bytes(), &[7; 100]).unwrap();
        }
        let mut rests = 0;
        let written = || store.stats().run_written_bytes.counts.iter().sum::<u64>();
        while written() == 0 {
            match jobs.round(commits, false).unwrap() {
                Next::AtOnce => {}
                Next::Soon => rests += 1,
                next => panic!("{next:?} after {rests} rests"),
            }
            if rests < QUIET_RESTS {
                assert_eq!(written(), 0, "after {rests} rests");
            }
        }
        while jobs.round(commits, false).unwrap() != Next::WhenRung {}
        assert_eq!(written(), 1, "of all that was closed");
    }

    #[test]
    fn at_rest_a_segment_with_much_to_sort_is_ended_and_gets_its_run() {
        for (kibibytes, is_ended) in [(3 << 10, false), (6 << 10, true)] {
            let dir = tempfile::tempdir().unwrap();
            // The first segment takes all of it.
            let options = Options { next_is_late: true, ..Options::new().durability(Durability::Os) };
            let (_, store) = open(dir.path(), options);
            let (bucket, commits) = (store.bucket("b").unwrap(), &store.0.commits);
            for i in 0..kibibytes {
                bucket.set(&(i as u32).to_le_bytes(), &[7; 1024]).unwrap();
            }
            let end = commits.log.end(&epoch::pin());
            come_to_rest(commits);
            assert_eq!(commits.index.covered() >= end, is_ended || !crate::io::MAPS_PAST_END, "{kibibytes} KiB");
        }
    }

    #[test]
    fn a_run_begun_at_rest_waits_while_others_write_and_keeps_no_segment_that_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let options = Options::new().durability(Durability::Os).segment_bytes_max(64 << 10);
        let (_, store) = open(dir.path(), options);
        let bucket = store.bucket("b").unwrap();
        let commits = &store.0.commits;
        let mut jobs = Jobs { cleaner: Cleaner::cleaning_from(64 << 10), ..Jobs::default() };
        let mut write = |i: u32| _ = bucket.set(&(i % 3000).to_le_bytes(), &[7; 100]).unwrap();
        (0..6000).for_each(&mut write);
        let first = Arc::downgrade(&commits.log.segments(&epoch::pin())[0].region);
        while !jobs.sealer.is_at_work() {
            jobs.round(commits, false).unwrap();
        }
        let written = || store.stats().run_written_bytes.counts.iter().sum::<u64>();
        for i in 0..40_000 {
            write(i);
            if i % 20 == 0 {
                // What is closed waits for its sync as long as others write, and is cleaned when it is sealed.
                if i % 1000 == 0 {
                    store.sync().unwrap();
                }
                jobs.round(commits, false).unwrap();
            }
        }
        assert_eq!((written(), jobs.sealer.is_at_work()), (0, false), "its segments were cleaned");
        assert_eq!(first.strong_count(), 0);
        while jobs.round(commits, false).unwrap() != Next::WhenRung {}
        assert_eq!(written(), 1, "of all that was closed");
        assert_eq!(bucket.list_keys(crate::ListOptions { keys_max: 5000, ..Default::default() }).unwrap().len(), 3000);
    }

    #[test]
    fn a_segment_that_took_more_while_the_next_was_late_does_not_keep_a_store_large() {
        const SEGMENT_BYTES: u64 = 1 << 20;
        // One round, all of which lives, and many over a few keys.
        for (keys, rounds) in [(96, 1), (4, 24)] {
            let dir = tempfile::tempdir().unwrap();
            let options = Options { next_is_late: true, ..Options::new().durability(Durability::Os) };
            let disk: Arc<dyn Disk> = Arc::new(RealDisk::open(dir.path(), &options, refuse_foreign).unwrap());
            let store = Store::without_worker(disk.clone(), options.segment_bytes_max(SEGMENT_BYTES)).unwrap();
            let (bucket, commits) = (store.bucket("b").unwrap(), &store.0.commits);
            for i in (0..keys).cycle().take(keys as usize * rounds) {
                bucket.set(&[i], &[i; 64 << 10]).unwrap();
            }
            come_to_rest(commits);
            let files = disk.list().unwrap().iter().map(|name| disk.open(name).unwrap().len().unwrap()).sum::<u64>();
            let user_bytes = u64::from(keys) << 16;
            // What is kept for deletes is that of one segment as planned.
            assert!(files <= user_bytes + SEGMENT_BYTES / 4, "{files} bytes for {user_bytes}");
            for i in 0..keys {
                assert_eq!(bucket.get(&[i]).unwrap().unwrap()[..], [i; 64 << 10]);
            }
        }
    }

    #[test]
    fn a_segment_made_large_for_writers_that_outrun_the_disk_does_not_keep_a_store_large() {
        const VALUES: u8 = 40;
        let dir = tempfile::tempdir().unwrap();
        let options = Options::new().durability(Durability::Os);
        let (disk, store) = open(dir.path(), options);
        let (bucket, commits) = (store.bucket("b").unwrap(), &store.0.commits);
        // None of it is synced meanwhile: segments get larger and larger.
        (0..VALUES).for_each(|i| _ = bucket.set(&[i], &vec![i; 1 << 20]).unwrap());
        come_to_rest(commits);
        let files = disk.list().unwrap().iter().map(|name| disk.open(name).unwrap().len().unwrap()).sum::<u64>();
        let user_bytes = u64::from(VALUES) << 20;
        // An eighth, and a bit, of a segment that is an eighth of the log.
        assert!(files <= user_bytes + user_bytes / 32, "{files} bytes for {user_bytes}");
    }

    #[test]
    fn who_has_read_keeps_no_file_of_a_segment_that_was_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let options = Options::new().durability(Durability::Os).segment_bytes_max(64 << 10);
        let (_, store) = open(dir.path(), options);
        let (bucket, commits) = (store.bucket("b").unwrap(), &store.0.commits);
        let ((reads, has_read), (wakes, waits)) = (std::sync::mpsc::channel(), std::sync::mpsc::channel::<()>());
        std::thread::scope(|scope| {
            let (bucket, wakes) = (&bucket, wakes);
            let reader = scope.spawn(move || {
                for i in 0..10u8 {
                    bucket.set(&[i], &[i; 1000]).unwrap();
                    // The segment has grown each time, and so does what values are cut from.
                    assert_eq!(bucket.get(&[i]).unwrap().unwrap()[..], [i; 1000]);
                }
                reads.send(()).unwrap();
                // Idle: what it has left to be collected stays with it.
                assert!(waits.recv().is_err());
            });
            has_read.recv().unwrap();
            let first = Arc::downgrade(&commits.log.active(&epoch::pin()).region);
            for i in (0..10u8).cycle().take(5000) {
                bucket.set(&[i], &[i; 1000]).unwrap();
            }
            come_to_rest(commits);
            // Others may still hold guards.
            for _ in 0..10_000 {
                if first.strong_count() == 0 {
                    break;
                }
                epoch::pin().flush();
                crate::io::pause(Duration::from_millis(1));
            }
            assert_eq!(first.strong_count(), 0, "the file is kept");
            drop(wakes);
            reader.join().unwrap();
        });
    }
}
