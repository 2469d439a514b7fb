//! One processor has its page file read into a frame that serves as a page table, without a rest; the other uses
//! the table, until it leads to a frame that isn't its own, and the VMM walks what changes under it.

use umpa::hardware::Tlb;
use umpa_abi::addr::{Frame, Gva, PAGE_BYTES};
use umpa_abi::block::READ;

use super::beside::{Beside, turn, word};
use super::queue::{Queue, TableOnDisk};
use super::{Attack, Attacker, MARK};
use crate::mmu;
use crate::processors::Processor;
use crate::workloads::{Failure, check};

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "race-disk",
    tries: "reads page tables from its page file on one processor while another walks them",
    run,
};

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    let TableOnDisk { queue, table, good, gva } = TableOnDisk::new(attacker)?;
    mmu::fill(good, MARK);
    let words = [table.get(), attacker.boot.block_queue, attacker.boot.block_queue_gpa, queue.offered.into()];
    let beside = Beside::start(attacker, reads, &words)?;
    for turn in 0..attacker.some(400) {
        attacker.machine.flush_all();
        match attacker.load(Gva::new(gva.get() + turn % 512 * PAGE_BYTES)) {
            Ok(MARK) | Err(_) => {}
            Ok(_) => return Err(Failure::new("a changing table led to memory that isn't ours")),
        }
    }
    check(beside.end() == 0, "the device doesn't come to an end")
}

fn reads(_: &mut Processor, _: u64) -> u64 {
    let table = Frame::new(word(0));
    let mut queue = Queue::at(Gva::new(word(1)), word(2), word(3) as u16);
    let mut stuck = 0;
    while turn() {
        let head = queue.good(0, READ, u64::from(queue.offered) % 2, table);
        queue.offer(head);
        queue.show(queue.offered);
        stuck += u64::from(queue.settle().is_err());
    }
    stuck
}
