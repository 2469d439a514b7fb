//! Resizing, committing and releasing.

use super::{AllocError, AsIs, BLOCK, Block, BlockError, Machine, Supply, Umpa, capacity, pages_of};
use crate::frames::Run;
use crate::space::{Slot, State};
use crate::tables::{Reach, TableError};
use umpa_abi::addr::{Frame, Gva, PAGE_BYTES, Page, PageSize};

impl<M: Machine> Umpa<'_, M> {
    /// Gives the block at `gva` at least `bytes`. Content is kept, without a copy; the address may
    /// change, and is returned.
    ///
    /// In order: shrink by giving the tail back; grow in place (the frames behind a rung-a block are
    /// free, or the window has room); move entries to a window with twice the room.
    ///
    /// # Errors
    /// [`BlockError`]; the block is as it was.
    pub fn userpage_realloc(&mut self, gva: Gva, bytes: u64) -> Result<Gva, BlockError> {
        let pages = pages_of(bytes)?;
        match self.find(gva)? {
            Block::Direct { first, pages: have } => self.resize_direct(first, have, pages),
            Block::Window { slot, pages: have } => self.resize_window(slot, have, pages),
            Block::Cover(cover) => self.resize_cover(cover, pages),
        }
    }

    /// Gives the block at `gva` at least `bytes` where it is: [`Self::userpage_realloc`] without the move.
    ///
    /// # Errors
    /// [`BlockError::NoRoom`] where it would have to move, else as for a resize; the block is as it was.
    pub fn userpage_resize(&mut self, gva: Gva, bytes: u64) -> Result<(), BlockError> {
        let pages = pages_of(bytes)?;
        let room = match self.find(gva)? {
            Block::Direct { first, pages: have } => {
                let done = self.resize_direct_here(first, have, pages);
                return if done { Ok(()) } else { Err(BlockError::NoRoom { gva, bytes }) };
            }
            Block::Window { slot, .. } => slot.pages(),
            Block::Cover(cover) => cover.pages,
        };
        if pages > room {
            return Err(BlockError::NoRoom { gva, bytes });
        }
        self.userpage_realloc(gva, bytes).map(|_| ())
    }

    /// Gives the block at `gva` at least `bytes`, and addresses behind them to grow in place up to
    /// `reserve_bytes` in all. Content is kept, without a copy; the address may change, and is returned. A
    /// block that moves begins at a multiple of `reserve_bytes`, rounded up to a power of two.
    ///
    /// # Errors
    /// [`BlockError`]; the block is as it was.
    pub fn userpage_realloc_reserved(
        &mut self,
        gva: Gva,
        bytes: u64,
        reserve_bytes: u64,
    ) -> Result<Gva, BlockError> {
        let pages = pages_of(bytes)?;
        let room = pages_of(reserve_bytes)?.max(pages);
        let moved = match self.find(gva)? {
            Block::Window { slot, pages: have } if slot.pages() >= room => {
                return self.resize_window(slot, have, pages);
            }
            Block::Window { slot, pages: have } => self.widen(slot, have, pages.max(have), room)?,
            Block::Direct { first, pages: have } => {
                self.move_to_window(first, have, pages.max(have), room)?
            }
            Block::Cover(cover) => self.unshare_cover(cover, pages.max(cover.pages), room)?,
        };
        // It moved with all that it had. A large leaf that can't be cut, for want of a table, stays whole.
        let _ = self.userpage_resize(moved, bytes);
        Ok(moved)
    }

    /// Backs the pages of `[gva, gva + bytes)` with memory that aren't. The range lies in a window
    /// (made by `userpage_reserve`, say); pages behind its end up to the reservation extend it.
    /// Returns the frames added. A block of rung a and a cover are always backed.
    ///
    /// # Errors
    /// [`BlockError`]; then nothing was added.
    pub fn userpage_commit(&mut self, gva: Gva, bytes: u64) -> Result<u64, BlockError> {
        self.commit_by::<AsIs>(gva, bytes)
    }

    pub(super) fn commit_by<S: Supply<M>>(&mut self, gva: Gva, bytes: u64) -> Result<u64, BlockError> {
        let Some((slot, have, page, pages)) = self.window_range(gva, bytes)? else { return Ok(0) };
        // Between its pages and these there may be a hole.
        self.space.forget_whole(&mut self.machine, self.tables.arena_mut(), slot);
        // First what is missing, so that nothing has to be undone for want of frames.
        let mut missing = pages;
        let _ = self.tables.for_each_leaf(&self.machine, page, pages, &mut |leaf| {
            missing -= leaf.pages;
            core::ops::ControlFlow::<()>::Continue(())
        });
        self.make_free(missing)?;
        self.make_tables(page, pages)?;
        let mut at = 0;
        while at < pages {
            let from = page.offset(at);
            let hole = match self.next_leaf(from, pages - at) {
                Some((mapped, leaf_pages)) if mapped == from => {
                    at += leaf_pages;
                    continue;
                }
                Some((mapped, _)) => mapped.get() - from.get(),
                None => pages - at,
            };
            self.map_more_by::<S>(slot, from, hole)?;
            at += hole;
        }
        let end = page.get() + pages - slot.page().get();
        if end > have {
            self.space.set_pages(&mut self.machine, self.tables.arena_mut(), slot, end);
        }
        Ok(missing)
    }

    /// Gives the frames of `[gva, gva + bytes)` back to the store; the addresses stay the block's, and
    /// `userpage_commit` backs them again. Returns the frames. A block of rung a lives where its
    /// frames are, and a cover shows its run as a whole, so they keep them: 0.
    ///
    /// # Errors
    /// [`BlockError`].
    pub fn userpage_release(&mut self, gva: Gva, bytes: u64) -> Result<u64, BlockError> {
        let Some((slot, _, page, pages)) = self.window_range(gva, bytes)? else { return Ok(0) };
        let frames = self.unmap_part(slot, page, pages)?;
        if self.frames.quarantined_frames() > self.config.quarantine_max_frames {
            self.settle();
        }
        Ok(frames)
    }

    /// Exchanges the contents of `bytes` from two places in windows, without a copy: entries (or whole
    /// tables) change places, and one flush makes it visible. Two whole windows exchange the links to tables
    /// that only they use: two stores for up to 2 MiB, or for up to 1 GiB where they have such tables
    /// ([`Config::apart_min_pages`](super::Config::apart_min_pages)).
    ///
    /// # Errors
    /// [`BlockError`]; then nothing was exchanged.
    pub fn swap(&mut self, one: Gva, other: Gva, bytes: u64) -> Result<(), BlockError> {
        let mut first = [Page::new(0); 2];
        let mut whole_pages = u64::MAX;
        for (first, gva) in first.iter_mut().zip([one, other]) {
            let Some((slot, have, page, pages)) = self.window_range(gva, bytes)? else {
                return Err(BlockError::Pinned { gva });
            };
            if page.get() - slot.page().get() + pages > have {
                return Err(BlockError::BadRange { gva, bytes });
            }
            self.space.forget_whole(&mut self.machine, self.tables.arena_mut(), slot);
            // Behind the pages of a window nothing is mapped.
            whole_pages = whole_pages.min(if pages == have { slot.pages() } else { pages });
            *first = page;
        }
        let count = self.exchanged_pages(bytes / PAGE_BYTES, whole_pages);
        if one.get().abs_diff(other.get()) < bytes {
            return Err(BlockError::BadRange { gva: other, bytes });
        }
        let reach = self.config.reach;
        let swapped =
            self.with_remedies(|umpa| umpa.tables.swap(&mut umpa.machine, first[0], first[1], count, reach));
        for flush in swapped.map_err(AllocError::Tables)? {
            flush.defer(&mut self.owed);
        }
        self.settle();
        self.stats.swapped += 1;
        Ok(())
    }

    /// Gives the block at `gva` leaves of its own, so that it can be released in parts, swapped and
    /// [watched](crate::watch): a block of rung a, or a cover, moves to a window. Content is kept,
    /// without a copy; the address may change, and is returned.
    ///
    /// # Errors
    /// [`BlockError`]; the block is as it was.
    pub fn userpage_unshare(&mut self, gva: Gva) -> Result<Gva, BlockError> {
        match self.find(gva)? {
            Block::Direct { first, pages } => self.move_to_window(first, pages, pages, capacity(pages)),
            Block::Window { .. } => Ok(gva),
            Block::Cover(cover) => self.unshare_cover(cover, cover.pages, capacity(cover.pages)),
        }
    }

    /// Pages to exchange for `pages` of two windows, so that whole tables change places where up to
    /// `whole_pages` may.
    fn exchanged_pages(&self, pages: u64, whole_pages: u64) -> u64 {
        let sizes = [PageSize::Size1G, PageSize::Size2M].map(PageSize::frames);
        let mut rounded = sizes.map(|span| pages.next_multiple_of(span)).into_iter();
        let tables = self.config.reach == Reach::Tables;
        rounded.find(|&rounded| tables && rounded <= whole_pages).unwrap_or(pages)
    }

    fn resize_direct(&mut self, first: Frame, have: u64, pages: u64) -> Result<Gva, BlockError> {
        if self.resize_direct_here(first, have, pages) {
            return Ok(umpa_abi::layout::direct(first.start()));
        }
        self.move_to_window(first, have, pages, capacity(pages))
    }

    /// False, and nothing was done, when the frames behind the block aren't free.
    fn resize_direct_here(&mut self, first: Frame, have: u64, pages: u64) -> bool {
        if pages < have {
            self.put_back(Run::new(first.offset(pages), have - pages));
        } else if pages > have && self.frames.get_at(first.offset(have), pages - have).is_none() {
            return false;
        }
        self.frames.set_note(first, BLOCK | pages);
        self.stats.resized_in_place += 1;
        true
    }

    /// Moves a block of one run into a window with room for `room` pages: its frames are mapped there as
    /// well. Nothing is unmapped here, so nothing is flushed: the direct map goes on showing the frames.
    pub(super) fn move_to_window(
        &mut self,
        first: Frame,
        have: u64,
        pages: u64,
        room: u64,
    ) -> Result<Gva, BlockError> {
        let pages = self.rounded(pages, have, room);
        self.make_free(pages - have)?;
        let slot = self.reserve(room.max(pages), pages)?;
        let page = slot.page();
        if let Err(error) = self.map_new(page.offset(have), pages - have) {
            self.end_window(slot, 0);
            return Err(error.into());
        }
        let note = self.frames.note(first).unwrap_or(0);
        self.frames.set_note(first, 0);
        if let Err((error, _)) = self.map_kept(page, Run::new(first, have)) {
            self.frames.set_note(first, note);
            self.unmap_to_quarantine(page.offset(have), pages - have);
            self.end_window(slot, 0);
            return Err(AllocError::Tables(error).into());
        }
        self.stats.moved += 1;
        Ok(page.start())
    }

    fn resize_window(&mut self, slot: Slot, have: u64, pages: u64) -> Result<Gva, BlockError> {
        let page = slot.page();
        if pages <= slot.pages() {
            let pages = self.rounded(pages, have, slot.pages());
            if pages < have {
                self.unmap_part(slot, page.offset(pages), have - pages)?;
            } else if pages > have {
                self.map_more(slot, page.offset(have), pages - have)?;
            }
            self.forget_discardables(page.offset(pages), slot.pages() - pages);
            self.space.set_pages(&mut self.machine, self.tables.arena_mut(), slot, pages);
            self.stats.resized_in_place += 1;
            if pages < have && self.frames.quarantined_frames() > self.config.quarantine_max_frames {
                self.settle();
            }
            return Ok(page.start());
        }
        self.widen(slot, have, pages, capacity(pages))
    }

    /// Moves a window to one with room for `room` pages, and gives it `pages`, no less than it has.
    ///
    /// Tables move whole, with the one that the block ends in: behind its end nothing is mapped. What it gets is
    /// mapped after that, in tables that moved. Until the next flush all of the old window may show what the new
    /// one has.
    pub(super) fn widen(&mut self, slot: Slot, have: u64, pages: u64, room: u64) -> Result<Gva, BlockError> {
        let pages = self.rounded(pages, have, room);
        self.make_free(pages - have)?;
        let wider = self.reserve(room.max(pages), pages)?;
        let whole = self.exchanged_pages(have, slot.pages().min(wider.pages()));
        if let Err(error) = self.move_entries(slot.page(), wider.page(), whole) {
            self.end_window(wider, 0);
            return Err(error.into());
        }
        if let Err(error) = self.map_new(wider.page().offset(have), pages - have) {
            // Tables that were taken away meanwhile are free, if the way back needs them.
            let back = self.move_entries(wider.page(), slot.page(), whole);
            debug_assert!(back.is_ok(), "{back:?}: the tables were there");
            // What was mapped for a moment may be cached at the old address.
            self.mark_stale(slot);
            self.end_window(wider, 0);
            return Err(error.into());
        }
        self.forget_discardables(slot.page(), slot.pages());
        self.end_window(slot, 0);
        self.stats.moved += 1;
        Ok(wider.page().start())
    }

    /// Moves what `pages` pages map to other addresses, where nothing is mapped.
    fn move_entries(&mut self, from: Page, to: Page, pages: u64) -> Result<(), AllocError> {
        if pages == 0 {
            return Ok(());
        }
        let reach = self.config.reach;
        let moved = self.with_remedies(|umpa| umpa.tables.remap(&mut umpa.machine, from, to, pages, reach));
        let [old, new] = moved.map_err(AllocError::Tables)?;
        old.defer(&mut self.owed);
        new.complete_only(&mut self.machine);
        Ok(())
    }

    /// Pages that a window with room for `room` gets which asks for `pages` and has `have`: all of its last large
    /// leaf ([`Config::whole_min_pages`](super::Config::whole_min_pages)), while frames are plentiful.
    fn rounded(&self, pages: u64, have: u64, room: u64) -> u64 {
        let whole = pages.next_multiple_of(PageSize::Size2M.frames());
        let fits = whole <= room && (whole <= have || whole - have <= self.frames.free_frames() / 2);
        if pages >= self.config.whole_min_pages && fits { whole } else { pages }
    }

    /// Sees to it that holes in the range can be filled without running out of tables half-way. One
    /// hole needs no such care: what is mapped of it is unmapped again.
    pub(crate) fn make_tables(&mut self, page: Page, pages: u64) -> Result<(), AllocError> {
        self.with_remedies(|umpa| {
            let missing = umpa.tables.missing_tables(&umpa.machine, page, pages);
            if missing > umpa.tables.arena().free_tables() && umpa.holes(page, pages) > 1 {
                return Err(AllocError::Tables(TableError::OutOfTables));
            }
            Ok(())
        })
    }

    /// Maximal unmapped parts of the range.
    fn holes(&self, page: Page, pages: u64) -> u64 {
        let (mut holes, mut at) = (0, page);
        let _ = self.tables.for_each_leaf(&self.machine, page, pages, &mut |leaf| {
            holes += u64::from(leaf.page > at);
            at = leaf.page.offset(leaf.pages);
            core::ops::ControlFlow::<()>::Continue(())
        });
        holes + u64::from(at < page.offset(pages))
    }

    /// The next leaf in the range: its first page there, and how many.
    fn next_leaf(&self, page: Page, pages: u64) -> Option<(Page, u64)> {
        self.tables
            .for_each_leaf(&self.machine, page, pages, &mut |leaf| {
                core::ops::ControlFlow::Break((leaf.page, leaf.pages))
            })
            .break_value()
    }

    /// The window around a range of whole pages: slot, length, first page and pages of the range.
    /// `None` for a range within a block of rung a or a cover.
    pub(crate) fn window_range(
        &self,
        gva: Gva,
        bytes: u64,
    ) -> Result<Option<(Slot, u64, Page, u64)>, BlockError> {
        let bad = BlockError::BadRange { gva, bytes };
        if bytes == 0 || !bytes.is_multiple_of(PAGE_BYTES) || !gva.get().is_multiple_of(PAGE_BYTES) {
            return Err(bad);
        }
        let Some((slot, offset)) = Slot::containing(gva) else {
            let usable = self.usable_bytes(gva)?;
            return if bytes <= usable { Ok(None) } else { Err(bad) };
        };
        if let State::Cover { offset_pages, pages } = self.space.state(&self.machine, slot) {
            let first = offset_pages * PAGE_BYTES;
            let within = offset >= first && bytes <= (first + pages * PAGE_BYTES).saturating_sub(offset);
            return if within { Ok(None) } else { Err(bad) };
        }
        let Block::Window { pages: have, .. } = self.find(slot.page().start())? else { return Err(bad) };
        let room = slot.pages() * PAGE_BYTES;
        if bytes > room - offset {
            return Err(bad);
        }
        Ok(Some((slot, have, gva.containing(), bytes / PAGE_BYTES)))
    }
}
