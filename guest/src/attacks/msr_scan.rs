//! Reads model-specific registers by the hundred. At CPL 3 none; at CPL 0 those that KVM shows, and no more.

use super::{Attack, Attacker};
use crate::trap::probe::Registers;
use crate::workloads::{Failure, check};

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "msr-scan",
    tries: "reads model-specific registers: the architecture's, AMD's, KVM's, Hyper-V's, x2APIC",
    run,
};

const RANGES: [(u64, u64); 7] = [
    (0, 0x200),
    (0x200, 0x600),
    (0x800, 0x900),
    (0x4b56_4d00, 0x4b56_4d10),
    (0x4000_0000, 0x4000_0120),
    (0xc000_0080, 0xc000_0110),
    (0xc001_0000, 0xc001_0140),
];

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    for (first, end) in RANGES {
        for number in attacker.steps(first, end) {
            let mut registers = Registers { rcx: number, ..Registers::default() };
            let done = attacker.run(&[0x0f, 0x32], &mut registers)?; // rdmsr
            check(done.is_err() || attacker.is_kernel(), "an MSR was read at CPL 3")?;
        }
    }
    Ok(())
}
