//! Accessed bits, taken one page at a time.

use super::{PageTables, index_of, leaf_size, read};
use crate::entry::EntryFlags;
use crate::hardware::TableMemory;
use umpa_abi::addr::{Page, PageSize};
use umpa_abi::paging::LEVELS;

impl PageTables<'_> {
    /// Whether the 4 KiB leaf of `page` was used since the last call, as far as the processor says:
    /// reads A and clears it. False where no such leaf is.
    ///
    /// No flush is owed for safety, since a translation that stays cached maps the same. But the
    /// processor sets A only when it walks (SDM vol. 3A, 4.8): until the next flush a page that is in
    /// use may look as if it weren't.
    pub fn take_accessed(&mut self, memory: &mut impl TableMemory, page: Page) -> bool {
        let mut table = self.root;
        for level in (1..=LEVELS).rev() {
            let index = index_of(page.get(), level);
            let entry = read(memory, table, index);
            if entry.is_leaf(level) {
                let flags = entry.flags();
                if leaf_size(level) != PageSize::Size4K || !flags.contains(EntryFlags::ACCESSED) {
                    return false;
                }
                let cleared = entry.with_flags(flags.difference(EntryFlags::ACCESSED));
                self.write(memory, table, index, cleared);
                return true;
            }
            if !entry.is_present() {
                return false;
            }
            table = entry.frame();
        }
        false
    }
}
