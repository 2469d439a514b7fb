//! For each attack: how many kinds of it there are, what the guest needs, and what may stop it.

use std::fmt;

use umpa_abi::boot::MmuMode;
use vmm::ledger::Owner;
use vmm::upcall::Ask;
use vmm::vcpu::Ring;

/// What can stop a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    /// It goes on: status codes, exceptions that it catches, zeros.
    Refused,
    /// The second translation; the frame's owner.
    Violation(Owner),
    /// An exit for a port that means nothing.
    Port,
    /// An exit for HLT.
    Halted,
    /// An exception that couldn't be delivered.
    TripleFault,
    /// KVM's emulator doesn't know the instruction.
    Internal,
    /// The processor refused the state.
    EntryFailed,
    /// An exception that the guest reports, and ends.
    Exception,
    /// The timeout.
    Watchdog,
    /// The limit of what it may write and report.
    OutputLimit,
    /// A demand for frames without an answer.
    Unanswered,
    /// Another ABI version.
    Version,
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Refused => "refused",
            Self::Violation(Owner::NeverGranted) => "violation, never granted",
            Self::Violation(Owner::GivenBack) => "violation, given back",
            Self::Violation(Owner::Outside) => "violation, no memory",
            Self::Violation(Owner::Guest) => "violation, its own",
            Self::Port => "stop, port",
            Self::Halted => "stop, halt",
            Self::TripleFault => "stop, triple fault",
            Self::Internal => "stop, KVM can't emulate it",
            Self::EntryFailed => "stop, processor state",
            Self::Exception => "exception, reported",
            Self::Watchdog => "watchdog",
            Self::OutputLimit => "output limit",
            Self::Unanswered => "demand unanswered",
            Self::Version => "ABI version",
        })
    }
}

/// Where a guest attacks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Where {
    pub(super) ring: Ring,
    pub(super) mode: MmuMode,
}

/// An attack, as the host sees it.
#[derive(Debug)]
pub(super) struct Planned {
    pub(super) name: &'static str,
    /// How many guests.
    pub(super) variants: u64,
    pub(super) memory_bytes: u64,
    /// Slots of its page file; 0: none.
    pub(super) page_file_slots: u64,
    /// What is asked of it.
    pub(super) asks: Option<Ask>,
    /// Only the watchdog ends it.
    pub(super) spins: bool,
    /// Where it isn't tried, why.
    pub(super) skipped: fn(Where) -> Option<&'static str>,
    /// What may stop it.
    pub(super) by: fn(Where) -> &'static [By],
}

const NEVER: By = By::Violation(Owner::NeverGranted);
const BACK: By = By::Violation(Owner::GivenBack);
const OUTSIDE: By = By::Violation(Owner::Outside);

/// One guest, which must be refused.
const fn refused(name: &'static str) -> Planned {
    Planned {
        name,
        variants: 1,
        memory_bytes: 8 << 20,
        page_file_slots: 0,
        asks: None,
        spins: false,
        skipped: |_| None,
        by: |_| &[By::Refused],
    }
}

impl Planned {
    const fn by(self, by: fn(Where) -> &'static [By]) -> Self {
        Self { by, ..self }
    }

    const fn times(self, variants: u64) -> Self {
        Self { variants, ..self }
    }

    const fn spins(self) -> Self {
        Self { spins: true, ..self }
    }
}

/// All attacks, in alphabetical order.
pub(super) static CATALOGUE: &[Planned] = &[
    refused("apic").times(4).by(|_| &[OUTSIDE]),
    refused("call-fuzz").times(4),
    refused("copy-given-back").times(3).by(|_| &[BACK]),
    refused("crossing-ungranted").times(2).by(|_| &[NEVER]),
    refused("every-power-of-two").times(156).by(|_| &[By::Refused, NEVER, OUTSIDE]),
    refused("exchange-twice"),
    refused("execute-given-back").times(3).by(|_| &[BACK]),
    refused("execute-ungranted").by(|_| &[NEVER]),
    refused("halt").by(|place| match place.ring {
        Ring::Three => &[By::Refused],
        Ring::Zero => &[By::Halted],
    }),
    refused("locked-ungranted").by(|_| &[NEVER]),
    refused("neighbours").times(6).by(|_| &[NEVER]),
    refused("pc-holes").times(36).by(|_| &[OUTSIDE]),
    refused("read-given-back").times(3).by(|_| &[BACK]),
    refused("read-ungranted").by(|_| &[NEVER]),
    refused("recycled"),
    refused("slot-borders").times(18).by(|_| &[NEVER, OUTSIDE]),
    refused("spin").spins().by(|_| &[By::Watchdog]),
    refused("stack-given-back").times(3).by(|_| &[BACK]),
    refused("stack-ungranted").by(|_| &[NEVER]),
    refused("string-ungranted").times(2).by(|_| &[NEVER]),
    refused("triple-fault").by(|_| &[By::TripleFault]),
    refused("write-given-back").times(3).by(|_| &[BACK]),
    refused("write-ungranted").by(|_| &[NEVER]),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_in_order() {
        assert!(CATALOGUE.windows(2).all(|two| two[0].name < two[1].name));
    }

    #[test]
    fn nothing_may_be_stopped_by_the_guest_owning_what_it_touches() {
        for planned in CATALOGUE {
            for ring in [Ring::Three, Ring::Zero] {
                for mode in [MmuMode::Shadow, MmuMode::Npt, MmuMode::Ept] {
                    let by = (planned.by)(Where { ring, mode });
                    assert!(!by.is_empty(), "{}", planned.name);
                    assert!(!by.contains(&By::Violation(Owner::Guest)), "{}", planned.name);
                    let watched = by.contains(&By::Watchdog);
                    assert_eq!(
                        watched, planned.spins,
                        "{}: a watchdog that must not be waited for",
                        planned.name
                    );
                }
            }
        }
    }
}
