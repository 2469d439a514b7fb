//! Blocks that grow by doubling, and blocks that exchange their contents: the work of `vmm bench realloc`
//! and `vmm bench swap`.
//!
//! Every page is written before a call and touched after it: its first word is read, compared with what it
//! must be, and written anew. So what a call puts off until memory is used is paid for in the rows `X.touch`
//! (call and touch together), and a page that went astray is an error, not a time.
#![allow(unsafe_code, reason = "touches blocks by address")]

use umpa_abi::addr::PAGE_BYTES;
use umpa_abi::record::{Sample, name};

use crate::raw::tsc_cycles;

/// Bytes that a block has first.
pub const FIRST_BYTES: u64 = PAGE_BYTES;
/// Bytes that it has at the end.
pub const LARGEST_BYTES: u64 = 1 << 30;
/// The same of a short run.
pub const QUICK_BYTES: u64 = 64 << 20;

/// Sizes of blocks that exchange their contents, and how often they do it in a round.
pub const SWAPS: [(u64, u64); 7] =
    [(64 << 10, 4), (256 << 10, 4), (1 << 20, 4), (2 << 20, 4), (4 << 20, 4), (16 << 20, 2), (64 << 20, 1)];

/// Why the work can't go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MoveError {
    /// A call was refused.
    Refused {
        /// Which one.
        call: &'static str,
        /// Bytes of the block.
        bytes: u64,
    },
    /// A page doesn't hold what it held before the call.
    Wrong {
        /// Bytes of the block.
        bytes: u64,
    },
}

impl core::fmt::Display for MoveError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Refused { call, bytes } => write!(f, "{call} of {bytes} bytes was refused"),
            Self::Wrong { bytes } => write!(f, "a page of {bytes} bytes lost its content"),
        }
    }
}

impl core::error::Error for MoveError {}

/// Where blocks come from.
///
/// # Safety
/// An address that a call returns is that of a block with so many bytes, readable, writable, whole pages
/// and nobody else's, until it is freed or grows. What a block holds stays in it.
pub unsafe trait Source {
    /// A block of `bytes`, whatever it holds, that may grow to `largest_bytes`.
    fn alloc(&mut self, bytes: u64, largest_bytes: u64) -> Option<u64>;
    /// Ends a block.
    fn free(&mut self, block: u64, bytes: u64) -> bool;
    /// Work that was put off until now.
    fn later(&mut self) {}
}

/// A way to give a block another length.
///
/// # Safety
/// As [`Source`]; the old address means nothing any more. What both lengths have of the content is kept.
pub unsafe trait Resize: Source {
    /// The block, with `new` bytes instead of `old`.
    fn resize(&mut self, block: u64, old: u64, new: u64) -> Option<u64>;
}

/// A way to exchange the contents of two blocks.
///
/// # Safety
/// As [`Source`]; what one block held, the other one holds, whole.
pub unsafe trait Exchange: Source {
    /// What is needed once before blocks of `bytes` are exchanged, and isn't timed; [`Source::later`] ends it.
    fn prepare(&mut self, _bytes: u64) -> bool {
        true
    }
    /// Exchanges all of two blocks of `bytes`.
    fn exchange(&mut self, one: u64, other: u64, bytes: u64) -> bool;
}

