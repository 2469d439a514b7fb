//! The allocator of a guest program, made from the boot info.

#![allow(unsafe_code)] // reason: hands out bookkeeping memory once

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};

use umpa::blocks::{Config, Umpa};
use umpa::frames::FrameStore;
use umpa::release::Discardable;
use umpa::tables::{PageTables, TableArena};
use umpa_abi::addr::PageSize;
use umpa_abi::boot::{BootInfo, MmuMode, feature};

use crate::machine::Machine;

/// The allocator of a program: on this machine, with bookkeeping that lives as long as the guest.
pub type Allocator<'m> = Umpa<'static, &'m mut Machine>;

static HANDED_OUT: AtomicBool = AtomicBool::new(false);

/// Ranges that a program can register as discardable.
pub const DISCARDABLES: usize = 64;

struct Discardables(UnsafeCell<[Discardable; DISCARDABLES]>);

// SAFETY: only one allocator has it, as `parts` returns once.
unsafe impl Sync for Discardables {}

static RANGES: Discardables = Discardables(UnsafeCell::new([Discardable::EMPTY; DISCARDABLES]));

/// An allocator without frames, with the bookkeeping memory that the VMM handed to the guest, and room
/// for [`DISCARDABLES`] discardable ranges.
///
/// # Panics
/// As [`parts`].
#[must_use]
pub fn allocator<'m>(boot: &BootInfo, machine: &'m mut Machine, config: Config) -> Allocator<'m> {
    let (frames, tables) = parts(boot);
    let mut umpa = Umpa::new(machine, frames, tables, config);
    // SAFETY: `parts` returns once, so there is no other reference to it.
    umpa.keep_discardables(unsafe { &mut *RANGES.0.get() });
    umpa
}

/// What suits a program on this machine that moves, grows and exchanges blocks, by its MMU mode:
///
/// | mode | a window of 2 MiB or more | a block below 2 MiB, or with small leaves, that moves |
/// | --- | --- | --- |
/// | `ept`, `npt` | lies beside others, page by page | by its entries: two stores for each page, no fault |
/// | `shadow` | has a level-2 table to itself, and whole large leaves | is copied |
///
/// In mode `shadow` a store to a table above the leaves is a trap, and so is the first touch of each 2 MiB, or of
/// eight small pages, at an address that is new to KVM: 54,000 cycles each (kvm_pvm, 2.3 GHz), as many as it
/// takes to copy 700 KiB. What hangs below a link that moves keeps its shadow: 512 pages are touched in 5,300
/// cycles after their leaf table has moved, and in 3,600,000 after their leaves have. So links move there, and what is
/// resized gets its last 2 MiB whole: the steps that follow write nothing and touch nothing new. At most a sixteenth of
/// the memory waits for a flush, as what is free is to be contiguous: scattered frames take small leaves.
#[must_use]
pub fn suited(boot: &BootInfo) -> Config {
    const LARGE_PAGES: u64 = PageSize::Size2M.frames();
    let config = Config { refill: false, ..Config::default() };
    match boot.mode() {
        MmuMode::Shadow => Config {
            apart_min_pages: LARGE_PAGES,
            whole_min_pages: LARGE_PAGES,
            copy_below_pages: LARGE_PAGES,
            quarantine_max_frames: config.quarantine_max_frames.min(boot.frames_max / 16),
            ..config
        },
        MmuMode::Ept | MmuMode::Npt => config,
    }
}

/// What an allocator consists of, for programs that edit their tables by themselves: a store without
/// frames, and the tables that the processor uses.
///
/// # Panics
/// The second time: the bookkeeping memory and the page tables are the first one's for ever.
#[must_use]
pub fn parts(boot: &BootInfo) -> (FrameStore<'static>, PageTables<'static>) {
    assert!(!HANDED_OUT.swap(true, Relaxed), "a guest has one allocator");
    let tag_bytes = boot.frames_max as usize * size_of::<u64>();
    let link_bytes = boot.tables_frames as usize * TableArena::BYTES_PER_TABLE;
    assert!((tag_bytes + link_bytes) as u64 <= boot.bookkeeping_bytes, "the VMM handed in too little memory");
    let start = boot.bookkeeping().get();
    // SAFETY: the VMM maps `bookkeeping_bytes` zeroed, page-aligned, writable bytes there for ever;
    // HANDED_OUT sees to it that there are no other references to them.
    let (tags, links) = unsafe {
        let tags = core::slice::from_raw_parts_mut(start as *mut u64, boot.frames_max as usize);
        let links = (start as usize + tag_bytes) as *mut u32;
        (tags, core::slice::from_raw_parts_mut(links, boot.tables_frames as usize))
    };
    let largest = if boot.features & feature::PAGES_1G != 0 { PageSize::Size1G } else { PageSize::Size2M };
    let arena = TableArena::new(boot.tables_first(), boot.tables_used, links);
    let tables = PageTables::new(boot.root().containing(), arena, largest);
    (FrameStore::new(boot.frames_first(), tags), tables)
}
