//! Power cuts: calls are made once; then, for every moment of their recording and many ways in which the cut may end, the
//! disk is rebuilt, opened and judged; and so is what a second and a third cut leave of the opening.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::ops::RangeInclusive;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;

use xxhash_rust::xxh3::{Xxh3, xxh3_64, xxh3_64_with_seed};

use super::call::{Call, Calls};
use super::counts::{Case, Counts, Violation, cuts_text, parse_cuts, shrink};
use super::feed;
use super::held;
use super::model::{self, History, Seen};
use super::workload::{Run, Step};
use super::{Choices, Random};
use crate::checkpoint;
use crate::io::sim::{self, Image, Op, Platter, SimDisk, Variant};
use crate::io::{Disk, disk};
use crate::manifest::{self, superblock};
use crate::run;
use crate::segment;
use crate::{Durability, Options, Store};

/// How much of a workload is tried.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Calls of a workload.
    pub steps: u32,
    /// Calls before those, in every third seed, whose moments are not tried: what they leave is cleaned, merged and full of
    /// history.
    pub before: u32,
    /// Disk images to open, about, at most.
    pub images: u64,
    /// Where there are more, those of some moments, from the first to the last; otherwise those of the first moments.
    pub spread: bool,
    /// Images for each moment; 0 for every variant there is.
    pub each: u32,
    /// One image in so many has its recovery cut, too; 0 for none.
    pub recovery_every: u64,
    /// Cuts, one in the recovery of the other.
    pub depth: u32,
}

/// Cuts the power at every moment of the calls of a seed.
///
/// # Errors
/// The first broken promise, made small.
pub fn round(seed: u64, plan: &Plan, case: &Case) -> Result<Counts, Violation> {
    let before = if seed.is_multiple_of(3) { plan.before } else { 0 };
    let all = Calls::of(seed, before + plan.steps);
    let mut search = Search::new(seed, *plan);
    let (at, what) = match search.calls(&case.pick(&all), before, case.at.as_deref()) {
        Ok(()) => return Ok(search.counts),
        Err(found) => found,
    };
    if case.calls.is_some() || case.at.is_some() {
        return Err(Violation { seed, case: Case { at, ..case.clone() }, what });
    }
    // Smaller in calls; of those left, the first moment and the plainest variant come first anyway.
    let smaller = shrink(before + plan.steps, 60, |kept| {
        let calls = Case { calls: Some(kept.to_vec()), at: None }.pick(&all);
        let plan = Plan { images: plan.images.min(6000), spread: false, ..*plan };
        let left = kept.partition_point(|call| *call < before) as u32;
        Search::new(seed, plan).calls(&calls, left, None).err()
    });
    match smaller {
        Some((calls, (at, what))) => Err(Violation { seed, case: Case { calls: Some(calls), at }, what }),
        None => Err(Violation { seed, case: Case { calls: None, at }, what }),
    }
}

/// Where, as `--at` has it, and what.
type Finding = (Option<String>, String);

/// Power cuts in the recording of some calls.
pub(crate) struct Search {
    seed: u64,
    plan: Plan,
    pub(crate) counts: Counts,
    judge: Judge,
    images: u64,
    random: Random,
}

/// What an image came to: the number of commits it holds, and the recording of its opening.
pub(crate) struct Opened {
    pub(crate) commits: usize,
    checkpoint: bool,
    ops: Vec<Op>,
}

impl Opened {
    /// Whether the opening took several segments off the log.
    fn removes_several(&self) -> bool {
        let is_segment = |op: &&Op| matches!(op, Op::Remove { name } if segment::number_of(name).is_some());
        self.ops.iter().filter(is_segment).count() > 1
    }
}

impl Search {
    pub(crate) fn new(seed: u64, plan: Plan) -> Search {
        let random = Random::new(seed ^ 0x0063_7261_7368);
        Search {
            seed,
            plan,
            counts: Counts::default(),
            judge: Judge { records: plan.recovery_every > 0, ..Judge::new(seed) },
            images: 0,
            random,
        }
    }

