//! Rewrites the boot information and the request page through a mapping of its own: the VMM doesn't read them
//! again, and grants what it has granted at most before.

use umpa::hardware::{FrameSource, TableMemory, Tlb};
use umpa_abi::addr::Gva;
use umpa_abi::exchange::{Policy, Shortfall};
use umpa_abi::layout::SYSTEM_GVA;
use umpa_abi::paging;

use super::{Attack, Attacker};
use crate::workloads::{Failure, check};

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "boot-page-rewritten",
    tries: "maps its boot information writable, promises itself more frames, and asks for them",
    run,
};

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    for page in [SYSTEM_GVA, attacker.boot.requests()] {
        let slot = attacker.machine.tables.walk(page);
        let entry = attacker.machine.tables.read(slot.table, slot.index);
        attacker.machine.tables.write(slot.table, slot.index, entry | paging::WRITABLE);
        attacker.machine.flush_all();
        for word in 0..512 {
            check(attacker.store(Gva::new(page.get() + 8 * word), u64::MAX).is_ok(), "its own page")?;
        }
    }
    let most = attacker.boot.frames_max;
    let all = attacker.machine.hypervisor.exchange(&[], [most + 1, 0, 0], Policy::AllOrNothing, &mut |_| {});
    check(all.shortfall == Shortfall::Exhausted, "more frames than there are")?;
    let all = attacker.machine.hypervisor.exchange(&[], [u64::MAX, 0, 0], Policy::Partial, &mut |_| {});
    let granted: u64 = all.granted_pages.iter().sum();
    check(granted <= most && all.shortfall == Shortfall::Exhausted, "more frames than there are")
}
