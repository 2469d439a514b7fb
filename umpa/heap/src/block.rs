//! Blocks that own their memory: slices that grow by page table.
//!
//! A [`Block`] is whole pages; it is used as a slice of its elements. It is resized without a copy, where
//! it is or elsewhere; two blocks exchange content by page-table entries; and it can become what else is made
//! of pages: a [`Reserved`](crate::Reserved) range that loses and regains parts, a [`View`](crate::View), a
//! range with images ([`Versioned`](crate::Versioned)).
//!
//! What a new block, or the new part of a larger one, contains is what its frames held: some value that
//! nobody knows, often an earlier owner's. [`Block::zeroed`] asks for zeros. All elements are
//! [`Plain`], so that this is a matter of content, not of safety.
//!
//! Invariants: `len > 0`; `len * size_of::<T>() <= usable bytes` of the block at `start`, which is
//! `umpa`'s block until the value is dropped, and nobody else's.

#![allow(unsafe_code)] // reason: owns memory by its address

use core::fmt;
use core::mem::ManuallyDrop;
use core::ops::{Deref, DerefMut, Range};
use core::ptr::NonNull;
use core::slice;

use umpa::blocks::Machine;
use umpa::hardware::Contents;
use umpa_abi::addr::{Gva, PAGE_BYTES};

use crate::pages::{Below, address_of, bytes_of, memory_at, same_pages};
use crate::{Pages, PagesError, Plain};

/// What a block became, and its memory; or why not, and the block.
pub(crate) type Converted<'p, T, R> = Result<(R, NonNull<[T]>), (PagesError, Block<'p, T>)>;

/// See the [module](self).
pub struct Block<'p, T: Plain = u8> {
    pages: &'p dyn Below,
    start: NonNull<T>,
    len: usize,
}

impl<'p, T: Plain> Block<'p, T> {
    /// A block of `len` elements; they are whatever the memory held.
    ///
    /// # Errors
    /// [`PagesError::Block`], [`PagesError::BadLength`].
    pub fn new<M: Machine + Contents>(pages: &'p Pages<'_, '_, M>, len: usize) -> Result<Self, PagesError> {
        let start = memory_at(pages.alloc(bytes_of::<T>(len)?)?);
        Ok(Self { pages, start, len })
    }

    /// A block of `len` elements whose bytes are 0; frames that are known to be zero come first.
    ///
    /// # Errors
    /// As for [`Self::new`].
    pub fn zeroed<M: Machine + Contents>(
        pages: &'p Pages<'_, '_, M>,
        len: usize,
    ) -> Result<Self, PagesError> {
        let start = memory_at(pages.alloc_zeroed(bytes_of::<T>(len)?)?);
        Ok(Self { pages, start, len })
    }

    /// A block of `len` elements that has addresses for `reserve` of them, so that it grows to as many where it is.
    ///
    /// # Errors
    /// As for [`Self::new`].
    pub fn with_reserve<M: Machine + Contents>(
        pages: &'p Pages<'_, '_, M>,
        len: usize,
        reserve: usize,
    ) -> Result<Self, PagesError> {
        let (bytes, reserve_bytes) = (bytes_of::<T>(len)?, bytes_of::<T>(reserve.max(len))?);
        let start = memory_at(pages.alloc_reserved(bytes, reserve_bytes)?);
        Ok(Self { pages, start, len })
    }

    /// A block from what [`Self::into_raw`] gave.
    ///
    /// # Safety
    /// `memory` came from `into_raw` of a block on `pages` with elements of the same type, and no other
    /// value was made of it since.
    pub const unsafe fn from_raw<M: Machine + Contents>(
        pages: &'p Pages<'_, '_, M>,
        memory: NonNull<[T]>,
    ) -> Self {
        Self { pages, start: memory.cast(), len: memory.len() }
    }

    /// The memory, which is the caller's from now on.
    #[must_use = "the memory is lost otherwise"]
    pub fn into_raw(self) -> NonNull<[T]> {
        let this = ManuallyDrop::new(self);
        NonNull::slice_from_raw_parts(this.start, this.len)
    }

    /// Its first address.
    #[must_use]
    pub fn gva(&self) -> Gva {
        address_of(self.start)
    }

    /// Elements that the memory has room for.
    #[must_use]
    pub fn capacity(&self) -> usize {
        let usable = self.pages.usable_bytes(self.gva()).map_or(0, |bytes| bytes as usize / size_of::<T>());
        usable.max(self.len)
    }

    /// Gives it `len` elements, without a copy; the address may change. Elements that are new are
    /// whatever the memory held.
    ///
    /// # Errors
    /// As for [`Self::new`]; the block is as it was.
    pub fn resize(&mut self, len: usize) -> Result<(), PagesError> {
        let bytes = bytes_of::<T>(len)?;
        self.start = memory_at(self.pages.realloc(self.gva(), bytes)?);
        self.len = len;
        Ok(())
    }

    /// Gives it `len` elements where it is.
    ///
    /// # Errors
    /// As for [`Self::resize`]; [`BlockError::NoRoom`](umpa::blocks::BlockError::NoRoom) where it would have
    /// to move.
    pub fn resize_in_place(&mut self, len: usize) -> Result<(), PagesError> {
        self.pages.resize(self.gva(), bytes_of::<T>(len)?)?;
        (self.start, self.len) = (memory_at(self.gva()), len);
        Ok(())
    }

