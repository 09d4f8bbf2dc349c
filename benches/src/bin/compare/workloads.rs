//! The work, the same for every engine: groups of workloads that share a store, and how each is timed.
//!
//! A group runs in a process of its own and prints one JSON object a row. Operations are counted over wall time; one in
//! `sample` is timed alone for the histogram, every one where the tail is the point. Wrong sums, missing keys and wrong
//! counts end the process with an error.

use crate::engines::{Class, Engine, Key, Kind, Session};
use crate::report::Line;
use hdrhistogram::Histogram;
use kvasi_bench::keys::{Dice, KEY_BYTES, Values, Zipf, key};
use kvasi_bench::{Result, clock};
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Barrier;
use std::time::{Duration, Instant};

/// What the process that is to be killed prints when all its keys are stored.
pub(crate) const LOADED: &str = "loaded";

const VALUE_BYTES: usize = 100;
/// Keys of the counters: apart from those of the values, by number.
const COUNTERS: u64 = 1 << 40;
const SWAPPED: u64 = 1 << 41;
const HOT_KEYS: u64 = 1000;
/// Keys that are not there.
const ABSENT: u64 = 1 << 42;
const BATCH: usize = 100;
const PAGE: usize = 1000;
/// Looks at a store that is to come to rest: so far apart, and so many without a change.
const LOOK: Duration = Duration::from_millis(250);
const STILL: u32 = 3;
/// Memory that is made sure of before a row: more than the system has to find for any row of a million keys. Touched once a page.
const AT_HAND: usize = 1 << 30;
const PAGE_BYTES: usize = 4 << 10;

/// How much work.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scale {
    pub(crate) keys: u64,
    /// A row ends after so many operations, or after `limit`.
    pub(crate) operations: u64,
    pub(crate) limit: Duration,
    /// Thread counts of the rows with two threads, and of the contended ones.
    threads: &'static [usize],
    contended: &'static [usize],
    synced: &'static [usize],
    /// Sets in the sustained row, over `keys` keys.
    sustained: u64,
    /// Longest wait for a store to come to rest.
    settle: Duration,
}

impl Scale {
    pub(crate) const QUICK: Scale = Scale {
        keys: 200_000,
        operations: 400_000,
        limit: Duration::from_millis(1000),
        threads: &[1, 2],
        contended: &[1, 2],
        synced: &[1, 8],
        sustained: 600_000,
        settle: Duration::from_secs(1),
    };
    pub(crate) const FULL: Scale = Scale {
        keys: 1_000_000,
        operations: 2_000_000,
        limit: Duration::from_secs(10),
        threads: &[1, 2],
        contended: &[1, 2, 4],
        synced: &[1, 8, 32],
        sustained: 3_000_000,
        settle: Duration::from_secs(20),
    };
}

/// Workloads that share a store, and so a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Group {
    Points,
    Values1k,
    Values64k,
    Sync,
    Sustained,
    /// The three below, one after the other on one store.
    Reopen,
    ReopenLoad,
    ReopenKill,
    ReopenClean,
}

impl Group {
    pub(crate) const ALL: [Group; 6] =
        [Group::Points, Group::Values1k, Group::Values64k, Group::Sync, Group::Sustained, Group::Reopen];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Group::Points => "points",
            Group::Values1k => "values1k",
            Group::Values64k => "values64k",
            Group::Sync => "sync",
            Group::Sustained => "sustained",
            Group::Reopen => "reopen",
            Group::ReopenLoad => "reopen-load",
            Group::ReopenKill => "reopen-kill",
            Group::ReopenClean => "reopen-clean",
        }
    }

    /// The rows it makes.
    fn rows(self) -> &'static [&'static str] {
        match self {
            Group::Points => &[
                "set",
                "disk-load",
                "written-load",
                "anonymous",
                "list",
                "get",
                "get-zipf",
                "get-miss",
                "exists",
                "get-many",
                "overwrite",
                "ycsb-a",
                "ycsb-b",
                "set-many",
                "disk-overwrite",
                "written-overwrite",
                "increment",
                "cas",
                "delete",
                "delete-many",
            ],
            Group::Values1k => &["set-1k", "get-1k"],
            Group::Values64k => &["set-64k", "get-64k", "overwrite-64k"],
            Group::Sync => &["sync-set"],
            Group::Sustained => &["sustained", "written-sustained"],
            Group::Reopen | Group::ReopenLoad => &["reopen-kill", "reopen-clean"],
            Group::ReopenKill => &["reopen-kill"],
            Group::ReopenClean => &["reopen-clean"],
        }
    }

    pub(crate) fn wanted(self, wanted: &[String]) -> bool {
        self.rows().iter().any(|row| asked(wanted, row))
    }
}

