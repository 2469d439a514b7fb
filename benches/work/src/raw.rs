//! The clock, the blocks' bytes and the calls of the allocator under test: all unsafe code of this
//! crate, behind functions that are safe to call.
//!
//! Every block that an allocator hands out goes into a [`Slot`] of the one `Ring` that owns that
//! allocator, and leaves it by being freed: so no byte is touched of a block that isn't live, and no
//! block goes to an allocator that it isn't from.
#![allow(unsafe_code, reason = "reads the TSC, touches blocks by address, calls the allocator under test")]

use core::arch::asm;
use core::hint::black_box;
use core::ptr::NonNull;
use umpa_abi::addr::PAGE_BYTES;

use crate::chase::{Chain, UNIT_BYTES};

/// An allocator under test.
///
/// # Safety
/// `alloc` returns a block of at least `bytes` writable bytes that overlaps nothing else that is in use, and
/// stays so until it is freed. Page allocators' blocks begin at a page, those of others anywhere.
pub unsafe trait Blocks {
    /// The series, as records and reports name it: letters, digits, `-`, `_`, `.`; at most 24 bytes.
    fn name(&self) -> &'static str;

    /// A block of `bytes` bytes (at least 1), or `None` when there is no memory.
    fn alloc(&mut self, bytes: u64) -> Option<NonNull<u8>>;

    /// Frees a block.
    ///
    /// # Safety
    /// `block` came from `alloc(bytes)` of this allocator and hasn't been freed; nobody uses it any more.
    unsafe fn free(&mut self, block: NonNull<u8>, bytes: u64);
}

/// The allocator that does nothing and has nothing: what a call and the clock cost by themselves.
pub struct Nothing;

// SAFETY: it never hands out a block.
unsafe impl Blocks for Nothing {
    fn name(&self) -> &'static str {
        "nothing"
    }
    fn alloc(&mut self, _bytes: u64) -> Option<NonNull<u8>> {
        black_box(None)
    }
    unsafe fn free(&mut self, block: NonNull<u8>, _bytes: u64) {
        black_box(block);
    }
}

/// A place in the ring. Handed in empty by the caller, who owns the memory.
#[derive(Clone, Copy)]
pub struct Slot {
    block: Option<NonNull<u8>>,
    bytes: u64,
    number: u64,
    counts: bool,
}

impl Slot {
    /// No block.
    pub const EMPTY: Self = Self { block: None, bytes: 0, number: 0, counts: false };
}

/// What is known of a live block.
#[derive(Clone, Copy)]
pub(crate) struct Live {
    pub(crate) bytes: u64,
    /// Its allocation belongs to the measured phase.
    pub(crate) counts: bool,
}

/// Cycles of the time stamp counter. Everything before has been executed when it is read, nothing
/// after has begun (Intel SDM vol. 2B, RDTSC; stores may still wait in the store buffer).
///
/// In assembly, as LFENCE is a function to call where programs are built without SSE2, which guests are.
#[must_use]
#[inline]
pub fn tsc_cycles() -> u64 {
    let (low, high): (u64, u64);
    // SAFETY: LFENCE and RDTSC are part of every x86-64 processor; CR4.TSD is 0 on both sides. They change the two
    // registers only.
    unsafe {
        asm!("lfence", "rdtsc", "lfence", out("rax") low, out("rdx") high, options(nostack, preserves_flags));
    }
    high << 32 | low
}

/// The bytes of a block's pages: `first + page * step`, upper eight bits. Different for every block
/// and page, and one addition per page.
struct Pattern {
    next: u64,
    step: u64,
}

impl Pattern {
    fn of_block(number: u64) -> Self {
        // The finalizer of splitmix64 (Steele, Lea, Flood 2014).
        let mut mixed = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Self { next: mixed ^ (mixed >> 31), step: mixed.rotate_left(32) | 1 }
    }

    fn next_byte(&mut self) -> u8 {
        let byte = (self.next >> 56) as u8;
        self.next = self.next.wrapping_add(self.step);
        byte
    }
}

/// Cache lines of a page.
const LINES: u64 = PAGE_BYTES / 64;

// The timed parts are never inlined: they are then the same instructions wherever they are
// called from, the null loop included.

#[inline(never)]
fn timed_alloc<B: Blocks>(blocks: &mut B, bytes: u64) -> (Option<NonNull<u8>>, u64) {
    let start_cycles = tsc_cycles();
    let block = blocks.alloc(bytes);
    let end_cycles = tsc_cycles();
    (block, end_cycles.wrapping_sub(start_cycles))
}

