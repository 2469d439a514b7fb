//! Views: frames that are shown at several addresses, in any order.
//!
//! [`umpa::view`] says how; this is the type that ends its view when it is dropped. Frames live as long
//! as a view shows them.
//!
//! A frame may be at two addresses, of one view or of two. The compiler takes different addresses for
//! different memory, so no reference to it may exist, not even to a `Cell`. It is read and written through
//! [`Reader`] and [`Writer`], by volatile accesses: each is made, in the order of the program, and none is
//! guessed from another. Pages that are wired are looked up when such a value is made; while it lives the
//! view can't be rewired, as it is borrowed. For a buffer that wraps and is used by slices there is
//! [`Ring`](crate::Ring).
//!
//! Invariant: all pages under a `Reader` are wired; under a `Writer` they can be written.

#![allow(unsafe_code)] // reason: accesses memory by its address

use core::fmt;
use core::marker::PhantomData;
use core::mem::MaybeUninit;
use core::ops::{Deref, Range};
use core::ptr::NonNull;
use core::slice;

use umpa::blocks::Machine;
use umpa::hardware::Contents;
use umpa::view as below;
use umpa_abi::addr::{Gva, PAGE_BYTES};

pub use umpa::view::{Rights, Wire};

use crate::block::check_range;
use crate::pages::{Below, memory_at, same_pages};
use crate::{Block, Pages, PagesError, Plain};

const PAGE: usize = PAGE_BYTES as usize;
const WORD: usize = size_of::<u64>();

/// See the [module](self). Pages are counted from its first, bytes as well.
pub struct View<'p> {
    pages: &'p dyn Below,
    /// `None` while it is being dropped.
    view: Option<below::View>,
    rights: Rights,
}

impl<'p> View<'p> {
    /// A view of `page_count` fresh frames; they contain whatever they held.
    ///
    /// # Errors
    /// [`PagesError::View`].
    pub fn new<M: Machine + Contents>(
        pages: &'p Pages<'_, '_, M>,
        page_count: usize,
        rights: Rights,
    ) -> Result<Self, PagesError> {
        Ok(Self::of(pages, pages.view_new(page_count as u64, rights)?, rights))
    }

    /// A view of `page_count` pages without frames: to be wired.
    ///
    /// # Errors
    /// [`PagesError::View`].
    pub fn empty<M: Machine + Contents>(
        pages: &'p Pages<'_, '_, M>,
        page_count: usize,
        rights: Rights,
    ) -> Result<Self, PagesError> {
        Ok(Self::of(pages, pages.view_empty(page_count as u64, rights)?, rights))
    }

    pub(crate) fn of(pages: &'p dyn Below, view: below::View, rights: Rights) -> Self {
        Self { pages, view: Some(view), rights }
    }

    fn view(&self) -> &below::View {
        self.view.as_ref().expect("it isn't dropped")
    }

    fn parts(&mut self) -> (&'p dyn Below, &mut below::View) {
        (self.pages, self.view.as_mut().expect("it isn't dropped"))
    }

    /// Its first address.
    #[must_use]
    pub fn gva(&self) -> Gva {
        self.view().gva()
    }

    /// Its pages.
    #[must_use]
    pub fn page_count(&self) -> usize {
        self.view().pages() as usize
    }

    /// Its bytes.
    #[must_use]
    pub fn byte_count(&self) -> usize {
        self.page_count() * PAGE
    }

    /// What can be done with its content.
    #[must_use]
    pub const fn rights(&self) -> Rights {
        self.rights
    }

    /// Wires pages to the frames of another view's, in the order given, with one flush at most. Returns
    /// the entries written.
    ///
    /// # Errors
    /// [`PagesError::View`], [`PagesError::OtherPages`]; nothing was changed.
    pub fn rewire(&mut self, from: &View<'_>, wires: &[Wire]) -> Result<u64, PagesError> {
        same_pages(self.pages, from.pages)?;
        let (pages, view) = self.parts();
        pages.view_rewire(view, below::Source::View(from.view()), wires)
    }

