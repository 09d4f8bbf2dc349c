//! A part of the directory: lines of words, probed one after another. What a word is, and what holds for all of them: see the directory.
//! Flow: `Directory::find` and the shard's writer -> here.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use super::{Keys, Lines, below_shard, top_bits};
use crate::error::Result;

/// Bits of a word that are a place.
pub(crate) const PLACE_BITS: u32 = 37;
pub(super) const PLACE_MASK: u64 = (1 << PLACE_BITS) - 1;
pub(super) const REMOVED: u64 = 1;

/// Low hash bits kept in the tag: they choose the home line.
const HOME_BITS: u32 = 16;
/// Hash bits kept in the tag from below those that choose the part.
const SPLIT_BITS: u32 = 64 - PLACE_BITS - HOME_BITS;
/// Splits for which the tags are good; the next one makes them anew, which reads every key of the part.
pub(super) const SPLITS_PER_TAG: u32 = 5;
pub(super) const WORDS: usize = 8;
/// Keys between the one that is read and the one that is fetched, when a part is split.
const AHEAD: usize = 16;
/// Largest part: what one growth step copies, and so how long a writer of that shard may wait for another.
pub(super) const LINES_MAX: usize = if cfg!(miri) { 4 } else { 1024 };

/// Where a record is. The log knows how to read it; here it is a number of [`PLACE_BITS`] bits, greater than 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Place(pub(crate) u64);

#[repr(align(64))]
pub(crate) struct Line(pub(super) [AtomicU64; WORDS]);

/// The place in a word, if that is a key with this tag.
#[inline]
fn place_of(word: u64, tag: u64) -> Option<Place> {
    // With the tag gone only a place is left, if the tag was this one.
    let place = word ^ tag;
    (place > REMOVED && place <= PLACE_MASK).then_some(Place(place))
}

impl Line {
    /// Which of the words are keys with this tag.
    ///
    /// All are looked at, without a branch for each: in which of them a key stands is not to be foreseen, and a branch that was
    /// foreseen wrongly holds up all that depends on a line that is still under way.
    #[inline]
    pub(super) fn look(&self, tag: u64) -> Hits {
        let mut hits = 0;
        for word in self.0.iter().rev() {
            // Without regard to the two words that are no keys: `places` asks again.
            hits = 2 * hits + u32::from(word.load(Ordering::Acquire) ^ tag <= PLACE_MASK);
        }
        Hits(hits)
    }

    /// Whether it ends a probe (invariant 2).
    #[inline]
    fn ends(&self) -> bool {
        self.0.iter().any(|word| word.load(Ordering::Acquire) == 0)
    }

    /// The places of the keys with this tag, in the order of the words: of those that were hits, the ones that still are. A key that
    /// is written again keeps its word, so that it is still met.
    #[inline]
    pub(super) fn places(&self, tag: u64, mut hits: Hits) -> impl Iterator<Item = Place> {
        std::iter::from_fn(move || {
            loop {
                // Asked again: to keep all words from the first look would cost more.
                let word = self.0.get(hits.0.trailing_zeros() as usize)?.load(Ordering::Acquire);
                hits.0 &= hits.0 - 1;
                if let Some(place) = place_of(word, tag) {
                    return Some(place);
                }
            }
        })
    }
}

/// Words of a line, a bit each.
#[derive(Clone, Copy)]
pub(super) struct Hits(u32);

/// Bytes of a line.
pub(crate) const LINE_BYTES: usize = size_of::<Line>();

/// One array of lines: the keys whose hash has a certain prefix.
#[derive(Clone)]
pub(super) struct Part {
    pub(super) lines: Lines,
    /// Hash bits after the shard's that all keys here share.
    pub(super) depth: u32,
    /// Depth when the tags were made.
    pub(super) tag_depth: u32,
    pub(super) counts: Arc<Counts>,
}

/// Kept under the shard's lock.
#[derive(Default)]
pub(super) struct Counts {
    /// Words used, removed ones included.
    pub(super) used: AtomicU32,
    pub(super) keys: AtomicU32,
    /// The keys are in the shard's tallies.
    pub(super) tallied: AtomicBool,
}

