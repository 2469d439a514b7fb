//! A page file that completes its requests in any order, late, and not always well.
//!
//! It holds the contract of `umpa::hardware::BlockDevice` against its user: a frame that it works on
//! must not change, and slots must exist.

use super::ledger::{Ledger, Stamps};
use std::cell::RefCell;
use std::rc::Rc;
use umpa::hardware::{BlockCompletion, BlockDevice, BlockError, BlockOp, BlockRequest, QueueFull};
use umpa_abi::addr::Frame;

/// What becomes of requests, in percent. Changed while the device is in use.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plan {
    /// Writes that fail, the slot's content being unknown then.
    pub(crate) failed_writes: u64,
    /// Slots on which every write fails.
    pub(crate) bad_slots: Vec<u64>,
    /// Slots from this one on fail for want of room, if they weren't written before.
    pub(crate) no_space_from: Option<u64>,
    /// Writes that are done by half and reported as good.
    pub(crate) torn_writes: u64,
    /// Writes that aren't done at all and reported as good.
    pub(crate) lost_writes: u64,
    /// Reads that fail.
    pub(crate) failed_reads: u64,
    /// Reads that bring something else, though the slot is right.
    pub(crate) garbled_reads: u64,
    /// Requests that are never completed.
    pub(crate) forgotten: u64,
    /// Polls that bring a completion.
    pub(crate) polls_of_100: u64,
}

/// What happened.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Done {
    pub(crate) reads: u64,
    pub(crate) writes: u64,
    /// Slots whose content isn't what was written.
    pub(crate) torn: u64,
    pub(crate) forgotten: u64,
}

/// See the [module](self).
pub(crate) struct Disk {
    slots: Vec<Option<u64>>,
    stamps: Stamps,
    /// With the frame's content at the time of the request.
    queue: Vec<(BlockRequest, u64)>,
    queue_max: usize,
    seed: u64,
    pub(crate) plan: Rc<RefCell<Plan>>,
    pub(crate) done: Done,
}

impl Disk {
    pub(crate) fn new(slots: u64, queue_max: usize, stamps: Stamps, seed: u64) -> Self {
        let plan = Rc::new(RefCell::new(Plan { polls_of_100: 30, ..Plan::default() }));
        Self {
            slots: vec![None; slots as usize],
            stamps,
            queue: Vec::new(),
            queue_max,
            seed,
            plan,
            done: Done::default(),
        }
    }

    /// What a slot holds.
    pub(crate) fn slot(&self, slot: u64) -> Option<u64> {
        self.slots[slot as usize]
    }

    /// Requests in flight.
    pub(crate) fn in_flight(&self) -> usize {
        self.queue.len()
    }

    fn random(&mut self, below: u64) -> u64 {
        self.seed = self.seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (self.seed >> 33) % below
    }

    fn happens(&mut self, of_100: u64) -> bool {
        of_100 > 0 && self.random(100) < of_100
    }

    fn content(&self, frame: Frame) -> &std::cell::Cell<u64> {
        &self.stamps[Ledger::unit(frame).expect("a frame that can be granted")]
    }

    /// Does one request, any of them.
    fn complete(&mut self) -> Option<BlockCompletion> {
        while !self.queue.is_empty() {
            let at = self.random(self.queue.len() as u64) as usize;
            let (request, before) = self.queue.swap_remove(at);
            assert_eq!(self.content(request.frame).get(), before, "the frame of {request:?} was written");
            if self.happens(self.plan.clone().borrow().forgotten) {
                self.done.forgotten += 1;
                continue;
            }
            let result = match request.op {
                BlockOp::Write => self.write(request.slot, before),
                BlockOp::Read => self.read(request.slot, request.frame),
                BlockOp::Flush => Ok(()),
            };
            return Some(BlockCompletion { tag: request.tag, result });
        }
        None
    }

    fn write(&mut self, slot: u64, content: u64) -> Result<(), BlockError> {
        let plan = self.plan.clone();
        let plan = plan.borrow();
        let half = (content & 0xffff_ffff) | self.slots[slot as usize].unwrap_or(0) & !0xffff_ffff;
        self.done.writes += 1;
        if plan.no_space_from.is_some_and(|from| slot >= from) && self.slots[slot as usize].is_none() {
            return Err(BlockError::NoSpace);
        }
        if plan.bad_slots.contains(&slot) || self.happens(plan.failed_writes) {
            self.slots[slot as usize] = Some(half);
            return Err(BlockError::Io);
        }
        if self.happens(plan.lost_writes) {
            self.done.torn += 1;
            return Ok(());
        }
        let torn = self.happens(plan.torn_writes);
        self.done.torn += u64::from(torn);
        self.slots[slot as usize] = Some(if torn { half ^ 1 << 40 } else { content });
        Ok(())
    }

    fn read(&mut self, slot: u64, frame: Frame) -> Result<(), BlockError> {
        let plan = self.plan.clone();
        let plan = plan.borrow();
        self.done.reads += 1;
        if self.happens(plan.failed_reads) {
            self.content(frame).set(0xdead);
            return Err(BlockError::Io);
        }
        let garbled = u64::from(self.happens(plan.garbled_reads)) << 20;
        self.content(frame).set(self.slots[slot as usize].unwrap_or(0xbad) ^ garbled);
        Ok(())
    }
}

impl BlockDevice for Disk {
    fn slots(&self) -> u64 {
        self.slots.len() as u64
    }

    fn submit(&mut self, request: BlockRequest) -> Result<(), QueueFull> {
        assert!(request.slot < self.slots(), "{request:?} beyond the file");
        let busy =
            |&(other, _): &(BlockRequest, u64)| other.frame == request.frame || other.slot == request.slot;
        assert!(!self.queue.iter().any(busy), "{request:?}: frame or slot is in use: {:?}", self.queue);
        if self.queue.len() >= self.queue_max {
            return Err(QueueFull);
        }
        let before = self.content(request.frame).get();
        self.queue.push((request, before));
        Ok(())
    }

    fn kick(&mut self) {}

    fn poll(&mut self) -> Option<BlockCompletion> {
        if self.happens(self.plan.clone().borrow().polls_of_100) { self.complete() } else { None }
    }

    fn wait(&mut self) -> Option<BlockCompletion> {
        self.complete()
    }
}
