//! Ranges with copy-on-write images.
//!
//! A [`Versioned`] range is a slice like a block's. A [`Snapshot`] of it is a slice of its own, whose content
//! stays what the range's was, while the range goes on being written: [`umpa::snapshot`] says how, and what it
//! costs. Images are dropped in any order, and may outlive their range.
//!
//! The first write to a page after a snapshot is a page fault. Somebody has to handle it by
//! [`Pages::fault`], as `pages` in the guest does; without, or without a frame for the copy, it ends the
//! program. [`Versioned::own`] makes the copies before, and its errors are values.
//!
//! Invariants: pages of range and image are mapped, always; an image's are never written.

#![allow(unsafe_code)] // reason: owns memory by its address

use core::fmt;
use core::ops::{Deref, DerefMut, Range};
use core::ptr::NonNull;
use core::slice;

use umpa::blocks::Machine;
use umpa::hardware::Contents;
use umpa::snapshot as below;
use umpa_abi::addr::{Gva, PAGE_BYTES};

pub use umpa::snapshot::Restored;

use crate::block::{check_range, page_at};
use crate::pages::{Below, Place, address_of, bytes_of, memory_at, same_pages};
use crate::{Block, Pages, PagesError, Plain};

/// A range that images can be made of. See the [module](self).
pub struct Versioned<'p, T: Plain = u8> {
    pages: &'p dyn Below,
    place: Place,
    start: NonNull<T>,
    len: usize,
}

/// An image. See the [module](self).
pub struct Snapshot<'p, T: Plain = u8> {
    pages: &'p dyn Below,
    /// `None` while it is being dropped.
    image: Option<below::Snapshot>,
    start: NonNull<T>,
    len: usize,
}

impl<'p, T: Plain> Versioned<'p, T> {
    /// A range of `len` elements; they are whatever the memory held.
    ///
    /// # Errors
    /// [`PagesError::Snapshot`], [`PagesError::BadLength`].
    pub fn new<M: Machine + Contents>(pages: &'p Pages<'_, '_, M>, len: usize) -> Result<Self, PagesError> {
        let (place, gva) = pages.versioned_new(bytes_of::<T>(len)?.div_ceil(PAGE_BYTES))?;
        Ok(Self { pages, place, start: memory_at(gva), len })
    }

    /// Its first address.
    #[must_use]
    pub fn gva(&self) -> Gva {
        address_of(self.start)
    }

    /// An image of the range as it is.
    ///
    /// # Errors
    /// [`PagesError::Snapshot`]; nothing was changed.
    pub fn snapshot(&self) -> Result<Snapshot<'p, T>, PagesError> {
        let image = self.pages.snapshot(self.place)?;
        let start = memory_at(image.gva());
        Ok(Snapshot { pages: self.pages, image: Some(image), start, len: self.len })
    }

    /// Gives the range the content of an image of it, by page-table entries.
    ///
    /// # Errors
    /// [`PagesError::Snapshot`] for another range's image, [`PagesError::OtherPages`]; nothing was changed.
    pub fn restore(&mut self, image: &Snapshot<'_, T>) -> Result<Restored, PagesError> {
        same_pages(self.pages, image.pages)?;
        let image = image.image.as_ref().expect("it isn't dropped");
        let restored = self.pages.snapshot_restore(self.place, image)?;
        self.start = memory_at(self.gva());
        Ok(restored)
    }

    /// Pages, the last one perhaps in part.
    #[must_use]
    pub const fn page_count(&self) -> usize {
        (self.len * size_of::<T>()).div_ceil(PAGE_BYTES as usize)
    }

    /// Copies what images share of these pages, as a first write to each would: writing to them takes no
    /// page fault until the next snapshot.
    ///
    /// # Errors
    /// [`PagesError::OutOfRange`]; [`PagesError::Snapshot`] where there is no frame: contents are as they were,
    /// some pages may be copied.
    pub fn own(&mut self, pages: Range<usize>) -> Result<(), PagesError> {
        check_range(&pages, self.page_count())?;
        let start = self.gva();
        pages
            .into_iter()
            .try_for_each(|page| self.pages.versioned_own(self.place, page_at(start, page).containing()))
    }
}

impl<'p, T: Plain> Block<'p, T> {
    /// Makes the block a range that images can be made of, with its content.
    ///
    /// # Errors
    /// [`PagesError::Snapshot`], [`PagesError::Block`]; the block comes back.
    pub fn into_versioned(self) -> Result<Versioned<'p, T>, (PagesError, Self)> {
        let pages = self.pages();
        let (place, memory) = self.become_other(|pages, gva| pages.versioned_of_block(gva))?;
        Ok(Versioned { pages, place, start: memory.cast(), len: memory.len() })
    }
}

impl<T: Plain> Drop for Versioned<'_, T> {
    fn drop(&mut self) {
        let ended = self.pages.versioned_end(self.place);
        debug_assert!(ended.is_ok(), "{ended:?}");
    }
}

impl<T: Plain> Drop for Snapshot<'_, T> {
    fn drop(&mut self) {
        if let Some(image) = self.image.take() {
            let ended = self.pages.snapshot_drop(image);
            debug_assert!(ended.is_ok(), "{ended:?}");
        }
    }
}

impl<T: Plain> Deref for Versioned<'_, T> {
    type Target = [T];
    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: the range has so many elements, of which any bytes are some; all pages are mapped, and
        // nobody else writes them.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T: Plain> DerefMut for Versioned<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and the range is borrowed. A write to a page that an image has too goes to a
        // copy, at the same address.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl<T: Plain> Deref for Snapshot<'_, T> {
    type Target = [T];
    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: the image has so many elements; all pages are mapped, and nobody writes them.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T: Plain> fmt::Debug for Versioned<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Versioned").field("start", &self.start).field("len", &self.len).finish()
    }
}

impl<T: Plain> fmt::Debug for Snapshot<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot").field("start", &self.start).field("len", &self.len).finish()
    }
}
