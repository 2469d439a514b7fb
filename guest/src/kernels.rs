//! Memory for measured kernels the way that a program on umpa would ask for it: vectors that grow by page table,
//! and a tree's nodes by one call.

#![allow(unsafe_code)] // reason: takes nodes by pointer, and frees them

use alloc::vec::Vec;
use core::ptr::NonNull;

use umpa_heap::n1527::Flags;
use umpa_heap::{EVector, Heap};
use work::kernels::trees::{NODE, Node, Nodes};
use work::kernels::{Column, Full, Memory};

use crate::heap::GuestHeap;
use crate::machine::Machine;

/// A heap, by what it has beyond an allocator's calls.
#[derive(Clone, Copy)]
pub struct Own<'h, 'u, 'm>(pub &'h GuestHeap<'u, 'm>);

/// A vector that grows by page table.
pub struct Paged<'h, 'u, 'm, T>(EVector<'h, 'u, 'static, T, &'m mut Machine>);

impl<T: Copy> Column<T> for Paged<'_, '_, '_, T> {
    #[inline]
    fn push(&mut self, element: T) -> Result<(), Full> {
        self.0.try_push(element).map_err(|_| Full)
    }
    fn elements(&self) -> &[T] {
        &self.0
    }
}

/// The nodes of a tree, in one batch.
pub struct Batch<'h, 'u, 'm> {
    heap: &'h GuestHeap<'u, 'm>,
    /// Those of the tree; no more than a vector between trees.
    nodes: Vec<*mut u8>,
    taken: usize,
}

// SAFETY: the pointers are blocks of the heap's, each taken once, until all are freed.
unsafe impl Nodes for Batch<'_, '_, '_> {
    fn begin(&mut self, nodes: usize) -> Result<(), Full> {
        self.nodes.clear();
        self.nodes.try_reserve_exact(nodes).map_err(|_| Full)?;
        self.nodes.resize(nodes, NonNull::dangling().as_ptr());
        self.taken = 0;
        let (mut size, flags) = (NODE.size(), Flags::BATCH_IS_ALL_ALLOC);
        // SAFETY: all blocks are new.
        let batch =
            unsafe { self.heap.batch_alloc1(None, &mut self.nodes, &mut size, NODE.align(), 0, flags) };
        if batch.complete { Ok(()) } else { Err(Full) }
    }

    #[inline]
    fn take(&mut self) -> Option<NonNull<Node>> {
        let node = *self.nodes.get(self.taken)?;
        self.taken += 1;
        NonNull::new(node.cast())
    }

    unsafe fn end(&mut self, _root: NonNull<Node>) -> bool {
        // What the next tree needs isn't given back to the page allocator meanwhile.
        let flags = Flags::BATCH_IS_ALL_FREE.union(Flags::CONSTANT_TIME);
        // SAFETY: the nodes are those of the tree, and nobody uses them any more (the caller).
        unsafe { self.heap.batch_alloc1(None, &mut self.nodes, &mut 0, 0, 0, flags) }.complete
    }
}

impl<'u, 'm> Memory for Own<'_, 'u, 'm> {
    type Arrays = Heap<'u, 'static, &'m mut Machine>;
    type Column<'c, T: Copy + 'c>
        = Paged<'c, 'u, 'm, T>
    where
        Self: 'c;
    type Nodes<'c>
        = Batch<'c, 'u, 'm>
    where
        Self: 'c;

    fn arrays(&self) -> &Self::Arrays {
        self.0
    }
    fn column<T: Copy>(&self) -> Paged<'_, 'u, 'm, T> {
        Paged(EVector::new_in(self.0))
    }
    fn nodes(&self) -> Batch<'_, 'u, 'm> {
        Batch { heap: self.0, nodes: Vec::new(), taken: 0 }
    }
}
