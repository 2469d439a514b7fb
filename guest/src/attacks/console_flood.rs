//! Floods the console: 64 KiB a call, until the VMM ends it.

use umpa_abi::call::{Op, PAYLOAD_MAX_BYTES, Status};

use super::{Attack, Attacker};
use crate::call::CallArea;
use crate::workloads::{Failure, check};

/// See the [module](self).
pub(super) const ATTACK: Attack =
    Attack { name: "console-flood", tries: "prints more than the VMM takes", run };

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    let most = PAYLOAD_MAX_BYTES as u32;
    // More than the VMM takes, where the effort is whole.
    let calls = attacker.some(260);
    CallArea::take().payload().fill(b'x');
    for _ in 0..calls {
        let status = attacker.call(Op::Console as u32, most, 0, &[]);
        check(status == Some(Status::Ok), "text was refused")?;
    }
    check(calls < 260, "there is no end to text")
}
