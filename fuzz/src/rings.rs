//! The block queue of a guest that writes anything anywhere in it, at any time between two looks.
//!
//! After each look and each completion: nothing but the used ring, the state word and one status byte for each
//! answer has changed; what was taken is in flight, each on a granted frame that can't be given back until it is
//! completed; a broken queue takes nothing and says so as soon as nothing is in flight.

use umpa_abi::addr::Frame;
use umpa_abi::block::{
    AREA_BYTES, FLUSH, NEEDS_RESET, QUEUE_SIZE, READ, REQUESTS_AT, STATE_AT, STATUS_REFUSED, USED_AT, WRITE,
};
use vmm::block::queue::{Request, Status, Work};

use super::input::Input;
use super::queue::{BASE, FRAMES, Guest, strangers};

const SLOTS: u64 = 100;
const GRANTED: u64 = 10;
const STEPS_MAX: usize = 64;

struct Device {
    guest: Guest,
    in_flight: Vec<Request>,
    /// Frames that were given back.
    gone: Vec<Frame>,
    was_broken: bool,
}

/// Steps: the guest writes, the device looks, a request is completed, a frame is given back.
pub fn check(data: &[u8]) {
    let mut input = Input::new(data);
    let mut device = Device {
        guest: Guest::new(SLOTS, GRANTED),
        in_flight: Vec::new(),
        gone: Vec::new(),
        was_broken: false,
    };
    for _ in 0..STEPS_MAX {
        if input.is_empty() {
            break;
        }
        device.step(&mut input);
    }
    while let Some(request) = device.in_flight.pop() {
        device.complete(request, Status::Ok);
    }
    // Nothing is pinned any more.
    for number in FRAMES.start..FRAMES.start + GRANTED {
        let frame = Frame::new(number);
        assert_eq!(device.guest.gives_back(frame), !device.gone.contains(&frame));
    }
}

impl Device {
    fn step(&mut self, input: &mut Input<'_>) {
        let guest = &mut self.guest;
        match input.u8() % 12 {
            // Bytes anywhere.
            0 | 1 => {
                let at = u64::from(input.u16()) % AREA_BYTES;
                let count = usize::from(input.u8());
                guest.write(at, input.bytes(count));
            }
            // A descriptor, most of whose parts make sense.
            2 | 3 => {
                let index = u16::from(input.u8() % 16);
                let address = match input.u8() % 8 {
                    0..=2 => BASE + REQUESTS_AT + u64::from(input.u16()) % 8193,
                    3..=5 => (FRAMES.start + u64::from(input.u8() % 12)) << 12,
                    6 => BASE + u64::from(input.u16()),
                    _ => input.u64(),
                };
                let bytes = [1, 16, 4096, 0, 15, 17, 8192, input.u16().into()];
                let shape = usize::from(input.u8());
                let flags = (shape >> 3 & 7) as u16;
                guest.describe(index, address, bytes[shape & 7], flags, u16::from(input.u8() % 17));
            }
            4 | 5 => guest.offer(u16::from(input.u8() % 18)),
            6 => {
                let offered = input.number() as u16;
                guest.set_offered(offered);
            }
            // A request that makes sense, or nearly.
            7 | 8 => {
                let head = u16::from(input.u8()) * 3;
                let kind = [READ, WRITE, FLUSH, input.u8().into()][usize::from(input.u8() % 4)];
                let sector = input.number();
                let frame = FRAMES.start + input.number() % 513;
                guest.chain(head, kind, sector, frame << 12);
                guest.offer(head);
            }
            9 => {
                if !self.in_flight.is_empty() {
                    let which = usize::from(input.u8()) % self.in_flight.len();
                    let statuses = [Status::Ok, Status::Io, Status::Refused, Status::NoSpace];
                    let request = self.in_flight.swap_remove(which);
                    self.complete(request, statuses[usize::from(input.u8() % 4)]);
                }
            }
            10 => {
                let frame = Frame::new(FRAMES.start + u64::from(input.u8()) % GRANTED);
                let is_busy = self.in_flight.iter().any(|request| request.work.frame() == Some(frame));
                let gone = guest.gives_back(frame);
                assert_eq!(gone, !is_busy && !self.gone.contains(&frame));
                if gone {
                    self.gone.push(frame);
                }
            }
            _ => self.take(),
        }
    }

    fn take(&mut self) {
        let before = self.guest.area();
        let from = self.guest.ring.used_index();
        let (taken, refused) = self.guest.take();
        let after = self.guest.area();
        let to = self.guest.ring.used_index();
        assert!(taken.len() as u64 + refused <= QUEUE_SIZE.into());
        assert_eq!(u64::from(to.wrapping_sub(from)), refused);
        assert!(!self.was_broken || (taken.is_empty() && refused == 0), "a broken queue goes on");
        let changed = strangers(&before, &after, from, to);
        assert!(changed.len() as u64 <= refused);
        assert!(changed.iter().all(|&at| at as u64 >= REQUESTS_AT && after[at] == STATUS_REFUSED));
        for request in &taken {
            let (frame, slot) = match request.work {
                Work::Read { slot, frame } | Work::Write { slot, frame } => (frame, slot),
                Work::Flush => continue,
            };
            assert!(slot < SLOTS && frame.get() >= FRAMES.start && frame.get() < FRAMES.start + GRANTED);
            assert!(!self.gone.contains(&frame));
        }
        self.in_flight.extend(taken);
        self.state(&after);
    }

    fn complete(&mut self, request: Request, status: Status) {
        let before = self.guest.area();
        let from = self.guest.ring.used_index();
        let work = request.work;
        if let Some(frame) = work.frame() {
            self.guest.ledger.unpin(frame);
        }
        self.guest.ring.complete(request, status);
        let after = self.guest.area();
        assert_eq!(self.guest.ring.used_index(), from.wrapping_add(1));
        let changed = strangers(&before, &after, from, from.wrapping_add(1));
        assert!(changed.len() <= 1);
        assert!(changed.iter().all(|&at| at as u64 >= REQUESTS_AT && after[at] == status as u8));
        let element = USED_AT as usize + 4 + 8 * usize::from(from % QUEUE_SIZE) + 4;
        let bytes = if matches!(work, Work::Read { .. }) { 4097u32 } else { 1 };
        assert_eq!(after[element..element + 4], bytes.to_le_bytes());
        self.state(&after);
    }

    fn state(&mut self, area: &[u8]) {
        let ring = &self.guest.ring;
        assert_eq!(usize::from(ring.in_flight()), self.in_flight.len());
        assert!(ring.in_flight() <= QUEUE_SIZE);
        assert!(!self.was_broken || ring.is_broken(), "a broken queue is whole again");
        self.was_broken = ring.is_broken();
        if self.was_broken && self.in_flight.is_empty() {
            let state = STATE_AT as usize;
            assert_eq!(area[state..state + 4], NEEDS_RESET.to_le_bytes());
        }
    }
}
