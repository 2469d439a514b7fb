//! Blocks, views and images as values in a guest program: [`umpa_heap::Pages`], with the page faults of
//! its ranges handled.

#![allow(unsafe_code)] // reason: vouches for the machine's memory

use umpa::snapshot::SnapshotFault;
use umpa_heap::Pages;

use crate::fault::{self, Fault, Handled, Handler};
use crate::machine::Machine;
use crate::userpage::Allocator;

/// Pages on the allocator of a program.
pub type GuestPages<'u, 'm> = Pages<'u, 'static, &'m mut Machine>;

/// Copies on write.
struct Copies<'p, 'u, 'm> {
    pages: &'p GuestPages<'u, 'm>,
}

impl Handler for Copies<'_, '_, '_> {
    fn page_fault(&mut self, fault: &Fault) -> Handled {
        match self.pages.fault(fault.address(), fault.access()) {
            Ok(SnapshotFault::Copied | SnapshotFault::Opened | SnapshotFault::Spurious) => Handled::Retry,
            // No range's, or there is no frame for the copy: the report names the address.
            Ok(SnapshotFault::NotMine) | Err(_) => Handled::NotMine,
        }
    }
}

/// Runs `program` with pages whose ranges are copied on write.
///
/// The program and the handler have the pages at the same time: a call that a fault interrupts can't be
/// ([`Pages`] says why).
///
/// # Panics
/// From within a handler.
pub fn with<T>(umpa: &mut Allocator<'_>, program: impl FnOnce(&GuestPages<'_, '_>) -> T) -> T {
    // SAFETY: such an allocator is the guest's only one and is made of what the VMM handed to it
    // (`userpage::allocator`), on the machine that the program runs on.
    let pages = unsafe { Pages::new(umpa) };
    fault::scope(&mut Copies { pages: &pages }, |_| program(&pages))
}
