//! Heaps on the machine with real memory, compared with a model of their blocks.

#![allow(unsafe_code)] // reason: blocks are used and freed by pointer

mod blocks;
mod host;

use std::ptr::NonNull;

use allocator_api2::vec::Vec as HeapVec;
use blocks::{Block, assert_apart};
use host::{Machine, walks, with_umpa};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use umpa::blocks::{Config as PageConfig, Placement, Umpa};
use umpa::space::Slot;
use umpa_abi::addr::{Gva, PAGE_BYTES};
use umpa_heap::heap::PAGES_MIN_BYTES;
use umpa_heap::{Config, Heap, HeapError};

type TestHeap<'u, 'a> = Heap<'u, 'a, Machine>;

#[derive(Clone, Debug)]
enum Step {
    Alloc {
        bytes: usize,
        align_shift: u32,
        zeroed: bool,
    },
    Free {
        block: usize,
    },
    Realloc {
        block: usize,
        bytes: usize,
    },
    Resize {
        block: usize,
        bytes: usize,
    },
    AllocRun {
        blocks: usize,
        bytes: usize,
        align_shift: u32,
    },
    /// A pointer to no block: into one, behind one, or freed before.
    FreeForeign {
        block: usize,
        offset: usize,
    },
    Trim,
}

/// Sizes of all magnitudes, most of them small.
fn bytes() -> impl Strategy<Value = usize> {
    prop_oneof![6 => 0..600usize, 3 => 600..40_000usize, 2 => 40_000..600_000usize, 1 => 0..9_000_000usize]
}

fn step() -> impl Strategy<Value = Step> {
    let align = prop_oneof![8 => Just(4u32), 1 => 0..10u32, 1 => 10..23u32];
    let block = 0..1000usize;
    prop_oneof![
        8 => (bytes(), align, prop::bool::weighted(0.1))
            .prop_map(|(bytes, align_shift, zeroed)| Step::Alloc { bytes, align_shift, zeroed }),
        6 => block.clone().prop_map(|block| Step::Free { block }),
        5 => (block.clone(), bytes()).prop_map(|(block, bytes)| Step::Realloc { block, bytes }),
        3 => (block.clone(), bytes()).prop_map(|(block, bytes)| Step::Resize { block, bytes }),
        1 => (block, 0..80_000usize).prop_map(|(block, offset)| Step::FreeForeign { block, offset }),
        1 => Just(Step::Trim),
        1 => (0..3000usize, 0..300usize, 0..8u32)
            .prop_map(|(blocks, bytes, align_shift)| Step::AllocRun { blocks, bytes, align_shift }),
    ]
}

struct World<'h, 'u, 'a> {
    heap: &'h TestHeap<'u, 'a>,
    blocks: Vec<Block>,
    seeds: u64,
    refused: u64,
}

