//! N1527 on the machine with real memory, compared with a model of blocks: batches of all kinds, mixed
//! with the heap's own calls.

#![allow(unsafe_code)] // reason: blocks are used and freed by pointer

mod blocks;
mod host;

use std::ptr::{NonNull, null_mut};

use blocks::{Block, assert_apart};
use host::{Machine, walks, with_umpa};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use umpa::blocks::Config as PageConfig;
use umpa::mmap::Errno;
use umpa_heap::heap::PAGES_MIN_BYTES;
use umpa_heap::n1527::{Allocation2, Allocation5, Batch, Flags};
use umpa_heap::{Config, Heap, HeapError};

type TestHeap<'u, 'a> = Heap<'u, 'a, Machine>;

const UNTOLD: i32 = -1;
const EINVAL: i32 = Errno::EINVAL as i32;
const ENOMEM: i32 = Errno::ENOMEM as i32;
const ENOSPC: i32 = Errno::ENOSPC as i32;

fn with_heap<T>(frames: u64, test: impl FnOnce(&TestHeap<'_, '_>) -> T) -> T {
    with_umpa(
        frames,
        PageConfig::default(),
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

/// What an entry asks for: of a new block, or of one that there is.
#[derive(Clone, Debug)]
struct Wish {
    block: Option<usize>,
    size: usize,
    align_shift: u32,
    reserve: usize,
    flags: Flags,
}

#[derive(Clone, Debug)]
enum Step {
    Batch1 {
        wishes: Vec<Option<usize>>,
        size: usize,
        align_shift: u32,
        reserve: usize,
        flags: Flags,
    },
    Batch2 {
        wishes: Vec<(Option<usize>, usize)>,
        align_shift: u32,
        reserve: usize,
        flags: Flags,
    },
    Batch5 {
        wishes: Vec<Wish>,
    },
    TryRealloc {
        block: usize,
        size: usize,
    },
    AlignedRealloc {
        block: usize,
        size: usize,
        align_shift: u32,
    },
    Free {
        block: usize,
    },
    /// A batch that frees blocks in order of their addresses, but for every so many-th.
    FreeInOrder {
        spared: usize,
        flags: Flags,
    },
}

fn size() -> impl Strategy<Value = usize> {
    prop_oneof![2 => Just(0usize), 6 => 1..500usize, 2 => 500..50_000usize, 1 => 50_000..700_000usize]
}

fn reserve() -> impl Strategy<Value = usize> {
    prop_oneof![3 => Just(0usize), 1 => 0..200usize, 1 => 0..700_000usize]
}

/// Mostly flags that agree.
fn flags() -> impl Strategy<Value = Flags> {
    let some = |flag| prop_oneof![3 => Just(Flags::empty()), 1 => Just(flag)];
    let kind = prop_oneof![
        12 => Just(Flags::empty()),
        2 => Just(Flags::BATCH_IS_ALL_ALLOC),
        2 => Just(Flags::BATCH_IS_ALL_REALLOC),
        2 => Just(Flags::BATCH_IS_ALL_FREE),
        1 => Just(Flags::BATCH_IS_ALL_FREE | Flags::BATCH_IS_ALL_ALLOC),
    ];
    (some(Flags::ZERO_MEMORY), some(Flags::PREVENT_MOVE), some(Flags::CONSTANT_TIME), kind)
        .prop_map(|(zero, pinned, constant, kind)| zero | pinned | constant | kind)
}

fn step() -> impl Strategy<Value = Step> {
    let block = || prop::option::of(0..1000usize);
    let align = || 0..9u32;
    let many = prop::collection::vec(block(), 0..20);
    let new = (2..400usize).prop_map(|count| vec![None; count]);
    // Many blocks are small ones, so that there are memory and tables for all.
    let batch1 = (prop_oneof![many, new], size(), reserve()).prop_map(|(many, size, reserve)| {
        let limit = if many.len() > 20 { 3000 } else { usize::MAX };
        (many, size % limit, reserve % limit)
    });
    let wishes2 = prop::collection::vec((block(), size()), 0..20);
    let wish = (block(), size(), align(), reserve(), flags()).prop_map(
        |(block, size, align_shift, reserve, flags)| Wish { block, size, align_shift, reserve, flags },
    );
    prop_oneof![
        4 => (batch1, align(), flags()).prop_map(|((wishes, size, reserve), align_shift, flags)| {
            Step::Batch1 { wishes, size, align_shift, reserve, flags }
        }),
        2 => (wishes2, align(), reserve(), flags()).prop_map(
            |(wishes, align_shift, reserve, flags)| Step::Batch2 { wishes, align_shift, reserve, flags }
        ),
        2 => prop::collection::vec(wish, 0..20).prop_map(|wishes| Step::Batch5 { wishes }),
        2 => (0..1000usize, size()).prop_map(|(block, size)| Step::TryRealloc { block, size }),
        2 => (0..1000usize, size(), align())
            .prop_map(|(block, size, align_shift)| Step::AlignedRealloc { block, size, align_shift }),
        2 => (0..1000usize).prop_map(|block| Step::Free { block }),
        1 => (2..40usize, any::<bool>()).prop_map(|(spared, constant)| {
            let flags = if constant { Flags::CONSTANT_TIME } else { Flags::empty() };
            Step::FreeInOrder { spared, flags }
        }),
    ]
}

struct World<'h, 'u, 'a> {
    heap: &'h TestHeap<'u, 'a>,
    blocks: Vec<Block>,
    seeds: u64,
}

impl World<'_, '_, '_> {
    /// The block of a wish, taken out of the model; each at most once in a batch.
    fn take(&mut self, number: Option<usize>) -> Option<Block> {
        let number = number.filter(|_| !self.blocks.is_empty())?;
        Some(self.blocks.swap_remove(number % self.blocks.len()))
    }

    fn seed(&mut self) -> u64 {
        self.seeds += 1;
        self.seeds << 32
    }

    /// Compares what became of an entry with what it asked for, and takes it into the model.
    fn settle(&mut self, wish: &Wish, old: Option<Block>, found: *mut u8, usable: usize, errno: i32) {
        let flags = wish.flags;
        let kinds = [Flags::BATCH_IS_ALL_ALLOC, Flags::BATCH_IS_ALL_REALLOC, Flags::BATCH_IS_ALL_FREE];
        let [all_new, all_old, all_free] = kinds.map(|kind| flags.contains(kind));
        let size = if all_free { 0 } else { wish.size };
        let contradiction = usize::from(all_new) + usize::from(all_old) + usize::from(all_free) > 1;
        let given = old.filter(|_| !all_new);
        // With the flag the pointer isn't read, so the block stays the caller's.
        let bystander = old.filter(|_| all_new && !contradiction);
        self.blocks.extend(bystander);
        if contradiction || all_old && (old.is_none() || size == 0) {
            assert_eq!(errno, EINVAL, "{wish:?}");
            self.blocks.extend(old.filter(|_| bystander.is_none()));
            return;
        }
        if errno != 0 {
            // There are enough frames, but a reserve takes tables; else a block may not move.
            let pinned = flags.intersects(Flags::PREVENT_MOVE | Flags::CONSTANT_TIME) && given.is_some();
            let wide = wish.reserve >= PAGES_MIN_BYTES;
            let expected = errno == ENOSPC && pinned || errno == ENOMEM && wide;
            assert!(expected && size > 0, "errno {errno}: {wish:?}, {old:?}");
            assert_eq!(found, old.map_or(null_mut(), |old| old.at.as_ptr()), "{wish:?}");
            self.blocks.extend(given);
            return;
        }
        if size == 0 {
            assert!(found.is_null(), "{wish:?}");
            return;
        }
        let at = NonNull::new(found).expect("a block");
        let align_bytes = 1 << wish.align_shift;
        assert_eq!(self.heap.malloc_usable_size(found), usable, "{wish:?}");
        assert!(usable >= size, "{usable} bytes: {wish:?}");
        let block = Block { at, bytes: usable, align_bytes, seed: self.seed() };
        let kept = given.map_or(0, |given| given.bytes.min(size));
        if let Some(given) = given {
            block.verify(kept, given.bytes, given.seed);
            let pinned = flags.intersects(Flags::PREVENT_MOVE | Flags::CONSTANT_TIME);
            assert!(!pinned || given.at == at, "{wish:?} moved");
        }
        if flags.contains(Flags::ZERO_MEMORY) {
            for place in Block::places(usable).filter(|&place| place >= kept) {
                // SAFETY: within the block.
                assert_eq!(unsafe { found.add(place).read() }, 0, "byte {place}: {wish:?}");
            }
        }
        block.fill();
        self.blocks.push(block);
    }

    fn check_batch(batch: Batch, errnos: &[i32]) {
        let succeeded = errnos.iter().filter(|&&errno| errno == 0).count();
        assert!(!errnos.contains(&UNTOLD));
        assert_eq!(batch, Batch { succeeded, complete: succeeded == errnos.len() });
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Batch1 { wishes, size, align_shift, reserve, flags } => {
                let olds: Vec<_> = wishes.iter().map(|&wish| self.take(wish)).collect();
                let mut ptrs: Vec<_> =
                    olds.iter().map(|old| old.map_or(null_mut(), |old| old.at.as_ptr())).collect();
                let mut errnos = vec![UNTOLD; ptrs.len()];
                let mut least = *size;
                // SAFETY: the blocks are out of the model.
                let batch = unsafe {
                    let errnos = Some(errnos.as_mut_slice());
                    self.heap.batch_alloc1(errnos, &mut ptrs, &mut least, 1 << align_shift, *reserve, *flags)
                };
                Self::check_batch(batch, &errnos);
                let mut usables = Vec::new();
                for (at, old) in olds.into_iter().enumerate() {
                    let usable = self.heap.malloc_usable_size(ptrs[at]);
                    let block = old.map(|_| 0);
                    let wish = Wish {
                        block,
                        size: *size,
                        align_shift: *align_shift,
                        reserve: *reserve,
                        flags: *flags,
                    };
                    let made = errnos[at] == 0 && !ptrs[at].is_null();
                    usables.extend(made.then_some(usable));
                    self.settle(&wish, old, ptrs[at], usable, errnos[at]);
                }
                assert_eq!(least, usables.into_iter().min().unwrap_or(*size), "the size told: {step:?}");
            }
            Step::Batch2 { wishes, align_shift, reserve, flags } => {
                let olds: Vec<_> = wishes.iter().map(|wish| self.take(wish.0)).collect();
                let entry = |(old, wish): (&Option<Block>, &(Option<usize>, usize))| Allocation2 {
                    ptr: old.map_or(null_mut(), |old| old.at.as_ptr()),
                    size: wish.1,
                };
                let mut entries: Vec<_> = olds.iter().zip(wishes).map(entry).collect();
                let mut errnos = vec![UNTOLD; entries.len()];
                // SAFETY: the blocks are out of the model.
                let batch = unsafe {
                    let errnos = Some(errnos.as_mut_slice());
                    self.heap.batch_alloc2(errnos, &mut entries, 1 << align_shift, *reserve, *flags)
                };
                Self::check_batch(batch, &errnos);
                for (at, (old, wish)) in olds.into_iter().zip(wishes).enumerate() {
                    let wish = Wish {
                        block: wish.0,
                        size: wish.1,
                        align_shift: *align_shift,
                        reserve: *reserve,
                        flags: *flags,
                    };
                    self.settle(&wish, old, entries[at].ptr, entries[at].size, errnos[at]);
                }
            }
            Step::Batch5 { wishes } => {
                let olds: Vec<_> = wishes.iter().map(|wish| self.take(wish.block)).collect();
                let entry = |(old, wish): (&Option<Block>, &Wish)| Allocation5 {
                    ptr: old.map_or(null_mut(), |old| old.at.as_ptr()),
                    size: wish.size,
                    alignment: 1 << wish.align_shift,
                    reserve: wish.reserve,
                    flags: wish.flags,
                };
                let mut entries: Vec<_> = olds.iter().zip(wishes).map(entry).collect();
                let mut errnos = vec![UNTOLD; entries.len()];
                // SAFETY: the blocks are out of the model.
                let batch = unsafe { self.heap.batch_alloc5(Some(&mut errnos), &mut entries) };
                Self::check_batch(batch, &errnos);
                for (at, (old, wish)) in olds.into_iter().zip(wishes).enumerate() {
                    let Allocation5 { ptr, size, reserve, .. } = entries[at];
                    if errnos[at] == 0 && !ptr.is_null() {
                        let asked = if wish.flags.contains(Flags::PREVENT_MOVE) { 0 } else { wish.reserve };
                        let pinned = old.is_some() && wish.flags.contains(Flags::CONSTANT_TIME);
                        assert!(reserve >= size && (pinned || reserve >= asked), "{reserve}: {wish:?}");
                    }
                    self.settle(wish, old, ptr, size, errnos[at]);
                }
            }
            Step::TryRealloc { block, size } => {
                let Some(old) = self.take(Some(*block)) else { return };
                // SAFETY: the block is out of the model.
                match unsafe { self.heap.try_realloc(old.at.as_ptr(), *size) } {
                    Ok(()) => self.resized(old, old.at, *size),
                    Err(error) => {
                        assert!(error == Errno::ENOSPC && *size > old.bytes, "{error:?}: {size} of {old:?}");
                        self.blocks.push(old);
                    }
                }
            }
            Step::AlignedRealloc { block, size, align_shift } => {
                let Some(old) = self.take(Some(*block)) else { return };
                // SAFETY: the block is out of the model.
                let moved = unsafe { self.heap.aligned_realloc(old.at.as_ptr(), 1 << align_shift, *size) };
                let moved = moved.expect("there is enough memory");
                self.resized(Block { align_bytes: 1 << align_shift, ..old }, moved, *size);
            }
            Step::Free { block } => {
                let Some(old) = self.take(Some(*block)) else { return };
                old.verify(old.bytes, old.bytes, old.seed);
                // SAFETY: the block is out of the model.
                assert_eq!(unsafe { self.heap.free(old.at) }, Ok(()), "{old:?}");
            }
            Step::FreeInOrder { spared, flags } => {
                self.blocks.sort_by_key(|block| block.at);
                let mut numbers = 0..;
                let is_spared =
                    |_: &mut Block| numbers.next().is_some_and(|n: usize| !n.is_multiple_of(*spared));
                let freed: Vec<_> = self.blocks.extract_if(.., is_spared).collect();
                freed.iter().for_each(|block| block.verify(block.bytes, block.bytes, block.seed));
                let mut ptrs: Vec<_> = freed.iter().map(|block| block.at.as_ptr()).collect();
                ptrs.insert(ptrs.len() / 2, null_mut());
                let mut errnos = vec![UNTOLD; ptrs.len()];
                // SAFETY: the blocks are out of the model.
                let batch =
                    unsafe { self.heap.batch_alloc1(Some(&mut errnos), &mut ptrs, &mut 0, 0, 0, *flags) };
                assert_eq!(batch, Batch { succeeded: ptrs.len(), complete: true });
                assert!(errnos.iter().all(|&errno| errno == 0) && ptrs.iter().all(|ptr| ptr.is_null()));
            }
        }
    }

    fn resized(&mut self, old: Block, at: NonNull<u8>, size: usize) {
        let usable = self.heap.malloc_usable_size(at.as_ptr());
        assert!(usable >= size, "{usable} bytes of {size}");
        let block = Block { at, bytes: usable, align_bytes: old.align_bytes, seed: self.seed() };
        block.verify(old.bytes.min(size), old.bytes, old.seed);
        block.fill();
        self.blocks.push(block);
    }
}

