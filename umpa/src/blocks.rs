//! Blocks: the paper's five functions (section 3) on a ladder of ways to find memory.
//!
//! | rung | what | entries written | flush |
//! | --- | --- | --- | --- |
//! | a | contiguous free frames, used where the direct map shows them anyway | none | none |
//! | a' | a freed window of fitting length that is still mapped | none | none |
//! | b | contiguous, aligned free frames in a new window | one for each 2 MiB | none |
//! | c | scattered free frames, stitched together in a new window | one for each page | none |
//!
//! Freeing a block of rung a puts its run back: constant time, whatever its size. Freeing a window
//! keeps it mapped; only when its frames are wanted elsewhere is it unmapped, and one flush then pays
//! for all that was unmapped since the last. With [`Placement::Remap`] there is no rung a: entries are
//! written at every allocation and cleared at every free, as the paper's prototype did.
//!
//! A block whose frames are contiguous can be *covered*: large leaves show it, and reach over its ends
//! to whatever frames lie around. One entry for each 2 MiB begun, wherever the run lies, so that the
//! first touch of a 64 KiB block is one fault of a shadowing hypervisor, not two. What the leaves show
//! besides is nobody's, as all of the direct map is. Covers keep their frames until they are freed.
//!
//! The size of leaves can be chosen ([`sized`]) and changed in place ([`promote`]); memory is zeroed only where
//! that is asked for ([`zeroed`]), from frames that are zero already if there are.
//!
//! Invariants ([`Umpa::check`]):
//!
//! - `granted = free + quarantined + Σ frames of blocks + frames of retained windows + frames of
//!   mappings` (see [`mmap`](crate::mmap));
//! - each page of a block is mapped, to frames of no other block, unless it was released;
//! - an allocation fails only when too few frames are free (or tables, or addresses), wherever they lie.

mod config;
mod cover;
mod error;
mod moves;
pub mod promote;
mod resize;
pub mod sized;
mod window;
pub mod zeroed;

pub use config::{Config, Placement, Stats};
pub use error::{AllocError, BlockError};
pub use promote::{Promoted, Skipped};
pub use sized::Otherwise;

use crate::flush::{Due, Owed};
use crate::frames::{Found, FrameStore, Moved, OwnedRun, Run};
use crate::hardware::{FrameSource, TableMemory, Tlb};
use crate::mmap::{AddressMap, Ranges};
use crate::release::Registry;
use crate::runs::Content;
use crate::space::{AddressSpace, SHIFT_MAX, Slot, State};
use crate::tables::PageTables;
use umpa_abi::addr::{Frame, Gpa, Gva, PAGE_BYTES, PAGE_SHIFT, PageSize};
use umpa_abi::exchange::{Policy, Shortfall};
use umpa_abi::layout::{self, DIRECT_GVA};
use zeroed::{AsIs, Supply};

/// The machine below: all three traits in one value.
pub trait Machine: TableMemory + Tlb + FrameSource {}
impl<T: TableMemory + Tlb + FrameSource> Machine for T {}

/// Marks the note at the first frame of a rung-a block; its pages are below.
const BLOCK: u64 = 1 << 60;

/// A block found by its address.
#[derive(Clone, Copy)]
pub(crate) enum Block {
    Direct { first: Frame, pages: u64 },
    Window { slot: Slot, pages: u64 },
    Cover(cover::Cover),
}

/// Pages of a block for whose sake a flush is made when nothing contiguous is free: as many small leaves cost more.
const FLUSH_PAGES: u64 = 16;

/// See the [module](self).
pub struct Umpa<'a, M: Machine> {
    pub(crate) machine: M,
    pub(crate) frames: FrameStore<'a>,
    pub(crate) tables: PageTables<'a>,
    pub(crate) space: AddressSpace,
    pub(crate) mappings: AddressMap,
    pub(crate) owed: Owed,
    pub(crate) due: Due,
    pub(crate) unzeroed: Ranges,
    pub(crate) emptied: Ranges,
    pub(crate) discardables: Registry<'a>,
    pub(crate) config: Config,
    pub(crate) stats: Stats,
}

