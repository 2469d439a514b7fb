//! Floods the VMM with results, by the thousand in a call, until it keeps no more.

use umpa_abi::Wire;
use umpa_abi::call::{Op, PAYLOAD_MAX_BYTES, Status};
use umpa_abi::record::{Counter, Record, name};

use super::{Attack, Attacker};
use crate::call::CallArea;
use crate::workloads::{Failure, check};

/// See the [module](self).
pub(super) const ATTACK: Attack =
    Attack { name: "report-flood", tries: "reports more results than the VMM keeps", run };

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    const BYTES: usize = 8 + Counter::SIZE_BYTES;
    let counter = Record::Counter(Counter { name: name("flood"), value: u64::MAX });
    let count = PAYLOAD_MAX_BYTES / BYTES;
    let mut area = CallArea::take();
    for place in area.payload().chunks_exact_mut(BYTES) {
        let _ = counter.encode(place);
    }
    drop(area);
    let calls = attacker.some(50);
    let mut last = Status::Ok;
    for _ in 0..calls {
        let bytes = (count * BYTES) as u32;
        last = attacker.call(Op::Report as u32, bytes, 0, &[]).ok_or(Failure::new("no status"))?;
        check(last == Status::Ok || last == Status::LimitReached, "a result was refused otherwise")?;
    }
    check(calls < 50 || last == Status::LimitReached, "there is no end to results")
}