fn cases() -> ProptestConfig {
    let seeds = FileFailurePersistence::WithSource("proptest-regressions");
    ProptestConfig { failure_persistence: Some(Box::new(seeds)), ..ProptestConfig::with_cases(96) }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn batches_do_what_their_entries_say(steps in prop::collection::vec(step(), 1..60)) {
        with_heap(60_000, |heap| {
            let mut world = World { heap, blocks: Vec::new(), seeds: 0 };
            for step in &steps {
                world.step(step);
                assert_apart(&world.blocks);
            }
            for block in world.blocks {
                block.verify(block.bytes, block.bytes, block.seed);
                // SAFETY: the model is gone.
                assert_eq!(unsafe { heap.free(block.at) }, Ok(()));
            }
        });
    }
}

/// A reserve is room to grow where the block is.
#[test]
fn blocks_grow_into_their_reserve() {
    with_heap(20_000, |heap| {
        for (size, reserve, flags, reserve_bytes) in [
            (100, 5000, Flags::empty(), 5000),
            (100, 200_000, Flags::empty(), 200_000),
            (70_000, 8_000_000, Flags::empty(), 8_000_000),
            (70_000, 20, Flags::RESERVE_IS_MULT, 1_400_000),
            (10, 8, Flags::RESERVE_IS_MULT, 80),
        ] {
            let mut entries = [Allocation5 { ptr: null_mut(), size, alignment: 64, reserve, flags }; 4];
            let mut errnos = [UNTOLD; 4];
            // SAFETY: the blocks are new; nobody uses what is freed.
            unsafe {
                let batch = heap.batch_alloc5(Some(&mut errnos), &mut entries);
                assert_eq!((batch.complete, errnos), (true, [0; 4]), "{size} of {reserve_bytes}");
                for entry in &entries {
                    entry.ptr.write_bytes(7, size);
                    assert_eq!(
                        heap.try_realloc(entry.ptr, reserve_bytes),
                        Ok(()),
                        "{size} of {reserve_bytes}"
                    );
                    entry.ptr.add(size).write_bytes(8, reserve_bytes - size);
                    assert_eq!(entry.ptr.add(size - 1).read(), 7);
                    assert_eq!(heap.free(NonNull::new(entry.ptr).expect("a block")), Ok(()));
                }
            }
        }
    });
}

