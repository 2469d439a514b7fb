//! A request of 1,024 descriptors: looked at as far as a request goes, and no further.

use umpa_abi::addr::PageSize;
use umpa_abi::block::QUEUE_SIZE;

use super::queue::{DEVICE_WRITES, NEXT, Queue};
use super::{Attack, Attacker};
use crate::workloads::{Failure, check};

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "queue-long-chain",
    tries: "chains all descriptors of the block queue into one request, again and again",
    run,
};

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    let frame = attacker.get(1, PageSize::Size4K)?.start().get();
    let mut queue = Queue::new(attacker)?;
    for number in 0..QUEUE_SIZE {
        queue.describe(number, (frame, 4096, NEXT | DEVICE_WRITES, (number + 1) % QUEUE_SIZE));
    }
    for turn in 0..attacker.some(50) as u16 {
        queue.offer(turn % QUEUE_SIZE);
        queue.show(queue.offered);
        queue.settle()?;
        if queue.is_broken() {
            return Ok(());
        }
    }
    check(queue.used() == 0, "a chain without an end was a request")
}
