//! The address map: which ranges of the program's addresses are mapped, and how.

use super::tree::{Range, Tree, Wanted};
use super::{Mapping, Mode};
use crate::hardware::TableMemory;
use crate::tables::TableArena;
use umpa_abi::addr::{PAGE_BYTES, Page};
use umpa_abi::layout::{PROGRAM_BYTES, PROGRAM_GVA};

/// First page of the program's addresses.
pub(super) const FIRST: u64 = PROGRAM_GVA.containing().get();
/// The page after the last.
pub(super) const END: u64 = FIRST + PROGRAM_BYTES / PAGE_BYTES;

/// Nodes that one call may add to the tree, and more: a removal adds one where it cuts a range in two, and
/// a move removes twice and inserts twice.
pub(super) const NODES_PER_CALL: u64 = 8;

/// Ranges of stale addresses that are told apart.
const STALE: usize = 16;

/// The mappings of one address space, sorted by address; neighbours that are mapped alike are one.
///
/// Beside them, the addresses that were unmapped since the last flush: cached translations may still
/// lead from there to frames, so nothing new is mapped there before a flush. Where there are more
/// than 16 such ranges, two are joined, with what lies in between.
#[derive(Debug)]
pub struct AddressMap {
    tree: Tree,
    pages: u64,
    stale: [(u64, u64); STALE],
    stale_len: usize,
    /// Number of flushes when the stale ranges were true.
    settled: u64,
}

impl Default for AddressMap {
    fn default() -> Self {
        Self::new()
    }
}

impl AddressMap {
    /// Nothing mapped.
    #[must_use]
    pub const fn new() -> Self {
        Self { tree: Tree::new(), pages: 0, stale: [(0, 0); STALE], stale_len: 0, settled: 0 }
    }

    /// Pages mapped, and so frames.
    #[must_use]
    pub const fn pages(&self) -> u64 {
        self.pages
    }

    /// The mapping that holds `page`, or the first one above it.
    pub fn next(&self, memory: &impl TableMemory, page: Page) -> Option<Mapping> {
        self.tree.next(memory, page.get()).map(mapping)
    }

    /// The mapping that holds `page`.
    pub fn at(&self, memory: &impl TableMemory, page: Page) -> Option<Mapping> {
        self.next(memory, page).filter(|found| found.page <= page)
    }

    pub(super) fn reserve(&mut self, memory: &mut impl TableMemory, arena: &mut TableArena<'_>) -> bool {
        self.tree.reserve(memory, arena, NODES_PER_CALL)
    }

    pub(super) fn forget_vacant(&mut self, memory: &mut impl TableMemory, arena: &mut TableArena<'_>) {
        self.tree.forget_vacant(memory, arena);
    }

    /// The first page of the range that is in a mapping or in none, as `mapped` says.
    pub(super) fn first(
        &self,
        memory: &impl TableMemory,
        page: u64,
        pages: u64,
        mapped: bool,
    ) -> Option<u64> {
        let (mut at, end) = (page, page + pages);
        while at < end {
            let next = self.tree.next(memory, at);
            match next {
                Some(next) if next.start <= at && !mapped => at = next.end,
                Some(next) if mapped => return Some(at.max(next.start)).filter(|&first| first < end),
                None if mapped => return None,
                _ => return Some(at),
            }
        }
        None
    }

    /// The free addresses around a range of them: what ends before it, and what begins after it.
    pub(super) fn hole_around(&self, memory: &impl TableMemory, page: u64, pages: u64) -> (u64, u64) {
        let low = self.tree.last_before(memory, page).map_or(FIRST, |range| range.end);
        let high = self.tree.next(memory, page + pages).map_or(END, |range| range.start);
        (low, high)
    }

    /// The highest free place for `pages` pages that ends at `high` or below.
    pub(super) fn place(&self, memory: &impl TableMemory, pages: u64, align: u64, high: u64) -> Option<u64> {
        self.tree.place(memory, Wanted { pages, align, low: FIRST, high })
    }

