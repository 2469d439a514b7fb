//! Another processor rewrites descriptors, headers and rings of the block queue while the device takes requests
//! from it and works. Variants: where data is, how much and of what kind it is, what is asked for, which heads.

use umpa_abi::addr::PageSize;
use umpa_abi::block::{AVAIL_AT, DESCRIPTORS_AT, READ, WAIT};

use super::beside::{Beside, rewrites};
use super::queue::{DEVICE_WRITES, NEXT, Queue};
use super::{Attack, Attacker, MARK};
use crate::mmu;
use crate::workloads::{Failure, check};

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "race-queue",
    tries: "rewrites the block queue on one processor while another's requests are taken from it",
    run,
};

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    let first = attacker.get(3, PageSize::Size4K)?;
    let (own, other, bystander) = (first, first.offset(1), first.offset(2));
    mmu::fill(bystander, MARK);
    let foreign = attacker.never_granted().start().get();
    let mut queue = Queue::new(attacker)?;
    let at = attacker.boot.block_queue;
    let field = |bytes: u64, flags: u16, next: u16| bytes | u64::from(flags) << 32 | u64::from(next) << 48;
    let good = field(4096, NEXT | DEVICE_WRITES, 2);
    let words = match attacker.variant {
        0 => [at + DESCRIPTORS_AT + 16, own.start().get(), foreign, other.start().get(), queue.gpa(0)],
        1 => {
            [at + DESCRIPTORS_AT + 24, good, field(1 << 31, NEXT | DEVICE_WRITES, 1), field(4096, NEXT, 0), 0]
        }
        2 => [at + Queue::header_at(0) + 8, 0, 8, u64::MAX, 7],
        // Index and the first heads of the ring.
        _ => [at + AVAIL_AT, 1 << 16, 0x0003_0000_0002_0000, u64::MAX, 0x0001_0001_0001_0000],
    };
    let beside = Beside::start(attacker, rewrites, &words)?;
    for turn in 0..attacker.some(200) {
        let head = queue.good(0, READ, turn % 4, own);
        queue.offer(head);
        queue.show(queue.offered);
        queue.kick(WAIT | u32::from(queue.used()));
        attacker.tried(1);
        if queue.is_broken() {
            break;
        }
    }
    beside.end();
    // What is in flight comes to its end.
    for _ in 0..8 {
        queue.kick(WAIT | u32::from(queue.used()));
    }
    check(mmu::find_other(bystander, MARK).is_none(), "data came where it was never asked for")
}
