//! The device fills a frame that serves as a page table with entries for frames that aren't the guest's, at the
//! same time as the processor walks it: entries that change under the reader.

use umpa::hardware::Tlb;
use umpa_abi::addr::{Gva, PAGE_BYTES};
use umpa_abi::block::READ;

use super::queue::TableOnDisk;
use super::{Attack, Attacker, MARK};
use crate::workloads::{Failure, check};

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "tables-from-disk",
    tries: "reads its page tables from its page file while it walks them",
    run,
};

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    let TableOnDisk { mut queue, table, gva, .. } = TableOnDisk::new(attacker)?;
    check(attacker.store(gva, MARK).is_ok(), "the table isn't used")?;
    attacker.target(attacker.never_granted().start());
    for turn in 0..attacker.some(200) {
        let head = queue.good(0, READ, turn % 2, table);
        queue.offer(head);
        queue.show(queue.offered);
        for page in 0..64 {
            match attacker.load(Gva::new(gva.get() + page * PAGE_BYTES)) {
                Ok(MARK) | Err(_) => {}
                Ok(_) => return Err(Failure::new("a changing table led to memory that isn't ours")),
            }
        }
        queue.settle()?;
        if attacker.variant == 1 {
            // The foreign entries are there now. (In mode shadow KVM doesn't notice what devices write into
            // page tables, and goes on with the former ones.)
            attacker.machine.flush_all();
            let found = attacker.load(gva);
            check(found == Ok(MARK) || found.is_err(), "a frame that isn't ours was reached")?;
        }
    }
    Ok(())
}
