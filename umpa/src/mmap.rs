//! The mmap family in user mode: anonymous, private mappings with the semantics and the errors of the
//! Linux manual (section 2), made by stores into page tables.
//!
//! The calls are methods of [`Umpa`]: mappings and blocks share frames, quarantine and flushes.
//!
//! # What differs from Linux
//!
//! - A mapping is real memory when the call returns: `ENOMEM` comes from the call, never from a touch.
//!   So every page is resident, and `PROT_NONE` pages have frames: their leaves are hidden from the
//!   processor ([`EntryFlags::HIDDEN`]).
//! - With [`MapFlags::UNINITIALIZED`] new memory isn't zeroed, which Linux grants only where there is no
//!   MMU. Its frames are this guest's own: the hypervisor zeroes what it grants.
//! - What is refused changes nothing, where Linux may have done a part. Only [`Umpa::madvise`] does
//!   what it can, as its manual says.
//! - There are no files and no other processes: without `MAP_ANONYMOUS` it is `EBADF`, with
//!   `MAP_SHARED`, `MAP_GROWSDOWN` or `MAP_HUGETLB` `EOPNOTSUPP`.
//!
//! # Invariants ([`Umpa::check`])
//!
//! - Mappings don't overlap; neighbours that are mapped alike are one.
//! - Each page of a mapping has a leaf with one frame, which is nobody else's; addresses in no mapping
//!   have none.
//! - An address that was unmapped isn't mapped again before a flush.
//!
//! # Cost
//!
//! Logarithmic in the mappings to find and change them, one store for each leaf, zeroing where memory
//! is new. `munmap` defers its flush; new mappings are placed beside the addresses that wait for it, so
//! one flush serves many. Leaf tables that it leaves empty are taken away just before that flush, each by a
//! store above the leaves (a trap where tables are shadowed). `mprotect` that takes
//! rights away flushes before it returns, and so does a move for its target.

mod advise;
mod backing;
mod kinds;
mod map;
mod ranges;
mod remap;
mod swap;
mod tree;

pub use kinds::{Advice, Errno, Large, MapFlags, Mapping, Mode, Prot, RemapFlags};
pub use map::AddressMap;
pub(crate) use ranges::Ranges;

use crate::blocks::{Machine, Umpa};
use crate::entry::Entry;
#[cfg(doc)]
use crate::entry::EntryFlags;
use crate::flush::Due;
use crate::hardware::Contents;
use crate::runs::Content;
use map::{END, FIRST};
use umpa_abi::addr::{Gva, PAGE_BYTES, Page, PageSize};

/// Pages of a large leaf.
const LARGE_PAGES: u64 = PageSize::Size2M.frames();

/// How many stale places are passed over before a flush makes room.
const PASSED_MAX: usize = 4;

