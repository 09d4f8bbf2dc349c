//! The campaign `kill`: a real process on real files, killed in the middle of its writes, and one time in five again while
//! it opens the store. What it had acknowledged is there, nothing is half there, and nobody counts twice.
//!
//! With a command that cuts the power of the file system (`--cut`), and one that mounts it again (`--mend`), the same is asked of
//! real disks: see `.ci/power-cut`. Then the store always syncs, and what it acknowledged is on the disk.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use kvasi::testing::collect_garbage;
use kvasi::testing::counts::{Case, Counts, Violation};
use kvasi::{Durability, Options, Store};

use crate::dice::Dice;

const THREADS: u64 = 8;
/// Keys of a thread; it writes them in turn.
const KEYS: u64 = 20;

/// What is acknowledged survives the death of the process in every mode, and a power cut in one of them.
fn options(seed: u64, syncs: bool) -> Options {
    let durability = match seed % 3 {
        _ if syncs => Durability::Sync,
        0 => Durability::Sync,
        1 => Durability::Os,
        _ => Durability::INTERVAL,
    };
    Options::new().durability(durability).segment_bytes_max(256 << 10)
}

/// What the process that is killed does: writes until it dies, and says what was acknowledged, a line each.
pub(crate) fn child(dir: &Path, seed: u64, from: u64, syncs: bool) -> Result<(), String> {
    let store = Store::open(dir, options(seed, syncs)).map_err(|e| format!("{e:?}"))?;
    let bucket = store.bucket("b").map_err(|e| format!("{e:?}"))?;
    let out = std::io::stdout();
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (bucket, out) = (bucket.clone(), &out);
            scope.spawn(move || -> Result<(), String> {
                for n in from.. {
                    let text = n.to_string();
                    let mut value = text.clone().into_bytes();
                    value.resize(value.len() + (n * 37 % 700) as usize, b' ');
                    let pair = [(format!("p{thread}"), &value), (format!("q{thread}"), &value)];
                    let written = match n % 4 {
                        0 => bucket.set_many(&pair),
                        _ => bucket.set(format!("k{thread}/{}", n % KEYS).as_bytes(), &value).map(drop),
                    };
                    let counted = written.and_then(|()| bucket.increment(b"count", 1));
                    counted.map_err(|e| format!("{e:?}"))?;
                    // One call of the system a line: it is whole, or was never written.
                    let mut out = out.lock();
                    out.write_all(format!("{thread} {n}\n").as_bytes()).map_err(|e| e.to_string())?;
                    out.flush().map_err(|e| e.to_string())?;
                }
                Ok(())
            });
        }
    });
    Ok(())
}

/// Where a thread's n-th write goes: to one of its keys, or to its pair, which counts as the key behind them.
fn key_of(n: u64) -> u64 {
    if n.is_multiple_of(4) { KEYS } else { n % KEYS }
}

/// What must be there, by thread and key: what was acknowledged last, or seen since. And how many writes were acknowledged.
#[derive(Default)]
struct Told {
    least: BTreeMap<(u64, u64), u64>,
    writes: u64,
}

impl Told {
    fn most(&self) -> u64 {
        self.least.values().max().copied().unwrap_or(0)
    }
}

/// Commands that cut the power of a file system, and that mount it again.
#[derive(Clone, Copy)]
pub(crate) struct Cut<'a> {
    pub(crate) cut: &'a str,
    pub(crate) mend: &'a str,
}

struct Kill<'a> {
    dir: PathBuf,
    seed: u64,
    cut: Option<Cut<'a>>,
    fault: Option<&'a str>,
    told: Told,
    counts: Counts,
    dice: Dice,
}

