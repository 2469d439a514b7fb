//! `block [check|count|give|time]`: the block device keeps what it is given.
//!
//! - `check`: every slot is written in batches, in one random order, and read back in another; every byte
//!   is compared. Requests that make no sense are refused by themselves.
//! - `count`: the same, for storages that fail: what failed and what came back different is counted and
//!   reported, not taken for an error.
//! - `time`: what a page costs, by how many requests there are to a kick.
//! - `give`: a frame that the device works with can't be given back.

use fastrand::Rng;
use umpa::hardware::{BlockCompletion, BlockDevice, BlockError, BlockOp, BlockRequest, FrameSource};
use umpa_abi::addr::{Frame, Gpa, PAGE_BYTES, PageSize};
use umpa_abi::exchange::{Extent, Policy, Shortfall};
use umpa_abi::layout::direct;
use umpa_abi::record::{Counter, Record, name};

use super::{Context, Failure, check, equal};
use crate::block::{Disk, REQUESTS_MAX};
use crate::call::Hypervisor;
use crate::{call, clock, mmu};

/// Frames that requests go round in.
const FRAMES: usize = 64;
/// Requests between two kicks.
const BATCH: usize = 32;
const WORDS: u64 = PAGE_BYTES / 8;

/// What became of requests.
#[derive(Default)]
struct Counts {
    done: u64,
    io: u64,
    no_space: u64,
    refused: u64,
    /// Slots that were written well and read back different.
    corrupt: u64,
    /// Times that the guest waited.
    waits: u64,
}

struct Work<'a> {
    disk: &'a mut Disk,
    frames: [Frame; FRAMES],
    /// Frames that aren't with the device: the first `free_count`.
    free: [usize; FRAMES],
    free_count: usize,
    slot_of: [u64; FRAMES],
    submitted: usize,
    counts: Counts,
}

