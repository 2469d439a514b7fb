//! Data descriptors that point to frames never granted or given back, to the system slot, to the queue itself,
//! to holes, beyond all memory, across borders, with lengths that aren't a frame: all refused, none touched.

use umpa_abi::addr::PageSize;
use umpa_abi::block::{FLUSH, READ, REQUESTS_AT, STATUS_REFUSED, WRITE};
use umpa_abi::layout::SYSTEM_GPA;

use super::queue::{DEVICE_WRITES, NEXT, Queue};
use super::{Attack, Attacker};
use crate::workloads::{Failure, check};

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "queue-foreign-data",
    tries: "lets the device read and write memory that isn't its own",
    run,
};

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    let own = attacker.get(2, PageSize::Size4K)?;
    let back = own.offset(1);
    attacker.give(back, 1)?;
    let own = own.start().get();
    let mut queue = Queue::new(attacker)?;
    let boot = attacker.boot;
    let end = boot.frames_first().offset(boot.frames_max).start().get();
    let places = [
        (attacker.never_granted().start().get(), 4096),
        (back.start().get(), 4096),
        (SYSTEM_GPA.get(), 4096),
        (boot.root, 4096),
        (queue.gpa(0), 4096),
        (queue.gpa(REQUESTS_AT), 4096),
        (0, 4096),
        (0xfee0_0000, 4096),
        (end, 4096),
        (end - 4096, 4096),
        (1 << 51, 4096),
        (u64::MAX - 4095, 4096),
        (u64::MAX, 4096),
        (own + 1, 4096),
        (own + 4095, 4096),
        (own, 0),
        (own, 1),
        (own, 4095),
        (own, 4097),
        (own, 8192),
    ];
    for (gpa, bytes) in places {
        for (kind, flags) in [(READ, NEXT | DEVICE_WRITES), (WRITE, NEXT)] {
            let head = queue.transfer(0, kind, 0, (gpa, bytes, flags, 0));
            check(queue.status_of(0, head)? == STATUS_REFUSED, "the device works with foreign memory")?;
            attacker.tried(1);
        }
    }
    // The wrong direction, and kinds that there aren't.
    for (kind, flags) in
        [(READ, NEXT), (WRITE, NEXT | DEVICE_WRITES), (2, NEXT), (FLUSH, NEXT), (u32::MAX, NEXT)]
    {
        let head = queue.transfer(0, kind, 0, (own, 4096, flags, 0));
        check(queue.status_of(0, head)? == STATUS_REFUSED, "a request that makes no sense was done")?;
    }
    // Lengths that overflow together: the queue is broken, since no status byte is found behind them.
    let head = queue.transfer(0, READ, 0, (own, u32::MAX, NEXT | DEVICE_WRITES, 0));
    let status = queue.status_of(0, head)?;
    check(status == STATUS_REFUSED || queue.is_broken(), "a request of 4 GiB was done")
}