    /// Exchanges the content with another block's, by page-table entries: each stays where it is, unless it
    /// has no entries of its own yet.
    ///
    /// # Errors
    /// [`PagesError::LengthsDiffer`], [`PagesError::OtherPages`], [`PagesError::Block`]. Contents are as they
    /// were.
    pub fn swap_contents(&mut self, other: &mut Self) -> Result<(), PagesError> {
        if self.len != other.len {
            return Err(PagesError::LengthsDiffer { one: self.len, other: other.len });
        }
        let all = 0..self.page_count();
        self.swap_pages(all, other, 0)
    }

    /// Exchanges the content of whole pages: these, and as many of another block from `other_first` on. The
    /// last page of a block counts as a whole one.
    ///
    /// # Errors
    /// [`PagesError::OutOfRange`], [`PagesError::OtherPages`], [`PagesError::Block`]. Contents are as they
    /// were.
    pub fn swap_pages(
        &mut self,
        these: Range<usize>,
        other: &mut Self,
        other_first: usize,
    ) -> Result<(), PagesError> {
        same_pages(self.pages, other.pages)?;
        let other_end = other_first.saturating_add(these.len());
        check_range(&these, self.page_count())?;
        check_range(&(other_first..other_end), other.page_count())?;
        self.take_own_pages()?;
        other.take_own_pages()?;
        let [one, two] =
            [(&*self, these.start), (&*other, other_first)].map(|(block, page)| page_at(block.gva(), page));
        self.pages.swap(one, two, these.len() as u64 * PAGE_BYTES)?;
        (self.start, other.start) = (memory_at(self.gva()), memory_at(other.gva()));
        Ok(())
    }

    /// Pages, the last one perhaps in part.
    #[must_use]
    pub const fn page_count(&self) -> usize {
        (self.len * size_of::<T>()).div_ceil(PAGE_BYTES as usize)
    }

    /// Its elements' bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        // SAFETY: elements are plain: they are all of their bytes.
        unsafe { slice::from_raw_parts(self.start.as_ptr().cast(), self.len * size_of::<T>()) }
    }

    /// Its elements' bytes, to change.
    #[must_use]
    pub fn as_bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: elements are plain: any bytes are some.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr().cast(), self.len * size_of::<T>()) }
    }

    /// The same memory as elements of another type: as many as fit into the block's length.
    ///
    /// # Errors
    /// [`PagesError::BadLength`] when none does. The block comes back.
    pub fn cast<U: Plain>(self) -> Result<Block<'p, U>, (PagesError, Self)> {
        let len = (self.len * size_of::<T>()).checked_div(size_of::<U>()).unwrap_or(0);
        match bytes_of::<U>(len) {
            Ok(_) => {
                let (pages, start) = (self.pages, self.into_raw().cast());
                Ok(Block { pages, start, len })
            }
            Err(error) => Err((error, self)),
        }
    }

    /// Sees to it that it has page-table entries of its own, which may change the address.
    pub(crate) fn take_own_pages(&mut self) -> Result<(), PagesError> {
        self.start = memory_at(self.pages.unshare(self.gva())?);
        Ok(())
    }

    /// Makes it something else: `make` takes its memory over if it returns `Ok`.
    pub(crate) fn become_other<R>(
        mut self,
        make: impl FnOnce(&'p dyn Below, Gva) -> Result<R, PagesError>,
    ) -> Converted<'p, T, R> {
        match self.take_own_pages().and_then(|()| make(self.pages, self.gva())) {
            Ok(other) => Ok((other, self.into_raw())),
            Err(error) => Err((error, self)),
        }
    }

    pub(crate) const fn pages(&self) -> &'p dyn Below {
        self.pages
    }
}

impl<'p> Block<'p, u8> {
    /// A block of memory that became one: whole pages, all of which are there.
    pub(crate) fn of_pages(pages: &'p dyn Below, gva: Gva, bytes: usize) -> Self {
        Self { pages, start: memory_at(gva), len: bytes }
    }
}

impl<T: Plain> Drop for Block<'_, T> {
    fn drop(&mut self) {
        let freed = self.pages.free(self.gva());
        debug_assert!(freed.is_ok(), "{freed:?}");
    }
}

impl<T: Plain> Deref for Block<'_, T> {
    type Target = [T];
    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: the block has so many elements, of which any bytes are some; it is mapped, and nobody
        // else's, until it is dropped or resized, which takes `&mut`.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T: Plain> DerefMut for Block<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and the block is borrowed.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl<T: Plain> fmt::Debug for Block<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Block").field("start", &self.start).field("len", &self.len).finish()
    }
}

/// The range has something in it, and ends at `len` at the latest.
pub(crate) fn check_range(range: &Range<usize>, len: usize) -> Result<(), PagesError> {
    let good = range.start < range.end && range.end <= len;
    if good { Ok(()) } else { Err(PagesError::OutOfRange { start: range.start, end: range.end, len }) }
}

/// The address of a page, counted from the one at `gva`.
pub(crate) const fn page_at(gva: Gva, page: usize) -> Gva {
    Gva::new(gva.get() + page as u64 * PAGE_BYTES)
}
