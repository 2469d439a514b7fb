//! The device's side of the queue: a function of guest memory and what is called, without a thread and
//! without input or output, so that tests and fuzzers can drive it.
//!
//! The guest may write anything anywhere in the queue, at any time. What it can reach by that:
//!
//! | what the guest says | answer |
//! | --- | --- |
//! | type unknown; slot or sector outside; data not one frame, not granted, of the wrong direction | the request is used with [`Status::Refused`] |
//! | descriptors too few, too many, in a loop, header not behind the rings | the same, as long as a status byte is found |
//! | no status byte behind the rings; a head that is out of range or in flight; more heads than there are descriptors | the queue is *broken*: nothing more is taken from it |
//!
//! `virtio-queue` reads descriptors wherever an indirect one says, so all that it gets as memory is the
//! queue's own area: an indirect table elsewhere is a chain that ends. (One in the area is another way to
//! write the same descriptors, and does no harm.) Data is looked up in the [`Ledger`] and pinned there.
//!
//! Once nothing is in flight, a broken queue says [`NEEDS_RESET`] in its state word.
//!
//! Invariants: in flight = heads that are marked <= [`QUEUE_SIZE`]; a frame is pinned once for each request
//! in flight that has it.
//!
//! Cost of a look: O(heads offered), at most [`QUEUE_SIZE`], each with at most four descriptors.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use umpa_abi::addr::{Frame, Gpa, PAGE_BYTES, PageSize};
use umpa_abi::block::{
    AREA_BYTES, AVAIL_AT, DESCRIPTORS_AT, FLUSH, HEADER_BYTES, NEEDS_RESET, QUEUE_SIZE, READ, REQUESTS_AT,
    SECTORS_PER_SLOT, STATE_AT, STATUS_IO, STATUS_NO_SPACE, STATUS_OK, STATUS_REFUSED, USED_AT, WRITE,
};
use virtio_bindings::bindings::{virtio_blk, virtio_config};
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::DeviceError;
use crate::ledger::Ledger;
use crate::memory::{GuestRam, Window};

const _: () = assert!(READ == virtio_blk::VIRTIO_BLK_T_IN && WRITE == virtio_blk::VIRTIO_BLK_T_OUT);
const _: () = assert!(FLUSH == virtio_blk::VIRTIO_BLK_T_FLUSH);
const _: () = assert!(STATUS_IO as u32 == virtio_blk::VIRTIO_BLK_S_IOERR && STATUS_OK == 0);
const _: () = assert!(STATUS_REFUSED as u32 == virtio_blk::VIRTIO_BLK_S_UNSUPP);
const _: () = assert!(NEEDS_RESET == virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET);

/// Descriptors of the longest chain that means something.
const CHAIN_MAX: usize = 3;

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Done.
    Ok = STATUS_OK,
    /// The storage failed.
    Io = STATUS_IO,
    /// It made no sense.
    Refused = STATUS_REFUSED,
    /// The storage is full.
    NoSpace = STATUS_NO_SPACE,
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Fill the frame from the slot.
    Read {
        /// Page of the file, below the device's number of them.
        slot: u64,
        /// A frame that is granted and pinned.
        frame: Frame,
    },
    /// Write the frame to the slot.
    Write {
        /// As for `Read`.
        slot: u64,
        /// As for `Read`.
        frame: Frame,
    },
    /// Make completed writes durable.
    Flush,
}

impl Work {
    /// The frame that the device works with.
    #[must_use]
    pub const fn frame(self) -> Option<Frame> {
        match self {
            Self::Read { frame, .. } | Self::Write { frame, .. } => Some(frame),
            Self::Flush => None,
        }
    }
}

/// A request in flight: checked, its frame pinned.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a request that isn't completed stays in flight for ever"]
pub struct Request {
    /// What to do.
    pub work: Work,
    head: u16,
    status: GuestAddress,
}

/// Why a chain is no request.
enum Bad {
    /// It can be answered.
    Refused { status: GuestAddress },
    /// There is no place for an answer.
    Nonsense,
}

/// The queue of one guest.
#[derive(Debug)]
pub struct Ring {
    window: Window,
    base: u64,
    queue: Queue,
    slots: u64,
    /// Whether the chain that begins with this descriptor is in flight.
    is_in_flight: Vec<bool>,
    in_flight: u16,
    is_broken: bool,
}

impl Ring {
    /// The queue at `base`, of a device with `slots` slots.
    ///
    /// # Errors
    /// [`DeviceError`] if there is no room for a queue at `base`.
    pub fn new(ram: &Arc<GuestRam>, base: Gpa, slots: u64) -> Result<Self, DeviceError> {
        let window = ram.window(base, AREA_BYTES)?;
        let mut queue = Queue::new(QUEUE_SIZE).map_err(DeviceError::Queue)?;
        let at = |offset| GuestAddress(base.get().saturating_add(offset));
        queue.try_set_desc_table_address(at(DESCRIPTORS_AT)).map_err(DeviceError::Queue)?;
        queue.try_set_avail_ring_address(at(AVAIL_AT)).map_err(DeviceError::Queue)?;
        queue.try_set_used_ring_address(at(USED_AT)).map_err(DeviceError::Queue)?;
        queue.set_ready(true);
        let is_in_flight = vec![false; QUEUE_SIZE.into()];
        Ok(Self { window, base: base.get(), queue, slots, is_in_flight, in_flight: 0, is_broken: false })
    }

