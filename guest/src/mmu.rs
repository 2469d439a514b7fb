//! Page tables and frames, seen through the direct map.
//!
//! The VMM maps the table arena and all frames at `DIRECT_GVA + Gpa` ([`umpa_abi::layout`]), writable
//! at the workload's privilege level: editing a table is a store. A frame that isn't granted is in
//! the direct map too, and touching it is a violation that ends the guest.
//!
//! Cost: one 8-byte access per entry.

#![allow(unsafe_code)] // reason: tables and frames are bare memory

use core::arch::asm;

use umpa::hardware::{Checksum, Contents, TableMemory};
use umpa_abi::addr::{Frame, Gpa, Gva, PAGE_BYTES};
use umpa_abi::boot::BootInfo;
use umpa_abi::layout::{
    BLOCKS_BYTES, BLOCKS_GVA, FRAMES_GPA, FRAMES_MAX_BYTES, PROGRAM_BYTES, PROGRAM_GVA, direct,
};
use umpa_abi::paging;
use work::raw::{Cells, Words};

use crate::tlb::Store;

/// The tables of this guest. Entries are where the processor reads them.
#[derive(Debug)]
pub struct DirectTables {
    root: Frame,
    first: Frame,
    end: Frame,
    stores: u64,
    /// Stores that wait for the next flush.
    held: [Store; HELD_MAX],
    held_len: usize,
}

/// Stores that can wait for a flush. A trap with so many takes as long as ten without any.
const HELD_MAX: usize = 64;

/// Where an entry stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The table.
    pub table: Frame,
    /// The entry in it.
    pub index: usize,
    /// The table's level, 1..=4.
    pub level: u32,
}

impl DirectTables {
    /// The tables that `boot` describes.
    ///
    /// # Safety
    /// `boot` describes this machine; the arena holds tables and nothing else, and this is the only
    /// value of its kind on this processor, so nobody else writes them (the processor sets A and D; two
    /// processors agree on who has which tables).
    #[must_use]
    pub unsafe fn new(boot: &BootInfo) -> Self {
        let first = boot.tables_first();
        Self {
            root: boot.root().containing(),
            first,
            end: first.offset(boot.tables_frames),
            stores: 0,
            held: [Store { place: 0, entry: 0 }; HELD_MAX],
            held_len: 0,
        }
    }

    /// Entries written so far.
    #[must_use]
    pub const fn stores(&self) -> u64 {
        self.stores
    }

    /// The leaf that maps `gva`, or the first entry on the way to it that isn't present.
    #[must_use]
    pub fn walk(&self, gva: Gva) -> Slot {
        let mut table = self.root;
        let mut level = paging::LEVELS;
        loop {
            let index = paging::index(gva, level);
            let entry = self.read(table, index);
            let leaf = level == 1 || (level < paging::LEVELS && entry & paging::LARGE != 0);
            if leaf || entry & paging::PRESENT == 0 {
                return Slot { table, index, level };
            }
            table = paging::address(entry).containing();
            level -= 1;
        }
    }

    /// Holds a store back until [`Self::held`] is asked for. False when there is no room.
    pub(crate) fn hold(&mut self, table: Frame, index: usize, entry: u64) -> bool {
        let place = self.entry(table, index) as u64;
        self.forget(place);
        if self.held_len == HELD_MAX {
            return false;
        }
        self.held[self.held_len] = Store { place, entry };
        self.held_len += 1;
        self.stores += 1;
        true
    }

    /// True when stores wait for a flush.
    pub(crate) const fn has_held(&self) -> bool {
        self.held_len > 0
    }

    /// What was held back, in order; it is for the caller to do.
    pub(crate) fn take_held(&mut self) -> &[Store] {
        &self.held[..core::mem::take(&mut self.held_len)]
    }

    /// A newer store to `place` makes the one that waits pointless.
    fn forget(&mut self, place: u64) {
        if let Some(at) = self.held[..self.held_len].iter().position(|store| store.place == place) {
            self.held.copy_within(at + 1..self.held_len, at);
            self.held_len -= 1;
        }
    }

