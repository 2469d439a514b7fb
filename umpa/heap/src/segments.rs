//! Memory for dlmalloc: segments, at the end of which it grows.
//!
//! dlmalloc walks a list of its segments, so there should be few. The first lies in the direct map, in front of free
//! frames. It grows there by what dlmalloc asks for (64 KiB) without a store to a table, as long as nobody else
//! takes the frames behind it, and what dlmalloc gives back is free at once. So no memory waits there for a use. The
//! frames before it are fewer than those behind: a block of any size comes from before, as the best fit, while there
//! are such.
//!
//! When somebody has taken the frames behind it, or none lie together, windows of many gigabytes of addresses follow.
//! Each is a segment, and each growth continues the one before; only when a window is full does another follow.
//!
//! ```text
//! window  base ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ base + reserve
//!         │ segment: dlmalloc's       │ slack: backed     │ addresses only       │ a page never used
//!         └── used_bytes ─────────────┘                   │
//!         └── backed_bytes ───────────────────────────────┘
//! ```
//!
//! Invariants: `newest_part` = base and `used` of the newest, or 0 bytes; `used <= backed`; in the direct map
//! `used = backed`, unless frees were told to keep memory; in a window `backed <= reserve - page` and
//! `backed - used <= SLACK_MAX_BYTES`, with the same exception. One segment at most lies in the direct map, and the
//! last page of a window isn't used, so no two segments are adjacent: dlmalloc never joins them.
//!
//! From [`LARGE_BYTES`] on windows are backed in such steps, so that one leaf maps each, where the
//! frames allow it. The slack keeps a heap that grows and shrinks at one place from editing tables.

#![allow(unsafe_code)] // reason: implements dlmalloc's unsafe trait

use core::cell::{Cell, RefCell, RefMut};
use core::ops::Range;
use core::ptr::{null_mut, with_exposed_provenance_mut};

use umpa::blocks::{Machine, Umpa};
use umpa::space::Slot;
use umpa_abi::addr::{Gva, PAGE_BYTES, PageSize};

/// Steps in which a large window is backed.
const LARGE_BYTES: u64 = PageSize::Size2M.bytes();
/// Most bytes that are backed but not dlmalloc's.
const SLACK_MAX_BYTES: u64 = 3 * LARGE_BYTES;
/// Segments that a heap can have.
const SEGMENTS_MAX: usize = 8;
/// So many of eight free frames lie behind a new segment in the direct map.
const BEHIND_OF_8: u64 = 7;

/// Where a segment lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Direct,
    Window,
}

#[derive(Clone, Copy, Debug)]
struct Segment {
    place: Place,
    base: u64,
    used_bytes: u64,
    backed_bytes: u64,
}

impl Segment {
    const fn holds(&self, address: u64) -> bool {
        address.wrapping_sub(self.base) < self.used_bytes
    }
}

/// See the [module](self).
pub(crate) struct Segments<'u, 'a, M: Machine> {
    umpa: RefCell<&'u mut Umpa<'a, M>>,
    segments: [Cell<Option<Segment>>; SEGMENTS_MAX],
    /// The one that grows.
    newest: Cell<usize>,
    /// Its base and what is used of it, for a look at one place.
    newest_part: Cell<(u64, u64)>,
    reserve_bytes: u64,
    /// Nothing is given back for now.
    keep: Cell<bool>,
}

impl<'u, 'a, M: Machine> Segments<'u, 'a, M> {
    /// None yet; windows will be of `reserve_bytes`.
    pub(crate) fn new(umpa: &'u mut Umpa<'a, M>, reserve_bytes: u64) -> Self {
        Self {
            umpa: RefCell::new(umpa),
            segments: [const { Cell::new(None) }; SEGMENTS_MAX],
            newest: Cell::new(0),
            newest_part: Cell::new((0, 0)),
            reserve_bytes,
            keep: Cell::new(false),
        }
    }