/// The smallest part that holds `keys` at three quarters full: sizes grow by about a sixth, so that memory follows
/// the number of keys closely.
pub(super) fn lines_for(keys: u32) -> usize {
    let wanted = (keys as usize).div_ceil(WORDS * 3 / 4).max(1);
    let step = (wanted.next_power_of_two() / 16).max(1);
    wanted.next_multiple_of(step)
}

/// [`Directory::growth`] where nothing is expected.
pub(super) const AS_NEEDED: u32 = 256;

pub(super) fn grown_by(keys: u32, growth: u32) -> u32 {
    (u64::from(keys) * u64::from(growth) / u64::from(AS_NEEDED)) as u32
}

impl Part {
    pub(super) fn new(lines: usize, depth: u32) -> Part {
        Part { lines: Lines::new(lines), depth, tag_depth: depth, counts: Arc::default() }
    }

    /// The tag of a hash, in its place in the word.
    #[inline]
    pub(super) fn tag(&self, hash: u64) -> u64 {
        let split = (below_shard(hash) << self.tag_depth) >> (64 - SPLIT_BITS);
        ((hash & ((1 << HOME_BITS) - 1)) << SPLIT_BITS | split) << PLACE_BITS
    }

    #[inline]
    pub(super) fn home(&self, tag: u64) -> usize {
        let home_bits = tag >> (PLACE_BITS + SPLIT_BITS);
        (home_bits as usize * self.lines.len()) >> HOME_BITS
    }

    /// The line where a probe goes on.
    #[inline]
    pub(super) fn after(&self, line: usize) -> usize {
        if line + 1 == self.lines.len() { 0 } else { line + 1 }
    }

    /// The place among those with this tag that `is_it` recognises. One that it fails at may be of any key, also of one that was
    /// written again since: it counts only where nothing else is found.
    ///
    /// `hits` are those of the line where the probe begins.
    #[inline]
    pub(super) fn find(
        &self,
        tag: u64,
        mut hits: Hits,
        mut is_it: impl FnMut(Place) -> Result<bool>,
    ) -> Result<Option<Place>> {
        let mut at = self.home(tag);
        let mut failed = None;
        for _ in 0..self.lines.len() {
            let line = &self.lines[at];
            for place in line.places(tag, hits) {
                match is_it(place) {
                    Ok(true) => return Ok(Some(place)),
                    Ok(false) => {}
                    Err(e) => failed = failed.or(Some(e)),
                }
            }
            if line.ends() {
                break;
            }
            at = self.after(at);
            hits = self.lines[at].look(tag);
        }
        failed.map_or(Ok(None), Err)
    }

    /// The word that says this, in the order in which a probe meets it.
    pub(super) fn position_of(&self, word: u64) -> Option<(&AtomicU64, &Line)> {
        let mut at = self.home(word);
        for _ in 0..self.lines.len() {
            let line = &self.lines[at];
            if let Some(found) = line.0.iter().find(|w| w.load(Ordering::Relaxed) == word) {
                return Some((found, line));
            }
            at = self.after(at);
        }
        None
    }

    /// Puts a word into the first free place of its probe; whether that had never been used.
    fn put(&self, word: u64) -> bool {
        let mut at = self.home(word);
        loop {
            for slot in &self.lines[at].0 {
                let there = slot.load(Ordering::Relaxed);
                if there & PLACE_MASK <= REMOVED {
                    slot.store(word, Ordering::Release);
                    return there == 0;
                }
            }
            at = self.after(at);
        }
    }

    pub(super) fn keys(&self) -> u32 {
        self.counts.keys.load(Ordering::Relaxed)
    }

    #[inline]
    pub(super) fn is_tallied(&self) -> bool {
        self.counts.tallied.load(Ordering::Relaxed)
    }

    /// A part of some of this one's keys is tallied where this one is.
    fn tallied_as(self, other: &Part) -> Part {
        self.counts.tallied.store(other.is_tallied(), Ordering::Relaxed);
        self
    }

