//! A heap: small blocks from dlmalloc, large ones from `umpa`.
//!
//! | block | from | resized |
//! | --- | --- | --- |
//! | below [`PAGES_MIN_BYTES`] | dlmalloc's segments ([`dlmalloc`] crate) | in place where a free chunk follows, else copied |
//! | from there on, or aligned to more than fits | a block of `umpa`'s: whole pages, no header | in place, else by moved entries: never copied |
//!
//! A block tells what it is by its address: a segment holds it, or a block of `umpa`'s begins there.
//! So large blocks have no header, begin at a page, and waste less than a page.
//!
//! Pointers are checked before they are used: what is neither, is refused ([`HeapError::NotABlock`]).
//! For large blocks that is exact: freed twice or foreign, they are found out. For chunks it is a look
//! at their headers: what was freed and given out again looks like a block, as it is one.
//!
//! The state lies in a page of its own, as dlmalloc's lists lead back into it: the handle may be moved,
//! the state not. All memory of the segments is given back when the heap is dropped. Large blocks that
//! were not freed stay `umpa`'s blocks.
//!
//! Invariants: those of [`umpa::blocks`]; `frames of the heap = 1 + backed pages of the segments + Σ
//! pages of large blocks`.
//!
//! Cost: dlmalloc's; a large block is one of `umpa`'s calls. Freeing looks at one range of addresses
//! first.

#![allow(unsafe_code)] // reason: hands out memory by pointer

use core::cell::{Cell, UnsafeCell};
use core::marker::PhantomData;
use core::ptr::{self, NonNull};

use dlmalloc::{Allocator as _, Dlmalloc};
use umpa::blocks::{AllocError, BlockError, Machine, Umpa};
use umpa::space::Slot;
use umpa_abi::addr::{Gva, PAGE_BYTES};

use crate::chunk::{ALIGN_BYTES, Chunk};
use crate::segments::Segments;

/// Blocks of at least so many bytes are `umpa`'s.
pub const PAGES_MIN_BYTES: usize = 64 << 10;

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
    /// The heap is in the middle of a call: a handler of faults or interrupts must not allocate.
    Busy,
}

/// What a pointer leads to.
#[derive(Clone, Copy, Debug)]
enum Found {
    Chunk(Chunk),
    /// A block of `umpa`'s of so many bytes.
    Pages(u64),
}

impl Found {
    fn usable_bytes(self) -> usize {
        match self {
            Self::Chunk(chunk) => chunk.usable_bytes(),
            Self::Pages(bytes) => bytes as usize,
        }
    }
}

struct State<'u, 'a, M: Machine> {
    busy: Cell<bool>,
    small: UnsafeCell<Dlmalloc<Segments<'u, 'a, M>>>,
}

/// See the [module](self).
pub struct Heap<'u, 'a, M: Machine + Send> {
    state: NonNull<State<'u, 'a, M>>,
    owns: PhantomData<State<'u, 'a, M>>,
}

/// The heap within a call. There is one at a time.
struct Inside<'h, 'u, 'a, M: Machine + Send> {
    heap: &'h Heap<'u, 'a, M>,
}

impl<'u, 'a, M: Machine + Send> Heap<'u, 'a, M> {
    /// A heap without memory but its state's. `umpa` is lent to it, see [`Self::inspect`].
    ///
    /// # Errors
    /// [`AllocError`] when there is no page for the state.
    pub fn new(umpa: &'u mut Umpa<'a, M>, config: Config) -> Result<Self, AllocError> {
        const { assert!(align_of::<State<'_, '_, M>>() <= PAGE_BYTES as usize) };
        let gva = umpa.userpage_malloc(size_of::<State<'_, '_, M>>() as u64)?;
        let reserve_bytes = config.reserve_bytes.max(2 * PAGES_MIN_BYTES as u64);
        let segments = Segments::new(umpa, reserve_bytes.next_multiple_of(PAGE_BYTES));
        let small = UnsafeCell::new(Dlmalloc::new_with_allocator(segments));
        let state = ptr::with_exposed_provenance_mut::<State<'u, 'a, M>>(gva.get() as usize);
        // SAFETY: the block is large enough, aligned to a page, writable, and nobody else's until
        // `drop` frees it.
        unsafe { state.write(State { busy: Cell::new(false), small }) };
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

    /// Ends a block.
    ///
    /// # Errors
    /// [`HeapError::NotABlock`], as far as that can be told ([module](self)); [`HeapError::Busy`].
    ///
    /// # Safety
    /// If `block` is a block of this heap's, nobody uses it any more.
    pub unsafe fn free(&self, block: NonNull<u8>) -> Result<(), HeapError> {
        // SAFETY: the caller's precondition.
        unsafe { self.enter()?.free(block) }
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
        if busy.replace(true) { Err(HeapError::Busy) } else { Ok(Inside { heap: self }) }
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
        let freed = umpa.userpage_free(Gva::new(self.state.as_ptr().expose_provenance() as u64));
        debug_assert!(freed.is_ok(), "{freed:?}");
    }
}

impl<M: Machine + Send> Drop for Inside<'_, '_, '_, M> {
    fn drop(&mut self) {
        // SAFETY: as in `enter`.
        unsafe { self.heap.state.as_ref() }.busy.set(false);
    }
}

