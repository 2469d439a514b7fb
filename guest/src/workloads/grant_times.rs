//! `grant-times SERIES FRAMES`: frames come and go, for `vmm bench grant` ([`work::grants`] is what is done).
//!
//! Each round has two pauses: before it, and when every other frame of the ledger is gone, so that the driver
//! can look at the host's side of it. What comes must be the lowest free frames, and is written to.

use umpa::hardware::FrameSource;
use umpa_abi::addr::{Frame, PageSize};
use umpa_abi::call::round;
use umpa_abi::exchange::{Extent, Policy, Shortfall};
use umpa_abi::layout::direct;
use umpa_abi::record::{Sample, name};
use work::grants::{self, CALL_RUNS, Frames, LARGE_FRAMES, Runs};

use super::{Context, Failure, check, equal};
use crate::call::Hypervisor;
use crate::{call, mmu, rounds};

struct Ledger<'a> {
    hypervisor: &'a mut Hypervisor,
    first: Frame,
    extents: [Extent; CALL_RUNS as usize],
    pauses: &'a mut u64,
}

/// Size of the pages, and frames of one.
const fn size(large: bool) -> (PageSize, u64) {
    if large { (PageSize::Size2M, LARGE_FRAMES) } else { (PageSize::Size4K, 1) }
}

impl Frames for Ledger<'_> {
    type Error = Failure;

    fn grant(&mut self, runs: Runs, large: bool) -> Result<(), Failure> {
        let mut want_pages = [0; 3];
        want_pages[usize::from(large)] = runs.frames() / size(large).1;
        let (mut frames, mut at, mut is_as_wanted) = (0, runs.first, true);
        let came = self.hypervisor.exchange(&[], want_pages, Policy::AllOrNothing, &mut |extent| {
            is_as_wanted &= extent.first().get() - self.first.get() == at && extent.frames() == runs.each;
            at += runs.stride;
            frames += extent.frames();
        });
        check(came.shortfall == Shortfall::None, "frames weren't granted")?;
        check(is_as_wanted && frames == runs.frames(), "other frames came than the lowest free ones")
    }

    fn revoke(&mut self, runs: Runs, large: bool) -> Result<(), Failure> {
        let (size, page_frames) = size(large);
        let give = self.extents.get_mut(..runs.count as usize).ok_or(Failure::new("too many runs"))?;
        for (extent, first) in give.iter_mut().zip(runs.firsts()) {
            *extent = Extent::new(self.first.offset(first), (runs.each / page_frames) as u32, size);
        }
        let gone = self.hypervisor.exchange(give, [0; 3], Policy::AllOrNothing, &mut |_| {});
        equal(gone.taken_frames, runs.frames(), "frames taken")
    }

    fn touch(&mut self, runs: Runs) {
        for frame in runs.firsts().flat_map(|first| first..first + runs.each) {
            mmu::store(direct(self.first.offset(frame).start()), frame);
        }
    }

    fn is_fragmented(&mut self) {
        call::pause(*self.pauses);
        *self.pauses += 1;
    }
}

/// See the [module](self).
pub(super) fn run(context: &mut Context<'_>) -> Result<(), Failure> {
    let series = name(context.arg(1).unwrap_or("umpa"));
    let all = context.number(2, context.boot.frames_max)?;
    check(all <= context.boot.frames_max, "it has fewer frames (--mem)")?;
    let first = context.boot.frames_first();
    let mut pauses = 0;
    loop {
        let counts = match call::pause(pauses) {
            round::WARMS_UP => false,
            round::COUNTS => true,
            _ => return Ok(()),
        };
        pauses += 1;
        let extents = [Extent::new(first, 1, PageSize::Size4K); CALL_RUNS as usize];
        let hypervisor = &mut context.machine.hypervisor;
        let mut ledger = Ledger { hypervisor, first, extents, pauses: &mut pauses };
        grants::round(&mut ledger, all, &mut |work, bytes, frames, cycles| {
            if !counts {
                return Ok(());
            }
            rounds::report(Sample {
                series,
                work: name(work),
                bytes,
                ops: frames,
                pages: frames,
                cycles,
                check: frames,
                reserved: 0,
            })
        })?;
    }
}