/// A number that says where it belongs.
fn word(slot: u64, index: u64) -> u64 {
    (slot * WORDS + index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn word_at(frame: Frame, index: u64) -> umpa_abi::addr::Gva {
    direct(Gpa::new(frame.start().get() + 8 * index))
}

fn write_pattern(frame: Frame, slot: u64) {
    (0..WORDS).for_each(|index| mmu::store(word_at(frame, index), word(slot, index)));
}

fn has_pattern(frame: Frame, slot: u64) -> bool {
    (0..WORDS).all(|index| mmu::load(word_at(frame, index)) == word(slot, index))
}

/// All slots once, in an order that the seed decides.
fn order(slots: u64, rng: &mut Rng) -> impl Iterator<Item = u64> + use<> {
    let offset = rng.u64(0..slots);
    let mut step = rng.u64(0..slots) | 1;
    while gcd(step, slots) != 1 {
        step += 2;
    }
    (0..slots).map(move |i| (offset + i * (step % slots)) % slots)
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

impl<'a> Work<'a> {
    fn new(disk: &'a mut Disk, hypervisor: &mut Hypervisor) -> Result<Self, Failure> {
        let mut frames = [Frame::new(0); FRAMES];
        let mut places = frames.iter_mut();
        let exchanged =
            hypervisor.exchange(&[], [FRAMES as u64, 0, 0], Policy::AllOrNothing, &mut |extent| {
                (0..extent.frames())
                    .zip(&mut places)
                    .for_each(|(i, place)| *place = extent.first().offset(i));
            });
        check(exchanged.shortfall == Shortfall::None, "no frames for the requests")?;
        let mut free = [0; FRAMES];
        free.iter_mut().enumerate().for_each(|(i, place)| *place = i);
        let (slot_of, counts) = ([0; FRAMES], Counts::default());
        Ok(Self { disk, frames, free, free_count: FRAMES, slot_of, submitted: 0, counts })
    }

    fn put_frame(&mut self, index: usize) {
        self.free[self.free_count] = index;
        self.free_count += 1;
    }

    fn get_frame(&mut self) -> Option<usize> {
        self.free_count = self.free_count.checked_sub(1)?;
        Some(self.free[self.free_count])
    }

    /// Notes a completion; returns frame and slot of a read that went well.
    fn note(&mut self, completion: BlockCompletion, op: BlockOp) -> Option<(Frame, u64)> {
        let index = completion.tag as usize;
        self.put_frame(index);
        match completion.result {
            Ok(()) => {
                self.counts.done += 1;
                return (op == BlockOp::Read).then(|| (self.frames[index], self.slot_of[index]));
            }
            Err(BlockError::Io) => self.counts.io += 1,
            Err(BlockError::NoSpace) => self.counts.no_space += 1,
            Err(BlockError::Refused) => self.counts.refused += 1,
        }
        None
    }

    fn take(&mut self, op: BlockOp) -> bool {
        let completion = match self.disk.poll() {
            Some(completion) => completion,
            None => {
                self.counts.waits += 1;
                match self.disk.wait() {
                    Some(completion) => completion,
                    None => return false,
                }
            }
        };
        if let Some((frame, slot)) = self.note(completion, op) {
            self.counts.corrupt += u64::from(!has_pattern(frame, slot));
        }
        true
    }

    /// Reads or writes all slots in the given order, and waits for the last.
    fn pass(&mut self, op: BlockOp, slots: impl Iterator<Item = u64>) -> Result<(), Failure> {
        for slot in slots {
            let index = loop {
                match self.get_frame() {
                    Some(index) => break index,
                    None => check(self.take(op), "requests are missing")?,
                }
            };
            let frame = self.frames[index];
            self.slot_of[index] = slot;
            match op {
                BlockOp::Write => write_pattern(frame, slot),
                _ => mmu::fill(frame, 0),
            }
            let request = BlockRequest { op, slot, frame, tag: index as u64 };
            check(self.disk.submit(request).is_ok(), "the queue is full")?;
            self.submitted += 1;
            if self.submitted.is_multiple_of(BATCH) {
                self.disk.kick();
            }
        }
        while self.take(op) {}
        equal(self.free_count as u64, FRAMES as u64, "frames that came back")?;
        equal(self.disk.in_flight() as u64, 0, "requests in flight")
    }
}

/// Transfers of every slot, a batch at a time: a kick, then waits until all of it is there.
fn time(disk: &mut Disk, hypervisor: &mut Hypervisor, is_real: bool) -> Result<(), Failure> {
    let slots = disk.slots();
    let mut rng = Rng::with_seed(slots);
    let mut work = Work::new(disk, hypervisor)?;
    println!("block: {slots} slots, in order or at random, batches of 1 to {FRAMES}");
    for (op, what) in [(BlockOp::Write, "write"), (BlockOp::Read, "read")] {
        for batch in [1, 4, 16, FRAMES] {
            let mut cycles = [0; 2];
            for (is_random, cycles) in [false, true].into_iter().zip(&mut cycles) {
                let mut shuffled = order(slots, &mut rng);
                let start = clock::cycles();
                for first in (0..slots).step_by(batch) {
                    for slot in first..slots.min(first + batch as u64) {
                        let slot = if is_random { shuffled.next().unwrap_or(slot) } else { slot };
                        let index = work.get_frame().ok_or(Failure::new("a frame is missing"))?;
                        let request = BlockRequest { op, slot, frame: work.frames[index], tag: index as u64 };
                        check(work.disk.submit(request).is_ok(), "the queue is full")?;
                    }
                    while let Some(completion) = work.disk.wait() {
                        check(completion.result.is_ok(), "a request failed")?;
                        work.put_frame(completion.tag as usize);
                    }
                }
                *cycles = (clock::cycles() - start) / slots;
            }
            let [in_order, at_random] = cycles;
            match is_real {
                true => println!("  {what:5} {batch:3} at a time: {in_order:7} {at_random:7} cycles a page"),
                false => println!("  {what:5} {batch:3} at a time: done; no times under an emulator"),
            }
        }
    }
    Ok(())
}

/// One request by itself.
fn one(disk: &mut Disk, op: BlockOp, slot: u64, frame: Frame) -> Result<Result<(), BlockError>, Failure> {
    check(disk.submit(BlockRequest { op, slot, frame, tag: 77 }).is_ok(), "the queue is full")?;
    let completion = disk.wait().ok_or(Failure::new("a request is missing"))?;
    equal(completion.tag, 77, "tag of the completion")?;
    Ok(completion.result)
}

/// See the [module](self).
pub(super) fn run(context: &mut Context<'_>) -> Result<(), Failure> {
    let mode = context.arg(1).unwrap_or("check");
    let Some(mut disk) = context.machine.disk.take() else {
        return Err(Failure::new("there is no block device: vmm run --page-file PATH:SIZE"));
    };
    let disk = &mut disk;
    let slots = disk.slots();
    let ungranted = context.boot.frames_first().offset(context.boot.frames_max - 1);
    let hypervisor = &mut context.machine.hypervisor;
    if mode == "give" {
        return give(disk, hypervisor);
    }
    if mode == "time" {
        return time(disk, hypervisor, context.boot.timing_is_real());
    }
    let mut rng = Rng::with_seed(slots);
    let mut work = Work::new(disk, hypervisor)?;
    work.pass(BlockOp::Write, order(slots, &mut rng))?;
    let written = work.counts.done;
    let frame = work.frames[0];
    let flushed = one(work.disk, BlockOp::Flush, 0, frame)?.is_ok();
    work.pass(BlockOp::Read, order(slots, &mut rng))?;
    let Counts { done, io, no_space, refused, corrupt, waits } = work.counts;

    if mode == "count" {
        for (what, value) in [
            ("written", written),
            ("read", done - written),
            ("io", io),
            ("no_space", no_space),
            ("refused", refused),
            ("corrupt", corrupt),
            ("flushed", flushed.into()),
        ] {
            let _ = call::report(&Record::Counter(Counter { name: name(what), value }));
        }
        return Ok(());
    }
    equal(written, slots, "slots written")?;
    check(flushed, "the flush failed")?;
    equal(done, 2 * slots, "slots written and read")?;
    equal(corrupt, 0, "slots that came back different")?;
    refusals(disk, frame, ungranted)?;
    println!("block: {slots} slots written in batches of {BATCH}, flushed and read back, every byte checked");
    println!("  {waits} waits; beyond the end and foreign frames refused");
    Ok(())
}

/// What makes no sense fails by itself, and the device goes on.
fn refusals(disk: &mut Disk, frame: Frame, ungranted: Frame) -> Result<(), Failure> {
    let slots = disk.slots();
    let system = Frame::new(umpa_abi::layout::SYSTEM_GPA.get() / PAGE_BYTES);
    for op in [BlockOp::Read, BlockOp::Write] {
        for (slot, frame) in [
            (slots, frame),
            (slots + (1 << 61), frame),
            (u64::MAX, frame),
            (0, ungranted),
            (0, system),
            (0, Frame::new(0)),
            (0, Frame::new(u64::MAX)),
        ] {
            check(one(disk, op, slot, frame)? == Err(BlockError::Refused), "nonsense wasn't refused")?;
        }
    }
    // As many as there can be, and one more.
    let read = |slot| BlockRequest { op: BlockOp::Read, slot: slot % slots, frame, tag: slot };
    for slot in 0..REQUESTS_MAX as u64 {
        check(disk.submit(read(slot)).is_ok(), "the queue is full too early")?;
    }
    check(disk.submit(read(0)).is_err(), "the queue has no end")?;
    let mut tags = 0;
    while let Some(completion) = disk.wait() {
        check(completion.result.is_ok(), "a read failed")?;
        tags += completion.tag;
    }
    let requests = REQUESTS_MAX as u64;
    equal(tags, requests * (requests - 1) / 2, "sum of all tags")
}

/// The frame of a request in flight stays with the guest until the request is done. The storage keeps the
/// request long enough: only tests start this.
fn give(disk: &mut Disk, hypervisor: &mut Hypervisor) -> Result<(), Failure> {
    let work = Work::new(disk, hypervisor)?;
    let (busy, idle) = (work.frames[0], work.frames[FRAMES - 1]);
    let extent = |frame| Extent::new(frame, 1, PageSize::Size4K);
    let disk = work.disk;
    write_pattern(busy, 0);
    let request = BlockRequest { op: BlockOp::Write, slot: 0, frame: busy, tag: 1 };
    check(disk.submit(request).is_ok(), "the queue is full")?;
    disk.kick();
    let both = [extent(idle), extent(busy)];
    let exchanged = hypervisor.exchange(&both, [0; 3], Policy::Partial, &mut |_| {});
    check(exchanged.shortfall == Shortfall::NotYours, "a frame was taken from the device")?;
    equal(exchanged.bad_extent as u64, 1, "the extent that is refused")?;
    equal(exchanged.taken_frames, 0, "frames taken")?;
    check(disk.wait().is_some_and(|completion| completion.result.is_ok()), "the write failed")?;
    check(has_pattern(busy, 0), "the frame has lost its content")?;
    let exchanged = hypervisor.exchange(&both, [0; 3], Policy::Partial, &mut |_| {});
    equal(exchanged.taken_frames, 2, "frames taken after the write")?;
    println!("block: a frame was kept while the device worked with it, and given back afterwards");
    Ok(())
}