impl<'a, M: Machine> Umpa<'a, M> {
    /// An allocator without frames. `frames` covers the frames that can be granted, `tables` is the
    /// tree that the processor uses.
    #[must_use]
    pub fn new(machine: M, frames: FrameStore<'a>, tables: PageTables<'a>, config: Config) -> Self {
        Self {
            machine,
            frames,
            tables,
            space: AddressSpace::new(),
            mappings: AddressMap::new(),
            owed: Owed::new(),
            discardables: Registry::default(),
            due: Due::AtOnce,
            unzeroed: Ranges::new(),
            emptied: Ranges::new(),
            config,
            stats: Stats::default(),
        }
    }

    /// The machine below.
    pub fn machine_mut(&mut self) -> &mut M {
        &mut self.machine
    }

    /// The frame store.
    #[must_use]
    pub fn frames(&self) -> &FrameStore<'a> {
        &self.frames
    }

    /// The page tables.
    #[must_use]
    pub fn tables(&self) -> &PageTables<'a> {
        &self.tables
    }

    /// The address space.
    #[must_use]
    pub fn space(&self) -> &AddressSpace {
        &self.space
    }

    /// Flushes owed and made.
    #[must_use]
    pub fn owed(&self) -> &Owed {
        &self.owed
    }

    /// How it was set up.
    #[must_use]
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// How often each way was taken.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// Asks the hypervisor for `frames` frames, in pages as large as possible, before they are needed.
    /// What it doesn't have in large pages comes in smaller ones.
    pub fn preload(&mut self, frames: u64) -> Moved {
        let mut moved = Moved { frames: 0, shortfall: Shortfall::None };
        let mut sizes = PageSize::ALL.into_iter().rev();
        let mut largest = sizes.next();
        while let Some(size) = largest
            && moved.frames < frames
        {
            let want = pages_by_size(frames - moved.frames, size);
            let came = self.frames.refill(&mut self.machine, want, Policy::Partial);
            moved = Moved { frames: moved.frames + came.frames, shortfall: came.shortfall };
            // A reply that was full leaves frames of this size to ask for.
            if came.shortfall != Shortfall::ReplyFull || came.frames == 0 {
                largest = sizes.next();
            }
        }
        moved
    }

    /// Gives up to `frames` free frames back to the hypervisor.
    pub fn drain(&mut self, frames: u64) -> Moved {
        self.frames.drain(&mut self.machine, frames)
    }

    /// A block of at least `bytes`, page-aligned; its content is whatever the frames held.
    ///
    /// # Errors
    /// [`AllocError`], and nothing is allocated.
    pub fn userpage_malloc(&mut self, bytes: u64) -> Result<Gva, AllocError> {
        self.malloc_by::<AsIs>(pages_of(bytes)?)
    }

    fn malloc_by<S: Supply<M>>(&mut self, pages: u64) -> Result<Gva, AllocError> {
        if self.config.placement == Placement::Ladder {
            if let Some(gva) = self.direct_block::<S>(pages) {
                return Ok(gva);
            }
            if let Some(gva) = self.retained_block::<S>(pages, capacity(pages)) {
                return Ok(gva);
            }
            // What waits for a flush may be contiguous, by itself or with what is free.
            let short = self.frames.free_frames() < pages;
            let waits = self.frames.quarantined_frames();
            if short || pages >= FLUSH_PAGES && waits >= pages {
                if short {
                    self.make_free(pages)?
                } else {
                    self.settle()
                }
                if let Some(gva) = self.direct_block::<S>(pages) {
                    return Ok(gva);
                }
            }
        }
        if self.config.placement == Placement::Remap
            && pages >= self.config.cover_min_pages
            && let Some(gva) = self.new_cover::<S>(pages)?
        {
            return Ok(gva);
        }
        let slot = self.new_window_by::<S>(pages, capacity(pages))?;
        self.stats.windows += 1;
        Ok(slot.page().start())
    }

    /// A block of at least `bytes` that is expected to grow to `reserve_bytes`: with [`Placement::Ladder`] in a
    /// free run that has so many from there on, so that it grows where it is, without a store to a table, as long
    /// as nobody takes the frames behind it. It lies in the middle of one of the longest runs, or so far before it
    /// that they suffice: those that grow at the same time are far apart. Else it is in a window with so many
    /// addresses.
    ///
    /// # Errors
    /// [`AllocError`], and nothing is allocated.
    pub fn userpage_malloc_growing(&mut self, bytes: u64, reserve_bytes: u64) -> Result<Gva, AllocError> {
        let (pages, room) = (pages_of(bytes)?, pages_of(reserve_bytes.max(bytes))?);
        if let Some(gva) = self.growing_block(pages, room) {
            return Ok(gva);
        }
        let slot = self.new_window(pages, room)?;
        self.stats.windows += 1;
        Ok(slot.page().start())
    }

    /// The same in front of free frames only: `None`, and nothing was allocated, where no free run has so many, and with
    /// [`Placement::Remap`].
    pub fn userpage_malloc_growing_direct(&mut self, bytes: u64, reserve_bytes: u64) -> Option<Gva> {
        self.growing_block(pages_of(bytes).ok()?, pages_of(reserve_bytes.max(bytes)).ok()?)
    }

    /// A block of rung a with room behind it.
    fn growing_block(&mut self, pages: u64, room: u64) -> Option<Gva> {
        if self.config.placement != Placement::Ladder {
            return None;
        }
        let run = self.growing_run(pages, room)?;
        self.frames.set_note(run.first(), BLOCK | pages);
        self.stats.direct += 1;
        Some(layout::direct(run.first().start()))
    }

    /// `pages` frames with at least `room - pages` free ones behind them.
    fn growing_run(&mut self, pages: u64, room: u64) -> Option<OwnedRun> {
        if let Some(run) = self.frames.get_middle(pages, room) {
            return Some(run);
        }
        // None of the longest may still be long enough, and what is zero may have to be joined to what isn't.
        let run = self.frames.get(room)?;
        if room == pages {
            return Some(run);
        }
        let (run, behind) = run.split(pages);
        self.put_back(behind);
        Some(run)
    }

    /// Addresses for `bytes`, without memory: [`Self::userpage_commit`] backs parts of it.
    ///
    /// # Errors
    /// [`AllocError`], and nothing is reserved.
    pub fn userpage_reserve(&mut self, bytes: u64) -> Result<Gva, AllocError> {
        let pages = pages_of(bytes)?;
        Ok(self.reserve(pages, 0)?.page().start())
    }

    /// A block of at least `bytes` in a window of its own, never of rung a. The window is the least power of
    /// two that holds it and begins at a multiple of its size, so that [`Slot::containing`] tells the block's
    /// begin from each address in it.
    ///
    /// # Errors
    /// [`AllocError`], and nothing is allocated.
    pub fn userpage_window(&mut self, bytes: u64) -> Result<Gva, AllocError> {
        let pages = pages_of(bytes)?;
        if self.config.placement == Placement::Ladder
            && let Some(gva) = self.retained_block::<AsIs>(pages, pages)
        {
            return Ok(gva);
        }
        let slot = self.new_window(pages, pages)?;
        self.stats.windows += 1;
        Ok(slot.page().start())
    }

    /// Ends the block at `gva`.
    ///
    /// # Errors
    /// [`BlockError::NotABlock`].
    pub fn userpage_free(&mut self, gva: Gva) -> Result<(), BlockError> {
        if self.retain_whole(gva) {
            return Ok(());
        }
        match self.find(gva)? {
            Block::Direct { first, pages } => {
                self.frames.set_note(first, 0);
                self.put_back(Run::new(first, pages));
            }
            Block::Window { slot, pages } => {
                self.forget_discardables(slot.page(), slot.pages());
                if self.config.placement == Placement::Ladder && self.is_whole(slot, pages) {
                    self.space.retain(&mut self.machine, self.tables.arena_mut(), slot, pages);
                } else {
                    self.end_window(slot, pages);
                }
            }
            Block::Cover(cover) => self.end_cover(cover),
        }
        Ok(())
    }

    /// Frees the block at `gva` if it is a window that stays mapped and is known to be whole. False for any other.
    fn retain_whole(&mut self, gva: Gva) -> bool {
        let Some((slot, 0)) = Slot::containing(gva) else { return false };
        if self.config.placement != Placement::Ladder || !self.space.retain_whole(&mut self.machine, slot) {
            return false;
        }
        debug_assert!(self.is_mapped_wholly(slot), "{slot:?} isn't whole");
        self.forget_discardables(slot.page(), slot.pages());
        true
    }

    /// Whether each page of a retained window is mapped and not watched.
    fn is_mapped_wholly(&self, slot: Slot) -> bool {
        let state = self.space.state(&self.machine, slot);
        matches!(state, State::Retained { pages } if self.mapped_pages(slot, pages) == pages)
    }

    /// Bytes that the block at `gva` has.
    ///
    /// # Errors
    /// [`BlockError::NotABlock`].
    pub fn usable_bytes(&self, gva: Gva) -> Result<u64, BlockError> {
        Ok(match self.find(gva)? {
            Block::Direct { pages, .. } | Block::Window { pages, .. } => pages * PAGE_BYTES,
            Block::Cover(cover) => cover.pages * PAGE_BYTES,
        })
    }

    /// Bytes of the addresses that are kept for the block at `gva`: so far it can grow in place for certain, as
    /// long as there are frames.
    ///
    /// # Errors
    /// [`BlockError::NotABlock`].
    pub fn reserved_bytes(&self, gva: Gva) -> Result<u64, BlockError> {
        match self.find(gva)? {
            Block::Window { slot, .. } => Ok(slot.pages() * PAGE_BYTES),
            Block::Direct { .. } | Block::Cover(_) => self.usable_bytes(gva),
        }
    }

    /// Flushes everything that is owed; what waited for it becomes free.
    pub fn settle(&mut self) {
        self.prune_emptied();
        let flushed = self.owed.settle(&mut self.machine);
        self.frames.release_quarantine(&flushed);
        self.tables.arena_mut().release_quarantine(&flushed);
        self.space.release_quarantine(&mut self.machine, self.tables.arena_mut(), &flushed);
    }

    /// Asserts the invariants, given the frames that the caller's blocks hold. Linear; for tests.
    ///
    /// # Panics
    /// When one doesn't hold.
    pub fn check(&self, block_frames: u64) {
        assert_eq!(self.due, Due::AtOnce, "between two calls no batch is under way");
        assert!(self.unzeroed.is_empty(), "what a batch maps is zero at its end");
        self.mappings.check(&self.machine);
        self.check_watches();
        self.check_discardables();
        self.frames.check(block_frames + self.space.retained_pages() + self.mappings.pages());
    }

    /// Puts back a run that is known to be the store's, and taken.
    fn put_back(&mut self, run: OwnedRun) {
        if let Err((error, run)) = self.frames.put(run) {
            debug_assert!(false, "{error:?} for {run:?}");
        }
    }

    /// Rung a.
    fn direct_block<S: Supply<M>>(&mut self, pages: u64) -> Option<Gva> {
        let apart = pages >= self.config.apart_min_pages;
        let found = if apart { self.contiguous(S::WANTS, pages) } else { self.frames.find(S::WANTS, pages) }?;
        let run = S::ready(self, found);
        let first = run.first();
        self.frames.set_note(first, BLOCK | pages);
        self.stats.direct += 1;
        Some(layout::direct(first.start()))
    }

    /// One free run. From 2 MiB on it begins at a large frame where that is possible, so that few
    /// entries map it, now or when it moves.
    fn contiguous(&mut self, wants: Content, pages: u64) -> Option<Found> {
        let large = pages >= window::TABLE_PAGES;
        let aligned = if large { self.frames.find_aligned(wants, pages) } else { None };
        aligned.or_else(|| self.frames.find(wants, pages))
    }

    /// Rung a', among windows for `capacity_pages`.
    fn retained_block<S: Supply<M>>(&mut self, pages: u64, capacity_pages: u64) -> Option<Gva> {
        let room = self.room(capacity_pages);
        let (slot, have) = self.space.take_retained(&mut self.machine, room, pages, pages + pages / 4)?;
        S::reuse(self, slot.page(), have);
        self.stats.retained += 1;
        Some(slot.page().start())
    }

    /// Sees to it that `frames` frames are free.
    pub(crate) fn make_free(&mut self, frames: u64) -> Result<(), AllocError> {
        self.reclaim(frames);
        let missing = frames.saturating_sub(self.frames.free_frames());
        // More than there can ever be isn't asked for: it would only take what others could use.
        let grantable = self.frames.capacity_frames() - self.frames.granted_frames();
        if missing > 0 && missing <= grantable && self.config.refill {
            self.preload(missing);
        }
        let free = self.frames.free_frames();
        if free < frames { Err(AllocError::OutOfFrames { wanted: frames, free }) } else { Ok(()) }
    }

    /// Frees what nobody uses until `frames` frames are free: retained windows, and the quarantine.
    pub(crate) fn reclaim(&mut self, frames: u64) {
        let missing = |store: &FrameStore<'_>| frames.saturating_sub(store.free_frames());
        while missing(&self.frames) > self.frames.quarantined_frames() {
            let Some((slot, pages)) = self.space.take_any_retained(&mut self.machine) else { break };
            self.stats.reclaimed += 1;
            self.end_window(slot, pages);
        }
        if missing(&self.frames) > 0 && self.frames.quarantined_frames() > 0 {
            self.settle();
        }
    }

    pub(crate) fn find(&self, gva: Gva) -> Result<Block, BlockError> {
        let missing = BlockError::NotABlock { gva };
        if !gva.is_aligned(PageSize::Size4K) {
            return Err(missing);
        }
        if let Some((slot, offset)) = Slot::containing(gva) {
            return match self.space.state(&self.machine, slot) {
                State::Live { pages } if offset == 0 => Ok(Block::Window { slot, pages }),
                State::Cover { offset_pages, pages } if offset == offset_pages * PAGE_BYTES => {
                    Ok(Block::Cover(cover::Cover { slot, offset_pages, pages }))
                }
                _ => Err(missing),
            };
        }
        let gpa = gva.get().checked_sub(DIRECT_GVA.get()).ok_or(missing)?;
        let first = Gpa::new(gpa).containing();
        match self.frames.note(first) {
            Some(note) if note & BLOCK != 0 => Ok(Block::Direct { first, pages: note & !BLOCK }),
            _ => Err(missing),
        }
    }
}

/// Pages of address space for a window of `pages`: room to double. Small windows get only what the
/// power of two leaves, so that at least half of each leaf table is used whatever the sizes, and
/// tables for `frames / 256` always suffice.
const fn capacity(pages: u64) -> u64 {
    const LARGEST: u64 = 1 << (SHIFT_MAX - PAGE_SHIFT);
    if pages < window::TABLE_PAGES / 2 || pages > LARGEST / 2 { pages } else { 2 * pages }
}

/// `frames` as pages of 4 KiB, 2 MiB and 1 GiB, none larger than `largest`.
fn pages_by_size(frames: u64, largest: PageSize) -> [u64; 3] {
    let mut left = frames;
    let mut pages = [0; 3];
    for size in PageSize::ALL.into_iter().rev().filter(|&size| size <= largest) {
        pages[size as usize] = left / size.frames();
        left %= size.frames();
    }
    pages
}

/// Pages that hold `bytes`.
fn pages_of(bytes: u64) -> Result<u64, AllocError> {
    let pages = bytes.div_ceil(PAGE_BYTES);
    if pages == 0 || pages > crate::frames::FRAMES_MAX {
        return Err(AllocError::BadSize { bytes });
    }
    Ok(pages)
}
