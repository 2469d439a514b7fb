//! A machine that costs next to nothing: tables are an array, flushes are counted, the hypervisor grants one run.
//!
//! What is measured on it is `umpa`'s own work: no trap, no fault, no exit. Frames have no content, unless
//! [`map_memory`] was called for the heaps, which keep their lists in it. Then each address has memory of its own:
//! content doesn't follow the frames, and no path looks.

#![allow(unsafe_code)] // reason: maps memory where the heaps' pointers lead

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
use umpa::blocks::{Config, Umpa};
use umpa::frames::FrameStore;
use umpa::hardware::{Checksum, Contents, Exchanged, FrameSource, TableMemory, Tlb};
use umpa::tables::{PageTables, TableArena};
use umpa_abi::addr::{Frame, PAGE_BYTES, Page, PageSize};
use umpa_abi::exchange::{Extent, Policy, Shortfall};
use umpa_abi::layout::{BLOCKS_BYTES, BLOCKS_GVA, FRAMES_GPA, direct, table_frames};
use umpa_abi::paging::{self, ENTRIES};

/// The first frame that can be granted.
pub(crate) const FRAMES: Frame = FRAMES_GPA.containing();
/// The root table; those below it come after it.
pub(crate) const TABLES: Frame = Frame::new(0x400);

/// See the [module](self).
pub(crate) struct Flat {
    entries: Vec<u64>,
    frames: u64,
    granted: u64,
    /// Flushes so far.
    pub(crate) flushes: u64,
}

impl Flat {
    /// With so many frames to grant, and tables for `tables` frames of them, of which two are in use.
    fn new(frames: u64, tables: u64) -> Self {
        let mut machine =
            Self { entries: vec![0; tables as usize * ENTRIES], frames, granted: 0, flushes: 0 };
        let at = direct(FRAMES_GPA);
        let flags = paging::PRESENT | paging::WRITABLE | paging::USER | paging::ACCESSED;
        let below = TABLES.offset(1);
        machine.write(TABLES, paging::index(at, 4), below.start().get() | flags);
        let leaf = FRAMES.start().get() | flags | paging::LARGE | paging::DIRTY | paging::NO_EXECUTE;
        machine.write(below, paging::index(at, 3), leaf);
        machine
    }
}

fn place(table: Frame, index: usize) -> usize {
    (table.get() - TABLES.get()) as usize * ENTRIES + index
}

impl TableMemory for Flat {
    #[inline]
    fn read(&self, table: Frame, index: usize) -> u64 {
        self.entries[place(table, index)]
    }
    #[inline]
    fn write(&mut self, table: Frame, index: usize, entry: u64) {
        self.entries[place(table, index)] = entry;
    }
}

impl Tlb for Flat {
    fn flush_page(&mut self, _: Page) {
        self.flushes += 1;
    }
    fn flush_all(&mut self) {
        self.flushes += 1;
    }
}

impl Contents for Flat {
    fn zero(&mut self, _: Frame, _: u64) {}
    fn copy(&mut self, _: Frame, _: Frame, _: u64) {}
}

impl Checksum for Flat {
    // All frames hold the same: nothing.
    fn checksum(&self, _: Frame) -> u64 {
        1
    }
}

impl FrameSource for Flat {
    fn exchange(
        &mut self,
        give: &[Extent],
        want_pages: [u64; 3],
        _: Policy,
        granted: &mut dyn FnMut(Extent),
    ) -> Exchanged {
        assert!(give.is_empty(), "no path gives frames back");
        let mut granted_pages = [0; 3];
        for size in PageSize::ALL.into_iter().rev() {
            let room = self.frames.saturating_sub(self.granted.next_multiple_of(size.frames()));
            let pages = want_pages[size as usize].min(room / size.frames());
            if pages > 0 {
                let first = self.granted.next_multiple_of(size.frames());
                granted(Extent::new(FRAMES.offset(first), pages as u32, size));
                self.granted = first + pages * size.frames();
            }
            granted_pages[size as usize] = pages;
        }
        let shortfall = if granted_pages == want_pages { Shortfall::None } else { Shortfall::Exhausted };
        Exchanged { granted_pages, taken_frames: 0, shortfall, bad_extent: 0 }
    }
}

/// Runs `path` with an allocator that has `frames` frames.
pub(crate) fn with_umpa(frames: u64, config: Config, path: impl FnOnce(&mut Umpa<'_, Flat>)) {
    let tables = table_frames(frames);
    let (mut tags, mut links) = (vec![0; frames as usize], vec![0; tables as usize]);
    let arena = TableArena::new(TABLES, 2, &mut links);
    let page_tables = PageTables::new(TABLES, arena, PageSize::Size1G);
    let store = FrameStore::new(FRAMES, &mut tags);
    let mut umpa = Umpa::new(Flat::new(frames, tables), store, page_tables, config);
    assert_eq!(umpa.preload(frames).frames, frames);
    path(&mut umpa);
}

/// Runs `path` with a frame store that has `frames` free frames, with page tables, and the machine.
pub(crate) fn with_parts(
    frames: u64,
    path: impl FnOnce(&mut Flat, &mut FrameStore<'_>, &mut PageTables<'_>),
) {
    let tables = table_frames(frames);
    let (mut tags, mut links) = (vec![0; frames as usize], vec![0; tables as usize]);
    let mut machine = Flat::new(frames, tables);
    let mut store = FrameStore::new(FRAMES, &mut tags);
    let moved = store.refill(&mut machine, [frames, 0, 0], Policy::Partial);
    assert_eq!(moved.frames, frames);
    let arena = TableArena::new(TABLES, 2, &mut links);
    path(&mut machine, &mut store, &mut PageTables::new(TABLES, arena, PageSize::Size1G));
}

/// Puts memory behind the direct map's first `frames` frames, and behind all windows. Once for a process.
pub(crate) fn map_memory(frames: u64) {
    static MAPPED: std::sync::Once = std::sync::Once::new();
    MAPPED.call_once(|| {
        let parts = [(direct(FRAMES_GPA).get(), frames * PAGE_BYTES), (BLOCKS_GVA.get(), BLOCKS_BYTES)];
        for (start, bytes) in parts {
            let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
            let rights = ProtFlags::READ | ProtFlags::WRITE;
            // SAFETY: the two ranges are the guest's in `umpa_abi::layout`. A Linux process that is linked
            // statically at low addresses has its stack and its mappings above both; nothing lies there, and
            // this happens once, at the start.
            let mapped = unsafe { mmap_anonymous(start as *mut _, bytes as usize, rights, flags) };
            mapped.expect("address space for the heaps");
        }
    });
}
