use std::collections::BTreeMap;

use proptest::prelude::*;
use umpa_abi::addr::PAGE_BYTES;
use umpa_abi::exchange::Policy;
use umpa_abi::layout::{FRAMES_GPA, SYSTEM_GPA};
use virtio_bindings::bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};

use super::*;

const NEXT: u16 = VRING_DESC_F_NEXT as u16;
const WRITES: u16 = VRING_DESC_F_WRITE as u16;
const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;
const BASE: u64 = SYSTEM_GPA.get();
const FRAMES: u64 = FRAMES_GPA.get();
const HEADER: u64 = BASE + REQUESTS_AT;
const STATUS: u64 = BASE + REQUESTS_AT + PAGE_BYTES;
const SLOTS: u64 = 100;
/// Of 512 frames the first ten are granted.
const GRANTED: u64 = 10;

/// A guest that writes what it likes.
struct Guest {
    ram: Arc<GuestRam>,
    ledger: Ledger,
    ring: Ring,
    offered: u16,
}

/// A descriptor: address, bytes, flags, next.
type Parts = (u64, u32, u16, u16);

impl Guest {
    fn new() -> Self {
        let ram = Arc::new(GuestRam::new(AREA_BYTES, 2 << 20).unwrap());
        let mut ledger = Ledger::new(FRAMES_GPA.containing(), 512);
        let plan = ledger.exchange(&[], [GRANTED, 0, 0], Policy::AllOrNothing, 10);
        assert_eq!(plan.granted_pages(), [GRANTED, 0, 0]);
        let ring = Ring::new(&ram, SYSTEM_GPA, SLOTS).unwrap();
        Self { ram, ledger, ring, offered: 0 }
    }

    fn write(&self, gpa: u64, bytes: &[u8]) {
        self.ram.write(Gpa::new(gpa), bytes).unwrap();
    }

    fn byte(&self, gpa: u64) -> u8 {
        let mut byte = [0];
        self.ram.read(Gpa::new(gpa), &mut byte).unwrap();
        byte[0]
    }

    fn describe_at(&self, table: u64, index: u16, (address, bytes, flags, next): Parts) {
        let at = table + 16 * u64::from(index);
        self.write(at, &address.to_le_bytes());
        self.write(at + 8, &bytes.to_le_bytes());
        self.write(at + 12, &flags.to_le_bytes());
        self.write(at + 14, &next.to_le_bytes());
    }

    /// A chain from descriptor `head` on, and what its header says.
    fn chain(&self, head: u16, kind: u32, sector: u64, parts: &[Parts]) {
        for (index, parts) in (head..).zip(parts) {
            self.describe_at(BASE + DESCRIPTORS_AT, index, *parts);
        }
        self.write(HEADER, &kind.to_le_bytes());
        self.write(HEADER + 8, &sector.to_le_bytes());
        self.write(STATUS, &[0xff]);
    }

    fn offer(&mut self, head: u16) {
        self.write(BASE + AVAIL_AT + 4 + 2 * u64::from(self.offered % QUEUE_SIZE), &head.to_le_bytes());
        self.set_offered(self.offered.wrapping_add(1));
    }

    fn set_offered(&mut self, offered: u16) {
        self.offered = offered;
        self.write(BASE + AVAIL_AT + 2, &offered.to_le_bytes());
    }

    fn take(&mut self) -> Vec<Request> {
        let mut taken = Vec::new();
        self.ring.take(&mut self.ledger, |request| taken.push(request));
        taken
    }

    fn complete(&mut self, request: Request, status: Status) {
        if let Some(frame) = request.work.frame() {
            self.ledger.unpin(frame);
        }
        self.ring.complete(request, status);
    }

