//! Guarded blocks: each ends at an unmapped page, freed ones stay unmapped for a while, and a fault names
//! its block.
//!
//! ```text
//!      a slot: 2^k bytes, of which at least the last page is never mapped
//! ┌──────────┬───────────────┬───────────────┐
//! │ slack    │ block         │ guard pages … │   the next slot
//! └──────────┴───────────────┴───────────────┘
//! ```
//!
//! A block of [`Guard`] is placed so that its last byte, rounded up to its alignment, is the last one of a
//! page: reading or writing past it is a page fault. Its slack lies before it; before that is the guard of
//! the slot below. (The idea is that of jkmalloc, and of Electric Fence before it.) When a block is freed its frames
//! go back and its addresses are kept unmapped, in order, until [`Bounds`] of them are exceeded.
//! [`Guard::explain`] tells the page fault's handler which block an address belongs to, how far it lies from
//! the block's start, and whether the block was freed.
//!
//! Blocks of a guard aren't blocks to `userpage_free`, nor the other way round.
//!
//! # Invariants ([`Guard::check`])
//!
//! - `records = free + live + quarantined`;
//! - a live block's pages are mapped, each to a frame of its own, and no other page of its slot is; of a
//!   freed block no page is;
//! - `frames = Σ pages of live blocks` (they are blocks' to [`Umpa::check`]);
//! - quarantined blocks are at most [`Bounds::blocks`], their addresses at most [`Bounds::pages`]; the one
//!   that was freed first leaves first.
//!
//! # Cost
//!
//! A frame for each begun page and a window for each block; one record ([`Record`]); with
//! [`Detect::AtOnce`] a flush for each free. Explaining is constant.
//!
//! # Limits
//!
//! An overrun shorter than what the size lacks to a multiple of the alignment isn't noticed (with alignment
//! 1, each is), nor is an underrun within the slack. With [`Detect::AtNextFlush`] a freed block may be seen
//! through a cached translation until then; its frames are nobody else's so long.

mod error;

pub use error::GuardError;

use crate::blocks::{AllocError, Machine, Umpa};
use crate::flush::{Flush, FlushBatch};
use crate::space::{Slot, State};
use core::ops::ControlFlow;
use umpa_abi::addr::{Gva, PAGE_BYTES};
use umpa_abi::layout::BLOCKS_GVA;

/// When an access to a freed block faults.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Detect {
    /// From the free on.
    #[default]
    AtOnce,
    /// From the next flush of everything on.
    AtNextFlush,
}

/// What is kept of freed blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// At most so many of them.
    pub blocks: u64,
    /// At most so many pages of addresses, slots counted whole.
    pub pages: u64,
}

/// What an address has to do with a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Explained {
    /// The block's start.
    pub block: Gva,
    /// Its size, as asked for.
    pub bytes: u64,
    /// How far the address is from the start: negative before the block, `bytes` or more behind it.
    pub offset: i64,
    /// It was freed.
    pub freed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Free,
    Live,
    Quarantined,
}

/// A block, or a record for one.
#[derive(Clone, Copy, Debug)]
pub struct Record {
    slot: Slot,
    block: Gva,
    bytes: u64,
    /// The next free record, or the block freed after this one.
    next: u32,
    life: Life,
}

const NONE: u32 = u32::MAX;

const NO_SLOT: Slot = match Slot::containing(BLOCKS_GVA) {
    Some((slot, _)) => slot,
    None => panic!("the blocks' addresses begin with a slot"),
};

impl Record {
    /// No block: what memory for a guard is filled with.
    pub const EMPTY: Self =
        Self { slot: NO_SLOT, block: Gva::new(0), bytes: 0, next: NONE, life: Life::Free };

    /// Pages that are mapped while it lives.
    const fn pages(&self) -> u64 {
        (self.block.get() + self.bytes).div_ceil(PAGE_BYTES) - self.slot.page().get()
    }
}

/// See the [module](self).
#[derive(Debug)]
pub struct Guard<'a> {
    records: &'a mut [Record],
    bounds: Bounds,
    detect: Detect,
    free_head: u32,
    oldest: u32,
    newest: u32,
    live: u64,
    frames: u64,
    kept_blocks: u64,
    kept_pages: u64,
}

impl<'a> Guard<'a> {
    /// A guard without blocks, with a record for each block that is live or kept.
    #[must_use]
    pub fn new(records: &'a mut [Record], bounds: Bounds, detect: Detect) -> Self {
        let usable = records.len().min(NONE as usize);
        let records = &mut records[..usable];
        let last = records.len().wrapping_sub(1);
        for (number, record) in records.iter_mut().enumerate() {
            *record = Record { next: if number == last { NONE } else { number as u32 + 1 }, ..Record::EMPTY };
        }
        let free_head = if records.is_empty() { NONE } else { 0 };
        Self {
            records,
            bounds,
            detect,
            free_head,
            oldest: NONE,
            newest: NONE,
            live: 0,
            frames: 0,
            kept_blocks: 0,
            kept_pages: 0,
        }
    }

