//! The steps that are requests of the block device, and what is in the page file.
//!
//! The device may reach granted frames and the file's slots, whole ones, and nothing else. A request that is right
//! moves a slot's words to a frame or a frame's to a slot; whatever isn't is refused and changes neither. Each step
//! waits for its request; some give the frame back while it may be under way.
//!
//! The first words of each slot are in a frame of the table arena, the others are zero, as in all frames.

use umpa::hardware::{FrameSource, TableMemory};
use umpa_abi::addr::{Frame, Gpa, PAGE_BYTES, PageSize};
use umpa_abi::block::{FLUSH, READ, SECTORS_PER_SLOT, STATUS_OK, STATUS_REFUSED, WRITE};
use umpa_abi::exchange::{Extent, Policy, Shortfall};
use umpa_abi::fuzz::SLOTS;
use umpa_abi::paging::{ENTRIES, PRESENT};

use super::model::{CODE_WORD, Model, PROCESSORS, WORDS};
use super::steps::{Count, Input, Steps};
use crate::attacks::queue::{DEVICE_WRITES, Descriptor, NEXT, Queue};
use crate::mmu;
use crate::workloads::{Failure, check};

/// The device, and what should be in its file.
pub(super) struct File {
    queue: Queue,
    words: Frame,
    /// A bit for each slot that was written since it was empty.
    written: u64,
}

const _: () = assert!(SLOTS * WORDS <= ENTRIES as u64 && SLOTS < 64);

impl File {
    /// `words` is a frame of the table arena.
    pub(super) const fn new(queue: Queue, words: Frame) -> Self {
        Self { queue, words, written: 0 }
    }
}

/// Flags of the data of a request of this kind.
const fn flags(kind: u32) -> u16 {
    if kind == READ { NEXT | DEVICE_WRITES } else { NEXT }
}

impl Steps<'_, '_> {
    fn slot_word(&self, slot: u64, word: u64) -> u64 {
        self.attacker.machine.tables.read(self.file.words, (slot * WORDS + word) as usize)
    }

    fn put_slot_word(&mut self, slot: u64, word: u64, value: u64) {
        self.attacker.machine.tables.write(self.file.words, (slot * WORDS + word) as usize, value);
    }

    /// A request.
    pub(super) fn block(&mut self, input: &mut Input<'_>) -> Result<(), Failure> {
        let [what, slot, which, look] = [input.byte(), input.byte() % SLOTS, input.byte(), input.byte()];
        match (what % 8, self.model.listed(which)) {
            (0..3, Some(index)) => self.good_block(READ, slot, index, what, look),
            (3..5, Some(index)) => self.good_block(WRITE, slot, index, what, look),
            _ => self.bad_block(input, what, slot, look),
        }
    }

    fn good_block(&mut self, kind: u32, slot: u64, index: u64, what: u64, look: u64) -> Result<(), Failure> {
        self.count(if kind == READ { Count::BlockRead } else { Count::BlockWrite });
        let frame = self.model.frame(index);
        let queue = &mut self.file.queue;
        let head = queue.good(0, kind, slot, frame);
        queue.offer(head);
        queue.show(queue.offered);
        // Under way, or done already.
        let mut is_given = false;
        if what & 0xe0 == 0xe0 {
            let back = [Extent::new(frame, 1, PageSize::Size4K)];
            let source = &mut self.attacker.machine.hypervisor;
            let exchanged = source.exchange(&back, [0; 3], Policy::AllOrNothing, &mut |_| {});
            is_given = exchanged.taken_frames == 1;
            let queue = &self.file.queue;
            let is_kept = exchanged.shortfall == Shortfall::NotYours && exchanged.taken_frames == 0;
            check(is_given || is_kept, "a frame of a request is neither kept nor taken")?;
            check(
                !is_given || queue.used() == queue.offered,
                "a frame was taken that the device works with",
            )?;
        }
        self.settled(STATUS_OK, "a good request failed")?;
        if kind == WRITE {
            self.file.written |= 1 << slot;
            for word in 0..WORDS {
                let value = self.model.content(index, word);
                self.put_slot_word(slot, word, value);
            }
        }
        if is_given {
            self.count(Count::BlockGiven);
            self.model.take(index);
            return Ok(());
        }
        if kind == READ { self.judge_read(slot, index, look) } else { Ok(()) }
    }

