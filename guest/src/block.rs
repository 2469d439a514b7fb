//! The guest's side of the block device ([`umpa_abi::block`]): a [`Disk`].
//!
//! Each of [`REQUESTS_MAX`] requests has three descriptors of its own (header, data, status), linked once
//! and for ever, a header and a status byte. A request is five stores to the descriptors and the header;
//! [`kick`](BlockDevice::kick) then shows all new ones to the device by one store and one `out`.
//! Completions appear in the used ring while the guest runs: looking for one is a load.
//!
//! # Order
//!
//! The device runs on other processors at the same time. What it reads is written before the index that
//! shows it: a release store. What it has written is read after the index that shows it: an acquire load.
//! On x86 both are plain `mov`s (SDM vol. 3A, 9.2.2: loads aren't reordered with loads, nor stores with
//! stores) that the compiler keeps in order. Neither side needs a store before a load: the device looks
//! at the ring when it is kicked, and `out` is serialized by the exit.
//!
//! # Invariants
//!
//! free + in flight = [`REQUESTS_MAX`]; a slot is free or known to the device, never both.
//!
//! Cost: a kick is one exit for any number of requests, a wait is one and the time that the storage takes;
//! submitting and polling some 20 instructions. In mode `shadow` (workload `block time`, file in the page
//! cache) a page costs an exit when it is read alone, 6,000 to 8,000 cycles in batches of 64.

#![allow(unsafe_code)] // reason: the queue is memory that the VMM writes at the same time; executes OUT

use core::arch::asm;
use core::sync::atomic::{AtomicU16, AtomicU32, Ordering};

use umpa::hardware::{BlockCompletion, BlockDevice, BlockError, BlockOp, BlockRequest, QueueFull};
use umpa_abi::addr::{Gva, PAGE_BYTES};
use umpa_abi::block::{
    AREA_BYTES, AVAIL_AT, BLOCK_PORT, DESCRIPTORS_AT, FLUSH, HEADER_BYTES, KICK, NEEDS_RESET, QUEUE_SIZE,
    READ, REQUESTS_AT, SECTORS_PER_SLOT, STATE_AT, STATUS_IO, STATUS_NO_SPACE, STATUS_OK, USED_AT, WAIT,
    WRITE,
};
use umpa_abi::boot::{BootInfo, feature};

/// Requests that can be in flight at the same time.
pub const REQUESTS_MAX: usize = 256;

/// Descriptors of a request.
const CHAIN: u16 = 3;
const STATUSES_AT: u64 = REQUESTS_AT + HEADER_BYTES as u64 * REQUESTS_MAX as u64;
/// Another descriptor follows (virtio 1.2, 2.7.5).
const NEXT: u16 = 1;
/// The device writes.
const DEVICE_WRITES: u16 = 2;
/// No status yet: none that the device has.
const PENDING: u8 = 0xff;

const _: () = assert!(REQUESTS_MAX * CHAIN as usize <= QUEUE_SIZE as usize);
const _: () = assert!(STATUSES_AT + REQUESTS_MAX as u64 <= AREA_BYTES);

/// The block device of this guest.
#[derive(Debug)]
pub struct Disk {
    queue: Gva,
    /// Where the device sees the queue, less where we see it.
    to_gpa: u64,
    slots: u64,
    /// Requests that aren't in use: the first `free_count`.
    free: [u16; REQUESTS_MAX],
    free_count: usize,
    tags: [u64; REQUESTS_MAX],
    is_in_flight: [bool; REQUESTS_MAX],
    /// Heads written to the available ring; those up to `shown` the device knows.
    offered: u16,
    shown: u16,
    /// Elements of the used ring that were taken.
    seen: u16,
    is_broken: bool,
}

