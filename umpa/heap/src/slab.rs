//! Slabs: runs of equal nodes without headers, each node freed alone.
//!
//! A slab has a window of `umpa`'s to itself, so its base is found from a node's address by the
//! window's size; the heap knows the bases of its slabs.
//!
//! ```text
//! base  │ Slab │ live nodes of each unit │ a bit for each node: freed │ … │ unit 0 │ unit 1 │ … │
//! unit  │ node │ node │ … │ rest, smaller than a node │          2 MiB each, from 2 MiB of nodes on
//! ```
//!
//! Invariants: `live = Σ live of units = nodes - freed bits`; a unit without live nodes has no memory
//! (of several units), a slab without live nodes doesn't exist. A freed node isn't given out again: its
//! unit's memory goes back as a whole.
//!
//! Cost: making one takes the window, and a zero bit for each node, whatever the nodes are used for
//! later: no node is touched. Freeing a node is constant.

#![allow(unsafe_code)] // reason: keeps its records in the memory that it describes

use core::cell::Cell;
use core::ptr::{NonNull, with_exposed_provenance_mut};

use umpa::blocks::{AllocError, BlockError, Machine, Umpa};
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
    bits_at: usize,
    header_bytes: usize,
    nodes_at: usize,
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
        let bits_at =
            (size_of::<Slab>() + units.checked_mul(size_of::<u32>())?).checked_next_multiple_of(8)?;
        let bits_bytes = units.checked_mul(words_per_unit)?.checked_mul(size_of::<u64>())?;
        let header_bytes = bits_at.checked_add(bits_bytes)?;
        let boundary = if large { UNIT_BYTES } else { align_bytes.max(64) };
        let nodes_at = header_bytes.checked_next_multiple_of(boundary)?;
        let last = (nodes - (units - 1) * nodes_per_unit) * stride_bytes;
        let end = nodes_at.checked_add((units - 1).checked_mul(UNIT_BYTES)?)?.checked_add(last)?;
        Some(Self {
            stride_bytes,
            nodes,
            nodes_per_unit,
            units,
            words_per_unit,
            bits_at,
            header_bytes,
            nodes_at,
            end,
        })
    }

    /// Pages, in bytes, of memory that a unit has.
    fn unit_pages(&self, unit: usize) -> u64 {
        let start = self.nodes_at + unit * UNIT_BYTES;
        let end = self.end.min(start + UNIT_BYTES) as u64;
        end.next_multiple_of(PAGE_BYTES) - start as u64
    }
}

