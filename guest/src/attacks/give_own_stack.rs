//! Gives back the frame that the stack pointer points to, then pushes.

use umpa_abi::addr::PageSize;
use umpa_abi::call::CALL_PORT;

use super::{Attack, Attacker};
use crate::trap::probe::Registers;
use crate::workloads::{Failure, check};

/// See the [module](self).
pub(super) const ATTACK: Attack =
    Attack { name: "give-own-stack", tries: "gives back the frame that its stack lies in", run };

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    let frame = attacker.get(1, PageSize::Size4K)?;
    let top = attacker.open(frame.start())?.get() + 128;
    // xchg rsp, rdi; push rax; out dx, eax; push rax; xchg rsp, rdi
    let code = [0x48, 0x87, 0xe7, 0x50, 0xef, 0x50, 0x48, 0x87, 0xe7];
    let at = attacker.write_code(&code)?;
    attacker.target(frame.start());
    attacker.prepare_give(frame);
    let mut registers = Registers { rdx: CALL_PORT.into(), rdi: top, ..Registers::default() };
    let done = attacker.run_at(at, &mut registers);
    check(done.is_err(), "a stack that was given back is used")
}
