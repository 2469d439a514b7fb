//! `fig9 SERIES BLOCKS`: random work on a heap with so many large blocks at once, for `vmm bench fig9`. In rounds,
//! each with a pause before it.
//!
//! | series | the heap's pages |
//! | --- | --- |
//! | `umpa` | stay mapped: the ladder |
//! | `umpa-remap` | have their entries written at each allocation and cleared at each free, as `fig7` has them |

use alloc::vec;

use umpa::blocks::{Config as PageConfig, Placement};
use umpa_abi::addr::{Gva, PageSize};
use umpa_abi::layout::direct;
use umpa_abi::record::{Counter, Record, Sample, name};
use umpa_heap::Config;
use work::Slot;
use work::fig9::{BLOCKS, BLOCKS_MAX, Fig9, slots};

use super::{Context, Failure, check};
use crate::blocks::HeapBlocks;
use crate::heap::{self, GuestHeap};
use crate::{call, mmu, rounds};

const SERIES: [(&str, Placement); 2] = [("umpa", Placement::Ladder), ("umpa-remap", Placement::Remap)];

/// What is counted over the rounds that count.
const COUNTED: [&str; 7] = [
    "stores",
    "full_flushes",
    "blocks_direct",
    "blocks_retained",
    "blocks_windows",
    "blocks_covers",
    "windows_reclaimed",
];

fn counts(heap: &GuestHeap<'_, '_>) -> Result<[u64; COUNTED.len()], Failure> {
    let counts = heap.inspect(|umpa| {
        let stats = umpa.stats();
        [
            umpa.tables().stores(),
            umpa.owed().settled(),
            stats.direct,
            stats.retained,
            stats.windows,
            stats.covers,
            stats.reclaimed,
        ]
    });
    counts.map_err(|_| Failure::new("the heap is in a call"))
}

fn report(what: &str, value: u64) -> Result<(), Failure> {
    let counter = Record::Counter(Counter { name: name(what), value });
    call::report(&counter).map_err(|_| Failure::new("a counter isn't wanted"))
}

fn work(heap: &GuestHeap<'_, '_>, series: &'static str, blocks: u64) -> Result<(), Failure> {
    let mut places = vec![Slot::EMPTY; slots(blocks)];
    let failed = |error| {
        println!("{series}: {error}");
        Failure::new("a block was refused, or lost its content")
    };
    let mut work = Fig9::new(blocks, HeapBlocks::new(series, heap), &mut places).map_err(failed)?;
    let mut counted = [0; COUNTED.len()];
    rounds::each(|counts_too| {
        let before = counts(heap)?;
        let mut unwanted = false;
        work.round(&mut |sample: Sample| unwanted |= counts_too && rounds::report(sample).is_err())
            .map_err(failed)?;
        check(!unwanted, "a sample isn't wanted")?;
        if counts_too {
            let after = counts(heap)?;
            let spent = after.iter().zip(before).map(|(after, before)| after - before);
            counted.iter_mut().zip(spent).for_each(|(sum, spent)| *sum += spent);
        }
        Ok(())
    })?;
    work.counters().into_iter().try_for_each(|(what, value)| report(what, value))?;
    COUNTED.into_iter().zip(counted).try_for_each(|(what, value)| report(what, value))
}

/// See the [module](self).
pub(super) fn run(context: &mut Context<'_>) -> Result<(), Failure> {
    let (boot, frames) = (context.boot, context.boot.frames_max);
    let wanted = context.arg(1).unwrap_or("");
    let series = SERIES.into_iter().find(|series| series.0 == wanted);
    let (series, placement) = series.ok_or_else(|| Failure::new("there is no such series"))?;
    let blocks = context.number(2, BLOCKS)?;
    check((1..=BLOCKS_MAX).contains(&blocks), "no number of blocks")?;
    let config = PageConfig {
        placement,
        // What waits for a flush is held. With the ladder that is rare: dlmalloc has given back the end of its
        // segment.
        quarantine_max_frames: if placement == Placement::Ladder { frames / 256 } else { frames / 8 },
        refill: false,
        // As in `fig7`.
        cover_min_pages: 17,
        ..PageConfig::default()
    };
    let mut umpa = context.allocator(config);
    check(umpa.preload(frames).frames == frames, "not all frames could be preloaded")?;
    // What the hypervisor does at a frame's first use is over before the work begins.
    for frame in (0..frames).step_by(PageSize::Size2M.frames() as usize) {
        let _ = mmu::load(Gva::new(direct(boot.frames_first().offset(frame).start()).get()));
    }
    let done = heap::with(&mut umpa, Config::default(), |heap| work(heap, series, blocks));
    done.map_err(|_| Failure::new("no page for the heap"))??;
    umpa.settle();
    umpa.check(0);
    Ok(())
}
