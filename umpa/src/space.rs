//! Virtual address space: windows with room to grow.
//!
//! Addresses are plentiful (design decision 7), so nothing is packed: the space is divided by size.
//! Class `k` owns 1 TiB (two entries of the root table) of slots of 2^k bytes each, and a window is
//! one slot. So an address tells its class and slot by shifting, reserving and releasing are
//! constant-time, and slots never fragment.
//!
//! ```text
//! slot    fresh ──reserve──► Live{pages} ──release──► Stale ──flush──► Free ──reserve──► Live
//!                               │   ▲
//!                            retain take
//!                               ▼   │
//!                            Retained{pages}     (freed, still mapped)
//! ```
//!
//! A stale slot isn't given out before a flush ([`FlushedAll`]). Slots are reused last in, first out,
//! so that their tables are reused too.
//!
//! A live window may lose some of its pages. Until the next flush, its record tells so (the number of
//! flushes before, [`AddressSpace::mark_stale`]): to map other frames there takes a flush first.
//!
//! A window that was retained, and is live again, is known to be whole, until something is done to its leaves
//! ([`AddressSpace::retain_whole`]): freed again, it needs no look at each of them.
//!
//! A cover is a live slot of another kind: its block begins at an offset, so that page and frame are
//! congruent.
//!
//! Bookkeeping is one 8-byte record for each slot ever used, in sparse arrays made of frames of the
//! table arena: 512 records a frame.

mod record;

use crate::flush::FlushedAll;
use crate::hardware::TableMemory;
use crate::tables::TableArena;
use record::{NONE, Place, Record, Records, WHOLE, forget};
use umpa_abi::addr::{Gva, PAGE_SHIFT, Page};
use umpa_abi::layout::{BLOCKS_BYTES, BLOCKS_GVA};

/// log2 of the smallest slot's bytes: one page.
pub const SHIFT_MIN: u32 = PAGE_SHIFT;
/// log2 of the largest slot's bytes: 256 GiB.
pub const SHIFT_MAX: u32 = 38;
const REGION_SHIFT: u32 = 40;
const CLASSES: usize = (SHIFT_MAX - SHIFT_MIN + 1) as usize;
const _: () = assert!((CLASSES as u64) << REGION_SHIFT <= BLOCKS_BYTES);
const _: () = assert!(BLOCKS_GVA.get().is_multiple_of(1 << REGION_SHIFT));

/// Why no address can be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpaceError {
    /// No slot is that large.
    TooLarge {
        /// Pages asked for.
        pages: u64,
    },
    /// All slots of the class are in use or wait for a flush.
    OutOfAddresses,
    /// No frame is left for the records.
    OutOfTables,
}

/// One slot: a range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    shift: u32,
    index: u32,
}

impl Slot {
    /// First page.
    #[must_use]
    pub const fn page(self) -> Page {
        let region = BLOCKS_GVA.get() + ((self.shift - SHIFT_MIN) as u64) * (1 << REGION_SHIFT);
        Gva::new(region + ((self.index as u64) << self.shift)).containing()
    }

    /// Pages in the slot.
    #[must_use]
    pub const fn pages(self) -> u64 {
        1 << (self.shift - PAGE_SHIFT)
    }

    /// The slot that contains an address, and the address's offset in it, in bytes.
    #[must_use]
    pub const fn containing(gva: Gva) -> Option<(Self, u64)> {
        let Some(offset) = gva.get().checked_sub(BLOCKS_GVA.get()) else { return None };
        let shift = SHIFT_MIN as u64 + (offset >> REGION_SHIFT);
        if shift > SHIFT_MAX as u64 {
            return None;
        }
        let within = offset & ((1 << REGION_SHIFT) - 1);
        let slot = Self { shift: shift as u32, index: (within >> shift) as u32 };
        Some((slot, within & ((1 << shift) - 1)))
    }

    const fn class(self) -> usize {
        (self.shift - SHIFT_MIN) as usize
    }
}

