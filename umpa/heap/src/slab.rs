//! Slabs: runs of equal nodes without headers, each node freed alone.
//!
//! A slab has a window of `umpa`'s to itself, so its base is found from a node's address by the
//! window's size; the heap knows its slabs by their bases.
//!
//! ```text
//! base  │ unit 0 │ unit 1 │ … │ last unit │ Slab │ live nodes of each unit │ a bit for each node: freed │
//! unit  │ node │ node │ … │ rest, smaller than a node │          2 MiB each, from 2 MiB of nodes on
//! ```
//!
//! Invariants: `live = Σ live of units = nodes - freed bits`; between two calls a unit without live nodes
//! has no memory, but for the last one's page that the header begins in, and unless its frees were to keep
//! it; a slab without live nodes doesn't exist. A freed node isn't given out again: its unit's memory goes
//! back as a whole. A slab of which no unit has gone back leaves its window mapped for the next.
//!
//! Cost: making one takes the window, and a zero bit for each node, whatever the nodes are used for
//! later: no node is touched. Freeing a node is constant; nodes in order of their addresses are freed
//! together, 64 bits with a store, and units that they empty go back when all are freed.

#![allow(unsafe_code)] // reason: keeps its records in the memory that it describes

use core::cell::Cell;
use core::ptr::{NonNull, null_mut, with_exposed_provenance_mut};

use umpa::blocks::{AllocError, Machine, Umpa};
use umpa::space::Slot;
use umpa_abi::addr::{Gva, PAGE_BYTES, PageSize};

use crate::run::Run;

const UNIT_SHIFT: u32 = 21;
const UNIT_BYTES: usize = PageSize::Size2M.bytes() as usize;
const _: () = assert!(1 << UNIT_SHIFT == UNIT_BYTES);
const BUCKETS: usize = 256;
const WORD_BITS: usize = u64::BITS as usize;

/// Where things lie in a slab: offsets from its base.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    stride_bytes: usize,
    nodes: usize,
    nodes_per_unit: usize,
    units: usize,
    /// Words of bits for each unit.
    words_per_unit: usize,
    header_at: usize,
    bits_at: usize,
    end: usize,
}

impl Plan {
    /// For `nodes` nodes of `bytes` at multiples of `align_bytes`, all above 0; `None` when that can't
    /// be counted.
    pub(crate) fn new(nodes: usize, bytes: usize, align_bytes: usize) -> Option<Self> {
        let stride_bytes = bytes.checked_next_multiple_of(align_bytes)?;
        let large = stride_bytes.checked_mul(nodes)? >= UNIT_BYTES;
        let nodes_per_unit = if large { UNIT_BYTES / stride_bytes } else { nodes };
        let units = nodes.div_ceil(nodes_per_unit);
        let words_per_unit = nodes_per_unit.div_ceil(WORD_BITS);
        let last = (nodes - (units - 1) * nodes_per_unit) * stride_bytes;
        let nodes_end = (units - 1).checked_mul(UNIT_BYTES)?.checked_add(last)?;
        let header_at = nodes_end.checked_next_multiple_of(64)?;
        let bits_at = header_at
            .checked_add(size_of::<Slab>() + units.checked_mul(size_of::<u32>())?)?
            .checked_next_multiple_of(8)?;
        let bits_bytes = units.checked_mul(words_per_unit)?.checked_mul(size_of::<u64>())?;
        let end = bits_at.checked_add(bits_bytes)?;
        Some(Self { stride_bytes, nodes, nodes_per_unit, units, words_per_unit, header_at, bits_at, end })
    }

    /// Nodes of a unit.
    fn unit_nodes(&self, unit: usize) -> usize {
        self.nodes_per_unit.min(self.nodes - unit * self.nodes_per_unit)
    }

