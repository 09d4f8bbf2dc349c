//! Backups on a disk that fails, fills and loses its power: at every call and every moment of one. The store goes on as if
//! nothing had happened; the backup is there as a whole, or is no store.

use std::fmt;
use std::sync::Arc;

use super::Random;
use super::crash::{caught, judge};
use super::model;
use super::workload::{Run, Step};
use crate::backup::{UNFINISHED, restore_onto};
use crate::io::Disk;
use crate::io::sim::{FAILURES, Fault, Image, Platter, SimDisk, image_of};
use crate::manifest::superblock;
use crate::worker::Jobs;
use crate::{BackupReport, Durability, ErrorKind, Store};

/// The directory of the backup.
const TO: &str = "backup";

/// How much a campaign does.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Of the first workload; the next ones count up.
    pub seed: u64,
    /// Workloads, each with one backup.
    pub workloads: u64,
    /// Calls of a workload before the backup, about.
    pub steps: u32,
    /// Disk images for each moment of a backup; 0 for every variant there is.
    pub each: u32,
}

/// What a campaign did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Backups that went through.
    pub backups: u64,
    /// Files that they share with the store.
    pub linked: u64,
    /// Disk images of a backup cut short.
    pub images: u64,
    /// Of them, those in which the backup was whole.
    pub whole: u64,
    /// Backups in which a call failed, or the disk was full.
    pub failures: u64,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts { backups, linked, images, whole, failures } = self;
        write!(
            f,
            "{backups} backups, {linked} files linked; {images} images of power cuts, {whole} with a whole backup; \
             {failures} failures"
        )
    }
}

/// The power cuts and the failures of one seed's backup, as counted by others.
///
/// # Errors
/// The first broken promise.
pub fn round(seed: u64) -> Result<super::counts::Counts, super::counts::Violation> {
    let plan = Plan { seed, workloads: 1, steps: 40, each: 12 };
    let made = cuts(&plan).and_then(|cuts| errors(&plan).map(|errors| (cuts, errors)));
    let (cuts, errors) = made.map_err(|what| super::counts::Violation::new(seed, None, what))?;
    let mut counts = super::counts::Counts::default();
    counts.add("backups", cuts.backups + errors.backups);
    counts.add("images_of_a_backup", cuts.images);
    counts.add("failed_backups", errors.failures);
    counts.add("backup_cases", cuts.images + errors.failures);
    Ok(counts)
}

/// Cuts the power at every moment of a backup.
///
/// # Errors
/// The first broken promise, with how to see it again.
pub fn cuts(plan: &Plan) -> Result<Counts, String> {
    each_seed(plan, |seed, counts| one_cut(seed, plan, counts))
}

/// Has every call of a backup fail, once or from then on, in every way; and the disk be full after every few bytes.
///
/// # Errors
/// The first broken promise, with how to see it again.
pub fn errors(plan: &Plan) -> Result<Counts, String> {
    each_seed(plan, |seed, counts| all_errors(seed, plan, counts))
}

fn each_seed(plan: &Plan, one: impl Fn(u64, &mut Counts) -> Result<(), String>) -> Result<Counts, String> {
    let mut counts = Counts::default();
    for seed in plan.seed..plan.seed + plan.workloads {
        caught(|| one(seed, &mut counts)).map_err(|what| format!("seed {seed}: {what}"))?;
    }
    Ok(counts)
}

/// A store in the middle of its work; links are possible for most seeds.
fn workload(seed: u64, plan: &Plan) -> Result<(Run, Store), String> {
    let mut run = Run::new(SimDisk::new(Image::new(), seed), seed);
    run.disk.set_links(seed % 5 != 4);
    let steps = Random::new(seed ^ 0x6261_636b).below(u64::from(plan.steps) + 1);
    let mut done = 0;
    while done < steps || run.store().is_none() {
        step(&mut run)?;
        done += 1;
    }
    let store = run.store().cloned().ok_or("no store")?;
    Ok((run, store))
}

fn step(run: &mut Run) -> Result<(), String> {
    match run.step()? {
        Step::Done => Ok(()),
        other => Err(format!("{other:?} on a disk without a fault")),
    }
}

fn backup(store: &Store, to: &SimDisk) -> crate::Result<BackupReport> {
    let to: Arc<dyn Disk> = Arc::new(to.clone());
    store.backup_onto(&to, true)
}

/// The backup holds the state after all commits, and can be written to.
fn is_whole(image: &Image, run: &Run, seed: u64) -> Result<(), String> {
    let all = run.history.commits();
    judge(seed, image, &run.options, &run.history, all..=all).map(drop).map_err(|what| format!("the backup: {what}"))
}

/// What is in the directory of the backup: nothing, a whole backup, or something that nobody takes for a store; whether it
/// is a whole one.
fn whole_or_refused(image: &Image, run: &Run, seed: u64) -> Result<bool, String> {
    let disk = SimDisk::new(image.clone(), seed);
    let opened = Store::without_worker(Arc::new(disk.clone()), run.options.clone());
    let restored = restore_onto(Arc::new(SimDisk::new(image.clone(), seed).read_only_view()), || {
        Ok(Arc::new(SimDisk::new(Image::new(), seed)))
    });
    match opened {
        // A directory without a file is one that a new store may be made in.
        Ok(store) if image.is_empty() && store.report().created => Ok(false),
        Ok(_) => {
            restored.map_err(|e| format!("the backup opens, and is not restored: {e:?}"))?;
            is_whole(image, run, seed).map(|()| true)
        }
        Err(e) if matches!(e.kind(), ErrorKind::Format | ErrorKind::Corrupt) && restored.is_err() => Ok(false),
        Err(e) => Err(format!("half a backup: {e:?}, restored: {restored:?}")),
    }
}

