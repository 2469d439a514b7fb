//! An allocator some of whose gains are switched off: for the question which of them a gain comes from.
//!
//! | off | instead |
//! | --- | --- |
//! | `fault` | a block is addresses; each page gets its frame in the handler of its first touch's page fault |
//! | `zero` | all of a block is zeroed before its first touch |
//! | `large` | a block has leaves of 4 KiB of its own |
//! | `mapped` | a block's leaves are written at its allocation and cleared when it is freed; those of 2 MiB where its frames allow |
//! | `free` | freeing walks the tables to each page, frees its frame by itself, and flushes before it returns |
//! | `locality` | a freed block waits until an eighth of all frames does: what is allocated isn't what was used last |
//!
//! Each is off alone, but for what it can't be without: what comes by faults, or in leaves of its own, is mapped anew
//! for each block, so `fault` and `large` have the stores of `mapped`. Where nothing else is off, a block is a run
//! that the direct map shows: no store, no flush.
//!
//! The flush of `free` is Linux's (mm/mmu_gather.c): page by page where that is cheaper on this machine, else of all.

#![allow(unsafe_code)] // reason: the trait is unsafe, as blocks are bare memory

use core::ptr::NonNull;

use umpa::blocks::{Config, Otherwise, Placement};
use umpa::hardware::{Contents, Tlb};
use umpa_abi::addr::{Gva, PAGE_BYTES, PageSize};
use umpa_abi::boot::BootInfo;
use work::Blocks;

use crate::fault::{Cause, Fault, Handled, Handler, Scope};
use crate::userpage::Allocator;

/// What is switched off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Off {
    /// Memory without page faults.
    pub fault: bool,
    /// Memory that isn't zeroed.
    pub zero: bool,
    /// Large leaves.
    pub large: bool,
    /// Leaves that are there already.
    pub mapped: bool,
    /// Freeing whose cost doesn't grow with the block.
    pub free: bool,
    /// Using again first what was used last.
    pub locality: bool,
}

const NONE: Off =
    Off { fault: false, zero: false, large: false, mapped: false, free: false, locality: false };

/// The series, and what is off in them.
pub const SERIES: [(&str, Off); 8] = [
    ("umpa", NONE),
    ("-fault", Off { fault: true, ..NONE }),
    ("-zero", Off { zero: true, ..NONE }),
    ("-large", Off { large: true, ..NONE }),
    ("-mapped", Off { mapped: true, ..NONE }),
    ("-free", Off { free: true, ..NONE }),
    ("-locality", Off { locality: true, ..NONE }),
    ("all-off", Off { fault: true, zero: true, large: true, mapped: true, free: true, locality: true }),
];

impl Off {
    /// What suits it.
    #[must_use]
    pub fn config(self, boot: &BootInfo) -> Config {
        let anew = self.fault || self.large || self.mapped;
        Config {
            placement: if anew { Placement::Remap } else { Placement::Ladder },
            quarantine_max_frames: boot.frames_max / 8,
            refill: false,
            // As in `fig7`.
            cover_min_pages: 17,
            ..Config::default()
        }
    }
}

/// What is counted, in the order of [`Ablated::counts`].
pub const COUNTED: [&str; 8] = [
    "stores",
    "page_flushes",
    "full_flushes",
    "faults",
    "zeroed_pages",
    "pages_mapped_anew",
    "pages_freed_singly",
    "blocks_that_waited",
];

/// Freed blocks that can wait.
const WAITING_MAX: usize = 512;

/// Freed blocks, oldest first.
struct Waiting {
    blocks: [(Gva, u64); WAITING_MAX],
    first: usize,
    len: usize,
    bytes: u64,
    bytes_max: u64,
}

impl Waiting {
    fn push(&mut self, gva: Gva, bytes: u64) {
        self.blocks[(self.first + self.len) % WAITING_MAX] = (gva, bytes);
        self.len += 1;
        self.bytes += bytes;
    }

    /// The oldest one, if too many wait or `all` are to go.
    fn pop(&mut self, all: bool) -> Option<(Gva, u64)> {
        let many = self.len == WAITING_MAX || self.bytes > self.bytes_max;
        if self.len == 0 || !(many || all) {
            return None;
        }
        let block = self.blocks[self.first];
        self.first = (self.first + 1) % WAITING_MAX;
        self.len -= 1;
        self.bytes -= block.1;
        Some(block)
    }
}