    /// Live blocks.
    #[must_use]
    pub const fn live(&self) -> u64 {
        self.live
    }

    /// Frames of live blocks.
    #[must_use]
    pub const fn frames(&self) -> u64 {
        self.frames
    }

    /// Freed blocks whose addresses are kept unmapped.
    #[must_use]
    pub const fn kept_blocks(&self) -> u64 {
        self.kept_blocks
    }

    /// Pages of their addresses.
    #[must_use]
    pub const fn kept_pages(&self) -> u64 {
        self.kept_pages
    }

    /// A block of `bytes` at a multiple of `align` that ends at an unmapped page. Its content is whatever
    /// the frames held.
    ///
    /// # Errors
    /// [`GuardError`].
    pub fn alloc<M: Machine>(
        &mut self,
        umpa: &mut Umpa<'_, M>,
        bytes: u64,
        align: u64,
    ) -> Result<Gva, GuardError> {
        if !align.is_power_of_two() || align > PAGE_BYTES {
            return Err(GuardError::BadAlign { align });
        }
        let room = bytes.checked_next_multiple_of(align).filter(|&room| room > 0 && room < 1 << 47);
        let room = room.ok_or(GuardError::BadSize { bytes })?;
        let number = self.record(umpa)?;
        let pages = room.div_ceil(PAGE_BYTES);
        let slot = loop {
            match umpa.new_window(pages, pages + 1) {
                Ok(slot) => break slot,
                // Addresses that are kept are given up before an allocation fails.
                Err(AllocError::Space(_)) if self.kept_blocks > 0 => self.release_oldest(umpa),
                Err(error) => return Err(GuardError::Alloc(error)),
            }
        };
        umpa.space.hold(&mut umpa.machine, umpa.tables.arena_mut(), slot, number.into());
        let block = Gva::new(slot.page().start().get() + pages * PAGE_BYTES - room);
        self.free_head = self.records[number as usize].next;
        self.records[number as usize] = Record { slot, block, bytes, next: NONE, life: Life::Live };
        self.live += 1;
        self.frames += pages;
        Ok(block)
    }

    /// Ends a block. Its frames go back, its addresses are kept.
    ///
    /// # Errors
    /// [`GuardError::DoubleFree`], [`GuardError::Inside`], [`GuardError::Foreign`].
    pub fn free<M: Machine>(&mut self, umpa: &mut Umpa<'_, M>, block: Gva) -> Result<(), GuardError> {
        let foreign = GuardError::Foreign { gva: block };
        let number = self.number_at(umpa, block).ok_or(foreign)?;
        let record = self.records[number as usize];
        let offset = block.get() as i64 - record.block.get() as i64;
        match record.life {
            Life::Free => return Err(foreign),
            _ if offset != 0 && (offset < 0 || offset as u64 >= record.bytes) => return Err(foreign),
            Life::Quarantined => {
                return Err(GuardError::DoubleFree { block: record.block, bytes: record.bytes });
            }
            Life::Live if offset != 0 => return Err(GuardError::Inside { block: record.block, offset }),
            Life::Live => {}
        }
        umpa.unmap_to_quarantine(record.slot.page(), record.pages());
        if self.detect == Detect::AtOnce {
            let mut flushes = FlushBatch::new();
            flushes.add(Flush::new(record.slot.page(), record.pages()));
            umpa.pay(flushes);
        }
        self.live -= 1;
        self.frames -= record.pages();
        self.keep(number);
        while self.kept_blocks > self.bounds.blocks || self.kept_pages > self.bounds.pages {
            self.release_oldest(umpa);
        }
        Ok(())
    }

    /// The size of a live block, as asked for.
    ///
    /// # Errors
    /// [`GuardError::Foreign`] where no live block begins.
    pub fn bytes<M: Machine>(&self, umpa: &Umpa<'_, M>, block: Gva) -> Result<u64, GuardError> {
        let found = self.number_at(umpa, block).map(|number| self.records[number as usize]);
        let found = found.filter(|record| record.life == Life::Live && record.block == block);
        found.map(|record| record.bytes).ok_or(GuardError::Foreign { gva: block })
    }

    /// Which block an address belongs to: the one in whose slot it lies, or the one above if that is
    /// nearer. `None` where no block is near, or its addresses aren't kept any more.
    #[must_use]
    pub fn explain<M: Machine>(&self, umpa: &Umpa<'_, M>, gva: Gva) -> Option<Explained> {
        let (slot, _) = Slot::containing(gva)?;
        let above = gva.checked_add(slot.pages() * PAGE_BYTES);
        let [here, above] = [Some(gva), above].map(|within| self.explain_in_slot(umpa, within?, gva));
        // An underrun reaches through the slack, and a page further down.
        let above = above.filter(|found| found.offset >= -2 * PAGE_BYTES as i64);
        let beyond = |found: &Explained| (found.offset - found.bytes as i64).max(-found.offset).max(0);
        match (here, above) {
            (Some(here), Some(above)) if beyond(&above) < beyond(&here) => Some(above),
            (None, found) | (found, _) => found,
        }
    }

