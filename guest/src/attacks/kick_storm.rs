//! Kicks and waits without requests, with commands that mean nothing, and in the end a request that is served.

use umpa_abi::addr::PageSize;
use umpa_abi::block::{READ, STATUS_OK};

use super::queue::Queue;
use super::{Attack, Attacker};
use crate::workloads::{Failure, check};

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "kick-storm",
    tries: "kicks the block device by the thousand, with every command, and nothing to do",
    run,
};

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    let frame = attacker.get(1, PageSize::Size4K)?;
    let mut queue = Queue::new(attacker)?;
    for turn in 0..attacker.some(1500) {
        let command = match turn % 4 {
            0 => 0,
            1 => 1 << 16 | attacker.rng.u32(..) & 0xffff,
            2 => 1 << (turn / 4 % 32),
            _ => attacker.rng.u32(..),
        };
        queue.kick(command);
        attacker.tried(1);
    }
    check(queue.used() == 0 && !queue.is_broken(), "something came of nothing")?;
    let head = queue.good(0, READ, 0, frame);
    check(queue.status_of(0, head)? == STATUS_OK, "a good request failed")
}
