//! The hash directory: key hash -> place of the newest record. Lock-free to read, one lock per shard to write.
//! Flow: `bucket`/`commit` -> here -> `log`; `recovery` fills it.
//!
//! 256 shards by the top hash bits. A shard has a table of parts (extendible hashing by the next bits), a part is an
//! array of cache lines of eight words, probed line by line from the key's home line. One word is one key:
//!
//! ```text
//!  63        37 36            0
//! +------------+--------------+
//! | tag, 27    | place, 37    |     0: never used; place 1: a key was removed here
//! +------------+--------------+
//! ```
//! The tag keeps the low 16 hash bits (they choose the home line, and do so again when the part grows) and 11 bits from
//! below those that chose the part; the highest of these that was not used yet tells, when a part is split, to which half a
//! key goes. When [`SPLITS_PER_TAG`] were used the next split makes the tags anew from the keys themselves: at least 12 tag bits
//! always tell keys apart in a line.
//!
//! Invariants:
//! 1. A key stands in at most one word of its part. Nothing moves inside a part: growing makes a new one.
//! 2. A line with a never-used word ends every probe: no key that passed over it lies further on.
//! 3. Words are written under the shard's lock, between [`ShardGuard::begin`] and its drop, which make `changes` odd
//!    and even again; who reads several keys at one instant compares `changes` before and after.
//! 4. Readers hold an epoch guard: a replaced table lives until they are gone. What they find in it was true at the
//!    moment it was replaced.
//!
//! Source: extendible hashing after Fagin et al. 1979; sequence locks after Lameter 2005.

mod cell;
mod part;

use std::ops::{Deref, Range};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use crossbeam_epoch::Guard;
use parking_lot::{Mutex, MutexGuard};
use smallvec::{SmallVec, smallvec};

use crate::error::Result;
use crate::io::map::Words;
use crate::io::room::Room;
use crate::log::record::Record;
use crate::seeded::{Bug, seeded};
use crate::tally::{BucketStats, Tallies};

pub(crate) use cell::{Cell, KeepingCell};
use part::{
    AS_NEEDED, Counts, Hits, LINES_MAX, Line, PLACE_MASK, Part, REMOVED, SPLITS_PER_TAG, WORDS, grown_by, lines_for,
};
pub(crate) use part::{LINE_BYTES, PLACE_BITS, Place};

/// Asks for the cache line that begins or lies at `at`, without waiting for it. A hint: several misses are under way at
/// once where a probe after a probe would wait for each.
#[inline]
pub(crate) fn prefetch<T: ?Sized>(at: &T) {
    prefetch_at(std::ptr::from_ref(at).cast::<u8>());
}

/// As [`prefetch`], of what may be gone.
#[inline]
fn prefetch_at<T>(at: *const T) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: a prefetch changes nothing that a program can see and cannot fault, whatever the address. SSE, which has the
    // instruction, is part of every x86-64.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = at;
}

const SHARD_BITS: u32 = 8;
/// Shards of a directory, but of one on a simulated disk, which is made anew too often for so many.
pub(crate) const SHARDS: usize = 1 << SHARD_BITS;
/// Tries of a reader of several keys before it takes the locks.
const SNAPSHOT_TRIES: usize = 16;
/// Tries of a sweep over all shards to get the lock of one: as long as a write takes.
const LOCK_TRIES: usize = 200;

/// The lines of a part: memory of its own, in a page that others share if it is large, or a stretch of a checkpoint mapped privately.
#[derive(Clone)]
pub(crate) struct Lines {
    first: NonNull<Line>,
    owner: Arc<Owner>,
    /// Of 32 bits, and the owner behind one pointer, so that a table with its only part is one cache line.
    len: u32,
}

/// What keeps lines where they are.
#[allow(dead_code, reason = "held, and mostly never read")]
enum Owner {
    Memory(Arc<[Line]>),
    Room(Room),
    /// From this byte on.
    Mapped(Arc<Words>, usize),
}

