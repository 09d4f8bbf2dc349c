//! Failing disks: every call of a workload fails, once or from then on, in every way, alone or with a second one, also in
//! the open that follows; and the disk is full at every byte.
//!
//! After the failure the store may refuse to write, and must still read; when the disk is well again, the next open
//! decides about what was indeterminate, and everything that was told before holds. A full disk is no such failure: the
//! store goes on when there is space.

use std::sync::Arc;

use super::Random;
use super::call::{Call, Calls};
use super::counts::{Case, Counts, Violation, shrink};
use super::crash::{Judge, caught};
use super::full::fill_and_empty;
use super::model;
use super::workload::{Run, Step};
use crate::io::sim::{FAILURES, Failure, Fault, Image, SimDisk, Variant};
use crate::{Durability, ErrorKind};

/// Calls of a workload.
const STEPS: u32 = 40;

/// Has calls fail, every one of a seed's workload in every way, or `runs` of them.
///
/// # Errors
/// The first broken promise, made small.
pub fn errors(seed: u64, runs: u64, case: &Case) -> Result<Counts, Violation> {
    let all = Calls::of(seed, STEPS);
    let mut counts = Counts::default();
    if let Some(at) = &case.at {
        let judge = &mut Judge::new(seed);
        let made = parse_faults(at).and_then(|plan| one_error(seed, &case.pick(&all), &plan, judge, &mut counts));
        return made.map(|()| counts).map_err(|what| Violation { seed, case: case.clone(), what });
    }
    let calls = case.pick(&all);
    let disk_calls = disk_calls_of(seed, &calls).map_err(|what| Violation { seed, case: case.clone(), what })?;
    let kinds = FAILURES.len() as u64 * 2;
    let stride = (disk_calls * kinds / runs.max(1)).max(1) | 1;
    let mut random = Random::new(seed ^ 0x6661_756c_7473);
    let mut at = random.below(stride);
    // Most disks that are left by one failure are also left by another.
    let mut judge = Judge::new(seed);
    while at < disk_calls * kinds {
        let plan = plan(at / kinds, at % kinds, &mut random);
        caught(|| one_error(seed, &calls, &plan, &mut judge, &mut counts))
            .map_err(|what| smaller(seed, &all, &plan, case, what))?;
        at += stride;
    }
    Ok(counts)
}

/// Which calls fail: some while the calls are made, one in the open after that.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct FaultPlan {
    pub(super) first: Option<Fault>,
    pub(super) second: Option<Fault>,
    pub(super) in_open: Option<Fault>,
}

pub(super) fn fault(after: u64, kind: u64) -> Fault {
    let failure = FAILURES[(kind % FAILURES.len() as u64) as usize];
    Fault { after, failure, sticky: kind / FAILURES.len() as u64 % 2 == 1 }
}

/// The fault itself, and for every second one another: soon after it, or in the open that follows.
fn plan(after: u64, kind: u64, random: &mut Random) -> FaultPlan {
    let first = Some(fault(after, kind));
    let any = random.below(2 * FAILURES.len() as u64);
    match random.below(4) {
        0 => FaultPlan { first, second: Some(fault(after + 1 + random.below(12), any)), in_open: None },
        1 => FaultPlan { first, second: None, in_open: Some(fault(random.below(40), any)) },
        _ => FaultPlan { first, ..FaultPlan::default() },
    }
}

fn faults_text(plan: &FaultPlan) -> String {
    let text =
        |fault: &Fault| format!("{}:{:?}:{}", fault.after, fault.failure, if fault.sticky { "sticky" } else { "once" });
    let mut parts: Vec<String> = plan.first.iter().chain(&plan.second).map(text).collect();
    parts.extend(plan.in_open.iter().map(|fault| format!("open {}", text(fault))));
    parts.join("/")
}

fn parse_faults(text: &str) -> Result<FaultPlan, String> {
    let one = |text: &str| {
        let mut parts = text.split(':');
        let after = parts.next()?.parse().ok()?;
        let name = parts.next()?;
        let failure = FAILURES.into_iter().find(|failure| format!("{failure:?}") == name)?;
        Some(Fault { after, failure, sticky: parts.next()? == "sticky" })
    };
    let mut plan = FaultPlan::default();
    for part in text.split('/') {
        let (in_open, rest) = match part.strip_prefix("open ") {
            Some(rest) => (true, rest),
            None => (false, part),
        };
        let fault = Some(one(rest).ok_or(format!("{part:?} is no fault"))?);
        match () {
            () if in_open => plan.in_open = fault,
            () if plan.first.is_none() => plan.first = fault,
            () => plan.second = fault,
        }
    }
    Ok(plan)
}

