//! INT n for every n. At CPL 3 the gates aren't for it; at CPL 0 some expect an error code that isn't there, and the guest ends itself.

use umpa_abi::boot::MmuMode;

use super::{Attack, Attacker};
use crate::trap::probe::Registers;
use crate::workloads::{Failure, check};

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "software-interrupts",
    tries: "raises every interrupt by INT n, and by INT1 and INTO",
    run,
};

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    if attacker.is_kernel() {
        let vector = [0, 8, 13, 14, 32, 64, 128, 255][attacker.variant as usize % 8];
        let _ = attacker.run(&[0xcd, vector], &mut Registers::default())?;
        return Ok(());
    }
    for vector in 0..=255 {
        let done = attacker.run(&[0xcd, vector], &mut Registers::default())?;
        // kvm-pvm keeps 0x1a for itself: it clears the general registers and goes on.
        let is_pvms = vector == 0x1a && attacker.boot.mode() == MmuMode::Shadow;
        check(done.is_err() || is_pvms, "INT n did something")?;
    }
    let _ = attacker.run(&[0xf1], &mut Registers::default())?; // int1
    let done = attacker.run(&[0xce], &mut Registers::default())?; // into: none in 64-bit mode
    check(done.is_err(), "INTO did something")
}
