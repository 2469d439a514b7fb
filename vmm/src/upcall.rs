//! Asking a running guest for frames (see [`umpa_abi::upcall`] for the contract).
//!
//! An [`Asker`] works from any thread, while [`Vm::run`](crate::vm::Vm::run) runs or at a pause. It
//! writes the request into the request page at once, where a polling guest sees it without an exit,
//! and unless told otherwise makes the vCPU take an interrupt as well. One request of each severity
//! is open at a time; the others wait their turn.
//!
//! | what happened | [`Fate`] |
//! | --- | --- |
//! | the guest has said that this is all | [`Answered`](Fate::Answered), in time or late |
//! | the deadline is over, an advice or a need | [`Unanswered`](Fate::Unanswered): the next one's turn |
//! | the deadline is over, a demand | the same, or the end of the guest ([`OnUnanswered`]) |
//! | the guest has ended | [`Abandoned`](Fate::Abandoned) |
//!
//! What came back is counted by the exchange: frames that were taken in calls that named the request
//! before it was answered, less those granted in the same calls. What a guest claims is only recorded.
//! Frames that come late are counted too; an answer to an unknown or answered request is refused.
//!
//! Deadlines count from [`Asker::ask`] on, pauses included. A thread waits for them; there is none
//! until a request has one. Memory: some 150 bytes for each request, of the host's own making.

mod ask;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use umpa_abi::addr::Gpa;
use umpa_abi::upcall::{Request, Severity, write};

use crate::jail::{Jail, Role, Starting, Thread};
use crate::memory::GuestRam;
use crate::signals::{Kick, SignalError};

pub use ask::{Ask, AskError, Fate, OnUnanswered, Outcome, UnansweredDemand};

#[derive(Debug)]
struct Entry {
    asked: Instant,
    outcome: Outcome,
}

impl Entry {
    fn due(&self) -> Option<Instant> {
        self.outcome.ask.deadline.and_then(|deadline| self.asked.checked_add(deadline))
    }
}

#[derive(Debug, Default)]
struct State {
    /// By number, from 1.
    entries: Vec<Entry>,
    /// Open requests by severity; the first is in the page.
    open: [VecDeque<u64>; 3],
    /// Sequence numbers of the page's records.
    sequences: [u64; 3],
    /// The vCPU is to be interrupted.
    interrupts: bool,
    /// A demand that ends the guest.
    overdue: Option<Outcome>,
    watcher: Option<Thread<()>>,
    has_ended: bool,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// There is something for the vCPU in `state`.
    attention: AtomicBool,
    kick: Arc<Kick>,
    ram: Weak<GuestRam>,
    page: Gpa,
    on_unanswered: OnUnanswered,
    jail: Jail,
}

/// Asks one guest for frames. Clones ask the same guest; none keeps it alive.
#[derive(Clone, Debug)]
pub struct Asker(Arc<Shared>);

impl Asker {
    /// Asks; returns the request's number.
    ///
    /// # Errors
    /// [`AskError`].
    pub fn ask(&self, ask: Ask) -> Result<u64, AskError> {
        if ask.frames == 0 {
            return Err(AskError::Nothing);
        }
        let mut state = self.0.lock();
        if state.has_ended {
            return Err(AskError::Ended);
        }
        if ask.deadline.is_some() {
            self.watch(&mut state)?;
        }
        let id = (state.entries.len() as u64).saturating_add(1);
        let outcome = Outcome {
            id,
            ask,
            fate: Fate::Open,
            returned_frames: 0,
            returned_after: None,
            answered_after: None,
            claimed_frames: None,
        };
        state.entries.push(Entry { asked: Instant::now(), outcome });
        let queue = queue(&mut state, ask.severity);
        queue.push_back(id);
        let is_first = queue.len() == 1;
        if is_first {
            self.0.publish(&mut state, ask.severity);
        }
        drop(state);
        self.0.changed.notify_all();
        if is_first && ask.interrupts {
            self.0.kick.kick();
        }
        Ok(id)
    }

    /// Whether both ask the same guest.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Starts the thread that waits for deadlines, for a program that can make none when it asks.
    ///
    /// # Errors
    /// [`AskError`].
    pub fn expect_deadlines(&self) -> Result<(), AskError> {
        self.watch(&mut self.0.lock())
    }