/// The violation with as few calls and faults as do it. The fault moves with the calls that are left out.
fn smaller(seed: u64, all: &[Call], plan: &FaultPlan, case: &Case, what: String) -> Violation {
    let at = faults_text(plan);
    if case.calls.is_some() {
        return Violation { seed, case: Case { at: Some(at), ..case.clone() }, what };
    }
    let found = shrink(all.len() as u32, 60, |kept| {
        let calls = Case { calls: Some(kept.to_vec()), at: None }.pick(all);
        let most = disk_calls_of(seed, &calls).ok()?;
        let first = plan.first?;
        (0..most.min(first.after + 1)).rev().find_map(|after| {
            let moved = |fault: Fault| Fault { after: fault.after + after - first.after.min(fault.after), ..fault };
            let simple = FaultPlan { first: Some(Fault { after, ..first }), ..FaultPlan::default() };
            let both = FaultPlan { second: plan.second.map(moved), in_open: plan.in_open, ..simple };
            [simple, both].into_iter().find_map(|plan| {
                let result = caught(|| one_error(seed, &calls, &plan, &mut Judge::new(seed), &mut Counts::default()));
                result.err().map(|what| (faults_text(&plan), what))
            })
        })
    });
    match found {
        Some((calls, (at, what))) => Violation { seed, case: Case { calls: Some(calls), at: Some(at) }, what },
        None => Violation { seed, case: Case { calls: None, at: Some(at) }, what },
    }
}

fn disk_calls_of(seed: u64, calls: &[Call]) -> Result<u64, String> {
    let mut run = Run::new(SimDisk::new(Image::new(), seed), seed);
    for (i, call) in calls.iter().enumerate() {
        caught(|| run.call(call)).map_err(|what| format!("call {i}, without a fault: {what}"))?;
    }
    Ok(run.disk.calls())
}

fn one_error(
    seed: u64,
    calls: &[Call],
    plan: &FaultPlan,
    judge: &mut Judge,
    counts: &mut Counts,
) -> Result<(), String> {
    let mut run = Run::new(SimDisk::new(Image::new(), seed), seed);
    let faults: Vec<Fault> = plan.first.into_iter().chain(plan.second).collect();
    run.disk.set_faults(&faults);
    let mut step = Step::Done;
    for call in calls {
        step = run.call(call)?;
        if step == Step::Broken {
            break;
        }
        if step == Step::NoSpace && faults.iter().all(|fault| fault.failure != Failure::NoSpace) {
            return Err("a failure is said to be a want of space".to_owned());
        }
    }
    if run.disk.fault_hits() == 0 && plan.in_open.is_none() {
        return Ok(());
    }
    counts.add("runs", 1);
    counts.add("pairs", u64::from(plan.second.or(plan.in_open).is_some()));
    if step == Step::Broken {
        counts.add("broken", 1);
        reads_only(&run)?;
        run.disk.set_faults(&[]);
        // The other half of the runs ends in a power cut at once.
        if plan.in_open.is_none() && faults.first().is_some_and(|fault| fault.after.is_multiple_of(2)) {
            return judge_now(&run, seed, judge);
        }
        opens(&mut run, plan)?;
        judge_now(&run, seed, judge)?;
    } else if plan.in_open.is_some() {
        run.disk.set_faults(&[]);
        opens(&mut run, plan)?;
    }
    run.disk.set_faults(&[]);
    go_on(&mut run, seed, judge)
}

/// The process dies, and the next one opens the store: on a disk that is well, or else with the third try at most.
pub(super) fn opens(run: &mut Run, plan: &FaultPlan) -> Result<(), String> {
    if let Some(fault) = plan.in_open {
        run.kill();
        run.disk.set_faults(&[fault]);
        let opened = run.open()?;
        run.disk.set_faults(&[]);
        if opened == Step::Done {
            // A fault that it lived through, or that was not reached.
            return reads_only_if_broken(run);
        }
    }
    run.kill();
    match run.open()? {
        Step::Done => Ok(()),
        other => Err(format!("the disk is well again, and the open is {other:?}")),
    }
}

fn reads_only_if_broken(run: &mut Run) -> Result<(), String> {
    match run.compare_now()? {
        Step::Done => {}
        other => return Err(format!("right after an open a comparison is {other:?}")),
    }
    let writable = run.store().is_none_or(|store| store.0.commits.check_writable().is_ok());
    if !writable {
        run.kill();
        run.open()?;
    }
    Ok(())
}

