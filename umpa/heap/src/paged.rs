//! A heap with much more address space than memory, whose wholly free pages go back one by one.
//!
//! dlmalloc and its like need all memory between a heap's ends to be there: their lists lie in it. So a
//! heap full of holes keeps its pages, and a block larger than each hole can't be had though enough is
//! free. Here nothing is kept in free memory, and:
//!
//! - a page that no block touches is given back while its addresses stay, and is backed again when a
//!   block is placed there ([`Umpa::userpage_release`], [`Umpa::userpage_commit`]);
//! - the heap is an array of *regions*. A new block goes into the fullest one with a gap for it, so that
//!   thin regions starve and become empty ([`Policy`]);
//! - a block is refused only when, wherever in the heap's addresses it was placed, more frames would be
//!   needed than are free, metadata included; or when no gap of addresses is long enough. Which frames
//!   are free doesn't matter.
//!
//! ```text
//! addresses   │ region 0          │ region 1          │ region 2          │ …             reserve_bytes
//! blocks      │███ ██████ ████████│██        ███   █  │                   │
//! pages       │ b │ b │ b │ b │ b │ b │   │ b │ b │ b │   │   │   │   │   │ b: backed
//! metadata    two bits for 16 bytes, where a block or a gap is │ a record a region │ three bits a page
//! ```
//!
//! Bounds of blocks are bits beside the heap: a block has no header and can fill a page; any pointer is
//! checked exactly, in constant time, before it is used. What is no block's beginning is refused
//! ([`HeapError::NotABlock`]), and nothing is changed.
//!
//! Pages are of 4 KiB, 64 KiB or 2 MiB ([`PageBytes`]): the unit in which memory comes and goes. Larger
//! ones cost fewer calls and, of 2 MiB, are mapped by one entry where the frames allow it; but one block
//! of 16 bytes keeps the whole page.
//!
//! # Invariants
//!
//! ([`PagedHeap::check`].) Blocks and gaps partition the addresses, and no gap follows a gap; `backed pages
//! = pages that blocks touch + idle pages`; `idle pages * page <= slack_bytes` after each call; `frames =
//! backed pages * page / 4 KiB + frames of metadata`; in each region `live bytes = Σ bytes of blocks in it`.
//!
//! # Cost
//!
//! Memory: a block is rounded to 16 bytes. Metadata are 1/64 of the addresses in use (pages of them that
//! tell of no block go back with the memory they tell of), 24 bytes a region and 3 bits a page up to the
//! highest address that was ever used.
//!
//! Time: a small block is found by a look at 16 masks and the bounds of one region, at most one word for
//! each KiB of it; a free looks at the words up to the bounds beside it. Blocks near a region's length and
//! above are placed at the first vacant region, from where the search goes on by regions. When memory is
//! short, all gaps are looked at. Tables are edited when a block is placed on a page without memory, and
//! when more than [`Config::slack_bytes`] are idle: then half of it is given back, in runs.
//!
//! The flush that this owes is `umpa`'s to make, once for all: when frames are wanted, or when pages of the
//! heap are backed again.
//!
//! Sources: the GNOME project's *NewAlloc* (interior release, crowding); A. Stone, *The Hole That dlmalloc
//! Can't Fill* (addresses plentiful, page size as the measure of what fragmentation costs).
//!
//! [`Umpa::userpage_release`]: umpa::blocks::Umpa::userpage_release
//! [`Umpa::userpage_commit`]: umpa::blocks::Umpa::userpage_commit

#![allow(unsafe_code)] // reason: hands out memory by pointer

mod bounds;
mod inside;
mod pages;
mod place;
mod regions;
mod table;

use core::cell::{RefCell, RefMut};
use core::ptr::{self, NonNull};

use umpa::blocks::{AllocError, Machine, Umpa};
use umpa_abi::addr::{Gva, PAGE_BYTES, PageSize};

use crate::fenced::Fenced;
use crate::heap::HeapError;
use inside::{Found, Inside};
use place::Wanted;

