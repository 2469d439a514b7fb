//! Which frames are granted: pure bookkeeping, no memory behind it (that is [`grant`](crate::grant)).
//!
//! Kept: the free frames, as maximal intervals; what isn't free is granted. And, for reports, which
//! frames were taken back at some time.
//!
//! Frames that a device works with are pinned, once for each request: an exchange that gives one back is
//! refused as [`Shortfall::NotYours`], since it is the device's until the request is done.
//!
//! A ledger may draw on a share of a pool: then [`grant`](crate::grant) counts there what it gives and takes.
//!
//! Invariants: intervals are not empty, lie inside `all`, don't touch one another;
//! free frames + granted frames = all frames; pinned frames are granted.
//!
//! Cost of an exchange, with *g* extents given, *w* returned and *i* intervals:
//! O(*g* log *g* + (*g* + *w*) log *i* + *i*). The guest's numbers are only compared, never counted
//! to: asking for 2^64 pages costs what asking for one does.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Range;
use std::sync::Arc;

use umpa_abi::addr::{Frame, PageSize};
use umpa_abi::exchange::{Extent, Policy, Shortfall};

use crate::pool::Share;

/// What an exchange does: first `taken` goes, then `granted` comes. They may overlap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Frames taken back: sorted, not touching one another.
    pub taken: Vec<Range<u64>>,
    /// What is granted, in the order of the reply: largest pages first, then lowest first.
    pub granted: Vec<Extent>,
    /// Why it isn't all that was asked for.
    pub shortfall: Shortfall,
    /// Index of the extent that was refused, with [`Shortfall::NotYours`].
    pub bad_extent: usize,
}

impl Plan {
    const fn nothing(shortfall: Shortfall, bad_extent: usize) -> Self {
        Self { taken: Vec::new(), granted: Vec::new(), shortfall, bad_extent }
    }

    /// Frames taken back.
    #[must_use]
    pub fn taken_frames(&self) -> u64 {
        self.taken.iter().map(frames_in).sum()
    }

    /// Pages granted of 4 KiB, 2 MiB, 1 GiB.
    #[must_use]
    pub fn granted_pages(&self) -> [u64; 3] {
        let mut pages = [0u64; 3];
        for extent in &self.granted {
            if let Some(pages) = pages.get_mut(extent.size() as usize) {
                *pages = pages.saturating_add(extent.count.into());
            }
        }
        pages
    }
}

/// The frames of an extent that was checked when it was decoded.
#[must_use]
pub const fn range(extent: &Extent) -> Range<u64> {
    extent.first..extent.first.saturating_add(extent.frames())
}

/// The frames of one guest.
#[derive(Clone, Debug)]
pub struct Ledger {
    all: Range<u64>,
    /// First frame of each free interval, and the end of it.
    free: BTreeMap<u64, u64>,
    free_frames: u64,
    /// The same for frames that were taken back once, whoever has them now.
    taken_once: BTreeMap<u64, u64>,
    /// Frames that a device works with, and by how many requests.
    pins: BTreeMap<u64, u32>,
    /// What the guest may have of a pool.
    share: Option<Arc<Share>>,
}

/// Who has a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The guest.
    Guest,
    /// The host: the guest has given it back.
    GivenBack,
    /// The host: the guest never had it.
    NeverGranted,
    /// Nobody: there is no memory.
    Outside,
}

impl Ledger {
    /// `frames` frames from `first`, none granted.
    #[must_use]
    pub fn new(first: Frame, frames: u64) -> Self {
        let all = first.get()..first.get().saturating_add(frames);
        let free = if frames == 0 { BTreeMap::new() } else { BTreeMap::from([(all.start, all.end)]) };
        Self {
            all,
            free,
            free_frames: frames,
            taken_once: BTreeMap::new(),
            pins: BTreeMap::new(),
            share: None,
        }
    }

    /// The same, whose frames count against a share of a pool. Drop it after the guest's memory.
    #[must_use]
    pub fn drawing_on(self, share: Share) -> Self {
        Self { share: Some(Arc::new(share)), ..self }
    }

    /// The guest's share of a pool, if it has one.
    #[must_use]
    pub const fn share(&self) -> Option<&Arc<Share>> {
        self.share.as_ref()
    }

    /// Frames that can still be granted.
    #[must_use]
    pub const fn free_frames(&self) -> u64 {
        self.free_frames
    }

