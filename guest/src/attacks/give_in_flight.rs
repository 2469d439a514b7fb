//! Gives back a frame right after the kick that lets the device fill it. Either it isn't taken, or the device is
//! done with it; nothing comes into it later, whoever has it then.

use umpa::hardware::FrameSource;
use umpa_abi::addr::PageSize;
use umpa_abi::block::{READ, STATUS_OK, WAIT, WRITE};
use umpa_abi::exchange::{Extent, Policy, Shortfall};

use super::queue::Queue;
use super::{Attack, Attacker, MARK};
use crate::mmu;
use crate::workloads::{Failure, check};

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "give-in-flight",
    tries: "gives back frames that the device is about to fill, and gets them again",
    run,
};

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    const FRAMES: u16 = 8;
    let own = attacker.get(1, PageSize::Size4K)?;
    mmu::fill(own, MARK);
    let mut queue = Queue::new(attacker)?;
    for slot in 0..u64::from(FRAMES) {
        let head = queue.good(0, WRITE, slot, own);
        check(queue.status_of(0, head)? == STATUS_OK, "a good request failed")?;
    }
    for _ in 0..attacker.some(40) {
        let first = attacker.get(FRAMES.into(), PageSize::Size4K)?;
        for number in 0..FRAMES {
            let head = queue.good(number, READ, number.into(), first.offset(number.into()));
            queue.offer(head);
        }
        queue.show(queue.offered);
        for frame in (0..FRAMES.into()).map(|index| first.offset(index)) {
            let back = [Extent::new(frame, 1, PageSize::Size4K)];
            let mut again = frame;
            loop {
                let taken = attacker.machine.hypervisor.exchange(
                    &back,
                    [1, 0, 0],
                    Policy::AllOrNothing,
                    &mut |extent| again = extent.first(),
                );
                match taken.shortfall {
                    Shortfall::None => break,
                    // The device has it.
                    Shortfall::NotYours => queue.kick(WAIT | u32::from(queue.used())),
                    _ => return Err(Failure::new("an exchange of one frame for one")),
                }
            }
            check(again == frame, "another frame than the one given back")?;
            check(mmu::find_other(frame, 0).is_none(), "data has come with the frame, or after it")?;
        }
        queue.settle()?;
        for frame in (0..FRAMES.into()).map(|index| first.offset(index)) {
            check(mmu::find_other(frame, 0).is_none(), "the device has written to a frame that it has lost")?;
        }
        attacker.give(first, FRAMES.into())?;
    }
    Ok(())
}
