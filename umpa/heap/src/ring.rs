//! A queue of bytes that wraps by address.
//!
//! Its pages are mapped twice in a row, so what is in it, and what is free, is one slice each, wherever it
//! begins: no record has to be written or read in two parts.
//!
//! ```text
//!          0                capacity          2 * capacity
//! frames   │ 0  1  2  3  …  n-1 │ 0  1  2  3  …  n-1 │
//!              ▲ head ── filled ── ▲ ── free ── ▲
//! ```
//!
//! Invariants: `head < capacity`, `filled <= capacity`. A slice has at most `capacity` bytes, so it shows
//! each byte of the frames once; no two live slices do otherwise, as those that can be written borrow the ring
//! by `&mut`.
//!
//! A byte that was written at one address is read at another later. In between is a compiler fence, as all that
//! changes addresses ([`Ring::produce`], [`Ring::consume`]) or gives a slice to write takes `&mut` and
//! has one: see [`pages`](crate::pages).

#![allow(unsafe_code)] // reason: slices of memory that is shown twice

use core::slice;
use core::sync::atomic::{Ordering::SeqCst, compiler_fence};

use umpa::blocks::Machine;
use umpa::hardware::Contents;
use umpa::view::Rights;
use umpa_abi::addr::PAGE_BYTES;

use crate::pages::{Below as _, memory_at};
use crate::{Pages, PagesError, View};

/// See the [module](self).
#[derive(Debug)]
pub struct Ring<'p> {
    view: View<'p>,
    head: usize,
    filled: usize,
}

impl<'p> Ring<'p> {
    /// An empty ring of `page_count` pages.
    ///
    /// # Errors
    /// [`PagesError::View`].
    pub fn new<M: Machine + Contents>(
        pages: &'p Pages<'_, '_, M>,
        page_count: usize,
    ) -> Result<Self, PagesError> {
        let view = View::of(pages, pages.view_ring(page_count as u64)?, Rights::Write);
        Ok(Self { view, head: 0, filled: 0 })
    }

    /// Bytes that fit in.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.view.page_count() / 2 * PAGE_BYTES as usize
    }

    /// Bytes in it.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.filled
    }

    /// There are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.filled == 0
    }

    /// All bytes in it, in order.
    #[must_use]
    pub fn filled(&self) -> &[u8] {
        // SAFETY: `head + filled < 2 * capacity`, all of which is mapped; at most `capacity` bytes, so no
        // frame twice. Nobody writes while the ring is borrowed, and what was written was fenced.
        unsafe { slice::from_raw_parts(self.at(self.head), self.filled) }
    }

    /// All bytes in it, in order, to change.
    #[must_use]
    pub fn filled_mut(&mut self) -> &mut [u8] {
        compiler_fence(SeqCst);
        // SAFETY: as in `filled`, and the ring is borrowed.
        unsafe { slice::from_raw_parts_mut(self.at(self.head), self.filled) }
    }

    /// The free part: what is written to its start is [produced](Self::produce) next. It contains whatever
    /// the memory held.
    #[must_use]
    pub fn free_mut(&mut self) -> &mut [u8] {
        compiler_fence(SeqCst);
        let capacity = self.capacity();
        // SAFETY: it begins below `2 * capacity`; modulo `capacity` it does so below that, and it has at most
        // `capacity` bytes: all mapped, no frame twice, and the ring is borrowed.
        unsafe {
            slice::from_raw_parts_mut(self.at((self.head + self.filled) % capacity), capacity - self.filled)
        }
    }

    /// The first `bytes` bytes of the free part are in it now.
    ///
    /// # Panics
    /// When they aren't free.
    pub fn produce(&mut self, bytes: usize) {
        assert!(bytes <= self.capacity() - self.filled, "{bytes} bytes more than are free");
        compiler_fence(SeqCst);
        self.filled += bytes;
    }

    /// The first `bytes` bytes leave.
    ///
    /// # Panics
    /// When there are fewer.
    pub fn consume(&mut self, bytes: usize) {
        assert!(bytes <= self.filled, "{bytes} bytes of {}", self.filled);
        compiler_fence(SeqCst);
        self.head = (self.head + bytes) % self.capacity();
        self.filled -= bytes;
    }

    /// Copies as many bytes in as fit. Returns how many.
    pub fn push(&mut self, bytes: &[u8]) -> usize {
        let free = self.free_mut();
        let count = bytes.len().min(free.len());
        free[..count].copy_from_slice(&bytes[..count]);
        self.produce(count);
        count
    }

    /// Copies as many bytes out as there are. Returns how many.
    pub fn pop(&mut self, bytes: &mut [u8]) -> usize {
        let count = bytes.len().min(self.filled);
        bytes[..count].copy_from_slice(&self.filled()[..count]);
        self.consume(count);
        count
    }

    fn at(&self, offset: usize) -> *mut u8 {
        memory_at::<u8>(self.view.gva()).as_ptr().wrapping_add(offset)
    }
}
