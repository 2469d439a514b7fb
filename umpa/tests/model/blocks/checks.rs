//! What must hold after each step, and at the end.

use super::{Block, Defect, Step, World, expect};
use crate::simulated::{Access, Fault, Mapped};
use std::collections::{BTreeMap, BTreeSet};
use umpa_abi::addr::{Frame, Gva, PAGE_BYTES, Page};
use umpa_abi::layout::BLOCKS_GVA;

/// Where slots of 2 MiB and more begin: those that covers may have.
const LARGE_SLOTS: Page = Gva::new(BLOCKS_GVA.get() + (9 << 40)).containing();

impl World<'_> {
    /// Everything that must hold after a step.
    pub(super) fn verify(&mut self, touched: Option<Gva>) -> Result<(), Defect> {
        let mut owners: BTreeMap<Frame, Gva> = BTreeMap::new();
        let mut block_frames = 0;
        for block in &self.blocks {
            for (at, stamp) in block.stamps.iter().enumerate() {
                block_frames += u64::from(stamp.is_some());
                let gva = Gva::new(block.gva.get() + at as u64 * PAGE_BYTES);
                let look = Some(block.gva) == touched || (at + self.steps).is_multiple_of(self.setup.stride);
                let Some(expected) = *stamp else { continue };
                let Some(mapped) = self.umpa.machine_mut().tree_frame(gva.containing()) else {
                    let fault = Fault::Absent { page: gva.containing() };
                    return Err(Defect::Access { gva, fault });
                };
                if owners.insert(mapped, block.gva).is_some() {
                    return Err(Defect::SharedFrame { gva, frame: mapped });
                }
                if !look {
                    continue;
                }
                let found = self.umpa.machine_mut().access(gva, Access::Read);
                let found = found.map_err(|fault| Defect::Access { gva, fault })?;
                if found != expected {
                    return Err(Defect::Content { gva, expected, found });
                }
            }
        }
        self.verify_dead(&owners)?;
        self.verify_zeroed()?;
        self.umpa.check(block_frames);
        let arena = self.umpa.tables().arena();
        let counted = arena.used_tables() + arena.free_tables() + arena.stale_tables();
        expect("tables", &counted, |&tables| tables == arena.frames())
    }

    /// No address that isn't a block's reaches a block's frame, through whatever is still cached.
    fn verify_dead(&mut self, owners: &BTreeMap<Frame, Gva>) -> Result<(), Defect> {
        let live: BTreeSet<Page> = self.blocks.iter().flat_map(Block::backed).collect();
        let holes = self.blocks.iter().flat_map(Block::holes);
        let dead =
            self.dead.iter().map(|(&page, &stamp)| (page, stamp)).chain(holes.map(|page| (page, None)));
        let settled = self.umpa.owed().settled();
        let dead: Vec<_> =
            dead.filter(|(page, moved)| !live.contains(page) && *moved != Some(settled)).collect();
        let covers = self.setup.config.cover_min_pages < u64::MAX;
        for (page, _) in dead {
            let machine = self.umpa.machine_mut();
            if covers && page >= LARGE_SLOTS {
                // A cover there showed the address by right, and may still be cached.
                continue;
            }
            for found in machine.translations(page) {
                let gva = page.start();
                let found = found.map_err(|fault| Defect::Access { gva, fault })?;
                if let Some(frame) = found.map(Mapped::frame).filter(|frame| owners.contains_key(frame)) {
                    return Err(Defect::ForeignFrame { gva, frame });
                }
            }
        }
        Ok(())
    }

    /// Ends everything; then all frames can be had at once, and given back.
    pub(crate) fn finish(&mut self) -> Result<(), Defect> {
        while !self.blocks.is_empty() {
            self.step(&Step::Free { block: 0 })?;
        }
        let all = self.available();
        if all > 0 && !self.setup.few_tables {
            let touched = self.apply(&Step::Malloc { pages: all })?;
            self.verify(touched)?;
            expect("a block of everything", &self.len(), |&len| len == 1)?;
            let block = self.blocks[0].clone();
            for at in 0..block.stamps.len() {
                let gva = Gva::new(block.gva.get() + at as u64 * PAGE_BYTES);
                let found = self.umpa.machine_mut().access(gva, Access::Read);
                found.map_err(|fault| Defect::Access { gva, fault })?;
            }
            self.step(&Step::Free { block: 0 })?;
        }
        Ok(())
    }
}

impl Block {
    fn backed(&self) -> impl Iterator<Item = Page> {
        let first = self.gva.containing();
        let backed = self.stamps.iter().enumerate().filter(|(_, stamp)| stamp.is_some());
        backed.map(move |(at, _)| first.offset(at as u64))
    }

    fn holes(&self) -> impl Iterator<Item = Page> {
        let first = self.gva.containing();
        let holes = self.stamps.iter().enumerate().filter(|(_, stamp)| stamp.is_none());
        holes.map(move |(at, _)| first.offset(at as u64))
    }
}