// SAFETY: lines are atomics, and their owner, which is `Send` and `Sync` itself, keeps them where they are.
unsafe impl Send for Lines {}
// SAFETY: as above.
unsafe impl Sync for Lines {}

impl Lines {
    fn new(n: usize) -> Lines {
        if let Some(lines) = Room::take(n * LINE_BYTES).and_then(|room| Lines::of_room(room, n)) {
            return lines;
        }
        let lines: Arc<[Line]> = (0..n).map(|_| Line([const { AtomicU64::new(0) }; WORDS])).collect();
        Lines { first: NonNull::from(&*lines).cast(), owner: Arc::new(Owner::Memory(lines)), len: n as u32 }
    }

    fn of_room(room: Room, n: usize) -> Option<Lines> {
        let (words, offset) = room.place();
        let first = Lines::first_of(words, offset, n)?;
        Some(Lines { first, owner: Arc::new(Owner::Room(room)), len: u32::try_from(n).ok()? })
    }

    /// `n` lines that begin at byte `offset` of a mapping; `None` if there are none.
    pub(crate) fn mapped(words: &Arc<Words>, offset: usize, n: usize) -> Option<Lines> {
        let first = Lines::first_of(words, offset, n)?;
        Some(Lines { first, owner: Arc::new(Owner::Mapped(words.clone(), offset)), len: u32::try_from(n).ok()? })
    }

    fn is_mapped(&self) -> bool {
        matches!(*self.owner, Owner::Mapped(..))
    }

    /// Has what the first write to each of them costs over with.
    fn expect_writes(&self) {
        if let Owner::Mapped(words, offset) = &*self.owner {
            words.expect_writes(*offset..offset + self.len() * LINE_BYTES);
        }
    }

    /// Where `n` lines begin, if they are within.
    fn first_of(words: &Words, offset: usize, n: usize) -> Option<NonNull<Line>> {
        let range = offset..offset.checked_add(n.checked_mul(LINE_BYTES)?)?;
        let words = words.get(range).filter(|words| !words.is_empty())?;
        let first = NonNull::from(words).cast::<Line>();
        first.is_aligned().then_some(first)
    }
}

impl Deref for Lines {
    type Target = [Line];

    #[inline]
    fn deref(&self) -> &[Line] {
        // SAFETY: the owner keeps these lines for as long as `self`, at this address; a line is eight words, aligned as
        // `new` and `first_of` have seen to, and nobody has other than shared references to them.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.len as usize) }
    }
}

/// The parts of a shard: the one for a hash stands at the `depth` bits that follow the shard's. In one cache line.
#[repr(align(64))]
struct Table {
    depth: u32,
    /// The only one of a shard, up to some 6,000 keys, lies in the table: one memory miss less on the way to a key.
    parts: SmallVec<[Part; 1]>,
}

#[cfg(target_pointer_width = "64")]
const _: () = assert!(size_of::<Table>() == LINE_BYTES, "a table takes one cache line");

#[repr(align(128))]
struct Shard {
    changes: AtomicU64,
    lock: Mutex<Held>,
}

/// What the lock of a shard guards, besides the right to change its words.
#[derive(Default)]
pub(crate) struct Held {
    pub(crate) pending: Pending,
    pub(crate) tallies: Tallies,
    /// Commits since the store was opened, each counted in one shard.
    pub(crate) commits: u64,
}

/// Commits of this shard that are not durable yet, and so not in the directory yet, oldest first.
pub(crate) type Pending = Vec<PendingWrite>;

/// One write that becomes visible when the log is durable up to `end`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PendingWrite {
    pub(crate) hash: u64,
    pub(crate) place: Place,
    pub(crate) end: u64,
    /// A later write of its batch is to the same key: it never becomes visible.
    pub(crate) superseded: bool,
}

/// One of several keys read at one instant.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    pub(crate) hash: u64,
    /// What the key's shard said before it was read.
    changes: u64,
}

impl Seen {
    pub(crate) fn new(hash: u64) -> Seen {
        Seen { hash, changes: 0 }
    }
}

