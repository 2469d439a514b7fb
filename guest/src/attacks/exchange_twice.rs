//! Gives a frame back twice: in one list, by overlapping extents, in two calls. Once is all.

use umpa::hardware::FrameSource;
use umpa_abi::addr::PageSize;
use umpa_abi::exchange::{Extent, Policy, Shortfall};

use super::{Attack, Attacker};
use crate::workloads::{Failure, check, equal};

/// See the [module](self).
pub(super) const ATTACK: Attack =
    Attack { name: "exchange-twice", tries: "gives the same frame back twice, in one list and in two", run };

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    let first = attacker.get(512, PageSize::Size4K)?;
    let one = |offset: u64, count| Extent::new(first.offset(offset), count, PageSize::Size4K);
    for lists in [
        [one(0, 1), one(0, 1)],
        [one(0, 8), one(7, 8)],
        [one(7, 8), one(0, 8)],
        [one(0, 512), one(100, 1)],
        [one(0, 100), one(99, 413)],
        [Extent::new(first, 1, PageSize::Size2M), one(511, 1)],
    ] {
        let refused = attacker.machine.hypervisor.exchange(&lists, [0; 3], Policy::Partial, &mut |_| {});
        check(refused.shortfall == Shortfall::NotYours, "a frame was taken twice")?;
        attacker.tried(1);
        equal(refused.taken_frames, 0, "frames taken by a refused call")?;
    }
    attacker.give(first, 512)?;
    let again = [one(0, 512)];
    let refused = attacker.machine.hypervisor.exchange(&again, [0; 3], Policy::Partial, &mut |_| {});
    check(refused.shortfall == Shortfall::NotYours, "a frame was taken in two calls")
}
