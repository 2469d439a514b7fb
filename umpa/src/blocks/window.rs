//! Windows: blocks in address space of their own (rungs b and c).

use super::{AllocError, AsIs, Machine, Supply, Umpa};
use crate::frames::{Found, OwnedRun};
use crate::mmap::Ranges;
use crate::runs::Content;
use crate::space::Slot;
use crate::tables::TableError;
use umpa_abi::addr::{PAGE_BYTES, Page, PageSize};
use umpa_abi::layout;

/// Pages of a whole leaf table. Slots of at least this size own the tables under them, so their
/// tables are unlinked with them: the next window there is free to use large leaves.
pub(super) const TABLE_PAGES: u64 = PageSize::Size2M.frames();

/// Pages of mappings and of windows, which follow each other.
const PRUNED_PAGES: u64 = (layout::PROGRAM_BYTES + layout::BLOCKS_BYTES) / PAGE_BYTES;

impl<M: Machine> Umpa<'_, M> {
    /// A window of `pages` mapped pages in a slot of at least `capacity_pages`.
    pub(crate) fn new_window(&mut self, pages: u64, capacity_pages: u64) -> Result<Slot, AllocError> {
        self.new_window_by::<AsIs>(pages, capacity_pages)
    }

    pub(super) fn new_window_by<S: Supply<M>>(
        &mut self,
        pages: u64,
        capacity_pages: u64,
    ) -> Result<Slot, AllocError> {
        self.make_free(pages)?;
        let slot = self.reserve(capacity_pages, pages)?;
        if let Err(error) = self.map_new_by::<S>(slot.page(), pages) {
            self.end_window(slot, 0);
            return Err(error);
        }
        Ok(slot)
    }

    /// A slot of at least `capacity_pages`, as a live window of `pages`.
    pub(crate) fn reserve(&mut self, capacity_pages: u64, pages: u64) -> Result<Slot, AllocError> {
        let room = self.room(capacity_pages);
        if room > capacity_pages {
            let reserved = self.space.reserve(&mut self.machine, self.tables.arena_mut(), room, pages);
            if let Ok(slot) = reserved {
                return Ok(slot);
            }
        }
        let reserved = self.with_remedies(|umpa| {
            let arena = umpa.tables.arena_mut();
            umpa.space.reserve(&mut umpa.machine, arena, capacity_pages, pages)
        });
        reserved.map_err(AllocError::Space)
    }

    /// Pages of address space for a window that needs `capacity_pages`, if there is plenty.
    pub(super) fn room(&self, capacity_pages: u64) -> u64 {
        let apart = capacity_pages >= self.config.apart_min_pages;
        if apart { capacity_pages.max(PageSize::Size1G.frames()) } else { capacity_pages }
    }

    /// Takes the empty leaf tables away that unmappings have left. The flush comes next.
    pub(super) fn prune_emptied(&mut self) {
        let emptied = core::mem::replace(&mut self.emptied, Ranges::new());
        for &(start, end) in emptied.ranges() {
            let flush = self.tables.prune(&mut self.machine, Page::new(start), end - start);
            flush.defer(&mut self.owed);
        }
    }

    /// Tries an edit that may want for tables or addresses, and what helps in between, the cheapest
    /// first: the flush that is owed; then the end of all retained windows, of empty tables and of
    /// records that nobody needs. That is linear in the tables that there are.
    pub(crate) fn with_remedies<T, E>(
        &mut self,
        mut edit: impl FnMut(&mut Self) -> Result<T, E>,
    ) -> Result<T, E> {
        if let Ok(done) = edit(self) {
            return Ok(done);
        }
        self.settle();
        if let Ok(done) = edit(self) {
            return Ok(done);
        }
        self.end_retained();
        let (first, pages) = (layout::PROGRAM_GVA.containing(), PRUNED_PAGES);
        self.tables.prune(&mut self.machine, first, pages).defer(&mut self.owed);
        self.settle();
        self.space.forget_vacant(&mut self.machine, self.tables.arena_mut());
        edit(self)
    }

    /// Ends all retained windows. The flush comes next.
    fn end_retained(&mut self) {
        while let Some((slot, pages)) = self.space.take_any_retained(&mut self.machine) {
            self.stats.reclaimed += 1;
            self.end_window(slot, pages);
        }
    }

    /// Frees what nobody uses.
    pub(super) fn reclaim_all(&mut self) {
        self.end_retained();
        self.settle();
    }

    /// Maps `pages` pages from `page` on, all unmapped, to free frames: as few leaves as the free
    /// runs allow. On an error nothing is mapped.
    pub(super) fn map_new(&mut self, page: Page, pages: u64) -> Result<(), AllocError> {
        self.map_new_by::<AsIs>(page, pages)
    }

    fn map_new_by<S: Supply<M>>(&mut self, page: Page, pages: u64) -> Result<(), AllocError> {
        self.make_free(pages)?;
        let mut done = 0;
        while done < pages {
            let Some(found) = self.gather(S::WANTS, page.offset(done), pages - done) else {
                self.unmap_to_quarantine(page, done);
                let free = self.frames.free_frames();
                return Err(AllocError::OutOfFrames { wanted: pages, free });
            };
            let run = S::ready(self, found);
            let frames = run.frames();
            if let Err(error) = self.map_run(page.offset(done), run) {
                self.unmap_to_quarantine(page, done);
                return Err(error);
            }
            self.stats.pieces += 1;
            done += frames;
        }
        Ok(())
    }

    /// [`Self::map_new`] in a live window: where pages of it were unmapped since the last flush, that
    /// flush comes first, as cached translations would lead to the frames from before.
    pub(super) fn map_more(&mut self, slot: Slot, page: Page, pages: u64) -> Result<(), AllocError> {
        self.map_more_by::<AsIs>(slot, page, pages)
    }

    pub(super) fn map_more_by<S: Supply<M>>(
        &mut self,
        slot: Slot,
        page: Page,
        pages: u64,
    ) -> Result<(), AllocError> {
        if self.space.is_stale(&self.machine, slot, self.owed.settled()) {
            self.settle();
        }
        let mapped = self.map_new_by::<S>(page, pages);
        if mapped.is_err() {
            self.mark_stale(slot);
        }
        mapped
    }

    /// Unmaps pages of a window that lives on.
    ///
    /// # Errors
    /// A large leaf at an end needs a table that isn't to be had; then nothing was unmapped.
    pub(super) fn unmap_part(&mut self, slot: Slot, page: Page, pages: u64) -> Result<u64, AllocError> {
        let unmapped = self.try_unmap(page, pages).map_err(AllocError::Tables);
        self.mark_stale(slot);
        unmapped
    }

    pub(super) fn mark_stale(&mut self, slot: Slot) {
        let settled = self.owed.settled();
        self.space.mark_stale(&mut self.machine, self.tables.arena_mut(), slot, settled);
    }

    /// Maps one run. On an error the run is free again.
    fn map_run(&mut self, page: Page, run: OwnedRun) -> Result<(), AllocError> {
        self.map_kept(page, run).map_err(|(error, run)| {
            self.put_back(run);
            AllocError::Tables(error)
        })
    }

    /// Maps one run; an error gives it back.
    pub(super) fn map_kept(&mut self, page: Page, run: OwnedRun) -> Result<(), (TableError, OwnedRun)> {
        let flags = self.config.flags;
        self.map_by(run, |umpa, run| umpa.tables.map(&mut umpa.machine, page, run, flags, PageSize::Size1G))
    }

    /// Maps one run by `map`, with remedies; an error gives it back.
    pub(crate) fn map_by(
        &mut self,
        run: OwnedRun,
        mut map: impl FnMut(&mut Self, OwnedRun) -> Result<(), (TableError, OwnedRun)>,
    ) -> Result<(), (TableError, OwnedRun)> {
        let mut held = Some(run);
        let mut failed = TableError::OutOfTables;
        let mapped = self.with_remedies(|umpa| {
            let Some(run) = held.take() else { return Ok(()) };
            map(umpa, run).map_err(|(error, run)| {
                failed = error;
                held = Some(run);
            })
        });
        match (mapped, held) {
            (Err(()), Some(run)) => Err((failed, run)),
            _ => Ok(()),
        }
    }

    /// Ends a live window whose first `pages` pages may be mapped.
    pub(crate) fn end_window(&mut self, slot: Slot, pages: u64) {
        self.unmap_to_quarantine(slot.page(), pages);
        if self.config.apart_min_pages < slot.pages() {
            // The level-2 table stays for the next window there.
            self.tables.prune_leaf_tables(&mut self.machine, slot.page(), slot.pages()).defer(&mut self.owed);
        } else if slot.pages() >= TABLE_PAGES {
            self.tables.prune(&mut self.machine, slot.page(), slot.pages()).defer(&mut self.owed);
        }
        self.space.release(&mut self.machine, self.tables.arena_mut(), slot);
        if self.frames.quarantined_frames() > self.config.quarantine_max_frames {
            self.settle();
        }
    }

    /// Unmaps a range that no leaf reaches out of; its frames wait for a flush.
    pub(crate) fn unmap_to_quarantine(&mut self, page: Page, pages: u64) {
        let unmapped = self.try_unmap(page, pages);
        debug_assert!(unmapped.is_ok(), "{unmapped:?}: a leaf reaches out of {pages} pages at {page}");
    }

    /// Unmaps the range; its frames wait for a flush. Returns them.
    pub(crate) fn try_unmap(&mut self, page: Page, pages: u64) -> Result<u64, TableError> {
        if pages == 0 {
            return Ok(0);
        }
        let mut unmapped = 0;
        let flush = self.with_remedies(|umpa| {
            let frames = &mut umpa.frames;
            umpa.tables.unmap(&mut umpa.machine, page, pages, &mut |stale| {
                unmapped += stale.frames();
                frames.quarantine(stale);
            })
        })?;
        flush.defer(&mut self.owed);
        Ok(unmapped)
    }

    /// True when every page of the window is mapped and not watched, and no address in it waits for a
    /// flush. Linear in its leaves; see `retain_whole` for windows of which it is known.
    pub(super) fn is_whole(&self, slot: Slot, pages: u64) -> bool {
        let stale = self.space.is_stale(&self.machine, slot, self.owed.settled());
        !stale && pages > 0 && self.mapped_pages(slot, pages) == pages
    }

    /// Pages of the window that are mapped and not watched.
    pub(super) fn mapped_pages(&self, slot: Slot, pages: u64) -> u64 {
        let mut mapped = 0;
        let _ = self.tables.for_each_leaf(&self.machine, slot.page(), pages, &mut |leaf| {
            mapped += if leaf.watch().is_none() { leaf.pages } else { 0 };
            core::ops::ControlFlow::<()>::Continue(())
        });
        mapped
    }

    /// Windows in the range aren't known to be whole any more: their leaves are about to change.
    pub(crate) fn forget_whole(&mut self, page: Page, pages: u64) {
        let end = page.offset(pages);
        let mut at = page.max(layout::BLOCKS_GVA.containing());
        while at < end
            && let Some((slot, _)) = Slot::containing(at.start())
        {
            self.space.forget_whole(&mut self.machine, self.tables.arena_mut(), slot);
            at = slot.page().offset(slot.pages());
        }
    }

    /// Free frames for at most `pages` pages at `page`: aligned for large leaves where that is
    /// possible, else in one piece, else the longest piece that there is. A large leaf of frames that are
    /// still to be zeroed is better than small ones of zeroed frames.
    pub(crate) fn gather(&mut self, wants: Content, page: Page, pages: u64) -> Option<Found> {
        let frames = &mut self.frames;
        if page.is_aligned(PageSize::Size2M) && pages >= TABLE_PAGES {
            let whole = pages - pages % TABLE_PAGES;
            // In zeroed ones of 2 MiB rather than in dirty ones of more.
            let zeroed = if wants == Content::Zero {
                let size = PageSize::Size2M;
                let zeroed = frames.get_zeroed_aligned(whole, size);
                zeroed.or_else(|| frames.get_zeroed_aligned(TABLE_PAGES, size)).map(Found::Zeroed)
            } else {
                None
            };
            // Halved until there is such a run: a few looks, and not one for each 2 MiB.
            let halves = core::iter::successors(Some(whole), |&pages| {
                let half = pages / 2;
                Some(half - half % TABLE_PAGES).filter(|&half| half > 0)
            });
            return zeroed
                .or_else(|| halves.into_iter().find_map(|pages| frames.find_aligned(Content::Any, pages)))
                .or_else(|| frames.find_longest(wants, TABLE_PAGES));
        }
        // Up to where large leaves may begin again.
        let pages = pages.min(TABLE_PAGES - page.get() % TABLE_PAGES);
        frames.find(wants, pages).or_else(|| frames.find_longest(wants, pages))
    }
}
