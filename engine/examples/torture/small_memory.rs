//! The campaign `small-memory`: a store of several times the memory that its process may use. A control group limits that, files
//! included (`--group`, see `.ci/small-memory`): what is mapped or read of the store has to make room for the rest.
//!
//! A round is one store. A process in the group fills it; some others read and write here and there until they take memory that they
//! have no use for, and the kernel kills them, in the middle of a write; the last one reads and verifies everything. Those that take no
//! such memory must not be killed, and after each death what was acknowledged is there, and nothing is half there.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::{Args, Subcommand};
use kvasi::testing::collect_garbage;
use kvasi::testing::counts::{Case, Counts, Violation};
use kvasi::{Access, Bucket, Durability, Options, Store};

use crate::dice::Dice;

const VALUE_BYTES: usize = 4_000;
/// Each writes keys of its own.
const THREADS: u64 = 2;
/// Processes of a round that are killed.
const DEATHS: u64 = 4;
/// Calls of a thread before it begins to take memory, at most.
const CALLS_MAX: u64 = 1_000;
/// Bytes that a thread takes with each call from then on.
const TAKEN_BYTES: usize = 64 << 10;

#[derive(Args, Clone)]
pub(crate) struct Child {
    dir: PathBuf,
    seed: u64,
    keys: u64,
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand, Clone, Copy)]
enum Task {
    Fill,
    /// Writes are numbered from here on.
    Work {
        from: u64,
    },
    Read,
}

fn options(seed: u64) -> Options {
    let options = Options::new().durability(if seed.is_multiple_of(2) { Durability::INTERVAL } else { Durability::Os });
    match seed / 2 % 2 {
        0 => options.access(Access::Mapped),
        // What is written to, and what was read, is memory of the process here: of the order of these two.
        _ => options.access(Access::Unmapped).segment_bytes_max(4 << 20).read_bytes_max(8 << 20),
    }
}

fn value(key: u64, n: u64) -> Vec<u8> {
    let mut value = [key.to_le_bytes(), n.to_le_bytes()].concat();
    value.resize(VALUE_BYTES - (key % 500) as usize, (key ^ n) as u8);
    value
}

/// The number of the write that a key shows.
fn shown(bucket: &Bucket, key: u64) -> Result<u64, String> {
    let found = bucket.get(&key.to_le_bytes()).map_err(|e| format!("key {key}: {e:?}"))?;
    let found = found.ok_or_else(|| format!("key {key} is not there"))?;
    let n = found.get(8..16).and_then(|n| n.try_into().ok()).map_or(u64::MAX, u64::from_le_bytes);
    if found[..] == value(key, n)[..] { Ok(n) } else { Err(format!("key {key} holds what nobody wrote")) }
}

/// What a process in the group does. Says what was acknowledged, a line each, and when it begins to take memory.
pub(crate) fn child(child: &Child) -> Result<(), String> {
    let Child { dir, seed, keys, task } = child;
    let failed = |e: kvasi::Error| format!("{e:?}");
    let store = Store::open(dir, options(*seed)).map_err(failed)?;
    let bucket = store.bucket("b").map_err(failed)?;
    match *task {
        Task::Fill => {
            (0..*keys).try_for_each(|key| bucket.set(&key.to_le_bytes(), &value(key, 0)).map(drop)).map_err(failed)?;
        }
        Task::Work { from } => std::thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS)
                .map(|thread| {
                    let bucket = &bucket;
                    scope.spawn(move || work(bucket, *seed, *keys, thread, from))
                })
                .collect();
            threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| "a thread has panicked".to_owned())?)
        })?,
        Task::Read => {
            (0..*keys).try_for_each(|key| shown(&bucket, key).map(drop))?;
            let report = store.verify().map_err(failed)?;
            if !report.findings.is_empty() {
                return Err(format!("{:?}", report.findings));
            }
        }
    }
    drop(bucket);
    store.close().map_err(failed)
}

