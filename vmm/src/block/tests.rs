//! The device with its threads, on storages that do as they are told.

use std::collections::VecDeque;
use std::io;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Instant;

use umpa_abi::addr::{Frame, PAGE_BYTES, PageSize};
use umpa_abi::block::{
    AREA_BYTES, AVAIL_AT, KICK, QUEUE_SIZE, READ, REQUESTS_AT, STATUS_IO, STATUS_NO_SPACE, STATUS_OK,
    USED_AT, WRITE,
};
use umpa_abi::exchange::{Extent, Policy, Shortfall};
use umpa_abi::layout::{FRAMES_GPA, SYSTEM_GPA};
use vm_memory::{Bytes, GuestAddress};

use super::storage::Slice;
use super::*;
use crate::grant;

const SLOTS: u64 = 64;
const FRAMES: u64 = 64;

/// A storage whose transfers wait for a gate, and end as a script says.
#[derive(Debug, Default)]
struct Scripted {
    state: Mutex<Script>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Script {
    is_open: bool,
    begun: usize,
    /// What becomes of the next transfers: bytes that are done, or an error. Then all of them are done.
    results: VecDeque<Result<usize, i32>>,
    /// Bytes of a slot that can be had without waiting, gate or not.
    now_bytes: usize,
    bytes: Vec<u8>,
}

impl Scripted {
    fn new(is_open: bool, results: &[Result<usize, i32>]) -> Arc<Self> {
        let bytes = vec![0; (SLOTS * PAGE_BYTES) as usize];
        let results = results.iter().copied().collect();
        let script = Script { is_open, begun: 0, results, now_bytes: 0, bytes };
        Arc::new(Self { state: Mutex::new(script), changed: Condvar::new() })
    }

    fn open(&self) {
        // A test that fails may have panicked with it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner).is_open = true;
        self.changed.notify_all();
    }

    fn wait_begun(&self, count: usize) {
        let state = self.state.lock().unwrap();
        drop(self.changed.wait_while(state, |state| state.begun < count).unwrap());
    }

    fn transfer(&self, offset: u64, slice: &Slice<'_>, write: bool) -> io::Result<usize> {
        let mut state = self.state.lock().unwrap();
        state.begun += 1;
        self.changed.notify_all();
        state = self.changed.wait_while(state, |state| !state.is_open).unwrap();
        let bytes = match state.results.pop_front() {
            Some(Err(errno)) => return Err(io::Error::from_raw_os_error(errno)),
            Some(Ok(bytes)) => bytes,
            None => slice.len(),
        };
        let end = (offset as usize + bytes).min(state.bytes.len());
        let place = &mut state.bytes[offset as usize..end];
        if write {
            slice.copy_to(place);
        } else {
            slice.copy_from(place);
        }
        Ok(bytes)
    }
}

impl Storage for Arc<Scripted> {
    fn read(&self, offset: u64, into: &Slice<'_>) -> io::Result<usize> {
        self.transfer(offset, into, false)
    }
    fn read_now(&self, offset: u64, into: &Slice<'_>) -> io::Result<usize> {
        let state = self.state.lock().unwrap();
        if state.now_bytes == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        into.copy_from(&state.bytes[offset as usize..][..state.now_bytes]);
        Ok(state.now_bytes)
    }
    fn write(&self, offset: u64, from: &Slice<'_>) -> io::Result<usize> {
        self.transfer(offset, from, true)
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A test that fails doesn't wait for its gate.
struct OpenOnPanic(Arc<Scripted>);

impl Drop for OpenOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.open();
        }
    }
}

struct Guest {
    // Dropped first.
    _gate: OpenOnPanic,
    ram: Arc<GuestRam>,
    ledger: Ledger,
    device: Device,
    offered: u16,
}

impl Guest {
    fn new(storage: &Arc<Scripted>, threads: usize) -> Self {
        let ram = Arc::new(GuestRam::new(AREA_BYTES, 2 << 20).unwrap());
        let mut ledger = Ledger::new(FRAMES_GPA.containing(), 512);
        let policy = Policy::AllOrNothing;
        let mut plan = ledger.exchange(&[], [FRAMES, 0, 0], policy, 10);
        grant::apply(&ram, &mut ledger, &mut plan, policy).unwrap();
        let file = PageFile { threads, ..PageFile::new(Arc::clone(storage), SLOTS) };
        let device = Device::new(&ram, SYSTEM_GPA, file, Jail::On).unwrap();
        Self { _gate: OpenOnPanic(Arc::clone(storage)), ram, ledger, device, offered: 0 }
    }

    fn at(offset: u64) -> Gpa {
        Gpa::new(SYSTEM_GPA.get() + offset)
    }