/// The allocator; and, while it is lent, the handler of its blocks' page faults.
pub struct Ablated<'u, 'm> {
    umpa: &'u mut Allocator<'m>,
    off: Off,
    waiting: Waiting,
    faults: u64,
    zeroed_pages: u64,
    mapped_pages: u64,
    single_pages: u64,
    waited: u64,
}

impl<'u, 'm> Ablated<'u, 'm> {
    /// On `umpa`, which was made with [`Off::config`].
    #[must_use]
    pub fn new(umpa: &'u mut Allocator<'m>, off: Off) -> Self {
        let bytes_max = umpa.frames().granted_frames() / 8 * PAGE_BYTES;
        let blocks = [(Gva::new(0), 0); WAITING_MAX];
        let waiting = Waiting { blocks, first: 0, len: 0, bytes: 0, bytes_max };
        Self { umpa, off, waiting, faults: 0, zeroed_pages: 0, mapped_pages: 0, single_pages: 0, waited: 0 }
    }

    /// What happened so far: [`COUNTED`].
    pub fn counts(&mut self) -> [u64; COUNTED.len()] {
        let stores = self.umpa.tables().stores();
        let tlb = &self.umpa.machine_mut().tlb;
        [
            stores,
            tlb.page_flushes(),
            tlb.full_flushes(),
            self.faults,
            self.zeroed_pages,
            self.mapped_pages,
            self.single_pages,
            self.waited,
        ]
    }

    /// Frees what waits, flushes, and asserts umpa's invariants: no block lives.
    pub fn finish(&mut self) {
        while let Some((gva, bytes)) = self.waiting.pop(true) {
            self.end(gva, bytes);
        }
        self.umpa.settle();
        self.umpa.check(0);
    }

    fn alloc(&mut self, bytes: u64) -> Option<Gva> {
        let pages = bytes.div_ceil(PAGE_BYTES);
        if self.off.fault {
            return self.umpa.userpage_reserve(bytes).ok();
        }
        let block = if self.off.large {
            self.umpa.userpage_malloc_sized(bytes, PageSize::Size4K, Otherwise::Refuse)
        } else {
            self.umpa.userpage_malloc(bytes)
        };
        let block = block.ok()?;
        if self.off.large || self.off.mapped {
            self.mapped_pages += pages;
        }
        if self.off.zero && !self.zero(block, pages) {
            return None;
        }
        Some(block)
    }

    fn free(&mut self, gva: Gva, bytes: u64) {
        if !self.off.locality {
            return self.end(gva, bytes);
        }
        self.waiting.push(gva, bytes);
        while let Some((gva, bytes)) = self.waiting.pop(false) {
            self.waited += 1;
            self.end(gva, bytes);
        }
    }

    fn end(&mut self, gva: Gva, bytes: u64) {
        if self.off.free {
            self.take_apart(gva, bytes.div_ceil(PAGE_BYTES));
        }
        let freed = self.umpa.userpage_free(gva);
        debug_assert!(freed.is_ok());
        if self.off.free {
            let pages = bytes.div_ceil(PAGE_BYTES);
            if self.umpa.frames().quarantined_frames() > 0 {
                // All frames, and the addresses, wait for it.
                self.umpa.settle();
            } else {
                self.umpa.machine_mut().flush_range(gva.containing(), pages);
            }
        }
    }

    /// Frees a block's pages one by one, but for the first of those that the direct map shows: that goes with the
    /// block.
    fn take_apart(&mut self, gva: Gva, pages: u64) {
        self.single_pages += pages;
        if self.off.fault || self.off.large || self.off.mapped {
            for page in 0..pages {
                let page = Gva::new(gva.get() + page * PAGE_BYTES);
                let released = self.umpa.userpage_release(page, PAGE_BYTES);
                debug_assert!(released.is_ok());
            }
            return;
        }
        for page in (0..pages).rev() {
            let found = self.umpa.leaf(gva.containing().offset(page));
            debug_assert!(found.is_some());
            if page > 0 {
                let shorter = self.umpa.userpage_resize(gva, page * PAGE_BYTES);
                debug_assert!(shorter.is_ok());
            }
        }
    }

