//! Block requests, from a guest's queue to a storage and back, against plain arrays of bytes.
//!
//! The storage does what the input says: short transfers, interruptions, errors. After each request the frame or
//! the slot that it was about has the right bytes, every other frame and slot has the bytes it had, and the guest
//! is told what has happened. The storage is never asked for bytes that it hasn't got.

use std::io;
use std::sync::{Arc, Mutex};

use umpa_abi::addr::{Frame, PAGE_BYTES};
use umpa_abi::block::{FLUSH, READ, SECTORS_PER_SLOT, STATUS_REFUSED, WRITE};
use vm_memory::Bytes;
use vmm::block::queue::{Status, Work};
use vmm::block::storage::Slice;
use vmm::block::{Storage, perform};

use super::input::Input;
use super::queue::{FRAMES, Guest};

const SLOTS: usize = 4;
const GRANTED: u64 = 3;
const STEPS_MAX: usize = 32;
const PAGE: usize = PAGE_BYTES as usize;

/// What a storage's next calls come to, and its bytes.
#[derive(Debug, Default)]
struct Disk {
    bytes: Vec<u8>,
    script: Vec<u8>,
    calls: usize,
    /// The error that it gave.
    failed: Option<io::ErrorKind>,
}

#[derive(Clone, Debug)]
struct Shared(Arc<Mutex<Disk>>);

impl Disk {
    /// How much of `wanted` bytes at `offset` is done, or why nothing is.
    fn next(&mut self, offset: u64, wanted: usize) -> io::Result<usize> {
        self.calls += 1;
        assert!(wanted > 0 && wanted <= PAGE && offset + wanted as u64 <= (SLOTS * PAGE) as u64);
        assert_eq!(offset / PAGE_BYTES, (offset + wanted as u64 - 1) / PAGE_BYTES, "two slots at once");
        let kind = match self.script.pop().unwrap_or(0) {
            0..=99 => return Ok(wanted),
            short @ 100..=199 => return Ok((usize::from(short - 99) * 41).min(wanted)),
            200..=219 => io::ErrorKind::Interrupted,
            220..=229 => io::ErrorKind::StorageFull,
            230..=234 => io::ErrorKind::QuotaExceeded,
            235..=239 => io::ErrorKind::FileTooLarge,
            240..=246 => return Ok(0),
            // More than was asked for: a storage that lies.
            247..=249 => return Ok(wanted + 1),
            _ => io::ErrorKind::Other,
        };
        if kind != io::ErrorKind::Interrupted {
            self.failed = Some(kind);
        }
        Err(kind.into())
    }
}

impl Storage for Shared {
    fn read(&self, offset: u64, into: &Slice<'_>) -> io::Result<usize> {
        let mut disk = self.0.lock().expect("no panic holds it");
        let count = disk.next(offset, into.len())?;
        let end = (offset as usize + count).min(disk.bytes.len());
        let bytes = &disk.bytes[offset as usize..end];
        into.write_slice(&bytes[..bytes.len().min(into.len())], 0).map_err(io::Error::other)?;
        Ok(count)
    }

    fn write(&self, offset: u64, from: &Slice<'_>) -> io::Result<usize> {
        let mut disk = self.0.lock().expect("no panic holds it");
        let count = disk.next(offset, from.len())?;
        let mut bytes = vec![0; count.min(from.len())];
        from.read_slice(&mut bytes, 0).map_err(io::Error::other)?;
        disk.bytes[offset as usize..offset as usize + bytes.len()].copy_from_slice(&bytes);
        Ok(count)
    }

    fn flush(&self) -> io::Result<()> {
        self.0.lock().expect("no panic holds it").next(0, PAGE).map(|_| ())
    }
}

/// Requests, one at a time: what is asked, and how the storage behaves.
pub fn check(data: &[u8]) {
    let mut input = Input::new(data);
    let mut guest = Guest::new(SLOTS as u64, GRANTED);
    let bytes: Vec<u8> = (0..SLOTS * PAGE).map(|at| (at / PAGE * 61 + at % 251 + 1) as u8).collect();
    let disk = Shared(Arc::new(Mutex::new(Disk { bytes, ..Disk::default() })));
    for _ in 0..STEPS_MAX {
        if input.is_empty() {
            break;
        }
        request(&mut input, &mut guest, &disk);
    }
}

