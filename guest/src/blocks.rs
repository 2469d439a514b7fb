//! `umpa`, and a heap on it, behind the traits of the measured work.

#![allow(unsafe_code)] // reason: the trait is unsafe, as blocks are bare memory

use core::ptr::NonNull;

use umpa_abi::addr::{Gva, PAGE_BYTES};
use work::Blocks;
use work::fig9::Held;

use crate::heap::GuestHeap;
use crate::userpage::Allocator;

/// An allocator and the series that it stands for.
pub struct UmpaBlocks<'a, 'm> {
    name: &'static str,
    umpa: &'a mut Allocator<'m>,
}

impl<'a, 'm> UmpaBlocks<'a, 'm> {
    /// The series `name` on `umpa`.
    #[must_use]
    pub fn new(name: &'static str, umpa: &'a mut Allocator<'m>) -> Self {
        Self { name, umpa }
    }

    /// The allocator.
    pub fn umpa(&mut self) -> &mut Allocator<'m> {
        self.umpa
    }
}

// SAFETY: umpa's blocks are whole pages, mapped writable, shared with nothing (its invariants), until
// they are freed.
unsafe impl Blocks for UmpaBlocks<'_, '_> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn alloc(&mut self, bytes: u64) -> Option<NonNull<u8>> {
        let gva = self.umpa.userpage_malloc(bytes).ok()?;
        NonNull::new(gva.get() as *mut u8)
    }

    unsafe fn free(&mut self, block: NonNull<u8>, _bytes: u64) {
        let freed = self.umpa.userpage_free(Gva::new(block.as_ptr() as u64));
        debug_assert!(freed.is_ok());
    }
}

/// A heap and the series that it stands for.
pub struct HeapBlocks<'h, 'u, 'm> {
    name: &'static str,
    heap: &'h GuestHeap<'u, 'm>,
}

impl<'h, 'u, 'm> HeapBlocks<'h, 'u, 'm> {
    /// The series `name` on `heap`.
    #[must_use]
    pub fn new(name: &'static str, heap: &'h GuestHeap<'u, 'm>) -> Self {
        Self { name, heap }
    }
}

// SAFETY: a heap's blocks are memory that nobody else has, until they are freed.
unsafe impl Blocks for HeapBlocks<'_, '_, '_> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn alloc(&mut self, bytes: u64) -> Option<NonNull<u8>> {
        self.heap.alloc(bytes as usize, 1).ok()
    }

    unsafe fn free(&mut self, block: NonNull<u8>, _bytes: u64) {
        // SAFETY: the caller's.
        let freed = unsafe { self.heap.free(block) };
        debug_assert!(freed.is_ok());
    }
}

impl Held for HeapBlocks<'_, '_, '_> {
    /// All frames that the page allocator couldn't give to somebody else at once: what waits for a flush, and what
    /// is kept mapped, isn't free.
    fn held_bytes(&mut self) -> u64 {
        let taken = self.heap.inspect(|umpa| umpa.frames().granted_frames() - umpa.frames().free_frames());
        taken.unwrap_or(0) * PAGE_BYTES
    }
}
