//! More requests than a 16-bit index counts: none is lost, none done twice.

use umpa_abi::addr::PageSize;
use umpa_abi::block::{READ, STATUS_OK};

use super::queue::Queue;
use super::{Attack, Attacker};
use crate::workloads::{Failure, check};

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "queue-wraps",
    tries: "lets the block queue's indexes wrap around at 2^16, with every request counted",
    run,
};

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    const BATCH: u16 = 256;
    let frame = attacker.get(1, PageSize::Size4K)?;
    let slots = attacker.boot.block_slots;
    let mut queue = Queue::new(attacker)?;
    let batches = attacker.some(280);
    for batch in 0..batches {
        for number in 0..BATCH {
            let head = queue.good(number, READ, (batch + u64::from(number)) % slots, frame);
            queue.offer(head);
        }
        queue.show(queue.offered);
        queue.settle()?;
        let done = (0..BATCH).all(|number| queue.get::<u8>(Queue::status_at(number)) == STATUS_OK);
        check(done && !queue.is_broken(), "a good request failed")?;
        attacker.tried(BATCH.into());
    }
    check(queue.offered == (batches * u64::from(BATCH)) as u16, "the index is another")
}
