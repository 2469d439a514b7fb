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

mod error;
mod held;
mod wire;

pub use error::ViewError;

use crate::blocks::{Machine, Umpa};
use crate::entry::EntryFlags;
use crate::flush::{Flush, FlushBatch};
use crate::frames::Lost;
use crate::space::Slot;
use core::ops::ControlFlow;
use umpa_abi::addr::{Gva, Page, PageSize};
use wire::Piece;

/// Pages under one entry of level 2.
pub(crate) const UNIT_PAGES: u64 = PageSize::Size2M.frames();

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
}
