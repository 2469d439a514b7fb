//! What values ask their pages for: `umpa`'s calls, without the machine's type.

use umpa::blocks::{AllocError, BlockError, Machine};
use umpa::guard::{Explained, Guard};
use umpa::hardware::Contents;
use umpa::snapshot::{Restored, Snapshot};
use umpa::space::Slot;
use umpa::view::{Rights, Source, View, Wire};
use umpa::watch::Access;
use umpa_abi::addr::{Gva, PAGE_BYTES, Page};

use super::ranges::Place;
use super::{Pages, PagesError};
use crate::aligned::aligned_pages;

/// See the [module](self). A call is refused in the midst of another.
pub(crate) trait Below {
    fn alloc(&self, bytes: u64) -> Result<Gva, PagesError>;
    fn alloc_zeroed(&self, bytes: u64) -> Result<Gva, PagesError>;
    /// A block in a window that has addresses for more.
    fn alloc_reserved(&self, bytes: u64, reserve_bytes: u64) -> Result<Gva, PagesError>;
    fn reserve(&self, bytes: u64) -> Result<Gva, PagesError>;
    fn free(&self, block: Gva) -> Result<(), PagesError>;
    fn realloc(&self, block: Gva, bytes: u64) -> Result<Gva, PagesError>;
    fn resize(&self, block: Gva, bytes: u64) -> Result<(), PagesError>;
    fn usable_bytes(&self, block: Gva) -> Result<u64, PagesError>;
    fn unshare(&self, block: Gva) -> Result<Gva, PagesError>;
    fn swap(&self, one: Gva, other: Gva, bytes: u64) -> Result<(), PagesError>;
    fn commit(&self, gva: Gva, bytes: u64) -> Result<u64, PagesError>;
    fn release(&self, gva: Gva, bytes: u64) -> Result<u64, PagesError>;
    /// Each of the pages has memory.
    fn is_mapped(&self, first: Page, pages: u64) -> Result<bool, PagesError>;

