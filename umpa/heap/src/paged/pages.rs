//! Which pages of the heap have memory, and which of those nobody needs.
//!
//! Three bits a page, of the size that the heap was made with: *backed*, *idle* (backed, and no byte of a
//! block in it), *seen* (was backed before). Idle pages are kept, so that a heap that breathes edits no
//! tables, up to a limit; beyond it they go back in runs, from the highest down, until half of the limit
//! is left.
//!
//! Invariants: `idle ⊆ backed ⊆ seen`; `backed = idle + pages touched by blocks`.
//!
//! Cost: 3 bits a page up to the highest that was ever used; giving back is linear in these, and one call
//! of `umpa`'s for each run. The flush is owed then, and made when frames are wanted or when pages of the
//! heap are backed again: one for all that went back between.

use umpa::blocks::{Machine, Umpa};
use umpa_abi::addr::{Gva, PAGE_BYTES};

use super::Short;
use super::table::{Table, Zeroable};

const WORD: u64 = u64::BITS as u64;

/// 64 pages.
#[derive(Clone, Copy)]
struct Word {
    backed: u64,
    idle: u64,
    seen: u64,
}

impl Zeroable for Word {}

/// See the [module](self).
pub(super) struct Pages {
    base: Gva,
    page_bytes: u64,
    table: Table<Word>,
    pub(super) backed: u64,
    pub(super) idle: u64,
    pub(super) released: u64,
    pub(super) backed_again: u64,
}

impl Pages {
    /// None backed, of the heap at `base`.
    pub(super) const fn new(base: Gva, page_bytes: u64, table: Gva) -> Self {
        Self { base, page_bytes, table: Table::new(table), backed: 0, idle: 0, released: 0, backed_again: 0 }
    }

    /// Bytes of addresses for the bits of `pages` pages.
    pub(super) const fn bytes(pages: u64) -> u64 {
        Table::<Word>::bytes(pages.div_ceil(WORD))
    }

    /// 4 KiB frames of a page.
    pub(super) const fn frames(&self) -> u64 {
        self.page_bytes / PAGE_BYTES
    }

    /// Frames that bits for pages below `end` take.
    pub(super) const fn missing_frames(&self, end: u64) -> u64 {
        self.table.missing_frames(end.div_ceil(WORD))
    }

    /// Pages of the range that aren't backed.
    pub(super) fn missing(&self, first: u64, end: u64) -> u64 {
        let known = self.table.len();
        words(first, end)
            .map(|(word, mask)| {
                let backed = if word < known { self.table.get(word).backed } else { 0 };
                u64::from((!backed & mask).count_ones())
            })
            .sum()
    }

    /// Backs the pages of the range, which get bits first. Counts the frames of the bits.
    pub(super) fn back<M: Machine>(
        &mut self,
        umpa: &mut Umpa<'_, M>,
        first: u64,
        end: u64,
        frames: &mut u64,
    ) -> Result<(), Short> {
        self.table.extend(umpa, end.div_ceil(WORD), frames)?;
        if self.missing(first, end) == 0 {
            return Ok(());
        }
        let bytes = (end - first) * self.page_bytes;
        umpa.userpage_commit(self.address(first), bytes).map_err(|_| Short)?;
        for (number, mask) in words(first, end) {
            let word = self.table.get(number);
            let new = mask & !word.backed;
            self.backed += u64::from(new.count_ones());
            self.backed_again += u64::from((new & word.seen).count_ones());
            // Nobody uses them yet.
            self.idle += u64::from(new.count_ones());
            let word = Word { backed: word.backed | new, idle: word.idle | new, seen: word.seen | new };
            self.table.set(number, word);
        }
        Ok(())
    }

    /// Blocks use the pages of the range now.
    pub(super) fn occupy(&mut self, first: u64, end: u64) {
        for (number, mask) in words(first, end) {
            let word = self.table.get(number);
            debug_assert_eq!(mask & !word.backed, 0, "block without memory");
            self.idle -= u64::from((word.idle & mask).count_ones());
            self.table.set(number, Word { idle: word.idle & !mask, ..word });
        }
    }

    /// Nobody uses the pages of the range any more.
    pub(super) fn vacate(&mut self, first: u64, end: u64) {
        for (number, mask) in words(first, end) {
            let word = self.table.get(number);
            let new = word.backed & !word.idle & mask;
            self.idle += u64::from(new.count_ones());
            self.table.set(number, Word { idle: word.idle | new, ..word });
        }
    }

    /// The last run of idle pages that ends at `end` or before.
    pub(super) fn idle_run(&self, end: u64) -> Option<(u64, u64)> {
        let mut word = end.div_ceil(WORD).min(self.table.len());
        let last = loop {
            word = word.checked_sub(1)?;
            let below = end.saturating_sub(word * WORD);
            let mask = if below >= WORD { u64::MAX } else { (1 << below) - 1 };
            let idle = self.table.get(word).idle & mask;
            if idle != 0 {
                break word * WORD + u64::from(idle.ilog2());
            }
        };
        let mut first = last;
        while first > 0 && self.is_idle(first - 1) {
            first -= 1;
        }
        Some((first, last + 1))
    }

    /// Gives idle pages back.
    pub(super) fn release<M: Machine>(
        &mut self,
        umpa: &mut Umpa<'_, M>,
        first: u64,
        end: u64,
    ) -> Result<(), Short> {
        let bytes = (end - first) * self.page_bytes;
        umpa.userpage_release(self.address(first), bytes).map_err(|_| Short)?;
        for (number, mask) in words(first, end) {
            let word = self.table.get(number);
            debug_assert_eq!(mask & !word.idle, 0, "pages {first}..{end} aren't idle");
            self.table.set(number, Word { backed: word.backed & !mask, idle: word.idle & !mask, ..word });
        }
        let pages = end - first;
        self.backed -= pages;
        self.idle -= pages;
        self.released += pages;
        Ok(())
    }

    /// Asserts the invariants, given which pages blocks touch. Linear; for tests.
    pub(super) fn check(&self, touched: impl Fn(u64) -> bool) {
        let (mut backed, mut idle) = (0, 0);
        for number in 0..self.table.len() {
            let word = self.table.get(number);
            assert_eq!(
                (word.idle & !word.backed, word.backed & !word.seen),
                (0, 0),
                "pages {}…",
                number * WORD
            );
            backed += u64::from(word.backed.count_ones());
            idle += u64::from(word.idle.count_ones());
            let mut rest = word.backed;
            while rest != 0 {
                let page = number * WORD + u64::from(rest.trailing_zeros());
                assert_eq!(touched(page), !self.is_idle(page), "page {page}");
                rest &= rest - 1;
            }
        }
        assert_eq!((backed, idle), (self.backed, self.idle), "pages backed, and idle");
    }

    fn is_idle(&self, page: u64) -> bool {
        self.table.get(page / WORD).idle >> (page % WORD) & 1 != 0
    }

    const fn address(&self, page: u64) -> Gva {
        Gva::new(self.base.get() + page * self.page_bytes)
    }
}

/// The words of a range of pages, each with a mask of its pages in the range.
fn words(first: u64, end: u64) -> impl Iterator<Item = (u64, u64)> {
    (first / WORD..end.div_ceil(WORD)).map(move |word| {
        let from = first.saturating_sub(word * WORD);
        let to = (end - word * WORD).min(WORD);
        (word, u64::MAX << from & u64::MAX >> (WORD - to))
    })
}
