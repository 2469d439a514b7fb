//! Blocks that get another address, by their entries or by a copy.
//!
//! Which is better is for the machine to say: where page tables are shadowed, the first touch of a page at a new
//! address costs more than to copy it.

use super::cover::Cover;
use super::{Block, BlockError, Machine, Umpa, capacity, pages_of};
use crate::hardware::Contents;
use umpa_abi::addr::{Frame, Gva, PAGE_BYTES, Page, PageSize};

/// Pages that are copied in the time that the first touch of a small leaf takes, where touches are dear: one in eight
/// small pages faults for 54,000 cycles, in which 175 pages are copied (kvm_pvm).
const COPIES_PER_SMALL_LEAF: u64 = 22;

impl<M: Machine + Contents> Umpa<'_, M> {
    /// Gives the block at `gva` another address, and at least `bytes` (never fewer than it has): for blocks that
    /// can't grow where they are, and for programs that want every old pointer to end. Content is kept: entries
    /// move, or, where [`Config::copy_below_pages`](super::Config::copy_below_pages) says that this is better,
    /// frames are copied.
    ///
    /// A block whose parts have no memory, or are watched, keeps that: it moves by entries. So does one for
    /// whose copy there are too few frames.
    ///
    /// # Errors
    /// [`BlockError`]; the block is as it was, where it was.
    pub fn userpage_move(&mut self, gva: Gva, bytes: u64) -> Result<Gva, BlockError> {
        let asked = pages_of(bytes)?;
        let found = self.find(gva)?;
        let (Block::Direct { pages: have, .. }
        | Block::Window { pages: have, .. }
        | Block::Cover(Cover { pages: have, .. })) = found;
        let pages = asked.max(have);
        if self.is_better_copied(found, have)
            && let Some(moved) = self.copy_block(gva, found, have, pages)?
        {
            return Ok(moved);
        }
        let room = capacity(pages);
        match found {
            Block::Direct { first, .. } => self.move_to_window(first, have, pages, room),
            Block::Window { slot, .. } => self.widen(slot, have, pages, room),
            Block::Cover(cover) => self.unshare_cover(cover, pages, room),
        }
    }

    /// Gives the block at `gva` at least `bytes` where it is, or else where [`Self::userpage_move`] moves it: what
    /// [`Self::userpage_realloc`] does, but that small blocks are copied on machines that are better at that
    /// ([`Config::copy_below_pages`](super::Config::copy_below_pages)).
    ///
    /// # Errors
    /// [`BlockError`]; the block is as it was.
    pub fn userpage_realloc_suited(&mut self, gva: Gva, bytes: u64) -> Result<Gva, BlockError> {
        match self.userpage_resize(gva, bytes) {
            Ok(()) => Ok(gva),
            Err(BlockError::NoRoom { .. }) => self.userpage_move(gva, bytes),
            Err(error) => Err(error),
        }
    }

    /// Whether a copy costs less than the first touches after a move by entries. A window's leaves move with their
    /// tables; those of a block of one run are new, and small where it isn't aligned, and at its end.
    fn is_better_copied(&self, found: Block, have: u64) -> bool {
        let below = self.config.copy_below_pages;
        let large = PageSize::Size2M;
        let small = match found {
            Block::Window { .. } => 0,
            Block::Direct { first, .. } if first.is_aligned(large) => have % large.frames(),
            Block::Direct { .. } | Block::Cover(_) => have,
        };
        have < below || below > 0 && small.saturating_mul(COPIES_PER_SMALL_LEAF) > have
    }

    /// Copies a block into a new one, and ends the old one. `None`, and nothing was done, where entries must
    /// move.
    fn copy_block(
        &mut self,
        gva: Gva,
        found: Block,
        have: u64,
        pages: u64,
    ) -> Result<Option<Gva>, BlockError> {
        if let Block::Window { slot, .. } = found
            && !self.is_whole(slot, have)
        {
            return Ok(None);
        }
        let Ok(copy) = self.userpage_malloc(pages * PAGE_BYTES) else { return Ok(None) };
        let mut at = 0;
        while at < have {
            let [from, to] = [gva, copy].map(|block| self.run_at(block.containing().offset(at), have - at));
            let (Some(from), Some(to)) = (from, to) else {
                debug_assert!(false, "page {at} of a whole block isn't mapped");
                self.userpage_free(copy)?;
                return Ok(None);
            };
            let frames = from.1.min(to.1);
            self.machine.copy(from.0, to.0, frames);
            at += frames;
        }
        self.userpage_free(gva)?;
        self.stats.copied += 1;
        Ok(Some(copy))
    }

    /// The frame at `page`, and how many follow it at the pages that follow, up to `pages`.
    fn run_at(&self, page: Page, pages: u64) -> Option<(Frame, u64)> {
        let found = self.tables.translate(&self.machine, page)?;
        let mut frames = found.size.frames() - page.get() % found.size.frames();
        while frames < pages
            && let Some(next) = self.tables.translate(&self.machine, page.offset(frames))
            && next.frame == found.frame.offset(frames)
        {
            frames += next.size.frames();
        }
        Some((found.frame, frames.min(pages)))
    }
}
