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
//! ([`Flags::RESERVE_IS_MULT`]). From 64 KiB on it costs addresses, and a page table if the reserve is
//! 2 MiB or more; below it is memory.
//!
//! # `errno`
//!
//! - `EINVAL`: flags that contradict each other or don't exist; an entry that isn't what
//!   [`Flags::BATCH_IS_ALL_REALLOC`] says; an alignment that is no power of two; a pointer that is no
//!   block's, as far as that can be told;
//! - `ENOMEM`: too little memory; a size or a reserve that can't be counted; a block that would have to
//!   move and must not.
//!
//! # Cost
//!
//! [`Heap::batch_alloc1`] of new blocks below 64 KiB is one [`Heap::alloc_run`] and one store for each
//! pointer, without a look at the blocks. To know that all are new it reads the pointers, unless
//! [`Flags::BATCH_IS_ALL_ALLOC`] says so. Everything else is the heap's calls one by one.

#![allow(unsafe_code)] // reason: takes and gives blocks by pointer

use core::ptr::{NonNull, null_mut};

use bitflags::bitflags;
use umpa::blocks::Machine;
use umpa::mmap::Errno;

use crate::heap::{Heap, HeapError};

bitflags! {
    /// How a block is allocated, resized or freed (`M2_*`).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Flags: u64 {
        /// New bytes are zero: all that a new block has, and all of a resized one behind what it keeps.
        const ZERO_MEMORY = 1;
        /// A block that is resized stays where it is, or the call fails.
        const PREVENT_MOVE = 1 << 1;
        /// In constant time rather than with least memory: frees give no memory back and edit no table,
        /// and no content is copied: what would be, fails.
        const CONSTANT_TIME = 1 << 2;
        /// The reserve is a multiple of the size, not bytes.
        const RESERVE_IS_MULT = 1 << 3;
        /// All entries of the batch are new blocks: pointers are written, not read.
        const BATCH_IS_ALL_ALLOC = 1 << 4;
        /// All are blocks to be resized: a null pointer or size 0 is refused.
        const BATCH_IS_ALL_REALLOC = 1 << 5;
        /// All are freed, whatever their size says.
        const BATCH_IS_ALL_FREE = 1 << 6;
    }
}

const KINDS: Flags =
    Flags::BATCH_IS_ALL_ALLOC.union(Flags::BATCH_IS_ALL_REALLOC).union(Flags::BATCH_IS_ALL_FREE);

/// The alignment that 0 stands for: C's for any object.
const ALIGN_DEFAULT_BYTES: usize = 16;

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
    /// How far it must be resizable in place.
    pub reserve: usize,
    /// How.
    pub flags: Flags,
}

/// What a batch came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "entries may have failed"]
pub struct Batch {
    /// Entries that succeeded.
    pub succeeded: usize,
    /// All did.
    pub complete: bool,
}

/// What is done for an entry.
#[derive(Clone, Copy)]
struct Manner {
    align_bytes: usize,
    reserve: usize,
    flags: Flags,
}

impl Manner {
    const fn new(alignment: usize, reserve: usize, flags: Flags) -> Self {
        let align_bytes = if alignment == 0 { ALIGN_DEFAULT_BYTES } else { alignment };
        Self { align_bytes, reserve, flags }
    }

    /// Flags that exist and agree, and an alignment that there is.
    fn check(&self) -> Result<(), Errno> {
        let kinds = self.flags.intersection(KINDS).bits().count_ones();
        let known = Flags::from_bits(self.flags.bits()).is_some();
        if known && kinds <= 1 && self.align_bytes.is_power_of_two() { Ok(()) } else { Err(Errno::EINVAL) }
    }

    /// Bytes to reserve for a block of `size`; at least those.
    fn reserve_bytes(&self, size: usize) -> Result<usize, Errno> {
        let reserve = if self.flags.contains(Flags::RESERVE_IS_MULT) {
            self.reserve.checked_mul(size).ok_or(Errno::ENOMEM)?
        } else {
            self.reserve
        };
        Ok(reserve.max(size))
    }
}

