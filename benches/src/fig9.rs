//! Figures 9 and 10 natively, in processes of their own ([`apart`](crate::apart)).
//!
//! | series | blocks are from |
//! | --- | --- |
//! | `dlmalloc-mmap` | dlmalloc on `mmap`, as Doug Lea's comes: blocks from 256 KiB up are mappings of their own |
//! | `dlmalloc-mmap-retain` | the same told to keep its memory: all blocks from segments, which never go |
//! | [`peers::NAMES`] | the allocators that programs use |
//!
//! dlmalloc is the crate that guests have too. It has no threshold for mappings; that is here.
//!
//! Memory is what is [resident](crate::resident) less what was before the first block.
#![allow(unsafe_code, reason = "maps memory, and calls allocators")]

use std::io::{self, BufRead, Write};
use std::ptr::{NonNull, null_mut};

use dlmalloc::Dlmalloc;
use rustix::mm::{MapFlags, MremapFlags, ProtFlags, mmap_anonymous, mremap, munmap};
use umpa_abi::addr::PAGE_BYTES;
use work::fig9::{Fig9, Held, slots};
use work::{Blocks, Slot};

use crate::apart::serve;
use crate::peers::{self, Peer};
use crate::resident::Resident;

/// dlmalloc's series.
pub const DLMALLOC: [&str; 2] = ["dlmalloc-mmap", "dlmalloc-mmap-retain"];

/// dlmalloc's `DEFAULT_MMAP_THRESHOLD`.
const THRESHOLD_BYTES: usize = 256 << 10;

/// Memory of the kernel's for dlmalloc.
struct Mapped {
    retains: bool,
}

fn map(bytes: usize) -> *mut u8 {
    let rights = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping where the kernel likes.
    let mapped = unsafe { mmap_anonymous(null_mut(), bytes, rights, MapFlags::PRIVATE) };
    mapped.map_or(null_mut(), <*mut _>::cast)
}

// SAFETY: the kernel's mappings are memory, whole pages, nobody else's, until they are unmapped.
unsafe impl dlmalloc::Allocator for Mapped {
    fn alloc(&self, size: usize) -> (*mut u8, usize, u32) {
        (map(size), size, 0)
    }

    fn remap(&self, block: *mut u8, old: usize, new: usize, can_move: bool) -> *mut u8 {
        let flags = if can_move { MremapFlags::MAYMOVE } else { MremapFlags::empty() };
        // SAFETY: dlmalloc remaps what `alloc` has given it, with its length.
        let moved = unsafe { mremap(block.cast(), old, new, flags) };
        moved.map_or(null_mut(), <*mut _>::cast)
    }

    fn free_part(&self, block: *mut u8, old: usize, new: usize) -> bool {
        // SAFETY: the end of a segment that dlmalloc has no use for any more.
        !self.retains && unsafe { munmap(block.wrapping_add(new).cast(), old - new) }.is_ok()
    }

    fn free(&self, block: *mut u8, size: usize) -> bool {
        // SAFETY: a whole segment that dlmalloc has no use for any more.
        !self.retains && unsafe { munmap(block.cast(), size) }.is_ok()
    }

    fn can_release_part(&self, _flags: u32) -> bool {
        !self.retains
    }

    fn allocates_zeros(&self) -> bool {
        true
    }

    fn page_size(&self) -> usize {
        PAGE_BYTES as usize
    }
}

/// An allocator under test.
enum Allocator {
    Dlmalloc { small: Box<Dlmalloc<Mapped>>, threshold_bytes: usize },
    Peer(Peer),
}

impl Allocator {
    fn of(series: &str) -> Option<Self> {
        if let Some(peer) = Peer::of(series) {
            return Some(Self::Peer(peer));
        }
        let retains = DLMALLOC.iter().position(|name| *name == series)? > 0;
        let small = Box::new(Dlmalloc::new_with_allocator(Mapped { retains }));
        Some(Self::Dlmalloc { small, threshold_bytes: if retains { usize::MAX } else { THRESHOLD_BYTES } })
    }
}

struct Native {
    name: &'static str,
    allocator: Allocator,
    resident: Resident,
}

impl Native {
    fn of(series: &str) -> io::Result<Self> {
        let name = DLMALLOC.into_iter().chain(peers::NAMES).find(|name| *name == series);
        let (name, allocator) = name.zip(Allocator::of(series)).ok_or(io::ErrorKind::NotFound)?;
        let native = Self { name, allocator, resident: Resident::open()? };
        native.resident.bytes()?;
        Ok(native)
    }
}

