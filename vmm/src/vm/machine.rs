//! What a vCPU's own thread works on.
//!
//! A machine is one vCPU. It is with one of two threads at a time: at home with the [`Vm`](super::Vm) while the
//! guest pauses, and with the vCPU's thread, which is [jailed](crate::jail), while it runs. It goes there and
//! back whole. What all vCPUs have in common is [`Shared`]; the frames and the hypercalls in it are behind a
//! lock, so one call is served after the other, and whoever looks at a violation sees no exchange half done.
//!
//! Cost: two changes of threads for each pause and for each text on the console; a lock that nobody else wants,
//! where there is one vCPU, for each call. None for other exits.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use kvm_ioctls::VmFd;
use umpa_abi::addr::Gva;
use umpa_abi::block::BLOCK_PORT;
use umpa_abi::call::ExitCode;
use umpa_abi::upcall::REQUEST_VECTOR;

use super::VmError;
use crate::block::Device;
use crate::call::{Attempt, Served, Server};
use crate::exits::{Action, Emulated, Seen, Stop, decide};
use crate::inject::{Begun, Decision, Injections, NotInjected, error_code};
use crate::jail::Jailed;
use crate::ledger::Ledger;
use crate::memory::GuestRam;
use crate::signals::{Kick, Reason, Stopper};
use crate::stats::{Exits, KvmStats};
use crate::upcall::{Due, Requests, UnansweredDemand};
use crate::vcpu::Vcpu;
use crate::violation::View;

/// Why a machine comes home.
#[derive(Debug)]
pub(super) enum Turn {
    /// The guest waits for an answer.
    Paused { tag: u64 },
    /// It has ended.
    Exited(ExitCode),
    /// It goes on when this is on its console.
    Text(String),
    /// Its time is up; the [`Vm`](super::Vm) knows how long it was.
    TimedOut { rip: Gva },
    /// Its processor time is used up.
    CpuTimeUsed { rip: Gva },
    /// It has written and reported more than it may.
    OutputLimit,
    /// Another vCPU has come home with something for all.
    Stopped,
}

/// The frames and the hypercalls of a guest.
#[derive(Debug)]
pub(super) struct State {
    pub(super) ledger: Ledger,
    pub(super) server: Server,
    pub(super) injections: Injections,
}

/// What the vCPUs of a guest have in common.
#[derive(Debug)]
pub(super) struct Shared {
    // Dropped in this order: what KVM has, what it refers to.
    pub(super) requests: Arc<Requests>,
    pub(super) vm: VmFd,
    pub(super) block: Option<Device>,
    pub(super) ram: Arc<GuestRam>,
    pub(super) stopper: Stopper,
    /// Here while the guest runs; else at home. After the memory, as there.
    state: Mutex<Option<Box<State>>>,
    /// All are to come home.
    is_stopping: AtomicBool,
}

impl Shared {
    pub(super) fn new(
        requests: Arc<Requests>,
        vm: VmFd,
        block: Option<Device>,
        ram: Arc<GuestRam>,
        stopper: Stopper,
    ) -> Self {
        let (state, is_stopping) = (Mutex::new(None), AtomicBool::new(false));
        Self { requests, vm, block, ram, stopper, state, is_stopping }
    }

    /// Exchanges the state: `Some` before the guest runs, `None` afterwards.
    pub(super) fn replace(&self, state: Option<Box<State>>) -> Option<Box<State>> {
        std::mem::replace(&mut *self.lock(), state)
    }

    /// Says whether machines are to come home. They have to be kicked.
    pub(super) fn set_stopping(&self, is_stopping: bool) {
        self.is_stopping.store(is_stopping, Ordering::SeqCst);
    }

    fn lock(&self) -> MutexGuard<'_, Option<Box<State>>> {
        // A thread that panics over the state ends the guest; what it has reported is still read.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with the state, while no other vCPU can.
    fn with<R>(&self, work: impl FnOnce(&mut State) -> R) -> Result<R, VmError> {
        self.lock().as_mut().map(|state| work(state)).ok_or(VmError::Panicked)
    }
}

/// A vCPU, and what belongs to it.
#[derive(Debug)]
pub(super) struct Machine {
    // Dropped in this order: the vCPU before the machine that it is part of.
    pub(super) vcpu: Vcpu,
    pub(super) vcpu_stats: Option<KvmStats>,
    pub(super) exits: Exits,
    pub(super) kick: Arc<Kick>,
    pub(super) shared: Arc<Shared>,
}

