//! Values that are replaced while others look at them, without a lock: who looks holds an epoch guard.
//!
//! Flow: the directory's tables, the log's segments, what values are cut from, windows of files that are not mapped.
//! Invariant: a value is destroyed once, after every guard that was held when it was replaced is gone, or with its cell, which whoever looks
//! at it borrows.

use std::sync::atomic::Ordering;

use crossbeam_epoch::{self as epoch, Atomic, Guard, Owned};
use parking_lot::Mutex;

use super::prefetch_at;

/// A value that readers look at under an epoch guard while a writer replaces it.
pub(crate) struct Cell<T: Send + Sync + 'static>(Atomic<T>);

impl<T: Send + Sync + 'static> Cell<T> {
    pub(crate) fn new(value: T) -> Self {
        Cell(Atomic::new(value))
    }

    /// The present value, valid for as long as the guard is held, and the cell is there.
    #[inline]
    pub(crate) fn load<'g>(&'g self, guard: &'g Guard) -> &'g T {
        // SAFETY: the pointer is never null (`new` and `replace` store a value), and what it points at is destroyed after every guard that
        // was held when it was replaced is gone, or with the cell, which is borrowed for as long.
        unsafe { self.0.load(Ordering::Acquire, guard).deref() }
    }

    /// Has the present value brought near. No guard is needed: it is not looked at.
    #[inline]
    pub(super) fn fetch(&self) {
        // SAFETY: the pointer is not followed.
        prefetch_at(unsafe { self.0.load(Ordering::Relaxed, epoch::unprotected()) }.as_raw());
    }

    /// Puts another value; the old one goes when nobody can look at it any more.
    pub(crate) fn replace(&self, value: T, guard: &Guard) {
        let old = self.0.swap(Owned::new(value), Ordering::AcqRel, guard);
        // SAFETY: `old` was just unlinked, by us alone, so it is destroyed once and nobody can newly reach it.
        unsafe { guard.defer_destroy(old) };
    }
}

impl<T: Send + Sync + 'static> Drop for Cell<T> {
    fn drop(&mut self) {
        // Here and now: left to the collector it would wait until this thread, which may be idle from here on, leaves more to it.
        // SAFETY: never null, as above, and nobody looks at it: who does borrows the cell.
        drop(unsafe { std::mem::take(&mut self.0).into_owned() });
    }
}

/// As [`Cell`], of values which keep what should go as soon as nobody can look at it: those that were replaced stay with the cell, and
/// go with it, or many at once. What one thread leaves to the collector stays until that thread leaves more.
pub(crate) struct KeepingCell<T: Send + Sync + 'static> {
    now: Cell<T>,
    replaced: Mutex<Vec<Atomic<T>>>,
}

/// So many values that were replaced go at once.
const REPLACED_MAX: usize = 64;

impl<T: Send + Sync + 'static> KeepingCell<T> {
    pub(crate) fn new(value: T) -> Self {
        KeepingCell { now: Cell::new(value), replaced: Mutex::default() }
    }

    /// As [`Cell::load`].
    #[inline]
    pub(crate) fn load<'g>(&'g self, guard: &'g Guard) -> &'g T {
        self.now.load(guard)
    }

    /// Puts another value.
    pub(crate) fn replace(&self, value: T, guard: &Guard) {
        let old = self.now.0.swap(Owned::new(value), Ordering::AcqRel, guard);
        let going = {
            let mut replaced = self.replaced.lock();
            replaced.push(Atomic::from(old));
            if replaced.len() < REPLACED_MAX {
                return;
            }
            std::mem::take(&mut *replaced)
        };
        for old in going {
            // SAFETY: as in `Cell::replace`; it was taken out of the list, by us alone.
            unsafe { guard.defer_destroy(old.load(Ordering::Relaxed, guard)) };
        }
        guard.flush();
    }
}

impl<T: Send + Sync + 'static> Drop for KeepingCell<T> {
    fn drop(&mut self) {
        for old in self.replaced.get_mut().drain(..) {
            // SAFETY: a value that `replace` took out of the cell, and nobody looks at it: who does borrows the cell.
            drop(unsafe { old.into_owned() });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn what_a_cell_keeps_goes_with_it_however_idle_the_thread_is() {
        let kept = Arc::new(());
        let cell = Cell::new(kept.clone());
        drop(cell);
        assert_eq!(Arc::strong_count(&kept), 1);

        let keeping = KeepingCell::new(kept.clone());
        for _ in 1..REPLACED_MAX {
            keeping.replace(kept.clone(), &epoch::pin());
        }
        assert_eq!(Arc::strong_count(&kept), 1 + REPLACED_MAX, "nothing is left to the collector");
        assert!(Arc::ptr_eq(keeping.load(&epoch::pin()), &kept));
        drop(keeping);
        assert_eq!(Arc::strong_count(&kept), 1);
    }

    #[test]
    fn of_values_that_were_replaced_few_are_kept() {
        let kept = Arc::new(());
        let cell = KeepingCell::new(kept.clone());
        let replaced = 100 * REPLACED_MAX;
        for _ in 0..replaced {
            cell.replace(kept.clone(), &epoch::pin());
        }
        // Other tests may hold guards, and epochs only move on when somebody asks.
        for _ in 0..100_000 {
            if Arc::strong_count(&kept) <= 2 * REPLACED_MAX {
                break;
            }
            epoch::pin().flush();
            std::thread::yield_now();
        }
        assert!(Arc::strong_count(&kept) <= 2 * REPLACED_MAX, "{} of {replaced}", Arc::strong_count(&kept));
        drop(cell);
    }
}
