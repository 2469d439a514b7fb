//! Headers of dlmalloc's chunks, as far as they are read and written here.
//!
//! ```text
//! chunk ──► │ previous chunk's size, if that is free │
//!           │ this chunk's size and flags            │
//! block ──► │ the program's bytes …                  │
//! next  ──► │ (the program's last 8 bytes)           │
//!           │ next chunk's size and flags            │
//! ```
//!
//! Sizes are multiples of 16, the least is 32. Flags: [`PREVIOUS_IN_USE`], [`IN_USE`], and one that
//! dlmalloc leaves zero. The crate keeps its layout to itself; it is dlmalloc's since 2.8, and a test
//! compares it with what the crate does. Three things are done by it:
//!
//! - a pointer is checked before it is freed: what is no chunk, or a free one, is refused;
//! - a chunk tells how far it can grow in place: up to the end of a free chunk behind it;
//! - one chunk is divided into many, each of which is freed alone.

#![allow(unsafe_code)] // reason: reads and writes words beside blocks

use core::ops::Range;
use core::ptr::NonNull;

/// The chunk before is in use, or there is none.
const PREVIOUS_IN_USE: usize = 1;
/// The chunk is in use.
const IN_USE: usize = 2;
const FLAGS: usize = 7;
/// Bytes of a chunk that aren't the program's.
pub(crate) const HEADER_BYTES: usize = size_of::<usize>();
/// Bytes of the least chunk.
const CHUNK_MIN_BYTES: usize = 4 * size_of::<usize>();
/// All blocks begin at a multiple of that.
pub(crate) const ALIGN_BYTES: usize = 2 * size_of::<usize>();

/// A chunk in use, checked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chunk {
    block: NonNull<u8>,
    bytes: usize,
}

impl Chunk {
    /// The chunk of a block that lies in `segment`; `None` where none in use can be.
    ///
    /// # Safety
    /// `segment` is all of a segment of dlmalloc's, or all of the heap's in one window.
    #[inline]
    pub(crate) unsafe fn of(block: NonNull<u8>, segment: Range<u64>) -> Option<Self> {
        let address = block.expose_provenance().get() as u64;
        let headers = segment.start + 2 * HEADER_BYTES as u64..segment.end;
        if !address.is_multiple_of(ALIGN_BYTES as u64) || !headers.contains(&address) {
            return None;
        }
        // SAFETY: two words before the block are in the segment, which is mapped (precondition).
        let head = unsafe { block.as_ptr().sub(HEADER_BYTES).cast::<usize>().read() };
        let chunk = Self { block, bytes: head & !FLAGS };
        let fits = chunk.bytes >= CHUNK_MIN_BYTES
            && chunk.bytes.is_multiple_of(ALIGN_BYTES)
            && (chunk.bytes as u64) < segment.end - address;
        // A free chunk says so to the one behind it.
        (fits && head & IN_USE != 0 && chunk.next_head() & PREVIOUS_IN_USE != 0).then_some(chunk)
    }

    /// Bytes that the program may use.
    pub(crate) fn usable_bytes(self) -> usize {
        self.bytes - HEADER_BYTES
    }

    /// True when dlmalloc resizes the chunk to hold `bytes` without moving it: it is large enough, or
    /// a free chunk (dlmalloc's top among them) lies behind it and is.
    pub(crate) fn fits_in_place(self, bytes: usize) -> bool {
        let Some(wanted) = bytes_for(bytes) else { return false };
        let next = self.next_head();
        let behind = if next & IN_USE == 0 { next & !FLAGS } else { 0 };
        // Of its top, dlmalloc never gives all away.
        wanted <= self.bytes || wanted < self.bytes + behind
    }

    #[inline]
    fn next_head(self) -> usize {
        // SAFETY: `of` has checked that the chunk ends within the segment, where another chunk follows,
        // or dlmalloc's record of the segment, which begins with a head as well.
        unsafe { self.block.as_ptr().add(self.bytes - HEADER_BYTES).cast::<usize>().read() }
    }
}

/// Divides a chunk in use into `chunks` chunks in use, of `chunk_bytes` bytes each; the last one has
/// what is left over. One store for each.
///
/// # Safety
/// `block` is a chunk in use of at least `chunks * chunk_bytes` bytes, and nobody uses its content;
/// `chunk_bytes` is from [`bytes_for`], and there is at least one.
pub(crate) unsafe fn split(block: NonNull<u8>, chunk_bytes: usize, chunks: usize) {
    // SAFETY: a head lies before a block; all others lie within the chunk (precondition).
    unsafe {
        let first = block.sub(HEADER_BYTES);
        let whole = first.cast::<usize>().read();
        let last_bytes = (whole & !FLAGS) - (chunks - 1) * chunk_bytes;
        for chunk in 1..chunks {
            let bytes = if chunk + 1 < chunks { chunk_bytes } else { last_bytes };
            first.add(chunk * chunk_bytes).cast::<usize>().write(bytes | IN_USE | PREVIOUS_IN_USE);
        }
        if chunks > 1 {
            first.cast::<usize>().write(chunk_bytes | whole & FLAGS);
        }
    }
}

/// Bytes of the chunk that holds `bytes` for a program.
pub(crate) fn bytes_for(bytes: usize) -> Option<usize> {
    let padded = bytes.checked_add(HEADER_BYTES)?.checked_next_multiple_of(ALIGN_BYTES)?;
    Some(padded.max(CHUNK_MIN_BYTES))
}
