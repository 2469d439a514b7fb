//! The heap within a call.

use core::cell::RefMut;
use core::ptr::{self, NonNull};
use core::sync::atomic::{Ordering::SeqCst, compiler_fence};

use dlmalloc::{Allocator as _, Dlmalloc};
use umpa::blocks::{BlockError, Machine, Umpa};
use umpa_abi::addr::{Gva, PAGE_BYTES};

use super::{Heap, HeapError, Keep, PAGES_MIN_BYTES, SLABS_MIN_BYTES};
use crate::aligned::{aligned_pages, stays_aligned};
use crate::chunk::{self, ALIGN_BYTES, Chunk};
use crate::run::Run;
use crate::segments::Segments;
use crate::slab::{Node, Plan, Slabs};

/// What a pointer leads to.
#[derive(Clone, Copy, Debug)]
pub(super) enum Found {
    Chunk(Chunk),
    Node(Node),
    /// A block of `umpa`'s of so many bytes.
    Pages(u64),
}

impl Found {
    pub(super) fn usable_bytes(self) -> usize {
        match self {
            Self::Chunk(chunk) => chunk.usable_bytes(),
            Self::Node(node) => node.usable_bytes(),
            Self::Pages(bytes) => bytes as usize,
        }
    }
}

/// The heap within a call. There is one at a time.
pub(super) struct Inside<'h, 'u, 'a, M: Machine + Send> {
    pub(super) heap: &'h Heap<'u, 'a, M>,
}

impl<M: Machine + Send> Drop for Inside<'_, '_, '_, M> {
    fn drop(&mut self) {
        compiler_fence(SeqCst);
        // SAFETY: as in `enter`.
        unsafe { self.heap.state.as_ref() }.busy.set(false);
    }
}

