//! The latency-reducing allocation interface of WG14's N1527 (Niall Douglas, 2010/11), on a [`Heap`].
//!
//! | call | what |
//! | --- | --- |
//! | [`Heap::batch_alloc1`] | blocks of one size; alignment, reserve and flags for all |
//! | [`Heap::batch_alloc2`] | a size for each block |
//! | [`Heap::batch_alloc5`] | size, alignment, reserve and flags for each block |
//! | [`Heap::aligned_alloc`], [`Heap::aligned_realloc`] | one block |
//! | [`Heap::try_realloc`], [`Heap::try_aligned_realloc`] | one block that never moves |
//! | [`Heap::malloc_usable_size`] | what a block has |
//!
//! An entry of a batch is a pointer and a size, and what is done follows from both:
//!
//! | pointer | size 0 | other size |
//! | --- | --- | --- |
//! | null | nothing | a new block |
//! | a block | it is freed, the pointer becomes null | it is resized |
//!
//! Entries succeed or fail each by itself: a failed one keeps pointer and size, and its `errno` is told
//! where the caller wants it. A call counts those that succeeded. Blocks are the heap's, so those of
//! one call can be given to any other, [`Heap::free`] and Rust's collections included.
//!
//! A reserve is how far the block will be resizable in place: bytes, or a multiple of the size
//! ([`Flags::RESERVE_IS_MULT`]). From 128 KiB on it costs addresses, and a page table if the reserve is
//! 2 MiB or more; below it is memory. A block of whole pages gets its reserve by a move of its entries.
//!
//! # `errno`
//!
//! - `EINVAL`: flags that contradict each other or don't exist; an entry that isn't what
//!   [`Flags::BATCH_IS_ALL_REALLOC`] says; an alignment that is no power of two; a pointer that is no
//!   block's, as far as that can be told;
//! - `ENOMEM`: too little memory; a size or a reserve that can't be counted;
//! - `ENOSPC`: a block that would have to move and must not.
//!
//! # Cost
//!
//! [`Heap::batch_alloc1`] of new blocks below 128 KiB is one [`Heap::alloc_run`] and one store for each
//! pointer, without a look at the blocks. To know that all are new it reads the pointers, unless
//! [`Flags::BATCH_IS_ALL_ALLOC`] says so. Blocks of such batches that are freed by one, in the order of
//! their addresses, cost a read and a store each. Everything else is the heap's calls one by one.
//!
//! # Source
//!
//! N1527, "Latency Reducing Memory Allocation in the C standard library", final, with the errata of 16 March
//! 2011 (`Proposal/N1527 final.tex` of ned14/ISO_POSIX_standards_stuff at cf8988b); the values of the flags are
//! those of its reference implementations. What it leaves undefined is refused or does what is nearest
//! ([`Flags`]). A reserve that can't be had is an error here, where implementations may ignore it. C's own
//! signatures, with counts by pointer and arrays of pointers to entries, are the guest's affair.

mod batch;
mod flags;
mod one;

use umpa::mmap::Errno;

#[cfg(doc)]
use crate::heap::Heap;
use crate::heap::HeapError;

pub use batch::Batch;
pub use flags::Flags;

/// An entry of [`Heap::batch_alloc2`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allocation2 {
    /// The block, or null.
    pub ptr: *mut u8,
    /// Its size; what the block has, afterwards.
    pub size: usize,
}

/// An entry of [`Heap::batch_alloc5`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allocation5 {
    /// The block, or null.
    pub ptr: *mut u8,
    /// Its size; what the block has, afterwards.
    pub size: usize,
    /// Its alignment, a power of two; 0: that of any object.
    pub alignment: usize,
    /// How far it must be resizable in place; how far the block is, afterwards.
    pub reserve: usize,
    /// How.
    pub flags: Flags,
}

fn errno(error: HeapError) -> Errno {
    match error {
        HeapError::BadAlignment { .. } | HeapError::NotABlock { .. } => Errno::EINVAL,
        HeapError::NoRoom { .. } => Errno::ENOSPC,
        HeapError::OutOfMemory { .. } | HeapError::TooLargeForRun { .. } | HeapError::Busy => Errno::ENOMEM,
    }
}
