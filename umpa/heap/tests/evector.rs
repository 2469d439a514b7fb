//! Vectors that grow by page table, compared with std's.

#![allow(unsafe_code)] // reason: vouches for the machine's memory

mod host;

use std::cell::Cell;
use std::rc::Rc;

use host::{Machine, with_umpa};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use umpa::blocks::Config as PageConfig;
use umpa_heap::evector::Growth;
use umpa_heap::{Config, EVector, Heap, HeapError};

type TestHeap<'u, 'a> = Heap<'u, 'a, Machine>;

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

/// An element that counts how many there are.
#[derive(Debug)]
struct Counted<const WORDS: usize> {
    number: u64,
    filler: [u64; WORDS],
    live: Rc<Cell<i64>>,
}

impl<const WORDS: usize> Counted<WORDS> {
    fn new(number: u64, live: &Rc<Cell<i64>>) -> Self {
        live.set(live.get() + 1);
        Self { number, filler: [number; WORDS], live: live.clone() }
    }
}

impl<const WORDS: usize> Drop for Counted<WORDS> {
    fn drop(&mut self) {
        assert!(self.filler.iter().all(|&word| word == self.number), "an element is torn");
        self.live.set(self.live.get() - 1);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Push(u32),
    Pop(u32),
    Insert(usize),
    Remove(usize),
    SwapRemove(usize),
    Truncate(usize),
    Shrink,
    Reverse,
    Sort,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..2500u32).prop_map(Step::Push),
        4 => (0..1500u32).prop_map(Step::Pop),
        2 => any::<usize>().prop_map(Step::Insert),
        2 => any::<usize>().prop_map(Step::Remove),
        2 => any::<usize>().prop_map(Step::SwapRemove),
        1 => any::<usize>().prop_map(Step::Truncate),
        1 => Just(Step::Shrink),
        1 => Just(Step::Reverse),
        1 => Just(Step::Sort),
    ]
}

/// The same steps on both; the heap has something else to do in between, so that windows have
/// neighbours.
fn run<const WORDS: usize>(
    heap: &TestHeap<'_, '_>,
    reserve: usize,
    growth: Growth,
    steps: &[Step],
    left: usize,
) {
    let live = Rc::new(Cell::new(0));
    let mut vector: EVector<'_, '_, '_, Counted<WORDS>, _> = EVector::with_reserve_in(heap, reserve, growth);
    let mut model: Vec<u64> = Vec::new();
    let mut next = 0;
    let mut number = || {
        next += 1;
        next
    };
    for step in steps {
        let mut removed = false;
        match *step {
            Step::Push(count) => {
                for _ in 0..count {
                    let number = number();
                    vector.push(Counted::new(number, &live));
                    model.push(number);
                    assert!(vector.spare_bytes() < 2 * vector.page_bytes());
                }
            }
            Step::Pop(count) => {
                removed = true;
                for _ in 0..count {
                    assert_eq!(vector.pop().map(|element| element.number), model.pop());
                }
            }
            Step::Insert(at) => {
                let (at, number) = (at % (model.len() + 1), number());
                vector.insert(at, Counted::new(number, &live));
                model.insert(at, number);
            }
            Step::Remove(at) if !model.is_empty() => {
                let at = at % model.len();
                removed = true;
                assert_eq!(vector.remove(at).number, model.remove(at));
            }
            Step::SwapRemove(at) if !model.is_empty() => {
                let at = at % model.len();
                removed = true;
                assert_eq!(vector.swap_remove(at).number, model.swap_remove(at));
            }
            Step::Truncate(len) => {
                let len = len % (model.len() + 2);
                removed = true;
                vector.truncate(len);
                model.truncate(len);
            }
            Step::Shrink => {
                vector.shrink_to_fit();
                assert!(vector.spare_bytes() < vector.page_bytes(), "{} bytes spare", vector.spare_bytes());
            }
            Step::Reverse => {
                vector.reverse();
                model.reverse();
            }
            Step::Sort => {
                vector.sort_unstable_by_key(|element| element.number);
                model.sort_unstable();
            }
            _ => {}
        }
        let spare = vector.spare_bytes();
        assert!(!removed || spare < 2 * vector.page_bytes(), "{spare} bytes spare");
        assert_eq!(live.get(), model.len() as i64);
        assert!(vector.iter().map(|element| element.number).eq(model.iter().copied()));
        assert!(vector.capacity() >= vector.len() && vector.len() == model.len());
    }
    if left == 0 {
        drop(vector);
        assert_eq!(live.get(), 0, "elements dropped with their vector");
        return;
    }
    // Some by value from both ends, the rest dropped with the iterator.
    let mut numbers = vector.into_iter();
    let mut expected = model.into_iter();
    for at in 0..left {
        let [found, wanted] = if at % 3 == 0 {
            [numbers.next_back().map(|element| element.number), expected.next_back()]
        } else {
            [numbers.next().map(|element| element.number), expected.next()]
        };
        assert_eq!((found, numbers.len()), (wanted, expected.len()));
    }
    drop(numbers);
    assert_eq!(live.get(), 0);
}

