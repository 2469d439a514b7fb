//! Clock: pages in the order of their arrival; one that was used goes round once more.
//!
//! Source: F. J. Corbato, *A Paging Experiment with the Multics System*, 1968. A list whose first page
//! goes to its end is the same as a hand that moves over a ring.

use super::list::{List, Node};
use super::policy::Policy;

/// Pages in the order of arrival; one that was used goes round once more (Corbato 1968).
#[derive(Debug)]
pub struct Clock<'a> {
    nodes: &'a mut [Node],
    ring: List,
}

impl<'a> Clock<'a> {
    /// A policy for as many pages as there are nodes, which are zeroed ([`Node::default`]).
    #[must_use]
    pub fn new(nodes: &'a mut [Node]) -> Self {
        Self { nodes, ring: List::default() }
    }
}

impl Policy for Clock<'_> {
    fn inserted(&mut self, page: u32) {
        debug_assert_eq!(self.nodes[page as usize].tag, 0, "page {page} is in the ring");
        self.nodes[page as usize].tag = 1;
        self.ring.push(self.nodes, page);
    }

    fn victim(&mut self, accessed: &mut dyn FnMut(u32) -> bool) -> Option<u32> {
        // All may have been used; then the first one goes, the second time round.
        for _ in 0..self.ring.len() {
            if !accessed(self.ring.first()?) {
                break;
            }
            self.ring.rotate(self.nodes);
        }
        let page = self.ring.pop(self.nodes)?;
        self.nodes[page as usize].tag = 0;
        Some(page)
    }

    fn removed(&mut self, page: u32) {
        if core::mem::take(&mut self.nodes[page as usize].tag) != 0 {
            self.ring.remove(self.nodes, page);
        }
    }

    fn pages(&self) -> u32 {
        self.ring.len()
    }

    fn counts_arrival(&self) -> bool {
        true
    }

    fn check(&self) {
        let listed = self.ring.iter(self.nodes).inspect(|&page| assert_eq!(self.nodes[page as usize].tag, 1));
        assert_eq!(listed.count(), self.ring.len() as usize, "pages in the ring");
    }
}
