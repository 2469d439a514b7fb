//! Loads CR3 with a frame that isn't its own. At CPL 3 the gate through which it flushes does that: it takes
//! whatever is in rax.

use umpa_abi::addr::{Gpa, PageSize};

use super::{Attack, Attacker};
use crate::trap::probe::Registers;
use crate::workloads::{Failure, check};

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "root-foreign",
    tries: "loads CR3 with frames that aren't its own: never granted, given back, outside, beyond",
    run,
};

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    let given_back = attacker.get(1, PageSize::Size4K)?;
    attacker.give(given_back, 1)?;
    let outside = Gpa::new(0x1000).containing();
    let roots = [attacker.never_granted(), given_back, outside, Gpa::new(1 << 51).containing()];
    let root = roots[attacker.variant as usize % roots.len()].start();
    let code: &[u8] = if attacker.is_kernel() {
        &[0x0f, 0x22, 0xd8] // mov cr3, rax
    } else {
        &[0x48, 0x8d, 0x35, 1, 0, 0, 0, 0xcc] // lea rsi, [rip + 1]; int3
    };
    let mut registers = Registers { rax: root.get(), ..Registers::default() };
    let done = attacker.run(code, &mut registers)?;
    check(done.is_err(), "the processor runs on with a root that isn't ours")
}
