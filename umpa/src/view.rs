//! Views: the same frames at several addresses, in any order.
//!
//! A [`View`] is a range of addresses whose pages are wired to frames one by one, of its own and of other
//! views (rewiring: Schuhknecht, Dittrich, Sharma, *RUMA has it*, VLDB 2016). So a ring buffer wraps by
//! address ([`Umpa::view_ring`]: the same frames twice in a row), and pages are brought into another order,
//! partitioned say, by stores into page tables instead of copies ([`Umpa::view_rewire`]).
//!
//! # Who owns the frames
//!
//! All views that map them, together: each leaf is counted in the frame's tag (frames/shared.rs), and a
//! frame goes back when no view maps it any more, after a flush. So there is no view over frames that have
//! gone away, in whatever order views end. A view is not a block: `userpage_free`, the mmap family and
//! watches don't find it, and only who holds the value can change it. A view that is dropped and not
//! ended keeps its frames.
//!
//! # Invariants ([`Umpa::check_view`])
//!
//! - for each frame `f`, `references(f)` = leaves of views that map it;
//! - the leaves of a view lie in its pages, and a frame that one maps is shared: not free, not stale, no
//!   block's;
//! - what is refused changes no mapping; when a call returns, no translation of the view is stale.
//!
//! # Cost
//!
//! Two stores for each page that is rewired (entry and count), one for 2 MiB where both sides are aligned
//! and the source is a large leaf; tables are looked up once for each 2 MiB. One flush for a batch.
//!
//! # Limits
//!
//! Pages that are wired twice in one batch are wired in the order of the batch. At most 2^28 - 1 leaves of
//! each size map a frame.

use crate::blocks::{AllocError, Block, BlockError, Machine, Umpa};
use crate::entry::{Entry, EntryFlags};
use crate::flush::{Flush, FlushBatch};
use crate::frames::{Lost, REFERENCES_MAX, Run};
use crate::space::Slot;
use crate::tables::{Place, TableError};
use core::ops::ControlFlow;
use umpa_abi::addr::{Frame, Gva, Page, PageSize};

/// Pages under one entry of level 2.
pub(crate) const UNIT_PAGES: u64 = PageSize::Size2M.frames();

/// Why a view isn't as asked. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ViewError {
    /// Pages that the view doesn't have.
    BadRange {
        /// The first of them, counted from the view's.
        page: u64,
        /// How many, from there on.
        pages: u64,
    },
    /// The source has no frame there.
    NotWired {
        /// The first such page.
        page: Page,
    },
    /// A page of the block isn't mapped: it was released, or reserved only, or it is a page file's.
    NotMapped {
        /// The first such page.
        page: Page,
    },
    /// A page of the block is watched.
    Watched {
        /// The first such page.
        page: Page,
    },
    /// The frame is in as many leaves as can be counted.
    TooManyReferences {
        /// That frame.
        frame: Frame,
    },
    /// No block that can become a view; [`Umpa::userpage_unshare`] moves one of rung a, or a cover, first.
    Block(BlockError),
    /// No memory or addresses.
    Alloc(AllocError),
}

impl From<AllocError> for ViewError {
    fn from(error: AllocError) -> Self {
        Self::Alloc(error)
    }
}

/// What the program may do with the pages of a view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rights {
    /// Read them.
    Read,
    /// Read and write them.
    Write,
}

/// A range of addresses, wired to frames. See the [module](self).
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a view that isn't ended keeps its frames"]
pub struct View {
    slot: Slot,
    pages: u64,
    rights: Rights,
}

impl View {
    /// Its first address.
    #[must_use]
    pub const fn gva(&self) -> Gva {
        self.slot.page().start()
    }

    /// Its length.
    #[must_use]
    pub const fn pages(&self) -> u64 {
        self.pages
    }

    /// The address of a page (0 is the first).
    #[must_use]
    pub const fn at(&self, page: u64) -> Gva {
        self.slot.page().offset(page).start()
    }

    const fn page(&self, page: u64) -> Page {
        self.slot.page().offset(page)
    }

    fn check(&self, page: u64, pages: u64) -> Result<(), ViewError> {
        let end = page.checked_add(pages).filter(|&end| pages > 0 && end <= self.pages);
        end.map(|_| ()).ok_or(ViewError::BadRange { page, pages })
    }
}

/// Pages that are wired to the frames of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wire {
    /// First page of the view that is changed, counted from its first.
    pub to: u64,
    /// First page of the source.
    pub from: u64,
    /// How many.
    pub pages: u64,
}

