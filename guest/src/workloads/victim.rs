//! `victim [frames]`: a guest that has nothing to do with any other. In each round it gets frames, fills them,
//! reads them back, returns them and pauses with the checksum of what it has read; its driver knows what that must be
//! ([`umpa_abi::victim`]). Answered with 0 it ends.

use umpa::hardware::FrameSource;
use umpa_abi::addr::{Frame, Gpa, PAGE_BYTES, PageSize};
use umpa_abi::exchange::{Extent, Policy, Shortfall};
use umpa_abi::layout::direct;
use umpa_abi::victim::{fold, word};

use super::{Context, Failure, check, equal};
use crate::{call, mmu};

/// See the [module](self).
pub(super) fn run(context: &mut Context<'_>) -> Result<(), Failure> {
    let frames = context.number(1, 64)?;
    let words = frames * PAGE_BYTES / 8;
    let source = &mut context.machine.hypervisor;
    for round in 0.. {
        let mut first = Frame::new(0);
        let mut extents = 0;
        let came = source.exchange(&[], [frames, 0, 0], Policy::AllOrNothing, &mut |extent| {
            (first, extents) = (extent.first(), extents + 1);
        });
        check(came.shortfall == Shortfall::None && extents == 1, "no frames in a row")?;
        let at = |index: u64| direct(Gpa::new(first.start().get() + 8 * index));
        (0..words).for_each(|index| mmu::store(at(index), word(round, index)));
        let sum = (0..words).fold(0, |sum, index| fold(sum, mmu::load(at(index))));
        let back = [Extent::new(first, frames as u32, PageSize::Size4K)];
        let gone = source.exchange(&back, [0; 3], Policy::AllOrNothing, &mut |_| {});
        equal(gone.taken_frames, frames, "frames taken back")?;
        if call::pause(sum) == 0 {
            break;
        }
    }
    Ok(())
}
