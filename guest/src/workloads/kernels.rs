//! `kernels SERIES ELEMENTS`: a hash join, binary trees and a sparse matrix, for `vmm bench kernels`. In rounds, each
//! with a pause before it.
//!
//! | series | memory |
//! | --- | --- |
//! | `umpa` | from the heap by its ordinary calls: vectors that double, nodes one by one |
//! | `umpa-own` | by what the heap has beyond those: vectors that grow by page table, a tree's nodes in a batch |

use umpa_abi::addr::{Gva, PAGE_BYTES};
use umpa_abi::layout::direct;
use umpa_abi::record::{Counter, Record, Sample, name};
use umpa_heap::Config;
use work::kernels::{ELEMENTS_RANGE, Memory, Plain, round};

use super::{Context, Failure, check};
use crate::heap::{self, GuestHeap};
use crate::kernels::Own;
use crate::userpage::suited;
use crate::{call, mmu, rounds};

/// What is counted over the rounds that count.
const COUNTED: [&str; 3] = ["stores", "resized_in_place", "moved"];

fn counts(heap: &GuestHeap<'_, '_>) -> Result<[u64; COUNTED.len()], Failure> {
    let counts =
        heap.inspect(|umpa| [umpa.tables().stores(), umpa.stats().resized_in_place, umpa.stats().moved]);
    counts.map_err(|_| Failure::new("the heap is in a call"))
}

/// Bytes of frames in use; and of those that nobody uses, but that are still mapped for the next block, or wait for a
/// flush. The latter are free as soon as they are wanted.
fn used_bytes(heap: &GuestHeap<'_, '_>) -> Option<[u64; 2]> {
    let frames = heap.inspect(|umpa| {
        let frames = umpa.frames();
        let waiting = frames.quarantined_frames() + umpa.space().retained_pages();
        [frames.granted_frames() - frames.free_frames() - waiting, waiting]
    });
    Some(frames.ok()?.map(|frames| frames * PAGE_BYTES))
}

/// What a series' rounds came to.
#[derive(Default)]
struct Counts {
    /// [`used_bytes`] at most, each by itself.
    peak_bytes: [u64; 2],
    counted: [u64; COUNTED.len()],
}

/// Rounds with `memory`.
fn measure(
    heap: &GuestHeap<'_, '_>,
    memory: &impl Memory,
    series: &str,
    elements: u64,
) -> Result<Counts, Failure> {
    let (mut number, mut sums) = (0, Counts::default());
    rounds::each(|counts_too| {
        let mut unwanted = false;
        let report = &mut |sample: Sample| unwanted |= counts_too && rounds::report(sample).is_err();
        let fullest = &mut || {
            let used = used_bytes(heap).unwrap_or([u64::MAX; 2]);
            sums.peak_bytes.iter_mut().zip(used).for_each(|(peak, used)| *peak = used.max(*peak));
        };
        let before = counts(heap)?;
        number += 1;
        round(memory, series, elements, number, report, fullest).map_err(|error| {
            println!("{series}: {error}");
            Failure::new("a kernel's result isn't what it should be")
        })?;
        check(!unwanted, "a sample isn't wanted")?;
        if counts_too {
            let after = counts(heap)?;
            let pairs = after.into_iter().zip(before);
            sums.counted.iter_mut().zip(pairs).for_each(|(sum, (after, before))| *sum += after - before);
        }
        Ok(())
    })?;
    Ok(sums)
}

/// See the [module](self).
pub(super) fn run(context: &mut Context<'_>) -> Result<(), Failure> {
    let (boot, frames) = (context.boot, context.boot.frames_max);
    let (series, elements) = (context.arg(1).unwrap_or(""), context.number(2, *ELEMENTS_RANGE.start())?);
    let mut umpa = context.allocator(suited(boot));
    check(umpa.preload(frames).frames == frames, "not all frames could be preloaded")?;
    // What the hypervisor does at a frame's first use is over before the work begins.
    for at in 0..frames {
        let _ = mmu::load(Gva::new(direct(boot.frames_first().start()).get() + at * PAGE_BYTES));
    }
    let done = heap::with(&mut umpa, Config::default(), |heap| match series {
        "umpa" => measure(heap, &Plain(heap), series, elements),
        "umpa-own" => measure(heap, &Own(heap), series, elements),
        _ => Err(Failure::new("the series is neither umpa nor umpa-own")),
    });
    let Counts { peak_bytes, counted } = done.map_err(|_| Failure::new("no page for the heap"))??;
    for (what, value) in
        COUNTED.into_iter().zip(counted).chain(["peak_bytes", "waiting_bytes"].into_iter().zip(peak_bytes))
    {
        let counted = call::report(&Record::Counter(Counter { name: name(what), value }));
        counted.map_err(|_| Failure::new("a counter isn't wanted"))?;
    }
    umpa.settle();
    umpa.check(0);
    Ok(())
}