impl Machine {
    /// Runs the vCPU on this thread until somebody else has something to do for it.
    pub(super) fn run(&mut self, jailed: &Jailed) -> Result<Turn, VmError> {
        let shared = Arc::clone(&self.shared);
        let kick = Arc::clone(&self.kick);
        let number = self.vcpu.number();
        // The watch kicks the first vCPU, whose end is the end of all; requests interrupt it.
        let is_first = number == 0;
        let _running = is_first.then(|| shared.stopper.enter());
        let _kicks = kick.enter();
        loop {
            match shared.stopper.reason() {
                None => {}
                Some(Reason::Interrupted) => return Err(VmError::Interrupted),
                Some(Reason::TimedOut) => return Ok(Turn::TimedOut { rip: self.rip() }),
                Some(Reason::CpuTimeUsed) => return Ok(Turn::CpuTimeUsed { rip: self.rip() }),
            }
            kick.clear();
            if shared.is_stopping.load(Ordering::SeqCst) {
                return Ok(Turn::Stopped);
            }
            if is_first {
                attend(&mut self.vcpu, &shared.requests)?;
            }
            let exit = self.vcpu.run(jailed);
            self.exits.count(&exit);
            match decide(exit) {
                Action::Continue => {}
                Action::Call => {
                    match self.call(number)? {
                        // The last attempt isn't answered so.
                        Served::Resume | Served::Short { .. } => {}
                        Served::Text(text) => return Ok(Turn::Text(text)),
                        Served::OutputLimit => return Ok(Turn::OutputLimit),
                        Served::Paused { tag } => return Ok(Turn::Paused { tag }),
                        Served::Exited(code) => return Ok(Turn::Exited(code)),
                    }
                }
                Action::Block { command } => match &shared.block {
                    Some(block) => {
                        shared.with(|state| block.look(command, &mut state.ledger))?;
                        // A wait ends after a while, so that the reasons to stop above are looked at.
                        block.wait(command);
                    }
                    None => {
                        let stop = Stop::Port { port: BLOCK_PORT, bytes: 4, out: true };
                        self.stopped(stop, jailed)?;
                    }
                },
                Action::Violation(seen) => self.violation(seen, jailed)?,
                Action::Stop(stop) => self.stopped(stop, jailed)?,
            }
        }
    }

    /// Serves the call of this vCPU. Where the pool is short of frames, it waits without the lock.
    fn call(&self, number: u64) -> Result<Served, VmError> {
        let shared = &self.shared;
        let start = Instant::now();
        let mut attempt = Attempt::First;
        loop {
            let (served, share) = shared.with(|State { ledger, server, .. }| {
                if let Some(block) = &shared.block {
                    block.reap(ledger);
                }
                (server.attempt(number, &shared.ram, ledger, attempt), ledger.share().cloned())
            })?;
            attempt = match (served?, share) {
                (Served::Short { frames }, Some(share)) if share.wait(frames, start) => Attempt::Again,
                (Served::Short { .. }, _) => Attempt::Last,
                (served, _) => return Ok(served),
            };
        }
    }

    fn rip(&self) -> Gva {
        Gva::new(self.vcpu.registers().general.rip)
    }

    /// Finds out about a forbidden access. `Ok`: the guest goes on, with a page fault.
    fn violation(&mut self, seen: Seen, jailed: &Jailed) -> Result<(), VmError> {
        let mut registers = self.vcpu.registers();
        let (violation, address, begun, is_kill) =
            self.shared.with(|State { ledger, injections, .. }| {
                let mut begun = Begun::Undoable;
                if let (Some(gpa), Some(Emulated::Store { bytes, data })) = (seen.gpa, seen.emulated) {
                    let view = View { ram: &self.shared.ram, ledger, registers: &registers };
                    let before = data.get(..bytes).and_then(|data| view.before_store(gpa, data));
                    begun = if before.is_some() { Begun::Undoable } else { Begun::Lost };
                    registers.general = before.unwrap_or(registers.general);
                }
                let view = View { ram: &self.shared.ram, ledger, registers: &registers };
                let violation = view.violation(seen);
                let address = violation.gva.unwrap_or_else(|| view.likely_address());
                (violation, address, begun, injections.is_kill())
            })?;
        if is_kill {
            return Err(VmError::Violation(Box::new(violation)));
        }
        let delivering = self.vcpu.is_delivering();
        let decided = match delivering {
            Ok(is_delivering) => {
                let number = self.vcpu.number();
                self.shared.with(|state| state.injections.decide(number, is_delivering, begun))?
            }
            Err(error) => Decision::End(error.into()),
        };
        let raised = match decided {
            Decision::Kill => return Err(VmError::Violation(Box::new(violation))),
            Decision::End(why) => Err(why),
            Decision::Inject => {
                let undone = match seen.emulated {
                    None => Ok(()),
                    Some(Emulated::Load) => self.vcpu.undo_load(jailed),
                    Some(Emulated::Store { .. }) => self.vcpu.undo_store(&registers.general, jailed),
                };
                let raised = undone.and_then(|()| self.vcpu.page_fault(address, error_code(&violation)));
                raised.map_err(NotInjected::from)
            }
        };
        match raised {
            Ok(()) => self.shared.with(|state| state.injections.record(violation)),
            Err(why) => Err(VmError::NotInjected { violation: Box::new(violation), why }),
        }
    }

    /// The end of the guest, unless it is a violation that it hears of.
    fn stopped(&mut self, stop: Stop, jailed: &Jailed) -> Result<(), VmError> {
        let registers = self.vcpu.registers_if_kept();
        // KVM can't emulate what it can't fetch: a jump outside memory ends so.
        if let (Stop::Internal { .. }, Some(registers)) = (&stop, &registers) {
            let runs_outside = self.shared.with(|State { ledger, .. }| {
                View { ram: &self.shared.ram, ledger, registers }.runs_outside()
            });
            if runs_outside.unwrap_or(false) {
                return self.violation(Seen::default(), jailed);
            }
        }
        Err(VmError::Stopped { stop, registers: registers.map(Box::new) })
    }
}

/// Tells the guest of a request, or ends it because of one.
fn attend(vcpu: &mut Vcpu, requests: &Requests) -> Result<(), VmError> {
    let Due { interrupts, overdue } = requests.due();
    if let Some(outcome) = overdue {
        return Err(VmError::Unanswered(Box::new(UnansweredDemand(outcome))));
    }
    if interrupts && vcpu.interrupt(REQUEST_VECTOR).map_err(VmError::Interrupt)? {
        requests.interrupted();
    }
    Ok(())
}
