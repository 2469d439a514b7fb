//! `ept-touch SERIES`: first accesses to pages, by what is there already and what the processor has to note, for
//! `vmm bench ept`. In rounds of steps.
//!
//! | works | what is there before |
//! | --- | --- |
//! | `touch-…` | the frame was used, through other addresses; the leaf is new |
//! | `touch-…-granted` | frame and leaf are new: it was granted in this round, and is given back |
//! | `write-d-…`, `read-a-…` | the leaf is new but for one access; D or A is set, or the processor sets it |
//!
//! What was stored is read back through the direct map, at the end of each step.

use umpa::hardware::{FrameSource, TableMemory, Tlb};
use umpa_abi::addr::{Frame, Gva, PAGE_BYTES, PageSize};
use umpa_abi::exchange::{Extent, Policy};
use umpa_abi::layout::{BLOCKS_GVA, direct};
use umpa_abi::paging::{ACCESSED, DIRTY};
use umpa_abi::record::{Name, name};
use work::raw::tsc_cycles;

use super::{Counted, frames, step};
use crate::machine::Machine;
use crate::mmu;
use crate::rounds::{self, Steps};
use crate::tree::{self, DATA, Tree};
use crate::workloads::{Context, Failure, check, equal};

/// Large pages of each kind, and small ones.
const LARGE: u64 = 8;
const SMALL: u64 = 512;
const AREA: Gva = Gva::new(BLOCKS_GVA.get() + (1 << 40));

struct Touch<'a> {
    machine: &'a mut Machine,
    tree: Tree,
    series: Name,
    /// Frames that were used.
    used: Frame,
    stamp: u64,
}

/// Pages at a distance.
#[derive(Clone, Copy)]
struct Pages {
    first: u64,
    count: u64,
    stride: u64,
}

impl Pages {
    const fn all(count: u64) -> Self {
        Self { first: 0, count, stride: 1 }
    }

    fn numbers(self) -> impl Iterator<Item = u64> {
        (0..self.count).map(move |number| self.first + number * self.stride)
    }
}

fn at(number: u64) -> Gva {
    // Another line in each page.
    Gva::new(AREA.get() + number * PAGE_BYTES + number % 64 * 64)
}