    /// The last element of the used ring: head and bytes.
    fn used(&self) -> (u16, u32, u32) {
        let mut index = [0; 2];
        self.ram.read(Gpa::new(BASE + USED_AT + 2), &mut index).unwrap();
        let index = u16::from_le_bytes(index);
        assert_eq!(index, self.ring.used_index());
        let at = BASE + USED_AT + 4 + 8 * u64::from(index.wrapping_sub(1) % QUEUE_SIZE);
        let mut element = [0; 8];
        self.ram.read(Gpa::new(at), &mut element).unwrap();
        let [a, b, c, d, e, f, g, h] = element;
        (index, u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]))
    }

    fn needs_reset(&self) -> bool {
        self.byte(BASE + STATE_AT) & NEEDS_RESET as u8 != 0
    }

    /// All granted frames can be given back: none is pinned.
    fn gives_back_everything(&mut self) -> bool {
        let give =
            [umpa_abi::exchange::Extent::new(FRAMES_GPA.containing(), GRANTED as u32, PageSize::Size4K)];
        self.ledger.exchange(&give, [0; 3], Policy::Partial, 10).taken_frames() == GRANTED
    }
}

const fn header(head: u16) -> Parts {
    (HEADER, 16, NEXT, head + 1)
}

const fn data(head: u16, address: u64, flags: u16) -> Parts {
    (address, 4096, NEXT | flags, head + 2)
}

const fn status() -> Parts {
    (STATUS, 1, WRITES, 0)
}

fn read(head: u16) -> [Parts; 3] {
    [header(head), data(head, FRAMES, WRITES), status()]
}

#[test]
fn requests_are_taken_as_they_are_meant() {
    let mut guest = Guest::new();
    let frame = Frame::new((FRAMES + 9 * 4096) / 4096);
    let first = FRAMES_GPA.containing();
    for (kind, sector, parts, work, bytes) in [
        (READ, 99 * 8, read(7).to_vec(), Work::Read { slot: 99, frame: first }, 4097),
        (
            WRITE,
            0,
            vec![header(7), data(7, FRAMES + 9 * 4096, 0), status()],
            Work::Write { slot: 0, frame },
            1,
        ),
        (FLUSH, 0, vec![header(7), status()], Work::Flush, 1),
    ] {
        guest.chain(7, kind, sector, &parts);
        guest.offer(7);
        let mut taken = guest.take();
        assert_eq!(taken.len(), 1);
        let request = taken.remove(0);
        assert_eq!((request.work, guest.ring.in_flight()), (work, 1));
        assert_eq!(guest.byte(STATUS), 0xff, "nothing is said before it is done");
        guest.complete(request, Status::NoSpace);
        assert_eq!(guest.byte(STATUS), STATUS_NO_SPACE);
        assert_eq!(guest.used(), (guest.offered, 7, bytes));
        assert!(guest.take().is_empty(), "taken once");
    }
    assert!(guest.gives_back_everything());
}

