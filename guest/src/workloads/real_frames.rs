//! `real-frames [rounds]`: a mapping is real memory when the call returns, whichever way it was made;
//! lazy memory exists where it is asked for, and nowhere else.
//!
//! Each way of getting memory is taken once: all rungs of the ladder, a commit, an mmap. Before the
//! first touch every leaf has a frame, A and D, so the processor has nothing to note and nobody to ask;
//! then all pages are written and read back `rounds` times, with a handler that counts page faults.
//! (That no touch leaves the guest is for the host to count: the exits of 1 round and of many are the
//! same.) Last, addresses are reserved without memory, and a handler commits what is touched.

use umpa::blocks::Config;
use umpa::entry::EntryFlags;
use umpa::mmap::{MapFlags, Prot};
use umpa_abi::addr::{Gva, PAGE_BYTES};

use super::{Context, Failure, check, equal};
use crate::fault::{Cause, Fault, Handled, Handler, scope};
use crate::mmu;
use crate::userpage::Allocator;

/// Frames that the ways share.
const FRAMES: u64 = 2048;
const LAZY_PAGES: u64 = 16;

/// Memory, and how it was made.
#[derive(Clone, Copy)]
struct Memory {
    how: &'static str,
    gva: Gva,
    pages: u64,
}

impl Memory {
    fn word(self, page: u64) -> Gva {
        Gva::new(self.gva.get() + page * PAGE_BYTES + page % 512 * 8)
    }
}

/// Counts faults; commits in a range that was asked to be lazy.
struct Counts<'a, 'm> {
    umpa: &'a mut Allocator<'m>,
    lazy: Memory,
    faults: u64,
}

impl Handler for Counts<'_, '_> {
    fn page_fault(&mut self, fault: &Fault) -> Handled {
        self.faults += 1;
        let page = fault.address().get().wrapping_sub(self.lazy.gva.get()) / PAGE_BYTES;
        if fault.cause() != Cause::NotPresent || page >= self.lazy.pages {
            return Handled::NotMine;
        }
        match self.umpa.userpage_commit(fault.address().containing().start(), PAGE_BYTES) {
            Ok(1) => Handled::Retry,
            _ => Handled::NotMine,
        }
    }
}

/// The leaves of a range, all of which have a frame, are shown, and have A and D set.
fn preset(umpa: &Allocator<'_>, memory: Memory) -> Result<u64, Failure> {
    let used = EntryFlags::ACCESSED | EntryFlags::DIRTY;
    let (mut page, end) = (memory.gva.containing(), memory.gva.containing().offset(memory.pages));
    let mut leaves = 0;
    while page < end {
        let leaf = umpa.leaf(page).ok_or_else(|| Failure::new("a page of new memory isn't mapped"))?;
        check(leaf.flags.contains(used | EntryFlags::WRITABLE), "a leaf of new memory without A and D")?;
        check(!leaf.flags.contains(EntryFlags::HIDDEN), "a leaf of new memory is hidden")?;
        let size = leaf.size.frames();
        page = page.offset(size - page.get() % size);
        leaves += 1;
    }
    Ok(leaves)
}

/// Takes frames until no two that are free are neighbours; then no block of two has a run.
fn fragment(umpa: &mut Allocator<'_>) -> Result<(), Failure> {
    let mut singles = [Gva::new(0); FRAMES as usize];
    let mut len = 0;
    while let Ok(gva) = umpa.userpage_malloc(PAGE_BYTES) {
        singles[len] = gva;
        len += 1;
    }
    for &gva in singles[..len].iter().filter(|gva| (gva.get() / PAGE_BYTES).is_multiple_of(2)) {
        check(umpa.userpage_free(gva).is_ok(), "a block couldn't be freed")?;
    }
    Ok(())
}

