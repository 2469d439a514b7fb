//! One block.

#![allow(unsafe_code)] // reason: takes and gives blocks by pointer

use core::ptr::NonNull;

use umpa::blocks::Machine;
use umpa::mmap::Errno;

use super::errno;
use super::flags::{Flags, Manner};
use crate::heap::Heap;

impl<M: Machine + Send> Heap<'_, '_, M> {
    /// C's `aligned_alloc`: `size` bytes at a multiple of `alignment`.
    ///
    /// # Errors
    /// `EINVAL`, `ENOMEM` ([module](super)).
    pub fn aligned_alloc(&self, alignment: usize, size: usize) -> Result<NonNull<u8>, Errno> {
        self.alloc(size, alignment).map_err(errno)
    }

    /// C's `realloc` of a block that stays aligned. Null is allocated.
    ///
    /// # Errors
    /// `EINVAL`, `ENOMEM` ([module](super)); the block is as it was.
    ///
    /// # Safety
    /// As for [`Heap::realloc`].
    pub unsafe fn aligned_realloc(
        &self,
        ptr: *mut u8,
        alignment: usize,
        size: usize,
    ) -> Result<NonNull<u8>, Errno> {
        match NonNull::new(ptr) {
            None => self.aligned_alloc(alignment, size),
            // SAFETY: the caller's precondition.
            Some(block) => unsafe { self.realloc(block, size, alignment) }.map_err(errno),
        }
    }

    /// Resizes a block where it is.
    ///
    /// # Errors
    /// `EINVAL`; `ENOSPC` when it would have to move; `ENOMEM`. The block is as it was.
    ///
    /// # Safety
    /// As for [`Heap::resize`].
    pub unsafe fn try_realloc(&self, ptr: *mut u8, size: usize) -> Result<(), Errno> {
        let block = NonNull::new(ptr).ok_or(Errno::EINVAL)?;
        // SAFETY: the caller's precondition.
        unsafe { self.resize(block, size) }.map_err(errno)
    }

    /// Resizes a block where it is, if it is aligned there.
    ///
    /// # Errors
    /// As for [`Self::try_realloc`]; `ENOSPC` also when the block isn't aligned.
    ///
    /// # Safety
    /// As for [`Heap::resize`].
    pub unsafe fn try_aligned_realloc(
        &self,
        ptr: *mut u8,
        alignment: usize,
        size: usize,
    ) -> Result<(), Errno> {
        if !alignment.is_power_of_two() {
            return Err(Errno::EINVAL);
        }
        // A pointer that isn't a block's is told first.
        let block = NonNull::new(ptr).ok_or(Errno::EINVAL)?;
        self.usable_bytes(block).map_err(errno)?;
        if !ptr.addr().is_multiple_of(alignment) {
            return Err(Errno::ENOSPC);
        }
        // SAFETY: the caller's precondition.
        unsafe { self.try_realloc(ptr, size) }
    }

    /// Bytes that a block has, all of which may be used; 0 for null and for what is no block.
    #[must_use]
    pub fn malloc_usable_size(&self, ptr: *mut u8) -> usize {
        NonNull::new(ptr).and_then(|block| self.usable_bytes(block).ok()).unwrap_or(0)
    }

    pub(super) fn new_block(&self, size: usize, manner: &Manner) -> Result<NonNull<u8>, Errno> {
        let reserve_bytes = manner.reserve_bytes(size)?;
        let block = self.alloc_reserved(size, manner.align_bytes, reserve_bytes).map_err(errno)?;
        if manner.flags.contains(Flags::ZERO_MEMORY) {
            self.zero_from(block, 0)?;
        }
        Ok(block)
    }

    /// # Safety
    /// As for [`Heap::realloc`].
    pub(super) unsafe fn resized(
        &self,
        block: NonNull<u8>,
        size: usize,
        manner: &Manner,
    ) -> Result<NonNull<u8>, Errno> {
        let had_bytes = self.usable_bytes(block).map_err(errno)?;
        let reserve_bytes = manner.reserve_bytes(size)?;
        let pinned = Flags::PREVENT_MOVE.union(Flags::CONSTANT_TIME);
        // SAFETY: the caller's precondition, in all of these.
        let block = unsafe {
            if manner.flags.intersects(pinned) {
                self.try_aligned_realloc(block.as_ptr(), manner.align_bytes, size).map(|()| block)
            } else {
                let moved = self.realloc_reserved(block, size, manner.align_bytes, reserve_bytes);
                moved.map_err(errno)
            }
        }?;
        if manner.flags.contains(Flags::ZERO_MEMORY) {
            self.zero_from(block, had_bytes.min(size))?;
        }
        Ok(block)
    }

    /// Zeroes what a block has from `from_bytes` on.
    pub(super) fn zero_from(&self, block: NonNull<u8>, from_bytes: usize) -> Result<(), Errno> {
        let bytes = self.usable_bytes(block).map_err(errno)?;
        if let Some(added) = bytes.checked_sub(from_bytes) {
            // SAFETY: the block has so many bytes, and its owner has asked for this.
            unsafe { block.add(from_bytes).write_bytes(0, added) };
        }
        Ok(())
    }
}
