//! Giving frames back when the host asks for them (paper, section 2, provision 5).
//!
//! [`Umpa::release`] takes them from where it costs the program least, and goes on only as far as the
//! severity allows:
//!
//! | from | advise | need | demand | costs the program |
//! | --- | --- | --- | --- | --- |
//! | lookaside: free frames | yes | yes | yes | nothing; the next allocations refill |
//! | retained: freed windows that are still mapped, frames that wait for a flush | | yes | yes | one flush, their entries when they are wanted again |
//! | discardable: what the program has registered | | | yes | its content |
//!
//! Everything goes in one drain at the end: one exchange for each 128 runs of frames. What is taken
//! beyond the amount (a block is discarded as a whole) stays in the lookaside.
//!
//! # Discardable blocks
//!
//! A range of a window (made by `userpage_reserve`, say) is registered with a priority
//! ([`Umpa::make_discardable`]); the lowest goes first, of equals the lowest address. A discarded range
//! has lost its frames, as by `userpage_release`: its addresses stay the block's, touching it is a page
//! fault, [`Umpa::is_discarded`] says so, and [`Umpa::restore`] backs it again (with whatever the
//! frames held) and makes it discardable again. A range that is freed, cut off or moved by a
//! reallocation is registered no more. `swap` exchanges contents, not registrations. A block of rung a
//! and a cover can't be discarded: their addresses are their frames'.
//!
//! Invariants ([`Umpa::check`]): registered ranges are sorted, disjoint, and lie in live windows.
//!
//! Cost: a registration moves the ones behind it (32 bytes each, in memory that was handed in); one free
//! or reallocation of a window looks them up in logarithmic time; each discarded range looks at all.

use crate::blocks::{BlockError, Machine, Umpa};
use umpa_abi::addr::{Gva, PAGE_BYTES, Page};
use umpa_abi::exchange::Shortfall;
use umpa_abi::upcall::Severity;

/// A range that may be discarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Discardable {
    gva: Gva,
    bytes: u64,
    priority: u8,
    is_discarded: bool,
}

impl Discardable {
    /// No range: what memory for the registry is filled with.
    pub const EMPTY: Self = Self { gva: Gva::new(0), bytes: 0, priority: 0, is_discarded: false };

    /// Its start.
    #[must_use]
    pub const fn gva(&self) -> Gva {
        self.gva
    }

    /// Its length.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The lowest is discarded first.
    #[must_use]
    pub const fn priority(&self) -> u8 {
        self.priority
    }

    /// It has lost its content.
    #[must_use]
    pub const fn is_discarded(&self) -> bool {
        self.is_discarded
    }

    fn end(&self) -> u64 {
        self.gva.get() + self.bytes
    }
}

/// Why a range isn't registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegisterError {
    /// Not a range of whole pages in a window, or in a block that can't be discarded.
    Block(BlockError),
    /// Part of it is registered.
    Overlaps {
        /// The range that is there already.
        with: Discardable,
    },
    /// No room for one more.
    Full {
        /// How many there are.
        ranges: usize,
    },
}

/// What came of a request for frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Released {
    /// Frames given back.
    pub frames: u64,
    /// Those of them that were free.
    pub lookaside_frames: u64,
    /// That were in freed windows or waited for a flush.
    pub retained_frames: u64,
    /// That were in discarded ranges.
    pub discarded_frames: u64,
    /// Why the hypervisor didn't take them all, if so: then the sum of the three is more than
    /// [`frames`](Self::frames), and the rest is in the lookaside.
    pub shortfall: Shortfall,
}

/// The registered ranges, by address.
#[derive(Debug, Default)]
pub(crate) struct Registry<'a> {
    memory: &'a mut [Discardable],
    len: usize,
}