// SAFETY: allocators' blocks are memory, nobody else's, until they are freed.
unsafe impl Blocks for Native {
    fn name(&self) -> &'static str {
        self.name
    }

    #[inline]
    fn alloc(&mut self, bytes: u64) -> Option<NonNull<u8>> {
        NonNull::new(match &mut self.allocator {
            Allocator::Peer(peer) => peer.alloc(bytes),
            Allocator::Dlmalloc { threshold_bytes, .. } if bytes as usize >= *threshold_bytes => {
                map(bytes as usize)
            }
            // SAFETY: any size may be asked for.
            Allocator::Dlmalloc { small, .. } => unsafe { small.c_malloc(bytes as usize) },
        })
    }

    #[inline]
    unsafe fn free(&mut self, block: NonNull<u8>, bytes: u64) {
        let block = block.as_ptr();
        // SAFETY: a block of `alloc`'s with so many bytes, which nobody uses any more.
        unsafe {
            match &mut self.allocator {
                Allocator::Peer(peer) => peer.free(block, bytes),
                Allocator::Dlmalloc { threshold_bytes, .. } if bytes as usize >= *threshold_bytes => {
                    // It can't fail for the whole of a mapping.
                    let _ = munmap(block.cast(), bytes as usize);
                }
                Allocator::Dlmalloc { small, .. } => small.c_free(block),
            }
        }
    }
}

impl Held for Native {
    fn held_bytes(&mut self) -> u64 {
        self.resident.bytes().unwrap_or(0)
    }
}

/// Rounds with so many large blocks at once, for a series.
///
/// # Errors
/// The system's, and that there is no such series.
pub fn rounds(series: &str, blocks: u64, commands: impl BufRead, answers: impl Write) -> io::Result<()> {
    peers::settle_in(series);
    let native = Native::of(series)?;
    let mut places = vec![Slot::EMPTY; slots(blocks)];
    let mut work = Fig9::new(blocks, native, &mut places).map_err(io::Error::other)?;
    let round = |report: &mut dyn FnMut(_)| {
        work.round(report)?;
        Ok(work.counters().to_vec())
    };
    serve(round, commands, answers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apart::Answer;
    use work::fig9::parts;

    #[test]
    fn every_series_does_its_rounds_and_tells_its_memory() {
        let shared = |name: &&str| !peers::NAMES.contains(name) || !name.ends_with("retain");
        for series in DLMALLOC.into_iter().chain(peers::NAMES).filter(shared) {
            let mut text = Vec::new();
            rounds(series, 8, &b"warm\ncount\n"[..], &mut text).unwrap();
            let text = String::from_utf8(text).unwrap();
            let answers: Vec<_> = text.lines().filter_map(Answer::from_line).collect();
            let samples = answers.iter().filter(|answer| matches!(answer, Answer::Sample(_)));
            // Four rows of each bin, and one of each part.
            assert!(samples.count() > 4 * 12 + 2, "{series}: {text}");
            assert_eq!(answers.last(), Some(&Answer::Done), "{series}");
            let counter = |name: &str| {
                let value = |answer: &Answer| match answer {
                    Answer::Counter(found, value) if found == name => Some(*value),
                    _ => None,
                };
                answers.iter().rev().find_map(value).unwrap()
            };
            let live = counter("large_live_bytes");
            assert_eq!(live, parts(8)[1].live_bytes(1), "{series}");
            // Other tests' memory may go meanwhile, but not most of it.
            assert!(counter("large_peak_bytes") > live / 2, "{series}: {text}");
        }
        assert_eq!(
            rounds("malloc", 8, &b"warm\n"[..], Vec::new()).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    }

    #[test]
    fn dlmalloc_gives_back_what_it_isnt_told_to_keep() {
        for (number, series) in DLMALLOC.into_iter().enumerate() {
            let retains = number == 1;
            let mut native = Native::of(series).unwrap();
            let [large, small] = [1 << 20, 100 << 10].map(|bytes| {
                let block = native.alloc(bytes).unwrap();
                // SAFETY: its last byte.
                unsafe { block.add(bytes as usize - 1).write(1) };
                (block, bytes)
            });
            // A mapping begins at a page, a chunk behind its head.
            assert_eq!(large.0.addr().get() % 4096 == 0, !retains, "{series}");
            assert_ne!(small.0.addr().get() % 4096, 0, "{series}");
            for (block, bytes) in [large, small] {
                // SAFETY: from `alloc`, and used no more.
                unsafe { native.free(block, bytes) };
            }
            let kernel = Mapped { retains };
            let (pages, bytes, _) = dlmalloc::Allocator::alloc(&kernel, 3 * 4096);
            assert_eq!(dlmalloc::Allocator::free_part(&kernel, pages, bytes, 4096), !retains);
            assert_eq!(dlmalloc::Allocator::free(&kernel, pages, 4096), !retains);
        }
    }
}
