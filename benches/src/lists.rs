//! Lists on native allocators, for `vmm bench n1527`: a loop of one call for each node, as `new` in a list of
//! C++ or `Box::new` makes it; and the ways to write pointers that only native programs have.
//!
//! All allocators live in this program side by side, called through [`GlobalAlloc`]; each has its defaults.
//! One that gives memory back to the kernel between rounds pays for its first touch again in the next, in
//! `alloc` or in `link`: [`faults`] counts.
#![allow(
    unsafe_code,
    reason = "calls allocators, getrusage, and intrinsics for wide and non-temporal stores"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr::null_mut;

use mimalloc::MiMalloc;
use tikv_jemallocator::Jemalloc;
use umpa_abi::record::Sample;
use work::list::{ListError, NODE_ALIGN, NODE_BYTES, Nodes, Writer, floor, round};

/// The allocators: the C library's, mimalloc, jemalloc.
pub const ALLOCATORS: [&str; 3] = ["glibc", "mimalloc", "jemalloc"];

const LAYOUT: Layout = match Layout::from_size_align(NODE_BYTES, NODE_ALIGN) {
    Ok(layout) => layout,
    Err(_) => panic!("a node has a layout"),
};

struct Loop<'p, A> {
    allocator: A,
    pointers: &'p mut [*mut u8],
}

// SAFETY: the pointers are from the allocator, each from a call of its own, and nobody else has them.
unsafe impl<A: GlobalAlloc> Nodes for Loop<'_, A> {
    fn alloc(&mut self, nodes: usize) -> bool {
        debug_assert_eq!(nodes, self.pointers.len());
        for pointer in self.pointers.iter_mut() {
            // SAFETY: the layout has a size.
            *pointer = unsafe { self.allocator.alloc(LAYOUT) };
            if pointer.is_null() {
                return false;
            }
        }
        true
    }

    fn nodes(&self) -> impl Iterator<Item = *mut u8> {
        self.pointers.iter().copied()
    }

    fn free(&mut self) -> bool {
        for pointer in self.pointers.iter_mut() {
            // SAFETY: from `alloc`, of this layout, and not used again.
            unsafe { self.allocator.dealloc(*pointer, LAYOUT) };
            *pointer = null_mut();
        }
        true
    }
}

/// A round of lists with `allocator`, one of [`ALLOCATORS`]; `pointers` has a place for each node.
///
/// # Errors
/// [`ListError`].
pub fn list(allocator: &str, pointers: &mut [*mut u8]) -> Result<Vec<Sample>, ListError> {
    let nodes = pointers.len() as u64;
    let times = match allocator {
        "mimalloc" => round(&mut Loop { allocator: MiMalloc, pointers }, nodes),
        "jemalloc" => round(&mut Loop { allocator: Jemalloc, pointers }, nodes),
        _ => round(&mut Loop { allocator: System, pointers }, nodes),
    };
    Ok(times?.samples(allocator).to_vec())
}

/// Page faults of this process that needed no device.
#[must_use]
pub fn faults() -> u64 {
    // SAFETY: a structure of integers, for which all zeros will do.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the call fills the structure.
    let done = unsafe { libc::getrusage(libc::RUSAGE_SELF, &raw mut usage) };
    if done == 0 { usage.ru_minflt.unsigned_abs() } else { 0 }
}

/// Writes all pointers in each way that there is here, those of guests included.
pub fn floors(series: &str, pointers: &mut [*mut u8]) -> Vec<Sample> {
    let wide: Writer = ("write-wide", write_wide);
    let past_caches: Writer = ("write-past-caches", write_past_caches);
    let wide = std::arch::is_x86_feature_detected!("avx2").then_some(wide);
    let writers = work::list::WRITERS.into_iter().chain(wide).chain([past_caches]);
    writers.map(|writer| floor(series, writer, pointers)).collect()
}

/// Four pointers with each store.
fn write_wide(pointers: &mut [*mut u8], first: usize) {
    use std::arch::x86_64::{
        __m256i, _mm256_add_epi64, _mm256_set_epi64x, _mm256_set1_epi64x, _mm256_storeu_si256,
    };

    #[target_feature(enable = "avx2")]
    unsafe fn write(fours: &mut [[*mut u8; 4]], first: usize) {
        let place = |number: usize| first.wrapping_add(number * NODE_BYTES) as i64;
        let mut four = _mm256_set_epi64x(place(3), place(2), place(1), place(0));
        let step = _mm256_set1_epi64x(4 * NODE_BYTES as i64);
        for pointers in fours {
            // SAFETY: four pointers are 32 bytes, and any bytes are pointers.
            unsafe { _mm256_storeu_si256(pointers.as_mut_ptr().cast::<__m256i>(), four) };
            four = _mm256_add_epi64(four, step);
        }
    }

    let (fours, rest) = pointers.as_chunks_mut::<4>();
    let written = fours.len() * 4 * NODE_BYTES;
    // SAFETY: `floors` has asked the processor.
    unsafe { write(fours, first) };
    work::list::write_pointers(rest, first.wrapping_add(written));
}

/// With stores that don't read what they overwrite into caches.
fn write_past_caches(pointers: &mut [*mut u8], first: usize) {
    use std::arch::x86_64::{_mm_sfence, _mm_stream_si64};
    let mut at = first;
    for pointer in pointers {
        // SAFETY: SSE2, which every x86-64 processor has; a pointer is eight bytes.
        unsafe { _mm_stream_si64((&raw mut *pointer).cast(), at as i64) };
        at = at.wrapping_add(NODE_BYTES);
    }
    // SAFETY: SSE, likewise.
    unsafe { _mm_sfence() };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_allocators_make_the_same_list() {
        let samples = ALLOCATORS.map(|name| list(name, &mut vec![null_mut(); 5000]).unwrap());
        for samples in &samples {
            let checks: Vec<_> = samples.iter().map(|sample| (sample.ops, sample.check)).collect();
            assert_eq!(checks, [(5000, 4999 * 5000 / 2); 5]);
        }
    }

    #[test]
    fn all_ways_write_all_pointers() {
        let mut found = Vec::new();
        for writer in [write_wide, write_past_caches, work::list::write_pointers] {
            let mut pointers = vec![null_mut::<u8>(); 1003];
            writer(&mut pointers, 4096);
            found.push(pointers);
        }
        assert_eq!(found[0], found[2]);
        assert_eq!(found[1], found[2]);
        assert!(floors("any", &mut vec![null_mut(); 100]).iter().all(|sample| sample.check == 100));
    }
}
