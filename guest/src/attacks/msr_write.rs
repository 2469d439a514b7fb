//! Writes zeros, ones and its own value with a bit flipped to model-specific registers, and puts back what was there.

use super::{Attack, Attacker};
use crate::trap::probe::Registers;
use crate::workloads::{Failure, check};

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "msr-write",
    tries: "writes nonsense to model-specific registers, EFER and the memory types among them",
    run,
};

const NUMBERS: [u64; 26] = [
    0x10,
    0x1b,
    0x3a,
    0x3b,
    0x48,
    0x49,
    0x8b,
    0xfe,
    0x174,
    0x175,
    0x176,
    0x17a,
    0x186,
    0x1a0,
    0x1d9,
    0x200,
    0x250,
    0x277,
    0x2ff,
    0x38f,
    0x400,
    0x480,
    0x6e0,
    0xda0,
    0xc000_0080,
    0xc001_0015,
];

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    // rdmsr; mov rbx, rax; mov r8, rdx; xor rax, rsi; xor rdx, rdi; wrmsr; mov rax, rbx; mov rdx, r8; wrmsr
    const FLIP: [u8; 22] = [
        0x0f, 0x32, 0x48, 0x89, 0xc3, 0x49, 0x89, 0xd0, 0x48, 0x31, 0xf0, 0x48, 0x31, 0xfa, 0x0f, 0x30, 0x48,
        0x89, 0xd8, 0x4c, 0x89, 0xc2,
    ];
    let mut code = [0; 24];
    code[..22].copy_from_slice(&FLIP);
    code[22..].copy_from_slice(&[0x0f, 0x30]);
    for number in NUMBERS {
        for (low, high) in
            [(u64::MAX, u64::MAX), (1, 0), (1 << 8, 0), (1 << 10, 0), (1 << 11, 0), (0, 1 << 31)]
        {
            let mut registers = Registers { rcx: number, rsi: low, rdi: high, ..Registers::default() };
            let done = attacker.run(&code, &mut registers)?;
            check(done.is_err() || attacker.is_kernel(), "an MSR was written at CPL 3")?;
        }
    }
    Ok(())
}
