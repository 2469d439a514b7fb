//! `edits`: user code edits its page tables: maps a frame at a fresh address, remaps, swaps, unmaps,
//! and shows through the data that each edit took effect. Nobody else is asked but for the frames.

use umpa::hardware::{FrameSource, TableMemory, Tlb};
use umpa_abi::addr::{Frame, Gva, PAGE_BYTES};
use umpa_abi::exchange::Policy;
use umpa_abi::layout::{BLOCKS_GVA, direct};
use umpa_abi::paging;
use umpa_abi::record::{Counter, Record, name};

use super::{Context, Failure, check, equal};
use crate::call;
use crate::machine::Machine;
use crate::mmu::{self, Slot};

/// Present, writable, allowed for CPL 3 where the workload needs it, and A and D set: the processor
/// has nothing to note, so nothing but the store happens.
const LEAF: u64 = paging::PRESENT | paging::WRITABLE | paging::ACCESSED | paging::DIRTY;

/// Makes the tables on the way to `page`, from unused frames of the arena.
pub(super) fn build_path(machine: &mut Machine, page: Gva, user: u64, unused: &mut Frame) -> Slot {
    loop {
        let slot = machine.tables.walk(page);
        if slot.level == 1 {
            return slot;
        }
        let table = *unused;
        *unused = table.offset(1);
        (0..paging::ENTRIES).for_each(|index| machine.tables.write(table, index, 0));
        let entry = table.start().get() | paging::PRESENT | paging::WRITABLE | paging::ACCESSED | user;
        machine.tables.write(slot.table, slot.index, entry);
    }
}

/// See the [module](self).
pub(super) fn run(context: &mut Context<'_>) -> Result<(), Failure> {
    let boot = context.boot;
    let machine = &mut context.machine;
    let user = if boot.ring == 3 { paging::USER } else { 0 };
    let mut unused = boot.tables_first().offset(boot.tables_used);

    let mut frames = [Frame::new(0); 2];
    let mut count = 0;
    machine.hypervisor.exchange(&[], [2, 0, 0], Policy::AllOrNothing, &mut |extent| {
        for i in 0..extent.frames() {
            frames[count] = extent.first().offset(i);
            count += 1;
        }
    });
    equal(count as u64, 2, "frames granted")?;
    let [red, blue] = frames;
    mmu::fill(red, 0x7ed);
    mmu::fill(blue, 0xb10e);
    let leaf = |frame: Frame| frame.start().get() | LEAF | user;

    // Map: a fresh address needs stores and no flush.
    let left = Gva::new(BLOCKS_GVA.get() + (5 << 30) + 3 * PAGE_BYTES);
    let right = Gva::new(left.get() + PAGE_BYTES);
    let left_slot = build_path(machine, left, user, &mut unused);
    let right_slot = Slot { index: left_slot.index + 1, ..left_slot };
    let path_stores = machine.tables.stores();
    machine.tables.write(left_slot.table, left_slot.index, leaf(red));
    equal(mmu::load(left), 0x7ed, "left after mapping red")?;
    mmu::store(left, 0x7ee);
    equal(mmu::load(direct(red.start())), 0x7ee, "red through the direct map after a store to left")?;
    equal(mmu::load(Gva::new(left.get() + 8)), 0x7ed, "the next word")?;

    // Remap.
    machine.tables.write(left_slot.table, left_slot.index, leaf(blue));
    machine.tlb.flush_page(left.containing());
    equal(mmu::load(left), 0xb10e, "left after remapping to blue")?;

    // Swap two.
    machine.tables.write(right_slot.table, right_slot.index, leaf(red));
    equal(mmu::load(right), 0x7ee, "right after mapping red")?;
    let (a, b) = (
        machine.tables.read(left_slot.table, left_slot.index),
        machine.tables.read(right_slot.table, right_slot.index),
    );
    machine.tables.write(left_slot.table, left_slot.index, b);
    machine.tables.write(right_slot.table, right_slot.index, a);
    machine.tlb.flush_all();
    equal(mmu::load(left), 0x7ee, "left after the swap")?;
    equal(mmu::load(right), 0xb10e, "right after the swap")?;

    // Unmap, and map the other one there: what is read is the new frame, never the old.
    for (slot, page, frame, wanted) in [(left_slot, left, blue, 0xb10e), (right_slot, right, red, 0x7ee)] {
        machine.tables.write(slot.table, slot.index, 0);
        machine.tlb.flush_page(page.containing());
        check(machine.tables.read(slot.table, slot.index) == 0, "an entry isn't what was stored")?;
        machine.tables.write(slot.table, slot.index, leaf(frame));
        equal(mmu::load(page), wanted, "after unmap, flush and map")?;
        machine.tables.write(slot.table, slot.index, 0);
        machine.tlb.flush_page(page.containing());
    }

    let (pages, all) = (machine.tlb.page_flushes(), machine.tlb.full_flushes());
    let stores = machine.tables.stores() - path_stores;
    equal(stores, 11, "stores")?;
    equal(pages, 5, "flushes of a page")?;
    equal(all, 1, "full flushes")?;
    for (what, value) in [("stores", stores), ("page-flushes", pages), ("full-flushes", all)] {
        let record = Record::Counter(Counter { name: name(what), value });
        check(call::report(&record).is_ok(), "a counter wasn't taken")?;
    }
    println!("edits: {stores} stores, {pages} page flushes, {all} full flush, each seen through the data");

    if context.arg(1) == Some("then-touch") {
        let _ = mmu::load(left);
        return Err(Failure::new("an unmapped page has been read"));
    }
    Ok(())
}
