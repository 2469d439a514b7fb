//! A 1 GiB leaf over one granted frame, others of the guest's, and what lies behind all of them. Where the processor has no such leaves it is a page fault.

use umpa_abi::addr::{Gpa, Gva, PAGE_BYTES, PageSize};
use umpa_abi::layout::FRAMES_GPA;

use super::{Attack, Attacker, Way};
use crate::workloads::Failure;

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "giant-leaf-partly",
    tries: "maps 1 GiB of which it has one frame, and touches the others",
    run,
};

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    attacker.get(1, PageSize::Size4K)?;
    let gva = attacker.place(2);
    attacker.map(gva, FRAMES_GPA, PageSize::Size1G)?;
    let offset = [5 * PAGE_BYTES, PageSize::Size1G.bytes() - PAGE_BYTES][attacker.variant as usize % 2];
    attacker.target(Gpa::new(FRAMES_GPA.get() + offset));
    attacker.touch(Way::Read, Gva::new(gva.get() + offset))
}
