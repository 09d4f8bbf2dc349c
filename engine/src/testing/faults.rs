//! Failing disks: every call of a workload fails, once or from then on, in every way; and the disk is full at every byte.
//!
//! After the failure the store may refuse to write, and must still read; when the disk is well again, the next open
//! decides about what was indeterminate, and everything that was told before holds. A full disk is no such failure: the
//! store goes on when there is space.

use std::fmt;
use std::sync::Arc;

use super::Random;
use super::crash::{caught, judge};
use super::model;
use super::workload::{Run, Step};
use crate::io::sim::{FAILURES, Failure, Fault, Image, SimDisk, Variant};
use crate::{Durability, ErrorKind};

/// How much a campaign does.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Of the first workload; the next ones count up.
    pub seed: u64,
    /// Workloads run to their failure, about.
    pub runs: u64,
    /// Calls of a workload.
    pub steps: u32,
}

/// What a campaign did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Runs in which something failed.
    pub runs: u64,
    /// Of them, those after which the store took no more writes.
    pub broken: u64,
    /// Runs in which the store said that there is no space.
    pub full: u64,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} runs, {} broken, {} without space", self.runs, self.broken, self.full)
    }
}

/// Has calls fail, every one of a workload in every way, or as many as `plan.runs` allows.
///
/// # Errors
/// The first broken promise, with how to see it again.
pub fn errors(plan: &Plan) -> Result<Counts, String> {
    let mut counts = Counts::default();
    let mut seed = plan.seed;
    while counts.runs < plan.runs {
        let calls = calls_of(seed, plan.steps)?;
        let kinds = FAILURES.len() as u64 * 2;
        // All of them, or a fair share of a few workloads.
        let stride = (3 * calls * kinds / plan.runs).max(1) | 1;
        let mut at = Random::new(seed).below(stride);
        while at < calls * kinds && counts.runs < plan.runs {
            let failure = FAILURES[(at % FAILURES.len() as u64) as usize];
            let sticky = at / FAILURES.len() as u64 % 2 == 1;
            let fault = Fault { after: at / kinds, failure, sticky };
            caught(|| one_error(seed, plan.steps, fault, &mut counts))
                .map_err(|what| format!("seed {seed}, {fault:?}: {what}"))?;
            at += stride;
        }
        seed += 1;
    }
    Ok(counts)
}

fn calls_of(seed: u64, steps: u32) -> Result<u64, String> {
    let mut run = Run::new(SimDisk::new(Image::new(), seed), seed);
    for i in 0..steps {
        caught(|| run.step()).map_err(|what| format!("seed {seed}, step {i}, without a fault: {what}"))?;
    }
    Ok(run.disk.calls())
}

fn one_error(seed: u64, steps: u32, fault: Fault, counts: &mut Counts) -> Result<(), String> {
    let mut run = Run::new(SimDisk::new(Image::new(), seed), seed);
    run.disk.set_fault(Some(fault));
    let mut step = Step::Done;
    for _ in 0..steps {
        step = run.step()?;
        if step == Step::Broken {
            break;
        }
        if step == Step::NoSpace && fault.failure != Failure::NoSpace {
            return Err(format!("{:?} is said to be a want of space", fault.failure));
        }
    }
    if run.disk.fault_hits() == 0 {
        return Ok(());
    }
    counts.runs += 1;
    run.disk.set_fault(None);
    if step == Step::Broken {
        counts.broken += 1;
        reads_only(&run)?;
        // The other half of the runs ends in a power cut at once.
        if fault.after.is_multiple_of(2) {
            return judge_now(&run, seed);
        }
        run.kill();
        match run.open()? {
            Step::Done => {}
            other => return Err(format!("the disk is well again, and the open is {other:?}")),
        }
        judge_now(&run, seed)?;
    }
    go_on(&mut run, seed)
}