impl<'u, 'a, M: Machine + Send> Inside<'_, 'u, 'a, M> {
    fn small(&mut self) -> &mut Dlmalloc<Segments<'u, 'a, M>> {
        // SAFETY: there is one `Inside` at a time (`busy`), and it is borrowed for the result's life.
        unsafe { &mut *self.heap.state.as_ref().small.get() }
    }

    fn segments(&mut self) -> &Segments<'u, 'a, M> {
        self.small().allocator()
    }

    fn find(&mut self, block: NonNull<u8>) -> Result<Found, HeapError> {
        let gva = gva_of(block);
        let missing = HeapError::NotABlock { gva };
        let segments = self.segments();
        if let Some(segment) = segments.segment_holding(gva.get()) {
            // SAFETY: segments of different windows don't touch, and dlmalloc joins those of one: the
            // window's used part is one segment.
            return unsafe { Chunk::of(block, segment) }.map(Found::Chunk).ok_or(missing);
        }
        let bytes = segments.umpa().usable_bytes(gva).map_err(|_| missing)?;
        Ok(Found::Pages(bytes))
    }

    fn alloc(&mut self, bytes: usize, align_bytes: usize) -> Result<NonNull<u8>, HeapError> {
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

    /// # Safety
    /// As for [`Heap::free`].
    unsafe fn free(&mut self, block: NonNull<u8>) -> Result<(), HeapError> {
        match self.find(block)? {
            // SAFETY: it is a chunk in use, as far as can be told; the rest is the caller's.
            Found::Chunk(_) => unsafe { self.small().c_free(block.as_ptr()) },
            Found::Pages(_) => {
                let gva = gva_of(block);
                let freed = self.segments().umpa().userpage_free(gva);
                freed.map_err(|_| HeapError::NotABlock { gva })?;
            }
        }
        Ok(())
    }

    /// # Safety
    /// As for [`Heap::realloc`].
    unsafe fn realloc(
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
        match found {
            // SAFETY: the caller's precondition.
            _ if aligned && unsafe { self.resize(block, bytes) }.is_ok() => return Ok(block),
            Found::Pages(_) if aligned && stays_aligned(gva_of(block), align_bytes as u64) => {
                let moved = self.segments().remap(block.as_ptr(), 0, bytes, true);
                return NonNull::new(moved).ok_or(HeapError::OutOfMemory { bytes });
            }
            _ => {}
        }
        let other = self.alloc(bytes, align_bytes)?;
        let kept = bytes.min(found.usable_bytes());
        // SAFETY: both blocks have so many bytes, and the new one overlaps no other.
        unsafe { ptr::copy_nonoverlapping(block.as_ptr(), other.as_ptr(), kept) };
        // SAFETY: the caller's precondition.
        let freed = unsafe { self.free(block) };
        debug_assert!(freed.is_ok(), "{freed:?}");
        Ok(other)
    }

    /// # Safety
    /// As for [`Heap::resize`].
    unsafe fn resize(&mut self, block: NonNull<u8>, bytes: usize) -> Result<(), HeapError> {
        let gva = gva_of(block);
        match self.find(block)? {
            Found::Chunk(chunk) if chunk.fits_in_place(bytes) => {
                // SAFETY: it is a chunk in use; the rest is the caller's.
                let same = unsafe { self.small().c_realloc(block.as_ptr(), bytes) };
                assert_eq!(same, block.as_ptr(), "dlmalloc moved a chunk that has room");
                Ok(())
            }
            Found::Chunk(_) => Err(HeapError::NoRoom { gva, bytes }),
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

/// Whole pages in a window whose size is a multiple of the alignment, as its address is then.
fn aligned_pages<M: Machine>(
    umpa: &mut Umpa<'_, M>,
    bytes: u64,
    align_bytes: u64,
) -> Result<Gva, AllocError> {
    let gva = umpa.userpage_reserve(bytes.max(align_bytes))?;
    let Err(error) = umpa.userpage_commit(gva, bytes) else { return Ok(gva) };
    let freed = umpa.userpage_free(gva);
    debug_assert!(freed.is_ok(), "{freed:?}");
    match error {
        BlockError::Alloc(error) => Err(error),
        _ => Err(AllocError::BadSize { bytes }),
    }
}

/// True when a block keeps its alignment wherever `umpa` moves it: to a page, or from a window that is
/// aligned to a larger one.
fn stays_aligned(gva: Gva, align_bytes: u64) -> bool {
    let window_bytes = Slot::containing(gva).map_or(PAGE_BYTES, |(slot, _)| slot.pages() * PAGE_BYTES);
    align_bytes <= window_bytes
}

fn gva_of(block: NonNull<u8>) -> Gva {
    Gva::new(block.expose_provenance().get() as u64)
}

fn block_at(gva: Gva) -> NonNull<u8> {
    // `umpa` has no block at address 0.
    let block = ptr::with_exposed_provenance_mut(gva.get() as usize);
    NonNull::new(block).unwrap_or(NonNull::dangling())
}
