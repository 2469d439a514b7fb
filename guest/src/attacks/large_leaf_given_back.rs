//! Gives back one 4 KiB frame of a 2 MiB page that is mapped by one leaf, and cached so: it goes, its neighbours stay.

use umpa_abi::addr::{Gva, PAGE_BYTES, PageSize};

use super::{Attack, Attacker, MARK, Way};
use crate::workloads::{Failure, check};

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "large-leaf-given-back",
    tries: "gives back one frame in the middle of a mapped 2 MiB page, and touches it",
    run,
};

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    let first = attacker.get(1, PageSize::Size2M)?;
    let gva = attacker.place(2);
    attacker.map(gva, first.start(), PageSize::Size2M)?;
    let view = |index: u64| Gva::new(gva.get() + index * PAGE_BYTES);
    for index in 0..512 {
        check(attacker.store(view(index), MARK ^ index).is_ok(), "the page isn't mapped")?;
    }
    let hole = [0, 77, 511][attacker.variant as usize % 3];
    attacker.target(first.offset(hole).start());
    attacker.give(first.offset(hole), 1)?;
    for index in (0..512).filter(|&index| index != hole) {
        check(attacker.load(view(index)) == Ok(MARK ^ index), "a neighbour has changed")?;
    }
    attacker.touch([Way::Read, Way::Write, Way::CopyFrom][attacker.variant as usize % 3], view(hole))
}
