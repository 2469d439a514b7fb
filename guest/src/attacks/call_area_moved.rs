//! Takes the call area's mapping away, or maps a frame that isn't the guest's there, before the call. The VMM
//! knows where the area is in guest-physical memory and goes by nothing else.

use umpa::hardware::{TableMemory, Tlb};
use umpa_abi::call::{CALL_PORT, Status};
use umpa_abi::paging;

use super::{Attack, Attacker};
use crate::trap::probe::Registers;
use crate::workloads::{Failure, check, equal};

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "call-area-moved",
    tries: "unmaps the call area, and puts others' frames in its place, before it calls",
    run,
};

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    let page = attacker.boot.call_area();
    let slot = attacker.machine.tables.walk(page);
    equal(slot.level.into(), 1, "level of the call area's leaf")?;
    let entry = attacker.machine.tables.read(slot.table, slot.index);
    let foreign = attacker.never_granted().start().get() | entry & !paging::ADDRESS;
    for moved in [0, foreign, entry & !paging::WRITABLE, entry | paging::LARGE | 1 << 51] {
        // The page for it costs a call of its own. out dx, eax
        attacker.write_code(&[0xef])?;
        // A call that is refused, prepared where it belongs.
        let status = attacker.call(99, 0, 0, &[]);
        check(status == Some(Status::UnknownOp), "a call that isn't there was answered")?;
        attacker.machine.tables.write(slot.table, slot.index, moved);
        attacker.machine.flush_all();
        let mut registers = Registers { rdx: CALL_PORT.into(), ..Registers::default() };
        let done = attacker.run(&[0xef], &mut registers)?;
        attacker.machine.tables.write(slot.table, slot.index, entry);
        attacker.machine.flush_all();
        check(done.is_ok(), "the call raised an exception")?;
        let answer = attacker.load(page).ok();
        check(answer == Some(99 | (Status::UnknownOp as u64) << 32), "the answer isn't in the call area")?;
    }
    Ok(())
}
