//! The emulator as a child process that never outlives its owner.
//!
//! Invariants: it dies when the [`Emulator`] is dropped, and when this process dies without dropping it; it does
//! not get the terminal's Ctrl-C, so that the owner decides what happens then.

// One hook between fork and exec has to be declared unsafe; see there.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;

use rustix::process::{Pid, Signal, getppid, kill_process_group, set_parent_process_death_signal};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

/// What an emulator that draws on a terminal has to draw on.
const WINDOW: Winsize = Winsize { ws_row: 40, ws_col: 120, ws_xpixel: 0, ws_ypixel: 0 };

/// A running emulator.
#[derive(Debug)]
pub(super) struct Emulator {
    child: Child,
}

impl Emulator {
    /// Starts an emulator whose messages go to `messages`.
    pub(super) fn start(command: &mut Command, messages: &Path) -> io::Result<Self> {
        let file = File::create(messages)?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        Self::spawn(command)
    }

    /// Starts an emulator that wants a terminal; what it draws there goes to `messages`.
    pub(super) fn start_on_terminal(command: &mut Command, messages: &Path) -> io::Result<Self> {
        let mut file = File::create(messages)?;
        let (ours, theirs) = terminal()?;
        // Not the terminal as input: Bochs waits for a key, 1 ms each time, whenever the machine is idle, and
        // that is always while it sends through a serial port. At the end of its input it doesn't wait.
        command.stdin(Stdio::null()).stdout(theirs.try_clone()?).stderr(theirs);
        let emulator = Self::spawn(command)?;
        // The command holds the other end open, in case it is run again.
        command.stdout(Stdio::null()).stderr(Stdio::null());
        // Ends with an error when the last one on the other end is gone.
        thread::spawn(move || io::copy(&mut File::from(ours), &mut file));
        Ok(emulator)
    }

    /// How the emulator ended, if it has.
    pub(super) fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    fn spawn(command: &mut Command) -> io::Result<Self> {
        let owner = rustix::process::getpid();
        let die_with_owner = move || {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            // The owner may have died before the line above.
            if getppid() == Some(owner) { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
        };
        command.process_group(0);
        // SAFETY: between fork and exec only async-signal-safe work is allowed. The hook makes two system calls
        // directly and allocates nothing: its errors are error numbers and a kind.
        unsafe { command.pre_exec(die_with_owner) };
        Ok(Self { child: command.spawn()? })
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        // Both fail only if it is gone already.
        if let Some(group) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw)
            && matches!(self.child.try_wait(), Ok(None))
        {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = self.child.wait();
    }
}

fn terminal() -> io::Result<(OwnedFd, OwnedFd)> {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&ours)?;
    unlockpt(&ours)?;
    tcsetwinsize(&ours, WINDOW)?;
    let theirs = ioctl_tiocgptpeer(&ours, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    Ok((ours, theirs))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_dropped_emulator_is_dead() {
        let folder = tempfile::tempdir().unwrap();
        let emulator =
            Emulator::start(Command::new("sleep").arg("1000"), &folder.path().join("messages")).unwrap();
        let pid = emulator.child.id();
        drop(emulator);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }

    #[test]
    fn a_terminal_is_a_terminal() {
        let folder = tempfile::tempdir().unwrap();
        let messages = folder.path().join("messages");
        let mut emulator =
            Emulator::start_on_terminal(Command::new("sh").args(["-c", "tty <&1"]), &messages).unwrap();
        while emulator.ended().unwrap().is_none() {
            thread::sleep(Duration::from_millis(5));
        }
        for _ in 0..200 {
            if std::fs::read_to_string(&messages).unwrap().contains("/dev/pts/") {
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
        panic!("no terminal's name in {}", std::fs::read_to_string(&messages).unwrap());
    }
}