impl World<'_, '_, '_> {
    fn seed(&mut self) -> u64 {
        self.seeds += 1;
        self.seeds << 32
    }

    /// No two blocks share a byte, and each is where it should be.
    fn check_place(&self, block: &Block) {
        assert!((block.at.as_ptr() as usize).is_multiple_of(block.align_bytes), "{block:?}");
        let usable = self.heap.usable_bytes(block.at).expect("it is a block");
        assert!(usable >= block.bytes, "{usable} bytes for {block:?}");
        let (start, end) = (block.at.as_ptr() as usize, block.at.as_ptr() as usize + usable);
        for other in self.blocks.iter().filter(|other| other.at != block.at) {
            let at = other.at.as_ptr() as usize;
            assert!(end <= at || at + other.bytes <= start, "{block:?} overlaps {other:?}");
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Alloc { bytes, align_shift, zeroed } => {
                let align_bytes = 1 << align_shift;
                let seed = self.seed();
                let made = if zeroed {
                    self.heap.alloc_zeroed(bytes, align_bytes)
                } else {
                    self.heap.alloc(bytes, align_bytes)
                };
                match made {
                    Ok(at) => {
                        let block = Block { at, bytes, align_bytes, seed };
                        self.check_place(&block);
                        for place in Block::places(if zeroed { bytes } else { 0 }) {
                            // SAFETY: within the block.
                            let found = unsafe { at.as_ptr().add(place).read() };
                            assert_eq!(found, 0, "byte {place} of {block:?}");
                        }
                        block.fill();
                        self.blocks.push(block);
                    }
                    Err(error) => self.refuse(error),
                }
            }
            Step::Free { block } if !self.blocks.is_empty() => {
                let block = self.blocks.swap_remove(block % self.blocks.len());
                block.verify(block.bytes, block.bytes, block.seed);
                // SAFETY: the block is gone from the model.
                assert_eq!(unsafe { self.heap.free(block.at) }, Ok(()), "{block:?}");
                if block.bytes >= PAGES_MIN_BYTES {
                    // SAFETY: it isn't a block any more.
                    let again = unsafe { self.heap.free(block.at) };
                    assert!(matches!(again, Err(HeapError::NotABlock { .. })), "{again:?} for {block:?}");
                }
            }
            Step::Realloc { block, bytes } if !self.blocks.is_empty() => self.resize(block, bytes, true),
            Step::Resize { block, bytes } if !self.blocks.is_empty() => self.resize(block, bytes, false),
            Step::FreeForeign { block, offset } if !self.blocks.is_empty() => {
                let block = self.blocks[block % self.blocks.len()];
                let at = block.at.as_ptr() as usize + offset;
                let known = self.blocks.iter().any(|block| block.at.as_ptr() as usize == at);
                // A chunk may hold what looks like a header: one from before, if it grew over others.
                let gva = Gva::new(block.at.as_ptr() as u64);
                let pages = self.heap.inspect(|umpa| umpa.usable_bytes(gva).is_ok()).expect("free");
                if !known && (offset % 16 != 0 || offset < block.bytes && pages) {
                    let at = NonNull::new(at as *mut u8).expect("not null");
                    // SAFETY: it isn't a block.
                    let freed = unsafe { self.heap.free(at) };
                    assert!(matches!(freed, Err(HeapError::NotABlock { .. })), "{freed:?} in {block:?}");
                }
            }
            Step::AllocRun { blocks, bytes, align_shift } => {
                let align_bytes = 1 << align_shift;
                // The model is quadratic: large runs are freed but for a few blocks.
                match self.heap.alloc_run(blocks, bytes, align_bytes) {
                    Ok(run) => {
                        assert_eq!((run.len(), run.iter().count()), (blocks, blocks));
                        let usable = run.usable_bytes();
                        assert!(usable >= bytes || blocks == 0);
                        let block = |at| Block { at, bytes: usable, align_bytes, seed: self.seeds << 32 | 7 };
                        let all: Vec<_> = run.iter().map(block).collect();
                        assert_apart(&all);
                        all.iter().for_each(Block::fill);
                        for (number, block) in all.into_iter().enumerate() {
                            assert_eq!(run.get(number), Some(block.at));
                            if number % 97 == 5 {
                                self.check_place(&block);
                                self.blocks.push(block);
                                continue;
                            }
                            block.verify(usable, usable, block.seed);
                            // SAFETY: nobody uses it.
                            assert_eq!(unsafe { self.heap.free(block.at) }, Ok(()), "{block:?}");
                        }
                    }
                    Err(error) => self.refuse(error),
                }
            }
            Step::Trim => {
                self.heap.trim().expect("no call is under way");
            }
            _ => {}
        }
    }

    fn resize(&mut self, number: usize, bytes: usize, may_move: bool) {
        let number = number % self.blocks.len();
        let old = self.blocks[number];
        // SAFETY: the model uses what it gets from here on.
        let done = unsafe {
            if may_move {
                self.heap.realloc(old.at, bytes, old.align_bytes)
            } else {
                self.heap.resize(old.at, bytes).map(|()| old.at)
            }
        };
        match done {
            Ok(at) => {
                let block = Block { at, bytes, align_bytes: old.align_bytes, seed: self.seed() };
                self.blocks[number] = block;
                self.check_place(&block);
                block.verify(bytes.min(old.bytes), old.bytes, old.seed);
                block.fill();
            }
            Err(error) => {
                self.refuse(error);
                assert!(
                    bytes > old.bytes || bytes >= PAGES_MIN_BYTES / 2,
                    "{error:?}: {old:?} to {bytes} bytes"
                );
                old.verify(old.bytes, old.bytes, old.seed);
            }
        }
    }

    fn refuse(&mut self, error: HeapError) {
        self.refused += 1;
        let expected = matches!(error, HeapError::OutOfMemory { .. } | HeapError::NoRoom { .. });
        assert!(expected, "{error:?}");
    }

    fn verify_all(&self) {
        self.blocks.iter().for_each(|block| block.verify(block.bytes, block.bytes, block.seed));
    }
}

