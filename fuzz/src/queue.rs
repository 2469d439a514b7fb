//! A guest's block queue as both targets about it use it: its memory, and how chains are written there.

use std::ops::Range;
use std::sync::Arc;

use umpa_abi::addr::{Frame, Gpa, PAGE_BYTES};
use umpa_abi::block::{
    AREA_BYTES, AVAIL_AT, DESCRIPTORS_AT, FLUSH, QUEUE_SIZE, REQUESTS_AT, STATE_AT, USED_AT,
};
use umpa_abi::exchange::{Extent, Policy};
use umpa_abi::layout::{FRAMES_GPA, SYSTEM_GPA};
use vmm::block::queue::{Request, Ring};
use vmm::grant;
use vmm::ledger::Ledger;
use vmm::memory::GuestRam;

/// Virtio's flags of a descriptor (Virtual I/O Device 1.2, 2.7.5).
pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITES: u16 = 2;

/// A page that nobody has to do with, the queue's area, another such page.
pub(crate) const BASE: u64 = SYSTEM_GPA.get() + PAGE_BYTES;
const SYSTEM_BYTES: u64 = AREA_BYTES + 2 * PAGE_BYTES;
pub(crate) const FRAMES: Range<u64> = FRAMES_GPA.containing().get()..FRAMES_GPA.containing().get() + 512;
const MARK: u8 = 0xa7;

pub(crate) struct Guest {
    pub(crate) ram: Arc<GuestRam>,
    pub(crate) ledger: Ledger,
    pub(crate) ring: Ring,
    offered: u16,
}

impl Guest {
    /// With a queue of `slots` slots and the first `granted` frames.
    pub(crate) fn new(slots: u64, granted: u64) -> Self {
        let ram = Arc::new(GuestRam::new(SYSTEM_BYTES, 2 << 20).expect("guest memory"));
        let mut ledger = Ledger::new(FRAMES_GPA.containing(), FRAMES.end - FRAMES.start);
        let mut plan = ledger.exchange(&[], [granted, 0, 0], Policy::AllOrNothing, 1);
        grant::apply(&ram, &mut ledger, &mut plan, Policy::AllOrNothing).expect("a few frames");
        for page in [SYSTEM_GPA.get(), BASE + AREA_BYTES] {
            ram.write(Gpa::new(page), &[MARK; PAGE_BYTES as usize]).expect("a page of the system slot");
        }
        let ring = Ring::new(&ram, Gpa::new(BASE), slots).expect("room for a queue");
        Self { ram, ledger, ring, offered: 0 }
    }

    /// Writes in the area, as far as it reaches.
    pub(crate) fn write(&self, at: u64, bytes: &[u8]) {
        let room = AREA_BYTES.saturating_sub(at).min(bytes.len() as u64) as usize;
        self.ram.write(Gpa::new(BASE + at.min(AREA_BYTES)), &bytes[..room]).expect("the area");
    }

    pub(crate) fn area(&self) -> Vec<u8> {
        let mut bytes = vec![0; SYSTEM_BYTES as usize];
        self.ram.read(SYSTEM_GPA, &mut bytes).expect("the system slot");
        let mut edges =
            bytes[..PAGE_BYTES as usize].iter().chain(&bytes[(PAGE_BYTES + AREA_BYTES) as usize..]);
        assert!(edges.all(|&byte| byte == MARK), "a page beside the queue has changed");
        bytes[PAGE_BYTES as usize..(PAGE_BYTES + AREA_BYTES) as usize].to_vec()
    }

    pub(crate) fn describe(&self, index: u16, address: u64, bytes: u32, flags: u16, next: u16) {
        let mut descriptor = [0; 16];
        descriptor[..8].copy_from_slice(&address.to_le_bytes());
        descriptor[8..12].copy_from_slice(&bytes.to_le_bytes());
        descriptor[12..14].copy_from_slice(&flags.to_le_bytes());
        descriptor[14..].copy_from_slice(&next.to_le_bytes());
        self.write(DESCRIPTORS_AT + 16 * u64::from(index % QUEUE_SIZE), &descriptor);
    }

    /// A chain from `head` on that makes sense, but for its values.
    pub(crate) fn chain(&self, head: u16, kind: u32, sector: u64, data: u64) {
        let place = REQUESTS_AT + 24 * u64::from(head % 256);
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        self.write(place, &header);
        self.write(place + 16, &[0xff]);
        let flags = if kind & 1 == 0 { WRITES } else { 0 };
        if kind == FLUSH {
            self.describe(head, BASE + place, 16, NEXT, head.wrapping_add(2));
        } else {
            self.describe(head, BASE + place, 16, NEXT, head.wrapping_add(1));
            self.describe(head.wrapping_add(1), data, 4096, NEXT | flags, head.wrapping_add(2));
        }
        self.describe(head.wrapping_add(2), BASE + place + 16, 1, WRITES, 0);
    }

    /// Where a chain's status is, in the area.
    pub(crate) const fn status_at(head: u16) -> usize {
        REQUESTS_AT as usize + 24 * (head % 256) as usize + 16
    }

    pub(crate) fn offer(&mut self, head: u16) {
        self.write(AVAIL_AT + 4 + 2 * u64::from(self.offered % QUEUE_SIZE), &head.to_le_bytes());
        self.set_offered(self.offered.wrapping_add(1));
    }

    pub(crate) fn set_offered(&mut self, offered: u16) {
        self.offered = offered;
        self.write(AVAIL_AT + 2, &offered.to_le_bytes());
    }

    pub(crate) fn take(&mut self) -> (Vec<Request>, u64) {
        let mut taken = Vec::new();
        let refused = self.ring.take(&mut self.ledger, |request| taken.push(request));
        (taken, refused)
    }

    /// Gives back a frame; true if that was possible.
    pub(crate) fn gives_back(&mut self, frame: Frame) -> bool {
        let give = [Extent::new(frame, 1, umpa_abi::addr::PageSize::Size4K)];
        let mut plan = self.ledger.exchange(&give, [0; 3], Policy::AllOrNothing, 0);
        grant::apply(&self.ram, &mut self.ledger, &mut plan, Policy::AllOrNothing).expect("the host goes on");
        plan.taken_frames() == 1
    }
}

/// Bytes of the area that differ, less those that the device writes at its own place: the used ring's elements
/// from index `from` up to `to`, its flags and index, the state.
pub(crate) fn strangers(before: &[u8], after: &[u8], from: u16, to: u16) -> Vec<usize> {
    let used = USED_AT as usize;
    let elements = to.wrapping_sub(from);
    let own = |at: &usize| {
        let state = STATE_AT as usize..STATE_AT as usize + 4;
        let element = at.wrapping_sub(used + 4) / 8;
        let is_new = (used + 4..used + 4 + 8 * usize::from(QUEUE_SIZE)).contains(at)
            && (element as u16).wrapping_sub(from) % QUEUE_SIZE < elements;
        (used + 2..used + 4).contains(at) || state.contains(at) || is_new
    };
    let changed = before.iter().zip(after).enumerate().filter(|(_, (before, after))| before != after);
    changed.map(|(at, _)| at).filter(|at| !own(at)).collect()
}
