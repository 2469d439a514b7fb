//! `n1527-times SERIES NODES`: lists whose nodes come one by one, as a batch, or as a run, for
//! `vmm bench n1527`; with the batch, what its pointers alone cost to write. In rounds, each with a pause
//! before it.

use umpa::blocks::Config as PageConfig;
use umpa_abi::record::Sample;
use umpa_heap::Config;
use work::list::{Nodes, WRITERS, floor, round};

use super::{Context, Failure, check};
use crate::heap::{self, GuestHeap};
use crate::nodes::{Pointed, Running};
use crate::rounds;

fn report(counts: bool, samples: impl IntoIterator<Item = Sample>) -> Result<(), Failure> {
    if counts { samples.into_iter().try_for_each(rounds::report) } else { Ok(()) }
}

fn list(source: &mut impl Nodes, series: &str, nodes: u64, counts: bool) -> Result<(), Failure> {
    let times = round(source, nodes).map_err(|error| {
        println!("{error}");
        Failure::new("a list isn't what it should be")
    })?;
    report(counts, times.samples(series))
}

fn pointed(heap: &GuestHeap<'_, '_>, series: &str, nodes: u64, batch: bool) -> Result<(), Failure> {
    let no_memory = || Failure::new("too little memory for the pointers");
    let mut source = Pointed::new(heap, nodes as usize, batch).ok_or_else(no_memory)?;
    rounds::each(|counts| {
        source.touch();
        list(&mut source, series, nodes, counts)?;
        if batch && let Some(places) = source.places() {
            for writer in WRITERS {
                report(counts, [floor(series, writer, places)])?;
            }
        }
        Ok(())
    })
}

/// See the [module](self).
pub(super) fn run(context: &mut Context<'_>) -> Result<(), Failure> {
    let frames = context.boot.frames_max;
    let (series, nodes) = (context.arg(1).unwrap_or(""), context.number(2, 10_000)?);
    let mut umpa = context.allocator(PageConfig { refill: false, ..PageConfig::default() });
    check(umpa.preload(frames).frames == frames, "not all frames could be preloaded")?;
    let done = heap::with(&mut umpa, Config::default(), |heap| match series {
        "umpa-batch" => pointed(heap, series, nodes, true),
        "umpa-single" => pointed(heap, series, nodes, false),
        "umpa-run" => {
            let mut source = Running::new(heap);
            rounds::each(|counts| list(&mut source, series, nodes, counts))
        }
        _ => Err(Failure::new("the series is none of umpa-batch, umpa-run, umpa-single")),
    });
    done.map_err(|_| Failure::new("no page for the heap"))??;
    umpa.settle();
    umpa.check(0);
    Ok(())
}
