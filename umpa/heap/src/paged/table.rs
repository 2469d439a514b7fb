//! Metadata: an array in addresses of its own, backed from its beginning as far as it is used.
//!
//! Invariant: entries below `len` are backed, and were written: with zeros first. An entry costs memory
//! from the first page that holds it on, and keeps it until the heap ends.

#![allow(unsafe_code)] // reason: reads and writes memory that `umpa` has mapped

use core::marker::PhantomData;
use core::ptr::with_exposed_provenance_mut;

use umpa::blocks::{Machine, Umpa};
use umpa_abi::addr::{Gva, PAGE_BYTES};

use super::Short;

/// Types of which all zeros are a value.
pub(super) trait Zeroable: Copy {}
impl Zeroable for u64 {}

/// See the [module](self).
pub(super) struct Table<T> {
    base: Gva,
    backed_bytes: u64,
    of: PhantomData<T>,
}

impl<T: Zeroable> Table<T> {
    /// Bytes of addresses for `len` entries.
    pub(super) const fn bytes(len: u64) -> u64 {
        (len * size_of::<T>() as u64).next_multiple_of(PAGE_BYTES)
    }

    /// Without entries, from `base` on: whole pages of a window that nobody else uses or ends.
    pub(super) const fn new(base: Gva) -> Self {
        Self { base, backed_bytes: 0, of: PhantomData }
    }

    /// Entries that can be used.
    pub(super) const fn len(&self) -> u64 {
        self.backed_bytes / size_of::<T>() as u64
    }

    /// Frames that [`Self::extend`] takes.
    pub(super) const fn missing_frames(&self, len: u64) -> u64 {
        Self::bytes(len).saturating_sub(self.backed_bytes) / PAGE_BYTES
    }

    /// Sees to it that `len` entries can be used; new ones are zero. Counts the frames that this takes.
    pub(super) fn extend<M: Machine>(
        &mut self,
        umpa: &mut Umpa<'_, M>,
        len: u64,
        frames: &mut u64,
    ) -> Result<(), Short> {
        let missing_bytes = self.missing_frames(len) * PAGE_BYTES;
        if missing_bytes == 0 {
            return Ok(());
        }
        let at = self.base.get() + self.backed_bytes;
        *frames += umpa.userpage_commit(Gva::new(at), missing_bytes).map_err(|_| Short)?;
        let start: *mut u8 = with_exposed_provenance_mut(at as usize);
        // SAFETY: the range is backed now, and nobody else's.
        unsafe { start.write_bytes(0, missing_bytes as usize) };
        self.backed_bytes += missing_bytes;
        Ok(())
    }

    #[inline]
    pub(super) fn get(&self, index: u64) -> T {
        // SAFETY: the entry is backed (checked by `place`), was written, and nobody else uses it.
        unsafe { self.place(index).read() }
    }

    #[inline]
    pub(super) fn set(&mut self, index: u64, value: T) {
        // SAFETY: as in `get`.
        unsafe { self.place(index).write(value) }
    }

    #[inline]
    fn place(&self, index: u64) -> *mut T {
        assert!(index < self.len(), "entry {index} of a table with {}", self.len());
        with_exposed_provenance_mut(self.base.get() as usize + index as usize * size_of::<T>())
    }
}
