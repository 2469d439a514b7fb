//! The ranges that images are made of, where a handler of page faults finds them by address.
//!
//! Chunks of a page each, in a list. A range stays where it is, so that its owner has its place. Chunks
//! are given back with the pages, not before.
//!
//! Cost: finding is linear in the places that there are, of which a chunk has [`PLACES`].

use core::ptr::NonNull;

use umpa::blocks::{AllocError, Machine, Umpa};
use umpa::snapshot::Versioned;
use umpa_abi::addr::{Gva, PAGE_BYTES};

use super::{address_of, memory_at};

const PLACES: usize = (PAGE_BYTES as usize - 8) / size_of::<Option<Versioned>>();

struct Chunk {
    next: Option<NonNull<Chunk>>,
    places: [Option<Versioned>; PLACES],
}

const _: () = assert!(size_of::<Chunk>() <= PAGE_BYTES as usize && PLACES > 50);

/// Where a range is kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place(NonNull<Option<Versioned>>);

impl Place {
    /// The place of this number in a chunk of a list.
    fn of(chunk: NonNull<Chunk>, number: usize) -> Self {
        assert!(number < PLACES);
        // SAFETY: within the chunk, as just checked.
        Self(unsafe { NonNull::new_unchecked((&raw mut (*chunk.as_ptr()).places).cast()).add(number) })
    }
}

/// See the [module](self).
pub(super) struct Ranges {
    newest: Option<NonNull<Chunk>>,
}

impl Ranges {
    pub(super) const fn new() -> Self {
        Self { newest: None }
    }

    /// Where all ranges may be, and are not all the time.
    fn places(&self) -> impl Iterator<Item = Place> + use<> {
        let mut chunk = self.newest;
        core::iter::from_fn(move || {
            let this = chunk?;
            // SAFETY: a chunk of the list lives as long as the list, and was written when it was made.
            chunk = unsafe { (*this.as_ptr()).next };
            Some((0..PLACES).map(move |at| Place::of(this, at)))
        })
        .flatten()
    }

    /// What a place holds.
    pub(super) fn at(&mut self, place: Place) -> &mut Option<Versioned> {
        // SAFETY: places come from chunks of this list, which live as long as it; it is borrowed.
        unsafe { &mut *place.0.as_ptr() }
    }

    /// The range that the address lies in.
    pub(super) fn holding(&mut self, gva: Gva) -> Option<&Versioned> {
        let holds =
            |range: &Versioned| gva.get().wrapping_sub(range.gva().get()) < range.pages() * PAGE_BYTES;
        let place = self.places().find(|&place| self.at(place).as_ref().is_some_and(holds))?;
        self.at(place).as_ref()
    }

    /// A place for another range.
    pub(super) fn vacant<M: Machine>(&mut self, umpa: &mut Umpa<'_, M>) -> Result<Place, AllocError> {
        if let Some(place) = self.places().find(|&place| self.at(place).is_none()) {
            return Ok(place);
        }
        let chunk = memory_at::<Chunk>(umpa.userpage_malloc(PAGE_BYTES)?);
        // SAFETY: the block is a page, which a chunk fits into, and nobody else's.
        unsafe { chunk.write(Chunk { next: self.newest, places: [const { None }; PLACES] }) };
        self.newest = Some(chunk);
        Ok(Place::of(chunk, 0))
    }

    /// Gives the chunks back.
    pub(super) fn clear<M: Machine>(&mut self, umpa: &mut Umpa<'_, M>) {
        while let Some(chunk) = self.newest {
            // SAFETY: a chunk of the list, which it leaves.
            self.newest = unsafe { chunk.as_ref().next };
            let freed = umpa.userpage_free(address_of(chunk));
            debug_assert!(freed.is_ok(), "{freed:?}");
        }
    }
}
