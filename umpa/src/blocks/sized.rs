//! Blocks by pages of a size that the program chooses.
//!
//! [`Umpa::userpage_malloc`] takes leaves as large as frames happen to allow, and shares those of the direct
//! map where it can. Here the size is what was asked for: small ones for memory that will be released, swapped
//! or watched page by page; large ones where each walk counts. What is added later to such a block has
//! the largest leaves that fit; [`Umpa::userpage_promote`] and [`Umpa::userpage_demote`] change their mind.

use super::{AllocError, Machine, Umpa, capacity, pages_of};
use crate::frames::{FRAMES_MAX, OwnedRun};
use crate::runs::Content;
use umpa_abi::addr::{Gva, Page, PageSize};

/// What is to be done where there is no page of the size, or no run of so many frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Otherwise {
    /// No block.
    Refuse,
    /// Pages of the next smaller sizes there.
    Smaller,
}

impl<M: Machine> Umpa<'_, M> {
    /// A block of at least `bytes`, rounded up to pages of `size`, in a window with leaves of just this
    /// size, or of smaller ones where it isn't to be had and that is wanted `otherwise`. Its content is
    /// whatever the frames held.
    ///
    /// # Errors
    /// [`AllocError::NoSuchPage`], [`AllocError::NoRun`] if they refuse, and the others; nothing is
    /// allocated.
    pub fn userpage_malloc_sized(
        &mut self,
        bytes: u64,
        size: PageSize,
        otherwise: Otherwise,
    ) -> Result<Gva, AllocError> {
        let pages = pages_of(bytes)?.next_multiple_of(size.frames());
        if pages > FRAMES_MAX {
            return Err(AllocError::BadSize { bytes });
        }
        let largest = self.tables.largest();
        if size > largest && otherwise == Otherwise::Refuse {
            return Err(AllocError::NoSuchPage { size });
        }
        self.make_free(pages)?;
        let slot = self.reserve(capacity(pages), pages)?;
        // A cover there may have left a table, where a leaf is to stand.
        let pruned = self.tables.prune(&mut self.machine, slot.page(), slot.pages());
        let stale = pruned.pages() > 0;
        pruned.defer(&mut self.owed);
        if stale {
            self.settle();
        }
        let mut done = 0;
        while done < pages {
            let page = slot.page().offset(done);
            let mapped = self.map_sized(page, pages - done, size.min(largest), otherwise);
            match mapped {
                Ok(frames) => done += frames,
                Err(error) => {
                    self.end_window(slot, done);
                    return Err(error);
                }
            }
        }
        self.stats.windows += 1;
        Ok(slot.page().start())
    }

    /// Maps some of `pages` pages; returns how many.
    fn map_sized(
        &mut self,
        page: Page,
        pages: u64,
        size: PageSize,
        otherwise: Otherwise,
    ) -> Result<u64, AllocError> {
        let sizes = PageSize::ALL.into_iter().rev().filter(|&other| other <= size && page.is_aligned(other));
        let mut found = None;
        for size in sizes {
            found = self.run_of_size(page, pages, size).map(|run| (run, size));
            if found.is_some() || otherwise == Otherwise::Refuse {
                break;
            }
        }
        let Some((run, size)) = found else { return Err(AllocError::NoRun { size }) };
        let frames = run.frames();
        let flags = self.config.flags;
        self.map_by(run, |umpa, run| umpa.tables.map(&mut umpa.machine, page, run, flags, size)).map_err(
            |(error, run)| {
                self.put_back(run);
                AllocError::Tables(error)
            },
        )?;
        self.stats.pieces += 1;
        Ok(frames)
    }

    /// Frames for leaves of one size.
    fn run_of_size(&mut self, page: Page, pages: u64, size: PageSize) -> Option<OwnedRun> {
        if size == PageSize::Size4K {
            return self.gather(Content::Any, page, pages).map(|found| found.forget());
        }
        let whole = pages - pages % size.frames();
        if whole == 0 {
            return None;
        }
        let run = self.frames.get_aligned(whole, size);
        if let Some(run) = run.or_else(|| self.aligned_run(size.frames(), size)) {
            return Some(run);
        }
        // Freed windows that are still mapped may have it.
        self.reclaim_all();
        self.frames.get_aligned(size.frames(), size)
    }
}
