//! Violates without end, where the VMM makes page faults of violations.

use umpa_abi::addr::{Gpa, PAGE_BYTES};
use umpa_abi::violation::VIOLATION;

use super::{Attack, Attacker, PF, Way, perform};
use crate::workloads::{Failure, check, equal};

/// See the [module](self).
pub(super) const ATTACK: Attack =
    Attack { name: "violation-storm", tries: "touches what isn't its own and hears of it, without end", run };

/// Variants: each way to access memory, at a frame never granted and where no memory is.
fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    let way = Way::of(attacker.variant);
    let is_outside = attacker.variant >= Way::ALL.len() as u64;
    let gpa = if is_outside { Gpa::new(PAGE_BYTES) } else { attacker.never_granted().start() };
    let gva = attacker.open(gpa)?;
    attacker.target(gpa);
    loop {
        let raised = perform(way, gva, &mut [0; 2]).err();
        let Some(raised) = raised else { return Err(Failure::new("memory that isn't ours was reached")) };
        if way == Way::Execute && is_outside && raised.vector != PF {
            // KVM's own #UD: the VMM doesn't hear of it.
            return Ok(());
        }
        equal(raised.vector, PF, "the exception's vector")?;
        check(raised.error & u64::from(VIOLATION) != 0, "a page fault that is no violation")?;
        let at = if way == Way::Push { gva.get() } else { raised.address.get() & !(PAGE_BYTES - 1) };
        equal(at, gva.get(), "the page of the violation")?;
    }
}
