//! The jail: what a thread that serves a guest may ask of the kernel.
//!
//! A guest that breaks the VMM (none is known to) shall find a process that can do nothing. Each thread
//! locks itself in before it sees the guest, for good:
//!
//! | layer | what it leaves |
//! | --- | --- |
//! | `no_new_privs` | nothing that is executed gains a privilege |
//! | Landlock | no file can be opened, made or removed, no TCP port bound or connected to |
//! | seccomp ([`rules`]) | the system calls of its [`Role`], each for a reason, with arguments that are looked at |
//! | signal mask | only kicks and faults reach it; the program's signals are for the program's threads |
//!
//! | thread | role | faces the guest |
//! | --- | --- | --- |
//! | a vCPU's | [`Role::Vcpu`] | runs it, serves its hypercalls |
//! | block workers | [`Role::Block`] | move bytes between its frames and the page file |
//! | watchdog, deadlines | [`Role::Watch`] | no: they stop it |
//! | `main` of `vmm run` | [`Role::Command`] | prints what it says |
//! | `main` of `vmm demo`, `vmm bench`, `vmm attack` | [`Role::Driver`] | makes one guest after the other, and measures Linux |
//!
//! In types: a vCPU enters its guest only for a thread that has a [`Jailed`], and that is made by
//! [`Jail::enter`] alone; it can't be sent to another thread.
//!
//! A program that uses this library keeps its own threads as they are: a [`Vm`](crate::vm::Vm) makes its
//! threads, and these are jailed. Its console is written to by the thread that calls
//! [`Vm::run`](crate::vm::Vm::run). Descriptors that the program has open stay open, but those threads
//! can't use them: the rules name the descriptors. The command `vmm` closes what it has inherited, and
//! limits the process too ([`process`]).
//!
//! A system call that the rules don't have ends the process with exit code 2 and its name (`caught`);
//! opening files for reading fails with EPERM instead, because libc tries it for its own sake. What a driver
//! may not do fails with EPERM too.
//!
//! No thread of `vmm run` can make another one: all are there before the guest runs. So no limit on their
//! number is needed, which RLIMIT_NPROC couldn't be: it counts a user's, and isn't root's.
//!
//! Cost: one thread, and some 0.7 ms for a process with one vCPU, all before the guest runs; nothing in the guest. Where a kernel has no Landlock (before 5.13, or
//! not switched on) that layer is missing, and [`offers`] says so; without seccomp there is no guest.
#![allow(unsafe_code)] // pthread_sigmask, and two questions to the kernel

mod caught;
mod files;
pub mod process;
pub mod rules;

use std::cell::Cell;
use std::io;
use std::marker::PhantomData;
use std::os::fd::RawFd;
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};
use serde::Serialize;
use vmm_sys_util::signal::SIGRTMIN;

pub use files::{Files, landlock_abi};

thread_local! {
    /// For the report of a system call; without a destructor, so that a signal handler may read it.
    static ROLE: Cell<&'static str> = const { Cell::new("unknown") };
}

/// Why a thread can't be jailed.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// The kernel takes no filter.
    #[error(
        "the kernel refuses the system call filter of the {role} thread: it needs CONFIG_SECCOMP_FILTER; \
         --no-jail runs without, for debugging"
    )]
    Filter {
        /// Whose.
        role: &'static str,
        /// What it failed with.
        #[source]
        source: seccompiler::Error,
    },
    /// Landlock is there, and fails.
    #[error("the kernel refuses the Landlock rules of the {role} thread")]
    Landlock {
        /// Whose.
        role: &'static str,
        /// What it failed with.
        #[source]
        source: landlock::RulesetError,
    },
    /// A path that is to stay accessible isn't.
    #[error("the jail can't keep {} accessible", .path.display())]
    Path {
        /// It.
        path: std::path::PathBuf,
        /// What opening it failed with.
        #[source]
        source: landlock::PathFdError,
    },
    /// The handler of SIGSYS or the signal mask was refused.
    #[error("can't set up signals for the {role} thread")]
    Signals {
        /// Whose.
        role: &'static str,
        /// What it failed with.
        #[source]
        source: io::Error,
    },
    /// No thread to be had.
    #[error("can't start the {role} thread; see ulimit -u")]
    Thread {
        /// Which.
        role: &'static str,
        /// What it failed with.
        #[source]
        source: io::Error,
    },
    /// A limit of the process was refused.
    #[error("can't limit the process's {what}")]
    Limit {
        /// Which.
        what: &'static str,
        /// What it failed with.
        #[source]
        source: io::Error,
    },
}

