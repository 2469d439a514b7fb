//! Gets and returns frames of the pool while the victim does the same with frames full of its words: none of them
//! may be left in what comes.

use umpa_abi::addr::PageSize;

use super::{Attack, Attacker, MARK};
use crate::mmu;
use crate::workloads::{Failure, check};

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "pool-leftovers",
    tries: "looks into frames of the shared pool for what the other guest has left in them",
    run,
};

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    const FRAMES: u32 = 16;
    for _ in 0..attacker.some(40) {
        let first = attacker.get(FRAMES.into(), PageSize::Size4K)?;
        for frame in (0..FRAMES.into()).map(|index| first.offset(index)) {
            check(mmu::find_other(frame, 0).is_none(), "another guest's words came with a frame")?;
            mmu::store(umpa_abi::layout::direct(frame.start()), MARK);
        }
        attacker.give(first, FRAMES)?;
    }
    Ok(())
}
