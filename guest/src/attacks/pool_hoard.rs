//! Takes all of the pool and asks on, while the victim gives its frames back and gets them again: what the victim
//! can always have isn't to be had, not for a moment.

use umpa::hardware::FrameSource;
use umpa_abi::addr::PageSize;
use umpa_abi::exchange::{Extent, Policy, Shortfall};

use super::pool::use_up;
use super::{Attack, Attacker};
use crate::workloads::{Failure, check, equal};

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "pool-hoard",
    tries: "uses the shared pool up, and waits for frames that the other guest returns for a moment",
    run,
};

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    let (last, _) = use_up(attacker)?;
    for _ in 0..attacker.some(300) {
        let source = &mut attacker.machine.hypervisor;
        let came = source.exchange(&[], [1, 0, 0], Policy::Partial, &mut |_| {});
        check(came.shortfall == Shortfall::Pool, "the pool had one more")?;
        equal(came.granted_pages.iter().sum(), 0, "frames of the other guest")?;
        attacker.refused(&[], [1, 0, 0])?;
    }
    // What it gives it can have again, and no more.
    let back = [Extent::new(last, 1, PageSize::Size4K)];
    let source = &mut attacker.machine.hypervisor;
    let came = source.exchange(&back, [3, 0, 0], Policy::Partial, &mut |_| {});
    equal(came.granted_pages.iter().sum(), 1, "frames for one that was given back")
}