fn request(input: &mut Input<'_>, guest: &mut Guest, disk: &Shared) {
    let shape = input.u8();
    let kind = [READ, WRITE, FLUSH, u32::from(shape) >> 2][usize::from(shape & 3)];
    let (slot, frame) = (u64::from(input.u8()), u64::from(input.u8()));
    let head = u16::from(input.u8());
    // Mostly slots and frames that there are.
    let slot = if slot < 224 { slot % SLOTS as u64 } else { slot };
    let frame = if frame < 224 { FRAMES.start + frame % GRANTED } else { FRAMES.start + frame };
    let skewed = u64::from(shape == 0xff);
    let script = usize::from(input.u8() % 16);
    let script = input.bytes(script).to_vec();
    guest.chain(head, kind, slot * SECTORS_PER_SLOT + skewed, frame << 12);
    guest.offer(head);

    let frames_before = frames(guest);
    let (mut taken, refused) = guest.take();
    let is_sound =
        kind == FLUSH || (kind < 2 && slot < SLOTS as u64 && frame < FRAMES.start + GRANTED && skewed == 0);
    assert_eq!((taken.len() as u64, refused), if is_sound { (1, 0) } else { (0, 1) });
    let Some(request) = taken.pop() else {
        assert_eq!(guest.area()[Guest::status_at(head)], STATUS_REFUSED);
        assert_eq!(frames(guest), frames_before);
        return;
    };
    let wanted = (Frame::new(frame), slot);
    match request.work {
        Work::Read { slot, frame } => assert!(kind == READ && (frame, slot) == wanted),
        Work::Write { slot, frame } => assert!(kind == WRITE && (frame, slot) == wanted),
        Work::Flush => assert_eq!(kind, FLUSH),
    }
    let disk_before = {
        let mut disk = disk.0.lock().expect("no panic holds it");
        (disk.script, disk.calls, disk.failed) = (script, 0, None);
        disk.bytes.clone()
    };
    let status = perform(request.work, &guest.ram, disk);
    let (bytes, failed, calls) = {
        let disk = disk.0.lock().expect("no panic holds it");
        (disk.bytes.clone(), disk.failed, disk.calls)
    };
    // A hundred bytes at least with each call that isn't interrupted, and fifteen that may be.
    assert!(calls <= PAGE / 41 + 16, "{calls} calls for one request");
    match failed {
        Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge) => {
            assert_eq!(status, Status::NoSpace);
        }
        Some(_) => assert_eq!(status, Status::Io),
        None => assert!(matches!(status, Status::Ok | Status::Io)),
    }
    let frames_after = frames(guest);
    let (at, in_frames) = (slot as usize * PAGE, (frame.wrapping_sub(FRAMES.start)) as usize * PAGE);
    let differ = |before: &[u8], after: &[u8], may: std::ops::Range<usize>| {
        before
            .iter()
            .zip(after)
            .enumerate()
            .any(|(at, (before, after))| before != after && !may.contains(&at))
    };
    let (may_disk, may_frames) = match kind {
        READ => (0..0, in_frames..in_frames + PAGE),
        WRITE => (at..at + PAGE, 0..0),
        _ => (0..0, 0..0),
    };
    assert!(!differ(&disk_before, &bytes, may_disk), "another slot has changed");
    assert!(!differ(&frames_before, &frames_after, may_frames), "another frame has changed");
    if status == Status::Ok && kind != FLUSH {
        assert_eq!(bytes[at..at + PAGE], frames_after[in_frames..in_frames + PAGE], "half a transfer");
    }
    if let Some(frame) = request.work.frame() {
        guest.ledger.unpin(frame);
    }
    guest.ring.complete(request, status);
    assert_eq!(guest.area()[Guest::status_at(head)], status as u8);
}

fn frames(guest: &Guest) -> Vec<u8> {
    let mut bytes = vec![0; GRANTED as usize * PAGE];
    guest
        .ram
        .read_granted(&guest.ledger, Frame::new(FRAMES.start).start(), &mut bytes)
        .expect("granted frames");
    bytes
}
