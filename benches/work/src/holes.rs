//! Heaps full of holes: the sizes, and what is freed, for all heaps that are compared.
//!
//! [`Pieces`]: blocks fill a memory, every other one is freed, and then a block is asked for that is larger
//! than each hole and smaller than all of them: the five diagrams of A. Stone's *The Hole That dlmalloc
//! Can't Fill*, of 10 MiB and a block of 2 MiB.
//!
//! [`Thinning`]: a heap grows by many small blocks, most of them are freed, and then blocks come and go
//! while their number stays the same: what the GNOME project's *NewAlloc* is about.

use fastrand::Rng;

/// Memory of the diagrams.
pub const MEMORY_BYTES: u64 = 10 << 20;

/// Blocks that fill a memory.
#[derive(Clone, Debug)]
pub struct Pieces {
    rng: Rng,
    memory_bytes: u64,
}

impl Pieces {
    /// Most blocks that there are room for.
    pub const MAX: usize = 64;

    /// For so much memory.
    #[must_use]
    pub fn new(memory_bytes: u64, seed: u64) -> Self {
        Self { rng: Rng::with_seed(seed), memory_bytes }
    }

    /// Bytes of the next block: a hundredth to a ninth of the memory.
    pub fn next_bytes(&mut self) -> usize {
        self.rng.u64(self.memory_bytes / 100..self.memory_bytes / 9) as usize
    }

    /// Bytes of the smallest block worth having: when no such one can be had, the memory is full.
    #[must_use]
    pub const fn least_bytes(&self) -> usize {
        (self.memory_bytes / 400) as usize
    }

    /// Whether the block with that number is freed.
    #[must_use]
    pub const fn is_freed(number: usize) -> bool {
        number % 2 == 1
    }

    /// The block that doesn't fit in any hole: a fifth of the memory.
    #[must_use]
    pub const fn wanted_bytes(&self) -> usize {
        (self.memory_bytes / 5) as usize
    }
}

/// Blocks that come and go.
#[derive(Clone, Debug)]
pub struct Thinning {
    rng: Rng,
    slots: usize,
}

impl Thinning {
    /// For so many blocks at most.
    #[must_use]
    pub fn new(slots: usize, seed: u64) -> Self {
        Self { rng: Rng::with_seed(seed), slots }
    }

    /// Bytes of the next block: most are small, some are of a few pages.
    pub fn next_bytes(&mut self) -> usize {
        match self.rng.u8(0..32) {
            0 => self.rng.usize(4096..20_000),
            1..6 => self.rng.usize(512..4096),
            _ => self.rng.usize(16..512),
        }
    }

    /// Whether the block in a slot stays when most are freed: one in twelve of the first half, every second
    /// of the other. So a heap that was filled in order has a thin half and a denser one.
    #[must_use]
    pub const fn stays(&self, slot: usize) -> bool {
        let mixed = (slot as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        mixed.is_multiple_of(if slot < self.slots / 2 { 12 } else { 2 })
    }

    /// The slot whose block is replaced next: one of those that stay.
    ///
    /// # Panics
    /// When there are so few slots that none stays.
    pub fn next_slot(&mut self) -> usize {
        let start = self.rng.usize(0..self.slots);
        let all = (start..self.slots).chain(0..start);
        all.into_iter().find(|&slot| self.stays(slot)).expect("a slot that stays")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is freed is more than what is wanted, and no two neighbours make room for it.
    #[test]
    fn holes_are_too_small_and_enough() {
        for seed in 0..100 {
            let mut pieces = Pieces::new(MEMORY_BYTES, seed);
            let (mut bytes, mut number, mut freed, mut largest) = (0, 0, 0, 0);
            while bytes < MEMORY_BYTES as usize * 95 / 100 {
                let piece = pieces.next_bytes();
                assert!(piece >= pieces.least_bytes());
                if Pieces::is_freed(number) {
                    freed += piece;
                    largest = largest.max(piece);
                }
                (bytes, number) = (bytes + piece, number + 1);
            }
            assert!(number <= Pieces::MAX, "{number} blocks");
            assert!(largest < pieces.wanted_bytes() && freed > pieces.wanted_bytes(), "{largest}, {freed}");
        }
    }

    #[test]
    fn one_half_is_thin() {
        let slots = 80_000;
        let mut thinning = Thinning::new(slots, 1);
        let staying = |from: usize, to| (from..to).filter(|&slot| thinning.stays(slot)).count();
        let halves = [staying(0, slots / 2), staying(slots / 2, slots)];
        assert!((3_000..3_700).contains(&halves[0]) && (19_000..21_000).contains(&halves[1]), "{halves:?}");
        let next: [usize; 1000] = core::array::from_fn(|_| thinning.next_slot());
        assert!(next.into_iter().all(|slot| thinning.stays(slot)));
        let bytes: usize = (0..slots).map(|_| thinning.next_bytes()).sum();
        assert!((600..1100).contains(&(bytes / slots)), "{bytes}");
    }
}
