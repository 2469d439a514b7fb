//! Figures 9 and 10 of the paper: a general allocator under random work, by block size.
//!
//! One operation, as in [`fig7`](crate::fig7): free the oldest of the blocks that live, allocate one of the next
//! size, write a byte to each of its pages. There are two parts, one after the other, so that neither's times
//! are those of the other's cache misses: small blocks of 16 bytes to 4 KiB, of which each line of 64 bytes is
//! written, and large ones up to 8 MiB. Sizes follow from a seed. Every bin (a power of two) is equally likely
//! and so is every size in it: with the paper's law, every size equally likely, seven of eight blocks have more
//! than 1 MiB and a bin below 64 KiB has nothing to show.
//!
//! A round of a part begins and ends without blocks. The ring is filled, with the last sizes of the part's
//! sequence; then comes the whole sequence, which is timed; then the ring is emptied.
//!
//! Equation: `ops` is a multiple of `blocks`, so what is freed while times count has the sizes of what is
//! allocated then, and each bin has as many of one as of the other.
//!
//! | row | what is timed, for each bin |
//! | --- | --- |
//! | `alloc`, `touch`, `free` | the three parts of an operation |
//! | `all` | their sum |
//! | `small`, `large` | `all` of all bins of a part (size 0) |
//!
//! Sums less the null loop (see [`raw`](crate::raw)). Before a block is freed each byte is read back; that isn't
//! timed. Blocks have bytes of their own, in each round others.
//!
//! What the allocator holds is asked every few operations, untimed ([`Held`]). Its peak beside the peak of the
//! bytes that live is what fragmentation costs.

use core::fmt;

use fastrand::Rng;
use umpa_abi::addr::PAGE_BYTES;
use umpa_abi::record::{Sample, name};

use crate::raw::{Blocks, Null, Ring, Slot};

/// Large blocks that live at once, unless others are asked for.
pub const BLOCKS: u64 = 256;
/// The same of a short run.
pub const QUICK_BLOCKS: u64 = 64;
/// The most that can be asked for.
pub const BLOCKS_MAX: u64 = 2048;

/// Small blocks for a large one.
const SMALL_BLOCKS: u64 = 256;
/// Bins are powers of two up to this one's.
const BINS: usize = 24;
const SEED: u64 = 1;

/// One of the two parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its name.
    pub name: &'static str,
    /// The least block.
    pub least_bytes: u64,
    /// The largest one, a power of two.
    pub most_bytes: u64,
    /// From one byte that is written to the next.
    pub stride_bytes: u64,
    /// Blocks that live at once.
    pub blocks: u64,
    /// Operations of a round.
    pub ops: u64,
    /// Operations from one question for memory to the next.
    sample_ops: u64,
}

/// Both parts, with so many large blocks at once.
#[must_use]
pub const fn parts(blocks: u64) -> [Part; 2] {
    [
        Part {
            name: "small",
            least_bytes: 16,
            most_bytes: PAGE_BYTES,
            stride_bytes: 64,
            blocks: SMALL_BLOCKS * blocks,
            ops: 2 * SMALL_BLOCKS * blocks,
            sample_ops: 512,
        },
        Part {
            name: "large",
            least_bytes: PAGE_BYTES + 1,
            most_bytes: 8 << 20,
            stride_bytes: PAGE_BYTES,
            blocks,
            ops: 3 * blocks,
            sample_ops: 4,
        },
    ]
}

/// Places for blocks that the work needs.
#[must_use]
pub const fn slots(blocks: u64) -> usize {
    (SMALL_BLOCKS * blocks) as usize
}

const fn bin(bytes: u64) -> usize {
    bytes.next_power_of_two().trailing_zeros() as usize
}

impl Part {
    /// Upper bounds of its bins.
    pub fn bins(&self) -> impl Iterator<Item = u64> {
        (bin(self.least_bytes)..=bin(self.most_bytes)).map(|bin| 1 << bin)
    }

    /// The sizes of a round's operations.
    fn sizes(self) -> impl Iterator<Item = u64> {
        let mut rng = Rng::with_seed(SEED);
        let (first, last) = (bin(self.least_bytes), bin(self.most_bytes));
        (0..self.ops).map(move |_| {
            let most = 1 << rng.usize(first..=last);
            rng.u64(self.least_bytes.max(most / 2 + 1)..=most)
        })
    }