/// What begins a slab's window.
struct Slab {
    next: Option<NonNull<Slab>>,
    plan: Plan,
    live: usize,
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
        let gva = umpa.userpage_reserve(plan.end as u64)?;
        if let Err(error) = back(plan, gva, umpa) {
            let freed = umpa.userpage_free(gva);
            debug_assert!(freed.is_ok(), "{freed:?}");
            return Err(match error {
                BlockError::Alloc(error) => error,
                _ => AllocError::BadSize { bytes: plan.end as u64 },
            });
        }
        let bucket = self.bucket(gva.get());
        let base = NonNull::new(with_exposed_provenance_mut::<u8>(gva.get() as usize));
        let base = base.ok_or(AllocError::BadSize { bytes: plan.end as u64 })?;
        let slab = base.cast::<Slab>();
        // SAFETY: the window's first `header_bytes` bytes are mapped, writable, and nobody else's; its
        // base is aligned to a page. Counts and bits lie within them by `Plan::new`.
        unsafe {
            slab.write(Slab { next: bucket.get(), plan: *plan, live: plan.nodes });
            base.add(plan.bits_at).write_bytes(0, plan.header_bytes - plan.bits_at);
            let counts = base.add(size_of::<Slab>()).cast::<u32>();
            for unit in 0..plan.units {
                let before = unit * plan.nodes_per_unit;
                counts.add(unit).write(plan.nodes_per_unit.min(plan.nodes - before) as u32);
            }
        }
        bucket.set(Some(slab));
        let first = base.as_ptr().wrapping_add(plan.nodes_at);
        let unit_bytes = if plan.units > 1 { UNIT_BYTES } else { 0 };
        let first = NonNull::new(first).unwrap_or(base);
        Ok(Run::new(first, plan.nodes, plan.stride_bytes, plan.stride_bytes, plan.nodes_per_unit, unit_bytes))
    }

    /// The slab in whose window the address lies.
    fn slab_around(&self, address: u64) -> Option<NonNull<Slab>> {
        let (slot, _) = Slot::containing(Gva::new(address))?;
        let base = slot.page().start().get();
        let mut next = self.bucket(base).get();
        while let Some(slab) = next {
            if slab.addr().get() as u64 == base {
                return Some(slab);
            }
            // SAFETY: what is in a list is a slab.
            next = unsafe { slab.as_ref() }.next;
        }
        None
    }

    /// The node at the address: `None` when no slab is there, an inner `None` when there is no node in
    /// use.
    pub(crate) fn find(&self, address: u64) -> Option<Option<Node>> {
        let found = self.slab_around(address)?;
        // SAFETY: it is a slab; nobody else refers to it within this call.
        let slab = unsafe { found.as_ref() };
        let plan = &slab.plan;
        let Some(offset) = (address as usize - found.addr().get()).checked_sub(plan.nodes_at) else {
            return Some(None);
        };
        let unit = if plan.units > 1 { offset >> UNIT_SHIFT } else { 0 };
        let within = offset - unit * UNIT_BYTES;
        let number = within / plan.stride_bytes;
        let exact = number * plan.stride_bytes == within;
        if !exact || number >= plan.nodes_per_unit || unit * plan.nodes_per_unit + number >= plan.nodes {
            return Some(None);
        }
        let node = Node { slab: found, unit, number, bytes: plan.stride_bytes };
        // SAFETY: the node is one of the slab's.
        let word = unsafe { bits_of(node).read() };
        Some((word >> (number % WORD_BITS) & 1 == 0).then_some(node))
    }

    /// Ends a node. With `keep` no memory is given back before the slab's last node.
    pub(crate) fn free<M: Machine>(&self, node: Node, umpa: &mut Umpa<'_, M>, keep: bool) {
        let mut found = node.slab;
        // SAFETY: `find` has found the node in its slab, in use, and nothing was done since; nobody else
        // refers to the slab within this call.
        let (left_in_unit, slab) = unsafe {
            let word = bits_of(node);
            word.write(word.read() | 1 << (node.number % WORD_BITS));
            let count = found.cast::<u8>().add(size_of::<Slab>()).cast::<u32>().add(node.unit);
            count.write(count.read() - 1);
            (count.read(), found.as_mut())
        };
        slab.live -= 1;
        let base = found.addr().get();
        if slab.live == 0 {
            self.unlink(found);
            let freed = umpa.userpage_free(Gva::new(base as u64));
            debug_assert!(freed.is_ok(), "{freed:?}");
        } else if left_in_unit == 0 && !keep {
            let start = base + slab.plan.nodes_at + node.unit * UNIT_BYTES;
            // It keeps its memory if there is no table to cut a leaf with.
            let _ = umpa.userpage_release(Gva::new(start as u64), slab.plan.unit_pages(node.unit));
        }
    }

    fn unlink(&self, slab: NonNull<Slab>) {
        let bucket = self.bucket(slab.addr().get() as u64);
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
                bucket.set(unsafe { slab.as_ref() }.next);
                let freed = umpa.userpage_free(Gva::new(slab.addr().get() as u64));
                debug_assert!(freed.is_ok(), "{freed:?}");
            }
        }
    }
}

/// Memory for the header and the nodes; on an error some may have it.
fn back<M: Machine>(plan: &Plan, gva: Gva, umpa: &mut Umpa<'_, M>) -> Result<(), BlockError> {
    let whole = |bytes: usize| (bytes as u64).next_multiple_of(PAGE_BYTES);
    if plan.nodes_at.is_multiple_of(UNIT_BYTES) {
        umpa.userpage_commit(gva, whole(plan.header_bytes))?;
        umpa.userpage_commit(Gva::new(gva.get() + plan.nodes_at as u64), whole(plan.end - plan.nodes_at))?;
    } else {
        umpa.userpage_commit(gva, whole(plan.end))?;
    }
    Ok(())
}

/// The word with a node's bit.
///
/// # Safety
/// The node is one of its slab's.
unsafe fn bits_of(node: Node) -> NonNull<u64> {
    // SAFETY: the bits lie in the slab's header, which is mapped; the caller's precondition.
    unsafe {
        let plan = &node.slab.as_ref().plan;
        let word = node.unit * plan.words_per_unit + node.number / WORD_BITS;
        node.slab.cast::<u8>().add(plan.bits_at).cast::<u64>().add(word)
    }
}
