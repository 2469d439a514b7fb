//! Takes the trap stack's mapping away, then faults: the exception can't be delivered, nor can the double
//! fault.

use umpa::hardware::Tlb;
use umpa_abi::addr::{Gva, PAGE_BYTES};

use super::{Attack, Attacker};
use crate::trap;
use crate::workloads::Failure;

/// See the [module](self).
pub(super) const ATTACK: Attack =
    Attack { name: "triple-fault", tries: "takes its own trap stack away and faults", run };

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    let page = Gva::new(trap::stack_top().get() - PAGE_BYTES).containing();
    attacker.set(page.start(), 1, 0)?;
    // At CPL 3 the gate returns through that stack: its flush may be the fault already.
    attacker.machine.flush_page(page);
    let _ = attacker.load(Gva::new(PAGE_BYTES));
    Err(Failure::new("still running without a trap stack"))
}
