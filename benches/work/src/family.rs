//! The calls of the mmap family one by one, each timed alone: the work of `vmm bench mmap`.
//!
//! One sequence at one size: map, write, make readable, read, make writable, write, grow where it is, write
//! what is new, shrink, move, write, unmap. Touches are timed beside the calls, as memory that a call didn't
//! prepare is paid for there. Rows `X.touch` are a call and its touch; `all` is the whole sequence.
#![allow(unsafe_code, reason = "touches what it has mapped")]

use umpa_abi::record::{Sample, name};

use crate::conformance::number::{ANONYMOUS, FIXED_NOREPLACE, MAYMOVE, PRIVATE, READ, RW, TO};
use crate::conformance::{Calls, PAGE};
use crate::raw::tsc_cycles;

/// Sizes, and how often each is done in a round.
pub const SIZES: [(u64, u64); 2] = [(1 << 20, 8), (64 << 20, 1)];

/// Bytes of addresses that one sequence at size `bytes` uses.
#[must_use]
pub const fn room_bytes(bytes: u64) -> u64 {
    4 * bytes
}

/// Calls with memory that can be touched.
///
/// # Safety
/// What a call says is mapped is mapped, with just those rights. Nobody else uses addresses that the work
/// names, those of the arena among them.
pub unsafe trait Memory: Calls {
    /// Prepares memory just after a mapping was made, where the series has to ask for that.
    ///
    /// # Errors
    /// The error's number.
    fn prepare(&mut self, _address: u64, _bytes: u64) -> Result<(), i32> {
        Ok(())
    }
    /// Work that a series puts off, done at once: it is timed as `later`.
    fn later(&mut self) {}
}

/// A sequence under way.
struct Sequence<'r> {
    bytes: u64,
    sum_cycles: u64,
    last_cycles: u64,
    check: u64,
    report: &'r mut dyn FnMut(Sample),
    series: &'static str,
}

impl Sequence<'_> {
    fn sample(&mut self, work: &str, cycles: u64) {
        (self.report)(Sample {
            series: name(self.series),
            work: name(work),
            bytes: self.bytes,
            ops: 1,
            pages: self.bytes / PAGE,
            cycles,
            check: self.check,
            reserved: 0,
        });
    }

    fn timed<T>(&mut self, work: &str, does: impl FnOnce() -> T) -> T {
        let start = tsc_cycles();
        let done = does();
        self.last_cycles = tsc_cycles().wrapping_sub(start);
        self.sum_cycles += self.last_cycles;
        let cycles = self.last_cycles;
        self.sample(work, cycles);
        done
    }

    /// Touches after a call: both, and their sum.
    fn touch(&mut self, [after, both]: [&str; 2], touches: impl FnOnce() -> u64) {
        let call_cycles = self.last_cycles;
        let start = tsc_cycles();
        let read = touches();
        let cycles = tsc_cycles().wrapping_sub(start);
        self.sum_cycles += cycles;
        self.check = self.check.wrapping_mul(31).wrapping_add(read);
        self.sample(after, cycles);
        self.sample(both, call_cycles + cycles);
    }
}

/// Writes a word into each page.
///
/// # Safety
/// The pages are mapped, writable and nobody else's.
unsafe fn write(address: u64, bytes: u64, seed: u64) -> u64 {
    for offset in (0..bytes).step_by(PAGE as usize) {
        // SAFETY: the caller's.
        unsafe { ((address + offset) as *mut u64).write_volatile(seed + offset) };
    }
    0
}

/// Reads a word of each page: a checksum.
///
/// # Safety
/// The pages are mapped, readable and nobody else's.
unsafe fn read(address: u64, bytes: u64) -> u64 {
    (0..bytes).step_by(PAGE as usize).fold(0, |sum: u64, offset| {
        // SAFETY: the caller's.
        let found = unsafe { ((address + offset) as *const u64).read_volatile() };
        sum.wrapping_mul(31).wrapping_add(found)
    })
}

/// Does the sequence at `address`, the start of [`room_bytes`] bytes in which nothing is mapped; `report`
/// gets the times of its parts.
///
/// # Errors
/// The number of a call's error.
pub fn sequence<M: Memory>(
    memory: &mut M,
    series: &'static str,
    address: u64,
    bytes: u64,
    seed: u64,
    report: &mut dyn FnMut(Sample),
) -> Result<(), i32> {
    let mut times = Sequence { bytes, sum_cycles: 0, last_cycles: 0, check: seed, report, series };
    let t = &mut times;
    let flags = PRIVATE | ANONYMOUS | FIXED_NOREPLACE;
    t.timed("mmap", || {
        memory.mmap(address, bytes, RW, flags)?;
        memory.prepare(address, bytes)
    })?;
    // Touches: the memory was mapped by the call just before, with these rights (`Memory`).
    t.touch(["touch-after-mmap", "mmap.touch"], || {
        // SAFETY: mapped and writable, see above.
        unsafe { write(address, bytes, seed) }
    });
    t.timed("mprotect-ro", || memory.mprotect(address, bytes, READ))?;
    t.touch(["touch-after-mprotect-ro", "mprotect-ro.touch"], || {
        // SAFETY: mapped and readable, see above.
        unsafe { read(address, bytes) }
    });
    t.timed("mprotect-rw", || memory.mprotect(address, bytes, RW))?;
    t.touch(["touch-after-mprotect-rw", "mprotect-rw.touch"], || {
        // SAFETY: mapped and writable, see above.
        unsafe { write(address, bytes, seed ^ 1) }
    });
    t.timed("mremap-grow", || {
        memory.mremap(address, [bytes, 2 * bytes], 0, 0)?;
        memory.prepare(address, 2 * bytes)
    })?;
    t.touch(["touch-after-grow", "mremap-grow.touch"], || {
        // SAFETY: mapped and writable, see above.
        unsafe { write(address + bytes, bytes, seed ^ 2) }
    });
    t.timed("mremap-shrink", || memory.mremap(address, [2 * bytes, bytes], 0, 0))?;
    let target = address + 2 * bytes;
    t.timed("mremap-move", || memory.mremap(address, [bytes; 2], MAYMOVE | TO, target))?;
    t.touch(["touch-after-move", "mremap-move.touch"], || {
        // SAFETY: mapped and readable, see above.
        unsafe { read(target, bytes) }
    });
    t.timed("munmap", || memory.munmap(target, bytes))?;
    t.timed("later", || memory.later());
    let sum_cycles = t.sum_cycles;
    t.sample("all", sum_cycles);
    Ok(())
}