/// Frees everything; what the page allocator has then must be what it had before.
fn run(umpa: &mut Umpa<'_, Machine>, config: Config, steps: &[Step]) -> u64 {
    // SAFETY: the machine has real memory, which is the test's alone.
    let heap = unsafe { Heap::new(umpa, config) }.expect("a page is free");
    let mut world = World { heap: &heap, blocks: Vec::new(), seeds: 0, refused: 0 };
    for (number, step) in steps.iter().enumerate() {
        world.step(step);
        if number % 16 == 0 {
            world.verify_all();
        }
    }
    world.verify_all();
    let refused = world.refused;
    for block in world.blocks {
        // SAFETY: the model is gone.
        assert_eq!(unsafe { heap.free(block.at) }, Ok(()));
    }
    drop(heap);
    umpa.settle();
    umpa.check(0);
    refused
}

fn page_config() -> impl Strategy<Value = PageConfig> {
    (any::<bool>(), prop_oneof![Just(0u64), Just(1 << 16)]).prop_map(|(ladder, quarantine_max_frames)| {
        let placement = if ladder { Placement::Ladder } else { Placement::Remap };
        PageConfig { placement, quarantine_max_frames, ..PageConfig::default() }
    })
}

fn cases() -> ProptestConfig {
    let seeds = FileFailurePersistence::WithSource("proptest-regressions");
    ProptestConfig { failure_persistence: Some(Box::new(seeds)), ..ProptestConfig::with_cases(96) }
}

proptest! {
    #![proptest_config(cases())]

    /// Also with few frames, scattered frames, and windows so small that a heap needs several.
    #[test]
    fn blocks_keep_their_content(
        page_config in page_config(),
        frames in prop_oneof![Just(700u64), Just(2500), Just(16_000)],
        exists in prop_oneof![Just(u64::MAX), Just(0x7fff_ffff_7fff_ffff)],
        reserve_bytes in prop_oneof![Just(128u64 << 10), Just(1 << 20), Just(64 << 30)],
        steps in prop::collection::vec(step(), 1..250),
    ) {
        with_umpa(frames, page_config, |unit| exists >> (unit % 64) & 1 == 1, |umpa| {
            run(umpa, Config { reserve_bytes }, &steps);
        });
    }
}

fn with_heap<T>(frames: u64, test: impl FnOnce(&TestHeap<'_, '_>) -> T) -> T {
    with_heap_on(frames, PageConfig::default(), test)
}

fn with_heap_on<T>(frames: u64, config: PageConfig, test: impl FnOnce(&TestHeap<'_, '_>) -> T) -> T {
    with_umpa(
        frames,
        config,
        |_| true,
        |umpa| {
            // SAFETY: the machine has real memory, which is the test's alone.
            let done = test(&unsafe { Heap::new(umpa, Config::default()) }.expect("a page is free"));
            umpa.settle();
            umpa.check(0);
            done
        },
    )
}

#[test]
fn collections_live_on_a_heap() {
    with_heap(8192, |heap| {
        let mut vec: HeapVec<u64, _> = HeapVec::new_in(heap);
        vec.extend(0..1_000_000);
        assert!(vec.iter().copied().eq(0..1_000_000));
        vec.truncate(10);
        vec.shrink_to_fit();
        assert_eq!(vec.iter().sum::<u64>(), 45);
        let nested: Vec<HeapVec<u8, _>> = (0..500u32)
            .map(|n| {
                let mut bytes = HeapVec::new_in(heap);
                bytes.resize(n as usize, n as u8);
                bytes
            })
            .collect();
        assert!(nested.iter().enumerate().all(|(n, bytes)| bytes.iter().all(|&b| b == n as u8)));
    });
}

