//! Executes what lies in data pages: the processor's NX keeps a guest from running its own data.

use umpa_abi::addr::{Gva, PageSize};
use umpa_abi::layout::direct;

use super::{Attack, Attacker, PF, raised};
use crate::trap::probe::Registers;
use crate::workloads::Failure;

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "execute-data",
    tries: "executes data: a frame and the stack, both mapped without the right to",
    run,
};

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    static RET: u64 = 0xc3;
    let frame = attacker.get(1, PageSize::Size4K)?;
    attacker.write(frame.start(), &[0xc3]);
    let stack = 0xc3_u64;
    for at in [direct(frame.start()).get(), (&raw const stack) as u64, (&raw const RET) as u64] {
        let done = attacker.run_at(Gva::new(at), &mut Registers::default());
        raised(done, &[PF], "data was executed")?;
    }
    Ok(())
}
