//! Executes HLT. At CPL 3 that is an exception; at CPL 0 nothing could wake it.

use super::{Attack, Attacker, GP, raised};
use crate::trap::probe::Registers;
use crate::workloads::Failure;

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack { name: "halt", tries: "halts, where nothing could wake it", run };

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    let halted = attacker.run(&[0xf4], &mut Registers::default())?; // hlt
    raised(halted, &[GP], "the processor went on after HLT")
}
