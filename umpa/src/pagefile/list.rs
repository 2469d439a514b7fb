//! Doubly linked lists of pages, with the links in memory that is handed in.
//!
//! A page is in one list of its owner at most. Index 0 of a link means none; page `p` is `p + 1`. So
//! zeroed memory is pages in no list.

/// Links of one page, and a number that its owner keeps there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Node {
    previous: u32,
    next: u32,
    pub(super) tag: u32,
}

/// A list in order of arrival.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct List {
    head: u32,
    tail: u32,
    len: u32,
}

impl List {
    pub(super) const fn len(&self) -> u32 {
        self.len
    }

    /// The page that has been in it for longest.
    pub(super) const fn first(&self) -> Option<u32> {
        self.head.checked_sub(1)
    }

    /// Adds a page that is in no list, as the last.
    pub(super) fn push(&mut self, nodes: &mut [Node], page: u32) {
        let link = page + 1;
        let node = &mut nodes[page as usize];
        (node.previous, node.next) = (self.tail, 0);
        match self.tail {
            0 => self.head = link,
            tail => nodes[tail as usize - 1].next = link,
        }
        self.tail = link;
        self.len += 1;
    }

    /// Takes out a page that is in it.
    pub(super) fn remove(&mut self, nodes: &mut [Node], page: u32) {
        let Node { previous, next, .. } = nodes[page as usize];
        match previous {
            0 => self.head = next,
            link => nodes[link as usize - 1].next = next,
        }
        match next {
            0 => self.tail = previous,
            link => nodes[link as usize - 1].previous = previous,
        }
        self.len -= 1;
    }

    /// Takes out the first.
    pub(super) fn pop(&mut self, nodes: &mut [Node]) -> Option<u32> {
        let page = self.first()?;
        self.remove(nodes, page);
        Some(page)
    }

    /// Makes the first page the last.
    pub(super) fn rotate(&mut self, nodes: &mut [Node]) {
        if let Some(page) = self.pop(nodes) {
            self.push(nodes, page);
        }
    }

    /// Its pages, for checks.
    pub(super) fn iter<'n>(&self, nodes: &'n [Node]) -> impl Iterator<Item = u32> + use<'n> {
        let mut link = self.head;
        // A ring by mistake must not be for ever.
        (0..=nodes.len()).map_while(move |_| {
            let page = link.checked_sub(1)?;
            link = nodes[page as usize].next;
            Some(page)
        })
    }
}
