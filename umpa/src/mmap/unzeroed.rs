//! Which addresses a batch has mapped to frames that aren't zeroed yet.
//!
//! Nobody looks before the batch's completion, so frames are zeroed at its end, and those that were
//! unmapped again aren't. Leaves are marked ([`Entry::unzeroed`](crate::entry::Entry)); the mark goes
//! where the leaf goes, and with it when it is taken away. Here is where to look for marks:
//!
//! - each marked leaf lies in one of the ranges.
//!
//! Ranges less than 2 MiB apart are one, so that looking through them costs at most two leaf tables
//! for each time one was added. When there is no place for one more, memory is zeroed at once.

use umpa_abi::addr::PageSize;

/// Ranges told apart.
const RANGES: usize = 16;

/// Pages between ranges that are made one.
const NEAR: u64 = PageSize::Size2M.frames();

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Unzeroed {
    /// First pages, and those after the last.
    ranges: [(u64, u64); RANGES],
    len: usize,
}

impl Unzeroed {
    /// Nothing is to be zeroed.
    pub(crate) const fn new() -> Self {
        Self { ranges: [(0, 0); RANGES], len: 0 }
    }

    /// Where marked leaves may be.
    pub(super) fn ranges(&self) -> &[(u64, u64)] {
        &self.ranges[..self.len]
    }

    /// True when no leaf is marked.
    pub(crate) const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// True when a leaf of the range may be marked.
    pub(super) fn touches(&self, page: u64, pages: u64) -> bool {
        self.ranges().iter().any(|&(start, end)| start < page + pages && page < end)
    }

    /// Leaves of the range may be marked from now on; false where there is no place to note that.
    pub(super) fn add(&mut self, page: u64, pages: u64) -> bool {
        let near = |&(start, end): &(u64, u64)| start <= page + pages + NEAR && page <= end + NEAR;
        if let Some(at) = self.ranges().iter().position(near) {
            let (start, end) = &mut self.ranges[at];
            (*start, *end) = ((*start).min(page), (*end).max(page + pages));
            return true;
        }
        let room = self.len < RANGES;
        if room {
            self.ranges[self.len] = (page, page + pages);
            self.len += 1;
        }
        room
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_ranges_are_one_and_far_ones_are_few() {
        let mut owed = Unzeroed::new();
        assert!(owed.is_empty() && owed.add(10_000, 8) && owed.add(9_000, 500) && owed.add(10_200, 1));
        assert_eq!(owed.ranges(), [(9_000, 10_201)]);
        assert!(owed.touches(9_600, 1) && owed.touches(10_200, 9) && !owed.touches(10_201, 9));
        assert!(!owed.touches(8_990, 10));
        assert!((1..16).all(|at| owed.add(at * 100_000, 1)) && !owed.add(16 * 100_000, 1));
        assert!(owed.add(15 * 100_000 + 513, 5) && !owed.add(15 * 100_000 + 518 + 513, 1));
    }
}
