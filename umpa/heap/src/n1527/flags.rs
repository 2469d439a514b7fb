//! Flags, and what follows from them and from alignment and reserve.

use bitflags::bitflags;
use umpa::mmap::Errno;

bitflags! {
    /// How a block is allocated, resized or freed (`M2_*`).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Flags: u64 {
        /// New bytes are zero: all that a new block has, and all of a resized one behind what it keeps.
        const ZERO_MEMORY = 1;
        /// A block that is resized stays where it is, or the call fails.
        const PREVENT_MOVE = 1 << 1;
        /// In constant time rather than with least memory: frees give no memory back and edit no table,
        /// and no content is copied: what would be, fails.
        const CONSTANT_TIME = 1 << 2;
        /// The reserve is a multiple of the size, not bytes.
        const RESERVE_IS_MULT = 1 << 3;
        /// All entries of the batch are new blocks: pointers are written, not read.
        const BATCH_IS_ALL_ALLOC = 1 << 4;
        /// All are blocks to be resized: a null pointer or size 0 is refused.
        const BATCH_IS_ALL_REALLOC = 1 << 5;
        /// All are freed, whatever their size says.
        const BATCH_IS_ALL_FREE = 1 << 6;
    }
}

const KINDS: Flags =
    Flags::BATCH_IS_ALL_ALLOC.union(Flags::BATCH_IS_ALL_REALLOC).union(Flags::BATCH_IS_ALL_FREE);

/// The alignment that 0 stands for: C's for any object.
const ALIGN_DEFAULT_BYTES: usize = 16;

/// What is done for an entry.
#[derive(Clone, Copy)]
pub(super) struct Manner {
    pub(super) align_bytes: usize,
    reserve: usize,
    pub(super) flags: Flags,
}

impl Manner {
    pub(super) const fn new(alignment: usize, reserve: usize, flags: Flags) -> Self {
        let align_bytes = if alignment == 0 { ALIGN_DEFAULT_BYTES } else { alignment };
        Self { align_bytes, reserve, flags }
    }

    /// Flags that exist and agree, and an alignment that there is.
    pub(super) fn check(&self) -> Result<(), Errno> {
        let kinds = self.flags.intersection(KINDS).bits().count_ones();
        let known = Flags::from_bits(self.flags.bits()).is_some();
        if known && kinds <= 1 && self.align_bytes.is_power_of_two() { Ok(()) } else { Err(Errno::EINVAL) }
    }

    /// Bytes to reserve for a block of `size`; at least those.
    pub(super) fn reserve_bytes(&self, size: usize) -> Result<usize, Errno> {
        let reserve = if self.flags.contains(Flags::RESERVE_IS_MULT) {
            self.reserve.checked_mul(size).ok_or(Errno::ENOMEM)?
        } else {
            self.reserve
        };
        Ok(reserve.max(size))
    }
}
