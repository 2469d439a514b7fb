//! dlmalloc as it is, in one segment of memory: to compare with.
//!
//! [`BaselineHeap`] gives all blocks, large ones too, from one contiguous segment, which has at most so many
//! bytes. Either all of it is there from the beginning, or it grows at its end as dlmalloc asks, and loses
//! what dlmalloc gives back there. A page in the middle is never given back, and a block larger than the
//! longest free piece can't be had: its lists lie in free memory, and it knows one memory only. What is
//! done about it is in [`heap`](crate::heap) and [`paged`](crate::paged).
//!
//! Invariants: `backed bytes <= limit`; all of them are the segment's.
//!
//! Cost: dlmalloc's.

#![allow(unsafe_code)] // reason: hands out memory by pointer, and implements dlmalloc's unsafe trait

use core::alloc::Layout;
use core::cell::{RefCell, RefMut};
use core::ptr::{NonNull, null_mut, with_exposed_provenance_mut};

use allocator_api2::alloc::{AllocError as NoMemory, Allocator};
use dlmalloc::Dlmalloc;
use umpa::blocks::{AllocError, Machine, Umpa};
use umpa_abi::addr::{Gva, PAGE_BYTES};

use crate::fenced::Fenced;
use crate::heap::HeapError;

/// How much memory the segment has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// So many bytes from the beginning, for ever.
    Fixed(u64),
    /// What dlmalloc asks for, up to so many bytes.
    Growing(u64),
}

impl Memory {
    const fn limit_bytes(self) -> u64 {
        let (Self::Fixed(bytes) | Self::Growing(bytes)) = self;
        bytes - bytes % PAGE_BYTES
    }
}

/// The one segment.
struct Segment<'u, 'a, M: Machine> {
    umpa: RefCell<&'u mut Umpa<'a, M>>,
    memory: Memory,
    base: Gva,
    /// Bytes backed, and the most that ever were.
    bytes: RefCell<(u64, u64)>,
}

impl<M: Machine> Segment<'_, '_, M> {
    fn resize(&self, bytes: u64) -> bool {
        let mut now = self.bytes.borrow_mut();
        let mut umpa = self.umpa.borrow_mut();
        let done = match bytes.checked_sub(now.0) {
            Some(0) => true,
            Some(more) => umpa.userpage_commit(Gva::new(self.base.get() + now.0), more).is_ok(),
            None => umpa.userpage_resize(self.base, bytes).is_ok(),
        };
        if done {
            *now = (bytes, now.1.max(bytes));
        }
        done
    }
}

// SAFETY: `alloc` returns memory of a live window that nothing else uses: mapped when the call returns,
// and each byte of it is handed out once until `free_part` takes it back.
unsafe impl<M: Machine + Send> dlmalloc::Allocator for Segment<'_, '_, M> {
    fn alloc(&self, size: usize) -> (*mut u8, usize, u32) {
        let before = self.bytes.borrow().0;
        let limit = self.memory.limit_bytes();
        let wanted = match self.memory {
            Memory::Fixed(_) if size as u64 <= limit => limit,
            _ => before.saturating_add(size as u64).next_multiple_of(PAGE_BYTES),
        };
        if wanted <= before || wanted > limit || !self.resize(wanted) {
            return (null_mut(), 0, 0);
        }
        (with_exposed_provenance_mut((self.base.get() + before) as usize), (wanted - before) as usize, 0)
    }

    fn remap(&self, _ptr: *mut u8, _oldsize: usize, _newsize: usize, _can_move: bool) -> *mut u8 {
        null_mut()
    }

    fn free_part(&self, ptr: *mut u8, oldsize: usize, newsize: usize) -> bool {
        let all =
            ptr.expose_provenance() as u64 == self.base.get() && oldsize as u64 == self.bytes.borrow().0;
        all && matches!(self.memory, Memory::Growing(_)) && newsize > 0 && self.resize(newsize as u64)
    }

    fn free(&self, _ptr: *mut u8, _size: usize) -> bool {
        false
    }

    fn can_release_part(&self, _flags: u32) -> bool {
        matches!(self.memory, Memory::Growing(_))
    }

    fn allocates_zeros(&self) -> bool {
        false
    }

    fn page_size(&self) -> usize {
        PAGE_BYTES as usize
    }
}

type State<'u, 'a, M> = RefCell<Dlmalloc<Segment<'u, 'a, M>>>;

/// See the [module](self).
pub struct BaselineHeap<'u, 'a, M: Machine + Send> {
    /// In pages of its own, as dlmalloc's lists lead back into it.
    state: NonNull<State<'u, 'a, M>>,
}

