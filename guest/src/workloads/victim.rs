//! `victim [frames]`: a guest that has nothing to do with any other. It fills its frames, reads them back
//! and pauses with the checksum of what it has read; its driver knows what that must be
//! ([`umpa_abi::victim`]). Answered with 0 it ends.

use umpa::hardware::FrameSource;
use umpa_abi::addr::{Frame, Gpa, PAGE_BYTES};
use umpa_abi::exchange::{Policy, Shortfall};
use umpa_abi::layout::direct;
use umpa_abi::victim::{fold, word};

use super::{Context, Failure, check};
use crate::{call, mmu};

/// See the [module](self).
pub(super) fn run(context: &mut Context<'_>) -> Result<(), Failure> {
    let frames = context.number(1, 64)?;
    let mut first = Frame::new(0);
    let mut extents = 0;
    let exchanged =
        context.machine.hypervisor.exchange(&[], [frames, 0, 0], Policy::AllOrNothing, &mut |extent| {
            (first, extents) = (extent.first(), extents + 1)
        });
    check(exchanged.shortfall == Shortfall::None && extents == 1, "no frames in a row")?;
    let at = |index: u64| direct(Gpa::new(first.start().get() + 8 * index));
    let words = frames * PAGE_BYTES / 8;
    for round in 0.. {
        (0..words).for_each(|index| mmu::store(at(index), word(round, index)));
        let sum = (0..words).fold(0, |sum, index| fold(sum, mmu::load(at(index))));
        if call::pause(sum) == 0 {
            break;
        }
    }
    Ok(())
}
