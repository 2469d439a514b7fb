//! What attacks on frames given back have in common.

use umpa::hardware::Tlb;
use umpa_abi::addr::PageSize;

use super::{Attacker, MARK, Way};
use crate::workloads::{Failure, check};

/// Gets a frame, uses it, gives it back and touches it again: through a translation that is still cached
/// (variant 0), after a flush (1), and after others were granted and given back (2).
pub(super) fn given_back(attacker: &mut Attacker<'_>, way: Way) -> Result<(), Failure> {
    let first = attacker.get(8, PageSize::Size4K)?;
    let frame = first.offset(3);
    let gva = attacker.open(frame.start())?;
    check(attacker.store(gva, MARK).is_ok(), "a granted frame can't be written")?;
    check(attacker.load(gva) == Ok(MARK), "a granted frame can't be read")?;
    attacker.target(frame.start());
    match attacker.variant {
        0 => attacker.give(frame, 1)?,
        1 => {
            attacker.give(frame, 1)?;
            attacker.machine.flush_all();
        }
        _ => {
            attacker.give(first, 8)?;
            // The lowest free frames are granted first: not this one.
            attacker.get(2, PageSize::Size4K)?;
        }
    }
    attacker.touch(way, gva)
}
