//! An endless sequence of hypercalls: the watchdog must come in between.

use umpa_abi::exchange::Policy;

use super::{Attack, Attacker};
use crate::workloads::{Failure, check};

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "exit-storm",
    tries: "leaves the guest without end: by hypercalls, as fast as it can",
    run,
};

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    loop {
        let nothing = attacker.machine.hypervisor.try_exchange(&[], [0; 3], Policy::Partial, &mut |_| {});
        check(nothing.is_ok(), "an empty exchange is refused")?;
    }
}
