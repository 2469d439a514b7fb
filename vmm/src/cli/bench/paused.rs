//! A guest whose workload pauses between pieces of work, and is run on from one pause to the next.

use std::io;

use umpa_abi::call::ExitCode;
use vmm::host::Host;
use vmm::image::{Image, ImageError};
use vmm::vm::{Event, Vm, VmConfig, VmError};

use super::Setup;

/// Why a guest has no result.
#[derive(Debug, thiserror::Error)]
pub(super) enum GuestError {
    #[error("the guest {name} can't be run")]
    Vm {
        name: &'static str,
        #[source]
        source: VmError,
    },
    #[error("the built-in guest image can't be used")]
    Image(#[source] ImageError),
    #[error("the guest {name} ended with {code:?} after {pauses} pauses; what it found is on its console")]
    Ended { name: &'static str, code: ExitCode, pauses: u64 },
    #[error("the guest {name} paused with tag {found} where {expected} was due")]
    OutOfStep { name: &'static str, found: u64, expected: u64 },
    #[error("the guest {name} goes on after its last piece of work")]
    GoesOn { name: &'static str },
}

impl GuestError {
    /// The guest found something wrong itself; everything else is an error of ours or the host's.
    pub(super) fn is_the_guests_fault(&self) -> bool {
        matches!(self, Self::Ended { code: ExitCode::Failed | ExitCode::Panicked | ExitCode::Exception, .. })
    }
}

/// A guest at a pause. Its pauses have the tags 0, 1, 2, …
pub(super) struct PausedGuest {
    name: &'static str,
    vm: Vm,
    pauses: u64,
}

impl PausedGuest {
    /// Boots `workload` and runs it to its first pause.
    pub(super) fn start(
        host: &Host,
        name: &'static str,
        workload: &str,
        args: impl IntoIterator<Item = String>,
        setup: &Setup,
    ) -> Result<Self, GuestError> {
        let mut config = VmConfig::new(Image::embedded().map_err(GuestError::Image)?, workload);
        config.args.extend(args);
        config.memory_bytes = setup.memory_bytes;
        config.ring = setup.ring;
        config.timeout = Some(setup.timeout);
        Self::start_with(host, name, config)
    }

    /// As [`start`](Self::start), of any configuration. Standard output stays for results: the guest's
    /// console goes to standard error.
    pub(super) fn start_with(
        host: &Host,
        name: &'static str,
        mut config: VmConfig,
    ) -> Result<Self, GuestError> {
        config.console = Box::new(io::stderr());
        let vm = Vm::new(host, config).map_err(|source| GuestError::Vm { name, source })?;
        let mut guest = Self { name, vm, pauses: 0 };
        guest.run_to_pause()?;
        Ok(guest)
    }

    /// Its series' name.
    pub(super) const fn name(&self) -> &'static str {
        self.name
    }

    /// The guest itself.
    pub(super) const fn vm(&self) -> &Vm {
        &self.vm
    }

    /// Answers the pause and runs the guest to the next one.
    pub(super) fn go_on(&mut self, answer: u64) -> Result<(), GuestError> {
        self.answer(answer)?;
        self.run_to_pause()
    }

    /// Answers the last pause and runs the guest to its end.
    pub(super) fn finish(&mut self, answer: u64) -> Result<(), GuestError> {
        self.answer(answer)?;
        let (name, pauses) = (self.name, self.pauses);
        match self.run()? {
            Event::Exited(ExitCode::Passed) => Ok(()),
            Event::Exited(code) => Err(GuestError::Ended { name, code, pauses }),
            Event::Paused { .. } => Err(GuestError::GoesOn { name }),
        }
    }

    fn answer(&mut self, answer: u64) -> Result<(), GuestError> {
        let name = self.name;
        self.vm.resume(answer).map_err(|source| GuestError::Vm { name, source })
    }

    fn run(&mut self) -> Result<Event, GuestError> {
        let name = self.name;
        self.vm.run().map_err(|source| GuestError::Vm { name, source })
    }

    fn run_to_pause(&mut self) -> Result<(), GuestError> {
        let (name, expected) = (self.name, self.pauses);
        match self.run()? {
            Event::Paused { tag } if tag == expected => {
                self.pauses += 1;
                Ok(())
            }
            Event::Paused { tag: found } => Err(GuestError::OutOfStep { name, found, expected }),
            Event::Exited(code) => Err(GuestError::Ended { name, code, pauses: expected }),
        }
    }
}