    fn calls(&mut self, calls: &[Call], before: u32, at: Option<&str>) -> Result<(), Finding> {
        self.counts.add("workloads", 1);
        let mut run = Run::new(SimDisk::new(Image::new(), self.seed), self.seed);
        let mut from = 0;
        for (i, call) in calls.iter().enumerate() {
            if i == before as usize {
                from = run.disk.now();
            }
            make(&mut run, call).map_err(|what| (None, format!("call {i}, {call:?}: {what}")))?;
        }
        let all = from..=run.disk.now();
        match at {
            Some(at) => self.one(&run, at).map_err(|what| (Some(at.to_owned()), what)),
            None => self.cuts(&run, all),
        }
    }

    /// Cuts the power at these moments of a run.
    pub(crate) fn cuts(&mut self, run: &Run, moments: RangeInclusive<usize>) -> Result<(), Finding> {
        let (base, ops) = run.disk.recording();
        if moments.is_empty() {
            // Calls that changed nothing.
            return Ok(());
        }
        let mut platter = Platter::new(&base);
        ops[..*moments.start()].iter().for_each(|op| platter.apply(op));
        let last = *moments.end();
        let mut tried = 0;
        for moment in moments {
            let Some(wanted) = self.plan.images.checked_sub(self.images).filter(|wanted| *wanted > 0) else {
                return Ok(());
            };
            // As many images as the moments so far had, or some to begin with.
            let expected = (self.images + 8) / (tried + 1) * (last - moment + 1) as u64;
            if !self.plan.spread || expected <= wanted || self.random.below(expected) < wanted {
                tried += 1;
                self.counts.add("moments", 1);
                self.moment(run, &platter, moment, &run.history.allowed(moment), &[])?;
            }
            if let Some(op) = ops.get(moment) {
                platter.apply(op);
            }
        }
        Ok(())
    }

    /// The cut of one moment, of a run or of a recovery in it.
    fn moment(
        &mut self,
        run: &Run,
        platter: &Platter,
        moment: usize,
        allowed: &RangeInclusive<usize>,
        before: &[(usize, Variant)],
    ) -> Result<(), Finding> {
        for variant in self.some(platter) {
            let image = platter.image(variant);
            let cuts = [before, &[(moment, variant)]].concat();
            let opened = self.open(&image, run, allowed.clone(), before);
            let Some(opened) = opened.map_err(|what| (Some(cuts_text(&cuts)), what))? else { continue };
            self.counts.add("recovery_images", u64::from(!before.is_empty()));
            // What takes several steps away is cut between any two of them.
            let every = if opened.removes_several() { 1 } else { self.plan.recovery_every };
            let cut_again = self.plan.recovery_every > 0
                && before.len() + 1 < self.plan.depth as usize
                && self.random.next().is_multiple_of(every * (1 + 9 * before.len() as u64));
            if cut_again {
                self.recovery(run, &image, &opened, allowed, &cuts)?;
            }
        }
        Ok(())
    }

    /// Cuts the recovery of `image` at each of its moments.
    fn recovery(
        &mut self,
        run: &Run,
        image: &Image,
        opened: &Opened,
        allowed: &RangeInclusive<usize>,
        cuts: &[(usize, Variant)],
    ) -> Result<(), Finding> {
        let mut platter = Platter::new(image);
        for moment in 0..=opened.ops.len() {
            // When the opening is through, what it has shown is decided.
            let allowed = if moment == opened.ops.len() { opened.commits..=opened.commits } else { allowed.clone() };
            self.moment(run, &platter, moment, &allowed, cuts)?;
            if let Some(op) = opened.ops.get(moment) {
                platter.apply(op);
            }
        }
        Ok(())
    }

    /// One cut, or one after the other, as a violation has named them.
    pub(crate) fn one(&mut self, run: &Run, at: &str) -> Result<(), String> {
        let (mut base, mut ops) = run.disk.recording();
        let mut allowed = 0..=0;
        let cuts = parse_cuts(at)?;
        for (i, &(moment, variant)) in cuts.iter().enumerate() {
            if i == 0 {
                allowed = run.history.allowed(moment);
            }
            let mut platter = Platter::new(&base);
            ops.iter().take(moment).for_each(|op| platter.apply(op));
            let image = platter.image(variant);
            // The second may be the first again, and other commits may be allowed of it.
            self.judge = Judge::recording(self.seed);
            let opened = self.open(&image, run, allowed.clone(), &cuts[..i])?.ok_or("the same image twice")?;
            (base, ops) = (image, opened.ops);
        }
        Ok(())
    }

