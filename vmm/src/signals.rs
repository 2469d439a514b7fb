//! Taking a guest out of KVM_RUN: SIGINT and SIGTERM, the timeout, and kicks.
//!
//! A vCPU runs on its caller's thread, so somebody else has to take it out of KVM_RUN: a [`Watch`],
//! one thread for each guest that can be stopped. It sets the reason, then sends the kick signal to
//! the vCPU's thread. A kick that arrives between the vCPU's look at the reason and KVM_RUN is lost;
//! so it is sent again every millisecond until the vCPU has acknowledged it.
//!
//! A [`Kick`] has no thread: whoever has something for the vCPU sets `immediate_exit` in its `kvm_run`,
//! so that KVM_RUN returns at once if it comes later, and sends the signal in case it is there
//! already. Nothing is lost: the vCPU clears the byte before it looks what there is for it.
//!
//! SIGTERM means what SIGINT means: guests end, what they have said is printed, and the exit code is 128 + the
//! signal's number. The handler of both does what handlers may: it writes to an eventfd, which every [`Watch`]
//! polls and nobody reads. It also restores the defaults, so a second one ends the process. SIGHUP ends it at
//! once, as does SIGKILL: the kernel takes back what a guest has, and nothing is left behind.
#![allow(unsafe_code)] // a signal handler, tgkill, a byte that is shared with the kernel

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use crate::jail::{Jail, JailError, Role, Thread};

/// Between two kicks that aren't acknowledged.
const KICK_AGAIN: Duration = Duration::from_millis(1);
/// Between two looks at the processor time at least.
const CPU_TIME_AGAIN: Duration = Duration::from_millis(1);

/// Why a guest couldn't be made stoppable.
#[derive(Debug, thiserror::Error)]
pub enum SignalError {
    /// A handler was refused.
    #[error("can't install the handler of signal {signal}")]
    Handler {
        /// The signal.
        signal: i32,
        /// What sigaction failed with.
        #[source]
        source: vmm_sys_util::errno::Error,
    },
    /// No descriptor to be had.
    #[error("can't watch the guest; see ulimit -n")]
    Watch(#[source] io::Error),
    /// No thread, or none that is jailed.
    #[error("can't watch the guest")]
    Thread(#[from] JailError),
}

/// Why a guest is to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// SIGINT or SIGTERM.
    Interrupted,
    /// Its time is up.
    TimedOut,
    /// Its processor time is used up.
    CpuTimeUsed,
}

/// When a guest is to stop by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deadline {
    /// Whatever it does.
    pub at: Option<Instant>,
    /// When its threads have had so much processor time.
    pub cpu_time: Option<Duration>,
}

/// Written by the handler of SIGINT and SIGTERM.
static INTERRUPTED: OnceLock<EventFd> = OnceLock::new();
/// Which of them came first; 0 while none has.
static FIRST: AtomicI32 = AtomicI32::new(0);
/// What stops all guests.
const STOPPING: [i32; 2] = [libc::SIGINT, libc::SIGTERM];

/// From now on SIGINT and SIGTERM stop all guests of this process, instead of ending it. A second one ends it.
///
/// # Errors
/// [`SignalError`].
pub fn catch_sigint() -> Result<(), SignalError> {
    if INTERRUPTED.get().is_none() {
        let _ = INTERRUPTED.set(EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).map_err(SignalError::Watch)?);
    }
    STOPPING.into_iter().try_for_each(|signal| {
        register_signal_handler(signal, on_stopping).map_err(|source| SignalError::Handler { signal, source })
    })
}

/// The number of the signal that has stopped the guests of this process.
#[must_use]
pub fn interrupted_by() -> Option<i32> {
    Some(FIRST.load(Ordering::SeqCst)).filter(|&signal| signal != 0)
}