impl Kill<'_> {
    fn start(&self, from: u64) -> Result<Child, String> {
        let me = std::env::current_exe().map_err(|e| e.to_string())?;
        let mut command = Command::new(me);
        command.args(["kill-child", &self.dir.display().to_string(), &self.seed.to_string(), &from.to_string()]);
        if self.cut.is_some() {
            command.arg("--syncs");
        }
        if let Some(fault) = self.fault {
            command.args(["--fault", fault]);
        }
        command.stdout(Stdio::piped()).spawn().map_err(|e| format!("cannot start a process: {e}"))
    }

    /// One process, killed after so long; what it had told is taken down.
    fn run(&mut self, from: u64, lives: Duration) -> Result<(), String> {
        let mut child = self.start(from)?;
        let out = child.stdout.take().ok_or("no output")?;
        let reader = std::thread::spawn(move || {
            let mut told = Told::default();
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                let mut numbers = line.split(' ').map(|text| text.parse::<u64>().unwrap_or(0));
                let (thread, n) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
                told.least.insert((thread, key_of(n)), n);
                told.writes += 1;
            }
            told
        });
        sleep(lives);
        let early = child.try_wait().map_err(|e| e.to_string())?;
        if let Some(Cut { cut, .. }) = self.cut {
            shell(cut)?;
        }
        let _ = child.kill();
        let _ = child.wait();
        if let Some(Cut { mend, .. }) = self.cut {
            shell(mend)?;
            self.counts.add("power_cuts", 1);
        }
        if let Some(status) = early {
            return Err(format!("the process ended by itself: {status}"));
        }
        let told = reader.join().map_err(|_| "the reader has panicked")?;
        self.counts.add("kills", 1);
        self.counts.add("acknowledged", told.writes);
        self.told.writes += told.writes;
        self.told.least.extend(told.least);
        Ok(())
    }

    /// Opens the store here, and compares.
    fn check(&mut self, begun: u64) -> Result<(), String> {
        let failed = |e: kvasi::Error| format!("{e:?}");
        let store = Store::open(&self.dir, options(self.seed, self.cut.is_some())).map_err(failed)?;
        let bucket = store.bucket("b").map_err(failed)?;
        let number = |key: String| -> Result<u64, String> {
            let value = bucket.get(key.as_bytes()).map_err(failed)?;
            let Some(value) = value else { return Ok(0) };
            let text = std::str::from_utf8(&value).map_err(|e| e.to_string())?.trim_end().to_owned();
            let n: u64 = text.parse().map_err(|_| format!("{key} holds {text:?}"))?;
            if value.len() as u64 != text.len() as u64 + n * 37 % 700 {
                return Err(format!("{key} holds half a value"));
            }
            Ok(n)
        };
        for thread in 0..THREADS {
            let (p, q) = (number(format!("p{thread}"))?, number(format!("q{thread}"))?);
            if p != q {
                return Err(format!("half a batch: {p} and {q}"));
            }
            for key in 0..=KEYS {
                let there = if key == KEYS { p } else { number(format!("k{thread}/{key}"))? };
                let least = self.told.least.entry((thread, key)).or_default();
                if there < *least {
                    return Err(format!("thread {thread}, key {key}: {least} was acknowledged, {there} is there"));
                }
                *least = there;
            }
        }
        let count = bucket.get(b"count").map_err(failed)?.and_then(|v| std::str::from_utf8(&v).ok()?.parse().ok());
        let count: u64 = count.unwrap_or(0);
        if count < self.told.writes || count > self.told.writes + begun {
            return Err(format!("{} increments were acknowledged, the sum is {count}", self.told.writes));
        }
        let report = store.verify().map_err(failed)?;
        if !report.findings.is_empty() {
            return Err(format!("{:?}", report.findings));
        }
        store.close().map_err(failed)?;
        // Files that readers might have held are closed, too: the file system may be mounted anew.
        drop(bucket);
        collect_garbage();
        Ok(())
    }
}

fn shell(command: &str) -> Result<(), String> {
    let status = Command::new("sh").args(["-c", command]).status().map_err(|e| format!("{command}: {e}"))?;
    if status.success() { Ok(()) } else { Err(format!("{command}: {status}")) }
}

/// A store and ten deaths.
pub(crate) fn round(seed: u64, base: &Path, cut: Option<Cut<'_>>, fault: Option<&str>) -> Result<Counts, Violation> {
    let dir = base.join(format!("kvasi-kill-{}-{seed}", std::process::id()));
    let fail = |what: String| Violation { seed, case: Case::default(), what };
    let (told, counts) = (Told::default(), Counts::default());
    let mut kill = Kill { dir: dir.clone(), seed, cut, fault, told, counts, dice: Dice(seed) };
    let mut from = 1;
    let mut begun = 0;
    for _ in 0..10 {
        let lives = Duration::from_millis(15 + kill.dice.below(60));
        kill.run(from, lives).map_err(&fail)?;
        begun += THREADS;
        if kill.dice.below(5) == 0 {
            // Again, while it opens the store.
            let lives = Duration::from_micros(500 + kill.dice.below(6000));
            // What was under way has at most the number after the last.
            let most = kill.told.most() + 2;
            kill.run(most, lives).map_err(&fail)?;
            kill.counts.add("kills_in_recovery", 1);
            begun += THREADS;
        }
        kill.check(begun).map_err(&fail)?;
        from = kill.told.most() + 2;
    }
    let _ = std::fs::remove_dir_all(&dir);
    Ok(kill.counts)
}
