//! Blocks for Table 1: from frames that the hypervisor has just granted, that are held, that are held and zero, or
//! that are mapped still.

#![allow(unsafe_code)] // reason: the trait is unsafe, as blocks are bare memory

use core::ptr::NonNull;

use umpa::blocks::{Config, Otherwise, Placement};
use umpa_abi::addr::{Gva, PAGE_BYTES, PageSize};
use umpa_abi::boot::BootInfo;
use work::Blocks;
use work::raw::tsc_cycles;
use work::table1::Staged;

use crate::mmu;
use crate::userpage::{Allocator, suited};

/// Where a block's frames are when it is allocated, and go when it is freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frames {
    /// With the hypervisor.
    Fresh,
    /// In the lookaside.
    Held,
    /// In the lookaside, zeroed while there was nothing else to do: like fresh ones the program finds zeros there.
    Stocked,
    /// Where the block before was, mapped.
    Mapped,
}

/// What maps a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaves {
    /// Leaves of 4 KiB of its own.
    Small,
    /// Leaves of 2 MiB of its own, which reach over the ends of a smaller block.
    Large,
    /// The direct map, in which all frames are.
    Direct,
}

/// A series: its name, and how its blocks come about.
pub type Series = (&'static str, Frames, Leaves);

/// All of them. The direct map of what is held is what is mapped still: no entry is written for it.
pub const SERIES: [Series; 8] = [
    ("umpa-fresh-4k", Frames::Fresh, Leaves::Small),
    ("umpa-held-4k", Frames::Held, Leaves::Small),
    ("umpa-mapped-4k", Frames::Mapped, Leaves::Small),
    ("umpa-fresh-2m", Frames::Fresh, Leaves::Large),
    ("umpa-fresh-direct", Frames::Fresh, Leaves::Direct),
    ("umpa-held-2m", Frames::Held, Leaves::Large),
    ("umpa-stocked-2m", Frames::Stocked, Leaves::Direct),
    ("umpa-mapped-2m", Frames::Mapped, Leaves::Direct),
];

/// What suits a series.
#[must_use]
pub fn config(boot: &BootInfo, (_, frames, leaves): Series) -> Config {
    let anew = matches!(frames, Frames::Fresh | Frames::Held) && leaves != Leaves::Direct;
    Config {
        placement: if anew { Placement::Remap } else { Placement::Ladder },
        cover_min_pages: if leaves == Leaves::Large { 1 } else { u64::MAX },
        quarantine_max_frames: boot.frames_max / 8,
        ..suited(boot)
    }
}

/// The first address of each page of a block.
fn pages(block: Gva, bytes: u64) -> impl Iterator<Item = Gva> {
    (0..bytes / PAGE_BYTES).map(move |page| Gva::new(block.get() + page * PAGE_BYTES))
}

/// An allocator made with [`config`], for a series.
pub struct StagedBlocks<'a, 'm> {
    series: Series,
    umpa: &'a mut Allocator<'m>,
    exchange_cycles: u64,
}

impl<'a, 'm> StagedBlocks<'a, 'm> {
    /// On `umpa`.
    #[must_use]
    pub fn new(series: Series, umpa: &'a mut Allocator<'m>) -> Self {
        Self { series, umpa, exchange_cycles: 0 }
    }

    /// The allocator.
    pub fn umpa(&mut self) -> &mut Allocator<'m> {
        self.umpa
    }

    fn exchange<T>(&mut self, exchange: impl FnOnce(&mut Allocator<'m>) -> T) -> T {
        let start_cycles = tsc_cycles();
        let done = exchange(self.umpa);
        self.exchange_cycles += tsc_cycles().wrapping_sub(start_cycles);
        done
    }

    /// A window of small leaves that was touched and freed, for blocks that find one still mapped.
    fn map_window(&mut self, bytes: u64) -> bool {
        let Ok(window) = self.umpa.userpage_window(bytes) else { return false };
        let small = self.umpa.userpage_demote(window, bytes).is_ok();
        pages(window, bytes).for_each(|page| mmu::store(page, page.get()));
        small & self.umpa.userpage_free(window).is_ok()
    }

    /// All free frames zeroed, as a program does in idle time, and a block that shows it.
    fn stock(&mut self, bytes: u64) -> bool {
        self.umpa.prezero(u64::MAX);
        let Ok(block) = self.umpa.userpage_malloc_zeroed(bytes) else { return false };
        let zero = pages(block, bytes).all(|page| mmu::load(page) == 0);
        let freed = self.umpa.userpage_free(block).is_ok();
        self.umpa.prezero(u64::MAX);
        zero & freed
    }

    #[inline]
    fn block(&mut self, bytes: u64) -> Option<Gva> {
        let (_, frames, leaves) = self.series;
        if frames == Frames::Fresh {
            let wanted = bytes.div_ceil(PAGE_BYTES);
            self.exchange(|umpa| umpa.preload(wanted).frames == wanted).then_some(())?;
        }
        let block = match (frames, leaves) {
            (Frames::Stocked, _) => self.umpa.userpage_malloc_zeroed(bytes),
            (_, Leaves::Large | Leaves::Direct) => self.umpa.userpage_malloc(bytes),
            (Frames::Mapped, Leaves::Small) => self.umpa.userpage_window(bytes),
            (_, Leaves::Small) => self.umpa.userpage_malloc_sized(bytes, PageSize::Size4K, Otherwise::Refuse),
        };
        block.ok()
    }
}

// SAFETY: umpa's blocks are whole pages, mapped writable, shared with nothing (its invariants), until
// they are freed.
unsafe impl Blocks for StagedBlocks<'_, '_> {
    fn name(&self) -> &'static str {
        self.series.0
    }

    #[inline]
    fn alloc(&mut self, bytes: u64) -> Option<NonNull<u8>> {
        NonNull::new(self.block(bytes)?.get() as *mut u8)
    }

    #[inline]
    unsafe fn free(&mut self, block: NonNull<u8>, bytes: u64) {
        let freed = self.umpa.userpage_free(Gva::new(block.as_ptr() as u64));
        debug_assert!(freed.is_ok());
        if self.series.1 == Frames::Fresh {
            // No frame goes back before the flush that covers it.
            self.umpa.settle();
            self.exchange(|umpa| umpa.drain(bytes.div_ceil(PAGE_BYTES)));
        }
    }
}

impl Staged for StagedBlocks<'_, '_> {
    fn prepare(&mut self, bytes: u64) -> bool {
        match (self.series.1, self.series.2) {
            (Frames::Mapped, Leaves::Small) => self.map_window(bytes),
            (Frames::Stocked, _) => self.stock(bytes),
            _ => true,
        }
    }

    fn later(&mut self) {
        if self.series.1 == Frames::Held {
            self.umpa.settle();
        }
    }

    fn exchange_cycles(&mut self) -> u64 {
        core::mem::take(&mut self.exchange_cycles)
    }
}
