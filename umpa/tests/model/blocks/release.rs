//! Requests for frames: what each severity takes, and what becomes of discardable ranges.

use super::{Block, Defect, Step, World, expect};
use std::vec::Vec;
use umpa::blocks::BlockError;
use umpa::release::{Discardable, RegisterError};
use umpa_abi::addr::{Gva, PAGE_BYTES};
use umpa_abi::exchange::Shortfall;
use umpa_abi::upcall::Severity;

/// Ranges that the registry has room for.
pub(super) const RANGES: usize = 6;

/// A registered range, as the program knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Range {
    pub(crate) gva: Gva,
    pub(crate) pages: u64,
    pub(crate) priority: u8,
    pub(crate) is_discarded: bool,
}

impl Range {
    const fn end(&self) -> u64 {
        self.gva.get() + self.pages * PAGE_BYTES
    }
}

impl World<'_> {
    pub(super) fn make_discardable(
        &mut self,
        number: usize,
        at: u64,
        pages: u64,
        priority: u8,
    ) -> Result<Option<Gva>, Defect> {
        let (gva, at, pages) = self.range(number, at, pages);
        let from = Gva::new(gva.get() + at * PAGE_BYTES);
        let range = Range { gva: from, pages, priority, is_discarded: false };
        let overlaps =
            self.ranges.iter().any(|other| other.gva.get() < range.end() && from.get() < other.end());
        let window = self.blocks[number].is_window();
        let full = self.ranges.len() == RANGES;
        match self.umpa.make_discardable(from, pages * PAGE_BYTES, priority) {
            Ok(()) if window && !overlaps && !full => self.ranges.push(range),
            Err(RegisterError::Overlaps { .. }) if overlaps => {}
            Err(RegisterError::Full { ranges: RANGES }) if full => {}
            Err(RegisterError::Block(BlockError::Pinned { .. } | BlockError::NotABlock { .. }))
                if !window => {}
            done => return Err(Defect::Unexpected { what: "make_discardable", got: format!("{done:?}") }),
        }
        Ok(Some(gva))
    }

    /// The range with this number restored, or made indispensable.
    pub(super) fn restore(&mut self, number: usize, forget: bool) -> Result<Option<Gva>, Defect> {
        let Some(&range) = self.ranges.get(number % self.ranges.len().max(1)) else { return Ok(None) };
        expect("is_discarded", &self.umpa.is_discarded(Gva::new(range.end() - 1)), |&is| {
            is == range.is_discarded
        })?;
        if forget {
            let found = self.umpa.make_indispensable(range.gva);
            expect("make_indispensable", &found, |found| {
                found.is_some_and(|found| found.is_discarded() == range.is_discarded)
            })?;
            self.ranges.retain(|other| *other != range);
            return Ok(None);
        }
        let (block, holes) = self.holes_in(range);
        let available = self.available();
        match self.umpa.restore(range.gva) {
            Ok(added) => {
                let expected = if range.is_discarded { holes.len() as u64 } else { 0 };
                expect("restored", &added, |&added| added == expected)?;
                if range.is_discarded {
                    let mut changed = self.blocks.swap_remove(block);
                    let first = (range.gva.get() - changed.gva.get()) / PAGE_BYTES;
                    let len = changed.stamps.len().max((first + range.pages) as usize);
                    changed.stamps.resize(len, None);
                    for page in holes {
                        self.stamp(&mut changed, page)?;
                    }
                    self.blocks.push(changed);
                }
                self.ranges.iter_mut().filter(|other| **other == range).for_each(|r| r.is_discarded = false);
            }
            Err(BlockError::Alloc(error)) => self.refused(error, holes.len() as u64, available)?,
            done => return Err(Defect::Unexpected { what: "restore", got: format!("{done:?}") }),
        }
        Ok(None)
    }

    /// The block of a range, and its pages there that have no frame.
    fn holes_in(&self, range: Range) -> (usize, Vec<u64>) {
        let holds = |block: &Block| {
            let pages = block.reserved_pages.max(block.stamps.len() as u64);
            block.gva <= range.gva && range.end() <= block.gva.get() + pages * PAGE_BYTES
        };
        let number = self.blocks.iter().position(holds).expect("a registered range lies in a block");
        let block = &self.blocks[number];
        let first = (range.gva.get() - block.gva.get()) / PAGE_BYTES;
        let is_hole = |page: &u64| !block.stamps.get(*page as usize).is_some_and(Option::is_some);
        (number, (first..first + range.pages).filter(is_hole).collect())
    }

    pub(super) fn give(&mut self, severity: Severity, frames: u64) -> Result<Option<Gva>, Defect> {
        let frames = if frames.is_multiple_of(17) { u64::MAX } else { frames };
        let free = self.umpa.frames().free_frames();
        let retained = self.umpa.frames().quarantined_frames() + self.umpa.space().retained_pages();
        let granted = self.umpa.frames().granted_frames();
        // What each source has to give, and which ranges go.
        let lookaside = frames.min(free);
        let reclaimed = if severity >= Severity::Need { frames.min(free + retained) - lookaside } else { 0 };
        let mut order: Vec<Range> = self.ranges.iter().copied().filter(|range| !range.is_discarded).collect();
        order.sort_by_key(|range| (range.priority, range.gva));
        let (mut found, mut going) = (free + retained, Vec::new());
        for range in order.into_iter().filter(|_| severity == Severity::Demand) {
            let has = range.pages - self.holes_in(range).1.len() as u64;
            if found < frames && has > 0 {
                found += has;
                going.push(range);
            }
        }
        let mut gone: Vec<Discardable> = Vec::new();
        let released = self.umpa.release(severity, frames, &mut |range| gone.push(*range));
        if !self.setup.few_tables {
            let same = going.iter().map(|range| range.gva).eq(gone.iter().map(Discardable::gva));
            expect("discarded ranges", &gone, |_| same)?;
        }
        let mut discarded = 0;
        for range in &gone {
            expect("a range that is gone", range, |range| range.is_discarded())?;
            let known = self.ranges.iter_mut().find(|known| known.gva == range.gva());
            known.expect("it was registered").is_discarded = true;
            let block = self.blocks.iter_mut().find(|block| {
                let pages = block.reserved_pages.max(block.stamps.len() as u64);
                (block.gva.get()..block.gva.get() + pages * PAGE_BYTES).contains(&range.gva().get())
            });
            let block = block.expect("it lies in a block");
            let first = (range.gva().get() - block.gva.get()) / PAGE_BYTES;
            let pages = range.bytes() / PAGE_BYTES;
            for stamp in block.stamps.iter_mut().skip(first as usize).take(pages as usize) {
                discarded += u64::from(stamp.take().is_some());
            }
        }
        let all = free + if severity >= Severity::Need { retained } else { 0 } + discarded;
        let took = frames.min(all) - lookaside - reclaimed;
        expect("released", &released, |released| {
            released.frames == frames.min(all)
                && released.lookaside_frames == lookaside
                && released.retained_frames == reclaimed
                && released.discarded_frames == took
                && released.shortfall == Shortfall::None
        })?;
        let now = self.umpa.frames().granted_frames();
        expect("granted after a release", &now, |&now| now + released.frames == granted)?;
        Ok(None)
    }

    /// Blocks that went or moved took their registrations along.
    pub(super) fn follow_ranges(
        &mut self,
        step: &Step,
        before: Option<(Gva, u64)>,
        touched: Option<Gva>,
    ) -> Result<(), Defect> {
        if let Some((gva, reserved)) = before {
            let block = self.blocks.iter().find(|block| block.gva == gva && touched == Some(gva));
            let end = match (step, block) {
                (
                    Step::Realloc { pages, .. } | Step::Resize { pages, .. } | Step::Widen { pages, .. },
                    Some(block),
                ) if block.stamps.len() as u64 >= *pages => {
                    // One that gets the whole of its last large leaf has more than was asked for.
                    Some(gva.get() + block.stamps.len() as u64 * PAGE_BYTES)
                }
                (Step::Realloc { .. } | Step::Widen { .. } | Step::Move { .. }, Some(_))
                | (Step::Resize { .. }, _) => None,
                _ => Some(gva.get()),
            };
            let within = gva.get()..gva.get() + reserved * PAGE_BYTES;
            if let Some(end) = end {
                self.ranges.retain(|range| !within.contains(&range.gva.get()) || range.end() <= end);
            }
        }
        let mut known = self.ranges.clone();
        known.sort();
        let kept = self.umpa.discardables().iter().map(|range| Range {
            gva: range.gva(),
            pages: range.bytes() / PAGE_BYTES,
            priority: range.priority(),
            is_discarded: range.is_discarded(),
        });
        let kept: Vec<_> = kept.collect();
        expect("registered ranges", &kept, |kept| **kept == known)
    }
}
