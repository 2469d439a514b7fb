//! Slots that the page file hasn't got: neither is it read there, nor does it grow.

use umpa_abi::addr::PageSize;
use umpa_abi::block::{READ, SECTORS_PER_SLOT, STATUS_OK, STATUS_REFUSED, WRITE};

use super::queue::{DEVICE_WRITES, NEXT, Queue};
use super::{Attack, Attacker, MARK};
use crate::mmu;
use crate::workloads::{Failure, check};

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "page-file-beyond",
    tries: "reads and writes its page file beyond the end, before the start, and in between sectors",
    run,
};

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    let frame = attacker.get(1, PageSize::Size4K)?;
    mmu::fill(frame, MARK);
    let slots = attacker.boot.block_slots;
    let mut queue = Queue::new(attacker)?;
    let end = slots * SECTORS_PER_SLOT;
    for sector in
        [end, end + 8, end - 1, end - 7, 1, 7, 1 << 52, 1 << 55, 1 << 61, 1 << 63, u64::MAX - 7, u64::MAX]
    {
        for (kind, flags) in [(READ, NEXT | DEVICE_WRITES), (WRITE, NEXT)] {
            let head = queue.transfer(0, kind, sector, (frame.start().get(), 4096, flags, 0));
            check(queue.status_of(0, head)? == STATUS_REFUSED, "a slot beyond the end was worked with")?;
            attacker.tried(1);
        }
    }
    check(mmu::find_other(frame, MARK).is_none(), "something was read")?;
    let head = queue.good(0, READ, slots - 1, frame);
    check(queue.status_of(0, head)? == STATUS_OK, "the last slot can't be read")?;
    check(mmu::find_other(frame, 0).is_none(), "the last slot isn't empty")
}
