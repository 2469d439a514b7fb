//! The heap as an array of regions of equal length: what is live in each, and which is the fullest.
//!
//! A record for each region counts its live granules and the blocks that begin in it, and keeps a bound
//! for its longest gap, cut at its ends. Regions that aren't vacant lie in lists, by sixteenths of
//! fullness and by the magnitude of that bound, as in a two-level segregated fit: the fullest region with
//! a gap for a block is found by a look at a bit mask for each sixteenth.
//!
//! Invariants: `live = Σ granules of blocks in the region`; `blocks = blocks that begin in it`; `gap >=
//! longest gap in it`, exact when it was searched in vain; listed = not vacant, and `gap > 0`; no region
//! below `vacant_from` is vacant.
//!
//! The bound grows at a free, where the gap is known, and shrinks at a search: a region is searched in
//! vain once for each free in it, at most.
//!
//! Cost: 24 bytes a region, up to the highest that was ever used.

use umpa::blocks::{Machine, Umpa};
use umpa_abi::addr::Gva;

use super::Short;
use super::table::{Table, Zeroable};

/// Degrees of fullness.
const LEVELS: usize = 16;
/// Magnitudes of gaps: up to 2^27 granules, 2 GiB.
const CLASSES: usize = 28;
/// Regions that are looked at in a list of gaps that may be too short.
const WALK: usize = 8;
const NONE: u32 = u32::MAX;

/// What is known of a region.
#[derive(Clone, Copy, Debug)]
pub(super) struct Region {
    pub(super) live: u32,
    pub(super) blocks: u32,
    pub(super) gap: u32,
    previous: u32,
    next: u32,
    /// Its list, and one more; 0: none.
    list: u32,
}

impl Zeroable for Region {}

/// See the [module](self).
pub(super) struct Regions {
    table: Table<Region>,
    /// Regions below this one have records.
    known: u64,
    /// Granules of a region.
    granules: u64,
    vacant_from: u64,
    heads: [[u32; CLASSES]; LEVELS],
    /// Which lists have regions: by degree of fullness, and by magnitude of gap.
    classes: [u32; LEVELS],
    levels: [u16; CLASSES],
}

impl Regions {
    /// No regions yet, of so many granules each.
    pub(super) const fn new(table: Gva, granules: u64) -> Self {
        assert!(granules.ilog2() < CLASSES as u32);
        Self {
            table: Table::new(table),
            known: 0,
            granules,
            vacant_from: 0,
            heads: [[NONE; CLASSES]; LEVELS],
            classes: [0; LEVELS],
            levels: [0; CLASSES],
        }
    }

    /// Bytes of addresses for the records of `regions` regions.
    pub(super) const fn bytes(regions: u64) -> u64 {
        Table::<Region>::bytes(regions)
    }

    /// Granules of a region.
    pub(super) const fn granules(&self) -> u64 {
        self.granules
    }

    /// Regions that were ever used, counted from the first.
    pub(super) const fn known(&self) -> u64 {
        self.known
    }

    /// Frames that [`Self::ensure`] takes.
    pub(super) const fn missing_frames(&self, granule: u64) -> u64 {
        self.table.missing_frames(granule / self.granules + 1)
    }

    /// Sees to it that the granule's region has a record. Counts the frames that this takes.
    pub(super) fn ensure<M: Machine>(
        &mut self,
        umpa: &mut Umpa<'_, M>,
        granule: u64,
        frames: &mut u64,
    ) -> Result<(), Short> {
        let regions = granule / self.granules + 1;
        self.table.extend(umpa, regions, frames)?;
        let vacant =
            Region { live: 0, blocks: 0, gap: self.granules as u32, previous: NONE, next: NONE, list: 0 };
        while self.known < regions {
            self.table.set(self.known, vacant);
            self.known += 1;
        }
        Ok(())
    }

    pub(super) fn get(&self, region: u64) -> Region {
        self.table.get(region)
    }

    /// A block begins at a granule, or begins no more.
    pub(super) fn count(&mut self, granule: u64, begins: bool) {
        let number = granule / self.granules;
        let mut region = self.get(number);
        region.blocks = if begins { region.blocks + 1 } else { region.blocks - 1 };
        self.table.set(number, region);
    }

    /// Granules became live.
    pub(super) fn fill(&mut self, start: u64, end: u64) {
        self.each(start, end, |region, (from, to), (_, granules)| {
            region.live += (to - from) as u32;
            if u64::from(region.live) == granules {
                region.gap = 0;
            }
        });
    }

    /// Granules became free, and are in a gap now.
    pub(super) fn empty(&mut self, start: u64, end: u64, gap: u64, gap_end: u64) {
        self.each(start, end, |region, (from, to), (base, granules)| {
            region.live -= (to - from) as u32;
            let cut = gap_end.min(base + granules) - gap.max(base);
            region.gap = region.gap.max(cut as u32);
        });
        // Of the regions touched, the inner ones are vacant, and those at the ends may be.
        let (first, last) = (start / self.granules, (end - 1) / self.granules);
        let vacant =
            [first, (first + 1).min(last), last].into_iter().find(|&region| self.get(region).live == 0);
        self.vacant_from = self.vacant_from.min(vacant.unwrap_or(u64::MAX));
    }

    /// Tells how long the longest gap in a region is.
    pub(super) fn set_gap(&mut self, number: u64, gap: u64) {
        let mut region = self.get(number);
        region.gap = gap as u32;
        self.table.set(number, region);
        self.relist(number);
    }

