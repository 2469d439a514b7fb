//! Figures 7 and 8 of the paper: what allocating, traversing and freeing cost by block size.
//!
//! One operation: free the oldest block when the ring is full, allocate one of the next size, write
//! one byte to each of its pages, and write them again (what traversing mapped pages costs by
//! itself). The times of a block all go to the bin of its size. Before a block is freed each byte is
//! read back, outside the timed parts.
//!
//! Equation: in a finished run the operations of all bins are `params.ops`, and each of them has
//! exactly one allocation, two traversals and one freeing in the sums.
//!
//! Cost outside the timed parts: reading a block's bytes back, 16-30 cycles per page.

use crate::bins::{self, BINS};
use crate::params::{ParamError, Params, Phase, Schedule};
use crate::raw::{Blocks, Null, Ring, Slot};
use crate::sizes::Sizes;
use core::fmt;
use umpa_abi::addr::PAGE_BYTES;
use umpa_abi::record::{self, Point};

#[derive(Clone, Copy, Default)]
struct Bin {
    ops: u64,
    pages: u64,
    alloc_cycles: u64,
    traverse_cycles: u64,
    retraverse_cycles: u64,
    free_cycles: u64,
    wrong_bytes: u64,
}

/// The work on one allocator, under way.
pub struct Fig7<'r, B: Blocks> {
    params: Params,
    schedule: Schedule,
    null: Null,
    sizes: Sizes,
    ring: Ring<'r, B>,
    bins: [Bin; BINS],
    blocks: u64,
    slices: u64,
}

impl<'r, B: Blocks> Fig7<'r, B> {
    /// Prepares the work and measures the null loop. `slots` has at least `params.ring_blocks` places.
    ///
    /// # Errors
    /// [`WorkError::Params`] and [`WorkError::FewSlots`].
    pub fn new(params: &Params, blocks: B, slots: &'r mut [Slot]) -> Result<Self, WorkError> {
        params.check().map_err(WorkError::Params)?;
        let have_slots = slots.len();
        let Some(slots) = slots.get_mut(..params.ring_blocks as usize) else {
            return Err(WorkError::FewSlots { need_slots: params.ring_blocks, have_slots });
        };
        Ok(Self {
            params: *params,
            schedule: params.schedule(),
            null: Null::measure(),
            sizes: Sizes::new(params),
            ring: Ring::new(blocks, slots),
            bins: [Bin::default(); BINS],
            blocks: 0,
            slices: 0,
        })
    }

    /// Does the next slice; after the last one all blocks are freed.
    ///
    /// # Errors
    /// [`WorkError::NoMemory`]: the work can't be continued.
    pub fn run_slice(&mut self) -> Result<Progress, WorkError> {
        let phase = self.schedule.phase_after(self.slices);
        let before_slices = match phase {
            Phase::Warmup => 0,
            Phase::Measured => self.schedule.warmup_slices,
            Phase::Cooldown => self.schedule.warmup_slices + self.schedule.measured_slices,
            Phase::Done => return Ok(self.progress()),
        };
        let done_ops = (self.slices - before_slices) * self.params.slice_ops;
        let ops = self.params.slice_ops.min(self.params.phase_ops(phase).saturating_sub(done_ops));
        for _ in 0..ops {
            self.operate(phase == Phase::Measured)?;
        }
        self.slices += 1;
        let progress = self.progress();
        if progress.phase == Phase::Done {
            for at in 0..self.params.ring_blocks as usize {
                self.free(at);
            }
        }
        Ok(progress)
    }

