//! Ports of a PC's devices, of debug consoles and of other hypervisors: this VMM has two, and these aren't among them.

use super::{Attack, Attacker};
use crate::trap::probe::Registers;
use crate::workloads::{Failure, check};

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "port-scan",
    tries: "reads and writes ports of a PC: PIC, timer, keyboard, CMOS, SMI, PCI, serial, QEMU's",
    run,
};

const PORTS: [u64; 26] = [
    0, 0x20, 0x21, 0x40, 0x43, 0x60, 0x61, 0x64, 0x70, 0x71, 0x80, 0x92, 0xa0, 0xb2, 0x1f0, 0x2f8, 0x3f8,
    0x402, 0x510, 0x5ff, 0x608, 0x5658, 0xcf8, 0xcfc, 0xe9, 0xffff,
];

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    let port = PORTS[attacker.variant as usize / 2 % PORTS.len()];
    // out dx, al; in eax, dx
    let code: &[u8] = if attacker.variant.is_multiple_of(2) { &[0xee] } else { &[0xed] };
    let done = attacker.run(code, &mut Registers { rdx: port, ..Registers::default() })?;
    check(done.is_err(), "there is a device at a port")
}
