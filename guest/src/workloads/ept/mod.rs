//! What `vmm bench ept` measures in a guest, each a workload of its own, in rounds of steps
//! ([`rounds::steps`](crate::rounds::steps)).

pub(super) mod chase;
pub(super) mod faults;
pub(super) mod tables;
pub(super) mod touch;

use umpa::hardware::FrameSource;
use umpa_abi::addr::{Frame, PageSize};
use umpa_abi::exchange::{Policy, Shortfall};
use umpa_abi::record::{Name, Sample, name};

use super::{Failure, check};
use crate::machine::Machine;
use crate::rounds::Steps;

/// `bytes` bytes of frames in a row, in pages of 2 MiB.
fn frames(machine: &mut Machine, bytes: u64) -> Result<Frame, Failure> {
    let mut came = (None, 0);
    let want_pages = [0, bytes / PageSize::Size2M.bytes(), 0];
    let mut in_a_row = true;
    let exchanged = machine.exchange(&[], want_pages, Policy::AllOrNothing, &mut |extent| {
        let first = *came.0.get_or_insert(extent.first());
        in_a_row &= extent.first() == first.offset(came.1);
        came.1 += extent.frames();
    });
    check(exchanged.shortfall == Shortfall::None && in_a_row, "no frames in a row")?;
    came.0.ok_or(Failure::new("no frames"))
}

/// What a step counts as.
#[derive(Clone, Copy)]
struct Counted<'w> {
    series: Name,
    work: &'w str,
    ops: u64,
}

impl<'w> Counted<'w> {
    fn of(work: &'w str, ops: u64) -> Self {
        Self { series: name("guest"), work, ops }
    }
}

/// A step that works on the machine, whose stores to tables and flushes are counted too.
fn step(
    steps: &mut Steps,
    machine: &mut Machine,
    counted: Counted<'_>,
    does: impl FnOnce(&mut Machine) -> Result<u64, Failure>,
) -> Result<(), Failure> {
    let before = counts(machine);
    steps.step(
        || Ok((does(machine)?, counts(machine))),
        |&(cycles, _)| sample(counted, cycles),
        |(_, after)| ["stores", "page-flushes", "full-flushes"].into_iter().zip(more(before, *after)),
    )
}

fn sample(counted: Counted<'_>, cycles: u64) -> Sample {
    let Counted { series, work, ops } = counted;
    Sample { series, work: name(work), bytes: 0, ops, pages: ops, cycles, check: ops, reserved: 0 }
}

/// Stores to tables, flushes of a page, flushes of everything.
const fn counts(machine: &Machine) -> [u64; 3] {
    [machine.tables.stores(), machine.tlb.page_flushes(), machine.tlb.full_flushes()]
}

fn more(before: [u64; 3], after: [u64; 3]) -> [u64; 3] {
    [0, 1, 2].map(|at| after[at] - before[at])
}
