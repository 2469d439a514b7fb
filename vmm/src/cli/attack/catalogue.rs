//! For each attack: how many kinds of it there are, what the guest needs, and what may stop it.

use std::fmt;
use std::time::Duration;

use umpa_abi::boot::MmuMode;
use umpa_abi::upcall::Severity;
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
    /// The second translation, and when the VMM looks where, the guest's tables say something else.
    Unlocated,
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
    /// An exit that this VMM never asks for.
    Unknown,
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
    /// The limit of violations that it may hear of.
    Injections,
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Refused => "refused",
            Self::Violation(Owner::NeverGranted) => "violation, never granted",
            Self::Violation(Owner::GivenBack) => "violation, given back",
            Self::Violation(Owner::Outside) => "violation, no memory",
            Self::Violation(Owner::Guest) => "violation, its own",
            Self::Unlocated => "violation, its tables have changed",
            Self::Port => "stop, port",
            Self::Halted => "stop, halt",
            Self::TripleFault => "stop, triple fault",
            Self::Internal => "stop, KVM can't emulate it",
            Self::EntryFailed => "stop, processor state",
            Self::Unknown => "stop, unknown exit",
            Self::Exception => "exception, reported",
            Self::Watchdog => "watchdog",
            Self::OutputLimit => "output limit",
            Self::Unanswered => "demand unanswered",
            Self::Version => "ABI version",
            Self::Injections => "violation, one too many",
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
    /// What is asked of it, at its first pause.
    pub(super) asks: Option<Ask>,
    /// How many violations it hears of; `None`: the first one ends it.
    pub(super) injections: Option<u64>,
    /// It is asked that all the time from then on.
    pub(super) storms: bool,
    pub(super) vcpus: u64,
    /// It isn't in the victim's pool, which has less than it wants.
    pub(super) alone: bool,
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

/// Tables where no memory is: a violation where the processor walks them, a page fault of the guest's where
/// KVM does.
const fn walks(place: Where, violation: &'static [By]) -> &'static [By] {
    if matches!(place.mode, MmuMode::Shadow) { &[By::Refused] } else { violation }
}

/// A root that isn't the guest's: the processor refuses to load it (#GP beyond its address width), can't
/// fetch the next instruction, nor raise an exception about that, or KVM tries for ever.
const fn foreign_root(_: Where) -> &'static [By] {
    &[By::Refused, By::TripleFault, By::EntryFailed, By::Internal, By::Watchdog, NEVER, BACK, OUTSIDE]
}

/// Instructions for the kernel of a machine. At CPL 3 exceptions; at CPL 0 the guest may break what takes its
/// own exceptions, and an interpreter may not know them.
const fn instructions(place: Where) -> &'static [By] {
    match place.ring {
        Ring::Three => &[By::Refused],
        Ring::Zero => &[By::Refused, By::Internal, By::Exception, By::TripleFault],
    }
}

