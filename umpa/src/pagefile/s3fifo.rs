//! S3-FIFO with A bits: a short list for newcomers, a long one for pages that proved themselves, and
//! the numbers of pages that left lately (ghosts).
//!
//! ```text
//!              not a ghost            used                      unused, uses = 0
//! arrival ───────────────► small ───────────────► main ─────────────────────────► out
//!    │                       │ unused             │  ▲
//!    │ a ghost               ▼                    └──┘ used: uses + 1; unused: uses - 1
//!    │                     ghost
//!    └──────────────────────────────────────────► main
//! ```
//!
//! A page that is used once, by a scan say, passes through the tenth that newcomers have; pages that
//! are used again and again stay through passes in which they aren't. Queues instead of the LRU order
//! suit A bits: nothing has to be done at an access.
//!
//! Invariants: `pages = small + main`; `ghosts ≤ frames`; a page is in one list at most.
//!
//! Source: J. Yang and others, *FIFO Queues are All You Need for Cache Eviction*, SOSP 2023, section 4.
//! Differs in that uses are counted when the list's end is reached, not at each access.

use super::list::{List, Node};
use super::policy::Policy;

/// Where a page is: the low two bits of its tag. The uses are above.
const NOWHERE: u32 = 0;
const SMALL: u32 = 1;
const MAIN: u32 = 2;
const GHOST: u32 = 3;
const PLACE: u32 = 3;
const ONE_USE: u32 = 4;
/// Most uses that are remembered.
const USES_MAX: u32 = 3;
/// Newcomers have one of so many frames.
const SMALL_SHARE: u32 = 10;
/// And never fewer than an instruction may need at once (two operands and the code, across page ends).
const SMALL_MIN: u32 = 8;

/// A short list for newcomers, a long one for pages that proved themselves, and ghosts: S3-FIFO (Yang and
/// others, SOSP 2023) with A bits.
#[derive(Debug)]
pub struct S3Fifo<'a> {
    nodes: &'a mut [Node],
    small: List,
    main: List,
    ghosts: List,
    frames: u32,
}

impl<'a> S3Fifo<'a> {
    /// A policy for as many pages as there are nodes, which are zeroed ([`Node::default`]), and `frames`
    /// frames.
    #[must_use]
    pub fn new(nodes: &'a mut [Node], frames: u32) -> Self {
        let empty = List::default();
        Self { nodes, small: empty, main: empty, ghosts: empty, frames }
    }

    /// Makes the first of the newcomers a veteran or a victim.
    fn try_small(&mut self, accessed: &mut dyn FnMut(u32) -> bool) -> Option<u32> {
        let page = self.small.pop(self.nodes)?;
        if accessed(page) {
            self.nodes[page as usize].tag = MAIN;
            self.main.push(self.nodes, page);
            return None;
        }
        self.nodes[page as usize].tag = GHOST;
        self.ghosts.push(self.nodes, page);
        if self.ghosts.len() > self.frames
            && let Some(oldest) = self.ghosts.pop(self.nodes)
        {
            self.nodes[oldest as usize].tag = NOWHERE;
        }
        Some(page)
    }

    /// Looks at the first of the veterans, the last time if `last`.
    fn try_main(&mut self, accessed: &mut dyn FnMut(u32) -> bool, last: bool) -> Option<u32> {
        let page = self.main.first()?;
        let uses = self.nodes[page as usize].tag / ONE_USE;
        let left = if accessed(page) { Some((uses + 1).min(USES_MAX)) } else { uses.checked_sub(1) };
        match left {
            Some(uses) if !last => {
                self.nodes[page as usize].tag = MAIN + uses * ONE_USE;
                self.main.rotate(self.nodes);
                None
            }
            _ => {
                self.main.remove(self.nodes, page);
                self.nodes[page as usize].tag = NOWHERE;
                Some(page)
            }
        }
    }
}

impl Policy for S3Fifo<'_> {
    fn inserted(&mut self, page: u32) {
        let node = &mut self.nodes[page as usize];
        let known = node.tag & PLACE == GHOST;
        debug_assert!(known || node.tag == NOWHERE, "page {page} is in a list");
        node.tag = if known { MAIN } else { SMALL };
        if known {
            self.ghosts.remove(self.nodes, page);
            self.main.push(self.nodes, page);
        } else {
            self.small.push(self.nodes, page);
        }
    }

    fn victim(&mut self, accessed: &mut dyn FnMut(u32) -> bool) -> Option<u32> {
        let small_max = (self.frames / SMALL_SHARE).max(SMALL_MIN);
        // Each page is used once at most while this runs, so the uses run out; if not, the next goes.
        let mut looks = u64::from(self.pages()) * u64::from(USES_MAX + 2);
        while self.pages() > 0 {
            looks = looks.saturating_sub(1);
            let victim = if self.small.len() > small_max || self.main.len() == 0 {
                self.try_small(accessed)
            } else {
                self.try_main(accessed, looks == 0)
            };
            if victim.is_some() {
                return victim;
            }
        }
        None
    }

    fn removed(&mut self, page: u32) {
        let list = match core::mem::take(&mut self.nodes[page as usize].tag) & PLACE {
            SMALL => &mut self.small,
            MAIN => &mut self.main,
            GHOST => &mut self.ghosts,
            _ => return,
        };
        list.remove(self.nodes, page);
    }

    fn pages(&self) -> u32 {
        self.small.len() + self.main.len()
    }

    fn counts_arrival(&self) -> bool {
        false
    }

    fn check(&self) {
        assert!(self.ghosts.len() <= self.frames, "{} ghosts for {} frames", self.ghosts.len(), self.frames);
        for (list, place) in [(&self.small, SMALL), (&self.main, MAIN), (&self.ghosts, GHOST)] {
            let listed = list.iter(self.nodes);
            let listed = listed.inspect(|&page| assert_eq!(self.nodes[page as usize].tag & PLACE, place));
            assert_eq!(listed.count(), list.len() as usize, "pages in list {place}");
        }
    }
}