#[test]
fn nonsense_gets_its_errno_and_changes_nothing() {
    with_heap(4096, |heap| {
        let block = heap.alloc(100, 16).expect("memory");
        let large = heap.alloc(200_000, 16).expect("memory");
        // SAFETY: within the block.
        let within = unsafe { large.as_ptr().add(4096) };
        let mut local = 0u64;
        let foreign = NonNull::from(&mut local).cast::<u8>().as_ptr();
        let new = Flags::BATCH_IS_ALL_ALLOC;
        // Pointer, size, alignment, reserve, flags; errno.
        let cases = [
            (null_mut(), usize::MAX, 16, 0, Flags::empty(), ENOMEM),
            (null_mut(), 1 << 45, 16, 0, Flags::empty(), ENOMEM),
            (null_mut(), 16, 3, 0, Flags::empty(), EINVAL),
            (null_mut(), 16, 1 << 60, 0, Flags::empty(), ENOMEM),
            (null_mut(), 16, 16, usize::MAX, Flags::empty(), ENOMEM),
            (null_mut(), 16, 16, usize::MAX / 8, Flags::RESERVE_IS_MULT, ENOMEM),
            (null_mut(), 16, 16, 0, new | Flags::BATCH_IS_ALL_FREE, EINVAL),
            (null_mut(), 16, 16, 0, Flags::BATCH_IS_ALL_REALLOC, EINVAL),
            (null_mut(), 16, 16, 0, Flags::from_bits_retain(1 << 40), EINVAL),
            (block.as_ptr(), 0, 16, 0, Flags::BATCH_IS_ALL_REALLOC, EINVAL),
            (block.as_ptr(), 1 << 45, 16, 0, Flags::empty(), ENOMEM),
            (block.as_ptr(), 1 << 20, 16, 0, Flags::PREVENT_MOVE, ENOSPC),
            (block.as_ptr(), 50, 3, 0, Flags::empty(), EINVAL),
            (block.as_ptr(), 50, 16, usize::MAX, Flags::empty(), ENOMEM),
            (block.as_ptr(), 50, 16, usize::MAX / 8, Flags::RESERVE_IS_MULT, ENOMEM),
            (large.as_ptr(), 50, 16, usize::MAX, Flags::empty(), ENOMEM),
            (large.as_ptr(), 1 << 20, 16, 1 << 50, Flags::empty(), ENOMEM),
            (large.as_ptr(), 1 << 20, 3, 1 << 22, Flags::empty(), EINVAL),
            (within, 1 << 20, 16, 1 << 22, Flags::empty(), EINVAL),
            (foreign, 0, 16, 0, Flags::empty(), EINVAL),
            (foreign, 50, 16, 0, Flags::empty(), EINVAL),
            (foreign, 50, 16, 0, Flags::BATCH_IS_ALL_FREE, EINVAL),
        ];
        for (ptr, size, alignment, reserve, flags, expected) in cases {
            let entry = Allocation5 { ptr, size, alignment, reserve, flags };
            let (mut entries, mut errnos) = ([entry], [UNTOLD]);
            // SAFETY: refused, or a block of nobody's.
            let batch = unsafe { heap.batch_alloc5(Some(&mut errnos), &mut entries) };
            assert_eq!((batch.succeeded, batch.complete), (0, false), "{entry:?}");
            assert_eq!((errnos, entries), ([expected], [entry]));
            let (mut ptrs, mut told, mut errnos) = ([ptr; 2], size, [UNTOLD; 2]);
            // SAFETY: as above.
            let batch = unsafe {
                heap.batch_alloc1(Some(&mut errnos), &mut ptrs, &mut told, alignment, reserve, flags)
            };
            assert_eq!(
                (batch.succeeded, errnos, ptrs, told),
                (0, [expected; 2], [ptr; 2], size),
                "{entry:?}"
            );
        }
        // SAFETY: nobody uses it.
        unsafe {
            assert_eq!(heap.try_realloc(null_mut(), 5), Err(Errno::EINVAL));
            assert_eq!(heap.try_realloc(foreign, 5), Err(Errno::EINVAL));
            assert_eq!(heap.try_aligned_realloc(block.as_ptr(), 3, 5), Err(Errno::EINVAL));
            assert_eq!(heap.try_aligned_realloc(foreign, 16, 5), Err(Errno::EINVAL));
            assert_eq!(heap.try_aligned_realloc(block.as_ptr(), 1 << 30, 5), Err(Errno::ENOSPC));
            assert_eq!((heap.malloc_usable_size(foreign), heap.malloc_usable_size(null_mut())), (0, 0));
            assert_eq!(heap.malloc_usable_size(large.as_ptr()), 200_704);
            assert_eq!(heap.free(block).and(heap.free(large)), Ok(()));
        }
    });
}

