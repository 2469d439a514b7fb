//! Gives back what isn't its own: other frames, parts of slots, extents that make no sense.

use umpa_abi::addr::PageSize;
use umpa_abi::exchange::Extent;
use umpa_abi::layout::SYSTEM_GPA;

use super::{Attack, Attacker};
use crate::workloads::Failure;

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "exchange-foreign",
    tries: "gives back frames that it hasn't got, of sizes that there aren't, empty and misaligned",
    run,
};

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    let first = attacker.boot.frames_first;
    let own = attacker.get(4, PageSize::Size4K)?;
    let end = first + attacker.boot.frames_max;
    let extent = |first, count, size| Extent { first, count, size };
    for one in [
        extent(0, 1, 0),
        extent(0, u32::MAX, 0),
        extent(SYSTEM_GPA.containing().get(), 1, 0),
        extent(attacker.boot.call_area, 1, 0),
        extent(first - 1, 2, 0),
        extent(own.get(), 5, 0),
        extent(own.get() + 4, 1, 0),
        extent(end - 1, 1, 0),
        extent(end, 1, 0),
        extent(end - 1, 2, 0),
        extent(own.get(), 0, 0),
        extent(own.get(), 1, 1),
        extent(own.get(), 1, 2),
        extent(own.get() + 1, 1, 1),
        extent(own.get(), 1, 3),
        extent(own.get(), 1, u32::MAX),
        extent(own.get(), u32::MAX, 2),
        extent(1 << 39, u32::MAX, 2),
        extent(u64::MAX, 1, 0),
        extent(u64::MAX - 3, 4, 0),
        extent(1 << 63, 1, 0),
    ] {
        attacker.refused(&[one], [0; 3])?;
        // With good ones around it.
        let good = extent(own.get(), 1, 0);
        attacker.refused(&[good, one, extent(own.get() + 2, 1, 0)], [1, 0, 0])?;
    }
    attacker.give(own, 4)
}
