//! `umpa` behind the trait of the measured work.

#![allow(unsafe_code)] // reason: the trait is unsafe, as blocks are bare memory

use core::ptr::NonNull;

use umpa_abi::addr::Gva;
use work::Blocks;

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
