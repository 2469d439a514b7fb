//! A 2 MiB leaf over a range of which one frame is granted: that one is reached, no other.

use umpa_abi::addr::{Frame, Gva, PAGE_BYTES, PageSize};

use super::{Attack, Attacker, MARK, Way};
use crate::workloads::{Failure, check};

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "large-leaf-partly",
    tries: "maps 2 MiB of which it has one frame, and touches the others",
    run,
};

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    let own = attacker.get(1, PageSize::Size4K)?;
    let first = Frame::new(own.get() & !511);
    let gva = attacker.place(2);
    attacker.map(gva, first.start(), PageSize::Size2M)?;
    let view = |frame: Frame| Gva::new(gva.get() + (frame.get() - first.get()) * PAGE_BYTES);
    check(attacker.store(view(own), MARK).is_ok(), "the granted frame isn't reached")?;
    let other = Frame::new(first.get() + [1, 256, 511][attacker.variant as usize % 3]);
    attacker.target(other.start());
    attacker.touch([Way::Read, Way::Write, Way::Push][attacker.variant as usize % 3], view(other))
}
