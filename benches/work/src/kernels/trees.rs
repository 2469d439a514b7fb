//! Binary trees: one that lives throughout, and trees of three depths that are built, walked and freed meanwhile,
//! as many nodes of each depth.
//!
//! A node is two pointers and its number, 24 bytes; nodes are numbered from the root, left before right, so each
//! one's number follows from its place, and a walk checks them all. Operations are nodes that were built, walked and
//! freed.
#![allow(unsafe_code, reason = "nodes are bare memory")]

use core::alloc::Layout;
use core::ptr::{NonNull, null_mut};

use allocator_api2::alloc::Allocator;

use super::{Done, Full, KernelError, Memory, Parts, Reports};

/// The least depth.
const DEPTH_MIN: u32 = 4;

/// A node.
#[repr(C)]
#[derive(Debug)]
pub struct Node {
    left: *mut Node,
    right: *mut Node,
    number: u64,
}

/// What each node is.
pub const NODE: Layout = Layout::new::<Node>();

/// Nodes of one tree at a time.
///
/// # Safety
/// `take` returns memory for a [`Node`] each time, aligned, that overlaps nothing else in use and stays so until
/// `end`.
pub unsafe trait Nodes {
    /// Begins a tree of so many nodes.
    ///
    /// # Errors
    /// [`Full`].
    fn begin(&mut self, nodes: usize) -> Result<(), Full>;
    /// The next node; at most as many as were announced.
    fn take(&mut self) -> Option<NonNull<Node>>;
    /// Ends the tree; false when that was refused.
    ///
    /// # Safety
    /// `root` is the root of a tree of all nodes since `begin`, none of which is used again.
    unsafe fn end(&mut self, root: NonNull<Node>) -> bool;
}

/// Nodes that come one by one, and go one by one in a walk.
#[derive(Debug)]
pub struct Single<'a, A>(&'a A);

impl<'a, A> Single<'a, A> {
    /// From an allocator.
    pub(super) const fn new(allocator: &'a A) -> Self {
        Self(allocator)
    }
}

// SAFETY: an allocator's blocks.
unsafe impl<A: Allocator> Nodes for Single<'_, A> {
    fn begin(&mut self, _nodes: usize) -> Result<(), Full> {
        Ok(())
    }

    #[inline]
    fn take(&mut self) -> Option<NonNull<Node>> {
        self.0.allocate(NODE).ok().map(NonNull::cast)
    }

    unsafe fn end(&mut self, root: NonNull<Node>) -> bool {
        // SAFETY: the caller's: nodes are read before they are freed.
        unsafe {
            let Node { left, right, .. } = root.read();
            for child in [left, right].into_iter().filter_map(NonNull::new) {
                self.end(child);
            }
            self.0.deallocate(root.cast(), NODE);
        }
        true
    }
}

/// Nodes of a tree.
const fn nodes(depth: u32) -> u64 {
    (2 << depth) - 1
}

/// Builds a tree whose root is `number`.
fn build<N: Nodes>(from: &mut N, depth: u32, number: u64, salt: u64) -> Option<NonNull<Node>> {
    let node = from.take()?;
    let mut children = [null_mut(); 2];
    if depth > 0 {
        let first = number + 1;
        for (child, number) in children.iter_mut().zip([first, first + nodes(depth - 1)]) {
            *child = build(from, depth - 1, number, salt)?.as_ptr();
        }
    }
    let [left, right] = children;
    // SAFETY: memory for a node, which nobody else has (`Nodes`).
    unsafe { node.write(Node { left, right, number: number ^ salt }) };
    Some(node)
}

/// The sum of all nodes' numbers, and bits that are 0 when each is what it must be.
///
/// # Safety
/// A tree of [`build`] that hasn't ended.
unsafe fn walk(node: NonNull<Node>, depth: u32, number: u64, salt: u64) -> (u64, u64) {
    // SAFETY: the caller's.
    let Node { left, right, number: found } = *unsafe { node.as_ref() };
    let found = found ^ salt;
    let (mut sum, mut wrong) = (found, found ^ number);
    if depth > 0 && wrong == 0 {
        let first = number + 1;
        for (child, number) in [left, right].into_iter().zip([first, first + nodes(depth - 1)]) {
            let Some(child) = NonNull::new(child) else { return (sum, 1) };
            // SAFETY: a child of the tree.
            let below = unsafe { walk(child, depth - 1, number, salt) };
            (sum, wrong) = (sum.wrapping_add(below.0), wrong | below.1);
        }
    }
    (sum, wrong)
}

