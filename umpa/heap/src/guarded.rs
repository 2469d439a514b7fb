//! Guarded blocks as owners: each ends at an unmapped page, and a fault names it.
//!
//! [`umpa::guard`] says how. [`Guards`] makes [`GuardedBlock`]s, which are slices of bytes; after a block is
//! dropped its addresses stay unmapped for a while. Whoever handles page faults asks [`Guards::explain`] which
//! block an address belongs to. Safe code never gets there: this is for what is given to code that isn't.
//!
//! Invariants: those of [`umpa::guard`]; a block is live from its making to its drop.

#![allow(unsafe_code)] // reason: owns memory by its address

use core::cell::UnsafeCell;
use core::fmt;
use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;
use core::slice;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed, Ordering::SeqCst, compiler_fence};

use umpa::blocks::Machine;
use umpa::guard::Guard;
use umpa::hardware::Contents;
use umpa_abi::addr::Gva;

pub use umpa::guard::{Bounds, Detect, Explained, Record};

use crate::pages::{Below, address_of, memory_at};
use crate::{Pages, PagesError};

/// See the [module](self).
pub struct Guards<'p, 'g> {
    pages: &'p dyn Below,
    busy: AtomicBool,
    guard: UnsafeCell<Guard<'g>>,
}

impl<'p, 'g> Guards<'p, 'g> {
    /// Without blocks, with a record for each that is live or kept.
    #[must_use]
    pub fn new<M: Machine + Contents>(
        pages: &'p Pages<'_, '_, M>,
        records: &'g mut [Record],
        bounds: Bounds,
        detect: Detect,
    ) -> Self {
        let guard = UnsafeCell::new(Guard::new(records, bounds, detect));
        Self { pages, busy: AtomicBool::new(false), guard }
    }

    /// A block of `bytes` bytes at a multiple of `align_bytes`. It contains whatever the memory held.
    ///
    /// # Errors
    /// [`PagesError::Guard`], [`PagesError::Busy`].
    pub fn alloc(&self, bytes: usize, align_bytes: usize) -> Result<GuardedBlock<'_, 'p, 'g>, PagesError> {
        let (bytes_asked, align) = (bytes as u64, align_bytes as u64);
        let gva = self.call(|pages, guard| pages.guard_alloc(guard, bytes_asked, align))?;
        Ok(GuardedBlock { guards: self, start: memory_at(gva), len: bytes })
    }

    /// Which block an address belongs to, live or freed. May be asked by a handler of page faults.
    ///
    /// # Errors
    /// [`PagesError::Busy`].
    pub fn explain(&self, gva: Gva) -> Result<Option<Explained>, PagesError> {
        self.call(|pages, guard| pages.guard_explain(guard, gva))
    }

    /// Begins a call, and ends it.
    fn call<T>(
        &self,
        does: impl FnOnce(&dyn Below, &mut Guard<'g>) -> Result<T, PagesError>,
    ) -> Result<T, PagesError> {
        if self.busy.load(Relaxed) {
            return Err(PagesError::Busy);
        }
        self.busy.store(true, Relaxed);
        compiler_fence(SeqCst);
        // SAFETY: the value isn't `Sync`, and `busy` was clear: nobody else has a reference to it. A handler
        // that interrupts is refused above.
        let result = does(self.pages, unsafe { &mut *self.guard.get() });
        compiler_fence(SeqCst);
        self.busy.store(false, Relaxed);
        result
    }
}

impl Drop for Guards<'_, '_> {
    /// Gives the addresses of freed blocks up; live ones can't be, as they borrow it.
    fn drop(&mut self) {
        let done = self.call(|pages, guard| pages.guard_forget(guard));
        debug_assert!(done.is_ok(), "{done:?}");
    }
}

impl fmt::Debug for Guards<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guards").finish_non_exhaustive()
    }
}

/// Bytes that end at an unmapped page. See the [module](self).
pub struct GuardedBlock<'b, 'p, 'g> {
    guards: &'b Guards<'p, 'g>,
    start: NonNull<u8>,
    len: usize,
}

impl GuardedBlock<'_, '_, '_> {
    /// Its first address.
    #[must_use]
    pub fn gva(&self) -> Gva {
        address_of(self.start)
    }
}

impl Deref for GuardedBlock<'_, '_, '_> {
    type Target = [u8];
    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: the block has so many bytes, mapped and nobody else's until it is dropped.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for GuardedBlock<'_, '_, '_> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and the block is borrowed.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for GuardedBlock<'_, '_, '_> {
    fn drop(&mut self) {
        let freed = self.guards.call(|pages, guard| pages.guard_free(guard, address_of(self.start)));
        debug_assert!(freed.is_ok(), "{freed:?}");
    }
}

impl fmt::Debug for GuardedBlock<'_, '_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuardedBlock").field("start", &self.start).field("len", &self.len).finish()
    }
}
