//! Steps on one allocator, continued: zeroed memory, promotion and demotion.

use super::{Block, Defect, World, gva};
use crate::simulated::Access;
use umpa::blocks::{BlockError, Otherwise};
use umpa_abi::addr::{PAGE_BYTES, PageSize};

const UNIT: u64 = PageSize::Size2M.frames();

impl World<'_> {
    pub(super) fn malloc_zeroed(&mut self, pages: u64) -> Result<(), Defect> {
        let (available, covers) = (self.available(), self.umpa.stats().covers);
        let made = match self.umpa.userpage_malloc_zeroed(pages * PAGE_BYTES) {
            Ok(made) => made,
            Err(error) => return self.refused(error, pages, available),
        };
        let cover = self.umpa.stats().covers > covers;
        let usable = self.umpa.usable_bytes(made).map_err(|error| format!("{error:?}"))? / PAGE_BYTES;
        let first = made.containing().get();
        for page in first..first + usable {
            let found = self.umpa.machine_mut().access(gva(page), Access::Read);
            if found != Ok(0) {
                return Err(format!("page {page:#x} of {pages} zeroed ones: {found:?}"));
            }
        }
        self.block(made, usable, pages, cover)
    }

    pub(super) fn malloc_sized(&mut self, pages: u64, size: PageSize) -> Result<(), Defect> {
        let (available, pages) = (self.available(), pages.next_multiple_of(size.frames()));
        match self.umpa.userpage_malloc_sized(pages * PAGE_BYTES, size, Otherwise::Smaller) {
            Ok(made) => self.block(made, pages, pages, false),
            Err(error) => self.refused(error, pages, available),
        }
    }

    pub(super) fn prezero(&mut self, frames: u64) -> Result<(), Defect> {
        let store = self.umpa.frames();
        let (free, zeroed) = (store.free_frames(), store.zeroed_frames());
        let done = self.umpa.prezero(frames);
        let store = self.umpa.frames();
        if done != frames.min(free - zeroed)
            || (store.free_frames(), store.zeroed_frames()) != (free, zeroed + done)
        {
            return Err(format!("{done} zeroed ahead, {zeroed} of {free} before"));
        }
        Ok(())
    }

    /// What is taken for zeros is some.
    pub(super) fn verify_zeroed(&mut self) -> Result<(), Defect> {
        let mut known = Vec::new();
        self.umpa
            .frames()
            .for_each_zeroed(|first, frames| known.extend((0..frames).map(|at| first.offset(at))));
        let ledger = &self.umpa.machine_mut().ledger;
        let wrong = known.into_iter().find(|&frame| !ledger.is_granted(frame) || ledger.stamp(frame) != 0);
        wrong.map_or(Ok(()), |frame| Err(format!("{frame} isn't zero")))
    }

    pub(super) fn promote(&mut self, block: usize) -> Result<(), Defect> {
        let Some(&Block { first, pages, shared, .. }) = self.blocks.get(block % self.blocks.len().max(1))
        else {
            return Ok(());
        };
        let units: Vec<u64> = (first.next_multiple_of(UNIT)..first + pages)
            .step_by(UNIT as usize)
            .filter(|unit| unit + UNIT <= first + pages)
            .collect();
        let count = |wanted: &dyn Fn(u64) -> bool| {
            units.iter().filter(|&&unit| (unit..unit + UNIT).any(wanted)).count() as u64
        };
        let holes = count(&|page| !self.held.contains_key(&page));
        let watched = count(&|page| self.held.get(&page).is_some_and(|held| held.watch.is_some()));
        match self.umpa.userpage_promote_block(gva(first)) {
            Err(BlockError::Pinned { .. }) if shared => Ok(()),
            Ok(done) if !shared => {
                let skipped = done.skipped;
                let sum = done.promoted + done.large + skipped.units();
                // A large leaf may be watched, and a unit with a hole too.
                let right = sum == units.len() as u64
                    && skipped.holes + skipped.watched <= holes + watched
                    && skipped.holes <= holes
                    && skipped.unlike == 0;
                if right { Ok(()) } else { Err(format!("{done:?}, {holes} with holes, {watched} watched")) }
            }
            done => Err(format!("{done:?}")),
        }
    }

    pub(super) fn demote(&mut self, block: usize, at: u64, pages: u64) -> Result<(), Defect> {
        let Some(&Block { first, pages: have, shared, .. }) =
            self.blocks.get(block % self.blocks.len().max(1))
        else {
            return Ok(());
        };
        if have == 0 {
            return Ok(());
        }
        let (from, pages) = (first + at % have, pages.min(have - at % have));
        match self.umpa.userpage_demote(gva(from), pages * PAGE_BYTES) {
            Err(BlockError::Pinned { .. } | BlockError::NotABlock { .. }) if shared => Ok(()),
            Ok(_) if !shared => {
                let large = |page: &u64| self.leaf(*page).is_some_and(|(_, pages)| pages > 1);
                match (from..from + pages).find(large) {
                    Some(page) => Err(format!("page {page:#x} has a large leaf")),
                    None => Ok(()),
                }
            }
            done => Err(format!("{done:?}")),
        }
    }
}
