//! What Linux does for the works of `vmm bench ept`, in a process of its own that has no guest: first touches of new
//! mappings; faults that a signal handler hears of, and `appel1` and `appel2` by `mprotect`.
#![allow(unsafe_code, reason = "maps, protects and touches memory; handles SIGSEGV: what is measured")]

use std::io::{self, BufRead, Write};
use std::ptr;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU64, AtomicUsize};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use umpa_abi::addr::PAGE_BYTES;
use umpa_abi::record::{Name, Sample, name};
use work::appel::{Order, PAGES, TRAPS};
use work::raw::tsc_cycles;

use crate::apart::{RoundError, serve};

/// The series of first touches: with small pages, and with huge ones.
pub const TOUCH: [&str; 2] = ["native-4k", "native-2m"];
/// The series of faults.
pub const FAULTS: [&str; 1] = ["native"];

/// Pages of a touch, large and small: those of the guest (`ept-touch`).
const LARGE: usize = 8;
const SMALL: usize = 512;
const HUGE_BYTES: usize = 2 << 20;
const PAGE: usize = PAGE_BYTES as usize;
/// Faults that change nothing, as in the guest (`ept-faults`).
const SKIPS: u64 = 16;

/// Does a round of `series` for each line of `commands`, until there are no more.
///
/// # Errors
/// The system's.
pub fn rounds(series: &str, commands: impl BufRead, answers: impl Write) -> io::Result<()> {
    let round: fn(Report<'_>) -> io::Result<()> = match series {
        "native-4k" => |report| touch(false, report),
        "native-2m" => |report| touch(true, report),
        "native" => traps,
        _ => return Err(io::ErrorKind::NotFound.into()),
    };
    serve(
        |report| {
            round(&mut |work, ops, cycles| report(sample(work, ops, cycles)))?;
            Ok::<_, RoundError>(Vec::new())
        },
        commands,
        answers,
    )
}

fn sample(work: &str, ops: u64, cycles: u64) -> Sample {
    let work = name(work);
    Sample { series: Name::default(), work, bytes: 0, ops, pages: ops, cycles, check: ops, reserved: 0 }
}

type Report<'r> = &'r mut dyn FnMut(&str, u64, u64);

/// A new mapping, aligned to a huge page.
struct Mapping {
    whole: *mut libc::c_void,
    whole_bytes: usize,
    base: *mut u8,
}

impl Mapping {
    fn new(bytes: usize, advice: Advice) -> io::Result<Self> {
        let whole_bytes = bytes + HUGE_BYTES;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping where the kernel likes.
        let whole = unsafe { mmap_anonymous(ptr::null_mut(), whole_bytes, protection, MapFlags::PRIVATE) }?;
        let base = whole.cast::<u8>();
        let base = base.wrapping_add(base.addr().wrapping_neg() % HUGE_BYTES);
        let mapping = Self { whole, whole_bytes, base };
        // SAFETY: within the mapping that was just made, which has no content yet.
        unsafe { madvise(base.cast(), bytes, advice) }?;
        Ok(mapping)
    }

    /// A word of a page of it, another line in each.
    fn word(&self, page: usize) -> *mut u64 {
        let offset = page * PAGE + page % 64 * 64;
        assert!(offset < self.whole_bytes - HUGE_BYTES, "page {page}");
        self.base.wrapping_add(offset).cast()
    }

    /// Stores to pages; cycles.
    fn store(&self, pages: impl Iterator<Item = usize>) -> u64 {
        let start = tsc_cycles();
        // SAFETY: `word` has checked that it is in the mapping, which is writable, or made so by the handler.
        pages.for_each(|page| unsafe { self.word(page).write_volatile(page as u64) });
        tsc_cycles().wrapping_sub(start)
    }

    fn check(&self, mut pages: impl Iterator<Item = usize>) -> io::Result<()> {
        // SAFETY: as above.
        let is_there = |page: usize| unsafe { self.word(page).read_volatile() } == page as u64;
        let wrong = pages.find(|&page| !is_there(page));
        wrong.map_or(Ok(()), |page| Err(io::Error::other(format!("page {page} isn't what was stored"))))
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: ours, and nobody uses it any more.
        let _ = unsafe { munmap(self.whole, self.whole_bytes) };
    }
}

fn touch(huge: bool, report: Report<'_>) -> io::Result<()> {
    if huge {
        let frames = HUGE_BYTES / PAGE;
        let mapping = Mapping::new(LARGE * HUGE_BYTES, Advice::LinuxHugepage)?;
        report("touch-2m-granted", LARGE as u64, mapping.store((0..LARGE).map(|page| page * frames)));
        let rest = || 1..LARGE * frames;
        report("touch-2m-granted-rest", rest().len() as u64, mapping.store(rest()));
        return mapping.check(rest());
    }
    let mapping = Mapping::new(SMALL * PAGE, Advice::LinuxNoHugepage)?;
    report("touch-4k-granted", SMALL as u64, mapping.store(0..SMALL));
    report("touch-again", SMALL as u64, mapping.store(0..SMALL));
    mapping.check(0..SMALL)
}

// What the handler of SIGSEGV knows: it may use nothing but atomics and system calls.

/// Where the pages begin; 0 while none is expected to fault.
static BASE: AtomicUsize = AtomicUsize::new(0);
/// What it does.
static ANSWER: AtomicUsize = AtomicUsize::new(SKIP);
const SKIP: usize = 0;
const UNPROTECT: usize = 1;
const EXCHANGE: usize = 2;
/// The page that it protects next.
static NEXT: AtomicU64 = AtomicU64::new(0);
static TRAPS_SEEN: AtomicU64 = AtomicU64::new(0);

