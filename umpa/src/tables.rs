//! Page tables and their editing.
//!
//! Keeps a tree of 4-level tables, made of frames of the [`TableArena`], with entries written by
//! plain stores. Everything here works on whole ranges, picks the largest leaf that alignment
//! allows, and counts its stores.
//!
//! # Invariants
//!
//! - A table is linked from exactly one entry, but for those that snapshots share (tables/shared.rs);
//!   every entry that isn't in use is 0.
//! - What is refused leaves every mapping as it was (empty tables may have been added).
//! - Taking a translation away returns a [`Flush`]; frames and tables that it set free are stale.
//!
//! # Cost
//!
//! One store for each leaf: n for n scattered frames, n/512 where they are contiguous, aligned and
//! congruent, one for each 512 pages when whole tables move. Absent ranges cost nothing below the
//! highest absent entry.

mod accessed;
mod arena;
mod edit;
mod exchange;
mod leaves;
mod prune;
mod shared;

pub use arena::{StaleTable, TableArena};
pub use edit::Leaf;
pub use exchange::Reach;
pub(crate) use shared::Place;

use crate::entry::{Entry, EntryFlags};
use crate::flush::Flush;
use crate::frames::OwnedRun;
use crate::hardware::TableMemory;
use umpa_abi::addr::{Frame, Page, PageSize};
use umpa_abi::layout;
use umpa_abi::paging::{ENTRIES, LEVELS};

/// Why a range can't be edited. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableError {
    /// A page of the range is mapped already.
    AlreadyMapped {
        /// The first such page.
        page: Page,
        /// The frame that it maps now.
        existing: Frame,
    },
    /// A page of the range isn't mapped.
    NotMapped {
        /// The first such page.
        page: Page,
    },
    /// No frame is left for a table.
    OutOfTables,
    /// The range is empty, overlaps the other one, or leaves the lower half of the address space.
    BadRange {
        /// Its first page.
        page: Page,
        /// Its length.
        pages: u64,
    },
}

/// What a page is mapped to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The frame of this page.
    pub frame: Frame,
    /// Size of the leaf.
    pub size: PageSize,
    /// Its flags.
    pub flags: EntryFlags,
}

/// First page after the lower half.
const LOWER_HALF_PAGES: u64 = 1 << 35;
const _: () = assert!(layout::SYSTEM_GVA.containing().get() < LOWER_HALF_PAGES);

/// Entries of one table above the leaves from which on [`TableMemory::write_first`] begins the edit.
const MANY_ENTRIES: u64 = 2;

/// The same for entries that are taken away or replaced, with a flush to come. Up to so many are left to that
/// flush ([`TableMemory::write_by_flush`]).
const MANY_STALE_ENTRIES: u64 = 17;

/// Pages under one entry at `level`.
const fn span_pages(level: u32) -> u64 {
    1 << (9 * (level - 1))
}

const fn index_of(page: u64, level: u32) -> usize {
    (page >> (9 * (level - 1))) as usize % ENTRIES
}

/// The page size of a leaf at `level` (1..=3).
const fn leaf_size(level: u32) -> PageSize {
    PageSize::ALL[level as usize - 1]
}

/// See the [module](self).
pub struct PageTables<'a> {
    root: Frame,
    arena: TableArena<'a>,
    stores: u64,
    largest: PageSize,
}

impl<'a> PageTables<'a> {
    /// Takes over the tree at `root`. `largest` is the largest leaf that the processor has.
    #[must_use]
    pub fn new(root: Frame, arena: TableArena<'a>, largest: PageSize) -> Self {
        Self { root, arena, stores: 0, largest }
    }

    /// Stores into tables since the start.
    #[must_use]
    pub fn stores(&self) -> u64 {
        self.stores
    }

    /// The largest leaf that the processor has.
    #[must_use]
    pub fn largest(&self) -> PageSize {
        self.largest
    }