/// Whether a guest's threads are jailed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Jail {
    /// They are.
    #[default]
    On,
    /// They aren't: for debuggers.
    Off,
}

/// What a thread is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// Runs a guest and serves its hypercalls.
    Vcpu {
        /// The vCPU.
        vcpu: RawFd,
        /// Its number.
        number: u64,
        /// Of the page file, read from without waiting.
        files: Vec<RawFd>,
        /// Of the pool, if it is a file.
        pool: Option<RawFd>,
    },
    /// Reads and writes a page file.
    Block {
        /// Of the page file.
        files: Vec<RawFd>,
    },
    /// Waits, and takes the vCPU out of the guest.
    Watch,
    /// Has made a guest and its threads, waits for it and reports.
    Command,
    /// Makes guests, and measures Linux beside them.
    Driver {
        /// It starts this program again, for what is measured in processes of its own.
        processes: bool,
    },
}

impl Role {
    /// Its name in messages.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Vcpu { number: 0, .. } => "vcpu",
            Self::Vcpu { number: 1, .. } => "vcpu1",
            Self::Vcpu { number: 2, .. } => "vcpu2",
            Self::Vcpu { .. } => "vcpu3",
            Self::Block { .. } => "block",
            Self::Watch => "watch",
            Self::Command => "main",
            Self::Driver { .. } => "driver",
        }
    }

    /// Its threads are the library's own, so it says which signals they take.
    const fn is_a_guests(&self) -> bool {
        !matches!(self, Self::Command | Self::Driver { .. })
    }
}

/// The thread that has this is jailed, or the user wants it otherwise ([`Jail::Off`]).
#[derive(Debug)]
pub struct Jailed {
    /// Neither Send nor Sync: it says something about its own thread.
    _thread: PhantomData<*const ()>,
}

impl Jail {
    /// Locks the calling thread in, and all threads that it makes.
    ///
    /// # Errors
    /// [`JailError`]: some layers may be in place.
    pub fn enter(self, role: &Role) -> Result<Jailed, JailError> {
        ROLE.set(role.name());
        if role.is_a_guests() {
            block_signals().map_err(|source| JailError::Signals { role: role.name(), source })?;
        }
        if self == Self::On {
            caught::report_violations().map_err(|source| JailError::Signals { role: role.name(), source })?;
            if role.is_a_guests() {
                Files::default().restrict(role.name())?;
            }
            for filter in filters(role).map_err(|source| JailError::Filter { role: role.name(), source })? {
                seccompiler::apply_filter(&filter)
                    .map_err(|source| JailError::Filter { role: role.name(), source })?;
            }
        }
        Ok(Jailed { _thread: PhantomData })
    }

    /// Starts a thread that enters the jail, then does `body`.
    ///
    /// # Errors
    /// [`JailError::Thread`]; what the thread meets with, [`Starting::wait`] says.
    pub fn spawn<T: Send + 'static>(
        self,
        role: Role,
        body: impl FnOnce(&Jailed) -> T + Send + 'static,
    ) -> Result<Starting<T>, JailError> {
        let name = role.name();
        let (tell, ready) = channel();
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            let jailed = match self.enter(&role) {
                Ok(jailed) => jailed,
                Err(error) => {
                    let _ = tell.send(Err(error));
                    return None;
                }
            };
            let _ = tell.send(Ok(rustix::thread::gettid().as_raw_nonzero().get()));
            drop(tell);
            Some(body(&jailed))
        });
        let thread = thread.map_err(|source| JailError::Thread { role: name, source })?;
        Ok(Starting { thread, ready, role: name })
    }
}

