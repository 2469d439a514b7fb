//! Sets each bit of an entry that isn't part of an address, at each level, one at a time. The access reaches
//! the page that it always did, or it is a page fault.

use umpa::hardware::{TableMemory, Tlb};
use umpa_abi::addr::PageSize;
use umpa_abi::paging;

use super::{Attack, Attacker, MARK, PF};
use crate::trap::probe::Raised;
use crate::workloads::{Failure, check};

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "reserved-bits",
    tries: "sets each bit in entries of each level that is no address, and reads through them",
    run,
};

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    let frame = attacker.get(1, PageSize::Size4K)?;
    let gva = attacker.place(2);
    attacker.set(gva, 1, frame.start().get() | attacker.data_bits())?;
    attacker.machine.flush_all();
    check(attacker.store(gva, MARK).is_ok(), "the page isn't mapped")?;
    for level in 1..=4 {
        let table = attacker.table(gva, level)?;
        let index = paging::index(gva, level);
        let entry = attacker.machine.tables.read(table, index);
        // At levels 2 and 3 a set PS makes a leaf of it: other attacks do that.
        for bit in (0..12).chain(52..64).filter(|&bit| bit != 7 || level == 4) {
            attacker.machine.tables.write(table, index, entry ^ 1 << bit);
            attacker.machine.flush_all();
            match attacker.load(gva) {
                Ok(MARK) | Err(Raised { vector: PF, .. }) => {}
                _ => return Err(Failure::new("a bit of an entry led somewhere else")),
            }
        }
        attacker.machine.tables.write(table, index, entry);
        attacker.machine.flush_all();
    }
    check(attacker.load(gva) == Ok(MARK), "the page is lost")
}