/// With a healthy disk everything works.
pub(super) fn go_on(run: &mut Run, seed: u64, judge: &mut Judge) -> Result<(), String> {
    for _ in 0..6 {
        match run.step()? {
            Step::Done => {}
            other => return Err(format!("the disk is well again, and a step is {other:?}")),
        }
    }
    judge_now(run, seed, judge)
}

/// A store that takes no more writes says so, and reads on.
pub(super) fn reads_only(run: &Run) -> Result<(), String> {
    let Some(store) = run.store() else { return Ok(()) };
    let failed = run.disk.fault_hits();
    match model::read(store) {
        // What is not in memory is read from the disk where files are not mapped: it fails where the disk does, and then alone.
        Err(e) if e.kind() == ErrorKind::Io && super::unmapped().is_some() && run.disk.fault_hits() > failed => {}
        read => drop(read.map_err(|e| format!("a read of a poisoned store fails: {e:?}"))?),
    }
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
fn judge_now(run: &Run, seed: u64, judge: &mut Judge) -> Result<(), String> {
    let now = run.disk.now();
    let allowed = run.history.allowed(now);
    for variant in [Variant::AllLost, Variant::AllKept, Variant::Random(seed ^ now as u64)] {
        // What was begun and has failed may be there: the range ends at all that was begun.
        let allowed = *allowed.start()..=run.history.commits();
        judge
            .image(seed, &run.disk.image(variant), &run.options, &run.history, allowed)
            .map(drop)
            .map_err(|what| format!("power cut now, {variant:?}: {what}"))?;
    }
    Ok(())
}

/// Has the disk become full after every number of bytes, or `runs` of them, in the middle of a seed's calls; and has a store fill its disk by
/// itself, and empty it by deletes.
///
/// # Errors
/// The first broken promise, made small.
pub fn full(seed: u64, runs: u64, case: &Case) -> Result<Counts, Violation> {
    /// A segment, its header and a few edits.
    const WINDOW: u64 = 9000;
    /// The place of the latter.
    const BY_ITSELF: &str = "by-itself";
    let all = Calls::of(seed, 2 * STEPS);
    let (first, then) = all.split_at(STEPS as usize / 2);
    let mut counts = Counts::default();
    if case.calls.is_none() && case.at.as_deref().is_none_or(|at| at == BY_ITSELF) {
        let filled = caught(|| fill_and_empty(seed, &mut counts));
        let fail = |what| Violation { seed, case: Case { calls: None, at: Some(BY_ITSELF.to_owned()) }, what };
        filled.map_err(fail)?;
        if case.at.is_some() {
            return Ok(counts);
        }
    }
    let then: Vec<Call> = then.iter().filter(|call| !call.ends_process()).take(STEPS as usize).cloned().collect();
    let one = |calls: &[Call], bytes: u64, counts: &mut Counts| caught(|| one_full(seed, first, calls, bytes, counts));
    if let Some(at) = &case.at {
        let bytes = at.parse().map_err(|e| format!("{at:?}: {e}"));
        let made = bytes.and_then(|bytes| one(&case.pick(&then), bytes, &mut counts));
        return made.map(|()| counts).map_err(|what| Violation { seed, case: case.clone(), what });
    }
    let stride = (WINDOW / runs.max(1)).max(1);
    let mut bytes = Random::new(seed).below(stride);
    while bytes < WINDOW {
        if let Err(what) = one(&then, bytes, &mut counts) {
            let at = Some(bytes.to_string());
            let fails = |kept: &[u32]| {
                let calls = Case { calls: Some(kept.to_vec()), at: None }.pick(&then);
                one(&calls, bytes, &mut Counts::default()).err()
            };
            return Err(match shrink(then.len() as u32, 100, fails) {
                Some((calls, what)) => Violation { seed, case: Case { calls: Some(calls), at }, what },
                None => Violation { seed, case: Case { calls: None, at }, what },
            });
        }
        bytes += stride;
    }
    Ok(counts)
}

fn one_full(seed: u64, first: &[Call], then: &[Call], bytes: u64, counts: &mut Counts) -> Result<(), String> {
    let mut run = Run::new(SimDisk::new(Image::new(), seed), seed);
    for call in first {
        run.call(call)?;
    }
    if let Some(store) = run.store().cloned() {
        run.background_all(&store)?;
    }
    run.disk.set_quota(Some(run.disk.used_bytes() + bytes));
    counts.add("runs", 1);
    let mut was_full = false;
    for call in then {
        match run.call(call)? {
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
    counts.add("without_space", u64::from(was_full));
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
    go_on(&mut run, seed, &mut Judge::new(seed))
}