    fn watch(&self, state: &mut State) -> Result<(), AskError> {
        if state.has_ended {
            return Err(AskError::Ended);
        }
        if state.watcher.is_none() {
            let shared = Arc::clone(&self.0);
            let thread = self.0.jail.spawn(Role::Watch, move |_| shared.watch_deadlines());
            state.watcher = Some(thread.and_then(Starting::wait).map_err(|_| AskError::Thread)?);
        }
        Ok(())
    }

    /// What has come of a request so far; `None` for a number that `ask` hasn't given.
    #[must_use]
    pub fn outcome(&self, id: u64) -> Option<Outcome> {
        self.0.lock().entry(id).map(|entry| entry.outcome)
    }

    /// All requests so far, in order.
    #[must_use]
    pub fn outcomes(&self) -> Vec<Outcome> {
        self.0.lock().entries.iter().map(|entry| entry.outcome).collect()
    }

    /// Waits until a request isn't open any more, but not longer than `patience`.
    #[must_use]
    pub fn wait(&self, id: u64, patience: Duration) -> Option<Outcome> {
        let is_open =
            |state: &mut State| state.entry(id).is_some_and(|entry| entry.outcome.fate == Fate::Open);
        let (mut state, _) = self
            .0
            .changed
            .wait_timeout_while(self.0.lock(), patience, is_open)
            .unwrap_or_else(PoisonError::into_inner);
        state.entry(id).map(|entry| entry.outcome)
    }
}

/// What the vCPU finds when it was kicked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Due {
    /// It is to be interrupted.
    pub(crate) interrupts: bool,
    /// The guest is to end.
    pub(crate) overdue: Option<Outcome>,
}

/// The requests of one guest; ends them when it is dropped.
#[derive(Debug)]
pub struct Requests(Asker);

impl Requests {
    /// None so far; the request page is at `page` of the system slot.
    ///
    /// # Errors
    /// [`SignalError`] if the vCPU couldn't be kicked.
    pub fn new(
        ram: &Arc<GuestRam>,
        page: Gpa,
        on_unanswered: OnUnanswered,
        jail: Jail,
    ) -> Result<Self, SignalError> {
        Ok(Self(Asker(Arc::new(Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
            attention: AtomicBool::new(false),
            kick: Arc::new(Kick::new()?),
            ram: Arc::downgrade(ram),
            page,
            on_unanswered,
            jail,
        }))))
    }

    /// Whoever asks this guest.
    #[must_use]
    pub fn asker(&self) -> Asker {
        self.0.clone()
    }

    pub(crate) fn kick(&self) -> &Arc<Kick> {
        &self.0.0.kick
    }

    /// What there is for the vCPU, now that it isn't in KVM_RUN.
    pub(crate) fn due(&self) -> Due {
        let shared = &self.0.0;
        if !shared.attention.load(Ordering::SeqCst) {
            return Due::default();
        }
        let state = shared.lock();
        Due { interrupts: state.interrupts, overdue: state.overdue }
    }

    /// The interrupt is on its way.
    pub(crate) fn interrupted(&self) {
        let mut state = self.0.0.lock();
        state.interrupts = false;
        self.0.0.attention.store(state.overdue.is_some(), Ordering::SeqCst);
    }

    /// An exchange that named request `id` has taken and granted frames.
    pub(crate) fn exchanged(&self, id: u64, taken_frames: u64, granted_frames: u64) {
        let mut state = self.0.0.lock();
        let Some(entry) = state.entry(id).filter(|entry| entry.outcome.answered_after.is_none()) else {
            return;
        };
        let frames = taken_frames.saturating_sub(granted_frames);
        if frames > 0 {
            entry.outcome.returned_frames = entry.outcome.returned_frames.saturating_add(frames);
            entry.outcome.returned_after = Some(entry.asked.elapsed());
        }
    }

    /// The guest says that this is all; what came back, or `None` if there is nothing to answer.
    pub(crate) fn answered(&self, id: u64, claimed_frames: u64) -> Option<u64> {
        let shared = &self.0.0;
        let mut state = shared.lock();
        let entry = state.entry(id).filter(|entry| entry.outcome.answered_after.is_none())?;
        let was_open = entry.outcome.fate == Fate::Open;
        entry.outcome.fate = Fate::Answered;
        entry.outcome.answered_after = Some(entry.asked.elapsed());
        entry.outcome.claimed_frames = Some(claimed_frames);
        let Outcome { returned_frames, ask, .. } = entry.outcome;
        if was_open {
            shared.close(&mut state, ask.severity, id);
        }
        drop(state);
        shared.changed.notify_all();
        Some(returned_frames)
    }

    /// Nobody will answer any more.
    pub(crate) fn end(&self) {
        let mut state = self.0.0.lock();
        state.has_ended = true;
        for entry in &mut state.entries {
            if entry.outcome.fate == Fate::Open {
                entry.outcome.fate = Fate::Abandoned;
            }
        }
        state.open = Default::default();
        let watcher = state.watcher.take();
        drop(state);
        self.0.0.changed.notify_all();
        if let Some(watcher) = watcher {
            let _ = watcher.join();
        }
    }
}