/// Bytes of `mov [rdi], rax`.
const STORE_BYTES: i64 = 3;

extern "C" fn handle(_: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let base = BASE.load(Relaxed);
    // SAFETY: the kernel hands both in, as sigaction(2) says of SA_SIGINFO.
    let address = unsafe { (*info).si_addr() }.addr();
    let page = address.wrapping_sub(base) / PAGE;
    if base == 0 || page as u64 >= PAGES {
        // A fault of another kind: as without a handler.
        // SAFETY: async-signal-safe; the instruction is tried again and ends the process.
        unsafe { libc::signal(libc::SIGSEGV, libc::SIG_DFL) };
        return;
    }
    TRAPS_SEEN.fetch_add(1, Relaxed);
    match ANSWER.load(Relaxed) {
        SKIP => {
            // SAFETY: as above; the faulting instruction is `store_or_skip`'s, which is so long.
            unsafe {
                (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs[libc::REG_RIP as usize] += STORE_BYTES
            };
            return;
        }
        EXCHANGE => {
            let next = NEXT.load(Relaxed);
            protect(base, next as usize, 1, libc::PROT_READ);
        }
        _ => {}
    }
    protect(base, page, 1, libc::PROT_READ | libc::PROT_WRITE);
}

/// False when the kernel refuses; then a store isn't let through, and its handler is asked for ever: it ends.
fn protect(base: usize, page: usize, pages: usize, protection: libc::c_int) {
    // SAFETY: pages of the mapping behind BASE, to which there are no references; mprotect is a mere system call.
    let done = unsafe { libc::mprotect((base + page * PAGE) as *mut libc::c_void, pages * PAGE, protection) };
    if done != 0 {
        // SAFETY: async-signal-safe.
        unsafe { libc::abort() };
    }
}

/// The handler, and what was there before it.
struct Handled(libc::sigaction);

impl Handled {
    fn new(base: *mut u8) -> io::Result<Self> {
        // SAFETY: all zeros are a valid sigaction: no flags, no mask.
        let (mut action, mut before): (libc::sigaction, libc::sigaction) = unsafe { std::mem::zeroed() };
        action.sa_sigaction = handle as extern "C" fn(_, _, _) as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
        BASE.store(base.addr(), Relaxed);
        // SAFETY: both are valid; the handler does what handlers may.
        if unsafe { libc::sigaction(libc::SIGSEGV, &action, &mut before) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self(before))
    }
}

impl Drop for Handled {
    fn drop(&mut self) {
        BASE.store(0, Relaxed);
        // SAFETY: what was there before.
        let _ = unsafe { libc::sigaction(libc::SIGSEGV, &self.0, ptr::null_mut()) };
    }
}

/// Stores to a page; where the handler leaves it out, nothing happens.
fn store_or_skip(mapping: &Mapping, page: usize) {
    let (word, value) = (mapping.word(page), 1u64);
    // SAFETY: `word` has checked that it is in the mapping.
    unsafe { std::arch::asm!("mov [rdi], rax", in("rdi") word, in("rax") value, options(nostack)) };
}

fn traps(report: Report<'_>) -> io::Result<()> {
    let pages = PAGES as usize;
    let mapping = Mapping::new(pages * PAGE, Advice::LinuxNoHugepage)?;
    mapping.store(0..pages);
    let base = mapping.base.addr();
    let handled = Handled::new(mapping.base)?;
    let seen = |wanted: u64| match TRAPS_SEEN.swap(0, Relaxed) {
        seen if seen == wanted => Ok(()),
        seen => Err(io::Error::other(format!("{seen} traps instead of {wanted}"))),
    };
    TRAPS_SEEN.store(0, Relaxed);

    ANSWER.store(SKIP, Relaxed);
    protect(base, 0, 1, libc::PROT_READ);
    let start = tsc_cycles();
    (0..SKIPS).for_each(|_| store_or_skip(&mapping, 0));
    report("fault", SKIPS, tsc_cycles().wrapping_sub(start));
    seen(SKIPS)?;

    // Page 0 is protected.
    ANSWER.store(EXCHANGE, Relaxed);
    let (mut order, mut page) = (Order::new(), 0);
    let start = tsc_cycles();
    for _ in 0..TRAPS {
        let next = order.advance();
        NEXT.store(next, Relaxed);
        mapping.store(std::iter::once(page));
        page = next as usize;
    }
    report("appel1", TRAPS, tsc_cycles().wrapping_sub(start));
    seen(TRAPS)?;
    protect(base, 0, pages, libc::PROT_READ | libc::PROT_WRITE);

    ANSWER.store(UNPROTECT, Relaxed);
    let mut order = Order::new();
    let start = tsc_cycles();
    protect(base, 0, pages, libc::PROT_READ);
    for _ in 0..PAGES {
        mapping.store(std::iter::once(order.advance() as usize));
    }
    report("appel2", PAGES, tsc_cycles().wrapping_sub(start));
    seen(PAGES)?;
    drop(handled);
    mapping.check(0..pages)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_has_its_works_and_every_trap() {
        let mut works = Vec::new();
        touch(false, &mut |work, ops, _| works.push((work.to_owned(), ops))).unwrap();
        traps(&mut |work, ops, _| works.push((work.to_owned(), ops))).unwrap();
        touch(true, &mut |work, ops, _| works.push((work.to_owned(), ops))).unwrap();
        let names: Vec<&str> = works.iter().map(|(work, _)| work.as_str()).collect();
        let wanted = ["touch-4k-granted", "touch-again", "fault", "appel1", "appel2", "touch-2m-granted"];
        assert_eq!(names[..6], wanted);
        assert_eq!(works[3].1, TRAPS);
    }
}
