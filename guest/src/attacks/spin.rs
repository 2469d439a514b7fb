//! An endless loop: only the watchdog ends it.

use super::{Attack, Attacker};
use crate::workloads::Failure;

/// See the [module](self).
pub(super) const ATTACK: Attack =
    Attack { name: "spin", tries: "never ends, so that somebody has to end it", run };

fn run(_: &mut Attacker<'_>) -> Result<(), Failure> {
    loop {
        core::hint::spin_loop();
    }
}
