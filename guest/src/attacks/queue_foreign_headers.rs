//! Headers and status bytes anywhere but where they belong: nothing is read or written there.

use umpa_abi::addr::PageSize;
use umpa_abi::block::{AREA_BYTES, READ, REQUESTS_AT, STATUS_REFUSED, USED_AT};
use umpa_abi::layout::SYSTEM_GPA;

use super::queue::{DEVICE_WRITES, NEXT, Queue};
use super::{Attack, Attacker, MARK};
use crate::mmu;
use crate::workloads::{Failure, check};

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "queue-foreign-headers",
    tries: "puts headers and status bytes into the rings, and outside the queue",
    run,
};

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    let own = attacker.get(1, PageSize::Size4K)?;
    mmu::fill(own, MARK);
    let mut queue = Queue::new(attacker)?;
    let places = [
        own.start().get(),
        attacker.never_granted().start().get(),
        SYSTEM_GPA.get(),
        queue.gpa(0),
        queue.gpa(USED_AT),
        queue.gpa(REQUESTS_AT) - 1,
        queue.gpa(AREA_BYTES),
        queue.gpa(AREA_BYTES) - 8,
        0,
        u64::MAX - 15,
    ];
    let place = places[attacker.variant as usize / 2 % places.len()];
    let head = queue.good(0, READ, 0, own);
    if attacker.variant.is_multiple_of(2) {
        queue.describe(head, (place, 16, NEXT, head + 1));
    } else {
        queue.describe(head + 2, (place, 1, DEVICE_WRITES, 0));
    }
    let status = queue.status_of(0, head)?;
    // The last byte of the area may be a status byte.
    let is_inside = place == queue.gpa(AREA_BYTES) - 8 && !attacker.variant.is_multiple_of(2);
    check(is_inside || status == STATUS_REFUSED || queue.is_broken(), "a request from elsewhere was done")?;
    check(is_inside || mmu::find_other(own, MARK).is_none(), "data came in for it")
}
