//! LIDT, LGDT, LLDT and LTR with nonsense, then an exception that would use them.

use super::{Attack, Attacker};
use crate::trap::probe::Registers;
use crate::workloads::{Failure, check};

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "descriptor-tables",
    tries: "loads nonsense as interrupt, global and local descriptor table, and as task",
    run,
};

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    let codes: [&[u8]; 4] = [
        &[0x0f, 0x01, 0x1f, 0x0f, 0x0b], // lidt [rdi]; ud2
        &[0x0f, 0x01, 0x17, 0x0f, 0x0b], // lgdt [rdi]; ud2
        &[0x0f, 0x00, 0xd0],             // lldt ax
        &[0x0f, 0x00, 0xd8],             // ltr ax
    ];
    let code = codes[attacker.variant as usize % codes.len()];
    let nonsense = [0x0000_7fff_ffff_ffff_u64, 0x1234_5678];
    for rax in [0x7ff8, 0x41, 0x13] {
        let mut registers = Registers { rax, rdi: (&raw const nonsense) as u64, ..Registers::default() };
        let done = attacker.run(code, &mut registers)?;
        check(done.is_err(), "a descriptor table made of nonsense")?;
    }
    Ok(())
}