/// What one entry can't have, others do.
#[test]
fn entries_fail_each_by_itself() {
    with_heap(1024, |heap| {
        let sizes = [100, 1 << 40, 0, 300_000, 1 << 30, 50];
        let mut entries = sizes.map(|size| Allocation2 { ptr: null_mut(), size });
        let mut errnos = [UNTOLD; 6];
        // SAFETY: all are new.
        let batch = unsafe { heap.batch_alloc2(Some(&mut errnos), &mut entries, 0, 0, Flags::empty()) };
        assert_eq!(batch, Batch { succeeded: 4, complete: false });
        assert_eq!(errnos, [0, ENOMEM, 0, 0, ENOMEM, 0]);
        let given = entries.map(|entry| !entry.ptr.is_null());
        assert_eq!(given, [true, false, false, true, false, true]);
        // SAFETY: nobody uses them.
        let batch = unsafe { heap.batch_alloc2(None, &mut entries, 0, 0, Flags::BATCH_IS_ALL_FREE) };
        assert_eq!(batch, Batch { succeeded: 6, complete: true });
        assert!(entries.iter().all(|entry| entry.ptr.is_null()));
        // More than there is: as many as fit.
        let (mut ptrs, mut size) = (vec![null_mut(); 100], 200_000);
        let mut errnos = vec![UNTOLD; 100];
        // SAFETY: all are new.
        let batch =
            unsafe { heap.batch_alloc1(Some(&mut errnos), &mut ptrs, &mut size, 0, 0, Flags::empty()) };
        assert!((14..22).contains(&batch.succeeded) && !batch.complete, "{batch:?}");
        assert_eq!(ptrs.iter().filter(|ptr| !ptr.is_null()).count(), batch.succeeded);
        assert_eq!(size, 200_704);
        // SAFETY: nobody uses them.
        let batch = unsafe { heap.batch_alloc1(None, &mut ptrs, &mut 0, 0, 0, Flags::empty()) };
        assert_eq!(batch, Batch { succeeded: 100, complete: true });
    });
}

