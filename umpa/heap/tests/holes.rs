//! What dlmalloc can't: the failure there, and the success beside it, with the frames that each took at most.
//!
//! Frames are printed (`cargo test -p umpa-heap --test holes -- --nocapture`).

#![allow(unsafe_code)] // reason: blocks are used and freed by pointer

mod blocks;
mod host;

use std::ptr::NonNull;

use blocks::{Block, assert_apart};
use host::{Machine, with_umpa};
use umpa::blocks::{Config as PageConfig, Umpa};
use umpa_abi::addr::PAGE_BYTES;
use umpa_heap::baseline::Memory;
use umpa_heap::paged::{Config, PageBytes, Policy};
use umpa_heap::{BaselineHeap, Heap, HeapError, PagedHeap};
use work::holes::{MEMORY_BYTES, Pieces, Thinning};

/// What the heaps have in common.
trait Blocks {
    fn alloc(&self, bytes: usize) -> Result<NonNull<u8>, HeapError>;
    /// Nobody uses the block.
    fn free(&self, block: NonNull<u8>);
    /// Frames behind the heap now.
    fn frames(&self) -> u64;
    /// Gives back what it can.
    fn trim(&self);
}

impl Blocks for PagedHeap<'_, '_, Machine> {
    fn alloc(&self, bytes: usize) -> Result<NonNull<u8>, HeapError> {
        self.alloc(bytes, 16)
    }
    fn free(&self, block: NonNull<u8>) {
        // SAFETY: nobody uses it.
        unsafe { self.free(block).expect("a block") };
    }
    fn frames(&self) -> u64 {
        self.counters().expect("no call").frames()
    }
    fn trim(&self) {
        self.trim().expect("no call");
        self.check();
    }
}

impl Blocks for BaselineHeap<'_, '_, Machine> {
    fn alloc(&self, bytes: usize) -> Result<NonNull<u8>, HeapError> {
        self.alloc(bytes, 16)
    }
    fn free(&self, block: NonNull<u8>) {
        // SAFETY: nobody uses it.
        unsafe { self.free(block).expect("a block") };
    }
    fn frames(&self) -> u64 {
        self.backed_bytes().expect("no call").0 / PAGE_BYTES
    }
    fn trim(&self) {
        self.trim().expect("no call");
    }
}

impl Blocks for Heap<'_, '_, Machine> {
    fn alloc(&self, bytes: usize) -> Result<NonNull<u8>, HeapError> {
        self.alloc(bytes, 16)
    }
    fn free(&self, block: NonNull<u8>) {
        // SAFETY: nobody uses it.
        unsafe { self.free(block).expect("a block") };
    }
    fn frames(&self) -> u64 {
        self.segment_bytes().expect("no call") / PAGE_BYTES
    }
    fn trim(&self) {
        self.trim().expect("no call");
    }
}

/// What became of the diagrams in a heap.
#[derive(Debug)]
struct Diagrams {
    /// Bytes of the blocks that filled it, and those freed of them.
    filled_bytes: usize,
    freed_bytes: usize,
    /// The longest stretch of addresses between blocks, those behind the last not counted.
    longest_bytes: usize,
    /// Whether the block of a fifth of the memory could be had then.
    had: bool,
}

