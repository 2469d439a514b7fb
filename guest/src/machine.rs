//! The hardware of one vCPU as `umpa` wants it, in one value.

#![allow(unsafe_code)] // reason: passes on the preconditions of its parts

use umpa::hardware::{Checksum, Contents, Exchanged, FrameSource, TableMemory, Tlb};
use umpa_abi::addr::{Frame, Page};
use umpa_abi::boot::BootInfo;
use umpa_abi::exchange::{Extent, Policy};

use crate::block::Disk;
use crate::call::Hypervisor;
use crate::mmu::{DirectContents, DirectTables};
use crate::tlb::LocalTlb;

/// Tables, translation caches and the hypervisor. There is one for each vCPU.
#[derive(Debug)]
pub struct Machine {
    /// Entries of page tables.
    pub tables: DirectTables,
    /// Flushes.
    pub tlb: LocalTlb,
    /// The frame exchange.
    pub hypervisor: Hypervisor,
    /// The block device, if there is one. Whoever keeps pages in it takes it.
    pub disk: Option<Disk>,
    zeroed_frames: u64,
}

impl Machine {
    /// The machine that `boot` describes.
    ///
    /// # Safety
    /// `boot` describes this machine, and this is its only `Machine`.
    #[must_use]
    pub unsafe fn new(boot: &BootInfo) -> Self {
        // SAFETY: all preconditions are the caller's.
        let (tables, tlb, disk) = unsafe { (DirectTables::new(boot), LocalTlb::new(boot), Disk::new(boot)) };
        Self { tables, tlb, hypervisor: Hypervisor::new(), disk, zeroed_frames: 0 }
    }

    /// Frames zeroed so far by this program.
    #[must_use]
    pub const fn zeroed_frames(&self) -> u64 {
        self.zeroed_frames
    }
}

impl TableMemory for Machine {
    #[inline]
    fn read(&self, table: Frame, index: usize) -> u64 {
        self.tables.read(table, index)
    }
    #[inline]
    fn write(&mut self, table: Frame, index: usize, entry: u64) {
        self.tables.write(table, index, entry);
    }
    #[inline]
    fn write_first(&mut self, table: Frame, index: usize, entry: u64) {
        self.tables.write_first(table, index, entry);
    }
    fn write_by_flush(&mut self, table: Frame, index: usize, entry: u64) {
        if !self.tlb.flushes_with_stores() {
            return self.tables.write(table, index, entry);
        }
        if !self.tables.hold(table, index, entry) {
            self.flush_all();
            self.write_by_flush(table, index, entry);
        }
    }
}

impl Tlb for Machine {
    fn flush_page(&mut self, page: Page) {
        if self.tables.has_held() { self.flush_all() } else { self.tlb.flush_page(page) }
    }
    fn flush_all(&mut self) {
        // SAFETY: the places are entries of the arena's tables, as `hold` has checked, and `umpa` writes only
        // what its owners want of memory.
        unsafe { self.tlb.store_and_flush(self.tables.take_held()) }
    }
    fn full_from_pages(&self) -> u64 {
        self.tlb.full_from_pages()
    }
}

impl FrameSource for Machine {
    fn exchange(
        &mut self,
        give: &[Extent],
        want_pages: [u64; 3],
        policy: Policy,
        granted: &mut dyn FnMut(Extent),
    ) -> Exchanged {
        self.hypervisor.exchange(give, want_pages, policy, granted)
    }
}

impl Contents for Machine {
    fn zero(&mut self, first: Frame, frames: u64) {
        self.zeroed_frames += frames;
        DirectContents.zero(first, frames);
    }
    fn copy(&mut self, from: Frame, to: Frame, frames: u64) {
        DirectContents.copy(from, to, frames);
    }
}

impl Checksum for Machine {
    fn checksum(&self, frame: Frame) -> u64 {
        DirectContents.checksum(frame)
    }
}
