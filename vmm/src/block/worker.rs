//! The threads that read and write while the guest runs.
//!
//! The vCPU's thread takes requests from the ring and pins their frames in the [`Ledger`]; a worker
//! performs them, notes the frame as finished and tells the guest, in this order and under one lock. So
//! whoever sees a request used finds its frame among the finished ones: an exchange first
//! [reaps](super::Device::reap) those.
//!
//! Cost: one lock and, when somebody sleeps, one wake for each request.

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use umpa_abi::addr::{Frame, PAGE_BYTES};

use super::queue::{Request, Ring, Status, Work};
use super::storage::Storage;
use crate::jail::Jailed;
use crate::ledger::Ledger;
use crate::memory::GuestRam;
use crate::stats::BlockCounts;

/// What workers and the vCPU's thread share.
#[derive(Debug)]
pub(super) struct Shared {
    ram: Arc<GuestRam>,
    storage: Box<dyn Storage>,
    state: Mutex<State>,
    /// Something is pending, or all is to end.
    work: Condvar,
    /// Something was completed.
    done: Condvar,
}

#[derive(Debug)]
struct State {
    ring: Ring,
    pending: VecDeque<Request>,
    /// Frames of completed requests, still pinned.
    finished: Vec<Frame>,
    counts: BlockCounts,
    /// Workers that sleep and weren't woken yet.
    idle_workers: usize,
    /// Threads that wait for a completion.
    waiting: usize,
    is_ending: bool,
}

