//! Entries of ranges whose frames, or tables, are shared: by place, as their owner counts the references.
//!
//! Below an entry of level 2 there is a *unit* of 512 pages: one large leaf, or one leaf table. A table
//! that several entries link is counted in the arena ([`TableArena::share`](super::TableArena::share)),
//! and none of them lets a write through.

use super::{PageTables, StaleTable, TableError, index_of, read, span_pages};
use crate::entry::Entry;
use crate::hardware::TableMemory;
use umpa_abi::addr::{Frame, Page};
use umpa_abi::paging::{ENTRIES, LEVELS};

/// Where an entry stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) table: Frame,
    pub(crate) index: usize,
    level: u32,
}

impl Place {
    /// The place `entries` further on in the same table.
    pub(crate) const fn offset(self, entries: usize) -> Self {
        Self { index: self.index + entries, ..self }
    }

    /// The place of an entry of a leaf table.
    pub(crate) const fn in_leaf_table(table: Frame, index: usize) -> Self {
        Self { table, index, level: 1 }
    }

    /// The place of an entry in the leaf table that `link` links.
    pub(crate) const fn below(link: Entry, page: Page) -> Self {
        Self { table: link.frame(), index: index_of(page.get(), 1), level: 1 }
    }
}

impl PageTables<'_> {
    /// The place of the entry of `level` for `page`, with the tables above it made; a large leaf above it
    /// is split.
    ///
    /// # Errors
    /// [`TableError::OutOfTables`].
    pub(crate) fn make_place(
        &mut self,
        memory: &mut impl TableMemory,
        page: Page,
        level: u32,
    ) -> Result<Place, TableError> {
        let mut table = self.root;
        for above in (level + 1..=LEVELS).rev() {
            let index = index_of(page.get(), above);
            let entry = read(memory, table, index);
            table = if entry.is_leaf(above) {
                self.split_leaf(memory, table, above, index, entry)?
            } else {
                self.link(memory, table, index, entry)?
            };
        }
        Ok(Place { table, index: index_of(page.get(), level), level })
    }

    /// The place of the entry of level 2 for `page`, if there is a table for it.
    pub(crate) fn unit(&self, memory: &impl TableMemory, page: Page) -> Option<Place> {
        let mut table = self.root;
        for above in (3..=LEVELS).rev() {
            let entry = read(memory, table, index_of(page.get(), above));
            if !entry.is_link(above) {
                return None;
            }
            table = entry.frame();
        }
        Some(Place { table, index: index_of(page.get(), 2), level: 2 })
    }

    /// The entry there.
    pub(crate) fn entry(&self, memory: &impl TableMemory, place: Place) -> Entry {
        read(memory, place.table, place.index)
    }

    /// Replaces it.
    pub(crate) fn set_entry(&mut self, memory: &mut impl TableMemory, place: Place, entry: Entry) {
        self.write(memory, place.table, place.index, entry);
    }

    /// Replaces it as one of `entries` of its table, the first of them if `first`.
    pub(crate) fn set_one_of(
        &mut self,
        memory: &mut impl TableMemory,
        place: Place,
        entry: Entry,
        first: bool,
        entries: u64,
    ) {
        if first {
            self.write_first(memory, place.level, place.table, place.index, entry, entries);
        } else {
            self.set_entry(memory, place, entry);
        }
    }

    /// Splits leaves of 1 GiB in the range into leaves of 2 MiB. Nothing is mapped otherwise than before.
    ///
    /// # Errors
    /// [`TableError::OutOfTables`]; some leaves may be split.
    pub(crate) fn split_huge(
        &mut self,
        memory: &mut impl TableMemory,
        page: Page,
        pages: u64,
    ) -> Result<(), TableError> {
        let (mut at, end) = (page.get(), page.get() + pages);
        while at < end {
            let mut table = self.root;
            for level in (3..=LEVELS).rev() {
                let index = index_of(at, level);
                let entry = read(memory, table, index);
                if entry.is_leaf(level) {
                    self.split_leaf(memory, table, level, index, entry)?;
                }
                if !entry.is_link(level) {
                    break;
                }
                table = entry.frame();
            }
            at = (at / span_pages(3) + 1) * span_pages(3);
        }
        Ok(())
    }

    /// A leaf table with copies of another's leaves, without the right to write.
    pub(crate) fn copy_read_only(
        &mut self,
        memory: &mut impl TableMemory,
        table: Frame,
        each: &mut impl FnMut(Entry),
    ) -> Result<Frame, TableError> {
        let copy = self.arena.get().ok_or(TableError::OutOfTables)?;
        for index in 0..ENTRIES {
            let entry = read(memory, table, index);
            if entry != Entry::ABSENT {
                each(entry);
                self.write(memory, copy, index, entry.with_write(false));
            }
        }
        Ok(copy)
    }

    /// Empties a leaf table that no entry links any more; it waits for a flush.
    pub(crate) fn retire_table(
        &mut self,
        memory: &mut impl TableMemory,
        table: Frame,
        each: &mut impl FnMut(Entry),
    ) {
        for index in 0..ENTRIES {
            let entry = read(memory, table, index);
            if entry != Entry::ABSENT {
                each(entry);
                self.write(memory, table, index, Entry::ABSENT);
            }
        }
        self.arena.quarantine(StaleTable(table));
    }
}