    /// The variants to be tried now.
    fn some(&mut self, platter: &Platter) -> Vec<Variant> {
        let random = &mut self.random;
        let mut variants = platter.variants(2, random.next());
        // What a cut does to several segments at once is rare, and of many kinds.
        let each = self.plan.each as usize * if platter.segments_unsynced() > 2 { 4 } else { 1 };
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

    /// Opens an image, left by a cut after `before`, and judges it; `None` if that was done before.
    fn open(
        &mut self,
        image: &Image,
        run: &Run,
        allowed: RangeInclusive<usize>,
        before: &[(usize, Variant)],
    ) -> Result<Option<Opened>, String> {
        // The same numbers for all cuts of one run or recovery, and never those of the run itself: so recoveries that come to the
        // same leave the same bytes.
        let random = xxh3_64_with_seed(cuts_text(before).as_bytes(), self.seed ^ 0x0072_616e_646f_6d00);
        let judge = &mut self.judge;
        let opened = caught(|| judge.image(random, image, &run.options, &run.history, allowed))?;
        if let Some(opened) = &opened {
            self.images += 1;
            self.counts.add("images", 1);
            self.counts.add("images_with_a_checkpoint", u64::from(opened.checkpoint));
        }
        Ok(opened)
    }
}

/// Makes many calls on a healthy disk, with closing and dying in between, and cuts the power at the end.
///
/// # Errors
/// The first broken promise, made small.
pub fn calls(seed: u64, count: u32, case: &Case) -> Result<Counts, Violation> {
    let all = Calls::of(seed, count);
    let mut counts = Counts::default();
    let made = |calls: &[Call], counts: &mut Counts| {
        let mut run = Run::new(SimDisk::new(Image::new(), seed), seed);
        for (i, call) in calls.iter().enumerate() {
            make(&mut run, call).map_err(|what| format!("call {i}, {call:?}: {what}"))?;
            counts.add("calls", 1);
        }
        let now = run.disk.now();
        for variant in [Variant::AllLost, Variant::AllKept, Variant::Random(seed)] {
            caught(|| judge(seed, &run.disk.image(variant), &run.options, &run.history, run.history.allowed(now)))
                .map_err(|what| format!("power cut at the end, {variant:?}: {what}"))?;
        }
        Ok(())
    };
    let what: String = match made(&case.pick(&all), &mut counts) {
        Ok(()) => return Ok(counts),
        Err(what) => what,
    };
    let fails =
        |kept: &[u32]| made(&Case { calls: Some(kept.to_vec()), at: None }.pick(&all), &mut Counts::default()).err();
    match case.calls.is_none().then(|| shrink(count, 400, fails)).flatten() {
        Some((calls, what)) => Err(Violation { seed, case: Case { calls: Some(calls), at: None }, what }),
        None => Err(Violation { seed, case: case.clone(), what }),
    }
}

/// Makes a call on a healthy disk.
pub(crate) fn make(run: &mut Run, call: &Call) -> Result<(), String> {
    match caught(|| run.call(call))? {
        Step::Done => Ok(()),
        other => Err(format!("{other:?} on a disk without a fault")),
    }
}

/// Cuts the power now, in a way that is chosen, and up to twice more in the recovery of what that leaves. What was begun and has failed may be
/// there.
pub(crate) fn cut_now(judge: &mut Judge, run: &Run, choices: &mut impl Choices) -> Result<(), String> {
    let (mut image, mut ops) = run.disk.recording();
    let mut allowed = *run.history.allowed(run.disk.now()).start()..=run.history.commits();
    let mut cuts = Vec::new();
    let mut moment = ops.len();
    loop {
        let mut platter = Platter::new(&image);
        ops[..moment].iter().for_each(|op| platter.apply(op));
        let variants = platter.variants(2, choices.below(256));
        let variant = variants[choices.below(variants.len() as u64) as usize];
        cuts.push((moment, variant));
        image = platter.image(variant);
        let opened = judge.image(moment as u64, &image, &run.options, &run.history, allowed.clone());
        let opened = opened.map_err(|what| format!("power cut {}: {what}", cuts_text(&cuts)))?;
        let Some(opened) = opened.filter(|_| cuts.len() < 3 && choices.below(2) == 0) else { return Ok(()) };
        ops = opened.ops;
        moment = choices.below(ops.len() as u64 + 1) as usize;
        // When the opening is through, what it has shown is decided.
        if moment == ops.len() {
            allowed = opened.commits..=opened.commits;
        }
    }
}

/// Opens `image`, and checks all that is promised of a store after a crash.
pub(crate) fn judge(
    salt: u64,
    image: &Image,
    options: &Options,
    history: &History,
    allowed: RangeInclusive<usize>,
) -> Result<(), String> {
    Judge::new(salt).image(salt, image, options, history, allowed).map(drop)
}

/// Judges images of one kind of store, and knows what it has judged: most images of neighbouring moments are the same, or come to
/// the same state once they are opened.
///
/// 1. The same bytes are opened once. What they show is judged by each history that may have led to them.
/// 2. What a store shows follows from what is in memory when the opening is through, and from the files that it reads then. So each
///    such state is read once.
/// 3. What becomes of a write follows from that and from all that is on the disk. So each such state is written to once.
/// 4. What that leaves on the disk is opened once again, likewise.
///
/// One in sixteen of those that need it no more are read and written to all the same, and must come to the same.
pub(crate) struct Judge {
    seed: u64,
    /// Keeps the recordings of openings.
    records: bool,
    hashes: Hashes,
    images: HashMap<u64, Looked>,
    states: HashMap<u64, Looked>,
    /// What stores show, by what they hold in memory.
    shown: HashMap<u64, Shown>,
    /// The same, by its hash: few of them differ.
    seen: HashMap<u64, Rc<Seen>>,
    /// Disks after the write, each with what must be found there.
    recovered: HashSet<u64>,
}

/// What a store shows.
#[derive(Clone)]
struct Shown {
    seen: Rc<Seen>,
    /// Hash of that.
    hash: u64,
}

/// What an image shows, and the version that a write gets after it.
#[derive(Clone)]
struct Looked {
    shown: Shown,
    version: u64,
}

impl Looked {
    /// Whether some of the commits allowed come to that; how many.
    fn judge(&self, history: &History, allowed: RangeInclusive<usize>) -> Result<usize, String> {
        let told = history.highest_of(*allowed.end());
        let commits = history.find(&self.shown.seen, allowed)?;
        match self.version > told {
            true => Ok(commits),
            false => Err(format!("version {} is told again, after {told}", self.version)),
        }
    }
}

impl Judge {
    pub(crate) fn new(seed: u64) -> Judge {
        Judge {
            seed,
            records: false,
            hashes: Hashes::default(),
            images: HashMap::new(),
            states: HashMap::new(),
            shown: HashMap::new(),
            seen: HashMap::new(),
            recovered: HashSet::new(),
        }
    }

