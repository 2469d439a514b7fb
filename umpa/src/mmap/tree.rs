//! A treap of ranges, in frames of the table arena.
//!
//! Nodes are 64 bytes, one cache line, 63 to a frame (the first line links the frames). Priorities are
//! random, so depth is logarithmic whatever the order of the calls (Seidel and Aragon, 1996). Each
//! node knows what its subtree spans and the largest hole in it, so that a search for room skips what
//! has none.
//!
//! Invariants:
//!
//! - in order, ranges ascend and don't overlap;
//! - a parent's priority is at least its children's;
//! - `min` and `max` are the ends of the subtree's span, `hole` the longest gap between two ranges of it.

use crate::hardware::TableMemory;
use crate::tables::TableArena;
use umpa_abi::addr::Frame;
use umpa_abi::paging::ENTRIES;

/// A range of pages, and what its owner notes about it (16 bits).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) note: u64,
}

/// A node: the number of its 64-byte line. 0 is none, as the first line of a frame is never a node.
type Node = u64;
const NONE: Node = 0;

const WORDS: usize = 8;
const LINES: u64 = (ENTRIES / WORDS) as u64;

const START: usize = 0;
/// End in the low 48 bits, note above.
const END: usize = 1;
const LEFT: usize = 2;
const RIGHT: usize = 3;
const PRIORITY: usize = 4;
const MIN: usize = 5;
const MAX: usize = 6;
const HOLE: usize = 7;
const NOTE_SHIFT: u32 = 48;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Tree {
    root: Node,
    free: Node,
    free_nodes: u64,
    /// The frames of the nodes, linked by their first words.
    frames: u64,
    seed: u64,
}

/// Where a hole is wanted: at least `pages` of it in `low..high`, from a multiple of `align` on.
#[derive(Clone, Copy)]
pub(super) struct Wanted {
    pub(super) pages: u64,
    pub(super) align: u64,
    pub(super) low: u64,
    pub(super) high: u64,
}

impl Wanted {
    /// The highest place.
    fn place(self) -> Option<u64> {
        let start = self.high.checked_sub(self.pages)?;
        let start = start - start % self.align;
        (start >= self.low).then_some(start)
    }

    /// Any hole of this length has a place.
    fn sure_pages(self) -> u64 {
        self.pages + self.align - 1
    }
}

fn get(memory: &impl TableMemory, node: Node, word: usize) -> u64 {
    memory.read(Frame::new(node / LINES), (node % LINES) as usize * WORDS + word)
}

fn set(memory: &mut impl TableMemory, node: Node, word: usize, value: u64) {
    memory.write(Frame::new(node / LINES), (node % LINES) as usize * WORDS + word, value);
}

fn range(memory: &impl TableMemory, node: Node) -> Range {
    let end = get(memory, node, END);
    let start = get(memory, node, START);
    Range { start, end: end & ((1 << NOTE_SHIFT) - 1), note: end >> NOTE_SHIFT }
}

/// Computes what a node knows of its subtree.
fn update(memory: &mut impl TableMemory, node: Node) {
    let Range { start, end, .. } = range(memory, node);
    let (left, right) = (get(memory, node, LEFT), get(memory, node, RIGHT));
    let (mut min, mut max, mut hole) = (start, end, 0);
    if left != NONE {
        min = get(memory, left, MIN);
        hole = get(memory, left, HOLE).max(start - get(memory, left, MAX));
    }
    if right != NONE {
        max = get(memory, right, MAX);
        hole = hole.max(get(memory, right, HOLE)).max(get(memory, right, MIN) - end);
    }
    set(memory, node, MIN, min);
    set(memory, node, MAX, max);
    set(memory, node, HOLE, hole);
}

/// The nodes of a subtree that start below `page`, and the others.
fn split(memory: &mut impl TableMemory, node: Node, page: u64) -> (Node, Node) {
    if node == NONE {
        return (NONE, NONE);
    }
    if get(memory, node, START) < page {
        let right = get(memory, node, RIGHT);
        let (below, above) = split(memory, right, page);
        set(memory, node, RIGHT, below);
        update(memory, node);
        (node, above)
    } else {
        let left = get(memory, node, LEFT);
        let (below, above) = split(memory, left, page);
        set(memory, node, LEFT, above);
        update(memory, node);
        (below, node)
    }
}