    /// Whether a slot's words are in the frame.
    fn judge_read(&mut self, slot: u64, index: u64, look: u64) -> Result<(), Failure> {
        let is_linked = self.model.is_linked(index);
        for word in 0..WORDS {
            let gva = self.word(index, word);
            let (found, should) = (mmu::load(gva), self.slot_word(slot, word));
            if (found ^ should) & !PROCESSORS != 0 {
                println!("slot {slot} in frame {index}, word {word}: {found:#x}, should be {should:#x}");
                return Err(Failure::new("another slot's content, or an old one"));
            }
            let value = if word == CODE_WORD { Model::code(index) } else { found };
            // Devices change tables without KVM's notice in mode shadow. A store of the same makes it look.
            if is_linked || word == CODE_WORD {
                mmu::store(gva, value);
            }
            if value & PRESENT != 0 {
                self.model.link(value);
            }
            self.model.stored(index, word, value);
        }
        let word = WORDS + look * 2 % (ENTRIES as u64 - WORDS);
        check(mmu::load(self.word(index, word)) == 0, "words of a slot that nobody has written")
    }

    /// Requests that can't be, and flushes.
    fn bad_block(&mut self, input: &mut Input<'_>, what: u64, slot: u64, look: u64) -> Result<(), Failure> {
        let kind = if look & 1 == 0 { READ } else { WRITE };
        let sector = slot * SECTORS_PER_SLOT;
        let gpa = self.any_frame(input);
        let granted =
            self.model.index(Gpa::new(gpa).containing()).filter(|&index| self.model.is_granted(index));
        let bytes = PAGE_BYTES as u32;
        let data = |gpa: u64, bytes: u32| -> Descriptor { (gpa, bytes, flags(kind), 0) };
        let (kind, sector, data) = match look >> 1 & 15 {
            0..8 => match granted {
                Some(index) => return self.good_block(kind, slot, index, what, look),
                None => (kind, sector, data(gpa, bytes)),
            },
            8 => (kind, sector, data(gpa + 1 + 8 * slot, bytes)),
            9 => (kind, sector, data(gpa, bytes.wrapping_mul(slot as u32 + 2))),
            10 => (kind, sector, data(gpa, slot as u32 * 130)),
            11 => (kind, (SLOTS * SECTORS_PER_SLOT) << (slot % 60), data(gpa, bytes)),
            12 => (kind, sector + 1 + slot % 7, data(gpa, bytes)),
            13 => (kind, sector, (gpa, bytes, flags(kind) ^ DEVICE_WRITES, 0)),
            14 => (2 + 4 * look as u32, sector, data(gpa, bytes)),
            _ => return self.flush_file(what),
        };
        self.count(Count::BadBlock);
        let queue = &mut self.file.queue;
        let head = queue.transfer(0, kind, sector, data);
        queue.offer(head);
        queue.show(queue.offered);
        self.settled(STATUS_REFUSED, "a request that can't be wasn't refused")
    }

    /// Rarely: it waits for a disk.
    fn flush_file(&mut self, what: u64) -> Result<(), Failure> {
        if what >> 4 != 0 {
            return Ok(());
        }
        self.count(Count::BlockFlush);
        let queue = &mut self.file.queue;
        let head = queue.transfer(0, FLUSH, 0, (0, 0, NEXT, 0));
        // Its status comes right behind its header.
        queue.describe(head, (queue.gpa(Queue::header_at(0)), 16, NEXT, head + 2));
        queue.offer(head);
        queue.show(queue.offered);
        self.settled(STATUS_OK, "a flush failed")
    }

    /// Waits for the request that was offered, and holds its status against what it should be.
    fn settled(&mut self, should: u8, failure: &'static str) -> Result<(), Failure> {
        let queue = &self.file.queue;
        queue.settle()?;
        check(!queue.is_broken(), "the queue is broken, and nobody has broken it")?;
        let status: u8 = queue.get(Queue::status_at(0));
        if status != should {
            println!("status {status}, should be {should}");
        }
        check(status == should, failure)
    }

    /// Writes zeros to what was written.
    pub(super) fn empty_slots(&mut self) -> Result<(), Failure> {
        let written = self.file.written;
        if written == 0 {
            return Ok(());
        }
        let zero = self.attacker.get(1, PageSize::Size4K)?;
        for slot in (0..SLOTS).filter(|slot| written >> slot & 1 != 0) {
            let head = self.file.queue.good(slot as u16, WRITE, slot, zero);
            self.file.queue.offer(head);
            (0..WORDS).for_each(|word| self.put_slot_word(slot, word, 0));
        }
        self.file.queue.show(self.file.queue.offered);
        self.file.queue.settle()?;
        self.file.written = 0;
        self.attacker.give(zero, 1)
    }
}