fn work(bucket: &Bucket, seed: u64, keys: u64, thread: u64, from: u64) -> Result<(), String> {
    let mut random = Dice(seed ^ from << 20 ^ thread << 50);
    let calls = 1 + random.below(CALLS_MAX);
    let mut written = std::collections::BTreeMap::new();
    let (mut n, mut taken) = (from, Vec::new());
    let say = |line: String| {
        let mut out = std::io::stdout().lock();
        out.write_all(line.as_bytes()).and_then(|()| out.flush()).map_err(|e| e.to_string())
    };
    for call in 0.. {
        let key = random.below(keys / THREADS) * THREADS + thread;
        if random.below(4) == 0 {
            bucket.set(&key.to_le_bytes(), &value(key, n)).map_err(|e| format!("{e:?}"))?;
            written.insert(key, n);
            say(format!("{key} {n}\n"))?;
            n += 1;
        } else {
            let found = shown(bucket, key)?;
            if written.get(&key).is_some_and(|n| *n != found) {
                return Err(format!("key {key} holds {found}, not what was written last"));
            }
        }
        if call == calls {
            say("takes memory\n".to_owned())?;
        }
        if call >= calls {
            taken.push(vec![1u8; TAKEN_BYTES]);
        }
    }
    Ok(())
}

struct Round<'a> {
    dir: PathBuf,
    group: &'a Path,
    seed: u64,
    keys: u64,
    /// The last write of each key that was acknowledged, or seen since.
    least: Vec<u64>,
    /// The next write of each thread.
    next: [u64; THREADS as usize],
    counts: Counts,
}

impl Round<'_> {
    /// Runs a process in the group to its end; whether it was killed after it had begun to take memory.
    fn run(&mut self, task: &[&str]) -> Result<bool, String> {
        let me = std::env::current_exe().map_err(|e| e.to_string())?;
        let mut child = Command::new("sh")
            .args(["-c", r#"echo $$ >"$0/cgroup.procs" && exec "$@""#])
            .args([self.group, &me])
            .args(["small-memory-child", &self.dir.display().to_string()])
            .args([self.seed.to_string(), self.keys.to_string()])
            .args(task)
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| format!("cannot start a process: {e}"))?;
        let out = child.stdout.take().ok_or("no output")?;
        let mut takes = false;
        for line in BufReader::new(out).lines().map_while(Result::ok) {
            let mut numbers = line.split(' ').map(str::parse::<u64>);
            match (numbers.next(), numbers.next()) {
                (Some(Ok(key)), Some(Ok(n))) if key < self.keys => {
                    self.least[key as usize] = n;
                    self.next[(key % THREADS) as usize] = n + 1;
                    self.counts.add("acknowledged", 1);
                }
                _ => takes = true,
            }
        }
        let status = child.wait().map_err(|e| e.to_string())?;
        match (takes, status.code()) {
            (false, Some(0)) => Ok(false),
            (true, None) => Ok(true),
            (false, None) => Err(format!("{task:?} is killed, and needs no more than it may have: {status}")),
            (_, Some(_)) => Err(format!("{task:?} has failed: {status}")),
        }
    }

    /// Reads all from outside of the group.
    fn check(&mut self) -> Result<(), String> {
        let failed = |e: kvasi::Error| format!("{e:?}");
        let store = Store::open(&self.dir, options(self.seed)).map_err(failed)?;
        let bucket = store.bucket("b").map_err(failed)?;
        for key in 0..self.keys {
            let (found, least) = (shown(&bucket, key)?, &mut self.least[key as usize]);
            // The write that was under way, and no other, may be there without having been acknowledged.
            if found != *least && found != self.next[(key % THREADS) as usize] {
                return Err(format!("key {key} holds write {found}, and {least} was acknowledged"));
            }
            *least = found;
            self.counts.add("reads", 1);
        }
        store.close().map_err(failed)?;
        drop(bucket);
        collect_garbage();
        Ok(())
    }

    fn work(&mut self) -> Result<(), String> {
        self.run(&["fill"])?;
        for death in 1..=DEATHS {
            let from = death << 32;
            self.next = [from; THREADS as usize];
            if !self.run(&["work", &from.to_string()])? {
                return Err("a process that takes more than it may have is not killed".to_owned());
            }
            self.counts.add("kills", 1);
            self.check()?;
        }
        self.run(&["read"])?;
        self.counts.add("rounds", 1);
        Ok(())
    }
}

/// A store of so many bytes, its processes in the control group at `group`.
pub(crate) fn round(seed: u64, base: &Path, group: &Path, bytes: u64) -> Result<Counts, Violation> {
    let dir = base.join(format!("kvasi-small-memory-{}-{seed}", std::process::id()));
    let keys = bytes / VALUE_BYTES as u64;
    let (least, next) = (vec![0; keys as usize], [0; THREADS as usize]);
    let mut round = Round { dir, group, seed, keys, least, next, counts: Counts::default() };
    let done = round.work();
    let _ = std::fs::remove_dir_all(&round.dir);
    done.map(|()| round.counts).map_err(|what| Violation { seed, case: Case::default(), what })
}
