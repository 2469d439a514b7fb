//! Entries of each level with address bits from 2^46 on: beyond what processors have lines for, or at least beyond all memory.

use umpa::hardware::{TableMemory, Tlb};
use umpa_abi::addr::PageSize;
use umpa_abi::paging;

use super::{Attack, Attacker, Way};
use crate::workloads::Failure;

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "beyond-width",
    tries: "puts address bits that the processor hasn't got into entries of each level",
    run,
};

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    let frame = attacker.get(1, PageSize::Size4K)?;
    let gva = attacker.place(2);
    let level = 1 + attacker.variant as u32 % 4;
    let bit = 46 + attacker.variant / 4 % 6;
    attacker.set(gva, 1, frame.start().get() | attacker.data_bits())?;
    let table = attacker.table(gva, level)?;
    let index = paging::index(gva, level);
    let entry = attacker.machine.tables.read(table, index) | 1 << bit;
    attacker.machine.tables.write(table, index, entry);
    attacker.machine.flush_all();
    attacker.target(paging::address(entry));
    attacker.touch(Way::Read, gva)
}