/// The directory; see the file header.
pub(crate) struct Directory {
    shards: Box<[Shard]>,
    /// The table of each shard. Not in the shard, which writers change: what readers begin with is then a few lines that stay at hand.
    tables: Box<[Cell<Table>]>,
    /// By how much a part that is full is made larger than its keys need, in 256ths: see [`Directory::expect`].
    growth: AtomicU32,
}

/// The hash without the shard's bits, left-aligned.
#[inline]
fn below_shard(hash: u64) -> u64 {
    hash << SHARD_BITS
}

#[inline]
fn top_bits(hash: u64, bits: u32) -> usize {
    below_shard(hash).checked_shr(64 - bits).unwrap_or(0) as usize
}

impl Table {
    #[inline]
    fn index(&self, hash: u64) -> usize {
        top_bits(hash, self.depth)
    }

    /// Each part once: a part of lesser depth than the table stands at a run of entries.
    fn parts(&self) -> impl Iterator<Item = &Part> {
        let first = |(i, part): &(usize, &Part)| i % (1 << (self.depth - part.depth)) == 0;
        self.parts.iter().enumerate().filter(first).map(|(_, part)| part)
    }

    /// The table with room in the part at `index`: that part grown, or split in two.
    fn with_room(&self, index: usize, growth: u32, keys: &impl Keys) -> Table {
        let full = &self.parts[index];
        let lines = lines_for(grown_by(full.keys() + 1, growth));
        if lines > LINES_MAX
            && let Ok(halves) = full.split(growth, keys)
        {
            return self.with_parts(self.depth.max(full.depth + 1), full.depth, index, halves);
        }
        // Also where a key cannot be read again, its record being damaged: then the part grows as a whole.
        let grown = full.grown(lines);
        self.with_parts(self.depth, full.depth, index, [grown.clone(), grown])
    }

    /// The table for [`Directory::make_ready`], if it is another one.
    fn ready(&self, growth: u32) -> Option<Table> {
        let mut grew = false;
        let mut parts = SmallVec::with_capacity(self.parts.len());
        while let Some(part) = self.parts.get(parts.len()) {
            let grown = part.ready(growth);
            grew |= grown.is_some();
            let run = 1usize << (self.depth - part.depth);
            parts.extend(std::iter::repeat_n(grown.unwrap_or_else(|| part.clone()), run));
        }
        grew.then_some(Table { depth: self.depth, parts })
    }

    /// A copy, of that depth, in which the run of entries that shared the part at `index` shares `halves`.
    fn with_parts(&self, depth: u32, part_depth: u32, index: usize, halves: [Part; 2]) -> Table {
        let widen = depth - self.depth;
        let first = index >> (self.depth - part_depth) << (self.depth - part_depth) << widen;
        let run = 1usize << (depth - part_depth);
        let parts = (0..1usize << depth)
            .map(|i| match i.checked_sub(first) {
                Some(i) if i < run => halves[usize::from(run > 1 && i >= run / 2)].clone(),
                _ => self.parts[i >> widen].clone(),
            })
            .collect();
        Table { depth, parts }
    }
}

impl Directory {
    pub(crate) fn new(shards: usize) -> Directory {
        let table = |_| Cell::new(Table { depth: 0, parts: smallvec![Part::new(1, 0)] });
        Directory::of_tables((0..shards).map(table).collect())
    }

    fn of_tables(tables: Box<[Cell<Table>]>) -> Directory {
        let shard = |_| Shard { changes: AtomicU64::new(0), lock: Mutex::default() };
        Directory { shards: (0..tables.len()).map(shard).collect(), tables, growth: AtomicU32::new(AS_NEEDED) }
    }

    /// The part of the keys with this hash, and where they stand in it.
    #[inline]
    pub(crate) fn home<'g>(&'g self, hash: u64, guard: &'g Guard) -> Home<'g> {
        Home::in_table(self.tables[self.number_of(hash)].load(guard), hash)
    }

    /// Has what every look-up of this hash begins with brought near.
    #[inline]
    pub(crate) fn approach(&self, hash: u64) {
        self.tables[self.number_of(hash)].fetch();
    }

