//! Memory of a process to chase pointers in, in small pages or huge ones.
#![allow(unsafe_code, reason = "maps memory, in which cells are laid")]

use std::io;
use std::ptr;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use work::chase::{Astray, Chain, Chase};
use work::raw::Cells;

/// Pages behind a process's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pages {
    /// 4 KiB, by MADV_NOHUGEPAGE.
    Small,
    /// 2 MiB, by MADV_HUGEPAGE.
    Huge,
}

const HUGE_BYTES: usize = 2 << 20;

/// A mapping with all chains that fit.
#[derive(Debug)]
pub struct Memory {
    mapping: *mut libc::c_void,
    mapping_bytes: usize,
    cells: Cells,
    chases: Vec<Chase>,
}

impl Memory {
    /// `bytes` bytes, backed and laid.
    ///
    /// # Errors
    /// The system call's.
    pub fn new(bytes: u64, pages: Pages) -> io::Result<Self> {
        let len = usize::try_from(bytes).map_err(io::Error::other)?;
        let mapping_bytes = len.saturating_add(HUGE_BYTES);
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping where the kernel likes.
        let mapping = unsafe {
            mmap_anonymous(ptr::null_mut(), mapping_bytes, ProtFlags::READ | ProtFlags::WRITE, flags)
        }?;
        let first = mapping.cast::<u8>();
        let first = first.wrapping_add(first.addr().wrapping_neg() % HUGE_BYTES);
        let advice = match pages {
            Pages::Small => Advice::LinuxNoHugepage,
            Pages::Huge => Advice::LinuxHugepage,
        };
        for advice in [advice, Advice::LinuxPopulateWrite] {
            // SAFETY: within the mapping that was just made, which has no content yet.
            if let Err(errno) = unsafe { madvise(first.cast(), len, advice) } {
                // SAFETY: the mapping just made; nobody knows it.
                let _ = unsafe { munmap(mapping, mapping_bytes) };
                return Err(errno.into());
            }
        }
        // SAFETY: it lives as long as this value, which tells nobody else where it is.
        let mut cells = unsafe { Cells::new(first, bytes) };
        let chases: Vec<Chase> = work::chase::up_to(bytes).map(Chase::new).collect();
        chases.iter().for_each(|chase| cells.lay(&chase.chain()));
        Ok(Self { mapping, mapping_bytes, cells, chases })
    }

    /// A sample of each chain, after warming: calls `each` with chain, cycles, and the cell where it ended.
    ///
    /// # Errors
    /// [`Astray`].
    pub fn round(&mut self, steps: u64, mut each: impl FnMut(Chain, u64, u64)) -> Result<(), Astray> {
        for chase in &mut self.chases {
            chase.run(&self.cells, chase.chain().warm_steps())?;
            let cycles = chase.run(&self.cells, steps)?;
            each(chase.chain(), cycles, chase.cell());
        }
        Ok(())
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: a mapping of ours, which nobody else uses.
        let _ = unsafe { munmap(self.mapping, self.mapping_bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_end_in_the_same_cells_in_small_and_huge_pages() {
        let mut ends = [Pages::Small, Pages::Huge].map(|pages| {
            let mut memory = Memory::new(4 << 20, pages).unwrap();
            let mut ends = Vec::new();
            for _ in 0..2 {
                memory.round(1000, |chain, _, cell| ends.push((chain, cell))).unwrap();
            }
            ends
        });
        assert_eq!(ends[0].len(), 2 * 7);
        assert_eq!(ends[0], ends[1]);
        ends[0].dedup_by_key(|(_, cell)| *cell);
        assert_eq!(ends[0].len(), 2 * 7);
    }
}
