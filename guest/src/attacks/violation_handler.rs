//! A violation in the handler of violations: caught there it is one more, each time; not caught, it is reported
//! once and the guest ends.

use umpa_abi::addr::Gva;

use super::{Attack, Attacker, Way, perform};
use crate::fault::{self, Fault, Handled, Handler};
use crate::mmu;
use crate::workloads::Failure;

/// See the [module](self).
pub(super) const ATTACK: Attack =
    Attack { name: "violation-handler", tries: "violates again in its handler of violations", run };

struct Violates {
    /// How, if it is caught.
    way: Option<Way>,
    gva: Gva,
}

impl Handler for Violates {
    fn page_fault(&mut self, _: &Fault) -> Handled {
        match self.way {
            Some(way) => drop(perform(way, self.gva, &mut [0; 2])),
            None => _ = mmu::load(self.gva),
        }
        Handled::Retry
    }
}

/// Variants: how the handler does it; the last one doesn't catch it.
fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    let ways = [Way::Read, Way::Write, Way::Locked, Way::CopyTo];
    let target = attacker.never_granted();
    let gva = attacker.open(target.start())?;
    attacker.target(target.start());
    let way = ways.get(attacker.variant as usize).copied();
    let _ = fault::scope(&mut Violates { way, gva }, |_| mmu::load(gva));
    Err(Failure::new("memory that isn't ours was reached"))
}