/// # Safety
/// As [`Blocks::free`].
#[inline(never)]
unsafe fn timed_free<B: Blocks>(blocks: &mut B, block: NonNull<u8>, bytes: u64) -> u64 {
    let start_cycles = tsc_cycles();
    // SAFETY: the caller's.
    unsafe { blocks.free(block, bytes) };
    tsc_cycles().wrapping_sub(start_cycles)
}

/// # Safety
/// `block` is the start of `(steps - 1) * stride_bytes + 1` or more writable bytes.
#[inline(never)]
unsafe fn timed_traversal(block: NonNull<u8>, steps: u64, stride_bytes: u64, mut pattern: Pattern) -> u64 {
    let start_cycles = tsc_cycles();
    for step in 0..steps {
        let byte = pattern.next_byte();
        // SAFETY: the caller's.
        unsafe { block.add((step * stride_bytes) as usize).write_volatile(byte) };
    }
    tsc_cycles().wrapping_sub(start_cycles)
}

/// The same with another line of each page: the first, the second, and so on to the last and over again.
///
/// # Safety
/// `block` is the start of `pages` writable pages.
#[inline(never)]
unsafe fn timed_spread(block: NonNull<u8>, pages: u64, mut pattern: Pattern) -> u64 {
    let start_cycles = tsc_cycles();
    for page in 0..pages {
        let byte = pattern.next_byte();
        let line = page % LINES * (PAGE_BYTES / LINES);
        // SAFETY: the caller's; a line lies in its page.
        unsafe { block.add((page * PAGE_BYTES + line) as usize).write_volatile(byte) };
    }
    tsc_cycles().wrapping_sub(start_cycles)
}

/// What the timed parts cost when there is nothing to do: the null loop. Sums over [`Null::OPS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Null {
    alloc_cycles: u64,
    traverse_cycles: u64,
    free_cycles: u64,
}

impl Null {
    /// Operations in the sums.
    pub const OPS: u64 = 256;
    const ROUNDS: u64 = 16;

    /// Runs the null loop a few times and takes the cheapest: whatever was more was an interrupt.
    pub(crate) fn measure() -> Self {
        let mut least = Self { alloc_cycles: u64::MAX, traverse_cycles: u64::MAX, free_cycles: u64::MAX };
        for _ in 0..Self::ROUNDS {
            let (mut alloc_cycles, mut traverse_cycles, mut free_cycles) = (0, 0, 0);
            for op in 0..Self::OPS {
                let block = NonNull::dangling();
                alloc_cycles += timed_alloc(&mut Nothing, black_box(op)).1;
                // SAFETY: no page, no byte.
                traverse_cycles +=
                    unsafe { timed_traversal(block, black_box(0), PAGE_BYTES, Pattern::of_block(op)) };
                // SAFETY: `Nothing` does nothing with it.
                free_cycles += unsafe { timed_free(&mut Nothing, block, black_box(op)) };
            }
            least.alloc_cycles = least.alloc_cycles.min(alloc_cycles);
            least.traverse_cycles = least.traverse_cycles.min(traverse_cycles);
            least.free_cycles = least.free_cycles.min(free_cycles);
        }
        least
    }

    /// Cycles of `ops` allocations of nothing.
    #[must_use]
    pub const fn alloc_cycles(&self, ops: u64) -> u64 {
        self.alloc_cycles * ops / Self::OPS
    }
    /// Cycles of `ops` traversals of nothing.
    #[must_use]
    pub const fn traverse_cycles(&self, ops: u64) -> u64 {
        self.traverse_cycles * ops / Self::OPS
    }
    /// Cycles of `ops` times freeing nothing.
    #[must_use]
    pub const fn free_cycles(&self, ops: u64) -> u64 {
        self.free_cycles * ops / Self::OPS
    }
}

/// An allocator and the blocks that live in it.
pub(crate) struct Ring<'r, B: Blocks> {
    blocks: B,
    slots: &'r mut [Slot],
    /// From one byte that is written to the next.
    stride_bytes: u64,
}

impl<'r, B: Blocks> Ring<'r, B> {
    /// Empties the slots: what an earlier ring left in them belongs to another allocator.
    pub(crate) fn new(blocks: B, slots: &'r mut [Slot]) -> Self {
        slots.fill(Slot::EMPTY);
        Self { blocks, slots, stride_bytes: PAGE_BYTES }
    }

