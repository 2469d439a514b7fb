//! Accesses the trap stubs, their stack and the descriptor tables from CPL 3, where they aren't mapped for it.

use umpa_abi::addr::Gva;

use super::{Attack, Attacker, MARK, PF, raised};
use crate::trap;
use crate::trap::probe::Registers;
use crate::workloads::Failure;

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "trap-pages",
    tries: "reads, writes and runs the pages of the code at CPL 0, from CPL 3",
    run,
};

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    let stack = Gva::new(trap::stack_top().get() - 8);
    let mut table = [0_u64; 2];
    let mut registers = Registers { rdi: (&raw mut table) as u64 + 6, ..Registers::default() };
    // sidt [rdi]: the base lands at an even place.
    let done = attacker.run(&[0x0f, 0x01, 0x0f], &mut registers)?;
    let idt = if done.is_ok() { Gva::new(table[1]) } else { stack };
    for at in [stack, idt] {
        raised(attacker.load(at), &[PF], "a page of CPL 0 was read")?;
        raised(attacker.store(at, MARK), &[PF], "a page of CPL 0 was written")?;
        raised(attacker.run_at(at, &mut Registers::default()), &[PF], "a page of CPL 0 was executed")?;
    }
    Ok(())
}