/// One guest, which must be refused.
const fn refused(name: &'static str) -> Planned {
    Planned {
        name,
        variants: 1,
        memory_bytes: 8 << 20,
        page_file_slots: 0,
        asks: None,
        injections: None,
        storms: false,
        vcpus: 1,
        alone: false,
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

    const fn memory(self, memory_bytes: u64) -> Self {
        Self { memory_bytes, ..self }
    }

    const fn file(self, page_file_slots: u64) -> Self {
        Self { page_file_slots, ..self }
    }

    const fn asks(self, ask: Ask) -> Self {
        Self { asks: Some(ask), ..self }
    }

    const fn hears(self, injections: u64) -> Self {
        Self { injections: Some(injections), ..self }
    }

    /// Without a rest.
    const fn storms(self, ask: Ask) -> Self {
        Self { asks: Some(ask), storms: true, ..self }
    }

    /// With another processor.
    const fn beside(self) -> Self {
        Self { vcpus: 2, ..self }
    }

    /// Without the pool that the others share with the victim.
    const fn alone(self) -> Self {
        Self { alone: true, ..self }
    }

    const fn skipped(self, skipped: fn(Where) -> Option<&'static str>) -> Self {
        Self { skipped, ..self }
    }

    const fn only_at_cpl_3(self) -> Self {
        self.skipped(|place| (place.ring == Ring::Zero).then_some("at CPL 0 these are its own"))
    }
}

/// A demand that nobody answers: an emulated guest has the time to hear of it too.
const DEMAND: Ask = Ask::new(Severity::Demand, 16).within(Duration::from_millis(200));

/// All attacks, in alphabetical order.
pub(super) static CATALOGUE: &[Planned] = &[
    refused("answer-forged").asks(Ask::new(Severity::Advise, 16).polled()),
    refused("apic").times(4).by(|_| &[OUTSIDE]),
    refused("before-hello"),
    refused("beyond-width").times(24).by(|_| &[By::Refused, OUTSIDE]),
    refused("boot-page-rewritten"),
    refused("broken-gate")
        .times(2)
        .asks(Ask::new(Severity::Need, 16))
        .by(|_| &[By::Exception, By::TripleFault]),
    refused("call-area-moved"),
    refused("call-fuzz").times(4),
    refused("call-lengths"),
    refused("call-ops"),
    refused("console-escapes"),
    refused("console-flood").by(|_| &[By::Refused, By::OutputLimit]),
    // KVM tells of CR8 where the VMM could have an APIC.
    refused("control-registers").times(4).by(|place| match place.ring {
        Ring::Three => &[By::Refused],
        Ring::Zero => &[By::Refused, By::Unknown],
    }),
    refused("copy-given-back").times(3).by(|_| &[BACK]),
    refused("cpuid-probe"),
    refused("crossing-ungranted").times(2).by(|_| &[NEVER]),
    refused("debug-registers"),
    refused("deep-recursion").by(|_| &[By::Exception]),
    refused("demand-ignored").asks(DEMAND).by(|_| &[By::Unanswered]),
    refused("descriptor-tables").times(4).by(|place| match place.ring {
        Ring::Three => &[By::Refused],
        Ring::Zero => &[By::Refused, By::TripleFault],
    }),
    refused("every-power-of-two").times(156).by(|_| &[By::Refused, NEVER, OUTSIDE]),
    refused("exchange-foreign"),
    refused("exchange-full").memory(40 << 20).by(|_| &[BACK]),
    refused("exchange-huge"),
    refused("exchange-tables"),
    refused("exchange-twice"),
    refused("execute-data"),
    refused("execute-given-back").times(3).by(|_| &[BACK]),
    refused("execute-ungranted").by(|_| &[NEVER]),
    refused("exit-codes"),
    refused("exit-storm").spins().by(|_| &[By::Watchdog]),
    refused("extended-state").times(3).by(instructions),
    refused("far-transfers").times(6).by(instructions),
    refused("fault-storm").spins().by(|_| &[By::Watchdog]),
    refused("forged-results"),
    refused("fragments").memory(1 << 30).alone().by(|_| &[BACK]),
    refused("giant-leaf-partly").times(2).by(|_| &[By::Refused, NEVER, OUTSIDE]),
    refused("give-in-flight").file(8),
    refused("give-own-code").by(|_| &[BACK]),
    refused("give-own-stack").by(|_| &[BACK]),
    refused("halt").by(|place| match place.ring {
        Ring::Three => &[By::Refused],
        Ring::Zero => &[By::Halted],
    }),
    refused("handler-faults").by(|_| &[By::Exception]),
    refused("hoard"),
    refused("interrupts-off").spins().by(|_| &[By::Watchdog]).skipped(|place| {
        (place.mode == MmuMode::Ept).then_some("Bochs hangs when a guest spins with interrupts off")
    }),
    refused("ipi").times(2).beside().by(|_| &[By::Refused, OUTSIDE]),
    refused("kick-storm").file(8),
    refused("kvm-clock"),
    refused("large-leaf-given-back").times(3).by(|_| &[BACK]),
    refused("large-leaf-partly").times(3).by(|_| &[NEVER]),
    refused("locked-ungranted").by(|_| &[NEVER]),
    refused("mmio-forms").times(20).spins().by(|_| &[OUTSIDE, By::Internal, By::Watchdog]),
    refused("msr-scan"),
    refused("msr-write"),
    refused("neighbours").times(6).by(|_| &[NEVER]),
    refused("page-file-beyond").file(8),
    refused("pc-holes").times(36).by(|_| &[OUTSIDE, By::Refused]),
    refused("pool-hoard").memory(64 << 20),
    refused("pool-in-transfer").times(4).memory(64 << 20).by(|_| &[BACK]),
    refused("pool-leftovers"),
    refused("port-forms").times(18).by(|_| &[By::Refused, By::Port, NEVER]),
    refused("port-scan").times(52).by(|_| &[By::Refused, By::Port]),
    refused("queue-changes").file(8),
    refused("queue-foreign-data").file(8),
    refused("queue-foreign-headers").times(20).file(8),
    refused("queue-fuzz").times(8).file(8),
    refused("queue-heads").times(3).file(8),
    refused("queue-index-lies").times(4).file(8),
    refused("queue-long-chain").file(8),
    refused("queue-loops").times(7).file(8),
    refused("queue-wraps").file(16),
    refused("race-calls").times(6).beside().by(|_| &[By::Refused, NEVER]),
    refused("race-disk").beside().file(8).by(|_| &[By::Refused, By::Unlocated, NEVER]),
    refused("race-exchanges").beside(),
    refused("race-give").beside(),
    // As a table: what KVM still knows of it does no harm.
    refused("race-given-back").times(8).beside().by(|_| &[By::Refused, BACK]),
    refused("race-pauses").beside(),
    refused("race-queue").times(4).beside().file(8),
    // When the VMM looks the entry may be another already.
    refused("race-tables").times(5).beside().by(|_| &[By::Refused, By::Unlocated, NEVER, OUTSIDE]),
    refused("read-given-back").times(3).by(|_| &[BACK]),
    refused("read-ungranted").by(|_| &[NEVER]),
    refused("recycled"),
    refused("report-flood").by(|_| &[By::Refused, By::OutputLimit]),
    refused("request-storm").times(6).storms(Ask::new(Severity::Need, 16)),
    refused("reserved-bits"),
    refused("root-foreign").times(4).spins().by(foreign_root),
    refused("self-tables"),
    refused("slot-borders").times(18).by(|_| &[NEVER, OUTSIDE, By::Refused]),
    refused("software-interrupts").times(8).by(instructions),
    refused("spin").spins().by(|_| &[By::Watchdog]),
    refused("spin-beside").times(4).beside(),
    refused("stack-given-back").times(3).by(|_| &[BACK]),
    refused("stack-ungranted").by(|_| &[NEVER]),
    refused("string-ungranted").times(2).by(|_| &[NEVER]),
    refused("table-given-back").times(2).by(|_| &[By::Refused, BACK]),
    refused("table-in-hole").times(12).by(|place| walks(place, &[OUTSIDE])),
    refused("table-ungranted").times(3).by(|place| walks(place, &[NEVER])),
    // The device may write the table once more before the VMM walks it for the report.
    refused("tables-from-disk").times(2).file(8).by(|_| &[By::Refused, By::Unlocated, NEVER]),
    refused("trap-pages").only_at_cpl_3(),
    refused("triple-fault").by(|_| &[By::TripleFault]),
    refused("violation-handler").times(5).hears(50).by(|_| &[By::Injections, By::Exception]),
    refused("violation-storm").times(14).hears(50).by(|_| &[By::Injections, By::Refused]),
    refused("virtualization").times(17).by(instructions),
    refused("waits").times(7).by(instructions),
    refused("write-code"),
    refused("write-given-back").times(3).by(|_| &[BACK]),
    refused("write-ungranted").by(|_| &[NEVER]),
    refused("wrong-version").times(4).by(|_| &[By::Version]),
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
