//! Vectors filled by pushes, one number after the other, and read back.

use umpa_abi::addr::PAGE_BYTES;
use umpa_abi::record::{Sample, name};

use crate::raw::tsc_cycles;

/// Pushes of a round.
pub const PUSHES: u64 = 100_000_000;

/// A vector of numbers.
pub trait Numbers {
    /// Puts a number behind the last.
    fn push(&mut self, number: u64);
    /// All of them.
    fn numbers(&self) -> &[u64];
    /// Bytes of memory that it has for numbers, and that none is in.
    fn spare_bytes(&self) -> u64;
}

/// What it took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    pushes: u64,
    push_cycles: u64,
    read_cycles: u64,
    drop_cycles: u64,
    sum: u64,
    /// [`Numbers::spare_bytes`] after the last push.
    pub spare_bytes: u64,
}

/// A number isn't what was pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// Its place.
    pub at: u64,
}

impl core::fmt::Display for Wrong {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "number {} of the vector isn't what was pushed", self.at)
    }
}

impl core::error::Error for Wrong {}

/// The number that is pushed at a place.
const fn number(at: u64) -> u64 {
    at ^ 0x5a5a
}

/// Makes a vector, pushes, reads back, and drops it. That it is made is part of the time of the pushes.
///
/// # Errors
/// [`Wrong`].
pub fn round<N: Numbers>(make: impl FnOnce() -> N, pushes: u64) -> Result<Times, Wrong> {
    let start = tsc_cycles();
    let mut vector = make();
    fill(&mut vector, pushes);
    let pushed = tsc_cycles();
    let sum = sum(vector.numbers());
    let read = tsc_cycles();
    let wrong = wrong(vector.numbers(), pushes);
    let spare_bytes = vector.spare_bytes();
    let before_drop = tsc_cycles();
    drop(vector);
    let end = tsc_cycles();
    match wrong {
        Some(at) => Err(Wrong { at }),
        None => Ok(Times {
            pushes,
            push_cycles: pushed.wrapping_sub(start),
            read_cycles: read.wrapping_sub(pushed),
            drop_cycles: end.wrapping_sub(before_drop),
            sum,
            spare_bytes,
        }),
    }
}

#[inline(never)]
fn fill(vector: &mut impl Numbers, pushes: u64) {
    for at in 0..pushes {
        vector.push(number(at));
    }
}

#[inline(never)]
fn sum(numbers: &[u64]) -> u64 {
    numbers.iter().fold(0, |sum, &number| sum.wrapping_add(number))
}

/// The first place that isn't as it was pushed.
fn wrong(numbers: &[u64], pushes: u64) -> Option<u64> {
    let wrong = numbers.iter().zip(0..).find(|&(&found, at)| found != number(at)).map(|(_, at)| at);
    wrong.or((numbers.len() as u64 != pushes).then_some(pushes))
}

impl Times {
    /// As samples of a series.
    #[must_use]
    pub fn samples(&self, series: &str) -> [Sample; 3] {
        [("push", self.push_cycles), ("read", self.read_cycles), ("drop", self.drop_cycles)].map(
            |(work, cycles)| Sample {
                series: name(series),
                work: name(work),
                bytes: 0,
                ops: self.pushes,
                pages: (self.pushes * 8).div_ceil(PAGE_BYTES),
                cycles,
                check: self.sum,
                reserved: 0,
            },
        )
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec::Vec;

    /// Forgets the number at a place.
    struct Forgetful(Vec<u64>, usize);

    impl Numbers for Forgetful {
        fn push(&mut self, number: u64) {
            self.0.push(if self.0.len() == self.1 { 0 } else { number });
        }
        fn numbers(&self) -> &[u64] {
            &self.0
        }
        fn spare_bytes(&self) -> u64 {
            24
        }
    }

    #[test]
    fn every_number_is_read_back() {
        let times = round(|| Forgetful(Vec::new(), usize::MAX), 1000).unwrap();
        assert_eq!(times.sum, (0..1000).map(number).sum());
        assert_eq!((times.spare_bytes, times.samples("any")[0].pages), (24, 2));
        assert_eq!(round(|| Forgetful(Vec::new(), 999), 1000), Err(Wrong { at: 999 }));
    }
}