    /// One that keeps the recordings of openings, so that these can be cut too.
    pub(crate) fn recording(seed: u64) -> Judge {
        Judge { records: true, ..Judge::new(seed) }
    }

    /// Opens `image`, with these random numbers; `None` if its bytes were judged before, and are all right by this history too.
    pub(crate) fn image(
        &mut self,
        random: u64,
        image: &Image,
        options: &Options,
        history: &History,
        allowed: RangeInclusive<usize>,
    ) -> Result<Option<Opened>, String> {
        sim::set_clock(history.clock);
        let salt = self.hashes.of_image(self.seed, image, history.clock);
        if let Some(known) = self.images.get(&salt) {
            return known.judge(history, allowed).map(|_| None);
        }
        if salt % 16 == 5 {
            looks_only(image, options, history, allowed.clone())?;
        }
        let disk = SimDisk::new(image.clone(), random);
        let store = open(&disk, options, "opening")?;
        let ops = if self.records { disk.recording().1 } else { Vec::new() };
        let checkpoint = store.report().checkpoint;
        let (held, state) = self.state(&disk, &store, history.clock)?;
        let again = salt % 16 == 7;
        let looked = match self.states.get(&state).cloned() {
            Some(looked) if !again => {
                keeps_order(&disk)?;
                disk.restart();
                drop(store);
                looked
            }
            // Met again, it goes on in the other way.
            Some(known) => {
                let shown = self.read(&store, "opening", held, true)?;
                let looked = self.look(&disk, store, shown, options, history.clock, state ^ 1, !random)?;
                if looked.version != known.version {
                    return Err("one state, and a write gets two versions".to_owned());
                }
                looked
            }
            None => {
                let shown = self.read(&store, "opening", held, again)?;
                let looked = self.look(&disk, store, shown, options, history.clock, state, !random)?;
                self.states.insert(state, looked.clone());
                looked
            }
        };
        self.images.insert(salt, looked.clone());
        let commits = looked.judge(history, allowed)?;
        Ok(Some(Opened { commits, checkpoint, ops }))
    }