#[test]
fn what_makes_no_sense_is_refused_and_the_queue_goes_on() {
    let mut guest = Guest::new();
    let read = |parts: Parts| (READ, 0, vec![header(0), parts, status()]);
    let with_header = |parts: Parts| (READ, 0, vec![parts, data(0, FRAMES, WRITES), status()]);
    let at_sector = |sector| (READ, sector, self::read(0).to_vec());
    let kind = |kind| (kind, 0, self::read(0).to_vec());
    let lies = [
        ("beyond the end", at_sector(SLOTS * 8)),
        ("far beyond the end", at_sector(!7)),
        ("between two slots", at_sector(4)),
        ("unknown type", kind(2)),
        ("unknown type", kind(u32::MAX)),
        ("a flush with data", kind(FLUSH)),
        ("a write into the frame", kind(WRITE)),
        ("a read without data", (READ, 0, vec![header(0), status()])),
        ("a read from the frame", read(data(0, FRAMES, 0))),
        ("less than a frame", read((FRAMES, 4095, NEXT | WRITES, 2))),
        ("nothing", read((FRAMES, 0, NEXT | WRITES, 2))),
        ("more than a frame", read((FRAMES, 8192, NEXT | WRITES, 2))),
        ("half of two frames", read(data(0, FRAMES + 2048, WRITES))),
        ("a frame that isn't granted", read(data(0, FRAMES + GRANTED * 4096, WRITES))),
        ("behind all frames", read(data(0, FRAMES + (2 << 20), WRITES))),
        ("before all frames", read(data(0, FRAMES - 4096, WRITES))),
        ("the ring itself", read(data(0, BASE, WRITES))),
        ("nowhere", read(data(0, 0, WRITES))),
        ("the end of the world", read(data(0, u64::MAX - 4095, WRITES))),
        ("a header that the device writes", with_header((HEADER, 16, NEXT | WRITES, 1))),
        ("a short header", with_header((HEADER, 15, NEXT, 1))),
        ("a long header", with_header((HEADER, 17, NEXT, 1))),
        ("a header in the rings", with_header((HEADER - 8, 16, NEXT, 1))),
        ("a header that runs over the end", with_header((BASE + AREA_BYTES - 15, 16, NEXT, 1))),
        ("a header in a frame", with_header((FRAMES, 16, NEXT, 1))),
        ("a header nowhere", with_header((u64::MAX, 16, NEXT, 1))),
        (
            "a chain that is too long",
            (READ, 0, vec![header(0), data(0, FRAMES, WRITES), (STATUS, 1, WRITES | NEXT, 3), status()]),
        ),
    ];
    for (why, (kind, sector, parts)) in lies {
        guest.chain(0, kind, sector, &parts);
        guest.offer(0);
        assert_eq!(guest.take(), [], "{why}");
        assert_eq!(guest.byte(STATUS), STATUS_REFUSED, "{why}");
        assert_eq!(guest.used(), (guest.offered, 0, 1), "{why}");
        assert!(!guest.ring.is_broken() && guest.ring.in_flight() == 0, "{why}");
    }
    assert!(guest.gives_back_everything());
}

#[test]
fn a_queue_that_makes_no_sense_is_broken() {
    let with_status = |parts: Parts| vec![header(0), data(0, FRAMES, WRITES), parts];
    let chains = [
        ("nothing", vec![(0, 0, 0, 0)]),
        ("a header alone", vec![(HEADER, 16, 0, 0)]),
        ("a status alone, in the rings", vec![(BASE + USED_AT + 2, 1, WRITES, 0)]),
        ("no status", with_status((STATUS, 1, 0, 0))),
        ("a status of no byte", with_status((STATUS, 0, WRITES, 0))),
        ("a status of two bytes", with_status((STATUS, 2, WRITES, 0))),
        ("a status in the rings", with_status((HEADER - 1, 1, WRITES, 0))),
        ("a status behind the area", with_status((BASE + AREA_BYTES, 1, WRITES, 0))),
        ("a status in a frame", with_status((FRAMES, 1, WRITES, 0))),
        ("a status nowhere", with_status((u64::MAX, 1, WRITES, 0))),
        ("a loop", vec![header(0), data(0, FRAMES, WRITES), (HEADER, 16, NEXT, 0)]),
        ("a loop of one", vec![(HEADER, 16, NEXT, 0)]),
        ("a chain that leaves the table", vec![(HEADER, 16, NEXT, QUEUE_SIZE)]),
        ("a table in a frame that isn't granted", vec![(FRAMES + GRANTED * 4096, 48, INDIRECT, 0)]),
        ("a table in a frame", vec![(FRAMES, 48, INDIRECT, 0)]),
        ("a table of half a descriptor", vec![(HEADER, 8, INDIRECT, 0)]),
        ("a table that is too long", vec![(HEADER, !15, INDIRECT, 0)]),
        ("more than 4 GiB", vec![(HEADER, 16, NEXT, 1), (FRAMES, u32::MAX, NEXT | WRITES, 2), status()]),
    ];
    for (why, parts) in chains {
        let mut guest = Guest::new();
        guest.chain(0, READ, 0, &parts);
        guest.offer(0);
        assert_eq!(guest.take(), [], "{why}");
        assert!(guest.ring.is_broken() && guest.needs_reset(), "{why}");
        assert!(guest.gives_back_everything(), "{why}");
    }
    // A table that refers to itself.
    let mut guest = Guest::new();
    guest.describe_at(HEADER, 0, (HEADER, 16, INDIRECT, 0));
    guest.describe_at(BASE, 0, (HEADER, 16, INDIRECT, 0));
    guest.offer(0);
    assert_eq!(guest.take(), []);
    assert!(guest.ring.is_broken());
    // Heads and indexes.
    for offered in [QUEUE_SIZE + 1, u16::MAX] {
        let mut guest = Guest::new();
        guest.set_offered(offered);
        assert_eq!(guest.take(), []);
        assert!(guest.ring.is_broken() && guest.needs_reset(), "{offered} requests offered");
    }
    for head in [QUEUE_SIZE, u16::MAX] {
        let mut guest = Guest::new();
        guest.offer(head);
        assert_eq!(guest.take(), []);
        assert!(guest.ring.is_broken(), "head {head}");
    }
}

