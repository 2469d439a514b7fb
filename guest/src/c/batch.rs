//! N1527's batches as C has them: counts go in and out by pointer, entries are told by arrays of pointers.
//!
//! What an entry does follows from its pointer and size: [`umpa_heap::n1527`].

#![allow(unsafe_code)] // reason: C symbols; arrays and entries are the caller's, by pointer

use core::ffi::{c_int, c_void};
use core::ptr::null_mut;

use umpa::blocks::Machine;
use umpa::hardware::Contents;
use umpa::mmap::Errno;
use umpa_heap::n1527::{Allocation2, Allocation5, Flags};

use super::{Library, on_current};

/// New bytes are zero.
pub const M2_ZERO_MEMORY: u64 = 1;
/// A block that is resized stays where it is, or the entry fails.
pub const M2_PREVENT_MOVE: u64 = 2;
/// In constant time rather than with least memory: nothing is given back, nothing is copied.
pub const M2_CONSTANT_TIME: u64 = 4;
/// The reserve is a multiple of the size, not bytes.
pub const M2_RESERVE_IS_MULT: u64 = 8;
/// All entries are new blocks: pointers are written, not read.
pub const M2_BATCH_IS_ALL_ALLOC: u64 = 0x10;
/// All entries are blocks to be resized.
pub const M2_BATCH_IS_ALL_REALLOC: u64 = 0x20;
/// All entries are blocks to be freed.
pub const M2_BATCH_IS_ALL_FREE: u64 = 0x40;
/// The first of the bits for extensions. There are none, so they are refused.
pub const M2_USERFLAGS_FIRST: u64 = 0x1_0000;
/// The last of them.
pub const M2_USERFLAGS_LAST: u64 = 0x8000_0000;

const _: () = {
    assert!(M2_ZERO_MEMORY == Flags::ZERO_MEMORY.bits() && M2_PREVENT_MOVE == Flags::PREVENT_MOVE.bits());
    assert!(M2_CONSTANT_TIME == Flags::CONSTANT_TIME.bits());
    assert!(M2_RESERVE_IS_MULT == Flags::RESERVE_IS_MULT.bits());
    assert!(M2_BATCH_IS_ALL_ALLOC == Flags::BATCH_IS_ALL_ALLOC.bits());
    assert!(M2_BATCH_IS_ALL_REALLOC == Flags::BATCH_IS_ALL_REALLOC.bits());
    assert!(M2_BATCH_IS_ALL_FREE == Flags::BATCH_IS_ALL_FREE.bits());
    assert!(Flags::all().bits() < M2_USERFLAGS_FIRST && M2_USERFLAGS_FIRST < M2_USERFLAGS_LAST);
};

/// An entry of batch_alloc2.
#[allow(non_camel_case_types, reason = "N1527's name")]
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct mallocation2 {
    /// The block, or NULL.
    pub ptr: *mut c_void,
    /// Its size; what the block has, afterwards.
    pub size: usize,
}

/// An entry of batch_alloc5.
#[allow(non_camel_case_types, reason = "N1527's name")]
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct mallocation5 {
    /// The block, or NULL.
    pub ptr: *mut c_void,
    /// Its size; what the block has, afterwards.
    pub size: usize,
    /// Its alignment, a power of two; 0: that of any object.
    pub alignment: usize,
    /// How far it must be resizable in place; how far the block is, afterwards.
    pub reserve: usize,
    /// How: M2_*.
    pub flags: u64,
}

/// Memory of the caller's for `count` values; nothing without a start.
///
/// # Errors
/// `EINVAL`: there can be no such array, being misaligned or larger than memory.
///
/// # Safety
/// If there can be such an array, it is there, and nobody else uses it.
unsafe fn array<'x, T>(start: *mut T, count: usize) -> Result<Option<&'x mut [T]>, Errno> {
    if start.is_null() {
        return Ok(None);
    }
    let bytes = count.checked_mul(size_of::<T>()).filter(|&bytes| bytes <= isize::MAX as usize);
    let ends = bytes.and_then(|bytes| start.addr().checked_add(bytes)).is_some();
    if !start.is_aligned() || !ends {
        return Err(Errno::EINVAL);
    }
    // SAFETY: not null, aligned, not too long; the rest is the caller's.
    Ok(Some(unsafe { core::slice::from_raw_parts_mut(start, count) }))
}

/// A value of the caller's.
///
/// # Errors
/// `EINVAL`: there is none, or it is misaligned.
fn value<T>(at: *mut T) -> Result<*mut T, Errno> {
    if at.is_null() || !at.is_aligned() { Err(Errno::EINVAL) } else { Ok(at) }
}