/// From `PAGES_MIN_BYTES` on a block is never copied: its frames go along.
#[test]
fn large_blocks_grow_by_moved_entries() {
    grow(0);
}

#[test]
fn blocks_grow_by_copies_where_the_machine_is_better_at_that() {
    grow(1024);
}

/// Doubles a block to 32 MiB, which is copied while it has fewer pages than `copy_below_pages`.
fn grow(copy_below_pages: u64) {
    let config = PageConfig { copy_below_pages, ..PageConfig::default() };
    with_heap_on(20_000, config, |heap| {
        let mut block = heap.alloc(PAGES_MIN_BYTES, 16).expect("memory");
        let last = |bytes: usize| bytes / size_of::<u64>() - 1;
        // SAFETY: within the block.
        unsafe {
            block.cast::<u64>().write(77);
            block.cast::<u64>().add(last(PAGES_MIN_BYTES)).write(78);
        }
        let mut bytes = PAGES_MIN_BYTES;
        let before = heap.inspect(|umpa| umpa.stats()).expect("free");
        let (mut moves, mut copies) = (0, 0);
        while bytes < 32 << 20 {
            // Something behind the block, so that it can't grow there.
            let other = heap.alloc(PAGES_MIN_BYTES, 16).expect("memory");
            bytes *= 2;
            let old = block;
            // SAFETY: the old address isn't used again; within the block; nobody uses the other.
            unsafe {
                block = heap.realloc(block, bytes, 16).expect("memory");
                assert_eq!(block.cast::<u64>().read(), 77);
                assert_eq!(block.cast::<u64>().add(last(bytes / 2)).read(), 78);
                block.cast::<u64>().add(last(bytes)).write(78);
                heap.free(other).expect("a block");
            }
            let is_copied = (bytes as u64 / 2 / PAGE_BYTES) < copy_below_pages;
            *(if is_copied { &mut copies } else { &mut moves }) += u64::from(block != old);
        }
        let after = heap.inspect(|umpa| umpa.stats()).expect("free");
        assert_eq!(after.moved - before.moved, moves);
        assert!(moves >= 2, "{moves}");
        assert_eq!(copies > 0, copy_below_pages > 0, "{copies}");
        // SAFETY: nobody uses it any more.
        unsafe { heap.free(block).expect("a block") };
    });
}

/// A block that lies at a large multiple by chance moves to one when that is asked for.
#[test]
fn a_resize_keeps_the_alignment_that_is_asked_for() {
    with_heap(10_000, |heap| {
        let align_bytes = 2 << 20;
        // With the page of the heap's state: so that the blocks behind may be aligned.
        let first = heap.alloc(63 * PAGE_BYTES as usize, 16).expect("memory");
        let alloc = |_| heap.alloc(PAGES_MIN_BYTES, 16).expect("memory");
        let blocks: Vec<_> = (0..128).map(alloc).collect();
        let aligned = |block: &NonNull<u8>| (block.as_ptr() as usize).is_multiple_of(align_bytes);
        let mut moves = 0;
        let resized = |block| {
            if aligned(&block) {
                // SAFETY: the old address isn't used again.
                let moved = unsafe { heap.realloc(block, 200_000, align_bytes) }.expect("memory");
                assert!(aligned(&moved), "{moved:?}");
                moves += usize::from(moved != block);
                moved
            } else {
                block
            }
        };
        let blocks: Vec<_> = blocks.into_iter().map(resized).chain([first]).collect();
        // SAFETY: nobody uses them any more.
        blocks.into_iter().for_each(|block| unsafe { heap.free(block).expect("a block") });
        assert!(moves > 0);
    });
}

/// What dlmalloc asks for at once.
const GRAIN_BYTES: u64 = 64 << 10;