    #[inline]
    fn shard(&self, hash: u64) -> &Shard {
        &self.shards[self.number_of(hash)]
    }

    #[inline]
    fn number_of(&self, hash: u64) -> usize {
        let number = (hash >> (64 - SHARD_BITS)) as usize;
        if cfg!(feature = "testing") { number % self.shards.len() } else { number }
    }

    /// The place of the key with this hash that `is_it` recognises (it compares the key in the record). Never waits.
    #[inline]
    pub(crate) fn find(
        &self,
        hash: u64,
        guard: &Guard,
        is_it: impl FnMut(Place) -> Result<bool>,
    ) -> Result<Option<Place>> {
        self.home(hash, guard).look().find(is_it)
    }

    /// Runs `read` over several keys so that all it saw was true at one instant. `read` may run several times.
    pub(crate) fn snapshot<T>(&self, keys: &mut [Seen], mut read: impl FnMut(&[Seen]) -> Result<T>) -> Result<T> {
        for _ in 0..SNAPSHOT_TRIES {
            for key in &mut *keys {
                key.changes = self.shard(key.hash).changes.load(Ordering::Acquire);
            }
            if keys.iter().any(|key| !key.changes.is_multiple_of(2)) {
                std::thread::yield_now();
                continue;
            }
            let seen = read(keys)?;
            fence(Ordering::Acquire);
            if keys.iter().all(|key| self.shard(key.hash).changes.load(Ordering::Relaxed) == key.changes)
                || seeded(Bug::GetManyTorn)
            {
                return Ok(seen);
            }
        }
        let hashes: Vec<u64> = keys.iter().map(|key| key.hash).collect();
        let _locks = self.lock_all(&hashes);
        read(keys)
    }