/// What one entry of a batch came to.
fn errno_of(numbers: [c_int; 1], complete: bool) -> c_int {
    if complete { 0 } else { numbers[0] }
}

impl<M: Machine + Contents + Send> Library<'_, '_, '_, M> {
    /// C's [`batch_alloc1`].
    ///
    /// # Errors
    /// As there, for the call as such.
    ///
    /// # Safety
    /// As there.
    #[allow(clippy::too_many_arguments, reason = "N1527's signature")]
    pub unsafe fn batch_alloc1(
        &self,
        errnos: *mut c_int,
        ptrs: *mut *mut c_void,
        count: *mut usize,
        size: *mut usize,
        alignment: usize,
        reserve: usize,
        flags: u64,
    ) -> Result<*mut *mut c_void, Errno> {
        let count = value(count)?;
        let size = if size.is_null() { None } else { Some(value(size)?) };
        // SAFETY: both are there (the caller's precondition).
        let (entries, mut bytes) = unsafe { (count.read(), size.map_or(0, |size| size.read())) };
        // SAFETY: the caller's precondition, for both arrays.
        let (numbers, given) = unsafe { (array(errnos, entries)?, array(ptrs.cast::<*mut u8>(), entries)?) };
        let apart = |one: &[c_int], other: &[*mut u8]| {
            let (one, other) = (one.as_ptr_range(), other.as_ptr_range());
            one.end.addr() <= other.start.addr() || other.end.addr() <= one.start.addr()
        };
        let blocks = match (&numbers, given) {
            (Some(numbers), Some(given)) if !apart(numbers, given) => return Err(Errno::EINVAL),
            (_, Some(given)) => given,
            (_, None) => {
                // SAFETY: `count` is there.
                let table = self
                    .calloc(entries, size_of::<*mut c_void>())
                    .inspect_err(|_| unsafe { count.write(0) })?;
                // SAFETY: a new block of that size, aligned for pointers, and zero: null.
                unsafe { core::slice::from_raw_parts_mut(table.cast(), entries) }
            }
        };
        let ptrs = blocks.as_mut_ptr();
        let flags = Flags::from_bits_retain(flags);
        // SAFETY: the blocks are the caller's to resize and free.
        let batch = unsafe { self.0.batch_alloc1(numbers, blocks, &mut bytes, alignment, reserve, flags) };
        // SAFETY: both are there.
        unsafe {
            count.write(batch.succeeded);
            if let Some(size) = size {
                size.write(bytes);
            }
        }
        Ok(ptrs.cast())
    }

    /// Does entry by entry what `entry` does of each that there is: its errno.
    ///
    /// # Errors
    /// As for [`batch_alloc2`], for the call as such.
    ///
    /// # Safety
    /// As there.
    unsafe fn each<T>(
        &self,
        errnos: *mut c_int,
        entries: *mut *mut T,
        count: *mut usize,
        entry: impl Fn(*mut T) -> c_int,
    ) -> Result<bool, Errno> {
        let count = value(count)?;
        // SAFETY: it is there (the caller's precondition).
        let all = unsafe { count.read() };
        let (numbers, entries) = if all == 0 { (errnos, entries) } else { (errnos, value(entries)?) };
        // SAFETY: only their lengths are looked at here; the caller's precondition.
        let _ = unsafe { (array(numbers, all)?, array(entries, all)?) };
        let mut succeeded = 0;
        for at in 0..all {
            // SAFETY: the array has so many entries (the caller's precondition).
            let number = match unsafe { entries.add(at).read() } {
                none if none.is_null() => 0,
                some if some.is_aligned() => entry(some),
                _ => Errno::EINVAL as c_int,
            };
            succeeded += usize::from(number == 0);
            if !numbers.is_null() {
                // SAFETY: the same goes for this array.
                unsafe { numbers.add(at).write(number) };
            }
        }
        // SAFETY: it is there.
        unsafe { count.write(succeeded) };
        Ok(succeeded == all)
    }

    /// C's [`batch_alloc2`].
    ///
    /// # Errors
    /// As there, for the call as such.
    ///
    /// # Safety
    /// As there.
    pub unsafe fn batch_alloc2(
        &self,
        errnos: *mut c_int,
        entries: *mut *mut mallocation2,
        count: *mut usize,
        alignment: usize,
        reserve: usize,
        flags: u64,
    ) -> Result<bool, Errno> {
        let flags = Flags::from_bits_retain(flags);
        let one = |at: *mut mallocation2| {
            // SAFETY: an entry is there, and its block is the caller's to resize and free.
            unsafe {
                let entry = at.read();
                let (mut number, mut list) = ([0], [Allocation2 { ptr: entry.ptr.cast(), size: entry.size }]);
                let done = self.0.batch_alloc2(Some(&mut number), &mut list, alignment, reserve, flags);
                at.write(mallocation2 { ptr: list[0].ptr.cast(), size: list[0].size });
                errno_of(number, done.complete)
            }
        };
        // SAFETY: the caller's precondition.
        unsafe { self.each(errnos, entries, count, one) }
    }

    /// C's [`batch_alloc5`].
    ///
    /// # Errors
    /// As there, for the call as such.
    ///
    /// # Safety
    /// As there.
    pub unsafe fn batch_alloc5(
        &self,
        errnos: *mut c_int,
        entries: *mut *mut mallocation5,
        count: *mut usize,
    ) -> Result<bool, Errno> {
        let one = |at: *mut mallocation5| {
            // SAFETY: an entry is there, and its block is the caller's to resize and free.
            unsafe {
                let mallocation5 { ptr, size, alignment, reserve, flags } = at.read();
                let entry = Allocation5 {
                    ptr: ptr.cast(),
                    size,
                    alignment,
                    reserve,
                    flags: Flags::from_bits_retain(flags),
                };
                let (mut number, mut list) = ([0], [entry]);
                let done = self.0.batch_alloc5(Some(&mut number), &mut list);
                let [Allocation5 { ptr, size, reserve, .. }] = list;
                at.write(mallocation5 { ptr: ptr.cast(), size, alignment, reserve, flags });
                errno_of(number, done.complete)
            }
        };
        // SAFETY: the caller's precondition.
        unsafe { self.each(errnos, entries, count, one) }
    }
}

