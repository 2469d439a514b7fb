//! Copies by one string instruction that begins in a granted frame and ends in one that isn't: what was done
//! before the border may be seen, nothing behind it.

use umpa_abi::addr::{Gpa, PageSize};
use umpa_abi::layout::direct;

use super::{Attack, Attacker, hardware};
use crate::trap::probe::Registers;
use crate::workloads::{Failure, check};

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "string-ungranted",
    tries: "copies, by a string instruction, from its own frame on into one never granted, and back",
    run,
};

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    let own = attacker.get(1, PageSize::Size4K)?;
    let border = own.offset(1).start();
    attacker.target(border);
    let at = direct(Gpa::new(border.get() - 64)).get();
    let mut scratch = [0_u64; 16];
    let there = (&raw mut scratch) as u64;
    let (rsi, rdi) = if attacker.variant == 0 { (at, there) } else { (there, at) };
    let mut registers = Registers { rcx: 128, rsi, rdi, ..Registers::default() };
    let done = attacker.run_at(hardware::copy(), &mut registers);
    check(done.is_err(), "a copy has crossed into memory that isn't ours")
}