    /// The lock of the shard of this hash: makes writes to its keys one after another.
    #[inline]
    pub(crate) fn lock(&self, hash: u64) -> ShardGuard<'_> {
        self.lock_shard(self.number_of(hash))
    }

    #[inline]
    fn lock_shard(&self, number: usize) -> ShardGuard<'_> {
        let shard = &self.shards[number];
        ShardGuard {
            shard,
            table: &self.tables[number],
            growth: &self.growth,
            held: shard.lock.lock(),
            changing: false,
        }
    }

    /// The locks of all shards of these hashes, taken in the order of the shards, so that two callers never wait for
    /// each other.
    pub(crate) fn lock_all(&self, hashes: &[u64]) -> ShardGuards<'_> {
        let mut shards: Vec<u8> = hashes.iter().map(|h| self.number_of(*h) as u8).collect();
        shards.sort_unstable();
        shards.dedup();
        let guards = shards.iter().map(|s| self.lock_shard(usize::from(*s))).collect();
        ShardGuards { directory: self, shards, guards }
    }

    /// Holds the lock of every shard once, one after another, and hands the writes that are pending in it to `visit`; `false`
    /// if one of them could not be had for a moment. Who held a lock before has let go of it by then.
    pub(crate) fn visit_pending(&self, mut visit: impl FnMut(&PendingWrite) -> Result<()>) -> Result<bool> {
        for shard in &self.shards {
            let mut lock = shard.lock.try_lock();
            for _ in 0..LOCK_TRIES {
                if lock.is_some() {
                    break;
                }
                std::hint::spin_loop();
                lock = shard.lock.try_lock();
            }
            let Some(held) = lock else { return Ok(false) };
            held.pending.iter().try_for_each(&mut visit)?;
        }
        Ok(true)
    }

    /// Number of keys. Counts shard after shard, so not of one instant while others write.
    pub(crate) fn keys(&self, guard: &Guard) -> u64 {
        self.parts(guard).map(|part| u64::from(part.keys())).sum()
    }

    /// Bytes of memory that the words take.
    pub(crate) fn bytes(&self, guard: &Guard) -> u64 {
        self.parts(guard).map(|part| (part.lines.len() * size_of::<Line>()) as u64).sum()
    }

    /// Each part once.
    fn parts<'g>(&'g self, guard: &'g Guard) -> impl Iterator<Item = &'g Part> {
        self.tables.iter().flat_map(move |table| table.load(guard).parts())
    }

    /// Places of all keys of one shard, for sweeps that look at everything.
    pub(crate) fn places(&self, shard: usize, guard: &Guard) -> Vec<Place> {
        let parts = self.tables[shard].load(guard).parts();
        parts.flat_map(|part| part.words().map(|w| Place(w & PLACE_MASK))).collect()
    }

    /// Copies the lines of the part at `at` behind `into`, under its shard's lock, and moves `at` to the next part; `None`
    /// behind the last one. What was before `at` may be split meanwhile, and is still not met again.
    pub(crate) fn copy_part(&self, at: &mut At, into: &mut Vec<u8>, guard: &Guard) -> Option<Shape> {
        let shard = self.shards.get(at.shard)?;
        let _lock = shard.lock.lock();
        let part = at.part(self.tables[at.shard].load(guard));
        into.reserve(part.lines.len() * LINE_BYTES);
        for word in part.lines.iter().flat_map(|line| &line.0) {
            into.extend_from_slice(&word.load(Ordering::Relaxed).to_le_bytes());
        }
        let shape = Shape {
            depth: part.depth as u8,
            tag_depth: part.tag_depth as u8,
            lines: part.lines.len() as u32,
            used: part.counts.used.load(Ordering::Relaxed),
            keys: part.keys(),
        };
        at.move_past(part.depth);
        Some(shape)
    }

    /// Takes words out of the part at `at`: those of which `is_gone` says so. Moves `at` as [`Directory::copy_part`] does;
    /// `false` behind the last part.
    pub(crate) fn sweep_part(&self, at: &mut At, guard: &Guard, is_gone: impl Fn(Place) -> bool) -> bool {
        if at.shard >= self.shards.len() {
            return false;
        }
        let mut lock = self.lock_shard(at.shard);
        let part = at.part(lock.table.load(guard));
        for line in part.lines.iter() {
            for word in &line.0 {
                let there = word.load(Ordering::Relaxed);
                if there & PLACE_MASK > REMOVED && is_gone(Place(there & PLACE_MASK)) {
                    lock.begin();
                    part.take(there);
                }
            }
        }
        at.move_past(part.depth);
        true
    }

    /// Counts the keys of the part at `at`, if nobody has: `record` reads the one at a place, `ask` asks for the memory of some
    /// that are read next. Moves `at` as [`Directory::copy_part`] does; `false` behind the last part.
    pub(crate) fn count_part<'r>(
        &self,
        at: &mut At,
        guard: &Guard,
        ahead: usize,
        ask: impl Fn(&[Place]),
        record: impl Fn(Place) -> Result<Option<Record<'r>>>,
    ) -> Result<bool> {
        let Some(shard) = self.shards.get(at.shard) else { return Ok(false) };
        let mut held = shard.lock.lock();
        let part = at.part(self.tables[at.shard].load(guard));
        if !part.is_tallied() {
            let places: Vec<Place> = part.words().map(|word| Place(word & PLACE_MASK)).collect();
            // All of the part or nothing.
            let mut records = Vec::with_capacity(places.len());
            for places in places.chunks(ahead) {
                ask(places);
                for place in places {
                    records.extend(record(*place)?);
                }
            }
            records.iter().for_each(|record| held.tallies.put(record, None));
            part.counts.tallied.store(true, Ordering::Relaxed);
        }
        at.move_past(part.depth);
        Ok(true)
    }

    /// What a bucket holds by the tallies of all shards.
    pub(crate) fn tally(&self, bucket: u64) -> BucketStats {
        let mut sum = BucketStats::default();
        for shard in &self.shards {
            let BucketStats { keys, key_bytes, value_bytes } = shard.lock.lock().tallies.get(bucket);
            sum.keys += keys;
            sum.key_bytes += key_bytes;
            sum.value_bytes += value_bytes;
        }
        sum
    }

    /// The bucket was dropped, and its keys were taken out.
    pub(crate) fn forget_tally(&self, bucket: u64) {
        self.shards.iter().for_each(|shard| shard.lock.lock().tallies.forget(bucket));
    }

    /// Commits since the store was opened.
    pub(crate) fn commits(&self) -> u64 {
        self.shards.iter().map(|shard| shard.lock.lock().commits).sum()
    }

    /// A directory of so many shards and these parts, which come in the order in which [`Directory::copy_part`] gave them; `None` if they are
    /// not all that there must be.
    pub(crate) fn of_parts(shards: usize, parts: impl IntoIterator<Item = (Shape, Lines)>) -> Option<Directory> {
        let mut parts = parts.into_iter();
        let tables = (0..shards).map(|_| {
            let mut found = Vec::new();
            let mut at = At::default();
            while at.shard == 0 {
                let (shape, lines) = parts.next()?;
                let (depth, tag_depth) = (u32::from(shape.depth), u32::from(shape.tag_depth));
                let words = lines.len().checked_mul(WORDS)?;
                let fits = depth <= DEPTH_MAX
                    && at.prefix.trailing_zeros() >= 64 - depth
                    && (tag_depth..=tag_depth + SPLITS_PER_TAG).contains(&depth)
                    && lines.len() == shape.lines as usize
                    && shape.keys <= shape.used
                    && (shape.used as usize) < words;
                if !fits {
                    return None;
                }
                let counts = Counts { used: shape.used.into(), keys: shape.keys.into(), ..Counts::default() };
                found.push(Part { lines, depth, tag_depth, counts: Arc::new(counts) });
                at.move_past(depth);
            }
            let depth = found.iter().map(|part| part.depth).max()?;
            // Hashes spread: a table much larger than its parts was not written here.
            if 1usize << depth > found.len().checked_mul(TABLE_TO_PARTS_MAX)? {
                return None;
            }
            let mut table = SmallVec::with_capacity(1 << depth);
            for part in found {
                table.extend(std::iter::repeat_n(part.clone(), 1 << (depth - part.depth)));
            }
            Some(Cell::new(Table { depth, parts: table }))
        });
        let tables: Option<Box<[Cell<Table>]>> = tables.collect();
        if parts.next().is_some() {
            return None;
        }
        tables.map(Directory::of_tables)
    }

    /// Says how many keys there will be for each that there is now, when many come at once and are counted beforehand:
    /// parts then grow once, and not by a sixth again and again.
    pub(crate) fn expect(&self, keys_per_key: f64) {
        self.growth.store((keys_per_key.clamp(1.0, 8.0) * f64::from(AS_NEEDED)) as u32, Ordering::Relaxed);
    }

    /// Makes those parts of some shards that are of a checkpoint ready for writes to all of them: a part that will have to grow, going by what
    /// is expected, does so now, and of the others the pages are had at once.
    pub(crate) fn make_ready(&self, shards: Range<usize>, guard: &Guard) {
        for shard in shards {
            let growth = self.growth.load(Ordering::Relaxed);
            let lock = self.lock_shard(shard);
            let table = lock.table.load(guard);
            if let Some(roomier) = table.ready(growth) {
                lock.table.replace(roomier, guard);
            }
        }
    }

    /// Has what a write of this hash looks at brought near.
    #[inline]
    pub(crate) fn fetch(&self, hash: u64, guard: &Guard) {
        self.home(hash, guard).fetch_to_write();
    }

    /// Number of shards, for [`Directory::places`].
    pub(crate) fn shards(&self) -> usize {
        self.shards.len()
    }
}

