//! C's functions on the machine with real memory: random calls compared with a model of blocks, nonsense among
//! them; and the errors of the mmap family, case by case.

#![allow(unsafe_code)] // reason: blocks are used and freed by pointer

#[path = "../../umpa/heap/tests/blocks/mod.rs"]
mod blocks;
#[path = "../../umpa/heap/tests/host/mod.rs"]
mod host;

use std::ffi::c_void;
use std::ptr::{NonNull, null_mut};

use blocks::{Block, assert_apart};
use guest::c::Library;
use guest::c::batch::{M2_PREVENT_MOVE, M2_ZERO_MEMORY, mallocation2};
use host::{Machine, with_umpa};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use umpa::blocks::Config as PageConfig;
use umpa::mmap::Errno;
use umpa::space::Slot;
use umpa_abi::addr::{Gva, PAGE_BYTES};
use umpa_heap::heap::PAGES_MIN_BYTES;
use umpa_heap::n1527::Flags;
use umpa_heap::{Config, Heap};
use work::conformance::{Before, CASES, Call, Calls, PAGE};

type C<'l, 'u, 'a> = Library<'l, 'u, 'a, Machine>;

const PAGE_SIZE: usize = PAGE_BYTES as usize;
/// Pages of a reservation.
const RESERVED_PAGES: usize = 24;