fn errno(error: HeapError) -> Errno {
    match error {
        HeapError::BadAlignment { .. } | HeapError::NotABlock { .. } => Errno::EINVAL,
        HeapError::OutOfMemory { .. }
        | HeapError::NoRoom { .. }
        | HeapError::TooLargeForRun { .. }
        | HeapError::Busy => Errno::ENOMEM,
    }
}

/// Notes what became of entry `at`.
fn note(errnos: &mut Option<&mut [i32]>, at: usize, done: Result<(), Errno>) {
    if let Some(place) = errnos.as_deref_mut().and_then(|errnos| errnos.get_mut(at)) {
        *place = done.map_or_else(|errno| errno as i32, |()| 0);
    }
}

impl<M: Machine + Send> Heap<'_, '_, M> {
    /// C's `aligned_alloc`: `size` bytes at a multiple of `alignment`.
    ///
    /// # Errors
    /// `EINVAL`, `ENOMEM` ([module](self)).
    pub fn aligned_alloc(&self, alignment: usize, size: usize) -> Result<NonNull<u8>, Errno> {
        self.alloc(size, alignment).map_err(errno)
    }

    /// C's `realloc` of a block that stays aligned. Null is allocated.
    ///
    /// # Errors
    /// `EINVAL`, `ENOMEM` ([module](self)); the block is as it was.
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
    /// `EINVAL`; `ENOMEM` when it would have to move. The block is as it was.
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
    /// As for [`Self::try_realloc`]; `ENOMEM` also when the block isn't aligned.
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
            return Err(Errno::ENOMEM);
        }
        // SAFETY: the caller's precondition.
        unsafe { self.try_realloc(ptr, size) }
    }

    /// Bytes that a block has, all of which may be used; 0 for null and for what is no block.
    #[must_use]
    pub fn malloc_usable_size(&self, ptr: *mut u8) -> usize {
        NonNull::new(ptr).and_then(|block| self.usable_bytes(block).ok()).unwrap_or(0)
    }

    /// Allocates, resizes or frees blocks of one size. `size` becomes what each block of the batch that
    /// was allocated or resized has at least. `errnos`, as many as there are pointers, get 0 or the
    /// [`Errno`] of each entry.
    ///
    /// # Safety
    /// As for [`Heap::realloc`] and [`Heap::free`], for each pointer.
    pub unsafe fn batch_alloc1(
        &self,
        mut errnos: Option<&mut [i32]>,
        ptrs: &mut [*mut u8],
        size: &mut usize,
        alignment: usize,
        reserve: usize,
        flags: Flags,
    ) -> Batch {
        let manner = Manner::new(alignment, reserve, flags);
        if let Err(error) = manner.check() {
            (0..ptrs.len()).for_each(|at| note(&mut errnos, at, Err(error)));
            return Batch { succeeded: 0, complete: ptrs.is_empty() };
        }
        if self.new_run(ptrs, size, &manner) {
            (0..ptrs.len()).for_each(|at| note(&mut errnos, at, Ok(())));
            return Batch { succeeded: ptrs.len(), complete: true };
        }
        let (mut succeeded, mut least) = (0, None::<usize>);
        for (at, ptr) in ptrs.iter_mut().enumerate() {
            // SAFETY: the caller's precondition.
            let done = unsafe { self.entry(ptr, *size, &manner) };
            if let Ok(Some(usable)) = done {
                least = Some(least.map_or(usable, |least| least.min(usable)));
            }
            succeeded += usize::from(done.is_ok());
            note(&mut errnos, at, done.map(|_| ()));
        }
        *size = least.unwrap_or(*size);
        Batch { succeeded, complete: succeeded == ptrs.len() }
    }

    /// Allocates, resizes or frees blocks of different sizes; the sizes become what the blocks have.
    ///
    /// # Safety
    /// As for [`Heap::realloc`] and [`Heap::free`], for each pointer.
    pub unsafe fn batch_alloc2(
        &self,
        mut errnos: Option<&mut [i32]>,
        entries: &mut [Allocation2],
        alignment: usize,
        reserve: usize,
        flags: Flags,
    ) -> Batch {
        let manner = Manner::new(alignment, reserve, flags);
        let mut succeeded = 0;
        for (at, entry) in entries.iter_mut().enumerate() {
            // SAFETY: the caller's precondition.
            let done =
                manner.check().and_then(|()| unsafe { self.entry(&mut entry.ptr, entry.size, &manner) });
            if let Ok(Some(usable)) = done {
                entry.size = usable;
            }
            succeeded += usize::from(done.is_ok());
            note(&mut errnos, at, done.map(|_| ()));
        }
        Batch { succeeded, complete: succeeded == entries.len() }
    }

    /// Allocates, resizes or frees blocks, each in its own manner; the sizes become what the blocks have.
    ///
    /// # Safety
    /// As for [`Heap::realloc`] and [`Heap::free`], for each pointer.
    pub unsafe fn batch_alloc5(&self, mut errnos: Option<&mut [i32]>, entries: &mut [Allocation5]) -> Batch {
        let mut succeeded = 0;
        for (at, entry) in entries.iter_mut().enumerate() {
            let manner = Manner::new(entry.alignment, entry.reserve, entry.flags);
            // SAFETY: the caller's precondition.
            let done =
                manner.check().and_then(|()| unsafe { self.entry(&mut entry.ptr, entry.size, &manner) });
            if let Ok(Some(usable)) = done {
                entry.size = usable;
            }
            succeeded += usize::from(done.is_ok());
            note(&mut errnos, at, done.map(|_| ()));
        }
        Batch { succeeded, complete: succeeded == entries.len() }
    }

    /// The way for new small blocks: all of them, or false and nothing was done.
    fn new_run(&self, ptrs: &mut [*mut u8], size: &mut usize, manner: &Manner) -> bool {
        let forced = manner.flags.contains(Flags::BATCH_IS_ALL_ALLOC);
        let other = manner.flags.intersects(Flags::BATCH_IS_ALL_REALLOC.union(Flags::BATCH_IS_ALL_FREE));
        if ptrs.len() < 2 || *size == 0 || other || !(forced || ptrs.iter().all(|ptr| ptr.is_null())) {
            return false;
        }
        let Ok(bytes) = manner.reserve_bytes(*size) else { return false };
        let Ok(run) = self.alloc_run(ptrs.len(), bytes, manner.align_bytes) else { return false };
        if manner.flags.contains(Flags::ZERO_MEMORY) {
            for block in run.iter() {
                // SAFETY: the block has so many bytes, and nobody has it yet.
                unsafe { block.write_bytes(0, run.usable_bytes()) };
            }
            // The last one may have more: what was left over of one chunk.
            let zeroed =
                run.get(run.len() - 1).map_or(Ok(()), |last| self.zero_from(last, run.usable_bytes()));
            debug_assert!(zeroed.is_ok(), "{zeroed:?}");
        }
        run.write_to(ptrs);
        *size = run.usable_bytes();
        true
    }

    /// Does what an entry says; returns what a new or resized block has.
    ///
    /// # Safety
    /// As for [`Heap::realloc`] and [`Heap::free`].
    unsafe fn entry(&self, ptr: &mut *mut u8, size: usize, manner: &Manner) -> Result<Option<usize>, Errno> {
        let flags = manner.flags;
        let block = if flags.contains(Flags::BATCH_IS_ALL_ALLOC) { None } else { NonNull::new(*ptr) };
        let size = if flags.contains(Flags::BATCH_IS_ALL_FREE) { 0 } else { size };
        if flags.contains(Flags::BATCH_IS_ALL_REALLOC) && (block.is_none() || size == 0) {
            return Err(Errno::EINVAL);
        }
        match block {
            None if size == 0 => {
                *ptr = null_mut();
                Ok(None)
            }
            None => {
                let block = self.new_block(size, manner)?;
                *ptr = block.as_ptr();
                self.usable_bytes(block).map(Some).map_err(errno)
            }
            Some(block) if size == 0 => {
                // SAFETY: the caller's precondition.
                let freed = unsafe {
                    if flags.contains(Flags::CONSTANT_TIME) {
                        self.free_keeping(block)
                    } else {
                        self.free(block)
                    }
                };
                freed.map_err(errno)?;
                *ptr = null_mut();
                Ok(None)
            }
            Some(block) => {
                // SAFETY: the caller's precondition.
                let block = unsafe { self.resized(block, size, manner) }?;
                *ptr = block.as_ptr();
                self.usable_bytes(block).map(Some).map_err(errno)
            }
        }
    }

    fn new_block(&self, size: usize, manner: &Manner) -> Result<NonNull<u8>, Errno> {
        let reserve_bytes = manner.reserve_bytes(size)?;
        let block = self.alloc_reserved(size, manner.align_bytes, reserve_bytes).map_err(errno)?;
        if manner.flags.contains(Flags::ZERO_MEMORY) {
            self.zero_from(block, 0)?;
        }
        Ok(block)
    }

    /// # Safety
    /// As for [`Heap::realloc`].
    unsafe fn resized(&self, block: NonNull<u8>, size: usize, manner: &Manner) -> Result<NonNull<u8>, Errno> {
        let had_bytes = self.usable_bytes(block).map_err(errno)?;
        let reserve_bytes = manner.reserve_bytes(size)?;
        let pinned = Flags::PREVENT_MOVE.union(Flags::CONSTANT_TIME);
        // SAFETY: the caller's precondition, in all of these.
        let block = unsafe {
            if manner.flags.intersects(pinned) {
                self.try_aligned_realloc(block.as_ptr(), manner.align_bytes, size).map(|()| block)
            } else if reserve_bytes > size {
                self.resized_with_reserve(block, size, manner, reserve_bytes)
            } else {
                self.realloc(block, size, manner.align_bytes).map_err(errno)
            }
        }?;
        if manner.flags.contains(Flags::ZERO_MEMORY) {
            self.zero_from(block, had_bytes.min(size))?;
        }
        Ok(block)
    }

    /// Where it is, if there is room for the reserve; else in a block that has it, by a copy.
    ///
    /// # Safety
    /// As for [`Heap::realloc`].
    unsafe fn resized_with_reserve(
        &self,
        block: NonNull<u8>,
        size: usize,
        manner: &Manner,
        reserve_bytes: usize,
    ) -> Result<NonNull<u8>, Errno> {
        // SAFETY: the caller's precondition; a block isn't used while it is given to another place.
        unsafe {
            if self.try_aligned_realloc(block.as_ptr(), manner.align_bytes, reserve_bytes).is_ok() {
                self.try_realloc(block.as_ptr(), size)?;
                return Ok(block);
            }
            let kept = self.usable_bytes(block).map_err(errno)?.min(size);
            let other = self.alloc_reserved(size, manner.align_bytes, reserve_bytes).map_err(errno)?;
            other.copy_from_nonoverlapping(block, kept);
            self.free(block).map_err(errno)?;
            Ok(other)
        }
    }

    /// Zeroes what a block has from `from_bytes` on.
    fn zero_from(&self, block: NonNull<u8>, from_bytes: usize) -> Result<(), Errno> {
        let bytes = self.usable_bytes(block).map_err(errno)?;
        if let Some(added) = bytes.checked_sub(from_bytes) {
            // SAFETY: the block has so many bytes, and its owner has asked for this.
            unsafe { block.add(from_bytes).write_bytes(0, added) };
        }
        Ok(())
    }
}