    /// Pages, in bytes, of memory that are a unit's alone.
    fn unit_pages(&self, unit: usize) -> u64 {
        let start = unit * UNIT_BYTES;
        let end = (start + UNIT_BYTES).min(self.header_at) as u64;
        (end - end % PAGE_BYTES).saturating_sub(start as u64)
    }
}

/// Instead of a count of live nodes: the unit has no memory.
const GONE: u32 = u32::MAX;

/// A slab's header.
struct Slab {
    next: Option<NonNull<Slab>>,
    /// Of its window.
    base: usize,
    plan: Plan,
    live: usize,
    /// Units without live nodes that have memory.
    idle_units: usize,
}

/// A node of a slab, in use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Node {
    slab: NonNull<Slab>,
    unit: usize,
    number: usize,
    bytes: usize,
}

impl Node {
    /// Bytes that the program may use.
    pub(crate) const fn usable_bytes(self) -> usize {
        self.bytes
    }
}

/// The slabs of a heap, by their bases.
pub(crate) struct Slabs {
    buckets: [Cell<Option<NonNull<Slab>>>; BUCKETS],
}

impl Slabs {
    /// None yet.
    pub(crate) const fn new() -> Self {
        Self { buckets: [const { Cell::new(None) }; BUCKETS] }
    }