/// Frees with `CONSTANT_TIME` edit no table and flush nothing.
#[test]
fn frees_in_constant_time_give_nothing_back() {
    with_heap(20_000, |heap| {
        let stores = || heap.inspect(|umpa| umpa.tables().stores()).expect("free");
        for flags in [Flags::CONSTANT_TIME, Flags::empty()] {
            let alloc = |_| heap.alloc(600, 16).expect("memory").as_ptr();
            let mut ptrs: Vec<_> = (0..40_000).map(alloc).collect();
            let before = stores();
            // SAFETY: nobody uses them.
            let batch = unsafe { heap.batch_alloc1(None, &mut ptrs, &mut 0, 0, 0, flags) };
            assert!(batch.complete);
            let edits = stores() - before;
            assert_eq!(edits == 0, flags == Flags::CONSTANT_TIME, "{edits} stores");
        }
    });
}

/// Pages touched by the allocator since the count was `before`.
fn touched(before: u64) -> u64 {
    walks() - before
}

/// A block of pages moves to where it can grow by its entries; other blocks are small, and copied.
#[test]
fn a_block_moves_to_its_reserve_without_a_copy() {
    with_heap(30_000, |heap| {
        for (size, new_size, reserve) in [
            (1 << 20, 2 << 20, 8 << 20),
            (4 << 20, 4 << 20, 9 << 20),
            (2 << 20, 70_000, 3 << 20),
            (100, 80_000, 90_000),
        ] {
            let mut entry = Allocation2 { ptr: null_mut(), size };
            // SAFETY: the block is new, and used by nobody else.
            unsafe {
                let batch = |entry: &mut Allocation2, size: usize, reserve: usize, flags: Flags| {
                    entry.size = size;
                    let done = heap.batch_alloc2(None, core::slice::from_mut(entry), 0, reserve, flags);
                    assert!(done.complete, "{size} of {reserve}");
                };
                batch(&mut entry, size, 0, Flags::empty());
                let kept = size.min(new_size);
                (0..kept).step_by(50).for_each(|at| entry.ptr.add(at).write((at / 50) as u8));
                let before = walks();
                batch(&mut entry, new_size, reserve, Flags::empty());
                assert!(touched(before) < 40, "{} pages touched", touched(before));
                batch(&mut entry, reserve, 0, Flags::PREVENT_MOVE);
                assert!((0..kept).step_by(50).all(|at| entry.ptr.add(at).read() == (at / 50) as u8));
                batch(&mut entry, 0, 0, Flags::empty());
            }
        }
    });
}