/// Joins two subtrees, of which the first lies below the other.
fn merge(memory: &mut impl TableMemory, below: Node, above: Node) -> Node {
    if below == NONE || above == NONE {
        return below | above;
    }
    if get(memory, below, PRIORITY) > get(memory, above, PRIORITY) {
        let right = get(memory, below, RIGHT);
        let joined = merge(memory, right, above);
        set(memory, below, RIGHT, joined);
        update(memory, below);
        below
    } else {
        let left = get(memory, above, LEFT);
        let joined = merge(memory, below, left);
        set(memory, above, LEFT, joined);
        update(memory, above);
        above
    }
}

/// Inserts a node where its priority belongs: on average two steps above the bottom.
fn insert_under(memory: &mut impl TableMemory, node: Node, new: Node, start: u64, priority: u64) -> Node {
    if node == NONE || get(memory, node, PRIORITY) < priority {
        let (below, above) = split(memory, node, start);
        set(memory, new, LEFT, below);
        set(memory, new, RIGHT, above);
        update(memory, new);
        return new;
    }
    let side = if start < get(memory, node, START) { LEFT } else { RIGHT };
    let child = get(memory, node, side);
    let child = insert_under(memory, child, new, start, priority);
    set(memory, node, side, child);
    update(memory, node);
    node
}

/// Takes out the node that starts there: what takes its place, and the node.
fn remove_under(memory: &mut impl TableMemory, node: Node, start: u64) -> (Node, Node) {
    debug_assert!(node != NONE, "no range starts at {start:#x}");
    if node == NONE {
        return (NONE, NONE);
    }
    let here = get(memory, node, START);
    if here == start {
        let (left, right) = (get(memory, node, LEFT), get(memory, node, RIGHT));
        return (merge(memory, left, right), node);
    }
    let side = if start < here { LEFT } else { RIGHT };
    let child = get(memory, node, side);
    let (child, removed) = remove_under(memory, child, start);
    set(memory, node, side, child);
    update(memory, node);
    (node, removed)
}

/// Writes `new` to the node that starts at `start`.
fn alter_under(memory: &mut impl TableMemory, node: Node, start: u64, new: Range) {
    debug_assert!(node != NONE, "no range starts at {start:#x}");
    if node == NONE {
        return;
    }
    let here = get(memory, node, START);
    if here == start {
        set(memory, node, START, new.start);
        set(memory, node, END, new.end | new.note << NOTE_SHIFT);
    } else {
        let child = get(memory, node, if start < here { LEFT } else { RIGHT });
        alter_under(memory, child, start, new);
    }
    update(memory, node);
}

/// The highest place in the holes of a subtree and around it. A subtree that surely has none is
/// skipped; with an alignment one may be missed that lies in a hole not surely long enough.
fn search(memory: &impl TableMemory, node: Node, wanted: Wanted) -> Option<u64> {
    if node == NONE {
        return wanted.place();
    }
    let (min, max) = (get(memory, node, MIN), get(memory, node, MAX));
    let longest =
        get(memory, node, HOLE).max(min.saturating_sub(wanted.low)).max(wanted.high.saturating_sub(max));
    if longest < wanted.sure_pages() {
        return None;
    }
    let Range { start, end, .. } = range(memory, node);
    let above = if end < wanted.high {
        let low = wanted.low.max(end);
        search(memory, get(memory, node, RIGHT), Wanted { low, ..wanted })
    } else {
        None
    };
    above.or_else(|| {
        let high = wanted.high.min(start);
        search(memory, get(memory, node, LEFT), Wanted { high, ..wanted })
    })
}

impl Tree {
    pub(super) const fn new() -> Self {
        Self { root: NONE, free: NONE, free_nodes: 0, frames: 0, seed: 0x9e37_79b9_7f4a_7c15 }
    }

    /// Sees to it that `nodes` more ranges can be inserted.
    pub(super) fn reserve(
        &mut self,
        memory: &mut impl TableMemory,
        arena: &mut TableArena<'_>,
        nodes: u64,
    ) -> bool {
        while self.free_nodes < nodes {
            let Some(frame) = arena.get() else { return false };
            memory.write(frame, 0, self.frames);
            self.frames = frame.get();
            for line in (1..LINES).rev() {
                self.give(memory, frame.get() * LINES + line);
            }
        }
        true
    }

    /// Gives the frames of the nodes back when there is no range.
    pub(super) fn forget_vacant(&mut self, memory: &mut impl TableMemory, arena: &mut TableArena<'_>) {
        if self.root != NONE {
            return;
        }
        // All nodes are free, so that only their links aren't zero.
        while self.frames != 0 {
            let frame = Frame::new(self.frames);
            self.frames = memory.read(frame, 0);
            for index in (0..ENTRIES).filter(|index| index % WORDS == LEFT || *index == 0) {
                memory.write(frame, index, 0);
            }
            arena.put(frame);
        }
        (self.free, self.free_nodes) = (NONE, 0);
    }