    /// Hashes of what an opening has left: of what it shows depends on, and of all.
    fn state(&self, disk: &SimDisk, store: &Store, clock: u64) -> Result<(u64, u64), String> {
        let held = held::hash(store).map_err(|e| format!("reading the log of an open store: {e:?}"))?;
        let is_read = |name: &str| run::format::number_of(name).is_some() || checkpoint::number_of(name).is_some();
        let with = |digest: u64| {
            let mut hasher = Xxh3::with_seed(held);
            hasher.update(&clock.to_le_bytes());
            hasher.update(&digest.to_le_bytes());
            hasher.digest()
        };
        let hash = |file: &Arc<Vec<u8>>| self.hashes.of_file(file);
        Ok((with(disk.digest(is_read, hash)), with(disk.digest(|_| true, hash))))
    }

    /// All that a store shows which holds this, and has just been opened.
    fn read(&mut self, store: &Store, after: &str, held: u64, again: bool) -> Result<Shown, String> {
        let known = self.shown.get(&held);
        if let Some(known) = known.filter(|_| !again) {
            return Ok(known.clone());
        }
        let seen = model::read(store).map_err(|e| format!("reading after {after}: {e:?}"))?;
        feed::check(store, &seen).map_err(|e| format!("after {after}: {e}"))?;
        if held % 4 == 1 || again {
            model::read_by_pages(store, &seen, 2)?;
        }
        let hash = hash_of(&seen);
        if known.is_some_and(|known| known.hash != hash) {
            return Err(format!("after {after}: one state, and it shows two things"));
        }
        let seen = self.seen.entry(hash).or_insert_with(|| Rc::new(seen)).clone();
        let shown = Shown { seen, hash };
        self.shown.insert(held, shown.clone());
        Ok(shown)
    }

    /// Writes to an open store, and ends it: in order, or by a cut that takes all it can, by this salt. `random` is for the disk after
    /// that.
    #[allow(clippy::too_many_arguments, reason = "one step of a check, and all that it goes by")]
    fn look(
        &mut self,
        disk: &SimDisk,
        store: Store,
        shown: Shown,
        options: &Options,
        clock: u64,
        salt: u64,
        random: u64,
    ) -> Result<Looked, String> {
        no_orphans(disk)?;
        let bucket = store.bucket("probe").map_err(|e| format!("a bucket after recovery: {e:?}"))?;
        let bucket = bucket.with_durability(Durability::Sync);
        let version = bucket.set(b"probe", b"value").map_err(|e| format!("a write after recovery: {e:?}"))?.get();
        disk.check_acknowledged();
        let closed = salt.is_multiple_of(2);
        drop(bucket);
        let next = if closed {
            store.close().map_err(|e| format!("closing after recovery: {e:?}"))?;
            disk.restart()
        } else {
            let cut = SimDisk::new(disk.image(Variant::AllLost), random);
            disk.restart();
            drop(store);
            cut
        };
        keeps_order(disk)?;
        let looked = Looked { shown, version };
        let mut hasher = Xxh3::with_seed(u64::from(closed));
        for part in [next.digest(|_| true, |file| self.hashes.of_file(file)), looked.shown.hash, version] {
            hasher.update(&part.to_le_bytes());
        }
        let all = hasher.digest();
        if self.recovered.insert(all) {
            self.opens_again(&next, &looked, closed, options, clock, all)?;
        }
        Ok(looked)
    }

