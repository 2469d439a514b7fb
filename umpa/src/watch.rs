//! Watches: which pages are read and written, told by the processor's bits or by exact faults.
//!
//! | kind | how | tells | costs |
//! | --- | --- | --- | --- |
//! | [`Kind::Bits`] | A and D of the leaves are cleared | [`Umpa::collect`]: used, written or not | no fault |
//! | [`Kind::Writes`] | the leaves lose W | the first write, with its address | a fault each |
//! | [`Kind::Accesses`] | the leaves are hidden | the first read and the first write | a fault each |
//! | [`Kind::First`] | the leaves are hidden | the first access; it ends the watch | a fault each |
//!
//! Ranges are armed ([`Umpa::watch`]), armed again ([`Umpa::rearm`]) and disarmed ([`Umpa::unwatch`]) in
//! batches: one store for each leaf, one flush for all. A fault's handler asks
//! [`Umpa::watch_fault`], which says whose the fault is and lets the access through, without a flush.
//! *First* is since the page was armed: what was let through is open until [`Umpa::rearm`], so that a
//! program pays for as many faults as it wants to know of. To be told of every access is to arm again
//! after each; the handler does that before the next one it wants to see.
//!
//! # What the processor may do
//!
//! - It sets A when it uses a leaf, D when it writes through it, and clears neither (SDM vol. 3A, 4.8).
//!   It may use a leaf for a prefetch or a load that it then gives up (4.10.2.3): A is a hint that is
//!   sometimes set too early, never too late. D isn't set but by a write.
//! - It notes nothing in an entry that it has cached with the bit set (4.8), hence the flush when they
//!   are cleared.
//! - There is no right to write without the right to read. So with [`Kind::Accesses`] a write shows the
//!   page for reads as well, and only the write is told.
//! - A fault drops what was cached for its address (4.10.4.1), and rights are added without a flush
//!   (4.10.4.3). Where a large leaf was cached in pieces another piece may fault once more:
//!   [`Fault::Spurious`], to be tried again and not to be told.
//!
//! # What a watch belongs to
//!
//! To the memory: it is in ignored bits of the leaf (watch/leaf.rs), so there is no limit and no table of
//! watches. It moves with the leaf (realloc, mremap, swap) and ends with it (free, munmap, release, a
//! mapping in its place). `mprotect` and `mswap` give a watched leaf its rights and leave it armed. A
//! window that is freed while watched isn't kept mapped. Content is seen through other addresses too: the
//! direct map's accesses are nobody's to watch. `madvise(Collapse)` refuses a watched range.
//!
//! Blocks of rung a and covers are shown by leaves that they share: a watch is refused, and
//! [`Umpa::userpage_unshare`] moves such a block to leaves of its own. Page tables can't be watched.
//!
//! A leaf has one watch; arming it for another kind replaces it. Large leaves are cut at a range's ends.
//! Between them [`Grain`] says whether they stay, and are let through as a whole, or are split. A and D
//! of a page file's region are its own: pages there can't be watched ([`WatchError::NotMapped`]).
//!
//! # Limits
//!
//! A and D are read and cleared by two accesses: what another vCPU notes in between is lost. With
//! several of them collecting needs an atomic exchange.

mod leaf;

use crate::blocks::{Machine, Umpa};
use crate::entry::EntryFlags;
use crate::flush::{Flush, FlushBatch};
use crate::space::{Slot, State};
use crate::tables::{Leaf, TableError};
use core::ops::ControlFlow;
use leaf::Meaning;
use umpa_abi::addr::{Frame, Gva, PAGE_BYTES, Page, PageSize};
use umpa_abi::layout::{
    BLOCKS_BYTES, BLOCKS_GVA, DIRECT_GVA, FRAMES_GPA, FRAMES_MAX_BYTES, PROGRAM_BYTES, PROGRAM_GVA,
};

/// What is told of, and how. See the [module](self).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The processor's A and D bits, without faults.
    Bits = 1,
    /// The first write, by a fault.
    Writes = 2,
    /// The first read and the first write, by faults. A write that comes first is told alone.
    Accesses = 3,
    /// The first access, by a fault. The page isn't watched after it.
    First = 4,
}