/// Frames that are there before the heap's first segment: behind it they are free.
fn preload(heap: &TestHeap<'_, '_>, frames: u64) {
    // SAFETY: blocks are left alone.
    let came = unsafe { heap.with_pages(|umpa| umpa.preload(frames).frames) };
    assert!(came.expect("no call is under way") > frames / 2);
}

/// In the direct map: no entry is written, nothing is flushed, and what blocks don't need is free.
#[test]
fn a_segment_takes_what_is_used_and_writes_no_entry() {
    with_heap(20_000, |heap| {
        preload(heap, 20_000);
        let counts = || {
            heap.inspect(|umpa| (umpa.tables().stores(), umpa.owed().settled()))
                .expect("no call is under way")
        };
        let free_frames = || heap.inspect(|umpa| umpa.frames().free_frames()).expect("no call is under way");
        let (before, free_before) = (counts(), free_frames());
        let mut blocks: Vec<_> = Vec::new();
        // A chunk of 1000 bytes takes 1008.
        let check = |blocks: &Vec<NonNull<u8>>, slack_bytes| {
            let (least, found) =
                (blocks.len() as u64 * 1008, heap.segment_bytes().expect("no call is under way"));
            assert!((least..=least + slack_bytes).contains(&found), "{found} bytes for {least}");
            assert_eq!((free_before - free_frames()) * PAGE_BYTES, found);
        };
        for _ in 0..20_000 {
            blocks.push(heap.alloc(1000, 16).expect("memory"));
            check(&blocks, GRAIN_BYTES + 1024);
        }
        assert!(heap.keeps(gva_of(blocks[0])).expect("no call is under way"));
        assert!(
            !heap.keeps(Gva::new(gva_of(blocks[19_999]).get() + GRAIN_BYTES)).expect("no call is under way")
        );
        // From the end on, what is more than dlmalloc keeps goes back.
        while let Some(block) = blocks.pop() {
            // SAFETY: nobody uses it any more.
            unsafe { heap.free(block) }.expect("a block");
            check(&blocks, (2 << 20) + GRAIN_BYTES + 1024);
        }
        assert_eq!(counts(), before);
    });
}

/// Somebody takes the frames behind the segment: a window follows, and blocks of both are found.
#[test]
fn a_segment_that_cant_grow_is_followed_by_a_window() {
    with_heap(20_000, |heap| {
        preload(heap, 20_000);
        let alloc = || heap.alloc(100_000, 16).expect("memory");
        let mut blocks = vec![alloc()];
        let segment_bytes = heap.segment_bytes().expect("no call is under way");
        // SAFETY: the large blocks aren't used, and freed below.
        let others = unsafe {
            heap.with_pages(|umpa| {
                let rest = umpa.frames().free_frames() - 4096;
                (0..rest / 64)
                    .map(|_| umpa.userpage_malloc(64 * PAGE_BYTES).expect("frames"))
                    .collect::<Vec<_>>()
            })
        };
        let others = others.expect("no call is under way");
        blocks.extend((0..60).map(|_| alloc()));
        let windows = |blocks: &[NonNull<u8>]| {
            blocks.iter().filter(|block| Slot::containing(gva_of(**block)).is_some()).count()
        };
        assert!((1..=60).contains(&windows(&blocks)), "{} of 61 blocks lie in a window", windows(&blocks));
        assert!(heap.segment_bytes().expect("no call is under way") > segment_bytes);
        for (number, block) in blocks.iter().enumerate() {
            assert!(heap.keeps(gva_of(*block)).expect("no call is under way"), "block {number}");
            Block { at: *block, bytes: 100_000, align_bytes: 16, seed: number as u64 }.fill();
        }
        for (number, block) in blocks.into_iter().enumerate() {
            Block { at: block, bytes: 100_000, align_bytes: 16, seed: number as u64 }.verify(
                100_000,
                100_000,
                number as u64,
            );
            // SAFETY: nobody uses it any more; nor the large ones.
            unsafe { heap.free(block) }.expect("a block");
        }
        // SAFETY: nobody uses them.
        let freed = unsafe {
            heap.with_pages(|umpa| {
                others.into_iter().for_each(|gva| umpa.userpage_free(gva).expect("a block"))
            })
        };
        freed.expect("no call is under way");
    });
}

