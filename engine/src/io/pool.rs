//! Memory of the simulated disk's mappings (feature `testing`), used again: an image of a disk is opened and forgotten a
//! thousand times a second, and most of that was the system's mapping and unmapping. Each thread has a pool of its own.

use std::cell::RefCell;
use std::io;
use std::ops::Deref;

use memmap2::{MmapOptions, MmapRaw};

/// Mappings that a thread keeps, and their bytes: what is larger or more goes back to the system.
const KEPT: usize = 256;
const KEPT_BYTES_MAX: usize = 64 << 10;

thread_local! {
    static POOL: RefCell<Vec<MmapRaw>> = const { RefCell::new(Vec::new()) };
}

/// A mapping that goes back to the pool when it is dropped, if it came from there.
pub(super) struct Pooled {
    /// `None` only while it is dropped.
    memory: Option<MmapRaw>,
    returns: bool,
}

impl Pooled {
    /// A mapping that has nothing to do with the pool.
    pub(super) fn alone(memory: MmapRaw) -> Pooled {
        Pooled { memory: Some(memory), returns: false }
    }

    /// `len` bytes that begin as a copy of `bytes`, the rest zeros.
    pub(super) fn copied(bytes: &[u8], len: usize) -> io::Result<Pooled> {
        let found = POOL.with_borrow_mut(|pool| {
            let at = pool.iter().rposition(|memory| memory.len() == len)?;
            Some(pool.swap_remove(at))
        });
        let memory = match found {
            Some(memory) => memory,
            None => MmapOptions::new().len(len).map_anon()?.into(),
        };
        // SAFETY: the mapping is nobody else's: it is new, or whoever had it has dropped it.
        let all = unsafe { std::slice::from_raw_parts_mut(memory.as_mut_ptr(), len) };
        all[..bytes.len()].copy_from_slice(bytes);
        all[bytes.len()..].fill(0);
        Ok(Pooled { memory: Some(memory), returns: len <= KEPT_BYTES_MAX })
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
            let mut pool = pool.borrow_mut();
            if pool.len() == KEPT {
                // Of a length that is rare.
                pool.remove(0);
            }
            pool.push(memory);
        });
    }
}