/// Blocks begin at multiples of that, and are multiples of it.
const GRANULE_BYTES: u64 = 16;
/// Least and most bytes of a region.
const REGION_BYTES: core::ops::RangeInclusive<u64> = bounds::SHEET_BYTES / 16..=1 << 30;
/// Most addresses of a heap: `umpa`'s largest window.
const RESERVE_MAX_BYTES: u64 = 1 << umpa::space::SHIFT_MAX;

/// Too few frames (or tables): nothing changed that a program could see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Short;

/// The unit in which a heap gets memory and gives it back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PageBytes {
    /// 4 KiB.
    #[default]
    Small,
    /// 64 KiB.
    Medium,
    /// 2 MiB: one entry of a page table, where frames allow it.
    Large,
}

impl PageBytes {
    /// All, the smallest first.
    pub const ALL: [Self; 3] = [Self::Small, Self::Medium, Self::Large];

    /// Bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Small => PAGE_BYTES,
            Self::Medium => 16 * PAGE_BYTES,
            Self::Large => PageSize::Size2M.bytes(),
        }
    }
}

/// Into which region a block goes, of those that have a gap for it.
///
/// Which is best depends on the heap. Of 20,000 blocks every second of the later half stayed and every
/// twelfth of the earlier one, then blocks came and went. What stayed has 1,301 frames of bytes; first fit
/// was left with 2,205 frames, crowding with 2,018, tight crowding with 1,879, dlmalloc with 4,592. Where
/// one in eight stayed all over the heap, so that no region was fuller than another, first fit needed
/// least: 690 frames, crowding 841, tight crowding some 750.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// The fullest, so that thin ones become empty.
    #[default]
    Crowded,
    /// Of those whose longest gap is just long enough, to a power of two, the fullest.
    Tight,
    /// That with the lowest address: no crowding. Linear in regions.
    FirstFit,
}

/// What can be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Unit of memory.
    pub pages: PageBytes,
    /// Addresses, rounded up to a power of two: many times the memory. They cost nothing.
    pub reserve_bytes: u64,
    /// Length of a region, rounded up to a power of two: from a page, 16 KiB at least, to 1 GiB.
    pub region_bytes: u64,
    /// Most bytes of pages that nobody needs and that are kept.
    pub slack_bytes: u64,
    /// Where blocks go.
    pub policy: Policy,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            pages: PageBytes::default(),
            reserve_bytes: 64 << 30,
            region_bytes: 64 << 10,
            slack_bytes: 4 << 20,
            policy: Policy::default(),
        }
    }
}

impl Config {
    /// The same, with lengths that fit each other.
    fn made_possible(self) -> Self {
        let round = |bytes: u64| bytes.checked_next_power_of_two().unwrap_or(RESERVE_MAX_BYTES);
        let (least, most) = REGION_BYTES.into_inner();
        let region_bytes = round(self.region_bytes).clamp(least.max(self.pages.bytes()), most);
        let reserve_bytes = round(self.reserve_bytes).clamp(region_bytes, RESERVE_MAX_BYTES);
        Self { region_bytes, reserve_bytes, ..self }
    }
}

/// What a heap has, and did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Bytes of blocks.
    pub live_bytes: u64,
    /// Blocks.
    pub live_blocks: u64,
    /// Bytes of memory in the heap's addresses.
    pub backed_bytes: u64,
    /// Those of them on pages that no block touches.
    pub idle_bytes: u64,
    /// Bytes of memory for metadata.
    pub metadata_bytes: u64,
    /// Most frames of 4 KiB that were behind blocks and metadata at once.
    pub peak_frames: u64,
    /// Pages given back.
    pub pages_released: u64,
    /// Pages that got memory not for the first time.
    pub pages_backed_again: u64,
}

impl Counters {
    /// Frames of 4 KiB behind blocks and metadata.
    #[must_use]
    pub const fn frames(&self) -> u64 {
        (self.backed_bytes + self.metadata_bytes) / PAGE_BYTES
    }
}

/// See the [module](self).
pub struct PagedHeap<'u, 'a, M: Machine> {
    inside: RefCell<Inside<'u, 'a, M>>,
}

