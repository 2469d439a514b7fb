//! Requests to the device, and what becomes of them.

use super::{PageFileError, PageState, PagedMachine, Pager, Policy};
use crate::blocks::Umpa;
use crate::hardware::{BlockCompletion, BlockDevice, BlockError, BlockOp, BlockRequest};
use umpa_abi::addr::{Frame, Gva};

/// Writes in a row that may fail before it is held against the device instead of the slot.
const TRIES_MAX: u32 = 4;

/// What went wrong lately.
#[derive(Debug, Default)]
pub(super) struct Trouble {
    /// Writes that failed since the last one that didn't.
    failed_in_a_row: u32,
    /// Page, slot and error of the last failed write.
    write: Option<(u32, u64, BlockError)>,
    /// The page that a fault waits for.
    wanted: Option<u32>,
    /// Why it couldn't be read.
    read: Option<BadRead>,
}

impl Trouble {
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }

    /// From now on this page's reads matter; those ahead may fail unseen.
    pub(super) fn want(&mut self, index: u32) {
        (self.wanted, self.read) = (Some(index), None);
    }

    pub(super) fn take_read(&mut self) -> Option<BadRead> {
        self.read.take()
    }

    pub(super) fn writes_fail(&self) -> bool {
        self.failed_in_a_row > 0
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) enum BadRead {
    Failed(BlockError),
    Differs { expected: u64, found: u64 },
}

impl<D: BlockDevice, P: Policy> Pager<'_, D, P> {
    /// Why no frame could be freed.
    pub(super) fn stuck(&self, gva: Gva) -> PageFileError {
        match self.trouble.write {
            Some((victim, slot, error)) if self.trouble.writes_fail() => {
                PageFileError::WriteFailed { gva, victim: self.page(victim).start(), slot, error }
            }
            _ => PageFileError::NoSlot { gva, retired: self.slots.retired() },
        }
    }

    /// Takes the completions that there are.
    pub(super) fn reap<M: PagedMachine>(&mut self, umpa: &mut Umpa<'_, M>) {
        while let Some(completion) = self.device.poll() {
            self.complete(umpa, completion);
        }
    }

    /// Waits for one completion, whatever it is of.
    pub(super) fn await_one<M: PagedMachine>(
        &mut self,
        umpa: &mut Umpa<'_, M>,
        gva: Gva,
    ) -> Result<(), PageFileError> {
        match self.device.wait() {
            Some(completion) => {
                self.complete(umpa, completion);
                Ok(())
            }
            None => Err(PageFileError::Lost { gva, requests: self.counts.writing + self.counts.reading }),
        }
    }

    /// Queues a request for the page, which has a slot.
    pub(super) fn submit<M: PagedMachine>(
        &mut self,
        umpa: &mut Umpa<'_, M>,
        op: BlockOp,
        index: u32,
        frame: Frame,
    ) -> bool {
        let Some(slot) = self.record(index).slot() else { return false };
        let request = BlockRequest { op, slot, frame, tag: index.into() };
        loop {
            if self.device.submit(request).is_ok() {
                return true;
            }
            // The queue is full of earlier requests: one of them must end first.
            match self.device.wait() {
                Some(completion) => self.complete(umpa, completion),
                None => return false,
            }
        }
    }

    fn complete<M: PagedMachine>(&mut self, umpa: &mut Umpa<'_, M>, completion: BlockCompletion) {
        let index = u32::try_from(completion.tag).ok().filter(|&index| index < self.pages);
        let state = index.map(|index| self.record(index).state());
        match (index, state) {
            (Some(index), Some(PageState::Writing(frame))) => match completion.result {
                Ok(()) => {
                    self.trouble.failed_in_a_row = 0;
                    self.set_state(index, PageState::Standby(frame));
                }
                Err(error) => self.write_failed(index, frame, error),
            },
            (Some(index), Some(PageState::Reading(frame))) => {
                self.read_done(umpa, index, frame, completion.result);
            }
            _ => self.stats.strange += 1,
        }
    }

    /// The page stays in its frame. Another slot is tried at once, unless the device seems to be broken.
    fn write_failed(&mut self, index: u32, frame: Frame, error: BlockError) {
        let Some(slot) = self.record(index).slot() else { return };
        self.stats.failed_writes += 1;
        self.trouble.failed_in_a_row += 1;
        self.trouble.write = Some((index, slot, error));
        let sum = self.slots.sum(slot);
        self.set_slot(index, None);
        if self.trouble.failed_in_a_row > TRIES_MAX {
            self.slots.put(slot);
        } else {
            self.slots.retire(slot);
            if let Some(other) = self.find_slot() {
                self.slots.set_sum(other, sum);
                let request = BlockRequest { op: BlockOp::Write, slot: other, frame, tag: index.into() };
                if self.device.submit(request).is_ok() {
                    self.set_slot(index, Some(other));
                    return;
                }
                self.slots.put(other);
            }
        }
        self.set_must_write(index, true);
        self.set_state(index, PageState::Resident(frame));
        self.policy.inserted(index);
    }

    fn read_done<M: PagedMachine>(
        &mut self,
        umpa: &mut Umpa<'_, M>,
        index: u32,
        frame: Frame,
        result: Result<(), BlockError>,
    ) {
        let expected = self.record(index).slot().map_or(0, |slot| self.slots.sum(slot));
        let bad = match result {
            Err(error) => BadRead::Failed(error),
            Ok(()) => match umpa.machine.checksum(frame) {
                found if found == expected => {
                    self.set_state(index, PageState::Standby(frame));
                    return;
                }
                found => BadRead::Differs { expected, found },
            },
        };
        self.stats.failed_reads += 1;
        if self.trouble.wanted == Some(index) {
            self.trouble.read = Some(bad);
        }
        self.set_state(index, PageState::Out);
        self.put_frame(umpa, frame);
    }
}