    /// The page allocator. Borrowed for one call at a time, and never across one of dlmalloc's.
    pub(crate) fn umpa(&self) -> RefMut<'_, &'u mut Umpa<'a, M>> {
        self.umpa.borrow_mut()
    }

    /// Ends all segments, and returns the page allocator.
    pub(crate) fn into_umpa(self) -> &'u mut Umpa<'a, M> {
        let umpa = self.umpa.into_inner();
        for segment in self.segments.into_iter().filter_map(Cell::into_inner) {
            let freed = umpa.userpage_free(Gva::new(segment.base));
            debug_assert!(freed.is_ok(), "{freed:?}");
        }
        umpa
    }

    /// The segment that holds the address.
    #[inline]
    pub(crate) fn segment_holding(&self, address: u64) -> Option<Range<u64>> {
        self.newest_holding(address).or_else(|| self.older_holding(address))
    }

    /// The segment that grows, if it holds the address: most blocks are there.
    #[inline]
    pub(crate) fn newest_holding(&self, address: u64) -> Option<Range<u64>> {
        let (base, used_bytes) = self.newest_part.get();
        (address.wrapping_sub(base) < used_bytes).then(|| base..base + used_bytes)
    }

    #[inline(never)]
    fn older_holding(&self, address: u64) -> Option<Range<u64>> {
        let segment = self.segments().find(|segment| segment.holds(address))?;
        Some(segment.base..segment.base + segment.used_bytes)
    }

    /// True for addresses of a segment in the direct map, and in windows that have one.
    pub(crate) fn keeps(&self, gva: Gva) -> bool {
        let window = Slot::containing(gva).map(|(slot, _)| slot.page().start().get());
        self.segments().any(|segment| match segment.place {
            Place::Direct => gva.get().wrapping_sub(segment.base) < segment.backed_bytes,
            Place::Window => window == Some(segment.base),
        })
    }

    /// Whether what isn't used may stay without limit.
    pub(crate) fn keep(&self, keep: bool) {
        self.keep.set(keep);
    }

    /// Bytes backed for dlmalloc.
    pub(crate) fn backed_bytes(&self) -> u64 {
        self.segments().map(|segment| segment.backed_bytes).sum()
    }

    fn segments(&self) -> impl Iterator<Item = Segment> {
        self.segments.iter().filter_map(Cell::get)
    }

    fn set_segment(&self, number: usize, segment: Option<Segment>) {
        self.segments[number].set(segment);
        if number == self.newest.get() {
            self.newest_part.set(segment.map_or((0, 0), |segment| (segment.base, segment.used_bytes)));
        }
    }

    /// The number of the segment at `base`.
    fn segment_at(&self, base: *mut u8) -> Option<(usize, Segment)> {
        let base = base.expose_provenance() as u64;
        let found = |(number, segment): (usize, &Cell<_>)| Some((number, Cell::get(segment)?));
        self.segments
            .iter()
            .enumerate()
            .filter_map(found)
            .find(|(_, segment): &(_, Segment)| segment.base == base)
    }

    /// What can be used of a window.
    const fn room_bytes(&self) -> u64 {
        self.reserve_bytes - PAGE_BYTES
    }

    /// Another `bytes` at the end of a segment that has room for them.
    fn extend(&self, number: usize, mut segment: Segment, bytes: u64) -> Option<*mut u8> {
        let start = segment.base + segment.used_bytes;
        segment.used_bytes = segment.used_bytes.checked_add(bytes)?;
        if segment.place == Place::Window && segment.used_bytes > self.room_bytes() {
            return None;
        }
        if segment.used_bytes > segment.backed_bytes {
            segment.backed_bytes = self.back(segment)?;
        }
        self.set_segment(number, Some(segment));
        Some(with_exposed_provenance_mut(start as usize))
    }

    /// Backs the segment as far as it is used; a window up to the next multiple of [`LARGE_BYTES`] if there are frames.
    fn back(&self, segment: Segment) -> Option<u64> {
        let mut umpa = self.umpa();
        let end = segment.used_bytes;
        let mut resized = |bytes| umpa.userpage_resize(Gva::new(segment.base), bytes).ok().map(|()| bytes);
        if segment.place == Place::Direct || end < LARGE_BYTES {
            return resized(end);
        }
        resized(end.next_multiple_of(LARGE_BYTES).min(self.room_bytes())).or_else(|| resized(end))
    }

    /// A new segment of `bytes`, which grows from now on.
    fn open(&self, bytes: u64) -> Option<Segment> {
        let number = self.segments.iter().position(|segment| segment.get().is_none())?;
        let direct = if self.segments().any(|segment| segment.place == Place::Direct) {
            None
        } else {
            let mut umpa = self.umpa();
            let behind = umpa.frames().free_frames() * PAGE_BYTES / 8 * BEHIND_OF_8;
            umpa.userpage_malloc_growing_direct(bytes, behind)
        };
        let segment = match direct {
            Some(gva) => {
                Segment { place: Place::Direct, base: gva.get(), used_bytes: bytes, backed_bytes: bytes }
            }
            None => self.open_window(bytes)?,
        };
        self.newest.set(number);
        self.set_segment(number, Some(segment));
        Some(segment)
    }

    fn open_window(&self, bytes: u64) -> Option<Segment> {
        if bytes > self.room_bytes() {
            return None;
        }
        let base = self.umpa().userpage_reserve(self.reserve_bytes).ok()?;
        let mut segment =
            Segment { place: Place::Window, base: base.get(), used_bytes: bytes, backed_bytes: 0 };
        let Some(backed_bytes) = self.back(segment) else {
            let freed = self.umpa().userpage_free(base);
            debug_assert!(freed.is_ok(), "{freed:?}");
            return None;
        };
        segment.backed_bytes = backed_bytes;
        Some(segment)
    }

    fn grow(&self, bytes: usize) -> Option<(*mut u8, usize)> {
        let bytes = (bytes as u64).checked_next_multiple_of(PAGE_BYTES)?;
        let newest = self.newest.get();
        let grown = self.segments[newest].get().and_then(|segment| self.extend(newest, segment, bytes));
        let start = match grown {
            Some(start) => start,
            None => with_exposed_provenance_mut(self.open(bytes)?.base as usize),
        };
        Some((start, bytes as usize))
    }
}

