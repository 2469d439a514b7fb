//! Page tables written entry by entry, for workloads that measure just that. Nothing of `umpa` is in between.
//!
//! Invariant: `used <= end`; tables below `used` are linked somewhere, those from there on are zero and nobody's.
//! A guest has either a tree or an allocator: both take tables from the arena.
//!
//! Cost: a walk from the root per leaf table, then a store per entry.

use umpa::hardware::TableMemory;
use umpa_abi::addr::{Frame, Gva, PageSize};
use umpa_abi::boot::BootInfo;
use umpa_abi::paging::{self, ACCESSED, DIRTY, LARGE, NO_EXECUTE, PRESENT, USER, WRITABLE};

use crate::machine::Machine;
use crate::workloads::Failure;

/// A leaf of data, A and D set.
pub const DATA: u64 = PRESENT | WRITABLE | USER | NO_EXECUTE | ACCESSED | DIRTY;
const LINK: u64 = PRESENT | WRITABLE | USER | ACCESSED;

/// The tables of a guest, and those that nobody uses yet.
#[derive(Debug)]
pub struct Tree {
    root: Frame,
    used: Frame,
    end: Frame,
}

/// The level of a leaf's table.
#[must_use]
pub const fn level(size: PageSize) -> u32 {
    size as u32 + 1
}

impl Tree {
    /// What the VMM has built, and the rest of the arena.
    #[must_use]
    pub const fn new(boot: &BootInfo) -> Self {
        let first = boot.tables_first();
        Self {
            root: boot.root().containing(),
            used: first.offset(boot.tables_used),
            end: first.offset(boot.tables_frames),
        }
    }

    /// A table of zeros that isn't linked.
    ///
    /// # Errors
    /// When there is none left.
    pub fn spare(&mut self) -> Result<Frame, Failure> {
        if self.used >= self.end {
            return Err(Failure::new("no table is left"));
        }
        let table = self.used;
        self.used = table.offset(1);
        Ok(table)
    }

    /// The table of `level` (1..=3) on the way to `gva`, made where there is none.
    ///
    /// # Errors
    /// When no table is left, or a large leaf is in the way.
    pub fn table(&mut self, machine: &mut Machine, gva: Gva, level: u32) -> Result<Frame, Failure> {
        let mut table = self.root;
        for above in (level + 1..=paging::LEVELS).rev() {
            let index = paging::index(gva, above);
            let entry = machine.tables.read(table, index);
            if entry & (PRESENT | LARGE) == PRESENT | LARGE {
                return Err(Failure::new("a large leaf is in the way"));
            }
            table = if entry & PRESENT != 0 {
                paging::address(entry).containing()
            } else {
                let below = self.spare()?;
                machine.tables.write(table, index, link(below));
                below
            };
        }
        Ok(table)
    }

    /// Maps `bytes` bytes at `gva` to the frames from `first` on, by leaves of one size and these bits. Nothing is
    /// flushed.
    ///
    /// # Errors
    /// As for [`Self::table`].
    pub fn map(
        &mut self,
        machine: &mut Machine,
        gva: Gva,
        first: Frame,
        bytes: u64,
        size: PageSize,
        bits: u64,
    ) -> Result<(), Failure> {
        let mut table = first;
        for number in 0..bytes.div_ceil(size.bytes()) {
            let at = Gva::new(gva.get() + number * size.bytes());
            let index = paging::index(at, level(size));
            if number == 0 || index == 0 {
                table = self.table(machine, at, level(size))?;
            }
            let entry = leaf(first.offset(number * size.frames()), size, bits);
            machine.tables.write(table, index, entry);
        }
        Ok(())
    }
}

/// The entry of a leaf.
#[must_use]
pub const fn leaf(frame: Frame, size: PageSize, bits: u64) -> u64 {
    let large = if matches!(size, PageSize::Size4K) { 0 } else { LARGE };
    frame.start().get() | bits | large
}

/// The entry of a table.
#[must_use]
pub const fn link(table: Frame) -> u64 {
    table.start().get() | LINK
}
