//! Accesses a word whose first bytes lie in a granted frame and whose last ones don't.

use umpa_abi::addr::{Gpa, PageSize};
use umpa_abi::layout::direct;

use super::{Attack, Attacker, Way};
use crate::workloads::Failure;

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "crossing-ungranted",
    tries: "reads and writes, unaligned, across the border to a frame never granted",
    run,
};

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    let own = attacker.get(1, PageSize::Size4K)?;
    let border = own.offset(1).start();
    attacker.target(border);
    let way = if attacker.variant == 0 { Way::Read } else { Way::Write };
    attacker.touch(way, direct(Gpa::new(border.get() - 3)))
}
