//! CLI and an endless loop: the watchdog doesn't depend on the guest's interrupts.

use super::{Attack, Attacker};
use crate::trap::probe::Registers;
use crate::workloads::Failure;

/// See the [module](self).
pub(super) const ATTACK: Attack =
    Attack { name: "interrupts-off", tries: "turns interrupts off and spins", run };

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    let _ = attacker.run(&[0xfa], &mut Registers::default())?; // cli
    let _ = attacker.run(&[0xfa, 0xeb, 0xfe], &mut Registers::default())?; // cli; jmp $
    // Where CLI isn't for CPL 3.
    loop {
        core::hint::spin_loop();
    }
}
