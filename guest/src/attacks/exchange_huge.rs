//! Asks for numbers of pages that overflow one way or another. The partial ones get what there is, and give it back.

use umpa::hardware::FrameSource;
use umpa_abi::addr::{Frame, PageSize};
use umpa_abi::exchange::{Extent, Policy, Shortfall};

use super::{Attack, Attacker};
use crate::workloads::{Failure, check, equal};

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "exchange-huge",
    tries: "asks for 2^63 pages, for as many as wrap around, of each size, whole and in part",
    run,
};

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    let most = attacker.boot.frames_max;
    for pages in [1 << 63, u64::MAX, u64::MAX / 512 + 1, u64::MAX >> 18, 1 << 52, 1 << 40, most + 1] {
        for want_pages in [[pages, 0, 0], [0, pages, 0], [0, 0, pages], [pages; 3], [1, pages, u64::MAX]] {
            attacker.refused(&[], want_pages)?;
            let mut granted = [Extent::new(Frame::new(0), 1, PageSize::Size4K); 16];
            let mut places = granted.iter_mut();
            let mut count = 0;
            let some =
                attacker.machine.hypervisor.exchange(&[], want_pages, Policy::Partial, &mut |extent| {
                    places.next().into_iter().for_each(|place| *place = extent);
                    count += 1;
                });
            check(some.shortfall != Shortfall::None, "all of an absurd number was granted")?;
            let frames: u64 = granted.iter().take(count).map(Extent::frames).sum();
            check(count <= granted.len() && frames <= most, "more frames than there are")?;
            let back = &granted[..count];
            let taken = attacker.machine.hypervisor.exchange(back, [0; 3], Policy::AllOrNothing, &mut |_| {});
            equal(taken.taken_frames, frames, "frames taken back")?;
        }
    }
    Ok(())
}
