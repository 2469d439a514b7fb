//! Lets entries of each level point to tables where there is no memory, or where a PC has devices.

use umpa::hardware::Tlb;
use umpa_abi::addr::Gpa;

use super::{Attack, Attacker, Way};
use crate::workloads::Failure;

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "table-in-hole",
    tries: "points tables at addresses without memory: holes, the APIC, behind the slots",
    run,
};

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    let behind = attacker.boot.frames_first().offset(attacker.boot.frames_max).start();
    let holes = [Gpa::new(0x1000), Gpa::new(0xfee0_0000), Gpa::new(1 << 38), behind];
    let hole = holes[attacker.variant as usize / 3 % holes.len()];
    let gva = attacker.place(2);
    attacker.set(gva, 2 + attacker.variant as u32 % 3, hole.get() | attacker.table_bits())?;
    attacker.machine.flush_all();
    attacker.target(hole);
    attacker.touch(Way::Write, gva)
}