    /// The fullest region that isn't vacant and may have a gap of `granules`: to a sixteenth, and where
    /// many of them have gaps of that magnitude, the first eight.
    pub(super) fn fullest(&self, granules: u64) -> Option<u64> {
        let class = granules.ilog2() as usize;
        if class >= CLASSES {
            return None;
        }
        for level in (0..LEVELS).rev() {
            if let Some(number) = self.walk(level, class, granules) {
                return Some(number);
            }
            let longer = self.classes[level] & u32::MAX.checked_shl(class as u32 + 1).unwrap_or(0);
            if longer != 0 {
                return Some(u64::from(self.heads[level][longer.trailing_zeros() as usize]));
            }
        }
        None
    }

    /// Of the regions whose bound has the least magnitude that is enough for `granules`, the fullest: within
    /// the limits of [`Self::fullest`].
    pub(super) fn tightest(&self, granules: u64) -> Option<u64> {
        let class = granules.ilog2() as usize;
        let levels =
            |class: usize| (0..LEVELS).rev().filter(move |&level| self.levels[class] >> level & 1 != 0);
        if class >= CLASSES {
            return None;
        }
        levels(class).find_map(|level| self.walk(level, class, granules)).or_else(|| {
            let mut longer = (class + 1..CLASSES).filter(|&class| self.levels[class] != 0);
            let class = longer.next()?;
            Some(u64::from(self.heads[levels(class).next()?][class]))
        })
    }

    /// The first of a list's regions whose bound is long enough.
    fn walk(&self, level: usize, class: usize, granules: u64) -> Option<u64> {
        let mut number = self.heads[level][class];
        for _ in 0..WALK {
            if number == NONE {
                break;
            }
            let region = self.get(u64::from(number));
            if u64::from(region.gap) >= granules {
                return Some(u64::from(number));
            }
            number = region.next;
        }
        None
    }

    /// The first region from `from` on that may have a gap of `granules`. Linear.
    pub(super) fn first(&self, from: u64, granules: u64) -> Option<u64> {
        (from..self.known).find(|&number| u64::from(self.get(number).gap) >= granules)
    }

    /// The first vacant region from `from` on; those that never were used are.
    pub(super) fn vacant(&mut self, from: u64) -> u64 {
        let start = from.max(self.vacant_from);
        let found = (start..self.known).find(|&number| self.get(number).live == 0).unwrap_or(self.known);
        if from <= self.vacant_from {
            self.vacant_from = found;
        }
        found.max(from)
    }

    /// Asserts that lists and records agree. Linear; for tests.
    pub(super) fn check(&self) {
        let mut listed = 0;
        for (level, heads) in self.heads.iter().enumerate() {
            for (class, &head) in heads.iter().enumerate() {
                let masks = (self.classes[level] >> class & 1, self.levels[class] >> level & 1);
                let used = u16::from(head != NONE);
                assert_eq!(masks, (used.into(), used), "list {level}, {class}");
                let (mut number, mut previous) = (head, NONE);
                while number != NONE {
                    let region = self.get(u64::from(number));
                    assert_eq!(region.list, list_of(level, class), "region {number}");
                    assert_eq!(Some((level, class)), self.place(region), "region {number}");
                    assert_eq!(region.previous, previous, "region {number}");
                    listed += 1;
                    (previous, number) = (number, region.next);
                }
            }
        }
        let should = (0..self.known).filter(|&number| self.place(self.get(number)).is_some()).count();
        assert_eq!(listed, should, "regions in lists");
        let vacant = (0..self.known).find(|&number| self.get(number).live == 0);
        assert!(vacant.unwrap_or(self.known) >= self.vacant_from, "{vacant:?} is vacant");
    }

    /// Changes the record of each region in a range of granules: with the part of the range in the region,
    /// and the region's place and length.
    fn each(&mut self, start: u64, end: u64, mut change: impl FnMut(&mut Region, (u64, u64), (u64, u64))) {
        let mut from = start;
        while from < end {
            let number = from / self.granules;
            let base = number * self.granules;
            let to = end.min(base + self.granules);
            let mut region = self.get(number);
            change(&mut region, (from, to), (base, self.granules));
            self.table.set(number, region);
            self.relist(number);
            from = to;
        }
    }

    /// The list in which a region should be.
    fn place(&self, region: Region) -> Option<(usize, usize)> {
        if region.live == 0 || region.gap == 0 {
            return None;
        }
        let level = u64::from(region.live) * LEVELS as u64 / (self.granules + 1);
        Some((level as usize, region.gap.ilog2() as usize))
    }

    fn relist(&mut self, number: u64) {
        let mut region = self.get(number);
        let place = self.place(region);
        let list = place.map_or(0, |(level, class)| list_of(level, class));
        if list == region.list {
            return;
        }
        if let Some(old) = region.list.checked_sub(1) {
            let (level, class) = (old as usize / CLASSES, old as usize % CLASSES);
            match region.previous {
                NONE => {
                    self.heads[level][class] = region.next;
                    if region.next == NONE {
                        self.classes[level] &= !(1 << class);
                        self.levels[class] &= !(1 << level);
                    }
                }
                previous => self.link(previous, |record| record.next = region.next),
            }
            if region.next != NONE {
                self.link(region.next, |record| record.previous = region.previous);
            }
        }
        region.list = list;
        region.previous = NONE;
        region.next = NONE;
        if let Some((level, class)) = place {
            region.next = self.heads[level][class];
            if region.next != NONE {
                self.link(region.next, |record| record.previous = number as u32);
            }
            self.heads[level][class] = number as u32;
            self.classes[level] |= 1 << class;
            self.levels[class] |= 1 << level;
        }
        self.table.set(number, region);
    }

    fn link(&mut self, number: u32, change: impl FnOnce(&mut Region)) {
        let mut region = self.get(u64::from(number));
        change(&mut region);
        self.table.set(u64::from(number), region);
    }
}

const fn list_of(level: usize, class: usize) -> u32 {
    (level * CLASSES + class) as u32 + 1
}
