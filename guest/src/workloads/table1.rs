//! `table1 SERIES BYTES`: blocks of up to so many bytes, one after the other, allocated, touched and freed, for
//! `vmm bench table1`. In rounds, each with a pause before it. The series are [`SERIES`].

use umpa_abi::addr::{Gva, PAGE_BYTES};
use umpa_abi::layout::direct;
use umpa_abi::record::{Counter, Record, Sample, name};
use work::Slot;
use work::table1::{FIRST_BYTES, LARGEST_BYTES, Table1};

use super::{Context, Failure, check};
use crate::staged::{Frames, SERIES, StagedBlocks, config};
use crate::userpage::Allocator;
use crate::{call, mmu, rounds};

/// What is counted over the rounds that count.
const COUNTED: [&str; 8] = [
    "stores",
    "flushes",
    "exchanges",
    "blocks_retained",
    "blocks_direct",
    "blocks_covers",
    "known_zero_frames",
    "zeroed_frames",
];

fn counts(umpa: &mut Allocator<'_>) -> [u64; COUNTED.len()] {
    let (stores, stats) = (umpa.tables().stores(), umpa.stats());
    let machine = umpa.machine_mut();
    let flushes = machine.tlb.page_flushes() + machine.tlb.full_flushes();
    let exchanges = machine.hypervisor.exchanges();
    let zeros = [stats.known_zero_frames, stats.zeroed_frames];
    [stores, flushes, exchanges, stats.retained, stats.direct, stats.covers, zeros[0], zeros[1]]
}

/// See the [module](self).
pub(super) fn run(context: &mut Context<'_>) -> Result<(), Failure> {
    let (boot, frames) = (context.boot, context.boot.frames_max);
    let wanted = context.arg(1).unwrap_or("");
    let series = SERIES.into_iter().find(|series| series.0 == wanted);
    let series = series.ok_or_else(|| Failure::new("there is no such series"))?;
    let largest_bytes = context.number(2, LARGEST_BYTES)?;
    check(largest_bytes.is_power_of_two() && largest_bytes >= FIRST_BYTES, "no size of a block")?;
    let mut umpa = context.allocator(config(boot, series));
    if series.1 != Frames::Fresh {
        check(umpa.preload(frames).frames == frames, "not all frames could be preloaded")?;
        // What the hypervisor does at a frame's first use is over before the work begins.
        for at in 0..frames {
            let _ = mmu::load(Gva::new(direct(boot.frames_first().start()).get() + at * PAGE_BYTES));
        }
    }
    let mut slot = [Slot::EMPTY];
    let mut work = Table1::new(StagedBlocks::new(series, &mut umpa), &mut slot);
    let mut counted = [0; COUNTED.len()];
    rounds::each(|counts_too| {
        let before = counts(work.allocator().umpa());
        let mut unwanted = false;
        let report = &mut |sample: Sample| unwanted |= counts_too && rounds::report(sample).is_err();
        work.round(largest_bytes, report).map_err(|error| {
            println!("{}: {error}", series.0);
            Failure::new("a block was refused, or lost its content")
        })?;
        check(!unwanted, "a sample isn't wanted")?;
        if counts_too {
            let after = counts(work.allocator().umpa());
            counted
                .iter_mut()
                .zip(after.iter().zip(before))
                .for_each(|(sum, (after, before))| *sum += after - before);
        }
        Ok(())
    })?;
    let umpa = work.allocator().umpa();
    umpa.settle();
    umpa.check(0);
    for (what, value) in COUNTED.into_iter().zip(counted) {
        let counter = Record::Counter(Counter { name: name(what), value });
        call::report(&counter).map_err(|_| Failure::new("a counter isn't wanted"))?;
    }
    Ok(())
}
