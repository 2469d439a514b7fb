//! The block device behind a guest's page file (see [`umpa_abi::block`] for the contract).
//!
//! ```text
//! guest        request into the ring, out BLOCK_PORT ──▶ poll the used ring, no exit
//! vCPU thread     └─▶ queue: checks it, pins its frame in the ledger ─┐
//! workers                 pread, pwrite, fdatasync on guest memory ◀──┘ ─▶ used ring
//! ```
//!
//! - [`queue`]: the ring, as a function of memory;
//! - [`storage`]: the file, or what a test puts in its place;
//! - `worker`: threads, and what a request does.
//!
//! A frame belongs to the device from the kick that takes its request until the request is used. Until
//! then the guest can't give it back ([`Shortfall::NotYours`](umpa_abi::exchange::Shortfall::NotYours)), so
//! no worker ever touches memory that isn't the guest's.
//!
//! A kick leaves the guest, because requests are checked in the ledger, which is the vCPU's thread's. An
//! ioeventfd would cost 52,000 cycles instead of 157,000 (mode `shadow`, least of 2,000): with 32 requests to
//! a kick 3,300 a page.
//!
//! A guest can make the host keep [`QUEUE_SIZE`](umpa_abi::block::QUEUE_SIZE) requests. Dropping a
//! [`Device`] waits for those that are under way and forgets the others.

pub mod queue;
pub mod storage;
mod worker;

use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Duration;

use umpa_abi::addr::Gpa;
use umpa_abi::block::WAIT;

use crate::jail::{Jail, JailError, Role, Starting, Thread};
use crate::ledger::Ledger;
use crate::memory::{GuestRam, MemoryError};
use crate::stats::BlockCounts;

pub use storage::{PageFile, PageFileConfig, PageFileError, Storage};
pub use worker::perform;

/// How long a guest's wait lasts at most; then it looks, and asks again. In between the VMM looks whether
/// the guest is to stop.
const WAIT_MAX: Duration = Duration::from_millis(10);

/// Why there is no device.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// No room for the queue.
    #[error("there is no memory for the block device's queue")]
    Memory(#[from] MemoryError),
    /// The queue's place or size is refused.
    #[error("the block device's queue can't be made")]
    Queue(#[source] virtio_queue::Error),
    /// No threads, or none that are jailed.
    #[error("can't start the block device's threads")]
    Thread(#[from] JailError),
}

/// The block device of one guest.
#[derive(Debug)]
pub struct Device {
    shared: Arc<worker::Shared>,
    workers: Vec<Thread<()>>,
}

impl Device {
    /// A device with its queue at `base`.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn new(ram: &Arc<GuestRam>, base: Gpa, page_file: PageFile, jail: Jail) -> Result<Self, DeviceError> {
        let ring = queue::Ring::new(ram, base, page_file.slots)?;
        let shared = Arc::new(worker::Shared::new(Arc::clone(ram), page_file.storage, ring));
        // From here on dropping ends the workers that there are.
        let mut device = Self { shared, workers: Vec::new() };
        let start = |_| {
            let shared = Arc::clone(&device.shared);
            jail.spawn(Role::Block { files: shared.files() }, move |jailed| shared.work(jailed))
        };
        let starting: Vec<_> = (0..page_file.threads.max(1)).map(start).collect();
        for worker in starting {
            device.workers.push(worker.and_then(Starting::wait)?);
        }
        Ok(device)
    }

    /// The kernel's numbers of its threads.
    pub fn threads(&self) -> impl Iterator<Item = i32> + '_ {
        self.workers.iter().map(Thread::id)
    }

    /// The descriptors of its storage.
    #[must_use]
    pub fn files(&self) -> Vec<RawFd> {
        self.shared.files()
    }

    /// Does the part of what the guest wrote to the port that needs the ledger: looks at the queue. The rest
    /// is [`wait`](Self::wait).
    pub fn look(&self, command: u32, ledger: &mut Ledger) {
        self.shared.kick(ledger, command & WAIT == 0);
    }

    /// Waits a while if the guest has asked for that.
    pub fn wait(&self, command: u32) {
        if command & WAIT != 0 {
            self.shared.wait(command as u16, WAIT_MAX);
        }
    }

    /// Unpins the frames of requests that are completed. Before the guest gives frames back.
    pub fn reap(&self, ledger: &mut Ledger) {
        self.shared.reap(ledger);
    }

    /// What was counted so far.
    #[must_use]
    pub fn counts(&self) -> BlockCounts {
        self.shared.counts()
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.shared.end();
        for worker in self.workers.drain(..) {
            // A worker ends with a panic if the storage does; the guest has waited in vain then.
            let _ = worker.join();
        }
    }
}

#[cfg(test)]
mod tests;