/// What a slot is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nobody's: never used, free, or waiting for a flush.
    Vacant,
    /// A window whose first `pages` pages may be mapped.
    Live {
        /// Those pages.
        pages: u64,
    },
    /// A block of one run, mapped by large leaves that reach over its ends.
    Cover {
        /// Its first page, counted from the slot's.
        offset_pages: u64,
        /// Its pages.
        pages: u64,
    },
    /// Somebody's who isn't the blocks': no block begins there.
    Held {
        /// 32 bits of the holder's.
        note: u64,
    },
    /// A freed window that keeps its mapping.
    Retained {
        /// Pages mapped.
        pages: u64,
    },
}

#[derive(Clone, Copy)]
struct Class {
    records: Records,
    /// Slots from this one on were never used.
    fresh: u32,
    free: u32,
    stale_first: u32,
    stale_last: u32,
    retained: u32,
    /// Slots that are live or retained.
    used: u32,
}

/// See the [module](self).
pub struct AddressSpace {
    classes: [Class; CLASSES],
    live: u64,
    retained_pages: u64,
}

impl Default for AddressSpace {
    fn default() -> Self {
        Self::new()
    }
}

impl AddressSpace {
    /// All of it vacant.
    #[must_use]
    pub const fn new() -> Self {
        let class = Class {
            records: Records { root: None },
            fresh: 0,
            free: NONE,
            stale_first: NONE,
            stale_last: NONE,
            retained: NONE,
            used: 0,
        };
        Self { classes: [class; CLASSES], live: 0, retained_pages: 0 }
    }

    /// Live windows.
    #[must_use]
    pub const fn live(&self) -> u64 {
        self.live
    }

    /// Pages of retained windows.
    #[must_use]
    pub const fn retained_pages(&self) -> u64 {
        self.retained_pages
    }

    /// Reserves a slot of at least `capacity_pages` as a live window of `pages`.
    ///
    /// # Errors
    /// [`SpaceError`], and nothing is reserved.
    pub fn reserve(
        &mut self,
        memory: &mut impl TableMemory,
        arena: &mut TableArena<'_>,
        capacity_pages: u64,
        pages: u64,
    ) -> Result<Slot, SpaceError> {
        let too_large = SpaceError::TooLarge { pages: capacity_pages };
        let shift = capacity_pages.checked_next_power_of_two().ok_or(too_large)?.trailing_zeros();
        let shift = (shift + PAGE_SHIFT).max(SHIFT_MIN);
        if shift > SHIFT_MAX {
            return Err(too_large);
        }
        let class = &mut self.classes[(shift - SHIFT_MIN) as usize];
        let fresh = class.free == NONE;
        let index = if fresh { class.fresh } else { class.free };
        if u64::from(index) >= 1 << (REGION_SHIFT - shift) {
            return Err(SpaceError::OutOfAddresses);
        }
        let slot = Slot { shift, index };
        let next = if fresh { NONE } else { class.records.get(memory, slot).link() };
        class.records.set(memory, arena, slot, Record::new(Record::LIVE, pages, NONE))?;
        if fresh {
            class.fresh += 1;
        } else {
            class.free = next;
        }
        class.used += 1;
        self.live += 1;
        Ok(slot)
    }

    /// What the slot is used for.
    pub fn state(&self, memory: &impl TableMemory, slot: Slot) -> State {
        self.classes[slot.class()].records.get(memory, slot).state()
    }

    /// Sets the length of a live window.
    pub fn set_pages(
        &mut self,
        memory: &mut impl TableMemory,
        arena: &mut TableArena<'_>,
        slot: Slot,
        pages: u64,
    ) {
        let link = self.classes[slot.class()].records.get(memory, slot).link();
        self.rewrite(memory, arena, slot, Record::new(Record::LIVE, pages, link));
    }

