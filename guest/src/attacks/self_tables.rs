//! A table all of whose entries point to itself, at every level, and the root in an entry of its own: what the
//! walk ends at must be that table and nothing else.

use umpa::hardware::{TableMemory, Tlb};
use umpa_abi::addr::Gva;
use umpa_abi::paging;

use super::{Attack, Attacker};
use crate::workloads::{Failure, check};

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "self-tables",
    tries: "points tables at themselves, at every level, and reads what the walk ends at",
    run,
};

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    let table = attacker.new_table()?;
    let entry = table.start().get() | attacker.table_bits();
    for index in 0..paging::ENTRIES {
        attacker.machine.tables.write(table, index, entry);
    }
    let gva = attacker.place(3);
    attacker.set(gva, 4, entry)?;
    attacker.machine.flush_all();
    for _ in 0..attacker.some(200) {
        let offset = attacker.rng.u64(0..1 << 39) & !7;
        let found = attacker.load(Gva::new(gva.get() + offset));
        check(found == Ok(entry), "a table that points to itself led somewhere else")?;
    }
    // The root in itself shows all tables, which are the guest's own.
    let root = attacker.boot.root();
    let gva = attacker.place(4);
    attacker.set(gva, 4, root.get() | attacker.table_bits())?;
    attacker.machine.flush_all();
    let index = paging::index(gva, 4) as u64;
    let itself = Gva::new(gva.get() | index << 30 | index << 21 | index << 12 | index << 3);
    let found = attacker.load(itself).map(|entry| entry & paging::ADDRESS);
    check(found == Ok(root.get()), "the root isn't where it points")
}
