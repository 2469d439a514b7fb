//! `mmap [pages]`: the mmap family, call by call. Each step writes a number of its own into every page,
//! before and after, and reads all back; what must not be allowed is tried, and must fault.
//!
//! The table shows what a step took: stores into page tables, flushes, page faults that were meant.

use umpa::blocks::Config;
use umpa::mmap::{Advice, Errno, MapFlags, Prot, RemapFlags};
use umpa_abi::addr::{Gva, PAGE_BYTES, PageSize};

use super::{Context, Failure, check, equal};
use crate::fault::{Access, Cause, Fault, Handled, Handler, Scope, scope};
use crate::mmu;
use crate::userpage::Allocator;

const ANON: MapFlags = MapFlags::PRIVATE.union(MapFlags::ANONYMOUS);
const RW: Prot = Prot::READ.union(Prot::WRITE);
const LARGE_BYTES: u64 = PageSize::Size2M.bytes();
const PAGES_MAX: u64 = 512;

/// The allocator, and the handler that repairs what was forbidden on purpose.
struct Program<'a, 'm> {
    umpa: &'a mut Allocator<'m>,
    /// Faults, and the last one.
    told: u64,
    last: Option<(Gva, Access, Cause)>,
    /// Rights that the handler gives back to the page.
    repair: Option<Prot>,
}

impl Handler for Program<'_, '_> {
    fn page_fault(&mut self, fault: &Fault) -> Handled {
        self.told += 1;
        self.last = Some((fault.address(), fault.access(), fault.cause()));
        let Some(prot) = self.repair else { return Handled::NotMine };
        let page = fault.address().containing().start();
        match self.umpa.mprotect(page, PAGE_BYTES, prot) {
            Ok(()) => Handled::Retry,
            Err(_) => Handled::NotMine,
        }
    }
}

type Running<'s, 'h, 'a, 'm> = &'s mut Scope<'h, Program<'a, 'm>>;

fn page(base: Gva, number: u64) -> Gva {
    Gva::new(base.get() + number * PAGE_BYTES)
}

fn mark(base: Gva, pages: u64, seed: u64) {
    (0..pages).for_each(|number| mmu::store(page(base, number), seed + number));
}

#[track_caller]
fn marked(base: Gva, pages: u64, seed: u64) -> Result<(), Failure> {
    (0..pages).try_for_each(|number| equal(mmu::load(page(base, number)), seed + number, "a page's content"))
}

/// First and last word of every page.
#[track_caller]
fn zero(base: Gva, pages: u64) -> Result<(), Failure> {
    (0..pages).try_for_each(|number| {
        let first = page(base, number).get();
        equal(mmu::load(Gva::new(first)) | mmu::load(Gva::new(first + PAGE_BYTES - 8)), 0, "a fresh page")
    })
}

/// Does a step, which gives `T`, and prints what it took.
#[track_caller]
fn step<T>(
    running: Running<'_, '_, '_, '_>,
    what: &str,
    does: impl FnOnce(&mut Allocator<'_>) -> Result<T, Errno>,
) -> Result<T, Failure> {
    running.pause(|program| {
        let counts = |umpa: &mut Allocator<'_>| {
            let stores = umpa.tables().stores();
            let machine = umpa.machine_mut();
            (stores, machine.tlb.page_flushes() + machine.tlb.full_flushes())
        };
        let before = counts(program.umpa);
        let done = does(program.umpa);
        let after = counts(program.umpa);
        let came = if let Err(errno) = &done { *errno as i32 } else { 0 };
        println!("{what:<64}{:>7}{:>8}{came:>7}", after.0 - before.0, after.1 - before.1);
        program.umpa.check(0);
        done.map_err(|_| Failure::new("a call was refused"))
    })
}

