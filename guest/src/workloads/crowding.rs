//! `crowding [blocks [steps]]`: memory of heaps over time. Each is filled with the same blocks; most of the
//! first half and every second of the other are freed; then blocks come and go.
//!
//! | heap | is |
//! | --- | --- |
//! | dlmalloc | dlmalloc in one segment that grows at its end |
//! | Heap | dlmalloc for small blocks, `umpa`'s for large ones |
//! | first fit, crowded, tight | a heap that gives pages back from its middle, by its policy for new blocks |
//!
//! Every word of every block is read back before it is freed. All that a heap can give back is given back
//! before it is looked at; frames are those that the page allocator has given out.

use allocator_api2::alloc::Allocator;
use allocator_api2::vec::Vec;
use umpa::blocks::{Config as PageConfig, Machine, Umpa};
use umpa_heap::baseline::Memory;
use umpa_heap::paged::{Config, Policy};
use umpa_heap::{BaselineHeap, Heap, HeapError, PagedHeap};
use work::holes::Thinning;

use super::{Context, Failure, check};
use crate::heap;

/// When it is looked at: full, thinned, and four times while blocks come and go.
const LOOKS: usize = 6;

fn used_frames<M: Machine>(umpa: &Umpa<'_, M>) -> u64 {
    let frames = umpa.frames();
    let idle = frames.free_frames() + frames.quarantined_frames() + umpa.space().retained_pages();
    frames.granted_frames() - idle
}

/// A heap that is compared.
trait Compared: Allocator {
    /// Gives back what it can. Returns the frames behind it then.
    fn trimmed_frames(&self) -> Result<u64, HeapError>;
}

impl<M: Machine + Send> Compared for BaselineHeap<'_, '_, M> {
    fn trimmed_frames(&self) -> Result<u64, HeapError> {
        self.trim()?;
        self.inspect(|umpa| used_frames(umpa))
    }
}

impl<M: Machine + Send> Compared for Heap<'_, '_, M> {
    fn trimmed_frames(&self) -> Result<u64, HeapError> {
        self.trim()?;
        self.inspect(used_frames)
    }
}

impl<M: Machine> Compared for PagedHeap<'_, '_, M> {
    fn trimmed_frames(&self) -> Result<u64, HeapError> {
        self.trim()?;
        self.inspect(used_frames)
    }
}

/// A block: words that are all the same number.
type Block<'h, H> = Vec<u64, &'h H>;

fn new<'h, H: Compared>(heap: &'h H, thinning: &mut Thinning, number: u64) -> Result<Block<'h, H>, Failure> {
    let words = thinning.next_bytes() / size_of::<u64>();
    let mut block = Vec::new_in(heap);
    block.try_reserve_exact(words).map_err(|_| Failure::new("too little memory for the blocks (--mem)"))?;
    block.resize(words, number);
    Ok(block)
}

fn end<H: Compared>(block: Option<Block<'_, H>>) -> Result<(), Failure> {
    let block = block.ok_or_else(|| Failure::new("no block in a slot"))?;
    check(block.iter().all(|word| Some(word) == block.first()), "a word of a block")
}

fn frames_over_time<H: Compared>(heap: &H, slots: usize, steps: usize) -> Result<[u64; LOOKS], Failure> {
    let look = || heap.trimmed_frames().map_err(|_| Failure::new("the heap is in a call"));
    let mut thinning = Thinning::new(slots, 1);
    let mut frames = [0; LOOKS];
    // The first block, and the same in all heaps.
    let mut blocks = Vec::new_in(heap);
    blocks.try_reserve_exact(slots).map_err(|_| Failure::new("too little memory (--mem)"))?;
    for slot in 0..slots {
        blocks.push(Some(new(heap, &mut thinning, slot as u64)?));
    }
    frames[0] = look()?;
    for (slot, block) in blocks.iter_mut().enumerate() {
        if !thinning.stays(slot) {
            end(block.take())?;
        }
    }
    frames[1] = look()?;
    let mut number = slots as u64;
    for frames in &mut frames[2..] {
        for _ in 0..steps / (LOOKS - 2) {
            let slot = thinning.next_slot();
            end(blocks[slot].take())?;
            blocks[slot] = Some(new(heap, &mut thinning, number)?);
            number += 1;
        }
        *frames = look()?;
    }
    let left = blocks.into_iter().flatten();
    left.into_iter().try_for_each(|block| end(Some(block)))?;
    Ok(frames)
}

/// See the [module](self).
pub(super) fn run(context: &mut Context<'_>) -> Result<(), Failure> {
    let (slots, steps) = (context.number(1, 10_000)? as usize, context.number(2, 10_000)? as usize);
    let limit_bytes = context.boot.frames_max * umpa_abi::addr::PAGE_BYTES;
    let mut umpa = context.allocator(PageConfig::default());
    let no_memory = |_| Failure::new("no frames for a heap");
    println!("{slots} blocks; frames behind the heap");
    println!("{:<12}    full  thinned      1/4      2/4      3/4 and all of the steps", "");
    let show = |name: &str, frames: [u64; LOOKS]| {
        let [full, thinned, one, two, three, four] = frames;
        println!("{name:<12}{full:>8}{thinned:>9}{one:>9}{two:>9}{three:>9}{four:>9}");
        frames
    };
    let plain = {
        let heap = heap::baseline(&mut umpa, Memory::Growing(limit_bytes)).map_err(no_memory)?;
        show("dlmalloc", frames_over_time(&heap, slots, steps)?)
    };
    {
        let heap = heap::new(&mut umpa, umpa_heap::Config::default()).map_err(no_memory)?;
        show("Heap", frames_over_time(&heap, slots, steps)?);
    }
    let mut last = [0; 3];
    let policies = [("first fit", Policy::FirstFit), ("crowded", Policy::Crowded), ("tight", Policy::Tight)];
    for (last, (name, policy)) in last.iter_mut().zip(policies) {
        umpa.settle();
        umpa.check(0);
        let config = Config { policy, slack_bytes: 256 << 10, ..Config::default() };
        let heap = heap::paged(&mut umpa, config).map_err(no_memory)?;
        let frames = show(name, frames_over_time(&heap, slots, steps)?);
        heap.check();
        check(frames[1] < frames[0], "pages in the middle are given back")?;
        *last = frames[LOOKS - 1];
    }
    umpa.settle();
    umpa.check(0);
    check(plain[LOOKS - 1] * 10 >= plain[0] * 9, "dlmalloc gave pages back")?;
    check(last.iter().all(|&frames| frames < plain[LOOKS - 1]), "fewer frames than dlmalloc's")?;
    // With few blocks there are few regions.
    if slots >= 5000 {
        check(last[1] < last[0] && last[2] < last[0], "crowding empties thin regions")?;
    }
    println!("crowding: every word as it was written; no block and no frame is left behind");
    Ok(())
}