    /// Blocks are from now on traversed with a byte every `stride_bytes`.
    pub(crate) fn set_stride(&mut self, stride_bytes: u64) {
        debug_assert!(stride_bytes > 0 && self.slots.iter().all(|slot| slot.block.is_none()));
        self.stride_bytes = stride_bytes.max(1);
    }

    /// Bytes that are written of a block.
    pub(crate) const fn steps(&self, bytes: u64) -> u64 {
        bytes.div_ceil(self.stride_bytes)
    }

    pub(crate) fn allocator(&mut self) -> &mut B {
        &mut self.blocks
    }

    pub(crate) fn name(&self) -> &'static str {
        self.blocks.name()
    }

    /// The block at `at`, if there is one.
    pub(crate) fn live(&self, at: usize) -> Option<Live> {
        let slot = self.slots.get(at).filter(|slot| slot.block.is_some())?;
        Some(Live { bytes: slot.bytes, counts: slot.counts })
    }

    /// Allocates block `number` into the empty slot `at`; cycles, or `None` without memory.
    pub(crate) fn alloc(&mut self, at: usize, number: u64, bytes: u64, counts: bool) -> Option<u64> {
        let slot = self.slots.get_mut(at).filter(|slot| slot.block.is_none())?;
        let (block, cycles) = timed_alloc(&mut self.blocks, bytes);
        *slot = Slot { block: Some(block?), bytes, number, counts };
        Some(cycles)
    }

    /// Writes one byte to each page (or stride) of the block at `at`; cycles (0 without a block).
    pub(crate) fn traverse(&mut self, at: usize) -> u64 {
        let Some(&Slot { block: Some(block), bytes, number, .. }) = self.slots.get(at) else { return 0 };
        // SAFETY: the block is live and has `bytes` bytes, so its last stride begins within it.
        unsafe { timed_traversal(block, self.steps(bytes), self.stride_bytes, Pattern::of_block(number)) }
    }

    /// Writes a byte to each page of the block at `at`, to another line of each; cycles (0 without a block). Where it
    /// is the byte that [`Self::traverse`] writes, it is the same one.
    pub(crate) fn spread(&mut self, at: usize) -> u64 {
        let Some(&Slot { block: Some(block), bytes, number, .. }) = self.slots.get(at) else { return 0 };
        // SAFETY: the block is live and has `bytes` bytes, so that whole pages of it are writable.
        unsafe { timed_spread(block, bytes / PAGE_BYTES, Pattern::of_block(number)) }
    }

    /// Reads the bytes back; how many are wrong.
    pub(crate) fn wrong_bytes(&self, at: usize) -> u64 {
        let Some(&Slot { block: Some(block), bytes, number, .. }) = self.slots.get(at) else { return 0 };
        let mut pattern = Pattern::of_block(number);
        let mut wrong_bytes = 0;
        for step in 0..self.steps(bytes) {
            // SAFETY: the block is live, and the stride begins within it.
            let byte = unsafe { block.add((step * self.stride_bytes) as usize).read_volatile() };
            wrong_bytes += u64::from(byte != pattern.next_byte());
        }
        wrong_bytes
    }

    /// Frees the block at `at`; cycles (0 without a block).
    pub(crate) fn free(&mut self, at: usize) -> u64 {
        let Some(slot) = self.slots.get_mut(at) else { return 0 };
        let Slot { block: Some(block), bytes, .. } = core::mem::replace(slot, Slot::EMPTY) else { return 0 };
        // SAFETY: it came from this allocator, and the slot that held it is empty now.
        unsafe { timed_free(&mut self.blocks, block, bytes) }
    }
}

/// Words of a page.
pub const WORDS: u64 = PAGE_BYTES / 8;

/// Pages to read and write by the word.
#[derive(Debug)]
pub struct Words {
    first: *mut u64,
    pages: u64,
}

impl Words {
    /// The pages from `first` on.
    ///
    /// # Safety
    /// As long as the result lives, they can be read and written (after faults that somebody handles),
    /// and nobody else does.
    #[must_use]
    pub const unsafe fn new(first: *mut u64, pages: u64) -> Self {
        Self { first, pages }
    }

    /// How many pages.
    #[must_use]
    pub const fn pages(&self) -> u64 {
        self.pages
    }

    fn at(&self, page: u64, word: u64) -> *mut u64 {
        assert!(page < self.pages && word < WORDS, "word {word} of page {page}");
        self.first.wrapping_add((page * WORDS + word) as usize)
    }

    pub(crate) fn read(&self, page: u64, word: u64) -> u64 {
        // SAFETY: `at` has checked that the word is in the pages (`new`).
        unsafe { self.at(page, word).read_volatile() }
    }

