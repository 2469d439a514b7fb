//! Zeroed memory, leaves of a chosen size, promotion and demotion.

use super::{Defect, World, expect};
use crate::simulated::Access;
use umpa::blocks::{AllocError, BlockError, Otherwise, Promoted};
use umpa_abi::addr::{Gva, PAGE_BYTES, Page, PageSize};

const UNIT: u64 = PageSize::Size2M.frames();

impl World<'_> {
    /// A page that must read as zero.
    pub(super) fn read_zero(&mut self, gva: Gva) -> Result<(), Defect> {
        let found = self.umpa.machine_mut().access(gva, Access::Read);
        let found = found.map_err(|fault| Defect::Access { gva, fault })?;
        if found == 0 { Ok(()) } else { Err(Defect::Content { gva, expected: 0, found }) }
    }

    /// What the store takes for zeros are some.
    pub(super) fn verify_zeroed(&mut self) -> Result<(), Defect> {
        let mut known = Vec::new();
        self.umpa
            .frames()
            .for_each_zeroed(|first, frames| known.extend((0..frames).map(|at| first.offset(at))));
        let counted = self.umpa.frames().zeroed_frames();
        expect("zeroed frames", &(known.len() as u64), |&frames| frames == counted)?;
        for frame in known {
            let stamp = self.umpa.machine_mut().ledger.stamp(frame);
            expect("a frame known to be zero", &(frame, stamp), |&(_, stamp)| stamp == 0)?;
        }
        Ok(())
    }

    pub(super) fn prezero(&mut self, frames: u64) -> Result<Option<Gva>, Defect> {
        let store = self.umpa.frames();
        let (free, zeroed) = (store.free_frames(), store.zeroed_frames());
        let done = self.umpa.prezero(frames);
        expect("prezeroed", &done, |&done| done == frames.min(free - zeroed))?;
        let after = (self.umpa.frames().free_frames(), self.umpa.frames().zeroed_frames());
        expect("free and zeroed", &after, |&after| after == (free, zeroed + done))?;
        Ok(None)
    }

    /// A block by pages of one size.
    pub(super) fn malloc_sized(
        &mut self,
        pages: u64,
        size: PageSize,
        otherwise: Otherwise,
    ) -> Result<Option<Gva>, Defect> {
        let available = self.available();
        let pages = pages.next_multiple_of(size.frames());
        match self.umpa.userpage_malloc_sized(pages * PAGE_BYTES, size, otherwise) {
            Err(AllocError::NoRun { size: PageSize::Size2M }) if otherwise == Otherwise::Refuse => Ok(None),
            made => {
                let made = self.new_block(made, pages, pages, available, false)?;
                let Some(gva) = made else { return Ok(None) };
                for at in (0..pages).step_by(size.frames() as usize) {
                    let found = self.leaf_size(gva, at);
                    let right = |&found: &Option<PageSize>| match otherwise {
                        Otherwise::Refuse => found == Some(size),
                        Otherwise::Smaller => found.is_some_and(|found| found <= size),
                    };
                    expect("size of the leaf", &found, right)?;
                }
                Ok(made)
            }
        }
    }

    fn leaf_size(&self, block: Gva, at: u64) -> Option<PageSize> {
        self.umpa.leaf(block.containing().offset(at)).map(|leaf| leaf.size)
    }

    /// Promotes a range, or all, of a block.
    pub(super) fn promote(&mut self, number: usize, at: u64, pages: u64) -> Result<Option<Gva>, Defect> {
        let (gva, at, pages) = self.range(number, at, pages);
        let block = &self.blocks[number];
        let (whole, window) = (at == 0, block.is_window());
        let (at, pages) = if whole { (0, block.stamps.len() as u64) } else { (at, pages) };
        let from = Gva::new(gva.get() + at * PAGE_BYTES);
        let first = gva.containing().get();
        let units: Vec<u64> = (first + at..first + at + pages)
            .filter(|&page| page.is_multiple_of(UNIT) && page + UNIT <= first + at + pages)
            .map(|page| page - first)
            .collect();
        let has = |page: u64| block.stamps.get(page as usize).is_some_and(Option::is_some);
        let holes = units.iter().filter(|&&unit| !(unit..unit + UNIT).all(has)).count() as u64;
        let inside = at + pages <= block.stamps.len() as u64;
        let large = |world: &Self| {
            let is_large =
                |&&unit: &&u64| world.leaf_size(gva, unit).is_some_and(|size| size > PageSize::Size4K);
            units.iter().filter(is_large).count() as u64
        };
        let before = large(self);
        let copied = self.umpa.machine_mut().counts.copied_frames;
        let done = if whole {
            self.umpa.userpage_promote_block(gva)
        } else {
            self.umpa.userpage_promote(from, pages * PAGE_BYTES)
        };
        match done {
            Ok(done) if window && inside => {
                let copied = self.umpa.machine_mut().counts.copied_frames - copied;
                let skipped = done.skipped;
                let right = |done: &Promoted| {
                    done.large == before
                        && done.promoted + done.large + skipped.units() == units.len() as u64
                        && skipped.holes == holes
                        && skipped.watched + skipped.unlike == 0
                        && done.copied_frames == copied
                };
                expect("promoted", &done, right)?;
                let after = large(self);
                expect("large leaves", &after, |&after| after == before + done.promoted)?;
                self.promoted += done.promoted;
                self.copied += copied;
            }
            Err(BlockError::Pinned { .. }) if !window => {}
            Err(BlockError::NotABlock { .. }) if !window && !whole => {}
            Err(BlockError::BadRange { .. }) if window && !inside => {}
            done => return Err(Defect::Unexpected { what: "promote", got: format!("{done:?}") }),
        }
        Ok(Some(gva))
    }

    pub(super) fn demote(&mut self, number: usize, at: u64, pages: u64) -> Result<Option<Gva>, Defect> {
        let (gva, at, pages) = self.range(number, at, pages);
        let from = Gva::new(gva.get() + at * PAGE_BYTES);
        let block = &self.blocks[number];
        let (window, inside) = (block.is_window(), at + pages <= block.stamps.len() as u64);
        let frames = |world: &mut Self| -> Vec<_> {
            let page = |at: u64| Page::new(from.containing().get() + at);
            (0..pages).map(|at| world.umpa.machine_mut().tree_frame(page(at))).collect()
        };
        let before = frames(self);
        let copied = self.umpa.machine_mut().counts.copied_frames;
        match self.umpa.userpage_demote(from, pages * PAGE_BYTES) {
            Ok(units) if window && inside => {
                let small = |size: Option<PageSize>| size.is_none_or(|size| size == PageSize::Size4K);
                let all = (at..at + pages).all(|at| small(self.leaf_size(gva, at)));
                expect("small leaves", &(all, units), |&(all, units)| {
                    all && units <= pages.div_ceil(UNIT) + 1
                })?;
                let after = frames(self);
                expect("frames after a demotion", &after, |after| **after == before)?;
                let now = self.umpa.machine_mut().counts.copied_frames;
                expect("copies", &now, |&now| now == copied)?;
                self.demoted += units;
            }
            Err(BlockError::Alloc(AllocError::Tables(_))) if self.setup.few_tables => self.out_of_tables += 1,
            Err(BlockError::Pinned { .. } | BlockError::NotABlock { .. }) if !window => {}
            Err(BlockError::BadRange { .. }) if window && !inside => {}
            done => return Err(Defect::Unexpected { what: "demote", got: format!("{done:?}") }),
        }
        Ok(Some(gva))
    }
}
