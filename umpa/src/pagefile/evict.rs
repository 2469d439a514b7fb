//! Winning frames: victims in batches, and the slots that they go to.

use super::{PageFileError, PageState, PagedMachine, Pager, Policy};
use crate::blocks::Umpa;
use crate::entry::EntryFlags;
use crate::frames::Run;
use crate::hardware::{BlockDevice, BlockOp};
use umpa_abi::addr::{Frame, Gva};

/// Most victims that share a flush.
pub const BATCH_MAX: usize = 64;

/// Rounds of victims whose writes all fail before a touch that wants a frame is refused.
const ROUNDS_MAX: u32 = 2;

/// Pages that came in since the last batch. Their first access isn't to count, for policies that want
/// it so: their A bits are cleared by the next batch, whose flush makes that effective.
#[derive(Debug)]
pub(super) struct Fresh {
    pages: [u32; BATCH_MAX],
    len: usize,
}

impl Default for Fresh {
    fn default() -> Self {
        Self { pages: [0; BATCH_MAX], len: 0 }
    }
}

impl Fresh {
    /// More than there is room for are forgotten: they count as used, once.
    pub(super) fn add(&mut self, index: u32) {
        if let Some(place) = self.pages.get_mut(self.len) {
            *place = index;
            self.len += 1;
        }
    }
}

/// A victim that is unmapped, before the flush.
#[derive(Clone, Copy)]
struct Victim {
    index: u32,
    frame: Frame,
    write: bool,
}

