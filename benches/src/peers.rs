//! The allocators that programs use today, by name, each as it comes and told to keep its memory (`-retain`).
//!
//! | allocator | keeps memory by |
//! | --- | --- |
//! | `glibc` | mallopt: no mmap for large blocks, no trimming |
//! | `jemalloc` | no decay of dirty and muzzy pages |
//! | `mimalloc` | no purge |
//! | `snmalloc` | itself: it has no setting ([`ABSENT`]) |
//! | `tcmalloc` | itself, as nobody runs its background actions; with the feature `tcmalloc` |
//!
//! Settings are a process's: a series has one of its own ([`apart`](crate::apart)), begun with [`environment`] and
//! [`settle_in`].
#![allow(unsafe_code, reason = "calls allocators")]

use std::alloc::{GlobalAlloc, Layout, System};

use mimalloc::MiMalloc;
use snmalloc_rs::SnMalloc;
#[cfg(feature = "tcmalloc")]
use tcmalloc_better::TCMalloc;
use tikv_jemallocator::Jemalloc;

/// All of them.
pub const NAMES: [&str; 7 + cfg!(feature = "tcmalloc") as usize] = [
    "glibc",
    "glibc-retain",
    "jemalloc",
    "jemalloc-retain",
    "mimalloc",
    "mimalloc-retain",
    "snmalloc",
    #[cfg(feature = "tcmalloc")]
    "tcmalloc",
];

/// What isn't among them, and why.
pub const ABSENT: &[(&str, &str)] = &[
    ("snmalloc-retain", "there is no such setting: on Linux snmalloc keeps what it has as it comes"),
    #[cfg(not(feature = "tcmalloc"))]
    (
        "tcmalloc",
        "not built in: two minutes of C++; `cargo build --release -p vmm --features tcmalloc` has it (crate tcmalloc-better)",
    ),
    #[cfg(feature = "tcmalloc")]
    ("tcmalloc-retain", "there is no such setting: without its background thread tcmalloc keeps what it has"),
];

/// Ends the name of one that keeps its memory.
const RETAIN: &str = "-retain";
/// Variables that the allocators read, with what lets them keep their memory.
const VARIABLES: [(&str, &str); 2] =
    [("_RJEM_MALLOC_CONF", "dirty_decay_ms:-1,muzzy_decay_ms:-1"), ("MIMALLOC_PURGE_DELAY", "-1")];
/// As the blocks of C's malloc.
const ALIGN: usize = 16;

/// What the environment of a series' process has to have, or not to have.
#[must_use]
pub fn environment(series: &str) -> [(&'static str, Option<&'static str>); 2] {
    let retains = series.ends_with(RETAIN);
    VARIABLES.map(|(name, value)| (name, retains.then_some(value)))
}

/// What a series' process does first.
pub fn settle_in(series: &str) {
    if series != "glibc-retain" {
        return;
    }
    for (what, value) in [(libc::M_MMAP_MAX, 0), (libc::M_TRIM_THRESHOLD, -1), (libc::M_TOP_PAD, 64 << 20)] {
        // SAFETY: sets a number in the C library's allocator, before there is another thread.
        unsafe { libc::mallopt(what, value) };
    }
}

/// One of the allocators.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// The C library's.
    Glibc,
    /// By way of `tikv-jemallocator`.
    Jemalloc,
    /// By way of `mimalloc`.
    Mimalloc,
    /// By way of `snmalloc-rs`.
    Snmalloc,
    /// By way of `tcmalloc-better`.
    #[cfg(feature = "tcmalloc")]
    Tcmalloc,
}

impl Peer {
    /// That of a series.
    #[must_use]
    pub fn of(series: &str) -> Option<Self> {
        let name = NAMES.into_iter().find(|name| *name == series)?;
        Some(match name.strip_suffix(RETAIN).unwrap_or(name) {
            "glibc" => Self::Glibc,
            "jemalloc" => Self::Jemalloc,
            "snmalloc" => Self::Snmalloc,
            #[cfg(feature = "tcmalloc")]
            "tcmalloc" => Self::Tcmalloc,
            _ => Self::Mimalloc,
        })
    }

    /// A block of `bytes`, more than none; null without memory.
    #[must_use]
    pub fn alloc(self, bytes: u64) -> *mut u8 {
        let Some(layout) = layout(bytes) else { return std::ptr::null_mut() };
        // SAFETY: the layout has a size.
        unsafe {
            match self {
                Self::Glibc => System.alloc(layout),
                Self::Jemalloc => Jemalloc.alloc(layout),
                Self::Mimalloc => MiMalloc.alloc(layout),
                Self::Snmalloc => SnMalloc.alloc(layout),
                #[cfg(feature = "tcmalloc")]
                Self::Tcmalloc => TCMalloc.alloc(layout),
            }
        }
    }

    /// Ends a block.
    ///
    /// # Safety
    /// It is live, from this allocator, and has `bytes` bytes; nobody uses it any more.
    pub unsafe fn free(self, block: *mut u8, bytes: u64) {
        let Some(layout) = layout(bytes) else { return };
        // SAFETY: the caller's.
        unsafe {
            match self {
                Self::Glibc => System.dealloc(block, layout),
                Self::Jemalloc => Jemalloc.dealloc(block, layout),
                Self::Mimalloc => MiMalloc.dealloc(block, layout),
                Self::Snmalloc => SnMalloc.dealloc(block, layout),
                #[cfg(feature = "tcmalloc")]
                Self::Tcmalloc => TCMalloc.dealloc(block, layout),
            }
        }
    }

    /// Gives a block `new` bytes, more than none; null without memory, and the block is as it was.
    ///
    /// # Safety
    /// As [`Self::free`], with `old` bytes.
    #[must_use]
    pub unsafe fn realloc(self, block: *mut u8, old: u64, new: u64) -> *mut u8 {
        let (Some(layout), Ok(new)) = (layout(old), usize::try_from(new)) else {
            return std::ptr::null_mut();
        };
        // SAFETY: the caller's.
        unsafe {
            match self {
                Self::Glibc => System.realloc(block, layout, new),
                Self::Jemalloc => Jemalloc.realloc(block, layout, new),
                Self::Mimalloc => MiMalloc.realloc(block, layout, new),
                Self::Snmalloc => SnMalloc.realloc(block, layout, new),
                #[cfg(feature = "tcmalloc")]
                Self::Tcmalloc => TCMalloc.realloc(block, layout, new),
            }
        }
    }
}

fn layout(bytes: u64) -> Option<Layout> {
    Layout::from_size_align(usize::try_from(bytes).ok().filter(|&bytes| bytes > 0)?, ALIGN).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_series_has_its_allocator_and_settings() {
        for name in NAMES {
            let peer = Peer::of(name).unwrap();
            let retains = name.ends_with("retain");
            assert!(environment(name).iter().all(|(_, value)| value.is_some() == retains), "{name}");
            let block = peer.alloc(100);
            assert!(!block.is_null(), "{name}");
            // SAFETY: the block is live and has as many bytes as is said.
            unsafe {
                block.write_bytes(7, 100);
                let block = peer.realloc(block, 100, 1 << 20);
                assert_eq!(std::slice::from_raw_parts(block, 100), [7; 100], "{name}");
                peer.free(block, 1 << 20);
            }
        }
        assert_eq!(Peer::of("malloc"), None);
        assert!(Peer::Glibc.alloc(0).is_null());
    }
}
