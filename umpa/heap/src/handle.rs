//! Heaps as allocators of collections: [`allocator_api2`]'s trait, for a [`Heap`], a [`PagedHeap`], or a reference
//! to one.

#![allow(unsafe_code)] // reason: implements an unsafe trait

use core::alloc::Layout;
use core::ptr::NonNull;

use allocator_api2::alloc::{AllocError, Allocator};
use umpa::blocks::Machine;

use crate::heap::Heap;
use crate::paged::PagedHeap;

fn slice(block: NonNull<u8>, layout: Layout) -> NonNull<[u8]> {
    NonNull::slice_from_raw_parts(block, layout.size())
}

fn nothing(layout: Layout) -> NonNull<[u8]> {
    slice(layout.dangling_ptr(), layout)
}

/// Both heaps have the same calls.
macro_rules! allocator {
    ($heap:ident: $($bounds:tt)+) => {
        impl<M: $($bounds)+> $heap<'_, '_, M> {
            /// Grows or shrinks.
            ///
            /// # Safety
            /// As for [`Allocator::grow`] or [`Allocator::shrink`].
            unsafe fn fit(&self, block: NonNull<u8>, old: Layout, new: Layout) -> Result<NonNull<[u8]>, AllocError> {
                if old.size() == 0 {
                    return self.allocate(new);
                }
                if new.size() == 0 {
                    // SAFETY: the block is one of `old.size()` bytes, and the caller's to give up.
                    unsafe { self.deallocate(block, old) };
                    return Ok(nothing(new));
                }
                // SAFETY: the caller's precondition.
                let moved = unsafe { self.realloc(block, new.size(), new.align()) };
                moved.map(|block| slice(block, new)).map_err(|_| AllocError)
            }
        }

        // SAFETY: blocks stay valid until they are freed, or the heap is dropped: memory isn't moved with the
        // handle. `realloc` keeps the content.
        unsafe impl<M: $($bounds)+> Allocator for $heap<'_, '_, M> {
            fn allocate(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
                if layout.size() == 0 {
                    return Ok(nothing(layout));
                }
                let block = self.alloc(layout.size(), layout.align());
                block.map(|block| slice(block, layout)).map_err(|_| AllocError)
            }

            fn allocate_zeroed(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
                if layout.size() == 0 {
                    return Ok(nothing(layout));
                }
                let block = self.alloc_zeroed(layout.size(), layout.align());
                block.map(|block| slice(block, layout)).map_err(|_| AllocError)
            }

            unsafe fn deallocate(&self, block: NonNull<u8>, layout: Layout) {
                if layout.size() != 0 {
                    // SAFETY: the caller's precondition: a block of this heap's that nobody uses any more.
                    let freed = unsafe { self.free(block) };
                    debug_assert!(freed.is_ok(), "{freed:?}");
                }
            }

            unsafe fn grow(&self, block: NonNull<u8>, old: Layout, new: Layout) -> Result<NonNull<[u8]>, AllocError> {
                // SAFETY: the caller's precondition.
                unsafe { self.fit(block, old, new) }
            }

            unsafe fn grow_zeroed(
                &self,
                block: NonNull<u8>,
                old: Layout,
                new: Layout,
            ) -> Result<NonNull<[u8]>, AllocError> {
                // SAFETY: the caller's precondition.
                let grown = unsafe { self.fit(block, old, new) }?;
                let added = new.size() - old.size();
                // SAFETY: the block has `new.size()` bytes now.
                unsafe { grown.cast::<u8>().add(old.size()).write_bytes(0, added) };
                Ok(grown)
            }

            unsafe fn shrink(
                &self,
                block: NonNull<u8>,
                old: Layout,
                new: Layout,
            ) -> Result<NonNull<[u8]>, AllocError> {
                // SAFETY: the caller's precondition.
                unsafe { self.fit(block, old, new) }
            }
        }
    };
}

allocator!(Heap: Machine + Send);
allocator!(PagedHeap: Machine);
