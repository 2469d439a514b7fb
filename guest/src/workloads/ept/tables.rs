//! `ept-tables`: stores to page tables and flushes, one by one, for `vmm bench ept`. In rounds of steps.
//!
//! Everything is written by hand ([`Tree`]); what is read through the tables afterwards must be what was stored.

use umpa::hardware::{TableMemory, Tlb};
use umpa_abi::addr::{Frame, Gva, PAGE_BYTES, PageSize};
use umpa_abi::layout::{BLOCKS_GVA, direct};
use umpa_abi::paging::{self, ENTRIES};
use work::raw::tsc_cycles;

use super::{Counted, frames, step};
use crate::machine::Machine;
use crate::mmu;
use crate::rounds::{self, Steps};
use crate::tree::{self, Tree};
use crate::workloads::{Context, Failure, equal};

/// Pages that one table maps, and the frames behind them.
const PAGES: u64 = ENTRIES as u64;
/// Tables that are linked one after another.
const LINKS: usize = 16;
/// Flushes of a step.
const FLUSHES: u64 = 16;
/// Pages that are touched again after a flush of everything.
const REFILLS: u64 = 64;

/// Leaf tables that are new in each round.
const NEW: Gva = Gva::new(BLOCKS_GVA.get() + (1 << 40));
/// A leaf table that is walked.
const WALKED: Gva = Gva::new(BLOCKS_GVA.get() + (2 << 40));
/// Tables that are linked at level 2, and at level 3.
const LINKED: [Gva; 2] = [Gva::new(BLOCKS_GVA.get() + (3 << 40)), Gva::new(BLOCKS_GVA.get() + (4 << 40))];

struct Tables<'a> {
    machine: &'a mut Machine,
    tree: Tree,
    first: Frame,
    /// Leaf tables that were used up.
    used: u64,
    walked: Frame,
    /// What the walked table's pages map: page `n` the frame `(n + shift) mod PAGES`.
    shift: u64,
    spares: [Frame; LINKS],
}

fn page(base: Gva, number: u64) -> Gva {
    Gva::new(base.get() + number * PAGE_BYTES)
}