/// The same blocks in each heap, until it has no room for the smallest.
fn diagrams(heap: &impl Blocks, seed: u64) -> Diagrams {
    let mut pieces = Pieces::new(MEMORY_BYTES, seed);
    let mut blocks = Vec::new();
    let mut bytes = pieces.next_bytes();
    while bytes >= pieces.least_bytes() {
        match heap.alloc(bytes) {
            Ok(at) => {
                let block = Block { at, bytes, align_bytes: 16, seed: blocks.len() as u64 };
                block.fill();
                blocks.push(block);
                bytes = pieces.next_bytes();
            }
            Err(error) => {
                assert_eq!(error, HeapError::OutOfMemory { bytes });
                bytes /= 2;
            }
        }
    }
    let filled_bytes = blocks.iter().map(|block| block.bytes).sum();
    let (freed, kept): (Vec<_>, Vec<_>) =
        blocks.into_iter().partition(|block| Pieces::is_freed(block.seed as usize));
    freed.iter().for_each(|block| heap.free(block.at));
    let mut places: Vec<_> = kept.iter().map(|block| (block.at.as_ptr() as usize, block.bytes)).collect();
    places.sort_unstable();
    let between = |two: &[(usize, usize)]| two[1].0 - two[0].0 - two[0].1;
    let longest_bytes = places.windows(2).map(between).max().unwrap_or(0);
    let wanted = heap.alloc(pieces.wanted_bytes());
    if let Ok(at) = wanted {
        let block = Block { at, bytes: pieces.wanted_bytes(), align_bytes: 16, seed: 1 << 40 };
        block.fill();
        block.verify(block.bytes, block.bytes, block.seed);
    }
    assert_apart(&kept);
    kept.iter().for_each(|block| block.verify(block.bytes, block.bytes, block.seed));
    let freed_bytes = freed.iter().map(|block| block.bytes).sum();
    kept.iter().map(|block| block.at).chain(wanted).for_each(|at| heap.free(at));
    Diagrams { filled_bytes, freed_bytes, longest_bytes, had: wanted.is_ok() }
}

