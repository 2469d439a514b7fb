//! Two processors give the same frame back at the same moment: one of them has it taken, once.

use umpa_abi::addr::{Frame, PageSize};

use super::beside::{Beside, give_one, set_word, turn, word};
use super::{Attack, Attacker};
use crate::processors::Processor;
use crate::workloads::{Failure, equal};

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "race-give",
    tries: "gives the same frame back on two processors at the same moment",
    run,
};

/// Words: the round that has begun, its frame, the round that the other one has done, what it had taken.
const ROUND: usize = 0;
const FRAME: usize = 1;
const DONE: usize = 2;
const TAKEN: usize = 3;

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    let beside = Beside::start(attacker, gives, &[0; 4])?;
    for round in 1..=attacker.some(100) {
        let frame = attacker.get(1, PageSize::Size4K)?;
        set_word(FRAME, frame.get());
        set_word(ROUND, round);
        let taken = give_one(&mut attacker.machine.hypervisor, frame);
        attacker.tried(2);
        while word(DONE) != round {
            core::hint::spin_loop();
        }
        equal(taken + word(TAKEN), 1, "times that a frame was taken")?;
    }
    beside.end();
    Ok(())
}

fn gives(processor: &mut Processor, _: u64) -> u64 {
    let mut done = 0;
    while turn() {
        let round = word(ROUND);
        if round == done {
            core::hint::spin_loop();
            continue;
        }
        set_word(TAKEN, give_one(&mut processor.hypervisor, Frame::new(word(FRAME))));
        done = round;
        set_word(DONE, round);
    }
    0
}
