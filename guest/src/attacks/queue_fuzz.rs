//! Random descriptors, rings and headers, some of them nearly right: every kick comes back, nothing foreign is touched.

use umpa_abi::addr::PageSize;
use umpa_abi::block::{AREA_BYTES, REQUESTS_AT};

use super::queue::Queue;
use super::{Attack, Attacker};
use crate::workloads::Failure;

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "queue-fuzz",
    tries: "fills the whole block queue with random bytes, again and again",
    run,
};

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    let first = attacker.get(8, PageSize::Size4K)?;
    let mut queue = Queue::new(attacker)?;
    for _ in 0..attacker.some(400) {
        for number in 0..16 {
            let rng = &mut attacker.rng;
            let place = match rng.u32(0..6) {
                0..3 => first.offset(rng.u64(0..8)).start().get(),
                3 => queue.gpa(rng.u64(0..AREA_BYTES)),
                4 => queue.gpa(REQUESTS_AT + 16 * rng.u64(0..256)),
                _ => rng.u64(..),
            };
            let bytes = [16, 4096, 1, 0, 48, rng.u32(..)][rng.usize(0..6)];
            queue.describe(number, (place, bytes, rng.u16(0..8), rng.u16(0..17)));
        }
        let rng = &mut attacker.rng;
        for number in 0..16 {
            queue.put(Queue::header_at(number), rng.u32(0..6));
            queue.put(Queue::header_at(number) + 8, rng.u64(0..64) * [1, 8, 1 << 60][rng.usize(0..3)]);
        }
        let shown = rng.u16(0..5);
        for _ in 0..shown {
            let head = attacker.rng.u16(0..17);
            queue.offer(head);
        }
        queue.show(queue.offered);
        queue.settle()?;
        attacker.tried(1);
        if queue.is_broken() {
            // It stays so, whatever is shown.
            queue.show(queue.offered.wrapping_add(1));
            return Ok(());
        }
    }
    Ok(())
}