/// A thread that is about to enter the jail.
#[derive(Debug)]
pub struct Starting<T> {
    thread: JoinHandle<Option<T>>,
    ready: Receiver<Result<i32, JailError>>,
    role: &'static str,
}

/// A thread in the jail.
#[derive(Debug)]
pub struct Thread<T> {
    thread: JoinHandle<Option<T>>,
    id: i32,
}

impl<T> Starting<T> {
    /// Waits until it is in.
    ///
    /// # Errors
    /// [`JailError`]: the thread has ended.
    pub fn wait(self) -> Result<Thread<T>, JailError> {
        let Self { thread, ready, role } = self;
        let ended = || JailError::Thread { role, source: io::ErrorKind::BrokenPipe.into() };
        Ok(Thread { id: ready.recv().map_err(|_| ended())??, thread })
    }
}

impl<T> Thread<T> {
    /// The kernel's number for it.
    #[must_use]
    pub const fn id(&self) -> i32 {
        self.id
    }

    /// Waits for its end; `None` if it has panicked.
    pub fn join(self) -> Option<T> {
        self.thread.join().ok().flatten()
    }
}

/// The programs to install. Of several answers the kernel takes the strictest: ending the process before an
/// error, an error before none. So what is to fail is allowed by one program and refused by another. The
/// strictest comes last: behind it nothing can be installed.
fn filters(role: &Role) -> seccompiler::Result<Vec<BpfProgram>> {
    let compile = |rules: &[rules::Rule], otherwise, then| -> seccompiler::Result<BpfProgram> {
        let rules = rules::table(rules)?;
        Ok(SeccompFilter::new(rules, otherwise, then, TargetArch::x86_64)?.try_into()?)
    };
    let error = |errno: i32| SeccompAction::Errno(errno as u32);
    let allow = SeccompAction::Allow;
    let (otherwise, eperm) = match role {
        Role::Driver { .. } => (error(libc::EPERM), Vec::new()),
        _ => (SeccompAction::Trap, rules::answered_with_eperm()),
    };
    let failing = [(eperm, error(libc::EPERM)), (rules::answered_with_enosys(role), error(libc::ENOSYS))];
    let (mut filters, mut allowed) = (Vec::new(), rules::allowed(role));
    for (rules, answer) in failing {
        if !rules.is_empty() {
            filters.push(compile(&rules, allow.clone(), answer)?);
            allowed.extend(rules);
        }
    }
    filters.push(compile(&allowed, otherwise, allow)?);
    Ok(filters)
}

/// From here on the thread takes kicks and faults only.
fn block_signals() -> io::Result<()> {
    let taken =
        [libc::SIGSYS, libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP, libc::SIGABRT];
    // SAFETY: all zero is a valid sigset_t, which sigfillset then initializes; the set lives through all
    // calls, and none keeps it.
    let error = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut set);
        for signal in taken.into_iter().chain([SIGRTMIN()]) {
            libc::sigdelset(&raw mut set, signal);
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut())
    };
    if error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(error)) }
}

/// What the jail can do on this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Offers {
    /// System call filters: required.
    pub seccomp: bool,
    /// Version of Landlock's interface; 0 without it.
    pub landlock_abi: i32,
}

/// Asks the kernel what it has.
#[must_use]
pub fn offers() -> Offers {
    let trap = libc::SECCOMP_RET_TRAP;
    // SAFETY: the kernel reads the number through the pointer, and changes nothing.
    let found =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0, &raw const trap) };
    Offers { seccomp: found == 0, landlock_abi: landlock_abi() }
}

#[cfg(test)]
mod tests;
