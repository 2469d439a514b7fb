//! Recursion without end: below the stack there is nothing.

use core::hint::black_box;

use super::{Attack, Attacker};
use crate::workloads::{Failure, equal};

/// See the [module](self).
pub(super) const ATTACK: Attack =
    Attack { name: "deep-recursion", tries: "calls itself until its stack is full", run };

fn run(_: &mut Attacker<'_>) -> Result<(), Failure> {
    equal(deeper(1), 0, "there is no end to the stack")
}

#[inline(never)]
#[expect(unconditional_recursion, reason = "that is the attack")]
fn deeper(depth: u64) -> u64 {
    let here = black_box([depth; 16]);
    deeper(depth + 1) + here[(depth % 16) as usize]
}
