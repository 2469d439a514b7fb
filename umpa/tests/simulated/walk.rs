//! The processor's walk, and a reader of whole trees that shares no code with `umpa`.

use super::{Fault, Machine};
use std::collections::BTreeSet;
use umpa::hardware::TableMemory;
use umpa_abi::addr::{Frame, Gva, Page};
use umpa_abi::paging::{self, ENTRIES};

/// What a page maps to: the frame's address and the flags that matter to an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mapped(pub(crate) u64);

impl Mapped {
    const BITS: u64 = paging::WRITABLE | paging::USER | paging::NO_EXECUTE;

    /// The translation that a leaf gives its first page.
    pub(crate) fn of(entry: u64) -> Self {
        Self(entry & (paging::ADDRESS | Self::BITS))
    }

    /// The frame.
    pub(crate) fn frame(self) -> Frame {
        paging::address(self.0).containing()
    }

    /// The flags.
    pub(crate) fn bits(self) -> u64 {
        self.0 & Self::BITS
    }

    /// The translation `pages` further on in the same leaf.
    pub(crate) fn offset(self, pages: u64) -> Self {
        Self(self.0 + (pages << 12))
    }
}

/// All that hangs below the root.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Tree {
    /// Leaves in order: first page, pages, what the first maps to.
    pub(crate) leaves: Vec<(u64, u64, Mapped)>,
    /// Tables, the root included.
    pub(crate) tables: BTreeSet<Frame>,
    /// Tables without any entry.
    pub(crate) empty: u64,
}

impl Tree {
    /// The leaves, joined where pages, frames and flags go on.
    pub(crate) fn joined(&self) -> Vec<(u64, u64, Mapped)> {
        let mut joined: Vec<(u64, u64, Mapped)> = Vec::new();
        for &(page, pages, mapped) in &self.leaves {
            match joined.last_mut() {
                Some(last) if last.0 + last.1 == page && last.2.offset(last.1) == mapped => last.1 += pages,
                _ => joined.push((page, pages, mapped)),
            }
        }
        joined
    }
}

impl Machine {
    /// Walks from the table at `level` that a link leads to; caches what it passes. Each table goes through
    /// the second level. A write takes W in every entry on the way (SDM vol. 3A, 4.6.1).
    pub(super) fn walk(
        &mut self,
        page: Page,
        level: u32,
        link: (Frame, bool),
    ) -> Result<Option<Mapped>, Fault> {
        let (mut table, mut writable) = link;
        for level in (1..=level).rev() {
            if !self.is_table(table) && !self.ledger.is_granted(table) {
                let gva = Gva::new(page.get() << 12);
                return Err(Fault::Violation { gpa: table.start(), gva });
            }
            self.counts.walk_steps += 1;
            let entry = self.stored(table, paging::index(page.start(), level));
            if entry & paging::PRESENT == 0 {
                return Ok(None);
            }
            if level == 1 || (level < 4 && entry & paging::LARGE != 0) {
                let first = Mapped::of(if writable { entry } else { entry & !paging::WRITABLE });
                if self.tlb.leaves(page).next().is_none() {
                    self.note(table, paging::index(page.start(), level), paging::ACCESSED);
                }
                self.tlb.add_leaf(page, level, first);
                if entry & paging::DIRTY != 0 {
                    self.tlb.set_dirty(page, level);
                }
                return Ok(Some(first.offset(page.get() % (1 << (9 * (level - 1))))));
            }
            table = paging::address(entry).containing();
            writable &= entry & paging::WRITABLE != 0;
            self.tlb.add_link(page, level, (table, writable));
        }
        unreachable!("level 1 has no links")
    }

    /// Notes a write to the page in its leaf, unless a cached translation was written through before.
    pub(super) fn note_write(&mut self, page: Page) {
        if self.tlb.is_dirty(page) {
            return;
        }
        let mut table = self.root();
        for level in (1..=paging::LEVELS).rev() {
            let index = paging::index(page.start(), level);
            let entry = self.stored(table, index);
            if level == 1 || (level < 4 && entry & paging::LARGE != 0) {
                self.note(table, index, paging::ACCESSED | paging::DIRTY);
                self.tlb.set_dirty(page, level);
                return;
            }
            table = paging::address(entry).containing();
        }
    }

    /// The frame that the tables map the page to, without a look at any cache.
    pub(crate) fn tree_frame(&self, page: Page) -> Option<Frame> {
        let mut table = self.root();
        for level in (1..=paging::LEVELS).rev() {
            let entry = self.read(table, paging::index(page.start(), level));
            if entry & paging::PRESENT == 0 {
                return None;
            }
            let below = paging::address(entry).containing();
            if level == 1 || (level < 4 && entry & paging::LARGE != 0) {
                return Some(below.offset(page.get() % (1 << (9 * (level - 1)))));
            }
            table = below;
        }
        None
    }

    /// The frame that the page's leaf keeps, and whether it is hidden (bit 9 of an entry without P).
    pub(crate) fn kept_frame(&self, page: Page) -> Option<(Frame, bool)> {
        let mut table = self.root();
        for level in (1..=paging::LEVELS).rev() {
            let entry = self.read(table, paging::index(page.start(), level));
            let hidden = entry & paging::PRESENT == 0;
            if entry == 0 {
                return None;
            }
            assert!(!hidden || entry & 1 << 9 != 0, "entry {entry:#x} for {page}");
            let below = paging::address(entry).containing();
            if level == 1 || (level < 4 && entry & paging::LARGE != 0) {
                return Some((below.offset(page.get() % (1 << (9 * (level - 1)))), hidden));
            }
            assert!(!hidden, "entry {entry:#x} for {page}");
            table = below;
        }
        None
    }

    /// The whole tree below the root. Asserts that each table is linked once and that entries that
    /// aren't present are zero.
    pub(crate) fn tree(&self) -> Tree {
        let mut tree = Tree::default();
        self.collect(self.root(), paging::LEVELS, 0, &mut tree);
        tree
    }

    fn collect(&self, table: Frame, level: u32, page: u64, tree: &mut Tree) {
        assert!(tree.tables.insert(table), "table {table} is linked twice");
        let span = 1u64 << (9 * (level - 1));
        let mut used = false;
        for index in 0..ENTRIES {
            let entry = self.read(table, index);
            if entry & paging::PRESENT == 0 {
                assert_eq!(entry, 0, "entry {index} of {table}");
                continue;
            }
            used = true;
            let page = page + index as u64 * span;
            if level == 1 || (level < 4 && entry & paging::LARGE != 0) {
                let first = Mapped::of(entry);
                assert_eq!(first.frame().get() % span, 0, "misaligned leaf for page {page:#x}");
                tree.leaves.push((page, span, first));
            } else {
                self.collect(paging::address(entry).containing(), level - 1, page, tree);
            }
        }
        tree.empty += u64::from(!used);
    }
}
