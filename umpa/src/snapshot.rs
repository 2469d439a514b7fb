//! Snapshots: copy-on-write images of a range, in time proportional to its tables.
//!
//! A [`Versioned`] range is memory like a block's. [`Umpa::snapshot`] makes an image of it, which is read at
//! an address of its own; from then on the range's pages are copied when they are first written to
//! ([`Umpa::snapshot_fault`], called by whoever gets the page faults). [`Umpa::snapshot_restore`] gives
//! the range an image's content back, by entries; [`Umpa::snapshot_drop`] ends an image. There may be
//! any number of images of a range, and they are restored and dropped in any order.
//!
//! # How
//!
//! For each 2 MiB (a *unit*: one entry of level 2) range and image share what hangs below:
//!
//! | unit | the snapshot | the first write to it | further first writes |
//! | --- | --- | --- | --- |
//! | a large leaf | both leaves lose W | the range's leaf is split, one frame copied | one frame copied each |
//! | a leaf table | both entries lose W and link one table | the table is copied, and one frame | the same |
//!
//! W clear in an entry of level 2 covers all that hangs below (SDM vol. 3A, 4.6.1), so a snapshot writes two
//! entries for each 2 MiB, whatever the leaves' size: 1024 for 1 GiB. (The idea of sharing leaf tables is
//! that of Zhao, Gong, Fonseca, *On-demand-fork*, EuroSys 2021.) Ranges in slots below 2 MiB, whose leaf
//! tables show others too, share leaf by leaf.
//!
//! Why not higher up, or in the leaves: an entry of level 3 would take a store for each GiB, but the first
//! write would have to copy two tables. Write-protecting and copying 512 leaves instead of one link is what
//! `fork` does for small pages.
//!
//! # Cost
//!
//! Mode shadow, CPL 3, `vmm bench snapshot`: an image of 1 GiB 420,000 cycles (0.18 ms) of large leaves,
//! 360,000 of leaf tables; `fork` of a process with as much in small pages 44,000,000, in huge ones
//! 1,660,000. It isn't the entries that cost, but the flush and the traps at the first store to each table. A
//! first write after it 205,000 to 275,000, nearly all of it the fault, which the program handles by itself,
//! and the flush of the page: 40 times what the kernel takes. A restore after 512 of them 2,700,000.
//!
//! # Invariants ([`Umpa::check_versioned`], [`Umpa::check_snapshot`])
//!
//! - `references(f)` = leaves, in all tables of holders, that map `f`, each table counted once;
//!   `links(t)` = entries of level 2 that link leaf table `t`;
//! - a page of the range can be written exactly when its link, if any, has W and its leaf has W; then
//!   `references(f) = 1` and `links(t) = 1`. A page of an image never can;
//! - an image's content is what the range's was when it was made, until it is dropped;
//! - an error leaves content, images and rights as they were.
//!
//! # Flushes
//!
//! A snapshot and a restore flush once, before they return. A copy flushes its page: the translation from
//! before, which another load may have cached again since the fault, leads to another frame (4.10.4.2).
//! Giving W back needs none (4.10.4.3). Images that end leave theirs to the next flush.
//!
//! # Limits
//!
//! A range isn't a block: `userpage_free` and the mmap family don't find it, [`watch`](crate::watch)
//! refuses it, and a page file has regions of its own. A block that is watched, or of which a page isn't
//! mapped (a page file's, say) doesn't become one. A write elsewhere than through the range (the direct map)
//! isn't seen. A range belongs to one vCPU.

mod error;
mod fault;

pub use error::SnapshotError;
pub use fault::SnapshotFault;

use crate::blocks::{AllocError, Machine, Umpa};
use crate::entry::{Entry, EntryFlags};
use crate::flush::{Flush, FlushBatch};
use crate::frames::Lost;
use crate::space::Slot;
use crate::tables::Place;
use crate::view::{UNIT_PAGES, ViewError};
use core::ops::ControlFlow;
use umpa_abi::addr::{Gva, Page, PageSize};

/// Which range: its first page, and the flushes before it was made. A slot isn't used again before one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Name(Page, u64);

/// A range that snapshots can be made of. See the [module](self).
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a range that isn't ended keeps its frames"]
pub struct Versioned {
    slot: Slot,
    pages: u64,
    name: Name,
    taken: u64,
}

/// An image of a range. See the [module](self).
#[derive(Debug, PartialEq, Eq)]
#[must_use = "an image that isn't dropped keeps its frames"]
pub struct Snapshot {
    slot: Slot,
    pages: u64,
    name: Name,
    number: u64,
}

impl Versioned {
    /// Its first address.
    #[must_use]
    pub const fn gva(&self) -> Gva {
        self.slot.page().start()
    }

    /// Its length.
    #[must_use]
    pub const fn pages(&self) -> u64 {
        self.pages
    }

    /// Snapshots made of it.
    #[must_use]
    pub const fn taken(&self) -> u64 {
        self.taken
    }

    fn page_of(&self, gva: Gva) -> Option<Page> {
        let (page, first) = (gva.containing(), self.slot.page());
        (page >= first && page.get() - first.get() < self.pages).then_some(page)
    }
}

