//! Table 1 natively, in a process of its own ([`apart`](crate::apart)).

use std::io::{self, BufRead, Write};

use work::Slot;
use work::table1::{Staged, Table1};

use crate::apart::serve;
use crate::linux::Linux;

impl Staged for Linux {}

/// The native series.
pub const SERIES: [&str; 3] = Linux::NAMES;

/// Rounds of blocks of up to `largest_bytes`, for one of [`SERIES`].
///
/// # Errors
/// The system's, and that there is no such series.
pub fn rounds(
    series: &str,
    largest_bytes: u64,
    commands: impl BufRead,
    answers: impl Write,
) -> io::Result<()> {
    let linux = Linux::by_name(series).ok_or(io::ErrorKind::NotFound)?;
    let mut slot = [Slot::EMPTY];
    let mut work = Table1::new(linux, &mut slot);
    let round = |report: &mut dyn FnMut(_)| {
        work.round(largest_bytes, report)?;
        Ok(Vec::new())
    };
    serve(round, commands, answers)
}

#[cfg(test)]
#[allow(unsafe_code, reason = "maps the same memory twice")]
mod tests {
    use super::*;
    use crate::apart::Answer;
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
    use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
    use std::ptr::{self, NonNull};
    use work::Blocks;
    use work::table1::TouchError;

    /// Two pages of each block are the same memory.
    struct Twice;

    // SAFETY: the wrong that is to be found; all of it is memory that nobody else has.
    unsafe impl Blocks for Twice {
        fn name(&self) -> &'static str {
            "twice"
        }
        fn alloc(&mut self, bytes: u64) -> Option<NonNull<u8>> {
            let (bytes, rights) = (bytes as usize, ProtFlags::READ | ProtFlags::WRITE);
            let memory = memfd_create("twice", MemfdFlags::CLOEXEC).ok()?;
            ftruncate(&memory, bytes as u64).ok()?;
            // SAFETY: a new mapping, then one page of it anew.
            unsafe {
                let block = mmap(ptr::null_mut(), bytes, rights, MapFlags::SHARED, &memory, 0).ok()?;
                let second = block.byte_add(4096);
                mmap(second, 4096, rights, MapFlags::SHARED | MapFlags::FIXED, &memory, 0).ok()?;
                NonNull::new(block.cast())
            }
        }
        unsafe fn free(&mut self, block: NonNull<u8>, bytes: u64) {
            // SAFETY: the mappings that `alloc` made.
            let _ = unsafe { munmap(block.as_ptr().cast(), bytes as usize) };
        }
    }

    impl Staged for Twice {}

    #[test]
    fn a_page_that_lost_its_byte_is_found() {
        let mut slot = [Slot::EMPTY];
        let done = Table1::new(Twice, &mut slot).round(16 << 10, &mut |_| {});
        assert_eq!(done, Err(TouchError::Wrong { bytes: 16 << 10, pages: 1 }));
    }

    #[test]
    fn every_series_does_its_rounds() {
        for series in SERIES {
            let mut text = Vec::new();
            rounds(series, 1 << 20, &b"count\n"[..], &mut text).unwrap();
            let text = String::from_utf8(text).unwrap();
            let samples = |answer: &Answer| matches!(answer, Answer::Sample(_));
            let answers: Vec<_> = text.lines().filter_map(Answer::from_line).collect();
            assert_eq!(answers.iter().filter(|answer| samples(answer)).count(), 7 * 7, "{series}: {text}");
            assert_eq!(answers.last(), Some(&Answer::Done));
        }
        assert!(rounds("linux", 1 << 20, &b""[..], Vec::new()).is_err());
    }
}