impl Tables<'_> {
    fn frame(&self, page: u64, shift: u64) -> Frame {
        self.first.offset((page + shift) % PAGES)
    }

    fn leaf(&self, page: u64) -> u64 {
        tree::leaf(self.frame(page, self.shift), PageSize::Size4K, tree::DATA)
    }

    /// Every page holds the number of the frame that it was mapped to last.
    fn read(&self, base: Gva, shift: u64) -> Result<(), Failure> {
        (0..PAGES).try_for_each(|number| {
            let found = mmu::load(page(base, number));
            equal(found, self.frame(number, shift).get(), "a page's content by the entry that was stored")
        })
    }

    /// A leaf table that was never walked: linked, and empty.
    fn new_leaves(&mut self, steps: &mut Steps) -> Result<(), Failure> {
        let base = Gva::new(NEW.get() + self.used * PageSize::Size2M.bytes());
        let table = self.tree.table(self.machine, base, 1)?;
        self.used += 1;
        // Its page in the direct map is there, as of any table that was used before.
        self.machine.tables.write(table, 0, 0);
        let shift = self.shift;
        step(steps, self.machine, Counted::of("leaf-store-new", PAGES), |machine| {
            let start = tsc_cycles();
            for number in 0..PAGES {
                let frame = self.first.offset((number + shift) % PAGES);
                machine.tables.write(table, number as usize, tree::leaf(frame, PageSize::Size4K, tree::DATA));
            }
            Ok(tsc_cycles().wrapping_sub(start))
        })?;
        self.read(base, shift)
    }

    /// Stores to a leaf table whose entries the processor has read: the first after a flush, and the others.
    fn walked_leaves(&mut self, steps: &mut Steps) -> Result<(), Failure> {
        self.machine.flush_all();
        self.read(WALKED, self.shift)?;
        self.shift += 1;
        let (table, first) = (self.walked, self.leaf(0));
        step(steps, self.machine, Counted::of("leaf-store-first", 1), |machine| {
            let start = tsc_cycles();
            machine.tables.write(table, 0, first);
            Ok(tsc_cycles().wrapping_sub(start))
        })?;
        let (frames, shift) = (self.first, self.shift);
        step(steps, self.machine, Counted::of("leaf-store-walked", PAGES - 1), |machine| {
            let start = tsc_cycles();
            for number in 1..PAGES {
                let frame = frames.offset((number + shift) % PAGES);
                machine.tables.write(table, number as usize, tree::leaf(frame, PageSize::Size4K, tree::DATA));
            }
            Ok(tsc_cycles().wrapping_sub(start))
        })?;
        self.machine.flush_all();
        self.read(WALKED, self.shift)
    }

    /// Links empty tables at a level whose table is walked, and unlinks them.
    fn links(&mut self, steps: &mut Steps, work: &str, base: Gva, level: u32) -> Result<(), Failure> {
        let table = self.tree.table(self.machine, base, level)?;
        // The page behind the first entry is mapped; the walk has been there.
        let _ = mmu::load(base);
        let spares = self.spares;
        step(steps, self.machine, Counted::of(work, LINKS as u64), |machine| {
            let start = tsc_cycles();
            for (number, &spare) in spares.iter().enumerate() {
                machine.tables.write(table, 1 + number, tree::link(spare));
            }
            Ok(tsc_cycles().wrapping_sub(start))
        })?;
        for (number, spare) in spares.into_iter().enumerate() {
            let linked = paging::address(self.machine.tables.read(table, 1 + number)).containing();
            equal(linked.get(), spare.get(), "a table that was linked")?;
            self.machine.tables.write(table, 1 + number, 0);
        }
        self.machine.flush_all();
        Ok(())
    }

    fn flushes(&mut self, steps: &mut Steps) -> Result<(), Failure> {
        let touch =
            |pages: u64| (0..pages).map(|number| mmu::load(page(WALKED, number))).fold(0, u64::wrapping_add);
        let wanted = touch(REFILLS);
        for (work, all, refill) in [
            ("flush-page", false, None),
            ("flush-page-touch", false, Some(1)),
            ("flush-all", true, None),
            ("flush-all-touch", true, Some(REFILLS)),
        ] {
            let (mut cycles, mut read) = (0u64, wanted);
            step(steps, self.machine, Counted::of(work, FLUSHES), |machine| {
                for _ in 0..FLUSHES {
                    // What is flushed is cached.
                    touch(REFILLS);
                    let start = tsc_cycles();
                    if all {
                        machine.tlb.flush_all()
                    } else {
                        machine.tlb.flush_page(WALKED.containing())
                    }
                    if let Some(pages) = refill {
                        read = touch(pages);
                    }
                    cycles += tsc_cycles().wrapping_sub(start);
                }
                Ok(cycles)
            })?;
            equal(read, if refill == Some(1) { touch(1) } else { wanted }, "pages read after flushes")?;
        }
        Ok(())
    }
}

/// See the [module](self).
pub(in crate::workloads) fn run(context: &mut Context<'_>) -> Result<(), Failure> {
    let machine = &mut context.machine;
    let mut tree = Tree::new(context.boot);
    let first = frames(machine, PageSize::Size2M.bytes())?;
    for number in 0..PAGES {
        let frame = first.offset(number);
        mmu::store(direct(frame.start()), frame.get());
    }
    tree.map(machine, WALKED, first, PageSize::Size2M.bytes(), PageSize::Size4K, tree::DATA)?;
    let walked = tree.table(machine, WALKED, 1)?;
    for base in LINKED {
        tree.map(machine, base, first, PAGE_BYTES, PageSize::Size4K, tree::DATA)?;
    }
    let mut spares = [first; LINKS];
    for spare in &mut spares {
        *spare = tree.spare()?;
        // As above.
        machine.tables.write(*spare, 0, 0);
    }
    let mut tables = Tables { machine, tree, first, used: 0, walked, shift: 0, spares };
    rounds::steps(|steps| {
        tables.new_leaves(steps)?;
        tables.walked_leaves(steps)?;
        tables.links(steps, "table-link-2", LINKED[0], 2)?;
        tables.links(steps, "table-link-3", LINKED[1], 3)?;
        tables.flushes(steps)
    })
}
