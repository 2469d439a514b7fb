//! An endless sequence of page faults, each delivered, none to the VMM.

use umpa_abi::addr::Gva;

use super::{Attack, Attacker, PF, raised};
use crate::workloads::Failure;

/// See the [module](self).
pub(super) const ATTACK: Attack =
    Attack { name: "fault-storm", tries: "raises page faults without end", run };

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    loop {
        raised(attacker.load(Gva::new(0x1000)), &[PF], "there is something at 0x1000")?;
    }
}
