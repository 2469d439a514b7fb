//! Ranges whose frames are shared: from the window that they begin as to their end.

use super::{UNIT_PAGES, ViewError};
use crate::blocks::{AllocError, Block, BlockError, Machine, Umpa};
use crate::entry::Entry;
use crate::flush::Flush;
use crate::frames::{Lost, Run};
use crate::space::Slot;
use crate::tables::Place;
use core::ops::ControlFlow;
use umpa_abi::addr::{Gva, Page, PageSize};

impl<M: Machine> Umpa<'_, M> {
    /// The window that begins at `block`.
    pub(crate) fn window_of(&self, block: Gva) -> Result<(Slot, u64), ViewError> {
        match self.find(block).map_err(ViewError::Block)? {
            Block::Window { slot, pages } => Ok((slot, pages)),
            Block::Direct { .. } | Block::Cover(_) => {
                Err(ViewError::Block(BlockError::Pinned { gva: block }))
            }
        }
    }

    /// Makes a window with memory everywhere a holder's: its frames are shared from now on.
    pub(crate) fn hold_window(&mut self, slot: Slot, pages: u64) -> Result<(), ViewError> {
        let mut next = slot.page();
        let end = next.offset(pages.max(1));
        let watched = self.tables.for_each_leaf(&self.machine, next, pages, &mut |leaf| {
            if leaf.page != next {
                return ControlFlow::Break(None);
            }
            next = leaf.page.offset(leaf.pages);
            if leaf.watch().is_some() {
                return ControlFlow::Break(Some(leaf.page));
            }
            ControlFlow::Continue(())
        });
        match watched {
            ControlFlow::Break(Some(page)) => return Err(ViewError::Watched { page }),
            _ if next != end => return Err(ViewError::NotMapped { page: next }),
            _ => {}
        }
        self.with_remedies(|umpa| umpa.tables.split_huge(&mut umpa.machine, slot.page(), pages))
            .map_err(AllocError::Tables)?;
        self.forget_discardables(slot.page(), slot.pages());
        let (tables, frames) = (&self.tables, &mut self.frames);
        let _ = tables.for_each_leaf(&self.machine, slot.page(), pages, &mut |leaf| {
            frames.begin_sharing(Run::new(leaf.frame, leaf.pages), leaf.size);
            ControlFlow::<()>::Continue(())
        });
        self.space.hold(&mut self.machine, self.tables.arena_mut(), slot, pages);
        Ok(())
    }

    /// Ends a held range: nothing is left there, and its addresses wait for a flush.
    pub(crate) fn end_held(&mut self, slot: Slot, pages: u64) {
        let mut lost = Lost::default();
        self.drop_held(slot, pages, &mut lost);
        self.frames.finish_losses(lost);
        Flush::new(slot.page(), pages).defer(&mut self.owed);
        if slot.pages() >= UNIT_PAGES {
            self.tables.prune(&mut self.machine, slot.page(), slot.pages()).defer(&mut self.owed);
        }
        self.space.release(&mut self.machine, self.tables.arena_mut(), slot);
        if self.frames.quarantined_frames() > self.config.quarantine_max_frames {
            self.settle();
        }
    }

    /// Takes the leaves of a held range away, or the links to tables that others have too.
    fn drop_held(&mut self, slot: Slot, pages: u64, lost: &mut Lost) {
        let (mut at, end) = (slot.page(), slot.page().offset(pages));
        while at < end {
            let next = Page::new((at.get() / UNIT_PAGES + 1) * UNIT_PAGES).min(end);
            if let Some((place, entry)) = self.unit_entry(at) {
                if slot.pages() >= UNIT_PAGES {
                    self.tables.set_entry(&mut self.machine, place, Entry::ABSENT);
                    self.drop_unit(entry, lost);
                } else if entry.is_link(2) {
                    let first = Place::below(entry, at);
                    for index in 0..(next.get() - at.get()) as usize {
                        let leaf = self.tables.entry(&self.machine, first.offset(index));
                        if leaf != Entry::ABSENT {
                            self.tables.set_entry(&mut self.machine, first.offset(index), Entry::ABSENT);
                            self.frames.drop_reference(leaf.frame(), PageSize::Size4K, lost);
                        }
                    }
                }
            }
            at = next;
        }
    }

    /// What an entry of level 2 led to is one reference less.
    pub(crate) fn drop_unit(&mut self, entry: Entry, lost: &mut Lost) {
        if entry.is_leaf(2) {
            self.frames.drop_reference(entry.frame(), PageSize::Size2M, lost);
        } else if entry.is_link(2) && !self.tables.arena_mut().unshare(entry.frame()) {
            let frames = &mut self.frames;
            self.tables.retire_table(&mut self.machine, entry.frame(), &mut |leaf| {
                frames.drop_reference(leaf.frame(), PageSize::Size4K, lost);
            });
        }
    }
}
