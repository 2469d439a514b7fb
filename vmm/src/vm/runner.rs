//! The threads of the vCPUs, and which machines are with them.
//!
//! While the guest runs each machine is away, with its thread. One that comes home with a text goes back while
//! the others run; for everything else [`stop`](Runners::stop) fetches all. What they bring with them then waits
//! for the next turn: nothing that a vCPU has begun is lost.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use super::VmError;
use super::machine::{Machine, Shared, Turn};
use crate::jail::{Jail, JailError, Role, Thread};
use crate::signals::Kick;

/// A machine that comes home, and why. `None`: its thread has ended.
struct Done {
    vcpu: usize,
    came: Option<(Box<Machine>, Result<Turn, VmError>)>,
}

/// Says that a thread has ended, also by a panic.
struct Ends {
    vcpu: usize,
    done: Sender<Done>,
}

impl Drop for Ends {
    fn drop(&mut self) {
        // Nobody listens any more, but after a panic.
        let _ = self.done.send(Done { vcpu: self.vcpu, came: None });
    }
}

#[derive(Debug)]
struct Runner {
    /// `None` while it is being dropped.
    machines: Option<Sender<Box<Machine>>>,
    thread: Option<Thread<()>>,
    kick: Arc<Kick>,
    /// Here but for while it runs, and if its thread has panicked over it.
    home: Option<Box<Machine>>,
    is_away: bool,
}

/// The vCPUs of one guest.
#[derive(Debug)]
pub(super) struct Runners {
    runners: Vec<Runner>,
    comes: Sender<Done>,
    done: Receiver<Done>,
    /// What machines have brought that were fetched.
    waiting: VecDeque<(usize, Result<Turn, VmError>)>,
    shared: Arc<Shared>,
}

impl Runners {
    /// For a guest without vCPUs yet.
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let (comes, done) = channel();
        Self { runners: Vec::new(), comes, done, waiting: VecDeque::new(), shared }
    }

    /// Adds the next vCPU, with a thread for it in the jail.
    pub(super) fn add(&mut self, jail: Jail, role: Role, machine: Machine) -> Result<(), JailError> {
        let (machines, theirs): (Sender<Box<Machine>>, _) = channel();
        let vcpu = self.runners.len();
        let ends = Ends { vcpu, done: self.comes.clone() };
        let starting = jail.spawn(role, move |jailed| {
            while let Ok(mut machine) = theirs.recv() {
                let turn = machine.run(jailed);
                if ends.done.send(Done { vcpu, came: Some((machine, turn)) }).is_err() {
                    return;
                }
            }
        });
        let thread = Some(starting?.wait()?);
        let kick = Arc::clone(&machine.kick);
        let home = Some(Box::new(machine));
        self.runners.push(Runner { machines: Some(machines), thread, kick, home, is_away: false });
        Ok(())
    }

    /// The kernel's numbers of the threads.
    pub(super) fn thread_ids(&self) -> impl Iterator<Item = i32> + '_ {
        self.runners.iter().filter_map(|runner| runner.thread.as_ref()).map(Thread::id)
    }

    /// The machines that are at home.
    pub(super) fn at_home(&self) -> impl Iterator<Item = &Machine> {
        self.runners.iter().filter_map(|runner| runner.home.as_deref())
    }

    /// Lets all run until one comes home: which vCPU's, and why. The others go on meanwhile.
    pub(super) fn run(&mut self) -> (usize, Result<Turn, VmError>) {
        if let Some(brought) = self.waiting.pop_front() {
            return brought;
        }
        for runner in &mut self.runners {
            if let (Some(machines), Some(machine)) = (&runner.machines, runner.home.take()) {
                runner.is_away = machines.send(machine).is_ok();
            }
        }
        self.receive()
    }

    /// Fetches all. A vCPU that is in the guest leaves it at once; one that is being served, when it is.
    pub(super) fn stop(&mut self) {
        self.shared.set_stopping(true);
        for runner in self.runners.iter().filter(|runner| runner.is_away) {
            runner.kick.kick();
        }
        while self.runners.iter().any(|runner| runner.is_away) {
            let brought = self.receive();
            if !matches!(brought, (_, Ok(Turn::Stopped))) {
                self.waiting.push_back(brought);
            }
        }
        self.shared.set_stopping(false);
    }

    fn receive(&mut self) -> (usize, Result<Turn, VmError>) {
        // This end has a sender too: there is always somebody to wait for.
        let Ok(Done { vcpu, came }) = self.done.recv() else { return (0, Err(VmError::Panicked)) };
        let (home, turn) = came.map_or((None, Err(VmError::Panicked)), |(home, turn)| (Some(home), turn));
        if let Some(runner) = self.runners.get_mut(vcpu) {
            runner.home = home;
            runner.is_away = false;
        }
        (vcpu, turn)
    }
}

impl Drop for Runners {
    fn drop(&mut self) {
        // Somebody is away if the console has panicked.
        self.stop();
        for runner in &mut self.runners {
            // The thread's end.
            runner.machines = None;
            if let Some(thread) = runner.thread.take() {
                thread.join();
            }
        }
    }
}
