//! Pages as an allocator of collections.

use core::alloc::Layout;
use core::ptr::NonNull;

use allocator_api2::alloc::{AllocError, Allocator};
use umpa::blocks::Machine;
use umpa::hardware::Contents;
use umpa_abi::addr::PAGE_BYTES;

use super::{Below as _, Pages, address_of, memory_at};

impl<M: Machine + Contents> Pages<'_, '_, M> {
    /// Grows or shrinks: by page tables, unless the new alignment is larger than the block's.
    ///
    /// # Safety
    /// As for [`Allocator::grow`] or [`Allocator::shrink`].
    unsafe fn fit(&self, block: NonNull<u8>, old: Layout, new: Layout) -> Result<NonNull<[u8]>, AllocError> {
        if old.size() == 0 {
            return self.allocate(new);
        }
        if new.size() == 0 {
            // SAFETY: the block is one of these pages', and the caller's to give up.
            unsafe { self.deallocate(block, old) };
            return Ok(NonNull::slice_from_raw_parts(new.dangling_ptr(), 0));
        }
        // A block that was aligned to more than a page is in a window, and keeps that alignment.
        if new.align() <= old.align().max(PAGE_BYTES as usize) {
            let moved = self.realloc(address_of(block), new.size() as u64).map_err(|_| AllocError)?;
            return Ok(NonNull::slice_from_raw_parts(memory_at(moved), new.size()));
        }
        let other = self.allocate(new)?;
        let bytes = old.size().min(new.size());
        // SAFETY: both have so many bytes, and one of them is new. The old one is the caller's to give up.
        unsafe {
            other.cast::<u8>().copy_from_nonoverlapping(block, bytes);
            self.deallocate(block, old);
        }
        Ok(other)
    }
}

// SAFETY: a block stays valid until it is freed, wherever the value moves to: what `umpa` maps doesn't
// depend on it. `userpage_realloc` keeps content.
unsafe impl<M: Machine + Contents> Allocator for Pages<'_, '_, M> {
    fn allocate(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
        if layout.size() == 0 {
            return Ok(NonNull::slice_from_raw_parts(layout.dangling_ptr(), 0));
        }
        let bytes = layout.size() as u64;
        let block = match layout.align() as u64 {
            ..=PAGE_BYTES => self.alloc(bytes),
            align_bytes => self.alloc_reserved(bytes, align_bytes),
        };
        let block = block.map_err(|_| AllocError)?;
        Ok(NonNull::slice_from_raw_parts(memory_at(block), layout.size()))
    }

    fn allocate_zeroed(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
        if layout.size() > 0 && layout.align() <= PAGE_BYTES as usize {
            let block = self.alloc_zeroed(layout.size() as u64).map_err(|_| AllocError)?;
            return Ok(NonNull::slice_from_raw_parts(memory_at(block), layout.size()));
        }
        let block = self.allocate(layout)?;
        // SAFETY: it is new, and has so many bytes.
        unsafe { block.cast::<u8>().write_bytes(0, layout.size()) };
        Ok(block)
    }

    unsafe fn deallocate(&self, block: NonNull<u8>, layout: Layout) {
        if layout.size() != 0 {
            let freed = self.free(address_of(block));
            debug_assert!(freed.is_ok(), "{freed:?}");
        }
    }

    unsafe fn grow(&self, block: NonNull<u8>, old: Layout, new: Layout) -> Result<NonNull<[u8]>, AllocError> {
        // SAFETY: the caller's precondition.
        unsafe { self.fit(block, old, new) }
    }

    unsafe fn grow_zeroed(
        &self,
        block: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<[u8]>, AllocError> {
        // SAFETY: the caller's precondition.
        let grown = unsafe { self.fit(block, old, new) }?;
        // SAFETY: the block has `new.size()` bytes now.
        unsafe { grown.cast::<u8>().add(old.size()).write_bytes(0, new.size() - old.size()) };
        Ok(grown)
    }

    unsafe fn shrink(
        &self,
        block: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<[u8]>, AllocError> {
        // SAFETY: the caller's precondition.
        unsafe { self.fit(block, old, new) }
    }
}