impl Disk {
    /// The device that `boot` describes, if there is one.
    ///
    /// # Safety
    /// `boot` describes this machine, whose queue nobody else uses: this is called once.
    #[must_use]
    pub unsafe fn new(boot: &BootInfo) -> Option<Self> {
        if boot.features & feature::BLOCK == 0 {
            return None;
        }
        let mut free = [0; REQUESTS_MAX];
        for (request, place) in (0..).zip(free.iter_mut().rev()) {
            *place = request;
        }
        let disk = Self {
            queue: Gva::new(boot.block_queue),
            to_gpa: boot.block_queue_gpa.wrapping_sub(boot.block_queue),
            slots: boot.block_slots,
            free,
            free_count: REQUESTS_MAX,
            tags: [0; REQUESTS_MAX],
            is_in_flight: [false; REQUESTS_MAX],
            offered: 0,
            shown: 0,
            seen: 0,
            is_broken: false,
        };
        for request in 0..REQUESTS_MAX as u16 {
            let [header, data, status] = [0, 1, 2].map(|part| CHAIN * request + part);
            disk.link(header, disk.header(request), HEADER_BYTES, NEXT, data);
            disk.link(data, 0, PAGE_BYTES as u32, NEXT, status);
            disk.link(status, disk.status(request), 1, DEVICE_WRITES, 0);
        }
        Some(disk)
    }

    /// Requests in flight.
    #[must_use]
    pub const fn in_flight(&self) -> usize {
        REQUESTS_MAX - self.free_count
    }

    const fn header(&self, request: u16) -> u64 {
        REQUESTS_AT + HEADER_BYTES as u64 * request as u64
    }

    const fn status(&self, request: u16) -> u64 {
        STATUSES_AT + request as u64
    }

    /// A place in the queue.
    fn at<T>(&self, offset: u64) -> *mut T {
        debug_assert!(
            offset + size_of::<T>() as u64 <= AREA_BYTES && offset.is_multiple_of(align_of::<T>() as u64)
        );
        (self.queue.get() + offset) as *mut T
    }

    fn put<T>(&self, offset: u64, value: T) {
        // SAFETY: every offset here is made from the constants that lay out the area, which is mapped and
        // ours (`new`); the device reads what we write when a later release store shows it.
        unsafe { self.at::<T>(offset).write_volatile(value) }
    }

    fn get<T: Copy>(&self, offset: u64) -> T {
        // SAFETY: as in `put`; integers have no invalid values.
        unsafe { self.at::<T>(offset).read_volatile() }
    }

    fn index(&self, offset: u64) -> &AtomicU16 {
        // SAFETY: as in `put`, and aligned: the rings are; nobody accesses an index otherwise.
        unsafe { AtomicU16::from_ptr(self.at(offset)) }
    }

    /// Writes a descriptor whose data is at `offset` in the area.
    fn link(&self, descriptor: u16, offset: u64, bytes: u32, flags: u16, next: u16) {
        let at = DESCRIPTORS_AT + 16 * u64::from(descriptor);
        self.put(at, (self.queue.get() + offset).wrapping_add(self.to_gpa));
        self.put(at + 8, bytes);
        self.put(at + 12, flags);
        self.put(at + 14, next);
    }

    /// Shows what is offered, and executes `out`.
    fn tell(&mut self, command: u32) {
        self.index(AVAIL_AT + 2).store(self.offered, Ordering::Release);
        self.shown = self.offered;
        // SAFETY: I/O privilege level is 3 and the I/O bitmap has the port; the device writes memory that we
        // read as volatile, and frames that were handed to it.
        unsafe { asm!("out dx, eax", in("dx") BLOCK_PORT, in("eax") command, options(nostack)) };
    }

    fn is_reset_needed(&self) -> bool {
        // SAFETY: as in `put`; the state word is aligned and nobody accesses it otherwise.
        let state = unsafe { AtomicU32::from_ptr(self.at(STATE_AT)) };
        state.load(Ordering::Acquire) & NEEDS_RESET != 0
    }

