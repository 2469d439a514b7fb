//! A heap of pages that come and go, on the machine with real memory: compared with a model of its blocks
//! and of the frames that these need, and with dlmalloc.

#![allow(unsafe_code)] // reason: blocks are used and freed by pointer

mod blocks;
mod host;

use std::collections::BTreeSet;
use std::ptr::NonNull;

use allocator_api2::vec::Vec as HeapVec;
use blocks::{Block, assert_apart};
use host::{Machine, with_umpa};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use umpa::blocks::{Config as PageConfig, Placement, Umpa};
use umpa_abi::addr::PAGE_BYTES;
use umpa_heap::paged::{Config, PageBytes, Policy};
use umpa_heap::{HeapError, PagedHeap};

type TestHeap<'u, 'a> = PagedHeap<'u, 'a, Machine>;

#[derive(Clone, Debug)]
enum Step {
    Alloc {
        bytes: usize,
        align_shift: u32,
        zeroed: bool,
    },
    /// Several, of one size.
    AllocMany {
        blocks: usize,
        bytes: usize,
    },
    Free {
        block: usize,
    },
    /// Each of so many.
    FreeEach {
        of: usize,
    },
    Realloc {
        block: usize,
        bytes: usize,
        align_shift: u32,
    },
    Resize {
        block: usize,
        bytes: usize,
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
    prop_oneof![6 => 0..600usize, 3 => 600..40_000usize, 2 => 40_000..600_000usize, 1 => 0..4_000_000usize]
}

fn align() -> impl Strategy<Value = u32> {
    prop_oneof![8 => Just(4u32), 1 => 0..10u32, 1 => 10..22u32]
}

fn step() -> impl Strategy<Value = Step> {
    let block = 0..1000usize;
    prop_oneof![
        8 => (bytes(), align(), prop::bool::weighted(0.1))
            .prop_map(|(bytes, align_shift, zeroed)| Step::Alloc { bytes, align_shift, zeroed }),
        2 => (1..60usize, 0..3000usize).prop_map(|(blocks, bytes)| Step::AllocMany { blocks, bytes }),
        6 => block.clone().prop_map(|block| Step::Free { block }),
        1 => (1..4usize).prop_map(|of| Step::FreeEach { of }),
        5 => (block.clone(), bytes(), align())
            .prop_map(|(block, bytes, align_shift)| Step::Realloc { block, bytes, align_shift }),
        3 => (block.clone(), bytes()).prop_map(|(block, bytes)| Step::Resize { block, bytes }),
        1 => (block, 0..80_000usize).prop_map(|(block, offset)| Step::FreeForeign { block, offset }),
        1 => Just(Step::Trim),
    ]
}

struct World<'h, 'u, 'a> {
    heap: &'h TestHeap<'u, 'a>,
    config: Config,
    /// Frames of the machine.
    frames: u64,
    /// Sorted by nothing.
    blocks: Vec<Block>,
    usable: Vec<usize>,
    /// The highest address that a block ever had, from the heap's beginning.
    highest: u64,
    seeds: u64,
    refused: u64,
    /// Each frame exists.
    all_frames: bool,
}

