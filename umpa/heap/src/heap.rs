//! A heap: small blocks from dlmalloc, large ones from `umpa`.
//!
//! | block | from | resized |
//! | --- | --- | --- |
//! | below [`PAGES_MIN_BYTES`] | dlmalloc's segments ([`dlmalloc`] crate) | in place where a free chunk follows, else copied |
//! | from there on, or aligned to more than fits | a block of `umpa`'s: whole pages, no header | in place, else by moved entries: never copied |
//!
//! | many equal ones, [`Heap::alloc_run`] | a slab: no header, a bit for each | within its place, else copied |
//!
//! A block tells what it is by its address: a segment or a slab holds it, or a block of `umpa`'s begins
//! there. So large blocks have no header, begin at a page, and waste less than a page.
//!
//! Pointers are checked before they are used: what is neither, is refused ([`HeapError::NotABlock`]).
//! For large blocks that is exact: freed twice or foreign, they are found out. For chunks it is a look
//! at their headers: what was freed and given out again looks like a block, as it is one.
//!
//! The state lies in pages of its own, as dlmalloc's lists lead back into it: the handle may be moved,
//! the state not. All memory of segments and slabs is given back when the heap is dropped. Large blocks
//! that were not freed stay `umpa`'s blocks.
//!
//! Each call begins and ends with a compiler fence: it changes tables, and so which memory is where
//! ([`pages`](crate::pages)).
//!
//! Invariants: those of [`umpa::blocks`]; `frames of the heap = state + backed pages of the segments + Σ
//! pages of large blocks + Σ pages of slabs`.
//!
//! Cost: dlmalloc's; a large block is one of `umpa`'s calls. Freeing looks at one range of addresses
//! first.

#![allow(unsafe_code)] // reason: hands out memory by pointer

mod below;
mod inside;

use core::cell::{Cell, UnsafeCell};
use core::marker::PhantomData;
use core::ptr::{self, NonNull};
use core::sync::atomic::{Ordering::SeqCst, compiler_fence};

use dlmalloc::Dlmalloc;
use umpa::blocks::{AllocError, Machine, Umpa};
use umpa_abi::addr::{Gva, PAGE_BYTES};

use crate::run::Run;
use crate::segments::Segments;
use crate::slab::Slabs;
use inside::{Found, Inside};

/// Blocks of at least so many bytes are `umpa`'s. From 64 KiB on a page block is no dearer than a chunk by itself, but the
/// work on it finds nothing in the cache that the heap has touched; from 256 KiB on dlmalloc gives memory back and
/// takes it again (`vmm bench fig9`).
pub const PAGES_MIN_BYTES: usize = 128 << 10;
/// Runs of blocks of at least so many bytes in all are slabs. Their blocks are freed in half the time that chunks take,
/// each of which joins its neighbours; below, the page that a slab ends in would be more than a quarter of it.
const SLABS_MIN_BYTES: usize = 16 << 10;

/// What can be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Addresses that dlmalloc's segment has to grow in. A window is taken of so many, rounded up to a
    /// power of two; when it is full another follows, eight at most.
    pub reserve_bytes: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self { reserve_bytes: 64 << 30 }
    }
}

/// Why a call was refused. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeapError {
    /// Too few frames, addresses or tables.
    OutOfMemory {
        /// The size asked for.
        bytes: usize,
    },
    /// The alignment isn't a power of two, or larger than any window.
    BadAlignment {
        /// The alignment asked for.
        align_bytes: usize,
    },
    /// No block of this heap's begins there: it may have been freed.
    NotABlock {
        /// The address.
        gva: Gva,
    },
    /// The block can't have so many bytes where it is.
    NoRoom {
        /// The block.
        gva: Gva,
        /// The size asked for.
        bytes: usize,
    },
    /// Blocks of so many bytes don't come in runs: each has pages of its own.
    TooLargeForRun {
        /// The size asked for.
        bytes: usize,
    },
    /// The heap is in the middle of a call: a handler of faults or interrupts must not allocate.
    Busy,
}

/// What a free does with memory that nobody needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keep {
    Nothing,
    Memory,
}