/// Where frames come from.
#[derive(Clone, Copy, Debug)]
pub enum Source<'v> {
    /// Another view.
    View(&'v View),
    /// The view itself.
    Itself,
}

/// The part of a wire that lies under one entry of level 2 on both sides.
#[derive(Clone, Copy)]
struct Piece {
    to: Page,
    from: Page,
    pages: u64,
}

impl Piece {
    /// The first piece, and the rest.
    fn first_of(to: Page, from: Page, pages: u64) -> Self {
        let room = |page: Page| UNIT_PAGES - page.get() % UNIT_PAGES;
        Self { to, from, pages: pages.min(room(to)).min(room(from)) }
    }
}

impl<M: Machine> Umpa<'_, M> {
    /// A view of `pages` fresh frames; their content is whatever they held.
    ///
    /// # Errors
    /// [`ViewError::Alloc`].
    pub fn view_new(&mut self, pages: u64, rights: Rights) -> Result<View, ViewError> {
        if pages == 0 {
            return Err(ViewError::BadRange { page: 0, pages });
        }
        let slot = self.new_window(pages, pages)?;
        if let Err(error) = self.hold_window(slot, pages) {
            self.end_window(slot, pages);
            return Err(error);
        }
        let mut view = View { slot, pages, rights: Rights::Write };
        self.view_protect(&mut view, rights);
        Ok(view)
    }

    /// A view of `pages` pages without frames.
    ///
    /// # Errors
    /// [`ViewError::Alloc`].
    pub fn view_empty(&mut self, pages: u64, rights: Rights) -> Result<View, ViewError> {
        if pages == 0 {
            return Err(ViewError::BadRange { page: 0, pages });
        }
        let slot = self.reserve(pages, 0)?;
        self.space.hold(&mut self.machine, self.tables.arena_mut(), slot, pages);
        Ok(View { slot, pages, rights })
    }

    /// Makes a block a view, with its content and at its address. It is a block no more.
    ///
    /// # Errors
    /// [`ViewError`]: it isn't the start of a window; part of it isn't mapped, or is watched.
    pub fn view_of_block(&mut self, block: Gva) -> Result<View, ViewError> {
        let (slot, pages) = self.window_of(block)?;
        self.hold_window(slot, pages)?;
        Ok(View { slot, pages, rights: Rights::Write })
    }

    /// A view that shows `pages` fresh frames twice in a row: what is written past the end of the first
    /// half is at the start.
    ///
    /// # Errors
    /// [`ViewError`].
    pub fn view_ring(&mut self, pages: u64) -> Result<View, ViewError> {
        let both = pages.checked_mul(2).ok_or(ViewError::BadRange { page: 0, pages })?;
        let once = self.view_new(pages, Rights::Write)?;
        let made = self.view_empty(both, Rights::Write).and_then(|mut ring| {
            let wires = [Wire { to: 0, from: 0, pages }, Wire { to: pages, from: 0, pages }];
            match self.view_rewire(&mut ring, Source::View(&once), &wires) {
                Ok(_) => Ok(ring),
                Err(error) => {
                    self.view_end(ring);
                    Err(error)
                }
            }
        });
        self.view_end(once);
        made
    }

    /// Wires pages of `view` to frames of a source, in the order given, with one flush at most. What
    /// pages were wired to before goes back if no other leaf maps it. The source's pages must be wired
    /// before the call. Returns the entries written.
    ///
    /// # Errors
    /// [`ViewError`].
    pub fn view_rewire(
        &mut self,
        view: &mut View,
        source: Source<'_>,
        wires: &[Wire],
    ) -> Result<u64, ViewError> {
        let (from_slot, from_pages) = match source {
            Source::View(other) => (other.slot, other.pages),
            Source::Itself => (view.slot, view.pages),
        };
        let mut new_leaves = 0;
        for wire in wires {
            view.check(wire.to, wire.pages)?;
            View { slot: from_slot, pages: from_pages, rights: Rights::Read }.check(wire.from, wire.pages)?;
            new_leaves += wire.pages;
            self.check_wired(from_slot.page().offset(wire.from), wire.pages, new_leaves)?;
        }
        let whole = |wire: &Wire| (view.page(wire.to), from_slot.page().offset(wire.from), wire.pages);
        // Until no leaf was split: where a view is its own source, one wire's target may be the next
        // one's source.
        loop {
            let mut split = false;
            for (to, from, pages) in wires.iter().map(whole) {
                split |= self.prepare_wire(to, from, pages)?;
            }
            if !split || matches!(source, Source::View(_)) {
                break;
            }
        }
        let mut lost = Lost::default();
        let mut flushes = FlushBatch::new();
        let mut written = 0;
        for (to, from, pages) in wires.iter().map(whole) {
            let mut at = 0;
            while at < pages {
                let piece = Piece::first_of(to.offset(at), from.offset(at), pages - at);
                written += self.wire(piece, view.rights, &mut lost, &mut flushes);
                at += piece.pages;
            }
        }
        self.frames.finish_losses(lost);
        self.pay(flushes);
        Ok(written)
    }

    /// Takes the frames of pages away, with one flush at most. Pages without one stay so. Returns how many
    /// lost theirs.
    ///
    /// # Errors
    /// [`ViewError::BadRange`]; [`ViewError::Alloc`] when a large leaf at an end can't be split.
    pub fn view_unwire(&mut self, view: &mut View, page: u64, pages: u64) -> Result<u64, ViewError> {
        view.check(page, pages)?;
        let first = view.page(page);
        for end in [first, first.offset(pages)] {
            let large = self.unit_entry(end).is_some_and(|(_, entry)| entry.is_leaf(2));
            if large && !end.get().is_multiple_of(UNIT_PAGES) {
                self.split_counted(end)?;
            }
        }
        let mut lost = Lost::default();
        let mut unwired = 0;
        let (tables, frames) = (&self.tables, &mut self.frames);
        let _ = tables.for_each_leaf(&self.machine, first, pages, &mut |leaf| {
            unwired += leaf.pages;
            frames.drop_reference(leaf.frame, leaf.size, &mut lost);
            ControlFlow::<()>::Continue(())
        });
        self.frames.finish_losses(lost);
        let mut flushes = FlushBatch::new();
        // No leaf reaches over an end now: nothing can fail.
        match self.tables.unmap(&mut self.machine, first, pages, &mut |_| {}) {
            Ok(flush) => flushes.add(flush),
            Err(error) => debug_assert!(false, "{error:?} for {pages} pages at {first}"),
        }
        self.pay(flushes);
        Ok(unwired)
    }

    /// Gives the program other rights to the pages of a view.
    pub fn view_protect(&mut self, view: &mut View, rights: Rights) {
        if rights == view.rights {
            return;
        }
        view.rights = rights;
        let mut flushes = FlushBatch::new();
        let flags = self.flags_of(rights);
        self.tables.rewrite(&mut self.machine, view.slot.page(), view.pages, &mut |page, pages, entry| {
            if rights == Rights::Read {
                flushes.add(Flush::new(page, pages));
            }
            entry.with_flags(flags)
        });
        self.pay(flushes);
    }

    /// Ends a view. Frames that no other view maps wait for a flush, as its addresses do.
    pub fn view_end(&mut self, view: View) {
        self.end_held(view.slot, view.pages);
    }

    /// Asserts the invariants of a view. Linear; for tests.
    ///
    /// # Panics
    /// When one doesn't hold.
    pub fn check_view(&self, view: &View) {
        let _ = self.tables.for_each_leaf(&self.machine, view.page(0), view.slot.pages(), &mut |leaf| {
            assert!(leaf.page.get() + leaf.pages <= view.page(view.pages).get(), "{leaf:?} of {view:?}");
            let references = self.frames.references(leaf.frame);
            let counted = if leaf.size == PageSize::Size4K { references.small } else { references.large };
            assert!(counted > 0, "{leaf:?} isn't counted: {references:?}");
            let writable = leaf.flags.contains(EntryFlags::WRITABLE);
            assert_eq!(writable, view.rights == Rights::Write, "{leaf:?}");
            ControlFlow::<()>::Continue(())
        });
    }

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

    /// Flushes before the call returns; with everything else that is owed, if everything is flushed.
    pub(crate) fn pay(&mut self, flushes: FlushBatch) {
        if flushes.is_all(&self.machine) {
            flushes.defer(&mut self.owed);
            self.settle();
        } else {
            flushes.complete(&mut self.machine);
        }
    }

    fn flags_of(&self, rights: Rights) -> EntryFlags {
        match rights {
            Rights::Write => self.config.flags,
            Rights::Read => self.config.flags.difference(EntryFlags::WRITABLE),
        }
    }

    /// Each page has a frame that `more` leaves more can map.
    fn check_wired(&self, page: Page, pages: u64, more: u64) -> Result<(), ViewError> {
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
    fn prepare_wire(&mut self, to: Page, from: Page, pages: u64) -> Result<bool, ViewError> {
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
    fn wire(&mut self, piece: Piece, rights: Rights, lost: &mut Lost, flushes: &mut FlushBatch) -> u64 {
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
