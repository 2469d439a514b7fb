//! Table 1 and Figures 5 and 6 of the paper: a block is allocated, one byte is written to each of its pages, and
//! it is freed; again and again, for each size from 16 KiB to 512 MiB.
//!
//! The bytes are written a second time, which tells what touching pages costs by itself, and read back before
//! the block is freed, which isn't timed. Each block has bytes of its own: a write that went astray, or a
//! page that still holds what the block before had, is an error.
//!
//! The first lines of all pages share a 64th of each cache's sets: from 4 MiB on they aren't in the second level any
//! more (2 MiB, 16 ways), at 512 MiB not in the third. So another line of each page is written as well,
//! twice, and the second time counted: what the same stores take when they don't collide.
//!
//! | row | what is timed |
//! | --- | --- |
//! | `alloc`, `touch`, `free` | the three parts; `free` has all that an allocator put off until then |
//! | `all` | their sum |
//! | `calls` | `alloc` and `free`: what the allocator takes, and not the memory |
//! | `retouch` | the second writes |
//! | `spread` | writes to another line of each page, all lines in turn |
//! | `exchange` | the part of `alloc` and `free` in which the hypervisor was asked, where it was |
//!
//! Sums over the operations of a size, less the null loop (see [`raw`](crate::raw)). Up to [`WARMED_BYTES`] one
//! more operation goes before them and doesn't count.

use core::fmt;

use umpa_abi::addr::PAGE_BYTES;
use umpa_abi::record::{Sample, name};

use crate::raw::{Blocks, Null, Ring, Slot, tsc_cycles};

/// The smallest block.
pub const FIRST_BYTES: u64 = 16 << 10;
/// The largest one.
pub const LARGEST_BYTES: u64 = 512 << 20;
/// The largest of a short run.
pub const QUICK_BYTES: u64 = 32 << 20;
/// Up to this size a block goes first that doesn't count: what it takes to come back to a size, with caches full of
/// other pages, isn't the size's. The lines that are written of larger ones are no longer there the next time.
pub const WARMED_BYTES: u64 = 64 << 20;

/// Sizes up to `largest_bytes`.
pub fn sizes(largest_bytes: u64) -> impl Iterator<Item = u64> {
    core::iter::successors(Some(FIRST_BYTES), |bytes| Some(2 * bytes))
        .take_while(move |&bytes| bytes <= largest_bytes)
}

/// Blocks of a size in a round, one after the other.
#[must_use]
pub const fn ops(bytes: u64) -> u64 {
    match (4 << 20) / bytes {
        0 => 1,
        ops @ 1..64 => ops,
        _ => 64,
    }
}

/// An allocator that is in a known state when the blocks of a size begin.
pub trait Staged: Blocks {
    /// Brings it there. Isn't timed. False when it can't be done.
    fn prepare(&mut self, _bytes: u64) -> bool {
        true
    }
    /// What was put off, at the end of a size. Is timed.
    fn later(&mut self) {}
    /// Cycles in which the hypervisor was asked, since this was called last.
    fn exchange_cycles(&mut self) -> u64 {
        0
    }
}

/// Why there is no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TouchError {
    /// No block.
    NoMemory {
        /// Of this size.
        bytes: u64,
    },
    /// Bytes were read back wrong.
    Wrong {
        /// In a block of this size.
        bytes: u64,
        /// In so many pages.
        pages: u64,
    },
}

impl fmt::Display for TouchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoMemory { bytes } => write!(f, "no memory for a block of {bytes} bytes"),
            Self::Wrong { bytes, pages } => write!(f, "{pages} pages of a block of {bytes} bytes were wrong"),
        }
    }
}

impl core::error::Error for TouchError {}

/// The work on one allocator.
pub struct Table1<'r, B: Staged> {
    ring: Ring<'r, B>,
    null: Null,
    /// The next block's number, from which its bytes follow.
    number: u64,
}

impl<'r, B: Staged> Table1<'r, B> {
    /// With a place for the block.
    pub fn new(blocks: B, slot: &'r mut [Slot; 1]) -> Self {
        Self { ring: Ring::new(blocks, slot), null: Null::measure(), number: 0 }
    }

    /// The allocator under test.
    pub fn allocator(&mut self) -> &mut B {
        self.ring.allocator()
    }

    /// All sizes up to `largest_bytes`, once.
    ///
    /// # Errors
    /// [`TouchError`].
    pub fn round(&mut self, largest_bytes: u64, report: &mut dyn FnMut(Sample)) -> Result<(), TouchError> {
        sizes(largest_bytes).try_for_each(|bytes| self.size(bytes, report))
    }

