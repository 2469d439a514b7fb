//! The heap within a call: blocks by their granules.

use umpa::blocks::{AllocError, Machine, Umpa};
use umpa_abi::addr::{Gva, PAGE_BYTES};

use super::bounds::{Bounds, Kind};
use super::pages::Pages;
use super::place::Wanted;
use super::regions::Regions;
use super::{Config, Counters, GRANULE_BYTES, Short};

/// A block: its granules.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    pub(super) start: u64,
    pub(super) end: u64,
}

impl Found {
    pub(super) const fn bytes(self) -> usize {
        ((self.end - self.start) * GRANULE_BYTES) as usize
    }
}

/// See the [module](self).
pub(super) struct Inside<'u, 'a, M: Machine> {
    pub(super) umpa: &'u mut Umpa<'a, M>,
    pub(super) config: Config,
    /// The window of the blocks, and that of the metadata.
    base: Gva,
    metadata: Gva,
    pub(super) bounds: Bounds,
    pub(super) regions: Regions,
    pub(super) pages: Pages,
    metadata_frames: u64,
    peak_frames: u64,
    live_granules: u64,
    live_blocks: u64,
}

impl<'u, 'a, M: Machine> Inside<'u, 'a, M> {
    pub(super) fn new(umpa: &'u mut Umpa<'a, M>, config: Config) -> Result<Self, AllocError> {
        let config = config.made_possible();
        let granules = config.reserve_bytes / GRANULE_BYTES;
        let [sheets, digest] = Bounds::bytes(granules);
        let records = Regions::bytes(config.reserve_bytes.div_ceil(config.region_bytes));
        let bits = Pages::bytes(config.reserve_bytes / config.pages.bytes());
        let base = umpa.userpage_reserve(config.reserve_bytes)?;
        let metadata = match umpa.userpage_reserve(sheets + digest + records + bits) {
            Ok(metadata) => metadata,
            Err(error) => {
                end_window(umpa, base);
                return Err(error);
            }
        };
        let part = |offset| Gva::new(metadata.get() + offset);
        let bounds = Bounds::new(metadata, part(sheets), granules);
        let regions = Regions::new(part(sheets + digest), config.region_bytes / GRANULE_BYTES);
        let pages = Pages::new(base, config.pages.bytes(), part(sheets + digest + records));
        let mut inside = Self {
            umpa,
            config,
            base,
            metadata,
            bounds,
            regions,
            pages,
            metadata_frames: 0,
            peak_frames: 0,
            live_granules: 0,
            live_blocks: 0,
        };
        match inside.bounds.ensure(inside.umpa, 0, &mut inside.metadata_frames) {
            Ok(()) => {
                inside.bounds.set(0, Kind::Gap);
                inside.note_peak();
                Ok(inside)
            }
            Err(Short) => {
                let free = inside.umpa.frames().free_frames();
                inside.end();
                Err(AllocError::OutOfFrames { wanted: 2, free })
            }
        }
    }

    /// Gives everything back.
    pub(super) fn end(&mut self) {
        end_window(self.umpa, self.base);
        end_window(self.umpa, self.metadata);
    }

    /// Granules in all.
    pub(super) const fn granules(&self) -> u64 {
        self.config.reserve_bytes / GRANULE_BYTES
    }

    pub(super) const fn address(&self, granule: u64) -> u64 {
        self.base.get() + granule * GRANULE_BYTES
    }

    pub(super) fn is_backed(&self, address: u64) -> bool {
        let offset = address.wrapping_sub(self.base.get());
        let page = offset / self.config.pages.bytes();
        offset < self.config.reserve_bytes && self.pages.missing(page, page + 1) == 0
    }

    /// The block that begins at an address.
    pub(super) fn find(&self, address: u64) -> Option<Found> {
        let offset = address.checked_sub(self.base.get())?;
        let start = offset / GRANULE_BYTES;
        if !offset.is_multiple_of(GRANULE_BYTES) || !self.bounds.is_live(start) {
            return None;
        }
        Some(Found { start, end: self.bounds.end_after(start + 1) })
    }

    /// A block, by the steps of [`place`](super::place). Where the first two lead to a place for which
    /// there is too little memory, idle pages are given back; then that place is tried again, and then
    /// the cheapest one.
    pub(super) fn alloc(&mut self, wanted: Wanted) -> Option<u64> {
        if wanted.granules > self.granules() {
            return None;
        }
        let place = self.place(wanted);
        if let Some(start) = place {
            if self.take(start, start + wanted.granules).is_ok() {
                return Some(start);
            }
            self.trim();
            if self.take(start, start + wanted.granules).is_ok() {
                return Some(start);
            }
        }
        // Also the metadata of the attempts.
        self.trim();
        let start = self.cheapest_place(wanted)?;
        self.take(start, start + wanted.granules).ok()?;
        Some(start)
    }

