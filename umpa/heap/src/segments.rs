//! Memory for dlmalloc: segments that grow in windows of `umpa`.
//!
//! dlmalloc walks a list of its segments, so there should be few. Addresses are plentiful: a heap gets
//! a window of many gigabytes, and its one segment grows there; each growth continues the segment
//! before. Only when a window is full does another follow.
//!
//! ```text
//! window  base ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ base + reserve
//!         │ segment: dlmalloc's       │ slack: backed     │ addresses only       │ a page never used
//!         └── used_bytes ─────────────┘                   │
//!         └── backed_bytes ───────────────────────────────┘
//! ```
//!
//! Invariants: `used <= backed <= reserve - page`; `backed - used <= SLACK_MAX_BYTES`, unless
//! frees were told to keep it; segments of two
//! windows are never adjacent, as the last page of a window isn't used: dlmalloc never joins them.
//!
//! From [`LARGE_BYTES`] on windows are backed in such steps, so that one leaf maps each, where the
//! frames allow it. The slack keeps a heap that grows and shrinks at one place from editing tables.

#![allow(unsafe_code)] // reason: implements dlmalloc's unsafe trait

use core::cell::{Cell, RefCell, RefMut};
use core::ops::Range;
use core::ptr::{null_mut, with_exposed_provenance_mut};

use umpa::blocks::{Machine, Umpa};
use umpa_abi::addr::{Gva, PAGE_BYTES, PageSize};

/// Steps in which a large window is backed.
const LARGE_BYTES: u64 = PageSize::Size2M.bytes();
/// Most bytes that are backed but not dlmalloc's.
const SLACK_MAX_BYTES: u64 = 3 * LARGE_BYTES;
/// Windows that a heap can have.
const WINDOWS_MAX: usize = 8;

#[derive(Clone, Copy, Debug)]
struct Window {
    base: u64,
    used_bytes: u64,
    backed_bytes: u64,
}

/// See the [module](self).
pub(crate) struct Segments<'u, 'a, M: Machine> {
    umpa: RefCell<&'u mut Umpa<'a, M>>,
    windows: [Cell<Option<Window>>; WINDOWS_MAX],
    /// The window that grows.
    newest: Cell<usize>,
    reserve_bytes: u64,
    /// Nothing is given back for now.
    keep: Cell<bool>,
}

impl<'u, 'a, M: Machine> Segments<'u, 'a, M> {
    /// No segments yet; windows will be of `reserve_bytes`.
    pub(crate) fn new(umpa: &'u mut Umpa<'a, M>, reserve_bytes: u64) -> Self {
        Self {
            umpa: RefCell::new(umpa),
            windows: [const { Cell::new(None) }; WINDOWS_MAX],
            newest: Cell::new(0),
            reserve_bytes,
            keep: Cell::new(false),
        }
    }

