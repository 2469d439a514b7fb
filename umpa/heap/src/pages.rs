//! Pages that many values share: what [`Block`](crate::Block), [`View`](crate::View),
//! [`Snapshot`](crate::Snapshot) and their like are made from.
//!
//! [`Pages`] holds the page allocator for as long as such values live, and lends it to one call at a
//! time. The values own what they stand for and end it when they are dropped; their content is reached
//! by references, so that no address goes out of use while somebody looks at it.
//!
//! It is also an allocator of the ecosystem's collections ([`Allocator`](allocator_api2::alloc::Allocator)): each of its
//! blocks is made of whole pages, so it is for few large collections. They grow by page tables, without
//! copies.
//!
//! # Why references are allowed
//!
//! Tables are to this module what a device's registers are to a driver: volatile stores to them change
//! which memory is where. What Rust's rules of aliasing need:
//!
//! - *No two writable slices of the same frame.* A frame is at one address of one owner, or its pages are a
//!   view's, which is read and written by volatile accesses only ([`view`](crate::view)), or a
//!   ring's, which shows each of its frames once in any slice that it gives out ([`ring`](crate::ring)).
//!   An image shares frames with its range, but none of them can be written to: a write makes a copy first.
//! - *Memory under a reference stays where it is, and mapped.* What unmaps, moves or exchanges pages takes the
//!   owner by `&mut` or by value. Addresses without memory are never under a reference
//!   ([`Reserved`](crate::Reserved)).
//! - *Content doesn't change under a shared reference.* Exchanges and restores take `&mut`. A copy on
//!   write changes the frame, and not the content.
//! - *Each byte has a value.* Frames come from the hypervisor, with content, and from earlier owners.
//!   No content is taken for undefined: elements are [`Plain`], so that any bytes are
//!   values.
//! - *The compiler knows that memory changed.* Each call begins and ends with a compiler fence: accesses
//!   to memory aren't moved over it, and what was read before isn't taken for what is there now, as with
//!   memory that a device or a signal handler writes to. Pointers come from addresses, by exposed
//!   provenance.
//!
//! # Page faults
//!
//! A range with images is written to by ordinary stores; the first one to a page faults. Whoever handles page
//! faults asks [`Pages::fault`], by a reference to the same pages: nothing has to be taken back for it.
//! That may interrupt the program anywhere but in a call, since a call touches no range. Were it otherwise it
//! would be told so ([`PagesError::Busy`]).
//!
//! # Invariants
//!
//! - busy exactly while a call runs; there is one at a time;
//! - a range that images can be made of is in one place of the list (`pages/ranges.rs`) until it ends.
//!
//! Cost: that of `umpa`'s calls, and one call through a table of functions: so values name neither the machine
//! nor its lifetimes.

#![allow(unsafe_code)] // reason: lends one allocator to many values

mod allocator;
mod below;
mod error;
mod ranges;

pub use error::PagesError;

use core::cell::UnsafeCell;
use core::fmt;
use core::ptr::{NonNull, with_exposed_provenance_mut};
use core::sync::atomic::{AtomicBool, Ordering::Relaxed, Ordering::SeqCst, compiler_fence};

use umpa::blocks::{Machine, Umpa};
use umpa::frames::Moved;
use umpa::hardware::Contents;
use umpa::snapshot::SnapshotFault;
use umpa::watch::Access;
use umpa_abi::addr::{Gva, PAGE_BYTES};

use crate::Plain;
pub(crate) use below::{Below, window_pages};
pub(crate) use ranges::Place;
use ranges::Ranges;

struct Inside<'u, 'a, M: Machine> {
    umpa: &'u mut Umpa<'a, M>,
    ranges: Ranges,
}

/// See the [module](self).
pub struct Pages<'u, 'a, M: Machine + Contents> {
    busy: AtomicBool,
    inside: UnsafeCell<Inside<'u, 'a, M>>,
}

impl<'u, 'a, M: Machine + Contents> Pages<'u, 'a, M> {
    /// Lends an allocator to values.
    ///
    /// # Safety
    /// What `umpa` maps is memory of this program: its tables are those that the processor uses, its frames
    /// exist and are nobody else's, flushes take effect before they return, and nobody else changes the
    /// tables. (An allocator on a simulated machine doesn't qualify.) Nobody uses memory that `umpa` has for
    /// free, nor what [`Block::from_raw`](crate::Block::from_raw) doesn't ask for.
    #[must_use]
    pub unsafe fn new(umpa: &'u mut Umpa<'a, M>) -> Self {
        let inside = UnsafeCell::new(Inside { umpa, ranges: Ranges::new() });
        Self { busy: AtomicBool::new(false), inside }
    }