    /// Zeroes pages, through the direct map as kernels do; false if one isn't mapped.
    fn zero(&mut self, gva: Gva, pages: u64) -> bool {
        let mut done = 0;
        while done < pages {
            let page = gva.containing().offset(done);
            let Some(leaf) = self.umpa.leaf(page) else { return false };
            let frames = leaf.pages.min(pages - done);
            self.umpa.machine_mut().zero(leaf.frame, frames);
            done += frames;
        }
        self.zeroed_pages += pages;
        true
    }
}

impl Handler for Ablated<'_, '_> {
    fn page_fault(&mut self, fault: &Fault) -> Handled {
        let page = fault.address().containing().start();
        let demanded = self.off.fault && fault.cause() == Cause::NotPresent;
        if !demanded || self.umpa.userpage_commit(page, PAGE_BYTES) != Ok(1) {
            return Handled::NotMine;
        }
        self.faults += 1;
        self.mapped_pages += 1;
        if self.off.zero && !self.zero(page, 1) { Handled::NotMine } else { Handled::Retry }
    }
}

/// An [`Ablated`] that is lent, as the measured work wants it.
pub struct AblatedBlocks<'s, 'h, 'u, 'm> {
    name: &'static str,
    scope: &'s mut Scope<'h, Ablated<'u, 'm>>,
}

impl<'s, 'h, 'u, 'm> AblatedBlocks<'s, 'h, 'u, 'm> {
    /// The series `name`.
    #[must_use]
    pub fn new(name: &'static str, scope: &'s mut Scope<'h, Ablated<'u, 'm>>) -> Self {
        Self { name, scope }
    }

    /// What is lent.
    pub fn with<R>(&mut self, work: impl FnOnce(&mut Ablated<'u, 'm>) -> R) -> R {
        self.scope.pause(work)
    }
}

// SAFETY: umpa's blocks are whole pages, shared with nothing (its invariants), until they are freed: mapped
// writable, or, in a reserved window, as soon as the handler, which is lent, hears of their first touch.
unsafe impl Blocks for AblatedBlocks<'_, '_, '_, '_> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn alloc(&mut self, bytes: u64) -> Option<NonNull<u8>> {
        let gva = self.scope.pause(|umpa| umpa.alloc(bytes))?;
        NonNull::new(gva.get() as *mut u8)
    }

    unsafe fn free(&mut self, block: NonNull<u8>, bytes: u64) {
        self.scope.pause(|umpa| umpa.free(Gva::new(block.as_ptr() as u64), bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_wait_in_their_order_until_too_many_do() {
        let blocks = [(Gva::new(0), 0); WAITING_MAX];
        let mut waiting = Waiting { blocks, first: 500, len: 0, bytes: 0, bytes_max: 100 };
        let gva = |at: u64| Gva::new(at << 12);
        (0..4).for_each(|at| waiting.push(gva(at), 25));
        assert_eq!(waiting.pop(false), None);
        waiting.push(gva(4), 30);
        assert_eq!((waiting.pop(false), waiting.pop(false)), (Some((gva(0), 25)), Some((gva(1), 25))));
        assert_eq!(waiting.pop(false), None);
        (5..514).for_each(|at| waiting.push(gva(at), 0));
        assert_eq!((waiting.len, waiting.pop(false)), (WAITING_MAX, Some((gva(2), 25))));
        assert_eq!(waiting.pop(false), None);
        for at in 3..514 {
            assert_eq!(waiting.pop(true).map(|block| block.0), Some(gva(at)));
        }
        assert_eq!((waiting.pop(true), waiting.bytes), (None, 0));
    }

    #[test]
    fn each_series_has_one_thing_off() {
        let off = |off: Off| {
            [off.fault, off.zero, off.large, off.mapped, off.free, off.locality]
                .iter()
                .filter(|&&off| off)
                .count()
        };
        let counts = SERIES.map(|(_, series)| off(series));
        assert_eq!(counts, [0, 1, 1, 1, 1, 1, 1, 6]);
    }
}