fn cases() -> ProptestConfig {
    let seeds = FileFailurePersistence::WithSource("proptest-regressions");
    ProptestConfig { failure_persistence: Some(Box::new(seeds)), ..ProptestConfig::with_cases(64) }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn a_vector_does_as_stds(
        steps in prop::collection::vec(step(), 1..60),
        reserve in prop_oneof![Just(0usize), Just(5000), Just(1 << 24)],
        growth in prop_oneof![Just(Growth::Small), Just(Growth::Natural), Just(Growth::Large)],
        left in prop_oneof![Just(0usize), 1..200usize],
    ) {
        with_heap(40_000, |heap| {
            run::<0>(heap, reserve, growth, &steps, left);
            run::<3>(heap, reserve, growth, &steps, left);
        });
    }
}

/// It moves when its addresses are used up, by its entries; no page's content is written again.
#[test]
fn growth_moves_entries_and_backs_one_page_at_a_time() {
    for (growth, reserve) in
        [(Growth::Small, 0), (Growth::Small, 1 << 22), (Growth::Large, 0), (Growth::Natural, 0)]
    {
        with_heap(40_000, |heap| {
            let moved = || heap.inspect(|umpa| umpa.stats().moved).expect("free");
            let used = || {
                let frames = |umpa: &umpa::blocks::Umpa<'_, Machine>| {
                    let frames = umpa.frames();
                    frames.granted_frames() - frames.free_frames() - frames.quarantined_frames()
                };
                heap.inspect(frames).expect("free")
            };
            let (frames, before) = (used(), moved());
            let mut vector = EVector::with_reserve_in(heap, reserve, growth);
            let (mut moves, mut at) = (0, 0);
            for number in 0..4_000_000u64 {
                vector.push(number);
                if vector.as_ptr() as usize != at {
                    (at, moves) = (vector.as_ptr() as usize, moves + 1);
                }
                if number % 50_000 == 0 {
                    let bytes = 8 * (number + 1);
                    let page_bytes = match growth {
                        Growth::Large => 2 << 20,
                        Growth::Natural if bytes > 2 << 20 => 2 << 20,
                        Growth::Natural if bytes > 64 << 10 => 64 << 10,
                        _ => 4 << 10,
                    };
                    let needed = bytes.next_multiple_of(page_bytes) >> 12;
                    assert_eq!(used() - frames, needed, "frames for {} elements", number + 1);
                }
            }
            assert_eq!(moved() - before, moves - 1, "moves by entries");
            assert_eq!(moves == 1, reserve > 0, "{moves} places");
            assert!(vector.iter().copied().eq(0..4_000_000));
        });
    }
}