    /// The range that holds the page, or the first one above it.
    pub(super) fn next(&self, memory: &impl TableMemory, page: u64) -> Option<Range> {
        let (mut node, mut found) = (self.root, None);
        while node != NONE {
            let here = range(memory, node);
            if here.end > page {
                found = Some(here);
                node = get(memory, node, LEFT);
            } else {
                node = get(memory, node, RIGHT);
            }
        }
        found
    }

    /// The last range that starts below the page.
    pub(super) fn last_before(&self, memory: &impl TableMemory, page: u64) -> Option<Range> {
        let (mut node, mut found) = (self.root, None);
        while node != NONE {
            let here = range(memory, node);
            if here.start < page {
                found = Some(here);
                node = get(memory, node, RIGHT);
            } else {
                node = get(memory, node, LEFT);
            }
        }
        found
    }

    /// The highest place for what is wanted.
    pub(super) fn place(&self, memory: &impl TableMemory, wanted: Wanted) -> Option<u64> {
        search(memory, self.root, wanted)
    }

    /// Adds a range that overlaps none. A node was reserved.
    pub(super) fn insert(&mut self, memory: &mut impl TableMemory, new: Range) {
        debug_assert!(new.start < new.end && self.free != NONE, "{new:?}, {} nodes", self.free_nodes);
        let node = self.free;
        self.free = get(memory, node, LEFT);
        self.free_nodes -= 1;
        // xorshift64 (Marsaglia, 2003).
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        set(memory, node, START, new.start);
        set(memory, node, END, new.end | new.note << NOTE_SHIFT);
        set(memory, node, PRIORITY, self.seed);
        self.root = insert_under(memory, self.root, node, new.start, self.seed);
    }

    /// Takes away the range that starts there; it exists.
    pub(super) fn remove(&mut self, memory: &mut impl TableMemory, start: u64) {
        let (root, removed) = remove_under(memory, self.root, start);
        self.root = root;
        if removed != NONE {
            self.give(memory, removed);
        }
    }

    /// Makes the range that starts there another one, between the same neighbours; it exists.
    pub(super) fn alter(&mut self, memory: &mut impl TableMemory, start: u64, new: Range) {
        debug_assert!(new.start < new.end, "{new:?}");
        alter_under(memory, self.root, start, new);
    }

    /// Gives the range that starts there another note; it exists. What nodes know of each other stays.
    pub(super) fn annotate(&mut self, memory: &mut impl TableMemory, start: u64, note: u64) {
        let mut node = self.root;
        while node != NONE {
            let here = range(memory, node);
            if here.start == start {
                return set(memory, node, END, here.end | note << NOTE_SHIFT);
            }
            node = get(memory, node, if start < here.start { LEFT } else { RIGHT });
        }
        debug_assert!(false, "no range starts at {start:#x}");
    }

    fn give(&mut self, memory: &mut impl TableMemory, node: Node) {
        for word in 0..WORDS {
            set(memory, node, word, 0);
        }
        set(memory, node, LEFT, self.free);
        self.free = node;
        self.free_nodes += 1;
    }

    /// Asserts the invariants. Linear; for tests.
    pub(super) fn check(&self, memory: &impl TableMemory) {
        if self.root != NONE {
            self.check_under(memory, self.root);
        }
    }

    /// Span and longest hole of a subtree.
    fn check_under(&self, memory: &impl TableMemory, node: Node) -> (u64, u64, u64) {
        let here = range(memory, node);
        let (mut min, mut max, mut hole) = (here.start, here.end, 0);
        for (word, is_left) in [(LEFT, true), (RIGHT, false)] {
            let below = get(memory, node, word);
            if below == NONE {
                continue;
            }
            assert!(get(memory, below, PRIORITY) <= get(memory, node, PRIORITY), "priority under {here:?}");
            let (low, high, inner) = self.check_under(memory, below);
            if is_left {
                assert!(high <= here.start, "{here:?} begins before {high:#x}");
                (min, hole) = (low, hole.max(inner).max(here.start - high));
            } else {
                assert!(low >= here.end, "{here:?} ends after {low:#x}");
                (max, hole) = (high, hole.max(inner).max(low - here.end));
            }
        }
        let known = (get(memory, node, MIN), get(memory, node, MAX), get(memory, node, HOLE));
        assert_eq!(known, (min, max, hole), "under {here:?}");
        known
    }
}

#[cfg(test)]
mod tests;