fn with_library<T>(frames: u64, test: impl FnOnce(&C<'_, '_, '_>) -> T) -> T {
    with_umpa(
        frames,
        PageConfig::default(),
        |_| true,
        |umpa| {
            // SAFETY: the machine has real memory, which is the test's alone.
            let heap = unsafe { Heap::new(umpa, Config::default()) }.expect("a page is free");
            let done = test(&Library(&heap));
            drop(heap);
            umpa.settle();
            umpa.check(0);
            done
        },
    )
}

#[derive(Clone, Debug)]
enum Step {
    PageMalloc(usize),
    PageRealloc(usize, usize),
    PageFree(usize),
    Reserve,
    Commit(usize, usize, usize),
    Release(usize, usize, usize),
    Malloc(usize, u32),
    Calloc(usize, usize),
    Realloc(usize, usize, u32),
    TryRealloc(usize, usize),
    Free(usize),
    Batch1(Vec<Option<usize>>, usize),
    Batch2(Vec<Option<(Option<usize>, usize)>>),
    Nonsense(usize, usize),
}

fn size() -> impl Strategy<Value = usize> {
    prop_oneof![6 => 1..500usize, 2 => 500..50_000usize, 2 => 50_000..400_000usize]
}

fn step() -> impl Strategy<Value = Step> {
    let any = || 0..1000usize;
    let page = || 0..RESERVED_PAGES;
    let entry =
        prop_oneof![Just(None), (proptest::option::of(any()), prop_oneof![Just(0), size()]).prop_map(Some)];
    prop_oneof![
        2 => size().prop_map(Step::PageMalloc),
        2 => (any(), size()).prop_map(|(block, bytes)| Step::PageRealloc(block, bytes)),
        2 => any().prop_map(Step::PageFree),
        1 => Just(Step::Reserve),
        3 => (any(), page(), page()).prop_map(|(block, from, pages)| Step::Commit(block, from, pages)),
        2 => (any(), page(), page()).prop_map(|(block, from, pages)| Step::Release(block, from, pages)),
        3 => (size(), 0..14u32).prop_map(|(bytes, shift)| Step::Malloc(bytes, shift)),
        2 => (1..50usize, 1..3000usize).prop_map(|(members, bytes)| Step::Calloc(members, bytes)),
        3 => (any(), size(), 0..14u32).prop_map(|(block, bytes, shift)| Step::Realloc(block, bytes, shift)),
        2 => (any(), size()).prop_map(|(block, bytes)| Step::TryRealloc(block, bytes)),
        2 => any().prop_map(Step::Free),
        2 => (prop::collection::vec(proptest::option::of(any()), 0..12), prop_oneof![Just(0), size()])
            .prop_map(|(entries, bytes)| Step::Batch1(entries, bytes)),
        2 => prop::collection::vec(entry, 0..12).prop_map(Step::Batch2),
        3 => (any(), 0..7usize).prop_map(|(block, kind)| Step::Nonsense(block, kind)),
    ]
}

/// Addresses, and the pages of them that have memory, each with a seed.
struct Reserved {
    at: *mut u64,
    pages: [Option<u64>; RESERVED_PAGES],
}

struct World<'w, 'l, 'u, 'a> {
    c: &'w C<'l, 'u, 'a>,
    blocks: Vec<Block>,
    reserved: Vec<Reserved>,
    /// Where blocks were that don't exist any more.
    freed: Vec<*mut c_void>,
    seeds: u64,
}

fn address(block: &Block) -> *mut c_void {
    block.at.as_ptr().cast()
}

impl World<'_, '_, '_, '_> {
    /// A block, out of the model.
    fn take(&mut self, number: usize) -> Option<Block> {
        if self.blocks.is_empty() {
            return None;
        }
        let at = number % self.blocks.len();
        Some(self.blocks.swap_remove(at))
    }

    /// A block in a segment of the heap's: one that was small when it was made.
    fn is_chunk(&self, block: &Block) -> bool {
        self.c.0.keeps(Gva::new(address(block).expose_provenance() as u64)) == Ok(true)
    }

    /// Notes where a block was. Of chunks that can't be told when others have been there.
    fn was(&mut self, old: &Block) {
        if !self.is_chunk(old) {
            self.freed.push(address(old));
        }
    }

    /// A block that is new, or was resized from `old`.
    fn given(&mut self, at: *mut c_void, bytes: usize, align_bytes: usize, old: Option<Block>) {
        let at = NonNull::new(at.cast()).expect("a block");
        self.seeds += 1;
        let block = Block { at, bytes, align_bytes, seed: self.seeds << 32 };
        assert!(self.c.malloc_usable_size(at.as_ptr().cast()).expect("a block") >= bytes);
        if let Some(old) = old {
            block.verify(bytes.min(old.bytes), old.bytes, old.seed);
        }
        block.fill();
        self.blocks.push(block);
    }

    fn zero(&self, at: *mut c_void, bytes: usize) {
        // SAFETY: a new block of so many bytes.
        let content = unsafe { core::slice::from_raw_parts(at.cast::<u8>(), bytes) };
        assert!(content.iter().all(|&byte| byte == 0), "new bytes are zero");
    }

    fn step(&mut self, step: &Step) {
        let c = self.c;
        match *step {
            Step::PageMalloc(bytes) => {
                let at = c.userpage_malloc(bytes).expect("frames");
                self.given(at, bytes, PAGE_SIZE, None);
            }
            Step::PageRealloc(number, bytes) => {
                let Some(old) = self.take(number) else { return };
                match c.userpage_realloc(address(&old), bytes) {
                    Ok(at) => self.given(at, bytes, PAGE_SIZE, Some(old)),
                    Err(errno) => {
                        assert!(errno == Errno::EINVAL && self.is_chunk(&old), "{errno:?}: {old:?}");
                        self.blocks.push(old);
                    }
                }
            }
            Step::PageFree(number) => {
                let Some(old) = self.take(number) else { return };
                match c.userpage_free(address(&old)) {
                    Ok(()) => self.was(&old),
                    Err(errno) => {
                        assert!(errno == Errno::EINVAL && self.is_chunk(&old), "{errno:?}: {old:?}");
                        self.blocks.push(old);
                    }
                }
            }
            Step::Reserve => {
                let at = c.userpage_reserve(RESERVED_PAGES * PAGE_SIZE).expect("addresses");
                self.reserved.push(Reserved { at: at.cast(), pages: [None; RESERVED_PAGES] });
            }
            Step::Commit(number, from, pages) => self.range(number, from, pages, true),
            Step::Release(number, from, pages) => self.range(number, from, pages, false),
            Step::Malloc(bytes, shift) => {
                let at = c.aligned_alloc(1 << shift, bytes).expect("memory");
                self.given(at, bytes, 1 << shift, None);
                let is_chunk = self.blocks.last().is_some_and(|block| self.is_chunk(block));
                assert!(!is_chunk || bytes < PAGES_MIN_BYTES, "{bytes} bytes");
            }
            Step::Calloc(members, bytes) => {
                let at = c.calloc(members, bytes).expect("memory");
                self.zero(at, members * bytes);
                self.given(at, members * bytes, 16, None);
            }
            Step::Realloc(number, bytes, shift) => {
                let Some(old) = self.take(number) else { return };
                // SAFETY: the block is out of the model.
                let moved = unsafe { c.aligned_realloc(address(&old), 1 << shift, bytes, Flags::empty()) };
                self.given(moved.expect("memory"), bytes, 1 << shift, Some(old));
            }
            Step::TryRealloc(number, bytes) => {
                let Some(old) = self.take(number) else { return };
                // SAFETY: the block is out of the model.
                match unsafe { c.aligned_realloc(address(&old), 0, bytes, Flags::PREVENT_MOVE) } {
                    Ok(at) => {
                        assert_eq!(at, address(&old));
                        self.given(at, bytes, old.align_bytes, Some(old));
                    }
                    Err(errno) => {
                        assert!(errno == Errno::ENOSPC, "{errno:?}: {bytes} of {old:?}");
                        self.blocks.push(old);
                    }
                }
            }
            Step::Free(number) => {
                let Some(old) = self.take(number) else { return };
                // SAFETY: the block is out of the model.
                unsafe { c.free(address(&old)) }.expect("a block");
                self.was(&old);
            }
            Step::Batch1(ref entries, bytes) => self.batch1(entries, bytes),
            Step::Batch2(ref entries) => self.batch2(entries),
            Step::Nonsense(number, kind) => self.nonsense(number, kind),
        }
    }

    fn range(&mut self, number: usize, from: usize, pages: usize, commit: bool) {
        if self.reserved.is_empty() {
            return;
        }
        let at = number % self.reserved.len();
        let reserved = &mut self.reserved[at];
        let (start, bytes) = (reserved.at.wrapping_add(from * PAGE_SIZE / 8), pages * PAGE_SIZE);
        let call = if commit { C::userpage_commit } else { C::userpage_release };
        let done = call(self.c, start.cast(), bytes);
        if pages == 0 || from + pages > RESERVED_PAGES.next_power_of_two() {
            assert_eq!(done, Err(Errno::EINVAL));
            return;
        }
        if from + pages > RESERVED_PAGES {
            // Addresses come in powers of two; what lies behind is nobody's affair.
            return self.give_back(at);
        }
        let mut changed = 0;
        for page in from..from + pages {
            if reserved.pages[page].is_some() == commit {
                continue;
            }
            changed += PAGE_SIZE as isize;
            reserved.pages[page] = commit.then(|| {
                self.seeds += 1;
                // SAFETY: the page was backed just now.
                unsafe { reserved.at.add(page * PAGE_SIZE / 8).write(self.seeds) };
                self.seeds
            });
        }
        assert_eq!(done, Ok(changed));
    }

    fn give_back(&mut self, at: usize) {
        let reserved = self.reserved.swap_remove(at);
        self.c.userpage_free(reserved.at.cast()).expect("a block");
        self.freed.push(reserved.at.cast());
    }

    fn batch1(&mut self, entries: &[Option<usize>], bytes: usize) {
        let olds: Vec<_> = entries.iter().map(|entry| entry.and_then(|number| self.take(number))).collect();
        let mut ptrs: Vec<_> = olds.iter().map(|old| old.as_ref().map_or(null_mut(), address)).collect();
        let (mut count, mut size, mut errnos) = (ptrs.len(), bytes, vec![-1; ptrs.len()]);
        let flags = if olds.iter().all(Option::is_none) { M2_ZERO_MEMORY } else { 0 };
        let list = ptrs.as_mut_ptr();
        // SAFETY: the blocks are out of the model, the arrays as long as said.
        let done =
            unsafe { self.c.batch_alloc1(errnos.as_mut_ptr(), list, &mut count, &mut size, 0, 0, flags) };
        assert_eq!((done, count), (Ok(list), ptrs.len()));
        assert!(errnos.iter().all(|&errno| errno == 0) && size >= bytes);
        for (&at, old) in ptrs.iter().zip(olds) {
            if bytes == 0 {
                assert!(at.is_null());
                old.iter().for_each(|old| self.was(old));
                continue;
            }
            if flags == M2_ZERO_MEMORY {
                self.zero(at, bytes);
            }
            self.given(at, bytes, 8, old);
        }
    }

    fn batch2(&mut self, entries: &[Option<(Option<usize>, usize)>]) {
        let mut olds = Vec::new();
        let mut list: Vec<Option<mallocation2>> = Vec::new();
        for &entry in entries {
            let old = entry.and_then(|(number, _)| self.take(number?));
            let ptr = old.as_ref().map_or(null_mut(), address);
            list.push(entry.map(|(_, size)| mallocation2 { ptr, size }));
            olds.push(old);
        }
        let mut pointers: Vec<*mut mallocation2> =
            list.iter_mut().map(|entry| entry.as_mut().map_or(null_mut(), |entry| &raw mut *entry)).collect();
        let (mut count, mut errnos) = (pointers.len(), vec![-1; pointers.len()]);
        // SAFETY: the blocks are out of the model, the arrays as long as said.
        let done = unsafe {
            let (errnos, pointers) = (errnos.as_mut_ptr(), pointers.as_mut_ptr());
            self.c.batch_alloc2(errnos, pointers, &mut count, 0, 0, M2_PREVENT_MOVE)
        };
        assert_eq!(count, errnos.iter().filter(|&&errno| errno == 0).count());
        assert_eq!(done, Ok(count == entries.len()));
        for (at, old) in olds.into_iter().enumerate() {
            let Some(found) = list[at] else {
                assert_eq!(errnos[at], 0, "no entry");
                continue;
            };
            let wished = entries[at].map_or(0, |(_, size)| size);
            match (errnos[at], old) {
                (0, old) if wished == 0 => {
                    assert!(found.ptr.is_null());
                    old.iter().for_each(|old| self.was(old));
                }
                (0, old) => {
                    let before = old.as_ref().map(address);
                    assert!(before.is_none_or(|before| before == found.ptr) && found.size >= wished);
                    let align_bytes = old.as_ref().map_or(16, |old| old.align_bytes);
                    self.given(found.ptr, wished, align_bytes, old);
                }
                (errno, Some(old)) => {
                    assert_eq!((errno, found.ptr, found.size), (Errno::ENOSPC as i32, address(&old), wished));
                    self.blocks.push(old);
                }
                (errno, None) => panic!("errno {errno}: {wished} new bytes"),
            }
        }
    }

    /// What is no block is refused by everything.
    fn nonsense(&mut self, number: usize, kind: usize) {
        let block = (!self.blocks.is_empty()).then(|| address(&self.blocks[number % self.blocks.len()]));
        let window = |at: *mut c_void| {
            let (slot, _) = Slot::containing(Gva::new(at.expose_provenance() as u64))?;
            Some(std::ptr::with_exposed_provenance_mut(slot.page().start().get() as usize))
        };
        let local = &raw mut self.seeds;
        let pointer = match kind {
            0 => Some(local.cast()),
            1 => Some(0x1234_5000 as *mut c_void),
            2 => Some(usize::MAX as *mut c_void),
            3 => self.freed.last().copied(),
            // Into a block; the page that a small one lies in, and its window's start: they are the heap's.
            4 => block.map(|at| at.wrapping_byte_add(1)),
            5 => block.map(|at| at.wrapping_byte_sub(at.addr() % PAGE_SIZE)),
            _ => block.and_then(window),
        };
        let starts = |pointer| {
            let reserved = self.reserved.iter().map(|reserved| reserved.at.cast());
            self.blocks.iter().map(address).chain(reserved).any(|at| at == pointer)
        };
        let Some(pointer) = pointer.filter(|&pointer| !starts(pointer)) else { return };
        let c = self.c;
        let refused = Err(Errno::EINVAL);
        assert_eq!(c.userpage_free(pointer), refused, "{pointer:?}");
        assert_eq!(c.userpage_realloc(pointer, 5000).map(|_| ()), refused, "{pointer:?}");
        assert_eq!(c.userpage_commit(pointer, PAGE_SIZE).map(|_| ()), refused, "{pointer:?}");
        assert_eq!(c.userpage_release(pointer, PAGE_SIZE).map(|_| ()), refused, "{pointer:?}");
        if kind > 4 {
            // Where a chunk was before, what is there now may look like one: the heap says so.
            return;
        }
        assert_eq!(c.malloc_usable_size(pointer).map(|_| ()), refused, "{pointer:?}");
        // SAFETY: refused.
        unsafe {
            assert_eq!(c.free(pointer), refused, "{pointer:?}");
            assert_eq!(c.aligned_realloc(pointer, 0, 10, Flags::empty()).map(|_| ()), refused);
            let (mut list, mut count, mut errno) = ([pointer], 1, [-1]);
            let done = c.batch_alloc1(&raw mut errno[0], list.as_mut_ptr(), &mut count, null_mut(), 0, 0, 0);
            assert!(done.is_ok() && count == 0 && errno == [Errno::EINVAL as i32] && list == [pointer]);
        }
    }

    fn check(&self) {
        assert_apart(&self.blocks);
        for block in &self.blocks {
            block.verify(block.bytes, block.bytes, block.seed);
        }
        for reserved in &self.reserved {
            for (page, seed) in reserved.pages.iter().enumerate() {
                // SAFETY: the page is backed.
                let found = seed.map(|_| unsafe { reserved.at.add(page * PAGE_SIZE / 8).read() });
                assert_eq!(found, *seed, "page {page}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 48,
        failure_persistence: Some(Box::new(FileFailurePersistence::Off)),
        ..ProptestConfig::default()
    })]
    #[test]
    fn random_calls_agree_with_the_model(steps in prop::collection::vec(step(), 1..120)) {
        with_library(1 << 14, |c| {
            let mut world = World { c, blocks: Vec::new(), reserved: Vec::new(), freed: Vec::new(), seeds: 0 };
            for step in &steps {
                world.step(step);
                world.check();
            }
            while let Some(block) = world.take(0) {
                // SAFETY: the block is out of the model.
                unsafe { c.free(address(&block)) }.expect("a block");
            }
            while !world.reserved.is_empty() {
                world.give_back(0);
            }
        });
    }
}

/// The family, by C's functions.
struct Family<'w, 'l, 'u, 'a>(&'w C<'l, 'u, 'a>);

fn at(address: u64) -> *mut c_void {
    std::ptr::with_exposed_provenance_mut(address as usize)
}

fn number<T>(done: Result<T, Errno>) -> Result<u64, i32> {
    done.map(|_| 0).map_err(|errno| errno as i32)
}

impl Calls for Family<'_, '_, '_, '_> {
    fn arena(&self) -> u64 {
        0x2000_0000_0000
    }
    fn mmap(&mut self, hint: u64, bytes: u64, prot: u32, flags: u32) -> Result<u64, i32> {
        number(self.0.mmap(at(hint), bytes as usize, prot as i32, flags as i32, 0))
    }
    fn munmap(&mut self, address: u64, bytes: u64) -> Result<u64, i32> {
        number(self.0.munmap(at(address), bytes as usize))
    }
    fn mremap(&mut self, address: u64, sizes: [u64; 2], flags: u32, target: u64) -> Result<u64, i32> {
        let [old, new] = sizes.map(|bytes| bytes as usize);
        number(self.0.mremap(at(address), old, new, flags as i32, at(target)))
    }
    fn mprotect(&mut self, address: u64, bytes: u64, prot: u32) -> Result<u64, i32> {
        number(self.0.mprotect(at(address), bytes as usize, prot as i32))
    }
    fn madvise(&mut self, address: u64, bytes: u64, advice: i32) -> Result<u64, i32> {
        number(self.0.madvise(at(address), bytes as usize, advice))
    }
    fn mincore(&mut self, address: u64, bytes: u64, has_vector: bool) -> Result<u64, i32> {
        let mut resident = [2; 16];
        let vector = if has_vector { resident.as_mut_ptr() } else { null_mut() };
        // SAFETY: the table's ranges that are mapped are shorter.
        let done = number(unsafe { self.0.mincore(at(address), bytes as usize, vector) });
        let told = if done.is_ok() && has_vector { bytes.div_ceil(PAGE) as usize } else { 0 };
        assert!(
            resident[..told].iter().all(|&byte| byte == 1) && resident[told..].iter().all(|&byte| byte == 2)
        );
        done
    }
}

/// What the manual says, in so far as it is about little memory: the rest runs in guests.
#[test]
fn the_family_answers_as_the_table_says() {
    with_library(512, |c| {
        let few = |case: &&work::conformance::Case| {
            case.before != Before::Full && !matches!(case.call, Call::MmapUntilRefused)
        };
        let mut cases = 0;
        for case in CASES.iter().filter(few) {
            let outcome = case.run(&mut Family(c));
            assert!(outcome.is(case.guest_answer()), "{outcome}");
            cases += 1;
        }
        assert!(cases > 40, "{cases}");
        c.munmap(at(0x2000_0000_0000), work::conformance::ARENA_PAGES as usize * PAGE_SIZE)
            .expect("the arena");
    });
}

/// Counts and arrays that there can't be are refused before anything is done.
#[test]
fn impossible_arrays_are_refused() {
    with_library(512, |c| {
        let block = c.aligned_alloc(0, 100).expect("memory");
        let (mut ptrs, mut errnos, mut size) = ([block; 2], [-1; 4], 0);
        let list = ptrs.as_mut_ptr();
        let refused = Err(Errno::EINVAL);
        // SAFETY: refused.
        unsafe {
            let one =
                |errnos, list, count: *mut usize, size| c.batch_alloc1(errnos, list, count, size, 0, 0, 0);
            let (mut two, mut many, mut too_many) = (2, usize::MAX / 8 + 1, usize::MAX);
            assert_eq!(one(null_mut(), list, null_mut(), null_mut()), refused);
            assert_eq!(one(null_mut(), list, &mut many, null_mut()), refused);
            assert_eq!(one(errnos.as_mut_ptr(), list, &mut too_many, null_mut()), refused);
            assert_eq!(one(null_mut(), list.wrapping_byte_add(1), &mut two, null_mut()), refused);
            assert_eq!(one(errnos.as_mut_ptr().wrapping_byte_add(1), list, &mut two, null_mut()), refused);
            assert_eq!(one(list.cast::<i32>().wrapping_add(1), list, &mut two, null_mut()), refused);
            assert_eq!(one(null_mut(), list, &mut two, (&raw mut size).wrapping_byte_add(1)), refused);
            assert_eq!((two, many, too_many), (2, usize::MAX / 8 + 1, usize::MAX));
            // Without an array one is made, or isn't.
            assert_eq!(one(null_mut(), null_mut(), &mut too_many, null_mut()), Err(Errno::ENOMEM));
            assert_eq!(too_many, 0);
            let made = one(null_mut(), null_mut(), &mut two, null_mut()).expect("an array");
            assert_eq!((two, made.read(), made.add(1).read()), (2, null_mut(), null_mut()));
            c.free(made.cast()).expect("a block");
            let mut count = 2;
            assert_eq!(c.batch_alloc2(null_mut(), null_mut(), &mut count, 0, 0, 0), Err(Errno::EINVAL));
            assert_eq!(c.batch_alloc5(null_mut(), null_mut(), null_mut()), Err(Errno::EINVAL));
            count = 0;
            assert_eq!(c.batch_alloc5(null_mut(), null_mut(), &mut count), Ok(true));
            assert_eq!((ptrs, errnos), ([block; 2], [-1; 4]));
            c.free(block).expect("a block");
        }
        assert_eq!(c.calloc(usize::MAX / 2, 3), Err(Errno::ENOMEM));
        assert_eq!(c.aligned_alloc(3, 3), Err(Errno::EINVAL));
        assert_eq!(c.userpage_malloc(0), Err(Errno::EINVAL));
        assert_eq!(c.userpage_malloc(usize::MAX), Err(Errno::ENOMEM));
        assert_eq!(c.mmap(null_mut(), 1, 3, 0x22, 1), Err(Errno::EINVAL));
    });
}