/// Where a key stands if it is there: its part, and the line there at which a probe begins. Good for as long as the guard is held, as what is
/// found in a replaced table (invariant 4).
#[derive(Clone, Copy)]
pub(crate) struct Home<'g> {
    part: &'g Part,
    tag: u64,
}

impl<'g> Home<'g> {
    #[inline]
    fn in_table(table: &'g Table, hash: u64) -> Home<'g> {
        let part = &table.parts[table.index(hash)];
        Home { part, tag: part.tag(hash) }
    }

    #[inline]
    fn line(&self) -> &'g Line {
        &self.part.lines[self.part.home(self.tag)]
    }

    /// Has the line brought near.
    #[inline]
    pub(crate) fn fetch(&self) {
        prefetch(self.line());
    }

    /// As [`Home::fetch`], with the line where the probe goes on if this one is full, and what the part counts: among many keys each of
    /// them is a memory miss of its own.
    #[inline]
    fn fetch_to_write(&self) {
        let at = self.part.home(self.tag);
        prefetch(&self.part.lines[at]);
        prefetch(&self.part.lines[self.part.after(at)]);
        prefetch(&*self.part.counts);
    }

    /// Looks at the line.
    #[inline]
    pub(crate) fn look(self) -> Looked<'g> {
        Looked { home: self, hits: self.line().look(self.tag) }
    }
}

