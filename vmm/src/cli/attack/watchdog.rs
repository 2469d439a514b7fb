//! A watchdog over the VMM itself: an attack that hangs one of its threads is found, and named, in bounded time.
//!
//! Guests have their own watchdog ([`vmm::signals`]), which takes a vCPU out of its guest. It can't end a thread of
//! the VMM's that waits for something that never comes, or goes round in circles: then whoever waits for the guest
//! waits for ever. So a thread that waits for nobody is told of each attack's beginning and end. When an end is
//! overdue the attack has reached the VMM: it is named, and the process ends as for any attack that wasn't
//! stopped.

use std::fmt;
use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use super::attempt::Attempt;

/// Times of a guest's patience that an attack may take in all: the guest's life, and the victim's round after it.
const PATIENCES: u32 = 3;

/// Told of beginnings and ends.
#[derive(Debug)]
pub(super) struct Watchdog {
    /// Names of attacks that begin; `None` for the end of one.
    tell: Option<Sender<Option<String>>>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    /// For guests of so much patience. Calls `bark` with the name of an attack that doesn't end, once.
    pub(super) fn start(patience: Duration, bark: impl FnOnce(String) + Send + 'static) -> io::Result<Self> {
        let (tell, told) = channel();
        let limit = patience.saturating_mul(PATIENCES);
        let thread = Builder::new().name("attacks".to_owned()).spawn(move || {
            if let Some(name) = overdue(&told, limit) {
                bark(name);
            }
        })?;
        Ok(Self { tell: Some(tell), thread: Some(thread) })
    }

    /// Does it under its eyes.
    pub(super) fn over<T>(&self, attack: &impl fmt::Display, does: impl FnOnce() -> T) -> T {
        self.tell(Some(attack.to_string()));
        let done = does();
        self.tell(None);
        done
    }

    fn tell(&self, what: Option<String>) {
        if let Some(tell) = &self.tell {
            // It is gone only when it has barked.
            let _ = tell.send(what);
        }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.tell = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The first attack that doesn't end within the limit; `None` when there are no more.
fn overdue(told: &Receiver<Option<String>>, limit: Duration) -> Option<String> {
    loop {
        let Some(name) = told.recv().ok()? else { continue };
        match told.recv_timeout(limit) {
            Ok(_) => {}
            Err(RecvTimeoutError::Timeout) => return Some(name),
            Err(RecvTimeoutError::Disconnected) => return None,
        }
    }
}

impl fmt::Display for Attempt<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, variant {}, at CPL {}", self.planned.name, self.variant, self.ring.number())
    }
}

#[cfg(test)]
mod tests {
    use std::thread::sleep;
    use std::time::Instant;

    use super::*;

    #[test]
    fn an_attack_that_hangs_the_vmm_is_named_in_time() {
        let (tell, told) = channel();
        let watchdog =
            Watchdog::start(Duration::from_millis(30), move |name| tell.send(name).unwrap()).unwrap();
        for name in ["one", "two"] {
            watchdog.over(&name, || sleep(Duration::from_millis(5)));
        }
        let begin = Instant::now();
        // Waits for the bark, as if for ever.
        let found = watchdog.over(&"three", || told.recv_timeout(Duration::from_secs(60)));
        assert_eq!(found.as_deref(), Ok("three"));
        assert!(begin.elapsed() >= Duration::from_millis(90));
        // Nothing more is expected of it.
        watchdog.over(&"four", || ());
    }

    #[test]
    fn time_between_attacks_counts_for_nobody() {
        let watchdog = Watchdog::start(Duration::from_millis(5), |name| panic!("{name}")).unwrap();
        watchdog.over(&"one", || ());
        sleep(Duration::from_millis(60));
        watchdog.over(&"two", || ());
        assert!(watchdog.thread.as_ref().is_some_and(|thread| !thread.is_finished()));
    }
}
