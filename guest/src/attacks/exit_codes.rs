//! Exit with numbers that are no exit code: it isn't an end.

use umpa_abi::call::{Op, Status};

use super::{Attack, Attacker};
use crate::workloads::{Failure, check};

/// See the [module](self).
pub(super) const ATTACK: Attack =
    Attack { name: "exit-codes", tries: "ends with codes that there are not", run };

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    for code in [4, 5, 255, 1 << 31, u64::from(u32::MAX), 1 << 32, 1 << 32 | 1, 1 << 63, u64::MAX] {
        let status = attacker.call(Op::Exit as u32, 0, code, &[]);
        check(status == Some(Status::BadPayload), "an exit code that isn't one")?;
    }
    Ok(())
}