impl World<'_, '_, '_> {
    fn seed(&mut self) -> u64 {
        self.seeds += 1;
        self.seeds << 32
    }

    fn base(&self) -> u64 {
        // Windows begin at multiples of their length.
        self.blocks.first().map_or(0, |block| block.at.as_ptr() as u64 & !(self.config.reserve_bytes - 1))
    }

    /// Places of all blocks from the heap's beginning on, in order.
    fn ranges(&self) -> Vec<(u64, u64)> {
        let base = self.base();
        let range = |(block, &usable): (&Block, &usize)| {
            let start = block.at.as_ptr() as u64 - base;
            (start, start + usable as u64)
        };
        let mut ranges: Vec<_> = self.blocks.iter().zip(&self.usable).map(range).collect();
        ranges.sort_unstable();
        ranges
    }

    /// Frames of the three tables of metadata, for a heap that has had blocks up to `end`.
    fn tables(&self, end: u64) -> [u64; 3] {
        let page = self.config.pages.bytes();
        let behind = end.min(self.config.reserve_bytes - 16);
        let digest = ((behind >> 18) + 1) * 4 * 8;
        let records = end.div_ceil(self.config.region_bytes) * 24;
        let bits = end.div_ceil(page).div_ceil(64) * 24;
        [digest, records, bits].map(|bytes| bytes.div_ceil(PAGE_BYTES))
    }

    /// The fewest frames that a block could have been placed with, counted anew: pages that no block
    /// touches, and metadata: a page for each 256 KiB in which a block or gap begins, and the three tables
    /// as far as they aren't there. `None` when no gap is long enough.
    fn least_frames(&self, bytes: usize, align_bytes: usize) -> Option<u64> {
        let (page, end) = (self.config.pages.bytes(), self.config.reserve_bytes);
        let bytes = (bytes as u64).max(1).next_multiple_of(16);
        let align = (align_bytes as u64).max(16);
        let ranges = self.ranges();
        let (mut touched, mut sheets) = (BTreeSet::new(), BTreeSet::new());
        let mut gaps = Vec::new();
        let mut from = 0;
        for &(start, stop) in &ranges {
            touched.extend(start / page..stop.div_ceil(page));
            if from < start {
                gaps.push((from, start));
            }
            from = stop;
            sheets.insert(start >> 18);
        }
        if from < end {
            gaps.push((from, end));
        }
        sheets.extend(gaps.iter().map(|gap| gap.0 >> 18));
        let tables = |end| self.tables(end);
        let have = tables(self.highest);
        let mut least = None;
        for (start, stop) in gaps {
            let mut places = vec![start.next_multiple_of(align)];
            if let Some(last) = stop.checked_sub(bytes) {
                places.extend([last - last % align, start.next_multiple_of(align.max(page))]);
            }
            for place in places {
                if place < start || place.saturating_add(bytes) > stop {
                    continue;
                }
                let pages =
                    (place / page..(place + bytes).div_ceil(page)).filter(|page| !touched.contains(page));
                let data = pages.count() as u64 * (page / PAGE_BYTES);
                let sheet = |place: u64| u64::from(!sheets.contains(&(place >> 18)));
                let behind = (place + bytes).min(end - 16);
                let two = place >> 18 != behind >> 18;
                let bounds = sheet(place) + if two { sheet(behind) } else { 0 };
                let grown =
                    tables(behind + 1).into_iter().zip(have).map(|(new, old)| new.saturating_sub(old));
                let frames = data + bounds + grown.sum::<u64>();
                least = Some(least.map_or(frames, |least: u64| least.min(frames)));
            }
        }
        least
    }

    /// An allocation may fail only when there are too few frames wherever it is placed.
    fn check_refusal(&mut self, bytes: usize, align_bytes: usize, error: HeapError) {
        assert_eq!(error, HeapError::OutOfMemory { bytes });
        self.refused += 1;
        let Some(least) = self.least_frames(bytes, align_bytes) else { return };
        let used = self.heap.counters().expect("no call").frames();
        assert!(
            used + least > self.frames,
            "refused: {bytes} bytes take {least} frames, {used} of {} are in use",
            self.frames
        );
        // What the heap has is what its blocks need.
        let page = self.config.pages.bytes();
        let touched: BTreeSet<_> =
            self.ranges().iter().flat_map(|&(start, stop)| start / page..stop.div_ceil(page)).collect();
        let counters = self.heap.counters().expect("no call");
        assert_eq!(counters.backed_bytes, touched.len() as u64 * page, "{counters:?}");
    }

    fn check(&self) {
        self.heap.check();
        let counters = self.heap.counters().expect("no call");
        let live: usize = self.usable.iter().sum();
        assert_eq!(
            (counters.live_bytes, counters.live_blocks),
            (live as u64, self.blocks.len() as u64),
            "{counters:?}"
        );
        let slack = self.config.slack_bytes / self.config.pages.bytes() * self.config.pages.bytes();
        assert!(counters.idle_bytes <= slack, "{counters:?}");
        let used = self.heap.inspect(|umpa| {
            let frames = umpa.frames();
            frames.granted_frames() - frames.free_frames() - frames.quarantined_frames()
        });
        assert_eq!(used, Ok(counters.frames()), "frames in use, and the heap's: {counters:?}");
        assert!(counters.frames() <= counters.peak_frames && counters.peak_frames <= self.frames);
    }

    fn add(&mut self, block: Block) {
        let usable = self.heap.usable_bytes(block.at).expect("it is a block");
        assert!(
            usable >= block.bytes && usable < block.bytes + 16 + usize::from(block.bytes == 0),
            "{usable}"
        );
        self.blocks.push(block);
        self.usable.push(usable);
        self.highest = self.highest.max(block.at.as_ptr() as u64 - self.base() + usable as u64);
        block.fill();
    }

    fn alloc(&mut self, bytes: usize, align_bytes: usize, zeroed: bool) {
        let made = if zeroed {
            self.heap.alloc_zeroed(bytes, align_bytes)
        } else {
            self.heap.alloc(bytes, align_bytes)
        };
        match made {
            Ok(at) => {
                let block = Block { at, bytes, align_bytes, seed: self.seed() };
                for place in Block::places(if zeroed { bytes } else { 0 }) {
                    // SAFETY: within the block.
                    let found = unsafe { at.as_ptr().add(place).read() };
                    assert_eq!(found, 0, "byte {place} of {block:?}");
                }
                self.add(block);
            }
            Err(error) => self.check_refusal(bytes, align_bytes, error),
        }
    }

    fn free(&mut self, number: usize) {
        let block = self.blocks.swap_remove(number);
        self.usable.swap_remove(number);
        block.verify(block.bytes, block.bytes, block.seed);
        // SAFETY: the block is gone from the model.
        assert_eq!(unsafe { self.heap.free(block.at) }, Ok(()), "{block:?}");
        // SAFETY: it isn't a block any more.
        let again = unsafe { self.heap.free(block.at) };
        assert!(matches!(again, Err(HeapError::NotABlock { .. })), "{again:?} for {block:?}");
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Alloc { bytes, align_shift, zeroed } => self.alloc(bytes, 1 << align_shift, zeroed),
            Step::AllocMany { blocks, bytes } => (0..blocks).for_each(|_| self.alloc(bytes, 1, false)),
            Step::Free { block } if !self.blocks.is_empty() => self.free(block % self.blocks.len()),
            Step::FreeEach { of } => {
                (0..self.blocks.len())
                    .rev()
                    .filter(|number| number % of == 0)
                    .for_each(|number| self.free(number));
            }
            Step::Realloc { block, bytes, align_shift } if !self.blocks.is_empty() => {
                self.resize(block, bytes, Some(1 << align_shift));
            }
            Step::Resize { block, bytes } if !self.blocks.is_empty() => self.resize(block, bytes, None),
            Step::FreeForeign { block, offset } if !self.blocks.is_empty() => {
                let at = self.blocks[block % self.blocks.len()].at.as_ptr() as usize + offset;
                if !self.blocks.iter().any(|block| block.at.as_ptr() as usize == at) {
                    let before = self.heap.counters();
                    let at = NonNull::new(at as *mut u8).expect("not null");
                    // SAFETY: it isn't a block.
                    unsafe {
                        assert!(matches!(self.heap.free(at), Err(HeapError::NotABlock { .. })));
                        assert!(matches!(self.heap.resize(at, 1), Err(HeapError::NotABlock { .. })));
                        assert!(matches!(self.heap.realloc(at, 1, 1), Err(HeapError::NotABlock { .. })));
                    }
                    assert_eq!(self.heap.counters(), before);
                }
            }
            Step::Trim => {
                self.heap.trim().expect("no call is under way");
                let counters = self.heap.counters().expect("no call");
                assert_eq!(counters.idle_bytes, 0);
                // Where frames are missing that the allocator doesn't know of, a try may have made tables longer.
                if self.all_frames && self.refused == 0 {
                    let ranges = self.ranges();
                    let bounds = ranges.iter().flat_map(|&(start, end)| [start, end]).chain([0]);
                    let sheets: BTreeSet<_> = bounds.filter(|&at| at < self.config.reserve_bytes).collect();
                    let sheets: BTreeSet<_> = sheets.into_iter().map(|at| at >> 18).collect();
                    let frames = sheets.len() as u64 + self.tables(self.highest).iter().sum::<u64>();
                    assert_eq!(counters.metadata_bytes, frames * PAGE_BYTES, "{counters:?}");
                }
            }
            _ => {}
        }
    }

    fn resize(&mut self, number: usize, bytes: usize, align_bytes: Option<usize>) {
        let number = number % self.blocks.len();
        let old = self.blocks[number];
        // SAFETY: the model uses what it gets from here on.
        let done = unsafe {
            match align_bytes {
                Some(align_bytes) => self.heap.realloc(old.at, bytes, align_bytes),
                None => self.heap.resize(old.at, bytes).map(|()| old.at),
            }
        };
        match done {
            Ok(at) => {
                let block = Block { at, bytes, align_bytes: align_bytes.unwrap_or(1), seed: self.seed() };
                block.verify(bytes.min(old.bytes), old.bytes, old.seed);
                self.blocks.swap_remove(number);
                self.usable.swap_remove(number);
                let usable = self.heap.usable_bytes(at).expect("a block");
                self.blocks.push(block);
                self.usable.push(usable);
                self.highest = self.highest.max(at.as_ptr() as u64 - self.base() + usable as u64);
                // Only for want of a frame for its end may a block keep more.
                assert!(usable >= bytes);
                assert!(
                    usable < bytes + 17 || usable == old.bytes.max(1).next_multiple_of(16),
                    "{usable} for {bytes}"
                );
                block.fill();
            }
            Err(error) => {
                self.refused += 1;
                assert!(
                    matches!(error, HeapError::OutOfMemory { .. } | HeapError::NoRoom { .. }),
                    "{error:?}"
                );
                let moves =
                    align_bytes.is_some_and(|align| !(old.at.as_ptr() as usize).is_multiple_of(align));
                assert!(bytes > old.bytes || moves, "{error:?}: {old:?} to {bytes} bytes");
                old.verify(old.bytes, old.bytes, old.seed);
            }
        }
    }

    fn verify_all(&self) {
        assert_apart(&self.blocks);
        self.blocks.iter().for_each(|block| block.verify(block.bytes, block.bytes, block.seed));
    }
}

