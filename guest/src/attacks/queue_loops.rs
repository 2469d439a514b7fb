//! Chains without an end, with ends out of range, with more descriptors than a request has, with indirect tables.

use umpa_abi::addr::PageSize;
use umpa_abi::block::STATUS_OK;

use super::queue::{DEVICE_WRITES, Descriptor, NEXT, PENDING, Queue};
use super::{Attack, Attacker};
use crate::workloads::{Failure, check};

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "queue-loops",
    tries: "chains descriptors in circles, to themselves, out of the table and through tables of tables",
    run,
};

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    let frame = attacker.get(1, PageSize::Size4K)?.start().get();
    let mut queue = Queue::new(attacker)?;
    let status = queue.gpa(Queue::status_at(0));
    let header = (queue.gpa(Queue::header_at(0)), 16, NEXT, 1);
    const INDIRECT: u16 = 4;
    let chains: [[Descriptor; 3]; 7] = [
        [(header.0, 16, NEXT, 0), (frame, 4096, NEXT, 2), (status, 1, DEVICE_WRITES, 0)],
        [header, (frame, 4096, NEXT, 0), (status, 1, DEVICE_WRITES, 0)],
        [header, (frame, 4096, NEXT, 2), (status, 1, DEVICE_WRITES | NEXT, 0)],
        [(header.0, 16, NEXT, 1024), (frame, 4096, NEXT, 2), (status, 1, DEVICE_WRITES, 0)],
        [header, (frame, 4096, NEXT, u16::MAX), (status, 1, DEVICE_WRITES, 0)],
        [(queue.gpa(0), 48, INDIRECT, 0), (frame, 4096, NEXT, 2), (status, 1, DEVICE_WRITES, 0)],
        [(frame, 16 * 1024, INDIRECT, 0), (frame, 4096, NEXT | INDIRECT, 2), (status, 1, DEVICE_WRITES, 0)],
    ];
    let chain = chains[attacker.variant as usize % chains.len()];
    (0..).zip(chain).for_each(|(number, descriptor)| queue.describe(number, descriptor));
    queue.put(Queue::status_at(0), PENDING);
    let status = queue.status_of(0, 0)?;
    check(status != STATUS_OK, "a chain that makes no sense was a request")
}