    fn entry(&self, table: Frame, index: usize) -> *mut u64 {
        assert!(
            (self.first..self.end).contains(&table) && index < paging::ENTRIES,
            "entry {index} of frame {table} isn't in the table arena {}..{}",
            self.first,
            self.end
        );
        (direct(table.start()).get() as *mut u64).wrapping_add(index)
    }
}

impl TableMemory for DirectTables {
    fn read(&self, table: Frame, index: usize) -> u64 {
        let place = self.entry(table, index);
        if let Some(held) = self.held[..self.held_len].iter().find(|store| store.place == place as u64) {
            return held.entry;
        }
        // SAFETY: `entry` has checked that it is an entry of the arena, which is mapped (see `new`).
        unsafe { place.read_volatile() }
    }

    fn write(&mut self, table: Frame, index: usize, entry: u64) {
        self.stores += 1;
        self.forget(self.entry(table, index) as u64);
        // SAFETY: as above. What the new entry makes of memory is the caller's affair: `umpa` maps
        // only frames that it owns to pages that it has reserved.
        unsafe { self.entry(table, index).write_volatile(entry) }
    }

    /// KVM emulates a store by `mov` to a table that it shadows. After one by `stos`, which it doesn't
    /// expect in code that edits tables, it drops the shadow and lets all further stores through
    /// (x86_emulate_instruction: "non-page_table writing instruction"): two exits instead of one for
    /// each store.
    fn write_first(&mut self, table: Frame, index: usize, entry: u64) {
        self.stores += 1;
        self.forget(self.entry(table, index) as u64);
        // SAFETY: as in `write`; DF is clear by the ABI.
        unsafe {
            asm!("stosq", inout("rdi") self.entry(table, index) => _, in("rax") entry,
                options(nostack, preserves_flags));
        }
    }
}

/// What is in granted frames, through the direct map.
#[derive(Clone, Copy, Debug, Default)]
pub struct DirectContents;

impl DirectContents {
    /// Where the frames are seen.
    ///
    /// # Panics
    /// When they aren't all frames that can be granted: below those lie tables and Rust's objects.
    fn place(first: Frame, frames: u64) -> u64 {
        let end = FRAMES_GPA.containing().offset(FRAMES_MAX_BYTES / PAGE_BYTES);
        let fits = first >= FRAMES_GPA.containing() && first < end && frames <= end.get() - first.get();
        assert!(fits, "{frames} frames from {first} on aren't all frames that can be granted");
        direct(first.start()).get()
    }
}

impl Contents for DirectContents {
    fn zero(&mut self, first: Frame, frames: u64) {
        // SAFETY: `place` has checked that they are frames, in which no object of Rust's lies that its
        // owner doesn't give up: `umpa` zeroes what a mapping loses. DF is clear by the ABI.
        unsafe {
            asm!("rep stosq", inout("rdi") Self::place(first, frames) => _,
                inout("rcx") frames * (PAGE_BYTES / 8) => _, in("rax") 0u64,
                options(nostack, preserves_flags));
        }
    }

    fn copy(&mut self, from: Frame, to: Frame, frames: u64) {
        // SAFETY: as in `zero`; they don't overlap (precondition of the trait), and if they did it were
        // the content that suffers.
        unsafe {
            asm!("rep movsq", inout("rdi") Self::place(to, frames) => _,
                inout("rsi") Self::place(from, frames) => _, inout("rcx") frames * (PAGE_BYTES / 8) => _,
                options(nostack, preserves_flags));
        }
    }
}