/// Frees everything; what the page allocator has then must be what it had before.
fn run(umpa: &mut Umpa<'_, Machine>, frames: u64, config: Config, steps: &[Step]) -> u64 {
    let all_frames = umpa.frames().capacity_frames() == frames;
    // SAFETY: the machine has real memory, which is the test's alone.
    let heap = unsafe { PagedHeap::new(umpa, config) }.expect("frames are free");
    let mut world = World {
        heap: &heap,
        config,
        frames,
        blocks: Vec::new(),
        usable: Vec::new(),
        highest: 0,
        seeds: 0,
        refused: 0,
        all_frames,
    };
    for (number, step) in steps.iter().enumerate() {
        world.step(step);
        world.check();
        if number % 16 == 0 {
            world.verify_all();
        }
    }
    world.verify_all();
    while !world.blocks.is_empty() {
        world.free(world.blocks.len() - 1);
    }
    heap.trim().expect("no call");
    world.check();
    let refused = world.refused;
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

fn config() -> impl Strategy<Value = Config> {
    let pages =
        prop_oneof![3 => Just(PageBytes::Small), 2 => Just(PageBytes::Medium), 1 => Just(PageBytes::Large)];
    let reserve_bytes = prop_oneof![1 => Just(4u64 << 20), 1 => Just(32 << 20), 4 => Just(64 << 30)];
    let region_bytes = prop_oneof![Just(16u64 << 10), Just(64 << 10), Just(1 << 20)];
    let slack_bytes = prop_oneof![Just(0u64), Just(300_000), Just(4 << 20), Just(u64::MAX)];
    let policy =
        prop_oneof![3 => Just(Policy::Crowded), 2 => Just(Policy::Tight), 1 => Just(Policy::FirstFit)];
    (pages, reserve_bytes, region_bytes, slack_bytes, policy).prop_map(
        |(pages, reserve_bytes, region_bytes, slack_bytes, policy)| {
            let region_bytes = region_bytes.max(pages.bytes());
            Config { pages, reserve_bytes, region_bytes, slack_bytes, policy }
        },
    )
}

fn cases() -> ProptestConfig {
    let seeds = FileFailurePersistence::WithSource("proptest-regressions");
    ProptestConfig { failure_persistence: Some(Box::new(seeds)), ..ProptestConfig::with_cases(128) }
}

proptest! {
    #![proptest_config(cases())]

    /// Also with few frames, scattered frames, and few addresses.
    #[test]
    fn blocks_are_refused_only_when_frames_are_short(
        page_config in page_config(),
        frames in prop_oneof![Just(700u64), Just(2560), Just(8000)],
        exists in prop_oneof![Just(u64::MAX), Just(0x7fff_ffff_7fff_ffff)],
        config in config(),
        steps in prop::collection::vec(step(), 1..200),
    ) {
        let exists = |unit| exists >> (unit % 64) & 1 == 1;
        let there = (0..frames).filter(|&unit| exists(unit)).count() as u64;
        with_umpa(frames, page_config, exists, |umpa| {
            run(umpa, there, config, &steps);
        });
    }
}

fn with_heap<T>(frames: u64, config: Config, test: impl FnOnce(&TestHeap<'_, '_>) -> T) -> T {
    with_umpa(
        frames,
        PageConfig::default(),
        |_| true,
        |umpa| {
            // SAFETY: the machine has real memory, which is the test's alone.
            let heap = unsafe { PagedHeap::new(umpa, config) }.expect("frames are free");
            let done = test(&heap);
            heap.check();
            drop(heap);
            umpa.settle();
            umpa.check(0);
            done
        },
    )
}

#[test]
fn collections_live_on_a_heap() {
    with_heap(8192, Config::default(), |heap| {
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

#[test]
fn nonsense_is_refused() {
    with_heap(4096, Config::default(), |heap| {
        let is_foreign = |freed| matches!(freed, Err(HeapError::NotABlock { .. }));
        assert_eq!(heap.alloc(1, 3), Err(HeapError::BadAlignment { align_bytes: 3 }));
        assert_eq!(heap.alloc(1, 0), Err(HeapError::BadAlignment { align_bytes: 0 }));
        assert_eq!(heap.alloc(1, 1 << 50), Err(HeapError::BadAlignment { align_bytes: 1 << 50 }));
        let before = heap.counters().expect("no call");
        for bytes in [usize::MAX, usize::MAX - 100_000, 1 << 62, 1 << 50, 64 << 30, 32 << 30, 17 << 20] {
            assert_eq!(heap.alloc(bytes, 16), Err(HeapError::OutOfMemory { bytes }));
            assert_eq!(heap.alloc(bytes, 8192), Err(HeapError::OutOfMemory { bytes }));
        }
        assert_eq!(heap.counters(), Ok(before), "a refused block leaves no metadata");
        let [small, large] = [40, 200_000].map(|bytes| heap.alloc(bytes, 16).expect("memory"));
        let mut local = 0u64;
        // SAFETY: none of these is a block in use by anyone.
        unsafe {
            assert!(is_foreign(heap.free(NonNull::from(&mut local).cast())));
            assert!(is_foreign(heap.free(NonNull::dangling())));
            assert!(is_foreign(heap.free(small.add(8))));
            assert!(is_foreign(heap.free(small.add(16))));
            assert!(is_foreign(heap.free(large.add(4096))));
            assert!(is_foreign(heap.free(small.add(60 << 30))));
            for block in [small, large] {
                assert_eq!(heap.free(block), Ok(()));
                assert!(is_foreign(heap.free(block)));
                assert!(is_foreign(heap.resize(block, 1)));
                assert!(is_foreign(heap.realloc(block, 1, 16).map(|_| ())));
                assert!(heap.usable_bytes(block).is_err());
            }
        }
        let inner = heap.inspect(|_| heap.alloc(1, 1)).expect("no call is under way");
        assert_eq!(inner, Err(HeapError::Busy));
    });
}

/// A heap that breathes edits tables once; one without slack, at every breath.
#[test]
fn what_breathes_keeps_its_pages() {
    let breathe = |slack_bytes| {
        with_heap(4096, Config { slack_bytes, ..Config::default() }, |heap| {
            let stores = || heap.inspect(|umpa| umpa.tables().stores()).expect("no call");
            let breath = || {
                let blocks: Vec<_> = (0..100).map(|_| heap.alloc(5000, 16).expect("memory")).collect();
                // SAFETY: nobody uses them.
                blocks.into_iter().for_each(|block| unsafe { heap.free(block).expect("a block") });
            };
            breath();
            let before = stores();
            (0..50).for_each(|_| breath());
            let counters = heap.counters().expect("no call");
            (stores() - before, counters.pages_released, counters.pages_backed_again)
        })
    };
    assert_eq!(breathe(1 << 20), (0, 0, 0));
    let (stores, released, again) = breathe(0);
    assert!(stores > 50 * 2 * 100 && released > 50 * 100 && again >= 50 * 100, "{stores} {released} {again}");
}

/// Each page of 2 MiB is one entry, where the frames allow it; and smaller ones where they don't.
#[test]
fn large_pages_are_large_leaves() {
    let config = Config { pages: PageBytes::Large, ..Config::default() };
    let stores_for = |exists: fn(u64) -> bool| {
        with_umpa(8192, PageConfig::default(), exists, |umpa| {
            // SAFETY: the machine has real memory, which is the test's alone.
            let heap = unsafe { PagedHeap::new(umpa, config) }.expect("memory");
            let small = heap.alloc(1, 1).expect("memory");
            let before = heap.inspect(|umpa| umpa.tables().stores()).expect("no call");
            let block = heap.alloc(8 << 20, 2 << 20).expect("memory");
            let stores = heap.inspect(|umpa| umpa.tables().stores()).expect("no call") - before;
            let block = Block { at: block, bytes: 8 << 20, align_bytes: 2 << 20, seed: 5 };
            block.fill();
            block.verify(block.bytes, block.bytes, block.seed);
            // SAFETY: nobody uses them.
            unsafe {
                heap.free(block.at).expect("a block");
                heap.free(small).expect("a block");
            }
            heap.trim().expect("no call");
            heap.check();
            let counters = heap.counters().expect("no call");
            assert_eq!((counters.backed_bytes, counters.pages_released), (0, 5), "{counters:?}");
            stores
        })
    };
    // Metadata besides.
    let whole = stores_for(|_| true);
    assert!((4..40).contains(&whole), "{whole} stores for 4 pages");
    assert!(stores_for(|unit| unit % 512 != 0) > 4 * 512);
}

/// A free block's metadata keeps no page, nor do the bits that tell of it keep theirs.
#[test]
fn a_trimmed_heap_has_what_its_blocks_need() {
    with_heap(16_384, Config::default(), |heap| {
        let blocks: Vec<_> = (0..40_000).map(|_| heap.alloc(1000, 16).expect("memory")).collect();
        let full = heap.counters().expect("no call");
        assert!(full.frames() > 9900 && full.metadata_bytes < full.backed_bytes / 50, "{full:?}");
        let last = blocks.len() - 1;
        // SAFETY: nobody uses them.
        (1..last).for_each(|number| unsafe { heap.free(blocks[number]).expect("a block") });
        heap.trim().expect("no call");
        heap.check();
        let left = heap.counters().expect("no call");
        // Two blocks, two sheets of bounds; digest, records of 611 regions, and bits.
        assert_eq!((left.backed_bytes, left.metadata_bytes), (2 * PAGE_BYTES, (2 + 2 + 4 + 1) * PAGE_BYTES));
        // SAFETY: nobody uses them.
        [0, last].iter().for_each(|&number| unsafe { heap.free(blocks[number]).expect("a block") });
    });
}