/// Whether a row was asked for: by name, or by a beginning that ends at a hyphen.
fn asked(wanted: &[String], row: &str) -> bool {
    let matches = |wanted: &String| {
        row.strip_prefix(wanted.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    };
    wanted.is_empty() || wanted.iter().any(matches)
}

/// Runs a group in this process.
pub(crate) fn run(kind: &Kind, group: Group, dir: &Path, scale: Scale, wanted: &[String]) -> Result<()> {
    let work = Work { kind, dir, scale, wanted };
    match group {
        Group::Points => work.points(),
        Group::Values1k => work.values(1 << 10, scale.keys / 10, "1k", false),
        Group::Values64k => work.values(64 << 10, scale.keys / 200, "64k", true),
        Group::Sync => work.sync(),
        Group::Sustained => work.sustained(),
        Group::Reopen => Err("the reopen rows take three processes".into()),
        Group::ReopenLoad => work.reopen_load(),
        Group::ReopenKill => work.reopen("reopen-kill"),
        Group::ReopenClean => work.reopen("reopen-clean"),
    }
}

struct Work<'a> {
    kind: &'a Kind,
    dir: &'a Path,
    scale: Scale,
    wanted: &'a [String],
}

/// How a row is run.
#[derive(Clone, Copy)]
struct Plan {
    threads: usize,
    operations: u64,
    limit: Duration,
    /// One operation in so many is timed alone.
    sample: u64,
}

/// What one thread has beside its session.
struct Worker {
    dice: Dice,
    buffer: Vec<u8>,
}

struct Measured {
    operations: u64,
    wall: Duration,
    latency: Histogram<u64>,
}