impl Drop for Requests {
    fn drop(&mut self) {
        self.end();
    }
}

impl State {
    fn entry(&mut self, id: u64) -> Option<&mut Entry> {
        let index = usize::try_from(id.checked_sub(1)?).ok()?;
        self.entries.get_mut(index)
    }
}

fn queue(state: &mut State, severity: Severity) -> &mut VecDeque<u64> {
    match severity {
        Severity::Advise => &mut state.open[0],
        Severity::Need => &mut state.open[1],
        Severity::Demand => &mut state.open[2],
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the first open request of a severity into the page, or that there is none.
    fn publish(&self, state: &mut State, severity: Severity) {
        let first = queue(state, severity).front().copied();
        let mut request = Request::NONE;
        if let Some(entry) = first.and_then(|id| state.entry(id)) {
            let Outcome { id, ask, .. } = entry.outcome;
            let deadline_ns = ask.deadline.map_or(0, |deadline| {
                deadline.saturating_sub(entry.asked.elapsed()).as_nanos().clamp(1, u64::MAX.into()) as u64
            });
            request =
                Request { id, severity: ask.severity as u32, frames: ask.frames, deadline_ns, ..request };
            if ask.interrupts {
                state.interrupts = true;
                self.attention.store(true, Ordering::SeqCst);
            }
        }
        let Some(ram) = self.ram.upgrade() else { return };
        let record = self.page.get().saturating_add(severity.offset_bytes() as u64);
        let [advise, need, demand] = &mut state.sequences;
        let sequence = match severity {
            Severity::Advise => advise,
            Severity::Need => need,
            Severity::Demand => demand,
        };
        *sequence = write(&request, *sequence, |word, value| {
            // The page is in the system slot.
            let stored = ram.store(Gpa::new(record.saturating_add((word as u64).saturating_mul(8))), value);
            debug_assert!(stored.is_ok());
        });
    }

    /// Takes a request out of its queue; the next one's turn.
    fn close(&self, state: &mut State, severity: Severity, id: u64) {
        let queue = queue(state, severity);
        let was_first = queue.front() == Some(&id);
        queue.retain(|&open| open != id);
        if was_first {
            self.publish(state, severity);
        }
    }

    /// Closes the requests whose deadline is over; true if the vCPU must know.
    fn expire(&self, state: &mut State, now: Instant) -> bool {
        let open: Vec<u64> = state.open.iter().flatten().copied().collect();
        let mut must_know = false;
        for id in open {
            let Some(entry) = state.entry(id).filter(|entry| entry.due().is_some_and(|due| due <= now))
            else {
                continue;
            };
            entry.outcome.fate = Fate::Unanswered;
            let outcome = entry.outcome;
            let severity = outcome.ask.severity;
            if severity == Severity::Demand && self.on_unanswered == OnUnanswered::EndsGuest {
                state.overdue.get_or_insert(outcome);
                self.attention.store(true, Ordering::SeqCst);
                must_know = true;
            }
            self.close(state, severity, id);
            must_know |= state.interrupts;
        }
        must_know
    }

    fn watch_deadlines(&self) {
        let mut state = self.lock();
        while !state.has_ended {
            if self.expire(&mut state, Instant::now()) {
                self.kick.kick();
            }
            self.changed.notify_all();
            let open: Vec<u64> = state.open.iter().flatten().copied().collect();
            let next = open.into_iter().filter_map(|id| state.entry(id)?.due()).min();
            // Longer waits are cut, and waited for again.
            let left = next.map_or(Duration::MAX, |due| due.saturating_duration_since(Instant::now()));
            let left = left.min(Duration::from_secs(3600));
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

#[cfg(test)]
mod tests;