fn one_cut(seed: u64, plan: &Plan, counts: &mut Counts) -> Result<(), String> {
    let (mut run, store) = workload(seed, plan)?;
    let to = run.disk.directory(TO);
    let start = run.disk.now();
    let report = backup(&store, &to).map_err(|e| format!("a backup on a healthy disk: {e:?}"))?;
    let end = run.disk.now();
    counts.backups += 1;
    counts.linked += report.linked_files;
    run.all_is_durable();
    let (base, ops) = run.disk.recording();
    is_whole(&image_of(&run.disk.image(crate::io::sim::Variant::AllLost), "backup/"), &run, seed)?;

    let mut random = Random::new(seed ^ 0x0063_7574);
    let mut platter = Platter::new(&base);
    ops[..start].iter().for_each(|op| platter.apply(op));
    for moment in start..=end {
        let mut variants = platter.variants(2, random.next());
        while plan.each > 0 && variants.len() > plan.each as usize {
            variants.swap_remove(random.below(variants.len() as u64) as usize);
        }
        for variant in variants {
            let image = platter.image(variant);
            counts.images += 1;
            let fail = |what| format!("power cut before op {moment} of {start}..{end}, {variant:?}: {what}");
            judge(seed, &image_of(&image, ""), &run.options, &run.history, run.history.allowed(moment))
                .map_err(|what| fail(format!("the store: {what}")))?;
            let whole = whole_or_refused(&image_of(&image, "backup/"), &run, seed).map_err(fail)?;
            counts.whole += u64::from(whole);
        }
        if let Some(op) = ops.get(moment) {
            platter.apply(op);
        }
    }
    go_on(&mut run, store, &to, seed)
}

/// Both stores are written to, cleaned, merged, closed and opened, on the same disk: neither sees the other, and no file
/// that they share is written.
fn go_on(run: &mut Run, store: Store, to: &SimDisk, seed: u64) -> Result<(), String> {
    drop(store);
    let failed = |e| format!("the backup, beside its store: {e:?}");
    let open = || Store::without_worker(Arc::new(to.clone()), run.options.clone());
    let before = model::read(&open().map_err(failed)?).map_err(failed)?;
    let mut jobs = Jobs::cleaning_from(2048);
    for round in 0..6u8 {
        let copy = open().map_err(failed)?;
        let bucket = copy.bucket("of the backup").map_err(failed)?.with_durability(Durability::Os);
        for i in 0..12 {
            bucket.set(&[i], &[round; 900]).map_err(failed)?;
            jobs.round(&copy.0.commits, false).ok_or("the jobs of the backup have failed")?;
        }
        if round % 2 == 0 {
            copy.close().map_err(failed)?;
        }
        jobs = Jobs::cleaning_from(2048);
    }
    let mut after = model::read(&open().map_err(failed)?).map_err(failed)?;
    after.remove("of the backup");
    if before != after {
        return Err("the backup has changed by itself".to_owned());
    }
    for _ in 0..30 {
        step(run)?;
    }
    run.compare_now()?;
    run.kill();
    run.open()?;
    run.disk.violation().map_or(Ok(()), |breach| Err(format!("protocol: {breach}; seed {seed}")))
}

fn all_errors(seed: u64, plan: &Plan, counts: &mut Counts) -> Result<(), String> {
    let (run, store) = workload(seed, plan)?;
    store.sync().map_err(|e| format!("{e:?}"))?;
    let before = run.disk.calls();
    let used = run.disk.used_bytes();
    backup(&store, &run.disk.directory(TO)).map_err(|e| format!("a backup on a healthy disk: {e:?}"))?;
    let calls = run.disk.calls() - before;
    let bytes = run.disk.used_bytes() - used;
    for after in 0..calls {
        for failure in FAILURES {
            for sticky in [false, true] {
                let fault = Fault { after, failure, sticky };
                one_failure(seed, plan, counts, |disk| disk.set_fault(Some(fault)))
                    .map_err(|what| format!("{fault:?}: {what}"))?;
            }
        }
    }
    for room in (0..bytes).step_by((bytes / 40).max(1) as usize) {
        one_failure(seed, plan, counts, |disk| disk.set_quota(Some(used + room)))
            .map_err(|what| format!("room for {room} bytes: {what}"))?;
    }
    Ok(())
}

fn one_failure(seed: u64, plan: &Plan, counts: &mut Counts, break_it: impl FnOnce(&SimDisk)) -> Result<(), String> {
    let (mut run, store) = workload(seed, plan)?;
    // What is logged is on the disk: the calls that fail are those of the backup alone.
    store.sync().map_err(|e| format!("{e:?}"))?;
    run.all_is_durable();
    let to = run.disk.directory(TO);
    break_it(&run.disk);
    let result = backup(&store, &to);
    run.disk.set_fault(None);
    run.disk.set_quota(None);
    counts.failures += 1;
    let image = image_of(&run.disk.image(crate::io::sim::Variant::AllKept), "backup/");
    match &result {
        Ok(_) => {
            counts.backups += 1;
            is_whole(&image, &run, seed)?;
        }
        Err(e) if !matches!(e.kind(), ErrorKind::Io | ErrorKind::NoSpace) => {
            return Err(format!("the failure is told as {e:?}"));
        }
        Err(_) if image.contains_key(superblock::FILE) && !image.contains_key(UNFINISHED) => {
            return Err("what has failed looks finished".to_owned());
        }
        Err(_) => {
            whole_or_refused(&image, &run, seed)?;
        }
    }
    drop(store);
    for _ in 0..4 {
        step(&mut run)?;
    }
    run.compare_now()?;
    run.disk.violation().map_or(Ok(()), |breach| Err(format!("protocol: {breach}")))
}
