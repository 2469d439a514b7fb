//! The two ports that mean something, in forms that don't: other widths, input, strings with huge counts from
//! and to memory that isn't there.

use umpa_abi::addr::PageSize;
use umpa_abi::block::BLOCK_PORT;
use umpa_abi::call::CALL_PORT;
use umpa_abi::layout::direct;

use super::{Attack, Attacker};
use crate::trap::probe::Registers;
use crate::workloads::{Failure, check};

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "port-forms",
    tries: "uses the hypercall's and the block device's port in every other form, with huge counts",
    run,
};

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    let codes: [&[u8]; 9] = [
        &[0xee],       // out dx, al
        &[0x66, 0xef], // out dx, ax
        &[0xec],       // in al, dx
        &[0x66, 0xed], // in ax, dx
        &[0xed],       // in eax, dx
        &[0xf3, 0x6e], // rep outsb
        &[0xf3, 0x6f], // rep outsd
        &[0xf3, 0x6c], // rep insb
        &[0xf3, 0x6d], // rep insd
    ];
    let frame = attacker.get(1, PageSize::Size4K)?;
    let at = direct(frame.start()).get();
    let port = if attacker.variant.is_multiple_of(2) { CALL_PORT } else { BLOCK_PORT };
    let code = codes[attacker.variant as usize / 2 % codes.len()];
    let mut registers =
        Registers { rdx: port.into(), rcx: 1 << 40, rsi: at, rdi: at, ..Registers::default() };
    let done = attacker.run(code, &mut registers)?;
    check(done.is_err(), "a port was used in a form that means nothing")
}