    /// The page allocator. Borrowed for one call at a time, and never across one of dlmalloc's.
    pub(crate) fn umpa(&self) -> RefMut<'_, &'u mut Umpa<'a, M>> {
        self.umpa.borrow_mut()
    }

    /// Ends all windows, and returns the page allocator.
    pub(crate) fn into_umpa(self) -> &'u mut Umpa<'a, M> {
        let umpa = self.umpa.into_inner();
        for window in self.windows.into_iter().filter_map(Cell::into_inner) {
            let freed = umpa.userpage_free(Gva::new(window.base));
            debug_assert!(freed.is_ok(), "{freed:?}");
        }
        umpa
    }

    /// The segment that holds the address.
    pub(crate) fn segment_holding(&self, address: u64) -> Option<Range<u64>> {
        let holds = |window: &Window| address.wrapping_sub(window.base) < window.used_bytes;
        let newest = self.windows[self.newest.get()].get().filter(holds);
        let window = newest.or_else(|| self.windows().find(holds))?;
        Some(window.base..window.base + window.used_bytes)
    }

    /// True when a window begins there.
    pub(crate) fn has_window_at(&self, base: u64) -> bool {
        self.windows().any(|window| window.base == base)
    }

    /// Whether the slack may grow without limit.
    pub(crate) fn keep(&self, keep: bool) {
        self.keep.set(keep);
    }

    /// Bytes backed for dlmalloc.
    pub(crate) fn backed_bytes(&self) -> u64 {
        self.windows().map(|window| window.backed_bytes).sum()
    }

    fn windows(&self) -> impl Iterator<Item = Window> {
        self.windows.iter().filter_map(Cell::get)
    }

    fn set_window(&self, number: usize, window: Option<Window>) {
        self.windows[number].set(window);
    }

    /// The number of the window at `base`.
    fn window_at(&self, base: *mut u8) -> Option<(usize, Window)> {
        let base = base.expose_provenance() as u64;
        let found = |(number, window): (usize, &Cell<_>)| Some((number, Cell::get(window)?));
        self.windows
            .iter()
            .enumerate()
            .filter_map(found)
            .find(|(_, window): &(_, Window)| window.base == base)
    }

    /// What can be used of a window.
    const fn room_bytes(&self) -> u64 {
        self.reserve_bytes - PAGE_BYTES
    }

    /// Another `bytes` at the end of a window that has room for them.
    fn extend(&self, number: usize, mut window: Window, bytes: u64) -> Option<*mut u8> {
        let start = window.base + window.used_bytes;
        window.used_bytes += bytes;
        if window.used_bytes > window.backed_bytes {
            window.backed_bytes = self.back(window.base, window.used_bytes)?;
        }
        self.set_window(number, Some(window));
        Some(with_exposed_provenance_mut(start as usize))
    }

    /// Backs the window up to `end`, and to the next multiple of [`LARGE_BYTES`] if there are frames.
    fn back(&self, base: u64, end: u64) -> Option<u64> {
        let mut umpa = self.umpa();
        let large = end.next_multiple_of(LARGE_BYTES).min(self.room_bytes());
        let generous = if end < LARGE_BYTES { end } else { large };
        let mut resized = |bytes| umpa.userpage_resize(Gva::new(base), bytes).ok().map(|()| bytes);
        resized(generous).or_else(|| resized(end))
    }

    /// A new window, without memory.
    fn open(&self) -> Option<(usize, Window)> {
        let number = self.windows.iter().position(|window| window.get().is_none())?;
        let base = self.umpa().userpage_reserve(self.reserve_bytes).ok()?.get();
        let window = Window { base, used_bytes: 0, backed_bytes: 0 };
        self.set_window(number, Some(window));
        Some((number, window))
    }

    fn grow(&self, bytes: usize) -> Option<(*mut u8, usize)> {
        let bytes = (bytes as u64).checked_next_multiple_of(PAGE_BYTES)?;
        if bytes > self.room_bytes() {
            return None;
        }
        let newest = self.newest.get();
        let start = match self.windows[newest].get() {
            Some(window) if bytes <= self.room_bytes() - window.used_bytes => {
                self.extend(newest, window, bytes)?
            }
            _ => {
                let (number, window) = self.open()?;
                let Some(start) = self.extend(number, window, bytes) else {
                    self.close(number, window);
                    return None;
                };
                self.newest.set(number);
                start
            }
        };
        Some((start, bytes as usize))
    }

    fn close(&self, number: usize, window: Window) -> bool {
        self.set_window(number, None);
        self.umpa().userpage_free(Gva::new(window.base)).is_ok()
    }
}

// SAFETY: `alloc` returns memory of a live window that nothing else uses: it is `umpa`'s, mapped when
// the call returns, and each byte of a window is handed out once until `free_part` or `free` takes it
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

    /// What exceeds the slack is given back.
    fn free_part(&self, ptr: *mut u8, oldsize: usize, newsize: usize) -> bool {
        let Some((number, mut window)) = self.window_at(ptr) else { return false };
        if window.used_bytes != oldsize as u64 || newsize > oldsize {
            return false;
        }
        window.used_bytes = newsize as u64;
        if !self.keep.get() && window.backed_bytes - window.used_bytes > SLACK_MAX_BYTES {
            let kept = window.used_bytes.next_multiple_of(LARGE_BYTES) + LARGE_BYTES;
            if self.umpa().userpage_resize(Gva::new(window.base), kept).is_err() {
                return false;
            }
            window.backed_bytes = kept;
        }
        self.set_window(number, Some(window));
        true
    }

    fn free(&self, ptr: *mut u8, size: usize) -> bool {
        match self.window_at(ptr) {
            Some((number, window)) if window.used_bytes == size as u64 => self.close(number, window),
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
