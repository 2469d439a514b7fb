//! Adds, locked, to a frame that was never granted: its own tables allow it.

use super::{Attack, Attacker, Way};
use crate::workloads::Failure;

/// See the [module](self).
pub(super) const ATTACK: Attack =
    Attack { name: "locked-ungranted", tries: "adds, locked, to a frame that was never granted", run };

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    attacker.reach(Way::Locked, attacker.never_granted().start())
}
