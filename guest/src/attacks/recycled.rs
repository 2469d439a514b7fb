//! Fills frames, gives them back and gets them again, by two calls and by one: all of them must be zero, or
//! what the last owner had there is known.

use umpa::hardware::FrameSource;
use umpa_abi::addr::PageSize;
use umpa_abi::exchange::{Extent, Policy};

use super::{Attack, Attacker, MARK};
use crate::mmu;
use crate::workloads::{Failure, check, equal};

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "recycled",
    tries: "gets frames that it, or the same call, has given back, and looks for what was in them",
    run,
};

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    const FRAMES: u32 = 24;
    for turn in 0..4 {
        let first = attacker.get(FRAMES.into(), PageSize::Size4K)?;
        for frame in (0..FRAMES.into()).map(|i| first.offset(i)) {
            check(mmu::find_other(frame, 0).is_none(), "a granted frame isn't zero")?;
            mmu::fill(frame, MARK);
        }
        if turn % 2 == 0 {
            // Given and asked for by one call.
            let back = [Extent::new(first, FRAMES, PageSize::Size4K)];
            let mut again = first;
            attacker.machine.hypervisor.exchange(
                &back,
                [FRAMES.into(), 0, 0],
                Policy::AllOrNothing,
                &mut |extent| again = extent.first(),
            );
            equal(again.get(), first.get(), "the frame that comes right back")?;
            for frame in (0..FRAMES.into()).map(|i| first.offset(i)) {
                check(mmu::find_other(frame, 0).is_none(), "a frame that came right back isn't zero")?;
            }
            mmu::fill(first, MARK);
        }
        attacker.give(first, FRAMES)?;
    }
    Ok(())
}
