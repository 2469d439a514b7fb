//! Touches the first frame behind a grant of one frame, of many, of a large page; and the last before one: a
//! grant that is one frame too large is found here.

use umpa_abi::addr::PageSize;

use super::{Attack, Attacker, Way};
use crate::workloads::Failure;

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "neighbours",
    tries: "touches the frames right before and behind what it was granted, of each size",
    run,
};

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    let variant = attacker.variant;
    let (pages, size) =
        [(1, PageSize::Size4K), (5, PageSize::Size4K), (1, PageSize::Size2M)][(variant / 2) as usize % 3];
    let first = attacker.get(pages, size)?;
    // A grant of large pages that begins where the frames begin has another neighbour than memory.
    let neighbour = if variant.is_multiple_of(2) {
        first.offset(pages * size.frames())
    } else {
        first.offset(pages * size.frames() + 1)
    };
    let way = if variant.is_multiple_of(2) { Way::Read } else { Way::Write };
    attacker.reach(way, neighbour.start())
}