impl<D: BlockDevice, P: Policy> Pager<'_, D, P> {
    /// Frames that can be had without I/O, now or when what is in flight is done.
    fn at_hand<M: PagedMachine>(&self, umpa: &Umpa<'_, M>) -> u64 {
        let unused = (self.config.frames_max - self.counts.held()).min(umpa.frames.free_frames());
        unused + self.counts.standby + self.counts.writing
    }

    /// Starts a batch when few frames are at hand.
    pub(super) fn replenish<M: PagedMachine>(&mut self, umpa: &mut Umpa<'_, M>) {
        if self.at_hand(umpa) < self.config.batch_pages && !self.trouble.writes_fail() {
            self.evict(umpa);
        }
    }

    /// A frame for a page of the region, which leaves `spare` others that can be had without I/O.
    pub(super) fn take_frame<M: PagedMachine>(
        &mut self,
        umpa: &mut Umpa<'_, M>,
        gva: Gva,
        spare: u64,
    ) -> Result<Frame, PageFileError> {
        let mut rounds = 0;
        loop {
            self.reap(umpa);
            let unused = self.config.frames_max - self.counts.held();
            // Some more than are needed, so that the hypervisor isn't asked for each.
            if unused > 0 && umpa.make_free(unused.min(BATCH_MAX as u64)).is_err() {
                let _ = umpa.make_free(unused.min(1 + spare));
            }
            let unused = unused.min(umpa.frames.free_frames());
            if unused + self.counts.standby > spare {
                let run = if unused > 0 { umpa.frames.get(1) } else { None };
                if let Some(frame) = run.map(|run| run.first()).or_else(|| self.take_standby()) {
                    return Ok(frame);
                }
            }
            if self.counts.writing > 0 {
                self.await_one(umpa, gva)?;
                continue;
            }
            if rounds < ROUNDS_MAX && self.evict(umpa) > 0 {
                rounds += 1;
            } else if self.counts.reading > 0 {
                self.await_one(umpa, gva)?;
            } else if !self.trouble.writes_fail() && self.counts.held() + unused < self.config.frames_max {
                return Err(PageFileError::NoFrame { gva, held: self.counts.held() });
            } else {
                return Err(self.stuck(gva));
            }
        }
    }

    /// The frame of the page that has been on standby for longest.
    pub(super) fn take_standby(&mut self) -> Option<Frame> {
        let index = self.standby.first()?;
        let frame = self.record(index).state().frame()?;
        let in_file = self.record(index).slot().is_some();
        self.set_state(index, if in_file { PageState::Out } else { PageState::Untouched });
        Some(frame)
    }

    /// Gives a frame back to the store.
    pub(super) fn put_frame<M: PagedMachine>(&mut self, umpa: &mut Umpa<'_, M>, frame: Frame) {
        let put = umpa.frames.put(Run::new(frame, 1));
        debug_assert!(put.is_ok(), "{put:?}");
    }

    /// Unmaps a batch of victims, flushes once, and starts writing those that were written to. Returns
    /// how many are on their way.
    pub(super) fn evict<M: PagedMachine>(&mut self, umpa: &mut Umpa<'_, M>) -> usize {
        let mut batch = [Victim { index: 0, frame: Frame::new(0), write: false }; BATCH_MAX];
        let mut len = 0;
        if !self.policy.counts_arrival() {
            self.forget_arrivals(umpa);
        }
        self.fresh.len = 0;
        // Pages without a slot are passed over, but not for ever.
        let mut left = 2 * self.config.batch_pages;
        while len < self.config.batch_pages as usize && left > 0 {
            left -= 1;
            let (first, looks) = (self.first, &mut self.stats.looks);
            let Some(index) = self.policy.victim(&mut |index| {
                *looks += 1;
                umpa.tables.take_accessed(&mut umpa.machine, first.offset(index.into()))
            }) else {
                break;
            };
            match self.unmap(umpa, index) {
                Some(victim) => {
                    batch[len] = victim;
                    len += 1;
                }
                None => self.policy.inserted(index),
            }
        }
        if len == 0 {
            return 0;
        }
        // The one flush: no cached translation leads to the victims' frames any more, and A bits that
        // were cleared are set again by the next use.
        umpa.settle();
        self.stats.batches += 1;
        for victim in &batch[..len] {
            self.send(umpa, *victim);
        }
        self.device.kick();
        len
    }

    fn forget_arrivals<M: PagedMachine>(&mut self, umpa: &mut Umpa<'_, M>) {
        for at in 0..self.fresh.len {
            let index = self.fresh.pages[at];
            if matches!(self.record(index).state(), PageState::Resident(_)) {
                self.stats.looks += 1;
                let page = self.page(index);
                umpa.tables.take_accessed(&mut umpa.machine, page);
            }
        }
    }

    /// Takes a resident page's mapping away, and finds a slot for it if it must be written. `None`, and
    /// nothing is done, when there is no slot.
    fn unmap<M: PagedMachine>(&mut self, umpa: &mut Umpa<'_, M>, index: u32) -> Option<Victim> {
        let PageState::Resident(frame) = self.record(index).state() else {
            debug_assert!(false, "the policy's page {index} is {:?}", self.record(index).state());
            return None;
        };
        let page = self.page(index);
        let mapped = umpa.tables.translate(&umpa.machine, page);
        let dirty = mapped.is_none_or(|leaf| leaf.flags.contains(EntryFlags::DIRTY));
        let write = dirty || self.record(index).must_write();
        if write && self.record(index).slot().is_none() {
            let slot = self.find_slot()?;
            self.set_slot(index, Some(slot));
        }
        if mapped.is_some() {
            // The frame isn't put anywhere before the flush: this batch's.
            let unmapped = umpa.tables.unmap(&mut umpa.machine, page, 1, &mut |stale| {
                debug_assert_eq!((stale.first(), stale.frames()), (frame, 1));
            });
            match unmapped {
                Ok(flush) => flush.defer(&mut umpa.owed),
                Err(error) => debug_assert!(false, "{error:?}: {page} is mapped by a large leaf"),
            }
        }
        // Until it is sent, a slot that it has is no one else's ([`Self::find_slot`]).
        self.set_must_write(index, true);
        Some(Victim { index, frame, write })
    }

    /// After the flush: writes the victim, or puts it on standby when its slot holds the same.
    fn send<M: PagedMachine>(&mut self, umpa: &mut Umpa<'_, M>, Victim { index, frame, write }: Victim) {
        self.set_must_write(index, false);
        if !write {
            self.stats.clean += 1;
            self.set_state(index, PageState::Standby(frame));
            return;
        }
        let sum = umpa.machine.checksum(frame);
        if let Some(slot) = self.record(index).slot() {
            self.slots.set_sum(slot, sum);
        }
        self.set_state(index, PageState::Writing(frame));
        if self.submit(umpa, BlockOp::Write, index, frame) {
            self.stats.page_outs += 1;
        } else {
            // The device takes nothing at all: the page stays where it is.
            if let Some(slot) = self.record(index).slot() {
                self.slots.put(slot);
                self.set_slot(index, None);
            }
            self.set_must_write(index, true);
            self.set_state(index, PageState::Resident(frame));
            self.policy.inserted(index);
        }
    }

    /// A slot to write to: a free one, or one that a resident page has, which can be written again. While
    /// writes fail those come first, as they worked once. Where there is no other, one that was set aside:
    /// it may work now, and without it a page could be stuck.
    pub(super) fn find_slot(&mut self) -> Option<u64> {
        let proven = if self.trouble.writes_fail() { self.take_slot_back() } else { None };
        proven.or_else(|| self.slots.get()).or_else(|| self.take_slot_back()).or_else(|| self.slots.recall())
    }

    /// The slot of a resident page, which must be written again then.
    fn take_slot_back(&mut self) -> Option<u64> {
        // A page that must be written and has a slot is a victim: its slot is for this batch's write.
        for _ in 0..self.pages {
            let index = self.slot_hand;
            self.slot_hand = if index + 1 < self.pages { index + 1 } else { 0 };
            let record = self.record(index);
            let resident = matches!(record.state(), PageState::Resident(_)) && !record.must_write();
            if let Some(slot) = record.slot().filter(|_| resident) {
                self.set_slot(index, None);
                self.set_must_write(index, true);
                return Some(slot);
            }
        }
        None
    }
}
