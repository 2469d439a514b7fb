//! Covers: blocks of one run, shown by large leaves that reach over its ends.

use super::{AllocError, BlockError, Machine, Supply, Umpa, capacity, window::TABLE_PAGES};
use crate::frames::{OwnedRun, Run};
use crate::space::Slot;
use crate::tables::TableError;
use umpa_abi::addr::{Frame, Gva, Page, PageSize};

/// A cover found by its address.
#[derive(Clone, Copy)]
pub(crate) struct Cover {
    pub(super) slot: Slot,
    pub(super) offset_pages: u64,
    pub(super) pages: u64,
}

impl Cover {
    fn page(self) -> Page {
        self.slot.page().offset(self.offset_pages)
    }
}

impl<M: Machine> Umpa<'_, M> {
    /// A cover of `pages` contiguous frames; `None` when there is no such run.
    pub(super) fn new_cover<S: Supply<M>>(&mut self, pages: u64) -> Result<Option<Gva>, AllocError> {
        self.make_free(pages)?;
        let Some(found) = self.contiguous(S::WANTS, pages) else { return Ok(None) };
        let run = S::ready(self, found);
        let offset_pages = run.first().get() % TABLE_PAGES;
        // From 2 MiB on a cover has a whole level-2 table to itself: see `TableMemory::write_first`.
        let least = if pages < TABLE_PAGES { TABLE_PAGES } else { PageSize::Size1G.frames() };
        let slot = match self.reserve((offset_pages + pages).max(least), pages) {
            Ok(slot) => slot,
            Err(error) => {
                self.put_back(run);
                return Err(error);
            }
        };
        let cover = Cover { slot, offset_pages, pages };
        if let Err((error, run)) = self.map_covered(cover.page(), run) {
            self.put_back(run);
            self.end_window(slot, 0);
            return Err(AllocError::Tables(error));
        }
        self.space.set_cover(&mut self.machine, self.tables.arena_mut(), slot, offset_pages, pages);
        self.stats.covers += 1;
        Ok(Some(cover.page().start()))
    }

    /// Ends a cover; its frames and addresses wait for a flush.
    pub(super) fn end_cover(&mut self, cover: Cover) {
        self.uncover(cover, true);
    }

    /// Gives a cover `pages` pages. A tail is put back at once: the leaves go on showing it, as the
    /// direct map does, at addresses that are nobody's from now on. To grow, it moves to a window.
    pub(super) fn resize_cover(&mut self, cover: Cover, pages: u64) -> Result<Gva, BlockError> {
        if pages > cover.pages {
            return self.unshare_cover(cover, pages, capacity(pages));
        }
        let first = self.first_frame(cover)?;
        if pages < cover.pages {
            self.put_back(Run::new(first.offset(pages), cover.pages - pages));
            let arena = self.tables.arena_mut();
            self.space.set_cover(&mut self.machine, arena, cover.slot, cover.offset_pages, pages);
        }
        self.stats.resized_in_place += 1;
        Ok(cover.page().start())
    }

    /// Moves a cover to a window of at least as many pages, with room for `room`.
    pub(super) fn unshare_cover(&mut self, cover: Cover, pages: u64, room: u64) -> Result<Gva, BlockError> {
        let first = self.first_frame(cover)?;
        let moved = self.move_to_window(first, cover.pages, pages, room)?;
        self.uncover(cover, false);
        Ok(moved)
    }

    fn first_frame(&self, cover: Cover) -> Result<Frame, BlockError> {
        let found = self.tables.translate(&self.machine, cover.page());
        found.map(|found| found.frame).ok_or(BlockError::NotABlock { gva: cover.page().start() })
    }

    /// Takes a cover's leaves away; its frames are quarantined unless they are in use elsewhere.
    fn uncover(&mut self, cover: Cover, frames_too: bool) {
        let frames = &mut self.frames;
        let mut own = |stale| {
            if frames_too {
                frames.quarantine(stale);
            }
        };
        // The leaves of the block, then those that a longer block before left behind: the slot has
        // nothing else.
        let unmapped = [
            self.tables.unmap_cover(&mut self.machine, cover.page(), cover.pages, &mut own),
            self.tables.unmap_cover(&mut self.machine, cover.slot.page(), cover.slot.pages(), &mut |_| {}),
        ];
        for flush in unmapped {
            match flush {
                Ok(flush) => flush.defer(&mut self.owed),
                Err(error) => debug_assert!(false, "{error:?} for a slot"),
            }
        }
        // Its level-2 table stays for the next one there; tables are collected when they run out.
        self.space.release(&mut self.machine, self.tables.arena_mut(), cover.slot);
        if self.frames.quarantined_frames() > self.config.quarantine_max_frames {
            self.settle();
        }
    }

    fn map_covered(&mut self, page: Page, run: OwnedRun) -> Result<(), (TableError, OwnedRun)> {
        let flags = self.config.flags;
        self.map_by(run, |umpa, run| umpa.tables.map_cover(&mut umpa.machine, page, run, flags))
    }
}
