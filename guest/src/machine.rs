//! The hardware of one vCPU as `umpa` wants it, in one value.

#![allow(unsafe_code)] // reason: passes on the preconditions of its parts

use umpa_abi::boot::BootInfo;

use crate::call::Hypervisor;
use crate::mmu::DirectTables;
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
}

impl Machine {
    /// The machine that `boot` describes.
    ///
    /// # Safety
    /// `boot` describes this machine, and this is its only `Machine`.
    #[must_use]
    pub unsafe fn new(boot: &BootInfo) -> Self {
        // SAFETY: both preconditions are the caller's.
        let (tables, tlb) = unsafe { (DirectTables::new(boot), LocalTlb::new(boot)) };
        Self { tables, tlb, hypervisor: Hypervisor::new() }
    }
}
