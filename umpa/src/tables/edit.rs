//! Map, unmap, protect, prune, split: edits of one range.

use super::{PageTables, TableError, check_range, index_of, leaf_size, owe, read, span_pages};
use crate::entry::{Entry, EntryFlags};
use crate::flush::Flush;
use crate::frames::{OwnedRun, Run, StaleRun};
use crate::hardware::TableMemory;
use core::ops::ControlFlow;
use umpa_abi::addr::{Frame, Page, PageSize};
use umpa_abi::paging::{ENTRIES, LEVELS};

/// How leaves are to be written.
#[derive(Clone, Copy)]
pub(super) struct Map {
    pub(super) flags: EntryFlags,
    pub(super) largest: PageSize,
}

/// Pages `page..page + pages` that go to the frames from `frame` on.
#[derive(Clone, Copy)]
struct Piece {
    page: u64,
    frame: u64,
    pages: u64,
}

impl Piece {
    /// The part under the entry of `level` that holds the first page, and the rest.
    fn first_entry(self, level: u32) -> (Self, Self) {
        let pages = self.pages.min(span_pages(level) - self.page % span_pages(level));
        let rest = Self { page: self.page + pages, frame: self.frame + pages, pages: self.pages - pages };
        (Self { pages, ..self }, rest)
    }

    /// True when one leaf at `level` can map just this.
    fn is_leaf(self, level: u32, largest: PageSize) -> bool {
        let span = span_pages(level);
        level <= largest.level() && self.pages == span && self.frame.is_multiple_of(span)
    }
}

/// One leaf, or the part of it that lies in a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// First page.
    pub page: Page,
    /// Its frame.
    pub frame: Frame,
    /// Pages.
    pub pages: u64,
    /// Size of the whole leaf.
    pub size: PageSize,
    /// Its flags, as the processor sees them.
    pub flags: EntryFlags,
    pub(crate) entry: Entry,
}

/// Joins frames that follow each other into runs.
struct Joiner<'s> {
    run: Option<(Frame, u64)>,
    pages: u64,
    sink: &'s mut dyn FnMut(StaleRun),
}

impl Joiner<'_> {
    fn add(&mut self, frame: Frame, frames: u64) {
        self.pages += frames;
        self.run = match self.run {
            Some((first, len)) if first.offset(len) == frame => Some((first, len + frames)),
            Some((first, len)) => {
                (self.sink)(Run::new(first, len));
                Some((frame, frames))
            }
            None => Some((frame, frames)),
        };
    }

    fn finish(self) -> u64 {
        if let Some((first, len)) = self.run {
            (self.sink)(Run::new(first, len));
        }
        self.pages
    }
}