#[test]
fn a_broken_queue_says_so_when_nothing_is_in_flight() {
    let mut guest = Guest::new();
    guest.chain(0, READ, 0, &read(0));
    guest.offer(0);
    guest.offer(0);
    let mut taken = guest.take();
    assert_eq!(taken.len(), 1, "the second one is in flight already");
    assert!(guest.ring.is_broken() && !guest.needs_reset());
    assert!(!guest.gives_back_everything());
    guest.chain(3, READ, 0, &read(3));
    guest.offer(3);
    assert_eq!(guest.take(), []);
    guest.complete(taken.remove(0), Status::Ok);
    assert_eq!((guest.used(), guest.byte(STATUS)), ((1, 0, 4097), STATUS_OK));
    assert!(guest.needs_reset() && guest.gives_back_everything());
}

#[test]
fn a_table_within_the_area_is_another_way_to_write_a_chain() {
    let mut guest = Guest::new();
    guest.chain(5, READ, 8, &[(HEADER + 64, 48, INDIRECT, 0)]);
    for (index, parts) in (0..).zip(read(0)) {
        guest.describe_at(HEADER + 64, index, parts);
    }
    guest.offer(5);
    let mut taken = guest.take();
    assert_eq!(taken[0].work, Work::Read { slot: 1, frame: FRAMES_GPA.containing() });
    guest.complete(taken.remove(0), Status::Ok);
    assert_eq!(guest.used(), (1, 5, 4097));
}

#[test]
fn indexes_go_round() {
    let mut guest = Guest::new();
    // All descriptors at once, as flushes of two; then one by one, more than an index has values.
    for head in (0..QUEUE_SIZE).step_by(2) {
        guest.chain(head, FLUSH, 0, &[header(head), status()]);
        guest.offer(head);
    }
    let mut taken = guest.take();
    assert_eq!((taken.len(), guest.ring.in_flight()), (512, 512));
    for _ in 0..70_000 {
        let request = taken.swap_remove(taken.len() / 3);
        let head = request.head;
        guest.complete(request, Status::Ok);
        assert_eq!(guest.used().1, u32::from(head));
        guest.offer(head);
        taken.extend(guest.take());
        assert_eq!((taken.len(), guest.ring.in_flight()), (512, 512));
    }
}

#[test]
fn a_queue_needs_its_room() {
    let ram = Arc::new(GuestRam::new(AREA_BYTES, 2 << 20).unwrap());
    for base in [0, BASE + 4096, BASE - 4096, FRAMES, !4095] {
        assert!(Ring::new(&ram, Gpa::new(base), 1).is_err(), "{base:#x}");
    }
}

