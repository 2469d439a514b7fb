//! The working set of `vmm bench pagefile` in a process of its own, that Linux swaps.
//!
//! The process is this program again. It maps the pages and says `ready`; then it does what each line
//! asks for: `fill`, `go COUNT` (answered by cycles, sum and major faults), `check`. So its parent can put
//! it under a limit before it has touched a page.
#![allow(unsafe_code, reason = "maps the working set")]

use std::io::{self, BufRead, Write};
use std::ptr;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous};
use umpa_abi::addr::PAGE_BYTES;
use work::paging::{Paging, Spread, Touches, Words};
use work::raw::tsc_cycles;

/// Why the process can't go on.
#[derive(Debug, thiserror::Error)]
pub enum SwappedError {
    /// The pages can't be mapped, or the parent is gone.
    #[error("the swapped process can't map its pages or talk")]
    Io(#[from] io::Error),
    /// A word isn't what was written.
    #[error("a word isn't what was written: {0:?}")]
    Wrong(work::paging::Wrong),
    /// A line that makes no sense.
    #[error("no command: {0:?}")]
    Command(String),
}

/// Does what the lines of `commands` say, until there are no more.
///
/// # Errors
/// [`SwappedError`].
pub fn serve(
    pages: u64,
    writes_of_100: u32,
    seed: u64,
    commands: impl BufRead,
    mut answers: impl Write,
) -> Result<(), SwappedError> {
    let bytes = (pages * PAGE_BYTES) as usize;
    // SAFETY: a new mapping where the kernel wants it.
    let first = unsafe {
        mmap_anonymous(ptr::null_mut(), bytes, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)
            .map_err(io::Error::from)?
    };
    // Huge pages would be split at the first swap-out.
    // SAFETY: advice on the mapping just made.
    let _ = unsafe { madvise(first, bytes, Advice::LinuxNoHugepage) };
    // SAFETY: the mapping is there to the process's end, and nobody else uses it.
    let words = unsafe { Words::new(first.cast(), pages) };
    let mut writes = vec![1; pages as usize];
    let mut work = Paging::new(words, &mut writes);
    writeln!(answers, "ready")?;
    answers.flush()?;
    for line in commands.lines() {
        let line = line?;
        match line.split_once(' ').unwrap_or((&line, "")) {
            ("fill", _) => {
                work.fill();
                writeln!(answers, "filled")?;
            }
            ("go", count) => {
                let count = count.parse().map_err(|_| SwappedError::Command(line.clone()))?;
                let mut touches = Touches::new(seed, pages, Spread::Flat, writes_of_100);
                let faults = major_faults();
                let start_cycles = tsc_cycles();
                let sum = work.go(&mut touches, count).map_err(SwappedError::Wrong)?;
                let cycles = tsc_cycles().wrapping_sub(start_cycles);
                writeln!(answers, "{cycles} {sum} {}", major_faults() - faults)?;
            }
            ("check", _) => {
                work.check_all().map_err(SwappedError::Wrong)?;
                writeln!(answers, "checked")?;
            }
            _ => return Err(SwappedError::Command(line)),
        }
        answers.flush()?;
    }
    Ok(())
}

/// Field 12 of `/proc/self/stat`; the name in field 2 may hold spaces.
fn major_faults() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or("");
    fields.split_ascii_whitespace().nth(9).and_then(|field| field.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_answered() {
        let mut answers = Vec::new();
        serve(16, 50, 1, &b"fill\ngo 100\ngo 100\ncheck\n"[..], &mut answers).unwrap();
        let text = String::from_utf8(answers).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!((lines[0], lines[1], lines[4]), ("ready", "filled", "checked"));
        let sum = |line: &str| line.split(' ').nth(1).unwrap().to_owned();
        assert_eq!(sum(lines[2]), sum(lines[3]), "the same accesses");
        let refused = serve(16, 50, 1, &b"go away\n"[..], io::sink());
        assert!(matches!(refused, Err(SwappedError::Command(_))));
    }
}
