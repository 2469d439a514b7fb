//! `ept-faults`: page faults and violations that this program handles itself, for `vmm bench ept`; it is run so that
//! it hears of its violations. In rounds of steps.
//!
//! `appel1` and `appel2` are those of Appel and Li (*Virtual Memory Primitives for User Programs*, 1991): what
//! collectors, checkpoints and shared memory need of a memory system. Native processes do the same work by `mprotect`
//! and a signal handler (`benches::appel`).

use umpa::hardware::{FrameSource, TableMemory, Tlb};
use umpa_abi::addr::{Frame, Gva, PAGE_BYTES, PageSize};
use umpa_abi::exchange::{Extent, Policy};
use umpa_abi::layout::BLOCKS_GVA;
use umpa_abi::paging::WRITABLE;
use work::appel::{Order, PAGES, TRAPS};
use work::raw::tsc_cycles;

use super::{Counted, counts, frames, more, sample};
use crate::fault::{Cause, Fault, Handled, Handler, Scope, probe, scope};
use crate::machine::Machine;
use crate::mmu;
use crate::rounds::{self, Steps};
use crate::tree::{self, DATA, Tree};
use crate::workloads::{Context, Failure, equal};

const AREA: Gva = Gva::new(BLOCKS_GVA.get() + (1 << 40));
/// Faults of a step that change nothing, and violations.
const SKIPS: u64 = 16;

/// What the handler does.
#[derive(Clone, Copy)]
enum Answer {
    /// Goes on behind the instruction.
    Skip,
    /// Lets writes to the page through.
    Unprotect,
    /// The same, and protects the page that comes next.
    Exchange,
}

struct Pages<'a> {
    machine: &'a mut Machine,
    table: Frame,
    first: Frame,
    answer: Answer,
    order: Order,
    faults: u64,
    violations: u64,
}

fn page(number: u64) -> Gva {
    Gva::new(AREA.get() + number * PAGE_BYTES)
}

impl Pages<'_> {
    fn set(&mut self, number: u64, bits: u64) {
        let entry = tree::leaf(self.first.offset(number), PageSize::Size4K, bits);
        self.machine.tables.write(self.table, number as usize, entry);
    }

    fn protect(&mut self, number: u64) {
        self.set(number, DATA & !WRITABLE);
        self.machine.tlb.flush_page(page(number).containing());
    }
}

impl Handler for Pages<'_> {
    fn page_fault(&mut self, fault: &Fault) -> Handled {
        if fault.cause() == Cause::Violation {
            self.violations += 1;
        } else {
            self.faults += 1;
        }
        let number = fault.address().get().wrapping_sub(AREA.get()) / PAGE_BYTES;
        match self.answer {
            Answer::Skip => return Handled::ContinueAt(Gva::new(fault.rip().get() + probe::STORE_BYTES)),
            _ if number >= PAGES => return Handled::NotMine,
            // More rights need no flush.
            Answer::Unprotect => self.set(number, DATA),
            Answer::Exchange => {
                let next = self.order.advance();
                self.protect(next);
                self.set(number, DATA);
            }
        }
        Handled::Retry
    }
}

