//! Examples, and random sequences against a bitmap.

extern crate std;
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
    runs.put(0, 100).unwrap();
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
    runs.put(0, 1000).unwrap();
    assert_eq!(runs.take(1000), Some(0));
    assert_eq!(runs.free_units(), 0);
    runs.put(0, 1000).unwrap();
    runs.check();
}

#[test]
fn free_runs_are_refused() {
    let mut tags = vec![0; 100];
    let mut runs = Runs::new(&mut tags);
    runs.put(10, 10).unwrap();
    assert_eq!(runs.put(10, 1), Err(RunError::AlreadyFree { unit: 10 }));
    assert_eq!(runs.put(5, 6), Err(RunError::AlreadyFree { unit: 10 }));
    assert_eq!(runs.put(100, 1), Err(RunError::OutOfRange));
    assert_eq!(runs.put(99, 2), Err(RunError::OutOfRange));
    assert_eq!(runs.put(0, 0), Err(RunError::OutOfRange));
    assert_eq!(runs.put(u64::MAX, 2), Err(RunError::OutOfRange));
    runs.check();
}

#[derive(Clone, Debug)]
enum Step {
    Take(u64),
    TakeAligned(u64, u32, u64),
    TakeLongest(u64),
    TakeAt(u64, u64),
    Put(usize),
    PutPart(usize, u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..40u64).prop_map(Step::Take),
        (0..40u64, 0..6u32, 0..64u64).prop_map(|(n, a, o)| Step::TakeAligned(n, a, o)),
        (1..80u64).prop_map(Step::TakeLongest),
        (0..300u64, 1..20u64).prop_map(|(f, n)| Step::TakeAt(f, n)),
        any::<usize>().prop_map(Step::Put),
        (any::<usize>(), 1..10u64).prop_map(|(i, n)| Step::PutPart(i, n)),
    ]
}

proptest! {
    /// Against a bitmap: nothing is given twice, everything that comes back is found again.
    #[test]
    fn agrees_with_a_bitmap(steps in prop::collection::vec(step(), 1..200)) {
        const LEN: u64 = 300;
        let mut tags = vec![0; LEN as usize];
        let mut runs = Runs::new(&mut tags);
        let mut free = vec![true; LEN as usize];
        let mut taken: Vec<(u64, u64)> = Vec::new();
        runs.put(0, LEN).unwrap();
        for step in steps {
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
                Step::Put(index) if !taken.is_empty() => {
                    let (first, n) = taken.swap_remove(index % taken.len());
                    runs.put(first, n).unwrap();
                    free[first as usize..(first + n) as usize].fill(true);
                    None
                }
                Step::PutPart(index, n) if !taken.is_empty() => {
                    let index = index % taken.len();
                    let (first, len) = taken[index];
                    let n = n.min(len);
                    runs.put(first + len - n, n).unwrap();
                    free[(first + len - n) as usize..(first + len) as usize].fill(true);
                    if n == len { taken.swap_remove(index); } else { taken[index].1 -= n; }
                    None
                }
                _ => None,
            };
            if let Some((first, n)) = got {
                let slice = &mut free[first as usize..(first + n) as usize];
                prop_assert!(slice.iter().all(|&f| f), "given twice");
                slice.fill(false);
                runs.set_note(first, 7);
                taken.push((first, n));
            }
            prop_assert_eq!(runs.free_units(), free.iter().filter(|&&f| f).count() as u64);
            runs.check();
        }
    }
}