    /// Wires pages to frames of the view's own, in the order given.
    ///
    /// # Errors
    /// [`PagesError::View`]; nothing was changed.
    pub fn rewire_itself(&mut self, wires: &[Wire]) -> Result<u64, PagesError> {
        let (pages, view) = self.parts();
        pages.view_rewire(view, below::Source::Itself, wires)
    }

    /// Takes the frames of pages away. Returns how many had one.
    ///
    /// # Errors
    /// [`PagesError::View`]; nothing was changed.
    pub fn unwire(&mut self, page: usize, page_count: usize) -> Result<u64, PagesError> {
        let (pages, view) = self.parts();
        pages.view_unwire(view, page as u64, page_count as u64)
    }

    /// Gives other rights to all of it.
    ///
    /// # Errors
    /// [`PagesError::Busy`].
    pub fn protect(&mut self, rights: Rights) -> Result<(), PagesError> {
        let (pages, view) = self.parts();
        pages.view_protect(view, rights)?;
        self.rights = rights;
        Ok(())
    }

    /// Access to the content of these bytes. Linear in their pages.
    ///
    /// # Errors
    /// [`PagesError::OutOfRange`]; [`PagesError::NoMemory`] (in bytes) where a page isn't wired.
    pub fn reader(&self, bytes: Range<usize>) -> Result<Reader<'_>, PagesError> {
        check_range(&bytes, self.byte_count())?;
        let first = bytes.start / PAGE;
        let page_count = bytes.end.div_ceil(PAGE) - first;
        if !self.pages.is_mapped(self.view().at(first as u64).containing(), page_count as u64)? {
            return Err(PagesError::NoMemory { start: bytes.start, end: bytes.end });
        }
        // SAFETY: the bytes lie in the view's pages.
        let start = unsafe { memory_at::<u8>(self.gva()).add(bytes.start) };
        Ok(Reader { start, len: bytes.len(), view: PhantomData })
    }

    /// Access to the content of these bytes, to change it. Others may have such access at the same time, also
    /// through other views of the same frames.
    ///
    /// # Errors
    /// As for [`Self::reader`]; [`PagesError::ReadOnly`].
    pub fn writer(&self, bytes: Range<usize>) -> Result<Writer<'_>, PagesError> {
        if self.rights == Rights::Read {
            return Err(PagesError::ReadOnly);
        }
        Ok(Writer(self.reader(bytes)?))
    }
}

impl Drop for View<'_> {
    fn drop(&mut self) {
        if let Some(view) = self.view.take() {
            let ended = self.pages.view_end(view);
            debug_assert!(ended.is_ok(), "{ended:?}");
        }
    }
}

impl fmt::Debug for View<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.view.fmt(f)
    }
}

impl<'p, T: Plain> Block<'p, T> {
    /// Makes the block a view, with its content, so that other views can show its frames too.
    ///
    /// # Errors
    /// [`PagesError::View`], [`PagesError::Block`]; the block comes back.
    pub fn into_view(self) -> Result<View<'p>, (PagesError, Self)> {
        let pages = self.pages();
        let (view, _) = self.become_other(|pages, gva| pages.view_of_block(gva))?;
        Ok(View::of(pages, view, Rights::Write))
    }
}

/// Bytes of a view that can be read. See the [module](self).
#[derive(Clone, Copy, Debug)]
pub struct Reader<'v> {
    start: NonNull<u8>,
    len: usize,
    view: PhantomData<&'v View<'v>>,
}

