//! The command's allocator: the system's, which it counts for one campaign and asks less often in others.
//!
//! `soak` counts what is allocated and not freed: what the process has of the system (`RssAnon`) goes up and down by half a MiB with
//! the threads' arenas and cannot tell a small leak from that. Campaigns that open a store some thousand times a second spend a fifth of
//! their time in `malloc` and `free`; there each thread keeps what it frees, by size, and gives it out again.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

/// See the file header.
pub(crate) struct Memory;

/// Bytes allocated and not freed, while that is counted.
static ALLOCATED: AtomicI64 = AtomicI64::new(0);
static COUNTS: AtomicBool = AtomicBool::new(false);
static KEEPS: AtomicBool = AtomicBool::new(false);

/// Has all allocations counted from here on.
pub(crate) fn count() {
    COUNTS.store(true, Ordering::Relaxed);
}

/// Bytes allocated and not freed since they are counted.
pub(crate) fn allocated() -> u64 {
    ALLOCATED.load(Ordering::Relaxed).max(0) as u64
}

/// Has each thread keep what it frees. For campaigns whose threads end with it, and free what they allocate: what another one frees is
/// kept there, and what a thread keeps is lost with it.
pub(crate) fn keep() {
    KEEPS.store(true, Ordering::Relaxed);
}

/// Sizes are rounded up: to multiples of this, ...
const STEP: usize = 16;
/// ... of this from here on, ...
const LARGE: usize = 1024;
const LARGE_STEP: usize = 256;
/// ... and what is larger is the system's own.
const LARGEST: usize = 32 << 10;
/// Classes of what is aligned as the system does by itself, ...
const PLAIN: usize = LARGE / STEP + (LARGEST - LARGE) / LARGE_STEP + 1;
const ALIGN: usize = 16;
/// ... and of what is aligned to cache lines, in multiples of two of them.
const LINES: usize = 128;
const CLASSES: usize = PLAIN + LARGEST / LINES;

/// A block that nobody uses: in its first bytes is the address of the next one.
type Free = *mut Next;
struct Next(Free);

thread_local! {
    static KEPT: UnsafeCell<[Free; CLASSES]> = const { UnsafeCell::new([ptr::null_mut(); CLASSES]) };
}

/// Number and layout of the class that such memory is of. Whether memory is kept or not, it is always as large as its class.
#[inline]
fn class_of(layout: Layout) -> Option<(usize, Layout)> {
    let size = layout.size();
    if size > LARGEST || layout.align() > LINES {
        return None;
    }
    if layout.align() > ALIGN {
        let pairs = size.div_ceil(LINES).max(1);
        return Layout::from_size_align(pairs * LINES, LINES).ok().map(|layout| (PLAIN + pairs - 1, layout));
    }
    let (class, size) = if size <= LARGE {
        let steps = size.div_ceil(STEP).max(1);
        (steps, steps * STEP)
    } else {
        let steps = (size - LARGE).div_ceil(LARGE_STEP);
        (LARGE / STEP + steps, LARGE + steps * LARGE_STEP)
    };
    Layout::from_size_align(size, ALIGN).ok().map(|layout| (class, layout))
}

/// Takes a kept block of a class; null if there is none.
#[inline]
fn take(class: usize) -> *mut u8 {
    if !KEEPS.load(Ordering::Relaxed) {
        return ptr::null_mut();
    }
    // SAFETY: the list is this thread's, nothing else runs between here and the return, and what is in it are blocks that `put` was
    // given and nobody has got since: of at least a pointer's size, aligned, the first bytes written there.
    let block = KEPT.try_with(|kept| unsafe {
        let first = &mut (*kept.get())[class];
        let block = *first;
        if !block.is_null() {
            *first = (*block).0;
        }
        block
    });
    block.unwrap_or(ptr::null_mut()).cast()
}

/// Keeps a block of a class; whether it is kept.
///
/// # Safety
/// It was allocated with the layout of the class, and its owner gives it up.
#[inline]
unsafe fn put(at: *mut u8, class: usize) -> bool {
    if !KEEPS.load(Ordering::Relaxed) {
        return false;
    }
    let block: Free = at.cast();
    // SAFETY: the list is this thread's, as in `take`; the block is the caller's to write to, large and aligned enough for `Next`.
    KEPT.try_with(|kept| unsafe {
        let first = &mut (*kept.get())[class];
        block.write(Next(*first));
        *first = block;
    })
    .is_ok()
}

#[inline]
fn note(bytes: i64) {
    if COUNTS.load(Ordering::Relaxed) {
        ALLOCATED.fetch_add(bytes, Ordering::Relaxed);
    }
}

// SAFETY: memory is the system allocator's, passed on with what the caller has promised: what has a class is always asked for and given
// back with the layout of the class, which is at least as large and as aligned as the caller's. Counting and keeping allocate nothing.
unsafe impl GlobalAlloc for Memory {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size() as i64);
        let Some((class, layout)) = class_of(layout) else {
            // SAFETY: as the caller has promised.
            return unsafe { System.alloc(layout) };
        };
        let kept = take(class);
        // SAFETY: a class has a size above zero.
        if kept.is_null() { unsafe { System.alloc(layout) } } else { kept }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size() as i64);
        let Some((class, whole)) = class_of(layout) else {
            // SAFETY: as the caller has promised.
            return unsafe { System.alloc_zeroed(layout) };
        };
        let kept = take(class);
        if kept.is_null() {
            // SAFETY: a class has a size above zero.
            return unsafe { System.alloc_zeroed(whole) };
        }
        // SAFETY: the block is ours and at least so large.
        unsafe { kept.write_bytes(0, layout.size()) };
        kept
    }

    #[inline]
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        note(-(layout.size() as i64));
        match class_of(layout) {
            // SAFETY: the caller gives it up, and `alloc` has got it with the layout of the class.
            Some((class, whole)) => unsafe {
                if !put(at, class) {
                    System.dealloc(at, whole);
                }
            },
            // SAFETY: as the caller has promised.
            None => unsafe { System.dealloc(at, layout) },
        }
    }

    #[inline]
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        // SAFETY: the caller has promised that the size, rounded up to the alignment, does not overflow.
        let new = unsafe { Layout::from_size_align_unchecked(bytes, layout.align()) };
        match (class_of(layout), class_of(new)) {
            (None, None) => {
                note(bytes as i64 - layout.size() as i64);
                // SAFETY: as the caller has promised.
                unsafe { System.realloc(at, layout, bytes) }
            }
            (Some((old, _)), Some((new, _))) if old == new => {
                note(bytes as i64 - layout.size() as i64);
                at
            }
            // SAFETY: both blocks are at least as large as what is copied, and two.
            _ => unsafe {
                let to = self.alloc(new);
                if !to.is_null() {
                    ptr::copy_nonoverlapping(at, to, layout.size().min(bytes));
                    self.dealloc(at, layout);
                }
                to
            },
        }
    }
}
