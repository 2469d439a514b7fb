//! The heap behind Rust's collections (`alloc`) in a guest program.
//!
//! [`with`] puts a heap on the program's allocator behind them for as long as a function runs. What is
//! allocated in it is freed in it: a block that outlives the heap is a panic, which ends the guest.
//! Outside of `with` there is no memory, and so it is in a handler of page faults that interrupted an
//! allocation.
//!
//! One vCPU, one current heap, found without a lock: see the comments on safety.

#![allow(unsafe_code)] // reason: implements GlobalAlloc, keeps a current heap, vouches for memory

use core::alloc::{GlobalAlloc, Layout};
use core::ffi::c_void;
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering::Relaxed};

use umpa::blocks::AllocError;
use umpa_heap::baseline::Memory;
use umpa_heap::{BaselineHeap, Config, Heap, PagedHeap};

use crate::machine::Machine;
use crate::userpage::Allocator;

/// A heap on the allocator of a program.
pub type GuestHeap<'u, 'm> = Heap<'u, 'static, &'m mut Machine>;

/// Rust's allocator in the image.
struct Global;

#[cfg_attr(feature = "image", global_allocator)]
#[cfg_attr(not(feature = "image"), allow(dead_code, reason = "on the host there is another"))]
static GLOBAL: Global = Global;

static CURRENT: AtomicPtr<c_void> = AtomicPtr::new(null_mut());
/// Blocks that the current heap has given to collections.
static LIVE: AtomicU64 = AtomicU64::new(0);

/// A heap.
///
/// # Errors
/// There is no page for the heap.
pub fn new<'u, 'm>(umpa: &'u mut Allocator<'m>, config: Config) -> Result<GuestHeap<'u, 'm>, AllocError> {
    // SAFETY: such an allocator is the guest's only one and is made of what the VMM handed to it
    // (`userpage::allocator`), on the machine that the program runs on.
    unsafe { Heap::new(umpa, config) }
}

/// A heap whose pages come and go.
///
/// # Errors
/// There are no frames or addresses for the heap.
pub fn paged<'u, 'm>(
    umpa: &'u mut Allocator<'m>,
    config: umpa_heap::paged::Config,
) -> Result<PagedHeap<'u, 'static, &'m mut Machine>, AllocError> {
    // SAFETY: as in `new`.
    unsafe { PagedHeap::new(umpa, config) }
}

/// Plain dlmalloc, to compare with.
///
/// # Errors
/// There are no frames or addresses for the heap.
pub fn baseline<'u, 'm>(
    umpa: &'u mut Allocator<'m>,
    memory: Memory,
) -> Result<BaselineHeap<'u, 'static, &'m mut Machine>, AllocError> {
    // SAFETY: as in `new`.
    unsafe { BaselineHeap::new(umpa, memory) }
}

/// Runs `program` with a new heap behind Rust's collections.
///
/// # Errors
/// There is no page for the heap.
///
/// # Panics
/// When there is a current heap already, and when a block outlives the program.
pub fn with<T>(
    umpa: &mut Allocator<'_>,
    config: Config,
    program: impl FnOnce(&GuestHeap<'_, '_>) -> T,
) -> Result<T, AllocError> {
    let heap = new(umpa, config)?;
    let previous = CURRENT.swap((&raw const heap).cast_mut().cast(), Relaxed);
    assert!(previous.is_null(), "a heap within a heap");
    let result = program(&heap);
    let live = LIVE.load(Relaxed);
    assert!(live == 0, "{live} blocks outlive their heap");
    CURRENT.store(null_mut(), Relaxed);
    Ok(result)
}

/// The current heap.
pub(crate) fn current<'a>() -> Option<&'a GuestHeap<'a, 'a>> {
    let heap = NonNull::new(CURRENT.load(Relaxed))?;
    // SAFETY: `with` keeps the heap alive and where it is while the pointer is set, and each of the
    // functions below uses it for one call. One vCPU runs; a handler that interrupts such a call is
    // refused by the heap (`HeapError::Busy`), so there is no second access to its state.
    Some(unsafe { heap.cast().as_ref() })
}

/// Null, or one more live block.
fn given(block: Option<NonNull<u8>>) -> *mut u8 {
    block.map_or(null_mut(), |block| {
        LIVE.fetch_add(1, Relaxed);
        block.as_ptr()
    })
}

// SAFETY: blocks of a heap stay valid until they are freed, as no heap ends with live blocks; `realloc`
// keeps content, and none of the functions unwinds: a panic ends the guest.
unsafe impl GlobalAlloc for Global {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        given(current().and_then(|heap| heap.alloc(layout.size(), layout.align()).ok()))
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        given(current().and_then(|heap| heap.alloc_zeroed(layout.size(), layout.align()).ok()))
    }

    unsafe fn dealloc(&self, block: *mut u8, _layout: Layout) {
        // SAFETY: a block of the current heap's, which the caller gives up.
        let free = |heap: &GuestHeap<'_, '_>, block| unsafe { heap.free(block) }.is_ok();
        let freed = current().zip(NonNull::new(block)).is_some_and(|(heap, block)| free(heap, block));
        assert!(freed, "{block:p} isn't a block of the current heap, or that is in a call");
        LIVE.fetch_sub(1, Relaxed);
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        let Some((heap, block)) = current().zip(NonNull::new(block)) else { return null_mut() };
        // SAFETY: a block of the current heap's, which the caller gives up for the result.
        let moved = unsafe { heap.realloc(block, bytes, layout.align()) };
        moved.map_or(null_mut(), NonNull::as_ptr)
    }
}
