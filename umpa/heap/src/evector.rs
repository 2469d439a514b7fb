//! A vector that grows by page table: elements are never copied to grow.
//!
//! Its memory is a large block of a [`Heap`]. A push beyond what is backed backs one page more, behind the last.
//! Where free frames lie together for all that the vector may need, it begins in front of them in the direct map,
//! and a page more is a frame taken, and no store to a table. When somebody else has them it moves to a window, by
//! page-table entries; and from there, when the window's addresses are used up, to one with twice as many. So
//! there is no doubling, and no more spare memory than a page:
//!
//! ```text
//! │ len elements │ spare │      addresses only, room to grow      │
//! │ bytes, a multiple of the page ──────┘                         └ reserve
//! ```
//!
//! Invariants: `spare = bytes - len * size_of::<T>()`; `0 <= spare < page` when a push has grown it;
//! after removals `spare < 2 * page`, so that elements that come and go at a page's end don't edit tables
//! each time.
//!
//! How large the page is, [`Growth`] says. Where page tables are shadowed, a store to a table that is in
//! use costs some 100,000 cycles, so there 4 KiB at a time is for small vectors only. A vector takes at
//! least a page table or two besides.
//!
//! Cost: a push is a comparison and a store; once a page, a resize of the block. Elements that take no
//! memory get none.

#![allow(unsafe_code)] // reason: elements lie in bare memory

mod iter;

pub use iter::IntoIter;

use core::fmt;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};
use core::ptr::{self, NonNull};
use core::slice;

use umpa::blocks::Machine;
use umpa_abi::addr::{PAGE_BYTES, PageSize};

use crate::heap::{Heap, HeapError};

/// Addresses that a vector gets when nobody says how many elements there will be.
const RESERVE_BYTES: usize = 1 << 30;

const SMALL_BYTES: usize = PAGE_BYTES as usize;
const MEDIUM_BYTES: usize = 64 << 10;
const LARGE_BYTES: usize = PageSize::Size2M.bytes() as usize;

/// By how much a vector grows: its page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Growth {
    /// 4 KiB.
    Small,
    /// 4 KiB, from 64 KiB on 64 KiB, from 2 MiB on 2 MiB: never more than the vector has.
    #[default]
    Natural,
    /// 2 MiB.
    Large,
}

impl Growth {
    /// The page of a vector with so many bytes.
    const fn page_bytes(self, bytes: usize) -> usize {
        match self {
            Self::Small => SMALL_BYTES,
            Self::Natural if bytes < MEDIUM_BYTES => SMALL_BYTES,
            Self::Natural if bytes < LARGE_BYTES => MEDIUM_BYTES,
            Self::Natural | Self::Large => LARGE_BYTES,
        }
    }
}

/// See the [module](self).
pub struct EVector<'h, 'u, 'a, T, M: Machine + Send> {
    heap: &'h Heap<'u, 'a, M>,
    start: NonNull<T>,
    len: usize,
    /// Elements that fit into `bytes`.
    capacity: usize,
    /// Bytes of memory: 0, and `start` dangles, or those of the block at `start`.
    bytes: usize,
    reserve_bytes: usize,
    growth: Growth,
    owns: PhantomData<T>,
}

impl<'h, 'u, 'a, T, M: Machine + Send> EVector<'h, 'u, 'a, T, M> {
    /// An empty vector, without memory.
    #[must_use]
    pub const fn new_in(heap: &'h Heap<'u, 'a, M>) -> Self {
        Self::reserved(heap, RESERVE_BYTES, Growth::Natural)
    }

    /// An empty vector, without memory, that will have room for `elements` elements where it is: in front of as many
    /// free frames, for as long as nobody takes them, else in addresses of its own. Beyond them it moves, by
    /// its page-table entries.
    #[must_use]
    pub const fn with_reserve_in(heap: &'h Heap<'u, 'a, M>, elements: usize, growth: Growth) -> Self {
        Self::reserved(heap, elements.saturating_mul(size_of::<T>()), growth)
    }