    fn size(&mut self, bytes: u64, report: &mut dyn FnMut(Sample)) -> Result<(), TouchError> {
        let ops = ops(bytes);
        if !self.ring.allocator().prepare(bytes) {
            return Err(TouchError::NoMemory { bytes });
        }
        if bytes <= WARMED_BYTES {
            self.block(bytes)?;
        }
        let _ = self.ring.allocator().exchange_cycles();
        let mut sums = [0_u64; 5];
        for _ in 0..ops {
            let cycles = self.block(bytes)?;
            sums.iter_mut().zip(cycles).for_each(|(sum, cycles)| *sum += cycles);
        }
        let [mut alloc, mut touch, mut retouch, mut spread, mut free] = sums;
        let start_cycles = tsc_cycles();
        self.ring.allocator().later();
        let later = tsc_cycles().wrapping_sub(start_cycles);
        let null = self.null;
        alloc = alloc.saturating_sub(null.alloc_cycles(ops));
        touch = touch.saturating_sub(null.traverse_cycles(ops));
        retouch = retouch.saturating_sub(null.traverse_cycles(ops));
        spread = spread.saturating_sub(null.traverse_cycles(ops));
        // The clock, read twice, is part of freeing nothing.
        free = (free + later).saturating_sub(null.free_cycles(ops + 1));
        let exchange = self.ring.allocator().exchange_cycles();
        let pages = ops * (bytes / PAGE_BYTES);
        let series = name(self.ring.name());
        let rows = [("alloc", alloc), ("touch", touch), ("free", free), ("all", alloc + touch + free)];
        let more =
            [("calls", alloc + free), ("retouch", retouch), ("spread", spread), ("exchange", exchange)];
        for (work, cycles) in
            rows.into_iter().chain(more).filter(|&(work, cycles)| work != "exchange" || cycles > 0)
        {
            report(Sample { series, work: name(work), bytes, ops, pages, cycles, check: pages, reserved: 0 });
        }
        Ok(())
    }

    /// Cycles to allocate a block, to write it once, again, and spread, and to free it.
    fn block(&mut self, bytes: u64) -> Result<[u64; 5], TouchError> {
        let alloc = self.ring.alloc(0, self.number, bytes, true).ok_or(TouchError::NoMemory { bytes })?;
        self.number += 1;
        let [touch, retouch] = [(); 2].map(|()| self.ring.traverse(0));
        let [_, spread] = [(); 2].map(|()| self.ring.spread(0));
        match self.ring.wrong_bytes(0) {
            0 => Ok([alloc, touch, retouch, spread, self.ring.free(0)]),
            pages => Err(TouchError::Wrong { bytes, pages }),
        }
    }
}

#[cfg(test)]
#[allow(unsafe_code, reason = "an allocator of one block")]
mod tests {
    extern crate std;
    use super::*;
    use core::ptr::NonNull;
    use std::vec::Vec;
    use umpa_abi::record::name_text;

    /// One block's memory, over and over.
    struct Same {
        memory: Vec<u64>,
        live: bool,
        later: u64,
        /// Every block lies at the first page's place only.
        pages: u64,
    }

    // SAFETY: one block lives at a time, in memory of its own.
    unsafe impl Blocks for Same {
        fn name(&self) -> &'static str {
            "same"
        }
        fn alloc(&mut self, bytes: u64) -> Option<NonNull<u8>> {
            assert!(!core::mem::replace(&mut self.live, true) && bytes <= self.pages * PAGE_BYTES);
            let first = self.memory.as_mut_ptr() as usize;
            NonNull::new(
                self.memory.as_mut_ptr().cast::<u8>().wrapping_add(first.next_multiple_of(4096) - first),
            )
        }
        unsafe fn free(&mut self, _block: NonNull<u8>, _bytes: u64) {
            self.live = false;
        }
    }

    impl Staged for Same {
        fn prepare(&mut self, bytes: u64) -> bool {
            bytes <= self.pages * PAGE_BYTES
        }
        fn later(&mut self) {
            self.later += 1;
        }
    }

    fn same(pages: u64) -> Same {
        Same { memory: std::vec![0; (pages as usize + 1) * 512], live: false, later: 0, pages }
    }

    #[test]
    fn every_size_has_its_rows() {
        let (mut slot, mut samples) = ([Slot::EMPTY], Vec::new());
        let mut work = Table1::new(same(16), &mut slot);
        work.round(64 << 10, &mut |sample| samples.push(sample)).unwrap();
        let rows: Vec<_> = samples.iter().map(|row| (row.bytes, name_text(&row.work))).collect();
        let works = ["alloc", "touch", "free", "all", "calls", "retouch", "spread"];
        let want = [16 << 10, 32 << 10, 64 << 10].map(|bytes| works.map(|work| (bytes, work)));
        assert_eq!(rows, want.as_flattened());
        assert!(
            samples.iter().all(|row| row.pages == row.ops * (row.bytes / 4096) && row.check == row.pages)
        );
        assert_eq!((work.allocator().later, work.allocator().live), (3, false));
    }

    #[test]
    fn what_an_allocator_refuses_is_no_result() {
        let mut slot = [Slot::EMPTY];
        let refused = Table1::new(same(8), &mut slot).round(64 << 10, &mut |_| {});
        assert_eq!(refused, Err(TouchError::NoMemory { bytes: 64 << 10 }));
    }

    #[test]
    fn sizes_and_operations_are_bounded() {
        assert_eq!(sizes(LARGEST_BYTES).count(), 16);
        assert_eq!([16 << 10, 1 << 20, 4 << 20, LARGEST_BYTES].map(ops), [64, 4, 1, 1]);
    }
}