    fn bucket(&self, base: u64) -> &Cell<Option<NonNull<Slab>>> {
        &self.buckets[(base.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as usize % BUCKETS]
    }

    /// A new slab; all its nodes are in use.
    pub(crate) fn add<M: Machine>(&self, plan: &Plan, umpa: &mut Umpa<'_, M>) -> Result<Run, AllocError> {
        let bad_size = AllocError::BadSize { bytes: plan.end as u64 };
        let gva = umpa.userpage_window(plan.end as u64)?;
        let bucket = self.bucket(gva.get());
        let first = NonNull::new(with_exposed_provenance_mut::<u8>(gva.get() as usize)).ok_or(bad_size)?;
        // SAFETY: the window's first `end` bytes are mapped, writable, and nobody else's; its base is
        // aligned to a page. Header, counts and bits lie within them by `Plan::new`.
        unsafe {
            let slab = first.add(plan.header_at).cast::<Slab>();
            let (next, base) = (bucket.get(), first.addr().get());
            slab.write(Slab { next, base, plan: *plan, live: plan.nodes, idle_units: 0 });
            first.add(plan.bits_at).write_bytes(0, plan.end - plan.bits_at);
            for unit in 0..plan.units {
                count_of(slab, unit).write(plan.unit_nodes(unit) as u32);
            }
            bucket.set(Some(slab));
        }
        let unit_bytes = if plan.units > 1 { UNIT_BYTES } else { 0 };
        Ok(Run::new(first, plan.nodes, plan.stride_bytes, plan.stride_bytes, plan.nodes_per_unit, unit_bytes))
    }

    /// The slab in whose window the address lies.
    fn slab_around(&self, address: u64) -> Option<NonNull<Slab>> {
        let (slot, _) = Slot::containing(Gva::new(address))?;
        let base = slot.page().start().get();
        let mut next = self.bucket(base).get();
        while let Some(found) = next {
            // SAFETY: what is in a list is a slab.
            let slab = unsafe { found.as_ref() };
            if slab.base as u64 == base {
                return Some(found);
            }
            next = slab.next;
        }
        None
    }

    /// True for addresses in the window of a slab.
    pub(crate) fn holds(&self, address: u64) -> bool {
        self.slab_around(address).is_some()
    }

    /// The node at the address: `None` when no slab is there, an inner `None` when there is no node in
    /// use.
    pub(crate) fn find(&self, address: u64) -> Option<Option<Node>> {
        let found = self.slab_around(address)?;
        // SAFETY: it is a slab; nobody else refers to it within this call.
        let slab = unsafe { found.as_ref() };
        let plan = &slab.plan;
        let offset = address as usize - slab.base;
        let unit = if plan.units > 1 { offset >> UNIT_SHIFT } else { 0 };
        let within = offset - unit * UNIT_BYTES;
        let number = within / plan.stride_bytes;
        let exact = number * plan.stride_bytes == within;
        if !exact || unit >= plan.units || number >= plan.unit_nodes(unit) {
            return Some(None);
        }
        let node = Node { slab: found, unit, number, bytes: plan.stride_bytes };
        // SAFETY: the node is one of the slab's.
        let word = unsafe { word_of(node, number / WORD_BITS).read() };
        Some((word >> (number % WORD_BITS) & 1 == 0).then_some(node))
    }

    /// Ends a node. With `keep` no memory is given back before the slab's last node.
    pub(crate) fn free<M: Machine>(&self, node: Node, umpa: &mut Umpa<'_, M>, keep: bool) {
        // SAFETY: `find` has found the node in its slab, in use, and nothing was done since; nobody else
        // refers to the slab within this call.
        if unsafe { end_nodes(node, 1) } {
            self.settle(node.slab, umpa, keep);
        }
    }

    /// Ends nodes from the first pointer on, as long as those are nodes in use, whatever slabs they are
    /// of; the pointers become null. Returns how many. Units go back after all of them, so that slabs which
    /// end keep their window whole.
    pub(crate) fn free_all<M: Machine>(
        &self,
        pointers: &mut [*mut u8],
        umpa: &mut Umpa<'_, M>,
        keep: bool,
    ) -> usize {
        let mut done = 0;
        // The slab that nodes were ended of, if a unit of it was emptied.
        let mut emptied = None::<NonNull<Slab>>;
        while let Some(first) = pointers.get(done)
            && let Some(Some(node)) = self.find(first.expose_provenance() as u64)
        {
            if let Some(before) = emptied.take_if(|before| *before != node.slab) {
                self.settle(before, umpa, keep);
            }
            // SAFETY: `find` has found the node, in use, and nothing was done since.
            let free_to_end = unsafe { nodes_in_use(node) };
            let (mut address, mut nodes) = (first.addr(), 0);
            for pointer in pointers[done..].iter_mut().take(free_to_end) {
                if pointer.addr() != address {
                    break;
                }
                *pointer = null_mut();
                address = address.wrapping_add(node.bytes);
                nodes += 1;
            }
            // SAFETY: so many from this one on are in use.
            if unsafe { end_nodes(node, nodes) } {
                emptied = Some(node.slab);
            }
            done += nodes;
        }
        if let Some(slab) = emptied {
            self.settle(slab, umpa, keep);
        }
        done
    }

    /// Ends a slab without live nodes, or gives back the units that have none.
    fn settle<M: Machine>(&self, found: NonNull<Slab>, umpa: &mut Umpa<'_, M>, keep: bool) {
        // SAFETY: it is a slab; nobody else refers to it within this call.
        let slab = unsafe { &mut *found.as_ptr() };
        if slab.live == 0 {
            let base = slab.base as u64;
            self.unlink(found, base);
            let freed = umpa.userpage_free(Gva::new(base));
            debug_assert!(freed.is_ok(), "{freed:?}");
            return;
        }
        if slab.idle_units == 0 || slab.plan.units == 1 || keep {
            return;
        }
        for unit in 0..slab.plan.units {
            // SAFETY: the unit is one of the slab's.
            let count = unsafe { count_of(found, unit) };
            // SAFETY: counts lie in the header, which is mapped, and nobody else refers to them.
            if unsafe { count.read() } != 0 {
                continue;
            }
            let (start, bytes) = (slab.base + unit * UNIT_BYTES, slab.plan.unit_pages(unit));
            // It keeps its memory if there is no table to cut a leaf with.
            if bytes == 0 || umpa.userpage_release(Gva::new(start as u64), bytes).is_ok() {
                // SAFETY: as above.
                unsafe { count.write(GONE) };
                slab.idle_units -= 1;
            }
        }
    }

    fn unlink(&self, slab: NonNull<Slab>, base: u64) {
        let bucket = self.bucket(base);
        // SAFETY: all in the list are slabs, and nobody else refers to them within this call.
        unsafe {
            let after = slab.as_ref().next;
            match bucket.get() {
                Some(first) if first == slab => bucket.set(after),
                mut at => {
                    while let Some(mut before) = at {
                        if before.as_ref().next == Some(slab) {
                            before.as_mut().next = after;
                            return;
                        }
                        at = before.as_ref().next;
                    }
                }
            }
        }
    }

    /// Ends all slabs, their nodes with them.
    pub(crate) fn clear<M: Machine>(&self, umpa: &mut Umpa<'_, M>) {
        for bucket in &self.buckets {
            while let Some(slab) = bucket.take() {
                // SAFETY: it is a slab, which ends here.
                let (next, base) = unsafe { (slab.as_ref().next, slab.as_ref().base) };
                bucket.set(next);
                let freed = umpa.userpage_free(Gva::new(base as u64));
                debug_assert!(freed.is_ok(), "{freed:?}");
            }
        }
    }
}

/// A unit's count of live nodes.
///
/// # Safety
/// The unit is one of the slab's.
unsafe fn count_of(slab: NonNull<Slab>, unit: usize) -> NonNull<u32> {
    // SAFETY: the counts follow the header; the caller's precondition.
    unsafe { slab.add(1).cast::<u32>().add(unit) }
}

/// A word of the bits of a node's unit.
///
/// # Safety
/// The node is one of its slab's, and its unit has so many words.
unsafe fn word_of(node: Node, word: usize) -> NonNull<u64> {
    // SAFETY: the bits lie behind the header, and all of it is mapped; the caller's precondition.
    unsafe {
        let plan = &node.slab.as_ref().plan;
        let bits = node.slab.cast::<u8>().add(plan.bits_at - plan.header_at).cast::<u64>();
        bits.add(node.unit * plan.words_per_unit + word)
    }
}

/// Nodes in use from this one on, up to the first that isn't, or to the end of its unit.
///
/// # Safety
/// The node is one of its slab's.
unsafe fn nodes_in_use(node: Node) -> usize {
    // SAFETY: it is a slab; nobody else refers to it within this call.
    let all = unsafe { node.slab.as_ref() }.plan.unit_nodes(node.unit);
    let mut at = node.number;
    while at < all {
        // SAFETY: `at` is a node of the unit.
        let word = unsafe { word_of(node, at / WORD_BITS).read() } >> (at % WORD_BITS);
        let in_use = (word.trailing_zeros() as usize).min(WORD_BITS - at % WORD_BITS);
        at += in_use;
        if !at.is_multiple_of(WORD_BITS) || in_use == 0 {
            break;
        }
    }
    at.min(all) - node.number
}

/// Marks so many nodes as freed, and counts them. True when none is left in their unit.
///
/// # Safety
/// From this one on so many of its unit are in use; nobody else refers to the slab.
unsafe fn end_nodes(mut node: Node, nodes: usize) -> bool {
    let (mut at, end) = (node.number, node.number + nodes);
    while at < end {
        let bits = (end - at).min(WORD_BITS - at % WORD_BITS);
        let mask = (u64::MAX >> (WORD_BITS - bits)) << (at % WORD_BITS);
        // SAFETY: these are nodes of the unit (precondition).
        let word = unsafe { word_of(node, at / WORD_BITS) };
        // SAFETY: bits lie behind the header, which is mapped.
        unsafe { word.write(word.read() | mask) };
        at += bits;
    }
    // SAFETY: it is a slab, and the unit is one of its (precondition).
    unsafe {
        let count = count_of(node.slab, node.unit);
        let left = count.read() - nodes as u32;
        count.write(left);
        let slab = node.slab.as_mut();
        slab.live -= nodes;
        slab.idle_units += usize::from(left == 0);
        left == 0
    }
}
