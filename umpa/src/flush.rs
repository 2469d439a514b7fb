//! Flushes as obligations.
//!
//! Whatever takes a translation away returns a [`Flush`]: the pages whose cached translations are
//! stale now. It can be completed at once ([`Flush::complete`]) or deferred ([`Flush::defer`]) into
//! an [`Owed`], which one flush of everything settles for thousands of frees (design decision 5).
//!
//! What stays unusable until then is in types: frames are [`StaleRun`]s, and the stores of frames,
//! tables and addresses open their quarantines only for a [`FlushedAll`], which only
//! [`Owed::settle`] makes. How many pages are owed is [`Owed::pages`].
//!
//! Source: SDM vol. 3A, 4.10.4 (what must be invalidated) and 4.10.4.1 (INVLPG also drops all
//! paging-structure caches of the current PCID). New mappings of absent pages owe nothing
//! (4.10.4.3), as absent entries aren't cached.

use crate::frames::{OwnedRun, StaleRun};
use crate::hardware::Tlb;
use umpa_abi::addr::Page;

/// Cached translations of some pages are stale. Must be completed or deferred.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "stale translations stay until the flush is completed, or deferred to one that will be"]
pub struct Flush {
    first: Page,
    pages: u64,
}

impl Flush {
    /// The obligation to flush `pages` from `first`.
    pub(crate) const fn new(first: Page, pages: u64) -> Self {
        Self { first, pages }
    }

    /// Pages to flush.
    #[must_use]
    pub const fn pages(&self) -> u64 {
        self.pages
    }

    /// Flushes now, and returns the frames that were stale because of it.
    pub fn complete(self, stale: StaleRun, tlb: &mut impl Tlb) -> OwnedRun {
        self.complete_only(tlb);
        stale.settled()
    }

    /// Flushes now, where no frame became stale (after a change of permissions, say).
    pub fn complete_only(self, tlb: &mut impl Tlb) {
        tlb.flush_range(self.first, self.pages);
    }

    /// Flushes several now, as one if they are large together.
    pub fn complete_together<const N: usize>(flushes: [Self; N], tlb: &mut impl Tlb) {
        if flushes.iter().map(Self::pages).sum::<u64>() >= tlb.full_from_pages() {
            tlb.flush_all();
        } else {
            flushes.into_iter().for_each(|flush| flush.complete_only(tlb));
        }
    }

    /// Leaves the flush to the next [`Owed::settle`].
    pub fn defer(self, owed: &mut Owed) {
        owed.pages += self.pages;
    }
}

/// Flushes that are made together: page by page where they are few, else everything, once.
#[derive(Debug)]
#[must_use = "stale translations stay until the flushes are completed, or deferred to one that will be"]
pub struct FlushBatch {
    ranges: [(Page, u64); RANGES],
    len: usize,
    pages: u64,
    all: bool,
}

/// Ranges that a [`FlushBatch`] tells apart. With more of them it flushes everything.
const RANGES: usize = 32;

impl FlushBatch {
    /// Nothing to flush.
    pub const fn new() -> Self {
        Self { ranges: [(Page::new(0), 0); RANGES], len: 0, pages: 0, all: false }
    }

    /// Adds a flush.
    pub fn add(&mut self, flush: Flush) {
        let Flush { first, pages } = flush;
        self.pages += pages;
        let last = self.len.checked_sub(1).map(|last| &mut self.ranges[last]);
        match last {
            _ if pages == 0 => {}
            Some((start, len)) if start.offset(*len) == first => *len += pages,
            _ if self.len == RANGES => self.all = true,
            _ => {
                self.ranges[self.len] = (first, pages);
                self.len += 1;
            }
        }
    }

    /// Pages to flush.
    #[must_use]
    pub const fn pages(&self) -> u64 {
        self.pages
    }

    /// True when everything will be flushed, as that is cheaper.
    #[must_use]
    pub fn is_all(&self, tlb: &impl Tlb) -> bool {
        self.all || self.pages >= tlb.full_from_pages()
    }

    /// Flushes now.
    pub fn complete(self, tlb: &mut impl Tlb) {
        if self.is_all(tlb) {
            return tlb.flush_all();
        }
        for &(first, pages) in &self.ranges[..self.len] {
            tlb.flush_range(first, pages);
        }
    }

    /// Leaves the flushes to the next [`Owed::settle`].
    pub fn defer(self, owed: &mut Owed) {
        owed.pages += self.pages;
    }
}

impl Default for FlushBatch {
    fn default() -> Self {
        Self::new()
    }
}