impl Snapshot {
    /// Where it can be read.
    #[must_use]
    pub const fn gva(&self) -> Gva {
        self.slot.page().start()
    }

    /// Its length.
    #[must_use]
    pub const fn pages(&self) -> u64 {
        self.pages
    }

    /// 1 for the first one of the range, 2 for the second, …
    #[must_use]
    pub const fn number(&self) -> u64 {
        self.number
    }
}

/// What a restore did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// Entries that differed and were replaced: units, or leaves in slots below 2 MiB.
    pub entries: u64,
}

/// Range and image at one entry of level 2: places of both, and pages.
#[derive(Clone, Copy)]
struct Unit {
    range: Page,
    image: Page,
    pages: u64,
}

impl<M: Machine> Umpa<'_, M> {
    /// A range of `pages` fresh frames; their content is whatever they held.
    ///
    /// # Errors
    /// [`SnapshotError::Alloc`], [`SnapshotError::Range`] for no pages.
    pub fn versioned_new(&mut self, pages: u64) -> Result<Versioned, SnapshotError> {
        if pages == 0 {
            return Err(SnapshotError::Range(ViewError::BadRange { page: 0, pages }));
        }
        let slot = self.new_window(pages, pages)?;
        if let Err(error) = self.hold_window(slot, pages) {
            self.end_window(slot, pages);
            return Err(error.into());
        }
        Ok(self.versioned(slot, pages))
    }

    /// Makes a block a range, with its content and at its address. It is a block no more.
    ///
    /// # Errors
    /// [`SnapshotError`]: it isn't the start of a window; part of it isn't mapped, or is watched.
    pub fn versioned_of_block(&mut self, block: Gva) -> Result<Versioned, SnapshotError> {
        let (slot, pages) = self.window_of(block)?;
        self.hold_window(slot, pages)?;
        Ok(self.versioned(slot, pages))
    }

    fn versioned(&self, slot: Slot, pages: u64) -> Versioned {
        Versioned { slot, pages, name: Name(slot.page(), self.owed.settled()), taken: 0 }
    }

    /// Makes an image of the range as it is. Two stores for each 2 MiB, and one flush if something was
    /// written since the last one.
    ///
    /// # Errors
    /// [`SnapshotError::Alloc`]: no address, or no table for the image.
    pub fn snapshot(&mut self, range: &mut Versioned) -> Result<Snapshot, SnapshotError> {
        let slot = self.reserve(range.slot.pages(), 0)?;
        let mut image = Snapshot { slot, pages: range.pages, name: range.name, number: range.taken + 1 };
        for unit in units(range, &image) {
            let level = if is_whole(range.slot) { 2 } else { 1 };
            let made =
                self.with_remedies(|umpa| umpa.tables.make_place(&mut umpa.machine, unit.image, level));
            if let Err(error) = made {
                self.end_window(slot, 0);
                return Err(AllocError::Tables(error).into());
            }
        }
        self.space.hold(&mut self.machine, self.tables.arena_mut(), slot, range.pages);
        range.taken += 1;
        image.number = range.taken;
        let mut flushes = FlushBatch::new();
        let entries = range.pages.div_ceil(UNIT_PAGES);
        let mut is_first = true;
        for unit in units(range, &image) {
            let (Some((from, entry)), Some((to, _))) =
                (self.unit_entry(unit.range), self.unit_entry(unit.image))
            else {
                debug_assert!(false, "a range has a table for each unit");
                continue;
            };
            if !is_whole(range.slot) {
                self.share_leaves(unit, &mut flushes);
                continue;
            }
            let shared = entry.with_write(false);
            if entry.is_leaf(2) {
                self.frames.add_reference(entry.frame(), PageSize::Size2M);
            } else {
                self.tables.arena_mut().share(entry.frame());
            }
            if entry != shared {
                self.tables.set_one_of(&mut self.machine, from, shared, is_first, entries);
                is_first = false;
                flushes.add(Flush::new(unit.range, unit.pages));
            }
            self.tables.set_entry(&mut self.machine, to, shared);
        }
        self.pay(flushes);
        Ok(image)
    }

    /// Shares the leaves of a range in a slot below 2 MiB.
    fn share_leaves(&mut self, unit: Unit, flushes: &mut FlushBatch) {
        let Some((from, to)) = self.leaf_places(unit) else { return };
        for at in 0..unit.pages as usize {
            let entry = self.tables.entry(&self.machine, from.offset(at));
            let shared = entry.with_write(false);
            self.frames.add_reference(entry.frame(), PageSize::Size4K);
            if entry != shared {
                self.tables.set_entry(&mut self.machine, from.offset(at), shared);
                flushes.add(Flush::new(unit.range.offset(at as u64), 1));
            }
            self.tables.set_entry(&mut self.machine, to.offset(at), shared);
        }
    }

    /// The leaves of range and image where each has a part of a leaf table.
    fn leaf_places(&self, unit: Unit) -> Option<(Place, Place)> {
        let place = |page| {
            let (_, entry) = self.unit_entry(page)?;
            entry.is_link(2).then(|| Place::below(entry, page))
        };
        let places = (place(unit.range)?, place(unit.image)?);
        Some(places)
    }

    /// Gives the range the image's content. The image stays. What the range had alone is free after the
    /// flush that this makes; nothing is copied.
    ///
    /// # Errors
    /// [`SnapshotError::Foreign`].
    pub fn snapshot_restore(
        &mut self,
        range: &mut Versioned,
        image: &Snapshot,
    ) -> Result<Restored, SnapshotError> {
        if image.name != range.name {
            return Err(SnapshotError::Foreign { image: image.gva() });
        }
        let mut lost = Lost::default();
        let mut flushes = FlushBatch::new();
        let mut restored = Restored::default();
        let whole = range.pages.div_ceil(UNIT_PAGES);
        for unit in units(range, image) {
            if !is_whole(range.slot) {
                self.restore_leaves(unit, &mut lost, &mut flushes, &mut restored);
                continue;
            }
            let (Some((to, old)), Some((_, new))) =
                (self.unit_entry(unit.range), self.unit_entry(unit.image))
            else {
                continue;
            };
            if old.frame() == new.frame() && old.is_leaf(2) == new.is_leaf(2) {
                continue;
            }
            if new.is_leaf(2) {
                self.frames.add_reference(new.frame(), PageSize::Size2M);
            } else {
                self.tables.arena_mut().share(new.frame());
            }
            self.tables.set_one_of(&mut self.machine, to, new, restored.entries == 0, whole);
            self.drop_unit(old, &mut lost);
            flushes.add(Flush::new(unit.range, unit.pages));
            restored.entries += 1;
        }
        self.frames.finish_losses(lost);
        self.pay(flushes);
        Ok(restored)
    }

    fn restore_leaves(
        &mut self,
        unit: Unit,
        lost: &mut Lost,
        flushes: &mut FlushBatch,
        restored: &mut Restored,
    ) {
        let Some((to, from)) = self.leaf_places(unit) else { return };
        for at in 0..unit.pages as usize {
            let old = self.tables.entry(&self.machine, to.offset(at));
            let new = self.tables.entry(&self.machine, from.offset(at));
            if old.frame() != new.frame() {
                self.frames.add_reference(new.frame(), PageSize::Size4K);
                self.tables.set_entry(&mut self.machine, to.offset(at), new);
                self.frames.drop_reference(old.frame(), PageSize::Size4K, lost);
                flushes.add(Flush::new(unit.range.offset(at as u64), 1));
                restored.entries += 1;
            }
        }
    }

    /// Ends an image. Frames that it had alone wait for a flush, as its addresses do. Its range need not
    /// exist any more.
    pub fn snapshot_drop(&mut self, image: Snapshot) {
        self.end_held(image.slot, image.pages);
    }

    /// Ends a range. Its images stay, and can be read.
    pub fn versioned_end(&mut self, range: Versioned) {
        self.end_held(range.slot, range.pages);
    }

    /// Asserts the invariants of a range. Linear; for tests.
    ///
    /// # Panics
    /// When one doesn't hold.
    pub fn check_versioned(&self, range: &Versioned) {
        self.check_held(range.slot, range.pages, true);
    }

    /// Asserts the invariants of an image. Linear; for tests.
    ///
    /// # Panics
    /// When one doesn't hold.
    pub fn check_snapshot(&self, image: &Snapshot) {
        self.check_held(image.slot, image.pages, false);
    }

    fn check_held(&self, slot: Slot, pages: u64, may_write: bool) {
        let mut next = slot.page();
        let _ = self.tables.for_each_leaf(&self.machine, slot.page(), slot.pages(), &mut |leaf| {
            assert_eq!(leaf.page, next, "a hole");
            next = leaf.page.offset(leaf.pages);
            let unit = self.unit_entry(leaf.page).map_or(Entry::ABSENT, |(_, entry)| entry);
            let writable = unit.allows_write() && leaf.flags.contains(EntryFlags::WRITABLE);
            let table = unit.is_link(2).then(|| unit.frame());
            let linked_once = table.is_none_or(|table| !self.tables.arena().is_shared(table));
            let sole = linked_once && self.frames.is_sole(leaf.frame, leaf.size);
            assert!(!writable || (sole && may_write), "{leaf:?} can be written");
            assert!(self.frames.reference_count(leaf.frame) > 0, "{leaf:?} isn't counted");
            ControlFlow::<()>::Continue(())
        });
        assert_eq!(next, slot.page().offset(pages), "the end");
    }
}

/// True when all that hangs below the slot's entries of level 2 is its own.
fn is_whole(slot: Slot) -> bool {
    slot.pages() >= UNIT_PAGES
}

/// The units of a range and an image of it, whose slots are alike.
fn units(range: &Versioned, image: &Snapshot) -> impl Iterator<Item = Unit> + use<> {
    let (from, to, pages) = (range.slot.page(), image.slot.page(), range.pages);
    (0..pages.div_ceil(UNIT_PAGES)).map(move |number| {
        let at = number * UNIT_PAGES;
        Unit { range: from.offset(at), image: to.offset(at), pages: (pages - at).min(UNIT_PAGES) }
    })
}
