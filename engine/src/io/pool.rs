//! Memory of mappings in a simulation (feature `testing`), used again: an image of a disk is opened and forgotten some thousand
//! times a second, and most of that was the system's mapping and unmapping. Each thread has a pool of its own.

use std::cell::RefCell;
use std::io;
use std::ops::Deref;

use memmap2::{MmapOptions, MmapRaw};

/// Mappings of a size that a thread keeps.
const KEPT: usize = 256;
/// Sizes are powers of two, from a page on: whatever is larger than the last one goes back to the system.
const SIZES: usize = 5;
const PAGE_BYTES: usize = 4096;

thread_local! {
    static POOL: RefCell<[Vec<MmapRaw>; SIZES]> = const { RefCell::new([const { Vec::new() }; SIZES]) };
}

/// The size of which mappings of `len` bytes are.
fn size_of(len: usize) -> usize {
    len.div_ceil(PAGE_BYTES).next_power_of_two().trailing_zeros() as usize
}

/// A mapping that goes back to the pool when it is dropped, if it came from there.
pub(super) struct Pooled {
    /// `None` only while it is dropped.
    memory: Option<MmapRaw>,
    /// Bytes of it that count.
    len: usize,
    returns: bool,
}

impl Pooled {
    /// A mapping that has nothing to do with the pool.
    pub(super) fn alone(memory: MmapRaw) -> Pooled {
        Pooled { len: memory.len(), memory: Some(memory), returns: false }
    }

    /// `len` bytes that begin as a copy of `bytes`, the rest zeros.
    pub(super) fn copied(bytes: &[u8], len: usize) -> io::Result<Pooled> {
        let size = size_of(len);
        let found = POOL.with_borrow_mut(|pool| pool.get_mut(size).and_then(Vec::pop));
        let memory = match found {
            Some(memory) => memory,
            None if size < SIZES => MmapOptions::new().len(PAGE_BYTES << size).map_anon()?.into(),
            None => MmapOptions::new().len(len).map_anon()?.into(),
        };
        // SAFETY: the mapping is at least so long, and nobody else's: it is new, or whoever had it has dropped it.
        let all = unsafe { std::slice::from_raw_parts_mut(memory.as_mut_ptr(), len) };
        all[..bytes.len()].copy_from_slice(bytes);
        all[bytes.len()..].fill(0);
        Ok(Pooled { memory: Some(memory), len, returns: size < SIZES })
    }

    /// Bytes of the mapping that whoever has it may use.
    pub(super) fn len(&self) -> usize {
        self.len
    }
}

impl Deref for Pooled {
    type Target = MmapRaw;

    fn deref(&self) -> &MmapRaw {
        match &self.memory {
            Some(memory) => memory,
            None => unreachable!("nobody has what is dropped"),
        }
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        let Some(memory) = self.memory.take_if(|_| self.returns) else { return };
        // At the end of a thread the pool may be gone before what came from it.
        let _ = POOL.try_with(|pool| {
            if let Some(kept) = pool.borrow_mut().get_mut(size_of(self.len)).filter(|kept| kept.len() < KEPT) {
                kept.push(memory);
            }
        });
    }
}
