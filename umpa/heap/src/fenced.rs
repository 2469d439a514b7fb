//! A call into an allocator: no access to memory is moved into it, out of it or over it.
//!
//! A call stores to page tables, which changes which memory is at an address; the compiler takes these
//! stores for ordinary ones. So there is a compiler fence at its beginning and at its end, as with memory that a
//! device or a signal handler writes to. Cost: no instruction.

use core::ops::{Deref, DerefMut};
use core::sync::atomic::{Ordering::SeqCst, compiler_fence};

/// What a call has borrowed.
pub(crate) struct Fenced<G>(G);

impl<G> Fenced<G> {
    /// The call begins.
    pub(crate) fn new(borrowed: G) -> Self {
        compiler_fence(SeqCst);
        Self(borrowed)
    }
}

impl<G: Deref> Deref for Fenced<G> {
    type Target = G::Target;
    fn deref(&self) -> &G::Target {
        &self.0
    }
}

impl<G: DerefMut> DerefMut for Fenced<G> {
    fn deref_mut(&mut self) -> &mut G::Target {
        &mut self.0
    }
}

impl<G> Drop for Fenced<G> {
    /// It ends; what was borrowed goes back after that.
    fn drop(&mut self) {
        compiler_fence(SeqCst);
    }
}