    /// Makes a live window, or a cover, a cover of `pages` from `offset_pages` on.
    pub fn set_cover(
        &mut self,
        memory: &mut impl TableMemory,
        arena: &mut TableArena<'_>,
        slot: Slot,
        offset_pages: u64,
        pages: u64,
    ) {
        debug_assert!(offset_pages + pages <= slot.pages());
        self.rewrite(memory, arena, slot, Record::new(Record::COVER, pages, offset_pages as u32));
    }

    /// Makes a live window a holder's, with a note of 32 bits, or gives a held one another note.
    pub(crate) fn hold(
        &mut self,
        memory: &mut impl TableMemory,
        arena: &mut TableArena<'_>,
        slot: Slot,
        note: u64,
    ) {
        debug_assert!(note >> 32 == 0);
        self.rewrite(memory, arena, slot, Record::new(Record::COVER, note, NONE));
    }

    /// Records that pages of a live window were unmapped after flush number `settled`.
    pub fn mark_stale(
        &mut self,
        memory: &mut impl TableMemory,
        arena: &mut TableArena<'_>,
        slot: Slot,
        settled: u64,
    ) {
        if let State::Live { pages } = self.state(memory, slot) {
            let link = (settled % u64::from(WHOLE)) as u32;
            self.rewrite(memory, arena, slot, Record::new(Record::LIVE, pages, link));
        }
    }

    /// True when pages of a live window were unmapped and `settled` is still the number of flushes.
    pub fn is_stale(&self, memory: &impl TableMemory, slot: Slot, settled: u64) -> bool {
        let link = self.classes[slot.class()].records.get(memory, slot).link();
        u64::from(link) == settled % u64::from(WHOLE)
    }

    /// Whether a live window is whole isn't known any more: to be called before anything is done to its leaves
    /// that [`mark_stale`](Self::mark_stale) doesn't tell of. Slots of other kinds stay as they are.
    pub fn forget_whole(&mut self, memory: &mut impl TableMemory, arena: &mut TableArena<'_>, slot: Slot) {
        let record = self.classes[slot.class()].records.get(memory, slot);
        if record.link() == WHOLE
            && let State::Live { pages } = record.state()
        {
            self.rewrite(memory, arena, slot, Record::new(Record::LIVE, pages, NONE));
        }
    }

    /// Ends a live window whose pages are unmapped; its addresses wait for a flush.
    pub fn release(&mut self, memory: &mut impl TableMemory, arena: &mut TableArena<'_>, slot: Slot) {
        let first = self.classes[slot.class()].stale_first;
        self.rewrite(memory, arena, slot, Record::new(Record::VACANT, 0, first));
        let class = &mut self.classes[slot.class()];
        class.stale_first = slot.index;
        if first == NONE {
            class.stale_last = slot.index;
        }
        class.used -= 1;
        self.live -= 1;
    }

    /// Ends a live window of `pages` that stays mapped.
    pub fn retain(
        &mut self,
        memory: &mut impl TableMemory,
        arena: &mut TableArena<'_>,
        slot: Slot,
        pages: u64,
    ) {
        let next = self.classes[slot.class()].retained;
        self.rewrite(memory, arena, slot, Record::new(Record::RETAINED, pages, next));
        self.classes[slot.class()].retained = slot.index;
        self.live -= 1;
        self.retained_pages += pages;
    }

    /// Ends a live window that is known to be whole and stays mapped: it was retained, and since then nothing was done
    /// to its leaves but to map more at its end. False for any other slot, and nothing is done. One look at the record
    /// and one store to it: this is how blocks that come back again and again are freed.
    pub fn retain_whole(&mut self, memory: &mut impl TableMemory, slot: Slot) -> bool {
        let class = &mut self.classes[slot.class()];
        let Some((place, record)) = class.records.find(memory, slot) else { return false };
        let pages = record.pages();
        if !record.is_known_whole() || pages == 0 {
            return false;
        }
        place.write(memory, Record::new(Record::RETAINED, pages, class.retained));
        class.retained = slot.index;
        self.live -= 1;
        self.retained_pages += pages;
        true
    }