struct State<'u, 'a, M: Machine> {
    busy: Cell<bool>,
    slabs: Slabs,
    small: UnsafeCell<Dlmalloc<Segments<'u, 'a, M>>>,
}

/// See the [module](self).
pub struct Heap<'u, 'a, M: Machine + Send> {
    state: NonNull<State<'u, 'a, M>>,
    owns: PhantomData<State<'u, 'a, M>>,
}

impl<'u, 'a, M: Machine + Send> Heap<'u, 'a, M> {
    /// A heap without memory but its state's. `umpa` is lent to it, see [`Self::inspect`].
    ///
    /// # Errors
    /// [`AllocError`] when there is no page for the state.
    ///
    /// # Safety
    /// As for [`Pages::new`](crate::Pages::new): what `umpa` maps is memory of this program, which nobody
    /// else uses. So a heap on a machine whose memory isn't there, as `umpa`'s tests have, is nothing that safe
    /// code can make:
    ///
    /// ```compile_fail,E0133
    /// # use umpa::blocks::{Machine, Umpa};
    /// fn anywhere<M: Machine + Send>(umpa: &mut Umpa<'_, M>) {
    ///     let _ = umpa_heap::Heap::new(umpa, Default::default());
    /// }
    /// ```
    pub unsafe fn new(umpa: &'u mut Umpa<'a, M>, config: Config) -> Result<Self, AllocError> {
        const { assert!(align_of::<State<'_, '_, M>>() <= PAGE_BYTES as usize) };
        let gva = umpa.userpage_malloc(size_of::<State<'_, '_, M>>() as u64)?;
        let reserve_bytes = config.reserve_bytes.max(2 * PAGES_MIN_BYTES as u64);
        let segments = Segments::new(umpa, reserve_bytes.next_multiple_of(PAGE_BYTES));
        let small = UnsafeCell::new(Dlmalloc::new_with_allocator(segments));
        let state = ptr::with_exposed_provenance_mut::<State<'u, 'a, M>>(gva.get() as usize);
        // SAFETY: the block is memory (the caller), large enough, aligned to a page, writable, and nobody
        // else's until `drop` frees it.
        unsafe { state.write(State { busy: Cell::new(false), slabs: Slabs::new(), small }) };
        // SAFETY: no block lies at 0: `umpa`'s windows and its direct map begin far above.
        let state = unsafe { NonNull::new_unchecked(state) };
        Ok(Self { state, owns: PhantomData })
    }

    /// A block of `bytes` bytes at a multiple of `align_bytes`, which is 16 at least. Its content is
    /// whatever the memory held. No bytes are a block too, as for C's `malloc`.
    ///
    /// # Errors
    /// [`HeapError::OutOfMemory`], [`HeapError::BadAlignment`], [`HeapError::Busy`].
    pub fn alloc(&self, bytes: usize, align_bytes: usize) -> Result<NonNull<u8>, HeapError> {
        self.enter()?.alloc(bytes, align_bytes)
    }

    /// The same, of zeros.
    ///
    /// # Errors
    /// As for [`Self::alloc`].
    pub fn alloc_zeroed(&self, bytes: usize, align_bytes: usize) -> Result<NonNull<u8>, HeapError> {
        let block = self.alloc(bytes, align_bytes)?;
        // SAFETY: the block has so many bytes, and nobody else has it yet.
        unsafe { block.write_bytes(0, bytes) };
        Ok(block)
    }

    /// A block like [`Self::alloc`]'s that can grow to `reserve_bytes` where it is, as long as there are
    /// frames ([`Self::resize`]). Below [`PAGES_MIN_BYTES`] a reserve is memory, above it is addresses.
    ///
    /// # Errors
    /// As for [`Self::alloc`].
    pub fn alloc_reserved(
        &self,
        bytes: usize,
        align_bytes: usize,
        reserve_bytes: usize,
    ) -> Result<NonNull<u8>, HeapError> {
        self.enter()?.alloc_reserved(bytes, align_bytes, reserve_bytes)
    }