/// Nodes of two runs, in an order that isn't that of their addresses, with what is refused in between.
#[test]
fn a_batch_frees_its_nodes_as_single_calls_do() {
    with_heap(30_000, |heap| {
        let frames = || {
            let taken = |umpa: &umpa::blocks::Umpa<'_, Machine>| {
                let frames = umpa.frames();
                let kept = umpa.space().retained_pages();
                frames.granted_frames() - frames.free_frames() - frames.quarantined_frames() - kept
            };
            heap.inspect(taken).expect("no call is under way")
        };
        let before = frames();
        let mut ptrs = vec![null_mut(); 400_000];
        let (one, other) = ptrs.split_at_mut(250_000);
        let new = Flags::BATCH_IS_ALL_ALLOC;
        // SAFETY: the blocks are new, and used by nobody else.
        unsafe {
            assert!(heap.batch_alloc1(None, one, &mut 24, 8, 0, new).complete);
            assert!(heap.batch_alloc1(None, other, &mut 40, 8, 0, new).complete);
            let full = frames() - before;
            // Foreign, and freed before: each is refused, and all else is freed.
            let mut local = [0u64; 4];
            let foreign = local.as_mut_ptr().cast::<u8>();
            let kept = [5, 100_000, 249_999, 250_000, 399_999].map(|at| ptrs[at]);
            let refused = [3, 1000, 87_381, 200_001, 300_000, 350_000];
            let mut order = ptrs.clone();
            order.rotate_left(120_000);
            order.retain(|ptr| !kept.contains(ptr));
            for (number, &at) in refused.iter().enumerate() {
                let ptr = match number {
                    5 => {
                        let freed = heap.free(NonNull::new(order[at]).expect("a block"));
                        assert_eq!(freed, Ok(()));
                        continue;
                    }
                    0 => foreign,
                    1 => order[at - 1].add(8),
                    2 => kept[0].add(8),
                    _ => order[at - 20],
                };
                order.insert(at, ptr);
            }
            let mut errnos = vec![UNTOLD; order.len()];
            let mut pointers = order.clone();
            let batch = heap.batch_alloc1(Some(&mut errnos), &mut pointers, &mut 0, 0, 0, Flags::empty());
            assert_eq!(batch, Batch { succeeded: order.len() - refused.len(), complete: false });
            for (at, (&errno, &ptr)) in errnos.iter().zip(&pointers).enumerate() {
                let expected = if refused.contains(&at) { (EINVAL, order[at]) } else { (0, null_mut()) };
                assert_eq!((errno, ptr), expected, "entry {at}");
            }
            // Of the six units of 2 MiB one has no node left.
            assert_eq!(full - (frames() - before), 512, "{full} frames before");
            let mut rest = kept;
            assert!(heap.batch_alloc1(None, &mut rest, &mut 0, 0, 0, Flags::BATCH_IS_ALL_FREE).complete);
            assert_eq!(frames(), before);
        }
    });
}

