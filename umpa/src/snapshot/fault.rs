//! The first write to a page that an image has too.

use super::{SnapshotError, Versioned, is_whole};
use crate::blocks::{AllocError, Machine, Umpa};
use crate::entry::Entry;
use crate::flush::{Flush, FlushBatch};
use crate::frames::Lost;
use crate::hardware::Contents;
use crate::tables::{Place, TableError};
use crate::watch::Access;
use umpa_abi::addr::{Frame, Gva, Page, PageSize};
use umpa_abi::paging::ENTRIES;

/// What a page fault means to a range with images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a fault that isn't a range's must go to somebody else"]
pub enum SnapshotFault {
    /// The page has a frame of its own now, with the same content: try again.
    Copied,
    /// No image has the page any more, so it can be written again without a copy: try again.
    Opened,
    /// The access is allowed already, the processor used an older translation: try again.
    Spurious,
    /// No page of the range, or an instruction fetch.
    NotMine,
}

impl<M: Machine + Contents> Umpa<'_, M> {
    /// What a page fault means to `range`; a write to it is let through.
    ///
    /// # Errors
    /// [`SnapshotError::Alloc`]: no frame for the copy, or no table. Nothing is lost: the page can still
    /// be read, the images are as they were, and the write can be tried again when there is memory.
    pub fn snapshot_fault(
        &mut self,
        range: &Versioned,
        gva: Gva,
        access: Access,
    ) -> Result<SnapshotFault, SnapshotError> {
        let Some(page) = range.page_of(gva) else { return Ok(SnapshotFault::NotMine) };
        match access {
            Access::Fetch => return Ok(SnapshotFault::NotMine),
            Access::Read => return Ok(SnapshotFault::Spurious),
            Access::Write => {}
        }
        let Some((place, unit)) = self.unit_entry(page) else { return Ok(SnapshotFault::NotMine) };
        if unit.is_leaf(2) {
            if unit.allows_write() {
                return Ok(SnapshotFault::Spurious);
            }
            if self.frames.is_sole(unit.frame(), PageSize::Size2M) {
                self.tables.set_entry(&mut self.machine, place, unit.with_write(true));
                return Ok(SnapshotFault::Opened);
            }
        }
        // The frame first: what is done after it changes no meaning until the leaf is replaced.
        let needs_copy = |umpa: &Self, leaf: Entry| umpa.frames.reference_count(leaf.frame()) > 1;
        let shared_table = unit.is_link(2) && self.tables.arena().is_shared(unit.frame());
        let copies = unit.is_leaf(2) || shared_table || needs_copy(self, self.leaf_entry(unit, page));
        if copies {
            self.make_free(1)?;
        }
        let leaf = self.own_table(range, page)?;
        let entry = self.tables.entry(&self.machine, leaf);
        if !needs_copy(self, entry) {
            let spurious = unit.allows_write() && entry.allows_write();
            if !entry.allows_write() {
                self.tables.set_entry(&mut self.machine, leaf, entry.with_write(true));
            }
            return Ok(if spurious { SnapshotFault::Spurious } else { SnapshotFault::Opened });
        }
        self.copy_page(page, leaf, entry)?;
        Ok(SnapshotFault::Copied)
    }

    /// Gives the page a frame of its own.
    fn copy_page(&mut self, page: Page, leaf: Place, entry: Entry) -> Result<(), SnapshotError> {
        // Making a table may have taken what was free.
        self.make_free(1)?;
        let out = AllocError::OutOfFrames { wanted: 1, free: self.frames.free_frames() };
        let run = self.frames.get(1).ok_or(out)?;
        let copy = run.first();
        self.machine.copy(entry.frame(), copy, 1);
        self.frames.begin_sharing(run, PageSize::Size4K);
        let own = Entry::leaf(copy, PageSize::Size4K, entry.with_write(true).flags());
        self.tables.set_entry(&mut self.machine, leaf, own);
        let mut lost = Lost::default();
        self.frames.drop_reference(entry.frame(), PageSize::Size4K, &mut lost);
        self.frames.finish_losses(lost);
        let mut flushes = FlushBatch::new();
        flushes.add(Flush::new(page, 1));
        self.pay(flushes);
        Ok(())
    }

    /// Sees to it that the leaf of `page` is in a table that only the range links, with W, and in which W
    /// is set for no frame that others have. Returns the leaf's place.
    fn own_table(&mut self, range: &Versioned, page: Page) -> Result<Place, SnapshotError> {
        let found = self.unit_entry(page);
        let Some((place, unit)) = found else {
            return Err(AllocError::Tables(TableError::NotMapped { page }).into());
        };
        if unit.is_leaf(2) {
            self.split_counted(page)?;
        } else if is_whole(range.slot) && !unit.allows_write() {
            let table = unit.frame();
            if self.tables.arena().is_shared(table) {
                self.copy_table(place, table)?;
            } else {
                self.open_table(table);
                self.tables.set_entry(&mut self.machine, place, Entry::link(table));
            }
        }
        let unit = self.unit_entry(page).map_or(Entry::ABSENT, |(_, entry)| entry);
        debug_assert!(unit.is_link(2) && unit.allows_write(), "{unit:?} for {page}");
        Ok(Place::below(unit, page))
    }

    /// Puts a copy in the place of a table that others link too.
    fn copy_table(&mut self, place: Place, table: Frame) -> Result<(), SnapshotError> {
        let copied = self.with_remedies(|umpa| {
            let frames = &mut umpa.frames;
            umpa.tables.copy_read_only(&mut umpa.machine, table, &mut |leaf| {
                frames.add_reference(leaf.frame(), PageSize::Size4K);
            })
        });
        let copy = copied.map_err(AllocError::Tables)?;
        self.tables.set_entry(&mut self.machine, place, Entry::link(copy));
        let others = self.tables.arena_mut().unshare(table);
        debug_assert!(others, "a shared table has other links");
        Ok(())
    }

    /// The range is the only one again that links the table: leaves of frames that it has alone get W,
    /// the others lose it.
    fn open_table(&mut self, table: Frame) {
        for index in 0..ENTRIES {
            let place = Place::in_leaf_table(table, index);
            let entry = self.tables.entry(&self.machine, place);
            let right = entry.with_write(self.frames.reference_count(entry.frame()) == 1);
            if entry != Entry::ABSENT && right != entry {
                self.tables.set_entry(&mut self.machine, place, right);
            }
        }
    }

    fn leaf_entry(&self, unit: Entry, page: Page) -> Entry {
        self.tables.entry(&self.machine, Place::below(unit, page))
    }
}
