//! XSETBV with each bit and with none, and XRSTOR from memory full of ones.

use umpa_abi::addr::PageSize;
use umpa_abi::layout::direct;

use super::{Attack, Attacker};
use crate::mmu;
use crate::trap::probe::Registers;
use crate::workloads::{Failure, check};

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "extended-state",
    tries: "writes nonsense to XCR0 and restores processor state from nonsense",
    run,
};

/// `fxrstor [rdi]`.
const FXRSTOR: &[u8] = &[0x0f, 0xae, 0x0f];

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    let frame = attacker.get(1, PageSize::Size4K)?;
    mmu::fill(frame, u64::MAX);
    let codes: [&[u8]; 3] = [
        &[0x0f, 0x01, 0xd1], // xsetbv
        &[0x0f, 0xae, 0x2f], // xrstor [rdi]
        FXRSTOR,
    ];
    let code = codes[attacker.variant as usize % codes.len()];
    let rdi = direct(frame.start()).get();
    for (rcx, rax) in [(0, 0), (0, u64::MAX), (0, 2), (0, 4), (1, 1), (u64::MAX, 7)] {
        let mut registers = Registers { rcx, rax, rdx: rax, rdi, ..Registers::default() };
        let done = attacker.run(code, &mut registers)?;
        // QEMU's emulator restores any bits of MXCSR.
        check(done.is_err() || code == FXRSTOR, "processor state made of nonsense")?;
    }
    Ok(())
}