/// With a healthy disk everything works.
fn go_on(run: &mut Run, seed: u64) -> Result<(), String> {
    for _ in 0..6 {
        match run.step()? {
            Step::Done => {}
            other => return Err(format!("the disk is well again, and a step is {other:?}")),
        }
    }
    judge_now(run, seed)
}

/// A store that takes no more writes says so, and reads on.
fn reads_only(run: &Run) -> Result<(), String> {
    let Some(store) = run.store() else { return Ok(()) };
    model::read(store).map_err(|e| format!("a read of a poisoned store fails: {e:?}"))?;
    for name in store.buckets().map_err(|e| format!("{e:?}"))? {
        let Some(bucket) = store.existing_bucket(&name).map_err(|e| format!("{e:?}"))? else { continue };
        match bucket.set(b"poisoned?", b"").map_err(|e| e.kind()) {
            Err(ErrorKind::Poisoned) => {}
            other => return Err(format!("a write after a failure of the disk is {other:?}")),
        }
    }
    match run.disk.violation() {
        Some(breach) => Err(format!("protocol: {breach}")),
        None => Ok(()),
    }
}

/// The power is cut now: all lost, all kept, anything.
fn judge_now(run: &Run, seed: u64) -> Result<(), String> {
    let now = run.disk.now();
    let allowed = run.history.allowed(now);
    for variant in [Variant::AllLost, Variant::AllKept, Variant::Random(seed ^ now as u64)] {
        // What was begun and has failed may be there: the range ends at all that was begun.
        let allowed = *allowed.start()..=run.history.commits();
        judge(seed ^ now as u64, &run.disk.image(variant), &run.options, &run.history, allowed)
            .map_err(|what| format!("power cut now, {variant:?}: {what}"))?;
    }
    Ok(())
}

/// Has the disk become full after every number of bytes.
///
/// # Errors
/// The first broken promise, with how to see it again.
pub fn full(plan: &Plan) -> Result<Counts, String> {
    let mut counts = Counts::default();
    // A segment, its header and a few edits.
    const WINDOW: u64 = 9000;
    let stride = (WINDOW * 3 / plan.runs).max(1);
    let mut at = 0;
    while counts.runs < plan.runs {
        let seed = plan.seed + at / WINDOW;
        let bytes = at % WINDOW;
        caught(|| one_full(seed, plan.steps, bytes, &mut counts))
            .map_err(|what| format!("seed {seed}, {bytes} bytes free: {what}"))?;
        at += stride;
    }
    Ok(counts)
}

fn one_full(seed: u64, steps: u32, bytes: u64, counts: &mut Counts) -> Result<(), String> {
    let mut run = Run::new(SimDisk::new(Image::new(), seed), seed);
    for _ in 0..steps / 2 {
        run.step()?;
    }
    if let Some(store) = run.store().cloned() {
        run.background_all(&store)?;
    }
    run.disk.set_quota(Some(run.disk.used_bytes() + bytes));
    counts.runs += 1;
    let mut was_full = false;
    for _ in 0..steps {
        match run.calm_step()? {
            Step::Done => {}
            Step::NoSpace => {
                if !std::mem::replace(&mut was_full, true) {
                    run.delete_now()?;
                }
                // Nothing of it was done, and reads go on.
                match run.compare_now()? {
                    Step::Done => {}
                    other => return Err(format!("on a full disk a comparison is {other:?}")),
                }
            }
            Step::Broken => return Err("a full disk has stopped the store for good".to_owned()),
        }
    }
    counts.full += u64::from(was_full);
    run.disk.set_quota(None);
    if let Some(store) = run.store().cloned() {
        // Space is back: at once, without a reopen.
        run.background_all(&store)?;
        let name = store.buckets().map_err(|e| format!("{e:?}"))?.into_iter().next();
        if let Some(bucket) = name.and_then(|name| store.existing_bucket(&name).ok().flatten()) {
            let bucket = bucket.with_durability(Durability::Sync);
            run.set_now(&bucket, b"space", Arc::from(&b"is back"[..]))?;
        }
    }
    go_on(&mut run, seed)
}
