//! Which page goes when a frame is wanted.
//!
//! A policy knows pages by their number in the region, and of their use only what the processor's A
//! bits tell: whether a page was used since somebody looked last. Looking costs a walk, and where page
//! tables are shadowed a fault at the next use, so policies look at few pages for each victim.
//!
//! | policy | keeps | known for |
//! | --- | --- | --- |
//! | [`Clock`](super::Clock) | one list | second chance; a scan of everything drives everything out |
//! | [`S3Fifo`](super::S3Fifo) | a short list, a long one, ghosts | what was used once leaves early |

/// Chooses victims. Pages are numbered from 0 in the region.
///
/// A page is in the policy's keeping from [`inserted`](Self::inserted) to the [`victim`](Self::victim)
/// that names it, or to [`removed`](Self::removed).
pub trait Policy {
    /// The page has a frame and can be accessed. It wasn't in the policy's keeping.
    fn inserted(&mut self, page: u32);

    /// The page to go next; it leaves the policy's keeping. `accessed` says whether a page was used
    /// since it was asked for last. `None` when there is none.
    fn victim(&mut self, accessed: &mut dyn FnMut(u32) -> bool) -> Option<u32>;

    /// The page's content was given up: nothing about it matters any more.
    fn removed(&mut self, page: u32);

    /// Pages in the policy's keeping.
    fn pages(&self) -> u32;

    /// Whether the access that brings a page in counts as a use of it.
    fn counts_arrival(&self) -> bool;

    /// Asserts its invariants. Linear; for tests.
    ///
    /// # Panics
    /// When one doesn't hold.
    fn check(&self) {}
}

impl<T: Policy + ?Sized> Policy for &mut T {
    fn inserted(&mut self, page: u32) {
        (**self).inserted(page);
    }
    fn victim(&mut self, accessed: &mut dyn FnMut(u32) -> bool) -> Option<u32> {
        (**self).victim(accessed)
    }
    fn removed(&mut self, page: u32) {
        (**self).removed(page);
    }
    fn pages(&self) -> u32 {
        (**self).pages()
    }
    fn counts_arrival(&self) -> bool {
        (**self).counts_arrival()
    }
    fn check(&self) {
        (**self).check();
    }
}