    fn finish(&mut self, request: u16, result: Result<(), BlockError>) -> BlockCompletion {
        let index = usize::from(request);
        debug_assert!(self.is_in_flight[index], "the device used a request that it doesn't have");
        self.is_in_flight[index] = false;
        self.free[self.free_count] = request;
        self.free_count += 1;
        BlockCompletion { tag: self.tags[index], result }
    }

    /// Any request in flight, refused: the device has given up, and works with none of our frames.
    fn give_up(&mut self) -> Option<BlockCompletion> {
        self.is_broken = true;
        let request = self.is_in_flight.iter().position(|&is| is)?;
        Some(self.finish(request as u16, Err(BlockError::Refused)))
    }
}

impl BlockDevice for Disk {
    fn slots(&self) -> u64 {
        self.slots
    }

    fn submit(&mut self, request: BlockRequest) -> Result<(), QueueFull> {
        let free_count = self.free_count.checked_sub(1).ok_or(QueueFull)?;
        self.free_count = free_count;
        let number = self.free[free_count];
        self.tags[usize::from(number)] = request.tag;
        self.is_in_flight[usize::from(number)] = true;

        let head = CHAIN * number;
        let descriptor = |part: u16| DESCRIPTORS_AT + 16 * u64::from(head + part);
        let (kind, data_flags) = match request.op {
            BlockOp::Read => (READ, NEXT | DEVICE_WRITES),
            BlockOp::Write => (WRITE, NEXT),
            BlockOp::Flush => (FLUSH, NEXT),
        };
        // A slot whose sector is beyond 2^64 is beyond the end, and so is the last sector.
        let sector = request.slot.saturating_mul(SECTORS_PER_SLOT);
        self.put(self.header(number), kind);
        self.put(self.header(number) + 8, if request.op == BlockOp::Flush { 0 } else { sector });
        self.put(self.status(number), PENDING);
        self.put(descriptor(1), request.frame.get().wrapping_mul(PAGE_BYTES));
        self.put(descriptor(1) + 12, data_flags);
        // A flush has no data.
        self.put(descriptor(0) + 14, if request.op == BlockOp::Flush { head + 2 } else { head + 1 });

        self.put(AVAIL_AT + 4 + 2 * u64::from(self.offered % QUEUE_SIZE), head);
        self.offered = self.offered.wrapping_add(1);
        Ok(())
    }

    fn kick(&mut self) {
        if self.offered != self.shown && !self.is_broken {
            self.tell(KICK);
        }
    }

    fn poll(&mut self) -> Option<BlockCompletion> {
        if self.free_count == REQUESTS_MAX {
            return None;
        }
        if self.index(USED_AT + 2).load(Ordering::Acquire) == self.seen {
            return if self.is_reset_needed() { self.give_up() } else { None };
        }
        let head: u32 = self.get(USED_AT + 4 + 8 * u64::from(self.seen % QUEUE_SIZE));
        self.seen = self.seen.wrapping_add(1);
        let number = head as u16 / CHAIN;
        debug_assert!(
            head.is_multiple_of(CHAIN.into()) && usize::from(number) < REQUESTS_MAX,
            "used head {head}"
        );
        let result = match self.get(self.status(number)) {
            STATUS_OK => Ok(()),
            STATUS_IO => Err(BlockError::Io),
            STATUS_NO_SPACE => Err(BlockError::NoSpace),
            _ => Err(BlockError::Refused),
        };
        Some(self.finish(number, result))
    }

    fn wait(&mut self) -> Option<BlockCompletion> {
        while self.free_count < REQUESTS_MAX {
            if self.offered == self.shown
                && let Some(completion) = self.poll()
            {
                return Some(completion);
            }
            // Comes back after a while at most, since the VMM may have other business with us.
            self.tell(WAIT | u32::from(self.seen));
            if let Some(completion) = self.poll() {
                return Some(completion);
            }
        }
        None
    }
}