    /// A block like [`Self::alloc_reserved`]'s, in the direct map where it can be: it grows there without a store
    /// to a table, and moves only when somebody else has taken the frames behind it
    /// ([`Umpa::userpage_malloc_growing`]).
    ///
    /// # Errors
    /// As for [`Self::alloc`].
    pub fn alloc_growing(
        &self,
        bytes: usize,
        align_bytes: usize,
        reserve_bytes: usize,
    ) -> Result<NonNull<u8>, HeapError> {
        self.enter()?.alloc_growing(bytes, align_bytes, reserve_bytes)
    }

    /// `blocks` blocks of `bytes` bytes at multiples of `align_bytes`, which may be less than 16, in the
    /// time that one takes: no block is touched, but each can be freed and resized alone. From 16 KiB on
    /// in all they are a slab's: a freed one isn't given out again, but memory goes back in parts of 2
    /// MiB.
    ///
    /// # Errors
    /// As for [`Self::alloc`]; [`HeapError::TooLargeForRun`]. Nothing was allocated.
    pub fn alloc_run(&self, blocks: usize, bytes: usize, align_bytes: usize) -> Result<Run, HeapError> {
        self.enter()?.alloc_run(blocks, bytes, align_bytes)
    }

    /// Ends a block.
    ///
    /// # Errors
    /// [`HeapError::NotABlock`], as far as that can be told ([module](self)); [`HeapError::Busy`].
    ///
    /// # Safety
    /// If `block` is a block of this heap's, nobody uses it any more.
    #[inline]
    pub unsafe fn free(&self, block: NonNull<u8>) -> Result<(), HeapError> {
        // SAFETY: the caller's precondition.
        unsafe { self.enter()?.free(block, Keep::Nothing) }
    }

    /// [`Self::free`] that gives no memory back to the page allocator, but for the last block of a slab
    /// and for large blocks, which keep their mapping for the next: it edits no table.
    ///
    /// # Errors
    /// As for [`Self::free`].
    ///
    /// # Safety
    /// As for [`Self::free`].
    pub unsafe fn free_keeping(&self, block: NonNull<u8>) -> Result<(), HeapError> {
        // SAFETY: the caller's precondition.
        unsafe { self.enter()?.free(block, Keep::Memory) }
    }

    /// Ends blocks of [runs](Self::alloc_run), from the first pointer on, as long as each is one in use; those
    /// pointers become null. Returns how many. What is in order of addresses is freed at the price of
    /// reading its pointers.
    ///
    /// # Errors
    /// [`HeapError::Busy`].
    ///
    /// # Safety
    /// As for [`Self::free`], for each of the pointers.
    pub unsafe fn free_all(&self, pointers: &mut [*mut u8]) -> Result<usize, HeapError> {
        // SAFETY: the caller's precondition.
        Ok(unsafe { self.enter()?.free_all(pointers, Keep::Nothing) })
    }

    /// [`Self::free_all`] as [`Self::free_keeping`].
    ///
    /// # Errors
    /// [`HeapError::Busy`].
    ///
    /// # Safety
    /// As for [`Self::free`], for each of the pointers.
    pub unsafe fn free_all_keeping(&self, pointers: &mut [*mut u8]) -> Result<usize, HeapError> {
        // SAFETY: the caller's precondition.
        Ok(unsafe { self.enter()?.free_all(pointers, Keep::Memory) })
    }

    /// Gives a block `bytes` bytes; its content is kept, up to the lesser size. The address may change,
    /// and is returned; it is aligned to `align_bytes`. Large blocks are resized by page tables, without
    /// a copy.
    ///
    /// # Errors
    /// As for [`Self::alloc`] and [`Self::free`]; the block is as it was.
    ///
    /// # Safety
    /// If `block` is a block of this heap's, nobody uses it any more by its old address.
    pub unsafe fn realloc(
        &self,
        block: NonNull<u8>,
        bytes: usize,
        align_bytes: usize,
    ) -> Result<NonNull<u8>, HeapError> {
        // SAFETY: the caller's precondition.
        unsafe { self.enter()?.realloc(block, bytes, align_bytes) }
    }