impl Work<'_> {
    fn asked(&self, row: &str) -> bool {
        asked(self.wanted, row)
    }

    fn plan(&self, threads: usize) -> Plan {
        Plan { threads, operations: self.scale.operations, limit: self.scale.limit, sample: 16 }
    }

    fn row(&self, workload: &str, plan: Plan, keys_per_call: u64, measured: &Measured) -> Result<()> {
        emit(&Line::Row {
            engine: self.kind.name.into(),
            workload: workload.into(),
            threads: plan.threads,
            ops_per_s: (measured.operations * keys_per_call) as f64 / measured.wall.as_secs_f64(),
            p50_ns: measured.latency.value_at_quantile(0.5),
            p99_ns: measured.latency.value_at_quantile(0.99),
            p999_ns: measured.latency.value_at_quantile(0.999),
            max_ns: measured.latency.max(),
        })
    }

    fn size(&self, workload: &str, value: f64, unit: &str) -> Result<()> {
        if !self.asked(workload) {
            return Ok(());
        }
        emit(&Line::Size { engine: self.kind.name.into(), workload: workload.into(), value, unit: unit.into() })
    }

    fn points(&self) -> Result<()> {
        let keys = self.scale.keys;
        let user_bytes = (keys as usize * (KEY_BYTES + VALUE_BYTES)) as f64;
        let values = Values::new(VALUE_BYTES);
        let zipf = Zipf::new(keys, 0.99);
        let idle = anonymous_mib();
        let engine = (self.kind.open)(self.dir, Class::Process)?;
        let engine = &*engine;

        let written = written_bytes();
        self.load("set", engine, keys, &values)?;
        self.settle(engine)?;
        self.size("disk-load", disk_bytes(self.dir)? as f64 / user_bytes, "x user bytes")?;
        self.size("written-load", (written_bytes() - written) / user_bytes, "x user bytes")?;
        self.size("anonymous", anonymous_mib() - idle, "MiB")?;
        self.list(engine, keys)?;

        let hit = |session: &mut dyn Session, worker: &mut Worker, number| {
            if !session.get(&key(number), &mut worker.buffer)? || worker.buffer.len() != VALUE_BYTES {
                return Err(format!("key {number} is not there").into());
            }
            Ok(())
        };
        let set = |session: &mut dyn Session, worker: &mut Worker, number| {
            session.set(&key(number), values.get(worker.dice.roll()))
        };
        for &threads in self.scale.threads {
            let plan = self.plan(threads);
            self.measure("get", engine, plan, 1, |s, w, _| {
                let number = w.dice.below(keys);
                hit(s, w, number)
            })?;
            self.measure("get-zipf", engine, plan, 1, |s, w, _| {
                let number = zipf.pick(&mut w.dice);
                hit(s, w, number)
            })?;
        }
        let plan = self.plan(1);
        self.measure("get-miss", engine, plan, 1, |s, w, _| {
            match s.get(&key(ABSENT + w.dice.below(keys)), &mut w.buffer)? {
                true => Err("a key is there that was never set".into()),
                false => Ok(()),
            }
        })?;
        self.measure("exists", engine, plan, 1, |s, w, _| match s.exists(&key(w.dice.below(keys)))? {
            true => Ok(()),
            false => Err("a key is not there".into()),
        })?;
        let batches = Plan { operations: plan.operations / BATCH as u64 * 2, sample: 1, ..plan };
        self.measure("get-many", engine, batches, BATCH as u64, |s, w, _| {
            let many: [Key; BATCH] = std::array::from_fn(|_| key(w.dice.below(keys)));
            w.buffer.clear();
            let found = s.get_many(&many, &mut w.buffer)?;
            if found != BATCH || w.buffer.len() != BATCH * VALUE_BYTES {
                return Err(format!("get-many found {found} of {BATCH}").into());
            }
            Ok(())
        })?;

        for &threads in self.scale.threads {
            let plan = self.plan(threads);
            self.measure("overwrite", engine, plan, 1, |s, w, _| {
                let number = w.dice.below(keys);
                set(s, w, number)
            })?;
        }
        for (row, reads_of_100) in [("ycsb-a", 50), ("ycsb-b", 95)] {
            for &threads in self.scale.threads {
                let plan = self.plan(threads);
                self.measure(row, engine, plan, 1, |s, w, _| {
                    let number = zipf.pick(&mut w.dice);
                    if w.dice.below(100) < reads_of_100 { hit(s, w, number) } else { set(s, w, number) }
                })?;
            }
        }
        self.measure("set-many", engine, batches, BATCH as u64, |s, w, _| {
            let pairs: [(Key, &[u8]); BATCH] =
                std::array::from_fn(|_| (key(w.dice.below(keys)), values.get(w.dice.roll())));
            s.set_many(&pairs)
        })?;

        if self.asked("disk-overwrite") || self.asked("written-overwrite") {
            self.settle(engine)?;
            let written = written_bytes();
            self.fill(engine, 0..keys, &values)?;
            self.settle(engine)?;
            self.size("disk-overwrite", disk_bytes(self.dir)? as f64 / user_bytes, "x user bytes")?;
            self.size("written-overwrite", (written_bytes() - written) / user_bytes, "x user bytes")?;
        }

        let mut counters = 0;
        if self.asked("increment") {
            counters += self.counters("increment", engine, COUNTERS, |s, _, key| s.increment(key, 1).map(drop))?;
        }
        if self.asked("cas") {
            counters += self.counters("cas", engine, SWAPPED, |s, w, key| s.swap_add(key, 1, &mut w.buffer))?;
        }

        let mut left = keys;
        let half = Plan { operations: (keys / 2).min(plan.operations), ..plan };
        if let Some(deleted) = self.measure("delete", engine, half, 1, |s, _, i| s.delete(&key(i)))? {
            left -= deleted.operations;
        }
        let calls = keys / 4 / BATCH as u64;
        let batches = Plan { operations: calls, sample: 1, ..plan };
        let deleted = self.measure("delete-many", engine, batches, BATCH as u64, |s, _, i| {
            let many: [Key; BATCH] = std::array::from_fn(|n| key(keys - 1 - (i * BATCH as u64 + n as u64)));
            s.delete_many(&many)
        })?;
        left -= deleted.map_or(0, |deleted| deleted.operations * BATCH as u64);
        expect("keys after all deletes", self.count(engine)?, left + counters)
    }

    /// Stores keys `0..keys`, each by a call, for as long as the limit says, and what is left in batches.
    fn load(&self, row: &str, engine: &dyn Engine, keys: u64, values: &Values) -> Result<()> {
        let plan = Plan { operations: keys, limit: self.scale.limit * 3, ..self.plan(1) };
        let set = |s: &mut dyn Session, _: &mut Worker, i| s.set(&key(i), values.get(i));
        let stored = self.measure(row, engine, plan, 1, set)?.map_or(0, |measured| measured.operations);
        self.fill(engine, stored..keys, values)
    }

    /// Sets some keys, in batches, untimed.
    fn fill(&self, engine: &dyn Engine, numbers: std::ops::Range<u64>, values: &Values) -> Result<()> {
        let mut session = engine.session()?;
        let numbers: Vec<u64> = numbers.collect();
        for batch in numbers.chunks(1000) {
            let pairs: Vec<_> = batch.iter().map(|&number| (key(number), values.get(number))).collect();
            session.set_many(&pairs)?;
        }
        Ok(())
    }

    fn list(&self, engine: &dyn Engine, keys: u64) -> Result<()> {
        if !self.asked("list") {
            return Ok(());
        }
        // The first listing pays for what an engine put off; it has a row of its own.
        for row in ["list-first", "list"] {
            have_memory_at_hand();
            let started = Instant::now();
            let mut latency = Histogram::new(3)?;
            let mut session = engine.session()?;
            let listed = pages(&mut *session, |page| latency.record(page.as_nanos() as u64).map_err(Into::into))?;
            let wall = started.elapsed();
            expect("keys listed", listed, keys)?;
            self.row(row, self.plan(1), 1, &Measured { operations: listed, wall, latency })?;
        }
        Ok(())
    }

    fn count(&self, engine: &dyn Engine) -> Result<u64> {
        pages(&mut *engine.session()?, |_| Ok(()))
    }

    /// Adds to hot keys from several threads and sums them up; how many counters there are then.
    fn counters(
        &self,
        row: &str,
        engine: &dyn Engine,
        first: u64,
        add: impl Fn(&mut dyn Session, &mut Worker, &Key) -> Result<()> + Sync,
    ) -> Result<u64> {
        let mut added = 0;
        // All there from the start, so that the rows with one and with four threads do the same.
        let mut session = engine.session()?;
        for number in first..first + HOT_KEYS {
            session.set(&key(number), b"0")?;
        }
        drop(session);
        for &threads in self.scale.contended {
            let measured = self.measure(row, engine, self.plan(threads), 1, |s, w, _| {
                let number = first + w.dice.below(HOT_KEYS);
                add(s, w, &key(number))
            })?;
            added += measured.map_or(0, |measured| measured.operations);
        }
        let mut session = engine.session()?;
        let mut sum = 0;
        for number in first..first + HOT_KEYS {
            sum += session.increment(&key(number), 0)?;
        }
        expect("sum of the counters", sum.unsigned_abs(), added)?;
        Ok(HOT_KEYS)
    }

    fn values(&self, value_bytes: usize, keys: u64, suffix: &str, overwrite: bool) -> Result<()> {
        let values = Values::new(value_bytes);
        let engine = (self.kind.open)(self.dir, Class::Process)?;
        let engine = &*engine;
        self.load(&format!("set-{suffix}"), engine, keys, &values)?;
        let plan = Plan { sample: 4, ..self.plan(1) };
        self.measure(&format!("get-{suffix}"), engine, plan, 1, |s, w, _| {
            match s.get(&key(w.dice.below(keys)), &mut w.buffer)? && w.buffer.len() == value_bytes {
                true => Ok(()),
                false => Err("a value is not there".into()),
            }
        })?;
        if overwrite {
            let plan = Plan { operations: keys * 2, ..plan };
            self.measure(&format!("overwrite-{suffix}"), engine, plan, 1, |s, w, _| {
                s.set(&key(w.dice.below(keys)), values.get(w.dice.roll()))
            })?;
        }
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        let values = Values::new(VALUE_BYTES);
        let engine = (self.kind.open)(self.dir, Class::Sync)?;
        for &threads in self.scale.synced {
            let plan = Plan { threads, operations: u64::MAX, sample: 1, ..self.plan(1) };
            self.measure("sync-set", &*engine, plan, 1, |s, w, _| {
                let number = w.dice.below(self.scale.keys);
                s.set(&key(number), values.get(number))
            })?;
        }
        engine.close()
    }

    fn sustained(&self) -> Result<()> {
        let values = Values::new(VALUE_BYTES);
        let engine = (self.kind.open)(self.dir, Class::Process)?;
        let written = written_bytes();
        let plan = Plan { operations: self.scale.sustained, limit: self.scale.limit * 10, sample: 1, threads: 1 };
        let measured = self.measure("sustained", &*engine, plan, 1, |s, w, _| {
            let number = w.dice.below(self.scale.keys);
            s.set(&key(number), values.get(w.dice.roll()))
        })?;
        if let Some(measured) = measured {
            let user_bytes = measured.operations * (KEY_BYTES + VALUE_BYTES) as u64;
            self.size("written-sustained", (written_bytes() - written) / user_bytes as f64, "x user bytes")?;
        }
        engine.close()
    }

    fn reopen_load(&self) -> Result<()> {
        let engine = (self.kind.open)(self.dir, Class::Process)?;
        self.fill(&*engine, 0..self.scale.keys, &Values::new(VALUE_BYTES))?;
        println!("{LOADED}");
        std::io::stdout().flush()?;
        // Here it is killed, with the store open.
        std::io::stdin().read_to_end(&mut Vec::new())?;
        Err("nobody killed this process".into())
    }

    /// Opening, and a first get; then every key must be there.
    fn reopen(&self, row: &str) -> Result<()> {
        have_memory_at_hand();
        let started = Instant::now();
        let engine = (self.kind.open)(self.dir, Class::Process)?;
        let found = engine.session()?.get(&key(self.scale.keys / 2), &mut Vec::new())?;
        let opened = started.elapsed();
        if !found {
            return Err("an acknowledged key is gone".into());
        }
        self.size(row, opened.as_secs_f64() * 1e3, "ms")?;
        expect("keys after reopening", self.count(&*engine)?, self.scale.keys)?;
        engine.close()
    }

    /// Lets background work end: what the engine offers to wait for, then until the files stand still and nobody computes, for
    /// [`STILL`] looks in a row: an engine that reads what it is about to remove changes no file for a while. Everything is written
    /// back, so that pages that are made dirty after this are counted again, whoever maps them.
    fn settle(&self, engine: &dyn Engine) -> Result<()> {
        engine.rest()?;
        write_back(self.dir)?;
        let until = Instant::now() + self.scale.settle;
        let (mut before, mut still) = ((disk_bytes(self.dir)?, clock::process()), 0);
        while still < STILL && Instant::now() < until {
            std::thread::sleep(LOOK);
            let now = (disk_bytes(self.dir)?, clock::process());
            let rests = now.0 == before.0 && now.1.saturating_sub(before.1) < LOOK / 20;
            still = if rests { still + 1 } else { 0 };
            before = now;
        }
        Ok(())
    }

    /// Runs `call` on some threads until the plan is done, and prints the row; `None` if nobody asked for it.
    fn measure(
        &self,
        row: &str,
        engine: &dyn Engine,
        plan: Plan,
        keys_per_call: u64,
        call: impl Fn(&mut dyn Session, &mut Worker, u64) -> Result<()> + Sync,
    ) -> Result<Option<Measured>> {
        if !self.asked(row) {
            return Ok(None);
        }
        let barrier = Barrier::new(plan.threads);
        let started = std::sync::OnceLock::new();
        have_memory_at_hand();
        let run = |thread: usize| -> Result<(u64, Instant, Histogram<u64>)> {
            let mut session = engine.session()?;
            let mut worker = Worker { dice: Dice::new(thread as u64 + 1), buffer: Vec::with_capacity(1 << 20) };
            let mut latency = Histogram::new(3)?;
            barrier.wait();
            let started: Instant = *started.get_or_init(Instant::now);
            let mut calls = 0;
            let mut number = thread as u64;
            while number < plan.operations {
                if calls % plan.sample == 0 {
                    let before = Instant::now();
                    if before.duration_since(started) > plan.limit {
                        break;
                    }
                    call(&mut *session, &mut worker, number)?;
                    latency.record(before.elapsed().as_nanos() as u64)?;
                } else {
                    call(&mut *session, &mut worker, number)?;
                }
                calls += 1;
                number += plan.threads as u64;
            }
            Ok((calls, Instant::now(), latency))
        };
        let threads: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..plan.threads).map(|thread| scope.spawn(move_ref(&run, thread))).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|_| Err("a thread panicked".into())))
                .collect()
        });
        let started = started.get().copied().ok_or("no thread began")?;
        let mut measured = Measured { operations: 0, wall: Duration::ZERO, latency: Histogram::new(3)? };
        for thread in threads {
            let (calls, ended, latency) = thread?;
            measured.operations += calls;
            measured.wall = measured.wall.max(ended - started);
            measured.latency.add(latency)?;
        }
        self.row(row, plan, keys_per_call, &measured)?;
        Ok(Some(measured))
    }
}

