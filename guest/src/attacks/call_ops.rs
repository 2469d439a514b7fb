//! Calls with numbers that no call has, from 0 to 2^32.

use umpa_abi::call::Status;

use super::{Attack, Attacker};
use crate::workloads::{Failure, check};

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "call-ops",
    tries: "makes calls with every number near those that there are, and thousands of others",
    run,
};

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    let others = attacker.some(1500);
    for index in 0..others {
        let op = match index {
            0 => 0,
            1..40 => 7 + index as u32,
            40..72 => 1 << (index - 40),
            _ => attacker.rng.u32(..),
        };
        if (1..=7).contains(&op) {
            continue;
        }
        let status = attacker.call(op, 64, u64::MAX, &[0xff; 64]);
        check(status == Some(Status::UnknownOp), "a call that isn't there was answered")?;
    }
    Ok(())
}