/// What one after the other came to.
struct Sum {
    ops: u64,
    found: u64,
    wanted: u64,
    refused: bool,
    times: Parts<3>,
}

impl Sum {
    fn planted<N: Nodes>(
        &mut self,
        from: &mut N,
        depth: u32,
        number: u64,
        salt: u64,
    ) -> Result<NonNull<Node>, Full> {
        from.begin(nodes(depth) as usize)?;
        let root = build(from, depth, number, salt).ok_or(Full);
        self.times.end(0);
        root
    }

    /// False when the tree isn't what was built.
    ///
    /// # Safety
    /// As [`walk`].
    unsafe fn walked(&mut self, root: NonNull<Node>, depth: u32, number: u64, salt: u64) -> bool {
        // SAFETY: the caller's.
        let (sum, wrong) = unsafe { walk(root, depth, number, salt) };
        let (count, first) = (nodes(depth), number);
        // `count` is odd, so its half is of an even number.
        let wanted = count.wrapping_mul(first).wrapping_add((count - 1) / 2 * count);
        self.found = self.found.wrapping_add(if wrong == 0 { sum } else { !wanted });
        self.wanted = self.wanted.wrapping_add(wanted);
        self.ops += count;
        self.times.end(1);
        wrong == 0
    }

    /// # Safety
    /// As [`Nodes::end`].
    unsafe fn felled<N: Nodes>(&mut self, from: &mut N, root: NonNull<Node>) {
        // SAFETY: the caller's.
        self.refused |= !unsafe { from.end(root) };
        self.times.end(2);
    }

    /// The result, and whether a tree was refused.
    fn done(self, largest: u32) -> (Done<3>, bool) {
        let Self { ops, found, wanted, refused, times } = self;
        let bytes = 2 * nodes(largest) * NODE.size() as u64;
        (Done { ops, bytes, found, wanted, cycles: times.cycles }, refused)
    }
}

/// All trees. One that isn't what was built is left as it is: it may have no end.
fn trees<M: Memory>(
    memory: &M,
    elements: u64,
    salt: u64,
    fullest: &mut dyn FnMut(),
) -> Result<(Done<3>, bool), Full> {
    let largest = elements.ilog2() - 2;
    let mut sum = Sum { ops: 0, found: 0, wanted: 0, refused: false, times: Parts::begin() };
    let (mut lasting, mut passing) = (memory.nodes(), memory.nodes());
    let old = sum.planted(&mut lasting, largest, 0, salt)?;
    let mut number = nodes(largest);
    for depth in [DEPTH_MIN, DEPTH_MIN.midpoint(largest), largest] {
        for _ in 0..4 << (largest - depth) {
            let root = sum.planted(&mut passing, depth, number, salt)?;
            if depth == largest {
                fullest();
            }
            // SAFETY: the tree has just been built, and ends after its walk.
            unsafe {
                if !sum.walked(root, depth, number, salt) {
                    return Ok(sum.done(largest));
                }
                sum.felled(&mut passing, root);
            }
            number += nodes(depth);
        }
    }
    // SAFETY: as above.
    unsafe {
        if sum.walked(old, largest, 0, salt) {
            sum.felled(&mut lasting, old);
        }
    }
    drop((lasting, passing));
    sum.times.end(2);
    Ok(sum.done(largest))
}

pub(super) fn run<M: Memory>(
    memory: &M,
    elements: u64,
    reports: &mut Reports<'_>,
) -> Result<(), KernelError> {
    let kernel = "trees";
    let done = trees(memory, elements, reports.salt, reports.fullest);
    if let Ok((_, true)) = done {
        return Err(KernelError::Refused { kernel });
    }
    let done = done.map(|(done, _)| done);
    reports.result(kernel, ["trees-build", "trees-walk", "trees-free"], "trees.all", done)
}
