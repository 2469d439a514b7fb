//! `malloc` and its kin, on the [heap](umpa_heap::heap): by N1527, most of them are batches of one.

#![allow(unsafe_code)] // reason: C symbols; takes blocks by pointer

use core::ffi::c_void;
use core::ptr::{NonNull, null_mut};

use umpa::blocks::Machine;
use umpa::hardware::Contents;
use umpa::mmap::Errno;
use umpa_heap::n1527::Flags;

use super::{Library, heap_errno, on_current};

/// The alignment of a block for any object.
const ALIGN_BYTES: usize = 16;

impl<M: Machine + Contents + Send> Library<'_, '_, '_, M> {
    /// C's [`aligned_alloc`]; an alignment of 0 is that of any object.
    ///
    /// # Errors
    /// As there.
    pub fn aligned_alloc(&self, alignment: usize, size: usize) -> Result<*mut c_void, Errno> {
        let alignment = if alignment == 0 { ALIGN_BYTES } else { alignment };
        self.0.alloc(size, alignment).map(|block| block.as_ptr().cast()).map_err(heap_errno)
    }

    /// C's [`calloc`].
    ///
    /// # Errors
    /// As there.
    pub fn calloc(&self, members: usize, size: usize) -> Result<*mut c_void, Errno> {
        let size = members.checked_mul(size).ok_or(Errno::ENOMEM)?;
        self.0.alloc_zeroed(size, ALIGN_BYTES).map(|block| block.as_ptr().cast()).map_err(heap_errno)
    }

    /// Does what N1527 says of a block, a size and flags; returns where the block is, or null when it was
    /// freed.
    ///
    /// # Errors
    /// As for [`batch_alloc1`](super::batch::batch_alloc1).
    ///
    /// # Safety
    /// If `block` is a block of the heap's, nobody uses it any more by its old address.
    unsafe fn one(
        &self,
        block: *mut c_void,
        alignment: usize,
        mut size: usize,
        flags: Flags,
    ) -> Result<*mut c_void, Errno> {
        let (mut errno, mut ptrs) = ([0], [block.cast()]);
        // SAFETY: the caller's precondition.
        let batch =
            unsafe { self.0.batch_alloc1(Some(&mut errno), &mut ptrs, &mut size, alignment, 0, flags) };
        if batch.complete {
            return Ok(ptrs[0].cast());
        }
        Err(Errno::from_number(errno[0]).unwrap_or(Errno::ENOMEM))
    }

    /// C's [`aligned_realloc`], and [`try_aligned_realloc`] with [`Flags::PREVENT_MOVE`].
    ///
    /// # Errors
    /// As there.
    ///
    /// # Safety
    /// If `block` is a block of the heap's, nobody uses it any more by its old address.
    pub unsafe fn aligned_realloc(
        &self,
        block: *mut c_void,
        alignment: usize,
        size: usize,
        flags: Flags,
    ) -> Result<*mut c_void, Errno> {
        if block.is_null() {
            return self.aligned_alloc(alignment, size);
        }
        // SAFETY: the caller's precondition.
        unsafe { self.one(block, alignment, size, flags) }
    }

    /// C's [`free`].
    ///
    /// # Errors
    /// As there.
    ///
    /// # Safety
    /// If `block` is a block of the heap's, nobody uses it any more.
    pub unsafe fn free(&self, block: *mut c_void) -> Result<(), Errno> {
        // SAFETY: the caller's precondition.
        unsafe { self.one(block, 0, 0, Flags::empty()) }.map(|_| ())
    }

    /// C's [`malloc_usable_size`].
    ///
    /// # Errors
    /// As there.
    pub fn malloc_usable_size(&self, block: *mut c_void) -> Result<usize, Errno> {
        let Some(block) = NonNull::new(block) else { return Ok(0) };
        self.0.usable_bytes(block.cast()).map_err(heap_errno)
    }
}

/// A block of at least so many bytes, aligned for any object; its content is whatever the memory held. No
/// bytes are a block too.
///
/// # Errors
/// NULL. ENOMEM: too little memory.
#[cfg_attr(feature = "image", unsafe(no_mangle))]
pub extern "C" fn malloc(size: usize) -> *mut c_void {
    on_current(|library| library.aligned_alloc(0, size), null_mut())
}