impl Checksum for DirectContents {
    /// Four sums side by side, so that multiplications overlap; each step is one to one, so one changed
    /// word changes the result for certain. 1,000 cycles.
    fn checksum(&self, frame: Frame) -> u64 {
        const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
        let words = Self::place(frame, 1) as *const u64;
        let mut sums = [1_u64, 2, 3, 4];
        for at in (0..PAGE_BYTES as usize / 8).step_by(sums.len()) {
            for (lane, sum) in sums.iter_mut().enumerate() {
                // SAFETY: `place` has checked that it is a frame; the word is in it. A frame that isn't
                // granted is a violation, which ends the guest.
                let word = unsafe { words.add(at + lane).read_volatile() };
                *sum = (sum.rotate_left(29) ^ word).wrapping_mul(ODD);
            }
        }
        sums.into_iter().fold(0, |all, sum| (all.rotate_left(23) ^ sum).wrapping_mul(ODD))
    }
}

/// The eight bytes at `gva`, wherever that is. Without a mapping: a page fault, reported.
#[must_use]
pub fn load(gva: Gva) -> u64 {
    let value;
    // SAFETY: reads and forgets; a fault ends the guest. Whatever object lies there isn't changed.
    unsafe { asm!("mov {}, [{}]", out(reg) value, in(reg) gva.get(), options(nostack, readonly)) };
    value
}

/// Writes eight bytes to a mapping's or block's address or to a frame through the direct map.
///
/// # Panics
/// Elsewhere: there lie objects of Rust's.
pub fn store(gva: Gva, value: u64) {
    let within = |start: Gva, bytes: u64| gva.get() >= start.get() && gva.get() - start.get() < bytes;
    assert!(
        within(PROGRAM_GVA, PROGRAM_BYTES)
            || within(BLOCKS_GVA, BLOCKS_BYTES)
            || within(direct(FRAMES_GPA), FRAMES_MAX_BYTES),
        "no store to {gva}: neither a mapping nor a block nor a frame"
    );
    // SAFETY: the workloads that use this function keep no Rust objects in mappings, blocks and frames that
    // they store to.
    unsafe { asm!("mov [{}], {}", in(reg) gva.get(), in(reg) value, options(nostack)) };
}

/// Memory at `gva` for chains of loads.
///
/// # Panics
/// When it isn't where blocks lie: elsewhere are objects of Rust's.
#[must_use]
pub fn cells(gva: Gva, bytes: u64) -> Cells {
    // SAFETY: the workloads that use this function map frames of their own there, keep no Rust object in them,
    // and write them through the cells only. Without a mapping: a page fault, which ends the guest.
    unsafe { Cells::new(block(gva, bytes), bytes) }
}

/// Pages of a block, to read and write by the word.
///
/// # Panics
/// As [`cells`].
#[must_use]
pub fn block_words(gva: Gva, pages: u64) -> Words {
    // SAFETY: as above; what isn't mapped yet, the workload's handler of page faults maps.
    unsafe { Words::new(block(gva, pages * PAGE_BYTES).cast(), pages) }
}

/// The same frames, mapped at another address by the workload.
///
/// # Panics
/// As [`cells`].
#[must_use]
pub fn view(cells: &Cells, gva: Gva, bytes: u64) -> Cells {
    // SAFETY: as above; a workload looks only at what it has mapped.
    unsafe { cells.view(block(gva, bytes)) }
}

fn block(gva: Gva, bytes: u64) -> *mut u8 {
    let end = gva.get().checked_add(bytes);
    let is_block = gva >= BLOCKS_GVA && end.is_some_and(|end| end <= BLOCKS_GVA.get() + BLOCKS_BYTES);
    assert!(is_block, "{bytes} bytes at {gva} aren't where blocks lie");
    gva.get() as *mut u8
}

/// Writes `value` to each of a frame's 512 words, through the direct map.
pub fn fill(frame: Frame, value: u64) {
    for word in words(frame) {
        store(direct(word), value);
    }
}

/// The first word of a frame that isn't `value`: its address and what is there.
#[must_use]
pub fn find_other(frame: Frame, value: u64) -> Option<(Gpa, u64)> {
    words(frame).map(|word| (word, load(direct(word)))).find(|&(_, found)| found != value)
}

fn words(frame: Frame) -> impl Iterator<Item = Gpa> {
    (0..PAGE_BYTES / 8).map(move |word| Gpa::new(frame.start().get() + 8 * word))
}
