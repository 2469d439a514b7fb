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

use crate::raw::WORDS;
pub use crate::raw::Words;
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

/// What a word of a page holds that was never written to after the start.
const fn initial(page: u64, word: u64) -> u64 {
    (page * WORDS + word + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// The word of a page that counts its writes.
const fn counter(page: u64) -> u64 {
    page % WORDS
}

/// A word that isn't what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// The page.
    pub page: u64,
    /// The word in it.
    pub word: u64,
    /// What is there.
    pub found: u64,
    /// What should be.
    pub expected: u64,
}

/// The working set, and how often each page was written to (kept elsewhere).
#[derive(Debug)]
pub struct Paging<'a> {
    words: Words,
    writes: &'a mut [u32],
}

impl<'a> Paging<'a> {
    /// On the pages of `words`, one number for each.
    ///
    /// # Panics
    /// When there are fewer numbers than pages.
    #[must_use]
    pub fn new(words: Words, writes: &'a mut [u32]) -> Self {
        assert!(writes.len() as u64 >= words.pages(), "{} numbers", writes.len());
        Self { words, writes }
    }

    /// Writes all words of all pages, one page after another.
    pub fn fill(&mut self) {
        self.writes.fill(0);
        for page in 0..self.words.pages() {
            (0..WORDS).for_each(|word| self.words.write(page, word, initial(page, word)));
        }
    }

    /// Makes the next `count` accesses. Each checks two words: the page's counter, and one that isn't
    /// written to. Returns a sum that says which pages were read, in which order.
    ///
    /// # Errors
    /// The first [`Wrong`] word.
    pub fn go(&mut self, touches: &mut Touches, count: u64) -> Result<u64, Wrong> {
        let mut sum = 0u64;
        for touch in touches.take(count as usize) {
            let page = touch.page;
            let word = counter(page);
            let found = self.check(page, word)?;
            self.check(page, (word + 1) % WORDS)?;
            let writes = self.writes[page as usize];
            sum = sum.rotate_left(1) ^ found.wrapping_sub(writes.into());
            if touch.write {
                let writes = &mut self.writes[page as usize];
                *writes = writes.wrapping_add(1);
                self.words.write(page, word, initial(page, word).wrapping_add(u64::from(*writes)));
            }
        }
        Ok(sum)
    }

    /// Reads all words of all pages, one page after another.
    ///
    /// # Errors
    /// The first [`Wrong`] word.
    pub fn check_all(&mut self) -> Result<(), Wrong> {
        for page in 0..self.words.pages() {
            for word in 0..WORDS {
                self.check(page, word)?;
            }
        }
        Ok(())
    }

    fn check(&self, page: u64, word: u64) -> Result<u64, Wrong> {
        let writes = if word == counter(page) { self.writes[page as usize].into() } else { 0 };
        let expected = initial(page, word).wrapping_add(writes);
        let found = self.words.read(page, word);
        if found == expected { Ok(found) } else { Err(Wrong { page, word, found, expected }) }
    }
}

const fn greatest_common_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

#[cfg(test)]
#[allow(unsafe_code, reason = "a working set in a vector")]
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
    fn a_word_that_is_wrong_is_found() {
        let mut memory = vec![0u64; 8 * WORDS as usize];
        let mut writes = vec![0; 8];
        // SAFETY: the vector lives to the end, and is used by nobody else meanwhile.
        let words = unsafe { Words::new(memory.as_mut_ptr(), 8) };
        let mut work = Paging::new(words, &mut writes);
        work.fill();
        let mut touches = Touches::new(1, 8, Spread::Uniform, 50);
        work.go(&mut touches, 1000).unwrap();
        work.check_all().unwrap();
        let old = work.words.read(5, counter(5));
        work.words.write(5, counter(5), old - 1);
        let wrong = Wrong { page: 5, word: counter(5), found: old - 1, expected: old };
        assert_eq!((work.check_all(), work.go(&mut touches, 100)), (Err(wrong), Err(wrong)));
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
