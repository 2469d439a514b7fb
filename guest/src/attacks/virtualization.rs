//! VMCALL, VMMCALL with the numbers of KVM's hypercalls, and what else a hypervisor executes.

use super::{Attack, Attacker};
use crate::trap::probe::Registers;
use crate::workloads::{Failure, check};

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "virtualization",
    tries: "executes the instructions of hypervisors, and KVM's own hypercalls",
    run,
};

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    let area = [0_u64; 8];
    let at = (&raw const area) as u64;
    if attacker.variant < 2 {
        // vmcall, vmmcall
        let code = [[0x0f, 0x01, 0xc1], [0x0f, 0x01, 0xd9]][attacker.variant as usize];
        for call in 0..14 {
            let mut registers =
                Registers { rax: call, rbx: at, rcx: 1 << 32, rdx: 1, rsi: u64::MAX, ..Registers::default() };
            let _ = attacker.run(&code, &mut registers)?;
        }
        return Ok(());
    }
    let codes: [&[u8]; 15] = [
        &[0x0f, 0x01, 0xc2],             // vmlaunch
        &[0x0f, 0x01, 0xc3],             // vmresume
        &[0x0f, 0x01, 0xc4],             // vmxoff
        &[0x0f, 0x01, 0xd4],             // vmfunc
        &[0x0f, 0x01, 0xd8],             // vmrun
        &[0x0f, 0x01, 0xda],             // vmload
        &[0x0f, 0x01, 0xdb],             // vmsave
        &[0x0f, 0x01, 0xdc],             // stgi
        &[0x0f, 0x01, 0xdd],             // clgi
        &[0x0f, 0x01, 0xdf],             // invlpga
        &[0x0f, 0x01, 0xcf],             // encls
        &[0xf3, 0x0f, 0xc7, 0x37],       // vmxon [rdi]
        &[0x0f, 0xc7, 0x37],             // vmptrld [rdi]
        &[0x66, 0x0f, 0x38, 0x80, 0x07], // invept rax, [rdi]
        &[0x0f, 0x37],                   // getsec
    ];
    let code = codes[attacker.variant as usize % codes.len()];
    let done = attacker.run(code, &mut Registers { rdi: at, ..Registers::default() })?;
    check(done.is_err(), "an instruction of hypervisors was executed")
}
