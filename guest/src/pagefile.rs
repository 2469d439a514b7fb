//! Paged regions in a guest: `umpa`'s pager behind the page faults of a program.
//!
//! [`scope`](crate::fault::scope) lends a [`Paged`] to the fault path; while it does, the program uses
//! the region like any memory, and what isn't there comes in. What can't be had is an error:
//!
//! - by value, where the program asks before it uses a range: [`Paged::touch`] within
//!   [`Scope::pause`](crate::fault::Scope::pause);
//! - at a bare access, which can't return one, it is printed with its addresses and the guest ends, as
//!   a process does with SIGBUS.
//!
//! Bookkeeping is in blocks of `umpa`'s: 32 bytes a page, 8 a slot, never given back.

#![allow(unsafe_code)] // reason: makes slices of blocks

use umpa::pagefile::{self, Config, Memory, OpenError, PageFileError, PageRecord, Pager, Policy};
use umpa_abi::addr::{Gva, PAGE_BYTES};
use work::paging::Words;

use crate::block::Disk;
use crate::fault::{Access, Cause, Fault, Handled, Handler};
use crate::userpage::Allocator;

pub use umpa::pagefile::Node;

/// `len` values in a block that is never freed. `None` when there is no memory.
pub fn lasting<T: Copy + Default>(umpa: &mut Allocator<'_>, len: usize) -> Option<&'static mut [T]> {
    let bytes = len.max(1).checked_mul(size_of::<T>())?;
    let block = umpa.userpage_malloc(bytes as u64).ok()?;
    let first = block.get() as *mut T;
    for at in 0..len {
        // SAFETY: the block has room for `len` values, is aligned to a page, and is nobody else's.
        unsafe { first.add(at).write(T::default()) };
    }
    // SAFETY: as above, and all values were written. The block is never freed: its address goes no
    // further, and blocks stay mapped as long as they live.
    Some(unsafe { core::slice::from_raw_parts_mut(first, len) })
}

/// Bookkeeping for a region of `pages` pages and a file of `slots`.
pub fn memory(umpa: &mut Allocator<'_>, pages: u64, slots: u64) -> Option<Memory<'static>> {
    Some(Memory {
        records: lasting::<PageRecord>(umpa, pages as usize)?,
        nodes: lasting::<Node>(umpa, pages as usize)?,
        slots: lasting::<u64>(umpa, slots as usize)?,
    })
}

/// A region, its file and the allocator that it has its frames from.
pub struct Paged<'u, 'm, P> {
    /// The allocator.
    pub umpa: &'u mut Allocator<'m>,
    /// The region.
    pub pager: Pager<'static, &'u mut Disk, P>,
}

impl<'u, 'm, P: Policy> Paged<'u, 'm, P> {
    /// A region of `pages` pages.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(
        umpa: &'u mut Allocator<'m>,
        disk: &'u mut Disk,
        memory: Memory<'static>,
        policy: P,
        config: Config,
        pages: u64,
    ) -> Result<Self, OpenError> {
        let pager = Pager::open(umpa, memory, disk, policy, config, pages * PAGE_BYTES)?;
        Ok(Self { umpa, pager })
    }

    /// Brings each page of the range in, one after another; errors come by value.
    ///
    /// # Errors
    /// [`PageFileError`] of the first page that can't be had.
    pub fn touch(&mut self, gva: Gva, bytes: u64, access: pagefile::Access) -> Result<(), PageFileError> {
        self.pager.touch(self.umpa, gva, bytes, access)
    }

    /// The region for measured work, to be used within a [`scope`](crate::fault::scope).
    #[must_use]
    pub fn words(&self) -> Words {
        // SAFETY: the region is the program's, and stays reserved: `close` needs `self`, whose pager the
        // caller keeps while it works. Whatever isn't mapped faults and is mapped, or the guest ends.
        unsafe { Words::new(self.pager.start().get() as *mut u64, self.pager.bytes() / PAGE_BYTES) }
    }

    /// Ends the region.
    ///
    /// # Errors
    /// [`PageFileError::Lost`].
    pub fn close(mut self) -> Result<(), PageFileError> {
        self.pager.close(self.umpa)
    }
}

impl<P: Policy> Handler for Paged<'_, '_, P> {
    fn page_fault(&mut self, fault: &Fault) -> Handled {
        let access = match fault.access() {
            Access::Write => pagefile::Access::Write,
            Access::Read => pagefile::Access::Read,
            // The region's pages aren't executable.
            Access::Fetch => return Handled::NotMine,
        };
        if fault.cause() != Cause::NotPresent || !self.pager.contains(fault.address()) {
            return Handled::NotMine;
        }
        match self.pager.fault(self.umpa, fault.address(), access) {
            Ok(_) => Handled::Retry,
            Err(error) => {
                println!("page file: {error}");
                Handled::NotMine
            }
        }
    }
}