    /// Frames that are granted.
    #[must_use]
    pub const fn granted_frames(&self) -> u64 {
        self.all.end.saturating_sub(self.all.start).saturating_sub(self.free_frames)
    }

    /// True if every frame of the range is granted.
    #[must_use]
    pub fn is_granted(&self, frames: Range<u64>) -> bool {
        let inside =
            frames.start >= self.all.start && frames.end <= self.all.end && frames.start < frames.end;
        let last_free = self.free.range(..frames.end).next_back();
        inside && last_free.is_none_or(|(_, &end)| end <= frames.start)
    }

    /// Keeps a granted frame from being given back, until [`unpin`](Self::unpin) as often. False, and
    /// nothing is pinned, if it isn't granted.
    #[must_use]
    pub fn pin(&mut self, frame: Frame) -> bool {
        let number = frame.get();
        let granted = self.is_granted(number..number.saturating_add(1));
        if granted {
            // The device has at most a queue of requests.
            let pins = self.pins.entry(number).or_default();
            *pins = pins.saturating_add(1);
        }
        granted
    }

    /// Undoes one [`pin`](Self::pin).
    pub fn unpin(&mut self, frame: Frame) {
        if let Entry::Occupied(mut pins) = self.pins.entry(frame.get()) {
            *pins.get_mut() = pins.get().saturating_sub(1);
            if *pins.get() == 0 {
                pins.remove();
            }
        }
    }

    /// Who has a frame.
    #[must_use]
    pub fn owner(&self, frame: Frame) -> Owner {
        let number = frame.get();
        let taken = self.taken_once.range(..=number).next_back().is_some_and(|(_, &end)| number < end);
        if !self.all.contains(&number) {
            Owner::Outside
        } else if self.is_granted(number..number.saturating_add(1)) {
            Owner::Guest
        } else if taken {
            Owner::GivenBack
        } else {
            Owner::NeverGranted
        }
    }

    /// Checks `give`, takes it, and finds `want_pages` (4 KiB, 2 MiB, 1 GiB) in at most `extents_max`
    /// extents. The ledger has changed as the plan says; [`undo`](Self::undo) changes it back.
    ///
    /// With [`Policy::AllOrNothing`], or an extent that isn't the guest's, a plan that falls short is
    /// empty.
    pub fn exchange(
        &mut self,
        give: &[Extent],
        want_pages: [u64; 3],
        policy: Policy,
        extents_max: usize,
    ) -> Plan {
        let taken = match self.check_given(give) {
            Ok(taken) => taken,
            Err(bad_extent) => return Plan::nothing(Shortfall::NotYours, bad_extent),
        };
        for range in &taken {
            self.put(range.clone());
        }
        let mut plan = Plan { taken, granted: Vec::new(), shortfall: Shortfall::None, bad_extent: 0 };
        let wanted_frames = frames_of(want_pages);
        if policy == Policy::AllOrNothing && wanted_frames > self.free_frames {
            plan.shortfall = Shortfall::Exhausted;
        } else {
            let missing_pages = self.find(want_pages, extents_max, &mut plan.granted);
            if missing_pages != [0; 3] {
                plan.shortfall = if plan.granted.len() == extents_max {
                    Shortfall::ReplyFull
                } else if frames_of(missing_pages) > self.free_frames {
                    Shortfall::Exhausted
                } else {
                    Shortfall::Fragmented
                };
            }
        }
        if policy == Policy::AllOrNothing && plan.shortfall != Shortfall::None {
            self.undo(&plan);
            return Plan::nothing(plan.shortfall, 0);
        }
        for range in &plan.taken {
            self.remember(range);
        }
        plan
    }

    /// Adds a range to `taken_once`, which it may overlap.
    fn remember(&mut self, frames: &Range<u64>) {
        let (mut start, mut end) = (frames.start, frames.end);
        while let Some((&other, &other_end)) = self.taken_once.range(..=end).next_back() {
            if other_end < start {
                break;
            }
            self.taken_once.remove(&other);
            (start, end) = (start.min(other), end.max(other_end));
        }
        self.taken_once.insert(start, end);
    }

    /// Undoes an exchange, right after it.
    pub fn undo(&mut self, plan: &Plan) {
        for extent in &plan.granted {
            self.put(range(extent));
        }
        for range in &plan.taken {
            self.get(range);
        }
    }

    /// Makes granted frames free again.
    pub fn release(&mut self, frames: Range<u64>) {
        self.put(frames);
    }

