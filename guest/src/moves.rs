//! Blocks that are resized and blocks that exchange their contents, for measured work: by tables and by copies.

#![allow(unsafe_code)] // reason: the traits are unsafe, and copies go by address

use core::ptr::copy_nonoverlapping;

use umpa_abi::addr::Gva;
use work::moves::{Exchange, Resize, Source};

use crate::userpage::Allocator;

/// How it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Blocks grow in addresses that were reserved for them.
    Reserved,
    /// Blocks lie where frames are free behind them, grow into those while nobody takes them, and move else.
    Growing,
    /// As `userpage_realloc_suited` likes.
    Resized,
    /// They move at each growth.
    Moved,
    /// They are allocated anew, copied and freed; exchanged by three copies.
    Copied,
}

/// An allocator, and a way.
pub struct Moves<'a, 'm> {
    umpa: &'a mut Allocator<'m>,
    way: Way,
    scratch: Option<(Gva, u64)>,
}

impl<'a, 'm> Moves<'a, 'm> {
    /// On `umpa`.
    #[must_use]
    pub fn new(umpa: &'a mut Allocator<'m>, way: Way) -> Self {
        Self { umpa, way, scratch: None }
    }
}

// SAFETY: umpa's blocks are memory, whole pages, shared with nothing (its invariants).
unsafe impl Source for Moves<'_, '_> {
    fn alloc(&mut self, bytes: u64, largest_bytes: u64) -> Option<u64> {
        match self.way {
            Way::Reserved => {
                let block = self.umpa.userpage_reserve(largest_bytes).ok()?;
                self.umpa.userpage_commit(block, bytes).ok()?;
                Some(block.get())
            }
            Way::Growing => self.umpa.userpage_malloc_growing(bytes, largest_bytes).ok().map(Gva::get),
            Way::Resized | Way::Moved | Way::Copied => self.umpa.userpage_malloc(bytes).ok().map(Gva::get),
        }
    }

    fn free(&mut self, block: u64, _bytes: u64) -> bool {
        self.umpa.userpage_free(Gva::new(block)).is_ok()
    }

    fn later(&mut self) {
        if let Some((scratch, _)) = self.scratch.take() {
            let freed = self.umpa.userpage_free(scratch);
            debug_assert!(freed.is_ok());
        }
        self.umpa.settle();
    }
}

// SAFETY: umpa keeps a block's content when it is resized or moves; a copy has all that both blocks have.
unsafe impl Resize for Moves<'_, '_> {
    fn resize(&mut self, block: u64, old: u64, new: u64) -> Option<u64> {
        let gva = Gva::new(block);
        match self.way {
            Way::Reserved => self.umpa.userpage_resize(gva, new).ok().map(|()| block),
            Way::Resized => self.umpa.userpage_realloc_suited(gva, new).ok().map(Gva::get),
            Way::Growing if self.umpa.userpage_resize(gva, new).is_ok() => Some(block),
            Way::Growing => self.umpa.userpage_move(gva, new).ok().map(Gva::get),
            // What becomes shorter stays where it is.
            Way::Moved if new <= old => self.umpa.userpage_resize(gva, new).ok().map(|()| block),
            Way::Moved => {
                self.umpa.userpage_move(gva, new).ok().map(Gva::get).filter(|&moved| moved != block)
            }
            Way::Copied => {
                let other = self.umpa.userpage_malloc(new).ok()?.get();
                // SAFETY: two live blocks of at least so many bytes.
                unsafe { copy_nonoverlapping(block as *const u8, other as *mut u8, old.min(new) as usize) };
                self.umpa.userpage_free(gva).ok().map(|()| other)
            }
        }
    }
}

// SAFETY: umpa exchanges whole ranges; the copies are of all bytes.
unsafe impl Exchange for Moves<'_, '_> {
    /// For copies, a third block that has memory already: where it comes from isn't part of the time.
    fn prepare(&mut self, bytes: u64) -> bool {
        if self.way != Way::Copied {
            return true;
        }
        self.scratch = self.umpa.userpage_malloc(bytes).ok().map(|scratch| (scratch, bytes));
        self.scratch.is_some()
    }

    fn exchange(&mut self, one: u64, other: u64, bytes: u64) -> bool {
        if self.way != Way::Copied {
            return self.umpa.swap(Gva::new(one), Gva::new(other), bytes).is_ok();
        }
        let Some((scratch, _)) = self.scratch.filter(|&(_, room)| bytes <= room) else { return false };
        let (one, other, scratch) = (one as *mut u8, other as *mut u8, scratch.get() as *mut u8);
        // SAFETY: three live blocks of at least `bytes` bytes.
        unsafe {
            copy_nonoverlapping(one, scratch, bytes as usize);
            copy_nonoverlapping(other, one, bytes as usize);
            copy_nonoverlapping(scratch, other, bytes as usize);
        }
        true
    }
}