impl<'u, 'a, M: Machine + Send> BaselineHeap<'u, 'a, M> {
    /// A heap without blocks.
    ///
    /// # Errors
    /// [`AllocError`] when there are no addresses, or no page for the state.
    ///
    /// # Safety
    /// As for [`Pages::new`](crate::Pages::new): what `umpa` maps is memory of this program, which nobody
    /// else uses.
    pub unsafe fn new(umpa: &'u mut Umpa<'a, M>, memory: Memory) -> Result<Self, AllocError> {
        const { assert!(align_of::<State<'_, '_, M>>() <= PAGE_BYTES as usize) };
        let base = umpa.userpage_reserve(memory.limit_bytes().max(PAGE_BYTES))?;
        let place = umpa.userpage_malloc(size_of::<State<'_, '_, M>>() as u64);
        let place = place.inspect_err(|_| {
            let freed = umpa.userpage_free(base);
            debug_assert!(freed.is_ok(), "{freed:?}");
        })?;
        let segment = Segment { umpa: RefCell::new(umpa), memory, base, bytes: RefCell::new((0, 0)) };
        let state = with_exposed_provenance_mut::<State<'u, 'a, M>>(place.get() as usize);
        // SAFETY: the block is memory (the caller), large enough, aligned to a page, writable, and nobody
        // else's until `drop` frees it; it doesn't lie at 0.
        let state = unsafe {
            state.write(RefCell::new(Dlmalloc::new_with_allocator(segment)));
            NonNull::new_unchecked(state)
        };
        Ok(Self { state })
    }

    /// A block of `bytes` bytes at a multiple of `align_bytes`, which is 16 at least.
    ///
    /// # Errors
    /// [`HeapError::OutOfMemory`], [`HeapError::BadAlignment`], [`HeapError::Busy`].
    pub fn alloc(&self, bytes: usize, align_bytes: usize) -> Result<NonNull<u8>, HeapError> {
        if !align_bytes.is_power_of_two() {
            return Err(HeapError::BadAlignment { align_bytes });
        }
        // SAFETY: any size may be asked for, and the alignment is a power of two.
        let block = unsafe { self.enter()?.malloc(bytes, align_bytes) };
        NonNull::new(block).ok_or(HeapError::OutOfMemory { bytes })
    }

    /// Ends a block. What is none isn't found out: plain dlmalloc looks at nothing.
    ///
    /// # Errors
    /// [`HeapError::Busy`].
    ///
    /// # Safety
    /// `block` is a block of this heap's, and nobody uses it any more.
    pub unsafe fn free(&self, block: NonNull<u8>) -> Result<(), HeapError> {
        // SAFETY: the caller's precondition.
        unsafe { self.enter()?.c_free(block.as_ptr()) };
        Ok(())
    }

    /// Bytes of memory in the segment now, and the most that there ever were.
    ///
    /// # Errors
    /// [`HeapError::Busy`].
    pub fn backed_bytes(&self) -> Result<(u64, u64), HeapError> {
        Ok(*self.enter()?.allocator().bytes.borrow())
    }

    /// Shows the page allocator below.
    ///
    /// # Errors
    /// [`HeapError::Busy`].
    pub fn inspect<T>(&self, look: impl FnOnce(&Umpa<'a, M>) -> T) -> Result<T, HeapError> {
        let heap = self.enter()?;
        let umpa = heap.allocator().umpa.borrow();
        Ok(look(&umpa))
    }

    /// Gives back what dlmalloc can: the free end of the segment. Returns whether any was.
    ///
    /// # Errors
    /// [`HeapError::Busy`].
    pub fn trim(&self) -> Result<bool, HeapError> {
        // SAFETY: trimming touches free memory only.
        Ok(unsafe { self.enter()?.trim(0) })
    }

    /// Begins a call.
    fn enter(&self) -> Result<Fenced<RefMut<'_, Dlmalloc<Segment<'u, 'a, M>>>>, HeapError> {
        // SAFETY: the state lives as long as the heap, and is one processor's.
        let state = unsafe { self.state.as_ref() };
        state.try_borrow_mut().map(Fenced::new).map_err(|_| HeapError::Busy)
    }
}

impl<M: Machine + Send> Drop for BaselineHeap<'_, '_, M> {
    fn drop(&mut self) {
        // SAFETY: no call is under way, as calls borrow the heap. What is read here isn't used again in its
        // old place, which is freed below. Of dlmalloc only the segment is wanted; it has nothing else to
        // drop.
        let segment = unsafe {
            let mut small = core::mem::ManuallyDrop::new(self.state.as_ptr().read().into_inner());
            core::ptr::read(small.allocator_mut())
        };
        let umpa = segment.umpa.into_inner();
        for gva in [segment.base, Gva::new(self.state.as_ptr().expose_provenance() as u64)] {
            let freed = umpa.userpage_free(gva);
            debug_assert!(freed.is_ok(), "{freed:?}");
        }
    }
}

// SAFETY: blocks stay valid until they are freed, or the heap is dropped: memory isn't moved with the
// handle.
unsafe impl<M: Machine + Send> Allocator for BaselineHeap<'_, '_, M> {
    fn allocate(&self, layout: Layout) -> Result<NonNull<[u8]>, NoMemory> {
        let block = self.alloc(layout.size(), layout.align()).map_err(|_| NoMemory)?;
        Ok(NonNull::slice_from_raw_parts(block, layout.size()))
    }

    unsafe fn deallocate(&self, block: NonNull<u8>, _layout: Layout) {
        // SAFETY: the caller's precondition.
        let freed = unsafe { self.free(block) };
        debug_assert!(freed.is_ok(), "{freed:?}");
    }
}