impl<'u, 'a, M: Machine> PagedHeap<'u, 'a, M> {
    /// A heap without blocks: addresses, and two frames of metadata. `umpa` is lent to it, see
    /// [`Self::inspect`].
    ///
    /// # Errors
    /// [`AllocError`] when there are no addresses or no frames for it.
    ///
    /// # Safety
    /// As for [`Pages::new`](crate::Pages::new): what `umpa` maps is memory of this program, which nobody
    /// else uses.
    pub unsafe fn new(umpa: &'u mut Umpa<'a, M>, config: Config) -> Result<Self, AllocError> {
        Ok(Self { inside: RefCell::new(Inside::new(umpa, config)?) })
    }

    /// A block of `bytes` bytes at a multiple of `align_bytes`, which is 16 at least. Its content is
    /// whatever the memory held. No bytes are a block too, as for C's `malloc`.
    ///
    /// # Errors
    /// [`HeapError::OutOfMemory`], [`HeapError::BadAlignment`], [`HeapError::Busy`].
    pub fn alloc(&self, bytes: usize, align_bytes: usize) -> Result<NonNull<u8>, HeapError> {
        let mut inside = self.enter()?;
        if !align_bytes.is_power_of_two() || align_bytes as u64 > inside.config.reserve_bytes {
            return Err(HeapError::BadAlignment { align_bytes });
        }
        let align = (align_bytes as u64).div_ceil(GRANULE_BYTES);
        let wanted = Wanted { granules: granules_of(bytes), align };
        let start = inside.alloc(wanted).ok_or(HeapError::OutOfMemory { bytes })?;
        Ok(block_at(inside.address(start)))
    }

    /// The same, of zeros.
    ///
    /// # Errors
    /// As for [`Self::alloc`].
    pub fn alloc_zeroed(&self, bytes: usize, align_bytes: usize) -> Result<NonNull<u8>, HeapError> {
        let block = self.alloc(bytes, align_bytes)?;
        // SAFETY: the block has so many bytes, and nobody else has it yet.
        unsafe { block.write_bytes(0, bytes) };
        Ok(block)
    }

    /// Ends a block.
    ///
    /// # Errors
    /// [`HeapError::NotABlock`], [`HeapError::Busy`].
    ///
    /// # Safety
    /// If `block` is a block of this heap's, nobody uses it any more.
    pub unsafe fn free(&self, block: NonNull<u8>) -> Result<(), HeapError> {
        let mut inside = self.enter()?;
        let found = find(&inside, block)?;
        inside.free(found);
        Ok(())
    }

    /// Gives a block `bytes` bytes; its content is kept, up to the lesser size. The address may change,
    /// and is returned; it is aligned to `align_bytes`. In place where a gap follows that is long enough,
    /// else the content is copied.
    ///
    /// # Errors
    /// As for [`Self::alloc`] and [`Self::free`]; the block is as it was.
    ///
    /// # Safety
    /// If `block` is a block of this heap's, nobody uses it any more by its old address.
    pub unsafe fn realloc(
        &self,
        block: NonNull<u8>,
        bytes: usize,
        align_bytes: usize,
    ) -> Result<NonNull<u8>, HeapError> {
        if !align_bytes.is_power_of_two() {
            return Err(HeapError::BadAlignment { align_bytes });
        }
        let kept = {
            let mut inside = self.enter()?;
            let found = find(&inside, block)?;
            let aligned = gva_of(block).get().is_multiple_of(align_bytes as u64);
            if aligned && inside.resize(found, granules_of(bytes)) {
                return Ok(block);
            }
            found.bytes().min(bytes)
        };
        let other = self.alloc(bytes, align_bytes)?;
        // SAFETY: both blocks have so many bytes, and are different blocks.
        unsafe { ptr::copy_nonoverlapping(block.as_ptr(), other.as_ptr(), kept) };
        // SAFETY: the caller's precondition.
        let freed = unsafe { self.free(block) };
        debug_assert!(freed.is_ok(), "{freed:?}");
        Ok(other)
    }

