//! Runs: many equal blocks, told by the first and what lies between.

use core::ptr::NonNull;

/// Blocks of one size that were allocated together. It isn't their owner: each is freed alone, by its
/// address, and it is known without a list of addresses.
///
/// Invariant: block `n` lies `(n / blocks_per_unit) * unit_bytes + (n % blocks_per_unit) *
/// stride_bytes` behind the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    first: NonNull<u8>,
    blocks: usize,
    stride_bytes: usize,
    usable_bytes: usize,
    blocks_per_unit: usize,
    unit_bytes: usize,
}

impl Run {
    pub(crate) const fn new(
        first: NonNull<u8>,
        blocks: usize,
        stride_bytes: usize,
        usable_bytes: usize,
        blocks_per_unit: usize,
        unit_bytes: usize,
    ) -> Self {
        Self { first, blocks, stride_bytes, usable_bytes, blocks_per_unit, unit_bytes }
    }

    /// Blocks.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.blocks
    }

    /// True without a block.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.blocks == 0
    }

    /// Bytes of each block.
    #[must_use]
    pub const fn usable_bytes(&self) -> usize {
        self.usable_bytes
    }

    /// Block `number`.
    #[must_use]
    pub fn get(&self, number: usize) -> Option<NonNull<u8>> {
        let (unit, within) = (number / self.blocks_per_unit, number % self.blocks_per_unit);
        let offset = unit * self.unit_bytes + within * self.stride_bytes;
        if number < self.blocks { NonNull::new(self.first.as_ptr().wrapping_add(offset)) } else { None }
    }

    /// The blocks in order of their addresses.
    pub fn iter(&self) -> impl Iterator<Item = NonNull<u8>> + use<> {
        let run = *self;
        (0..run.blocks.div_ceil(run.blocks_per_unit)).flat_map(move |unit| {
            let blocks = run.blocks_per_unit.min(run.blocks - unit * run.blocks_per_unit);
            let start = run.first.as_ptr().wrapping_add(unit * run.unit_bytes);
            (0..blocks).filter_map(move |at| NonNull::new(start.wrapping_add(at * run.stride_bytes)))
        })
    }

    /// Writes the addresses of the blocks to `pointers`, as many as there are in both.
    pub fn write_to(&self, pointers: &mut [*mut u8]) {
        let blocks = self.blocks.min(pointers.len());
        for (unit, pointers) in pointers[..blocks].chunks_mut(self.blocks_per_unit).enumerate() {
            let mut at = self.first.as_ptr().wrapping_add(unit * self.unit_bytes);
            for pointer in pointers {
                *pointer = at;
                at = at.wrapping_add(self.stride_bytes);
            }
        }
    }
}
