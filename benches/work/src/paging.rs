//! Accesses to a working set that doesn't fit: most of them to few of its pages.
//!
//! The 80/20 rule at every scale: four of five accesses go to a fifth of the pages, and four of five of
//! those to a fifth of that fifth … (self-similar, Gray and others, *Quickly Generating Billion-Record
//! Synthetic Databases*, SIGMOD 1994, section 4); or once only, with all pages of the fifth alike. Where
//! the hot pages lie is scattered over the whole set.
//!
//! Each page holds a count in one of its words, which a write advances, and words that depend on the
//! page: so every access checks what it reads, and a page that came back as it was some time ago is
//! found out.

use fastrand::Rng;

/// How accesses are spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spread {
    /// 80 of 100 accesses to 20 of 100 pages, all alike, and the others to the others.
    Flat,
    /// The same within the hot part, and within its hot part, as long as there are five pages.
    SelfSimilar,
    /// All pages alike.
    Uniform,
}

/// One access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Touch {
    /// The page.
    pub page: u64,
    /// A write; else a read.
    pub write: bool,
}

/// The endless sequence of accesses to `pages` pages.
#[derive(Clone, Debug)]
pub struct Touches {
    rng: Rng,
    pages: u64,
    step: u64,
    spread: Spread,
    writes_of_100: u32,
}

impl Touches {
    /// From the seed's start.
    #[must_use]
    pub fn new(seed: u64, pages: u64, spread: Spread, writes_of_100: u32) -> Self {
        let pages = pages.max(1);
        // Ranks go to places a golden section apart: neighbours in heat aren't neighbours in place.
        let mut step = pages / 5 * 3 + pages / 55 + 1;
        while greatest_common_divisor(step, pages) != 1 {
            step += 1;
        }
        Self { rng: Rng::with_seed(seed), pages, step, spread, writes_of_100 }
    }

    fn rank(&mut self) -> u64 {
        let (mut first, mut pages) = (0, self.pages);
        loop {
            let hot = pages / 5;
            if hot == 0 || self.spread == Spread::Uniform {
                break;
            }
            let is_hot = self.rng.u32(0..100) < 80;
            (first, pages) = if is_hot { (first, hot) } else { (first + hot, pages - hot) };
            if !is_hot || self.spread == Spread::Flat {
                break;
            }
        }
        first + self.rng.u64(0..pages)
    }
}

impl Iterator for Touches {
    type Item = Touch;

    fn next(&mut self) -> Option<Touch> {
        let rank = self.rank();
        let page = (u128::from(rank) * u128::from(self.step) % u128::from(self.pages)) as u64;
        Some(Touch { page, write: self.rng.u32(0..100) < self.writes_of_100 })
    }
}

const fn greatest_common_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec;

    #[test]
    fn four_of_five_accesses_go_to_a_fifth_of_the_pages() {
        for spread in [Spread::Flat, Spread::SelfSimilar] {
            let mut counts = vec![0u64; 1000];
            for touch in Touches::new(7, 1000, spread, 30).take(100_000) {
                counts[touch.page as usize] += 1;
            }
            counts.sort_unstable_by(|a, b| b.cmp(a));
            let hot: u64 = counts[..200].iter().sum();
            assert!((79_000..82_500).contains(&hot), "{spread:?}: {hot}");
            assert!(counts[999] > 0, "every page is used");
        }
    }

    #[test]
    fn sequences_repeat_and_few_pages_are_fine() {
        let some = |seed| Touches::new(seed, 777, Spread::Flat, 50).take(100);
        assert!(some(3).eq(some(3)) && !some(3).eq(some(4)));
        assert_eq!(some(3).filter(|touch| touch.write).count() / 30, 1);
        for pages in [0, 1, 2, 4, 5, 6] {
            assert!(Touches::new(1, pages, Spread::SelfSimilar, 0).take(50).all(|t| t.page < pages.max(1)));
        }
    }
}