/// Flushes owed: all deferred ones together.
#[derive(Debug, Default)]
pub struct Owed {
    pages: u64,
    settled: u64,
}

impl Owed {
    /// Nothing owed.
    #[must_use]
    pub const fn new() -> Self {
        Self { pages: 0, settled: 0 }
    }

    /// Pages whose translations may be stale.
    #[must_use]
    pub const fn pages(&self) -> u64 {
        self.pages
    }

    /// How often everything was flushed.
    #[must_use]
    pub const fn settled(&self) -> u64 {
        self.settled
    }

    /// Flushes everything, once.
    pub fn settle(&mut self, tlb: &mut impl Tlb) -> FlushedAll {
        tlb.flush_all();
        self.pages = 0;
        self.settled += 1;
        FlushedAll(())
    }
}

/// When a flush is made that a call owes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Due {
    /// Before the call returns.
    #[default]
    AtOnce,
    /// At the end of the batch that the call belongs to ([`batch`](crate::batch)).
    AtEnd,
}

/// Proof that all translations were flushed just now: opens the quarantines.
#[derive(Debug)]
pub struct FlushedAll(());

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::frames::Run;
    use std::vec::Vec;
    use umpa_abi::addr::Frame;

    #[derive(Default)]
    struct Log {
        pages: Vec<u64>,
        all: u32,
    }

    impl Tlb for Log {
        fn flush_page(&mut self, page: Page) {
            self.pages.push(page.get());
        }
        fn flush_all(&mut self) {
            self.all += 1;
        }
    }

    #[test]
    fn few_pages_are_flushed_one_by_one() {
        let mut tlb = Log::default();
        let owned = Flush::new(Page::new(7), 3).complete(Run::new(Frame::new(9), 3), &mut tlb);
        assert_eq!((owned.first(), owned.end()), (Frame::new(9), Frame::new(12)));
        assert_eq!((tlb.pages, tlb.all), ([7, 8, 9].to_vec(), 0));
    }

    #[test]
    fn many_pages_are_flushed_together() {
        let mut tlb = Log::default();
        let many = tlb.full_from_pages();
        Flush::new(Page::new(7), many).complete_only(&mut tlb);
        assert_eq!((tlb.pages.len(), tlb.all), (0, 1));
        Flush::new(Page::new(7), 0).complete_only(&mut tlb);
        assert_eq!((tlb.pages.len(), tlb.all), (0, 1));
        let half = many / 2;
        Flush::complete_together([Flush::new(Page::new(7), half), Flush::new(Page::new(99), many)], &mut tlb);
        assert_eq!((tlb.pages.len(), tlb.all), (0, 2));
        Flush::complete_together([Flush::new(Page::new(7), 1), Flush::new(Page::new(99), 1)], &mut tlb);
        assert_eq!((tlb.pages, tlb.all), ([7, 99].to_vec(), 2));
    }

    #[test]
    fn a_batch_takes_the_cheaper_way() {
        let batch = |flushes: &[(u64, u64)]| {
            let mut batch = FlushBatch::new();
            flushes.iter().for_each(|&(first, pages)| batch.add(Flush::new(Page::new(first), pages)));
            let (mut tlb, pages) = (Log::default(), batch.pages());
            batch.complete(&mut tlb);
            (pages, tlb.pages, tlb.all)
        };
        assert_eq!(batch(&[]), (0, [].to_vec(), 0));
        assert_eq!(batch(&[(7, 2), (9, 1), (3, 0), (1, 1)]), (4, [7, 8, 9, 1].to_vec(), 0));
        assert_eq!(batch(&[(7, 20), (90, 20)]), (40, [].to_vec(), 1));
        let apart: Vec<(u64, u64)> = (0..33).map(|at| (3 * at, 1)).collect();
        assert_eq!(batch(&apart[..32]).2, 0);
        assert_eq!(batch(&apart), (33, [].to_vec(), 1));
        let mut owed = Owed::new();
        let mut deferred = FlushBatch::new();
        deferred.add(Flush::new(Page::new(0), 5));
        deferred.defer(&mut owed);
        assert_eq!(owed.pages(), 5);
    }

    #[test]
    fn one_flush_settles_all_that_were_deferred() {
        let (mut tlb, mut owed) = (Log::default(), Owed::new());
        Flush::new(Page::new(0), 5).defer(&mut owed);
        Flush::new(Page::new(99), 6).defer(&mut owed);
        assert_eq!((owed.pages(), owed.settled()), (11, 0));
        let _: FlushedAll = owed.settle(&mut tlb);
        assert_eq!((owed.pages(), owed.settled(), tlb.all), (0, 1, 1));
    }
}