    /// The next open finds the same and what was written since, and nothing to repair.
    fn opens_again(
        &mut self,
        disk: &SimDisk,
        looked: &Looked,
        closed: bool,
        options: &Options,
        clock: u64,
        salt: u64,
    ) -> Result<(), String> {
        let store = open(disk, options, "opening again")?;
        let (held, _) = self.state(disk, &store, clock)?;
        let shown = self.read(&store, "opening again", held, salt % 16 == 7)?;
        if !is_with_probe(&shown.seen, &looked.shown.seen, looked.version) {
            let after = if closed { "closing" } else { "a cut" };
            return Err(format!("after recovery, a synced write and {after}: another state"));
        }
        let report = store.report();
        if report.bytes_cut != 0 || closed && !report.clean {
            return Err(format!("the second open had to repair something: {report:?}"));
        }
        no_orphans(disk)?;
        disk.restart();
        keeps_order(disk)
    }
}

/// Whether there is what was there before, and what was written since.
fn is_with_probe(now: &Seen, before: &Seen, version: u64) -> bool {
    let others = now.iter().filter(|(name, _)| *name != "probe");
    let probe = now.get("probe").map(|keys| keys.iter().collect::<Vec<_>>());
    others.eq(before) && probe.is_some_and(|keys| keys == [(&b"probe".to_vec(), &(b"value".to_vec(), version))])
}

fn hash_of(seen: &Seen) -> u64 {
    let mut hasher = Xxh3::new();
    let mut put = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    for (bucket, keys) in seen {
        put(bucket.as_bytes());
        put(&(keys.len() as u64).to_le_bytes());
        for (key, (value, version)) in keys {
            put(key);
            put(value);
            put(&version.to_le_bytes());
        }
    }
    hasher.digest()
}

fn keeps_order(disk: &SimDisk) -> Result<(), String> {
    match disk.violation() {
        Some(breach) => Err(format!("protocol: {breach}")),
        None => Ok(()),
    }
}

/// An open to be read shows what it may, and changes nothing.
fn looks_only(
    image: &Image,
    options: &Options,
    history: &History,
    allowed: RangeInclusive<usize>,
) -> Result<(), String> {
    let disk = SimDisk::new(image.clone(), 1).read_only_view();
    match Store::without_worker(Arc::new(disk.clone()), options.clone()) {
        Ok(store) => {
            let seen = model::read(&store).map_err(|e| format!("reading what is open for reading only: {e:?}"))?;
            history.find(&seen, allowed).map_err(|what| format!("open for reading only: {what}"))?;
        }
        // Its creation may have been cut short.
        Err(e) if e.kind() == crate::ErrorKind::Format && *allowed.start() == 0 => {}
        Err(e) => return Err(format!("opening for reading only: {e:?}")),
    }
    if disk.now() == 0 { Ok(()) } else { Err("an open for reading only has changed a file".to_owned()) }
}

fn open(disk: &SimDisk, options: &Options, doing: &str) -> Result<Store, String> {
    Store::without_worker(Arc::new(disk.clone()), options.clone()).map_err(|e| format!("{doing}: {e:?}"))
}

/// After an open there is no file but those that count.
pub(crate) fn no_orphans(disk: &SimDisk) -> Result<(), String> {
    let failed = |e: &dyn fmt::Debug| format!("looking for orphans: {e:?}");
    let names = disk.list().map_err(|e| failed(&e))?;
    let found = disk.state_now().ok_or("no superblock, or no manifest, after an open")?;
    let (superblock, state) = &*found;
    for name in names {
        let numbers = (segment::number_of(&name), manifest::number_of(&name), run::format::number_of(&name));
        let counts = match numbers {
            (Some(number), ..) => state.segments.contains_key(&number),
            (_, Some(number), _) => number == superblock.manifest,
            (.., Some(number)) => state.runs.values().any(|run| run.number == number),
            _ => match checkpoint::number_of(&name) {
                Some(number) => state.checkpoint.is_some_and(|checkpoint| checkpoint.number == number),
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

/// Hashes of files. Most files of an image are those of the image before.
#[derive(Default)]
struct Hashes(HashMap<*const Vec<u8>, (Arc<Vec<u8>>, u64)>);

/// Files whose hashes are kept.
const KEPT: usize = 512;

impl Hashes {
    fn of_file(&self, file: &Arc<Vec<u8>>) -> u64 {
        self.0.get(&Arc::as_ptr(file)).map_or_else(|| xxh3_64(file), |(_, hash)| *hash)
    }

    fn of_image(&mut self, seed: u64, image: &Image, clock: u64) -> u64 {
        if self.0.len() > KEPT {
            self.0.clear();
        }
        let mut hasher = Xxh3::with_seed(seed);
        hasher.update(&clock.to_le_bytes());
        for (name, bytes) in image {
            hasher.update(name.as_bytes());
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            // The entry keeps the file where it is.
            let (_, hash) = self.0.entry(Arc::as_ptr(bytes)).or_insert_with(|| (bytes.clone(), xxh3_64(bytes)));
            hasher.update(&hash.to_le_bytes());
        }
        hasher.digest()
    }
}
