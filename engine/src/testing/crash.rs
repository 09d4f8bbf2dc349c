//! Power cuts: a workload runs once; then, for every moment of its recording and many ways in which the cut may end, the
//! disk is rebuilt, opened and judged; and so is what a second cut leaves of the opening.

use std::collections::HashSet;
use std::fmt;
use std::ops::RangeInclusive;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use xxhash_rust::xxh3::Xxh3;

use super::Random;
use super::feed;
use super::model::{self, History, Seen};
use super::workload::{Run, Step, options};
use crate::checkpoint;
use crate::io::sim::{Image, Op, Platter, SimDisk, Variant};
use crate::io::{Disk, disk};
use crate::manifest::superblock::{self, Superblock};
use crate::manifest::{self, Manifest};
use crate::run;
use crate::segment;
use crate::{Durability, Options, Store};

/// How much a campaign does.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Of the first workload; the next ones count up.
    pub seed: u64,
    /// Disk images to open, about.
    pub images: u64,
    /// Calls of a workload.
    pub steps: u32,
    /// Images for each moment; 0 for every variant there is.
    pub each: u32,
    /// Workloads at most.
    pub workloads: u64,
    /// One image in so many has its recovery cut, too; 0 for none.
    pub recovery_every: u64,
}

/// What a campaign did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Workloads run.
    pub workloads: u64,
    /// Moments at which the power was cut.
    pub moments: u64,
    /// Different images opened.
    pub images: u64,
    /// Of them, images of a recovery cut short.
    pub recovery_images: u64,
    /// Images opened from a directory checkpoint.
    pub checkpoints: u64,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts { workloads, moments, images, recovery_images, checkpoints } = self;
        write!(f, "{workloads} workloads, {moments} moments, {images} images ({recovery_images} of recoveries, ")?;
        write!(f, "{checkpoints} with a checkpoint)")
    }
}

/// A broken promise, and how to see it again.
#[derive(Clone, Debug)]
pub struct Violation {
    /// Of the workload.
    pub seed: u64,
    /// Where and how the power was cut, and again.
    pub cuts: Vec<(usize, Variant)>,
    /// What was wrong.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed {}", self.seed)?;
        for (moment, variant) in &self.cuts {
            write!(f, ", cut before op {moment}: {variant:?}")?;
        }
        write!(f, ": {}", self.what)
    }
}

/// Runs workloads from `plan.seed` on until enough images were opened.
///
/// # Errors
/// The first broken promise.
pub fn campaign(plan: &Plan) -> Result<Counts, Violation> {
    let mut campaign = Campaign { plan: *plan, counts: Counts::default(), known: HashSet::new() };
    let mut seed = plan.seed;
    while campaign.counts.images < plan.images && campaign.counts.workloads < plan.workloads {
        campaign.workload(seed)?;
        seed += 1;
    }
    Ok(campaign.counts)
}

struct Campaign {
    plan: Plan,
    counts: Counts,
    /// Hashes of images, each with what was allowed of it: once is enough.
    known: HashSet<u64>,
}

/// What an image came to: the number of commits it holds, and the recording of its opening.
pub(crate) struct Opened {
    pub(crate) commits: usize,
    checkpoint: bool,
    ops: Vec<Op>,
}

impl Campaign {
    fn workload(&mut self, seed: u64) -> Result<(), Violation> {
        self.counts.workloads += 1;
        let disk = SimDisk::new(Image::new(), seed);
        let mut run = Run::new(disk, seed);
        for i in 0..self.plan.steps {
            let done = caught(|| run.step()).and_then(|step| match step {
                Step::Done => Ok(()),
                other => Err(format!("{other:?} on a disk without a fault")),
            });
            done.map_err(|what| Violation { seed, cuts: Vec::new(), what: format!("step {i}: {what}") })?;
        }
        let (base, ops) = run.disk.recording();
        let mut random = Random::new(seed ^ 0x0063_7261_7368);
        let mut platter = Platter::new(&base);
        for moment in 0..=ops.len() {
            if self.counts.images >= self.plan.images {
                return Ok(());
            }
            self.counts.moments += 1;
            let allowed = run.history.allowed(moment);
            for variant in self.some(&platter, &mut random) {
                let image = platter.image(variant);
                let fail = |cuts: &[(usize, Variant)], what| {
                    let cuts = [&[(moment, variant)], cuts].concat();
                    Violation { seed, cuts, what }
                };
                let Some(opened) =
                    self.open(seed, &image, &run.history, allowed.clone()).map_err(|what| fail(&[], what))?
                else {
                    continue;
                };
                if self.plan.recovery_every == 0 || !random.next().is_multiple_of(self.plan.recovery_every) {
                    continue;
                }
                self.recovery(seed, &image, &opened, &run.history, &allowed, &mut random)
                    .map_err(|(cut, what)| fail(&[cut], what))?;
            }
            if let Some(op) = ops.get(moment) {
                platter.apply(op);
            }
        }
        Ok(())
    }

    /// Cuts the recovery of `image` at each of its moments.
    fn recovery(
        &mut self,
        seed: u64,
        image: &Image,
        opened: &Opened,
        history: &History,
        allowed: &RangeInclusive<usize>,
        random: &mut Random,
    ) -> Result<(), ((usize, Variant), String)> {
        let mut platter = Platter::new(image);
        for moment in 0..=opened.ops.len() {
            // When the opening is through, what it has shown is decided.
            let allowed = if moment == opened.ops.len() { opened.commits..=opened.commits } else { allowed.clone() };
            for variant in self.some(&platter, random) {
                let again = self
                    .open(seed, &platter.image(variant), history, allowed.clone())
                    .map_err(|what| ((moment, variant), what))?;
                self.counts.recovery_images += u64::from(again.is_some());
            }
            if let Some(op) = opened.ops.get(moment) {
                platter.apply(op);
            }
        }
        Ok(())
    }

