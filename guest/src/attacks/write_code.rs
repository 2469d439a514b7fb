//! Stores to what the VMM has mapped read-only for it.

use umpa_abi::addr::Gva;
use umpa_abi::layout::SYSTEM_GVA;

use super::{Attack, Attacker, MARK, PF, hardware, raised};
use crate::workloads::{Failure, check};

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "write-code",
    tries: "writes to its code, its constants, its boot information and the request page",
    run,
};

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    static CONSTANT: u64 = 1;
    let constant = Gva::new((&raw const CONSTANT) as u64);
    for at in [hardware::load(), constant, Gva::new(SYSTEM_GVA.get() + 64), attacker.boot.requests()] {
        let before = attacker.load(at);
        raised(attacker.store(at, MARK), &[PF], "a read-only page was written")?;
        check(attacker.load(at) == before, "a read-only page has changed")?;
    }
    Ok(())
}
