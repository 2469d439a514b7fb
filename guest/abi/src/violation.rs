//! A violation that the guest hears of: with `vmm run --on-violation inject` an access to what isn't the
//! guest's own becomes a page fault, whose error code no processor makes.
//!
//! CR2 has the address that was accessed: exactly where bit P is set, as far as the VMM could find it where it
//! is clear. The instruction had no effect; if the handler returns it is executed again. So much for a store
//! that runs over the end of a page: what lies before the end may have been stored.
//!
//! Only the first vCPU hears of them: one of another vCPU ends the guest, with a report of what it touched.
//!
//! A jump to where no memory is at all is KVM's own #UD at CPL 3 with hardware's nested paging: it can't fetch
//! what it should emulate, and the VMM never hears of it.
//!
//! Source: SDM vol. 3A, figure 4-12 (bits 14..8 are reserved), and 26.3.1.3, by which bits 31..15 of an
//! injected error code must be zero.

/// Only violations have it.
pub const VIOLATION: u32 = 1 << 14;
/// P: the guest's tables lead to the frame. Clear: one of its tables isn't its own, or the address was
/// translated by an entry that its tables don't have any more.
pub const TRANSLATED: u32 = 1 << 0;
/// W/R: a store.
pub const WRITE: u32 = 1 << 1;
/// U/S: at CPL 3.
pub const USER: u32 = 1 << 2;
/// I/D: an instruction fetch.
pub const FETCH: u32 = 1 << 4;

/// The vector of page faults.
pub const VECTOR: u8 = 14;
