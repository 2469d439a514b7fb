//! Linked lists whose nodes come from an allocator: allocated, linked, walked and freed, each timed apart.
//!
//! A node is as in a list that is linked in both directions: two pointers and a number, 24 bytes.
//!
//! The loops that write pointers and do nothing else ([`write_pointers`], [`write_constant`]) are what a call
//! that hands out nodes by pointer can't go below: the pointers are the caller's, and have to be in memory.
#![allow(unsafe_code, reason = "writes and reads nodes, which are bare memory")]

use core::ptr::null_mut;

use umpa_abi::addr::PAGE_BYTES;
use umpa_abi::record::{Sample, name};

use crate::raw::tsc_cycles;

/// A node. The list has the numbers from 0 on, in order.
#[repr(C)]
struct Node {
    next: *mut Node,
    previous: *mut Node,
    number: u64,
}

/// Bytes of a node.
pub const NODE_BYTES: usize = size_of::<Node>();
/// What its address is a multiple of.
pub const NODE_ALIGN: usize = align_of::<Node>();
/// Nodes of the paper's example.
pub const NODES: u64 = 4_000_000;

/// Where nodes come from. It keeps them between its calls.
///
/// # Safety
/// Between a successful `alloc` and the next `free`, `nodes` has as many pointers as were asked for, to so
/// many blocks of [`NODE_BYTES`] bytes each, aligned to [`NODE_ALIGN`], that don't overlap and that nobody
/// else uses; the same at every call.
pub unsafe trait Nodes {
    /// Allocates `nodes` nodes; false when there is no memory, and then there are none.
    fn alloc(&mut self, nodes: usize) -> bool;
    /// The nodes.
    fn nodes(&self) -> impl Iterator<Item = *mut u8>;
    /// Frees all nodes; false when one was refused.
    fn free(&mut self) -> bool;
}

/// What a list took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    nodes: u64,
    alloc_cycles: u64,
    link_cycles: u64,
    walk_cycles: u64,
    free_cycles: u64,
    sum: u64,
}

/// Why there is no time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListError {
    /// Too little memory.
    NoMemory,
    /// The list isn't what was linked: this node's number was expected.
    Broken {
        /// The number.
        number: u64,
    },
    /// The allocator refused one of its nodes.
    Refused,
}

impl core::fmt::Display for ListError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::NoMemory => f.write_str("too little memory for the list"),
            Self::Broken { number } => write!(f, "node {number} of the list isn't what was written"),
            Self::Refused => f.write_str("a node was refused when it was freed"),
        }
    }
}

impl core::error::Error for ListError {}

/// A list of `nodes` nodes, from its allocation to its end.
///
/// # Errors
/// [`ListError`].
pub fn round(source: &mut impl Nodes, nodes: u64) -> Result<Times, ListError> {
    let start = tsc_cycles();
    if !source.alloc(nodes as usize) {
        return Err(ListError::NoMemory);
    }
    let allocated = tsc_cycles();
    // SAFETY: the nodes are the source's own, and there are some (`Nodes`).
    let first = unsafe { link(source.nodes()) };
    let linked = tsc_cycles();
    // SAFETY: the list was just linked.
    let walked = unsafe { sum(first, nodes) };
    let end_of_walk = tsc_cycles();
    let freed = source.free();
    let end = tsc_cycles();
    let sum = walked.map_err(|number| ListError::Broken { number })?;
    if !freed {
        return Err(ListError::Refused);
    }
    Ok(Times {
        nodes,
        alloc_cycles: allocated.wrapping_sub(start),
        link_cycles: linked.wrapping_sub(allocated),
        walk_cycles: end_of_walk.wrapping_sub(linked),
        free_cycles: end.wrapping_sub(end_of_walk),
        sum,
    })
}

impl Times {
    /// As samples of a series. `alloc.link` is both in one: by its end every node has been written, so in
    /// that row it doesn't matter who touches memory first.
    #[must_use]
    pub fn samples(&self, series: &str) -> [Sample; 5] {
        [
            ("alloc", self.alloc_cycles),
            ("link", self.link_cycles),
            ("alloc.link", self.alloc_cycles + self.link_cycles),
            ("walk", self.walk_cycles),
            ("free", self.free_cycles),
        ]
        .map(|(work, cycles)| sample(series, work, self.nodes, cycles, self.sum))
    }
}

/// One time, of so many nodes.
#[must_use]
pub fn sample(series: &str, work: &str, nodes: u64, cycles: u64, check: u64) -> Sample {
    Sample {
        series: name(series),
        work: name(work),
        bytes: 0,
        ops: nodes,
        pages: (nodes * NODE_BYTES as u64).div_ceil(PAGE_BYTES),
        cycles,
        check,
        reserved: 0,
    }
}

/// Links the nodes in order, and numbers them: the first write to each.
///
/// # Safety
/// All are blocks as [`Nodes`] says.
#[inline(never)]
unsafe fn link(nodes: impl Iterator<Item = *mut u8>) -> *mut Node {
    let (mut first, mut last) = (null_mut::<Node>(), null_mut::<Node>());
    for (number, node) in (0..).zip(nodes) {
        let node = node.cast::<Node>();
        // SAFETY: a node of the source's, large and aligned enough; so is `last`, if there is one.
        unsafe {
            node.write(Node { next: null_mut(), previous: last, number });
            match last.as_mut() {
                Some(last) => last.next = node,
                None => first = node,
            }
        }
        last = node;
    }
    first
}

