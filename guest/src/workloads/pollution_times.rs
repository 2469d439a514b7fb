//! `pollution-times [SEED]`: what a page fault that this program handles drives out of the caches, beside a touch of a
//! page that is mapped and the zeroing of one ([`work::pollution`]), for `vmm bench why`. In rounds, each with a pause
//! before it.
//!
//! The working sets have leaves of 4 KiB, as Linux's have. The handler is that of the series `-fault`: it takes a frame
//! and writes its leaf. Frames and leaves go back, and are flushed, between turns.

use umpa::blocks::Otherwise;
use umpa_abi::addr::{Gva, PAGE_BYTES, PageSize};
use umpa_abi::record::{Counter, Record, name};
use work::chase::Chain;
use work::pollution::{Event, POOL_PAGES, Place, Rounds, SETS, SETS_BYTES};
use work::raw::{Cells, Words};

use super::{Context, Failure, check};
use crate::ablation::Off;
use crate::fault::{Cause, Fault, Handled, Handler, Scope, scope};
use crate::userpage::Allocator;
use crate::{call, mmu, rounds};

struct Maps<'u, 'm> {
    umpa: &'u mut Allocator<'m>,
    faults: u64,
}

impl Handler for Maps<'_, '_> {
    fn page_fault(&mut self, fault: &Fault) -> Handled {
        let page = fault.address().containing().start();
        if fault.cause() != Cause::NotPresent || self.umpa.userpage_commit(page, PAGE_BYTES) != Ok(1) {
            return Handled::NotMine;
        }
        self.faults += 1;
        Handled::Retry
    }
}

struct Here<'s, 'h, 'u, 'm> {
    scope: &'s mut Scope<'h, Maps<'u, 'm>>,
    cells: Cells,
    mapped: Words,
    faulting: Words,
    faulting_at: Gva,
}

impl Place for Here<'_, '_, '_, '_> {
    type Error = Failure;
    const EVENTS: &'static [Event] = &[Event::Nothing, Event::Touch, Event::Fault, Event::Zero];

    fn parts(&mut self, event: Event) -> (&Cells, &mut Words) {
        (&self.cells, if event.faults() > 0 { &mut self.faulting } else { &mut self.mapped })
    }

    fn renew(&mut self, event: Event) -> Result<(), Failure> {
        if event.faults() == 0 {
            return Ok(());
        }
        let at = self.faulting_at;
        self.scope.pause(|maps| {
            let released = maps.umpa.userpage_release(at, POOL_PAGES * PAGE_BYTES);
            maps.umpa.settle();
            check(released.is_ok(), "pages can't be released")
        })
    }

    fn faults(&mut self) -> u64 {
        self.scope.pause(|maps| maps.faults)
    }
}

/// See the [module](self).
pub(super) fn run(context: &mut Context<'_>) -> Result<(), Failure> {
    let (boot, seed) = (context.boot, context.number(1, 1)?);
    let off = Off { fault: true, ..Off::default() };
    let mut umpa = context.allocator(off.config(boot));
    check(umpa.preload(boot.frames_max).frames == boot.frames_max, "not all frames could be preloaded")?;
    let pool_bytes = POOL_PAGES * PAGE_BYTES;
    let of_4k = umpa.userpage_malloc_sized(SETS_BYTES, PageSize::Size4K, Otherwise::Refuse);
    let sets = of_4k.map_err(|_| Failure::new("no memory for the working sets"))?;
    let mapped = umpa.userpage_malloc_sized(pool_bytes, PageSize::Size2M, Otherwise::Smaller);
    let mapped = mapped.map_err(|_| Failure::new("no memory for the pages that are touched"))?;
    let faulting_at = umpa.userpage_reserve(pool_bytes).map_err(|_| Failure::new("no addresses"))?;
    let mut cells = mmu::cells(sets, SETS_BYTES);
    SETS.iter().for_each(|set: &Chain| cells.lay(set));
    (0..POOL_PAGES).for_each(|page| mmu::store(Gva::new(mapped.get() + page * PAGE_BYTES), page));

    let mut maps = Maps { umpa: &mut umpa, faults: 0 };
    scope(&mut maps, |scope| {
        let [mapped, faulting] = [mapped, faulting_at].map(|at| mmu::block_words(at, POOL_PAGES));
        let mut here = Here { scope, cells, mapped, faulting, faulting_at };
        let (mut work, mut counted) = (Rounds::new(seed), 0);
        rounds::each(|counts| {
            let before = work.faults();
            let done = work.round(&mut here, &mut |sample| {
                if counts { rounds::report(sample) } else { Ok(()) }
            });
            counted += if counts { work.faults() - before } else { 0 };
            done.map_err(|wrong| {
                println!("pollution-times: {wrong}");
                Failure::new("a turn isn't what it should be")
            })
        })?;
        let counter = Counter { name: name("faults"), value: counted };
        call::report(&Record::Counter(counter)).map_err(|_| Failure::new("a count isn't wanted"))
    })?;
    for block in [sets, mapped, faulting_at] {
        check(umpa.userpage_free(block).is_ok(), "a block couldn't be freed")?;
    }
    umpa.settle();
    umpa.check(0);
    Ok(())
}