    const fn reserved(heap: &'h Heap<'u, 'a, M>, bytes: usize, growth: Growth) -> Self {
        // A window of its own, which a large page fits into.
        let reserve_bytes = if bytes < LARGE_BYTES { LARGE_BYTES } else { bytes };
        let (start, owns) = (NonNull::dangling(), PhantomData);
        Self { heap, start, len: 0, capacity: Self::fitting(0), bytes: 0, reserve_bytes, growth, owns }
    }

    /// Elements that fit into the memory that there is.
    #[must_use]
    pub const fn capacity(&self) -> usize {
        self.capacity
    }

    /// Elements that fit into so many bytes.
    const fn fitting(bytes: usize) -> usize {
        match bytes.checked_div(size_of::<T>()) {
            Some(elements) => elements,
            None => usize::MAX,
        }
    }

    fn set_block(&mut self, start: NonNull<T>, bytes: usize) {
        (self.start, self.bytes, self.capacity) = (start, bytes, Self::fitting(bytes));
    }

    /// Bytes of memory without elements.
    #[must_use]
    pub const fn spare_bytes(&self) -> usize {
        self.bytes - self.len * size_of::<T>()
    }

    /// Puts an element behind the last.
    ///
    /// # Errors
    /// [`HeapError`] and the element; the vector is as it was.
    #[inline]
    pub fn try_push(&mut self, element: T) -> Result<(), (HeapError, T)> {
        // Read once: for all that the compiler knows, the element may lie over the vector.
        let len = self.len;
        if len == self.capacity
            && let Err(error) = self.grow()
        {
            return Err((error, element));
        }
        // SAFETY: there is memory for more than `len` elements, and this one's place has none.
        unsafe { self.start.add(len).write(element) };
        self.len = len + 1;
        Ok(())
    }

    /// [`Self::try_push`] that has memory, as std's `push`.
    ///
    /// # Panics
    /// When there is no memory.
    #[inline]
    pub fn push(&mut self, element: T) {
        if let Err((error, _)) = self.try_push(element) {
            panic!("no memory for element {}: {error:?}", self.len);
        }
    }

    /// Takes the last element away.
    #[inline]
    pub fn pop(&mut self) -> Option<T> {
        self.len = self.len.checked_sub(1)?;
        // SAFETY: the place had an element, and isn't one of the vector's any more.
        let element = unsafe { self.start.add(self.len).read() };
        self.give_back();
        Some(element)
    }

    /// Puts an element at `index`, before those that are there.
    ///
    /// # Panics
    /// When `index` is above the length, and when there is no memory.
    pub fn insert(&mut self, index: usize, element: T) {
        assert!(index <= self.len, "insertion at {index} of {}", self.len);
        self.push(element);
        self[index..].rotate_right(1);
    }

    /// Takes the element at `index` away; those behind it follow.
    ///
    /// # Panics
    /// When there is none.
    pub fn remove(&mut self, index: usize) -> T {
        self[index..].rotate_left(1);
        self.pop().expect("there is an element at the index")
    }

    /// Takes the element at `index` away; the last one takes its place.
    ///
    /// # Panics
    /// When there is none.
    pub fn swap_remove(&mut self, index: usize) -> T {
        let last = self.len.saturating_sub(1);
        self.swap(index, last);
        self.pop().expect("there is an element at the index")
    }

    /// Drops all elements from `len` on.
    pub fn truncate(&mut self, len: usize) {
        let Some(dropped) = self.len.checked_sub(len).filter(|&dropped| dropped > 0) else { return };
        self.len = len;
        // SAFETY: these places had elements, and aren't the vector's any more, even if a drop panics.
        unsafe { ptr::slice_from_raw_parts_mut(self.start.as_ptr().add(len), dropped).drop_in_place() };
        self.give_back();
    }

    /// Drops all elements.
    pub fn clear(&mut self) {
        self.truncate(0);
    }

    /// Gives all memory back that no element needs: less than a page stays.
    pub fn shrink_to_fit(&mut self) {
        self.fit(self.len * size_of::<T>());
    }

    /// By how much it grows next.
    #[must_use]
    pub const fn page_bytes(&self) -> usize {
        self.growth.page_bytes(self.bytes)
    }

