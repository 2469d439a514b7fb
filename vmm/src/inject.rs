//! What becomes of a guest that touches what isn't its own: it ends, or it hears of it.
//!
//! With [`OnViolation::Inject`] the access becomes a page fault in the guest, whose error code no processor
//! makes ([`umpa_abi::violation`]). The instruction had no effect and is tried again if the handler returns, so
//! the handler can get the frame, map another one, or go on elsewhere. Nothing of what the VMM keeps changes by
//! that, and a guest that doesn't handle it ends with its own report. Each is found out about and recorded
//! as if it ended the guest.
//!
//! # Invariants
//!
//! - `0 <= count <= most`, and the guest is entered after a violation only if `count` has grown: the work that
//!   a guest can make that way is bounded.
//! - A violation on another vCPU than the first isn't injected: a guest handles page faults on the first alone.
//! - A violation within the delivery of an exception or interrupt (the guest's own tables, stack or descriptors
//!   are out of reach) isn't injected: no fault is ever delivered within a fault's delivery.

use umpa_abi::violation::{FETCH, TRANSLATED, USER, VIOLATION, WRITE};

use crate::vcpu::FaultError;
use crate::violation::{Attempt, Violation};

/// Violations that are injected if nothing else is said.
pub const INJECTIONS_DEFAULT: u64 = 1000;
/// Violations that are kept for [`Injections::first`].
const KEPT: usize = 8;

/// What happens when a guest touches what isn't its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnViolation {
    /// It ends.
    #[default]
    Kill,
    /// It gets a page fault.
    Inject {
        /// So often at most; the next time it ends.
        most: u64,
    },
}

/// What became of an instruction that KVM was emulating.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begun {
    /// Nothing has been done of it, or it can be undone.
    Undoable,
    /// It is done, and its beginning is lost.
    Lost,
}

/// What to do.
#[derive(Debug)]
pub enum Decision {
    /// End the guest, because that is the policy.
    Kill,
    /// Raise the fault.
    Inject,
    /// End the guest, although the policy is another one.
    End(NotInjected),
}

/// Why a guest ends by a violation that it should have heard of.
#[derive(Debug, thiserror::Error)]
pub enum NotInjected {
    /// It has heard of enough.
    #[error("{most} violations before this one have become its page faults; --injections allows more")]
    UsedUp {
        /// How many it was to hear of.
        most: u64,
    },
    /// Only its first vCPU has a handler ([`umpa_abi::violation`]).
    #[error("that was on vCPU {vcpu}: only the first vCPU hears of violations")]
    NoHandler {
        /// Which one.
        vcpu: u64,
    },
    /// Its handler can't be reached.
    #[error(
        "that was while an exception or interrupt was being delivered: the guest's trap stack, descriptors or \
         their tables aren't its own"
    )]
    Delivering,
    /// The instruction can't be undone.
    #[error("KVM has emulated the instruction, and what was before it can't be found out")]
    Lost,
    /// KVM doesn't raise the fault.
    #[error("KVM can't raise the page fault")]
    Fault(#[from] FaultError),
}

/// Violations that a guest has heard of.
#[derive(Debug)]
pub struct Injections {
    policy: OnViolation,
    count: u64,
    first: Vec<Violation>,
}

impl Injections {
    /// None so far.
    #[must_use]
    pub const fn new(policy: OnViolation) -> Self {
        Self { policy, count: 0, first: Vec::new() }
    }

    /// Whether any is ever injected.
    #[must_use]
    pub fn is_kill(&self) -> bool {
        self.policy == OnViolation::Kill
    }

    /// What becomes of a violation: a pure function of what was before.
    #[must_use]
    pub const fn decide(&self, vcpu: u64, is_delivering: bool, begun: Begun) -> Decision {
        let OnViolation::Inject { most } = self.policy else { return Decision::Kill };
        if vcpu > 0 {
            Decision::End(NotInjected::NoHandler { vcpu })
        } else if is_delivering {
            Decision::End(NotInjected::Delivering)
        } else if self.count >= most {
            Decision::End(NotInjected::UsedUp { most })
        } else if matches!(begun, Begun::Lost) {
            Decision::End(NotInjected::Lost)
        } else {
            Decision::Inject
        }
    }

