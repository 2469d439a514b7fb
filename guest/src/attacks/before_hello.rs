//! Every call before Hello, in the guest's first moments: none is served, and none does anything.

use umpa_abi::call::{Op, Status};

use super::{Attack, Attacker};
use crate::call;
use crate::workloads::{Failure, check};

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "before-hello",
    tries: "makes every call, with payload and without, before it has said which version it speaks",
    run,
};

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    for op in [Op::Console, Op::Exchange, Op::Report, Op::Pause, Op::Exit, Op::Answer] {
        for in_bytes in [0, 1, 64, 80, 4096, 0xffc0] {
            for arg in [0, 1, u64::MAX] {
                let status = attacker.call(op as u32, in_bytes, arg, &[0x41; 256]);
                check(status == Some(Status::NoHello), "a call before Hello was served")?;
            }
        }
    }
    for op in [0, 99, u32::MAX] {
        let status = attacker.call(op, 0, 0, &[]);
        check(status == Some(Status::UnknownOp), "a call that there isn't was served")?;
    }
    // Lengths beyond the area, before anything else was looked at.
    let status = attacker.call(Op::Exchange as u32, u32::MAX, 0, &[]);
    check(status == Some(Status::BadPayload), "a length beyond the area was taken")?;
    // Now it is a guest like any other.
    check(call::hello().is_ok(), "Hello was refused")?;
    let before = attacker.call(Op::Exchange as u32, 0, 0, &[]);
    check(before == Some(Status::BadPayload), "a call without payload was taken")
}