    fn frame(index: u64) -> Frame {
        FRAMES_GPA.containing().offset(index)
    }

    /// Request `n` has slot `n` and frame `n`.
    fn offer(&mut self, kind: u32, n: u16) {
        let header = Self::at(REQUESTS_AT + 16 * u64::from(n));
        let status = Self::at(REQUESTS_AT + PAGE_BYTES + u64::from(n));
        let data = Self::frame(n.into()).start();
        let data_flags = if kind == READ { 3u16 } else { 1 };
        for (index, gpa, bytes, flags, next) in [
            (3 * n, header, 16u32, 1, 3 * n + 1),
            (3 * n + 1, data, 4096, data_flags, 3 * n + 2),
            (3 * n + 2, status, 1, 2, 0),
        ] {
            let at = 16 * u64::from(index);
            self.ram.write(Self::at(at), &gpa.get().to_le_bytes()).unwrap();
            self.ram.write(Self::at(at + 8), &bytes.to_le_bytes()).unwrap();
            self.ram.write(Self::at(at + 12), &flags.to_le_bytes()).unwrap();
            self.ram.write(Self::at(at + 14), &next.to_le_bytes()).unwrap();
        }
        self.ram.write(header, &u64::from(kind).to_le_bytes()).unwrap();
        self.ram.write(Gpa::new(header.get() + 8), &(u64::from(n) * 8).to_le_bytes()).unwrap();
        self.ram.write(status, &[0xff]).unwrap();
        let place = AVAIL_AT + 4 + 2 * u64::from(self.offered % QUEUE_SIZE);
        self.ram.write(Self::at(place), &(3 * n).to_le_bytes()).unwrap();
        self.offered += 1;
        self.ram.write(Self::at(AVAIL_AT + 2), &self.offered.to_le_bytes()).unwrap();
    }

    fn status(&self, n: u16) -> u8 {
        let mut byte = [0];
        self.ram.read(Self::at(REQUESTS_AT + PAGE_BYTES + u64::from(n)), &mut byte).unwrap();
        byte[0]
    }

    fn used(&self) -> u16 {
        let mut index = [0; 2];
        self.ram.read(Self::at(USED_AT + 2), &mut index).unwrap();
        u16::from_le_bytes(index)
    }

    /// What a vCPU does with a command.
    fn serve(&mut self, command: u32) {
        self.device.look(command, &mut self.ledger);
        self.device.wait(command);
    }

    fn kick(&mut self) {
        self.serve(KICK);
    }

    /// Waits, as a guest does, until so many are used.
    fn wait(&mut self, used: u16) {
        while self.used() != used {
            self.serve(WAIT | u32::from(self.used()));
        }
    }

    fn fill(&self, index: u64, byte: u8) {
        let gpa = GuestAddress(Self::frame(index).start().get());
        self.ram.loader_view().write_slice(&[byte; 4096], gpa).unwrap();
    }

    fn content(&self, index: u64) -> [u8; 4096] {
        let mut bytes = [0; 4096];
        self.ram.read_granted(&self.ledger, Self::frame(index).start(), &mut bytes).unwrap();
        bytes
    }

    fn give(&mut self, index: u64) -> Shortfall {
        self.device.reap(&mut self.ledger);
        let give = [Extent::new(Self::frame(index), 1, PageSize::Size4K)];
        let mut plan = self.ledger.exchange(&give, [0; 3], Policy::Partial, 10);
        grant::apply(&self.ram, &mut self.ledger, &mut plan, Policy::Partial).unwrap();
        plan.shortfall
    }

    /// One request alone: its status.
    fn one(&mut self, kind: u32, n: u16) -> u8 {
        self.offer(kind, n);
        self.wait(self.offered);
        self.status(n)
    }
}

#[test]
fn transfers_go_on_until_they_are_whole_or_have_failed() {
    for (results, status) in [
        (vec![], STATUS_OK),
        (vec![Ok(1), Ok(4094), Ok(1)], STATUS_OK),
        (vec![Err(libc::EINTR), Ok(2048), Err(libc::EINTR), Ok(2048)], STATUS_OK),
        (vec![Err(libc::EIO)], STATUS_IO),
        (vec![Ok(2048), Err(libc::EIO)], STATUS_IO),
        (vec![Ok(2048), Ok(0)], STATUS_IO),
        (vec![Ok(4097)], STATUS_IO),
        (vec![Ok(100), Err(libc::ENOSPC)], STATUS_NO_SPACE),
        (vec![Err(libc::EDQUOT)], STATUS_NO_SPACE),
        (vec![Err(libc::EFBIG)], STATUS_NO_SPACE),
        (vec![Err(libc::EFAULT)], STATUS_IO),
    ] {
        for kind in [WRITE, READ] {
            let storage = Scripted::new(true, &results);
            storage.state.lock().unwrap().bytes[5 * 4096..6 * 4096].fill(0xaa);
            let mut guest = Guest::new(&storage, 1);
            guest.fill(5, 0x55);
            assert_eq!(guest.one(kind, 5), status, "{results:?}");
            if status == STATUS_OK {
                let byte = if kind == WRITE { 0x55 } else { 0xaa };
                assert_eq!(guest.content(5), [byte; 4096], "{results:?}");
                let bytes = &storage.state.lock().unwrap().bytes;
                assert_eq!(bytes[5 * 4096..][..4096], [byte; 4096], "{results:?}");
            }
            assert_eq!(guest.device.counts().errors, u64::from(status != STATUS_OK));
        }
    }
}

