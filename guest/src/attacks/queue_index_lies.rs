//! The available index jumps by more than the queue holds, or goes back: the queue is broken, and nothing is taken.

use umpa_abi::addr::PageSize;
use umpa_abi::block::{QUEUE_SIZE, READ, STATUS_OK, WAIT};

use super::queue::Queue;
use super::{Attack, Attacker};
use crate::workloads::{Failure, check};

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "queue-index-lies",
    tries: "shows more heads in the block queue than it has, and indexes that go back",
    run,
};

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    let frame = attacker.get(1, PageSize::Size4K)?;
    let mut queue = Queue::new(attacker)?;
    let head = queue.good(0, READ, 0, frame);
    check(queue.status_of(0, head)? == STATUS_OK, "a good request failed")?;
    let index = [1 + QUEUE_SIZE + 1, 0, 0x8000, u16::MAX][attacker.variant as usize % 4];
    queue.show(index);
    for _ in 0..20 {
        queue.kick(WAIT | u32::from(queue.used()));
    }
    check(queue.is_broken(), "a queue that makes no sense is worked with")?;
    queue.show(2);
    check(queue.used() == 1, "a broken queue is worked with")
}
