//! Many blocks at once.

#![allow(unsafe_code)] // reason: takes and gives blocks by pointer

use core::ops::Range;
use core::ptr::{NonNull, null_mut};

use umpa::blocks::Machine;
use umpa::mmap::Errno;

use super::flags::{Flags, Manner};
use super::{Allocation2, Allocation5, errno};
use crate::heap::Heap;

/// What a batch came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "entries may have failed"]
pub struct Batch {
    /// Entries that succeeded.
    pub succeeded: usize,
    /// All did.
    pub complete: bool,
}

/// Notes what became of entry `at`.
fn note(errnos: &mut Option<&mut [i32]>, at: usize, done: Result<(), Errno>) {
    if let Some(place) = errnos.as_deref_mut().and_then(|errnos| errnos.get_mut(at)) {
        *place = done.map_or_else(|errno| errno as i32, |()| 0);
    }
}

/// The same of many entries: nothing to do where nobody wants to know.
fn note_all(errnos: &mut Option<&mut [i32]>, entries: Range<usize>, done: Result<(), Errno>) {
    if errnos.is_some() {
        entries.for_each(|at| note(errnos, at, done));
    }
}

impl<M: Machine + Send> Heap<'_, '_, M> {
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
            note_all(&mut errnos, 0..ptrs.len(), Err(error));
            return Batch { succeeded: 0, complete: ptrs.is_empty() };
        }
        if self.new_run(ptrs, size, &manner) {
            note_all(&mut errnos, 0..ptrs.len(), Ok(()));
            return Batch { succeeded: ptrs.len(), complete: true };
        }
        let frees = flags.contains(Flags::BATCH_IS_ALL_FREE)
            || *size == 0 && !flags.intersects(Flags::BATCH_IS_ALL_ALLOC | Flags::BATCH_IS_ALL_REALLOC);
        let (mut at, mut succeeded, mut least) = (0, 0, None::<usize>);
        while at < ptrs.len() {
            if frees {
                // SAFETY: the caller's precondition.
                let freed = unsafe { self.free_nodes(&mut ptrs[at..], flags) };
                note_all(&mut errnos, at..at + freed, Ok(()));
                (at, succeeded) = (at + freed, succeeded + freed);
            }
            let Some(ptr) = ptrs.get_mut(at) else { break };
            // SAFETY: the caller's precondition.
            let done = unsafe { self.entry(ptr, *size, &manner) };
            if let Ok(Some(usable)) = done {
                least = Some(least.map_or(usable, |least| least.min(usable)));
            }
            succeeded += usize::from(done.is_ok());
            note(&mut errnos, at, done.map(|_| ()));
            at += 1;
        }
        *size = least.unwrap_or(*size);
        Batch { succeeded, complete: succeeded == ptrs.len() }
    }

    /// Frees the first pointers, as many as are blocks of runs.
    ///
    /// # Safety
    /// As for [`Heap::free`], for each pointer.
    unsafe fn free_nodes(&self, ptrs: &mut [*mut u8], flags: Flags) -> usize {
        // SAFETY: the caller's precondition.
        let freed = unsafe {
            if flags.contains(Flags::CONSTANT_TIME) {
                self.free_all_keeping(ptrs)
            } else {
                self.free_all(ptrs)
            }
        };
        freed.unwrap_or(0)
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

    /// Allocates, resizes or frees blocks, each in its own manner; sizes and reserves become what the blocks
    /// have.
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
                entry.reserve = NonNull::new(entry.ptr)
                    .and_then(|block| self.reserved_bytes(block).ok())
                    .unwrap_or(usable);
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
}