/// A step in which pages fault.
fn step(
    pages: &mut Scope<'_, Pages<'_>>,
    steps: &mut Steps,
    counted: Counted<'_>,
    does: impl FnOnce(&mut Scope<'_, Pages<'_>>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let now = |pages: &mut Scope<'_, Pages<'_>>| pages.pause(|pages| (counts(pages.machine), pages.faults));
    let (before, faults) = now(pages);
    steps.step(
        || {
            let start = tsc_cycles();
            does(pages)?;
            let cycles = tsc_cycles().wrapping_sub(start);
            Ok((cycles, now(pages)))
        },
        |&(cycles, _)| sample(counted, cycles),
        |&(_, (after, faults_after))| {
            let [stores, one, all] = more(before, after);
            [
                ("faults", faults_after - faults),
                ("stores", stores),
                ("page-flushes", one),
                ("full-flushes", all),
            ]
        },
    )
}

fn faults(pages: &mut Scope<'_, Pages<'_>>, steps: &mut Steps) -> Result<(), Failure> {
    let told = |pages: &mut Scope<'_, Pages<'_>>| pages.pause(|pages| pages.faults);
    pages.pause(|pages| {
        pages.answer = Answer::Skip;
        pages.protect(0);
    });
    let before = told(pages);
    step(pages, steps, Counted::of("fault", SKIPS), |_| {
        (0..SKIPS).for_each(|_| probe::store_or_skip(page(0), 1));
        Ok(())
    })?;
    equal(told(pages) - before, SKIPS, "page faults that the handler was told of")?;
    equal(mmu::load(page(0)), 0, "a page whose stores were left out")?;
    pages.pause(|pages| pages.set(0, DATA));

    for round in 0..2 {
        let before = told(pages);
        let (work, count) = [("appel1", TRAPS), ("appel2", PAGES)][round];
        pages.pause(|pages| {
            pages.order = Order::new();
            pages.answer = [Answer::Exchange, Answer::Unprotect][round];
            if round == 0 {
                pages.protect(0);
            }
        });
        step(pages, steps, Counted::of(work, count), |pages| {
            let mut order = Order::new();
            if round == 0 {
                // Page 0 is protected; the handler protects the next one of the same order.
                mmu::store(page(0), 0);
                for _ in 1..TRAPS {
                    let next = order.advance();
                    mmu::store(page(next), next);
                }
            } else {
                pages.pause(|pages| {
                    (0..PAGES).for_each(|number| pages.set(number, DATA & !WRITABLE));
                    pages.machine.flush_all();
                });
                for _ in 0..PAGES {
                    let next = order.advance();
                    mmu::store(page(next), next);
                }
            }
            Ok(())
        })?;
        equal(told(pages) - before, count, "traps")?;
        pages.pause(|pages| (0..PAGES).for_each(|number| pages.set(number, DATA)));
        for number in 0..PAGES {
            let found = mmu::load(page(number));
            equal(found, if number == 0 { 0 } else { number }, "a page after its trap")?;
        }
    }
    Ok(())
}

fn violations(pages: &mut Scope<'_, Pages<'_>>, steps: &mut Steps, foreign: Gva) -> Result<(), Failure> {
    pages.pause(|pages| pages.answer = Answer::Skip);
    let before = pages.pause(|pages| pages.violations);
    step(pages, steps, Counted::of("violation", SKIPS), |_| {
        (0..SKIPS).for_each(|_| probe::store_or_skip(foreign, 1));
        Ok(())
    })?;
    equal(pages.pause(|pages| pages.violations) - before, SKIPS, "violations that the handler was told of")
}

/// See the [module](self).
pub(in crate::workloads) fn run(context: &mut Context<'_>) -> Result<(), Failure> {
    let machine = &mut context.machine;
    let mut tree = Tree::new(context.boot);
    let first = frames(machine, 2 * PageSize::Size2M.bytes())?;
    tree.map(machine, AREA, first, PageSize::Size2M.bytes(), PageSize::Size4K, DATA)?;
    let table = tree.table(machine, AREA, 1)?;
    // A frame that isn't ours any more.
    let foreign = page(PAGES);
    let gone = first.offset(PageSize::Size2M.frames());
    let back = [Extent::new(gone, 1, PageSize::Size2M)];
    let taken = machine.exchange(&back, [0; 3], Policy::AllOrNothing, &mut |_| {}).taken_frames;
    equal(taken, PageSize::Size2M.frames(), "frames given back")?;
    machine.tables.write(table, PAGES as usize, tree::leaf(gone, PageSize::Size4K, DATA));
    machine.flush_all();
    let (answer, order) = (Answer::Skip, Order::new());
    let mut pages = Pages { machine, table, first, answer, order, faults: 0, violations: 0 };
    scope(&mut pages, |pages| {
        (0..PAGES).for_each(|number| mmu::store(page(number), number));
        rounds::steps(|steps| {
            faults(pages, steps)?;
            violations(pages, steps, foreign)
        })
    })
}
