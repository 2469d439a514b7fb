//! Examples, and random sequences against a bitmap.

extern crate std;
use super::index::*;
use super::*;
use proptest::prelude::*;
use std::vec;
use std::vec::Vec;

#[test]
fn classes_are_ordered_and_fit() {
    // The shortest length of each class, by its definition alone.
    let mut shortest = [u64::MAX; CLASSES];
    for units in (1..200_000u64).rev() {
        assert!(class_of(units) <= class_of(units + 1));
        shortest[class_of(units)] = units;
    }
    for units in 1..100_000u64 {
        let above = class_above(units);
        assert!(above == class_of(units) || above == class_of(units) + 1, "{units}");
        // Every run in that class is long enough, and none of the class before is left out that is.
        assert!(shortest[above] >= units && shortest[above] < u64::MAX, "{units}");
        assert!(above == class_of(units) || shortest[class_of(units)] < units, "{units}");
    }
}

#[test]
fn nothing_is_no_run() {
    let mut tags = vec![0; 100];
    let mut runs = Runs::new(&mut tags);
    runs.put(0, 100, Content::Any).unwrap();
    assert_eq!(runs.take(0), None);
    assert_eq!(runs.take_aligned(0, 16, 3), None);
    assert_eq!(runs.take_longest(0), None);
    assert!(!runs.take_at(0, 0));
    runs.check();
}

#[test]
fn a_whole_store_can_be_taken_and_put_back() {
    let mut tags = vec![0; 1000];
    let mut runs = Runs::new(&mut tags);
    assert_eq!(runs.take(1), None);
    runs.put(0, 1000, Content::Any).unwrap();
    assert_eq!(runs.take(1000), Some(0));
    assert_eq!(runs.free_units(), 0);
    runs.put(0, 1000, Content::Zero).unwrap();
    assert_eq!((runs.free_units(), runs.zero_units()), (1000, 1000));
    runs.check();
}

#[test]
fn what_is_to_grow_lies_in_the_middle_of_the_longest_run() {
    let mut tags = vec![0; 1000];
    let mut runs = Runs::new(&mut tags);
    assert_eq!(runs.take_middle(1, 1, 1, 0), None);
    runs.put(0, 1000, Content::Any).unwrap();
    assert_eq!(runs.take_middle(3, 1001, 1, 0), None);
    assert_eq!(runs.take_middle(3, 500, 1, 0), Some(500));
    // At multiples of 64, counted from unit -10, in both of what is left.
    assert_eq!(runs.take_middle(3, 200, 64, 10), Some(694));
    assert_eq!(runs.take_middle(3, 200, 64, 10), Some(246));
    assert!(runs.take_at(503, 191) && runs.take_at(697, 303));
    // Half of 251 is too little, so it begins before; there is no multiple of 512.
    assert_eq!(runs.take_middle(3, 200, 1, 0), Some(300));
    assert_eq!(runs.take_middle(3, 100, 512, 300), Some(0));
    runs.check();
    // The other half is longer, and zero.
    let mut tags = vec![0; 100];
    let mut runs = Runs::new(&mut tags);
    runs.put(0, 40, Content::Any).unwrap();
    runs.put(40, 60, Content::Zero).unwrap();
    assert_eq!(runs.take_middle(1, 10, 1, 0), Some(70));
    assert_eq!(runs.zero_units(), 59);
    runs.check();
}

#[test]
fn free_runs_are_refused() {
    let mut tags = vec![0; 100];
    let mut runs = Runs::new(&mut tags);
    runs.put(10, 10, Content::Zero).unwrap();
    assert_eq!(runs.put(10, 1, Content::Any), Err(RunError::AlreadyFree { unit: 10 }));
    assert_eq!(runs.put(5, 6, Content::Any), Err(RunError::AlreadyFree { unit: 10 }));
    assert_eq!(runs.put(100, 1, Content::Any), Err(RunError::OutOfRange));
    assert_eq!(runs.put(99, 2, Content::Any), Err(RunError::OutOfRange));
    assert_eq!(runs.put(0, 0, Content::Any), Err(RunError::OutOfRange));
    assert_eq!(runs.put(u64::MAX, 2, Content::Any), Err(RunError::OutOfRange));
    runs.check();
}

#[test]
fn zeros_are_kept_apart_until_they_are_wanted() {
    use Content::{Any, Zero};
    let mut tags = vec![0; 100];
    let mut runs = Runs::new(&mut tags);
    runs.put(0, 40, Zero).unwrap();
    runs.put(50, 10, Zero).unwrap();
    runs.put(40, 10, Any).unwrap();
    assert_eq!((runs.free_units(), runs.zero_units(), runs.free_runs()), (60, 50, 3));
    // What isn't zero goes first; zeros only as such or for want of others.
    assert_eq!((runs.take(5), runs.take_of(Zero, 5), runs.take(20)), (Some(40), Some(50), Some(0)));
    assert_eq!(runs.take_of(Zero, 21), None);
    runs.put(0, 20, Any).unwrap();
    runs.put(40, 5, Any).unwrap();
    runs.check();
    assert_eq!((runs.free_units(), runs.zero_units(), runs.take_of(Any, 21)), (55, 25, None));
    // Longer than any run of one content: now they are one, but for the zeros that touch nothing.
    assert_eq!((runs.take(50), runs.zero_units(), runs.free_units()), (Some(0), 5, 5));
    assert_eq!((runs.take_of(Zero, 5), runs.take(1)), (Some(55), None));
    runs.check();
}

