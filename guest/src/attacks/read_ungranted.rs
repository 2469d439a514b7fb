//! Reads a frame that was never granted: its own tables allow it.

use super::{Attack, Attacker, Way};
use crate::workloads::Failure;

/// See the [module](self).
pub(super) const ATTACK: Attack =
    Attack { name: "read-ungranted", tries: "reads a frame that was never granted", run };

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    attacker.reach(Way::Read, attacker.never_granted().start())
}
