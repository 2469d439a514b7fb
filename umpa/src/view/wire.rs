//! How one wire becomes entries.

use super::{Rights, UNIT_PAGES, ViewError};
use crate::blocks::{AllocError, Machine, Umpa};
use crate::entry::Entry;
use crate::flush::{Flush, FlushBatch};
use crate::frames::{Lost, REFERENCES_MAX};
use crate::tables::{Place, TableError};
use core::ops::ControlFlow;
use umpa_abi::addr::{Page, PageSize};

/// The part of a wire that lies under one entry of level 2 on both sides.
#[derive(Clone, Copy)]
pub(super) struct Piece {
    to: Page,
    from: Page,
    pub(super) pages: u64,
}

impl Piece {
    /// The first piece, and the rest.
    pub(super) fn first_of(to: Page, from: Page, pages: u64) -> Self {
        let room = |page: Page| UNIT_PAGES - page.get() % UNIT_PAGES;
        Self { to, from, pages: pages.min(room(to)).min(room(from)) }
    }
}

impl<M: Machine> Umpa<'_, M> {
    /// Each page has a frame that `more` leaves more can map.
    pub(super) fn check_wired(&self, page: Page, pages: u64, more: u64) -> Result<(), ViewError> {
        let mut next = page;
        let full = self.tables.for_each_leaf(&self.machine, page, pages, &mut |leaf| {
            if leaf.page != next {
                return ControlFlow::Break(None);
            }
            next = leaf.page.offset(leaf.pages);
            let room = |frame| {
                let references = self.frames.references(frame);
                references.small.max(references.large) <= REFERENCES_MAX.saturating_sub(more)
            };
            match (0..leaf.pages).map(|at| leaf.frame.offset(at)).find(|&frame| !room(frame)) {
                Some(frame) => ControlFlow::Break(Some(frame)),
                None => ControlFlow::Continue(()),
            }
        });
        match full {
            ControlFlow::Break(Some(frame)) => Err(ViewError::TooManyReferences { frame }),
            _ if next < page.offset(pages) => Err(ViewError::NotWired { page: next }),
            _ => Ok(()),
        }
    }

    /// The entry of level 2 for `page`, if there is one.
    pub(crate) fn unit_entry(&self, page: Page) -> Option<(Place, Entry)> {
        let place = self.tables.unit(&self.machine, page)?;
        Some((place, self.tables.entry(&self.machine, place)))
    }

    /// True when a piece is wired by one large leaf.
    fn is_large(&self, piece: Piece) -> bool {
        let leaf = |page| self.unit_entry(page).is_some_and(|(_, entry)| entry.is_leaf(2));
        let link = |page| self.unit_entry(page).is_some_and(|(_, entry)| entry.is_link(2));
        piece.pages == UNIT_PAGES && leaf(piece.from) && !link(piece.to)
    }

    /// Makes the tables that a wire needs, so that it can't fail. True when a large leaf was split.
    pub(super) fn prepare_wire(&mut self, to: Page, from: Page, pages: u64) -> Result<bool, ViewError> {
        let mut split = false;
        let mut at = 0;
        while at < pages {
            let piece = Piece::first_of(to.offset(at), from.offset(at), pages - at);
            if self.is_large(piece) {
                let made = self.with_remedies(|umpa| umpa.tables.make_place(&mut umpa.machine, piece.to, 2));
                made.map_err(AllocError::Tables)?;
            } else {
                split |= self.split_counted(piece.to)?;
            }
            at += piece.pages;
        }
        Ok(split)
    }

    /// Makes a leaf table for `page`; a large leaf there is split and counted otherwise. True if there
    /// was one.
    pub(crate) fn split_counted(&mut self, page: Page) -> Result<bool, ViewError> {
        let before = self.unit_entry(page).map(|(_, entry)| entry).filter(|entry| entry.is_leaf(2));
        let made: Result<_, TableError> =
            self.with_remedies(|umpa| umpa.tables.make_place(&mut umpa.machine, page, 1));
        made.map_err(AllocError::Tables)?;
        if let Some(leaf) = before {
            self.frames.split_reference(leaf.frame());
        }
        Ok(before.is_some())
    }

    /// Wires one piece, after [`Self::prepare_wire`]. Returns the entries written.
    pub(super) fn wire(
        &mut self,
        piece: Piece,
        rights: Rights,
        lost: &mut Lost,
        flushes: &mut FlushBatch,
    ) -> u64 {
        let flags = self.flags_of(rights);
        let Some((to, old)) = self.unit_entry(piece.to) else { return 0 };
        let Some((_, from)) = self.unit_entry(piece.from) else { return 0 };
        if self.is_large(piece) {
            let new = from.with_flags(flags);
            return self.replace_leaf(piece.to, to, new, PageSize::Size2M, lost, flushes);
        }
        debug_assert!(old.is_link(2), "{} wasn't prepared", piece.to);
        let to = Place::below(old, piece.to);
        let first = (piece.from.get() % UNIT_PAGES) as usize;
        let mut written = 0;
        for at in 0..piece.pages as usize {
            let source = if from.is_leaf(2) {
                from.split(2, first + at)
            } else {
                self.tables.entry(&self.machine, Place::below(from, piece.from).offset(at))
            };
            let page = piece.to.offset(at as u64);
            let new = source.with_flags(flags);
            written += self.replace_leaf(page, to.offset(at), new, PageSize::Size4K, lost, flushes);
        }
        written
    }

    /// Puts a counted leaf in the place of another, or of nothing. Returns the entries written.
    fn replace_leaf(
        &mut self,
        page: Page,
        place: Place,
        new: Entry,
        size: PageSize,
        lost: &mut Lost,
        flushes: &mut FlushBatch,
    ) -> u64 {
        let old = self.tables.entry(&self.machine, place);
        if old == new {
            return 0;
        }
        self.frames.add_reference(new.frame(), size);
        self.tables.set_entry(&mut self.machine, place, new);
        if old != Entry::ABSENT {
            self.frames.drop_reference(old.frame(), size, lost);
            flushes.add(Flush::new(page, size.frames()));
        }
        1
    }
}
