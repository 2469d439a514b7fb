//! Another processor rewrites an entry on the way to a page, of each level, between a frame of its own, one that
//! isn't, nothing, and no memory: while this one uses the page, and while the VMM walks the tables for its report.
//! Variant 4 rewrites the instruction instead, which the report decodes.

use umpa::hardware::Tlb;
use umpa_abi::addr::PageSize;
use umpa_abi::layout::direct;
use umpa_abi::paging::{ADDRESS, index};

use super::beside::{Beside, entry_at, rewrites};
use super::{Attack, Attacker, MARK};
use crate::mmu;
use crate::trap::probe::Registers;
use crate::workloads::{Failure, check};

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "race-tables",
    tries: "rewrites entries and code on one processor while another uses them and the VMM walks them",
    run,
};

/// Nobody has memory there.
const NOWHERE: u64 = 1 << 45;

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    let own = attacker.get(1, PageSize::Size4K)?;
    mmu::fill(own, MARK);
    let foreign = attacker.never_granted();
    if attacker.variant == 4 {
        return code(attacker, direct(own.start()).get(), direct(foreign.start()).get());
    }
    let gva = attacker.place(2);
    attacker.map(gva, own.start(), PageSize::Size4K)?;
    let level = 1 + attacker.variant as u32;
    let table = attacker.table(gva, level)?;
    let at = entry_at(table, index(gva, level));
    let good = mmu::load(umpa_abi::addr::Gva::new(at));
    let bits = good & !ADDRESS;
    let words = [at, good, foreign.start().get() | bits, 0, NOWHERE | bits];
    let beside = Beside::start(attacker, rewrites, &words)?;
    for turn in 0..attacker.some(400) {
        // Where processors are few they must take turns.
        beside.comes_round(u64::from(turn % 16 == 0));
        attacker.machine.flush_all();
        match attacker.load(gva) {
            Ok(MARK) | Err(_) => {}
            Ok(_) => return Err(Failure::new("a changing entry led to memory that isn't ours")),
        }
    }
    beside.end();
    Ok(())
}

fn code(attacker: &mut Attacker<'_>, own: u64, foreign: u64) -> Result<(), Failure> {
    /// mov rax, [rdi]; ret
    const GOOD: u64 = 0xc3_078b48;
    /// mov rax, [rsi]; ret
    const EVIL: u64 = 0xc3_068b48;
    let gva = attacker.write_code(&GOOD.to_le_bytes())?;
    let table = attacker.table(gva, 1)?;
    let frame = attacker.machine.tables.walk(gva);
    check(frame.table == table, "the code's page")?;
    let entry = mmu::load(umpa_abi::addr::Gva::new(entry_at(table, index(gva, 1))));
    let at = direct(umpa_abi::paging::address(entry)).get();
    let words = [at, GOOD, EVIL, GOOD, 0x00c3_068b_48f0];
    let beside = Beside::start(attacker, rewrites, &words)?;
    for turn in 0..attacker.some(400) {
        beside.comes_round(u64::from(turn % 8 == 0));
        let mut registers = Registers { rdi: own, rsi: foreign, ..Registers::default() };
        let done = attacker.run_at(gva, &mut registers);
        check(
            done.is_err() || registers.rax == MARK,
            "a changing instruction reached memory that isn't ours",
        )?;
    }
    beside.end();
    Ok(())
}