/// What page number `page` of a block called `mark` holds.
const fn word(mark: u64, page: u64) -> u64 {
    (mark << 40) ^ page.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Reads the first `old` bytes, which were marked `was`, and marks the first `new` bytes `is`. Returns a sum
/// of what was read, and bits that are 0 when it was right.
///
/// # Safety
/// The block has `new` bytes and is the caller's alone.
unsafe fn touch(block: u64, (old, was): (u64, u64), (new, is): (u64, u64)) -> (u64, u64) {
    let (mut sum, mut wrong) = (0_u64, 0);
    for page in 0..new / PAGE_BYTES {
        let place = (block + page * PAGE_BYTES) as *mut u64;
        if page < old / PAGE_BYTES {
            // SAFETY: the page lies in the block.
            let found = unsafe { place.read_volatile() };
            sum = sum.wrapping_mul(31).wrapping_add(found);
            wrong |= found ^ word(was, page);
        }
        // SAFETY: as above.
        unsafe { place.write_volatile(word(is, page)) };
    }
    (sum, wrong)
}

fn sample(series: &str, work: &str, bytes: u64, cycles: u64, check: u64) -> Sample {
    let (pages, series, work) = (bytes / PAGE_BYTES, name(series), name(work));
    Sample { series, work, bytes, ops: 1, pages, cycles, check, reserved: 0 }
}

/// Lets a block grow from [`FIRST_BYTES`] to `largest_bytes` by doubling. `bytes` of a row are those after
/// the growth. `free` is the end of the block, with all that was put off.
///
/// # Errors
/// [`MoveError`].
pub fn doublings<R: Resize>(
    from: &mut R,
    series: &str,
    largest_bytes: u64,
    report: &mut dyn FnMut(Sample),
) -> Result<(), MoveError> {
    let refused = |call, bytes| MoveError::Refused { call, bytes };
    let mut old = FIRST_BYTES;
    let mut block = from.alloc(old, largest_bytes).ok_or(refused("alloc", old))?;
    // SAFETY: the block was just made, with so many bytes (`Source`).
    unsafe { touch(block, (0, 0), (old, old)) };
    while old < largest_bytes {
        let new = 2 * old;
        let start_cycles = tsc_cycles();
        block = from.resize(block, old, new).ok_or(refused("grow", new))?;
        let grown_cycles = tsc_cycles();
        // SAFETY: it has so many bytes now (`Resize`).
        let (check, wrong) = unsafe { touch(block, (old, old), (new, new)) };
        let end_cycles = tsc_cycles();
        if wrong != 0 {
            return Err(MoveError::Wrong { bytes: new });
        }
        report(sample(series, "grow", new, grown_cycles.wrapping_sub(start_cycles), check));
        report(sample(series, "grow.touch", new, end_cycles.wrapping_sub(start_cycles), check));
        old = new;
    }
    let start_cycles = tsc_cycles();
    if !from.free(block, old) {
        return Err(refused("free", old));
    }
    from.later();
    report(sample(series, "free", old, tsc_cycles().wrapping_sub(start_cycles), 0));
    Ok(())
}

/// Exchanges the contents of two blocks of `bytes`, `times` times.
///
/// # Errors
/// [`MoveError`].
pub fn exchanges<E: Exchange>(
    from: &mut E,
    series: &str,
    (bytes, times): (u64, u64),
    report: &mut dyn FnMut(Sample),
) -> Result<(), MoveError> {
    let refused = |call| MoveError::Refused { call, bytes };
    let mut blocks = [0; 2];
    for (block, mark) in blocks.iter_mut().zip(1..) {
        *block = from.alloc(bytes, bytes).ok_or(refused("alloc"))?;
        // SAFETY: the block was just made, with so many bytes (`Source`).
        unsafe { touch(*block, (0, 0), (bytes, mark)) };
    }
    if !from.prepare(bytes) {
        return Err(refused("prepare"));
    }
    for _ in 0..times {
        let start_cycles = tsc_cycles();
        if !from.exchange(blocks[0], blocks[1], bytes) {
            return Err(refused("exchange"));
        }
        let exchanged_cycles = tsc_cycles();
        // Each block gets its mark back, so that the next exchange must show again.
        // SAFETY: both have so many bytes (`Source`).
        let (one, wrong) = unsafe { touch(blocks[0], (bytes, 2), (bytes, 1)) };
        // SAFETY: as above.
        let (other, wrong_too) = unsafe { touch(blocks[1], (bytes, 1), (bytes, 2)) };
        let end_cycles = tsc_cycles();
        if wrong | wrong_too != 0 {
            return Err(MoveError::Wrong { bytes });
        }
        let check = one.wrapping_mul(31).wrapping_add(other);
        report(sample(series, "swap", bytes, exchanged_cycles.wrapping_sub(start_cycles), check));
        report(sample(series, "swap.touch", bytes, end_cycles.wrapping_sub(start_cycles), check));
    }
    for block in blocks {
        if !from.free(block, bytes) {
            return Err(refused("free"));
        }
    }
    from.later();
    Ok(())
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec::Vec;

    /// Blocks that are slices of one buffer of words, page-aligned by luck of `Vec`'s address rounded up.
    struct Buffer {
        memory: Vec<u64>,
        used_bytes: u64,
        live: u64,
        forgets: bool,
    }

    impl Buffer {
        fn new(forgets: bool) -> Self {
            let words = (64 << 20) / 8;
            Self { memory: std::vec![0; words], used_bytes: 0, live: 0, forgets }
        }
        fn words(&mut self, block: u64, bytes: u64) -> &mut [u64] {
            let first = (block - self.memory.as_ptr() as u64) / 8;
            &mut self.memory[first as usize..(first + bytes / 8) as usize]
        }
    }

    // SAFETY: each block is a part of the buffer of its own; none is used twice.
    unsafe impl Source for Buffer {
        fn alloc(&mut self, bytes: u64, _largest_bytes: u64) -> Option<u64> {
            let first = (self.memory.as_ptr() as u64).next_multiple_of(PAGE_BYTES) + self.used_bytes;
            self.used_bytes += bytes;
            self.live += 1;
            (self.used_bytes < 63 << 20).then_some(first)
        }
        fn free(&mut self, _block: u64, _bytes: u64) -> bool {
            self.live -= 1;
            true
        }
    }

    // SAFETY: as above; content is copied, or the test is about its loss.
    unsafe impl Resize for Buffer {
        fn resize(&mut self, block: u64, old: u64, new: u64) -> Option<u64> {
            let longer = self.alloc(new, new)?;
            let held = self.words(block, old).to_vec();
            self.words(longer, old).copy_from_slice(&held);
            if self.forgets && new == 64 << 10 {
                self.words(longer, old)[512 * 3] ^= 1;
            }
            self.free(block, old);
            Some(longer)
        }
    }

    // SAFETY: as above.
    unsafe impl Exchange for Buffer {
        fn exchange(&mut self, one: u64, other: u64, bytes: u64) -> bool {
            let held = self.words(one, bytes).to_vec();
            let moved = self.words(other, bytes).to_vec();
            if !self.forgets {
                self.words(one, bytes).copy_from_slice(&moved);
            }
            self.words(other, bytes).copy_from_slice(&held);
            true
        }
    }

    fn works(samples: &[Sample]) -> Vec<(&str, u64)> {
        samples.iter().map(|sample| (umpa_abi::record::name_text(&sample.work), sample.bytes)).collect()
    }

    #[test]
    fn every_doubling_is_timed_with_its_touch() {
        let (mut buffer, mut samples) = (Buffer::new(false), Vec::new());
        doublings(&mut buffer, "any", 32 << 10, &mut |sample| samples.push(sample)).unwrap();
        let rows = [8 << 10, 16 << 10, 32 << 10].map(|bytes| [("grow", bytes), ("grow.touch", bytes)]);
        assert_eq!(works(&samples), [rows.as_flattened(), &[("free", 32 << 10)]].concat());
        assert_eq!(buffer.live, 0);
    }

    #[test]
    fn exchanges_are_timed_alike() {
        let (mut buffer, mut samples) = (Buffer::new(false), Vec::new());
        exchanges(&mut buffer, "any", (64 << 10, 2), &mut |sample| samples.push(sample)).unwrap();
        let row = [("swap", 64 << 10), ("swap.touch", 64 << 10)];
        assert_eq!(works(&samples), [row, row].concat());
        assert_eq!((samples[0].check, buffer.live), (samples[3].check, 0));
    }

    #[test]
    fn lost_content_is_found() {
        let mut buffer = Buffer::new(true);
        let lost = doublings(&mut buffer, "any", 1 << 20, &mut |_| {});
        assert_eq!(lost, Err(MoveError::Wrong { bytes: 64 << 10 }));
        let lost = exchanges(&mut buffer, "any", (8 << 10, 1), &mut |_| {});
        assert_eq!(lost, Err(MoveError::Wrong { bytes: 8 << 10 }));
    }
}
