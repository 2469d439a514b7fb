//! With the pool used up, gives a frame back for the other guest, or whoever wants it, and touches it at once through
//! a translation that is still cached. It is on its way, or there already: it isn't this guest's in either case.

use super::pool::use_up;
use super::{Attack, Attacker, MARK, Way};
use crate::workloads::{Failure, check};

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "pool-in-transfer",
    tries: "touches a frame of the shared pool that is on its way to another guest, by a stale translation",
    run,
};

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    let (frame, _) = use_up(attacker)?;
    let gva = attacker.open(frame.start())?;
    check(attacker.store(gva, MARK).is_ok(), "a granted frame can't be written")?;
    check(attacker.load(gva) == Ok(MARK), "a granted frame can't be read")?;
    attacker.target(frame.start());
    attacker.give(frame, 1)?;
    let way = [Way::Read, Way::Write, Way::Locked, Way::CopyFrom][attacker.variant as usize % 4];
    attacker.touch(way, gva)
}
