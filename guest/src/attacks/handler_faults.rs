//! A page fault in the handler of page faults: reported once, and the guest ends.

use umpa_abi::addr::Gva;

use super::{Attack, Attacker};
use crate::fault::{self, Fault, Handled, Handler};
use crate::mmu;
use crate::workloads::{Failure, equal};

/// See the [module](self).
pub(super) const ATTACK: Attack =
    Attack { name: "handler-faults", tries: "faults in its own handler of page faults", run };

struct Faulty;

impl Handler for Faulty {
    fn page_fault(&mut self, _: &Fault) -> Handled {
        let _ = mmu::load(Gva::new(0x2000));
        Handled::Retry
    }
}

fn run(_: &mut Attacker<'_>) -> Result<(), Failure> {
    let found = fault::scope(&mut Faulty, |_| mmu::load(Gva::new(0x1000)));
    equal(found, 0, "there is something at 0x1000")?;
    Err(Failure::new("there is something at 0x1000"))
}