impl Reader<'_> {
    /// How many.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// There is always one at least.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The address of `bytes` bytes in it.
    ///
    /// # Panics
    /// Where there are fewer.
    fn at(&self, offset: usize, bytes: usize) -> *mut u8 {
        let inside = offset.checked_add(bytes).is_some_and(|end| end <= self.len);
        assert!(inside, "{bytes} bytes at {offset} of {}", self.len);
        // SAFETY: just checked.
        unsafe { self.start.as_ptr().add(offset) }
    }

    /// A byte.
    ///
    /// # Panics
    /// Behind the end.
    #[must_use]
    pub fn get(&self, offset: usize) -> u8 {
        // SAFETY: the page is wired, and stays so while the view is borrowed.
        unsafe { self.at(offset, 1).read_volatile() }
    }

    /// Copies bytes out, by words where they are aligned.
    ///
    /// # Panics
    /// Where there are fewer.
    pub fn read(&self, offset: usize, to: &mut [u8]) {
        let from = self.at(offset, to.len());
        let (head, words) = split(from, to.len());
        // SAFETY: the pages are wired, and stay so while the view is borrowed; all words are aligned.
        unsafe {
            (0..head).for_each(|at| to[at] = from.add(at).read_volatile());
            let (middle, tail) = to[head..].split_at_mut(words * WORD);
            for (word, at) in middle.chunks_exact_mut(WORD).zip((head..).step_by(WORD)) {
                word.copy_from_slice(&from.add(at).cast::<u64>().read_volatile().to_ne_bytes());
            }
            (0..tail.len()).for_each(|at| tail[at] = from.add(head + words * WORD + at).read_volatile());
        }
    }

    /// A value, wherever it is.
    ///
    /// # Panics
    /// Where there are fewer bytes.
    #[must_use]
    pub fn load<T: Plain>(&self, offset: usize) -> T {
        let mut value = MaybeUninit::<T>::zeroed();
        // SAFETY: the value's bytes, which are zeros; any others are a value too.
        self.read(offset, unsafe { slice::from_raw_parts_mut(value.as_mut_ptr().cast(), size_of::<T>()) });
        // SAFETY: all of its bytes were written.
        unsafe { value.assume_init() }
    }
}

/// Bytes of a view that can be read and written. See the [module](self).
#[derive(Clone, Copy, Debug)]
pub struct Writer<'v>(Reader<'v>);

impl<'v> Deref for Writer<'v> {
    type Target = Reader<'v>;
    fn deref(&self) -> &Reader<'v> {
        &self.0
    }
}

impl Writer<'_> {
    /// Writes a byte.
    ///
    /// # Panics
    /// Behind the end.
    pub fn set(&self, offset: usize, byte: u8) {
        // SAFETY: the page is wired and can be written, and stays so while the view is borrowed.
        unsafe { self.at(offset, 1).write_volatile(byte) };
    }

    /// Copies bytes in, by words where they are aligned.
    ///
    /// # Panics
    /// Where there are fewer.
    pub fn write(&self, offset: usize, from: &[u8]) {
        let to = self.at(offset, from.len());
        let (head, words) = split(to, from.len());
        let (middle, tail) = from[head..].split_at(words * WORD);
        // SAFETY: the pages are wired and can be written, and stay so while the view is borrowed; all words
        // are aligned.
        unsafe {
            (0..head).for_each(|at| to.add(at).write_volatile(from[at]));
            for (word, at) in middle.as_chunks::<WORD>().0.iter().zip((head..).step_by(WORD)) {
                to.add(at).cast::<u64>().write_volatile(u64::from_ne_bytes(*word));
            }
            (0..tail.len()).for_each(|at| to.add(head + words * WORD + at).write_volatile(tail[at]));
        }
    }

    /// Writes a value, wherever it is.
    ///
    /// # Panics
    /// Where there are fewer bytes.
    pub fn store<T: Plain>(&self, offset: usize, value: T) {
        // SAFETY: a plain value is all of its bytes.
        self.write(offset, unsafe { slice::from_raw_parts((&raw const value).cast(), size_of::<T>()) });
    }
}

/// Bytes before the first aligned word, and words from there on.
fn split(at: *mut u8, bytes: usize) -> (usize, usize) {
    let head = at.align_offset(WORD).min(bytes);
    (head, (bytes - head) / WORD)
}