/// A [`Home`] whose line was looked at. A key that came to stand there since is not met: who looks and asks in one step, or under the
/// shard's lock, or sees by `changes` that nobody came (see [`Directory::snapshot`]), misses nothing.
#[derive(Clone, Copy)]
pub(crate) struct Looked<'g> {
    home: Home<'g>,
    hits: Hits,
}

impl Looked<'_> {
    /// The places that the line holds for the key. Only hints: the probe may go on behind it.
    #[inline]
    pub(crate) fn candidates(&self) -> impl Iterator<Item = Place> {
        self.home.line().places(self.home.tag, self.hits)
    }

    /// As [`Directory::find`].
    #[inline]
    pub(crate) fn find(&self, is_it: impl FnMut(Place) -> Result<bool>) -> Result<Option<Place>> {
        self.home.part.find(self.home.tag, self.hits, is_it)
    }
}

/// Most hash bits by which the parts of a shard are told apart.
const DEPTH_MAX: u32 = 32;
/// Entries of a table for each part in it, at most.
const TABLE_TO_PARTS_MAX: usize = 256;

/// A place in the sequence of all parts: a shard, and a prefix of the hash bits below the shard's, left-aligned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct At {
    shard: usize,
    prefix: u64,
}

impl At {
    fn part<'t>(&self, table: &'t Table) -> &'t Part {
        let index = self.prefix.checked_shr(64 - table.depth).unwrap_or(0);
        &table.parts[index as usize]
    }

    fn move_past(&mut self, depth: u32) {
        let next = 1u64.checked_shl(64 - depth).and_then(|width| self.prefix.checked_add(width));
        match next {
            Some(prefix) => self.prefix = prefix,
            None => *self = At { shard: self.shard + 1, prefix: 0 },
        }
    }
}

/// What is known of a part besides its lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) depth: u8,
    pub(crate) tag_depth: u8,
    pub(crate) lines: u32,
    pub(crate) used: u32,
    pub(crate) keys: u32,
}

/// The keys at places, which the words of a part that is split do not tell.
pub(crate) trait Keys {
    /// The hash of the key; `None` if there is none any more.
    fn hash_of(&self, place: Place) -> Result<Option<u64>>;
    /// Has what that looks at brought near. A hint.
    fn fetch(&self, place: Place);
}

/// The right to change the keys of one shard.
pub(crate) struct ShardGuard<'a> {
    shard: &'a Shard,
    table: &'a Cell<Table>,
    growth: &'a AtomicU32,
    pub(crate) held: MutexGuard<'a, Held>,
    changing: bool,
}