fn all_ways(umpa: &mut Allocator<'_>) -> Result<[Memory; 6], Failure> {
    let failed = || Failure::new("no memory");
    let malloc = |umpa: &mut Allocator<'_>, how, pages| {
        let gva = umpa.userpage_malloc(pages * PAGE_BYTES).map_err(|_| failed())?;
        Ok(Memory { how, gva, pages })
    };
    let direct = malloc(umpa, "malloc, rung a: free and still mapped", 200)?;
    let reserved = umpa.userpage_reserve(700 * PAGE_BYTES).map_err(|_| failed())?;
    umpa.userpage_commit(reserved, 700 * PAGE_BYTES).map_err(|_| failed())?;
    let committed = Memory { how: "commit, large leaves where frames allow", gva: reserved, pages: 700 };
    let moved = malloc(umpa, "malloc, unshared: a window, contiguous", 90)?;
    let moved = Memory { gva: umpa.userpage_unshare(moved.gva).map_err(|_| failed())?, ..moved };
    fragment(umpa)?;
    let scattered = malloc(umpa, "malloc, rung c: scattered frames", 40)?;
    let once = malloc(umpa, "malloc, rung a': a window freed before", 33)?;
    check(umpa.userpage_free(once.gva).is_ok(), "the block couldn't be freed")?;
    let retained = malloc(umpa, once.how, 33)?;
    let stats = umpa.stats();
    equal(stats.windows, 2, "blocks of rung c")?;
    equal(stats.retained, 1, "blocks of rung a'")?;
    let anonymous = MapFlags::PRIVATE | MapFlags::ANONYMOUS;
    let mapped = umpa.mmap(Gva::new(0), 100 * PAGE_BYTES, Prot::READ | Prot::WRITE, anonymous);
    let mapped = Memory { how: "mmap", gva: mapped.map_err(|_| failed())?, pages: 100 };
    Ok([direct, moved, scattered, retained, committed, mapped])
}

fn touch(memory: Memory, seed: u64) -> Result<(), Failure> {
    (0..memory.pages).for_each(|page| mmu::store(memory.word(page), seed + page));
    for page in 0..memory.pages {
        equal(mmu::load(memory.word(page)), seed + page, "a word of new memory")?;
    }
    Ok(())
}

/// See the [module](self).
pub(super) fn run(context: &mut Context<'_>) -> Result<(), Failure> {
    let rounds = context.number(1, 1)?.max(1);
    let (ring, mode) = (context.boot.ring, context.boot.mode().name());
    let mut umpa = context.allocator(Config { refill: false, ..Config::default() });
    equal(umpa.preload(FRAMES).frames, FRAMES, "frames granted (--mem 16M or more)")?;
    println!("real-frames: ring {ring}, mode {mode}");
    println!("{:42}{:>7}{:>8}{:>8}", "how it was made", "pages", "leaves", "faults");
    let all = all_ways(&mut umpa)?;
    let gva = umpa.userpage_reserve(LAZY_PAGES * PAGE_BYTES).map_err(|_| Failure::new("no addresses"))?;
    let lazy = Memory { how: "reserve, commit when touched", gva, pages: LAZY_PAGES };
    for page in 0..LAZY_PAGES {
        check(
            umpa.leaf(lazy.word(page).containing()).is_none(),
            "lazy memory has a leaf before it is touched",
        )?;
    }
    for (number, &memory) in all.iter().chain([&lazy]).enumerate() {
        let is_lazy = number == all.len();
        let leaves = if is_lazy { 0 } else { preset(&umpa, memory)? };
        let mut counts = Counts { umpa: &mut umpa, lazy, faults: 0 };
        scope(&mut counts, |_| (0..rounds).try_for_each(|round| touch(memory, round << 32 | memory.pages)))?;
        let faults = counts.faults;
        println!("{:42}{:>7}{leaves:>8}{faults:>8}", memory.how, memory.pages);
        equal(faults, if is_lazy { LAZY_PAGES } else { 0 }, "page faults")?;
    }
    preset(&umpa, lazy)?;
    println!("real-frames: no page fault but where it was asked for");
    Ok(())
}