/// Walks the list: the sum of its numbers, or the first that isn't as it was written.
///
/// # Safety
/// `first` is from [`link`], and no node has been freed.
#[inline(never)]
unsafe fn sum(first: *mut Node, nodes: u64) -> Result<u64, u64> {
    let (mut next, mut previous, mut sum) = (first, null_mut::<Node>(), 0u64);
    for expected in 0..nodes {
        // SAFETY: it is a node of the list, or null.
        let Some(node) = (unsafe { next.as_ref() }) else { return Err(expected) };
        if node.number != expected || node.previous != previous {
            return Err(expected);
        }
        (next, previous, sum) = (node.next, next, sum.wrapping_add(node.number));
    }
    if next.is_null() { Ok(sum) } else { Err(nodes) }
}

/// Writes addresses of nodes that lie one behind the other: what each batch does, and nothing else.
#[inline(never)]
pub fn write_pointers(pointers: &mut [*mut u8], first: usize) {
    let mut at = first;
    for pointer in pointers {
        *pointer = core::ptr::without_provenance_mut(at);
        at = at.wrapping_add(NODE_BYTES);
    }
}

/// The same by eight, at addresses that are known before the loop.
#[inline(never)]
pub fn write_pointers_by_eight(pointers: &mut [*mut u8], first: usize) {
    let (eights, rest) = pointers.as_chunks_mut::<8>();
    let mut at = first;
    for eight in eights {
        for (number, pointer) in eight.iter_mut().enumerate() {
            *pointer = core::ptr::without_provenance_mut(at.wrapping_add(number * NODE_BYTES));
        }
        at = at.wrapping_add(8 * NODE_BYTES);
    }
    write_pointers(rest, at);
}

/// Writes the same value everywhere: as many bytes, without an address to compute.
#[inline(never)]
pub fn write_constant(pointers: &mut [*mut u8], value: usize) {
    pointers.fill(core::ptr::without_provenance_mut(value));
}

/// A way to write pointers: name and function.
pub type Writer = (&'static str, fn(&mut [*mut u8], usize));

/// The ways that every program has.
pub const WRITERS: [Writer; 3] = [
    ("write", write_pointers),
    ("write-by-eight", write_pointers_by_eight),
    ("write-constant", write_constant),
];

/// Times a way to write pointers.
pub fn floor(series: &str, writer: Writer, pointers: &mut [*mut u8]) -> Sample {
    let start = tsc_cycles();
    writer.1(core::hint::black_box(pointers), core::hint::black_box(NODE_BYTES));
    let cycles = tsc_cycles().wrapping_sub(start);
    let written = pointers.iter().map(|pointer| u64::from(!pointer.is_null())).sum();
    sample(series, writer.0, pointers.len() as u64, cycles, written)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec::Vec;

    /// Nodes in one piece of memory; `overlap` makes two of them one.
    struct Heap {
        memory: Vec<[u64; 3]>,
        overlap: bool,
    }

    // SAFETY: the memory isn't moved while a list is in it. Nodes that overlap are the test's own.
    unsafe impl Nodes for Heap {
        fn alloc(&mut self, nodes: usize) -> bool {
            self.memory = std::vec![[7; 3]; nodes];
            true
        }
        fn nodes(&self) -> impl Iterator<Item = *mut u8> {
            let last = self.memory.len() - 1 - usize::from(self.overlap);
            let start = self.memory.as_ptr().cast_mut();
            (0..self.memory.len()).map(move |at| start.wrapping_add(at.min(last)).cast())
        }
        fn free(&mut self) -> bool {
            self.memory = Vec::new();
            true
        }
    }

    #[test]
    fn a_list_is_walked_as_it_was_linked() {
        let times = round(&mut Heap { memory: Vec::new(), overlap: false }, 1000).unwrap();
        assert_eq!(times.sum, 999 * 1000 / 2);
        let samples = times.samples("any");
        assert!(samples.iter().all(|sample| (sample.ops, sample.pages) == (1000, 6)));
        assert_eq!(samples[2].cycles, samples[0].cycles + samples[1].cycles);
    }

    #[test]
    fn two_nodes_in_one_place_are_seen() {
        let found = round(&mut Heap { memory: Vec::new(), overlap: true }, 1000);
        assert_eq!(found, Err(ListError::Broken { number: 998 }));
    }

    #[test]
    fn all_ways_write_the_same_pointers() {
        let written = |writer: Writer| {
            let mut pointers = [null_mut::<u8>(); 37];
            writer.1(&mut pointers, 100);
            pointers.map(|pointer| pointer.addr())
        };
        let expected: [usize; 37] = core::array::from_fn(|number| 100 + number * NODE_BYTES);
        assert_eq!(written(WRITERS[0]), expected);
        assert_eq!(written(WRITERS[1]), expected);
        assert_eq!(written(WRITERS[2]), [100; 37]);
        let sample = floor("any", WRITERS[0], &mut [null_mut(); 37]);
        assert_eq!((sample.ops, sample.check), (37, 37));
    }
}
