//! Storages behind a block device that aren't good.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use umpa_abi::addr::PAGE_BYTES;
use vmm::block::Storage;
use vmm::block::storage::Slice;

/// A storage in memory that fails.
#[derive(Debug)]
pub(crate) struct Faulty {
    slots: Vec<Mutex<[u8; PAGE_BYTES as usize]>>,
    requests: AtomicU64,
    fault: Fault,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// None, but every transfer is in pieces, and some take longer than others.
    Pieces,
    /// Every n-th write fails, with nothing written.
    EveryNth(u64),
    /// Every n-th write fails half-way.
    Torn(u64),
    /// Every n-th write is half done, and said to be whole.
    Lying(u64),
    /// Slots from here on have no room.
    FullFrom(u64),
    /// Flushes fail.
    Flush,
    /// Each transfer takes this long.
    Slow(Duration),
}

impl Faulty {
    pub(crate) fn new(slots: u64, fault: Fault) -> Self {
        let slots = (0..slots).map(|_| Mutex::new([0; PAGE_BYTES as usize])).collect();
        Self { slots, requests: AtomicU64::new(0), fault }
    }

    /// Where a transfer is: the slot, and the offset in it.
    fn place(offset: u64) -> (usize, usize) {
        ((offset / PAGE_BYTES) as usize, (offset % PAGE_BYTES) as usize)
    }

    fn pause(&self, count: u64) -> usize {
        match self.fault {
            Fault::Pieces => {
                if count.is_multiple_of(7) {
                    std::thread::sleep(Duration::from_micros(300));
                }
                1000
            }
            Fault::Slow(time) => {
                std::thread::sleep(time);
                PAGE_BYTES as usize
            }
            _ => PAGE_BYTES as usize,
        }
    }
}

impl Storage for Faulty {
    fn read(&self, offset: u64, into: &Slice<'_>) -> io::Result<usize> {
        let bytes = self.pause(self.requests.fetch_add(1, Ordering::Relaxed)).min(into.len());
        let (slot, at) = Self::place(offset);
        into.copy_from(&self.slots[slot].lock().unwrap()[at..at + bytes]);
        Ok(bytes)
    }

    fn write(&self, offset: u64, from: &Slice<'_>) -> io::Result<usize> {
        let count = self.requests.fetch_add(1, Ordering::Relaxed);
        let bytes = self.pause(count).min(from.len());
        let (slot, at) = Self::place(offset);
        let write = |bytes: usize| {
            from.copy_to(&mut self.slots[slot].lock().unwrap()[at..at + bytes]);
        };
        match self.fault {
            Fault::EveryNth(n) if count.is_multiple_of(n) => return Err(io::ErrorKind::Other.into()),
            Fault::Torn(n) if count.is_multiple_of(n) => {
                write(bytes / 2);
                return Err(io::Error::from_raw_os_error(libc::EIO));
            }
            Fault::Lying(n) if count.is_multiple_of(n) => write(bytes / 2),
            Fault::FullFrom(full) if slot as u64 >= full => return Err(io::ErrorKind::StorageFull.into()),
            _ => write(bytes),
        }
        Ok(bytes)
    }

    fn flush(&self) -> io::Result<()> {
        if matches!(self.fault, Fault::Flush) { Err(io::ErrorKind::Other.into()) } else { Ok(()) }
    }
}
