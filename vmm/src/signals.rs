//! Taking a guest out of KVM_RUN: SIGINT, the timeout, and kicks.
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
//! SIGINT's handler does what handlers may: it writes to an eventfd, which every [`Watch`] polls and
//! nobody reads. It also restores the default, so a second SIGINT ends the process.
#![allow(unsafe_code)] // a signal handler, tgkill, a byte that is shared with the kernel

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

/// Between two kicks that aren't acknowledged.
const KICK_AGAIN: Duration = Duration::from_millis(1);

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
    /// No descriptor or thread to be had.
    #[error("can't watch the guest; see ulimit -n and ulimit -u")]
    Watch(#[source] io::Error),
}

/// Why a guest is to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// SIGINT.
    Interrupted,
    /// Its time is up.
    TimedOut,
}

/// Written by SIGINT's handler.
static INTERRUPTED: OnceLock<EventFd> = OnceLock::new();

/// From now on SIGINT stops all guests of this process, instead of ending it. A second one ends it.
///
/// # Errors
/// [`SignalError`].
pub fn catch_sigint() -> Result<(), SignalError> {
    if INTERRUPTED.get().is_none() {
        let _ = INTERRUPTED.set(EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).map_err(SignalError::Watch)?);
    }
    register_signal_handler(libc::SIGINT, on_sigint)
        .map_err(|source| SignalError::Handler { signal: libc::SIGINT, source })
}

/// True once SIGINT has come, if it is caught: for work between two runs of a guest.
#[must_use]
pub fn is_interrupted() -> bool {
    let Some(event) = INTERRUPTED.get() else { return false };
    // SAFETY: the eventfd is in a static, so it is never closed.
    let event = unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) };
    let mut fds = [PollFd::from_borrowed_fd(event, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}

extern "C" fn on_sigint(signal: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    if let Some(event) = INTERRUPTED.get() {
        let _ = event.write(1);
    }
    // SAFETY: signal(2) is async-signal-safe, and SIG_DFL needs no code of ours.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
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

/// Stops one guest when SIGINT comes or its time is up.
#[derive(Debug)]
pub struct Watch {
    shared: Arc<Shared>,
    end: Option<(EventFd, JoinHandle<()>)>,
}

impl Watch {
    /// Watches from now on. Without a timeout, and if SIGINT isn't caught, there is nothing to watch.
    ///
    /// # Errors
    /// [`SignalError`].
    pub fn start(timeout: Option<Duration>) -> Result<Self, SignalError> {
        let shared = Arc::new(Shared::default());
        if timeout.is_none() && INTERRUPTED.get().is_none() {
            return Ok(Self { shared, end: None });
        }
        let kick = SIGRTMIN();
        register_signal_handler(kick, on_kick)
            .map_err(|source| SignalError::Handler { signal: kick, source })?;
        let end = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).map_err(SignalError::Watch)?;
        let their_end = end.try_clone().map_err(SignalError::Watch)?;
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let watched = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("watch".to_owned())
            .spawn(move || watch(&watched, &their_end, deadline, kick))
            .map_err(SignalError::Watch)?;
        Ok(Self { shared, end: Some((end, thread)) })
    }

    /// The calling thread runs the vCPU until the guard is dropped.
    #[must_use]
    pub fn enter(&self) -> Running<'_> {
        self.shared.runner.store(rustix::thread::gettid().as_raw_nonzero().get(), Ordering::SeqCst);
        Running { shared: &self.shared }
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

impl Running<'_> {
    /// Why the guest is to stop, if it is. Ends the kicks.
    #[must_use]
    pub fn stop_reason(&self) -> Option<Reason> {
        let reason = match self.shared.reason.load(Ordering::SeqCst) {
            0 => return None,
            1 => Reason::Interrupted,
            _ => Reason::TimedOut,
        };
        self.shared.is_acknowledged.store(true, Ordering::SeqCst);
        Some(reason)
    }
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

fn watch(shared: &Shared, end: &EventFd, deadline: Option<Instant>, kick: i32) {
    let Some(reason) = wait(end, deadline) else { return };
    shared.reason.store(if reason == Reason::Interrupted { 1 } else { 2 }, Ordering::SeqCst);
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

/// Waits for SIGINT or the deadline; `None` when the guest has ended by itself.
fn wait(end: &EventFd, deadline: Option<Instant>) -> Option<Reason> {
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left == Some(Duration::ZERO) {
            return Some(Reason::TimedOut);
        }
        // Longer waits than an hour are cut, and waited for again.
        let left = left.unwrap_or(Duration::MAX).min(Duration::from_secs(3600));
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

fn borrow(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is open as long as the EventFd that is borrowed.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_interrupts_a_blocking_call_until_it_is_acknowledged() {
        let watch = Watch::start(Some(Duration::from_millis(20))).unwrap();
        let running = watch.enter();
        let begin = Instant::now();
        while running.stop_reason().is_none() {
            // As KVM_RUN does, nanosleep returns early for a signal.
            let request = libc::timespec { tv_sec: 10, tv_nsec: 0 };
            // SAFETY: the request is a valid timespec and the remainder isn't wanted.
            unsafe { libc::nanosleep(&request, std::ptr::null_mut()) };
        }
        assert!(begin.elapsed() < Duration::from_secs(5));
        assert_eq!(running.stop_reason(), Some(Reason::TimedOut));
    }

    #[test]
    fn a_watch_ends_with_its_guest() {
        let begin = Instant::now();
        drop(Watch::start(Some(Duration::from_secs(1000))).unwrap());
        assert!(begin.elapsed() < Duration::from_secs(5));
    }
}