/// A batch that is freed as a whole leaves its window to the next, which edits no table.
#[test]
fn the_next_batch_takes_over_the_memory_of_the_last() {
    with_heap(20_000, |heap| {
        let stores = || heap.inspect(|umpa| umpa.tables().stores()).expect("free");
        let mut edits = [0; 3];
        for edits in &mut edits {
            let before = stores();
            let mut ptrs = vec![null_mut(); 300_000];
            // SAFETY: the blocks are new, and used by nobody else.
            unsafe {
                let new = Flags::BATCH_IS_ALL_ALLOC;
                assert!(heap.batch_alloc1(None, &mut ptrs, &mut 24, 8, 0, new).complete);
                ptrs.iter().for_each(|ptr| ptr.cast::<[u8; 24]>().write([1; 24]));
                assert!(heap.batch_alloc1(None, &mut ptrs, &mut 0, 0, 0, Flags::empty()).complete);
            }
            *edits = stores() - before;
        }
        assert!(edits[0] > 0 && edits[1..] == [0, 0], "{edits:?} stores");
    });
}

/// A block of a run is a block: in any order with others, by any call.
#[test]
fn blocks_of_a_run_are_blocks() {
    with_heap(20_000, |heap| {
        let (mut ptrs, mut size) = (vec![null_mut(); 100_000], 24);
        // SAFETY: the blocks are new, and used by nobody else.
        unsafe {
            let new = Flags::BATCH_IS_ALL_ALLOC | Flags::ZERO_MEMORY;
            assert!(heap.batch_alloc1(None, &mut ptrs, &mut size, 8, 0, new).complete);
            assert_eq!(size, 24);
            for (number, ptr) in ptrs.iter().enumerate() {
                let node = ptr.cast::<[u64; 3]>();
                assert_eq!(node.read(), [0; 3]);
                node.write([number as u64; 3]);
            }
            // One grows out of the run.
            let grown = heap.aligned_realloc(ptrs[777], 16, 1000).expect("memory");
            assert_eq!(grown.cast::<[u64; 3]>().read(), [777; 3]);
            assert_eq!(heap.try_realloc(ptrs[778], 25), Err(Errno::ENOSPC));
            assert_eq!(heap.try_realloc(ptrs[778], 1), Ok(()));
            let again = heap.free(NonNull::new(ptrs[777]).expect("a block"));
            assert!(matches!(again, Err(HeapError::NotABlock { .. })), "{again:?}");
            ptrs[777] = grown.as_ptr();
            assert!(ptrs.iter().enumerate().all(|(n, ptr)| ptr.cast::<u64>().read() == n as u64));
            assert!(heap.batch_alloc1(None, &mut ptrs, &mut 0, 0, 0, Flags::empty()).complete);
        }
    });
}