#[test]
fn elements_without_bytes_take_no_memory() {
    thread_local!(static LIVE: Cell<i64> = const { Cell::new(0) });
    struct Nothing;
    impl Drop for Nothing {
        fn drop(&mut self) {
            LIVE.set(LIVE.get() - 1);
        }
    }
    with_heap(64, |heap| {
        let mut vector = EVector::new_in(heap);
        for _ in 0..100_000 {
            LIVE.set(LIVE.get() + 1);
            vector.push(Nothing);
        }
        assert_eq!((vector.len(), vector.capacity(), vector.spare_bytes()), (100_000, usize::MAX, 0));
        drop(vector.pop());
        vector.truncate(50_000);
        assert_eq!(LIVE.get(), 50_000);
        let mut rest = vector.into_iter();
        drop((rest.next(), rest.next_back()));
        assert_eq!((rest.len(), LIVE.get()), (49_998, 49_998));
        drop(rest);
        assert_eq!(LIVE.get(), 0);
    });
}

#[test]
fn a_vector_without_memory_keeps_what_it_has() {
    with_heap(600, |heap| {
        let mut vector = EVector::new_in(heap);
        let refused = (0u64..).find_map(|number| vector.try_push(number).err());
        assert!(matches!(refused, Some((HeapError::OutOfMemory { .. }, _))), "{refused:?}");
        assert!(vector.len() > 500 * 512 && vector.iter().copied().eq(0..vector.len() as u64));
        let len = vector.len();
        vector.truncate(10);
        vector.extend(&[1, 2, 3]);
        vector.extend(20..30u64);
        assert_eq!((vector.len(), vector[12], vector[22]), (23, 3, 29), "after {len}");
        assert_eq!(format!("{:?}", &vector[10..13]), "[1, 2, 3]");
        for element in &mut vector {
            *element += 1;
        }
        assert_eq!((&vector).into_iter().take(3).sum::<u64>(), 6);
        let other = EVector::from_iter_in(vector.iter().map(|&element| element * 2), heap);
        assert_eq!(other.last(), Some(&60));
    });
}

/// Aligned to more than a page, and larger than one.
#[test]
fn large_elements_lie_where_they_should() {
    #[derive(Clone, Copy)]
    #[repr(align(16384))]
    struct Wide([u64; 2500]);
    with_heap(8000, |heap| {
        let mut vector = EVector::with_reserve_in(heap, 0, Growth::Small);
        for number in 0..200 {
            vector.push(Wide([number; 2500]));
            assert!((vector.as_ptr() as usize).is_multiple_of(16384));
        }
        assert!(vector.iter().enumerate().all(|(n, wide)| wide.0.iter().all(|&word| word == n as u64)));
    });
}

/// Each element is dropped once, whoever drops it.
#[test]
fn elements_are_dropped_once() {
    with_heap(64, |heap| {
        let owners: Vec<_> = (0..1000).map(Rc::new).collect();
        let counts = |owners: &[Rc<i32>]| owners.iter().map(Rc::strong_count).collect::<Vec<_>>();
        for (front, back) in [(0, 0), (3, 0), (0, 5), (400, 300), (1000, 0), (600, 400)] {
            let mut iterator = EVector::from_iter_in(owners.iter().cloned(), heap).into_iter();
            let taken: Vec<_> = iterator.by_ref().take(front).collect();
            let last: Vec<_> = (0..back).filter_map(|_| iterator.next_back()).collect();
            drop(iterator);
            let kept = |number: usize| number < front || number >= 1000 - back;
            let expected: Vec<_> = (0..1000).map(|number| 1 + usize::from(kept(number))).collect();
            assert_eq!(counts(&owners), expected, "{front} from the front, {back} from the back");
            drop((taken, last));
            assert_eq!(counts(&owners), [1; 1000]);
        }
        let mut vector = EVector::from_iter_in(owners.iter().cloned(), heap);
        vector.truncate(500);
        drop(vector.swap_remove(7));
        drop(vector.remove(0));
        assert_eq!(counts(&owners).iter().filter(|&&count| count == 2).count(), 498);
        drop(vector);
        assert_eq!(counts(&owners), [1; 1000]);
    });
}