    pub(crate) fn write(&mut self, page: u64, word: u64, value: u64) {
        // SAFETY: as above.
        unsafe { self.at(page, word).write_volatile(value) };
    }

    /// As kernels zero a page: with one string instruction.
    pub(crate) fn zero(&mut self, page: u64) {
        // SAFETY: `at` has checked that the page, which begins there, is in the pages (`new`); DF is clear by the ABI.
        unsafe {
            asm!("rep stosq", inout("rdi") self.at(page, 0) => _, inout("rcx") WORDS => _, in("rax") 0u64,
                options(nostack, preserves_flags));
        }
    }
}

/// The cells of chains ([`chase`](crate::chase)).
#[derive(Debug)]
pub struct Cells {
    first: *mut u8,
    bytes: u64,
    /// The chain that was laid in each slot.
    laid: [Option<Chain>; 16],
}

impl Cells {
    /// The memory from `first` on, a multiple of 64 bytes.
    ///
    /// # Safety
    /// As long as the result and its [views](Self::view) live, it can be read and written, and nobody else writes.
    #[must_use]
    pub const unsafe fn new(first: *mut u8, bytes: u64) -> Self {
        Self { first, bytes, laid: [None; 16] }
    }

    /// The same memory, with what was laid, at another address.
    ///
    /// # Safety
    /// The same frames are mapped there, in the same order, readable as long as the result lives. Nothing more is
    /// laid meanwhile.
    #[must_use]
    pub const unsafe fn view(&self, first: *mut u8) -> Self {
        Self { first, ..*self }
    }

    fn slot(&self, chain: &Chain) -> *mut u8 {
        assert!(chain.bytes <= self.bytes && chain.slot < 16, "{chain:?} in {} bytes", self.bytes);
        self.first.wrapping_add(4 * chain.slot as usize)
    }

    /// Writes a chain's cells.
    pub fn lay(&mut self, chain: &Chain) {
        let slot = self.slot(chain);
        for cell in 0..chain.cells() {
            let at = slot.wrapping_add((chain.place(cell) * UNIT_BYTES) as usize);
            // SAFETY: `slot` has checked that the chain lies in the memory; the cell is four bytes of one of its lines.
            unsafe { at.cast::<u32>().write_volatile(chain.place(chain.next(cell)) as u32) };
        }
        self.laid[chain.slot as usize] = Some(*chain);
    }

    /// Goes `steps` steps along a chain from `cell` on: the cell where it ends, and cycles.
    pub(crate) fn follow(&self, chain: &Chain, cell: u64, steps: u64) -> (u64, u64) {
        let slot = self.slot(chain);
        assert!(self.laid[chain.slot as usize] == Some(*chain), "{chain:?} wasn't laid");
        // SAFETY: this chain was laid, and nobody else has written since (`new`).
        let (place, cycles) = unsafe { timed_chase(slot, chain.place(cell & (chain.cells() - 1)), steps) };
        (chain.cell(place), cycles)
    }
}

/// # Safety
/// `slot + 8 * place` is a cell, and so is what every cell on the way says.
#[inline(never)]
unsafe fn timed_chase(slot: *const u8, mut place: u64, steps: u64) -> (u64, u64) {
    let start_cycles = tsc_cycles();
    for _ in 0..steps {
        // SAFETY: the caller's.
        place = unsafe { slot.add((place * UNIT_BYTES) as usize).cast::<u32>().read_volatile() }.into();
    }
    let place = black_box(place);
    (place, tsc_cycles().wrapping_sub(start_cycles))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_goes_forward() {
        let start_cycles = tsc_cycles();
        assert!(tsc_cycles() > start_cycles);
    }

    #[test]
    fn blocks_and_pages_have_bytes_of_their_own() {
        let mut same = 0;
        for number in 0..256 {
            let (mut one, mut next) = (Pattern::of_block(number), Pattern::of_block(number + 1));
            same += (0..16).filter(|_| one.next_byte() == next.next_byte()).count();
        }
        assert!(same < 64, "{same} of 4096 bytes, 16 expected by chance");
    }

    #[test]
    fn the_null_loop_costs_little() {
        let null = Null::measure();
        assert!(
            null.alloc_cycles(1) < 2000 && null.traverse_cycles(1) < 2000 && null.free_cycles(1) < 2000,
            "{null:?}"
        );
        assert_eq!(null.alloc_cycles(0), 0);
    }
}