/// True once SIGINT or SIGTERM has come, if they are caught: for work between two runs of a guest.
#[must_use]
pub fn is_interrupted() -> bool {
    let Some(event) = INTERRUPTED.get() else { return false };
    // SAFETY: the eventfd is in a static, so it is never closed.
    let event = unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) };
    let mut fds = [PollFd::from_borrowed_fd(event, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}

extern "C" fn on_stopping(signal: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let _ = FIRST.compare_exchange(0, signal, Ordering::SeqCst, Ordering::SeqCst);
    if let Some(event) = INTERRUPTED.get() {
        let _ = event.write(1);
    }
    for signal in STOPPING {
        // SAFETY: signal(2) is async-signal-safe, and SIG_DFL needs no code of ours.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

#[derive(Debug, Default)]
struct Shared {
    /// Thread that runs the vCPU; 0 while none does.
    runner: AtomicI32,
    /// 0, or a [`Reason`] as 1 + its number.
    reason: AtomicU8,
    /// The vCPU's thread knows the reason.
    is_acknowledged: AtomicBool,
}

/// A guest's reasons to stop: what its [`Watch`] writes and its vCPUs read.
#[derive(Clone, Debug, Default)]
pub struct Stopper(Arc<Shared>);

impl Stopper {
    /// The calling thread runs the guest's first vCPU until the guard is dropped.
    #[must_use]
    pub fn enter(&self) -> Running<'_> {
        self.0.runner.store(rustix::thread::gettid().as_raw_nonzero().get(), Ordering::SeqCst);
        Running { shared: &self.0 }
    }

    /// Why the guest is to stop, if it is. Ends the kicks.
    #[must_use]
    pub fn reason(&self) -> Option<Reason> {
        let reason = match self.0.reason.load(Ordering::SeqCst) {
            0 => return None,
            1 => Reason::Interrupted,
            2 => Reason::TimedOut,
            _ => Reason::CpuTimeUsed,
        };
        self.0.is_acknowledged.store(true, Ordering::SeqCst);
        Some(reason)
    }
}

/// Stops one guest when SIGINT or SIGTERM comes, or its time is up.
#[derive(Debug)]
pub struct Watch {
    shared: Arc<Shared>,
    /// The thread has the descriptor too, but doesn't close it: it may not.
    end: Option<(Arc<EventFd>, Thread<()>)>,
}

impl Watch {
    /// Watches from now on; `threads` are the guest's, whose processor time counts. Without a deadline, and
    /// if no signal is caught, there is nothing to watch.
    ///
    /// # Errors
    /// [`SignalError`].
    pub fn start(
        stopper: &Stopper,
        deadline: Deadline,
        threads: Vec<i32>,
        jail: Jail,
    ) -> Result<Self, SignalError> {
        let shared = Arc::clone(&stopper.0);
        if deadline == Deadline::default() && INTERRUPTED.get().is_none() {
            return Ok(Self { shared, end: None });
        }
        let kick = SIGRTMIN();
        register_signal_handler(kick, on_kick)
            .map_err(|source| SignalError::Handler { signal: kick, source })?;
        let end = Arc::new(EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).map_err(SignalError::Watch)?);
        let their_end = Arc::clone(&end);
        let watched = Arc::clone(&shared);
        let thread =
            jail.spawn(Role::Watch, move |_| watch(&watched, &their_end, deadline, &threads, kick))?;
        Ok(Self { shared, end: Some((end, thread.wait()?)) })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some((end, thread)) = self.end.take() {
            self.shared.is_acknowledged.store(true, Ordering::SeqCst);
            let _ = end.write(1);
            let _ = thread.join();
        }
    }
}

/// A thread in, or about to be in, KVM_RUN.
#[derive(Debug)]
pub struct Running<'a> {
    shared: &'a Shared,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.shared.runner.store(0, Ordering::SeqCst);
    }
}

/// The vCPU that kicks are for.
#[derive(Debug, Default)]
struct Kicked {
    /// In its `kvm_run`.
    immediate_exit: Option<NonNull<AtomicU8>>,
    /// Thread that runs it; 0 while none does.
    thread: i32,
}

// SAFETY: the byte is in memory that the vCPU and the kernel share; it is accessed atomically, and is
// there as long as it is known here (`Kick::attach`).
unsafe impl Send for Kicked {}

/// Makes a vCPU come out of KVM_RUN, now or as soon as it enters.
#[derive(Debug, Default)]
pub struct Kick(Mutex<Kicked>);

impl Kick {
    /// For no vCPU yet.
    ///
    /// # Errors
    /// [`SignalError::Handler`].
    pub fn new() -> Result<Self, SignalError> {
        let kick = SIGRTMIN();
        register_signal_handler(kick, on_kick)
            .map_err(|source| SignalError::Handler { signal: kick, source })?;
        Ok(Self::default())
    }

    /// From now on kicks set this byte.
    ///
    /// # Safety
    /// The byte is there until [`detach`](Self::detach).
    pub(crate) unsafe fn attach(&self, immediate_exit: NonNull<AtomicU8>) {
        self.lock().immediate_exit = Some(immediate_exit);
    }

    /// The byte is about to go.
    pub(crate) fn detach(&self) {
        self.lock().immediate_exit = None;
    }

    /// The calling thread runs the vCPU until the guard is dropped.
    pub(crate) fn enter(&self) -> Kicks<'_> {
        self.lock().thread = rustix::thread::gettid().as_raw_nonzero().get();
        Kicks(self)
    }

    /// Forgets the kicks so far: before the look at what they may have been for.
    pub(crate) fn clear(&self) {
        self.set(&self.lock(), 0);
    }

    /// Makes the next KVM_RUN return at once, for the thread that makes it.
    pub(crate) fn hold(&self) {
        self.set(&self.lock(), 1);
    }

    /// Kicks.
    pub fn kick(&self) {
        let kicked = self.lock();
        self.set(&kicked, 1);
        if kicked.thread != 0 {
            // SAFETY: tgkill touches no memory; with the lock held the thread stays in `run`.
            unsafe { libc::syscall(libc::SYS_tgkill, std::process::id(), kicked.thread, SIGRTMIN()) };
        }
    }

    fn set(&self, kicked: &Kicked, value: u8) {
        if let Some(byte) = kicked.immediate_exit {
            // SAFETY: the lock is held, so the byte is attached, and there (`attach`).
            unsafe { byte.as_ref() }.store(value, Ordering::SeqCst);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Kicked> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A thread that can be kicked.
#[derive(Debug)]
pub(crate) struct Kicks<'a>(&'a Kick);

impl Drop for Kicks<'_> {
    fn drop(&mut self) {
        self.0.lock().thread = 0;
    }
}