// SAFETY: `alloc` returns memory of a live block that nothing else uses: it is `umpa`'s, mapped when
// the call returns, and each byte of it is handed out once until `free_part` or `free` takes it
// back. `remap` moves a block's entries, so content goes along.
unsafe impl<M: Machine + Send> dlmalloc::Allocator for Segments<'_, '_, M> {
    fn alloc(&self, size: usize) -> (*mut u8, usize, u32) {
        match self.grow(size) {
            Some((start, bytes)) => (start, bytes, 0),
            None => (null_mut(), 0, 0),
        }
    }

    /// Of a block of `umpa`'s, by page tables: in place, else by moved entries. Its length is known
    /// there.
    fn remap(&self, ptr: *mut u8, _oldsize: usize, newsize: usize, can_move: bool) -> *mut u8 {
        let (gva, bytes) = (Gva::new(ptr.expose_provenance() as u64), newsize as u64);
        let mut umpa = self.umpa();
        let resized = if can_move {
            umpa.userpage_realloc(gva, bytes)
        } else {
            umpa.userpage_resize(gva, bytes).map(|()| gva)
        };
        resized.map_or(null_mut(), |gva| with_exposed_provenance_mut(gva.get() as usize))
    }

    /// What exceeds the slack is given back; in the direct map there is none.
    fn free_part(&self, ptr: *mut u8, oldsize: usize, newsize: usize) -> bool {
        let Some((number, mut segment)) = self.segment_at(ptr) else { return false };
        if segment.used_bytes != oldsize as u64 || newsize > oldsize {
            return false;
        }
        segment.used_bytes = newsize as u64;
        let kept_bytes = match segment.place {
            _ if self.keep.get() => segment.backed_bytes,
            Place::Direct => segment.used_bytes.next_multiple_of(PAGE_BYTES),
            Place::Window if segment.backed_bytes - segment.used_bytes <= SLACK_MAX_BYTES => {
                segment.backed_bytes
            }
            Place::Window => segment.used_bytes.next_multiple_of(LARGE_BYTES) + LARGE_BYTES,
        };
        if kept_bytes < segment.backed_bytes {
            if self.umpa().userpage_resize(Gva::new(segment.base), kept_bytes).is_err() {
                return false;
            }
            segment.backed_bytes = kept_bytes;
        }
        self.set_segment(number, Some(segment));
        true
    }

    fn free(&self, ptr: *mut u8, size: usize) -> bool {
        match self.segment_at(ptr) {
            Some((number, segment)) if segment.used_bytes == size as u64 => {
                self.set_segment(number, None);
                self.umpa().userpage_free(Gva::new(segment.base)).is_ok()
            }
            _ => false,
        }
    }

    fn can_release_part(&self, _flags: u32) -> bool {
        true
    }

    /// `umpa` doesn't zero frames that it recycles.
    fn allocates_zeros(&self) -> bool {
        false
    }

    fn page_size(&self) -> usize {
        PAGE_BYTES as usize
    }
}