    /// Memory for one element more, in whole pages.
    #[cold]
    fn grow(&mut self) -> Result<(), HeapError> {
        let out = HeapError::OutOfMemory { bytes: usize::MAX };
        let needed = self.len.checked_add(1).and_then(|len| len.checked_mul(size_of::<T>())).ok_or(out)?;
        let bytes = needed.checked_next_multiple_of(self.page_bytes()).ok_or(out)?;
        // A window of 2 MiB or more is aligned to as much: large pages are mapped by large leaves.
        let align_bytes = align_of::<T>();
        let room = if bytes < self.reserve_bytes { self.reserve_bytes } else { bytes.saturating_mul(2) };
        let start = self.start.cast();
        let block = if self.bytes == 0 {
            self.heap.alloc_growing(bytes, align_bytes, room)
        // SAFETY: it is the vector's block, and nobody refers to elements now.
        } else if unsafe { self.heap.resize(start, bytes) }.is_ok() {
            Ok(start)
        } else {
            // SAFETY: as above.
            unsafe { self.heap.realloc_reserved(start, bytes, align_bytes, room) }
        };
        self.set_block(block?.cast(), bytes);
        Ok(())
    }

    /// After a removal: two pages of spare memory are one too many.
    fn give_back(&mut self) {
        if self.spare_bytes() >= 2 * self.page_bytes() {
            self.fit(self.len * size_of::<T>() + 1);
        }
    }

    /// Keeps memory for `bytes` bytes.
    #[cold]
    fn fit(&mut self, bytes: usize) {
        let bytes = bytes.next_multiple_of(self.growth.page_bytes(bytes));
        if bytes >= self.bytes {
            return;
        }
        if bytes == 0 {
            self.free();
            return;
        }
        // SAFETY: it is the vector's block; no element lies behind `bytes`.
        if unsafe { self.heap.resize(self.start.cast(), bytes) }.is_ok() {
            self.set_block(self.start, bytes);
        }
    }

    /// Ends the block.
    fn free(&mut self) {
        if self.bytes > 0 {
            // SAFETY: it is the vector's block, and no element is in it.
            let freed = unsafe { self.heap.free(self.start.cast()) };
            debug_assert!(freed.is_ok(), "{freed:?}");
            self.set_block(NonNull::dangling(), 0);
        }
    }
}

impl<T, M: Machine + Send> Drop for EVector<'_, '_, '_, T, M> {
    fn drop(&mut self) {
        let elements = ptr::slice_from_raw_parts_mut(self.start.as_ptr(), core::mem::take(&mut self.len));
        // SAFETY: these are the vector's elements, and it has none any more.
        unsafe { elements.drop_in_place() };
        self.free();
    }
}

impl<T, M: Machine + Send> Deref for EVector<'_, '_, '_, T, M> {
    type Target = [T];
    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: the first `len` places have elements; without memory the pointer dangles, aligned.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T, M: Machine + Send> DerefMut for EVector<'_, '_, '_, T, M> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and the vector is borrowed.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl<T: fmt::Debug, M: Machine + Send> fmt::Debug for EVector<'_, '_, '_, T, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl<T, M: Machine + Send> Extend<T> for EVector<'_, '_, '_, T, M> {
    fn extend<I: IntoIterator<Item = T>>(&mut self, elements: I) {
        elements.into_iter().for_each(|element| self.push(element));
    }
}

impl<'e, T: Copy + 'e, M: Machine + Send> Extend<&'e T> for EVector<'_, '_, '_, T, M> {
    fn extend<I: IntoIterator<Item = &'e T>>(&mut self, elements: I) {
        elements.into_iter().for_each(|&element| self.push(element));
    }
}

impl<'h, 'u, 'a, T, M: Machine + Send> EVector<'h, 'u, 'a, T, M> {
    /// The elements of an iterator, in a new vector.
    ///
    /// # Panics
    /// When there is no memory.
    pub fn from_iter_in<I: IntoIterator<Item = T>>(elements: I, heap: &'h Heap<'u, 'a, M>) -> Self {
        let mut vector = Self::new_in(heap);
        vector.extend(elements);
        vector
    }

    /// The memory without its elements, and how many those are: they are the caller's to drop.
    fn into_empty(mut self) -> (Self, usize) {
        let len = core::mem::take(&mut self.len);
        (self, len)
    }
}