    /// [`Self::realloc`] to a place where the block can grow to `reserve_bytes`, as one of
    /// [`Self::alloc_reserved`] can.
    ///
    /// # Errors
    /// As for [`Self::realloc`].
    ///
    /// # Safety
    /// As for [`Self::realloc`].
    pub unsafe fn realloc_reserved(
        &self,
        block: NonNull<u8>,
        bytes: usize,
        align_bytes: usize,
        reserve_bytes: usize,
    ) -> Result<NonNull<u8>, HeapError> {
        // SAFETY: the caller's precondition.
        unsafe { self.enter()?.realloc_reserved(block, bytes, align_bytes, reserve_bytes) }
    }

    /// Gives a block `bytes` bytes where it is.
    ///
    /// # Errors
    /// [`HeapError::NoRoom`] where it would have to move; as for [`Self::free`]. The block is as it was.
    ///
    /// # Safety
    /// If `block` is a block of this heap's, nobody uses bytes of it that it loses.
    pub unsafe fn resize(&self, block: NonNull<u8>, bytes: usize) -> Result<(), HeapError> {
        // SAFETY: the caller's precondition.
        unsafe { self.enter()?.resize(block, bytes) }
    }

    /// Bytes that a block has: at least what was asked for, and all may be used.
    ///
    /// # Errors
    /// As for [`Self::free`].
    pub fn usable_bytes(&self, block: NonNull<u8>) -> Result<usize, HeapError> {
        self.enter()?.find(block).map(Found::usable_bytes)
    }

    /// So many bytes a block can be given where it is ([`Self::resize`]), as long as there are frames.
    ///
    /// # Errors
    /// As for [`Self::free`].
    pub fn reserved_bytes(&self, block: NonNull<u8>) -> Result<usize, HeapError> {
        let mut inside = self.enter()?;
        let found = inside.find(block)?;
        if !matches!(found, Found::Pages(_)) {
            return Ok(found.usable_bytes());
        }
        let gva = Gva::new(block.expose_provenance().get() as u64);
        let reserved = inside.segments().umpa().reserved_bytes(gva);
        reserved.map(|bytes| bytes as usize).map_err(|_| HeapError::NotABlock { gva })
    }

    /// Gives unused memory of the segments back to the page allocator. Returns whether any was.
    ///
    /// # Errors
    /// [`HeapError::Busy`].
    pub fn trim(&self) -> Result<bool, HeapError> {
        let mut inside = self.enter()?;
        // SAFETY: trimming touches free memory only.
        Ok(unsafe { inside.small().trim(0) })
    }

    /// Bytes of memory behind the segments.
    ///
    /// # Errors
    /// [`HeapError::Busy`].
    pub fn segment_bytes(&self) -> Result<u64, HeapError> {
        Ok(self.enter()?.segments().backed_bytes())
    }

    /// Shows the page allocator below. To look at only: whoever could change it could unmap blocks.
    ///
    /// # Errors
    /// [`HeapError::Busy`].
    pub fn inspect<T>(&self, look: impl FnOnce(&Umpa<'a, M>) -> T) -> Result<T, HeapError> {
        let mut inside = self.enter()?;
        let umpa = inside.segments().umpa();
        Ok(look(&umpa))
    }

    /// Begins a call.
    fn enter(&self) -> Result<Inside<'_, 'u, 'a, M>, HeapError> {
        // SAFETY: the state lives as long as the heap, and this field is a `Cell` of one processor's.
        let busy = unsafe { &self.state.as_ref().busy };
        if busy.replace(true) {
            return Err(HeapError::Busy);
        }
        compiler_fence(SeqCst);
        Ok(Inside { heap: self })
    }
}

impl<M: Machine + Send> Drop for Heap<'_, '_, M> {
    fn drop(&mut self) {
        // SAFETY: nobody uses the state any more: no call is under way, as calls borrow the heap. What
        // is read here isn't used again in its old place, which is freed below.
        let state = unsafe { self.state.as_ptr().read() };
        // Of dlmalloc only the segments are wanted; it has nothing else to drop.
        let mut small = core::mem::ManuallyDrop::new(state.small.into_inner());
        // SAFETY: `small` isn't used again.
        let segments = unsafe { ptr::read(small.allocator_mut()) };
        let umpa = segments.into_umpa();
        state.slabs.clear(umpa);
        let freed = umpa.userpage_free(Gva::new(self.state.as_ptr().expose_provenance() as u64));
        debug_assert!(freed.is_ok(), "{freed:?}");
    }
}
