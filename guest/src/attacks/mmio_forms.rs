//! Instructions of every form at an address without memory: KVM has to emulate them, or give up, and must not go on with something else.

use umpa_abi::addr::Gpa;

use super::{Attack, Attacker};
use crate::trap::probe::Registers;
use crate::workloads::{Failure, check};

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "mmio-forms",
    tries: "accesses a hole by instructions that KVM's emulator seldom sees",
    run,
};

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    const HOLE: Gpa = Gpa::new(0xfed0_0000);
    let codes: [&[u8]; 20] = [
        &[0x48, 0x87, 0x07],             // xchg [rdi], rax
        &[0xf0, 0x48, 0x0f, 0xc1, 0x07], // lock xadd [rdi], rax
        &[0xf0, 0x48, 0x0f, 0xb1, 0x0f], // lock cmpxchg [rdi], rcx
        &[0xf0, 0x48, 0x0f, 0xc7, 0x0f], // lock cmpxchg16b [rdi]
        &[0xff, 0x37],                   // push [rdi]
        &[0xff, 0x17],                   // call [rdi]
        &[0xff, 0x27],                   // jmp [rdi]
        &[0x8f, 0x07],                   // pop [rdi]
        &[0xf3, 0xa4],                   // rep movsb
        &[0xf3, 0x48, 0xab],             // rep stosq
        &[0xf3, 0xa6],                   // repe cmpsb
        &[0xf2, 0xae],                   // repne scasb
        &[0x0f, 0x01, 0x07],             // sgdt [rdi]
        &[0x0f, 0xae, 0x07],             // fxsave [rdi]
        &[0x0f, 0x10, 0x07],             // movups xmm0, [rdi]
        &[0x0f, 0x11, 0x07],             // movups [rdi], xmm0
        &[0xc5, 0xfc, 0x10, 0x07],       // vmovups ymm0, [rdi]
        &[0xdd, 0x07],                   // fld [rdi]
        &[0x48, 0x0f, 0x38, 0xf0, 0x07], // movbe rax, [rdi]
        &[0x48, 0x0f, 0xc3, 0x07],       // movnti [rdi], rax
    ];
    let gva = attacker.open(HOLE)?;
    attacker.target(HOLE);
    let code = codes[attacker.variant as usize % codes.len()];
    let mut registers = Registers { rcx: 8, rsi: gva.get(), rdi: gva.get(), ..Registers::default() };
    let done = attacker.run(code, &mut registers)?;
    check(done.is_err(), "an access where there is no memory went through")
}