    pub(super) fn is_full(&self) -> bool {
        self.is_full_with(0)
    }

    /// Whether it would be with so many keys more.
    pub(super) fn is_full_with(&self, more: u32) -> bool {
        let words = self.lines.len() * WORDS;
        (self.counts.used.load(Ordering::Relaxed) + more) as usize >= words - (words / 8).max(1)
    }

    /// All keys: tag (in place) and place.
    pub(super) fn words(&self) -> impl Iterator<Item = u64> {
        let words = self.lines.iter().flat_map(|line| line.0.iter());
        words.map(|w| w.load(Ordering::Relaxed)).filter(|w| w & PLACE_MASK > REMOVED)
    }

    /// Puts a word that is known to be absent, and counts it.
    pub(super) fn add(&self, word: u64) {
        let fresh = self.put(word);
        self.counts.used.fetch_add(u32::from(fresh), Ordering::Relaxed);
        self.counts.keys.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes a word out, and counts it.
    pub(super) fn take(&self, word: u64) {
        let Some((found, line)) = self.position_of(word) else {
            return;
        };
        // A line that has a never-used word was never passed over: no probe needs the mark (invariant 2).
        let unpassed = line.0.iter().any(|w| w.load(Ordering::Relaxed) == 0);
        found.store(if unpassed { 0 } else { REMOVED }, Ordering::Release);
        self.counts.used.fetch_sub(u32::from(unpassed), Ordering::Relaxed);
        self.counts.keys.fetch_sub(1, Ordering::Relaxed);
    }

    /// The same keys with room for more.
    pub(super) fn grown(&self, lines: usize) -> Part {
        let part = Part { tag_depth: self.tag_depth, ..Part::new(lines, self.depth) }.tallied_as(self);
        self.words().for_each(|word| part.add(word));
        part
    }

    /// The same keys with room for as many as are expected, if these lines are of a checkpoint and have too little; those that have enough are
    /// made ready to be written.
    pub(super) fn ready(&self, growth: u32) -> Option<Part> {
        if !self.lines.is_mapped() {
            return None;
        }
        let more = grown_by(self.keys(), growth) - self.keys();
        let lines = lines_for(self.keys() + more);
        if more > 0 && self.is_full_with(more) && lines <= LINES_MAX {
            return Some(self.grown(lines));
        }
        self.lines.expect_writes();
        None
    }

    /// The same keys in two parts, by the next hash bit; `keys` is asked where the tag does not tell.
    pub(super) fn split(&self, growth: u32, keys: &impl Keys) -> Result<[Part; 2]> {
        let depth = self.depth + 1;
        let used_up = self.depth - self.tag_depth;
        let fresh = used_up + 1 > SPLITS_PER_TAG;
        let lines = lines_for(grown_by(self.keys() / 2 + self.keys() / 16, growth)).min(LINES_MAX);
        let mut halves = [Part::new(lines, depth).tallied_as(self), Part::new(lines, depth).tallied_as(self)];
        for half in &mut halves {
            half.tag_depth = if fresh { depth } else { self.tag_depth };
        }
        // Each is a memory miss or two: several are under way at once.
        let mut ahead = self.words().filter(|_| fresh).map(|word| Place(word & PLACE_MASK));
        ahead.by_ref().take(AHEAD).for_each(|place| keys.fetch(place));
        for word in self.words() {
            ahead.next().into_iter().for_each(|place| keys.fetch(place));
            let place = word & PLACE_MASK;
            let (bit, word) = if fresh {
                let Some(hash) = keys.hash_of(Place(place))? else { continue };
                (top_bits(hash, depth) & 1, halves[0].tag(hash) | place)
            } else {
                ((word >> (PLACE_BITS + SPLIT_BITS - 1 - used_up)) as usize & 1, word)
            };
            let half = &mut halves[bit];
            if half.is_full() {
                *half = half.grown(lines_for(half.keys() * 5 / 4 + 1));
            }
            half.add(word);
        }
        Ok(halves)
    }
}