impl<'u, 'a, M: Machine + Send> Inside<'_, 'u, 'a, M> {
    pub(super) fn small(&mut self) -> &mut Dlmalloc<Segments<'u, 'a, M>> {
        // SAFETY: there is one `Inside` at a time (`busy`), and it is borrowed for the result's life.
        unsafe { &mut *self.heap.state.as_ref().small.get() }
    }

    pub(super) fn segments(&mut self) -> &Segments<'u, 'a, M> {
        self.small().allocator()
    }

    /// The slabs, and the page allocator for them.
    fn slabs(&mut self) -> (&Slabs, RefMut<'_, &'u mut Umpa<'a, M>>) {
        // SAFETY: the state lives as long as the heap; the slabs are no part of `small`.
        (unsafe { &self.heap.state.as_ref().slabs }, self.segments().umpa())
    }

    pub(super) fn find(&mut self, block: NonNull<u8>) -> Result<Found, HeapError> {
        let gva = gva_of(block);
        let missing = HeapError::NotABlock { gva };
        let segments = self.segments();
        if let Some(segment) = segments.segment_holding(gva.get()) {
            // SAFETY: segments of different windows don't touch, and dlmalloc joins those of one: the
            // window's used part is one segment.
            return unsafe { Chunk::of(block, segment) }.map(Found::Chunk).ok_or(missing);
        }
        if block == self.heap.state.cast() {
            return Err(missing);
        }
        let (slabs, umpa) = self.slabs();
        match slabs.find(gva.get()) {
            Some(node) => node.map(Found::Node).ok_or(missing),
            None => umpa.usable_bytes(gva).map(Found::Pages).map_err(|_| missing),
        }
    }

    pub(super) fn alloc(&mut self, bytes: usize, align_bytes: usize) -> Result<NonNull<u8>, HeapError> {
        if !align_bytes.is_power_of_two() {
            return Err(HeapError::BadAlignment { align_bytes });
        }
        if is_small(bytes, align_bytes) {
            // SAFETY: any size may be asked for, and the alignment is a power of two.
            let block = unsafe { self.small().malloc(bytes, align_bytes) };
            return NonNull::new(block).ok_or(HeapError::OutOfMemory { bytes });
        }
        let bytes_asked = bytes;
        let bytes = (bytes as u64).max(1).checked_next_multiple_of(PAGE_BYTES);
        let bytes = bytes.ok_or(HeapError::OutOfMemory { bytes: bytes_asked })?;
        let mut umpa = self.segments().umpa();
        let made = if align_bytes as u64 <= PAGE_BYTES {
            umpa.userpage_malloc(bytes)
        } else {
            aligned_pages(&mut umpa, bytes, align_bytes as u64)
        };
        made.map(block_at).map_err(|_| HeapError::OutOfMemory { bytes: bytes_asked })
    }

    pub(super) fn alloc_reserved(
        &mut self,
        bytes: usize,
        align_bytes: usize,
        reserve_bytes: usize,
    ) -> Result<NonNull<u8>, HeapError> {
        if !align_bytes.is_power_of_two() || is_small(reserve_bytes, align_bytes) || reserve_bytes <= bytes {
            return self.alloc(bytes.max(reserve_bytes), align_bytes);
        }
        let whole = (bytes as u64).max(1).next_multiple_of(PAGE_BYTES);
        let room = (reserve_bytes as u64).max(align_bytes as u64);
        let made = aligned_pages(&mut self.segments().umpa(), whole, room);
        made.map(block_at).map_err(|_| HeapError::OutOfMemory { bytes })
    }

    pub(super) fn alloc_growing(
        &mut self,
        bytes: usize,
        align_bytes: usize,
        reserve_bytes: usize,
    ) -> Result<NonNull<u8>, HeapError> {
        let in_pages = align_bytes.is_power_of_two() && align_bytes as u64 <= PAGE_BYTES;
        if !in_pages || is_small(reserve_bytes, align_bytes) || reserve_bytes <= bytes {
            return self.alloc_reserved(bytes, align_bytes, reserve_bytes);
        }
        let made = self.segments().umpa().userpage_malloc_growing(bytes.max(1) as u64, reserve_bytes as u64);
        made.map(block_at).map_err(|_| HeapError::OutOfMemory { bytes })
    }

    pub(super) fn alloc_run(
        &mut self,
        blocks: usize,
        bytes: usize,
        align_bytes: usize,
    ) -> Result<Run, HeapError> {
        if !align_bytes.is_power_of_two() {
            return Err(HeapError::BadAlignment { align_bytes });
        }
        if !is_small(bytes, align_bytes) {
            return Err(HeapError::TooLargeForRun { bytes });
        }
        if blocks == 0 {
            return Ok(Run::new(NonNull::dangling(), 0, 0, 0, 1, 0));
        }
        let out_of_memory = HeapError::OutOfMemory { bytes: bytes.saturating_mul(blocks) };
        if align_bytes <= ALIGN_BYTES
            && let Some(chunk_bytes) = chunk::bytes_for(bytes)
            && let Some(all) = chunk_bytes.checked_mul(blocks)
            && all < SLABS_MIN_BYTES
        {
            // SAFETY: any size may be asked for. The chunk is one in use that nobody has yet, and it has
            // room for all.
            let first = unsafe {
                let block = NonNull::new(self.small().c_malloc(all - chunk::HEADER_BYTES));
                let block = block.ok_or(out_of_memory)?;
                chunk::split(block, chunk_bytes, blocks);
                block
            };
            return Ok(Run::new(first, blocks, chunk_bytes, chunk_bytes - chunk::HEADER_BYTES, blocks, 0));
        }
        let align_bytes = align_bytes.max(size_of::<u64>());
        let plan = Plan::new(blocks, bytes.max(1), align_bytes).ok_or(out_of_memory)?;
        let (slabs, mut umpa) = self.slabs();
        slabs.add(&plan, &mut umpa).map_err(|_| out_of_memory)
    }

    /// # Safety
    /// As for [`Heap::free`].
    #[inline]
    pub(super) unsafe fn free(&mut self, block: NonNull<u8>, keep: Keep) -> Result<(), HeapError> {
        if keep == Keep::Nothing
            && let Some(segment) = self.segments().newest_holding(gva_of(block).get())
            // SAFETY: as in `find`.
            && unsafe { Chunk::of(block, segment) }.is_some()
        {
            // SAFETY: it is a chunk in use, as far as can be told; the rest is the caller's.
            unsafe { self.small().c_free(block.as_ptr()) };
            return Ok(());
        }
        // SAFETY: the caller's precondition.
        unsafe { self.free_any(block, keep) }
    }

    /// What is no chunk of the newest segment's, or keeps memory.
    ///
    /// # Safety
    /// As for [`Heap::free`].
    #[inline(never)]
    unsafe fn free_any(&mut self, block: NonNull<u8>, keep: Keep) -> Result<(), HeapError> {
        match self.find(block)? {
            Found::Chunk(_) => {
                self.segments().keep(keep == Keep::Memory);
                // SAFETY: it is a chunk in use, as far as can be told; the rest is the caller's.
                unsafe { self.small().c_free(block.as_ptr()) };
                self.segments().keep(false);
            }
            Found::Node(node) => {
                let (slabs, mut umpa) = self.slabs();
                slabs.free(node, &mut umpa, keep == Keep::Memory);
            }
            Found::Pages(_) => {
                let gva = gva_of(block);
                let freed = self.segments().umpa().userpage_free(gva);
                freed.map_err(|_| HeapError::NotABlock { gva })?;
            }
        }
        Ok(())
    }

    /// # Safety
    /// As for [`Heap::free_all`].
    pub(super) unsafe fn free_all(&mut self, pointers: &mut [*mut u8], keep: Keep) -> usize {
        let (slabs, mut umpa) = self.slabs();
        slabs.free_all(pointers, &mut umpa, keep == Keep::Memory)
    }

    /// # Safety
    /// As for [`Heap::realloc`].
    pub(super) unsafe fn realloc_reserved(
        &mut self,
        block: NonNull<u8>,
        bytes: usize,
        align_bytes: usize,
        reserve_bytes: usize,
    ) -> Result<NonNull<u8>, HeapError> {
        if !align_bytes.is_power_of_two() {
            return Err(HeapError::BadAlignment { align_bytes });
        }
        let found = self.find(block)?;
        if is_small(reserve_bytes, align_bytes) || reserve_bytes <= bytes {
            // SAFETY: the caller's precondition.
            return unsafe { self.realloc(block, bytes.max(reserve_bytes), align_bytes) };
        }
        if let Found::Pages(_) = found {
            // A window begins at a multiple of its size, which is the alignment's at least.
            let room = (reserve_bytes as u64).max(align_bytes as u64);
            let mut umpa = self.segments().umpa();
            let moved = umpa.userpage_realloc_reserved(gva_of(block), (bytes as u64).max(1), room);
            return moved.map(block_at).map_err(|_| HeapError::OutOfMemory { bytes });
        }
        let other = self.alloc_reserved(bytes, align_bytes, reserve_bytes)?;
        // SAFETY: both blocks have so many bytes, and the new one overlaps no other; the rest is the
        // caller's precondition.
        unsafe { self.replace(block, other, bytes.min(found.usable_bytes())) };
        Ok(other)
    }

    /// Ends a block whose first bytes another takes over.
    ///
    /// # Safety
    /// As for [`Heap::free`]; both have so many bytes, and don't overlap.
    unsafe fn replace(&mut self, block: NonNull<u8>, other: NonNull<u8>, kept: usize) {
        // SAFETY: the caller's precondition.
        unsafe { ptr::copy_nonoverlapping(block.as_ptr(), other.as_ptr(), kept) };
        // SAFETY: the caller's precondition.
        let freed = unsafe { self.free(block, Keep::Nothing) };
        debug_assert!(freed.is_ok(), "{freed:?}");
    }

    /// # Safety
    /// As for [`Heap::realloc`].
    pub(super) unsafe fn realloc(
        &mut self,
        block: NonNull<u8>,
        bytes: usize,
        align_bytes: usize,
    ) -> Result<NonNull<u8>, HeapError> {
        if !align_bytes.is_power_of_two() {
            return Err(HeapError::BadAlignment { align_bytes });
        }
        let found = self.find(block)?;
        let aligned = gva_of(block).get().is_multiple_of(align_bytes as u64);
        // SAFETY: the caller's precondition.
        if aligned && unsafe { self.resize(block, bytes) }.is_ok() {
            return Ok(block);
        }
        let by_entries =
            matches!(found, Found::Pages(_)) && aligned && stays_aligned(gva_of(block), align_bytes as u64);
        let pages = found.usable_bytes() as u64 / PAGE_BYTES;
        if !by_entries || pages < self.segments().umpa().config().copy_below_pages {
            match self.alloc(bytes, align_bytes) {
                Ok(other) => {
                    // SAFETY: both blocks have so many bytes, and the new one overlaps no other; the rest is the
                    // caller's precondition.
                    unsafe { self.replace(block, other, bytes.min(found.usable_bytes())) };
                    return Ok(other);
                }
                Err(error) if !by_entries => return Err(error),
                // Entries need no frames for what is there already.
                Err(_) => {}
            }
        }
        let moved = self.segments().remap(block.as_ptr(), 0, bytes, true);
        NonNull::new(moved).ok_or(HeapError::OutOfMemory { bytes })
    }

    /// # Safety
    /// As for [`Heap::resize`].
    pub(super) unsafe fn resize(&mut self, block: NonNull<u8>, bytes: usize) -> Result<(), HeapError> {
        let gva = gva_of(block);
        match self.find(block)? {
            Found::Chunk(chunk) if chunk.fits_in_place(bytes) => {
                // SAFETY: it is a chunk in use; the rest is the caller's.
                let same = unsafe { self.small().c_realloc(block.as_ptr(), bytes) };
                assert_eq!(same, block.as_ptr(), "dlmalloc moved a chunk that has room");
                Ok(())
            }
            Found::Node(node) if bytes <= node.usable_bytes() => Ok(()),
            Found::Chunk(_) | Found::Node(_) => Err(HeapError::NoRoom { gva, bytes }),
            Found::Pages(_) => {
                let resized = self.segments().umpa().userpage_resize(gva, (bytes as u64).max(1));
                resized.map_err(|error| match error {
                    BlockError::Alloc(_) => HeapError::OutOfMemory { bytes },
                    _ => HeapError::NoRoom { gva, bytes },
                })
            }
        }
    }
}

/// True for what dlmalloc gives.
fn is_small(bytes: usize, align_bytes: usize) -> bool {
    let padding = if align_bytes <= ALIGN_BYTES { 0 } else { align_bytes };
    bytes.saturating_add(padding) < PAGES_MIN_BYTES
}

fn gva_of(block: NonNull<u8>) -> Gva {
    Gva::new(block.expose_provenance().get() as u64)
}

fn block_at(gva: Gva) -> NonNull<u8> {
    // `umpa` has no block at address 0.
    let block = ptr::with_exposed_provenance_mut(gva.get() as usize);
    NonNull::new(block).unwrap_or(NonNull::dangling())
}
