//! Blocks that grow, and blocks that exchange their contents, on Linux: beside guests that do the same.
//!
//! | series | a block grows | two are exchanged |
//! | --- | --- | --- |
//! | `linux-copy`, `thp-copy` | `mmap`, `memcpy`, `munmap` | by three `memcpy` through a third, touched block |
//! | `linux-mremap`, `thp-mremap` | by `mremap` to other addresses | by three `mremap` through other addresses |
//!
//! `thp`: huge pages are asked for, from 2 MiB up; the others get none, whatever the host's setting. Everything
//! lies in a range of the series' own, where the kernel puts nothing by itself: a block that moves goes to
//! addresses that were never used, and the holes that it leaves stay holes.
#![allow(unsafe_code, reason = "maps, moves and copies memory")]

use std::ptr::{self, copy_nonoverlapping};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use work::moves::{Exchange, Resize, Source};

/// Names of all series.
pub const NAMES: [&str; 4] = ["linux-copy", "linux-mremap", "thp-copy", "thp-mremap"];

const HUGE_BYTES: u64 = 2 << 20;
/// Far from where the kernel places mappings.
const ARENA: u64 = 0x3000_0000_0000;
/// Bytes of a series' part of it.
const PART_BYTES: u64 = 1 << 36;
/// Parts that are taken.
static PARTS: AtomicU64 = AtomicU64::new(0);

/// Linux, and a way.
#[derive(Debug)]
pub struct Linux {
    copies: bool,
    advice: Option<i32>,
    part: u64,
    used_bytes: u64,
    /// A third block, for exchanges.
    scratch: Option<(u64, u64)>,
}

fn pointer(address: u64) -> *mut libc::c_void {
    ptr::with_exposed_provenance_mut(address as usize)
}

impl Linux {
    /// The series with this name.
    #[must_use]
    pub fn new(name: &str) -> Option<Self> {
        let (pages, way) = name.split_once('-')?;
        let advice = match pages {
            "linux" => crate::linux::huge_pages_come().then_some(libc::MADV_NOHUGEPAGE),
            "thp" => Some(libc::MADV_HUGEPAGE),
            _ => return None,
        };
        let copies = match way {
            "copy" => true,
            "mremap" => false,
            _ => return None,
        };
        let part = ARENA + PARTS.fetch_add(1, Relaxed) * PART_BYTES;
        Some(Self { copies, advice, part, used_bytes: 0, scratch: None })
    }

    /// Addresses that weren't used since everything was unmapped, aligned for huge pages.
    fn place(&mut self, bytes: u64) -> Option<u64> {
        let place = self.part + self.used_bytes;
        self.used_bytes += bytes.next_multiple_of(HUGE_BYTES) + HUGE_BYTES;
        (self.used_bytes <= PART_BYTES).then_some(place)
    }

    fn map(&mut self, bytes: u64) -> Option<u64> {
        let place = self.place(bytes)?;
        let rights = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        // SAFETY: a new mapping that replaces nothing.
        let mapped = unsafe { libc::mmap(pointer(place), bytes as usize, rights, flags, -1, 0) };
        if mapped != pointer(place) {
            return None;
        }
        self.advise(place, bytes);
        Some(place)
    }

    fn advise(&self, block: u64, bytes: u64) {
        if let Some(advice) =
            self.advice.filter(|&advice| advice == libc::MADV_NOHUGEPAGE || bytes >= HUGE_BYTES)
        {
            // SAFETY: advice on a mapping of ours that changes no byte. Refused, it changes nothing at all.
            unsafe { libc::madvise(pointer(block), bytes as usize, advice) };
        }
    }

    fn unmap(address: u64, bytes: u64) -> bool {
        // SAFETY: a mapping of ours that nobody uses any more.
        unsafe { libc::munmap(pointer(address), bytes as usize) == 0 }
    }

