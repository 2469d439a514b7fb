//! Heaps: `umpa-heap`'s, with memory behind their pointers.

#![allow(unsafe_code)] // reason: heaps hand out memory, and blocks are freed by pointer

use std::hint::black_box;
use std::ptr::NonNull;

use umpa_heap::{Config, EVector, Heap};

use super::flat::{Flat, map_memory, with_umpa};
use super::{Meter, Path};

pub(super) const PATHS: &[Path] = &[
    Path { name: "heap/alloc-free-32", run: |meter| alloc_free(meter, |_| 32) },
    Path { name: "heap/alloc-free-mixed", run: |meter| alloc_free(meter, |at| 16 + at * 37 % 2000) },
    Path { name: "heap/alloc-free-1m", run: |meter| alloc_free(meter, |_| 1 << 20) },
    Path { name: "heap/run-of-4000", run },
    Path { name: "heap/evector-push", run: push },
];

const FRAMES: u64 = 64 * 512;

fn with_heap(path: impl FnOnce(&Heap<'_, '_, Flat>)) {
    map_memory(FRAMES);
    with_umpa(FRAMES, umpa::blocks::Config::default(), |umpa| {
        // SAFETY: `map_memory` has put memory behind all addresses that this allocator hands out, and nobody else uses
        // it. Content doesn't follow entries that are moved, which concerns a vector's numbers only: the heap's own
        // lists lie in segments and slabs, which stay where they are.
        let heap = unsafe { Heap::new(umpa, Config { reserve_bytes: 1 << 30 }) }.expect("a frame");
        path(&heap);
    });
}

fn free(heap: &Heap<'_, '_, Flat>, block: NonNull<u8>) {
    // SAFETY: the block was allocated by this heap, and nobody uses it any more.
    unsafe { heap.free(block) }.expect("a block of this heap");
}

/// 64 blocks, freed in another order.
fn alloc_free(meter: &mut dyn Meter, bytes: fn(usize) -> usize) {
    with_heap(|heap| {
        // Something stays, so that the heap doesn't give its last page back each time.
        let stays = heap.alloc(64 << 8, 8).expect("memory");
        let mut blocks = Vec::with_capacity(64);
        meter.measure(64, &mut || {
            blocks.extend((0..64).map(|at| heap.alloc(black_box(bytes(at)), 8).expect("memory")));
            (0..64).for_each(|at| free(heap, blocks[at * 29 % 64]));
            blocks.clear();
        });
        free(heap, stays);
    });
}

/// 4,000 equal blocks in one call, freed in the order of their addresses.
fn run(meter: &mut dyn Meter) {
    with_heap(|heap| {
        let mut pointers = vec![std::ptr::null_mut(); 4000];
        meter.measure(4000, &mut || {
            heap.alloc_run(black_box(4000), 48, 8).expect("memory").write_to(&mut pointers);
            // SAFETY: all are blocks of this heap, and nobody uses them any more.
            assert_eq!(unsafe { heap.free_all(&mut pointers) }, Ok(4000));
        });
    });
}

fn push(meter: &mut dyn Meter) {
    with_heap(|heap| {
        meter.measure(100_000, &mut || {
            let mut vector = EVector::new_in(heap);
            (0..100_000_u64).for_each(|element| vector.push(black_box(element)));
            assert_eq!(vector[99_999], 99_999);
        });
    });
}
