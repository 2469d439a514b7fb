//! Takes all frames, in part and as a whole, and asks on: its maximum is its maximum.

use umpa::hardware::FrameSource;
use umpa_abi::exchange::{Policy, Shortfall};

use super::{Attack, Attacker, MARK};
use crate::mmu;
use crate::workloads::{Failure, check};

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "hoard",
    tries: "takes every frame that it can get, again and again, and asks for more",
    run,
};

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    let mut frames = 0;
    for size in [2, 1, 0] {
        for _ in 0..3 {
            let mut want_pages = [0; 3];
            want_pages[size] = u64::MAX;
            let some =
                attacker.machine.hypervisor.exchange(&[], want_pages, Policy::Partial, &mut |extent| {
                    frames += extent.frames();
                    mmu::fill(extent.first(), MARK);
                });
            check(some.shortfall != Shortfall::None, "there is no end to frames")?;
            check(frames <= attacker.boot.frames_max, "more frames than there are")?;
        }
    }
    check(frames == attacker.boot.frames_max, "not all frames were granted")?;
    for _ in 0..attacker.some(100) {
        attacker.refused(&[], [1, 0, 0])?;
    }
    Ok(())
}