    /// The sizes of all blocks of a round in order, and whether their times count.
    fn sequence(self) -> impl Iterator<Item = (u64, bool)> {
        let filling = self.sizes().skip((self.ops - self.blocks) as usize);
        filling.map(|bytes| (bytes, false)).chain(self.sizes().map(|bytes| (bytes, true)))
    }

    /// Most bytes that live at once, each block in whole `grain_bytes`.
    #[must_use]
    pub fn live_bytes(self, grain_bytes: u64) -> u64 {
        let sizes = || self.sequence().map(|(bytes, _)| bytes.next_multiple_of(grain_bytes));
        let oldest = core::iter::repeat_n(0, self.blocks as usize).chain(sizes());
        let live = sizes().zip(oldest).scan(0, |live, (new, old)| {
            *live = *live + new - old;
            Some(*live)
        });
        live.max().unwrap_or(0)
    }
}

/// An allocator that tells how much memory it has.
pub trait Held: Blocks {
    /// Bytes of memory, whatever they are used for.
    fn held_bytes(&mut self) -> u64;
}

/// The most that there was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Peak {
    /// What the allocator held, above what it held before its first block.
    pub held_bytes: u64,
    /// Bytes of the blocks that lived.
    pub live_bytes: u64,
}

/// Why there is no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fig9Error {
    /// Fewer slots than [`slots`].
    FewSlots,
    /// No block.
    NoMemory {
        /// Of this size.
        bytes: u64,
    },
    /// Bytes were read back wrong.
    Wrong {
        /// In a block of this size.
        bytes: u64,
        /// So many.
        wrong_bytes: u64,
    },
}

impl fmt::Display for Fig9Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FewSlots => write!(f, "there are too few places for blocks"),
            Self::NoMemory { bytes } => write!(f, "no memory for a block of {bytes} bytes"),
            Self::Wrong { bytes, wrong_bytes } => {
                write!(f, "{wrong_bytes} bytes of a block of {bytes} bytes didn't read back as written")
            }
        }
    }
}

impl core::error::Error for Fig9Error {}

#[derive(Clone, Copy, Default)]
struct Bin {
    ops: u64,
    frees: u64,
    pages: u64,
    alloc_cycles: u64,
    touch_cycles: u64,
    free_cycles: u64,
    check: u64,
}

/// The work on one allocator.
pub struct Fig9<'r, B: Held> {
    parts: [Part; 2],
    ring: Ring<'r, B>,
    null: Null,
    rounds: u64,
    before_bytes: u64,
    peaks: [Peak; 2],
}

impl<'r, B: Held> Fig9<'r, B> {
    /// With so many large blocks at once, and [`slots`] places.
    ///
    /// # Errors
    /// [`Fig9Error::FewSlots`].
    pub fn new(blocks: u64, mut allocator: B, places: &'r mut [Slot]) -> Result<Self, Fig9Error> {
        if blocks == 0 || places.len() < slots(blocks) {
            return Err(Fig9Error::FewSlots);
        }
        places.fill(Slot::EMPTY);
        let before_bytes = allocator.held_bytes();
        Ok(Self {
            parts: parts(blocks),
            ring: Ring::new(allocator, places),
            null: Null::measure(),
            rounds: 0,
            before_bytes,
            peaks: [Peak::default(); 2],
        })
    }

    /// The allocator under test.
    pub fn allocator(&mut self) -> &mut B {
        self.ring.allocator()
    }

    /// The peaks of both parts so far. That of small blocks is the first round's: what an allocator keeps of the
    /// large ones later isn't theirs.
    #[must_use]
    pub const fn peaks(&self) -> [Peak; 2] {
        self.peaks
    }