/// What a hostile guest does next.
#[derive(Clone, Debug)]
enum Step {
    /// A descriptor like a good one, with one field of any value.
    Describe {
        index: u16,
        parts: Parts,
    },
    /// A header.
    Say {
        place: u64,
        kind: u32,
        sector: u64,
    },
    /// Any bytes anywhere.
    Write {
        offset: u64,
        bytes: Vec<u8>,
    },
    Offer {
        head: u16,
    },
    Take,
    Complete {
        which: prop::sample::Index,
    },
}

fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => (0..256u64).prop_map(|i| HEADER + 16 * i),
        4 => (0..16u64).prop_map(|i| FRAMES + 4096 * i),
        1 => (0..AREA_BYTES).prop_map(|offset| BASE + offset),
        1 => any::<u64>(),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let bytes = prop_oneof![4 => Just(16u32), 4 => Just(4096), 4 => Just(1), 1 => any::<u32>()];
    let flags = prop_oneof![8 => 0..4u16, 1 => any::<u16>()];
    let index = || prop_oneof![16 => 0..12u16, 1 => any::<u16>()];
    prop_oneof![
        8 => (0..12u16, address(), bytes, flags, index())
            .prop_map(|(index, address, bytes, flags, next)| Step::Describe { index, parts: (address, bytes, flags, next) }),
        3 => ((0..256u64), prop_oneof![0..5u32, any::<u32>()], prop_oneof![0..900u64, any::<u64>()])
            .prop_map(|(place, kind, sector)| Step::Say { place, kind, sector }),
        1 => (0..AREA_BYTES - 64, prop::collection::vec(any::<u8>(), 1..64))
            .prop_map(|(offset, bytes)| Step::Write { offset, bytes }),
        8 => index().prop_map(|head| Step::Offer { head }),
        8 => Just(Step::Take),
        8 => any::<prop::sample::Index>().prop_map(|which| Step::Complete { which }),
    ]
}

proptest! {
    /// Whatever a guest writes: no panic, every request that is taken is one that the guest may make, and
    /// pins are as many as requests.
    #[test]
    fn hostile_guests_get_nowhere(steps in prop::collection::vec(step(), 1..200)) {
        let mut guest = Guest::new();
        for (index, parts) in (0..12).zip((0..4).flat_map(|i| read(3 * i))) {
            guest.describe_at(BASE, index, parts);
        }
        let mut taken: Vec<Request> = Vec::new();
        for step in steps {
            match step {
                Step::Describe { index, parts } => guest.describe_at(BASE, index, parts),
                Step::Say { place, kind, sector } => {
                    guest.write(HEADER + 16 * place, &kind.to_le_bytes());
                    guest.write(HEADER + 16 * place + 8, &sector.to_le_bytes());
                }
                Step::Write { offset, bytes } => guest.write(BASE + offset, &bytes),
                Step::Offer { head } => guest.offer(head),
                Step::Take => taken.extend(guest.take()),
                Step::Complete { which } if !taken.is_empty() => {
                    let request = taken.swap_remove(which.index(taken.len()));
                    guest.complete(request, Status::Ok);
                }
                Step::Complete { .. } => {}
            }
            prop_assert_eq!(usize::from(guest.ring.in_flight()), taken.len());
            let mut heads = BTreeMap::new();
            for request in &taken {
                prop_assert_eq!(heads.insert(request.head, ()), None, "a head is in flight twice");
                if let Work::Read { slot, frame } | Work::Write { slot, frame } = request.work {
                    prop_assert!(slot < SLOTS);
                    prop_assert!((FRAMES / 4096..FRAMES / 4096 + GRANTED).contains(&frame.get()));
                }
            }
        }
        // The device looks again before it ends.
        taken.extend(guest.take());
        for request in taken {
            guest.complete(request, Status::Io);
        }
        prop_assert!(!guest.ring.is_broken() || guest.needs_reset());
        prop_assert!(guest.gives_back_everything(), "a frame is still pinned");
    }
}
