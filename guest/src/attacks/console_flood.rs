//! Floods the console: 64 KiB a call, until the VMM takes no more.

use umpa_abi::call::{Op, PAYLOAD_MAX_BYTES, Status};

use super::{Attack, Attacker};
use crate::call::CallArea;
use crate::workloads::{Failure, check};

/// See the [module](self).
pub(super) const ATTACK: Attack =
    Attack { name: "console-flood", tries: "prints more than the VMM takes", run };

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    let most = PAYLOAD_MAX_BYTES as u32;
    let calls = attacker.some(260);
    let mut area = CallArea::take();
    area.payload().fill(b'x');
    drop(area);
    let mut last = Status::Ok;
    for _ in 0..calls {
        last = attacker.call(Op::Console as u32, most, 0, &[]).ok_or(Failure::new("no status"))?;
        check(last == Status::Ok || last == Status::LimitReached, "text was refused otherwise")?;
    }
    check(calls < 260 || last == Status::LimitReached, "there is no end to text")
}