/// A block of so many members of so many bytes each, all zero.
///
/// # Errors
/// NULL. ENOMEM: too little memory, or more than can be counted.
#[cfg_attr(feature = "image", unsafe(no_mangle))]
pub extern "C" fn calloc(nmemb: usize, size: usize) -> *mut c_void {
    on_current(|library| library.calloc(nmemb, size), null_mut())
}

/// Gives a block so many bytes; content is kept, up to the lesser size. Returns where the block is then:
/// from 128 KiB on it moves by its page table entries, without a copy. NULL is allocated. Size 0 frees, and
/// returns NULL.
///
/// # Errors
/// NULL, and the block is as it was. EINVAL: no block begins there. ENOMEM: too little memory.
///
/// # Safety
/// Nobody uses the block any more by its old address.
#[cfg_attr(feature = "image", unsafe(no_mangle))]
pub unsafe extern "C" fn realloc(ptr: *mut c_void, size: usize) -> *mut c_void {
    // SAFETY: the caller's precondition.
    on_current(|library| unsafe { library.aligned_realloc(ptr, 0, size, Flags::empty()) }, null_mut())
}

/// Ends a block. NULL is no block, and nothing is done.
///
/// # Errors
/// EINVAL: no block begins there, so it was freed before, or never was; nothing was done.
///
/// # Safety
/// Nobody uses the block any more.
#[cfg_attr(feature = "image", unsafe(no_mangle))]
pub unsafe extern "C" fn free(ptr: *mut c_void) {
    // SAFETY: the caller's precondition.
    on_current(|library| unsafe { library.free(ptr) }, ());
}

/// A block of so many bytes at a multiple of the alignment, a power of two (0: for any object).
///
/// # Errors
/// NULL. EINVAL: the alignment is no power of two, or larger than any block. ENOMEM: too little memory.
#[cfg_attr(feature = "image", unsafe(no_mangle))]
pub extern "C" fn aligned_alloc(alignment: usize, size: usize) -> *mut c_void {
    on_current(|library| library.aligned_alloc(alignment, size), null_mut())
}

/// realloc to a block at a multiple of the alignment, a power of two (0: for any object).
///
/// # Errors
/// NULL, and the block is as it was. EINVAL: no block begins there; the alignment is no power of two. ENOMEM:
/// too little memory.
///
/// # Safety
/// Nobody uses the block any more by its old address.
#[cfg_attr(feature = "image", unsafe(no_mangle))]
pub unsafe extern "C" fn aligned_realloc(ptr: *mut c_void, alignment: usize, size: usize) -> *mut c_void {
    // SAFETY: the caller's precondition.
    on_current(|library| unsafe { library.aligned_realloc(ptr, alignment, size, Flags::empty()) }, null_mut())
}

/// realloc that never moves the block: it is resized where it is, or not at all.
///
/// # Errors
/// NULL, and the block is as it was. EINVAL: no block begins there. ENOSPC: it would have to move. ENOMEM: too
/// little memory.
///
/// # Safety
/// Nobody uses bytes that the block loses.
#[cfg_attr(feature = "image", unsafe(no_mangle))]
pub unsafe extern "C" fn try_realloc(ptr: *mut c_void, size: usize) -> *mut c_void {
    // SAFETY: the caller's precondition.
    on_current(|library| unsafe { library.aligned_realloc(ptr, 0, size, Flags::PREVENT_MOVE) }, null_mut())
}

/// aligned_realloc that never moves the block: it is resized where it is, or not at all.
///
/// # Errors
/// NULL, and the block is as it was. EINVAL: no block begins there; the alignment is no power of two. ENOSPC:
/// it would have to move, as it isn't aligned or has no room. ENOMEM: too little memory.
///
/// # Safety
/// Nobody uses bytes that the block loses.
#[cfg_attr(feature = "image", unsafe(no_mangle))]
pub unsafe extern "C" fn try_aligned_realloc(ptr: *mut c_void, alignment: usize, size: usize) -> *mut c_void {
    on_current(
        // SAFETY: the caller's precondition.
        |library| unsafe { library.aligned_realloc(ptr, alignment, size, Flags::PREVENT_MOVE) },
        null_mut(),
    )
}

/// Bytes that a block has: at least what was asked for, and all may be used. 0 for NULL.
///
/// # Errors
/// 0. EINVAL: no block begins there.
#[cfg_attr(feature = "image", unsafe(no_mangle))]
pub extern "C" fn malloc_usable_size(ptr: *mut c_void) -> usize {
    on_current(|library| library.malloc_usable_size(ptr), 0)
}
