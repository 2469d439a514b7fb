//! Every second frame of a GiB given back, so that no two neighbours are alike: what the host keeps for a frame
//! must not run out before its frames do, and no call may take long.

use core::cell::UnsafeCell;

use umpa::hardware::FrameSource;
use umpa_abi::addr::{Frame, PageSize};
use umpa_abi::exchange::{EXTENTS_MAX, Extent, Policy, Shortfall};
use umpa_abi::layout::direct;

use super::{Attack, Attacker, MARK, Way};
use crate::mmu;
use crate::workloads::{Failure, check};

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "fragments",
    tries: "gives back every second frame of all the memory that it can get",
    run,
};

struct Place(UnsafeCell<[Extent; EXTENTS_MAX]>);

// SAFETY: one processor attacks.
unsafe impl Sync for Place {}

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    static LIST: Place = Place(UnsafeCell::new([Extent { first: 0, count: 1, size: 0 }; EXTENTS_MAX]));
    // SAFETY: this function runs once: the only reference.
    let list = unsafe { &mut *LIST.0.get() };
    let frames = attacker.some(attacker.boot.frames_max) & !1;
    let first = attacker.get(frames, PageSize::Size4K)?;
    let word = |index: u64| direct(first.offset(index).start());
    mmu::store(word(0), MARK);
    mmu::store(word(frames - 2), MARK);
    let (mut given, mut refused) = (0, false);
    while given < frames / 2 && !refused {
        let count = (frames / 2 - given).min(EXTENTS_MAX as u64) as usize;
        for (place, odd) in list[..count].iter_mut().zip(given..) {
            *place = Extent::new(first.offset(2 * odd + 1), 1, PageSize::Size4K);
        }
        let list = &list[..count];
        let exchanged = attacker.machine.hypervisor.exchange(list, [0; 3], Policy::AllOrNothing, &mut |_| {});
        attacker.tried(1);
        match exchanged.shortfall {
            Shortfall::None => given += count as u64,
            // Where each frame of its own takes one of the host's mappings, those have an end; nothing has
            // happened then.
            Shortfall::HostMemory if exchanged.taken_frames == 0 => refused = true,
            _ => return Err(Failure::new("frames that were ours weren't taken back")),
        }
    }
    check(given > 0, "no frame was taken back")?;
    check(
        mmu::load(word(0)) == MARK && mmu::load(word(frames - 2)) == MARK,
        "a frame that was kept has changed",
    )?;
    let mut last: Option<Frame> = None;
    let source = &mut attacker.machine.hypervisor;
    let exchanged =
        source.exchange(&[], [1, 0, 0], Policy::AllOrNothing, &mut |extent| last = Some(extent.first()));
    check(exchanged.shortfall == Shortfall::None, "a frame that was given back can't be had again")?;
    check(last.is_some_and(|frame| mmu::find_other(frame, 0).is_none()), "a frame isn't zero")?;
    let gone = first.offset(2 * (given - 1) + 1);
    attacker.target(gone.start());
    attacker.touch(Way::Read, direct(gone.start()))
}