impl PageTables<'_> {
    /// Takes away whatever is mapped in the range; holes are allowed. `sink` gets the frames, joined
    /// into runs where they follow each other.
    ///
    /// # Errors
    /// [`TableError::OutOfTables`] when a large leaf at an end can't be split.
    pub fn unmap(
        &mut self,
        memory: &mut impl TableMemory,
        page: Page,
        pages: u64,
        sink: &mut dyn FnMut(StaleRun),
    ) -> Result<Flush, TableError> {
        check_range(page, pages)?;
        self.split_ends(memory, page, pages)?;
        Ok(self.unmap_cut(memory, page, pages, sink))
    }

    /// The same where no leaf reaches over an end of the range, which lies in the lower half.
    pub(crate) fn unmap_cut(
        &mut self,
        memory: &mut impl TableMemory,
        page: Page,
        pages: u64,
        sink: &mut dyn FnMut(StaleRun),
    ) -> Flush {
        let mut joiner = Joiner { run: None, pages: 0, sink };
        self.clear(memory, self.root, LEVELS, page.get(), pages, &mut joiner);
        let mapped = joiner.finish();
        owe(page, if mapped == 0 { 0 } else { pages })
    }

    /// Takes away every leaf that maps a page of the range, whole: the counterpart of
    /// [`Self::map_cover`]. `sink` gets the frames of the range only. Needs no table, so it can't fail.
    ///
    /// # Errors
    /// [`TableError::BadRange`].
    pub fn unmap_cover(
        &mut self,
        memory: &mut impl TableMemory,
        page: Page,
        pages: u64,
        sink: &mut dyn FnMut(StaleRun),
    ) -> Result<Flush, TableError> {
        check_range(page, pages)?;
        let mut joiner = Joiner { run: None, pages: 0, sink };
        self.clear(memory, self.root, LEVELS, page.get(), pages, &mut joiner);
        let mapped = joiner.finish();
        let (first, cover) = covered(page.get(), pages);
        Ok(owe(Page::new(first), if mapped == 0 { 0 } else { cover }))
    }

    /// Gives all leaves in the range these flags; holes are allowed. [`EntryFlags::HIDDEN`] hides them
    /// from the processor, and other flags show them again. Watches end. The flush is of no page when no
    /// leaf that was shown has changed.
    ///
    /// # Errors
    /// [`TableError::OutOfTables`] when a large leaf at an end can't be split.
    pub fn protect(
        &mut self,
        memory: &mut impl TableMemory,
        page: Page,
        pages: u64,
        flags: EntryFlags,
    ) -> Result<Flush, TableError> {
        self.give_rights(memory, page, pages, flags, |entry, flags| entry.unwatched().with_flags(flags))
    }

    /// The same by `give`, which makes the new leaf of the old one and the flags.
    pub(crate) fn give_rights(
        &mut self,
        memory: &mut impl TableMemory,
        page: Page,
        pages: u64,
        flags: EntryFlags,
        give: fn(Entry, EntryFlags) -> Entry,
    ) -> Result<Flush, TableError> {
        check_range(page, pages)?;
        self.split_ends(memory, page, pages)?;
        Ok(self.give_rights_cut(memory, page, pages, flags, give))
    }

    /// The same where no leaf reaches over an end of the range.
    pub(crate) fn give_rights_cut(
        &mut self,
        memory: &mut impl TableMemory,
        page: Page,
        pages: u64,
        flags: EntryFlags,
        give: fn(Entry, EntryFlags) -> Entry,
    ) -> Flush {
        let mut changed = false;
        self.rewrite(memory, page, pages, &mut |_, _, entry| {
            let other = give(entry, flags);
            // The mark is nothing to the processor.
            changed |= other.zeroed() != entry.zeroed() && entry.is_present();
            other
        });
        owe(page, if changed { pages } else { 0 })
    }

    /// Calls `each` with the leaves in the range, in order, until it breaks.
    pub fn for_each_leaf<B>(
        &self,
        memory: &impl TableMemory,
        page: Page,
        pages: u64,
        each: &mut impl FnMut(Leaf) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        visit(memory, self.root, LEVELS, page.get(), pages, each)
    }

    /// The first page of the range that is mapped, and its frame.
    pub fn first_mapped(&self, memory: &impl TableMemory, page: Page, pages: u64) -> Option<(Page, Frame)> {
        let found =
            self.for_each_leaf(memory, page, pages, &mut |leaf| ControlFlow::Break((leaf.page, leaf.frame)));
        found.break_value()
    }

    /// Tables that the absent parts of the range need, if they are mapped by the smallest leaves.
    pub fn missing_tables(&self, memory: &impl TableMemory, page: Page, pages: u64) -> u64 {
        missing_under(memory, Some(self.root), LEVELS, page.get(), pages)
    }

    pub(super) fn map_run(
        &mut self,
        memory: &mut impl TableMemory,
        page: Page,
        run: &OwnedRun,
        job: Map,
    ) -> Result<(), TableError> {
        check_range(page, run.frames())?;
        let piece = Piece { page: page.get(), frame: run.first().get(), pages: run.frames() };
        self.prepare(memory, self.root, LEVELS, piece, job)?;
        self.fill(memory, self.root, LEVELS, piece, job);
        Ok(())
    }

    /// Maps the frames of `run` at `page` and on with 2 MiB leaves that may show more than the run at
    /// both ends: whatever frames lie around it, at addresses around the range. Those addresses are
    /// then taken, without being anybody's. `page` is congruent to the run's first frame modulo 2 MiB.
    ///
    /// That gives nothing away: all frames are visible in the direct map anyway. It costs one store for
    /// each 2 MiB begun, wherever the run lies and however short it is.
    ///
    /// # Errors
    /// [`TableError::BadRange`] when `page` and frame aren't congruent, those of [`Self::map`]; and the
    /// run.
    pub fn map_cover(
        &mut self,
        memory: &mut impl TableMemory,
        page: Page,
        run: OwnedRun,
        flags: EntryFlags,
    ) -> Result<(), (TableError, OwnedRun)> {
        let (first, pages) = covered(page.get(), run.frames());
        let before = page.get() - first;
        let cover = Run::new(Frame::new(run.first().get().saturating_sub(before)), pages);
        if !cover.first().is_aligned(PageSize::Size2M) || run.first().get() < before {
            return Err((TableError::BadRange { page, pages: run.frames() }, run));
        }
        let job = Map { flags, largest: PageSize::Size2M };
        match self.map_run(memory, Page::new(first), &cover, job) {
            Ok(()) => Ok(()),
            Err(error) => Err((error, run)),
        }
    }

    /// Makes the tables that `piece` needs, and refuses when one of its pages is mapped.
    fn prepare(
        &mut self,
        memory: &mut impl TableMemory,
        table: Frame,
        level: u32,
        mut piece: Piece,
        job: Map,
    ) -> Result<(), TableError> {
        while piece.pages > 0 {
            let (part, rest) = piece.first_entry(level);
            let index = index_of(part.page, level);
            let entry = read(memory, table, index);
            if entry.is_leaf(level) {
                let existing = entry.frame().offset(part.page % span_pages(level));
                return Err(TableError::AlreadyMapped { page: Page::new(part.page), existing });
            }
            let leaf_here = level == 1 || (!entry.is_present() && part.is_leaf(level, job.largest));
            if !leaf_here {
                let below = self.link(memory, table, index, entry)?;
                self.prepare(memory, below, level - 1, part, job)?;
            }
            piece = rest;
        }
        Ok(())
    }

    /// Writes the leaves, after [`Self::prepare`].
    fn fill(&mut self, memory: &mut impl TableMemory, table: Frame, level: u32, mut piece: Piece, job: Map) {
        if level == 1 {
            let first = index_of(piece.page, 1);
            for at in 0..piece.pages {
                let frame = Frame::new(piece.frame + at);
                let leaf = Entry::leaf(frame, PageSize::Size4K, job.flags);
                self.write(memory, table, first + at as usize, leaf);
            }
            return;
        }
        let mut many = entries(level, piece.page, piece.pages);
        while piece.pages > 0 {
            let (part, rest) = piece.first_entry(level);
            let index = index_of(part.page, level);
            let entry = read(memory, table, index);
            if entry.is_link(level) {
                self.fill(memory, entry.frame(), level - 1, part, job);
            } else {
                let leaf = Entry::leaf(Frame::new(part.frame), leaf_size(level), job.flags);
                self.write_first(memory, level, table, index, leaf, many);
                many = 0;
            }
            piece = rest;
        }
    }

    /// The table that `entry` at `index` links to; makes an empty one where it is absent.
    pub(super) fn link(
        &mut self,
        memory: &mut impl TableMemory,
        table: Frame,
        index: usize,
        entry: Entry,
    ) -> Result<Frame, TableError> {
        if entry.is_present() {
            return Ok(entry.frame());
        }
        let below = self.arena.get().ok_or(TableError::OutOfTables)?;
        self.write(memory, table, index, Entry::link(below));
        Ok(below)
    }

    /// Replaces the large leaf at `index` by a table that maps the same.
    pub(super) fn split_leaf(
        &mut self,
        memory: &mut impl TableMemory,
        table: Frame,
        level: u32,
        index: usize,
        leaf: Entry,
    ) -> Result<Frame, TableError> {
        let below = self.arena.get().ok_or(TableError::OutOfTables)?;
        for at in 0..ENTRIES {
            self.write(memory, below, at, leaf.split(level, at));
        }
        self.write(memory, table, index, Entry::link(below));
        Ok(below)
    }

    /// Splits the large leaf that reaches over the boundary before page number `page`, if any.
    pub(super) fn split_at(&mut self, memory: &mut impl TableMemory, page: u64) -> Result<(), TableError> {
        let mut table = self.root;
        for level in (2..=LEVELS).rev() {
            if page.is_multiple_of(span_pages(level)) {
                return Ok(());
            }
            let index = index_of(page, level);
            let entry = read(memory, table, index);
            if entry == Entry::ABSENT {
                return Ok(());
            }
            table = if entry.is_leaf(level) {
                self.split_leaf(memory, table, level, index, entry)?
            } else {
                entry.frame()
            };
        }
        Ok(())
    }

    fn clear(
        &mut self,
        memory: &mut impl TableMemory,
        table: Frame,
        level: u32,
        page: u64,
        pages: u64,
        joiner: &mut Joiner<'_>,
    ) {
        let (mut done, many) = (0, entries(level, page, pages));
        for_each_entry(level, page, pages, |index, page, pages| {
            let entry = read(memory, table, index);
            if entry.is_leaf(level) {
                self.write_stale(memory, level, (table, index), Entry::ABSENT, (done, many));
                done += 1;
                joiner.add(entry.frame().offset(page % span_pages(level)), pages);
            } else if entry.is_present() {
                self.clear(memory, entry.frame(), level - 1, page, pages, joiner);
            }
        });
    }
}