    /// Takes what the guest has offered since the last time. Returns how many were refused at once.
    pub fn take(&mut self, ledger: &mut Ledger, mut taken: impl FnMut(Request)) -> u64 {
        if self.is_broken {
            // Again, for a guest that has overwritten it.
            self.tell_if_broken();
            return 0;
        }
        let (base, slots, memory) = (self.base, self.slots, self.window.memory());
        let offered: Vec<_> = match self.queue.iter(memory) {
            Ok(chains) => {
                chains.map(|chain| (chain.head_index(), parse(chain, memory, base, slots))).collect()
            }
            Err(_) => {
                self.give_up("more requests are offered than there are descriptors");
                return 0;
            }
        };
        let mut refused = 0;
        for (head, parsed) in offered {
            match self.is_in_flight.get_mut(usize::from(head)) {
                Some(mark) if !*mark => *mark = true,
                _ => {
                    self.give_up("a request is offered that is in flight or out of range");
                    break;
                }
            }
            self.in_flight = self.in_flight.saturating_add(1);
            let mut pins = |request: &Request| request.work.frame().is_none_or(|frame| ledger.pin(frame));
            match parsed {
                Ok(request) if pins(&request) => taken(request),
                Ok(Request { status, .. }) | Err(Bad::Refused { status }) => {
                    refused = u64::saturating_add(refused, 1);
                    self.finish(head, status, 1, Status::Refused);
                }
                Err(Bad::Nonsense) => {
                    self.in_flight = self.in_flight.saturating_sub(1);
                    self.give_up("a request has no status byte behind the rings");
                    break;
                }
            }
        }
        refused
    }

    /// Tells the guest what became of a request. Its frame is the guest's again: the caller has noted it
    /// to be unpinned before the guest can give it back.
    pub fn complete(&mut self, request: Request, status: Status) {
        let bytes =
            if matches!(request.work, Work::Read { .. }) { const { PAGE_BYTES as u32 + 1 } } else { 1 };
        self.finish(request.head, request.status, bytes, status);
    }

    fn finish(&mut self, head: u16, status_at: GuestAddress, bytes: u32, status: Status) {
        let memory = self.window.memory();
        // Both lie in the area (see `parse`), so neither write can fail.
        let _ = memory.write_obj(status as u8, status_at);
        let _ = self.queue.add_used(memory, head, bytes);
        if let Some(mark) = self.is_in_flight.get_mut(usize::from(head)) {
            *mark = false;
        }
        self.in_flight = self.in_flight.saturating_sub(1);
        self.tell_if_broken();
    }

    fn give_up(&mut self, why: &'static str) {
        tracing::warn!("the guest's block queue is broken: {why}");
        self.is_broken = true;
        self.tell_if_broken();
    }

    fn tell_if_broken(&self) {
        if self.is_broken && self.in_flight == 0 {
            let state = GuestAddress(self.base.saturating_add(STATE_AT));
            let _ = self.window.memory().store(NEEDS_RESET, state, Ordering::Release);
        }
    }

    /// The used index that the guest sees.
    #[must_use]
    pub fn used_index(&self) -> u16 {
        self.queue.next_used()
    }

    /// Requests that were taken and aren't completed.
    #[must_use]
    pub const fn in_flight(&self) -> u16 {
        self.in_flight
    }

    /// True once the queue made no sense.
    #[must_use]
    pub const fn is_broken(&self) -> bool {
        self.is_broken
    }
}

/// Reads a chain, once: header, data, status.
fn parse(
    chain: DescriptorChain<&GuestMemoryMmap>,
    memory: &GuestMemoryMmap,
    base: u64,
    slots: u64,
) -> Result<Request, Bad> {
    let head = chain.head_index();
    let behind_rings = |descriptor: &Descriptor, bytes: u32| {
        let offset = descriptor.addr().0.checked_sub(base);
        let end = AREA_BYTES.saturating_sub(bytes.into());
        descriptor.len() == bytes && offset.is_some_and(|offset| (REQUESTS_AT..=end).contains(&offset))
    };
    let descriptors: Vec<Descriptor> = chain.take(CHAIN_MAX + 1).collect();
    let Some(status) = descriptors
        .iter()
        .take(CHAIN_MAX)
        .next_back()
        .filter(|last| last.is_write_only() && behind_rings(last, 1))
        .map(Descriptor::addr)
    else {
        return Err(Bad::Nonsense);
    };
    let refused = Bad::Refused { status };
    let (header, data) = match descriptors.as_slice() {
        [header, _] => (header, None),
        [header, data, _] => (header, Some(data)),
        _ => return Err(refused),
    };
    if header.is_write_only() || !behind_rings(header, HEADER_BYTES) {
        return Err(refused);
    }
    let mut bytes = [0; HEADER_BYTES as usize];
    if memory.read_slice(&mut bytes, header.addr()).is_err() {
        return Err(refused);
    }
    let [a, b, c, d, _, _, _, _, sector @ ..] = bytes;
    let (kind, sector) = (u32::from_le_bytes([a, b, c, d]), u64::from_le_bytes(sector));
    let Some(data) = data else {
        let flush = Request { work: Work::Flush, head, status };
        return if kind == FLUSH { Ok(flush) } else { Err(refused) };
    };
    let gpa = Gpa::new(data.addr().0);
    let slot = sector / SECTORS_PER_SLOT;
    let is_slot = sector.is_multiple_of(SECTORS_PER_SLOT) && slot < slots;
    let is_frame = gpa.is_aligned(PageSize::Size4K) && u64::from(data.len()) == PAGE_BYTES;
    let frame = gpa.containing();
    let work = match (kind, data.is_write_only()) {
        (READ, true) => Work::Read { slot, frame },
        (WRITE, false) => Work::Write { slot, frame },
        _ => return Err(refused),
    };
    if is_slot && is_frame { Ok(Request { work, head, status }) } else { Err(refused) }
}

#[cfg(test)]
mod tests;
