//! Floods the VMM with results, by the thousand in a call, until it ends the guest.

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
    // More than the VMM takes, where the effort is whole.
    let calls = attacker.some(260);
    for _ in 0..calls {
        let status = attacker.call(Op::Report as u32, (count * BYTES) as u32, 0, &[]);
        check(status == Some(Status::Ok), "a good result was refused")?;
    }
    check(calls < 260, "there is no end to results")
}
