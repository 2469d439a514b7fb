#![allow(unsafe_code, reason = "allocators that do something wrong")]

extern crate std;
use super::*;
use allocator_api2::alloc::{AllocError, Global};
use core::alloc::Layout;
use core::cell::Cell;
use core::ptr::NonNull;
use std::vec::Vec as StdVec;
use umpa_abi::record::name_text;

/// What is done wrong.
#[derive(Clone, Copy, PartialEq)]
enum Wrong {
    Nothing,
    /// What grows to so many bytes loses a bit of its first ones.
    Growth(usize),
    /// One node is two nodes.
    Node,
    /// There is no memory for so many bytes.
    None(usize),
}

struct Faulty {
    wrong: Wrong,
    live: Cell<i64>,
    /// The last node.
    node: Cell<Option<NonNull<[u8]>>>,
}

// SAFETY: the global one's blocks; what is wrong with them is what is to be found. A node that is two is never freed.
unsafe impl Allocator for Faulty {
    fn allocate(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
        if matches!(self.wrong, Wrong::None(bytes) if layout.size() >= bytes) {
            return Err(AllocError);
        }
        if self.wrong == Wrong::Node && layout == trees::NODE {
            if let Some(node) = self.node.get() {
                return Ok(node);
            }
            self.node.set(Some(Global.allocate(layout)?));
        }
        self.live.set(self.live.get() + 1);
        Global.allocate(layout)
    }
    unsafe fn deallocate(&self, block: NonNull<u8>, layout: Layout) {
        if self.wrong == Wrong::Node && layout == trees::NODE {
            return;
        }
        self.live.set(self.live.get() - 1);
        // SAFETY: the caller's.
        unsafe { Global.deallocate(block, layout) };
    }
    unsafe fn grow(&self, block: NonNull<u8>, old: Layout, new: Layout) -> Result<NonNull<[u8]>, AllocError> {
        if matches!(self.wrong, Wrong::None(bytes) if new.size() >= bytes) {
            return Err(AllocError);
        }
        // SAFETY: the caller's; the block has some bytes.
        unsafe {
            let grown = Global.grow(block, old, new)?;
            if self.wrong == Wrong::Growth(new.size()) {
                *grown.cast::<u8>().as_ptr() ^= 1;
            }
            Ok(grown)
        }
    }
}

const LEAST: u64 = *ELEMENTS_RANGE.start();

fn run(wrong: Wrong, number: u64) -> (Result<(), KernelError>, StdVec<Sample>, i64, u64) {
    let memory = Plain(Faulty { wrong, live: Cell::new(0), node: Cell::new(None) });
    let (mut samples, mut fullest) = (StdVec::new(), 0);
    let report = &mut |sample| samples.push(sample);
    let done = round(&memory, "any", LEAST, number, report, &mut || fullest += 1);
    let live = memory.0.live.get();
    (done, samples, live, fullest)
}

#[test]
fn every_kernel_has_its_rows_and_frees_all() {
    let (done, samples, live, fullest) = run(Wrong::Nothing, 3);
    // Parts of the join, largest trees, one matrix.
    assert_eq!((done, live, fullest), (Ok(()), 0, 64 + 4 + 1));
    let works: StdVec<_> = samples.iter().map(|row| name_text(&row.work)).collect();
    let join = ["join.all", "join-divide", "join-match", "join-free"];
    let trees = ["trees.all", "trees-build", "trees-walk", "trees-free"];
    let matrix = ["matrix.all", "matrix-triplets", "matrix-rows", "matrix-multiply", "matrix-free"];
    assert_eq!(works, [&join[..], &trees, &matrix].concat());
    let sizes = |at: usize| (samples[at].ops, samples[at].bytes);
    assert_eq!(sizes(0), (3 * LEAST, 3 * LEAST * 16));
    // Trees of depths 4, 6 and 8, four of the largest and so many times more of the others, and one that lasts.
    assert_eq!(sizes(4), (4 * (16 * 31 + 4 * 127 + 511) + 511, 2 * 511 * 24));
    assert_eq!(sizes(8), (3 * LEAST, 3 * LEAST * 28 + 257 * 4));
    for rows in [&samples[..4], &samples[4..8], &samples[8..]] {
        assert_eq!(rows[0].cycles, rows[1..].iter().map(|row| row.cycles).sum::<u64>());
    }
    // The same work, whatever the round's number is.
    let again = run(Wrong::Nothing, 4).1;
    assert!(samples.iter().zip(&again).all(|(one, other)| one.check == other.check));
    assert_ne!(salt(3), salt(4));
}

#[test]
fn what_memory_loses_is_found() {
    // A part of the join has 16 tuples at least, all triplets' rows are 12 KiB.
    for (wrong, wanted) in
        [(Wrong::Growth(512), "join"), (Wrong::Node, "trees"), (Wrong::Growth(8192), "matrix")]
    {
        match run(wrong, 1).0 {
            Err(KernelError::Wrong { kernel, found, wanted: number }) => {
                assert_eq!(kernel, wanted);
                assert_ne!(found, number);
            }
            other => panic!("{wanted}: {other:?}"),
        }
    }
}

#[test]
fn what_is_refused_is_no_result() {
    // The first vector of the join, and the longest vector of triplets.
    for (bytes, kernel) in [(64, "join"), (16 << 10, "matrix")] {
        assert_eq!(run(Wrong::None(bytes), 1).0, Err(KernelError::NoMemory { kernel }));
    }
    let none = round(&Plain(Global), "any", 1, 0, &mut |_| {}, &mut || {});
    assert_eq!(none, Err(KernelError::Elements { elements: 1 }));
}
