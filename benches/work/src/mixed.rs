//! Mixed operations on mappings: the work of `vmm bench batch`, the same sequence from the same seed
//! whether its operations are single calls or go through a queue.
//!
//! An arena of slots of 16 pages lies side by side. An operation takes a slot at random: an empty one is
//! mapped (1 to 16 pages); a mapped one is unmapped, moved to an empty slot, or made readable only and
//! writable again. In the long run all four are equally frequent. Before the first operation all pages
//! that are mapped are written; after the last one all are read, and written where that is allowed.
#![allow(unsafe_code, reason = "touches what it has mapped")]

use fastrand::Rng;
use umpa_abi::record::{Sample, name};

use crate::conformance::number::{ANONYMOUS, FIXED, MAYMOVE, PRIVATE, READ, RW, TO};
use crate::conformance::{Call, PAGE, Place};
use crate::family::Memory;
use crate::raw::tsc_cycles;

/// Slots of the arena.
pub const SLOTS: usize = 512;
/// Pages of a slot.
pub const SLOT_PAGES: u64 = 16;
/// Bytes of the arena.
pub const ARENA_BYTES: u64 = SLOTS as u64 * SLOT_PAGES * PAGE;

/// What a slot holds.
#[derive(Clone, Copy, Default)]
struct Slot {
    /// 0: nothing.
    pages: u64,
    read_only: bool,
}

/// The operations of one round, one by one, and what they must lead to.
pub struct Mixed {
    slots: [Slot; SLOTS],
    random: Rng,
    pages: u64,
}

impl Mixed {
    /// Nothing is mapped yet; three quarters of the slots are to be ([`Self::start`]).
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { slots: [Slot::default(); SLOTS], random: Rng::with_seed(seed), pages: 0 }
    }

    /// Calls that map what is there at the start.
    pub fn start(&mut self) -> impl Iterator<Item = Call> + '_ {
        (0..SLOTS).filter(|slot| slot % 4 != 0).map(|slot| self.map(slot))
    }

    /// Pages that the operations so far concerned.
    #[must_use]
    pub const fn pages(&self) -> u64 {
        self.pages
    }

    /// The next operation.
    pub fn next_op(&mut self) -> Call {
        let slot = self.random.usize(..SLOTS);
        let Slot { pages, read_only } = self.slots[slot];
        if pages == 0 {
            return self.map(slot);
        }
        self.pages += pages;
        let bytes = pages * PAGE;
        match self.random.u32(..3) {
            0 => {
                self.slots[slot] = Slot::default();
                Call::Munmap(at(slot), bytes)
            }
            1 => {
                let wish = self.random.usize(..SLOTS);
                let empty = (0..SLOTS).map(|offset| (wish + offset) % SLOTS);
                let to = empty.into_iter().find(|&to| self.slots[to].pages == 0);
                let Some(to) = to else { return self.protect(slot, bytes, !read_only) };
                self.slots[to] = self.slots[slot];
                self.slots[slot] = Slot::default();
                Call::Mremap(at(slot), [bytes; 2], MAYMOVE | TO, at(to))
            }
            _ => self.protect(slot, bytes, !read_only),
        }
    }

    fn protect(&mut self, slot: usize, bytes: u64, read_only: bool) -> Call {
        self.slots[slot].read_only = read_only;
        Call::Mprotect(at(slot), bytes, if read_only { READ } else { RW })
    }

    fn map(&mut self, slot: usize) -> Call {
        let pages = self.random.u64(1..=SLOT_PAGES);
        self.pages += pages;
        self.slots[slot] = Slot { pages, read_only: false };
        Call::Mmap(at(slot), pages * PAGE, RW, PRIVATE | ANONYMOUS | FIXED)
    }

    /// Writes a number of its own into each page that may be written; [`None`] where a page isn't mapped.
    pub fn write<M: Memory>(&self, memory: &mut M) -> Option<()> {
        self.check(memory)?;
        self.store(memory.arena());
        Some(())
    }

    /// True when all pages are mapped.
    fn check<M: Memory>(&self, memory: &mut M) -> Option<()> {
        let arena = memory.arena();
        let mut slots = self.slots.iter().enumerate().filter(|(_, slot)| slot.pages > 0);
        let mapped = slots
            .all(|(number, slot)| memory.mincore(at(number).address(arena), slot.pages * PAGE, true).is_ok());
        mapped.then_some(())
    }

    /// [`Self::write`], after the check.
    fn store(&self, arena: u64) {
        for (offset, number) in self.each_page(false) {
            // SAFETY: the page is mapped (`check`), in an arena that nobody else uses (`Memory`).
            unsafe { ((arena + offset) as *mut u64).write_volatile(number) };
        }
    }

    /// A checksum of what is in all pages, after the check.
    fn load(&self, arena: u64) -> u64 {
        self.each_page(true).fold(0u64, |sum, (offset, number)| {
            // SAFETY: as in `store`.
            let found = unsafe { ((arena + offset) as *const u64).read_volatile() };
            sum.wrapping_add(found.wrapping_mul(number | 1)).rotate_left(1)
        })
    }

    /// Offset and number of each mapped page.
    fn each_page(&self, read_only_too: bool) -> impl Iterator<Item = (u64, u64)> + '_ {
        let slots = self.slots.iter().enumerate();
        slots.filter(move |(_, slot)| read_only_too || !slot.read_only).flat_map(|(number, slot)| {
            let first = number as u64 * SLOT_PAGES;
            (first..first + slot.pages).map(|page| (page * PAGE, page + 1))
        })
    }
}

