//! `fork` of a process with touched memory, and the first writes after it, for `vmm bench snapshot`.
//!
//! The process is this program again, so that it has that memory and no guest's. For each line of its input
//! (`small` or `huge`, then bytes) it maps so much memory, touches every page, forks a child that waits,
//! writes, and ends the child. It answers with four numbers: the cycles of `fork` until it returned in the
//! parent, of [`WRITES`] first writes to adjacent pages, of as many all over, and of the child's end.
#![allow(unsafe_code, reason = "maps memory and forks: what is measured")]

use std::io::{self, BufRead, Write};
use std::ptr::{self, NonNull};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use umpa_abi::addr::PAGE_BYTES;
use work::raw::tsc_cycles;
use work::snapshot::{WRITES, near_page, spread_page};

/// What a turn took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forked {
    /// `fork`, until it returned in the parent.
    pub fork_cycles: u64,
    /// First writes to adjacent pages.
    pub near_cycles: u64,
    /// First writes all over.
    pub spread_cycles: u64,
    /// The child's end, until the parent knows.
    pub end_cycles: u64,
}

impl Forked {
    /// Of the numbers of an answer.
    #[must_use]
    pub fn from_line(line: &str) -> Option<Self> {
        let mut numbers = line.split_whitespace().map_while(|number| number.parse().ok());
        Some(Self {
            fork_cycles: numbers.next()?,
            near_cycles: numbers.next()?,
            spread_cycles: numbers.next()?,
            end_cycles: numbers.next()?,
        })
    }
}

struct Mapping {
    base: NonNull<u8>,
    pages: u64,
}

impl Mapping {
    fn new(bytes: u64, huge: bool) -> io::Result<Self> {
        // SAFETY: a new mapping where the kernel likes.
        let base = unsafe {
            mmap_anonymous(
                ptr::null_mut(),
                bytes as usize,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        }?;
        let advice = if huge { Advice::LinuxHugepage } else { Advice::LinuxNoHugepage };
        // SAFETY: the mapping that was just made; this advice changes no byte, and none is needed.
        let _ = unsafe { madvise(base, bytes as usize, advice) };
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { base, pages: bytes / PAGE_BYTES })
    }

    fn word(&self, page: u64) -> *mut u64 {
        assert!(page < self.pages);
        self.base.as_ptr().wrapping_add((page * PAGE_BYTES) as usize).cast()
    }

    fn store(&self, page: u64, value: u64) {
        // SAFETY: within the mapping, which nobody else in this process knows.
        unsafe { self.word(page).write_volatile(value) };
    }

    fn load(&self, page: u64) -> u64 {
        // SAFETY: as above.
        unsafe { self.word(page).read_volatile() }
    }

    fn write(&self, page: fn(u64, u64) -> u64) -> u64 {
        let start_cycles = tsc_cycles();
        (0..WRITES).for_each(|number| self.store(page(self.pages, number), number));
        tsc_cycles().wrapping_sub(start_cycles)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the whole of a mapping of ours, which nobody uses any more.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), (self.pages * PAGE_BYTES) as usize) };
    }
}

fn turn(bytes: u64, huge: bool) -> io::Result<Forked> {
    let memory = Mapping::new(bytes, huge)?;
    (0..memory.pages).for_each(|page| memory.store(page, !page));
    let (reader, writer) = io::pipe()?;
    let start_cycles = tsc_cycles();
    // SAFETY: this process has one thread; the child makes system calls and nothing else.
    let child = unsafe { libc::fork() };
    if child == 0 {
        drop(writer);
        let mut end = [0; 1];
        let _ = io::Read::read(&mut &reader, &mut end);
        // SAFETY: ends the child, without the parent's handlers.
        unsafe { libc::_exit(0) };
    }
    let fork_cycles = tsc_cycles().wrapping_sub(start_cycles);
    if child < 0 {
        return Err(io::Error::last_os_error());
    }
    let near_cycles = memory.write(near_page);
    let spread_cycles = memory.write(spread_page);
    let start_cycles = tsc_cycles();
    drop(writer);
    let mut status = 0;
    // SAFETY: a child of ours, and a place for its status.
    if unsafe { libc::waitpid(child, &raw mut status, 0) } != child {
        return Err(io::Error::last_os_error());
    }
    let end_cycles = tsc_cycles().wrapping_sub(start_cycles);
    for page in [near_page, spread_page] {
        let right = |number| memory.load(page(memory.pages, number)) == number;
        if !(0..WRITES).all(right) {
            return Err(io::Error::other("a page isn't what was written"));
        }
    }
    Ok(Forked { fork_cycles, near_cycles, spread_cycles, end_cycles })
}

/// Does what the lines of `commands` say, until there are no more.
///
/// # Errors
/// The system's, and lines that make no sense.
pub fn serve(commands: impl BufRead, mut answers: impl Write) -> io::Result<()> {
    for line in commands.lines() {
        let line = line?;
        let (how, bytes) = line.split_once(' ').unwrap_or((&line, ""));
        let bytes = bytes.parse().map_err(io::Error::other)?;
        let Forked { fork_cycles, near_cycles, spread_cycles, end_cycles } = turn(bytes, how == "huge")?;
        writeln!(answers, "{fork_cycles} {near_cycles} {spread_cycles} {end_cycles}")?;
        answers.flush()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_is_no_answer_is_none() {
        assert_eq!(Forked::from_line("1 2 3"), None);
        let all = Forked { fork_cycles: 1, near_cycles: 2, spread_cycles: 3, end_cycles: 4 };
        assert_eq!(Forked::from_line("1 2 3 4\n"), Some(all));
    }
}
