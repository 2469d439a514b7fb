//! The page allocator below a heap, for a program that uses both.
//!
//! A program's pages and its heap are one allocator's. Rust code borrows it either for a heap or for
//! itself; C code has both at once, by pointers. What a heap keeps for itself (its state, its
//! segments, the windows of its segments and slabs) must be left alone by the other side, and can be told by address.

#![allow(unsafe_code)] // reason: lends what the heap has borrowed

use umpa::blocks::{Machine, Umpa};
use umpa::space::Slot;
use umpa_abi::addr::Gva;

use super::{Heap, HeapError, State};

impl<'a, M: Machine + Send> Heap<'_, 'a, M> {
    /// Lends the page allocator below.
    ///
    /// # Errors
    /// [`HeapError::Busy`].
    ///
    /// # Safety
    /// `work` leaves alone what the heap [keeps](Self::keeps), and blocks that others use.
    pub unsafe fn with_pages<T>(&self, work: impl FnOnce(&mut Umpa<'a, M>) -> T) -> Result<T, HeapError> {
        let mut inside = self.enter()?;
        let mut umpa = inside.segments().umpa();
        Ok(work(&mut umpa))
    }

    /// True for addresses in what the heap keeps for itself, whatever of it the program has as blocks: its
    /// state, its segment in the direct map, and windows of segments and slabs. A large block is `umpa`'s, and isn't kept.
    ///
    /// # Errors
    /// [`HeapError::Busy`].
    pub fn keeps(&self, gva: Gva) -> Result<bool, HeapError> {
        let mut inside = self.enter()?;
        let from_state = gva.get().wrapping_sub(self.state.addr().get() as u64);
        if from_state < size_of::<State<'_, '_, M>>() as u64 {
            return Ok(true);
        }
        // SAFETY: the state lives as long as the heap, and the slabs are no part of what `segments` borrows.
        let slabs = unsafe { &self.state.as_ref().slabs };
        let in_slab = Slot::containing(gva).is_some_and(|(slot, _)| slabs.holds(slot.page().start().get()));
        Ok(in_slab || inside.segments().keeps(gva))
    }
}