impl Shared {
    pub(super) fn new(ram: Arc<GuestRam>, storage: Box<dyn Storage>, ring: Ring) -> Self {
        let state = State {
            ring,
            pending: VecDeque::new(),
            finished: Vec::new(),
            counts: BlockCounts::default(),
            idle_workers: 0,
            waiting: 0,
            is_ending: false,
        };
        Self { ram, storage, state: Mutex::new(state), work: Condvar::new(), done: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds the lock; the state would be whole if it did.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what the guest offers, for the workers; wakes them, unless [`wait`](Self::wait) comes next.
    pub(super) fn kick(&self, ledger: &mut Ledger, wakes: bool) {
        let state = self.take(ledger);
        if wakes {
            self.wake_workers(state);
        }
    }

    /// Waits until the used index isn't `seen`, nothing is in flight, or `patience` is over.
    ///
    /// The oldest request, if it is a read of what the host has in memory, is done on this thread: it would
    /// only sleep meanwhile, and two changes of threads cost more than the read.
    pub(super) fn wait(&self, seen: u16, patience: Duration) {
        let mut state = self.lock();
        state.counts.waits = state.counts.waits.saturating_add(1);
        let is_waiting = |state: &mut State| state.ring.used_index() == seen && state.ring.in_flight() > 0;
        let oldest = if is_waiting(&mut state) { state.pending.pop_front() } else { None };
        self.wake_workers(state);
        if let Some(request) = oldest {
            let is_done = read_now(request.work, &self.ram, self.storage.as_ref());
            let mut state = self.lock();
            if is_done {
                state.finish(request, Status::Ok);
                return;
            }
            state.pending.push_front(request);
            self.wake_workers(state);
        }
        let mut state = self.lock();
        state.waiting = state.waiting.saturating_add(1);
        let waited = self.done.wait_timeout_while(state, patience, is_waiting);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.waiting = state.waiting.saturating_sub(1);
    }

    fn take(&self, ledger: &mut Ledger) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        let State { ring, pending, finished, counts, .. } = &mut *state;
        unpin(finished, ledger);
        counts.kicks = counts.kicks.saturating_add(1);
        let refused = ring.take(ledger, |request| pending.push_back(request));
        counts.refused = counts.refused.saturating_add(refused);
        state
    }

    /// As many as there is work for; without the lock, which they want.
    fn wake_workers(&self, mut state: MutexGuard<'_, State>) {
        let wakes = state.pending.len().min(state.idle_workers);
        state.idle_workers = state.idle_workers.saturating_sub(wakes);
        drop(state);
        for _ in 0..wakes {
            self.work.notify_one();
        }
    }

    /// Unpins the frames of completed requests.
    pub(super) fn reap(&self, ledger: &mut Ledger) {
        unpin(&mut self.lock().finished, ledger);
    }

    pub(super) fn counts(&self) -> BlockCounts {
        self.lock().counts
    }

    /// Lets the workers end: what they have begun is done, the rest isn't.
    pub(super) fn end(&self) {
        self.lock().is_ending = true;
        self.work.notify_all();
    }

    pub(super) fn files(&self) -> Vec<RawFd> {
        self.storage.files()
    }

    /// A worker's life.
    pub(super) fn work(&self, _: &Jailed) {
        // Beyond RLIMIT_FSIZE a write fails with EFBIG: the jail's mask keeps away the signal that would end
        // the process.
        let mut state = self.lock();
        while !state.is_ending {
            let Some(request) = state.pending.pop_front() else {
                state.idle_workers = state.idle_workers.saturating_add(1);
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            drop(state);
            let status = perform(request.work, &self.ram, self.storage.as_ref());
            state = self.lock();
            state.finish(request, status);
            if state.waiting > 0 {
                self.done.notify_all();
            }
        }
    }
}

impl State {
    fn finish(&mut self, request: Request, status: Status) {
        self.counts.count(request.work, status);
        self.finished.extend(request.work.frame());
        self.ring.complete(request, status);
    }
}

fn unpin(finished: &mut Vec<Frame>, ledger: &mut Ledger) {
    finished.drain(..).for_each(|frame| ledger.unpin(frame));
}

/// Does what a request asks for, whole or not at all as far as the guest is told: a short read or write is
/// continued, and what can't be continued has failed.
pub fn perform(work: Work, ram: &GuestRam, storage: &dyn Storage) -> Status {
    let done = match work {
        Work::Flush => retry(|| storage.flush()),
        Work::Read { slot, frame } => transfer(ram, slot, frame, |offset, slice| storage.read(offset, slice)),
        Work::Write { slot, frame } => {
            transfer(ram, slot, frame, |offset, slice| storage.write(offset, slice))
        }
    };
    match done {
        Ok(()) => Status::Ok,
        Err(error) => {
            tracing::debug!(?work, %error, "the page file failed");
            match error.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                    Status::NoSpace
                }
                _ => Status::Io,
            }
        }
    }
}

/// Does a read, if that needs no waiting. Whatever else it comes to, [`perform`] finds out again.
fn read_now(work: Work, ram: &GuestRam, storage: &dyn Storage) -> bool {
    let Work::Read { slot, frame } = work else { return false };
    let Some(page) = ram.frame(frame) else { return false };
    let Some(offset) = slot.checked_mul(PAGE_BYTES) else { return false };
    storage.read_now(offset, &page).is_ok_and(|bytes| bytes == page.len())
}

fn transfer(
    ram: &GuestRam,
    slot: u64,
    frame: Frame,
    mut step: impl FnMut(u64, &super::storage::Slice<'_>) -> io::Result<usize>,
) -> io::Result<()> {
    let page = ram.frame(frame).ok_or(io::ErrorKind::InvalidInput)?;
    // The slot is one of the device's: this doesn't fail.
    let start = slot.checked_mul(PAGE_BYTES).ok_or(io::ErrorKind::InvalidInput)?;
    let mut done = 0usize;
    while done < PAGE_BYTES as usize {
        let rest = page.offset(done).map_err(io::Error::other)?;
        match retry(|| step(start.saturating_add(done as u64), &rest))? {
            // A read at the end of the file, which somebody has cut off; a write that writes nothing.
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            bytes if bytes > rest.len() => return Err(io::ErrorKind::InvalidData.into()),
            bytes => done = done.saturating_add(bytes),
        }
    }
    Ok(())
}

fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}
