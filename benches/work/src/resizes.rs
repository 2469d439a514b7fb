//! Figure 11 of the paper: blocks that are resized, up and down, by factors 2 and 1.1, by size.
//!
//! For each power of two several blocks live side by side, so that none has the memory behind it for itself. They
//! have half of it first. In turn, step by step, each is made longer by the factor until it has all, then
//! shorter again until it has half.
//!
//! Every page is touched after each step: its first word is read, compared with what was written before the
//! step, and written anew, and so is the block's last word. Content that was lost is an error, and what a call
//! puts off until memory is used is paid for in the rows `X.touch` (call and touch together).
//!
//! | row | what is timed |
//! | --- | --- |
//! | `up-2`, `up-1.1`, `down-2`, `down-1.1` | the calls |
//! | `resize` | all of them |
//! | `free` | the blocks' end, and what was put off until then |
#![allow(unsafe_code, reason = "touches blocks by address")]

use umpa_abi::addr::PAGE_BYTES;
use umpa_abi::record::{Sample, name};

use crate::moves::{MoveError, Resize};
use crate::raw::tsc_cycles;

/// The smallest bin: blocks of 4 to 8 KiB.
pub const FIRST_BYTES: u64 = 8 << 10;
/// The largest one.
pub const LARGEST_BYTES: u64 = 32 << 20;
/// The largest of a short run.
pub const QUICK_BYTES: u64 = 4 << 20;
/// Most bytes that live at once.
pub const LIVE_BYTES: u64 = 64 << 20;

const BLOCKS_MAX: usize = 8;
/// Lengths are multiples of it.
const GRAIN_BYTES: u64 = 16;

/// Bins up to `largest_bytes`.
pub fn bins(largest_bytes: u64) -> impl Iterator<Item = u64> {
    core::iter::successors(Some(FIRST_BYTES), |bytes| Some(2 * bytes))
        .take_while(move |&bytes| bytes <= largest_bytes)
}

/// Blocks of a bin that live at once.
#[must_use]
pub const fn blocks(bin_bytes: u64) -> usize {
    let blocks = (LIVE_BYTES / bin_bytes) as usize;
    if blocks < BLOCKS_MAX { blocks } else { BLOCKS_MAX }
}

/// How often the blocks of a bin go up and down.
const fn times(bin_bytes: u64) -> u64 {
    match (1 << 20) / bin_bytes {
        0 => 1,
        times @ 1..16 => times,
        _ => 16,
    }
}

/// By what blocks are resized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Factor {
    tenths: u64,
    up: [&'static str; 2],
    down: [&'static str; 2],
}

const FACTORS: [Factor; 2] = [
    Factor { tenths: 20, up: ["up-2", "up-2.touch"], down: ["down-2", "down-2.touch"] },
    Factor { tenths: 11, up: ["up-1.1", "up-1.1.touch"], down: ["down-1.1", "down-1.1.touch"] },
];

impl Factor {
    /// Lengths from half of the bin to all of it.
    fn lengths(self, bin_bytes: u64) -> impl Iterator<Item = u64> {
        let next = move |&bytes: &u64| {
            let longer = (bytes * self.tenths / 10).next_multiple_of(GRAIN_BYTES).min(bin_bytes);
            (bytes < bin_bytes).then_some(longer)
        };
        core::iter::successors(Some(bin_bytes / 2), next)
    }
}

/// What is summed up for a row and the one with touches.
#[derive(Clone, Copy, Default)]
struct Sum {
    ops: u64,
    pages: u64,
    cycles: u64,
    touched_cycles: u64,
    check: u64,
}

impl Sum {
    fn add(&mut self, other: &Self) {
        self.ops += other.ops;
        self.pages += other.pages;
        self.cycles += other.cycles;
        self.touched_cycles += other.touched_cycles;
        self.check = self.check.wrapping_mul(31).wrapping_add(other.check);
    }
}

/// A block, and what was written to it last.
#[derive(Clone, Copy, Default)]
struct Block {
    address: u64,
    bytes: u64,
    mark: u64,
}

/// What a word of a block holds: `place` is its page, or the block's length for its last word.
const fn word(mark: u64, place: u64) -> u64 {
    (mark << 40) ^ place.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// The blocks of a bin, under way.
struct Work<'f, R> {
    from: &'f mut R,
    bin_bytes: u64,
    blocks: [Block; BLOCKS_MAX],
    /// The next mark.
    mark: u64,
    /// What distinguishes this round's words from those of the others.
    salt: u64,
}

impl<R: Resize> Work<'_, R> {
    /// Gives a block another length, and touches it.
    fn step(&mut self, at: usize, new: u64, sum: &mut Sum) -> Result<(), MoveError> {
        let old = self.blocks[at];
        let start_cycles = tsc_cycles();
        let address = self.from.resize(old.address, old.bytes, new);
        let resized_cycles = tsc_cycles();
        let address = address.ok_or(MoveError::Refused { call: "resize", bytes: new })?;
        let block = Block { address, bytes: new, mark: self.mark };
        self.mark += 1;
        // SAFETY: the block has so many bytes now (`Resize`), and is ours.
        let (check, wrong) = unsafe { touch(block, old, self.salt) };
        let end_cycles = tsc_cycles();
        self.blocks[at] = block;
        if wrong != 0 {
            return Err(MoveError::Wrong { bytes: new });
        }
        sum.add(&Sum {
            ops: 1,
            pages: new.div_ceil(PAGE_BYTES),
            cycles: resized_cycles.wrapping_sub(start_cycles),
            touched_cycles: end_cycles.wrapping_sub(start_cycles),
            check,
        });
        Ok(())
    }

    /// Gives all blocks all `lengths`, one after the other.
    fn steps(&mut self, lengths: impl Iterator<Item = u64>, sum: &mut Sum) -> Result<(), MoveError> {
        for bytes in lengths {
            for at in 0..blocks(self.bin_bytes) {
                self.step(at, bytes, sum)?;
            }
        }
        Ok(())
    }
}

