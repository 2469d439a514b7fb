//! Figure 11 natively, in processes of their own ([`apart`](crate::apart)).
//!
//! | series | a block is resized |
//! | --- | --- |
//! | `linux-copy` | `mmap`, `memcpy`, `munmap` |
//! | `linux-mremap` | by `mremap`, where it is or elsewhere as the kernel likes |
//! | `thp-copy`, `thp-mremap` | the same with huge pages asked for from 2 MiB up |
//! | [`peers::NAMES`] | by the allocator's `realloc` |
#![allow(unsafe_code, reason = "maps, moves and copies memory, and calls allocators")]

use std::io::{self, BufRead, Write};
use std::ptr::{self, copy_nonoverlapping};

use rustix::mm::{Advice, MapFlags, MremapFlags, ProtFlags, madvise, mmap_anonymous, mremap, munmap};
use work::moves::{Resize, Source};
use work::resizes::resizings;

use crate::apart::serve;
use crate::linux::huge_pages_come;
use crate::peers::{self, Peer};

/// The kernel's series.
pub const LINUX: [&str; 4] = ["linux-copy", "linux-mremap", "thp-copy", "thp-mremap"];

const HUGE_BYTES: u64 = 2 << 20;

/// Linux, and a way.
#[derive(Clone, Copy, Debug)]
struct Linux {
    copies: bool,
    /// For mappings of at least so many bytes.
    advice: Option<(Advice, u64)>,
}

fn pointer(address: u64) -> *mut libc::c_void {
    ptr::with_exposed_provenance_mut(address as usize)
}

/// Whole pages.
fn mapped(bytes: u64) -> usize {
    bytes.next_multiple_of(4096) as usize
}

impl Linux {
    fn by_name(name: &str) -> Option<Self> {
        let advice = match name.starts_with("thp") {
            true => Some((Advice::LinuxHugepage, HUGE_BYTES)),
            false => huge_pages_come().then_some((Advice::LinuxNoHugepage, 0)),
        };
        LINUX.contains(&name).then(|| Self { copies: name.ends_with("copy"), advice })
    }

    fn advise(self, block: *mut libc::c_void, bytes: u64) {
        let Some((advice, _)) = self.advice.filter(|&(_, least_bytes)| bytes >= least_bytes) else { return };
        // SAFETY: advice on a mapping of ours that changes no byte; refused, it changes nothing at all.
        let _ = unsafe { madvise(block, mapped(bytes), advice) };
    }
}

// SAFETY: the kernel's mappings are memory, whole pages, nobody else's.
unsafe impl Source for Linux {
    fn alloc(&mut self, bytes: u64, _largest_bytes: u64) -> Option<u64> {
        let (rights, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: a new mapping where the kernel likes.
        let block = unsafe { mmap_anonymous(ptr::null_mut(), mapped(bytes), rights, flags) }.ok()?;
        self.advise(block, bytes);
        Some(block.expose_provenance() as u64)
    }

    fn free(&mut self, block: u64, bytes: u64) -> bool {
        // SAFETY: a mapping of ours that nobody uses any more.
        unsafe { munmap(pointer(block), mapped(bytes)) }.is_ok()
    }
}

// SAFETY: the kernel keeps the content of what it moves; a copy has all that both blocks have.
unsafe impl Resize for Linux {
    fn resize(&mut self, block: u64, old: u64, new: u64) -> Option<u64> {
        if self.copies {
            let other = self.alloc(new, new)?;
            // SAFETY: two live mappings of at least so many bytes.
            unsafe { copy_nonoverlapping(pointer(block), pointer(other), old.min(new) as usize) };
            return self.free(block, old).then_some(other);
        }
        // SAFETY: a mapping of ours, whose old address nobody uses any more.
        let moved = unsafe { mremap(pointer(block), mapped(old), mapped(new), MremapFlags::MAYMOVE) }.ok()?;
        if new > old {
            self.advise(moved, new);
        }
        Some(moved.expose_provenance() as u64)
    }
}

// SAFETY: an allocator's blocks are memory, nobody else's.
unsafe impl Source for Peer {
    fn alloc(&mut self, bytes: u64, _largest_bytes: u64) -> Option<u64> {
        Some(Self::alloc(*self, bytes).expose_provenance() as u64).filter(|&block| block != 0)
    }

    fn free(&mut self, block: u64, bytes: u64) -> bool {
        // SAFETY: the work frees what it has, with its length.
        unsafe { Self::free(*self, pointer(block).cast(), bytes) };
        true
    }
}

// SAFETY: `realloc` keeps what both blocks have.
unsafe impl Resize for Peer {
    fn resize(&mut self, block: u64, old: u64, new: u64) -> Option<u64> {
        // SAFETY: the work resizes what it has, with its length.
        let moved = unsafe { self.realloc(pointer(block).cast(), old, new) };
        Some(moved.expose_provenance() as u64).filter(|&block| block != 0)
    }
}

/// Rounds of blocks of up to `largest_bytes`, for a series.
///
/// # Errors
/// The system's, and that there is no such series.
pub fn rounds(
    series: &str,
    largest_bytes: u64,
    commands: impl BufRead,
    answers: impl Write,
) -> io::Result<()> {
    peers::settle_in(series);
    let mut linux = Linux::by_name(series);
    let mut peer = Peer::of(series);
    let mut number = 0;
    let round = |report: &mut dyn FnMut(_)| {
        number += 1;
        match (&mut linux, &mut peer) {
            (Some(linux), _) => resizings(linux, series, largest_bytes, number, report)?,
            (None, Some(peer)) => resizings(peer, series, largest_bytes, number, report)?,
            (None, None) => return Err(io::Error::from(io::ErrorKind::NotFound).into()),
        }
        Ok(Vec::new())
    };
    serve(round, commands, answers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apart::Answer;

    #[test]
    fn every_series_does_its_rounds() {
        for series in
            LINUX.into_iter().chain(peers::NAMES.into_iter().filter(|name| !name.ends_with("retain")))
        {
            let mut text = Vec::new();
            rounds(series, 4 << 20, &b"warm\ncount\n"[..], &mut text).unwrap();
            let text = String::from_utf8(text).unwrap();
            let answers: Vec<_> = text.lines().filter_map(Answer::from_line).collect();
            let samples = answers.iter().filter(|answer| matches!(answer, Answer::Sample(_)));
            assert_eq!(samples.count(), 10 * 11, "{series}: {text}");
            assert_eq!(answers.last(), Some(&Answer::Done), "{series}");
        }
        let mut text = Vec::new();
        rounds("linux", 4 << 20, &b"warm\n"[..], &mut text).unwrap();
        assert!(text.starts_with(b"error "));
    }
}