/// Operations that are drawn together, out of the time.
const CHUNK: usize = 64;

/// Draws `ops` operations and has them made, some at a time; returns the cycles that `make` took.
///
/// # Errors
/// Those of `make`.
pub fn timed<E>(
    mixed: &mut Mixed,
    ops: usize,
    mut make: impl FnMut(&[Call]) -> Result<(), E>,
) -> Result<u64, E> {
    let mut cycles = 0;
    let mut left = ops;
    while left > 0 {
        let mut chunk = [Call::MmapUntilRefused; CHUNK];
        let count = left.min(CHUNK);
        chunk[..count].fill_with(|| mixed.next_op());
        let start = tsc_cycles();
        make(&chunk[..count])?;
        cycles += tsc_cycles().wrapping_sub(start);
        left -= count;
    }
    Ok(cycles)
}

/// The results of a round as samples: the operations, the touches after them, and both. All pages are read,
/// and written where that is allowed. [`None`] where a page isn't mapped.
pub fn finish<M: Memory>(
    mixed: &Mixed,
    memory: &mut M,
    series: &'static str,
    ops: usize,
    cycles: u64,
) -> Option<[Sample; 3]> {
    mixed.check(memory)?;
    let arena = memory.arena();
    let start = tsc_cycles();
    let check = mixed.load(arena);
    mixed.store(arena);
    let touch_cycles = tsc_cycles().wrapping_sub(start);
    let sample = |work, cycles| Sample {
        series: name(series),
        work: name(work),
        bytes: 0,
        ops: ops as u64,
        pages: mixed.pages(),
        cycles,
        check,
        reserved: 0,
    };
    let both_cycles = cycles + touch_cycles;
    Some([sample("ops", cycles), sample("touch-after", touch_cycles), sample("ops.touch", both_cycles)])
}

const fn at(slot: usize) -> Place {
    Place::At(slot as u64 * SLOT_PAGES * PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_mixed_and_the_same_for_the_same_seed() {
        let (mut one, mut other) = (Mixed::new(7), Mixed::new(7));
        assert_eq!(one.start().count(), SLOTS * 3 / 4);
        assert_eq!(other.start().count(), SLOTS * 3 / 4);
        let mut kinds = [0; 4];
        for _ in 0..10_000 {
            let call = one.next_op();
            assert_eq!(std::format!("{call:?}"), std::format!("{:?}", other.next_op()));
            match call {
                Call::Mmap(..) => kinds[0] += 1,
                Call::Munmap(..) => kinds[1] += 1,
                Call::Mremap(..) => kinds[2] += 1,
                Call::Mprotect(..) => kinds[3] += 1,
                other => panic!("{other:?}"),
            }
        }
        assert!(kinds.iter().all(|&count| (2000..3000).contains(&count)), "{kinds:?}");
    }

    extern crate std;
}
