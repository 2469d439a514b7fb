//! Each hypercall with payload lengths at edges: what is longer than the area is refused, the rest is read from the area and nowhere else.

use umpa_abi::call::{Op, PAYLOAD_MAX_BYTES, Status};

use super::{Attack, Attacker};
use crate::workloads::{Failure, check};

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "call-lengths",
    tries: "makes every call with lengths at the edges, and beyond the call area",
    run,
};

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    let most = PAYLOAD_MAX_BYTES as u32;
    for op in [Op::Console, Op::Exchange, Op::Report, Op::Answer].map(|op| op as u32) {
        for in_bytes in
            [most + 1, most + 64, 1 << 16, 1 << 20, i32::MAX as u32, 1 << 31, u32::MAX - 63, u32::MAX]
        {
            let status = attacker.call(op, in_bytes, 0, &[]);
            check(status == Some(Status::BadPayload), "a payload beyond the call area was taken")?;
        }
        for in_bytes in [0, 1, 7, 31, 63, 64, 65, 79, 81] {
            let status = attacker.call(op, in_bytes, 0, &[0x11; 81]);
            check(status.is_some(), "an answer without a status")?;
            let is_taken = op == Op::Console as u32 || in_bytes == 0 && op == Op::Report as u32;
            check(is_taken == (status == Some(Status::Ok)), "a payload that makes no sense was taken")?;
        }
    }
    Ok(())
}
