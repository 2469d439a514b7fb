//! Memory from N1527's calls behind types that workloads can use without unsafe code.
//!
//! [`List`] is the paper's example: a linked list whose nodes are allocated one by one or in a batch.
//! [`Blocks`] are blocks of different sizes, allocated, resized and freed as a batch.

#![allow(unsafe_code)] // reason: nodes and blocks are bare memory

use alloc::vec::Vec;
use core::ptr::{NonNull, null_mut};

use umpa_heap::Run;
use umpa_heap::n1527::{Allocation2, Flags};

use crate::clock::cycles;
use crate::heap::GuestHeap;

/// Where a list's nodes come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// One `alloc` for each.
    Singles,
    /// One `batch_alloc1`: a pointer to each.
    Batch,
    /// One `alloc_run`: no pointers.
    Run,
}

#[derive(Clone, Copy)]
struct Node {
    next: *mut Node,
    number: u64,
}

/// A list of the numbers from 0 on; each node is a block of the heap's.
pub struct List<'l, 'u, 'm> {
    heap: &'l GuestHeap<'u, 'm>,
    first: *mut Node,
    nodes: usize,
    /// What it took to allocate the nodes, without linking them.
    pub alloc_cycles: u64,
}

impl<'l, 'u, 'm> List<'l, 'u, 'm> {
    /// `nodes` nodes; `None` when there is too little memory, all of which is free again then.
    #[must_use]
    pub fn new(heap: &'l GuestHeap<'u, 'm>, source: Source, nodes: usize) -> Option<Self> {
        let mut list = Self { heap, first: null_mut(), nodes: 0, alloc_cycles: 0 };
        if source == Source::Run {
            let start = cycles();
            let run = heap.alloc_run(nodes, size_of::<Node>(), align_of::<Node>()).ok()?;
            list.alloc_cycles = cycles() - start;
            list.link_run(&run);
            return Some(list);
        }
        // Touched before, in both ways.
        let mut pointers = Vec::new();
        pointers.try_reserve_exact(nodes).ok()?;
        pointers.resize(nodes, null_mut::<u8>());
        pointers.fill(NonNull::dangling().as_ptr());
        let start = cycles();
        let complete = if source == Source::Batch {
            let (mut size, flags) = (size_of::<Node>(), Flags::BATCH_IS_ALL_ALLOC);
            // SAFETY: all blocks are new.
            let batch =
                unsafe { heap.batch_alloc1(None, &mut pointers, &mut size, align_of::<Node>(), 0, flags) };
            batch.complete
        } else {
            pointers.iter_mut().all(|pointer| {
                let node = heap.alloc(size_of::<Node>(), align_of::<Node>());
                *pointer = node.map_or(null_mut(), NonNull::as_ptr);
                node.is_ok()
            })
        };
        list.alloc_cycles = cycles() - start;
        let none = NonNull::dangling().as_ptr();
        for &pointer in pointers.iter().rev().filter(|&&pointer| !pointer.is_null() && pointer != none) {
            list.push(pointer);
        }
        if !complete {
            return None;
        }
        list.number();
        Some(list)
    }

    /// Puts a node in front.
    fn push(&mut self, node: *mut u8) {
        let node = node.cast::<Node>();
        // SAFETY: a new block of the heap's, large and aligned enough for a node.
        unsafe { node.write(Node { next: self.first, number: 0 }) };
        self.first = node;
        self.nodes += 1;
    }

    fn link_run(&mut self, run: &Run) {
        (0..run.len()).rev().filter_map(|at| run.get(at)).for_each(|node| self.push(node.as_ptr()));
        self.number();
    }

    fn number(&mut self) {
        let mut next = self.first;
        for number in 0..self.nodes as u64 {
            // SAFETY: the list has so many nodes, and they are its own.
            let node = unsafe { &mut *next };
            node.number = number;
            next = node.next;
        }
    }

    /// Walks the list: the sum of its numbers, if they are in order.
    #[must_use]
    pub fn sum(&self) -> Option<u64> {
        let (mut next, mut sum) = (self.first, 0u64);
        for expected in 0..self.nodes as u64 {
            // SAFETY: as in `number`.
            let node = unsafe { *next };
            if node.number != expected {
                return None;
            }
            (next, sum) = (node.next, sum + node.number);
        }
        next.is_null().then_some(sum)
    }