    /// The frames that tables are made of.
    #[must_use]
    pub fn arena(&self) -> &TableArena<'a> {
        &self.arena
    }

    /// The same, to change.
    pub fn arena_mut(&mut self) -> &mut TableArena<'a> {
        &mut self.arena
    }

    /// What `page` is mapped to.
    pub fn translate(&self, memory: &impl TableMemory, page: Page) -> Option<Translation> {
        let mut table = self.root;
        for level in (1..=LEVELS).rev() {
            let entry = read(memory, table, index_of(page.get(), level));
            if entry.is_leaf(level) {
                let within = page.get() % span_pages(level);
                return Some(Translation {
                    frame: entry.frame().offset(within),
                    size: leaf_size(level),
                    flags: entry.flags(),
                });
            }
            if !entry.is_present() {
                return None;
            }
            table = entry.frame();
        }
        None
    }

    /// Maps the frames of `run` at `page` and on, with leaves of at most `largest`. The run is the
    /// mapping's from then on; [`Self::unmap`] gives it back.
    ///
    /// # Errors
    /// [`TableError`] and the run.
    pub fn map(
        &mut self,
        memory: &mut impl TableMemory,
        page: Page,
        run: OwnedRun,
        flags: EntryFlags,
        largest: PageSize,
    ) -> Result<(), (TableError, OwnedRun)> {
        let job = edit::Map { flags, largest: largest.min(self.largest) };
        match self.map_run(memory, page, &run, job) {
            Ok(()) => Ok(()),
            Err(error) => Err((error, run)),
        }
    }

    /// Makes tables and leaves so that the range's ends fall between leaves. Nothing is mapped otherwise
    /// than before.
    ///
    /// # Errors
    /// [`TableError::OutOfTables`].
    pub(crate) fn split_ends(
        &mut self,
        memory: &mut impl TableMemory,
        page: Page,
        pages: u64,
    ) -> Result<(), TableError> {
        self.split_at(memory, page.get())?;
        self.split_at(memory, page.get() + pages)
    }

    fn write(&mut self, memory: &mut impl TableMemory, table: Frame, index: usize, entry: Entry) {
        memory.write(table, index, entry.bits());
        self.stores += 1;
    }

    /// Writes the first of `entries` entries of a table at `level`.
    fn write_first(
        &mut self,
        memory: &mut impl TableMemory,
        level: u32,
        table: Frame,
        index: usize,
        entry: Entry,
        entries: u64,
    ) {
        if level == 1 || entries < MANY_ENTRIES {
            return self.write(memory, table, index, entry);
        }
        memory.write_first(table, index, entry.bits());
        self.stores += 1;
    }

    /// Replaces a present entry, one of `entries` of a table at `level` of which `done` are replaced already;
    /// a flush is owed for it.
    fn write_stale(
        &mut self,
        memory: &mut impl TableMemory,
        level: u32,
        (table, index): (Frame, usize),
        entry: Entry,
        (done, entries): (u64, u64),
    ) {
        match (level, done) {
            (1, _) => return self.write(memory, table, index, entry),
            (_, 0) if entries >= MANY_STALE_ENTRIES => memory.write_first(table, index, entry.bits()),
            _ if entries >= MANY_STALE_ENTRIES => memory.write(table, index, entry.bits()),
            _ => memory.write_by_flush(table, index, entry.bits()),
        }
        self.stores += 1;
    }
}

fn read(memory: &impl TableMemory, table: Frame, index: usize) -> Entry {
    Entry::from_bits(memory.read(table, index))
}

fn check_range(page: Page, pages: u64) -> Result<(), TableError> {
    let end = page.get().checked_add(pages);
    if pages == 0 || end.is_none_or(|end| end > LOWER_HALF_PAGES) {
        return Err(TableError::BadRange { page, pages });
    }
    Ok(())
}

fn owe(page: Page, pages: u64) -> Flush {
    Flush::new(page, pages)
}
