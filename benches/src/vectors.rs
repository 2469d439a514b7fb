//! `Vec` on the C library's allocator, and a vector that grows by `mremap`, for `vmm bench vector`.
//!
//! The second doubles like `Vec`, but its memory is a mapping, which the kernel moves by its page tables when it can't
//! grow where it is: no element is copied, and what hasn't been pushed has no memory yet.
#![allow(unsafe_code, reason = "maps and moves memory: one vector")]

use std::ptr::{self, NonNull};

use rustix::mm::{MapFlags, MremapFlags, ProtFlags, mmap_anonymous, mremap, munmap};

use umpa_abi::record::Sample;
use work::numbers::{Numbers, Wrong, round};

/// The series: its capacity known beforehand, doubled as it grows, doubled by `mremap`, and one that is kept from
/// round to round, all of whose memory has been touched before.
pub const SERIES: [&str; 4] = ["vec-known", "vec-grown", "vec-mremap", "vec-kept"];

struct Std(Vec<u64>);

impl Numbers for Std {
    fn push(&mut self, number: u64) {
        self.0.push(number);
    }
    fn numbers(&self) -> &[u64] {
        &self.0
    }
    fn spare_bytes(&self) -> u64 {
        spare_bytes(&self.0)
    }
}

struct Kept<'k>(&'k mut Vec<u64>);

impl Numbers for Kept<'_> {
    fn push(&mut self, number: u64) {
        self.0.push(number);
    }
    fn numbers(&self) -> &[u64] {
        self.0
    }
    fn spare_bytes(&self) -> u64 {
        spare_bytes(self.0)
    }
}

/// Bytes that a mapping has first.
const FIRST_BYTES: usize = 4096;

/// A vector in a mapping of its own; `capacity` is 0 as long as there is none.
struct Mapped {
    start: NonNull<u64>,
    len: usize,
    capacity: usize,
}

impl Mapped {
    const fn new() -> Self {
        Self { start: NonNull::dangling(), len: 0, capacity: 0 }
    }

    /// Twice the memory, at an address that the kernel likes.
    ///
    /// # Panics
    /// When there is none, as `Vec` ends a program.
    #[cold]
    fn grow(&mut self) {
        let old_bytes = self.capacity * size_of::<u64>();
        let bytes = (2 * old_bytes).max(FIRST_BYTES);
        let block = if self.capacity == 0 {
            let rights = ProtFlags::READ | ProtFlags::WRITE;
            // SAFETY: a new mapping where the kernel likes.
            unsafe { mmap_anonymous(ptr::null_mut(), bytes, rights, MapFlags::PRIVATE) }
        } else {
            // SAFETY: the vector's whole mapping, and nobody refers to elements now.
            unsafe { mremap(self.start.as_ptr().cast(), old_bytes, bytes, MremapFlags::MAYMOVE) }
        };
        let block = block.unwrap_or_else(|error| panic!("no mapping of {bytes} bytes: {error}"));
        self.start = NonNull::new(block.cast()).expect("no mapping lies at address 0");
        self.capacity = bytes / size_of::<u64>();
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        if self.capacity > 0 {
            let bytes = self.capacity * size_of::<u64>();
            // SAFETY: the vector's whole mapping, which nobody uses any more.
            let _ = unsafe { munmap(self.start.as_ptr().cast(), bytes) };
        }
    }
}

impl Numbers for Mapped {
    #[inline]
    fn push(&mut self, number: u64) {
        if self.len == self.capacity {
            self.grow();
        }
        // SAFETY: there is memory for more than `len` numbers.
        unsafe { self.start.add(self.len).write(number) };
        self.len += 1;
    }
    fn numbers(&self) -> &[u64] {
        // SAFETY: the first `len` have been written; without memory the pointer dangles, aligned.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
    /// Addresses, most of which have no memory.
    fn spare_bytes(&self) -> u64 {
        ((self.capacity - self.len) * size_of::<u64>()) as u64
    }
}

fn spare_bytes(vector: &Vec<u64>) -> u64 {
    ((vector.capacity() - vector.len()) * size_of::<u64>()) as u64
}

/// A round of a series, one of [`SERIES`]; its times, and the bytes that were spare in the end. `kept` is the
/// vector that is kept.
///
/// # Errors
/// [`Wrong`].
pub fn vector(series: &str, pushes: u64, kept: &mut Vec<u64>) -> Result<(Vec<Sample>, u64), Wrong> {
    let elements = pushes as usize;
    let times = match series {
        "vec-known" => round(|| Std(Vec::with_capacity(elements)), pushes),
        "vec-grown" => round(|| Std(Vec::new()), pushes),
        "vec-mremap" => round(Mapped::new, pushes),
        _ => {
            kept.reserve_exact(elements - kept.len().min(elements));
            kept.clear();
            round(|| Kept(kept), pushes)
        }
    }?;
    Ok((times.samples(series).to_vec(), times.spare_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_do_the_same_and_only_those_that_double_have_much_to_spare() {
        let mut kept = Vec::new();
        let mut checks = Vec::new();
        for series in SERIES.iter().chain(&SERIES) {
            let (samples, spare_bytes) = vector(series, 100_000, &mut kept).unwrap();
            checks.push(samples.iter().map(|sample| sample.check).collect::<Vec<_>>());
            let doubles = ["vec-grown", "vec-mremap"].contains(series);
            assert_eq!(spare_bytes > 0, doubles, "{series}: {spare_bytes}");
        }
        assert!(checks.iter().all(|check| *check == checks[0]));
        assert_eq!(kept.len(), 100_000);
    }

    #[test]
    fn a_mapping_moves_with_what_it_holds() {
        let (mut one, mut other) = (Mapped::new(), Mapped::new());
        assert!(one.numbers().is_empty());
        for number in 0..100_000 {
            one.push(number);
            other.push(!number);
        }
        assert!(one.numbers().iter().zip(0..).all(|(&found, wanted)| found == wanted));
        assert!(other.numbers().iter().zip(0_u64..).all(|(&found, wanted)| found == !wanted));
        assert_eq!((one.numbers().len(), one.spare_bytes()), (100_000, (131_072 - 100_000) * 8));
    }
}