    /// Frees every node whose number isn't a multiple of `step`, and numbers the others anew.
    ///
    /// # Panics
    /// When the heap refuses a node.
    pub fn thin(&mut self, step: u64) {
        let mut link = &raw mut self.first;
        // SAFETY: all nodes are the list's own; one that is freed is unlinked first.
        unsafe {
            while let Some(node) = NonNull::new(*link) {
                let Node { next, number } = node.read();
                if number.is_multiple_of(step) {
                    link = &raw mut (*node.as_ptr()).next;
                } else {
                    *link = next;
                    self.nodes -= 1;
                    assert!(self.heap.free(node.cast()).is_ok(), "node {number} is refused");
                }
            }
        }
        self.number();
    }

    /// Nodes.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.nodes
    }

    /// True without a node.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.nodes == 0
    }
}

impl Drop for List<'_, '_, '_> {
    fn drop(&mut self) {
        while let Some(node) = NonNull::new(self.first) {
            // SAFETY: the list's own node, which nobody uses any more.
            let freed = unsafe {
                self.first = node.read().next;
                self.heap.free(node.cast())
            };
            assert!(freed.is_ok(), "a node is refused");
        }
    }
}

/// Blocks that are allocated, resized and freed as a batch. Each byte of block `n` that was filled is
/// `n`'s.
pub struct Blocks<'l, 'u, 'm> {
    heap: &'l GuestHeap<'u, 'm>,
    entries: Vec<Allocation2>,
    errnos: Vec<i32>,
}

impl<'l, 'u, 'm> Blocks<'l, 'u, 'm> {
    /// None yet, but places for `blocks`.
    #[must_use]
    pub fn new(heap: &'l GuestHeap<'u, 'm>, blocks: usize) -> Self {
        let nothing = Allocation2 { ptr: null_mut(), size: 0 };
        Self { heap, entries: alloc::vec![nothing; blocks], errnos: alloc::vec![0; blocks] }
    }

    /// Gives each block the size that `size` says, by one `batch_alloc2`; returns how many have it.
    pub fn resize(&mut self, flags: Flags, reserve: usize, size: impl Fn(usize) -> usize) -> usize {
        for (number, entry) in self.entries.iter_mut().enumerate() {
            entry.size = size(number);
        }
        let errnos = Some(self.errnos.as_mut_slice());
        // SAFETY: the blocks are this value's own, and nobody refers to them.
        unsafe { self.heap.batch_alloc2(errnos, &mut self.entries, 0, reserve, flags) }.succeeded
    }

    /// The errno of a block in the last batch.
    #[must_use]
    pub fn errno(&self, number: usize) -> i32 {
        self.errnos[number]
    }

    /// A block's address, 0 without one.
    #[must_use]
    pub fn address(&self, number: usize) -> usize {
        self.entries[number].ptr.addr()
    }

    /// Fills the first `bytes` bytes of each block, as far as it has them.
    pub fn fill(&mut self, bytes: usize) {
        for (number, entry) in self.entries.iter().enumerate().filter(|(_, entry)| !entry.ptr.is_null()) {
            let bytes = bytes.min(self.heap.malloc_usable_size(entry.ptr));
            // SAFETY: the block has so many bytes, and it is this value's own.
            unsafe { entry.ptr.write_bytes(number as u8, bytes) };
        }
    }

    /// True when the bytes in `range` of each block, as far as it has them, are its own, or all zero.
    #[must_use]
    pub fn holds(&self, range: core::ops::Range<usize>, zero: bool) -> bool {
        self.entries.iter().enumerate().all(|(number, entry)| {
            let expected = if zero { 0 } else { number as u8 };
            let end = range.end.min(self.heap.malloc_usable_size(entry.ptr));
            // SAFETY: within the block, which is this value's own, and has been written there.
            (range.start..end).all(|at| unsafe { entry.ptr.add(at).read() } == expected)
        })
    }
}

impl Drop for Blocks<'_, '_, '_> {
    fn drop(&mut self) {
        let left = self.entries.len() - self.resize(Flags::BATCH_IS_ALL_FREE, 0, |_| 0);
        assert!(left == 0, "{left} blocks are refused");
    }
}
