//! Gives back frames of the system slot: tables, stack, call area, code. They are the guest's and were never granted.

use umpa::hardware::TableMemory;
use umpa_abi::addr::PageSize;
use umpa_abi::exchange::Extent;
use umpa_abi::layout::SYSTEM_GPA;
use umpa_abi::paging;

use super::{Attack, Attacker};
use crate::workloads::Failure;

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "exchange-tables",
    tries: "gives back the frames that its page tables, its stack and its code lie in",
    run,
};

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    let here = attacker.boot.root().containing();
    let area = attacker.machine.tables.walk(attacker.boot.call_area());
    let entry = attacker.machine.tables.read(area.table, area.index);
    for frame in [here, area.table, paging::address(entry).containing(), SYSTEM_GPA.containing()] {
        attacker.refused(&[Extent::new(frame, 1, PageSize::Size4K)], [0; 3])?;
    }
    let all = Extent::new(attacker.boot.tables_first(), attacker.boot.tables_frames as u32, PageSize::Size4K);
    attacker.refused(&[all], [1, 0, 0])
}