    /// What a page fault means to the ranges on these pages. Called by who handles page faults; see the
    /// [module](self).
    ///
    /// # Errors
    /// [`PagesError::Snapshot`]: no frame for the copy. The page can still be read; if there will be a frame the
    /// access can be tried again. [`PagesError::Busy`]: a fault within a call, which is a defect.
    pub fn fault(&self, gva: Gva, access: Access) -> Result<SnapshotFault, PagesError> {
        self.call(|inside| match inside.ranges.holding(gva) {
            Some(range) => Ok(inside.umpa.snapshot_fault(range, gva, access)?),
            None => Ok(SnapshotFault::NotMine),
        })
    }

    /// Asks the hypervisor for frames before they are needed.
    ///
    /// # Errors
    /// [`PagesError::Busy`].
    pub fn preload(&self, frames: u64) -> Result<Moved, PagesError> {
        self.call(|inside| Ok(inside.umpa.preload(frames)))
    }

    /// Gives free frames back to the hypervisor: after a flush, if there are too few without.
    ///
    /// # Errors
    /// [`PagesError::Busy`].
    pub fn drain(&self, frames: u64) -> Result<Moved, PagesError> {
        self.call(|inside| {
            if inside.umpa.frames().free_frames() < frames {
                inside.umpa.settle();
            }
            Ok(inside.umpa.drain(frames))
        })
    }

    /// Flushes everything that is owed; what waited for it becomes free.
    ///
    /// # Errors
    /// [`PagesError::Busy`].
    pub fn settle(&self) -> Result<(), PagesError> {
        self.call(|inside| {
            inside.umpa.settle();
            Ok(())
        })
    }

    /// Shows the page allocator. To look at only: whoever could change it could unmap blocks.
    ///
    /// # Errors
    /// [`PagesError::Busy`].
    pub fn inspect<T>(&self, look: impl FnOnce(&Umpa<'a, M>) -> T) -> Result<T, PagesError> {
        self.call(|inside| Ok(look(inside.umpa)))
    }

    /// Begins a call, and ends it.
    fn call<T>(
        &self,
        does: impl FnOnce(&mut Inside<'u, 'a, M>) -> Result<T, PagesError>,
    ) -> Result<T, PagesError> {
        // One processor: an interrupting handler finds it set, or ends before this goes on.
        if self.busy.load(Relaxed) {
            return Err(PagesError::Busy);
        }
        self.busy.store(true, Relaxed);
        compiler_fence(SeqCst);
        // SAFETY: the value isn't `Sync`, and `busy` was clear: nobody else has a reference to it. A
        // handler that interrupts is refused above.
        let result = does(unsafe { &mut *self.inside.get() });
        compiler_fence(SeqCst);
        self.busy.store(false, Relaxed);
        result
    }
}

impl<M: Machine + Contents> Drop for Pages<'_, '_, M> {
    /// The values that borrow it are gone. A range that was forgotten keeps its frames.
    fn drop(&mut self) {
        let Inside { umpa, ranges } = self.inside.get_mut();
        ranges.clear(umpa);
    }
}

impl<M: Machine + Contents> fmt::Debug for Pages<'_, '_, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pages").finish_non_exhaustive()
    }
}

/// The memory at an address. Windows and the direct map begin far above 0.
pub(crate) fn memory_at<T>(gva: Gva) -> NonNull<T> {
    // What the compiler knows about the memory behind it, it has to forget.
    let memory = core::hint::black_box(with_exposed_provenance_mut(gva.get() as usize));
    NonNull::new(memory).expect("no block lies at 0")
}

/// Where memory is.
pub(crate) fn address_of<T>(memory: NonNull<T>) -> Gva {
    Gva::new(memory.as_ptr().expose_provenance() as u64)
}

/// Bytes of so many elements.
pub(crate) fn bytes_of<T: Plain>(len: usize) -> Result<u64, PagesError> {
    const { assert!(align_of::<T>() <= PAGE_BYTES as usize, "elements are aligned to a page at most") };
    let bytes = len.checked_mul(size_of::<T>()).filter(|&bytes| bytes > 0 && bytes <= isize::MAX as usize);
    bytes.map(|bytes| bytes as u64).ok_or(PagesError::BadLength { len })
}

/// Two values on the same pages, or an error.
pub(crate) fn same_pages(one: &dyn Below, other: &dyn Below) -> Result<(), PagesError> {
    if core::ptr::addr_eq(one, other) { Ok(()) } else { Err(PagesError::OtherPages) }
}
