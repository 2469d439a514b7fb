//! One processor gives a frame back while another reads, writes, executes, locks it, has it as its stack, copies
//! from or to it (a variant each), or walks it as a page table (variant 7). When the call returns it is gone.

use umpa_abi::addr::{Gva, PAGE_BYTES, PageSize};

use umpa::hardware::Tlb;

use super::beside::{Beside, access, set_word, turn, word};
use super::{Attack, Attacker, MARK, Way};
use crate::mmu;
use crate::processors::Processor;
use crate::workloads::{Failure, equal};

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "race-given-back",
    tries: "gives a frame back on one processor while another uses it in every way",
    run,
};

/// `ret`, eight times: a frame of these can be executed.
const RETURNS: u64 = 0xc3c3_c3c3_c3c3_c3c3;
/// The word that says that it is gone.
const GONE: usize = 2;

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    let frame = attacker.get(2, PageSize::Size4K)?;
    let beside = if attacker.variant == 7 {
        let page = frame.offset(1);
        mmu::fill(page, MARK);
        mmu::fill(frame, page.start().get() | attacker.data_bits());
        let gva = attacker.place(2);
        attacker.set(gva, 2, frame.start().get() | attacker.table_bits())?;
        attacker.target(frame.start());
        Beside::start(attacker, walks, &[0, gva.get()])?
    } else {
        mmu::fill(frame, RETURNS);
        let gva = attacker.open(frame.start())?;
        attacker.target(frame.start());
        Beside::start(attacker, uses, &[0, gva.get()])?
    };
    beside.comes_round(2);
    attacker.give(frame, 1)?;
    set_word(GONE, 1);
    // It ends in these, if it is stopped.
    beside.comes_round(16);
    equal(beside.end(), 0, "a frame was used after it was given back")
}

fn uses(_: &mut Processor, variant: u64) -> u64 {
    let gva = Gva::new(word(1));
    let mut used = 0;
    loop {
        let was_gone = word(GONE) != 0;
        let done = access(Way::of(variant), gva);
        used += u64::from(was_gone && done.is_ok());
        if !turn() {
            return used;
        }
    }
}

/// Its own frame lies behind the table: what a processor or KVM still knows of the table does no harm.
fn walks(processor: &mut Processor, _: u64) -> u64 {
    let mut wrong = 0;
    for page in (0..512).cycle() {
        processor.tlb.flush_all();
        let found = access(Way::Read, Gva::new(word(1) + page * PAGE_BYTES));
        wrong += u64::from(found.is_ok_and(|found| found != MARK));
        if !turn() {
            break;
        }
    }
    wrong
}
