//! A counting allocator: bytes of heap that this thread holds, and held at the highest.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

struct Counting;

thread_local! {
    static HELD: Cell<i64> = const { Cell::new(0) };
    static HIGHEST: Cell<i64> = const { Cell::new(0) };
}

fn count(bytes: i64) {
    // At the end of a thread its counters are gone already.
    let _ = HELD.try_with(|held| {
        held.set(held.get() + bytes);
        let _ = HIGHEST.try_with(|highest| highest.set(highest.get().max(held.get())));
    });
}

// SAFETY: every call goes to `System` as it is; counting touches thread-locals that need no allocation.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as i64);
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-(layout.size() as i64));
        // SAFETY: the caller's promise, passed on.
        unsafe { System.dealloc(at, layout) }
    }
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count(bytes as i64 - layout.size() as i64);
        // SAFETY: the caller's promise, passed on.
        unsafe { System.realloc(at, layout, bytes) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What `f` gives, and how many bytes more than at its beginning this thread held at the highest.
pub(crate) fn highest<R>(f: impl FnOnce() -> R) -> (R, i64) {
    let before = HELD.get();
    HIGHEST.set(before);
    let answer = f();
    (answer, HIGHEST.get() - before)
}