    /// The variants to be tried now.
    fn some(&self, platter: &Platter, random: &mut Random) -> Vec<Variant> {
        let mut variants = platter.variants(2, random.next());
        let each = self.plan.each as usize;
        if each > 0 && variants.len() > each {
            // The plain ones first in line, then any.
            for i in 0..each {
                let from = if i < 2 && random.below(2) == 0 {
                    i
                } else {
                    i + random.below((variants.len() - i) as u64) as usize
                };
                variants.swap(i, from);
            }
            variants.truncate(each);
        }
        variants
    }

    /// Opens an image and judges it; `None` if that was done before.
    fn open(
        &mut self,
        seed: u64,
        image: &Image,
        history: &History,
        allowed: RangeInclusive<usize>,
    ) -> Result<Option<Opened>, String> {
        let hash = hash(seed, image, &allowed);
        if !self.known.insert(hash) {
            return Ok(None);
        }
        self.counts.images += 1;
        let opened = caught(|| judge(hash, image, &options(seed), history, allowed))?;
        self.counts.checkpoints += u64::from(opened.checkpoint);
        Ok(Some(opened))
    }
}

/// Opens `image`, and checks all that is promised of a store after a crash.
pub(crate) fn judge(
    salt: u64,
    image: &Image,
    options: &Options,
    history: &History,
    allowed: RangeInclusive<usize>,
) -> Result<Opened, String> {
    let disk = SimDisk::new(image.clone(), salt);
    let (store, seen) = open(&disk, options, "opening")?;
    let commits = history.find(&seen, allowed)?;
    let checkpoint = store.report().checkpoint;
    no_orphans(&disk)?;
    let (_, ops) = disk.recording();

    // A new write, then again a cut that takes all it can; or an orderly end.
    let bucket = store.bucket("probe").map_err(|e| format!("a bucket after recovery: {e:?}"))?;
    let bucket = bucket.with_durability(Durability::Sync);
    let version = bucket.set(b"probe", b"value").map_err(|e| format!("a write after recovery: {e:?}"))?;
    disk.check_acknowledged();
    let mut expected = seen;
    expected.entry("probe".to_owned()).or_default().insert(b"probe".to_vec(), (b"value".to_vec(), version.get()));
    let next = if salt.is_multiple_of(2) {
        drop(bucket);
        store.close().map_err(|e| format!("closing after recovery: {e:?}"))?;
        disk.restart()
    } else {
        let cut = SimDisk::new(disk.image(Variant::AllLost), salt);
        disk.restart();
        cut
    };
    let (store, seen) = open(&next, options, "opening again")?;
    if seen != expected {
        return Err(format!(
            "after recovery, a synced write and {}: another state",
            if salt.is_multiple_of(2) { "closing" } else { "a cut" }
        ));
    }
    let report = store.report();
    if report.bytes_cut != 0 || salt.is_multiple_of(2) && !report.clean {
        return Err(format!("the second open had to repair something: {report:?}"));
    }
    no_orphans(&next)?;
    next.restart();
    for disk in [&disk, &next] {
        if let Some(breach) = disk.violation() {
            return Err(format!("protocol: {breach}"));
        }
    }
    Ok(Opened { commits, checkpoint, ops })
}

fn open(disk: &SimDisk, options: &Options, doing: &str) -> Result<(Store, Seen), String> {
    let store =
        Store::without_worker(Arc::new(disk.clone()), options.clone()).map_err(|e| format!("{doing}: {e:?}"))?;
    let seen = model::read(&store).map_err(|e| format!("reading after {doing}: {e:?}"))?;
    feed::check(&store, &seen).map_err(|e| format!("after {doing}: {e}"))?;
    Ok((store, seen))
}

/// After an open there is no file but those that count.
pub(crate) fn no_orphans(disk: &SimDisk) -> Result<(), String> {
    let failed = |e: &dyn fmt::Debug| format!("looking for orphans: {e:?}");
    let names = disk.list().map_err(|e| failed(&e))?;
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    let superblock = Superblock::read(&*shared).map_err(|e| failed(&e))?.ok_or("no superblock after an open")?;
    let manifest = Manifest::read(shared, superblock).map_err(|e| failed(&e))?;
    for name in names {
        let numbers = (segment::number_of(&name), manifest::number_of(&name), run::format::number_of(&name));
        let counts = match numbers {
            (Some(number), ..) => manifest.state().segments.contains_key(&number),
            (_, Some(number), _) => number == superblock.manifest,
            (.., Some(number)) => manifest.state().runs.values().any(|run| run.number == number),
            _ => match checkpoint::number_of(&name) {
                Some(number) => manifest.state().checkpoint.is_some_and(|checkpoint| checkpoint.number == number),
                None => name == superblock::FILE || name == disk::LOCK_FILE,
            },
        };
        if !counts {
            return Err(format!("{name} is an orphan"));
        }
    }
    Ok(())
}

/// A panic is a broken promise like the others.
pub(crate) fn caught<T>(run: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        Err(format!("panic: {}", text.unwrap_or("?")))
    })
}

fn hash(seed: u64, image: &Image, allowed: &RangeInclusive<usize>) -> u64 {
    let mut hasher = Xxh3::with_seed(seed);
    for bound in [allowed.start(), allowed.end()] {
        hasher.update(&(*bound as u64).to_le_bytes());
    }
    for (name, bytes) in image {
        hasher.update(name.as_bytes());
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    }
    hasher.digest()
}