    /// Makes the retained window that was freed last, among those with slots for `capacity_pages`,
    /// live again if it has from `pages` to `pages_max` pages.
    pub fn take_retained(
        &mut self,
        memory: &mut impl TableMemory,
        capacity_pages: u64,
        pages: u64,
        pages_max: u64,
    ) -> Option<(Slot, u64)> {
        let shift = capacity_pages.checked_next_power_of_two()?.trailing_zeros() + PAGE_SHIFT;
        let class =
            shift.max(SHIFT_MIN).checked_sub(SHIFT_MIN).filter(|&class| (class as usize) < CLASSES)?;
        let (slot, place, record) = self.head_retained(memory, class as usize)?;
        let have = record.pages();
        if have < pages || have > pages_max {
            return None;
        }
        self.unretain(memory, slot, place, record);
        Some((slot, have))
    }

    /// Makes any retained window live again, the largest class first, so that it can be unmapped.
    pub fn take_any_retained(&mut self, memory: &mut impl TableMemory) -> Option<(Slot, u64)> {
        let (slot, place, record) = (0..CLASSES).rev().find_map(|class| self.head_retained(memory, class))?;
        self.unretain(memory, slot, place, record);
        Some((slot, record.pages()))
    }

    /// Frees the stale slots; the argument proves the flush. Constant time for each class.
    pub fn release_quarantine(
        &mut self,
        memory: &mut impl TableMemory,
        arena: &mut TableArena<'_>,
        _flushed: &FlushedAll,
    ) {
        for number in 0..CLASSES {
            let class = self.classes[number];
            if class.stale_first == NONE {
                continue;
            }
            let last = Slot { shift: number as u32 + SHIFT_MIN, index: class.stale_last };
            self.rewrite(memory, arena, last, Record::new(Record::VACANT, 0, class.free));
            let class = &mut self.classes[number];
            class.free = class.stale_first;
            (class.stale_first, class.stale_last) = (NONE, NONE);
        }
    }

    /// Gives the frames of the records back, for classes of which no slot is live, retained or stale.
    /// Linear in those records.
    pub fn forget_vacant(&mut self, memory: &mut impl TableMemory, arena: &mut TableArena<'_>) {
        for (number, class) in self.classes.iter_mut().enumerate() {
            if class.used > 0 || class.stale_first != NONE {
                continue;
            }
            if let Some(root) = class.records.root.take() {
                forget(memory, arena, root, Records::height(number as u32 + SHIFT_MIN));
            }
            (class.fresh, class.free) = (0, NONE);
        }
    }

    /// The retained window of a class that was freed last: its slot, where its record is, and that.
    fn head_retained(&self, memory: &impl TableMemory, class: usize) -> Option<(Slot, Place, Record)> {
        let index = self.classes[class].retained;
        if index == NONE {
            return None;
        }
        let slot = Slot { shift: class as u32 + SHIFT_MIN, index };
        let (place, record) = self.classes[class].records.find(memory, slot)?;
        debug_assert!(matches!(record.state(), State::Retained { .. }), "{slot:?} is in the list");
        Some((slot, place, record))
    }

    fn unretain(&mut self, memory: &mut impl TableMemory, slot: Slot, place: Place, record: Record) {
        place.write(memory, Record::new(Record::LIVE, record.pages(), WHOLE));
        self.classes[slot.class()].retained = record.link();
        self.live += 1;
        self.retained_pages -= record.pages();
    }

    /// Replaces a record that exists already, so that no frame is needed.
    fn rewrite(
        &mut self,
        memory: &mut impl TableMemory,
        arena: &mut TableArena<'_>,
        slot: Slot,
        record: Record,
    ) {
        let set = self.classes[slot.class()].records.set(memory, arena, slot, record);
        debug_assert_eq!(set, Ok(()), "the record of {slot:?} exists");
    }
}

#[cfg(test)]
mod tests;
