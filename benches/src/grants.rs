//! Memory that comes and goes in a process on Linux: `madvise(MADV_POPULATE_WRITE)` and `MADV_DONTNEED` for each
//! run of pages. It is the kernel's part of what a grant and a revocation do, without the guest.
#![allow(unsafe_code, reason = "maps, advises and touches memory: what is measured")]

use std::io;
use std::ptr::{self, NonNull};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use umpa_abi::addr::PAGE_BYTES;
use work::grants::{Frames, Runs};

/// The series' name.
pub const NAME: &str = "linux";

/// A process's memory, of which nothing is there at first.
#[derive(Debug)]
pub struct Pages {
    base: NonNull<u8>,
    bytes: usize,
}

impl Pages {
    /// Room for so many pages, at an address where huge ones fit.
    ///
    /// # Errors
    /// The system call's.
    pub fn new(pages: u64) -> io::Result<Self> {
        let bytes = usize::try_from(pages * PAGE_BYTES).map_err(io::Error::other)?;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping where the kernel likes.
        let base =
            unsafe { mmap_anonymous(ptr::null_mut(), bytes, ProtFlags::READ | ProtFlags::WRITE, flags) }?;
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        let pages = Self { base, bytes };
        // SAFETY: the mapping that was just made; the advice changes no byte, and is only asked for.
        let _ = unsafe { madvise(base.as_ptr().cast(), bytes, Advice::LinuxHugepage) };
        Ok(pages)
    }

    fn advise(&self, runs: Runs, advice: Advice) -> io::Result<()> {
        let len = (runs.each * PAGE_BYTES) as usize;
        for first in runs.firsts() {
            let offset = (first * PAGE_BYTES) as usize;
            if offset.checked_add(len).is_none_or(|end| end > self.bytes) {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            // SAFETY: within the mapping, checked above, into which there is no reference.
            unsafe { madvise(self.base.as_ptr().add(offset).cast(), len, advice) }?;
        }
        Ok(())
    }
}

impl Frames for Pages {
    type Error = io::Error;

    fn grant(&mut self, runs: Runs, _: bool) -> io::Result<()> {
        self.advise(runs, Advice::LinuxPopulateWrite)
    }

    fn revoke(&mut self, runs: Runs, _: bool) -> io::Result<()> {
        self.advise(runs, Advice::LinuxDontNeed)
    }

    fn touch(&mut self, runs: Runs) {
        for page in runs.firsts().flat_map(|first| first..first + runs.each) {
            let offset = (page * PAGE_BYTES) as usize;
            if offset < self.bytes {
                // SAFETY: within the mapping, which nobody else knows.
                unsafe { self.base.add(offset).write_volatile(1) };
            }
        }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the whole of a mapping of ours, which nobody uses any more.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use work::grants::round;

    #[test]
    fn a_round_is_done_on_a_processs_memory() {
        let mut pages = Pages::new(2048).unwrap();
        let mut works = 0;
        round(&mut pages, 2048, &mut |_, _, frames, _| {
            works += 1;
            assert!(frames > 0);
            Ok(())
        })
        .unwrap();
        assert!(works > 15, "{works}");
    }
}
