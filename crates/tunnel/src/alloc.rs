//! Memory for packets, kept by the threads that move them (decision 0171).
//!
//! WireGuard's library takes and gives each packet in memory of its own. A thread that says so keeps what it gives
//! back, and takes it from there when the same size is asked for again, without a lock. For all other threads this is
//! the system's allocator, and so is every block: nothing is rounded, none has a header.

#![expect(unsafe_code, reason = "an allocator; each block has its SAFETY comment")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ptr;

/// Sizes that are kept, in bytes: room for the address of the next block, and the longest packet.
const LEAST: usize = 16;
const MOST: usize = 66_000;
/// The system aligns every block so: 16 where addresses have 8 bytes, 8 where they have 4. A block that was asked for with
/// less must not be given to who asks for more.
const ALIGN: usize = 2 * size_of::<usize>();
/// Places of a shelf, each for one size at a time: whole segments, last ones, acknowledgements, each in clear and sealed.
const PLACES: usize = 16;
/// Blocks of a place. The library has one or two at a time.
const BLOCKS: usize = 8;
/// Bytes of a place.
const BYTES: usize = 64 << 10;

/// The program's allocator: `#[global_allocator]`.
#[derive(Debug)]
pub struct Packets;

/// Blocks of one size, each with the address of the next.
struct Place {
    size: Cell<usize>,
    first: Cell<*mut u8>,
    count: Cell<usize>,
}

struct Shelf {
    places: [Place; PLACES],
    /// The thread keeps what it gives back.
    keeps: Cell<bool>,
}

thread_local! {
    // Constant, and nothing to drop: looking at it allocates nothing.
    static SHELF: Shelf = const {
        Shelf {
            places: [const { Place { size: Cell::new(0), first: Cell::new(ptr::null_mut()), count: Cell::new(0) } };
                PLACES],
            keeps: Cell::new(false),
        }
    };
}

/// The calling thread keeps packets' memory as long as the value lives.
#[derive(Debug)]
pub struct Keeping(());

/// From now on the calling thread keeps packets' memory.
pub fn keep() -> Keeping {
    SHELF.with(|shelf| shelf.keeps.set(true));
    Keeping(())
}

impl Drop for Keeping {
    fn drop(&mut self) {
        SHELF.with(|shelf| {
            shelf.keeps.set(false);
            for place in &shelf.places {
                while place.discard() {}
            }
        });
    }
}

impl Place {
    fn take(&self) -> Option<*mut u8> {
        let first = self.first.get();
        if first.is_null() {
            return None;
        }
        // SAFETY: a block here is ours alone, is aligned for a pointer, and begins with one that `put` wrote.
        self.first.set(unsafe { first.cast::<*mut u8>().read() });
        self.count.set(self.count.get() - 1);
        Some(first)
    }

    fn put(&self, block: *mut u8) {
        // SAFETY: the caller gives the block away; it is large enough and aligned for a pointer.
        unsafe { block.cast::<*mut u8>().write(self.first.get()) };
        self.first.set(block);
        self.count.set(self.count.get() + 1);
    }

    /// Gives a block back to the system; false if there is none.
    fn discard(&self) -> bool {
        let Some(block) = self.take() else { return false };
        // SAFETY: the system allocated it with this size and an alignment that it gives every block; it has no other
        // owner.
        unsafe { System.dealloc(block, Layout::from_size_align_unchecked(self.size.get(), ALIGN)) };
        true
    }
}

impl Shelf {
    /// The place of a size, if blocks of its layout are kept at all.
    fn place(&self, layout: Layout) -> Option<&Place> {
        let kept = (LEAST..=MOST).contains(&layout.size()) && layout.align() <= ALIGN;
        kept.then(|| &self.places[layout.size() / 8 % PLACES])
    }
}

/// A block of exactly this size off the calling thread's shelf.
fn take(layout: Layout) -> Option<*mut u8> {
    SHELF.with(|shelf| shelf.place(layout).filter(|place| place.size.get() == layout.size())?.take())
}

/// Puts a block on the calling thread's shelf; false if it keeps none, or no more.
fn put(block: *mut u8, layout: Layout) -> bool {
    SHELF.with(|shelf| {
        let Some(place) = shelf.place(layout).filter(|_| shelf.keeps.get()) else { return false };
        if place.size.get() != layout.size() {
            // Another size of the same place gives way, block by block.
            place.discard();
            if place.count.get() > 0 {
                return false;
            }
            place.size.set(layout.size());
        }
        if place.count.get() >= BLOCKS.min(BYTES / layout.size()).max(1) {
            return false;
        }
        place.put(block);
        true
    })
}

// SAFETY: every block is one of the system's with exactly the layout asked for; one that was given back is on one shelf
// or with the system, never both.
unsafe impl GlobalAlloc for Packets {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        take(layout).unwrap_or_else(|| unsafe { System.alloc(layout) })
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if !put(block, layout) {
            // SAFETY: the caller's promise.
            unsafe { System.dealloc(block, layout) };
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        match take(layout) {
            Some(block) => {
                // SAFETY: the block has these many bytes.
                unsafe { block.write_bytes(0, layout.size()) };
                block
            }
            // SAFETY: the caller's promise.
            None => unsafe { System.alloc_zeroed(layout) },
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's promise; the block is one of the system's, as is every block.
        unsafe { System.realloc(block, layout, size) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(size: usize) -> Layout {
        Layout::from_size_align(size, 8).unwrap()
    }

    fn kept() -> usize {
        SHELF.with(|shelf| shelf.places.iter().map(|place| place.count.get()).sum())
    }

    #[test]
    fn a_size_comes_again_and_others_do_not_get_it() {
        let keeping = keep();
        // SAFETY: each block is used within its size and freed once with its layout.
        unsafe {
            let first = Packets.alloc(layout(1452));
            first.write_bytes(7, 1452);
            Packets.dealloc(first, layout(1452));
            let other = Packets.alloc(layout(1451));
            assert_ne!(other, first);
            let again = Packets.alloc_zeroed(layout(1452));
            assert_eq!(again, first);
            assert!((0..1452).all(|at| *again.add(at) == 0));
            again.write_bytes(9, 1452);
            let grown = Packets.realloc(again, layout(1452), 5000);
            assert!((0..1452).all(|at| *grown.add(at) == 9));
            Packets.dealloc(grown, layout(5000));
            Packets.dealloc(other, layout(1451));
            let tiny = Packets.alloc(layout(8));
            Packets.dealloc(tiny, layout(8));
        }
        assert_eq!(kept(), 2);
        drop(keeping);
        assert_eq!(kept(), 0);
    }

    /// Takes and gives back so many blocks at once.
    fn churn(size: usize, count: usize) -> usize {
        // SAFETY: each block is freed once with its layout.
        unsafe {
            let blocks: Vec<*mut u8> = (0..count).map(|_| Packets.alloc(layout(size))).collect();
            blocks.iter().for_each(|block| Packets.dealloc(*block, layout(size)));
        }
        kept()
    }

    #[test]
    fn a_thread_keeps_only_if_it_says_so_and_not_without_end() {
        assert_eq!(churn(1452, 100), 0);
        let _keeping = keep();
        assert_eq!(churn(1452, 100), BLOCKS);
        // A place holds one size: the new one takes it over.
        assert_eq!(churn(1452 + 8 * PLACES, 100), BLOCKS);
        assert_eq!(churn(MOST, 100), BLOCKS + 1);
        assert_eq!(churn(MOST + 1, 100), BLOCKS + 1);
    }
}
