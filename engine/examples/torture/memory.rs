//! The command's allocator: a library's, since campaigns that open a store some thousand times a second spend a fifth of their time in the
//! system's; counted for one campaign.
//!
//! `soak` counts what is allocated and not freed: what the process has of the system (`RssAnon`) goes up and down by half a MiB with
//! the threads' heaps and cannot tell a small leak from that.

use std::alloc::{GlobalAlloc, Layout};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use mimalloc::MiMalloc;

/// See the file header.
pub(crate) struct Memory;

/// Bytes allocated and not freed, while that is counted.
static ALLOCATED: AtomicI64 = AtomicI64::new(0);
static COUNTS: AtomicBool = AtomicBool::new(false);

/// Has all allocations counted from here on.
pub(crate) fn count() {
    COUNTS.store(true, Ordering::Relaxed);
}

/// Bytes allocated and not freed since they are counted.
pub(crate) fn allocated() -> u64 {
    ALLOCATED.load(Ordering::Relaxed).max(0) as u64
}

#[inline]
fn note(bytes: i64) {
    if COUNTS.load(Ordering::Relaxed) {
        ALLOCATED.fetch_add(bytes, Ordering::Relaxed);
    }
}

// SAFETY: everything is passed on as it is, with what the caller has promised; counting allocates nothing.
unsafe impl GlobalAlloc for Memory {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size() as i64);
        // SAFETY: as the caller has promised.
        unsafe { MiMalloc.alloc(layout) }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size() as i64);
        // SAFETY: as the caller has promised.
        unsafe { MiMalloc.alloc_zeroed(layout) }
    }

    #[inline]
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        note(-(layout.size() as i64));
        // SAFETY: as the caller has promised.
        unsafe { MiMalloc.dealloc(at, layout) }
    }

    #[inline]
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        note(bytes as i64 - layout.size() as i64);
        // SAFETY: as the caller has promised.
        unsafe { MiMalloc.realloc(at, layout, bytes) }
    }
}
