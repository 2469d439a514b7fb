//! Where something is left to do, in a few ranges of pages.
//!
//! Two things are put off. In a batch nobody looks before its completion, so frames are zeroed at its
//! end, and those that were unmapped again aren't. Leaves are marked ([`Entry::unzeroed`]); the mark goes
//! where the leaf goes, and with it when it is taken away. And leaf tables that unmappings leave empty are
//! taken away before the next flush only: to do so is a store above the leaves, a trap where tables are
//! shadowed. Here is where to look:
//!
//! - each marked leaf lies in one of the ranges of the one kind;
//! - each table that an unmapping has left empty since the last flush lies in one of the other kind.
//!
//! Ranges less than 2 MiB apart are one, so that looking through them costs at most two leaf tables
//! for each time one was added. When there is no place for one more, the work is done at once.

#[cfg(doc)]
use crate::entry::Entry;
use umpa_abi::addr::PageSize;

/// Ranges told apart.
const RANGES: usize = 16;

/// Pages between ranges that are made one.
const NEAR: u64 = PageSize::Size2M.frames();

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Ranges {
    /// First pages, and those after the last.
    ranges: [(u64, u64); RANGES],
    len: usize,
}

impl Ranges {
    /// Nothing is left to do.
    pub(crate) const fn new() -> Self {
        Self { ranges: [(0, 0); RANGES], len: 0 }
    }

    /// The ranges: first page, and the one after the last.
    pub(crate) fn ranges(&self) -> &[(u64, u64)] {
        &self.ranges[..self.len]
    }

    /// True when nothing is left to do.
    pub(crate) const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// True when something is left to do in the range.
    pub(super) fn touches(&self, page: u64, pages: u64) -> bool {
        self.ranges().iter().any(|&(start, end)| start < page + pages && page < end)
    }

    /// Something is left to do in the range; false where there is no place to note that.
    pub(crate) fn add(&mut self, page: u64, pages: u64) -> bool {
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
        let mut owed = Ranges::new();
        assert!(owed.is_empty() && owed.add(10_000, 8) && owed.add(9_000, 500) && owed.add(10_200, 1));
        assert_eq!(owed.ranges(), [(9_000, 10_201)]);
        assert!(owed.touches(9_600, 1) && owed.touches(10_200, 9) && !owed.touches(10_201, 9));
        assert!(!owed.touches(8_990, 10));
        assert!((1..16).all(|at| owed.add(at * 100_000, 1)) && !owed.add(16 * 100_000, 1));
        assert!(owed.add(15 * 100_000 + 513, 5) && !owed.add(15 * 100_000 + 518 + 513, 1));
    }
}