/// Calls `run` with a number, later.
fn move_ref<R>(run: &(impl Fn(usize) -> R + Sync), thread: usize) -> impl FnOnce() -> R + Send {
    move || run(thread)
}

/// All keys in pages, in order, or it is an error; how many there are.
fn pages(session: &mut dyn Session, mut timed: impl FnMut(Duration) -> Result<()>) -> Result<u64> {
    let mut page = Vec::with_capacity(PAGE * KEY_BYTES);
    let mut after: Option<Key> = None;
    let mut listed = 0;
    loop {
        page.clear();
        let before = Instant::now();
        let found = session.list(after.as_ref(), PAGE, &mut page)?;
        timed(before.elapsed())?;
        listed += found as u64;
        if found == 0 {
            return Ok(listed);
        }
        for key in page.chunks_exact(KEY_BYTES) {
            if after.is_some_and(|after| after[..] >= *key) {
                return Err("keys were listed out of order".into());
            }
            after = Some(key.try_into()?);
        }
    }
}

/// Takes memory and gives it back. The host of a virtual machine may take back what nobody has used for some seconds, and the next to touch it
/// waits for that, a millisecond for 1 MiB on ours: whoever is measured first would pay for all that the next one finds at hand.
fn have_memory_at_hand() {
    let mut memory = vec![0u8; AT_HAND];
    memory.iter_mut().step_by(PAGE_BYTES).for_each(|byte| *byte = 1);
    std::hint::black_box(&memory);
}

