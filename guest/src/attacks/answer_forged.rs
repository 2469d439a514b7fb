//! Answers a request for frames with lies: numbers of requests that there aren't, the same twice, frames by the
//! 2^64 that never came, and an exchange that names a request and gives nothing.

use umpa_abi::call::{Op, Status};

use super::{Attack, Attacker};
use crate::call;
use crate::workloads::{Failure, check};

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "answer-forged",
    tries: "answers requests that were never made, twice, and with frames that it never gave",
    run,
};

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    // The host asks at the first pause.
    call::pause(1);
    for id in [0, 2, 3, 1 << 32 | 1, 1 << 63, u64::MAX] {
        check(call::answer(id, 5) == Err(Status::NoSuchRequest), "an answer to nothing was taken")?;
    }
    check(call::answer(1, u64::MAX) == Ok(0), "frames that never came count")?;
    check(call::answer(1, 1) == Err(Status::NoSuchRequest), "a second answer was taken")?;
    for bytes in [[0xff; 32], [1; 32]] {
        let status = attacker.call(Op::Answer as u32, 32, 0, &bytes);
        check(status == Some(Status::BadPayload), "an answer that makes no sense was taken")?;
    }
    Ok(())
}
