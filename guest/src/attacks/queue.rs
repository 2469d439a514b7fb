//! The block queue without manners, for attacks on it: any descriptor, any index, and what the device makes
//! of that. (The device and what may be in its queue: [`umpa_abi::block`].)

use core::arch::asm;

use umpa_abi::addr::{Frame, Gva, PAGE_BYTES, PageSize};
use umpa_abi::block::{
    AVAIL_AT, BLOCK_PORT, DESCRIPTORS_AT, KICK, NEEDS_RESET, QUEUE_SIZE, READ, REQUESTS_AT, SECTORS_PER_SLOT,
    STATE_AT, STATUS_OK, USED_AT, WAIT, WRITE,
};

use super::Attacker;
use crate::mmu;
use crate::workloads::{Failure, check};

/// Another descriptor follows.
pub(crate) const NEXT: u16 = 1;
/// The device writes.
pub(crate) const DEVICE_WRITES: u16 = 2;
/// No status of the device's.
pub(crate) const PENDING: u8 = 0xff;
/// Where this keeps status bytes, behind its headers.
const STATUSES_AT: u64 = REQUESTS_AT + PAGE_BYTES;
/// Looks at the queue until something has happened, at most.
const WAITS_MAX: u32 = 2000;

/// Descriptor: where, how many bytes, flags, the next one.
pub(crate) type Descriptor = (u64, u32, u16, u16);

/// The queue.
#[derive(Debug)]
pub(crate) struct Queue {
    at: Gva,
    gpa: u64,
    /// Heads offered.
    pub(crate) offered: u16,
}

impl Queue {
    /// The guest's.
    ///
    /// # Errors
    /// When it has none.
    pub(crate) fn new(attacker: &Attacker<'_>) -> Result<Self, Failure> {
        let boot = attacker.boot;
        check(boot.block_slots > 0, "there is no block device")?;
        Ok(Self { at: Gva::new(boot.block_queue), gpa: boot.block_queue_gpa, offered: 0 })
    }

    /// The queue of which another processor has told: where it is, and how many heads were offered.
    pub(crate) const fn at(at: Gva, gpa: u64, offered: u16) -> Self {
        Self { at, gpa, offered }
    }

    /// Stores anything anywhere in the area.
    pub(crate) fn put<T>(&self, offset: u64, value: T) {
        // SAFETY: all offsets lie in the area, which is mapped; nobody keeps objects there.
        unsafe { ((self.at.get() + offset) as *mut T).write_unaligned(value) };
    }

    /// Loads what is there.
    pub(crate) fn get<T: Copy>(&self, offset: u64) -> T {
        // SAFETY: as in `put`; all types here are integers.
        unsafe { ((self.at.get() + offset) as *const T).read_volatile() }
    }

    /// Where the device sees a place of the area.
    pub(crate) const fn gpa(&self, offset: u64) -> u64 {
        self.gpa + offset
    }

    /// Where the header of request `number` lies in the area.
    pub(crate) const fn header_at(number: u16) -> u64 {
        REQUESTS_AT + 16 * (number as u64 % 256)
    }

    /// Where its status byte lies.
    pub(crate) const fn status_at(number: u16) -> u64 {
        STATUSES_AT + number as u64 % 2048
    }

    /// Writes a descriptor.
    pub(crate) fn describe(&self, number: u16, (gpa, bytes, flags, next): Descriptor) {
        let at = DESCRIPTORS_AT + 16 * u64::from(number % QUEUE_SIZE);
        self.put(at, gpa);
        self.put(at + 8, bytes);
        self.put(at + 12, flags);
        self.put(at + 14, next);
    }

    /// Writes header and descriptors of a transfer whose data is `data`; its head is `3 * number`.
    pub(crate) fn transfer(&self, number: u16, kind: u32, sector: u64, data: Descriptor) -> u16 {
        let head = 3 * number;
        self.put(Self::header_at(number), kind);
        self.put(Self::header_at(number) + 8, sector);
        self.put(Self::status_at(number), PENDING);
        self.describe(head, (self.gpa(Self::header_at(number)), 16, NEXT, head + 1));
        let (gpa, bytes, flags, _) = data;
        self.describe(head + 1, (gpa, bytes, flags, head + 2));
        self.describe(head + 2, (self.gpa(Self::status_at(number)), 1, DEVICE_WRITES, 0));
        head
    }

