//! Far calls and jumps through selectors that aren't code for it, returns with frames made of nonsense.

use super::{Attack, Attacker};
use crate::trap::probe::Registers;
use crate::workloads::{Failure, check};

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "far-transfers",
    tries: "calls, jumps and returns to other segments, gates and privilege levels",
    run,
};

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    let codes: [&[u8]; 6] = [
        &[0x48, 0xff, 0x1f],             // call far [rdi]
        &[0x48, 0xff, 0x2f],             // jmp far [rdi]
        &[0x48, 0x0f, 0x07],             // sysretq
        &[0x0f, 0x34],                   // sysenter
        &[0x0f, 0x35],                   // sysexit
        &[0x48, 0x87, 0xe7, 0x48, 0xcf], // xchg rsp, rdi; iretq
    ];
    let code = codes[attacker.variant as usize % codes.len()];
    for selector in [0_u64, 0x0b, 0x13, 0x40, 0x43, 0x7ff8, 0xffff] {
        // Offset and selector; as iretq has it: RIP, CS, RFLAGS, RSP, SS.
        let far = [0x1000, selector, 0x2, 0x2000, selector];
        let mut registers = Registers { rdi: (&raw const far) as u64, ..Registers::default() };
        let done = attacker.run(code, &mut registers)?;
        check(done.is_err(), "a far transfer went through")?;
    }
    Ok(())
}