    /// The same as counters.
    #[must_use]
    pub const fn counters(&self) -> [(&'static str, u64); 4] {
        let [small, large] = self.peaks;
        [
            ("small_live_bytes", small.live_bytes),
            ("small_peak_bytes", small.held_bytes),
            ("large_live_bytes", large.live_bytes),
            ("large_peak_bytes", large.held_bytes),
        ]
    }

    /// Both parts, once.
    ///
    /// # Errors
    /// [`Fig9Error`].
    pub fn round(&mut self, report: &mut dyn FnMut(Sample)) -> Result<(), Fig9Error> {
        self.rounds += 1;
        (0..self.parts.len()).try_for_each(|number| self.part(number, report))
    }

    fn part(&mut self, number: usize, report: &mut dyn FnMut(Sample)) -> Result<(), Fig9Error> {
        let part = self.parts[number];
        let peak_counts = number > 0 || self.rounds == 1;
        let mut peak = self.peaks[number];
        let mut bins = [Bin::default(); BINS];
        let mut live_bytes = 0;
        self.ring.set_stride(part.stride_bytes);
        for (block, (bytes, counts)) in (0_u64..).zip(part.sequence()) {
            let at = (block % part.blocks) as usize;
            live_bytes -= self.free(at, counts, &mut bins)?;
            let content = (self.rounds << 32) | block;
            let alloc_cycles = self.ring.alloc(at, content, bytes, counts);
            let alloc_cycles = alloc_cycles.ok_or(Fig9Error::NoMemory { bytes })?;
            let touch_cycles = self.ring.traverse(at);
            live_bytes += bytes;
            if counts {
                let bin = &mut bins[bin(bytes)];
                bin.ops += 1;
                bin.pages += bytes.div_ceil(PAGE_BYTES);
                bin.alloc_cycles += alloc_cycles;
                bin.touch_cycles += touch_cycles;
            }
            if peak_counts {
                peak.live_bytes = peak.live_bytes.max(live_bytes);
                if block % part.sample_ops == 0 {
                    let held_bytes = self.ring.allocator().held_bytes().saturating_sub(self.before_bytes);
                    peak.held_bytes = peak.held_bytes.max(held_bytes);
                }
            }
        }
        self.peaks[number] = peak;
        for at in 0..part.blocks as usize {
            self.free(at, false, &mut bins)?;
        }
        self.report(&part, &bins, report);
        Ok(())
    }

    /// Frees the block at `at`, if there is one, and returns its bytes.
    fn free(&mut self, at: usize, counts: bool, bins: &mut [Bin; BINS]) -> Result<u64, Fig9Error> {
        let Some(live) = self.ring.live(at) else { return Ok(0) };
        let (bytes, wrong_bytes) = (live.bytes, self.ring.wrong_bytes(at));
        let free_cycles = self.ring.free(at);
        if wrong_bytes > 0 {
            return Err(Fig9Error::Wrong { bytes, wrong_bytes });
        }
        if counts {
            let bin = &mut bins[bin(bytes)];
            bin.frees += 1;
            bin.free_cycles += free_cycles;
            bin.check = bin.check.wrapping_mul(31).wrapping_add(bytes ^ (self.ring.steps(bytes) << 32));
        }
        Ok(bytes)
    }

    fn report(&self, part: &Part, bins: &[Bin; BINS], report: &mut dyn FnMut(Sample)) {
        let series = name(self.ring.name());
        let (bytes, work) = (0, name(part.name));
        let mut all = Sample { series, work, bytes, ops: 0, pages: 0, cycles: 0, check: 0, reserved: 0 };
        for (number, bin) in bins.iter().enumerate().filter(|(_, bin)| bin.ops > 0) {
            let alloc = bin.alloc_cycles.saturating_sub(self.null.alloc_cycles(bin.ops));
            let touch = bin.touch_cycles.saturating_sub(self.null.traverse_cycles(bin.ops));
            let free = bin.free_cycles.saturating_sub(self.null.free_cycles(bin.frees));
            let rows = [("alloc", alloc), ("touch", touch), ("free", free), ("all", alloc + touch + free)];
            let Bin { ops, pages, check, .. } = *bin;
            for (work, cycles) in rows {
                let work = name(work);
                report(Sample { series, work, bytes: 1 << number, ops, pages, cycles, check, reserved: 0 });
            }
            all.ops += ops;
            all.pages += pages;
            all.cycles += alloc + touch + free;
            all.check = all.check.wrapping_mul(31).wrapping_add(check);
        }
        report(all);
    }
}

#[cfg(test)]
mod tests;