/// Reads back what `old` kept, and writes all of `new`. Returns a sum of what was read, and bits that are 0 when
/// it was right.
///
/// # Safety
/// `new` is live and the caller's alone.
unsafe fn touch(new: Block, old: Block, salt: u64) -> (u64, u64) {
    let (mut sum, mut wrong) = (0_u64, 0);
    let mut read = |place: *mut u64, expected: u64| {
        // SAFETY: the word lies in the block, as its callers see to.
        let found = unsafe { place.read_volatile() } ^ salt;
        sum = sum.wrapping_mul(31).wrapping_add(found);
        wrong |= found ^ expected;
    };
    let last = |bytes: u64| (new.address + bytes - 8) as *mut u64;
    if old.bytes > 0 && new.bytes >= old.bytes {
        read(last(old.bytes), word(old.mark, old.bytes));
    }
    let kept_pages = old.bytes.min(new.bytes).div_ceil(PAGE_BYTES);
    for page in 0..new.bytes.div_ceil(PAGE_BYTES) {
        let place = (new.address + page * PAGE_BYTES) as *mut u64;
        if page < kept_pages {
            read(place, word(old.mark, page));
        }
        // SAFETY: the page begins in the block.
        unsafe { place.write_volatile(word(new.mark, page) ^ salt) };
    }
    // SAFETY: lengths are multiples of 16, so this is no page's first word.
    unsafe { last(new.bytes).write_volatile(word(new.mark, new.bytes) ^ salt) };
    (sum, wrong)
}

/// Resizes blocks in all bins up to `largest_bytes`. `round` is a number that no round before had: what an
/// earlier one left in memory is wrong content.
///
/// # Errors
/// [`MoveError`].
pub fn resizings<R: Resize>(
    from: &mut R,
    series: &str,
    largest_bytes: u64,
    round: u64,
    report: &mut dyn FnMut(Sample),
) -> Result<(), MoveError> {
    bins(largest_bytes).try_for_each(|bin_bytes| bin(from, series, bin_bytes, round, report))
}

