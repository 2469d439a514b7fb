//! Block sizes from a seed: the same on every side that takes the same parameters.

use crate::bins;
use crate::params::Params;
use fastrand::Rng;

/// How sizes are drawn between the bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SizeLaw {
    /// Every size equally likely, as in the paper. Half of all blocks are then in the last bin, a
    /// quarter in the one before: of 4,000 blocks up to 8 MiB about two are in the bin of 8 KiB.
    Paper,
    /// Every bin equally likely, and every size within a bin: log-uniform by steps of two, so that
    /// small bins have as many operations as large ones.
    Log,
}

impl SizeLaw {
    /// `paper` or `log`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Paper => "paper",
            Self::Log => "log",
        }
    }

    /// The law with this name.
    #[must_use]
    pub fn from_name(name: &[u8]) -> Option<Self> {
        [Self::Paper, Self::Log].into_iter().find(|law| law.name().as_bytes() == name)
    }
}

/// The endless sequence of sizes that a set of parameters stands for.
#[derive(Clone, Debug)]
pub struct Sizes {
    rng: Rng,
    law: SizeLaw,
    min_bytes: u64,
    max_bytes: u64,
}

impl Sizes {
    /// The sequence from its start.
    #[must_use]
    pub fn new(params: &Params) -> Self {
        Self {
            rng: Rng::with_seed(params.seed),
            law: params.sizes,
            min_bytes: params.min_bytes,
            max_bytes: params.max_bytes.max(params.min_bytes),
        }
    }

    /// The next size, in bytes.
    pub fn next_bytes(&mut self) -> u64 {
        let (low_bytes, high_bytes) = match self.law {
            SizeLaw::Paper => (self.min_bytes, self.max_bytes),
            SizeLaw::Log => {
                let bin = self.rng.usize(bins::index(self.min_bytes)..=bins::index(self.max_bytes));
                let below_bytes = if bin == 0 { 0 } else { bins::bin_bytes(bin - 1) };
                (self.min_bytes.max(below_bytes + 1), self.max_bytes.min(bins::bin_bytes(bin)))
            }
        };
        self.rng.u64(low_bytes..=high_bytes)
    }
}

impl Iterator for Sizes {
    type Item = u64;
    fn next(&mut self) -> Option<u64> {
        Some(self.next_bytes())
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec::Vec;

    fn first(params: &Params, count: usize) -> Vec<u64> {
        Sizes::new(params).take(count).collect()
    }

    /// Numbers published for a seed stay comparable: a new generator would be another work.
    #[test]
    fn the_sizes_of_seed_1_are_pinned() {
        assert_eq!(first(&Params::PAPER, 6), PINNED_PAPER);
        assert_eq!(first(&Params { sizes: SizeLaw::Log, ..Params::PAPER }, 6), PINNED_LOG);
    }
    const PINNED_PAPER: [u64; 6] = [5513052, 4486590, 2013320, 6534521, 85257, 6553076];
    const PINNED_LOG: [u64; 6] = [402291, 14573, 4096, 1938223, 305631, 4096];

    #[test]
    fn the_seed_decides() {
        assert_eq!(first(&Params::PAPER, 1000), first(&Params::PAPER, 1000));
        assert_ne!(first(&Params::PAPER, 6), first(&Params { seed: 2, ..Params::PAPER }, 6));
    }

    #[test]
    fn sizes_stay_within_their_bounds() {
        for sizes in [SizeLaw::Paper, SizeLaw::Log] {
            for (min_bytes, max_bytes) in [(4096, 8 << 20), (5000, 6000), (4096, 4096), (1, 1 << 30)] {
                let params = Params { min_bytes, max_bytes, sizes, ..Params::PAPER };
                assert!(first(&params, 2000).iter().all(|b| (min_bytes..=max_bytes).contains(b)));
            }
        }
    }

    #[test]
    fn the_log_law_fills_every_bin() {
        let mut ops = [0; bins::BINS];
        for bytes in first(&Params { sizes: SizeLaw::Log, ..Params::PAPER }, 4000) {
            ops[bins::index(bytes)] += 1;
        }
        assert!(ops[..12].iter().all(|&ops| ops > 250), "{ops:?}");
        assert!(ops[12..].iter().all(|&ops| ops == 0), "{ops:?}");
    }
}
