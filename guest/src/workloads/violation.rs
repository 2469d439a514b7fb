//! `violation [ungranted|revoked]`: touches a frame that isn't the guest's, through the direct map. The
//! guest's own tables allow it; the second translation doesn't.

use umpa::hardware::FrameSource;
use umpa_abi::addr::PageSize;
use umpa_abi::exchange::{Extent, Policy};
use umpa_abi::layout::direct;

use super::{Context, Failure, equal};
use crate::mmu;

/// See the [module](self).
pub(super) fn run(context: &mut Context<'_>) -> Result<(), Failure> {
    let mut frame = context.boot.frames_first().offset(context.boot.frames_max / 2);
    match context.arg(1).unwrap_or("ungranted") {
        "ungranted" => {}
        "revoked" => {
            let source = &mut context.machine.hypervisor;
            source.exchange(&[], [1, 0, 0], Policy::AllOrNothing, &mut |extent| frame = extent.first());
            mmu::fill(frame, 7);
            equal(mmu::load(direct(frame.start())), 7, "the first word of a granted frame")?;
            let back = [Extent::new(frame, 1, PageSize::Size4K)];
            let exchanged = source.exchange(&back, [0; 3], Policy::AllOrNothing, &mut |_| {});
            equal(exchanged.taken_frames, 1, "frames taken back")?;
        }
        _ => return Err(Failure::new("the argument is neither ungranted nor revoked")),
    }
    println!("touching frame {frame}, address {}", frame.start());
    let found = mmu::load(direct(frame.start()));
    equal(found, 0, "a frame that isn't ours has been read")?;
    Err(Failure::new("a frame that isn't ours has been read"))
}