impl Registry<'_> {
    fn ranges(&self) -> &[Discardable] {
        &self.memory[..self.len]
    }

    /// The first range that ends behind `at`.
    fn first_behind(&self, at: u64) -> usize {
        self.ranges().partition_point(|range| range.end() <= at)
    }

    fn insert(&mut self, range: Discardable) -> Result<(), RegisterError> {
        let index = self.first_behind(range.gva.get());
        if let Some(&with) = self.ranges().get(index).filter(|next| next.gva.get() < range.end()) {
            return Err(RegisterError::Overlaps { with });
        }
        if self.len == self.memory.len() {
            return Err(RegisterError::Full { ranges: self.len });
        }
        self.memory.copy_within(index..self.len, index + 1);
        self.memory[index] = range;
        self.len += 1;
        Ok(())
    }

    /// Forgets the ranges that reach into `pages` pages from `first` on.
    fn forget(&mut self, first: Page, pages: u64) {
        if self.len == 0 {
            return;
        }
        let (start, end) = (first.start().get(), first.start().get() + pages * PAGE_BYTES);
        let from = self.first_behind(start);
        let to = self.ranges().partition_point(|range| range.gva.get() < end);
        if from < to {
            self.memory.copy_within(to..self.len, from);
            self.len -= to - from;
        }
    }

    fn at(&self, gva: Gva) -> Option<usize> {
        self.ranges().binary_search_by_key(&gva, |range| range.gva).ok()
    }

    /// The range that is discarded next, after the one with this priority and index.
    fn next(&self, after: Option<(u8, usize)>) -> Option<(u8, usize)> {
        let ranges = self.ranges().iter().enumerate().filter(|(_, range)| !range.is_discarded);
        ranges.map(|(index, range)| (range.priority, index)).filter(|&key| Some(key) > after).min()
    }
}

