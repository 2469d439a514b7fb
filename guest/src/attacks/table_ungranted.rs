//! Lets an entry of each level point to a table in a frame that was never granted.

use umpa::hardware::Tlb;

use super::{Attack, Attacker, Way};
use crate::workloads::Failure;

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "table-ungranted",
    tries: "walks page tables in a frame that was never granted, at each level",
    run,
};

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    let (gva, table) = (attacker.place(2), attacker.never_granted().start());
    let level = 2 + attacker.variant as u32 % 3;
    attacker.set(gva, level, table.get() | attacker.table_bits())?;
    attacker.machine.flush_all();
    attacker.target(table);
    attacker.touch(Way::Read, gva)
}