/// Allocates, resizes or frees blocks of one size. For each pointer: NULL becomes a new block; a block is
/// resized, and may move; without a size (NULL or 0) it is freed and the pointer becomes NULL. Entries succeed
/// or fail each by itself, and a failed one keeps its pointer.
///
/// count becomes the number of entries that succeeded, size the least that a new or resized block has. errnos,
/// where given, gets 0 or the error of each entry: EINVAL (no block begins there, flags that contradict each
/// other, no such alignment), ENOMEM (too little memory) or ENOSPC (a block would have to move and must not).
///
/// Returns ptrs. If that is NULL, an array of new blocks is allocated and returned, to be freed by free().
///
/// # Errors
/// NULL, and nothing was done. EINVAL: no count; arrays that overlap, are misaligned or larger than memory.
/// ENOMEM: no memory for the array; count becomes 0.
///
/// # Safety
/// The arrays have count elements. Nobody uses a block any more by its old address.
#[cfg_attr(feature = "image", unsafe(no_mangle))]
pub unsafe extern "C" fn batch_alloc1(
    errnos: *mut c_int,
    ptrs: *mut *mut c_void,
    count: *mut usize,
    size: *mut usize,
    alignment: usize,
    reserve: usize,
    flags: u64,
) -> *mut *mut c_void {
    on_current(
        // SAFETY: the caller's precondition.
        |library| unsafe { library.batch_alloc1(errnos, ptrs, count, size, alignment, reserve, flags) },
        null_mut(),
    )
}

/// Allocates, resizes or frees blocks, each of its own size, which becomes what the block has. Otherwise as
/// batch_alloc1; a NULL entry is passed over, and succeeds. Returns whether all entries succeeded.
///
/// # Errors
/// False, and nothing was done. EINVAL: no count, no entries; arrays that are misaligned or larger than memory.
///
/// # Safety
/// The arrays have count elements. Nobody uses a block any more by its old address.
#[cfg_attr(feature = "image", unsafe(no_mangle))]
pub unsafe extern "C" fn batch_alloc2(
    errnos: *mut c_int,
    mdataptrs: *mut *mut mallocation2,
    count: *mut usize,
    alignment: usize,
    reserve: usize,
    flags: u64,
) -> bool {
    // SAFETY: the caller's precondition.
    on_current(
        |library| unsafe { library.batch_alloc2(errnos, mdataptrs, count, alignment, reserve, flags) },
        false,
    )
}

/// batch_alloc2 with alignment, reserve and flags of each entry's own; the reserve becomes what the block has.
///
/// # Errors
/// False, and nothing was done. As for batch_alloc2.
///
/// # Safety
/// The arrays have count elements. Nobody uses a block any more by its old address.
#[cfg_attr(feature = "image", unsafe(no_mangle))]
pub unsafe extern "C" fn batch_alloc5(
    errnos: *mut c_int,
    mdataptrs: *mut *mut mallocation5,
    count: *mut usize,
) -> bool {
    // SAFETY: the caller's precondition.
    on_current(|library| unsafe { library.batch_alloc5(errnos, mdataptrs, count) }, false)
}