    /// Gives a block `bytes` bytes where it is. One that shrinks may keep more.
    ///
    /// # Errors
    /// [`HeapError::NoRoom`] where it would have to move, or the memory behind it can't be had; as for
    /// [`Self::free`]. The block is as it was.
    ///
    /// # Safety
    /// If `block` is a block of this heap's, nobody uses bytes of it that it loses.
    pub unsafe fn resize(&self, block: NonNull<u8>, bytes: usize) -> Result<(), HeapError> {
        let mut inside = self.enter()?;
        let found = find(&inside, block)?;
        let done = inside.resize(found, granules_of(bytes));
        if done { Ok(()) } else { Err(HeapError::NoRoom { gva: gva_of(block), bytes }) }
    }

    /// Bytes that a block has: at least what was asked for, and all may be used.
    ///
    /// # Errors
    /// As for [`Self::free`].
    pub fn usable_bytes(&self, block: NonNull<u8>) -> Result<usize, HeapError> {
        find(&*self.enter()?, block).map(Found::bytes)
    }

    /// Gives everything back that no block needs. Returns the frames. Linear in pages and metadata.
    ///
    /// # Errors
    /// [`HeapError::Busy`].
    pub fn trim(&self) -> Result<u64, HeapError> {
        Ok(self.enter()?.trim())
    }

    /// What the heap has, and did.
    ///
    /// # Errors
    /// [`HeapError::Busy`].
    pub fn counters(&self) -> Result<Counters, HeapError> {
        Ok(self.enter()?.counters())
    }

    /// Shows live bytes and blocks of each region, from the lowest on; a block counts where it begins.
    ///
    /// # Errors
    /// [`HeapError::Busy`].
    pub fn regions(&self, mut show: impl FnMut(u64, u64)) -> Result<(), HeapError> {
        self.enter()?.regions().for_each(|(live_bytes, blocks)| show(live_bytes, blocks));
        Ok(())
    }

    /// The address of the heap's first byte: that of its first region.
    ///
    /// # Errors
    /// [`HeapError::Busy`].
    pub fn base(&self) -> Result<Gva, HeapError> {
        Ok(Gva::new(self.enter()?.address(0)))
    }

    /// True when the page that holds an address has memory. Nothing outside of the heap has.
    ///
    /// # Errors
    /// [`HeapError::Busy`].
    pub fn is_backed(&self, gva: Gva) -> Result<bool, HeapError> {
        Ok(self.enter()?.is_backed(gva.get()))
    }

    /// Shows the page allocator below. To look at only: whoever could change it could unmap blocks.
    ///
    /// # Errors
    /// [`HeapError::Busy`].
    pub fn inspect<T>(&self, look: impl FnOnce(&Umpa<'a, M>) -> T) -> Result<T, HeapError> {
        Ok(look(self.enter()?.umpa))
    }

    /// Asserts the invariants. Linear in all that there is; for tests.
    ///
    /// # Panics
    /// When one doesn't hold, or a call is under way.
    pub fn check(&self) {
        self.inside.borrow().check();
    }

    /// Begins a call.
    fn enter(&self) -> Result<Fenced<RefMut<'_, Inside<'u, 'a, M>>>, HeapError> {
        self.inside.try_borrow_mut().map(Fenced::new).map_err(|_| HeapError::Busy)
    }
}

impl<M: Machine> Drop for PagedHeap<'_, '_, M> {
    fn drop(&mut self) {
        self.inside.get_mut().end();
    }
}

fn find<M: Machine>(inside: &Inside<'_, '_, M>, block: NonNull<u8>) -> Result<Found, HeapError> {
    let gva = gva_of(block);
    inside.find(gva.get()).ok_or(HeapError::NotABlock { gva })
}

const fn granules_of(bytes: usize) -> u64 {
    let granules = (bytes as u64).div_ceil(GRANULE_BYTES);
    if granules == 0 { 1 } else { granules }
}

fn gva_of(block: NonNull<u8>) -> Gva {
    Gva::new(block.expose_provenance().get() as u64)
}

fn block_at(address: u64) -> NonNull<u8> {
    // No block lies at 0: `umpa`'s windows begin far above.
    let block = ptr::with_exposed_provenance_mut(address as usize);
    NonNull::new(block).unwrap_or(NonNull::dangling())
}
