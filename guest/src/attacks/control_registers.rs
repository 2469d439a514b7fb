//! Flips every bit of a control register, one at a time, and puts it back at once.

use super::{Attack, Attacker};
use crate::trap::probe::Registers;
use crate::workloads::{Failure, check};

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "control-registers",
    tries: "flips each bit of CR0 and CR4 and writes nonsense to CR2 and CR8",
    run,
};

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    // mov rbx, crN; mov rax, rbx; xor rax, rdi; mov crN, rax; mov crN, rbx
    let code = |register: u8| {
        let field = 0xc0 | register << 3;
        let (from, to) = ([0x0f, 0x20, field | 3], [0x0f, 0x22, field | 3]);
        let rax = [0x0f, 0x22, field];
        let mut code = [0x90; 16];
        code[..3].copy_from_slice(&from);
        code[3..9].copy_from_slice(&[0x48, 0x89, 0xd8, 0x48, 0x31, 0xf8]);
        code[9..12].copy_from_slice(&rax);
        code[12..15].copy_from_slice(&to);
        code
    };
    let register = [0, 4, 2, 8][attacker.variant as usize % 4];
    let mut flips = code(register & 7);
    if register == 8 {
        // mov rax, rdi; REX.R mov cr8, rax; xor eax, eax; mov cr8, rax
        flips =
            [0x48, 0x89, 0xf8, 0x44, 0x0f, 0x22, 0xc0, 0x31, 0xc0, 0x44, 0x0f, 0x22, 0xc0, 0x90, 0x90, 0x90];
    }
    for bit in 0..64 {
        let mut registers = Registers { rdi: 1 << bit, ..Registers::default() };
        let done = attacker.run(&flips, &mut registers)?;
        check(done.is_err() || attacker.is_kernel(), "a control register was written at CPL 3")?;
    }
    Ok(())
}