    /// The same for a whole frame, as it should be.
    pub(crate) fn good(&self, number: u16, kind: u32, slot: u64, frame: Frame) -> u16 {
        let flags = if kind == READ { NEXT | DEVICE_WRITES } else { NEXT };
        debug_assert!(kind == READ || kind == WRITE);
        let data = (frame.start().get(), PAGE_BYTES as u32, flags, 0);
        self.transfer(number, kind, slot * SECTORS_PER_SLOT, data)
    }

    /// Puts a head into the ring, without showing it.
    pub(crate) fn offer(&mut self, head: u16) {
        self.put(AVAIL_AT + 4 + 2 * u64::from(self.offered % QUEUE_SIZE), head);
        self.offered = self.offered.wrapping_add(1);
    }

    /// Shows `index` as the number of heads offered, and kicks.
    pub(crate) fn show(&self, index: u16) {
        self.put(AVAIL_AT + 2, index);
        self.kick(KICK);
    }

    /// Writes to the port.
    pub(crate) fn kick(&self, command: u32) {
        // SAFETY: the port is allowed, and the device writes memory that is read as volatile.
        unsafe { asm!("out dx, eax", in("dx") BLOCK_PORT, in("eax") command, options(nostack)) };
    }

    /// Requests that the device is done with.
    pub(crate) fn used(&self) -> u16 {
        self.get(USED_AT + 2)
    }

    /// Whether the device has given up.
    pub(crate) fn is_broken(&self) -> bool {
        self.get::<u32>(STATE_AT) & NEEDS_RESET != 0
    }

    /// Waits until the device is done with all that was offered, or has given up.
    ///
    /// # Errors
    /// When it doesn't come to an end.
    pub(crate) fn settle(&self) -> Result<(), Failure> {
        for _ in 0..WAITS_MAX {
            if self.used() == self.offered || self.is_broken() {
                return Ok(());
            }
            self.kick(WAIT | u32::from(self.used()));
        }
        Err(Failure::new("the device doesn't come to an end"))
    }

    /// Offers one request and waits for its status.
    ///
    /// # Errors
    /// When it doesn't come to an end.
    pub(crate) fn status_of(&mut self, number: u16, head: u16) -> Result<u8, Failure> {
        self.offer(head);
        self.show(self.offered);
        self.settle()?;
        Ok(self.get(Self::status_at(number)))
    }
}

/// A page table whose entries lie in the page file as well, those of the program's own in slot 0 and foreign ones in
/// slot 1.
#[derive(Debug)]
pub(crate) struct TableOnDisk {
    /// With both slots written.
    pub(crate) queue: Queue,
    /// The table, in use, with the entries of slot 0.
    pub(crate) table: Frame,
    /// The program's frame that all of those lead to.
    pub(crate) good: Frame,
    /// What the table maps, 2 MiB.
    pub(crate) gva: Gva,
}

impl TableOnDisk {
    /// Makes it.
    ///
    /// # Errors
    /// When a good request fails.
    pub(crate) fn new(attacker: &mut Attacker<'_>) -> Result<Self, Failure> {
        let table = attacker.get(3, PageSize::Size4K)?;
        let (good, evil) = (table.offset(1), table.offset(2));
        let own = good.start().get() | attacker.data_bits();
        let foreign = attacker.never_granted().start().get() | attacker.data_bits();
        let mut queue = Queue::new(attacker)?;
        for (slot, entry) in [(0, own), (1, foreign)] {
            mmu::fill(evil, entry);
            let head = queue.good(0, WRITE, slot, evil);
            check(queue.status_of(0, head)? == STATUS_OK, "a good request failed")?;
        }
        mmu::fill(table, own);
        let gva = attacker.place(2);
        attacker.set(gva, 2, table.start().get() | attacker.table_bits())?;
        Ok(Self { queue, table, good, gva })
    }
}