/// What becomes of large leaves that lie in a range as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Grain {
    /// They are watched as one: an event lets all their pages through.
    Leaves,
    /// They are split, so that each page is told of by itself. Takes a table for each 2 MiB.
    Pages,
}

/// What was tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// A load.
    Read,
    /// A store, or a load that a store to the same place follows.
    Write,
    /// An instruction fetch.
    Fetch,
}

/// A range of whole pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Its start.
    pub gva: Gva,
    /// Its length, not 0.
    pub bytes: u64,
}

impl Range {
    /// The range of `bytes` from `gva` on.
    #[must_use]
    pub const fn new(gva: Gva, bytes: u64) -> Self {
        Self { gva, bytes }
    }

    fn pages(self) -> Result<(Page, u64), WatchError> {
        let Self { gva, bytes } = self;
        let whole = gva.is_aligned(PageSize::Size4K) && bytes > 0 && bytes.is_multiple_of(PAGE_BYTES);
        if whole && gva.checked_add(bytes).is_some_and(|end| end.get() <= LOWER_HALF_BYTES) {
            return Ok((gva.containing(), bytes / PAGE_BYTES));
        }
        Err(WatchError::BadRange { gva, bytes })
    }
}

/// Why ranges can't be watched. No page's watch was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchError {
    /// The range is empty, isn't made of whole pages, or leaves the lower half of the address space.
    BadRange {
        /// Its start.
        gva: Gva,
        /// Its length.
        bytes: u64,
    },
    /// No block and no mapping has memory there.
    NotMapped {
        /// The first such page.
        page: Page,
    },
    /// The page shows a table.
    Table {
        /// The first such page.
        page: Page,
    },
    /// The leaf there shows more than this block: a block of rung a, a cover, or the direct map.
    /// [`Umpa::userpage_unshare`] moves a block to leaves of its own.
    Shared {
        /// The first such page.
        page: Page,
    },
    /// No table is left to split a large leaf.
    OutOfTables,
}

/// What a page fault means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a fault that isn't a watch's must go to somebody else"]
pub enum Fault {
    /// An access to a watched page: to be told, and tried again.
    Watched(Event),
    /// The leaf allows the access already: to be tried again, not to be told.
    Spurious,
    /// Somebody else's: nothing is watched there, or the access isn't allowed anyway.
    NotMine,
}

/// An access to a watched page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Where, to the byte.
    pub address: Gva,
    /// What was tried.
    pub access: Access,
    /// How the page was watched.
    pub kind: Kind,
    /// First page that was let through.
    pub page: Page,
    /// Pages that were let through: those of the leaf.
    pub pages: u64,
}

/// Pages that were used since they were armed, as the processor noted for their leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// First page.
    pub page: Page,
    /// Pages: those of the leaf that lie in the range.
    pub pages: u64,
    /// They were written; else only read.
    pub written: bool,
}

impl Leaf {
    /// How it is watched.
    #[must_use]
    pub const fn watch(&self) -> Option<Kind> {
        self.entry.watch()
    }

    /// Its flags when nobody watches it.
    #[must_use]
    pub fn rights(&self) -> EntryFlags {
        self.entry.rights()
    }
}

/// Bytes of the lower half of the address space.
const LOWER_HALF_BYTES: u64 = 1 << 47;

/// Addresses that blocks and mappings have: first page and pages.
const AREAS: [(Page, u64); 2] = [
    (PROGRAM_GVA.containing(), PROGRAM_BYTES / PAGE_BYTES),
    (BLOCKS_GVA.containing(), BLOCKS_BYTES / PAGE_BYTES),
];

