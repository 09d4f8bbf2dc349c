//! Memory for large parts of the directory, in pages as large as the system has them: among a million keys the walk to a line's page
//! costs as much as the line.
//!
//! Flow: `directory::Lines` -> [`Room::take`] -> dropped with the part, when no reader looks at it any more.
//! A chunk is one page of 2 MiB. Parts are far smaller and come and go, so a chunk is lent in granules, to the first that fit; it goes when
//! all are given back. Small parts do not come here: a small store would hold a whole chunk.
//! Invariant: a granule is lent to one room at a time. One lock, under which nothing else is done; where a part is made a shard's is held.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;

use super::map::Words;

const CHUNK_BYTES: usize = 2 << 20;
const GRANULE_BYTES: usize = 2 << 10;
const GRANULES: usize = CHUNK_BYTES / GRANULE_BYTES;
/// Smaller ones are not worth it: parts of this size are those of some 400,000 keys.
const ROOM_BYTES_MIN: usize = 16 << 10;

/// Of the process: parts are given back by whichever thread comes to it.
static CHUNKS: Mutex<Chunks> = Mutex::new(Chunks(Vec::new()));

/// All chunks of which something is lent.
struct Chunks(Vec<Chunk>);

struct Chunk {
    memory: Arc<Words>,
    /// Where the page begins in it.
    begin: usize,
    lent: [bool; GRANULES],
    /// No run of granules that are free is longer.
    free_run_max: usize,
}

/// Some bytes of a chunk, zero when they are taken, for as long as this lives.
pub(crate) struct Room {
    memory: Arc<Words>,
    offset: usize,
    bytes: usize,
}

impl Room {
    /// `None` where there is no such memory, or so much of it is not worth asking for, or too much for one chunk.
    pub(crate) fn take(bytes: usize) -> Option<Room> {
        if !cfg!(target_os = "linux") || cfg!(miri) || !(ROOM_BYTES_MIN..=CHUNK_BYTES).contains(&bytes) {
            return None;
        }
        let (memory, offset) = CHUNKS.lock().take(bytes.div_ceil(GRANULE_BYTES))?;
        let room = Room { memory, offset, bytes };
        // Without the lock: the first to touch a chunk waits for the system to blank it.
        room.memory.get(offset..offset + bytes)?.iter().for_each(|word| word.store(0, Ordering::Relaxed));
        Some(room)
    }

    /// The memory in which it lies, and where.
    pub(crate) fn place(&self) -> (&Arc<Words>, usize) {
        (&self.memory, self.offset)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let gone = CHUNKS.lock().give_back(&self.memory, self.offset, self.bytes.div_ceil(GRANULE_BYTES));
        // The system is told without the lock.
        drop(gone);
    }
}

impl Chunks {
    /// So many granules in a row: the memory, and where they begin in it.
    fn take(&mut self, granules: usize) -> Option<(Arc<Words>, usize)> {
        if let Some(taken) = self.0.iter_mut().find_map(|chunk| chunk.take(granules)) {
            return Some(taken);
        }
        let mut chunk = Chunk::new()?;
        let taken = chunk.take(granules);
        self.0.push(chunk);
        taken
    }

    /// Takes back what was lent; the chunk, if nothing of it is lent any more.
    fn give_back(&mut self, memory: &Arc<Words>, offset: usize, granules: usize) -> Option<Chunk> {
        let at = self.0.iter().position(|chunk| Arc::ptr_eq(&chunk.memory, memory))?;
        let chunk = &mut self.0[at];
        let first = (offset - chunk.begin) / GRANULE_BYTES;
        chunk.lent[first..first + granules].fill(false);
        chunk.free_run_max = GRANULES;
        chunk.lent.iter().all(|lent| !lent).then(|| self.0.swap_remove(at))
    }
}

impl Chunk {
    fn new() -> Option<Chunk> {
        let (memory, begin) = Words::page(CHUNK_BYTES)?;
        Some(Chunk { memory: Arc::new(memory), begin, lent: [false; GRANULES], free_run_max: GRANULES })
    }

    fn take(&mut self, granules: usize) -> Option<(Arc<Words>, usize)> {
        if granules > self.free_run_max {
            return None;
        }
        let (mut run, mut longest) = (0, 0);
        let last = self.lent.iter().position(|lent| {
            run = if *lent { 0 } else { run + 1 };
            longest = longest.max(run);
            run == granules
        });
        let Some(last) = last else {
            self.free_run_max = longest;
            return None;
        };
        let first = last + 1 - granules;
        self.lent[first..=last].fill(true);
        Some((self.memory.clone(), self.begin + first * GRANULE_BYTES))
    }
}

#[cfg(all(test, target_os = "linux", not(miri)))]
mod tests {
    use super::*;

    #[test]
    fn granules_are_lent_once_and_a_chunk_goes_with_the_last() {
        let mut chunks = Chunks(Vec::new());
        let mut lent: Vec<(Arc<Words>, usize, usize)> = Vec::new();
        let mut dice = 7u64;
        let mut roll = |sides: usize| {
            dice = dice.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (dice >> 33) as usize % sides
        };
        for _ in 0..20_000 {
            if lent.len() < 300 && roll(2) == 0 {
                let granules = 8 + roll(25);
                let (memory, offset) = chunks.take(granules).unwrap();
                let end = offset + granules * GRANULE_BYTES;
                assert!(memory.get(offset..end).is_some(), "within the memory");
                for (other, from, n) in &lent {
                    let apart = end <= *from || from + n * GRANULE_BYTES <= offset;
                    assert!(apart || !Arc::ptr_eq(other, &memory), "lent twice");
                }
                lent.push((memory, offset, granules));
            } else if !lent.is_empty() {
                let (memory, offset, granules) = lent.swap_remove(roll(lent.len()));
                chunks.give_back(&memory, offset, granules);
            }
        }
        // At most 300 of 32 granules: what lies between them is not much.
        assert!(chunks.0.len() <= 16, "{} chunks", chunks.0.len());
        for (memory, offset, granules) in lent {
            chunks.give_back(&memory, offset, granules);
        }
        assert!(chunks.0.is_empty());
    }

    #[test]
    fn a_room_is_blank_whoever_had_it_before_and_begins_at_a_line() {
        for _ in 0..2 {
            let room = Room::take(ROOM_BYTES_MIN).unwrap();
            let (memory, offset) = room.place();
            let words = memory.get(offset..offset + ROOM_BYTES_MIN).unwrap();
            assert!(words.as_ptr().addr().is_multiple_of(GRANULE_BYTES));
            for word in words {
                assert_eq!(word.swap(1, Ordering::Relaxed), 0);
            }
        }
        assert!(Room::take(ROOM_BYTES_MIN - 1).is_none());
        assert!(Room::take(CHUNK_BYTES + 1).is_none());
    }
}
