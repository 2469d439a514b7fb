//! Pointer chase: each address is known only when the load before it is done, so a load costs its latency: cache,
//! TLB and walk, none hidden.
//!
//! A chain is one cycle through all its cells in an order that looks random and is computed, not kept:
//!
//! ```text
//! next = M ∘ L ∘ M⁻¹      L(x) = A x + C mod n     M(x): xor-shift, odd factor, xor-shift, mod n
//! ```
//!
//! L has one cycle through all of `0..n` (n a power of two, A ≡ 1 mod 4, C odd: Hull and Dobell 1962), so `next` has
//! too, whatever bijection M is. So cells are laid in order of address, and where a chase must end after any number
//! of steps is known without it: `M(Lˢ(M⁻¹(start)))`, which is the check of every series.
//!
//! A cell is four bytes. Chains of cache lines have one in each line, chains of pages one in one line of each page
//! (another line from page to page, so that they don't crowd into one set of a cache). All of [`CHAINS`] lie in
//! the same memory side by side, each in another four bytes of its lines, and are laid once.
//!
//! Cost: laying takes a store per cell, a chase one load per step.

use crate::raw::Cells;

/// Bytes from one cell to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stride {
    /// A cache line.
    Line,
    /// A page of 4 KiB.
    Page,
}

impl Stride {
    /// How many bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Line => LINE_BYTES,
            Self::Page => 4096,
        }
    }

    /// What a chase of it is called.
    #[must_use]
    pub const fn work(self) -> &'static str {
        match self {
            Self::Line => "chase-lines",
            Self::Page => "chase-pages",
        }
    }
}

const LINE_BYTES: u64 = 64;
/// Units of what a cell says: a chain of 4 GiB fits into 32 bits, and a load can scale by it.
pub(crate) const UNIT_BYTES: u64 = 8;

/// A chain through the first `bytes` bytes of some memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain {
    /// From one cell to the next.
    pub stride: Stride,
    /// The working set: a power of two.
    pub bytes: u64,
    /// Which four bytes of a line are its cells, from 0 to 15.
    pub slot: u64,
}

const fn lines(bytes: u64, slot: u64) -> Chain {
    Chain { stride: Stride::Line, bytes, slot }
}

const fn pages(bytes: u64, slot: u64) -> Chain {
    Chain { stride: Stride::Page, bytes, slot }
}

/// All chains, small ones first.
pub const CHAINS: [Chain; 16] = [
    lines(16 << 10, 0),
    lines(64 << 10, 1),
    lines(256 << 10, 2),
    lines(1 << 20, 3),
    lines(4 << 20, 4),
    lines(16 << 20, 5),
    lines(64 << 20, 6),
    lines(256 << 20, 7),
    lines(1 << 30, 8),
    lines(4 << 30, 9),
    pages(1 << 20, 10),
    pages(4 << 20, 11),
    pages(16 << 20, 12),
    pages(256 << 20, 13),
    pages(1 << 30, 14),
    pages(4 << 30, 15),
];

/// Steps of a sample.
pub const STEPS: u64 = 1 << 16;
/// Cells of the largest chain that is warmed by going through all of it.
const WARM_CELLS: u64 = 1 << 20;

/// The chains of working sets up to `bytes`.
pub fn up_to(bytes: u64) -> impl Iterator<Item = Chain> + Clone {
    CHAINS.into_iter().filter(move |chain| chain.bytes <= bytes)
}

const A: u64 = 0x9e37_79b9_7f4a_7c15;
const C: u64 = 0xd1b5_4a32_d192_ed03;
const ODD: u64 = 0xbf58_476d_1ce4_e5b9;
const _: () = assert!(A % 4 == 1 && C % 2 == 1 && ODD % 2 == 1);

/// `x * INVERSE * ODD = x mod 2⁶⁴` (Newton: each step doubles the bits that are right).
const INVERSE: u64 = {
    let (mut inverse, mut step) = (ODD, 0);
    while step < 5 {
        inverse = inverse.wrapping_mul(2u64.wrapping_sub(ODD.wrapping_mul(inverse)));
        step += 1;
    }
    inverse
};
const _: () = assert!(ODD.wrapping_mul(INVERSE) == 1);

impl Chain {
    /// How many.
    #[must_use]
    pub const fn cells(&self) -> u64 {
        self.bytes / self.stride.bytes()
    }

    /// Steps before a sample: all of a chain, or some of one that no cache keeps.
    #[must_use]
    pub const fn warm_steps(&self) -> u64 {
        if self.cells() <= WARM_CELLS { self.cells() } else { WARM_CELLS / 64 }
    }

    const fn mask(&self) -> u64 {
        self.cells() - 1
    }

    /// A bijection of the cells; shifts of half the bits or more undo themselves.
    const fn mix(&self, x: u64, odd: u64) -> u64 {
        let shift = self.cells().trailing_zeros().div_ceil(2);
        let x = x ^ x >> shift;
        let x = x.wrapping_mul(odd) & self.mask();
        x ^ x >> shift
    }

    /// The cell that follows `cell`.
    #[must_use]
    pub const fn next(&self, cell: u64) -> u64 {
        self.after(cell, 1)
    }

