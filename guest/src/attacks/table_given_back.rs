//! Uses a granted frame as a leaf table, gives it back, and walks it for a page that no cache knows.

use umpa::hardware::Tlb;
use umpa_abi::addr::{Gva, PAGE_BYTES, PageSize};

use super::{Attack, Attacker, MARK};
use crate::mmu;
use crate::workloads::{Failure, check};

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "table-given-back",
    tries: "walks a page table that it has given back, with a flush and without",
    run,
};

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    let first = attacker.get(2, PageSize::Size4K)?;
    let (table, page) = (first, first.offset(1));
    let leaf = page.start().get() | attacker.data_bits();
    mmu::fill(table, leaf);
    let gva = attacker.place(2);
    attacker.set(gva, 2, table.start().get() | attacker.table_bits())?;
    check(attacker.store(gva, MARK).is_ok(), "the table isn't used")?;
    attacker.target(table.start());
    attacker.give(table, 1)?;
    if attacker.variant == 1 {
        attacker.machine.flush_all();
    }
    // Its own frame lies behind it: what a processor or KVM still knows of the table does no harm.
    let far = Gva::new(gva.get() + 300 * PAGE_BYTES);
    match attacker.load(far) {
        Ok(MARK) | Err(_) => Ok(()),
        Ok(_) => Err(Failure::new("a table that was given back led somewhere else")),
    }
}