impl Touch<'_> {
    /// Maps the area to frames, by new leaves.
    fn map(&mut self, first: Frame, bytes: u64, size: PageSize, bits: u64) -> Result<(), Failure> {
        self.tree.map(self.machine, AREA, first, bytes, size, bits)
    }

    /// Takes all leaves of the area away.
    fn unmap(&mut self, bytes: u64, size: PageSize) -> Result<(), Failure> {
        for number in 0..bytes / size.bytes() {
            let gva = Gva::new(AREA.get() + number * size.bytes());
            let slot = self.machine.tables.walk(gva);
            check(slot.level == tree::level(size), "a leaf of another size")?;
            self.machine.tables.write(slot.table, slot.index, 0);
        }
        self.machine.flush_all();
        Ok(())
    }

    /// Stores to pages, timed, and checks what is in the frames.
    fn store(&mut self, steps: &mut Steps, work: &str, first: Frame, pages: Pages) -> Result<(), Failure> {
        self.stamp += 1;
        let stamp = self.stamp << 32;
        let counted = Counted { series: self.series, ..Counted::of(work, pages.count) };
        step(steps, self.machine, counted, |_| {
            let start = tsc_cycles();
            pages.numbers().for_each(|number| mmu::store(at(number), stamp | number));
            Ok(tsc_cycles().wrapping_sub(start))
        })?;
        pages.numbers().try_for_each(|number| {
            let offset = at(number).get() - AREA.get();
            let found = mmu::load(direct(umpa_abi::addr::Gpa::new(first.start().get() + offset)));
            equal(found, stamp | number, "what is in a frame after a store to its page")
        })
    }

    /// Loads from pages, timed.
    fn load(&mut self, steps: &mut Steps, work: &str, pages: Pages) -> Result<(), Failure> {
        let sum = || pages.numbers().map(|number| mmu::load(at(number))).fold(0, u64::wrapping_add);
        let mut read = 0;
        let counted = Counted { series: self.series, ..Counted::of(work, pages.count) };
        step(steps, self.machine, counted, |_| {
            let start = tsc_cycles();
            read = sum();
            Ok(tsc_cycles().wrapping_sub(start))
        })?;
        equal(read, sum(), "what is read a second time")
    }

    fn small(&mut self, steps: &mut Steps) -> Result<(), Failure> {
        let (bytes, size, all) = (SMALL * PAGE_BYTES, PageSize::Size4K, Pages::all(SMALL));
        let read = || all.numbers().for_each(|number| _ = mmu::load(at(number)));
        let used = self.used;
        self.map(used, bytes, size, DATA)?;
        self.store(steps, "touch-4k", used, all)?;
        self.store(steps, "touch-again", used, all)?;
        self.unmap(bytes, size)?;
        self.map(used, bytes, size, DATA & !(ACCESSED | DIRTY))?;
        self.store(steps, "touch-4k-clean", used, all)?;
        self.unmap(bytes, size)?;
        for (work, bits) in [("write-d-clear", DATA & !DIRTY), ("write-d-set", DATA)] {
            self.map(used, bytes, size, bits)?;
            read();
            self.store(steps, work, used, all)?;
            self.unmap(bytes, size)?;
        }
        for (work, bits) in [("read-a-clear", DATA & !(ACCESSED | DIRTY)), ("read-a-set", DATA & !DIRTY)] {
            self.map(used, bytes, size, bits)?;
            self.load(steps, work, all)?;
            self.unmap(bytes, size)?;
        }
        Ok(())
    }

    /// The first store to each large page, then one to each other 4 KiB of it.
    fn large(&mut self, steps: &mut Steps, works: [&str; 2], first: Frame) -> Result<(), Failure> {
        let (size, frames) = (PageSize::Size2M, PageSize::Size2M.frames());
        self.map(first, LARGE * size.bytes(), size, DATA)?;
        self.store(steps, works[0], first, Pages { first: 0, count: LARGE, stride: frames })?;
        self.store(steps, works[1], first, Pages { first: 1, count: LARGE * frames - 1, stride: 1 })?;
        self.unmap(LARGE * size.bytes(), size)
    }

    /// Frames that were never used by this guest since they were granted.
    fn granted(&mut self, steps: &mut Steps) -> Result<(), Failure> {
        for size in [PageSize::Size4K, PageSize::Size2M] {
            let pages = if size == PageSize::Size4K { 1 } else { LARGE };
            let first = frames(self.machine, pages * PageSize::Size2M.bytes())?;
            if size == PageSize::Size4K {
                self.map(first, SMALL * PAGE_BYTES, size, DATA)?;
                self.store(steps, "touch-4k-granted", first, Pages::all(SMALL))?;
                self.unmap(SMALL * PAGE_BYTES, size)?;
            } else {
                self.large(steps, ["touch-2m-granted", "touch-2m-granted-rest"], first)?;
            }
            let back = [Extent::new(first, pages as u32, PageSize::Size2M)];
            let taken = self.machine.exchange(&back, [0; 3], Policy::AllOrNothing, &mut |_| {}).taken_frames;
            equal(taken, pages * PageSize::Size2M.frames(), "frames given back")?;
        }
        Ok(())
    }
}

/// See the [module](self).
pub(in crate::workloads) fn run(context: &mut Context<'_>) -> Result<(), Failure> {
    let series = name(context.arg(1).unwrap_or("guest"));
    let machine = &mut context.machine;
    let tree = Tree::new(context.boot);
    let used = frames(machine, LARGE * PageSize::Size2M.bytes())?;
    for number in 0..LARGE * PageSize::Size2M.frames() {
        mmu::store(direct(used.offset(number).start()), number);
    }
    let mut touch = Touch { machine, tree, series, used, stamp: 0 };
    rounds::steps(|steps| {
        touch.small(steps)?;
        touch.large(steps, ["touch-2m", "touch-2m-rest"], used)?;
        touch.granted(steps)
    })
}