fn on_frames<T>(frames: u64, test: impl FnOnce(&mut Umpa<'_, Machine>) -> T) -> T {
    with_umpa(
        frames,
        PageConfig::default(),
        |_| true,
        |umpa| {
            let done = test(umpa);
            umpa.settle();
            umpa.check(0);
            done
        },
    )
}

/// The machine of the paged heap has 10 MiB of frames, and no more; metadata come out of them. dlmalloc has
/// 10 MiB for its blocks alone, and a page for its state besides.
#[test]
fn the_block_that_dlmalloc_has_no_hole_for_fits() {
    let frames = MEMORY_BYTES / PAGE_BYTES;
    let (mut had_medium, mut had_large) = (0, 0);
    for seed in 0..6 {
        let plain = on_frames(frames + 8, |umpa| {
            // SAFETY: the machine has real memory, which is the test's alone.
            let heap =
                unsafe { BaselineHeap::new(umpa, Memory::Fixed(MEMORY_BYTES)) }.expect("frames are free");
            let diagrams = diagrams(&heap, seed);
            assert_eq!(heap.backed_bytes(), Ok((MEMORY_BYTES, MEMORY_BYTES)));
            diagrams
        });
        assert!(!plain.had, "{plain:?}");
        assert!(plain.filled_bytes as u64 > MEMORY_BYTES * 95 / 100, "{plain:?}");
        assert!(plain.freed_bytes > 4 << 20 && plain.longest_bytes < 2 << 20, "{plain:?}");
        println!("seed {seed}: dlmalloc, peak {frames} frames: {plain:?}");
        for pages in PageBytes::ALL {
            let paged = on_frames(frames, |umpa| {
                // SAFETY: the machine has real memory, which is the test's alone.
                let heap = unsafe { PagedHeap::new(umpa, Config { pages, ..Config::default() }) }
                    .expect("frames are free");
                let diagrams = diagrams(&heap, seed);
                let counters = heap.counters().expect("no call");
                println!(
                    "seed {seed}: pages of {} KiB, peak {} frames: {diagrams:?}",
                    pages.bytes() >> 10,
                    counters.peak_frames
                );
                assert!(counters.peak_frames <= frames, "{counters:?}");
                diagrams
            });
            let full = if pages == PageBytes::Large { 70 } else { 94 };
            assert!(paged.filled_bytes as u64 > MEMORY_BYTES * full / 100, "{paged:?}");
            match pages {
                PageBytes::Small => assert!(paged.had, "{paged:?}"),
                PageBytes::Medium => had_medium += u32::from(paged.had),
                PageBytes::Large => had_large += u32::from(paged.had),
            }
        }
    }
    println!("had: pages of 64 KiB {had_medium} of 6, of 2 MiB {had_large} of 6");
    assert_eq!((had_medium, had_large), (6, 0));
}

/// Frames after each part of [`Thinning`]: grown, most freed, and some times while blocks come and go.
fn thinning(heap: &impl Blocks, slots: usize, churn: usize) -> [u64; 6] {
    let mut thinning = Thinning::new(slots, 1);
    let mut seeds = 0..;
    let mut new = |thinning: &mut Thinning| {
        let bytes = thinning.next_bytes();
        let at = heap.alloc(bytes).expect("memory");
        let block = Block { at, bytes, align_bytes: 16, seed: seeds.next().expect("a number") };
        block.fill();
        block
    };
    let end = |block: Block| {
        block.verify(block.bytes, block.bytes, block.seed);
        heap.free(block.at);
    };
    let mut blocks: Vec<_> = (0..slots).map(|_| Some(new(&mut thinning))).collect();
    let mut frames = [0; 6];
    frames[0] = heap.frames();
    for slot in (0..slots).filter(|&slot| !thinning.stays(slot)) {
        end(blocks[slot].take().expect("a block"));
    }
    heap.trim();
    frames[1] = heap.frames();
    for frames in &mut frames[2..] {
        for _ in 0..churn / 4 {
            let slot = thinning.next_slot();
            end(blocks[slot].take().expect("a block"));
            blocks[slot] = Some(new(&mut thinning));
        }
        heap.trim();
        *frames = heap.frames();
    }
    let blocks: Vec<_> = blocks.into_iter().flatten().collect();
    assert_apart(&blocks);
    println!("{} frames of blocks", blocks.iter().map(|block| block.bytes as u64).sum::<u64>() / PAGE_BYTES);
    blocks.into_iter().for_each(end);
    frames
}

/// dlmalloc keeps its pages, bare and behind our `Heap`. The paged heap gives back what no block touches;
/// then, as blocks come and go, crowding empties the thin regions, and first fit fills them.
#[test]
fn pages_in_the_middle_are_given_back_and_thin_regions_starve() {
    let (slots, churn) = (20_000, 20_000);
    println!("frames: grown, most freed, and while blocks come and go");
    let show = |name: &str, frames: [u64; 6]| {
        println!("{name:<12}{frames:?}");
        frames
    };
    for plain in [
        on_frames(16_384, |umpa| {
            // SAFETY: the machine has real memory, which is the test's alone.
            let heap =
                unsafe { BaselineHeap::new(umpa, Memory::Growing(64 << 20)) }.expect("frames are free");
            show("dlmalloc", thinning(&heap, slots, churn))
        }),
        on_frames(16_384, |umpa| {
            // SAFETY: the machine has real memory, which is the test's alone.
            let heap = unsafe { Heap::new(umpa, umpa_heap::Config::default()) }.expect("frames are free");
            show("Heap", thinning(&heap, slots, churn))
        }),
    ] {
        assert!(plain.iter().all(|&frames| frames * 100 > plain[0] * 95), "{plain:?}");
    }
    let [crowded, tight, first_fit] = [Policy::Crowded, Policy::Tight, Policy::FirstFit].map(|policy| {
        on_frames(16_384, |umpa| {
            let config = Config { policy, slack_bytes: 256 << 10, ..Config::default() };
            // SAFETY: the machine has real memory, which is the test's alone.
            let heap = unsafe { PagedHeap::new(umpa, config) }.expect("frames are free");
            let frames = show(&format!("{policy:?}"), thinning(&heap, slots, churn));
            let counters = heap.counters().expect("no call");
            println!("{counters:?}");
            assert!(counters.peak_frames >= frames[0] && counters.peak_frames < frames[0] + 100);
            assert!(counters.pages_released > 1000 && counters.pages_backed_again > 100);
            assert!(frames[1] * 10 < frames[0] * 7, "{frames:?}: what was freed");
            frames
        })
    });
    let last = |frames: [u64; 6]| frames[5];
    assert!(last(crowded) * 106 < last(first_fit) * 100, "{crowded:?}, {first_fit:?}");
    assert!(last(tight) * 115 < last(first_fit) * 100, "{tight:?}, {first_fit:?}");
}