impl<'a, M: Machine> Umpa<'a, M> {
    /// Keeps discardable ranges in `memory`, as many as it has room for; before that none. Those in
    /// an earlier memory are forgotten, which is returned.
    pub fn keep_discardables(&mut self, memory: &'a mut [Discardable]) -> &'a mut [Discardable] {
        core::mem::replace(&mut self.discardables, Registry { memory, len: 0 }).memory
    }

    /// The registered ranges, by address.
    #[must_use]
    pub fn discardables(&self) -> &[Discardable] {
        self.discardables.ranges()
    }

    /// Lets `[gva, gva + bytes)` be discarded on demand. The range lies in a window.
    ///
    /// # Errors
    /// [`RegisterError`], and nothing is registered.
    pub fn make_discardable(&mut self, gva: Gva, bytes: u64, priority: u8) -> Result<(), RegisterError> {
        if self.window_range(gva, bytes).map_err(RegisterError::Block)?.is_none() {
            return Err(RegisterError::Block(BlockError::Pinned { gva }));
        }
        self.discardables.insert(Discardable { gva, bytes, priority, is_discarded: false })
    }

    /// Takes that back for the range that begins at `gva`, which is returned; it may be discarded already.
    pub fn make_indispensable(&mut self, gva: Gva) -> Option<Discardable> {
        let index = self.discardables.at(gva)?;
        let range = self.discardables.ranges()[index];
        self.discardables.forget(gva.containing(), 1);
        Some(range)
    }

    /// True when `gva` lies in a range that was discarded.
    #[must_use]
    pub fn is_discarded(&self, gva: Gva) -> bool {
        let next = self.discardables.ranges().get(self.discardables.first_behind(gva.get()));
        next.is_some_and(|range| range.gva <= gva && range.is_discarded)
    }

    /// Backs the discarded range that begins at `gva`; returns the frames added. Its content is whatever
    /// they held. A range that wasn't discarded stays as it is.
    ///
    /// # Errors
    /// [`BlockError::NotABlock`] where no registered range begins; those of `userpage_commit`, and the
    /// range stays discarded.
    pub fn restore(&mut self, gva: Gva) -> Result<u64, BlockError> {
        let index = self.discardables.at(gva).ok_or(BlockError::NotABlock { gva })?;
        let Discardable { bytes, is_discarded, .. } = self.discardables.ranges()[index];
        if !is_discarded {
            return Ok(0);
        }
        let frames = self.userpage_commit(gva, bytes)?;
        self.discardables.memory[index].is_discarded = false;
        Ok(frames)
    }

    /// Gives up to `frames` frames back to the hypervisor, by the policy of the [module](self). `gone` is
    /// told of each range that was discarded.
    pub fn release(
        &mut self,
        severity: Severity,
        frames: u64,
        gone: &mut dyn FnMut(&Discardable),
    ) -> Released {
        let found = |umpa: &Self| umpa.frames.free_frames().min(frames);
        let lookaside_frames = found(self);
        if severity >= Severity::Need && lookaside_frames < frames {
            self.reclaim(frames);
        }
        let retained_frames = found(self) - lookaside_frames;
        if severity >= Severity::Demand && lookaside_frames + retained_frames < frames {
            self.discard(frames, gone);
        }
        let discarded_frames = found(self) - lookaside_frames - retained_frames;
        let moved = self.drain(frames);
        Released {
            frames: moved.frames,
            lookaside_frames,
            retained_frames,
            discarded_frames,
            shortfall: moved.shortfall,
        }
    }

    /// Discards ranges until `frames` frames are free, or none is left.
    fn discard(&mut self, frames: u64, gone: &mut dyn FnMut(&Discardable)) {
        let mut last = None;
        while self.frames.free_frames() + self.frames.quarantined_frames() < frames {
            last = self.discardables.next(last);
            let Some((_, index)) = last else { break };
            let Discardable { gva, bytes, .. } = self.discardables.ranges()[index];
            // One that has no frames, or can't be unmapped for want of a table, is passed over.
            if !self.userpage_release(gva, bytes).is_ok_and(|frames| frames > 0) {
                continue;
            }
            self.discardables.memory[index].is_discarded = true;
            gone(&self.discardables.memory[index]);
        }
        if self.frames.quarantined_frames() > 0 {
            self.settle();
        }
    }

    /// Pages that are no block's any more, or of another one.
    pub(crate) fn forget_discardables(&mut self, first: Page, pages: u64) {
        self.discardables.forget(first, pages);
    }

    /// Asserts the invariants of the [module](self).
    pub(crate) fn check_discardables(&self) {
        let ranges = self.discardables.ranges();
        assert!(ranges.windows(2).all(|two| two[0].end() <= two[1].gva.get()), "{ranges:?}");
        for range in ranges {
            let window = self.window_range(range.gva, range.bytes);
            assert!(matches!(window, Ok(Some(_))), "{range:?} isn't in a window: {window:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(page: u64, pages: u64, priority: u8) -> Discardable {
        let gva = Page::new(page).start();
        Discardable { gva, bytes: pages * PAGE_BYTES, priority, is_discarded: false }
    }

    #[test]
    fn ranges_are_kept_by_address_and_disjoint() {
        let mut memory = [Discardable::EMPTY; 3];
        let mut registry = Registry { memory: &mut memory, len: 0 };
        for page in [20, 10, 30] {
            registry.insert(range(page, 10, page as u8)).unwrap();
        }
        assert_eq!(registry.ranges(), [range(10, 10, 10), range(20, 10, 20), range(30, 10, 30)]);
        let with = range(20, 10, 20);
        for (page, pages) in [(20, 1), (29, 1), (25, 100)] {
            assert_eq!(registry.insert(range(page, pages, 0)), Err(RegisterError::Overlaps { with }));
        }
        assert_eq!(registry.insert(range(40, 1, 0)), Err(RegisterError::Full { ranges: 3 }));
        assert_eq!((registry.at(range(20, 1, 0).gva), registry.at(range(21, 1, 0).gva)), (Some(1), None));
        registry.forget(Page::new(19), 1);
        assert_eq!(registry.ranges(), [range(20, 10, 20), range(30, 10, 30)]);
        registry.forget(Page::new(0), 20);
        registry.forget(Page::new(40), 20);
        assert_eq!(registry.ranges().len(), 2);
        registry.forget(Page::new(29), 2);
        assert_eq!(registry.ranges(), []);
    }

    #[test]
    fn the_lowest_priority_goes_first() {
        let mut memory = [Discardable::EMPTY; 4];
        let mut registry = Registry { memory: &mut memory, len: 0 };
        for (page, priority) in [(10, 7), (20, 3), (30, 7), (40, 0)] {
            registry.insert(range(page, 1, priority)).unwrap();
        }
        registry.memory[1].is_discarded = true;
        let order = core::iter::successors(registry.next(None), |&last| registry.next(Some(last)));
        assert!(order.eq([(0, 3), (7, 0), (7, 2)]));
    }
}