    /// Makes a block of a part of a gap.
    fn take(&mut self, start: u64, end: u64) -> Result<(), Short> {
        self.prepare(start, start, end)?;
        let (gap, _) = self.bounds.last(start);
        let gap_end = self.bounds.end_after(start + 1);
        if gap == start {
            self.bounds.clear(start, Kind::Gap);
        }
        self.bounds.set(start, Kind::Live);
        if end < gap_end {
            self.bounds.set(end, Kind::Gap);
        }
        self.regions.count(start, true);
        self.live_blocks += 1;
        self.occupy(start, end);
        Ok(())
    }

    /// Backs all that a block from `bound` to `end` needs whose granules from `start` on are new.
    fn prepare(&mut self, bound: u64, start: u64, end: u64) -> Result<(), Short> {
        let (first, last) = self.pages_of(start, end);
        let behind = end.min(self.granules() - 1);
        // What can't be had isn't begun with: metadata stay once they are there.
        if self.missing_frames(start, end) > frames_to_be_had(self.umpa) {
            return Err(Short);
        }
        let done = self.back(bound, behind, (first, last));
        // Also of what was for nothing.
        self.note_peak();
        done
    }

    /// Backs pages, and the metadata for a block with those bounds.
    fn back(&mut self, bound: u64, behind: u64, (first, last): (u64, u64)) -> Result<(), Short> {
        let (umpa, frames) = (&mut *self.umpa, &mut self.metadata_frames);
        self.regions.ensure(umpa, behind.saturating_sub(1), frames)?;
        self.bounds.ensure(umpa, bound, frames)?;
        self.bounds.ensure(umpa, behind, frames)?;
        self.pages.back(umpa, first, last, frames)
    }

    fn occupy(&mut self, start: u64, end: u64) {
        let (first, last) = self.pages_of(start, end);
        self.pages.occupy(first, last);
        self.regions.fill(start, end);
        self.live_granules += end - start;
    }

    pub(super) fn free(&mut self, block: Found) {
        let Found { start, end } = block;
        self.bounds.clear(start, Kind::Live);
        let gap_end = self.join_behind(end);
        let gap = match start.checked_sub(1).map(|before| self.bounds.last(before)) {
            Some((gap, Kind::Gap)) => gap,
            _ => {
                self.bounds.set(start, Kind::Gap);
                start
            }
        };
        self.regions.count(start, false);
        self.live_blocks -= 1;
        self.vacate(start, end, gap, gap_end);
    }

    /// Takes the bound away between what becomes a gap up to `end` and the gap behind, if there is one.
    /// Returns where the gap ends.
    fn join_behind(&mut self, end: u64) -> u64 {
        if self.bounds.at(end) != Some(Kind::Gap) {
            return end;
        }
        self.bounds.clear(end, Kind::Gap);
        self.bounds.end_after(end)
    }

    /// Granules aren't a block's any more, but lie in a gap from `gap` to `gap_end`.
    fn vacate(&mut self, start: u64, end: u64, gap: u64, gap_end: u64) {
        self.live_granules -= end - start;
        self.regions.empty(start, end, gap, gap_end);
        let page = self.page_granules();
        let (first, last) = self.pages_of(start, end);
        let (first, last) = (first.max(gap.div_ceil(page)), last.min(gap_end / page));
        if first < last {
            self.pages.vacate(first, last);
        }
        let limit = self.config.slack_bytes / self.config.pages.bytes();
        if self.pages.idle > limit {
            self.give_back(limit / 2);
        }
    }

    /// Gives idle pages back until `keep` are left, from the highest down, and the metadata about them.
    fn give_back(&mut self, keep: u64) {
        let mut below = u64::MAX;
        while self.pages.idle > keep {
            let Some((first, last)) = self.pages.idle_run(below) else { break };
            let first = first.max(last - (last - first).min(self.pages.idle - keep));
            below = first;
            // Where tables for a part of a large leaf are wanting, the run stays idle.
            if self.pages.release(self.umpa, first, last).is_err() {
                continue;
            }
            let inside = first * self.page_granules();
            let ((gap, _), end) = (self.bounds.last(inside), self.bounds.end_after(inside + 1));
            self.metadata_frames -= self.bounds.release(self.umpa, gap, end);
        }
    }

    /// Gives everything back that nobody needs. Returns the frames.
    pub(super) fn trim(&mut self) -> u64 {
        let before = self.frames();
        self.give_back(0);
        self.metadata_frames -= self.bounds.release_all(self.umpa);
        before - self.frames()
    }