    /// Takes the range out of all mappings.
    pub(super) fn remove(&mut self, memory: &mut impl TableMemory, page: u64, pages: u64) {
        let end = page + pages;
        while let Some(range) = self.tree.next(memory, page).filter(|range| range.start < end) {
            self.pages -= range.end.min(end) - range.start.max(page);
            let (before, after) = (Range { end: page, ..range }, Range { start: end, ..range });
            match (range.start < page, range.end > end) {
                (false, false) => self.tree.remove(memory, range.start),
                (true, false) => self.tree.alter(memory, range.start, before),
                (false, true) => self.tree.alter(memory, range.start, after),
                (true, true) => {
                    self.tree.alter(memory, range.start, before);
                    self.tree.insert(memory, after);
                }
            }
        }
    }

    /// Adds a mapping where there is none.
    pub(super) fn insert(&mut self, memory: &mut impl TableMemory, page: u64, pages: u64, mode: Mode) {
        let new = Range { start: page, end: page + pages, note: mode.note() };
        self.pages += pages;
        let before = self.tree.last_before(memory, page);
        let before = before.filter(|range| range.end == new.start && range.note == new.note);
        let after = self.tree.next(memory, new.end);
        let after = after.filter(|range| range.start == new.end && range.note == new.note);
        match (before, after) {
            (None, None) => self.tree.insert(memory, new),
            (Some(before), None) => self.tree.alter(memory, before.start, Range { end: new.end, ..before }),
            (None, Some(after)) => self.tree.alter(memory, after.start, Range { start: new.start, ..after }),
            (Some(before), Some(after)) => {
                self.tree.remove(memory, after.start);
                self.tree.alter(memory, before.start, Range { end: after.end, ..before });
            }
        }
    }

    /// Gives pages of one mapping, `old`, another mode.
    pub(super) fn change(
        &mut self,
        memory: &mut impl TableMemory,
        old: Mapping,
        page: u64,
        pages: u64,
        mode: Mode,
    ) {
        let (start, end) = (page, page + pages);
        let whole = old.page.get() == start && old.end().get() == end;
        let alike = |range: Range| range.note == mode.note();
        let alone = whole
            && !self.tree.last_before(memory, start).is_some_and(|range| range.end == start && alike(range))
            && !self.tree.next(memory, end).is_some_and(|range| range.start == end && alike(range));
        if alone {
            self.tree.annotate(memory, start, mode.note());
        } else {
            self.remove(memory, page, pages);
            self.insert(memory, page, pages, mode);
        }
    }

    /// Records that addresses were unmapped after flush number `settled`.
    pub(super) fn mark_stale(&mut self, page: u64, pages: u64, settled: u64) {
        self.forget_flushed(settled);
        let (start, end) = (page, page + pages);
        let touching = |&(low, high): &(u64, u64)| low <= end && start <= high;
        let known = &mut self.stale[..self.stale_len];
        let at = known.iter().position(touching).or_else(|| {
            // No place for one more: the nearest grows.
            let far = |&(low, high): &(u64, u64)| low.saturating_sub(end).max(start.saturating_sub(high));
            let nearest = (0..known.len()).min_by_key(|&at| far(&known[at]));
            nearest.filter(|_| known.len() == STALE)
        });
        match at {
            Some(at) => known[at] = (known[at].0.min(start), known[at].1.max(end)),
            None => {
                self.stale[self.stale_len] = (start, end);
                self.stale_len += 1;
            }
        }
    }

    /// The lowest page of a stale range that the range overlaps.
    pub(super) fn stale_within(&mut self, page: u64, pages: u64, settled: u64) -> Option<u64> {
        self.forget_flushed(settled);
        let known = &self.stale[..self.stale_len];
        known.iter().filter(|&&(low, high)| low < page + pages && page < high).map(|&(low, _)| low).min()
    }

    fn forget_flushed(&mut self, settled: u64) {
        if self.settled != settled {
            (self.settled, self.stale_len) = (settled, 0);
        }
    }

    /// Asserts the invariants. Linear; for tests.
    pub(crate) fn check(&self, memory: &impl TableMemory) {
        self.tree.check(memory);
        let (mut pages, mut before) = (0, None::<Range>);
        while let Some(range) = self.tree.next(memory, before.map_or(0, |range| range.end)) {
            let alike = before.is_some_and(|before| before.end == range.start && before.note == range.note);
            assert!(!alike, "{before:?} and {range:?} are one");
            pages += range.end - range.start;
            before = Some(range);
        }
        assert_eq!(pages, self.pages, "pages mapped");
    }
}

fn mapping(range: Range) -> Mapping {
    Mapping { page: Page::new(range.start), pages: range.end - range.start, mode: Mode::of_note(range.note) }
}
