//! Lists as long as they can be: every second frame given back, so that nothing joins, and all asked for again.

use core::cell::UnsafeCell;

use umpa::hardware::FrameSource;
use umpa_abi::addr::PageSize;
use umpa_abi::exchange::{EXTENTS_MAX, Extent, Policy, Shortfall};
use umpa_abi::layout::direct;

use super::{Attack, Attacker, Way};
use crate::workloads::{Failure, check, equal};

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "exchange-full",
    tries: "gives back and takes as many extents as a list holds, every second frame",
    run,
};

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    let frames = 2 * attacker.some(EXTENTS_MAX as u64);
    let first = attacker.get(frames, PageSize::Size4K)?;
    let none = Extent::new(first, 1, PageSize::Size4K);
    // The list takes 64 KiB: more than the stack should.
    static LIST: Place = Place(UnsafeCell::new([Extent { first: 0, count: 1, size: 0 }; EXTENTS_MAX]));
    // SAFETY: one vCPU, and this function runs once: the only reference.
    let list = unsafe { &mut *LIST.0.get() };
    list.fill(none);
    let odd = (frames / 2) as usize;
    for (index, extent) in (0..).zip(&mut list[..odd]) {
        *extent = Extent::new(first.offset(2 * index + 1), 1, PageSize::Size4K);
    }
    for turn in 0..3 {
        let mut count = 0;
        let want = if turn == 2 { 0 } else { odd as u64 };
        let exchanged = attacker.machine.hypervisor.exchange(
            &list[..odd],
            [want, 0, 0],
            Policy::AllOrNothing,
            &mut |_| count += 1,
        );
        equal(exchanged.taken_frames, odd as u64, "frames taken")?;
        check(exchanged.shortfall == Shortfall::None, "a full list was refused")?;
        equal(exchanged.granted_pages[0], want, "frames granted")?;
    }
    attacker.target(first.offset(1).start());
    attacker.touch(Way::Read, direct(first.offset(1).start()))
}

struct Place(UnsafeCell<[Extent; EXTENTS_MAX]>);

// SAFETY: one vCPU runs an image.
unsafe impl Sync for Place {}
