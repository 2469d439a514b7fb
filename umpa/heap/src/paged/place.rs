//! Where a block goes.
//!
//! | step | place | looks at |
//! | --- | --- | --- |
//! | 1 | in the fullest region with a gap for it; there, the first gap that needs no memory, else the one that needs least | a list for each sixteenth of fullness, then the gaps of one region |
//! | 2 | where the first vacant region lies in a gap that fits: from the gap's beginning on | regions in use |
//! | 3 | when memory is short: the place that takes fewest frames of all | all gaps, twice |
//!
//! With [`Policy::Tight`] step 1 prefers regions with a longest gap that is hardly longer, and then fuller
//! ones. With [`Policy::FirstFit`] step 1 takes the lowest region with a gap for it, and the lowest gap there.
//!
//! Step 3 is exact: among the places in a gap, those at its ends share the most memory with what is
//! backed already, as only a gap's first and last page can be backed once all idle pages were given back.

use umpa::blocks::Machine;

use super::bounds::Kind;
use super::inside::Inside;
use super::{GRANULE_BYTES, Policy};

/// What is looked for: so many granules, at a multiple of so many.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub(super) granules: u64,
    pub(super) align: u64,
}

impl Wanted {
    /// The first place from `start` on that is in the gap.
    fn lowest(self, start: u64, end: u64) -> Option<u64> {
        let at = start.next_multiple_of(self.align);
        (at < end && self.granules <= end - at).then_some(at)
    }

    /// The last.
    fn highest(self, start: u64, end: u64) -> Option<u64> {
        let at = end.checked_sub(self.granules)?;
        let at = at - at % self.align;
        (at >= start).then_some(at)
    }

    /// A gap of so many granules is enough wherever it begins.
    const fn enough(self) -> u64 {
        self.granules + self.align - 1
    }
}

impl<M: Machine> Inside<'_, '_, M> {
    /// Steps 1 and 2.
    pub(super) fn place(&mut self, wanted: Wanted) -> Option<u64> {
        let enough = wanted.enough();
        if enough <= self.regions.granules() {
            let mut from = 0;
            loop {
                let found = match self.config.policy {
                    Policy::Crowded => self.regions.fullest(enough),
                    Policy::Tight => self.regions.tightest(enough),
                    Policy::FirstFit => self.regions.first(from, enough),
                };
                let Some(region) = found else { break };
                match self.place_in(region, wanted) {
                    Ok(at) => return Some(at),
                    Err(longest) => self.regions.set_gap(region, longest),
                }
                from = region + 1;
            }
        }
        self.place_anywhere(wanted)
    }

    /// A place within a region, or the length of its longest gap.
    fn place_in(&self, region: u64, wanted: Wanted) -> Result<u64, u64> {
        let base = region * self.regions.granules();
        let end = (base + self.regions.granules()).min(self.granules());
        let (mut longest, mut best) = (0, None::<(u64, u64)>);
        let (mut at, mut kind) = self.bounds.last(base);
        while at < end {
            let (next, next_kind) = self.bounds.next(at + 1).unwrap_or((end, Kind::Gap));
            if kind == Kind::Gap {
                let (gap, gap_end) = (at.max(base), next.min(end));
                longest = longest.max(gap_end - gap);
                if let Some(place) = wanted.lowest(gap, gap_end) {
                    let missing = match self.config.policy {
                        Policy::FirstFit => 0,
                        _ => self.missing_pages(place, place + wanted.granules),
                    };
                    if missing == 0 {
                        return Ok(place);
                    }
                    if best.is_none_or(|(least, _)| missing < least) {
                        best = Some((missing, place));
                    }
                }
            }
            (at, kind) = (next, next_kind);
        }
        best.map(|(_, place)| place).ok_or(longest)
    }

    /// Step 2.
    fn place_anywhere(&mut self, wanted: Wanted) -> Option<u64> {
        let granules = self.regions.granules();
        let mut region = self.regions.vacant(0);
        loop {
            let inside = region * granules;
            if inside >= self.granules() {
                return None;
            }
            let (gap, kind) = self.bounds.last(inside);
            let end = self.bounds.end_after(inside + 1);
            debug_assert_eq!(kind, Kind::Gap, "a block in vacant region {region}");
            if let Some(place) = wanted.lowest(gap, end) {
                return Some(place);
            }
            region = self.regions.vacant(end.div_ceil(granules));
        }
    }

    /// Step 3. Idle pages were given back.
    pub(super) fn cheapest_place(&self, wanted: Wanted) -> Option<u64> {
        let mut best = None::<(u64, u64)>;
        let mut at = 0;
        while at < self.granules() {
            let next = self.bounds.end_after(at + 1);
            if self.bounds.at(at) == Some(Kind::Gap) {
                for place in [wanted.lowest(at, next), wanted.highest(at, next)].into_iter().flatten() {
                    let frames = self.missing_frames(place, place + wanted.granules);
                    if best.is_none_or(|(_, least)| frames < least) {
                        best = Some((place, frames));
                    }
                }
            }
            at = next;
        }
        best.map(|(place, _)| place)
    }

    /// Pages of the range that aren't backed.
    fn missing_pages(&self, start: u64, end: u64) -> u64 {
        let (first, end) = self.pages_of(start, end);
        self.pages.missing(first, end)
    }

    /// Frames that a block in the range takes, metadata included.
    pub(super) fn missing_frames(&self, start: u64, end: u64) -> u64 {
        let (first, last) = self.pages_of(start, end);
        self.pages.missing(first, last) * self.pages.frames()
            + self.pages.missing_frames(last)
            + self.regions.missing_frames(end - 1)
            + self.bounds.missing_frames([start, end.min(self.granules() - 1)])
    }

    /// The pages that a range of granules touches.
    pub(super) const fn pages_of(&self, start: u64, end: u64) -> (u64, u64) {
        let page = self.page_granules();
        (start / page, end.div_ceil(page))
    }

    /// Granules of a page.
    pub(super) const fn page_granules(&self) -> u64 {
        self.config.pages.bytes() / GRANULE_BYTES
    }
}
