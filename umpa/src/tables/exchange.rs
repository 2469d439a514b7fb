//! Moves between two ranges: swap and remap, by entries or by whole tables.
//!
//! Both are exchanges of entries at equal positions. An exchange takes the highest level at which
//! both positions are aligned and the rest of the range covers the entry; there, whatever the entries
//! are (leaf, link or absent), one store each moves all that hangs below.
//!
//! With [`Reach::Leaves`] links stay where they are and only leaves move. Where page tables are
//! shadowed, moving a link costs the shadow of all that hangs below it (measured on kvm-pvm: some
//! 100,000 cycles for a full leaf table), so many leaves can be cheaper than one link.

use super::{PageTables, TableError, check_range, index_of, owe, read, span_pages};
use crate::entry::Entry;
use crate::flush::Flush;
use crate::hardware::TableMemory;
use umpa_abi::addr::{Frame, Page};
use umpa_abi::paging::{ENTRIES, LEVELS};

/// What an exchange may move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Leaves only, of any size.
    Leaves,
    /// Whole tables where the ranges allow it: one store for each 2 MiB (or 1 GiB) and side.
    Tables,
}

/// The entries of a table from `first` on.
#[derive(Clone, Copy)]
struct Slots {
    table: Frame,
    first: usize,
}

impl PageTables<'_> {
    /// Exchanges what two ranges of equal length map. Holes change places too.
    ///
    /// # Errors
    /// [`TableError::BadRange`] when they overlap, [`TableError::OutOfTables`].
    pub fn swap(
        &mut self,
        memory: &mut impl TableMemory,
        one: Page,
        other: Page,
        pages: u64,
        reach: Reach,
    ) -> Result<[Flush; 2], TableError> {
        check_range(one, pages)?;
        check_range(other, pages)?;
        if one.get().abs_diff(other.get()) < pages {
            return Err(TableError::BadRange { page: other, pages });
        }
        // Twice: the first pass only makes tables, so that the second can't fail half-way.
        self.exchange(memory, one.get(), other.get(), pages, reach, false)?;
        let replaced = self.exchange(memory, one.get(), other.get(), pages, reach, true)?;
        let owed = |side: usize| if replaced[side] { pages } else { 0 };
        Ok([owe(one, owed(0)), owe(other, owed(1))])
    }

    /// Moves what `from` maps to `to`, which must be unmapped. The frames stay what they are. The
    /// flush of `to` is of no page unless a link to an (empty) table was replaced there: absent
    /// entries aren't cached, links to empty tables may be.
    ///
    /// # Errors
    /// [`TableError::AlreadyMapped`] when a page of `to` is mapped; those of [`Self::swap`].
    pub fn remap(
        &mut self,
        memory: &mut impl TableMemory,
        from: Page,
        to: Page,
        pages: u64,
        reach: Reach,
    ) -> Result<[Flush; 2], TableError> {
        check_range(to, pages)?;
        if let Some((page, existing)) = self.first_mapped(memory, to, pages) {
            return Err(TableError::AlreadyMapped { page, existing });
        }
        self.swap(memory, from, to, pages, reach)
    }

    fn exchange(
        &mut self,
        memory: &mut impl TableMemory,
        one: u64,
        other: u64,
        pages: u64,
        reach: Reach,
        commit: bool,
    ) -> Result<[bool; 2], TableError> {
        let mut replaced = [false; 2];
        let mut at = 0;
        // Entries done one after the other in the same two tables.
        let (mut tables, mut done) = ([None; 2], 0);
        while at < pages {
            let (a, b, left) = (one + at, other + at, pages - at);
            let mut level = highest_common(a, b, left);
            let (from, to) = loop {
                let from = self.slots(memory, a, level)?;
                let to = self.slots(memory, b, level)?;
                let links = |slots: Slots| read(memory, slots.table, slots.first).is_link(level);
                if level == 1 || reach == Reach::Tables || !(links(from) || links(to)) {
                    break (from, to);
                }
                level -= 1;
            };
            // At level 1 all entries that lie in both tables; above, one, as the next may be a link.
            let room = if level == 1 { ENTRIES - from.first.max(to.first) } else { 1 };
            let count = (left / span_pages(level)).min(room as u64) as usize;
            if tables != [Some(from.table), Some(to.table)] {
                (tables, done) = ([Some(from.table), Some(to.table)], 0);
            }
            let many = (done, done + left / span_pages(level));
            if commit {
                for offset in 0..count {
                    let present = self.swap_entries(memory, level, [from, to], offset, many);
                    replaced = [replaced[0] | present[0], replaced[1] | present[1]];
                }
                done += 1;
            }
            at += count as u64 * span_pages(level);
        }
        Ok(replaced)
    }

    /// Exchanges two entries; tells for each side whether it replaced a present one, so that a flush is owed.
    fn swap_entries(
        &mut self,
        memory: &mut impl TableMemory,
        level: u32,
        [one, other]: [Slots; 2],
        offset: usize,
        many: (u64, u64),
    ) -> [bool; 2] {
        let places = [one, other].map(|slots| (slots.table, slots.first + offset));
        let held = places.map(|(table, index)| read(memory, table, index));
        if held[0] == held[1] {
            return [false; 2];
        }
        for (place, (old, new)) in places.into_iter().zip([(held[0], held[1]), (held[1], held[0])]) {
            if old.is_present() {
                self.write_stale(memory, level, place, new, many);
            } else {
                self.write(memory, place.0, place.1, new);
            }
        }
        held.map(Entry::is_present)
    }

    /// The entry of `level` for page number `page`, with the tables above it made and large leaves
    /// above it split.
    fn slots(&mut self, memory: &mut impl TableMemory, page: u64, level: u32) -> Result<Slots, TableError> {
        let mut table = self.root;
        for above in (level + 1..=LEVELS).rev() {
            let index = index_of(page, above);
            let entry = read(memory, table, index);
            table = if entry.is_leaf(above) {
                self.split_leaf(memory, table, above, index, entry)?
            } else {
                self.link(memory, table, index, entry)?
            };
        }
        Ok(Slots { table, first: index_of(page, level) })
    }
}

/// The highest level at which an entry for `a` and one for `b` cover the same positions.
fn highest_common(a: u64, b: u64, pages: u64) -> u32 {
    let mut level = LEVELS - 1;
    while level > 1 && (!(a | b).is_multiple_of(span_pages(level)) || pages < span_pages(level)) {
        level -= 1;
    }
    level
}