/// The call is refused, with this error.
#[track_caller]
fn refused<T>(
    running: Running<'_, '_, '_, '_>,
    what: &str,
    errno: Errno,
    does: impl FnOnce(&mut Allocator<'_>) -> Result<T, Errno>,
) -> Result<(), Failure> {
    step(running, what, |umpa| match does(umpa) {
        Err(found) if found == errno => Ok(()),
        Err(found) => Err(found),
        Ok(_) => Err(Errno::EINVAL),
    })
}

/// An access faults, the handler is told of just that, gives `prot` back, and it goes on.
#[track_caller]
fn faults(
    running: Running<'_, '_, '_, '_>,
    wanted: (Gva, Access, Cause),
    prot: Prot,
    access: impl FnOnce(),
) -> Result<(), Failure> {
    let before = running.pause(|program| {
        program.repair = Some(prot);
        program.told
    });
    access();
    let (told, last) = running.pause(|program| {
        program.repair = None;
        (program.told, program.last)
    });
    equal(told, before + 1, "faults of an access that isn't allowed")?;
    check(last == Some(wanted), "the handler was told of something else")
}

fn mapping(running: Running<'_, '_, '_, '_>, pages: u64) -> Result<Gva, Failure> {
    let bytes = pages * PAGE_BYTES;
    let a = step(running, "mmap, readable and writable", |umpa| umpa.mmap(Gva::new(0), bytes, RW, ANON))?;
    zero(a, pages)?;
    mark(a, pages, 1000);
    marked(a, pages, 1000)?;
    let middle = page(a, pages / 4);
    step(running, "mmap fixed, over its middle half", |umpa| {
        umpa.mmap(middle, bytes / 2, RW, ANON | MapFlags::FIXED)
    })?;
    zero(middle, pages / 2)?;
    marked(a, pages / 4, 1000)?;
    refused(running, "mmap fixed without replacing, over its start: EEXIST", Errno::EEXIST, |umpa| {
        umpa.mmap(Gva::new(a.get() - PAGE_BYTES), 2 * PAGE_BYTES, RW, ANON | MapFlags::FIXED_NOREPLACE)
    })?;
    refused(running, "mmap shared: EOPNOTSUPP", Errno::EOPNOTSUPP, |umpa| {
        umpa.mmap(Gva::new(0), bytes, RW, MapFlags::SHARED | MapFlags::ANONYMOUS)
    })?;
    Ok(a)
}

fn protecting(running: Running<'_, '_, '_, '_>, a: Gva, pages: u64) -> Result<(), Failure> {
    mark(a, pages, 2000);
    let bytes = pages * PAGE_BYTES;
    step(running, "mprotect to readable", |umpa| umpa.mprotect(a, bytes, Prot::READ))?;
    marked(a, pages, 2000)?;
    let word = Gva::new(page(a, 1).get() + 16);
    let told = (word, Access::Write, Cause::Protection);
    faults(running, told, RW, || mmu::store(word, 77))?;
    equal(mmu::load(word), 77, "a store after its page became writable again")?;
    step(running, "mprotect to no access", |umpa| umpa.mprotect(a, bytes, Prot::NONE))?;
    for (at, prot) in [(0, Prot::READ), (pages - 1, RW)] {
        let told = (page(a, at), Access::Read, Cause::NotPresent);
        faults(running, told, prot, || {
            let _ = mmu::load(page(a, at));
        })?;
        equal(mmu::load(page(a, at)), 2000 + at, "a page that was hidden")?;
    }
    let told = (page(a, 2), Access::Write, Cause::NotPresent);
    faults(running, told, RW, || mmu::store(page(a, 2), 2002))?;
    step(running, "mprotect to readable and writable", |umpa| umpa.mprotect(a, bytes, RW))?;
    marked(a, pages, 2000)?;
    refused(running, "mprotect of a range with a hole: ENOMEM", Errno::ENOMEM, |umpa| {
        umpa.mprotect(page(a, pages - 1), 1 << 40, Prot::READ)
    })
}

fn moving(running: Running<'_, '_, '_, '_>, a: Gva, pages: u64) -> Result<Gva, Failure> {
    let bytes = pages * PAGE_BYTES;
    let zero_gva = Gva::new(0);
    mark(a, pages, 3000);
    let moved = step(running, "mremap to twice the size, where it may move", |umpa| {
        umpa.mremap(a, bytes, 2 * bytes, RemapFlags::MAYMOVE, zero_gva)
    })?;
    marked(moved, pages, 3000)?;
    zero(page(moved, pages), pages)?;
    mark(moved, 2 * pages, 4000);
    let target = Gva::new(moved.get() - (1 << 30));
    let there = step(running, "mremap to a given address", |umpa| {
        umpa.mremap(moved, 2 * bytes, 2 * bytes, RemapFlags::MAYMOVE | RemapFlags::FIXED, target)
    })?;
    check(there == target, "it is where it should be")?;
    marked(there, 2 * pages, 4000)?;
    let flags = RemapFlags::MAYMOVE | RemapFlags::DONTUNMAP;
    let kept = step(running, "mremap, the old range stays mapped", |umpa| {
        umpa.mremap(there, 2 * bytes, 2 * bytes, flags, zero_gva)
    })?;
    marked(kept, 2 * pages, 4000)?;
    zero(there, 2 * pages)?;
    mark(there, 2 * pages, 5000);
    step(running, "swap of both", |umpa| umpa.mswap(there, kept, 2 * bytes))?;
    marked(there, 2 * pages, 4000)?;
    marked(kept, 2 * pages, 5000)?;
    step(running, "mremap to half the size", |umpa| {
        umpa.mremap(kept, 2 * bytes, bytes, RemapFlags::empty(), zero_gva)
    })?;
    marked(kept, pages, 5000)?;
    step(running, "munmap of the other one", |umpa| umpa.munmap(there, 2 * bytes))?;
    Ok(kept)
}

fn advising(running: Running<'_, '_, '_, '_>, a: Gva, pages: u64) -> Result<(), Failure> {
    let half = pages / 2 * PAGE_BYTES;
    mark(a, pages, 6000);
    step(running, "madvise: the first half isn't needed", |umpa| umpa.madvise(a, half, Advice::DontNeed))?;
    zero(a, pages / 2)?;
    equal(mmu::load(page(a, pages - 1)), 6000 + pages - 1, "the other half")?;
    let mut resident = [0; PAGES_MAX as usize];
    let known = &mut resident[..pages as usize];
    step(running, "mincore", |umpa| umpa.mincore(a, pages * PAGE_BYTES, known))?;
    check(known.iter().all(|&byte| byte == 1), "all pages are in memory")?;
    step(running, "munmap of the second half", |umpa| umpa.munmap(page(a, pages / 2), half))?;
    refused(running, "mincore again: ENOMEM", Errno::ENOMEM, |umpa| {
        umpa.mincore(a, pages * PAGE_BYTES, known)
    })?;
    step(running, "munmap", |umpa| umpa.munmap(a, pages * PAGE_BYTES))
}

/// 2 MiB of small leaves become one large one.
fn collapsing(running: Running<'_, '_, '_, '_>) -> Result<(), Failure> {
    let room = step(running, "mmap of 4 MiB", |umpa| umpa.mmap(Gva::new(0), 2 * LARGE_BYTES, RW, ANON))?;
    let a = Gva::new(room.get().next_multiple_of(LARGE_BYTES));
    step(running, "munmap, so that two pages can be mapped alone", |umpa| {
        umpa.munmap(room, 2 * LARGE_BYTES)
    })?;
    for number in [0, PAGES_MAX - 1] {
        step(running, "mmap fixed of a page", |umpa| {
            umpa.mmap(page(a, number), PAGE_BYTES, RW, ANON | MapFlags::FIXED)
        })?;
    }
    step(running, "mmap fixed of 2 MiB around them: small leaves", |umpa| {
        umpa.mmap(a, LARGE_BYTES, RW, ANON | MapFlags::FIXED)
    })?;
    mark(a, PAGES_MAX, 7000);
    step(running, "madvise: collapse to a large leaf", |umpa| {
        umpa.madvise(a, LARGE_BYTES, Advice::Collapse)
    })?;
    marked(a, PAGES_MAX, 7000)?;
    let size = running.pause(|program| {
        let umpa = &mut *program.umpa;
        umpa.leaf_size(a)
    });
    check(size == Some(PageSize::Size2M), "one leaf maps it")?;
    mark(a, PAGES_MAX, 8000);
    step(running, "munmap of one page of it: small leaves again", |umpa| {
        umpa.munmap(page(a, 7), PAGE_BYTES)
    })?;
    marked(a, 7, 8000)?;
    marked(page(a, 8), PAGES_MAX - 8, 8008)?;
    step(running, "munmap", |umpa| umpa.munmap(a, LARGE_BYTES))
}

/// See the [module](self).
pub(super) fn run(context: &mut Context<'_>) -> Result<(), Failure> {
    let pages = context.number(1, 64)?.clamp(8, PAGES_MAX) / 4 * 4;
    let mut umpa = context.allocator(Config::default());
    println!("{:<64}{:>7}{:>8}{:>7}", "call", "stores", "flushes", "errno");
    let mut program = Program { umpa: &mut umpa, told: 0, last: None, repair: None };
    scope(&mut program, |running| {
        let a = mapping(running, pages)?;
        protecting(running, a, pages)?;
        let b = moving(running, a, pages)?;
        advising(running, b, pages)?;
        if pages >= 64 { collapsing(running) } else { Ok(()) }
    })?;
    let faults = program.told;
    umpa.settle();
    check(umpa.mappings().pages() == 0, "nothing is mapped any more")?;
    check(umpa.frames().free_frames() == umpa.frames().granted_frames(), "all frames are free again")?;
    println!(
        "mmap: every page read back, {faults} accesses that weren't allowed faulted and were let through"
    );
    Ok(())
}
