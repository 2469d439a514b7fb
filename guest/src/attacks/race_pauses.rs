//! Two processors pause, print and call as fast as they can: each has its own answers.

use umpa_abi::call::{Op, Status};

use super::beside::{Beside, turn};
use super::{Attack, Attacker};
use crate::call;
use crate::processors::Processor;
use crate::workloads::{Failure, equal};

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "race-pauses",
    tries: "pauses, prints and calls on two processors at once, and looks for the other one's answers",
    run,
};

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    let beside = Beside::start(attacker, calls, &[])?;
    let mut wrong = 0;
    for turn in 0..attacker.some(60) {
        wrong += call::pause(turn);
        print!(".");
        let status = attacker.call(Op::Answer as u32, 0, 7, &[]);
        wrong += u64::from(status != Some(Status::BadPayload));
    }
    wrong += beside.end();
    equal(wrong, 0, "answers to somebody else")
}

/// Its answers are others: a request that isn't there.
fn calls(_: &mut Processor, _: u64) -> u64 {
    let mut wrong = 0;
    while turn() {
        wrong += u64::from(call::answer(5, 1) != Err(Status::NoSuchRequest));
        wrong += call::pause(1 << 32);
        print!(":");
    }
    wrong
}