/// Calls `each` with index, first page and pages of every entry of `level` that the range touches.
pub(super) fn for_each_entry(level: u32, page: u64, pages: u64, mut each: impl FnMut(usize, u64, u64)) {
    let (mut page, end) = (page, page + pages);
    while page < end {
        let next = (page / span_pages(level) + 1) * span_pages(level);
        let pages = next.min(end) - page;
        each(index_of(page, level), page, pages);
        page += pages;
    }
}

fn visit<B>(
    memory: &impl TableMemory,
    table: Frame,
    level: u32,
    page: u64,
    pages: u64,
    each: &mut impl FnMut(Leaf) -> ControlFlow<B>,
) -> ControlFlow<B> {
    let mut flow = ControlFlow::Continue(());
    for_each_entry(level, page, pages, |index, page, pages| {
        if flow.is_break() {
            return;
        }
        let entry = read(memory, table, index);
        if entry.is_leaf(level) {
            flow = each(Leaf {
                page: Page::new(page),
                frame: entry.frame().offset(page % span_pages(level)),
                pages,
                size: leaf_size(level),
                flags: entry.flags(),
                entry,
            });
        } else if entry.is_present() {
            flow = visit(memory, entry.frame(), level - 1, page, pages, each);
        }
    });
    flow
}

fn missing_under(memory: &impl TableMemory, table: Option<Frame>, level: u32, page: u64, pages: u64) -> u64 {
    let mut missing = 0;
    if level > 1 {
        for_each_entry(level, page, pages, |index, page, pages| {
            let entry = table.map_or(Entry::ABSENT, |table| read(memory, table, index));
            if !entry.is_leaf(level) {
                let below = entry.is_present().then(|| entry.frame());
                missing += u64::from(below.is_none());
                missing += missing_under(memory, below, level - 1, page, pages);
            }
        });
    }
    missing
}

/// Entries of `level` that the range touches.
const fn entries(level: u32, page: u64, pages: u64) -> u64 {
    (page + pages).div_ceil(span_pages(level)) - page / span_pages(level)
}

/// First page and pages of the 2 MiB units that the range touches.
const fn covered(page: u64, pages: u64) -> (u64, u64) {
    let unit = PageSize::Size2M.frames();
    let first = page - page % unit;
    (first, (page + pages).next_multiple_of(unit) - first)
}