    /// Moves a block to `to`; with `keeps` its old addresses stay mapped.
    fn remap(from: u64, [old, new]: [u64; 2], to: u64, keeps: bool) -> bool {
        let flags =
            libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED | if keeps { libc::MREMAP_DONTUNMAP } else { 0 };
        // SAFETY: what lies at `to` is this value's part of the addresses, and nothing that is needed.
        let moved = unsafe { libc::mremap(pointer(from), old as usize, new as usize, flags, pointer(to)) };
        moved == pointer(to)
    }
}

// SAFETY: the kernel's mappings are memory, whole pages, nobody else's.
unsafe impl Source for Linux {
    fn alloc(&mut self, bytes: u64, _largest_bytes: u64) -> Option<u64> {
        self.map(bytes)
    }

    fn free(&mut self, block: u64, bytes: u64) -> bool {
        Self::unmap(block, bytes)
    }

    fn later(&mut self) {
        if let Some((scratch, bytes)) = self.scratch.take() {
            Self::unmap(scratch, bytes);
        }
        self.used_bytes = 0;
    }
}

// SAFETY: the kernel keeps the content of what it moves; a copy has all that both blocks have.
unsafe impl Resize for Linux {
    fn resize(&mut self, block: u64, old: u64, new: u64) -> Option<u64> {
        if self.copies {
            let other = self.map(new)?;
            // SAFETY: two live mappings of at least so many bytes.
            unsafe { copy_nonoverlapping(pointer(block), pointer(other), old.min(new) as usize) };
            return Self::unmap(block, old).then_some(other);
        }
        let to = self.place(new)?;
        if !Self::remap(block, [old, new], to, false) {
            return None;
        }
        self.advise(to, new);
        Some(to)
    }
}

// SAFETY: mappings change places as they are; the copies are of all bytes.
unsafe impl Exchange for Linux {
    /// A third block: touched, for copies; its addresses, for moves.
    fn prepare(&mut self, bytes: u64) -> bool {
        let Some(scratch) = self.map(bytes) else { return false };
        // SAFETY: a mapping of so many bytes, just made.
        unsafe { ptr::write_bytes(pointer(scratch).cast::<u8>(), 1, bytes as usize) };
        self.scratch = Some((scratch, bytes));
        true
    }

    fn exchange(&mut self, one: u64, other: u64, bytes: u64) -> bool {
        let Some((scratch, _)) = self.scratch.filter(|&(_, room_bytes)| bytes <= room_bytes) else {
            return false;
        };
        if !self.copies {
            let steps = [(one, scratch, false), (other, one, false), (scratch, other, true)];
            return steps.into_iter().all(|(from, to, keeps)| Self::remap(from, [bytes; 2], to, keeps));
        }
        let [one, other, scratch] = [one, other, scratch].map(pointer);
        // SAFETY: three live mappings of at least `bytes` bytes.
        unsafe {
            copy_nonoverlapping(one, scratch, bytes as usize);
            copy_nonoverlapping(other, one, bytes as usize);
            copy_nonoverlapping(scratch, other, bytes as usize);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use work::moves::{doublings, exchanges};

    #[test]
    fn blocks_grow_and_change_places_in_every_way() {
        for name in NAMES {
            let mut linux = Linux::new(name).unwrap();
            let mut rows = 0;
            doublings(&mut linux, name, 8 << 20, &mut |_| rows += 1).unwrap();
            assert_eq!(rows, 2 * 11 + 1, "{name}");
            for size in [(64 << 10, 3), (4 << 20, 2)] {
                exchanges(&mut linux, name, size, &mut |_| rows += 1).unwrap();
            }
            assert_eq!(rows, 23 + 2 * 5, "{name}");
        }
        assert!(Linux::new("linux").is_none() && Linux::new("thp-fast").is_none());
    }

    /// What is timed as a move is one.
    #[test]
    fn a_growing_block_really_moves() {
        let mut linux = Linux::new("linux-mremap").unwrap();
        let first = linux.alloc(4096, 1 << 20).unwrap();
        let second = linux.resize(first, 4096, 8192).unwrap();
        let third = linux.resize(second, 8192, 16384).unwrap();
        assert!(first != second && second != third);
        assert!(linux.free(third, 16384));
        linux.later();
    }
}
