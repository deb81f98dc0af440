//! Memory of a program that ends after one call: given out from one block, never taken back.
//!
//! musl's allocator asks the kernel for pages and returns them again and again; of the time of an ADD that
//! was a tenth. What does not fit the block comes from the system's allocator.
#![expect(unsafe_code, reason = "a global allocator is unsafe to implement")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes; a call needs a third of it. Pages that are not touched cost nothing.
const SIZE: usize = 1 << 20;

/// A block, and how much of it is given out.
pub struct Arena {
    block: UnsafeCell<[u8; SIZE]>,
    used: AtomicUsize,
}

// SAFETY: the block is only handed out in parts, each to one caller, by an atomic counter.
unsafe impl Sync for Arena {}

impl Arena {
    /// A block of zeroes.
    pub const fn new() -> Arena {
        Arena { block: UnsafeCell::new([0; SIZE]), used: AtomicUsize::new(0) }
    }

    fn start(&self) -> usize {
        self.block.get() as usize
    }

    fn owns(&self, pointer: *mut u8) -> bool {
        (self.start()..self.start() + SIZE).contains(&(pointer as usize))
    }

    /// A part that was never given out before, hence zero.
    fn take(&self, layout: Layout) -> Option<*mut u8> {
        let place = |used: usize| {
            let from = (self.start() + used).next_multiple_of(layout.align()) - self.start();
            Some((from, from.checked_add(layout.size()).filter(|to| *to <= SIZE)?))
        };
        let used = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| Some(place(used)?.1));
        let (from, _) = place(used.ok()?)?;
        // SAFETY: `from` lies in the block.
        Some(unsafe { self.block.get().cast::<u8>().add(from) })
    }
}

// SAFETY: parts are disjoint, aligned and large enough; what is not in the block is the system's.
unsafe impl GlobalAlloc for Arena {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise is handed on.
        self.take(layout).unwrap_or_else(|| unsafe { System.alloc(layout) })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise is handed on.
        self.take(layout).unwrap_or_else(|| unsafe { System.alloc_zeroed(layout) })
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        if !self.owns(pointer) {
            // SAFETY: then the system gave it.
            unsafe { System.dealloc(pointer, layout) }
        }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if !self.owns(pointer) {
            // SAFETY: then the system gave it.
            return unsafe { System.realloc(pointer, layout, size) };
        }
        let end = pointer as usize - self.start() + layout.size();
        let grown = end - layout.size() + size;
        // The last part grows where it is.
        if size >= layout.size()
            && grown <= SIZE
            && self.used.compare_exchange(end, grown, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        {
            return pointer;
        }
        if size <= layout.size() {
            return pointer;
        }
        // SAFETY: the new size with the same alignment is a layout, by the caller's promise.
        let new = unsafe { self.alloc(Layout::from_size_align_unchecked(size, layout.align())) };
        if !new.is_null() {
            // SAFETY: two different parts, the old one `layout.size()` long and the new one longer.
            unsafe { pointer.copy_to_nonoverlapping(new, layout.size()) };
        }
        new
    }
}