fn expect(what: &str, found: u64, expected: u64) -> Result<()> {
    if found == expected { Ok(()) } else { Err(format!("{what}: {found} found, {expected} expected").into()) }
}

fn emit(line: &Line) -> Result<()> {
    println!("{}", serde_json::to_string(line)?);
    Ok(())
}

/// Bytes that the files under `dir` take, holes not counted.
fn disk_bytes(dir: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        // A file may go while we look.
        let Ok(metadata) = entry.metadata() else { continue };
        bytes += if metadata.is_dir() { disk_bytes(&entry.path())? } else { allocated(&metadata) };
    }
    Ok(bytes)
}

/// Syncs the files under `dir`.
fn write_back(dir: &Path) -> Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            write_back(&path)?;
        } else if let Ok(file) = std::fs::File::open(&path) {
            // A file may go while we look; one that cannot be synced read-only (not on Linux) stays as it is.
            let _ = file.sync_all();
        }
    }
    Ok(())
}

#[cfg(unix)]
fn allocated(metadata: &std::fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::blocks(metadata) * 512
}

#[cfg(not(unix))]
fn allocated(metadata: &std::fs::Metadata) -> u64 {
    metadata.len()
}

/// What this process made the kernel write so far: pages made dirty, by calls or through maps. 0 where Linux's
/// `/proc` is not.
fn written_bytes() -> f64 {
    proc_field("/proc/self/io", "write_bytes:")
}

/// Memory of this process that no file backs.
fn anonymous_mib() -> f64 {
    proc_field("/proc/self/status", "RssAnon:") / 1024.0
}

fn proc_field(file: &str, field: &str) -> f64 {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    line.and_then(|rest| rest.split_whitespace().next()).and_then(|number| number.parse().ok()).unwrap_or(0.0)
}
