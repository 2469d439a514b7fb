//! Heads that are no descriptor, and one request that is offered twice at a time.

use umpa_abi::addr::PageSize;
use umpa_abi::block::{QUEUE_SIZE, STATUS_OK, WRITE};

use super::queue::Queue;
use super::{Attack, Attacker};
use crate::workloads::{Failure, check};

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "queue-heads",
    tries: "offers heads out of range, the same head twice, and more than there are",
    run,
};

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    let frame = attacker.get(1, PageSize::Size4K)?;
    let mut queue = Queue::new(attacker)?;
    let head = queue.good(0, WRITE, 0, frame);
    match attacker.variant % 3 {
        0 => queue.offer(QUEUE_SIZE),
        1 => queue.offer(u16::MAX),
        // Every place of the ring: at the latest the second is in flight still, or done twice in turn.
        _ => (0..QUEUE_SIZE).for_each(|_| queue.offer(head)),
    }
    queue.show(queue.offered);
    queue.settle()?;
    check(attacker.variant % 3 == 2 || queue.is_broken(), "a head out of range is worked with")?;
    let status: u8 = queue.get(Queue::status_at(0));
    check(status == STATUS_OK || queue.is_broken(), "a request was lost")
}
