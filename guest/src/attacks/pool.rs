//! What attacks on the pool that the victim shares have in common.

use umpa::hardware::FrameSource;
use umpa_abi::addr::Frame;
use umpa_abi::exchange::{Policy, Shortfall};

use super::Attacker;
use crate::workloads::{Failure, check};

/// Takes all that the pool has for this guest, large pages first; the last frame that came, and how many. The
/// victim's frames may come and go meanwhile, but not this guest's.
pub(super) fn use_up(attacker: &mut Attacker<'_>) -> Result<(Frame, u64), Failure> {
    let (mut last, mut frames) = (None, 0);
    for size in [2, 1, 0] {
        let mut want_pages = [0; 3];
        want_pages[size] = u64::MAX;
        let came = attacker.machine.hypervisor.exchange(&[], want_pages, Policy::Partial, &mut |extent| {
            last = Some(extent.first().offset(extent.frames() - 1));
            frames += extent.frames();
        });
        check(came.shortfall != Shortfall::None, "there is no end to frames")?;
    }
    let last = last.ok_or(Failure::new("the pool has nothing"))?;
    check(frames < attacker.boot.frames_max, "the pool has as much as this guest could ever have")?;
    Ok((last, frames))
}
