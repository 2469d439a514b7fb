//! What a guest's own thread works on, and that thread.
//!
//! The machine is with one of two threads at a time: at home with the [`Vm`](super::Vm) while the guest
//! pauses, and with the vCPU's thread, which is [jailed](crate::jail), while it runs. It goes there and back
//! whole, so nothing in it is shared. Cost: two changes of threads for each pause and for each text on the
//! console, none for other exits.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use kvm_ioctls::VmFd;
use umpa_abi::addr::Gva;
use umpa_abi::block::BLOCK_PORT;
use umpa_abi::call::ExitCode;
use umpa_abi::upcall::REQUEST_VECTOR;

use super::VmError;
use crate::block::Device;
use crate::call::{Served, Server};
use crate::exits::{Action, Seen, Stop, decide};
use crate::jail::{Jail, JailError, Jailed, Role, Thread};
use crate::ledger::Ledger;
use crate::memory::GuestRam;
use crate::signals::{Reason, Stopper};
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
}

/// A guest, without what its driver has.
#[derive(Debug)]
pub(super) struct Machine {
    // Dropped in this order: what runs, what KVM has, what both refer to.
    pub(super) requests: Arc<Requests>,
    pub(super) vcpu: Vcpu,
    pub(super) vcpu_stats: Option<KvmStats>,
    pub(super) vm_stats: Option<KvmStats>,
    pub(super) _vm: VmFd,
    pub(super) block: Option<Device>,
    pub(super) ram: Arc<GuestRam>,
    /// After the memory: what it draws on counts as free then.
    pub(super) ledger: Ledger,
    pub(super) server: Server,
    pub(super) exits: Exits,
    pub(super) stopper: Stopper,
}

impl Machine {
    /// Runs the guest on this thread until somebody else has something to do for it.
    fn run(&mut self, jailed: &Jailed) -> Result<Turn, VmError> {
        let running = self.stopper.enter();
        let requests = Arc::clone(&self.requests);
        let _kicks = requests.kick().enter();
        loop {
            match running.stop_reason() {
                None => {}
                Some(Reason::Interrupted) => return Err(VmError::Interrupted),
                Some(Reason::TimedOut) => return Ok(Turn::TimedOut { rip: self.rip() }),
                Some(Reason::CpuTimeUsed) => return Ok(Turn::CpuTimeUsed { rip: self.rip() }),
            }
            requests.kick().clear();
            attend(&mut self.vcpu, &requests)?;
            let exit = self.vcpu.run(jailed);
            self.exits.count(&exit);
            match decide(exit) {
                Action::Continue => {}
                Action::Call => {
                    if let Some(block) = &self.block {
                        block.reap(&mut self.ledger);
                    }
                    match self.server.serve(&self.ram, &mut self.ledger)? {
                        Served::Resume => {}
                        Served::Text(text) => return Ok(Turn::Text(text)),
                        Served::OutputLimit => return Ok(Turn::OutputLimit),
                        Served::Paused { tag } => return Ok(Turn::Paused { tag }),
                        Served::Exited(code) => return Ok(Turn::Exited(code)),
                    }
                }
                Action::Block { command } => match &self.block {
                    // A wait ends after a while, so that the reasons to stop above are looked at.
                    Some(block) => block.serve(command, &mut self.ledger),
                    None => {
                        let stop = Stop::Port { port: BLOCK_PORT, bytes: 4, out: true };
                        return Err(self.stopped(stop));
                    }
                },
                Action::Violation(seen) => return Err(self.violation(seen)),
                Action::Stop(stop) => return Err(self.stopped(stop)),
            }
        }
    }

    fn rip(&self) -> Gva {
        Gva::new(self.vcpu.registers().general.rip)
    }

    fn violation(&self, seen: Seen) -> VmError {
        let registers = self.vcpu.registers();
        let view = View { ram: &self.ram, ledger: &self.ledger, registers: &registers };
        VmError::Violation(Box::new(view.violation(seen)))
    }

    fn stopped(&self, stop: Stop) -> VmError {
        let registers = self.vcpu.registers_if_kept();
        if let Some(registers) = &registers {
            let view = View { ram: &self.ram, ledger: &self.ledger, registers };
            // KVM can't emulate what it can't fetch: a jump outside memory ends so.
            if matches!(stop, Stop::Internal { .. }) && view.runs_outside() {
                return self.violation(Seen::default());
            }
        }
        VmError::Stopped { stop, registers: registers.map(Box::new) }
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

/// A machine that comes home, and why.
type Done = (Box<Machine>, Result<Turn, VmError>);

/// The thread that runs machines.
#[derive(Debug)]
pub(super) struct Runner {
    /// `None` while it is being dropped.
    machines: Option<Sender<Box<Machine>>>,
    done: Receiver<Done>,
    thread: Option<Thread<()>>,
    thread_id: i32,
}

impl Runner {
    /// A thread in the jail, for the machine that will be given to it.
    pub(super) fn start(jail: Jail, role: Role) -> Result<Self, JailError> {
        let (machines, theirs): (Sender<Box<Machine>>, _) = channel();
        let (comes, done) = channel();
        let starting = jail.spawn(role, move |jailed| {
            while let Ok(mut machine) = theirs.recv() {
                let turn = machine.run(jailed);
                if comes.send((machine, turn)).is_err() {
                    return;
                }
            }
        });
        let thread = starting?.wait()?;
        let thread_id = thread.id();
        Ok(Self { machines: Some(machines), done, thread: Some(thread), thread_id })
    }

    /// The kernel's number of the thread.
    pub(super) const fn thread_id(&self) -> i32 {
        self.thread_id
    }

    /// Runs a machine there; `None` if the thread has panicked over it.
    pub(super) fn run(&self, machine: Box<Machine>) -> Option<Done> {
        self.machines.as_ref()?.send(machine).ok()?;
        self.done.recv().ok()
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        // The thread's end, which waits for nothing: a machine that runs has its driver waiting in `run`.
        self.machines = None;
        if let Some(thread) = self.thread.take() {
            thread.join();
        }
    }
}