fn gva_of(block: NonNull<u8>) -> Gva {
    Gva::new(block.as_ptr() as u64)
}

#[test]
fn nonsense_is_refused() {
    with_heap(4096, |heap| {
        let is_foreign = |freed| matches!(freed, Err(HeapError::NotABlock { .. }));
        assert_eq!(heap.alloc(1, 3), Err(HeapError::BadAlignment { align_bytes: 3 }));
        assert_eq!(heap.alloc(1, 0), Err(HeapError::BadAlignment { align_bytes: 0 }));
        for bytes in [usize::MAX, usize::MAX - 100_000, 1 << 62, 1 << 50] {
            assert_eq!(heap.alloc(bytes, 16), Err(HeapError::OutOfMemory { bytes }));
            assert_eq!(heap.alloc(bytes, 8192), Err(HeapError::OutOfMemory { bytes }));
        }
        assert_eq!(heap.alloc(1, 1 << 50), Err(HeapError::OutOfMemory { bytes: 1 }));
        let [small, behind] = [40, 40].map(|bytes| heap.alloc(bytes, 16).expect("memory"));
        let large = heap.alloc(200_000, 16).expect("memory");
        let mut local = 0u64;
        // SAFETY: none of these is a block in use by anyone.
        unsafe {
            assert!(is_foreign(heap.free(NonNull::from(&mut local).cast())));
            assert!(is_foreign(heap.free(NonNull::dangling())));
            assert!(is_foreign(heap.free(small.add(8))));
            assert!(is_foreign(heap.free(large.add(4096))));
            assert!(is_foreign(heap.free(large.add(16))));
            assert_eq!(heap.free(small), Ok(()));
            assert!(is_foreign(heap.free(small)));
            assert_eq!(heap.free(large), Ok(()));
            assert!(is_foreign(heap.free(large)));
            assert!(is_foreign(heap.resize(large, 1)));
            assert!(is_foreign(heap.realloc(large, 1, 16).map(|_| ())));
            assert!(heap.usable_bytes(large).is_err());
            assert_eq!(heap.free(behind), Ok(()));
        }
    });
}

#[test]
fn a_call_within_a_call_is_refused() {
    with_heap(1024, |heap| {
        let inner = heap.inspect(|_| heap.alloc(1, 1)).expect("no call is under way");
        assert_eq!(inner, Err(HeapError::Busy));
        assert!(heap.alloc(1, 1).is_ok());
    });
}

/// Where dlmalloc keeps its heads, and that a chunk with room is resized in place.
#[test]
fn chunks_are_as_the_crate_makes_them() {
    with_heap(4096, |heap| {
        for bytes in (0..5000).step_by(7) {
            let [block, next, guard] = [bytes, 3000, 16].map(|bytes| heap.alloc(bytes, 16).expect("memory"));
            let usable = heap.usable_bytes(block).expect("a block");
            assert!((bytes.max(24)..=bytes.max(24) + 24).contains(&usable), "{usable} for {bytes}");
            // SAFETY: they are blocks that nobody uses.
            unsafe {
                let room = heap.resize(block, usable + 8);
                assert!(matches!(room, Err(HeapError::NoRoom { .. })), "{room:?} at {block:?}, {next:?}");
                heap.free(next).expect("a block");
                if next.as_ptr() as usize == block.as_ptr() as usize + usable + 8 {
                    assert_eq!(heap.resize(block, usable + 2500), Ok(()));
                }
                heap.free(block).expect("a block");
                heap.free(guard).expect("a block");
            }
        }
    });
}

