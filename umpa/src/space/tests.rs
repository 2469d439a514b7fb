//! Slots by example.

extern crate std;
use super::*;
use crate::flush::Owed;
use crate::hardware::Tlb;
use std::vec;
use std::vec::Vec;
use umpa_abi::addr::Frame;
use umpa_abi::paging::ENTRIES;

struct Memory(Vec<u64>);

impl TableMemory for Memory {
    fn read(&self, table: Frame, index: usize) -> u64 {
        self.0[table.get() as usize * ENTRIES + index]
    }
    fn write(&mut self, table: Frame, index: usize, entry: u64) {
        self.0[table.get() as usize * ENTRIES + index] = entry;
    }
}

impl Tlb for Memory {
    fn flush_page(&mut self, _: Page) {}
    fn flush_all(&mut self) {}
}

const FRAMES: usize = 16;

fn memory() -> (Memory, Vec<u32>) {
    (Memory(vec![0; FRAMES * ENTRIES]), vec![0; FRAMES])
}

#[test]
fn an_address_tells_its_slot() {
    for (shift, index) in [(SHIFT_MIN, 0), (SHIFT_MIN, 12345), (21, 7), (SHIFT_MAX, 1)] {
        let slot = Slot { shift, index };
        let start = slot.page().start();
        let last = Gva::new(start.get() + (1 << shift) - 1);
        assert_eq!(Slot::containing(start), Some((slot, 0)));
        assert_eq!(Slot::containing(last), Some((slot, (1 << shift) - 1)));
    }
    assert_eq!(Slot::containing(Gva::new(BLOCKS_GVA.get() - 1)), None);
    assert_eq!(Slot::containing(Gva::new(u64::MAX)), None);
}

#[test]
fn a_released_slot_waits_for_a_flush() {
    let (mut memory, mut links) = memory();
    let mut arena = TableArena::new(Frame::new(0), 0, &mut links);
    let mut space = AddressSpace::new();
    let first = space.reserve(&mut memory, &mut arena, 3, 3).unwrap();
    assert_eq!((first.pages(), space.state(&memory, first)), (4, State::Live { pages: 3 }));
    space.release(&mut memory, &mut arena, first);
    assert_eq!(space.state(&memory, first), State::Vacant);
    let second = space.reserve(&mut memory, &mut arena, 3, 3).unwrap();
    assert_ne!(first, second);
    let flushed = Owed::new().settle(&mut memory);
    space.release_quarantine(&mut memory, &mut arena, &flushed);
    assert_eq!(space.reserve(&mut memory, &mut arena, 4, 1), Ok(first));
    assert_eq!(space.live(), 2);
}

#[test]
fn a_retained_window_is_found_by_its_length() {
    let (mut memory, mut links) = memory();
    let mut arena = TableArena::new(Frame::new(0), 0, &mut links);
    let mut space = AddressSpace::new();
    let slot = space.reserve(&mut memory, &mut arena, 8, 7).unwrap();
    space.retain(&mut memory, &mut arena, slot, 7);
    assert_eq!((space.live(), space.retained_pages()), (0, 7));
    assert_eq!(space.take_retained(&mut memory, 8, 8, 10), None);
    assert_eq!(space.take_retained(&mut memory, 6, 6, 7), Some((slot, 7)));
    assert_eq!((space.live(), space.retained_pages()), (1, 0));
}

#[test]
fn stale_pages_are_told_until_the_next_flush() {
    let (mut memory, mut links) = memory();
    let mut arena = TableArena::new(Frame::new(0), 0, &mut links);
    let mut space = AddressSpace::new();
    let slot = space.reserve(&mut memory, &mut arena, 8, 7).unwrap();
    assert!(!space.is_stale(&memory, slot, 0));
    space.mark_stale(&mut memory, &mut arena, slot, 5);
    space.set_pages(&mut memory, &mut arena, slot, 6);
    assert!(space.is_stale(&memory, slot, 5) && !space.is_stale(&memory, slot, 6));
}

#[test]
fn vacant_records_are_forgotten() {
    let (mut memory, mut links) = memory();
    let mut arena = TableArena::new(Frame::new(0), 0, &mut links);
    let mut space = AddressSpace::new();
    let slot = space.reserve(&mut memory, &mut arena, 1, 1).unwrap();
    space.forget_vacant(&mut memory, &mut arena);
    assert_eq!(arena.used_tables(), 4, "28 bits of slot numbers, 9 to a level");
    space.release(&mut memory, &mut arena, slot);
    let flushed = Owed::new().settle(&mut memory);
    space.release_quarantine(&mut memory, &mut arena, &flushed);
    space.forget_vacant(&mut memory, &mut arena);
    assert_eq!((arena.used_tables(), arena.free_tables()), (0, FRAMES as u64));
    assert!(memory.0.iter().all(|&word| word == 0), "frames are zero when they are given back");
    assert_eq!(space.reserve(&mut memory, &mut arena, 1, 1), Ok(slot));
}

#[test]
fn what_is_refused_reserves_nothing() {
    let (mut memory, mut links) = memory();
    let mut arena = TableArena::new(Frame::new(0), 0, &mut links[..2]);
    let mut space = AddressSpace::new();
    let small = space.reserve(&mut memory, &mut arena, 1, 1);
    assert_eq!(small, Err(SpaceError::OutOfTables));
    let pages = (1 << (SHIFT_MAX - PAGE_SHIFT)) + 1;
    assert_eq!(space.reserve(&mut memory, &mut arena, pages, 0), Err(SpaceError::TooLarge { pages }));
    assert_eq!(space.live(), 0);
}

#[test]
fn a_window_known_to_be_whole_is_retained_at_once() {
    let (mut memory, mut links) = memory();
    let mut arena = TableArena::new(Frame::new(0), 0, &mut links);
    let mut space = AddressSpace::new();
    let [first, second] = [(); 2].map(|()| space.reserve(&mut memory, &mut arena, 4, 3).unwrap());
    assert!(!space.retain_whole(&mut memory, Slot { shift: 21, index: 9 }), "never used");
    assert!(!space.retain_whole(&mut memory, first), "nothing is known of a new window");
    space.retain(&mut memory, &mut arena, first, 3);
    space.retain(&mut memory, &mut arena, second, 3);
    assert!(!space.retain_whole(&mut memory, second), "freed already");
    assert_eq!(space.take_retained(&mut memory, 4, 3, 3), Some((second, 3)));
    assert_eq!((space.live(), space.retained_pages()), (1, 3));
    assert!(space.retain_whole(&mut memory, second));
    assert_eq!(space.state(&memory, second), State::Retained { pages: 3 });
    assert_eq!((space.live(), space.retained_pages()), (0, 6));
    // The last one first, and the list goes on behind it.
    assert_eq!(space.take_retained(&mut memory, 4, 3, 3), Some((second, 3)));
    assert_eq!(space.take_retained(&mut memory, 4, 3, 3), Some((first, 3)));
    assert_eq!(space.take_any_retained(&mut memory), None);
    for change in 0..3 {
        match change {
            0 => space.forget_whole(&mut memory, &mut arena, second),
            1 => space.mark_stale(&mut memory, &mut arena, first, 5),
            _ => space.set_pages(&mut memory, &mut arena, second, 0),
        }
        assert!(!space.retain_whole(&mut memory, if change == 1 { first } else { second }), "{change}");
    }
    space.set_cover(&mut memory, &mut arena, second, 1, 2);
    assert!(!space.retain_whole(&mut memory, second), "a cover");
}