#[test]
fn a_run_goes_on_in_zeros() {
    let mut tags = vec![0; 100];
    let mut runs = Runs::new(&mut tags);
    runs.put(10, 10, Content::Any).unwrap();
    runs.put(20, 10, Content::Zero).unwrap();
    assert!(runs.take_at(10, 15) && !runs.take_at(25, 6) && runs.take_at(25, 5));
    runs.check();
}

#[derive(Clone, Debug)]
enum Step {
    Take(u64),
    TakeAligned(u64, u32, u64),
    TakeLongest(u64),
    TakeAt(u64, u64),
    TakeOf(bool, u64, u32),
    TakeLongestOf(bool, u64),
    Put(usize, bool),
    PutPart(usize, u64, bool),
}

fn content(zero: bool) -> Content {
    if zero { Content::Zero } else { Content::Any }
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        1 => (0..40u64).prop_map(Step::Take),
        1 => (0..40u64, 0..6u32, 0..64u64).prop_map(|(n, a, o)| Step::TakeAligned(n, a, o)),
        1 => (1..80u64).prop_map(Step::TakeLongest),
        1 => (0..300u64, 1..20u64).prop_map(|(f, n)| Step::TakeAt(f, n)),
        1 => (any::<bool>(), 0..40u64, 0..4u32).prop_map(|(z, n, a)| Step::TakeOf(z, n, a)),
        1 => (any::<bool>(), 1..80u64).prop_map(|(z, n)| Step::TakeLongestOf(z, n)),
        2 => (any::<usize>(), any::<bool>()).prop_map(|(i, z)| Step::Put(i, z)),
        2 => (any::<usize>(), 1..10u64, any::<bool>()).prop_map(|(i, n, z)| Step::PutPart(i, n, z)),
    ]
}

proptest! {
    /// Against a bitmap: nothing is given twice, everything that comes back is found again, and nothing is
    /// taken for zeros that didn't come back as such.
    #[test]
    fn agrees_with_a_bitmap(steps in prop::collection::vec(step(), 1..200)) {
        const LEN: u64 = 300;
        let mut tags = vec![0; LEN as usize];
        let mut runs = Runs::new(&mut tags);
        let mut free = vec![true; LEN as usize];
        // What was put as zeros last.
        let mut zeros = vec![true; LEN as usize];
        let mut taken: Vec<(u64, u64)> = Vec::new();
        runs.put(0, LEN, Content::Zero).unwrap();
        for step in steps {
            let mut wants_zeros = false;
            let got = match step {
                Step::Take(n) => {
                    let got = runs.take(n);
                    let longest = free.split(|f| !f).map(<[bool]>::len).max().unwrap_or(0) as u64;
                    // The good fit may miss a run only within its own class.
                    prop_assert!(got.is_some() || n == 0 || longest < n + n / 8 + 1);
                    got.map(|first| (first, n))
                }
                Step::TakeAligned(n, shift, origin) => {
                    let got = runs.take_aligned(n, 1 << shift, origin);
                    if let Some(first) = got {
                        prop_assert_eq!((first + origin) % (1 << shift), 0);
                    }
                    got.map(|first| (first, n))
                }
                Step::TakeLongest(n) => runs.take_longest(n),
                Step::TakeAt(first, n) => runs.take_at(first, n).then_some((first, n)),
                Step::TakeOf(zero, n, shift) => {
                    wants_zeros = zero;
                    runs.take_aligned_of(content(zero), n, 1 << shift, 0).map(|first| (first, n))
                }
                Step::TakeLongestOf(zero, n) => {
                    wants_zeros = zero;
                    runs.take_longest_of(content(zero), n)
                }
                Step::Put(index, zero) if !taken.is_empty() => {
                    let (first, n) = taken.swap_remove(index % taken.len());
                    runs.put(first, n, content(zero)).unwrap();
                    free[first as usize..(first + n) as usize].fill(true);
                    zeros[first as usize..(first + n) as usize].fill(zero);
                    None
                }
                Step::PutPart(index, n, zero) if !taken.is_empty() => {
                    let index = index % taken.len();
                    let (first, len) = taken[index];
                    let n = n.min(len);
                    runs.put(first + len - n, n, content(zero)).unwrap();
                    free[(first + len - n) as usize..(first + len) as usize].fill(true);
                    zeros[(first + len - n) as usize..(first + len) as usize].fill(zero);
                    if n == len { taken.swap_remove(index); } else { taken[index].1 -= n; }
                    None
                }
                _ => None,
            };
            if let Some((first, n)) = got {
                let slice = &mut free[first as usize..(first + n) as usize];
                prop_assert!(slice.iter().all(|&f| f), "given twice");
                slice.fill(false);
                let known = &zeros[first as usize..(first + n) as usize];
                prop_assert!(!wants_zeros || known.iter().all(|&zero| zero), "no zeros");
                runs.set_note(first, 7);
                taken.push((first, n));
            }
            prop_assert_eq!(runs.free_units(), free.iter().filter(|&&f| f).count() as u64);
            let mut known = Vec::new();
            runs.for_each_free(|first, n, holds| {
                if holds == Content::Zero {
                    known.extend(first..first + n);
                }
            });
            prop_assert!(known.iter().all(|&unit| zeros[unit as usize]), "not zeros");
            prop_assert_eq!(known.len() as u64, runs.zero_units());
            runs.check();
        }
    }
}