    /// Records one that is injected.
    pub fn record(&mut self, violation: Violation) {
        self.count = self.count.saturating_add(1);
        if self.first.len() < KEPT {
            self.first.push(violation);
        }
    }

    /// How many there were.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// The first few.
    #[must_use]
    pub fn first(&self) -> &[Violation] {
        &self.first
    }
}

/// The error code of a violation's page fault.
#[must_use]
pub fn error_code(violation: &Violation) -> u32 {
    let bit = |bit, is_set| if is_set { bit } else { 0 };
    let attempt = violation.attempt;
    let is_translated = violation.gva.is_some() && attempt != Some(Attempt::Walk);
    VIOLATION
        | bit(TRANSLATED, is_translated)
        | bit(WRITE, attempt == Some(Attempt::Write))
        | bit(FETCH, attempt == Some(Attempt::Fetch))
        | bit(USER, violation.registers.cs & 3 == 3)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vcpu::Registers;
    use umpa_abi::addr::Gva;

    fn violation(attempt: Option<Attempt>, cs: u16) -> Violation {
        Violation {
            rip: Gva::new(0x1000),
            attempt,
            gva: attempt.map(|_| Gva::new(0x2000)),
            gpa: None,
            owner: None,
            instruction: None,
            registers: Registers { cs, ..Registers::default() },
        }
    }

    #[test]
    fn every_state_has_one_decision() {
        for most in [None, Some(0), Some(1), Some(3)] {
            let policy = most.map_or(OnViolation::Kill, |most| OnViolation::Inject { most });
            let mut injections = Injections::new(policy);
            for count in 0..5 {
                for (delivering, begun) in [
                    (false, Begun::Undoable),
                    (false, Begun::Lost),
                    (true, Begun::Undoable),
                    (true, Begun::Lost),
                ] {
                    let elsewhere = injections.decide(2, delivering, begun);
                    match (most, elsewhere) {
                        (None, Decision::Kill) => {}
                        (Some(_), Decision::End(NotInjected::NoHandler { vcpu: 2 })) => {}
                        (_, other) => panic!("{policy:?}: {other:?}"),
                    }
                    let decided = injections.decide(0, delivering, begun);
                    match (most, &decided) {
                        (None, Decision::Kill) => {}
                        (Some(_), Decision::End(NotInjected::Delivering)) => assert!(delivering),
                        (Some(most), Decision::End(NotInjected::UsedUp { most: said })) => {
                            assert!(!delivering && count >= most && most == *said);
                        }
                        (Some(most), Decision::End(NotInjected::Lost)) => {
                            assert!(!delivering && count < most && begun == Begun::Lost);
                        }
                        (Some(most), Decision::Inject) => {
                            assert!(!delivering && count < most && begun == Begun::Undoable);
                        }
                        _ => panic!("{policy:?}, {count}: {decided:?}"),
                    }
                }
                if matches!(injections.decide(0, false, Begun::Undoable), Decision::Inject) {
                    injections.record(violation(None, 0));
                }
            }
            assert_eq!(injections.count(), most.unwrap_or(0));
            assert_eq!(injections.first().len() as u64, most.unwrap_or(0));
        }
    }

    #[test]
    fn the_first_few_are_kept_and_all_are_counted() {
        let mut injections = Injections::new(OnViolation::Inject { most: 100 });
        (0..100).for_each(|_| injections.record(violation(None, 0)));
        assert_eq!((injections.count(), injections.first().len()), (100, KEPT));
    }

    #[test]
    fn the_error_code_says_what_was_tried() {
        let code = |attempt, cs| error_code(&violation(attempt, cs));
        assert_eq!(code(Some(Attempt::Read), 0x10), 0x4001);
        assert_eq!(code(Some(Attempt::Write), 0x33), 0x4007);
        assert_eq!(code(Some(Attempt::Fetch), 0x33), 0x4015);
        assert_eq!(code(Some(Attempt::Walk), 0x33), 0x4004);
        assert_eq!(code(None, 0x10), 0x4000);
        // What KVM passes on to VMX has no bit above 14.
        assert_eq!(code(Some(Attempt::Write), 0x33) >> 15, 0);
    }
}
