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
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use umpa_abi::addr::{Frame, PAGE_BYTES};
use vmm_sys_util::signal::block_signal;

use super::queue::{Request, Ring, Status, Work};
use super::storage::Storage;
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
    idle_workers: usize,
    is_waited_for: bool,
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
            is_waited_for: false,
            is_ending: false,
        };
        Self { ram, storage, state: Mutex::new(state), work: Condvar::new(), done: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds the lock; the state would be whole if it did.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what the guest offers, for the workers.
    pub(super) fn kick(&self, ledger: &mut Ledger) {
        let mut state = self.lock();
        let State { ring, pending, finished, counts, idle_workers, .. } = &mut *state;
        unpin(finished, ledger);
        let before = pending.len();
        counts.kicks += 1;
        counts.refused += ring.take(ledger, |request| pending.push_back(request));
        let wakes = (pending.len() - before).min(*idle_workers);
        drop(state);
        for _ in 0..wakes {
            self.work.notify_one();
        }
    }

    /// Waits until the used index isn't `seen`, nothing is in flight, or `patience` is over.
    pub(super) fn wait(&self, seen: u16, patience: Duration) {
        let mut state = self.lock();
        state.counts.waits += 1;
        state.is_waited_for = true;
        let goes_on = |state: &mut State| state.ring.used_index() == seen && state.ring.in_flight() > 0;
        let waited = self.done.wait_timeout_while(state, patience, goes_on);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.is_waited_for = false;
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

    /// A worker's life.
    pub(super) fn work(&self) {
        // Beyond RLIMIT_FSIZE a write fails with EFBIG, and the signal would end the process. It fails if
        // the signal is blocked already.
        let _ = block_signal(libc::SIGXFSZ);
        let mut state = self.lock();
        while !state.is_ending {
            let Some(request) = state.pending.pop_front() else {
                state.idle_workers += 1;
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.idle_workers -= 1;
                continue;
            };
            drop(state);
            let status = perform(request.work, &self.ram, self.storage.as_ref());
            state = self.lock();
            state.finish(request, status);
            if state.is_waited_for {
                self.done.notify_one();
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

fn transfer(
    ram: &GuestRam,
    slot: u64,
    frame: Frame,
    mut step: impl FnMut(u64, &super::storage::Slice<'_>) -> io::Result<usize>,
) -> io::Result<()> {
    let page = ram.frame(frame).ok_or(io::ErrorKind::InvalidInput)?;
    let mut done = 0;
    while done < PAGE_BYTES as usize {
        let rest = page.offset(done).map_err(io::Error::other)?;
        match retry(|| step(slot * PAGE_BYTES + done as u64, &rest))? {
            // A read at the end of the file, which somebody has cut off; a write that writes nothing.
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            bytes if bytes > rest.len() => return Err(io::ErrorKind::InvalidData.into()),
            bytes => done += bytes,
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
