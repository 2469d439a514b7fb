//! Giving memory back natively: what a process on Linux does when it is asked to.
//!
//! | series | call | what is left |
//! | --- | --- | --- |
//! | `linux-dontneed` | `madvise(MADV_DONTNEED)` | the mapping; touching it faults pages of zeros in |
//! | `linux-munmap` | `munmap` | nothing |
//!
//! The memory is anonymous, has huge pages where the kernel gives them (as the guests' has), and every page
//! of it was touched.
#![allow(unsafe_code, reason = "maps, advises and unmaps memory: what is measured")]

use std::io;
use std::ptr::{self, NonNull};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use umpa_abi::addr::PAGE_BYTES;

/// How memory is given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GiveBack {
    /// By `madvise(MADV_DONTNEED)`.
    DontNeed,
    /// By `munmap`.
    Unmap,
}

impl GiveBack {
    /// Both.
    pub const ALL: [Self; 2] = [Self::DontNeed, Self::Unmap];

    /// The series' name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::DontNeed => "linux-dontneed",
            Self::Unmap => "linux-munmap",
        }
    }

    /// The cycles that it takes to give `bytes` back that were touched before.
    ///
    /// # Errors
    /// The system call's.
    pub fn cycles(self, bytes: u64) -> io::Result<u64> {
        let len = usize::try_from(bytes).map_err(io::Error::other)?;
        // SAFETY: a new mapping where the kernel likes.
        let mapping = unsafe {
            mmap_anonymous(ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)
        }?;
        let mapping = Mapping { base: NonNull::new(mapping.cast()).ok_or(io::ErrorKind::OutOfMemory)?, len };
        // SAFETY: the mapping that was just made; this advice changes no byte, and none is needed.
        let _ = unsafe { madvise(mapping.base.as_ptr().cast(), len, Advice::LinuxHugepage) };
        for page in (0..len).step_by(PAGE_BYTES as usize) {
            // SAFETY: within the mapping, which nobody else knows.
            unsafe { mapping.base.add(page).write_volatile(1) };
        }
        let start = work::raw::tsc_cycles();
        match self {
            // SAFETY: the whole mapping; nobody wants its content.
            Self::DontNeed => unsafe { madvise(mapping.base.as_ptr().cast(), len, Advice::LinuxDontNeed) }?,
            Self::Unmap => drop(mapping),
        }
        Ok(work::raw::tsc_cycles().wrapping_sub(start))
    }
}

struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the whole of a mapping of ours, which nobody uses any more.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_given_back_either_way() {
        for how in GiveBack::ALL {
            assert!(how.cycles(1 << 20).unwrap() > 0, "{}", how.name());
        }
    }
}