/// The machine's TLB is worth something: without flushes a moved block shows stale pages.
#[test]
#[should_panic(expected = "byte")]
fn a_missing_flush_is_seen() {
    let config =
        PageConfig { placement: Placement::Remap, quarantine_max_frames: 0, ..PageConfig::default() };
    with_umpa(
        4000,
        config,
        |_| true,
        |umpa| {
            umpa.machine_mut().ignore_flushes = true;
            // SAFETY: the machine has real memory, which is the test's alone.
            let heap = unsafe { Heap::new(umpa, Config::default()) }.expect("a page");
            let mut world = World { heap: &heap, blocks: Vec::new(), seeds: 0, refused: 0 };
            for round in 0..40 {
                world.step(&Step::Alloc {
                    bytes: 100_000 + 5000 * (round % 7),
                    align_shift: 4,
                    zeroed: false,
                });
                world.step(&Step::Realloc { block: round, bytes: 90_000 * (1 + round % 5) });
                world.step(&Step::Free { block: round });
                world.step(&Step::Alloc { bytes: 100_000, align_shift: 4, zeroed: false });
                world.verify_all();
            }
        },
    );
}

/// What the slabs hold, in frames.
fn used_frames(heap: &TestHeap<'_, '_>) -> u64 {
    let frames = |umpa: &Umpa<'_, Machine>| {
        let frames = umpa.frames();
        frames.granted_frames() - frames.free_frames() - frames.quarantined_frames()
    };
    heap.inspect(frames).expect("no call is under way")
}

#[test]
fn a_run_is_made_without_a_touch_and_freed_in_parts() {
    with_heap(20_000, |heap| {
        let before = used_frames(heap);
        let walked = walks();
        let run = heap.alloc_run(1_000_000, 24, 8).expect("memory");
        // The bits: 123 KB in 12 units; no node.
        assert!(walks() - walked < 40, "{} pages touched", walks() - walked);
        assert_eq!(run.usable_bytes(), 24);
        let full = used_frames(heap) - before;
        assert!((5860..5860 + 60).contains(&full), "{full} frames for 24 MB");
        // All but every 200,000th: what has no node in use goes back, 2 MiB at a time.
        for (number, block) in run.iter().enumerate().filter(|(number, _)| number % 200_000 != 0) {
            // SAFETY: within the block, which is freed; nobody uses it.
            unsafe {
                block.cast::<usize>().write(number);
                heap.free(block).expect("a block");
            }
        }
        let left = used_frames(heap) - before;
        assert!((5 * 512..5 * 512 + 60).contains(&left), "{left} frames for 5 nodes");
        for number in [0, 200_000, 400_000, 600_000, 800_000] {
            let block = run.get(number).expect("in the run");
            // SAFETY: nobody uses it.
            unsafe {
                assert!(heap.free(block.add(8)).is_err());
                assert_eq!(heap.free(block), Ok(()));
                assert!(heap.free(block).is_err(), "block {number} twice");
            }
        }
    });
}

#[test]
fn runs_that_make_no_sense_are_refused() {
    with_heap(1024, |heap| {
        assert_eq!(heap.alloc_run(10, 1, 3), Err(HeapError::BadAlignment { align_bytes: 3 }));
        assert_eq!(heap.alloc_run(2, 1 << 20, 16), Err(HeapError::TooLargeForRun { bytes: 1 << 20 }));
        for blocks in [usize::MAX, usize::MAX / 16, 1 << 60, 1 << 40, 10_000_000] {
            let refused = heap.alloc_run(blocks, 16, 16);
            assert!(matches!(refused, Err(HeapError::OutOfMemory { .. })), "{refused:?} for {blocks}");
        }
        assert_eq!(heap.alloc_run(0, 16, 16).map(|run| run.iter().count()), Ok(0));
    });
}

/// A heap that is dropped ends its runs.
#[test]
fn runs_end_with_their_heap() {
    with_umpa(
        4096,
        PageConfig::default(),
        |_| true,
        |umpa| {
            for _ in 0..5 {
                // SAFETY: the machine has real memory, which is the test's alone.
                let heap = unsafe { Heap::new(umpa, Config::default()) }.expect("a page");
                for blocks in [10, 5000, 100_000] {
                    heap.alloc_run(blocks, 40, 16).expect("memory");
                }
            }
            umpa.settle();
            umpa.check(0);
        },
    );
}
