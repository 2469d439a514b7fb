//! Writes addresses and every enable bit to the debug registers.

use super::{Attack, Attacker};
use crate::trap::probe::Registers;
use crate::workloads::{Failure, check};

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "debug-registers",
    tries: "writes all debug registers and arms breakpoints on its own code and stack",
    run,
};

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    let here = attacker.write_code(&[])?;
    for register in [0_u8, 1, 2, 3, 4, 5, 6, 7] {
        for value in [here.get(), 0xffff_ffff, 0x0000_0355, u64::MAX, 0] {
            let mut registers = Registers { rax: value, ..Registers::default() };
            let done = attacker.run(&[0x0f, 0x23, 0xc0 | register << 3], &mut registers)?;
            check(done.is_err() || attacker.is_kernel(), "a debug register was written at CPL 3")?;
        }
    }
    Ok(())
}
