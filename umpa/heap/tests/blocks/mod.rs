//! A model of a heap's blocks: where each is, and what it contains.

#![allow(unsafe_code)] // reason: blocks are read and written by pointer

use std::ptr::NonNull;
use umpa_abi::addr::PAGE_BYTES;

/// A block and the seed of its content.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Block {
    pub(crate) at: NonNull<u8>,
    pub(crate) bytes: usize,
    pub(crate) align_bytes: usize,
    pub(crate) seed: u64,
}

impl Block {
    /// Bytes at which the content is looked at: all of a small block; of a large one each page's first
    /// and last, and the block's.
    pub(crate) fn places(bytes: usize) -> impl Iterator<Item = usize> {
        let step = if bytes <= 2 * PAGE_BYTES as usize { 1 } else { PAGE_BYTES as usize };
        let inner = (0..bytes).step_by(step).flat_map(move |at| [at, (at + step - 1).min(bytes - 1)]);
        inner.chain(bytes.checked_sub(1))
    }

    pub(crate) fn byte(seed: u64, place: usize) -> u8 {
        ((seed ^ place as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
    }

    pub(crate) fn fill(&self) {
        for place in Self::places(self.bytes) {
            // SAFETY: within the block.
            unsafe { self.at.as_ptr().add(place).write(Self::byte(self.seed, place)) };
        }
    }

    /// The first `bytes` bytes are those of a block with `before` bytes that was filled with `seed`.
    pub(crate) fn verify(&self, bytes: usize, before: usize, seed: u64) {
        for place in Self::places(before).filter(|&place| place < bytes) {
            // SAFETY: within the block.
            let found = unsafe { self.at.as_ptr().add(place).read() };
            assert_eq!(found, Self::byte(seed, place), "byte {place} of {self:?}");
        }
    }
}

/// Asserts that no two blocks share a byte, and that each is aligned as it should be.
pub(crate) fn assert_apart(blocks: &[Block]) {
    let mut ranges: Vec<_> = blocks.iter().map(|block| (block.at.as_ptr() as usize, block.bytes)).collect();
    ranges.sort_unstable();
    for two in ranges.windows(2) {
        assert!(two[0].0 + two[0].1 <= two[1].0 && two[0].0 < two[1].0, "{two:x?} overlap");
    }
    for block in blocks {
        assert!((block.at.as_ptr() as usize).is_multiple_of(block.align_bytes), "{block:?}");
    }
}