    fn operate(&mut self, counts: bool) -> Result<(), WorkError> {
        let at = (self.blocks % self.params.ring_blocks) as usize;
        self.free(at);
        let bytes = self.sizes.next_bytes();
        let Some(alloc_cycles) = self.ring.alloc(at, self.blocks, bytes, counts) else {
            return Err(WorkError::NoMemory { block: self.blocks, bytes });
        };
        let traverse_cycles = self.ring.traverse(at);
        let retraverse_cycles = self.ring.traverse(at);
        self.blocks += 1;
        if counts {
            let bin = &mut self.bins[bins::index(bytes)];
            bin.pages += bytes.div_ceil(PAGE_BYTES);
            bin.alloc_cycles += alloc_cycles;
            bin.traverse_cycles += traverse_cycles;
            bin.retraverse_cycles += retraverse_cycles;
        }
        Ok(())
    }

    fn free(&mut self, at: usize) {
        let Some(live) = self.ring.live(at) else { return };
        let wrong_bytes = self.ring.wrong_bytes(at);
        let free_cycles = self.ring.free(at);
        let bin = &mut self.bins[bins::index(live.bytes)];
        bin.wrong_bytes += wrong_bytes;
        if live.counts {
            bin.ops += 1;
            bin.free_cycles += free_cycles;
        }
    }

    /// How far the work is.
    #[must_use]
    pub fn progress(&self) -> Progress {
        Progress { slices: self.slices, phase: self.schedule.phase_after(self.slices) }
    }

    /// The allocator under test.
    pub fn allocator(&mut self) -> &mut B {
        self.ring.allocator()
    }

    /// What the timed parts cost by themselves; [`Fig7::points`] has subtracted it.
    #[must_use]
    pub fn null(&self) -> Null {
        self.null
    }

    /// Bytes that were read back wrong so far, in any phase.
    #[must_use]
    pub fn wrong_bytes(&self) -> u64 {
        self.bins.iter().map(|bin| bin.wrong_bytes).sum()
    }

    /// The sums by bin, less the null loop, once the work is [`Phase::Done`]; nothing before. A bin
    /// without operations has a point only if a byte was wrong there.
    pub fn points(&self) -> impl Iterator<Item = Point> + '_ {
        let series = record::name(self.ring.name());
        let done = self.progress().phase == Phase::Done;
        let bins = self.bins.iter().enumerate();
        bins.filter(move |(_, bin)| done && (bin.ops > 0 || bin.wrong_bytes > 0)).map(move |(index, bin)| {
            Point {
                series,
                bin_bytes: bins::bin_bytes(index),
                ops: bin.ops,
                pages: bin.pages,
                alloc_cycles: bin.alloc_cycles.saturating_sub(self.null.alloc_cycles(bin.ops)),
                traverse_cycles: bin.traverse_cycles.saturating_sub(self.null.traverse_cycles(bin.ops)),
                retraverse_cycles: bin.retraverse_cycles.saturating_sub(self.null.traverse_cycles(bin.ops)),
                free_cycles: bin.free_cycles.saturating_sub(self.null.free_cycles(bin.ops)),
                wrong_bytes: bin.wrong_bytes,
                reserved: 0,
            }
        })
    }
}

/// How far the work is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Slices done.
    pub slices: u64,
    /// Phase of the next slice.
    pub phase: Phase,
}

/// Why the work can't be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkError {
    /// The parameters are outside their ranges.
    Params(ParamError),
    /// The ring is larger than the storage handed in.
    FewSlots {
        /// Places that the ring needs.
        need_slots: u64,
        /// Places handed in.
        have_slots: usize,
    },
    /// The allocator had no memory.
    NoMemory {
        /// Blocks allocated before.
        block: u64,
        /// Bytes asked for.
        bytes: u64,
    },
}

impl fmt::Display for WorkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Params(error) => error.fmt(f),
            Self::FewSlots { need_slots, have_slots } => {
                write!(f, "the ring has {need_slots} blocks, there is storage for {have_slots}")
            }
            Self::NoMemory { block, bytes } => write!(f, "no memory for block {block} of {bytes} bytes"),
        }
    }
}

impl core::error::Error for WorkError {}

#[cfg(test)]
mod tests;
