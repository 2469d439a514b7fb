//! Empty tables are taken away.

use super::edit::for_each_entry;
use super::{PageTables, StaleTable, check_range, owe, read, span_pages};
use crate::entry::Entry;
use crate::flush::Flush;
use crate::hardware::TableMemory;
use umpa_abi::addr::{Frame, Page};
use umpa_abi::paging::{ENTRIES, LEVELS};

impl PageTables<'_> {
    /// Unlinks the empty tables that serve nothing outside the range, into the arena's quarantine.
    /// The flush that it owes may be the one of the unmapping before it.
    pub fn prune(&mut self, memory: &mut impl TableMemory, page: Page, pages: u64) -> Flush {
        self.prune_up_to(memory, page, pages, LEVELS)
    }

    /// The same for leaf tables only.
    pub(crate) fn prune_leaf_tables(
        &mut self,
        memory: &mut impl TableMemory,
        page: Page,
        pages: u64,
    ) -> Flush {
        self.prune_up_to(memory, page, pages, 2)
    }

    fn prune_up_to(&mut self, memory: &mut impl TableMemory, page: Page, pages: u64, highest: u32) -> Flush {
        let before = self.arena.stale_tables();
        if check_range(page, pages).is_ok() {
            self.prune_under(memory, self.root, LEVELS, page.get(), pages, highest);
        }
        owe(page, self.arena.stale_tables() - before)
    }

    fn prune_under(
        &mut self,
        memory: &mut impl TableMemory,
        table: Frame,
        level: u32,
        page: u64,
        pages: u64,
        highest: u32,
    ) {
        for_each_entry(level, page, pages, |index, page, pages| {
            let entry = read(memory, table, index);
            if !entry.is_link(level) {
                return;
            }
            if level > 2 {
                self.prune_under(memory, entry.frame(), level - 1, page, pages, highest);
            }
            if level <= highest && pages == span_pages(level) && is_empty(memory, entry.frame()) {
                self.write_stale(memory, level, (table, index), Entry::ABSENT, (0, 1));
                self.arena.quarantine(StaleTable(entry.frame()));
            }
        });
    }
}

fn is_empty(memory: &impl TableMemory, table: Frame) -> bool {
    (0..ENTRIES).all(|index| read(memory, table, index) == Entry::ABSENT)
}