fn watch(shared: &Shared, end: &EventFd, deadline: Deadline, threads: &[i32], kick: i32) {
    let Some(reason) = wait(end, deadline, threads) else { return };
    let number = match reason {
        Reason::Interrupted => 1,
        Reason::TimedOut => 2,
        Reason::CpuTimeUsed => 3,
    };
    shared.reason.store(number, Ordering::SeqCst);
    while !shared.is_acknowledged.load(Ordering::SeqCst) {
        let runner = shared.runner.load(Ordering::SeqCst);
        if runner != 0 {
            // SAFETY: tgkill touches no memory. The signal's handler does nothing, so it does no
            // harm to a thread that has left run() meanwhile.
            unsafe { libc::syscall(libc::SYS_tgkill, std::process::id(), runner, kick) };
        }
        std::thread::sleep(KICK_AGAIN);
    }
}

/// Waits for a signal or the deadline; `None` when the guest has ended by itself.
fn wait(end: &EventFd, deadline: Deadline, threads: &[i32]) -> Option<Reason> {
    loop {
        // Longer waits than an hour are cut, and waited for again.
        let mut left = Duration::from_secs(3600);
        if let Some(at) = deadline.at {
            left = left.min(at.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return Some(Reason::TimedOut);
            }
        }
        if let Some(cpu_time) = deadline.cpu_time {
            let used: Duration = threads.iter().copied().map(cpu_time_of).sum();
            let rest = cpu_time.saturating_sub(used);
            if rest.is_zero() {
                return Some(Reason::CpuTimeUsed);
            }
            // So many threads use it up in this time at the earliest.
            let share = rest.checked_div(threads.len() as u32).unwrap_or(rest);
            left = left.min(share.max(CPU_TIME_AGAIN));
        }
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        let end = borrow(end);
        let mut fds = vec![PollFd::from_borrowed_fd(end, PollFlags::IN)];
        fds.extend(INTERRUPTED.get().map(|event| PollFd::from_borrowed_fd(borrow(event), PollFlags::IN)));
        let _ = poll(&mut fds, Some(&timeout));
        let mut ready = fds.iter().map(|fd| fd.revents().contains(PollFlags::IN));
        if ready.next() == Some(true) {
            return None;
        }
        if ready.next() == Some(true) {
            return Some(Reason::Interrupted);
        }
    }
}

/// Processor time of a thread of this process, the guest's included; none if it has ended.
fn cpu_time_of(thread: i32) -> Duration {
    /// `CPUCLOCK_PERTHREAD_MASK | CPUCLOCK_SCHED` in Linux's `posix-timers_types.h`.
    const PER_THREAD_SCHED: i32 = 4 | 2;
    let clock = !thread << 3 | PER_THREAD_SCHED;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the time is written through the pointer, which is valid for it.
    let error = unsafe { libc::clock_gettime(clock, &raw mut time) };
    if error == 0 { Duration::new(time.tv_sec as u64, time.tv_nsec as u32) } else { Duration::ZERO }
}

fn borrow(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is open as long as the EventFd that is borrowed.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch(stopper: &Stopper, timeout: Duration) -> Watch {
        let deadline = Deadline { at: Some(Instant::now() + timeout), cpu_time: None };
        Watch::start(stopper, deadline, Vec::new(), Jail::On).unwrap()
    }

    #[test]
    fn processor_time_counts_while_a_thread_works() {
        let own = || cpu_time_of(rustix::thread::gettid().as_raw_nonzero().get());
        let begin = own();
        std::thread::sleep(Duration::from_millis(30));
        assert!(own() - begin < Duration::from_millis(20));
        while own() - begin < Duration::from_millis(20) {
            std::hint::spin_loop();
        }
    }

    #[test]
    fn a_timeout_interrupts_a_blocking_call_until_it_is_acknowledged() {
        let stopper = Stopper::default();
        let _watch = watch(&stopper, Duration::from_millis(20));
        let _running = stopper.enter();
        let begin = Instant::now();
        while stopper.reason().is_none() {
            // As KVM_RUN does, nanosleep returns early for a signal.
            let request = libc::timespec { tv_sec: 10, tv_nsec: 0 };
            // SAFETY: the request is a valid timespec and the remainder isn't wanted.
            unsafe { libc::nanosleep(&request, std::ptr::null_mut()) };
        }
        assert!(begin.elapsed() < Duration::from_secs(5));
        assert_eq!(stopper.reason(), Some(Reason::TimedOut));
    }

    #[test]
    fn a_watch_ends_with_its_guest() {
        let begin = Instant::now();
        drop(watch(&Stopper::default(), Duration::from_secs(1000)));
        assert!(begin.elapsed() < Duration::from_secs(5));
    }
}