    /// The frames of `give`, sorted and merged, or the index of an extent with a frame that isn't
    /// granted, is pinned or is listed twice.
    fn check_given(&self, give: &[Extent]) -> Result<Vec<Range<u64>>, usize> {
        let mut sorted: Vec<(Range<u64>, usize)> =
            give.iter().enumerate().map(|(index, extent)| (range(extent), index)).collect();
        sorted.sort_unstable_by_key(|(range, index)| (range.start, *index));
        let mut merged: Vec<Range<u64>> = Vec::new();
        for (range, index) in sorted {
            if !self.is_granted(range.clone()) || self.pins.range(range.clone()).next().is_some() {
                return Err(index);
            }
            match merged.last_mut() {
                Some(last) if range.start < last.end => return Err(index),
                Some(last) if range.start == last.end => last.end = range.end,
                _ => merged.push(range),
            }
        }
        Ok(merged)
    }

    /// Takes pages out of the free intervals, largest pages first, lowest intervals first. Returns
    /// the pages of each size that weren't found.
    fn find(&mut self, want_pages: [u64; 3], extents_max: usize, found: &mut Vec<Extent>) -> [u64; 3] {
        let mut missing_pages = want_pages;
        for (size, missing) in PageSize::ALL.into_iter().zip(&mut missing_pages).rev() {
            let from = found.len();
            for (&start, &end) in &self.free {
                let first = start.next_multiple_of(size.frames());
                let room_pages = end.saturating_sub(first).checked_div(size.frames()).unwrap_or(0);
                let pages = room_pages.min(*missing).min(u32::MAX.into());
                if *missing == 0 || found.len() == extents_max {
                    break;
                }
                if pages > 0 {
                    found.push(Extent::new(Frame::new(first), pages as u32, size));
                    *missing = missing.saturating_sub(pages);
                }
            }
            for index in from..found.len() {
                if let Some(extent) = found.get(index) {
                    self.get(&range(extent));
                }
            }
        }
        missing_pages
    }

    /// Removes free frames (the caller knows that they are) from the intervals.
    fn get(&mut self, frames: &Range<u64>) {
        let Some((&start, &end)) = self.free.range(..=frames.start).next_back() else { return };
        debug_assert!(end >= frames.end);
        self.free.remove(&start);
        if start < frames.start {
            self.free.insert(start, frames.start);
        }
        if frames.end < end {
            self.free.insert(frames.end, end);
        }
        self.free_frames = self.free_frames.saturating_sub(frames_in(frames));
    }

    /// Adds granted frames (the caller knows that they are) to the intervals.
    fn put(&mut self, frames: Range<u64>) {
        let (mut start, mut end) = (frames.start, frames.end);
        if let Some((&before, &before_end)) = self.free.range(..start).next_back() {
            debug_assert!(before_end <= start);
            if before_end == start {
                start = before;
            }
        }
        if let Some(after_end) = self.free.remove(&end) {
            end = after_end;
        }
        self.free.insert(start, end);
        self.free_frames = self.free_frames.saturating_add(frames_in(&frames));
    }

    /// Asserts the invariants.
    #[cfg(test)]
    fn check(&self) {
        let mut previous_end = None;
        let mut sum = 0;
        for (&start, &end) in &self.free {
            assert!(start < end && start >= self.all.start && end <= self.all.end);
            assert!(self.pins.range(start..end).next().is_none(), "a pinned frame is free");
            assert!(previous_end.is_none_or(|previous| previous < start), "intervals touch");
            previous_end = Some(end);
            sum += end - start;
        }
        assert_eq!(sum, self.free_frames);
    }
}

/// How many frames a range has.
const fn frames_in(range: &Range<u64>) -> u64 {
    range.end.saturating_sub(range.start)
}