impl ShardGuard<'_> {
    /// From here to the drop of the guard, readers of several keys at one instant wait or try again.
    #[inline]
    pub(crate) fn begin(&mut self) {
        if !self.changing {
            self.changing = true;
            let changes = self.shard.changes.load(Ordering::Relaxed);
            self.shard.changes.store(changes + 1, Ordering::Relaxed);
            fence(Ordering::Release);
        }
    }

    /// Whether the keys of the part of this hash are in the tallies, and so to be kept there.
    #[inline]
    pub(crate) fn is_tallied(&self, hash: u64, guard: &Guard) -> bool {
        let table = self.table.load(guard);
        table.parts[table.index(hash)].is_tallied()
    }

    /// As [`Directory::find`].
    #[inline]
    pub(crate) fn find(
        &self,
        hash: u64,
        guard: &Guard,
        is_it: impl FnMut(Place) -> Result<bool>,
    ) -> Result<Option<Place>> {
        Home::in_table(self.table.load(guard), hash).look().find(is_it)
    }

    /// The newest place of a key, counting writes that are not durable yet.
    #[inline]
    pub(crate) fn newest_pending(
        &self,
        hash: u64,
        mut is_it: impl FnMut(Place) -> Result<bool>,
    ) -> Result<Option<PendingWrite>> {
        for write in self.held.pending.iter().rev().filter(|w| w.hash == hash) {
            if is_it(write.place)? {
                return Ok(Some(*write));
            }
        }
        Ok(None)
    }

    /// Points the key at `new`; `old` is where it pointed, as found under this lock. `keys` is asked when a part is split.
    #[inline]
    pub(crate) fn set(
        &mut self,
        hash: u64,
        old: Option<Place>,
        new: Place,
        guard: &Guard,
        keys: &impl Keys,
    ) -> Result<()> {
        debug_assert!(new.0 > REMOVED && new.0 <= PLACE_MASK);
        self.begin();
        let table = self.table.load(guard);
        let part = &table.parts[table.index(hash)];
        let tag = part.tag(hash);
        match old.and_then(|old| part.position_of(tag | old.0)) {
            Some((word, _)) => word.store(tag | new.0, Ordering::Release),
            None => self.insert(hash, new, guard, keys),
        }
        Ok(())
    }

    fn insert(&mut self, hash: u64, new: Place, guard: &Guard, keys: &impl Keys) {
        let mut table = self.table.load(guard);
        while table.parts[table.index(hash)].is_full() {
            let growth = self.growth.load(Ordering::Relaxed);
            let roomier = table.with_room(table.index(hash), growth, keys);
            self.table.replace(roomier, guard);
            table = self.table.load(guard);
        }
        let part = &table.parts[table.index(hash)];
        part.add(part.tag(hash) | new.0);
    }

    /// Forgets the key that points at `old`.
    pub(crate) fn remove(&mut self, hash: u64, old: Place, guard: &Guard) {
        self.begin();
        let table = self.table.load(guard);
        let part = &table.parts[table.index(hash)];
        part.take(part.tag(hash) | old.0);
    }
}

impl Drop for ShardGuard<'_> {
    #[inline]
    fn drop(&mut self) {
        if self.changing {
            let changes = self.shard.changes.load(Ordering::Relaxed);
            self.shard.changes.store(changes + 1, Ordering::Release);
        }
    }
}

/// The right to change the keys of several shards at once.
pub(crate) struct ShardGuards<'a> {
    directory: &'a Directory,
    shards: Vec<u8>,
    guards: Vec<ShardGuard<'a>>,
}

impl<'a> ShardGuards<'a> {
    /// The guard of the shard of this hash, which is one of those locked.
    pub(crate) fn of(&mut self, hash: u64) -> &mut ShardGuard<'a> {
        let shard = self.directory.number_of(hash) as u8;
        let at = self.shards.partition_point(|s| *s < shard);
        &mut self.guards[at]
    }

    /// Counts a commit.
    pub(crate) fn count_commit(&mut self) {
        if let Some(guard) = self.guards.first_mut() {
            guard.held.commits += 1;
        }
    }

    /// Whether writes wait to become visible in any of them.
    pub(crate) fn any_pending(&self) -> bool {
        self.guards.iter().any(|g| !g.held.pending.is_empty())
    }

    /// [`ShardGuard::begin`] on all: whoever reads several keys sees every change made under these guards, or none.
    pub(crate) fn begin(&mut self) {
        self.guards.iter_mut().for_each(ShardGuard::begin);
    }
}

#[cfg(test)]
mod tests;
