//! Instructions that wait or count: none may hold up the processor, nor show what others do.

use super::{Attack, Attacker};
use crate::trap::probe::Registers;
use crate::workloads::Failure;

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "waits",
    tries: "waits by MONITOR, MWAIT, UMWAIT, TPAUSE and PAUSE, and reads performance counters",
    run,
};

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    let word = 0_u64;
    let codes: [&[u8]; 7] = [
        &[0x0f, 0x01, 0xc8],       // monitor
        &[0x0f, 0x01, 0xc9],       // mwait
        &[0xf3, 0x0f, 0xae, 0xf0], // umonitor rax
        &[0xf2, 0x0f, 0xae, 0xf1], // umwait ecx
        &[0x66, 0x0f, 0xae, 0xf1], // tpause ecx
        &[0xf3, 0x90],             // pause
        &[0x0f, 0x33],             // rdpmc
    ];
    let code = codes[attacker.variant as usize % codes.len()];
    for rcx in [0, 1, 1 << 30, u64::MAX] {
        let mut registers = Registers { rax: (&raw const word) as u64, rcx, ..Registers::default() };
        // An exception, or it goes on: both will do.
        let _ = attacker.run(code, &mut registers)?;
    }
    Ok(())
}
