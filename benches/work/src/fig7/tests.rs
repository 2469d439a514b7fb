//! The work on allocators that are right, and on some that aren't.
#![allow(unsafe_code, reason = "allocators to test the work with")]

extern crate std;
use super::*;
use core::ptr::NonNull;
use std::alloc::Layout;
use std::vec::Vec;

const SMALL: Params = Params {
    ops: 100,
    warmup_ops: 30,
    min_bytes: 1,
    max_bytes: 64 << 10,
    ring_blocks: 8,
    slice_ops: 16,
    ..Params::PAPER
};

/// Rust's heap; `alias` hands a block that is still live out again every so many allocations.
#[derive(Default)]
struct Heap {
    allocs: u64,
    frees: u64,
    alias_every: u64,
    fail_at: Option<u64>,
    last: Option<NonNull<u8>>,
    /// Largest layout always, so that an alias never reaches beyond its block.
    owned: Vec<NonNull<u8>>,
}

impl Heap {
    fn layout() -> Layout {
        Layout::from_size_align(64 << 10, 4096).unwrap()
    }
}

// SAFETY: with `alias_every == 0` every block is an allocation of its own, large enough; otherwise
// blocks overlap, which is what these tests are for: the bytes stay valid until `Heap` is dropped.
unsafe impl Blocks for Heap {
    fn name(&self) -> &'static str {
        "heap"
    }
    fn alloc(&mut self, _bytes: u64) -> Option<NonNull<u8>> {
        self.allocs += 1;
        if self.fail_at == Some(self.allocs) {
            return None;
        }
        if self.alias_every > 0 && self.allocs.is_multiple_of(self.alias_every) {
            return self.last;
        }
        // SAFETY: the layout isn't empty.
        let block = NonNull::new(unsafe { std::alloc::alloc(Self::layout()) })?;
        self.owned.push(block);
        self.last = Some(block);
        self.last
    }
    unsafe fn free(&mut self, block: NonNull<u8>, _bytes: u64) {
        self.frees += 1;
        // As an allocator that writes a list link into free blocks: a late write would be noticed.
        // SAFETY: the block belongs to `owned`.
        unsafe { block.write(0xee) };
    }
}

impl Drop for Heap {
    fn drop(&mut self) {
        for block in self.owned.drain(..) {
            // SAFETY: allocated with this layout, dropped once.
            unsafe { std::alloc::dealloc(block.as_ptr(), Self::layout()) };
        }
    }
}

fn finish<B: Blocks>(work: &mut Fig7<'_, B>) -> u64 {
    let mut slices = 0;
    while work.run_slice().unwrap().phase != Phase::Done {
        slices += 1;
    }
    slices + 1
}

#[test]
fn every_operation_counts_once() {
    let mut slots = [Slot::EMPTY; 8];
    let mut work = Fig7::new(&SMALL, Heap::default(), &mut slots).unwrap();
    assert_eq!(work.points().count(), 0);
    assert_eq!(finish(&mut work), SMALL.schedule().total_slices());
    let points: Vec<Point> = work.points().collect();
    assert_eq!(points.iter().map(|point| point.ops).sum::<u64>(), 100);
    let sizes = Sizes::new(&SMALL).skip(30).take(100);
    assert_eq!(points.iter().map(|point| point.pages).sum::<u64>(), sizes.map(|b| b.div_ceil(4096)).sum());
    assert!(points.is_sorted_by_key(|point| point.bin_bytes));
    assert!(points.iter().all(|point| point.traverse_cycles > 0 && point.wrong_bytes == 0));
    assert_eq!(record::name_text(&points[0].series), "heap");
    assert_eq!((work.allocator().allocs, work.allocator().frees), (138, 138));
}

#[test]
fn more_slices_after_the_end_do_nothing() {
    let mut slots = [Slot::EMPTY; 8];
    let mut work = Fig7::new(&SMALL, Heap::default(), &mut slots).unwrap();
    finish(&mut work);
    let before = work.progress();
    assert_eq!(work.run_slice(), Ok(before));
    assert_eq!(work.allocator().allocs, 138);
}

#[test]
fn a_block_handed_out_twice_is_noticed() {
    let mut slots = [Slot::EMPTY; 8];
    let mut heap = Heap::default();
    heap.alias_every = 50;
    let mut work = Fig7::new(&SMALL, heap, &mut slots).unwrap();
    finish(&mut work);
    assert!(work.wrong_bytes() > 0);
    assert_eq!(work.points().map(|point| point.wrong_bytes).sum::<u64>(), work.wrong_bytes());
}

#[test]
fn no_memory_is_an_error_with_the_block() {
    let mut slots = [Slot::EMPTY; 8];
    let mut heap = Heap::default();
    heap.fail_at = Some(20);
    let mut work = Fig7::new(&SMALL, heap, &mut slots).unwrap();
    assert!(work.run_slice().is_ok());
    let bytes = Sizes::new(&SMALL).nth(19).unwrap();
    assert_eq!(work.run_slice(), Err(WorkError::NoMemory { block: 19, bytes }));
    assert_eq!(work.points().count(), 0);
}

#[test]
fn a_ring_needs_its_slots() {
    let mut slots = [Slot::EMPTY; 7];
    let error = Fig7::new(&SMALL, Heap::default(), &mut slots).map(|_| ()).unwrap_err();
    assert_eq!(error, WorkError::FewSlots { need_slots: 8, have_slots: 7 });
    let params = Params { ops: 0, ..SMALL };
    let error = Fig7::new(&params, Heap::default(), &mut [Slot::EMPTY; 8]).map(|_| ()).unwrap_err();
    assert!(matches!(error, WorkError::Params(ParamError::OutOfRange { key: "ops", .. })));
}