impl<M: Machine + Contents> Umpa<'_, M> {
    /// The mappings.
    #[must_use]
    pub fn mappings(&self) -> &AddressMap {
        &self.mappings
    }

    /// The mapping that holds `gva`, or the first one above it.
    #[must_use]
    pub fn next_mapping(&self, gva: Gva) -> Option<Mapping> {
        self.mappings.next(&self.machine, gva.containing())
    }

    /// The size of the leaf that maps `gva`, if one does.
    #[must_use]
    pub fn leaf_size(&self, gva: Gva) -> Option<PageSize> {
        self.tables.translate(&self.machine, gva.containing()).map(|found| found.size)
    }

    /// Maps `bytes`, rounded up to pages, of memory that reads as zero, unless `flags` say that it need
    /// not ([`MapFlags::UNINITIALIZED`]); returns where. A hint is
    /// rounded down to its page and taken if the range is free; else the highest free range is, from
    /// 2 MiB on at a multiple of that.
    ///
    /// # Errors
    /// In this order:
    /// - `EBADF`: without `ANONYMOUS`;
    /// - `EINVAL`: `bytes` is 0;
    /// - `ENOMEM`: the range leaves the program's addresses; with `FIXED`, at its upper end;
    /// - `EINVAL`: `FIXED` or `FIXED_NOREPLACE` with a misaligned address;
    /// - `EPERM`: the same with an address below the lowest;
    /// - `EEXIST`: `FIXED_NOREPLACE` with a range of which a page is mapped;
    /// - `EINVAL`: neither `PRIVATE` nor `SHARED`;
    /// - `EOPNOTSUPP`: `SHARED`, `GROWSDOWN`, `HUGETLB`;
    /// - `ENOMEM`: no frames, no tables or no free range; nothing was changed.
    pub fn mmap(&mut self, hint: Gva, bytes: u64, prot: Prot, flags: MapFlags) -> Result<Gva, Errno> {
        if !flags.contains(MapFlags::ANONYMOUS) {
            return Err(Errno::EBADF);
        }
        if bytes == 0 {
            return Err(Errno::EINVAL);
        }
        let pages = pages_of(bytes).filter(|&pages| pages <= END).ok_or(Errno::ENOMEM)?;
        let fixed = flags.intersects(MapFlags::FIXED.union(MapFlags::FIXED_NOREPLACE));
        if fixed {
            if hint.get() > (END - pages) * PAGE_BYTES {
                return Err(Errno::ENOMEM);
            }
            let page = page_of(hint).ok_or(Errno::EINVAL)?;
            if page < FIRST {
                return Err(Errno::EPERM);
            }
            if flags.contains(MapFlags::FIXED_NOREPLACE) && !self.is_free(page, pages) {
                return Err(Errno::EEXIST);
            }
        }
        match flags.intersection(MapFlags::SHARED.union(MapFlags::PRIVATE)) {
            MapFlags::PRIVATE => {}
            MapFlags::SHARED => return Err(Errno::EOPNOTSUPP),
            _ => return Err(Errno::EINVAL),
        }
        if flags.intersects(MapFlags::GROWSDOWN.union(MapFlags::HUGETLB)) {
            return Err(Errno::EOPNOTSUPP);
        }
        let page = if fixed { hint.containing().get() } else { self.place(hint, pages)? };
        let mode = Mode { prot: prot.intersection(Prot::all()), large: Large::Unsaid };
        self.reserve_nodes()?;
        let content = if flags.contains(MapFlags::UNINITIALIZED) { Content::Any } else { Content::Zero };
        self.back(page, pages, mode, content)?;
        self.mappings.remove(&mut self.machine, page, pages);
        self.mappings.insert(&mut self.machine, page, pages, mode);
        Ok(Page::new(page).start())
    }

    /// Unmaps whatever is mapped in the range; `bytes` is rounded up to pages.
    ///
    /// # Errors
    /// - `EINVAL`: the address is misaligned, `bytes` is 0, or the range leaves the program's
    ///   addresses;
    /// - `ENOMEM`: a mapping or a large leaf at an end can't be cut for want of tables; nothing was
    ///   changed.
    pub fn munmap(&mut self, gva: Gva, bytes: u64) -> Result<(), Errno> {
        let (page, pages) = range_of(gva, bytes).ok_or(Errno::EINVAL)?;
        if page + pages > END {
            return Err(Errno::EINVAL);
        }
        self.reserve_nodes()?;
        self.cut_leaves(page, pages)?;
        self.unback(page, pages);
        self.mappings.forget_vacant(&mut self.machine, self.tables.arena_mut());
        Ok(())
    }

    /// Sets what may be done with the pages of the range; `bytes` is rounded up to pages.
    ///
    /// # Errors
    /// - `EINVAL`: the address is misaligned, or `prot` has unknown bits;
    /// - `ENOMEM`: the range overflows, or a page of it isn't mapped; or a mapping or a large leaf at
    ///   an end can't be cut for want of tables. Nothing was changed.
    pub fn mprotect(&mut self, gva: Gva, bytes: u64, prot: Prot) -> Result<(), Errno> {
        if page_of(gva).is_none() {
            return Err(Errno::EINVAL);
        }
        if bytes == 0 {
            return Ok(());
        }
        let (page, pages) = range_of(gva, bytes).ok_or(Errno::ENOMEM)?;
        if !Prot::all().contains(prot) {
            return Err(Errno::EINVAL);
        }
        if self.mappings.first(&self.machine, page, pages, false).is_some() {
            return Err(Errno::ENOMEM);
        }
        self.reserve_nodes()?;
        self.cut_leaves(page, pages)?;
        self.show(page, pages, prot, Entry::with_rights);
        self.change_modes(page, pages, |mode| Mode { prot, ..mode });
        Ok(())
    }

    /// True when no page of the range is in a mapping.
    fn is_free(&self, page: u64, pages: u64) -> bool {
        self.mappings.first(&self.machine, page, pages, true).is_none()
    }

    /// A free range for `pages` pages.
    fn place(&mut self, hint: Gva, pages: u64) -> Result<u64, Errno> {
        let hint = hint.containing().get();
        let wish = hint.max(FIRST);
        if hint != 0 && wish <= END - pages && self.is_free(wish, pages) {
            return Ok(wish);
        }
        let align = if pages >= LARGE_PAGES { LARGE_PAGES } else { 1 };
        let highest = |umpa: &Self, high| {
            let place = |align| umpa.mappings.place(&umpa.machine, pages, align, high);
            place(align).or_else(|| place(1))
        };
        let first = highest(self, END).ok_or(Errno::ENOMEM)?;
        if self.due == Due::AtEnd {
            // There is a flush before anybody looks.
            return Ok(first);
        }
        // Beside the addresses that wait for a flush, if that is near.
        let mut found = first;
        for _ in 0..PASSED_MAX {
            let settled = self.owed.settled();
            let Some(low) = self.mappings.stale_within(found, pages, settled) else { return Ok(found) };
            let Some(lower) = highest(self, low) else { break };
            found = lower;
        }
        Ok(first)
    }

    /// Gives the mappings in the range other modes.
    fn change_modes(&mut self, page: u64, pages: u64, change: impl Fn(Mode) -> Mode) {
        let (mut at, end) = (page, page + pages);
        while at < end {
            let Some(found) = self.mappings.next(&self.machine, Page::new(at)) else { break };
            let (from, to) = (found.page.get().max(at), found.end().get().min(end));
            if from >= end {
                break;
            }
            let mode = change(found.mode);
            if mode != found.mode {
                self.mappings.change(&mut self.machine, found, from, to - from, mode);
            }
            at = to;
        }
    }
}

/// Pages that hold `bytes`, unless rounding overflows.
const fn pages_of(bytes: u64) -> Option<u64> {
    match bytes.checked_next_multiple_of(PAGE_BYTES) {
        Some(bytes) => Some(bytes / PAGE_BYTES),
        None => None,
    }
}

/// The page that begins at the address.
fn page_of(gva: Gva) -> Option<u64> {
    gva.is_aligned(PageSize::Size4K).then(|| gva.containing().get())
}

/// First page and pages of a range that begins at a page, isn't empty and doesn't overflow.
fn range_of(gva: Gva, bytes: u64) -> Option<(u64, u64)> {
    let (page, pages) = (page_of(gva)?, pages_of(bytes)?);
    let fits = gva.checked_add(pages * PAGE_BYTES).is_some();
    (pages > 0 && fits).then_some((page, pages))
}