fn frames_of(pages: [u64; 3]) -> u64 {
    let frames =
        pages.into_iter().zip(PageSize::ALL).map(|(pages, size)| pages.saturating_mul(size.frames()));
    frames.fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const FIRST: u64 = 1 << 20;
    const MANY: usize = 4000;

    fn ledger(frames: u64) -> Ledger {
        Ledger::new(Frame::new(FIRST), frames)
    }

    fn extent(first: u64, count: u32, size: PageSize) -> Extent {
        Extent::new(Frame::new(first), count, size)
    }

    #[test]
    fn large_pages_come_first_and_lowest() {
        let mut ledger = ledger(3 << 18);
        let plan = ledger.exchange(&[], [3, 2, 1], Policy::AllOrNothing, MANY);
        assert_eq!(
            plan.granted,
            [
                extent(FIRST, 1, PageSize::Size1G),
                extent(FIRST + (1 << 18), 2, PageSize::Size2M),
                extent(FIRST + (1 << 18) + 1024, 3, PageSize::Size4K),
            ]
        );
        assert_eq!(plan.granted_pages(), [3, 2, 1]);
        ledger.check();
    }

    #[test]
    fn what_is_given_can_come_back_in_the_same_call() {
        let mut ledger = ledger(512);
        ledger.exchange(&[], [512, 0, 0], Policy::AllOrNothing, MANY);
        let give = [extent(FIRST, 512, PageSize::Size4K)];
        let plan = ledger.exchange(&give, [0, 1, 0], Policy::AllOrNothing, MANY);
        assert_eq!(plan.granted, [extent(FIRST, 1, PageSize::Size2M)]);
        assert_eq!(plan.taken, vec![Range { start: FIRST, end: FIRST + 512 }]);
    }

    #[test]
    fn absurd_numbers_cost_nothing_and_are_refused() {
        let mut ledger = ledger(512);
        for want in [[u64::MAX; 3], [u64::MAX, 0, 0], [0, 0, u64::MAX], [513, 0, 0]] {
            let plan = ledger.exchange(&[], want, Policy::AllOrNothing, MANY);
            assert_eq!(plan, Plan::nothing(Shortfall::Exhausted, 0));
            assert_eq!(ledger.free_frames(), 512);
        }
        let plan = ledger.exchange(&[], [u64::MAX; 3], Policy::Partial, MANY);
        assert_eq!((plan.granted_pages(), plan.shortfall), ([0, 1, 0], Shortfall::Exhausted));
    }

    #[test]
    fn foreign_and_doubly_listed_frames_are_refused_by_index() {
        let mut ledger = ledger(1024);
        ledger.exchange(&[], [10, 0, 0], Policy::AllOrNothing, MANY);
        let good = extent(FIRST, 5, PageSize::Size4K);
        for (bad, why) in [
            (extent(FIRST + 10, 1, PageSize::Size4K), "never granted"),
            (extent(FIRST + 4, 2, PageSize::Size4K), "listed twice"),
            (extent(FIRST + 9, 2, PageSize::Size4K), "half granted"),
            (extent(FIRST, 1, PageSize::Size2M), "hardly granted"),
            (extent(0, 1, PageSize::Size4K), "below"),
            (extent(FIRST + 1024, 1, PageSize::Size4K), "above"),
        ] {
            let before = ledger.free.clone();
            let plan = ledger.exchange(&[good, bad], [1, 0, 0], Policy::Partial, MANY);
            assert_eq!(plan, Plan::nothing(Shortfall::NotYours, 1), "{why}");
            assert_eq!(ledger.free, before, "{why}");
        }
    }

    #[test]
    fn pinned_frames_stay_with_the_guest() {
        let mut ledger = ledger(1024);
        ledger.exchange(&[], [10, 0, 0], Policy::AllOrNothing, MANY);
        let (third, eleventh) = (Frame::new(FIRST + 2), Frame::new(FIRST + 10));
        assert!(ledger.pin(third) && ledger.pin(third));
        assert!(!ledger.pin(eleventh) && !ledger.pin(Frame::new(u64::MAX)) && !ledger.pin(Frame::new(0)));
        let give = [extent(FIRST, 2, PageSize::Size4K), extent(FIRST + 2, 3, PageSize::Size4K)];
        for _ in 0..2 {
            for policy in [Policy::AllOrNothing, Policy::Partial] {
                let plan = ledger.exchange(&give, [0; 3], policy, MANY);
                assert_eq!(plan, Plan::nothing(Shortfall::NotYours, 1));
            }
            ledger.unpin(third);
        }
        assert_eq!(ledger.exchange(&give, [0; 3], Policy::Partial, MANY).taken_frames(), 5);
        ledger.unpin(third);
        ledger.check();
    }

    #[test]
    fn a_reply_has_an_end() {
        let mut ledger = ledger(1024);
        ledger.exchange(&[], [1024, 0, 0], Policy::AllOrNothing, MANY);
        let odd: Vec<_> = (0..512).map(|i| extent(FIRST + 2 * i, 1, PageSize::Size4K)).collect();
        assert_eq!(ledger.exchange(&odd, [0; 3], Policy::Partial, MANY).taken_frames(), 512);
        let plan = ledger.exchange(&[], [512, 0, 0], Policy::AllOrNothing, 100);
        assert_eq!(plan, Plan::nothing(Shortfall::ReplyFull, 0));
        let plan = ledger.exchange(&[], [512, 0, 0], Policy::Partial, 100);
        assert_eq!((plan.granted_pages(), plan.shortfall), ([100, 0, 0], Shortfall::ReplyFull));
        let plan = ledger.exchange(&[], [0, 1, 0], Policy::Partial, 100);
        assert_eq!(plan.shortfall, Shortfall::Exhausted);
        let even: Vec<_> = (0..256).map(|i| extent(FIRST + 513 + 2 * i, 1, PageSize::Size4K)).collect();
        ledger.exchange(&even, [0; 3], Policy::Partial, MANY);
        let plan = ledger.exchange(&[], [0, 1, 0], Policy::AllOrNothing, MANY);
        assert_eq!(plan.granted, [extent(FIRST + 512, 1, PageSize::Size2M)]);
        ledger.check();
    }

    #[test]
    fn every_frame_has_an_owner() {
        let mut ledger = ledger(1024);
        ledger.exchange(&[], [20, 0, 0], Policy::AllOrNothing, MANY);
        for (first, count) in [(5, 2), (9, 2), (6, 1)] {
            let give = [extent(FIRST + first, count, PageSize::Size4K)];
            ledger.exchange(&give, [0; 3], Policy::Partial, MANY);
        }
        ledger.exchange(&[extent(FIRST + 7, 2, PageSize::Size4K)], [0; 3], Policy::Partial, MANY);
        let owner = |frame| ledger.owner(Frame::new(frame));
        assert_eq!([4, 5, 8, 10, 11, 20].map(|i| owner(FIRST + i)), {
            use Owner::{GivenBack, Guest, NeverGranted};
            [Guest, GivenBack, GivenBack, GivenBack, Guest, NeverGranted]
        });
        assert_eq!((owner(FIRST - 1), owner(FIRST + 1024)), (Owner::Outside, Owner::Outside));
    }

    proptest! {
        /// Any sequence of exchanges agrees with a set of granted frames.
        #[test]
        fn agrees_with_a_set(steps in prop::collection::vec(
            (any::<u64>(), 0usize..6, 0u64..700, 0u64..3, any::<bool>(), any::<bool>()), 1..40))
        {
            let mut ledger = ledger(2048);
            let mut granted = BTreeSet::new();
            for (seed, gives, small, large, partial, foreign) in steps {
                let held: Vec<u64> = granted.iter().copied().collect();
                let mut give: Vec<Extent> = (0..gives)
                    .filter_map(|i| held.get((seed as usize).wrapping_mul(i + 1) % held.len().max(1)))
                    .map(|&frame| extent(frame, 1, PageSize::Size4K)).collect();
                if foreign { give.push(extent(FIRST + seed % 3000, 1, PageSize::Size4K)); }
                let policy = if partial { Policy::Partial } else { Policy::AllOrNothing };
                let before = ledger.free.clone();
                let plan = ledger.exchange(&give, [small, large, 0], policy, MANY);
                ledger.check();

                let mut after = granted.clone();
                let honest = give.iter().all(|extent| after.remove(&extent.first));
                prop_assert_eq!(plan.shortfall == Shortfall::NotYours, !honest);
                let mut undone = ledger.clone();
                undone.undo(&plan);
                prop_assert_eq!(&undone.free, &before);
                if plan.shortfall != Shortfall::None && (!honest || !partial) {
                    prop_assert_eq!(&ledger.free, &before);
                    continue;
                }
                for extent in &plan.granted {
                    prop_assert!(Frame::new(extent.first).is_aligned(extent.size()));
                    for frame in range(extent) { prop_assert!(after.insert(frame), "granted twice"); }
                }
                if plan.shortfall == Shortfall::None { prop_assert_eq!(plan.granted_pages(), [small, large, 0]); }
                granted = after;
                prop_assert_eq!(ledger.granted_frames(), granted.len() as u64);
                for frame in FIRST..FIRST + 2048 {
                    prop_assert_eq!(ledger.is_granted(frame..frame + 1), granted.contains(&frame));
                }
            }
        }
    }
}
