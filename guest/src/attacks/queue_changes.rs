//! Rewrites a request after the kick that has shown it: what the device has checked is what it does. (It begins when
//! the kick returns; `race-queue` doesn't wait for that.)

use umpa_abi::addr::PageSize;
use umpa_abi::block::{READ, STATUS_OK, WRITE};

use super::queue::{DEVICE_WRITES, NEXT, Queue};
use super::{Attack, Attacker, MARK};
use crate::mmu;
use crate::workloads::{Failure, check};

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "queue-changes",
    tries: "changes descriptors, headers and data right after the kick, while the device works",
    run,
};

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    let first = attacker.get(2, PageSize::Size4K)?;
    let (own, other) = (first, first.offset(1));
    let foreign = attacker.never_granted().start().get();
    let mut queue = Queue::new(attacker)?;
    for slot in 0..4 {
        mmu::fill(own, MARK ^ slot);
        let head = queue.good(0, WRITE, slot, own);
        check(queue.status_of(0, head)? == STATUS_OK, "a good request failed")?;
    }
    mmu::fill(other, 0);
    for turn in 0..attacker.some(60) {
        let slot = turn % 4;
        mmu::fill(own, 0);
        let head = queue.good(0, READ, slot, own);
        queue.offer(head);
        queue.show(queue.offered);
        // Now everything is another.
        let gpa = if turn % 2 == 0 { foreign } else { other.start().get() };
        queue.describe(head + 1, (gpa, u32::MAX, NEXT | DEVICE_WRITES, head));
        queue.describe(head + 2, (foreign, 1, DEVICE_WRITES, 0));
        queue.put(Queue::header_at(0) + 8, u64::MAX);
        queue.settle()?;
        check(queue.get::<u8>(Queue::status_at(0)) == STATUS_OK, "a request that was good failed")?;
        check(mmu::find_other(own, MARK ^ slot).is_none(), "the data isn't where it was asked for")?;
        check(mmu::find_other(other, 0).is_none(), "data came where it wasn't asked for")?;
        check(!queue.is_broken(), "the queue broke")?;
    }
    Ok(())
}