#[test]
fn a_frame_in_flight_cannot_be_given_back() {
    let storage = Scripted::new(false, &[]);
    let mut guest = Guest::new(&storage, 1);
    guest.offer(WRITE, 0);
    guest.offer(READ, 1);
    guest.kick();
    storage.wait_begun(1);
    // The first is under way, the second is pending, the third was never offered.
    assert_eq!(
        [0, 1, 2].map(|index| guest.give(index)),
        [Shortfall::NotYours, Shortfall::NotYours, Shortfall::None]
    );
    storage.open();
    guest.wait(2);
    assert_eq!(
        [0, 1, 2].map(|index| guest.give(index)),
        [Shortfall::None, Shortfall::None, Shortfall::NotYours]
    );
}

#[test]
fn the_guest_goes_on_while_the_storage_works_and_waits_for_a_while_only() {
    let storage = Scripted::new(false, &[]);
    let mut guest = Guest::new(&storage, 3);
    for n in 0..10 {
        guest.offer(WRITE, n);
    }
    guest.kick();
    storage.wait_begun(3);
    assert_eq!(guest.used(), 0);
    let begin = Instant::now();
    guest.serve(WAIT);
    assert!(begin.elapsed() >= WAIT_MAX && begin.elapsed() < Duration::from_secs(5));
    storage.open();
    guest.wait(10);
    // Nothing in flight, or something not seen yet: at once.
    let begin = Instant::now();
    for seen in [10, 9] {
        for _ in 0..20 {
            guest.serve(WAIT | seen);
        }
    }
    assert!(begin.elapsed() < 30 * WAIT_MAX);
    let counts = guest.device.counts();
    assert_eq!((counts.writes, counts.written_bytes, counts.requests()), (10, 40960, 10));
}

#[test]
fn a_guest_that_waits_is_answered_at_once_where_that_is_possible() {
    let storage = Scripted::new(false, &[]);
    let mut guest = Guest::new(&storage, 1);
    {
        let mut state = storage.state.lock().unwrap();
        state.bytes[3 * 4096..4 * 4096].fill(0xaa);
        state.now_bytes = 4096;
    }
    // The only worker is at the gate.
    guest.offer(WRITE, 0);
    guest.kick();
    storage.wait_begun(1);
    guest.offer(READ, 3);
    guest.serve(WAIT);
    assert_eq!((guest.used(), guest.status(3), guest.content(3)), (1, STATUS_OK, [0xaa; 4096]));
    assert_eq!([3, 0].map(|index| guest.give(index)), [Shortfall::None, Shortfall::NotYours]);
    // Half a slot is none, and a write is never done so.
    storage.state.lock().unwrap().now_bytes = 2048;
    guest.offer(READ, 4);
    guest.offer(WRITE, 5);
    for _ in 0..2 {
        guest.serve(WAIT | 1);
    }
    assert_eq!((guest.used(), guest.status(4), guest.status(5)), (1, 0xff, 0xff));
    storage.open();
    guest.wait(4);
    let counts = guest.device.counts();
    assert_eq!((counts.reads, counts.writes, counts.errors), (2, 2, 0));
}

#[test]
fn dropping_a_device_waits_for_what_is_under_way_only() {
    let storage = Scripted::new(false, &[]);
    let mut guest = Guest::new(&storage, 2);
    for n in 0..20 {
        guest.offer(WRITE, n);
    }
    guest.kick();
    storage.wait_begun(2);
    let opener = std::thread::spawn({
        let storage = Arc::clone(&storage);
        move || {
            std::thread::sleep(Duration::from_millis(50));
            storage.open();
        }
    });
    drop(guest);
    opener.join().unwrap();
    assert_eq!(storage.state.lock().unwrap().begun, 2);
    assert_eq!(Arc::strong_count(&storage), 1, "nothing is left of the device");
}