    fn explain_in_slot<M: Machine>(&self, umpa: &Umpa<'_, M>, within: Gva, gva: Gva) -> Option<Explained> {
        let record = self.records[self.number_at(umpa, within)? as usize];
        let Record { block, bytes, life, .. } = record;
        let offset = gva.get() as i64 - block.get() as i64;
        (life != Life::Free).then_some(Explained { block, bytes, offset, freed: life == Life::Quarantined })
    }

    /// Gives up all addresses that are kept; they wait for a flush then. Live blocks stay.
    pub fn forget<M: Machine>(&mut self, umpa: &mut Umpa<'_, M>) {
        while self.kept_blocks > 0 {
            self.release_oldest(umpa);
        }
    }

    /// Asserts the invariants. Linear; for tests.
    ///
    /// # Panics
    /// When one doesn't hold.
    pub fn check<M: Machine>(&self, umpa: &Umpa<'_, M>) {
        let mut counts = [0; 3];
        let (mut frames, mut kept_pages) = (0, 0);
        for (number, record) in self.records.iter().enumerate() {
            counts[record.life as usize] += 1;
            if record.life == Life::Free {
                continue;
            }
            let slot = record.slot;
            assert_eq!(self.number_at(umpa, record.block), Some(number as u32), "{record:?}");
            let mut mapped = 0;
            let _ = umpa.tables.for_each_leaf(&umpa.machine, slot.page(), slot.pages(), &mut |leaf| {
                let end = leaf.page.get() + leaf.pages;
                assert!(end <= slot.page().get() + record.pages(), "{leaf:?} of {record:?}");
                mapped += leaf.pages;
                ControlFlow::<()>::Continue(())
            });
            let live = record.life == Life::Live;
            assert_eq!(mapped, if live { record.pages() } else { 0 }, "{record:?}");
            assert!(record.pages() < slot.pages(), "{record:?} has no guard");
            frames += mapped;
            kept_pages += if live { 0 } else { slot.pages() };
        }
        assert_eq!((counts[1], counts[2]), (self.live, self.kept_blocks), "live, kept");
        assert_eq!((frames, kept_pages), (self.frames, self.kept_pages), "frames, pages kept");
        assert!(self.kept_blocks <= self.bounds.blocks && self.kept_pages <= self.bounds.pages);
        let (mut at, mut in_order) = (self.oldest, 0);
        while at != NONE {
            assert_eq!(self.records[at as usize].life, Life::Quarantined);
            (at, in_order) = (self.records[at as usize].next, in_order + 1);
        }
        assert_eq!(in_order, self.kept_blocks, "blocks in order");
    }

    /// A free record; the oldest freed block gives up its own for it.
    fn record<M: Machine>(&mut self, umpa: &mut Umpa<'_, M>) -> Result<u32, GuardError> {
        if self.free_head == NONE && self.kept_blocks > 0 {
            self.release_oldest(umpa);
        }
        if self.free_head == NONE {
            return Err(GuardError::Full { records: self.records.len() });
        }
        Ok(self.free_head)
    }

    /// The record of the slot that the address lies in.
    fn number_at<M: Machine>(&self, umpa: &Umpa<'_, M>, gva: Gva) -> Option<u32> {
        let (slot, _) = Slot::containing(gva)?;
        let State::Held { note } = umpa.space.state(&umpa.machine, slot) else { return None };
        let record = self.records.get(note as usize)?;
        // Others hold slots too, with notes of their own.
        (record.life != Life::Free && record.slot == slot).then_some(note as u32)
    }

    fn keep(&mut self, number: u32) {
        let record = &mut self.records[number as usize];
        let pages = record.slot.pages();
        (record.life, record.next) = (Life::Quarantined, NONE);
        match self.newest {
            NONE => self.oldest = number,
            newest => self.records[newest as usize].next = number,
        }
        self.newest = number;
        self.kept_blocks += 1;
        self.kept_pages += pages;
    }

    /// Gives up the addresses of the block that was freed first.
    fn release_oldest<M: Machine>(&mut self, umpa: &mut Umpa<'_, M>) {
        let number = self.oldest;
        let Some(record) = self.records.get(number as usize).copied() else { return };
        self.oldest = record.next;
        if self.oldest == NONE {
            self.newest = NONE;
        }
        self.kept_blocks -= 1;
        self.kept_pages -= record.slot.pages();
        self.records[number as usize] = Record { next: self.free_head, ..Record::EMPTY };
        self.free_head = number;
        umpa.end_window(record.slot, 0);
    }
}