impl<M: Machine> Umpa<'_, M> {
    /// Watches the pages of `ranges` from now on, with one flush at most. Returns the leaves armed.
    ///
    /// # Errors
    /// [`WatchError`].
    pub fn watch(&mut self, ranges: &[Range], kind: Kind, grain: Grain) -> Result<u64, WatchError> {
        for &range in ranges {
            self.check_watchable(range)?;
        }
        for &range in ranges {
            let (page, pages) = range.pages()?;
            self.with_remedies(|umpa| {
                umpa.tables.split_ends(&mut umpa.machine, page, pages)?;
                match grain {
                    Grain::Leaves => Ok(()),
                    Grain::Pages => umpa.tables.split_small(&mut umpa.machine, page, pages),
                }
            })
            .map_err(|_: TableError| WatchError::OutOfTables)?;
        }
        let mut armed = 0;
        self.edit_watches(ranges, |_, _, entry| {
            armed += 1;
            entry.armed(kind)
        })?;
        self.stats.watched += armed;
        Ok(armed)
    }

    /// Arms the watched leaves of `ranges` again, each as it was; others stay as they are. One flush
    /// at most. Returns the leaves armed.
    ///
    /// # Errors
    /// [`WatchError::BadRange`].
    pub fn rearm(&mut self, ranges: &[Range]) -> Result<u64, WatchError> {
        let mut armed = 0;
        self.edit_watches(ranges, |_, _, entry| match entry.watch() {
            Some(kind) => {
                armed += 1;
                entry.armed(kind)
            }
            None => entry,
        })?;
        self.stats.watched += armed;
        Ok(armed)
    }

    /// Ends the watches in `ranges`; the leaves get their own rights back. One flush at most. Returns
    /// the leaves disarmed; pages that aren't watched, or mapped, any more are passed over.
    ///
    /// # Errors
    /// [`WatchError::BadRange`]; [`WatchError::OutOfTables`] when a watched large leaf at an end can't
    /// be split.
    pub fn unwatch(&mut self, ranges: &[Range]) -> Result<u64, WatchError> {
        for &range in ranges {
            range.pages()?;
        }
        for &range in ranges {
            let (page, pages) = range.pages()?;
            for end in [page, page.offset(pages)] {
                // A leaf that isn't watched is left alone, wherever it lies.
                if self.leaf(end).is_some_and(|leaf| leaf.watch().is_some()) {
                    self.with_remedies(|umpa| umpa.tables.split_before(&mut umpa.machine, end))
                        .map_err(|_: TableError| WatchError::OutOfTables)?;
                }
            }
        }
        let mut ended = 0;
        self.edit_watches(ranges, |_, _, entry| {
            if entry.watch().is_none() {
                return entry;
            }
            ended += 1;
            entry.unwatched()
        })?;
        Ok(ended)
    }

    /// Tells which pages of `ranges` with [`Kind::Bits`] were used since they were armed, or collected,
    /// and arms those again, with one flush at most. Returns the leaves told of.
    ///
    /// # Errors
    /// [`WatchError::BadRange`]; nothing was told.
    pub fn collect(&mut self, ranges: &[Range], each: &mut dyn FnMut(Seen)) -> Result<u64, WatchError> {
        let mut told = 0;
        self.edit_watches(ranges, |page, pages, entry| {
            let flags = entry.flags();
            let used = flags.intersects(EntryFlags::ACCESSED.union(EntryFlags::DIRTY));
            if entry.watch() != Some(Kind::Bits) || !used {
                return entry;
            }
            told += 1;
            each(Seen { page, pages, written: flags.contains(EntryFlags::DIRTY) });
            entry.armed(Kind::Bits)
        })?;
        Ok(told)
    }

    /// What a page fault means to the watches. If it is an event, the access is let through: one store,
    /// no flush.
    pub fn watch_fault(&mut self, address: Gva, access: Access) -> Fault {
        let page = address.containing();
        let Some(leaf) = self.leaf(page) else { return Fault::NotMine };
        let open = match leaf.entry.fault(access) {
            Meaning::Foreign => return Fault::NotMine,
            Meaning::Spurious => return Fault::Spurious,
            Meaning::Event(open) => open,
        };
        let kind = leaf.watch().unwrap_or(Kind::First);
        self.tables.rewrite(&mut self.machine, page, 1, &mut |_, _, _| open);
        let pages = leaf.size.frames();
        let page = Page::new(page.get() - page.get() % pages);
        Fault::Watched(Event { address, access, kind, page, pages })
    }

    /// True when a leaf of the range is watched.
    pub(crate) fn is_watched(&self, page: Page, pages: u64) -> bool {
        self.tables
            .for_each_leaf(&self.machine, page, pages, &mut |leaf| match leaf.watch() {
                Some(_) => ControlFlow::Break(()),
                None => ControlFlow::Continue(()),
            })
            .is_break()
    }

    /// The leaf that maps `page`.
    pub fn leaf(&self, page: Page) -> Option<Leaf> {
        let mut found = None;
        if page.start().get() >= LOWER_HALF_BYTES {
            return found;
        }
        let _ = self.tables.for_each_leaf(&self.machine, page, 1, &mut |leaf| {
            found = Some(leaf);
            ControlFlow::<()>::Break(())
        });
        found
    }

    /// Changes leaves, then flushes what that made stale, once.
    fn edit_watches(
        &mut self,
        ranges: &[Range],
        mut change: impl FnMut(Page, u64, crate::entry::Entry) -> crate::entry::Entry,
    ) -> Result<(), WatchError> {
        for &range in ranges {
            range.pages()?;
        }
        let mut flushes = FlushBatch::new();
        for &range in ranges {
            let (page, pages) = range.pages()?;
            self.forget_whole(page, pages);
            self.tables.rewrite(&mut self.machine, page, pages, &mut |page, pages, entry| {
                let other = change(page, pages, entry);
                if entry.needs_flush(other) {
                    flushes.add(Flush::new(page, pages));
                }
                other
            });
        }
        if flushes.is_all(&self.machine) {
            // What else is owed is paid by the same flush.
            flushes.defer(&mut self.owed);
            self.settle();
        } else {
            flushes.complete(&mut self.machine);
        }
        Ok(())
    }

    /// Each page of the range has memory by a leaf that shows nothing else.
    fn check_watchable(&self, range: Range) -> Result<(), WatchError> {
        let (page, pages) = range.pages()?;
        let (mut at, end) = (page, page.offset(pages));
        while at < end {
            let until = self.watchable_from(at)?.min(end);
            // Mappings are whole; windows may have holes.
            let mut next = at;
            let _ = self.tables.for_each_leaf(&self.machine, at, until.get() - at.get(), &mut |leaf| {
                if leaf.page != next {
                    return ControlFlow::Break(());
                }
                next = leaf.page.offset(leaf.pages);
                ControlFlow::Continue(())
            });
            if next < until {
                return Err(WatchError::NotMapped { page: next });
            }
            at = until;
        }
        Ok(())
    }

    /// Up to where the mapping or window that `page` lies in goes.
    fn watchable_from(&self, page: Page) -> Result<Page, WatchError> {
        let gva = page.start();
        if let Some((slot, offset)) = Slot::containing(gva) {
            return match self.space.state(&self.machine, slot) {
                State::Live { pages } if offset / PAGE_BYTES < pages => Ok(slot.page().offset(pages)),
                State::Cover { .. } | State::Held { .. } => Err(WatchError::Shared { page }),
                _ => Err(WatchError::NotMapped { page }),
            };
        }
        if let Some(mapping) = self.mappings.at(&self.machine, page) {
            return Ok(mapping.end());
        }
        let Some(gpa) = gva.get().checked_sub(DIRECT_GVA.get()) else {
            return Err(WatchError::NotMapped { page });
        };
        let frame = Frame::new(gpa / PAGE_BYTES);
        Err(if self.tables.arena().contains(frame) {
            WatchError::Table { page }
        } else if gpa >= FRAMES_GPA.get() && gpa - FRAMES_GPA.get() < FRAMES_MAX_BYTES {
            WatchError::Shared { page }
        } else {
            WatchError::NotMapped { page }
        })
    }

    /// Asserts that each watched leaf is in a state that a watch has, and a live window's or a
    /// mapping's.
    pub(crate) fn check_watches(&self) {
        if self.stats.watched == 0 {
            return;
        }
        for (first, pages) in AREAS {
            let _ = self.tables.for_each_leaf(&self.machine, first, pages, &mut |leaf| {
                assert!(leaf.entry.is_watch_state(), "{leaf:?}");
                if leaf.watch().is_some() {
                    let end = self.watchable_from(leaf.page);
                    let within = end.is_ok_and(|end| leaf.page.offset(leaf.pages) <= end);
                    // A mapping ends where the next one is mapped otherwise.
                    let mapped = self.mappings.at(&self.machine, leaf.page).is_some();
                    assert!(within || mapped, "{leaf:?} is watched, and nobody's");
                }
                ControlFlow::<()>::Continue(())
            });
        }
    }
}
