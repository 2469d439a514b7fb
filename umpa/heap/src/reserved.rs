//! Addresses of which parts have memory.
//!
//! A page that has none must never be under a reference. So a [`Reserved`] range isn't a slice: it gives
//! slices of parts that have memory ([`Reserved::get`]), and takes memory away only when it is borrowed by
//! `&mut`.
//!
//! Invariant: all pages of a slice that was given out are mapped.

#![allow(unsafe_code)] // reason: owns memory by its address

use core::fmt;
use core::ops::Range;
use core::slice;

use umpa::blocks::Machine;
use umpa::hardware::Contents;
use umpa_abi::addr::{Gva, PAGE_BYTES};

use crate::block::{check_range, page_at};
use crate::pages::{Below, bytes_of, memory_at, window_pages};
use crate::{Block, Pages, PagesError, Plain};

const PAGE: usize = PAGE_BYTES as usize;

/// See the [module](self). Ranges are of pages, counted from its first.
pub struct Reserved<'p> {
    pages: &'p dyn Below,
    start: Gva,
    page_count: usize,
}

impl<'p> Reserved<'p> {
    /// Addresses for so many pages, without memory.
    ///
    /// # Errors
    /// [`PagesError::Block`], [`PagesError::BadLength`].
    pub fn new<M: Machine + Contents>(
        pages: &'p Pages<'_, '_, M>,
        page_count: usize,
    ) -> Result<Self, PagesError> {
        let start = pages.reserve(bytes_of::<[u8; PAGE]>(page_count)?)?;
        Ok(Self { pages, start, page_count })
    }

    /// Its first address.
    #[must_use]
    pub const fn gva(&self) -> Gva {
        self.start
    }

    /// Pages of addresses.
    #[must_use]
    pub const fn page_count(&self) -> usize {
        self.page_count
    }

    /// Gives memory to the pages that have none; new memory contains whatever it held.
    ///
    /// # Errors
    /// [`PagesError::OutOfRange`], [`PagesError::Block`]; nothing was added.
    pub fn commit(&mut self, pages: Range<usize>) -> Result<&mut [u8], PagesError> {
        check_range(&pages, self.page_count)?;
        self.pages.commit(page_at(self.start, pages.start), (pages.len() * PAGE) as u64)?;
        // SAFETY: all of these are mapped now, and this value is borrowed.
        Ok(unsafe { slice::from_raw_parts_mut(self.at(&pages), pages.len() * PAGE) })
    }

    /// Takes the memory away, with what it contains. Returns how many pages had some.
    ///
    /// # Errors
    /// [`PagesError::OutOfRange`], [`PagesError::Block`]; nothing was taken.
    pub fn release(&mut self, pages: Range<usize>) -> Result<usize, PagesError> {
        check_range(&pages, self.page_count)?;
        let frames = self.pages.release(page_at(self.start, pages.start), (pages.len() * PAGE) as u64)?;
        Ok(frames as usize)
    }

    /// The content of pages.
    ///
    /// # Errors
    /// [`PagesError::NoMemory`] where a page has none; [`PagesError::OutOfRange`].
    pub fn get(&self, pages: Range<usize>) -> Result<&[u8], PagesError> {
        self.check_memory(&pages)?;
        // SAFETY: all are mapped, and stay so while this value is borrowed.
        Ok(unsafe { slice::from_raw_parts(self.at(&pages), pages.len() * PAGE) })
    }

    /// The content of pages, to change.
    ///
    /// # Errors
    /// As for [`Self::get`].
    pub fn get_mut(&mut self, pages: Range<usize>) -> Result<&mut [u8], PagesError> {
        self.check_memory(&pages)?;
        // SAFETY: all are mapped, and stay so while this value is borrowed.
        Ok(unsafe { slice::from_raw_parts_mut(self.at(&pages), pages.len() * PAGE) })
    }

    /// A block of all pages up to the last that ever had memory.
    ///
    /// # Errors
    /// [`PagesError::NoMemory`] where one of them has none now. The range comes back.
    pub fn into_block(self) -> Result<Block<'p>, (PagesError, Self)> {
        let bytes = match self.pages.usable_bytes(self.start) {
            Ok(bytes) => bytes as usize,
            Err(error) => return Err((error, self)),
        };
        if let Err(error) = self.check_memory(&(0..bytes / PAGE)) {
            return Err((error, self));
        }
        let this = core::mem::ManuallyDrop::new(self);
        Ok(Block::of_pages(this.pages, this.start, bytes))
    }

    fn check_memory(&self, pages: &Range<usize>) -> Result<(), PagesError> {
        check_range(pages, self.page_count)?;
        let first = page_at(self.start, pages.start).containing();
        if self.pages.is_mapped(first, pages.len() as u64)? {
            return Ok(());
        }
        Err(PagesError::NoMemory { start: pages.start, end: pages.end })
    }

    fn at(&self, pages: &Range<usize>) -> *mut u8 {
        memory_at(page_at(self.start, pages.start)).as_ptr()
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        let freed = self.pages.free(self.start);
        debug_assert!(freed.is_ok(), "{freed:?}");
    }
}

impl fmt::Debug for Reserved<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reserved").field("start", &self.start).field("pages", &self.page_count).finish()
    }
}

impl<'p, T: Plain> Block<'p, T> {
    /// Makes the block a range that can lose parts of its memory and regain some; it has all addresses that
    /// the block could grow in.
    ///
    /// # Errors
    /// [`PagesError::Block`]; the block comes back.
    pub fn into_reserved(self) -> Result<Reserved<'p>, (PagesError, Self)> {
        let (pages, have) = (self.pages(), self.page_count());
        let (start, _) = self.become_other(|_, gva| Ok(gva))?;
        let page_count = window_pages(start).map_or(have, |pages| pages as usize);
        Ok(Reserved { pages, start, page_count })
    }
}
