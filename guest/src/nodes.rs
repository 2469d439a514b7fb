//! Nodes of measured lists, from a heap: one by one, as a batch, as a run.

#![allow(unsafe_code)] // reason: hands out and frees nodes by pointer

use alloc::vec::Vec;
use core::ptr::{NonNull, null_mut};

use umpa_heap::Run;
use umpa_heap::n1527::Flags;
use work::list::{NODE_ALIGN, NODE_BYTES, Nodes};

use crate::heap::GuestHeap;

/// Nodes that are known by a pointer to each.
pub struct Pointed<'h, 'u, 'm> {
    heap: &'h GuestHeap<'u, 'm>,
    /// Whether they come and go by one call.
    batch: bool,
    pointers: Vec<*mut u8>,
    live: bool,
}

impl<'h, 'u, 'm> Pointed<'h, 'u, 'm> {
    /// None yet, but places for `nodes` pointers, which have been written; `None` without memory for them.
    #[must_use]
    pub fn new(heap: &'h GuestHeap<'u, 'm>, nodes: usize, batch: bool) -> Option<Self> {
        let mut pointers = Vec::new();
        pointers.try_reserve_exact(nodes).ok()?;
        pointers.resize(nodes, NonNull::dangling().as_ptr());
        Some(Self { heap, batch, pointers, live: false })
    }

    /// Writes all places, so that they are where they are after other work of their size.
    pub fn touch(&mut self) {
        if !self.live {
            self.pointers.fill(NonNull::dangling().as_ptr());
        }
    }

    /// The places, while there are no nodes.
    pub fn places(&mut self) -> Option<&mut [*mut u8]> {
        (!self.live).then_some(self.pointers.as_mut_slice())
    }

    fn free_batch(&mut self) -> bool {
        // SAFETY: the nodes are this value's own, and nobody uses them any more; null isn't one.
        unsafe { self.heap.batch_alloc1(None, &mut self.pointers, &mut 0, 0, 0, Flags::BATCH_IS_ALL_FREE) }
            .complete
    }

    fn free_each(&mut self) -> bool {
        self.pointers.iter_mut().all(|pointer| {
            let node = NonNull::new(core::mem::replace(pointer, null_mut()));
            // SAFETY: as in `free_batch`.
            node.is_none_or(|node| unsafe { self.heap.free(node) }.is_ok())
        })
    }
}

// SAFETY: each pointer is a block of the heap's with so many bytes, from a call that succeeded.
unsafe impl Nodes for Pointed<'_, '_, '_> {
    fn alloc(&mut self, nodes: usize) -> bool {
        if self.live || nodes != self.pointers.len() {
            return false;
        }
        self.live = true;
        if self.batch {
            let (mut size, flags) = (NODE_BYTES, Flags::BATCH_IS_ALL_ALLOC);
            // SAFETY: all blocks are new.
            let batch =
                unsafe { self.heap.batch_alloc1(None, &mut self.pointers, &mut size, NODE_ALIGN, 0, flags) };
            return batch.complete;
        }
        self.pointers.iter_mut().all(|pointer| {
            let node = self.heap.alloc(NODE_BYTES, NODE_ALIGN);
            *pointer = node.map_or(null_mut(), NonNull::as_ptr);
            node.is_ok()
        })
    }

    fn nodes(&self) -> impl Iterator<Item = *mut u8> {
        self.pointers.iter().copied()
    }

    fn free(&mut self) -> bool {
        self.live = false;
        if self.batch { self.free_batch() } else { self.free_each() }
    }
}

/// Nodes of a run: no pointers.
pub struct Running<'h, 'u, 'm> {
    heap: &'h GuestHeap<'u, 'm>,
    run: Option<Run>,
}

impl<'h, 'u, 'm> Running<'h, 'u, 'm> {
    /// None yet.
    #[must_use]
    pub const fn new(heap: &'h GuestHeap<'u, 'm>) -> Self {
        Self { heap, run: None }
    }
}

// SAFETY: the run's blocks are this value's until it frees them.
unsafe impl Nodes for Running<'_, '_, '_> {
    fn alloc(&mut self, nodes: usize) -> bool {
        if self.run.is_none() {
            self.run = self.heap.alloc_run(nodes, NODE_BYTES, NODE_ALIGN).ok();
            return self.run.is_some();
        }
        false
    }

    fn nodes(&self) -> impl Iterator<Item = *mut u8> {
        self.run.iter().flat_map(Run::iter).map(NonNull::as_ptr)
    }

    fn free(&mut self) -> bool {
        let Some(run) = self.run.take() else { return true };
        // SAFETY: the blocks are this value's own, and nobody uses them any more.
        run.iter().all(|node| unsafe { self.heap.free(node) }.is_ok())
    }
}
