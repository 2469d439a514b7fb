//! Writes to a frame that was never granted: its own tables allow it.

use super::{Attack, Attacker, Way};
use crate::workloads::Failure;

/// See the [module](self).
pub(super) const ATTACK: Attack =
    Attack { name: "write-ungranted", tries: "writes to a frame that was never granted", run };

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    attacker.reach(Way::Write, attacker.never_granted().start())
}