fn bin<R: Resize>(
    from: &mut R,
    series: &str,
    bin_bytes: u64,
    round: u64,
    report: &mut dyn FnMut(Sample),
) -> Result<(), MoveError> {
    let count = blocks(bin_bytes);
    let salt = (round + 1).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mut work = Work { from, bin_bytes, blocks: [Block::default(); BLOCKS_MAX], mark: 1, salt };
    for at in 0..count {
        let bytes = bin_bytes / 2;
        let address = work.from.alloc(bytes, bin_bytes).ok_or(MoveError::Refused { call: "alloc", bytes })?;
        work.blocks[at] = Block { address, bytes, mark: work.mark };
        work.mark += 1;
        // SAFETY: the block was just made, with so many bytes (`Source`).
        unsafe { touch(work.blocks[at], Block::default(), salt) };
    }
    let mut sample = |work: &str, sum: &Sum, cycles: u64| {
        let (series, work) = (name(series), name(work));
        let &Sum { ops, pages, check, .. } = sum;
        report(Sample { series, work, bytes: bin_bytes, ops, pages, cycles, check, reserved: 0 });
    };
    let mut all = Sum::default();
    for factor in FACTORS {
        let [mut up, mut down] = [Sum::default(); 2];
        for _ in 0..times(bin_bytes) {
            work.steps(factor.lengths(bin_bytes).skip(1), &mut up)?;
            let steps = factor.lengths(bin_bytes).count();
            let backwards = (0..steps - 1).rev().filter_map(|step| factor.lengths(bin_bytes).nth(step));
            work.steps(backwards, &mut down)?;
        }
        for (names, sum) in [(factor.up, up), (factor.down, down)] {
            sample(names[0], &sum, sum.cycles);
            sample(names[1], &sum, sum.touched_cycles);
            all.add(&sum);
        }
    }
    sample("resize", &all, all.cycles);
    sample("resize.touch", &all, all.touched_cycles);
    let start_cycles = tsc_cycles();
    for Block { address, bytes, .. } in work.blocks.into_iter().take(count) {
        if !work.from.free(address, bytes) {
            return Err(MoveError::Refused { call: "free", bytes });
        }
    }
    work.from.later();
    let pages = count as u64 * (bin_bytes / 2).div_ceil(PAGE_BYTES);
    let freed = Sum { ops: count as u64, pages, ..Sum::default() };
    sample("free", &freed, tsc_cycles().wrapping_sub(start_cycles));
    Ok(())
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::moves::Source;
    use std::alloc::{Layout, alloc_zeroed, dealloc, realloc};
    use std::vec::Vec;

    /// What is done wrong.
    #[derive(Clone, Copy, PartialEq)]
    enum Wrong {
        Nothing,
        /// A block that grows to 16 KiB loses its first page.
        Page,
        /// One that grows to 16 KiB loses its last word.
        Last,
    }

    struct Heap {
        live: u64,
        wrong: Wrong,
    }

    fn layout(bytes: u64) -> Layout {
        Layout::from_size_align(bytes as usize, 16).unwrap()
    }

    // SAFETY: the heap's blocks.
    unsafe impl Source for Heap {
        fn alloc(&mut self, bytes: u64, _largest_bytes: u64) -> Option<u64> {
            self.live += 1;
            // SAFETY: the layout has a size.
            Some(unsafe { alloc_zeroed(layout(bytes)) } as u64)
        }
        fn free(&mut self, block: u64, bytes: u64) -> bool {
            self.live -= 1;
            // SAFETY: from `alloc` or `realloc`.
            unsafe { dealloc(block as *mut u8, layout(bytes)) };
            true
        }
    }

    // SAFETY: as above; content is kept, or the test is about its loss.
    unsafe impl Resize for Heap {
        fn resize(&mut self, block: u64, old: u64, new: u64) -> Option<u64> {
            // SAFETY: from `alloc` or `realloc`.
            let block = unsafe { realloc(block as *mut u8, layout(old), new as usize) };
            if new == 16 << 10 && self.wrong != Wrong::Nothing {
                let at = if self.wrong == Wrong::Page { 0 } else { old as usize - 1 };
                // SAFETY: within the block.
                unsafe { *block.add(at) ^= 1 };
            }
            Some(block as u64)
        }
    }

    fn run(wrong: Wrong) -> (Result<(), MoveError>, Vec<Sample>, u64) {
        let (mut heap, mut samples) = (Heap { live: 0, wrong }, Vec::new());
        let done = resizings(&mut heap, "any", 16 << 10, 3, &mut |sample| samples.push(sample));
        (done, samples, heap.live)
    }

    #[test]
    fn every_step_is_in_its_row() {
        let (done, samples, live) = run(Wrong::Nothing);
        assert_eq!((done, live, samples.len()), (Ok(()), 0, 2 * 11));
        let row = |work: &str, bytes: u64| {
            samples.iter().find(|row| row.work == name(work) && row.bytes == bytes).unwrap()
        };
        // 16 times 8 blocks.
        assert_eq!((row("up-2", 8 << 10).ops, row("up-2", 8 << 10).pages), (128, 256));
        assert_eq!((row("down-2.touch", 8 << 10).ops, row("down-2", 8 << 10).pages), (128, 128));
        assert_eq!(row("up-1.1", 16 << 10).ops, 128 * 8);
        assert_eq!(row("down-1.1", 16 << 10).ops, 128 * 8);
        assert_eq!(row("resize", 16 << 10).ops, 128 * 18);
        // The same work, whatever the round's number is.
        let (mut heap, mut again) = (Heap { live: 0, wrong: Wrong::Nothing }, Vec::new());
        resizings(&mut heap, "any", 16 << 10, 4, &mut |sample| again.push(sample)).unwrap();
        assert!(samples.iter().zip(&again).all(|(one, other)| one.check == other.check));
    }

    #[test]
    fn lengths_go_from_half_to_all() {
        let lengths = |factor: Factor| factor.lengths(8192).collect::<Vec<_>>();
        assert_eq!(lengths(FACTORS[0]), [4096, 8192]);
        assert_eq!(lengths(FACTORS[1]), [4096, 4512, 4976, 5488, 6048, 6656, 7328, 8064, 8192]);
        assert_eq!(
            [8 << 10, 8 << 20, 32 << 20].map(|bytes| (blocks(bytes), times(bytes))),
            [(8, 16), (8, 1), (2, 1)]
        );
    }

    #[test]
    fn lost_content_is_found() {
        for wrong in [Wrong::Page, Wrong::Last] {
            let (done, ..) = run(wrong);
            assert_eq!(done, Err(MoveError::Wrong { bytes: 16 << 10 }));
        }
    }
}
