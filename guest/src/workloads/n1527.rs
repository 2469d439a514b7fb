//! `n1527`: linked lists whose nodes come one by one, in a batch, and as a run; and batches of blocks
//! that are resized.
//!
//! Each list is walked and summed, thinned by freeing nodes one by one, and walked again: a node of a
//! batch is a block like any other.

use umpa::blocks::Config as PageConfig;
use umpa::mmap::Errno;
use umpa_heap::Config;
use umpa_heap::n1527::Flags;

use super::{Context, Failure, check, equal};
use crate::batches::{Blocks, List, Source};
use crate::heap::{self, GuestHeap};

/// Nodes that stay in a thinned list: every so many-th.
const STEP: u64 = 10;

fn list(heap: &GuestHeap<'_, '_>, source: Source, nodes: u64, timed: bool) -> Result<(), Failure> {
    let sum = |nodes: u64| Some(nodes * nodes.saturating_sub(1) / 2);
    let mut list = List::new(heap, source, nodes as usize);
    let list = list.as_mut().ok_or_else(|| Failure::new("too little memory for the list (--mem)"))?;
    check(list.sum() == sum(nodes), "the sum of the list")?;
    let cycles = list.alloc_cycles;
    list.thin(STEP);
    equal(list.len() as u64, nodes.div_ceil(STEP), "nodes that stay")?;
    check(list.sum() == sum(list.len() as u64), "the sum of the thinned list")?;
    let name = match source {
        Source::Singles => "one by one",
        Source::Batch => "batch_alloc1",
        Source::Run => "alloc_run",
    };
    if timed {
        let tenths = cycles * 10 / nodes.max(1);
        println!("{name:<14}{nodes:>10} nodes{cycles:>14} cycles{:>8}.{} a node", tenths / 10, tenths % 10);
    } else {
        println!("{name:<14}{nodes:>10} nodes");
    }
    Ok(())
}

fn blocks(heap: &GuestHeap<'_, '_>) -> Result<(), Failure> {
    const MANY: usize = 40;
    let mut blocks = Blocks::new(heap, MANY);
    let size = |number: usize| 20 + number * number * 60;
    equal(blocks.resize(Flags::ZERO_MEMORY, 0, size) as u64, MANY as u64, "blocks allocated")?;
    check(blocks.holds(0..usize::MAX, true), "new blocks are zero")?;
    blocks.fill(20);
    // Each entry by itself: one can't be had.
    let grown = |number: usize| if number == 7 { 1 << 45 } else { 2 * size(number) };
    equal(blocks.resize(Flags::ZERO_MEMORY, 0, grown) as u64, MANY as u64 - 1, "blocks resized")?;
    equal(blocks.errno(7) as u64, Errno::ENOMEM as u64, "the errno of the other")?;
    check(blocks.holds(0..20, false), "content is kept")?;
    // Half is freed by size 0, and none of the others moves.
    let places: [usize; MANY] = core::array::from_fn(|number| blocks.address(number));
    let halved = |number: usize| if number.is_multiple_of(2) { 0 } else { 10 + size(number) / 2 };
    equal(blocks.resize(Flags::PREVENT_MOVE, 0, halved) as u64, MANY as u64, "blocks freed or shrunk")?;
    for (number, &place) in places.iter().enumerate() {
        let expected = if number % 2 == 0 { 0 } else { place };
        equal(blocks.address(number) as u64, expected as u64, "a block's place")?;
    }
    check(blocks.holds(0..10, false), "content after shrinking")?;
    // Reserves: the blocks grow where they are.
    drop(blocks);
    let mut blocks = Blocks::new(heap, 8);
    equal(blocks.resize(Flags::empty(), 300_000, |_| 1000) as u64, 8, "blocks with a reserve")?;
    blocks.fill(1000);
    equal(blocks.resize(Flags::PREVENT_MOVE, 0, |_| 300_000) as u64, 8, "blocks grown into it")?;
    check(blocks.holds(0..1000, false), "content after growing")
}

/// See the [module](self).
pub(super) fn run(context: &mut Context<'_>) -> Result<(), Failure> {
    let nodes = context.number(1, 100_000)?;
    let (timed, frames) = (context.boot.timing_is_real(), context.boot.frames_max);
    let mut umpa = context.allocator(PageConfig::default());
    // The first list must not pay for the frames of all.
    umpa.preload(frames);
    let done = heap::with(&mut umpa, Config::default(), |heap| {
        for source in [Source::Singles, Source::Batch, Source::Run] {
            list(heap, source, nodes, timed)?;
        }
        blocks(heap)
    });
    done.map_err(|_| Failure::new("no page for the heap"))??;
    umpa.settle();
    umpa.check(0);
    println!("lists summed, thinned and summed again; blocks resized as batches; nothing left behind");
    Ok(())
}
