//! The orders of `appel1` and `appel2` (Appel and Li, *Virtual Memory Primitives for User Programs*, ASPLOS 1991),
//! natively and in guests:
//!
//! - `appel1` (prot1, trap, unprot): a store to a protected page; the handler protects another page and lets the
//!   store through.
//! - `appel2` (protN, trap, unprot): all pages are protected at once, then there is a store to each; the handler lets
//!   it through.

/// Pages, and how many are protected at once.
pub const PAGES: u64 = 100;
/// Traps of a sample of `appel1`.
pub const TRAPS: u64 = 100;

/// No two pages that follow each other are neighbours.
const STEP: u64 = 37;

/// All pages once, then again, the first one last.
#[derive(Clone, Copy, Debug)]
pub struct Order(u64);

impl Order {
    /// Behind page 0.
    #[must_use]
    pub const fn new() -> Self {
        Self(0)
    }

    /// The page that comes next.
    pub const fn advance(&mut self) -> u64 {
        self.0 = (self.0 + STEP) % PAGES;
        self.0
    }
}

impl Default for Order {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec::Vec;

    #[test]
    fn every_page_comes_once_and_the_first_one_last() {
        let mut order = Order::new();
        let mut seen: Vec<u64> = (0..PAGES).map(|_| order.advance()).collect();
        assert_eq!(seen.last(), Some(&0));
        assert!(seen.windows(2).all(|pair| pair[0].abs_diff(pair[1]) > 1));
        seen.sort_unstable();
        assert_eq!(seen, (0..PAGES).collect::<Vec<_>>());
    }
}
