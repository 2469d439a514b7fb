//! CPUID with all standard, extended and hypervisor leaves, subleaves, and numbers at random.

use super::{Attack, Attacker};
use crate::trap::probe::Registers;
use crate::workloads::{Failure, check};

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "cpuid-probe",
    tries: "asks CPUID for every leaf that there may be, and many that there aren't",
    run,
};

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    let mut probe = |rax: u64, rcx: u64| {
        let mut registers = Registers { rax, rcx, ..Registers::default() };
        attacker.run(&[0x0f, 0xa2], &mut registers) // cpuid
    };
    for first in [0, 0x4000_0000, 0x8000_0000, 0x8fff_fff8, 0xc000_0000, 0xffff_fff0] {
        for leaf in 0..16 {
            for subleaf in [0, 1, 2, u64::from(u32::MAX)] {
                let done = probe(first + leaf, subleaf)?;
                check(done.is_ok(), "CPUID raised an exception")?;
            }
        }
    }
    Ok(())
}
