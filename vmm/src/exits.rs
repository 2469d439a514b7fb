//! What happens after the guest has left KVM_RUN: a pure decision, so it is tested without a guest.

use std::io;

use umpa_abi::addr::Gpa;
use umpa_abi::block::BLOCK_PORT;
use umpa_abi::call::CALL_PORT;

/// Why KVM_RUN came back, with nothing borrowed from the vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// An `in` or `out`.
    Port {
        /// The port.
        port: u16,
        /// Bytes in all.
        bytes: usize,
        /// `out`?
        out: bool,
    },
    /// A four-byte `out` to the block device's port.
    Block {
        /// What was written.
        command: u32,
    },
    /// An access where no memory slot is.
    Mmio {
        /// Where.
        gpa: Gpa,
        /// What kind.
        access: Emulated,
    },
    /// An access to a slot's memory that the host couldn't give; KVM says where.
    MemoryFault {
        /// Where.
        gpa: Gpa,
    },
    /// The same, and KVM doesn't say where (EFAULT).
    Fault,
    /// `hlt`.
    Halt,
    /// A triple fault.
    Shutdown,
    /// The processor refused the vCPU's state.
    EntryFailed {
        /// The processor's reason.
        reason: u64,
    },
    /// KVM gave up.
    Internal {
        /// KVM_INTERNAL_ERROR_*.
        suberror: u32,
        /// The first word of what comes with it.
        data: u64,
    },
    /// A signal, or nothing at all.
    Interrupted,
    /// The guest takes interrupts now, which was asked for.
    InterruptWindow,
    /// An exit that this VMM never asks for.
    Other {
        /// KVM_EXIT_*.
        reason: u32,
    },
    /// KVM_RUN failed.
    Refused {
        /// With this.
        errno: i32,
    },
}

/// An access that KVM's emulator is in the midst of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Emulated {
    /// A load: KVM wants to be told what is there when the guest is entered next.
    Load,
    /// A store, of up to 8 bytes.
    Store {
        /// How many.
        bytes: usize,
        /// What, with zeros behind it.
        data: [u8; 8],
    },
}

impl Exit {
    /// The name under which it is counted.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Port { port: CALL_PORT, .. } => "call",
            Self::Port { .. } => "port",
            Self::Block { .. } => "block",
            Self::Mmio { .. } => "mmio",
            Self::MemoryFault { .. } | Self::Fault => "memory_fault",
            Self::Halt => "halt",
            Self::Shutdown => "shutdown",
            Self::EntryFailed { .. } => "entry_failed",
            Self::Internal { .. } => "internal_error",
            Self::Interrupted => "interrupted",
            Self::InterruptWindow => "interrupt_window",
            Self::Other { .. } => "other",
            Self::Refused { .. } => "refused",
        }
    }
}

/// What KVM says about a forbidden access.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Where, if KVM says it.
    pub gpa: Option<Gpa>,
    /// What KVM's emulator is in the midst of, if it is.
    pub emulated: Option<Emulated>,
}

/// Why a guest can't go on.
#[derive(Debug, thiserror::Error)]
pub enum Stop {
    /// A port other than the hypercall's.
    #[error("the guest used I/O port {port:#x} ({bytes} bytes, {}); only 4-byte out to {CALL_PORT:#x} means something, and to {BLOCK_PORT:#x} with --page-file", if *.out { "out" } else { "in" })]
    Port {
        /// The port.
        port: u16,
        /// How many bytes.
        bytes: usize,
        /// `out`?
        out: bool,
    },
    /// `hlt`, and nothing could ever wake it.
    #[error("the guest halted; a guest ends with the hypercall Exit")]
    Halted,
    /// An exception whose handler raised exceptions.
    #[error("triple fault: an exception couldn't be delivered, nor could the double fault")]
    TripleFault,
    /// The processor refused the state.
    #[error("the processor refuses the vCPU's state, reason {reason:#x}")]
    EntryFailed {
        /// The processor's reason.
        reason: u64,
    },
    /// KVM couldn't go on.
    #[error("KVM gave up: internal error {suberror} ({}), data {data:#x}", suberror_name(*.suberror))]
    Internal {
        /// KVM_INTERNAL_ERROR_*.
        suberror: u32,
        /// The first word of its data.
        data: u64,
    },
    /// An exit that we never asked for.
    #[error("KVM left the guest for a reason that this VMM doesn't know: {reason}")]
    Unknown {
        /// KVM_EXIT_*.
        reason: u32,
    },
    /// KVM_RUN failed.
    #[error("KVM_RUN failed")]
    Refused(#[source] io::Error),
}

const fn suberror_name(suberror: u32) -> &'static str {
    match suberror {
        1 => "an instruction that it can't emulate",
        2 => "simultaneous exceptions",
        3 => "event delivery",
        4 => "an unexpected exit reason",
        _ => "unknown",
    }
}

