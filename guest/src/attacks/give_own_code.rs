//! Code that gives back the frame it lies in: its next instruction isn't there any more.

use umpa::hardware::TableMemory;
use umpa_abi::call::CALL_PORT;
use umpa_abi::paging;

use super::{Attack, Attacker};
use crate::trap::probe::Registers;
use crate::workloads::Failure;

/// See the [module](self).
pub(super) const ATTACK: Attack =
    Attack { name: "give-own-code", tries: "gives back the frame that it executes", run };

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    let at = attacker.write_code(&[0xef])?; // out dx, eax
    let slot = attacker.machine.tables.walk(at);
    let frame = paging::address(attacker.machine.tables.read(slot.table, slot.index));
    attacker.target(frame);
    attacker.prepare_give(frame.containing());
    let mut registers = Registers { rdx: CALL_PORT.into(), ..Registers::default() };
    // KVM's emulator may have read on to the end already; the second time it hasn't.
    for _ in 0..2 {
        let _ = attacker.run_at(at, &mut registers);
    }
    Err(Failure::new("code that was given back is executed"))
}