    fn view_new(&self, pages: u64, rights: Rights) -> Result<View, PagesError>;
    fn view_empty(&self, pages: u64, rights: Rights) -> Result<View, PagesError>;
    fn view_ring(&self, pages: u64) -> Result<View, PagesError>;
    fn view_of_block(&self, block: Gva) -> Result<View, PagesError>;
    fn view_rewire(&self, view: &mut View, from: Source<'_>, wires: &[Wire]) -> Result<u64, PagesError>;
    fn view_unwire(&self, view: &mut View, page: u64, pages: u64) -> Result<u64, PagesError>;
    fn view_protect(&self, view: &mut View, rights: Rights) -> Result<(), PagesError>;
    fn view_end(&self, view: View) -> Result<(), PagesError>;

    fn versioned_new(&self, pages: u64) -> Result<(Place, Gva), PagesError>;
    fn versioned_of_block(&self, block: Gva) -> Result<Place, PagesError>;
    fn versioned_end(&self, range: Place) -> Result<(), PagesError>;
    /// Copies what a first write to the page would copy.
    fn versioned_own(&self, range: Place, page: Page) -> Result<(), PagesError>;
    fn snapshot(&self, range: Place) -> Result<Snapshot, PagesError>;
    fn snapshot_restore(&self, range: Place, image: &Snapshot) -> Result<Restored, PagesError>;
    fn snapshot_drop(&self, image: Snapshot) -> Result<(), PagesError>;

    fn guard_alloc(&self, guard: &mut Guard<'_>, bytes: u64, align: u64) -> Result<Gva, PagesError>;
    fn guard_free(&self, guard: &mut Guard<'_>, block: Gva) -> Result<(), PagesError>;
    fn guard_explain(&self, guard: &Guard<'_>, gva: Gva) -> Result<Option<Explained>, PagesError>;
    fn guard_forget(&self, guard: &mut Guard<'_>) -> Result<(), PagesError>;
}

/// A place that has no range, as its owner has ended it. Owners don't.
const ENDED: PagesError = PagesError::Block(BlockError::NotABlock { gva: Gva::new(0) });

impl<M: Machine + Contents> Below for Pages<'_, '_, M> {
    fn alloc(&self, bytes: u64) -> Result<Gva, PagesError> {
        self.call(|inside| Ok(inside.umpa.userpage_malloc(bytes)?))
    }
    fn alloc_zeroed(&self, bytes: u64) -> Result<Gva, PagesError> {
        self.call(|inside| Ok(inside.umpa.userpage_malloc_zeroed(bytes)?))
    }
    fn alloc_reserved(&self, bytes: u64, reserve_bytes: u64) -> Result<Gva, PagesError> {
        let whole = bytes.checked_next_multiple_of(PAGE_BYTES).ok_or(AllocError::BadSize { bytes })?;
        self.call(|inside| Ok(aligned_pages(inside.umpa, whole, reserve_bytes)?))
    }
    fn reserve(&self, bytes: u64) -> Result<Gva, PagesError> {
        self.call(|inside| Ok(inside.umpa.userpage_reserve(bytes)?))
    }
    fn free(&self, block: Gva) -> Result<(), PagesError> {
        self.call(|inside| Ok(inside.umpa.userpage_free(block)?))
    }
    fn realloc(&self, block: Gva, bytes: u64) -> Result<Gva, PagesError> {
        self.call(|inside| Ok(inside.umpa.userpage_realloc(block, bytes)?))
    }
    fn resize(&self, block: Gva, bytes: u64) -> Result<(), PagesError> {
        self.call(|inside| Ok(inside.umpa.userpage_resize(block, bytes)?))
    }
    fn usable_bytes(&self, block: Gva) -> Result<u64, PagesError> {
        self.call(|inside| Ok(inside.umpa.usable_bytes(block)?))
    }
    fn unshare(&self, block: Gva) -> Result<Gva, PagesError> {
        self.call(|inside| Ok(inside.umpa.userpage_unshare(block)?))
    }
    fn swap(&self, one: Gva, other: Gva, bytes: u64) -> Result<(), PagesError> {
        self.call(|inside| Ok(inside.umpa.swap(one, other, bytes)?))
    }
    fn commit(&self, gva: Gva, bytes: u64) -> Result<u64, PagesError> {
        self.call(|inside| Ok(inside.umpa.userpage_commit(gva, bytes)?))
    }
    fn release(&self, gva: Gva, bytes: u64) -> Result<u64, PagesError> {
        self.call(|inside| Ok(inside.umpa.userpage_release(gva, bytes)?))
    }
    fn is_mapped(&self, first: Page, pages: u64) -> Result<bool, PagesError> {
        self.call(|inside| Ok((0..pages).all(|page| inside.umpa.leaf(first.offset(page)).is_some())))
    }

    fn view_new(&self, pages: u64, rights: Rights) -> Result<View, PagesError> {
        self.call(|inside| Ok(inside.umpa.view_new(pages, rights)?))
    }
    fn view_empty(&self, pages: u64, rights: Rights) -> Result<View, PagesError> {
        self.call(|inside| Ok(inside.umpa.view_empty(pages, rights)?))
    }
    fn view_ring(&self, pages: u64) -> Result<View, PagesError> {
        self.call(|inside| Ok(inside.umpa.view_ring(pages)?))
    }
    fn view_of_block(&self, block: Gva) -> Result<View, PagesError> {
        self.call(|inside| Ok(inside.umpa.view_of_block(block)?))
    }
    fn view_rewire(&self, view: &mut View, from: Source<'_>, wires: &[Wire]) -> Result<u64, PagesError> {
        self.call(|inside| Ok(inside.umpa.view_rewire(view, from, wires)?))
    }
    fn view_unwire(&self, view: &mut View, page: u64, pages: u64) -> Result<u64, PagesError> {
        self.call(|inside| Ok(inside.umpa.view_unwire(view, page, pages)?))
    }
    fn view_protect(&self, view: &mut View, rights: Rights) -> Result<(), PagesError> {
        self.call(|inside| {
            inside.umpa.view_protect(view, rights);
            Ok(())
        })
    }
    fn view_end(&self, view: View) -> Result<(), PagesError> {
        self.call(|inside| {
            inside.umpa.view_end(view);
            Ok(())
        })
    }

    fn versioned_new(&self, pages: u64) -> Result<(Place, Gva), PagesError> {
        self.call(|inside| {
            let place = inside.ranges.vacant(inside.umpa)?;
            let range = inside.umpa.versioned_new(pages)?;
            let gva = range.gva();
            *inside.ranges.at(place) = Some(range);
            Ok((place, gva))
        })
    }
    fn versioned_of_block(&self, block: Gva) -> Result<Place, PagesError> {
        self.call(|inside| {
            let place = inside.ranges.vacant(inside.umpa)?;
            *inside.ranges.at(place) = Some(inside.umpa.versioned_of_block(block)?);
            Ok(place)
        })
    }
    fn versioned_end(&self, range: Place) -> Result<(), PagesError> {
        self.call(|inside| {
            let range = inside.ranges.at(range).take().ok_or(ENDED)?;
            inside.umpa.versioned_end(range);
            Ok(())
        })
    }
    fn versioned_own(&self, range: Place, page: Page) -> Result<(), PagesError> {
        self.call(|inside| {
            let range = inside.ranges.at(range).as_ref().ok_or(ENDED)?;
            let _ = inside.umpa.snapshot_fault(range, page.start(), Access::Write)?;
            Ok(())
        })
    }
    fn snapshot(&self, range: Place) -> Result<Snapshot, PagesError> {
        self.call(|inside| {
            let range = inside.ranges.at(range).as_mut().ok_or(ENDED)?;
            Ok(inside.umpa.snapshot(range)?)
        })
    }
    fn snapshot_restore(&self, range: Place, image: &Snapshot) -> Result<Restored, PagesError> {
        self.call(|inside| {
            let range = inside.ranges.at(range).as_mut().ok_or(ENDED)?;
            Ok(inside.umpa.snapshot_restore(range, image)?)
        })
    }
    fn snapshot_drop(&self, image: Snapshot) -> Result<(), PagesError> {
        self.call(|inside| {
            inside.umpa.snapshot_drop(image);
            Ok(())
        })
    }

    fn guard_alloc(&self, guard: &mut Guard<'_>, bytes: u64, align: u64) -> Result<Gva, PagesError> {
        self.call(|inside| Ok(guard.alloc(inside.umpa, bytes, align)?))
    }
    fn guard_free(&self, guard: &mut Guard<'_>, block: Gva) -> Result<(), PagesError> {
        self.call(|inside| Ok(guard.free(inside.umpa, block)?))
    }
    fn guard_explain(&self, guard: &Guard<'_>, gva: Gva) -> Result<Option<Explained>, PagesError> {
        self.call(|inside| Ok(guard.explain(inside.umpa, gva)))
    }
    fn guard_forget(&self, guard: &mut Guard<'_>) -> Result<(), PagesError> {
        self.call(|inside| {
            guard.forget(inside.umpa);
            Ok(())
        })
    }
}

/// Pages of the window that a block has for itself (after `unshare`).
pub(crate) fn window_pages(block: Gva) -> Option<u64> {
    Slot::containing(block).map(|(slot, _)| slot.pages())
}