/// Also what the last block of a small batch has more than the others.
#[test]
fn new_blocks_are_zero_to_their_ends() {
    with_heap(1024, |heap| {
        for (count, size) in (2..60).flat_map(|count| [1, 25, 73, 500].map(|size| (count, size))) {
            // Memory that was used, with a free chunk of about the batch's size.
            let around = [(); 3].map(|()| heap.alloc(count * (size + 24), 16).expect("memory"));
            // SAFETY: within the blocks, which nobody uses.
            unsafe {
                around.iter().for_each(|block| block.write_bytes(0xff, count * (size + 24)));
                assert_eq!(heap.free(around[1]), Ok(()));
                let (mut ptrs, mut told) = (vec![null_mut(); count], size);
                let zero = Flags::ZERO_MEMORY;
                assert!(heap.batch_alloc1(None, &mut ptrs, &mut told, 0, 0, zero).complete);
                for &ptr in &ptrs {
                    let usable = heap.malloc_usable_size(ptr);
                    assert!(usable >= told && told >= size);
                    assert!((0..usable).all(|at| ptr.add(at).read() == 0), "{count} of {size} bytes");
                }
                assert!(heap.batch_alloc1(None, &mut ptrs, &mut 0, 0, 0, Flags::empty()).complete);
                assert_eq!(heap.free(around[0]).and(heap.free(around[2])), Ok(()));
            }
        }
    });
}

/// A reserve that is told can be had, without a move and in full.
#[test]
fn reserves_are_told_and_kept() {
    with_heap(4096, |heap| {
        let new = |size, reserve| Allocation5 {
            ptr: null_mut(),
            size,
            alignment: 0,
            reserve,
            flags: Flags::empty(),
        };
        let mut entries =
            [new(100, 0), new(100, 5000), new(100, 300_000), new(70_000, 0), new(70_000, 3_000_000)];
        let (asked, mut errnos) = (entries, [UNTOLD; 5]);
        // SAFETY: all are new.
        let batch = unsafe { heap.batch_alloc5(Some(&mut errnos), &mut entries) };
        assert_eq!((batch.succeeded, errnos), (5, [0; 5]));
        for (entry, asked) in entries.iter_mut().zip(asked) {
            assert!(entry.reserve >= asked.reserve && entry.size >= asked.size, "{entry:?} for {asked:?}");
            let (at, told) = (entry.ptr, entry.reserve);
            (entry.size, entry.flags) = (told, Flags::PREVENT_MOVE);
            // SAFETY: the block is used by its new size only.
            let batch = unsafe { heap.batch_alloc5(None, core::slice::from_mut(entry)) };
            assert!(batch.complete && entry.ptr == at && entry.size >= told, "{entry:?}");
            // SAFETY: the block has so many bytes.
            unsafe { at.add(told - 1).write(1) };
            entry.flags = Flags::BATCH_IS_ALL_FREE;
        }
        // SAFETY: nobody uses them.
        assert!(unsafe { heap.batch_alloc5(None, &mut entries) }.complete);
    });
}