    /// Gives a block another end, if what it grows into is a gap and can be backed. A block that shrinks
    /// keeps its bytes when there is no memory to tell where it ends.
    pub(super) fn resize(&mut self, block: Found, granules: u64) -> bool {
        let Found { start, end } = block;
        let Some(new) = start.checked_add(granules).filter(|&new| new <= self.granules()) else {
            return false;
        };
        if new < end {
            if self.bounds.ensure(self.umpa, new, &mut self.metadata_frames).is_err() {
                return true;
            }
            self.note_peak();
            let gap_end = self.join_behind(end);
            self.bounds.set(new, Kind::Gap);
            self.vacate(new, end, new, gap_end);
        } else if new > end {
            if self.bounds.at(end) != Some(Kind::Gap) {
                return false;
            }
            let gap_end = self.bounds.end_after(end + 1);
            if new > gap_end {
                return false;
            }
            if self.prepare(start, end, new).is_err() {
                self.trim();
                if self.prepare(start, end, new).is_err() {
                    return false;
                }
            }
            self.bounds.clear(end, Kind::Gap);
            if new < gap_end {
                self.bounds.set(new, Kind::Gap);
            }
            self.occupy(end, new);
        }
        true
    }

    /// Frames behind the heap.
    pub(super) const fn frames(&self) -> u64 {
        self.pages.backed * self.pages.frames() + self.metadata_frames
    }

    fn note_peak(&mut self) {
        self.peak_frames = self.peak_frames.max(self.frames());
    }

    pub(super) fn counters(&self) -> Counters {
        Counters {
            live_bytes: self.live_granules * GRANULE_BYTES,
            live_blocks: self.live_blocks,
            backed_bytes: self.pages.backed * self.config.pages.bytes(),
            idle_bytes: self.pages.idle * self.config.pages.bytes(),
            metadata_bytes: self.metadata_frames * PAGE_BYTES,
            peak_frames: self.peak_frames,
            pages_released: self.pages.released,
            pages_backed_again: self.pages.backed_again,
        }
    }

    /// The regions that were ever used: live bytes and blocks of each.
    pub(super) fn regions(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        (0..self.regions.known()).map(|number| {
            let region = self.regions.get(number);
            (u64::from(region.live) * GRANULE_BYTES, u64::from(region.blocks))
        })
    }

    /// Asserts the invariants. Linear in blocks and pages, and quadratic in nothing; for tests.
    pub(super) fn check(&self) {
        self.bounds.check();
        self.regions.check();
        let (mut at, mut before) = (0, Kind::Live);
        let (mut live, mut blocks) = (0, 0);
        let granules = self.regions.granules();
        let (mut region, mut region_live, mut region_blocks, mut longest) = (0, 0, 0, 0);
        while at < self.granules() {
            let kind = self.bounds.at(at).expect("a bound follows a bound");
            let end = self.bounds.end_after(at + 1);
            assert!(kind == Kind::Live || before == Kind::Live, "a gap follows a gap at {at:#x}");
            if kind == Kind::Live {
                live += end - at;
                blocks += 1;
            }
            let mut from = at;
            while from < end && region < self.regions.known() {
                let to = end.min((region + 1) * granules);
                match kind {
                    Kind::Live => region_live += to - from,
                    Kind::Gap => longest = longest.max(to - from),
                }
                region_blocks += u64::from(kind == Kind::Live && from == at);
                from = to;
                if to == (region + 1) * granules {
                    let record = self.regions.get(region);
                    assert_eq!(
                        (u64::from(record.live), u64::from(record.blocks)),
                        (region_live, region_blocks),
                        "live granules and blocks of region {region}"
                    );
                    assert!(u64::from(record.gap) >= longest, "gap {longest} in region {region}: {record:?}");
                    (region, region_live, region_blocks, longest) = (region + 1, 0, 0, 0);
                }
            }
            (at, before) = (end, kind);
        }
        assert_eq!((live, blocks), (self.live_granules, self.live_blocks), "live granules and blocks");
        let page = self.page_granules();
        self.pages.check(|number| {
            let (start, kind) = self.bounds.last(number * page);
            kind == Kind::Live || self.bounds.end_after(start.max(number * page) + 1) < (number + 1) * page
        });
        let mut touched = 0;
        let (mut at, mut counted) = (0, 0);
        while at < self.granules() {
            let end = self.bounds.end_after(at + 1);
            if self.bounds.is_live(at) {
                let (first, last) = self.pages_of(at, end);
                touched += last - first.max(counted);
                counted = last;
            }
            at = end;
        }
        assert_eq!(touched + self.pages.idle, self.pages.backed, "pages that blocks touch, and idle ones");
    }
}

/// Frames that the page allocator can have at most, whoever has to give some up for it.
fn frames_to_be_had<M: Machine>(umpa: &Umpa<'_, M>) -> u64 {
    let frames = umpa.frames();
    let held = frames.granted_frames() - frames.free_frames() - frames.quarantined_frames();
    frames.capacity_frames() - held + umpa.space().retained_pages()
}

fn end_window<M: Machine>(umpa: &mut Umpa<'_, M>, base: Gva) {
    let freed = umpa.userpage_free(base);
    debug_assert!(freed.is_ok(), "{freed:?}");
}
