//! Maps the frame at 2^variant and touches it. Below the slots, between them, far behind, and where a
//! processor has no address lines: reserved bits.

use umpa_abi::addr::Gpa;
use umpa_abi::layout::SYSTEM_GPA;

use super::{Attack, Attacker, Way};
use crate::workloads::Failure;

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "every-power-of-two",
    tries: "maps the frame at each power of two and touches it, up to 2^51",
    run,
};

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    let gpa = Gpa::new(1 << (attacker.variant / 3 % 52).max(12));
    let system_end = attacker.boot.tables_first().offset(attacker.boot.tables_frames).start();
    if (SYSTEM_GPA..system_end).contains(&gpa) {
        println!("{gpa} is its own");
        return Ok(());
    }
    attacker.reach([Way::Read, Way::Write, Way::Execute][attacker.variant as usize % 3], gpa)
}
