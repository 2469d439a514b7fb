//! Edits of leaves where they stand: other flags, smaller leaves.

use super::edit::for_each_entry;
use super::{PageTables, TableError, check_range, read};
use crate::entry::Entry;
use crate::hardware::TableMemory;
use umpa_abi::addr::{Frame, Page};
use umpa_abi::paging::LEVELS;

impl PageTables<'_> {
    /// Replaces each leaf in the range by what `change` makes of it: it gets the first page, the number
    /// of pages that lie in the range, and the entry, which stays a leaf of the same frame. A leaf that
    /// reaches over an end of the range is changed as a whole.
    ///
    /// What must be flushed is for the caller to know.
    pub(crate) fn rewrite(
        &mut self,
        memory: &mut impl TableMemory,
        page: Page,
        pages: u64,
        change: &mut impl FnMut(Page, u64, Entry) -> Entry,
    ) {
        if check_range(page, pages).is_ok() {
            self.rewrite_under(memory, self.root, LEVELS, page.get(), pages, change);
        }
    }

    /// Splits every large leaf that maps a page of the range into leaves of 4 KiB. Nothing is mapped
    /// otherwise than before.
    ///
    /// # Errors
    /// [`TableError::OutOfTables`]; some leaves may be split.
    pub(crate) fn split_small(
        &mut self,
        memory: &mut impl TableMemory,
        page: Page,
        pages: u64,
    ) -> Result<(), TableError> {
        check_range(page, pages)?;
        self.split_under(memory, self.root, LEVELS, page.get(), pages)
    }

    /// Splits the large leaf that reaches over the boundary before `page`, if any.
    ///
    /// # Errors
    /// [`TableError::OutOfTables`].
    pub(crate) fn split_before(
        &mut self,
        memory: &mut impl TableMemory,
        page: Page,
    ) -> Result<(), TableError> {
        self.split_at(memory, page.get())
    }

    fn rewrite_under(
        &mut self,
        memory: &mut impl TableMemory,
        table: Frame,
        level: u32,
        page: u64,
        pages: u64,
        change: &mut impl FnMut(Page, u64, Entry) -> Entry,
    ) {
        for_each_entry(level, page, pages, |index, page, pages| {
            let entry = read(memory, table, index);
            if entry.is_leaf(level) {
                let other = change(Page::new(page), pages, entry);
                debug_assert!(other.is_leaf(level) && other.frame() == entry.frame());
                if other != entry {
                    self.write(memory, table, index, other);
                }
            } else if entry.is_present() {
                self.rewrite_under(memory, entry.frame(), level - 1, page, pages, change);
            }
        });
    }

    fn split_under(
        &mut self,
        memory: &mut impl TableMemory,
        table: Frame,
        level: u32,
        page: u64,
        pages: u64,
    ) -> Result<(), TableError> {
        let mut done = Ok(());
        for_each_entry(level, page, pages, |index, page, pages| {
            let entry = read(memory, table, index);
            if done.is_err() || level == 1 || !(entry.is_leaf(level) || entry.is_present()) {
                return;
            }
            let below = if entry.is_leaf(level) {
                self.split_leaf(memory, table, level, index, entry)
            } else {
                Ok(entry.frame())
            };
            done = below.and_then(|below| self.split_under(memory, below, level - 1, page, pages));
        });
        done
    }
}
