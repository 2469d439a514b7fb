//! The records of slots, in sparse arrays.

use super::{REGION_SHIFT, SHIFT_MIN, Slot, SpaceError, State};
use crate::hardware::TableMemory;
use crate::tables::TableArena;
use umpa_abi::addr::Frame;
use umpa_abi::paging::ENTRIES;

const LINK_BITS: u32 = 30;
/// No link.
pub(super) const NONE: u32 = (1 << LINK_BITS) - 1;
/// Of a live slot: all its pages are known to be mapped.
pub(super) const WHOLE: u32 = NONE - 1;
const _: () = assert!(1u64 << (REGION_SHIFT - SHIFT_MIN) < WHOLE as u64);

/// A slot's record: kind (2 bits), pages (32 bits), link (30 bits). A live slot is in no list: its link
/// is the number of flushes when a page of it was unmapped last, modulo [`WHOLE`], or `WHOLE`, or `NONE`. A
/// cover's is its offset; with `NONE` it isn't a cover but held, and the pages are its note.
#[derive(Clone, Copy)]
pub(super) struct Record(pub(super) u64);

impl Record {
    pub(super) const VACANT: u64 = 0;
    pub(super) const COVER: u64 = 1;
    pub(super) const LIVE: u64 = 2;
    pub(super) const RETAINED: u64 = 3;

    pub(super) const fn new(kind: u64, pages: u64, link: u32) -> Self {
        Self(kind << 62 | pages << LINK_BITS | link as u64)
    }

    pub(super) const fn state(self) -> State {
        let pages = self.pages();
        match self.0 >> 62 {
            Self::COVER if self.link() == NONE => State::Held { note: pages },
            Self::COVER => State::Cover { offset_pages: self.link() as u64, pages },
            Self::LIVE => State::Live { pages },
            Self::RETAINED => State::Retained { pages },
            _ => State::Vacant,
        }
    }

    pub(super) const fn pages(self) -> u64 {
        self.0 << 2 >> (LINK_BITS + 2)
    }

    pub(super) const fn link(self) -> u32 {
        (self.0 & NONE as u64) as u32
    }

    /// A live window all of whose pages are mapped and not watched, without a look at them.
    pub(super) const fn is_known_whole(self) -> bool {
        self.0 >> 62 == Self::LIVE && self.link() == WHOLE
    }
}

/// Where a record is, once it was looked up.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    node: Frame,
    index: usize,
}

impl Place {
    /// Replaces the record.
    pub(super) fn write(self, memory: &mut impl TableMemory, record: Record) {
        memory.write(self.node, self.index, record.0);
    }
}

/// A sparse array of records: a tree of frames with 512 words each.
#[derive(Clone, Copy)]
pub(super) struct Records {
    pub(super) root: Option<Frame>,
}

impl Records {
    pub(super) const fn height(shift: u32) -> u32 {
        (REGION_SHIFT - shift).div_ceil(9)
    }

    const fn digit(index: u32, height: u32) -> usize {
        (index >> (9 * (height - 1))) as usize % 512
    }

    pub(super) fn get(self, memory: &impl TableMemory, slot: Slot) -> Record {
        self.find(memory, slot).map_or(Record(0), |(_, record)| record)
    }

    /// The record and where it is, if there ever was one.
    pub(super) fn find(self, memory: &impl TableMemory, slot: Slot) -> Option<(Place, Record)> {
        let mut node = self.root?;
        for height in (2..=Self::height(slot.shift)).rev() {
            let word = memory.read(node, Self::digit(slot.index, height));
            if word == 0 {
                return None;
            }
            node = Frame::new(word);
        }
        let index = Self::digit(slot.index, 1);
        Some((Place { node, index }, Record(memory.read(node, index))))
    }

    pub(super) fn set(
        &mut self,
        memory: &mut impl TableMemory,
        arena: &mut TableArena<'_>,
        slot: Slot,
        record: Record,
    ) -> Result<(), SpaceError> {
        let mut node = match self.root {
            Some(node) => node,
            None => *self.root.insert(arena.get().ok_or(SpaceError::OutOfTables)?),
        };
        for height in (2..=Self::height(slot.shift)).rev() {
            let digit = Self::digit(slot.index, height);
            let word = memory.read(node, digit);
            node = if word == 0 {
                let below = arena.get().ok_or(SpaceError::OutOfTables)?;
                memory.write(node, digit, below.get());
                below
            } else {
                Frame::new(word)
            };
        }
        memory.write(node, Self::digit(slot.index, 1), record.0);
        Ok(())
    }
}

/// Clears a node of [`Records`] and those below it; they are the arena's again.
pub(super) fn forget(memory: &mut impl TableMemory, arena: &mut TableArena<'_>, node: Frame, height: u32) {
    for index in 0..ENTRIES {
        let word = memory.read(node, index);
        if word == 0 {
            continue;
        }
        if height > 1 {
            forget(memory, arena, Frame::new(word), height - 1);
        }
        memory.write(node, index, 0);
    }
    arena.put(node);
}
