//! Bits and arithmetic of 4-level paging (Intel SDM vol. 3A, 4.5; AMD APM vol. 2, 5.3).
//!
//! Only what both sides must agree on: the VMM writes the first tables and walks them when it
//! reports a violation; `umpa` has the typed entry on top.

use crate::addr::{Gpa, Gva};

/// P: the entry is valid.
pub const PRESENT: u64 = 1 << 0;
/// R/W: writes are allowed.
pub const WRITABLE: u64 = 1 << 1;
/// U/S: CPL 3 is allowed.
pub const USER: u64 = 1 << 2;
/// A: the processor has used the entry.
pub const ACCESSED: u64 = 1 << 5;
/// D: the processor has written through this leaf.
pub const DIRTY: u64 = 1 << 6;
/// PS: at level 2 or 3, the entry is a leaf.
pub const LARGE: u64 = 1 << 7;
/// XD/NX: no instruction fetch (needs EFER.NXE).
pub const NO_EXECUTE: u64 = 1 << 63;
/// Bits 51..12: the frame.
pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Entries of a table at any level.
pub const ENTRIES: usize = 512;
/// Levels of a walk; the root is at this level, 4 KiB leaves at level 1.
pub const LEVELS: u32 = 4;

/// Index into the table of `level` (1..=4) on the walk for `gva`.
#[must_use]
pub const fn index(gva: Gva, level: u32) -> usize {
    (gva.get().wrapping_shr(shift(level)) & 511) as usize
}

/// Bits of an address below what an entry at `level` covers: 12, 21, 30, 39.
const fn shift(level: u32) -> u32 {
    level.wrapping_mul(9).wrapping_add(3)
}

/// Bytes that one entry at `level` (1..=4) covers.
#[must_use]
pub const fn entry_bytes(level: u32) -> u64 {
    1u64.wrapping_shl(shift(level))
}

/// The guest-physical address in an entry (a table's, or a leaf's with its low bits).
#[must_use]
pub const fn address(entry: u64) -> Gpa {
    Gpa::new(entry & ADDRESS)
}

const _: () = assert!(entry_bytes(1) == 4096 && entry_bytes(4) == 512 << 30);
