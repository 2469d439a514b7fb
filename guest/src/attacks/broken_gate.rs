//! Overwrites its own interrupt descriptor table, through a mapping of its own, while the host interrupts it:
//! the interrupt can't be delivered.

use umpa::hardware::{TableMemory, Tlb};
use umpa_abi::addr::{Gpa, Gva};
use umpa_abi::paging;

use super::{Attack, Attacker};
use crate::call;
use crate::trap::probe::Registers;
use crate::workloads::{Failure, check};

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "broken-gate",
    tries: "breaks the gate of the interrupt by which the host asks for frames",
    run,
};

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    let mut table = [0_u64; 2];
    let mut registers = Registers { rdi: (&raw mut table) as u64 + 6, ..Registers::default() };
    let done = attacker.run(&[0x0f, 0x01, 0x0f], &mut registers)?; // sidt [rdi]
    check(done.is_ok(), "where is the table?")?;
    let idt = Gva::new(table[1]);
    let slot = attacker.machine.tables.walk(idt);
    let entry = attacker.machine.tables.read(slot.table, slot.index);
    if attacker.variant == 0 {
        // Vector 32: not present; the rest as it was.
        let gva = attacker.open(Gpa::new(paging::address(entry).get() + 32 * 16))?;
        check(attacker.store(gva, 0).is_ok(), "its own table")?;
    } else {
        attacker.machine.tables.write(slot.table, slot.index, 0);
        attacker.machine.flush_all();
    }
    // The host asks at the first pause.
    call::pause(1);
    loop {
        core::hint::spin_loop();
    }
}