/// What to do.
#[derive(Debug)]
pub enum Action {
    /// Enter the guest again.
    Continue,
    /// Serve a hypercall.
    Call,
    /// Let the block device look at its queue.
    Block {
        /// What was written to its port.
        command: u32,
    },
    /// Find out about a forbidden access, and do what the [policy](crate::inject) says.
    Violation(Seen),
    /// End.
    Stop(Stop),
}

/// Decides what an exit means.
#[must_use]
pub fn decide(exit: Exit) -> Action {
    Action::Stop(match exit {
        Exit::Port { port: CALL_PORT, bytes: 4, out: true } => return Action::Call,
        Exit::Block { command } => return Action::Block { command },
        Exit::Interrupted | Exit::InterruptWindow => return Action::Continue,
        Exit::Mmio { gpa, access } => {
            return Action::Violation(Seen { gpa: Some(gpa), emulated: Some(access) });
        }
        Exit::MemoryFault { gpa } => return Action::Violation(Seen { gpa: Some(gpa), emulated: None }),
        Exit::Fault => return Action::Violation(Seen::default()),
        Exit::Port { port, bytes, out } => Stop::Port { port, bytes, out },
        Exit::Halt => Stop::Halted,
        Exit::Shutdown => Stop::TripleFault,
        Exit::EntryFailed { reason } => Stop::EntryFailed { reason },
        Exit::Internal { suberror, data } => Stop::Internal { suberror, data },
        Exit::Other { reason } => Stop::Unknown { reason },
        Exit::Refused { errno } => Stop::Refused(io::Error::from_raw_os_error(errno)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_four_byte_out_to_the_call_port_is_a_call() {
        let port = |port, bytes, out| decide(Exit::Port { port, bytes, out });
        assert!(matches!(port(CALL_PORT, 4, true), Action::Call));
        assert!(matches!(port(CALL_PORT, 4, false), Action::Stop(Stop::Port { out: false, .. })));
        assert!(matches!(port(CALL_PORT, 1, true), Action::Stop(Stop::Port { bytes: 1, .. })));
        assert!(matches!(port(0x3f8, 4, true), Action::Stop(Stop::Port { port: 0x3f8, .. })));
    }

    #[test]
    fn accesses_outside_memory_are_violations_with_what_is_known() {
        let gpa = Gpa::new(0x1000);
        let seen = |exit| match decide(exit) {
            Action::Violation(seen) => seen,
            other => panic!("{other:?}"),
        };
        for access in [Emulated::Load, Emulated::Store { bytes: 8, data: [7; 8] }] {
            assert_eq!(seen(Exit::Mmio { gpa, access }), Seen { gpa: Some(gpa), emulated: Some(access) });
        }
        assert_eq!(seen(Exit::MemoryFault { gpa }), Seen { gpa: Some(gpa), emulated: None });
        assert_eq!(seen(Exit::Fault), Seen::default());
    }

    #[test]
    fn nothing_unexpected_is_a_success() {
        for exit in [
            Exit::Halt,
            Exit::Shutdown,
            Exit::EntryFailed { reason: 0x8000_0021 },
            Exit::Internal { suberror: 1, data: 0 },
            Exit::Other { reason: 99 },
            Exit::Refused { errno: libc::EINVAL },
        ] {
            assert!(matches!(decide(exit), Action::Stop(_)), "{exit:?}");
        }
        assert!(matches!(decide(Exit::Interrupted), Action::Continue));
        assert!(matches!(decide(Exit::InterruptWindow), Action::Continue));
        assert!(matches!(decide(Exit::Shutdown), Action::Stop(Stop::TripleFault)));
    }
}