    /// The cell `steps` after `cell`, without the memory.
    #[must_use]
    pub const fn after(&self, cell: u64, steps: u64) -> u64 {
        let (mut factor, mut term) = (1u64, 0u64);
        let (mut square, mut square_term, mut left) = (A, C, steps);
        while left > 0 {
            if left % 2 == 1 {
                term = square.wrapping_mul(term).wrapping_add(square_term);
                factor = factor.wrapping_mul(square);
            }
            square_term = square_term.wrapping_mul(square.wrapping_add(1));
            square = square.wrapping_mul(square);
            left /= 2;
        }
        let x = self.mix(cell, INVERSE).wrapping_mul(factor).wrapping_add(term) & self.mask();
        self.mix(x, ODD)
    }

    /// Where a cell's line is, in units of [`UNIT_BYTES`].
    pub(crate) const fn place(&self, cell: u64) -> u64 {
        let line = match self.stride {
            Stride::Line => cell,
            Stride::Page => cell * 64 + cell * 37 % 64,
        };
        line * (LINE_BYTES / UNIT_BYTES)
    }

    /// The cell whose line is there.
    pub(crate) const fn cell(&self, place: u64) -> u64 {
        place / (self.stride.bytes() / UNIT_BYTES)
    }
}

/// A chase that goes on from sample to sample, so that sets larger than a sample aren't only its part.
#[derive(Clone, Copy, Debug)]
pub struct Chase {
    chain: Chain,
    cell: u64,
}

/// A chase has ended at another cell than it must.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Astray {
    /// Where it has ended.
    pub found: u64,
    /// Where it must.
    pub expected: u64,
}

impl Chase {
    /// From the first cell on.
    #[must_use]
    pub const fn new(chain: Chain) -> Self {
        Self::at(chain, 0)
    }

    /// From a cell on, of those that the chain has.
    #[must_use]
    pub const fn at(chain: Chain, cell: u64) -> Self {
        Self { chain, cell: cell & chain.mask() }
    }

    /// The chain.
    #[must_use]
    pub const fn chain(&self) -> Chain {
        self.chain
    }

    /// The cell that was reached: the checksum.
    #[must_use]
    pub const fn cell(&self) -> u64 {
        self.cell
    }

    /// Goes on; cycles.
    ///
    /// # Errors
    /// [`Astray`]: a load has given something else than was laid.
    pub fn run(&mut self, cells: &Cells, steps: u64) -> Result<u64, Astray> {
        let expected = self.chain.after(self.cell, steps);
        let (found, cycles) = cells.follow(&self.chain, self.cell, steps);
        self.cell = expected;
        if found == expected { Ok(cycles) } else { Err(Astray { found, expected }) }
    }
}

#[cfg(test)]
#[allow(unsafe_code, reason = "cells in a vector")]
mod tests {
    extern crate std;
    use super::*;
    use std::vec;

    #[test]
    fn a_chain_is_one_cycle_through_all_its_cells() {
        for chain in CHAINS.into_iter().filter(|chain| chain.cells() <= 1 << 20) {
            let (mut seen, mut cell) = (vec![false; chain.cells() as usize], 0);
            for step in 1..=chain.cells() {
                assert!(!std::mem::replace(&mut seen[cell as usize], true), "{chain:?}: {cell} comes twice");
                cell = chain.next(cell);
                if step.is_power_of_two() {
                    assert_eq!(cell, chain.after(0, step), "{chain:?}");
                }
            }
            assert_eq!(cell, 0, "{chain:?}");
        }
    }

    #[test]
    fn neighbours_in_a_chain_lie_apart() {
        let chain = CHAINS[7];
        let near = (0..10_000).filter(|&cell| chain.next(cell).abs_diff(cell) <= 64).count();
        assert!(near < 10, "{near} of 10,000 steps stay within a page");
    }

    #[test]
    fn chains_share_memory_and_no_cell() {
        let slots = CHAINS.iter().fold(0u32, |slots, chain| slots | 1 << chain.slot);
        assert_eq!(slots, 0xffff);
        for chain in CHAINS {
            let last = chain.cells() - 1;
            assert!(chain.place(last) * UNIT_BYTES < chain.bytes && chain.place(last) <= u32::MAX.into());
            assert_eq!((chain.cell(chain.place(last)), chain.cell(chain.place(5))), (last, 5));
        }
    }

    #[test]
    fn a_chase_ends_where_it_must() {
        let mut memory = vec![0u64; (64 << 10) / 8];
        // SAFETY: nobody else uses the vector's memory while the cells live.
        let mut cells = unsafe { Cells::new(memory.as_mut_ptr().cast(), 64 << 10) };
        let mut chases = [CHAINS[0], CHAINS[1]].map(Chase::new);
        chases.iter().for_each(|chase| cells.lay(&chase.chain()));
        for chase in &mut chases {
            for steps in [1, 1000, 77_777] {
                assert!(chase.run(&cells, steps).is_ok());
            }
        }
        assert_ne!(chases[0].cell(), chases[1].cell());
        let [one, other] = [5000, 5001].map(|steps| cells.follow(&CHAINS[0], 0, steps).0);
        assert!(one == CHAINS[0].after(0, 5000) && other != one);
    }

    #[test]
    #[should_panic(expected = "wasn't laid")]
    fn what_was_not_laid_is_not_followed() {
        let mut memory = vec![0u64; (16 << 10) / 8];
        // SAFETY: as above.
        let cells = unsafe { Cells::new(memory.as_mut_ptr().cast(), 16 << 10) };
        let _ = Chase::new(CHAINS[0]).run(&cells, 1);
    }
}
